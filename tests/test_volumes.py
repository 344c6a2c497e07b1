import bz2
import re
import tracemalloc
import warnings
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from cryo_monai.datasets import CachedVolumes, ResumableSampler
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.listings import list_volumes
from cryo_monai.mrc import write_mrc
from cryo_monai.volumes import (
    LoadVolumed,
    check_volume_file,
    read_volume,
    stack_member,
    volume_facts,
    volume_identity,
    volume_path,
)

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


def write_stack(path: Path, count: int = 4, dtype: str = "f4", byte_order: str = "<") -> np.ndarray:
    """An ISPG 401 stack of ``count`` volumes."""
    volumes = (
        np.random.default_rng(2).integers(0, 100, (count, *SHAPE)).astype(np.dtype(dtype).newbyteorder(byte_order))
    )
    with mrcfile.new(path) as file:
        file.set_data(volumes)
        file.voxel_size = 10.0
    return volumes


@pytest.mark.parametrize(("dtype", "byte_order"), [("f4", "<"), ("f4", ">"), ("i2", "<"), ("u2", ">"), ("i1", "<")])
def test_relion_names_count_the_volumes_of_a_stack_from_one(tmp_path: Path, dtype: str, byte_order: str) -> None:
    volumes = write_stack(tmp_path / "a b.mrcs", dtype=dtype, byte_order=byte_order)
    for number in range(4):
        for name in (f"{number + 1:06d}@a b.mrcs", f"{number + 1}@a b.mrcs"):
            assert check_volume_file(tmp_path / name) == SHAPE
            assert np.array_equal(read_volume(tmp_path / name), volumes[number])
            assert np.array_equal(LoadVolumed("image")({"image": str(tmp_path / name)})["image"][0], volumes[number])
    assert [i["path"] for i in list_volumes(tmp_path / "3@a b.mrcs")] == [str(tmp_path / "3@a b.mrcs")]


def test_compressed_stacks_and_stacks_of_one_are_read_too(tmp_path: Path) -> None:
    volumes = write_stack(tmp_path / "a.mrc")
    (tmp_path / "b.mrc.bz2").write_bytes(bz2.compress((tmp_path / "a.mrc").read_bytes()))
    assert np.array_equal(read_volume(tmp_path / "2@b.mrc.bz2"), volumes[1])
    one = write_stack(tmp_path / "one.mrcs", count=1)
    assert np.array_equal(read_volume(tmp_path / "1@one.mrcs"), one[0])
    assert np.array_equal(read_volume(tmp_path / "one.mrcs"), one[0])


def test_impossible_members_of_stacks_are_refused_with_a_hint(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs")
    write(tmp_path / "v.npy", volume())
    for name, reason in {
        "a.mrcs": r"holds 4 volume\(s\).*name one as .*/000001@a\.mrcs",
        "0@a.mrcs": "no volume 0 in a file of 4; they count from 1",
        "5@a.mrcs": "no volume 5 in a file of 4",
        "1@none.mrcs": "no such file",
        "1@v.npy": "only MRC stacks",
        "1@a.xyz": "unknown extension",
    }.items():
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: ") + reason):
            read_volume(tmp_path / name)


def test_one_volume_of_a_stack_is_read_without_the_others(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", count=2)
    header = bytearray((tmp_path / "a.mrcs").read_bytes()[:1024])
    count = 2**30 // np.zeros(SHAPE, "f4").nbytes
    header[8:12] = np.int32(SHAPE[0] * count).tobytes()
    with (tmp_path / "sparse.mrcs").open("wb") as file:
        file.write(header)
        file.truncate(1024 + count * np.zeros(SHAPE, "f4").nbytes)
    tracemalloc.start()
    data = read_volume(tmp_path / f"{count}@sparse.mrcs")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.shape == SHAPE
    assert peak < 2**22


def test_a_file_whose_name_has_the_syntax_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "5@a.mrc", volume())
    assert stack_member(path) == (path, None)
    assert np.array_equal(read_volume(path), volume())
    (tmp_path / "7@folder").mkdir()
    inner = write(tmp_path / "7@folder" / "a.mrc", volume())
    assert volume_path("7@folder/a.mrc", tmp_path) == inner


def test_numbers_before_a_path_are_moved_to_its_file(tmp_path: Path) -> None:
    # RELION writes NNNNNN@PATH
    assert volume_path("000005@sub/s.mrcs", Path("/data")) == Path("/data/sub/000005@s.mrcs")
    assert volume_path("5@/abs/s.mrcs", Path("/data")) == Path("/abs/5@s.mrcs")
    assert volume_path("sub/5@s.mrcs", Path("/data")) == Path("/data/sub/5@s.mrcs")
    assert volume_path("a.mrc", Path("/data")) == Path("/data/a.mrc")


def test_one_volume_has_one_identity(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs")
    (tmp_path / "link.mrcs").symlink_to("a.mrcs")
    names = ("1@a.mrcs", "000001@a.mrcs", "1@link.mrcs")
    assert len({volume_identity(tmp_path / name) for name in names}) == 1
    assert volume_identity(tmp_path / "2@a.mrcs") != volume_identity(tmp_path / "1@a.mrcs")


def test_headers_tell_shape_voxel_size_and_data_type(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", volume().astype("i2"), voxel_size=(3.0, 4.0, 5.0))
    facts = volume_facts(tmp_path / "a.mrc")
    assert (facts.shape, facts.data_type) == (SHAPE, "int16")
    assert facts.voxel_size == pytest.approx((3.0, 4.0, 5.0))
    for name in ("a.npy", "a.nii"):
        facts = volume_facts(write(tmp_path / name, volume()))
        assert (facts.shape, facts.voxel_size, facts.data_type) == (SHAPE, None, "float32")


def test_shared_stack_is_read_by_number(shared_data: Path) -> None:
    stack = shared_data / "mrc" / "volstack_ispg401.mrcs"
    with mrcfile.open(stack) as file:
        for number, data in enumerate(file.data, start=1):
            assert np.array_equal(read_volume(stack.with_name(f"{number}@{stack.name}")), data)


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
