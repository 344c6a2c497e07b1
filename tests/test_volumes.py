import re
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from cryo_monai.datasets import CachedVolumes, ResumableSampler
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.mrc import write_mrc
from cryo_monai.volumes import LoadVolumed, check_volume_file, read_volume

SHAPE = (10, 12, 14)


def volume() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE).astype("f4")


def write(path: Path, data: np.ndarray) -> Path:
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(data.transpose(2, 1, 0), np.eye(4)), path)
    elif path.suffix == ".npy":
        np.save(path, data)
    else:
        write_mrc(path, data, voxel_size=10.0)
    return path


@pytest.mark.parametrize("name", ["a.mrc", "a.nii", "a.nii.gz", "a.npy"])
def test_every_format_gives_the_same_zyx_array(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, volume())
    assert check_volume_file(path) == SHAPE
    assert np.array_equal(read_volume(path), volume())


@pytest.mark.parametrize("source", ["file", "array", "tensor"])
def test_load_volumed_gives_channel_first_float32(tmp_path: Path, source: str) -> None:
    image = {"file": str(write(tmp_path / "a.mrc", volume())), "array": volume(), "tensor": torch.tensor(volume())}[
        source
    ]
    item = LoadVolumed("image")({"image": image, "label": 3})
    assert item["image"].shape == (1, *SHAPE)
    assert item["image"].dtype == torch.float32
    assert np.array_equal(item["image"][0].numpy(), volume())
    assert item["label"] == 3


@pytest.mark.parametrize("name", ["a.npy", "a.nii.gz", "a.mrc"])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, volume())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_volume(path)


def test_pickled_npy_and_complex_data_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "complex.npy", np.ones(SHAPE, dtype="c8"))
    for name in ("object.npy", "complex.npy"):
        with pytest.raises(InputError, match=name):
            read_volume(tmp_path / name)


def test_voxels_that_are_not_finite_are_refused_or_filled(tmp_path: Path) -> None:
    data = volume()
    data[1, 2, 3], data[4, 5, 6] = np.nan, np.inf
    path = write(tmp_path / "bad.npy", data)
    with pytest.raises(InputError, match=r"bad\.npy: 2 voxels"):
        LoadVolumed("image")({"image": str(path)})
    filled = LoadVolumed("image", nan="mean")({"image": str(path)})["image"][0]
    good = np.isfinite(data)
    assert filled[1, 2, 3] == pytest.approx(data[good].mean(), abs=1e-5)
    assert np.array_equal(filled.numpy()[good], data[good])


def test_a_constant_volume_is_loaded_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.mrc", np.ones(SHAPE, "f4"))
    with pytest.warns(UserWarning, match=r"flat\.mrc: every voxel has the same value"):
        LoadVolumed("image")({"image": str(path)})


def items(*paths: Path) -> list[dict[str, object]]:
    return [{"image": str(path), "path": str(path), "label": 0, "index": n} for n, path in enumerate(paths)]


def test_a_cache_reads_each_volume_once_and_keeps_the_native_size(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.mrc", volume() + n) for n in range(3)]
    dataset = CachedVolumes(items(*paths), Compose([LoadVolumed("image")]), progress=False)
    for path in paths:
        path.unlink()
    for n in range(3):
        assert np.array_equal(dataset[n]["image"][0].numpy(), volume() + n)
    assert dataset[0]["image"] is dataset[0]["image"]


def test_a_cache_reports_all_problems_together(tmp_path: Path) -> None:
    good = [write(tmp_path / f"good{n}.mrc", volume()) for n in range(3)]
    nan = write(tmp_path / "nan.npy", np.full(SHAPE, np.nan, "f4"))
    small = write(tmp_path / "small.mrc", volume()[:8])
    broken = write(tmp_path / "broken.npy", volume())
    broken.write_bytes(b"nothing")
    with pytest.raises(DatasetError) as caught:
        CachedVolumes(items(*good, nan, small, broken), Compose([LoadVolumed("image")]), progress=False)
    assert len(caught.value.problems) == 3
    for name in ("nan.npy", "small.mrc", "broken.npy"):
        assert any(name in problem for problem in caught.value.problems)


def test_the_sampler_depends_on_seed_and_epoch_and_skips_exactly() -> None:
    data = list(range(20))
    sampler = ResumableSampler(data, seed=3)  # type: ignore[arg-type]
    orders = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == data
    assert orders[0] != orders[1]
    again = ResumableSampler(data, seed=3)  # type: ignore[arg-type]
    again.set_epoch(2)
    again.skip = 7
    assert list(again) == orders[1][7:]
    assert list(again) == orders[1]
    other = ResumableSampler(data, seed=4)  # type: ignore[arg-type]
    other.set_epoch(1)
    assert list(other) != orders[1]


def test_shared_nan_and_constant_cases(shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"nan_inf\.mrc: 2 voxels"):
        LoadVolumed("image")({"image": str(shared_data / "mrc" / "nan_inf.mrc")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert LoadVolumed("image")({"image": str(shared_data / "mrc" / "constant.mrc")})["image"].std() == 0
