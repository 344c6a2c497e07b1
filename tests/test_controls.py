import json
from collections import Counter
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cryo_monai.controls import chance_interval, without_particle, write_background_only, write_shuffled_labels
from cryo_monai.datalists import SPLITS, load_datalist
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.mrc import read_mrc, write_mrc

SHAPE = (10, 12, 14)


def distances(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Of every voxel from voxel ``n // 2``, in voxels."""
    grids = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.sqrt(sum(grid**2.0 for grid in grids))


def folders(root: Path, *, per_class: int = 20, voxel_size: float = 7.5, dtype: str = "f4") -> Path:
    for label, name in enumerate(("a b", "ü")):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            data = np.random.default_rng([label, n]).normal(5.0, 2.0, SHAPE)
            data[distances() < 3] += 40 * label
            write_mrc(root / name / f"{n}.mrc", data.astype(dtype), voxel_size=voxel_size)
    return root


def by_path(datalist: dict[str, Any], key: str) -> dict[str, Any]:
    return {item["path"]: item[key] for split in SPLITS for item in datalist[split]}


def test_shuffled_labels_keep_volumes_splits_and_counts_and_forget_the_class(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data", per_class=50)
    before = load_datalist(folder, seed=3)
    file = write_shuffled_labels(folder, tmp_path / "shuffled", seed=3)
    assert [p.name for p in file.parent.iterdir()] == ["dataset.json"]
    after = load_datalist(file.parent)
    for split in SPLITS:
        assert [item["path"] for item in after[split]] == [item["path"] for item in before[split]]
        assert Counter(i["label"] for i in after[split]) == Counter(i["label"] for i in before[split])
    old, new = by_path(before, "label"), by_path(after, "label")
    same = np.mean([old[path] == new[path] for path in old])
    assert abs(same - 0.5) < 0.2  # four standard deviations of 100 fair coins
    assert after["class_names"] == ["a b", "ü"]
    again = write_shuffled_labels(folder, tmp_path / "again", seed=3)
    assert json.loads(again.read_text())["training"] == json.loads(file.read_text())["training"]
    other = write_shuffled_labels(folder, tmp_path / "other", seed=4)
    assert json.loads(other.read_text())["training"] != json.loads(file.read_text())["training"]


def test_controls_of_a_datalist_keep_its_splits_sources_and_members_of_stacks(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "s.mrcs") as stack:
        stack.set_data(np.random.default_rng(0).normal(size=(6, *SHAPE)).astype("f4"))
    content = {
        split: [{"image": f"{2 * n + label + 1}@s.mrcs", "label": label, "source": f"TS_{n}"} for label in range(2)]
        for n, split in enumerate(SPLITS)
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for write in (write_shuffled_labels, write_background_only):
        output = write(tmp_path, tmp_path / write.__name__, split_by="source")
        datalist = load_datalist(output, split_by="source")
        for n, split in enumerate(SPLITS):
            assert [item["source"] for item in datalist[split]] == [f"TS_{n}"] * 2
            assert sorted(item["label"] for item in datalist[split]) == [0, 1]
    masked = load_datalist(output)["test"][1]["path"]
    assert np.array_equal(read_mrc(masked).data[0], read_mrc(tmp_path / "s.mrcs", volume=5).data[0])


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize("radius", [0.5, 0.8])
def test_background_only_changes_the_sphere_and_nothing_else(tmp_path: Path, dtype: str, radius: float) -> None:
    folder = folders(tmp_path / "data", per_class=3, dtype=dtype)
    seen: list[int] = []
    file = write_background_only(folder, tmp_path / "out", radius=radius, progress=seen.append)
    assert sum(seen) == 6
    before, after = load_datalist(folder), load_datalist(file)
    content = json.loads(file.read_text())
    assert (content["radius"], content["seed"]) == (radius, 0)
    outside = distances() > radius * 5
    for split in SPLITS:
        assert [item["label"] for item in after[split]] == [item["label"] for item in before[split]]
        assert [item["original"] for item in content[split]] == [item["path"] for item in before[split]]
        for old, new in zip(before[split], after[split], strict=True):
            volume, masked = read_mrc(old["path"]), read_mrc(new["path"])
            assert np.array_equal(masked.data[outside], volume.data[outside])
            assert (masked.data[~outside] != volume.data[~outside]).mean() > 0.99
            assert masked.voxel_size == pytest.approx(volume.voxel_size)


def test_an_unknown_voxel_size_stays_unknown(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data", per_class=3, voxel_size=0.0)
    file = write_background_only(folder, tmp_path / "out")
    assert read_mrc(load_datalist(file)["test"][0]["path"]).voxel_size is None


@pytest.mark.parametrize("shape", [SHAPE, (9, 11, 13)])
def test_nothing_of_the_sphere_reaches_the_result(shape: tuple[int, int, int]) -> None:
    first = np.random.default_rng(0).normal(size=shape).astype("f4")
    second = first.copy()
    inside = distances(shape) <= 0.8 * min(shape) / 2
    second[inside] = 1000 * np.random.default_rng(1).normal(size=int(inside.sum()))
    masked = [without_particle(v, np.random.default_rng(2)) for v in (first, second)]
    assert np.array_equal(*masked)
    assert np.array_equal(masked[0][~inside], first[~inside])
    assert masked[0].dtype == np.float32
    assert not np.array_equal(masked[0], without_particle(first, np.random.default_rng(3)))


def test_the_filling_has_mean_deviation_and_resolution_of_the_surroundings() -> None:
    rng = np.random.default_rng(0)
    shape = (32, 30, 34)
    frequencies = np.sqrt(
        sum(np.square(g) for g in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij", sparse=True))
    )
    inside = distances(shape) <= 0.8 * 15
    found = []
    for _ in range(8):
        low_passed = np.fft.ifftn(np.fft.fftn(rng.normal(size=shape)) * (frequencies < 0.15)).real
        volume = (50 + 3 * low_passed / low_passed.std()).astype("f4")
        volume[inside] += 100
        masked = without_particle(volume, rng)
        steps = np.diff(masked, axis=1)[inside[:, :-1] & inside[:, 1:]]
        around = np.diff(masked, axis=1)[~inside[:, :-1] & ~inside[:, 1:]]
        found.append([masked[inside].mean(), masked[inside].std(), steps.std() / around.std()])
    mean, deviation, roughness = np.mean(found, axis=0)
    assert mean == pytest.approx(50, abs=0.5)
    assert deviation == pytest.approx(3, rel=0.1)
    # White noise of the same deviation would be about four times as rough.
    assert roughness == pytest.approx(1, abs=0.3)


def test_masked_classes_cannot_be_told_apart_by_what_is_inside(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data", per_class=40)
    file = write_background_only(folder, tmp_path / "out", radius=0.8)
    inside = distances() <= 4
    means: dict[str, dict[int, list[float]]] = {"before": {0: [], 1: []}, "after": {0: [], 1: []}}
    for name, datalist in {"before": load_datalist(folder), "after": load_datalist(file)}.items():
        for split in SPLITS:
            for item in datalist[split]:
                means[name][item["label"]].append(float(read_mrc(item["path"]).data[inside].mean()))
    scores = {}
    for name, classes in means.items():
        pooled = np.sqrt((np.var(classes[0]) + np.var(classes[1])) / 40)
        scores[name] = abs(np.mean(classes[0]) - np.mean(classes[1])) / pooled
    assert scores["before"] > 50
    assert scores["after"] < 3


def test_impossible_controls_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data", per_class=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    (tmp_path / "file").touch()
    for write in (write_shuffled_labels, write_background_only):
        with pytest.raises(InputError, match="full: not empty"):
            write(folder, tmp_path / "full")
        with pytest.raises(InputError, match="file: cannot be written"):
            write(folder, tmp_path / "file")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes"]
    for radius in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="radius"):
            write_background_only(folder, tmp_path / "out", radius=radius)
    raw = bytearray((folder / "a b" / "1.mrc").read_bytes())
    raw[1024:1028] = np.float32(np.nan).tobytes()
    (folder / "a b" / "1.mrc").write_bytes(raw)
    with pytest.raises(InputError, match=r"1\.mrc: 1 voxels are NaN"):
        write_background_only(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (folder / "a b" / "1.mrc").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1\.mrc: empty"):
        write_background_only(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_chance_is_the_most_frequent_class_and_its_binomial_quantile() -> None:
    share, upper = chance_interval([10] * 10)
    # The 95 % quantile of 100 tosses with probability 0.1 is 15 (P(X <= 14) = 0.927, P(X <= 15) = 0.960).
    assert (share, upper) == (0.1, 0.15)
    assert chance_interval([80, 20])[0] == 0.8
    assert chance_interval([50, 50], confidence=0.99)[1] > chance_interval([50, 50])[1] > 0.5
    assert chance_interval([5000, 5000])[1] < 0.51
    rng = np.random.default_rng(0)
    guesses = rng.binomial(60, 1 / 3, 20000) / 60
    assert (guesses <= chance_interval([20, 20, 20])[1]).mean() >= 0.95
    assert (guesses < chance_interval([20, 20, 20])[1]).mean() < 0.96
    for counts, confidence, reason in [
        ([0, 0], 0.95, "counts"),
        ([-1, 5], 0.95, "counts"),
        ([5, 5], 1.0, "confidence"),
    ]:
        with pytest.raises(InputError, match=reason):
            chance_interval(counts, confidence=confidence)
