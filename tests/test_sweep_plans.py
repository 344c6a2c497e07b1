"""Sweep files and plans: what is read, which trials come of it, and what each is called."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS, SUBTOMOGRAMS, TINY

from cryo_monai.errors import InputError
from cryo_monai.splits import SPLITS
from cryo_monai.sweeps.plans import Planner
from cryo_monai.sweeps.sweep_files import Sweep, note_sweep, read_sweep
from cryo_monai.sweeps.trial_data import TrialData

WriteSweep = Callable[..., Sweep]


def tiny_sweep(**changes: Any) -> dict[str, Any]:
    """A grid of eight trials on the tiny data set."""
    return {
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3},
        "axes": {
            "dataset": {"simulated": {}},
            "label_fraction": [0.5, 1.0],
            "initialisation": {"random": {}, "own": {"ids": {"weights": "pretrained:start", "max_epochs": 1}}},
            "seed": [0, 1],
        },
        "pretrained": {"start": {"dataset": "simulated", "ids": {"seed": 9}}},
        **changes,
    }


@pytest.fixture
def write_sweep(tmp_path: Path) -> WriteSweep:
    def write(**changes: Any) -> Sweep:
        file = tmp_path / "sweep.json"
        file.write_text(json.dumps(tiny_sweep(**changes)))
        return read_sweep(file)

    return write


def planned(sweep: Sweep, folder: Path, data: Path, only: Any = None, **ids: Any) -> Any:
    planner = Planner(sweep, folder, data={"simulated": data}, ids=ids)
    return planner.plan(planner.cells(only))


def test_a_grid_becomes_trials_with_what_they_begin_from_first(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    trials = planned(write_sweep(), tmp_path / "out", dataset_dir)
    assert [t.cell.get("pretrained") for t in trials] == ["start"] + [None] * 8
    start = trials[0]
    for trial in trials[1:]:
        own = trial.cell["initialisation"] == "own"
        assert trial.after == ((start.key,) if own else ())
        assert trial.max_epochs == (1 if own else 2)
        assert (trial.ids.get("weights") == str(start.folder / "models" / "model.pt")) == own
    assert len({t.key for t in trials}) == 9
    # 18 training volumes and 6 of validation: an epoch of validation costs a third.
    assert [t.cost for t in trials[1:3]] == [2 * (9 + 2), 2 * (9 + 2)]


def test_keys_are_of_configuration_and_content_not_of_places(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    sweep = write_sweep()
    first = [t.key for t in planned(sweep, tmp_path / "one", dataset_dir)]
    moved = Path(shutil.copytree(dataset_dir, tmp_path / "moved"))
    for file in moved.rglob("*.mrc"):
        os.utime(file, (1, 1))
    elsewhere = planned(sweep, tmp_path / "two", moved, num_workers="2", device="cpu", progress="True")
    assert [t.key for t in elsewhere] == first
    volume = next(file for file in sorted(moved.rglob("*.mrc")) if "clean" not in str(file) and "00" in file.name)
    content = bytearray(volume.read_bytes())
    content[-1] ^= 1
    volume.write_bytes(content)
    assert not {t.key for t in planned(sweep, tmp_path / "three", moved)} & set(first)
    assert not {t.key for t in planned(sweep, tmp_path / "one", dataset_dir, lr="0.02")} & set(first)


def test_a_changed_axis_keeps_the_trials_of_the_others(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    before = {t.key for t in planned(write_sweep(), tmp_path / "out", dataset_dir)}
    axes = {**tiny_sweep()["axes"], "seed": [0, 1, 2]}
    after = {t.key for t in planned(write_sweep(axes=axes), tmp_path / "out", dataset_dir)}
    assert before < after
    assert len(after) == 13


def test_only_chooses_a_part_and_needs_no_more_than_that(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    only = {"initialisation": ["random"], "label_fraction": ["1"], "seed": ["0", "1"]}
    trials = planned(write_sweep(), tmp_path, dataset_dir, only)
    assert [t.cell["seed"] for t in trials] == [0, 1]
    assert all(t.cell["label_fraction"] == 1.0 for t in trials)
    leave_out = [{"initialisation": "own"}, {"label_fraction": 0.5, "seed": [1]}]
    trials = planned(write_sweep(leave_out=leave_out), tmp_path, dataset_dir)
    assert [(t.cell["label_fraction"], t.cell["seed"]) for t in trials] == [(0.5, 0), (1.0, 0), (1.0, 1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axis": {}}, "no such key 'axis'; did you mean axes?"),
        ({"axes": {}}, "a sweep is a JSON object with 'axes'"),
        ({"axes": {"seed": []}}, "axes: seed: give a list of values"),
        ({"axes": {"seed": [0, 0]}}, "axes: seed: a value comes twice"),
        ({"axes": {"seed": {"a": {"overlay": []}}}}, "no such key 'overlay'; did you mean overlays?"),
        ({"overlays": ["missing.json"]}, "missing.json: no such file or folder"),
        ({"bundle": "missing"}, "missing: no such file or folder"),
        ({"leave_out": [{"sead": 1}]}, "leave_out: no such key 'sead'; did you mean seed?"),
        ({"pretrained": {"start": {}}}, "pretrained: start: name its 'dataset'"),
    ],
)
def test_mistakes_in_a_sweep_are_named(write_sweep: WriteSweep, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=r"sweep\.json") as caught:
        write_sweep(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": str(CONFIGS)}, "train.json: no such file"),
        ({"ids": {"epochs": 3}}, "--epochs: no such id in this bundle"),
        ({"pretrained": {}}, "no pre-training 'start'"),
        ({"ids": {**TINY, "num_classes": 4}}, "3 classes"),
        ({"ids": {**TINY, "num_classes": 3, "weights": "video"}}, "resnet-18-kinetics"),
        ({"axes": {**tiny_sweep()["axes"], "batch_size": {"a": {}, "b": {}}}}, "are the same trial"),
    ],
)
def test_what_would_stop_a_trial_is_said_before_any_runs(
    write_sweep: WriteSweep,
    dataset_dir: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError) as caught:
        planned(write_sweep(**changes), tmp_path / "out", dataset_dir)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_data_and_values_are_named_with_what_to_do(write_sweep: WriteSweep, tmp_path: Path) -> None:
    axes = {**tiny_sweep()["axes"], "dataset": {"simulated": {}, "noble": {}}}
    planner = Planner(write_sweep(axes=axes), tmp_path, data={})
    with pytest.raises(InputError, match=r"simulated: no data; give --data simulated=DIR.*--only dataset=noble"):
        planner.plan(planner.cells())
    with pytest.raises(InputError, match="axis seed has no value '7'; there are 0, 1"):
        planner.cells({"seed": ["7"]})
    with pytest.raises(InputError, match="no axis 'sead'"):
        planner.cells({"sead": ["7"]})


def test_a_folder_of_something_else_is_not_taken(write_sweep: WriteSweep, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not a sweep"):
        note_sweep(other, write_sweep())
    note_sweep(tmp_path / "new", write_sweep())
    note_sweep(tmp_path / "new", write_sweep(title="again"))
    assert json.loads((tmp_path / "new" / "sweep.json").read_text())["title"] == "again"


def test_weights_on_the_command_line_stand_for_video_weights_only(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"any")
    axes = {"initialisation": {"random": {}, "video": {"ids": {"weights": "video"}}}, "dataset": {"simulated": {}}}
    random, video = planned(write_sweep(axes=axes), tmp_path / "out", dataset_dir, weights=str(file))
    assert "weights" not in random.ids
    assert video.ids["weights"] == str(file)
    before = video.key
    file.write_bytes(b"other")
    assert planned(write_sweep(axes=axes), tmp_path / "out", dataset_dir, weights=str(file))[1].key != before


PUBLISHED = sorted((CONFIGS / "sweeps").glob("*.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_sweeps_of_the_repository_name_ids_that_exist_and_quote_cells_that_they_run(
    file: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(file)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    monkeypatch.setattr(TrialData, "counted", lambda _, cell, __: (dict.fromkeys(SPLITS, 100), cell["dataset"]))
    planner = Planner(sweep, tmp_path / "out", data={"": dataset_dir}, ids={"weights": str(weights)})
    cells = planner.cells()
    assert len(planner.plan(cells)) >= len(cells)
    assert "cryo-monai sweep" in sweep.content["_desc_"]
    axes = sweep.described()["axes"]
    for row in sweep.content.get("published", []):
        for axis in ("dataset", "label_fraction", "initialisation"):
            if axis in row and axis in axes:
                assert row[axis] in axes[axis], row
        assert 0 < row["accuracy"] <= 1
        assert row["source"]


def test_table_1_is_the_grid_and_the_schedules_of_the_paper(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Jain, Li & Xu 2024, sections 4.3.2 and 5.2, Table 1.
    monkeypatch.setattr(TrialData, "counted", lambda _, cell, __: (dict.fromkeys(SPLITS, 100), cell["dataset"]))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    planner = Planner(
        read_sweep(CONFIGS / "sweeps" / "table1.json"), tmp_path, data={"": dataset_dir}, ids={"weights": str(weights)}
    )
    trials = planner.plan(planner.cells())
    assert len(trials) == (2 + 4) * 2 * 5
    from cryo_monai.workflows import load_workflow

    seen = set()
    for trial in trials:
        parser = load_workflow(trial.bundle, "train", overlays=trial.overlays, overrides=trial.ids).parser
        ids = {
            name: parser[name] for name in ("max_epochs", "lr", "lr_milestones", "batch_size", "num_classes", "seed")
        }
        video = trial.cell["initialisation"] == "video"
        assert ids["max_epochs"] == (30 if video else 100)
        assert ids["lr"] == (1e-4 if video else 1e-3)
        assert ids["lr_milestones"] == ([15, 22] if video else [50, 75])
        assert ids["batch_size"] == (16 if trial.cell["label_fraction"] in (0.05, 0.1) else 32)
        assert ids["num_classes"] == (10 if trial.cell["dataset"] == "simulated" else 7)
        assert ids["seed"] == trial.cell["seed"]
        seen.add((trial.cell["dataset"], trial.cell["label_fraction"]))
    assert seen == {("simulated", 0.25), ("simulated", 1.0), *(("noble", f) for f in (0.05, 0.1, 0.25, 1.0))}
