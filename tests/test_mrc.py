import bz2
import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.transforms import LoadImage

from cryo_monai.errors import InputError
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.mrc_header import read_mrc_header
from cryo_monai.mrc_reader import MRCReader

SHAPE = (10, 12, 14)


def volume(dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "é 空 file (1).mrc"
    write_mrc(path, volume(), voxel_size=(3.0, 4.0, 5.0), origin=(1.0, 2.0, 3.0))
    return path


def patched(source: Path, offset: int, layout: str, *values: object) -> Path:
    raw = bytearray(source.read_bytes())
    struct.pack_into(layout, raw, offset, *values)
    target = source.with_name("patched.mrc")
    target.write_bytes(raw)
    return target


@pytest.mark.parametrize("dtype", ["f4", "i1", "i2", "u2", "f2"])
def test_round_trip_keeps_every_voxel_and_the_geometry(tmp_path: Path, dtype: str) -> None:
    write_mrc(tmp_path / "a.mrc", volume(dtype), voxel_size=(3.0, 4.0, 5.0), origin=(1.0, 2.0, 3.0))
    read = read_mrc(tmp_path / "a.mrc")
    assert np.array_equal(read.data, volume(dtype).astype("f4"))
    assert read.voxel_size == pytest.approx((3.0, 4.0, 5.0))
    assert read.origin == pytest.approx((1.0, 2.0, 3.0))


@given(data=arrays("f4", SHAPE, elements=st.floats(-1e6, 1e6, width=32)))
def test_round_trip_of_any_values(tmp_path_factory: pytest.TempPathFactory, data: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("mrc") / "a.mrc"
    write_mrc(path, data, voxel_size=10.0)
    assert np.array_equal(read_mrc(path).data, data)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_equal_plain_ones_and_are_checked_too(written: Path, suffix: str, compress: object) -> None:
    raw = written.read_bytes()
    packed = written.with_name("a.mrc" + suffix)
    packed.write_bytes(compress(raw))  # type: ignore[operator]
    assert np.array_equal(read_mrc(packed).data, volume())
    packed.write_bytes(compress(raw[:-50]))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"50 of \d+ bytes are missing"):
        read_mrc(packed)
    packed.write_bytes(compress(raw)[:-20])  # type: ignore[operator]
    with pytest.raises(InputError, match=re.escape(str(packed))):
        read_mrc(packed)


def test_permuted_axes_come_out_as_zyx(written: Path) -> None:
    # MAPC, MAPR, MAPS = z, y, x: the file holds the transposed array.
    read = read_mrc(patched(written, 64, "<3i", 3, 2, 1))
    assert np.array_equal(read.data, volume().transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("offset", "layout", "values", "reason"),
    [
        (12, "<i", (99,), "unknown MRC mode 99"),
        (12, "<i", (1,), "bytes more than the header declares"),
        (12, "<i", (4,), "complex"),
        (0, "<i", (2**30,), "over the limit"),
        (0, "<i", (0,), "impossible size"),
        (0, "<i", (-14,), "impossible size"),
        (92, "<i", (2**31 - 1,), "impossible extended header"),
        (92, "<i", (-1,), "impossible extended header"),
        (92, "<i", (512,), "bytes are missing"),
        (208, "<4s", (b"\0\0\0\0",), "no 'MAP' identifier"),
        (212, "<2s", (b"\x99\x99",), "machine stamp"),
        (64, "<3i", (1, 1, 3), "do not name each axis once"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(
    written: Path, offset: int, layout: str, values: tuple[object, ...], reason: str
) -> None:
    path = patched(written, offset, layout, *values)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        read_mrc(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_short_missing_and_flat_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mrc").touch()
    (tmp_path / "short.mrc").write_bytes(b"x" * 100)
    write_mrc(tmp_path / "flat.mrc", np.ones((1, 8, 8), "f4"), voxel_size=1.0)
    for name, reason in [("empty", "empty"), ("short", "too few"), ("none", "No such file"), ("flat", "two-dim")]:
        with pytest.raises(InputError, match=reason):
            read_mrc(tmp_path / f"{name}.mrc")


@pytest.mark.parametrize("voxel_size", [0.0, 1.0])
def test_a_voxel_size_that_nobody_set_is_unknown(tmp_path: Path, voxel_size: float) -> None:
    write_mrc(tmp_path / "a.mrc", volume(), voxel_size=voxel_size)
    assert read_mrc_header(tmp_path / "a.mrc").voxel_size is None


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="three dimensions"):
        write_mrc(tmp_path / "a.mrc", np.ones((4, 4)), voxel_size=1.0)
    assert list(tmp_path.iterdir()) == []


def test_monai_load_image_uses_the_reader_with_a_true_affine(written: Path) -> None:
    image = LoadImage(reader=MRCReader(), image_only=True)(str(written))
    assert np.array_equal(image.numpy(), volume())
    position = image.affine.numpy() @ np.array([2.0, 3.0, 4.0, 1.0])  # voxel (z, y, x) = (2, 3, 4)
    # x = 3 + 4 * 5, y = 2 + 3 * 4, z = 1 + 2 * 3
    assert position[:3] == pytest.approx([23.0, 14.0, 7.0])


GOOD = [
    "anisotropic_voxel.mrc",
    "bz2.mrc.bz2",
    "exthdr_seri.mrc",
    "gz.mrc.gz",
    "mode2_f32_bigendian.mrc",
    "nxstart_only.mrc",
    "origin_and_nxstart_conflict.mrc",
    "origin_only.mrc",
    "permuted_mapcrs_321.mrc",
    "zero_voxel.mrc",
]
QUANTISED = {
    "mode0_int8.mrc": 0.01,
    "mode1_int16.mrc": 1e-3,
    "mode1_int16_bigendian.mrc": 1e-3,
    "mode6_u16.mrc": 1e-4,
    "mode12_f16.mrc": 1e-3,
}
REFUSED = {
    "bad_bigendian_wrong_stamp.mrc": "mode",
    "bad_huge_dim.mrc": "limit",
    "bad_mapid.mrc": "MAP",
    "bad_mode99.mrc": "99",
    "bad_negative_dim.mrc": "-16",
    "bad_trailing.mrc": "333",
    "bad_truncated.mrc": "500",
    "empty.mrc": "empty",
    "not_mrc.mrc": "MAP",
    "mode4_c64.mrc": "complex",
    "single_image_2d.mrc": "two-dim",
    "volstack_ispg401.mrcs": "stack of 3",
}


@pytest.mark.parametrize("name", GOOD)
def test_shared_case_equals_the_reference(shared_data: Path, name: str) -> None:
    reference = read_mrc(shared_data / "mrc" / "mode2_f32.mrc")
    assert reference.data.shape == (12, 14, 16)
    assert np.array_equal(read_mrc(shared_data / "mrc" / name).data, reference.data)


@pytest.mark.parametrize(("name", "tolerance"), QUANTISED.items())
def test_shared_quantised_case_is_the_reference_up_to_scale(shared_data: Path, name: str, tolerance: float) -> None:
    reference = read_mrc(shared_data / "mrc" / "mode2_f32.mrc").data.ravel()
    data = read_mrc(shared_data / "mrc" / name).data.ravel()
    slope, offset = np.polyfit(data, reference, 1)
    assert np.abs(slope * data + offset - reference).max() < tolerance * np.ptp(reference)


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_shared_bad_case_is_refused_by_name(shared_data: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(name)) as caught:
        read_mrc(shared_data / "mrc" / name)
    assert reason in str(caught.value)


def test_shared_geometry(shared_data: Path) -> None:
    folder = shared_data / "mrc"
    assert read_mrc(folder / "anisotropic_voxel.mrc").voxel_size == pytest.approx((10.0, 7.5, 5.0))
    assert read_mrc(folder / "zero_voxel.mrc").voxel_size is None
    assert read_mrc(folder / "origin_only.mrc").origin == pytest.approx((25.0, -50.0, 100.0))
    assert read_mrc(folder / "nxstart_only.mrc").origin == pytest.approx((0.0, 0.0, -5 * 11.4))
    stack = [read_mrc(folder / "volstack_ispg401.mrcs", volume=n).data for n in range(3)]
    assert {volume.shape for volume in stack} == {(12, 14, 16)}
    assert read_mrc(folder / "bad_mapid.mrc", permissive=True).data.shape == (12, 14, 16)
    assert read_mrc(shared_data / "maps" / "emd_3420_b4.mrc.gz", permissive=True).data.ndim == 3
