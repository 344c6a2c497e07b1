"""Sweeps whose trials begin from a pre-training on generated clips: planned, killed, resumed, and in no table."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLES, CONFIGS, SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import main
from cryo_monai.completed_runs import DONE, is_done
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.folders import LOCK
from cryo_monai.sweeps.local_engine import LocalEngine, Slot
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.sweeps.trials import outcome_of

GENERATED = BUNDLES / "generated_pretraining"
MOTION = CONFIGS / "pretraining" / "motion.json"
SMALL = {key: TINY[key] for key in ("backbone", "backbone_options", "clip_size", "batch_size")}
SMALL |= {"clips_per_epoch": 16, "validation_clips": 8, "max_epochs": 3}
ENTRY = {"bundle": str(GENERATED), "overlays": [str(MOTION)], "ids": SMALL}


def write(folder: Path, **changes: Any) -> Path:
    """A sweep of random weights against those of a pre-training."""
    content = {
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3, "max_epochs": 1},
        "axes": {
            "dataset": {"simulated": {}},
            "initialisation": {"random": {}, "motion": {"ids": {"weights": "pretrained:motion"}}},
            "seed": [0],
        },
        "pretrained": {"motion": ENTRY},
        "compare": "initialisation",
        "baseline": "random",
        **changes,
    }
    file = folder / "sweep.json"
    file.write_text(json.dumps(content))
    return file


def planned(folder: Path, data: Path, ids: dict[str, Any] | None = None, **changes: Any) -> list[Trial]:
    planner = Planner(read_sweep(write(folder, **changes)), folder / "out", data={"simulated": data}, ids=ids)
    return planner.plan(planner.cells())


def test_a_pretraining_with_a_bundle_of_its_own_has_only_its_own_settings(dataset_dir: Path, tmp_path: Path) -> None:
    motion, random, begun = planned(tmp_path, dataset_dir)
    assert motion.cell == {"pretrained": "motion"}
    assert (motion.bundle, motion.overlays) == (str(GENERATED), (str(MOTION),))
    assert motion.ids == {**SMALL, "progress": False}
    assert motion.cost == 3 * 16
    assert motion.after == random.after == ()
    assert begun.after == (motion.key,)
    assert begun.ids["weights"] == str(motion.folder / "models" / "model.pt")


def test_its_key_is_of_its_configuration_alone(dataset_dir: Path, tmp_path: Path) -> None:
    first = planned(tmp_path, dataset_dir)
    other_base = planned(tmp_path, dataset_dir, ids={"num_workers": "2", "num_classes": "3"})
    assert [t.key for t in other_base] == [t.key for t in first]
    assert other_base[0].ids == first[0].ids  # it has no such ids
    longer = planned(tmp_path, dataset_dir, pretrained={"motion": {**ENTRY, "ids": {**SMALL, "max_epochs": 4}}})
    assert [a.key == b.key for a, b in zip(first, longer, strict=True)] == [False, True, False]
    shortened = planned(tmp_path, dataset_dir, ids={"max_epochs": "1"})  # given for all
    assert [t.max_epochs for t in shortened] == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": {"motion": {"ids": SMALL}}}, "pretrained: motion: name its 'dataset', or a 'bundle'"),
        ({"pretrained": {"motion": {**ENTRY, "dataset": 3}}}, "pretrained: motion: name its 'dataset', or a 'bundle'"),
        ({"pretrained": {"motion": {**ENTRY, "ids": {"lr_milestones": [1]}}}}, "--lr_milestones: no such id"),
        ({"pretrained": {"motion": {**ENTRY, "ids": {"max_epochs": 0}}}}, "max_epochs: 0 is not a whole number"),
        (
            {"pretrained": {"motion": {**ENTRY, "ids": {**SMALL, "backbone": "resnet34"}}}},
            "initialisation motion, seed 0: backbone 'resnet18': pre-training 'motion' has 'resnet34'",
        ),
        ({"bundle": str(GENERATED), "ids": SMALL}, "scores nothing that a table could have"),
    ],
)
def test_what_would_stop_it_is_said_before_anything_runs(
    changes: dict[str, Any], words: str, dataset_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        planned(tmp_path, dataset_dir, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "trials").exists()


def test_a_data_set_for_a_pretraining_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data motion: no such data set"):
        Planner(read_sweep(write(tmp_path)), tmp_path / "out", data={"motion": tmp_path})


def test_a_sweep_trains_it_once_and_tables_have_the_others(
    dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {
        "initialisation": {"random": {}, "motion": {"ids": {"weights": "pretrained:motion"}}},
        "dataset": {"simulated": {}},
        "seed": [0, 1],
    }
    command = ["sweep", str(write(tmp_path, axes=axes)), str(tmp_path / "out"), "--data", f"simulated={dataset_dir}"]
    command += ["--device", "cpu", "--workers", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "done     pretrained motion: validation 0." in said
    assert "5 of 5 trials done" in said
    out = tmp_path / "out"
    (first,) = [json.loads(file.read_text()) for file in out.glob("trials/*/DONE") if "model" in file.read_text()]
    begun = [json.loads(file.read_text())["initialisation"] for file in out.glob("trials/*/run.json")]
    assert sorted(str(one.get("sha256")) for one in begun) == sorted(["None"] * 3 + [first["model_sha256"]] * 2)
    for name in ("results.csv", "table.md", "table.tex", "summary.json", "sweep.html"):
        assert (out / name).stat().st_size > 0
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 4
    assert "pretrained" not in (out / "table.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in out.glob("trials/*/DONE")}
    assert main(command) == 0  # nothing is left to do
    assert {file: file.stat().st_mtime_ns for file in out.glob("trials/*/DONE")} == before
    assert main([*command, "--dry_run", "True"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cryo-monai train")]
    assert f"train {GENERATED} " in commands[0]
    assert "--dataset_dir" not in commands[0]


def epochs_of(trial: Trial) -> int:
    file = trial.folder / "metrics.json"
    return len(json.loads(file.read_text())["history"]) if file.exists() else 0


def interrupt(trial: Trial, number: int, *, whole_sweep: bool) -> threading.Thread:
    """Send a signal to the process of a trial, or to this one, as soon as its first epoch is saved."""

    def wait() -> None:
        end = time.monotonic() + 60
        while epochs_of(trial) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        os.kill(os.getpid() if whole_sweep else int((trial.folder / LOCK).read_text().split()[1]), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def undisturbed(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of the weights of each trial when nothing happens."""
    trials = long(tmp_path_factory.mktemp("undisturbed"), dataset_dir)
    assert LocalEngine([Slot()]).run(trials)
    return {trial.key: sha256_of(trial.folder / "models" / "model.pt") for trial in trials}


def long(folder: Path, data: Path) -> list[Trial]:
    """A pre-training that can be interrupted, and what begins from it."""
    ids = {**SMALL, "max_epochs": 30}
    return planned(folder, data, ids={"device": "cpu"}, pretrained={"motion": {**ENTRY, "ids": ids}})


@pytest.mark.parametrize("how", ["kill", "ctrl-c"])
def test_killed_or_stopped_it_goes_on_to_the_same_weights(
    how: str, undisturbed: dict[str, str], dataset_dir: Path, tmp_path: Path
) -> None:
    trials = long(tmp_path, dataset_dir)
    motion, begun = trials[0], trials[2]
    thread = interrupt(motion, signal.SIGKILL if how == "kill" else signal.SIGINT, whole_sweep=how == "ctrl-c")
    finished = LocalEngine([Slot()]).run(trials)
    thread.join()
    assert finished == (how == "kill")  # a trial that died is tried again by the same sweep
    if how == "ctrl-c":
        assert [outcome_of(trial).state for trial in (motion, begun)] == ["stopped", "waiting"]
        assert LocalEngine([Slot()]).run(trials)
    assert all(is_done(trial.folder) for trial in trials)
    assert (motion.folder / "log.txt").read_text().count("resuming after epoch") == 1
    assert {trial.key: sha256_of(trial.folder / "models" / "model.pt") for trial in trials} == undisturbed
    # A mark that stands for other weights is no mark: the trial is gone on with.
    (motion.folder / DONE).write_text(json.dumps({"model_sha256": "0" * 64}))
    assert outcome_of(motion).state == "stopped"
    assert LocalEngine([Slot()]).run(trials)
    assert is_done(motion.folder)
