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
from cryo_monai.sweeps.identities import DataDigests
from cryo_monai.sweeps.local_engine import slots
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
        ({"axes": {"pretrained": [1, 2]}}, "rename it"),
        ({"data": {"simulated": {"output_dir": "x"}}}, "'output_dir' is the sweep's to choose"),
        ({"data": {"simulated": {"snr": None}}}, "snr: give a text or a number"),
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
        ({"ids": {**TINY, "num_classes": 3, "backbone": "resnet99"}}, "backbone: 'resnet99' is not one of"),
        ({"ids": {**TINY, "num_classes": 3, "max_epochs": 0}}, "max_epochs: 0 is not a whole number of 1 or more"),
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


def test_a_flag_does_not_replace_an_axis(write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--seed 5: is an axis of .*sweep\.json; choose with --only seed=VALUE"):
        planned(write_sweep(), tmp_path, dataset_dir, seed=5)
    trials = planned(write_sweep(), tmp_path, dataset_dir, batch_size=4)
    assert {trial.ids["batch_size"] for trial in trials} == {4}


def test_a_pretraining_that_is_in_the_grid_is_one_trial(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path
) -> None:
    pretrained = {"start": {"dataset": "simulated", "ids": {"seed": 1}}}
    trials = planned(write_sweep(pretrained=pretrained), tmp_path, dataset_dir)
    assert len(trials) == len({trial.key for trial in trials}) == 8
    cell = {"dataset": "simulated", "label_fraction": 1.0, "initialisation": "random", "seed": 1}
    assert trials[0].cell == cell  # it comes first, as others begin from it
    assert {trial.after for trial in trials[1:]} == {(), (trials[0].key,)}


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


def listed(folder: Path, data: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a data set whose dataset.json is edited; its volumes are the same files."""
    content = json.loads((data / "dataset.json").read_text())
    for split in ("training", "validation", "test"):
        for item in content[split]:
            item["image"] = str(data / item["image"])
    edit(content)
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_which_split_source_and_place_in_a_list_an_item_has_belongs_to_the_data(
    dataset_dir: Path, tmp_path: Path
) -> None:
    def keep(content: dict[str, Any]) -> None: ...

    def move(content: dict[str, Any]) -> None:
        content["validation"].insert(0, content["training"].pop())

    def rename(content: dict[str, Any]) -> None:
        content["training"][0]["source"] = "tomogram_7"

    def turn(content: dict[str, Any]) -> None:
        content["training"].reverse()

    found = []
    for edit in (keep, move, rename, turn, keep):
        place = listed(tmp_path / "data", dataset_dir, edit)  # the same place, and the same note
        found.append(DataDigests(tmp_path / "note.json").of(place))
    assert found[0] == found[-1]
    assert len(set(found)) == 4


def test_a_file_that_was_exchanged_with_its_time_kept_is_read_again(dataset_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(dataset_dir, tmp_path / "data"))
    before = DataDigests(tmp_path / "note.json").of(moved)
    volume = moved / json.loads((moved / "dataset.json").read_text())["test"][0]["image"]
    status = volume.stat()
    content = bytearray(volume.read_bytes())
    content[-1] ^= 1
    volume.write_bytes(content)
    os.utime(volume, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert DataDigests(tmp_path / "note.json").of(moved) != before


def test_how_a_bundle_is_evaluated_is_part_of_the_key(dataset_dir: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(SUBTOMOGRAMS, tmp_path / SUBTOMOGRAMS.name))
    keys = []
    for averaged in ("false", "true"):
        file = bundle / "configs" / "evaluate.json"
        file.write_text(file.read_text().replace('"average_axes": false', f'"average_axes": {averaged}'))
        (tmp_path / "sweep.json").write_text(json.dumps(tiny_sweep(bundle=str(bundle))))
        keys.append([t.key for t in planned(read_sweep(tmp_path / "sweep.json"), tmp_path / "out", dataset_dir)])
    assert not set(keys[0]) & set(keys[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": {**TINY, "num_classes": 3, "weights": "pretrained:start"}}, "pre-training 'start' begins from itself"),
        ({"axes": {**tiny_sweep()["axes"], "label_fraction": [25]}}, "label_fraction: 25 is not above 0 and up to 1"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(
    write_sweep: WriteSweep, dataset_dir: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        planned(write_sweep(**changes), tmp_path / "out", dataset_dir)
    assert words in str(caught.value)


def test_data_that_the_sweep_does_not_have_are_refused(write_sweep: WriteSweep, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data simulatd: no such data set .*; did you mean simulated\?"):
        Planner(write_sweep(), tmp_path, data={"simulatd": tmp_path})
    for changes in ({"pretrained": {}}, {}):
        with pytest.raises(InputError, match="has no axis 'dataset'; give --dataset_dir instead"):
            Planner(write_sweep(axes={"seed": [0]}, **changes), tmp_path, data={"": tmp_path})


def test_workers_are_places_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        slots(-1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.device for slot in slots()] == ["0", "1"]
    assert [slot.device for slot in slots(trials_per_gpu=2)] == ["0", "1", "0", "1"]
    assert [slot.device for slot in slots(1)] == ["0"]
    assert [slot.device for slot in slots(3, trials_per_gpu=0)] == ["", "", ""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot.device for slot in slots()] == ["5", "7"]
    with pytest.raises(InputError, match="2 GPUs have 2 places; raise --trials_per_gpu"):
        slots(3)


PUBLISHED = sorted((CONFIGS / "sweeps").glob("*.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_sweeps_of_the_repository_name_ids_that_exist_and_quote_cells_that_they_run(
    file: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(file)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"any")
    monkeypatch.setattr(TrialData, "counted", lambda _, cell, __: (dict.fromkeys(SPLITS, 100), cell.get("dataset", "")))
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
