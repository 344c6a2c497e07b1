"""Tomograms stay on disk."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.mrc import write_mrc
from cryo_monai.tomogram_names import find_tomograms, match_tomograms, tomogram_name
from cryo_monai.tomograms import open_tomogram

SHAPE = (10, 12, 14)


def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def test_a_region_of_an_mrc_file_is_what_is_there(tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", data(), voxel_size=7.84, origin=(1.0, 2.0, 3.0))
    tomogram = open_tomogram(tmp_path / "t.mrc")
    assert (tomogram.shape, tomogram.voxel_size, tomogram.name) == (SHAPE, 7.84, "t")
    assert tomogram.origin == (1.0, 2.0, 3.0)
    region = tomogram.read((1, 2, 3), (5, 12, 9))
    assert np.array_equal(region, data()[1:5, 2:12, 3:9])
    assert region.flags.writeable


def test_four_gigabytes_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "large.mrc"
    write_mrc(file, np.zeros((2, 2, 2), np.float32), voxel_size=10.0)
    shape = (500, 1500, 1500)
    with file.open("r+b") as stream:
        stream.write(struct.pack("<3i", *shape[::-1]))
        stream.seek(28)
        stream.write(struct.pack("<3i", *shape[::-1]))
        stream.seek(40)
        stream.write(struct.pack("<3f", *(10.0 * n for n in shape[::-1])))
        stream.truncate(1024 + 4 * int(np.prod(shape)))  # sparse: no disk is used
        stream.seek(1024 + 4 * ((400 * 1500 + 1200) * 1500 + 700))
        stream.write(struct.pack("<f", 42.0))
    assert file.stat().st_size > 4 * 2**30
    tomogram = open_tomogram(file)
    assert tomogram.shape == shape
    region = tomogram.read((399, 1199, 699), (402, 1202, 702))
    assert region.sum() == region[1, 1, 1] == 42.0


def test_mrc_cases_agree_with_the_reader(shared_data: Path) -> None:
    reference = open_tomogram(shared_data / "mrc" / "mode2_f32.mrc").read((2, 3, 4), (9, 10, 11))
    for name in ("permuted_mapcrs_321", "mode2_f32_bigendian", "exthdr_seri"):
        tomogram = open_tomogram(shared_data / "mrc" / f"{name}.mrc")
        assert np.array_equal(tomogram.read((2, 3, 4), (9, 10, 11)), reference), name
    assert open_tomogram(shared_data / "mrc" / "zero_voxel.mrc").voxel_size is None
    for name in (
        "bad_truncated.mrc",
        "volstack_ispg401.mrcs",
        "single_image_2d.mrc",
        "gz.mrc.gz",
        "anisotropic_voxel.mrc",
    ):
        with pytest.raises(InputError, match=name):
            open_tomogram(shared_data / "mrc" / name)


def test_voxels_of_different_edges_need_a_number(tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", data(), voxel_size=(5.0, 7.5, 10.0))
    with pytest.raises(InputError, match=r"5 x 7.5 x 10 Å \(z, y, x\) are not cubes"):
        open_tomogram(tmp_path / "t.mrc")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_stacks_are_read_by_section(tmp_path: Path, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    file = tmp_path / "t.tif"
    tifffile.imwrite(file, (data() * 20).astype(np.int16), compression=compression, metadata={"axes": "ZYX"})
    tomogram = open_tomogram(file, voxel_size=10.52)
    assert (tomogram.shape, tomogram.voxel_size) == (SHAPE, 10.52)
    assert np.array_equal(tomogram.read((1, 2, 3), (5, 12, 9)), (data() * 20).astype(np.int16)[1:5, 2:12, 3:9])


def test_real_tomogram_crops(shared_data: Path) -> None:
    pytest.importorskip("tifffile")
    tomogram = open_tomogram(shared_data / "tomograms" / "13pf_MT.tif")
    assert tomogram.shape == (36, 206, 94)
    assert tomogram.voxel_size == 10.52
    assert tomogram.read((3, 4, 5), (6, 8, 10)).shape == (3, 4, 5)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_levels(tmp_path: Path, version: str) -> None:
    zarr = pytest.importorskip("zarr")
    folder = tmp_path / "TS_01.zarr"
    group = zarr.open_group(str(folder), mode="w")
    for level, array in (("0", data()), ("1", data()[::2, ::2, ::2])):
        zarr.open(str(folder / level), mode="w", shape=array.shape, chunks=(4, 5, 6), dtype="f4")[:] = array
    image = {
        "axes": [{"name": n, "type": "space", "unit": "angstrom"} for n in "zyx"],
        "datasets": [
            {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [5.0 * 2**n] * 3}]}
            for n in range(2)
        ],
    }
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    whole, binned = open_tomogram(folder), open_tomogram(folder / "1")
    assert (whole.voxel_size, binned.voxel_size) == (5.0, 10.0)
    assert np.array_equal(whole.read((1, 2, 3), (5, 12, 9)), data()[1:5, 2:12, 3:9])
    assert np.array_equal(binned.read((0, 0, 0), (5, 6, 7)), data()[::2, ::2, ::2])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("no")
    with pytest.raises(InputError, match=r"t\.txt: unknown extension"):
        open_tomogram(tmp_path / "t.txt")
    with pytest.raises(InputError, match=r"absent\.mrc: no such file"):
        open_tomogram(tmp_path / "absent.mrc")
    (tmp_path / "bad.tif").write_text("no")
    pytest.importorskip("tifffile")
    with pytest.raises(InputError, match=r"bad\.tif: not readable as TIFF"):
        open_tomogram(tmp_path / "bad.tif")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("TS_01", "TS_01"),
        ("/a b/TS_01.mrc.tomostar", "TS_01"),
        ("tomo_ts01.mrc_15.00Apx.mrc", "tomo_ts01"),
        ("F:\\x\\ts_1.rec", "ts_1"),
        ("run.zarr/", "run"),
        (".mrc", ".mrc"),
    ],
)
def test_names_that_programs_give_one_tomogram(text: str, name: str) -> None:
    assert tomogram_name(text) == name


def test_files_are_found_for_the_names_of_a_list(tmp_path: Path) -> None:
    for name in ("TS_1.mrc", "TS_10_bin4.rec", "TS_2_10.00Apx.mrc", ".hidden.mrc", "notes.txt"):
        (tmp_path / name).touch()
    files = find_tomograms([tmp_path])
    assert [file.name for file in files] == ["TS_1.mrc", "TS_10_bin4.rec", "TS_2_10.00Apx.mrc"]
    assert find_tomograms([tmp_path / "TS_1*"]) == files[:2]
    found = match_tomograms(["TS_1.tomostar", "TS_10", "TS_2"], files, source="p.star")
    assert [found[name].name for name in ("TS_1.tomostar", "TS_10", "TS_2")] == [file.name for file in files]
    assert match_tomograms([""], files[:1], source="p.star") == {"": files[0]}
    with pytest.raises(DatasetError, match="no file for tomogram 'TS_3'"):
        match_tomograms(["TS_1", "TS_3"], files, source="p.star")
    (tmp_path / "TS_10_bin8.rec").touch()
    with pytest.raises(InputError, match=r"may be any of TS_10_bin4.rec, TS_10_bin8.rec"):
        match_tomograms(["TS_10"], find_tomograms([tmp_path]), source="p.star")
    found = match_tomograms(["2", "10"], [tmp_path / "TS_010.mrc", tmp_path / "TS_2.mrc"], source="m.star")
    assert {name: file.name for name, file in found.items()} == {"2": "TS_2.mrc", "10": "TS_010.mrc"}
    both = ["Position_1", "Position_1_2"]
    with pytest.raises(DatasetError, match="no file for tomogram 'Position_1'"):
        match_tomograms(both, [tmp_path / "Position_1_2.mrc", tmp_path / "other.mrc"], source="p.star")
    with pytest.raises(DatasetError, match=r"'g1/T1.mrc' and 'g2/T1.mrc' would both be T1.mrc"):
        match_tomograms(["g1/T1.mrc", "g2/T1.mrc"], [tmp_path / "T1.mrc"], source="p.star")
    with pytest.raises(InputError, match="no tomograms here"):
        find_tomograms([str(tmp_path / "*.zarr")])


def test_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", np.ones((64, 256, 256), np.float32), voxel_size=10.0)
    tomogram = open_tomogram(tmp_path / "t.mrc")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tomogram.read((0, 0, 0), (2, 256, 256))
    before = resident()
    for z in range(0, 64, 2):
        tomogram.read((z, 0, 0), (z + 2, 256, 256))
    assert resident() - before < 6 * 2**20  # of 16 MiB that were read
