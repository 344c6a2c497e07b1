import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryo_monai.audits import Audit, audit_dataset
from cryo_monai.datalists import SPLITS, load_datalist
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.leakage import cramers_v
from cryo_monai.mrc import write_mrc

SHAPE = (8, 9, 10)


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype("f4")


def listed(folder: Path, *, sources: int = 4, per_class: int = 12, confounded: bool = False) -> dict[str, Any]:
    """Write volumes of three classes; return their datalist, split 6:3:3; each source being in one split."""
    content: dict[str, Any] = {"class_names": ["a", "b", "c"], "training": [], "validation": [], "test": []}
    for label, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            write_mrc(folder / name / f"{n}.mrc", voxels(100 * label + n), voxel_size=10.0)
            source = label if confounded else n * sources // per_class
            split = SPLITS[[0, 0, 1, 2][4 * n // per_class]]
            content[split].append({"image": f"{name}/{n}.mrc", "label": label, "source": f"TS_{source}"})
    return content


def audited(folder: Path, content: Any, **options: Any) -> Audit:
    (folder / "dataset.json").write_text(json.dumps(content))
    audit = audit_dataset(folder, **options)
    assert audit.as_text().startswith(audit.verdict + "\n")
    assert json.loads(json.dumps(audit.as_dict(), allow_nan=False))["problems"] == audit.problems
    return audit


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return tmp_path, listed(tmp_path)


def test_a_sound_data_set_is_fit_and_counted(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    seen: list[int] = []
    audit = audited(folder, content, progress=seen.append)
    assert (audit.problems, audit.warnings) == ([], [])
    assert audit.verdict == f"{folder}: fit for training (no problems, no warnings)"
    assert audit.counts["training"] == {"a": 6, "b": 6, "c": 6}
    assert audit.counts["test"] == {"a": 3, "b": 3, "c": 3}
    assert sum(seen) == audit.num_read == audit.num_volumes == 36
    assert audit.shapes == {"8 x 9 x 10": 36}
    assert audit.voxel_sizes == {"10 x 10 x 10 Å": 36}
    assert audit.data_types == {"float32": 36}
    medians = [np.median([np.std(voxels(100 * label + n)) for n in range(12)]) for label in range(3)]
    found = [audit.intensities[name]["standard deviation"] for name in "abc"]
    assert found == pytest.approx(medians, rel=1e-5)


def replaced(folder: Path, name: str, data: np.ndarray, **options: Any) -> None:
    write_mrc(folder / name, data, **{"voxel_size": 10.0, **options})


def patched(folder: Path, name: str, voxels: np.ndarray) -> None:
    """Overwrite the first voxels of a file."""
    raw = bytearray((folder / name).read_bytes())
    raw[1024 : 1024 + voxels.nbytes] = voxels.tobytes()
    (folder / name).write_bytes(raw)


def plant_nan(folder: Path, content: dict[str, Any]) -> None:
    patched(folder, "a/1.mrc", np.array([np.nan, np.inf], "f4"))


def plant_all_nan(folder: Path, content: dict[str, Any]) -> None:
    patched(folder, "a/1.mrc", np.full(SHAPE, np.nan, "f4"))


def plant_box(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(1)[:7])


def plant_voxel_size(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(1), voxel_size=12.0)


def plant_truncation(folder: Path, content: dict[str, Any]) -> None:
    (folder / "a/1.mrc").write_bytes((folder / "a/1.mrc").read_bytes()[:-9])


def plant_absence(folder: Path, content: dict[str, Any]) -> None:
    (folder / "a/1.mrc").unlink()


def plant_label(folder: Path, content: dict[str, Any]) -> None:
    content["training"][1]["label"] = 3


def plant_copy_across_splits(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(11))


def plant_copy_across_classes(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(203))


def plant_second_listing(folder: Path, content: dict[str, Any]) -> None:
    (folder / "link").symlink_to("a")
    content["test"].append({**content["training"][1], "image": "link/1.mrc", "source": "TS_3"})


def plant_absent_class(folder: Path, content: dict[str, Any]) -> None:
    content["test"] = [item for item in content["test"] if item["label"] != 1]


def plant_bad_source(folder: Path, content: dict[str, Any]) -> None:
    content["training"][1]["source"] = 1.5


PROBLEMS = {
    plant_nan: "a/1.mrc: 2 voxels are NaN or infinite",
    plant_all_nan: "a/1.mrc: no voxel is finite",
    plant_box: "a/1.mrc: box size (7, 9, 10) (1 volumes) differs from the (8, 9, 10) of 35",
    plant_voxel_size: "a/1.mrc: voxel size 12 x 12 x 12 Å (1 volumes) differs from the 10 x 10 x 10 Å of 35",
    plant_truncation: "a/1.mrc: truncated",
    plant_absence: "a/1.mrc: no such file",
    plant_label: "a/1.mrc: label 3 is not an integer from 0 to 2",
    plant_copy_across_splits: "the same voxels in more than one split: {0}/a/1.mrc (training), {0}/a/11.mrc (test)",
    plant_copy_across_classes: "the same voxels in more than one class: {0}/a/1.mrc (training), {0}/c/3.mrc (training)",
    plant_second_listing: "link/1.mrc: listed twice (in training and in test)",
    plant_absent_class: "class 'b' has no volume in test",
    plant_bad_source: "a/1.mrc is 1.5, not a name",
}


@pytest.mark.parametrize(("plant", "line"), PROBLEMS.items(), ids=[plant.__name__ for plant in PROBLEMS])
def test_a_planted_problem_is_found_by_name(data: tuple[Path, dict[str, Any]], plant: Any, line: str) -> None:
    folder, content = data
    plant(folder, content)
    audit = audited(folder, content)
    assert len(audit.problems) == 1
    assert line.format(folder) in audit.problems[0]
    assert "NOT fit for training (1 problem" in audit.verdict
    assert audit.problems[0] in audit.as_text()


def plant_constant(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", np.ones(SHAPE, "f4"))


def plant_copy_within(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(2))


def plant_data_type(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", (100 * voxels(1)).astype("i2"))


def plant_unknown_voxel_size(folder: Path, content: dict[str, Any]) -> None:
    replaced(folder, "a/1.mrc", voxels(1), voxel_size=0.0)


def plant_divided_source(folder: Path, content: dict[str, Any]) -> None:
    content["training"][1]["source"] = "TS_3"


def plant_unknown_source(folder: Path, content: dict[str, Any]) -> None:
    del content["training"][1]["source"]


WARNINGS = {
    plant_constant: "a/1.mrc: every voxel has the same value",
    plant_copy_within: "the same voxels under 2 names: {0}/a/1.mrc (training), {0}/a/2.mrc (training)",
    plant_data_type: "a/1.mrc: data type int16 (1 volumes) differs from the float32 of 35",
    plant_unknown_voxel_size: "1 volumes do not say their voxel size, such as {0}/a/1.mrc",
    plant_divided_source: "1 of 4 sources have volumes in more than one split (TS_3)",
    plant_unknown_source: "1 volumes name no source",
}


@pytest.mark.parametrize(("plant", "line"), WARNINGS.items(), ids=[plant.__name__ for plant in WARNINGS])
def test_a_planted_doubt_is_a_warning(data: tuple[Path, dict[str, Any]], plant: Any, line: str) -> None:
    folder, content = data
    plant(folder, content)
    audit = audited(folder, content)
    assert audit.problems == []
    assert len(audit.warnings) == 1
    assert line.format(folder) in audit.warnings[0]
    assert audit.warnings[0] in audit.as_text()


def test_all_faults_together_are_all_reported(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    plant_nan(folder, content)
    (folder / "b/1.mrc").write_bytes(b"")
    replaced(folder, "c/1.mrc", voxels(1)[:7])
    plant_absent_class(folder, content)
    text = "\n".join(audited(folder, content).problems)
    for line in ("a/1.mrc: 2 voxels", "b/1.mrc: empty", "c/1.mrc: box size", "class 'b' has no volume in test"):
        assert line in text


def test_what_is_to_be_filled_and_what_is_split_by_source_change_the_verdict(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    plant_nan(folder, content)
    audit = audited(folder, content, nan="mean")
    assert audit.problems == []
    assert audit.warnings == [f"{folder}/a/1.mrc: 2 voxels are NaN or infinite"]
    plant_divided_source(folder, content)
    audit = audited(folder, content, nan="mean", split_by="source")
    assert audit.problems == ["source 'TS_3' is in 2 splits (1 in training, 9 in test)"]


def test_a_class_that_is_its_tomogram_is_said_to_be(tmp_path: Path) -> None:
    audit = audited(tmp_path, listed(tmp_path, confounded=True))
    assert audit.sources.association == pytest.approx(1)
    assert audit.sources.single == {"a": "TS_0", "b": "TS_1", "c": "TS_2"}
    assert audit.sources.grouped is None
    assert [line.split(":")[0] for line in audit.sources.obstacles] == ["a", "b", "c"]
    text = audit.as_text()
    assert "class and acquisition cannot be told apart: a (TS_0), b (TS_1), c (TS_2)" in text
    assert "Cramér's V 1.00" in text
    assert audit.sources.table == [[12, 0, 0], [0, 12, 0], [0, 0, 12]]


def test_a_split_by_source_is_proposed_where_there_is_one(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    audit = audited(folder, content)
    assert audit.sources.association == 0
    assert audit.sources.single == {}
    assert audit.sources.grouped is not None
    assert sum(audit.sources.grouped["training"].values()) == 18
    assert all(count > 0 for counts in audit.sources.grouped.values() for count in counts.values())
    every = [item for split in SPLITS for item in content[split]]
    unsplit = audited(folder, {"training": every, "class_names": ["a", "b", "c"]}, split_by="source")
    assert unsplit.counts == audit.sources.grouped
    assert unsplit.warnings == []
    assert "sources have volumes in more than one split" in audited(folder, {"training": every}).warnings[0]


def test_a_folder_per_class_is_audited_with_the_split_of_training(tmp_path: Path) -> None:
    listed(tmp_path)
    assert "a folder per class does not say" in audit_dataset(tmp_path, split_by="source").problems[0]
    audit = audit_dataset(tmp_path, split=(2, 1, 1))
    assert audit.problems == []
    datalist = load_datalist(tmp_path, split=(2, 1, 1))
    assert {split: sum(counts.values()) for split, counts in audit.counts.items()} == {
        split: len(datalist[split]) for split in SPLITS
    }
    assert "sources: none is named" in audit.as_text()
    (tmp_path / "d").mkdir()
    (tmp_path / "a" / "notes.xyz").touch()
    problems = "\n".join(audit_dataset(tmp_path).problems)
    assert "notes.xyz: unknown extension" in problems
    assert "d: class without volumes" in problems


def test_medmnist_files_are_audited(tmp_path: Path) -> None:
    arrays = {}
    rng = np.random.default_rng(0)
    for part, count in {"train": 12, "val": 6, "test": 6}.items():
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 8, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 3)[:, None]
    arrays["test_images"][2] = arrays["train_images"][4]
    np.savez(tmp_path / "a.npz", **arrays)
    audit = audit_dataset(tmp_path / "a.npz")
    assert audit.problems == ["the same voxels in more than one split: a.npz:train/4 (training), a.npz:test/2 (test)"]
    assert audit.data_types == {"uint8": 24}
    assert audit.counts["validation"] == {"class_0": 2, "class_1": 2, "class_2": 2}
    (tmp_path / "a.npz").write_bytes(b"nothing")
    assert "a.npz: not a MedMNIST3D file" in audit_dataset(tmp_path / "a.npz").problems[0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"test": []}', '{"training": {}}', '{"training": [], "class_names": 1}']
)
def test_what_cannot_be_read_at_all_is_a_problem_but_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    audit = audit_dataset(tmp_path)
    assert len(audit.problems) == 1
    assert "dataset.json" in audit.problems[0]
    assert audit.as_text().startswith(audit.verdict)
    with pytest.raises(InputError, match="no such file"):
        audit_dataset(tmp_path / "none")
    with pytest.raises(InputError, match="nan: 'ignore'"):
        audit_dataset(tmp_path, nan="ignore")
    with pytest.raises(InputError, match="split_by: 'tomogram'"):
        audit_dataset(tmp_path, split_by="tomogram")


@pytest.mark.parametrize("plant", [*PROBLEMS], ids=[plant.__name__ for plant in PROBLEMS])
def test_the_audit_finds_whatever_loading_refuses(data: tuple[Path, dict[str, Any]], plant: Any) -> None:
    folder, content = data
    plant(folder, content)
    problems = audited(folder, content).problems
    refused = []
    try:
        load_datalist(folder)
    except DatasetError as error:
        refused = error.problems
    for problem in refused:
        assert any(problem.split(": ")[0] in found for found in problems)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 40))
def test_the_association_is_1_for_nested_0_for_independent_and_does_not_mind_order(
    seed: int, classes: int, sources: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 9, (classes, sources))
    value = cramers_v(table)
    turned = cramers_v(table[rng.permutation(classes)][:, rng.permutation(sources)].T)
    assert value is None if turned is None else value == pytest.approx(turned)
    assert value is None or 0 <= value <= 1
    assert cramers_v(np.diag(rng.integers(2, 9, classes))) == pytest.approx(1)
    assert cramers_v(np.outer(rng.integers(1, 9, classes), rng.integers(1, 9, sources))) in (0, None)


def test_chance_association_of_many_small_sources_is_near_0() -> None:
    values = [
        cramers_v(np.random.default_rng(n).multinomial(600, np.full(300, 1 / 300)).reshape(5, 60)) for n in range(20)
    ]
    assert np.mean(values) < 0.08  # uncorrected: 0.31
    assert cramers_v(np.zeros((3, 0))) is None
    assert cramers_v([[3, 4, 5]]) is None
