import hashlib
import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryo_monai.datalists import SPLITS, load_datalist, stratified_split
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.listings import list_volumes
from cryo_monai.medmnist3d import load_medmnist
from cryo_monai.mrc import write_mrc
from cryo_monai.splits import grouped_split


def make_folders(root: Path, counts: dict[str, int], *, shape: tuple[int, int, int] = (8, 9, 10)) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for n in range(count):
            data = np.random.default_rng(n).normal(size=shape).astype("f4")
            write_mrc(root / name / f"{n}.mrc", data, voxel_size=10.0)
    return root


def paths(datalist: dict[str, Any], split: str) -> set[str]:
    return {item["path"] for item in datalist[split]}


def test_folder_per_class_is_split_stratified_disjoint_and_repeatable(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a b": 10, "ü": 20})
    datalist = load_datalist(folder, num_classes=2)
    assert datalist["class_names"] == ["a b", "ü"]
    counts = [Counter(item["label"] for item in datalist[split]) for split in SPLITS]
    assert counts == [{0: 6, 1: 12}, {0: 2, 1: 4}, {0: 2, 1: 4}]
    assert len(set.union(*(paths(datalist, split) for split in SPLITS))) == 30
    assert [item["index"] for item in datalist["training"]] == list(range(18))
    assert load_datalist(folder) == datalist
    assert load_datalist(folder, seed=1) != datalist


def test_the_split_does_not_depend_on_the_order_of_the_items() -> None:
    items = [{"path": f"{label}/{n}", "label": label} for label in range(2) for n in range(9)]
    forward = stratified_split(items, ["a", "b"])
    backward = stratified_split(items[::-1], ["a", "b"])
    assert forward == backward


def test_paper_split_3_1_1_of_400() -> None:
    items = [{"path": str(n), "label": 0} for n in range(400)]
    lists = stratified_split(items, ["a"], (3, 1, 1))
    assert [len(lists[name]) for name in SPLITS] == [240, 80, 80]


def test_small_classes_and_bad_fractions_are_refused(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"one": 1, "many": 5, "two": 2})
    with pytest.raises(DatasetError) as caught:
        load_datalist(folder)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["one", "two"]
    with pytest.raises(InputError, match="three positive fractions"):
        stratified_split([], [], (1.0, 0.0, 0.0))


def test_all_problems_of_a_folder_are_listed_at_once(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 5, "b": 5, "c": 5})
    write_mrc(folder / "a" / "1.mrc", np.ones((9, 9, 9), "f4"), voxel_size=1.0)
    (folder / "b" / "2.mrc").write_bytes((folder / "b" / "2.mrc").read_bytes()[:-7])
    raw = bytearray((folder / "c" / "4.mrc").read_bytes())
    raw[1024:1028] = np.float32(np.nan).tobytes()
    (folder / "c" / "4.mrc").write_bytes(raw)
    with pytest.raises(DatasetError) as caught:
        load_datalist(folder, num_classes=10)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "add --num_classes 3" in text
    assert re.search(r"c/4\.mrc: 1 voxels are NaN", text)
    assert re.search(r"a/1\.mrc: box size \(9, 9, 9\)", text)
    assert re.search(r"b/2\.mrc: truncated", text)


def test_unknown_extensions_and_empty_classes_are_listed_at_once(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 3, "b": 0})
    (folder / "a" / "notes.xyz").touch()
    with pytest.raises(DatasetError) as caught:
        load_datalist(folder)
    assert len(caught.value.problems) == 2
    assert "notes.xyz: unknown extension" in str(caught.value)
    assert "b: class without volumes" in str(caught.value)


def test_a_wrong_number_of_classes_says_what_to_do(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 3, "b": 3})
    with pytest.raises(InputError, match="add --num_classes 2"):
        load_datalist(folder, num_classes=10)
    with pytest.raises(InputError, match="no such file or folder"):
        load_datalist(tmp_path / "nowhere")
    with pytest.raises(InputError, match="one folder of volumes per class"):
        load_datalist(folder / "a")


def write_json(folder: Path, content: Any) -> Path:
    file = folder / "list.json"
    file.write_text(json.dumps(content))
    return file


def test_datalist_json_keeps_its_splits_and_relative_paths(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 3, "b": 3})
    content = {
        split: [{"image": f"{name}/{n}.mrc", "label": label} for label, name in enumerate("ab")]
        for n, split in enumerate(SPLITS)
    }
    datalist = load_datalist(write_json(folder, content))
    assert paths(datalist, "test") == {str(folder / "a" / "2.mrc"), str(folder / "b" / "2.mrc")}
    assert datalist["class_names"] == ["class_0", "class_1"]


@pytest.mark.parametrize("label", [-1, 2, 1.0, "a", None, True, [1]])
def test_impossible_labels_are_named(tmp_path: Path, label: object) -> None:
    folder = make_folders(tmp_path / "data", {"a": 4, "b": 4})
    items = [{"image": f"{name}/{n}.mrc", "label": i} for i, name in enumerate("ab") for n in range(4)]
    items[3]["label"] = label
    with pytest.raises(DatasetError, match=r"a/3\.mrc: label"):
        load_datalist(write_json(folder, {"training": items, "class_names": ["a", "b"]}))


def test_a_file_in_two_splits_and_a_class_absent_from_one_are_refused(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 3, "b": 3})
    same = [{"image": "a/0.mrc", "label": 0}, {"image": "b/0.mrc", "label": 1}]
    content = {"training": same, "validation": same[:1], "test": [{"image": "missing.mrc", "label": 0}]}
    with pytest.raises(DatasetError) as caught:
        load_datalist(write_json(folder, content))
    text = str(caught.value)
    assert "a/0.mrc: listed twice (in training and in validation)" in text
    assert "missing.mrc: no such file" in text
    assert "class 'class_1' has no volume in test" in text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": []}'])
def test_broken_datalists_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        load_datalist(tmp_path)


def test_datalists_name_volumes_of_stacks(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with mrcfile.new(tmp_path / "sub" / "s.mrcs") as file:
        file.set_data(np.random.default_rng(0).normal(size=(6, 8, 9, 10)).astype("f4"))
    items = [{"image": f"00000{n}@sub/s.mrcs", "label": n % 2} for n in range(1, 7)]
    file_ = write_json(tmp_path, {"training": items})
    every = set.union(*(paths(load_datalist(file_), split) for split in SPLITS))
    assert every == {str(tmp_path / "sub" / f"00000{n}@s.mrcs") for n in range(1, 7)}
    assert [i["path"] for i in list_volumes(file_)] == [str(tmp_path / "sub" / f"00000{n}@s.mrcs") for n in range(1, 7)]
    items[2]["image"] = "sub/1@s.mrcs"
    items[3]["image"] = "7@sub/s.mrcs"
    with pytest.raises(DatasetError) as caught:
        load_datalist(write_json(tmp_path, {"training": items}))
    assert re.search(r"sub/(1|000001)@s\.mrcs: listed twice", str(caught.value))
    assert "no volume 7 in a file of 6" in str(caught.value)
    # A stack in a folder per class is not one volume.
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "s.mrcs").write_bytes((tmp_path / "sub" / "s.mrcs").read_bytes())
    with pytest.raises(InputError, match="000001@s"):
        list_volumes(tmp_path / "data")


def sourced_items(table: np.ndarray) -> list[dict[str, Any]]:
    """Items of a table of counts `(sources, classes)`."""
    return [
        {"path": f"{source}/{label}/{n}", "label": label, "source": f"TS_{source}"}
        for source, row in enumerate(table)
        for label, count in enumerate(row)
        for n in range(count)
    ]


def shares(lists: dict[str, list[dict[str, Any]]], classes: int) -> np.ndarray:
    """Fractions `(splits, classes)` of each class."""
    counts = np.array([[sum(i["label"] == c for i in lists[split]) for c in range(classes)] for split in SPLITS])
    return counts / counts.sum(axis=0)


def misfit(fractions: np.ndarray) -> float:
    return float(((fractions - np.array([[0.6], [0.2], [0.2]])) ** 2).sum())


@settings(max_examples=40, deadline=None)
@given(
    sources=st.integers(3, 20),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_a_grouped_split_divides_no_source_and_has_every_class_everywhere_or_says_why_not(
    sources: int, classes: int, seed: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    # Above ten sources, where trying all is slow, tables for which there is a solution beyond reasonable doubt.
    present = rng.random((sources, classes)) < (density if sources <= 10 else max(density, 0.6))
    table = rng.integers(1, 9, (sources, classes)) * present
    items = sourced_items(table)
    names = [f"class {c}" for c in range(classes)]
    few = [name for name, column in zip(names, table.T, strict=True) if (column > 0).sum() < 3]
    if few:
        with pytest.raises(DatasetError) as caught:
            grouped_split(items, names, seed=3)
        assert [problem.split(":")[0] for problem in caught.value.problems] == few
        return
    if sources <= 10 and not any_complete(table):
        with pytest.raises(DatasetError, match="no assignment of the"):
            grouped_split(items, names, seed=3)
        return
    lists = grouped_split(items, names, seed=3)
    assert sorted(i["path"] for split in SPLITS for i in lists[split]) == sorted(i["path"] for i in items)
    assert (shares(lists, classes) > 0).all()
    homes = [{i["source"] for i in lists[split]} for split in SPLITS]
    assert sum(len(home) for home in homes) == len(set.union(*homes))
    shuffled = [items[n] for n in rng.permutation(len(items))]
    assert grouped_split(shuffled, names, seed=3) == lists


def any_complete(table: np.ndarray) -> bool:
    """Whether any assignment of sources to three splits has every class in each, by trying all."""
    every = np.indices((3,) * len(table)).reshape(len(table), -1)
    counts = np.stack([(every == split).T @ table for split in range(3)])
    return bool((counts > 0).all(axis=(0, 2)).any())


def complete(table: np.ndarray, choice: tuple[int, ...]) -> bool:
    return all((table[np.array(choice) == split].sum(axis=0) > 0).all() for split in range(3))


@pytest.mark.parametrize("seed", range(5))
def test_a_grouped_split_of_few_sources_is_the_best_there_is(seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, 30, (6, 2))
    table[:3] += 1
    best = np.inf
    for choice in product(range(3), repeat=6):
        if complete(table, choice):
            counts = np.array([table[np.array(choice) == split].sum(axis=0) for split in range(3)])
            best = min(best, misfit(counts / counts.sum(axis=0)))
    assert misfit(shares(grouped_split(sourced_items(table), ["a", "b"]), 2)) == pytest.approx(best)


def test_a_grouped_split_of_many_sources_comes_near_the_fractions() -> None:
    table = np.random.default_rng(0).poisson(10, (60, 5))
    items = sourced_items(table)
    names = list("abcde")
    lists = grouped_split(items, names)
    assert np.abs(shares(lists, 5) - np.array([[0.6], [0.2], [0.2]])).max() < 0.03
    assert grouped_split(items, names, seed=1) != lists


@pytest.mark.parametrize("seed", range(4))
def test_a_hidden_solution_for_classes_of_three_sources_each_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.zeros((15, 12), dtype=int)
    for column in table.T:
        for split in range(3):
            column[rng.choice(np.arange(split, 15, 3))] = rng.integers(1, 9)
    table = table[table.sum(axis=1) > 0]
    assert len(table) > 11  # beyond trying all
    lists = grouped_split(sourced_items(table), [str(n) for n in range(12)])
    assert (shares(lists, 12) > 0).all()


def test_classes_that_cannot_be_in_three_splits_together_are_refused_for_many_sources_too() -> None:
    # Classes on every pair of the first three sources and one of two more: two of the three always share a split.
    few = np.zeros((5, 7), dtype=int)
    for column, members in enumerate([(0, 1, 3), (0, 1, 4), (0, 2, 3), (0, 2, 4), (1, 2, 3), (1, 2, 4), (2, 3, 4)]):
        few[list(members), column] = 1
    assert not any_complete(few)
    many = np.zeros((14, 8), dtype=int)
    many[:5, :7] = few
    many[5:, 7] = 1
    for table in (few, many):
        with pytest.raises(DatasetError, match=f"no assignment of the {len(table)} sources"):
            grouped_split(sourced_items(table), [str(n) for n in range(table.shape[1])])


def sourced_json(folder: Path, *, sources: int = 4) -> Path:
    make_folders(folder, {"a": 12, "b": 12})
    items = [
        {"image": f"{name}/{n}.mrc", "label": label, "source": f"TS_{n % sources}"}
        for label, name in enumerate("ab")
        for n in range(12)
    ]
    return write_json(folder, {"training": items, "class_names": ["a", "b"]})


def test_a_datalist_is_split_by_source(tmp_path: Path) -> None:
    file = sourced_json(tmp_path / "data")
    datalist = load_datalist(file, split_by="source")
    homes = {split: {item["source"] for item in datalist[split]} for split in SPLITS}
    assert sorted(len(home) for home in homes.values()) == [1, 1, 2]
    assert set.union(*homes.values()) == {f"TS_{n}" for n in range(4)}
    by_volume = load_datalist(file)
    assert {item["source"] for item in by_volume["test"]} <= {f"TS_{n}" for n in range(4)}
    assert by_volume != datalist
    with pytest.raises(InputError, match="split_by: 'tomogram' is not one of volume, source"):
        load_datalist(file, split_by="tomogram")


def test_too_few_unknown_or_impossible_sources_are_named(tmp_path: Path) -> None:
    file = sourced_json(tmp_path / "data", sources=2)
    with pytest.raises(DatasetError) as caught:
        load_datalist(file, split_by="source")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a", "b"]
    assert "12 volumes from 2 source(s) (TS_0, TS_1)" in caught.value.problems[0]
    content = json.loads(file.read_text())
    del content["training"][3]["source"]
    with pytest.raises(DatasetError, match=r"1 of 24 volumes have no 'source' \(.*a/3\.mrc\)"):
        load_datalist(write_json(tmp_path / "data", content), split_by="source")
    content["training"][3]["source"] = ["TS_1"]
    with pytest.raises(DatasetError, match=r"the 'source' of .*a/3\.mrc is \['TS_1'\], not a name"):
        load_datalist(write_json(tmp_path / "data", content))
    with pytest.raises(InputError, match="a folder per class does not say which tomogram"):
        load_datalist(tmp_path / "data", split_by="source")


def test_a_split_that_comes_with_the_data_may_divide_a_source_only_when_split_by_volume(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 3, "b": 3})
    content = {
        split: [{"image": f"{name}/{n}.mrc", "label": i, "source": f"TS_{max(n, 1)}"} for i, name in enumerate("ab")]
        for n, split in enumerate(SPLITS)
    }
    file = write_json(folder, content)
    assert [item["source"] for item in load_datalist(file)["test"]] == ["TS_2", "TS_2"]
    with pytest.raises(DatasetError, match=r"source 'TS_1' is in 2 splits \(2 in training, 2 in validation\)"):
        load_datalist(file, split_by="source")


def test_list_volumes_takes_a_file_a_folder_or_a_datalist(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", {"a": 2, "b": 1})
    every = sorted(str(p) for p in folder.rglob("*.mrc"))
    assert [i["path"] for i in list_volumes(folder)] == every
    assert [i["path"] for i in list_volumes(every[1])] == [every[1]]
    file = write_json(folder, [{"image": "b/0.mrc"}, "a/1.mrc"])
    assert [i["path"] for i in list_volumes(file)] == [str(folder / "b" / "0.mrc"), str(folder / "a" / "1.mrc")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volumes"):
        list_volumes(tmp_path / "empty")


def fake_medmnist(folder: Path, monkeypatch: pytest.MonkeyPatch, *, flag: str = "organmnist3d", size: int = 28) -> Path:
    """An npz of the official layout, whose md5 stands in the (patched) table of official ones."""
    from medmnist import INFO

    suffix = "" if size == 28 else f"_{size}"
    file = folder / f"{flag}{suffix}.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": 22, "val": 11, "test": 11}.items():
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, size, size, size), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 11)[:, None].astype(np.uint8)
    np.savez(file, **arrays)
    monkeypatch.setitem(INFO[flag], f"MD5{suffix}", hashlib.md5(file.read_bytes()).hexdigest())
    return file


@pytest.mark.parametrize("size", [28, 64])
def test_medmnist_official_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    file = fake_medmnist(tmp_path, monkeypatch, size=size)
    datalist = load_medmnist("organmnist3d", tmp_path, size=size, num_classes=11)
    assert [len(datalist[split]) for split in SPLITS] == [22, 11, 11]
    assert datalist["class_names"][0] == "liver"
    item = datalist["validation"][3]
    assert item["image"].shape == (size,) * 3
    assert (item["label"], item["index"], item["path"]) == (3, 3, f"{file.name}:val/3")


@pytest.mark.parametrize("flag", ["organ", "nodule", "adrenal", "fracture", "vessel", "synapse"])
@pytest.mark.parametrize("size", [28, 64])
def test_medmnist_missing_file_names_url_md5_and_place(tmp_path: Path, flag: str, size: int) -> None:
    from medmnist import INFO

    name, suffix = f"{flag}mnist3d", "" if size == 28 else "_64"
    with pytest.raises(InputError) as caught:
        load_medmnist(name, tmp_path, size=size)
    message = str(caught.value)
    assert INFO[name][f"url{suffix}"] in message
    assert INFO[name][f"MD5{suffix}"] in message
    assert str(tmp_path / f"{name}{suffix}.npz") in message
    assert "\n" not in message


def test_medmnist_wrong_md5_flag_size_and_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = fake_medmnist(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="add --num_classes 11"):
        load_medmnist("organmnist3d", tmp_path, num_classes=2)
    with pytest.raises(InputError, match="28 and 64"):
        load_medmnist("organmnist3d", tmp_path, size=32)
    with pytest.raises(InputError, match="'organmnist' is not one of organmnist3d"):
        load_medmnist("organmnist", tmp_path)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputError, match="is not the official"):
        load_medmnist("organmnist3d", tmp_path)


def test_shared_adrenal_is_the_official_file(shared_data: Path) -> None:
    datalist = load_medmnist("adrenalmnist3d", shared_data / "medmnist3d", num_classes=2)
    assert [len(datalist[split]) for split in SPLITS] == [1188, 98, 298]
    assert datalist["training"][0]["image"].shape == (28, 28, 28)
