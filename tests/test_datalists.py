import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryo_monai.datalists import SPLITS, load_datalist, stratified_split
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.listings import list_volumes
from cryo_monai.medmnist3d import load_medmnist
from cryo_monai.mrc import write_mrc


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
