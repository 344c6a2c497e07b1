import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cryo_monai.datalists import load_datalist
from cryo_monai.errors import InputError
from cryo_monai.montages import LAYOUTS, Layout, read_montage
from cryo_monai.volumes import check_volume_file, is_volume_file, read_volume, volume_facts

NOBLE, QIANG = LAYOUTS


def drawn(layout: Layout, dtype: str, *, gap: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random volume and its picture, drawn slice by slice."""
    rng = np.random.default_rng(layout.size)
    volume = rng.integers(1, np.iinfo(dtype).max, (layout.slices, layout.size, layout.size)).astype(dtype)
    picture = np.full(layout.shape, gap, dtype)
    for number, slice_ in enumerate(volume):
        top, left = (layout.size + 1) * (number // layout.columns), (layout.size + 1) * (number % layout.columns)
        picture[top : top + layout.size, left : left + layout.size] = slice_
    return volume, picture


def saved(path: Path, picture: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(picture)
    (image.convert(mode) if mode else image).save(path)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(*, width: int = 174, height: int = 145, depth: int = 8, colours: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))


def test_the_pictures_have_the_published_sizes() -> None:
    # width x height: Pranav-Vinodh/Cryo-ET-Subtomogram-Classification, README.md
    assert [layout.shape[::-1] for layout in LAYOUTS] == [(174, 145), (287, 287)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["noble", "qiang"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("gap", [0, 255])
def test_every_grey_value_comes_back(tmp_path: Path, layout: Layout, dtype: str, gap: int) -> None:
    volume, picture = drawn(layout, dtype, gap=gap)
    path = saved(tmp_path / "1.PNG", picture)
    assert is_volume_file(path)
    assert check_volume_file(path) == volume.shape
    assert volume_facts(path).data_type == dtype
    read = read_volume(path)
    assert read.dtype == np.float32
    assert np.array_equal(read, volume)


def test_slices_are_where_the_readers_of_the_lab_cut_them(tmp_path: Path) -> None:
    picture = drawn(NOBLE, "uint8")[1]
    volume = read_montage(saved(tmp_path / "a.png", picture))
    # dataset_target_nshot.py: left = 29 * j, top = 29 * i, 28 pixels wide; i over 5 rows, j over 6 columns
    assert np.array_equal(volume[6 * 3 + 4], picture[29 * 3 : 29 * 3 + 28, 29 * 4 : 29 * 4 + 28])
    picture = drawn(QIANG, "uint16")[1]
    volume = read_montage(saved(tmp_path / "b.png", picture))
    assert np.array_equal(volume[7 * 2 + 5], picture[41 * 2 : 41 * 2 + 40, 41 * 5 : 41 * 5 + 40])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_pictures_of_equal_channels_are_grey(tmp_path: Path, mode: str) -> None:
    volume, picture = drawn(NOBLE, "uint8")
    assert np.array_equal(read_montage(saved(tmp_path / "a.png", picture, mode)), volume)


def test_colours_and_transparency_are_refused(tmp_path: Path) -> None:
    picture = drawn(NOBLE, "uint8")[1]
    coloured = np.stack([picture] * 3, axis=-1)
    coloured[5, 5, 1] ^= 1
    with pytest.raises(InputError, match=r"rgb\.png: colours"):
        read_montage(saved(tmp_path / "rgb.png", coloured))
    clear = np.stack([picture] * 3 + [np.full_like(picture, 254)], axis=-1)
    with pytest.raises(InputError, match=r"rgba\.png: transparent"):
        read_montage(saved(tmp_path / "rgba.png", clear))
    with pytest.raises(InputError, match=r"p\.png: palette"):
        check_volume_file(saved(tmp_path / "p.png", picture, "P"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(width=174, height=174), "174 x 174 pixels; montages of volumes have 174 x 145 and 287 x 287"),
        (header(width=145, height=174), "145 x 174 pixels"),
        (header(depth=1), "grey of 1 bits"),
        (header(depth=16, colours=2), "RGB of 16 bits"),
        (header(colours=5), "unknown colour type 5"),
        (b"", "not a PNG"),
        (b"x" * 500, "not a PNG"),
        (header()[:20], "not a PNG"),
    ],
)
def test_what_is_no_montage_is_refused_from_its_header(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "é (1).png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as caught:
        check_volume_file(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", drawn(NOBLE, "uint8")[1])
    whole = path.read_bytes()
    for damaged in (whole[:-5000], whole[:40], whole[:2000] + b"\0\1\2\3" * 4 + whole[2016:], header()):
        path.write_bytes(damaged)
        assert check_volume_file(path) == (28, 28, 28)
        with pytest.raises(InputError, match=r"a\.png: damaged PNG") as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)


def test_a_picture_that_is_no_montage_is_refused(tmp_path: Path) -> None:
    _, picture = drawn(NOBLE, "uint8")
    picture[28, 100] = 7
    with pytest.raises(InputError, match=r"a\.png: not a montage, the gaps between its slices hold values from 0 to 7"):
        read_montage(saved(tmp_path / "a.png", picture))
    _, picture = drawn(QIANG, "uint16")
    picture[-2, -2] = 9
    with pytest.raises(InputError, match=r"b\.png: a montage of more than 40 slices"):
        read_montage(saved(tmp_path / "b.png", picture))


def test_a_folder_of_montages_per_class_is_a_data_set(tmp_path: Path) -> None:
    for name in ("31", "33"):
        (tmp_path / name).mkdir()
        for n in range(3):
            saved(tmp_path / name / f"{n}.png", drawn(NOBLE, "uint8", gap=n)[1])
    datalist = load_datalist(tmp_path, num_classes=2)
    assert [len(datalist[split]) for split in ("training", "validation", "test")] == [2, 2, 2]
