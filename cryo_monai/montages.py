"""PNG montages: pictures of all slices of a volume side by side, as the experimental subtomograms are passed around.

The layouts are those of the lab's own readers. Slices follow each other row by row; each fills the upper left of its
cell, whose last row and last column are a gap. Which way the rows and columns of a slice point is not written down:
they are taken as y and x, and a volume may be the mirror image of the particle.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

MONTAGE_SUFFIXES = (".png",)

# PNG (W3C 2003, ISO/IEC 15948), 5.2 and 11.2.2: signature, then IHDR with width, height, bit depth and colour type.
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8s4x4sIIBB")
COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True)
class Layout:
    """Where the slices are: a grid of cells with one slice of ``size`` rows and columns in each of the first."""

    rows: int
    columns: int
    size: int
    slices: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the picture, in pixels."""
        return self.rows * (self.size + 1), self.columns * (self.size + 1)


# Pranav-Vinodh/Cryo-ET-Subtomogram-Classification, dataset_target_nshot.py and README.md (sets Noble and Qiang): cells
# of 29 and 41 pixels. Drawn by cub_img of xulabs/aitom (aitom/image/vol/util.py), which leaves NaN in gaps and unused
# cells.
LAYOUTS = (Layout(rows=5, columns=6, size=28, slices=28), Layout(rows=7, columns=7, size=40, slices=40))


def check_montage(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], str]:
    """Check that a picture is a montage of a known layout, from its header alone.

    Parameters
    ----------
    path : path
        PNG of 174 x 145 (28 slices of 28 x 28) or 287 x 287 pixels (40 slices of 40 x 40).

    Returns
    -------
    tuple
        Shape ``(z, y, x)`` of the volume, and ``"uint8"`` or ``"uint16"``.

    Raises
    ------
    InputError
        One line naming the file and the reason: unreadable, not PNG, a palette, a bit depth that is not read, or
        another size.
    """
    layout, depth = _read_header(Path(path))
    return (layout.slices, layout.size, layout.size), f"uint{depth}"


def read_montage(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Read a volume `(z, y, x)` from a PNG montage; grey values of 8 or 16 bits are kept as they are.

    Parameters
    ----------
    path : path
        See `check_montage`. Colours are accepted when all channels are equal.

    Raises
    ------
    InputError
        As `check_montage`; and when the picture is damaged, has colours, or is no montage: the gaps between slices
        differ from each other, or there is something in the cells that should be empty.
    """
    path = Path(path)
    layout, _ = _read_header(path)
    picture = _grey(path, _pixels(path))
    edge = layout.size + 1
    # (row, y, column, x) -> (slice, y, x)
    cells = picture.reshape(layout.rows, edge, layout.columns, edge).transpose(0, 2, 1, 3).reshape(-1, edge, edge)
    gap = np.concatenate([cells[:, -1, :].ravel(), cells[:, :-1, -1].ravel()])
    if gap.min() != gap.max():
        raise InputError(
            f"{path}: not a montage, the gaps between its slices hold values from {gap.min()} to {gap.max()}"
        )
    unused = cells[layout.slices :, :-1, :-1]
    if unused.min() != unused.max():
        raise InputError(f"{path}: a montage of more than {layout.slices} slices of {layout.size} x {layout.size}")
    return np.array(cells[: layout.slices, :-1, :-1], dtype=np.float32, order="C")


def _read_header(path: Path) -> tuple[Layout, int]:
    """Return the layout of a picture, known from its size, and its bits per grey value."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(HEADER.size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if len(raw) < HEADER.size or raw[:8] != SIGNATURE or raw[12:16] != b"IHDR":
        raise InputError(f"{path}: not a PNG picture")
    _, _, width, height, depth, colours = HEADER.unpack(raw)
    layout = next((layout for layout in LAYOUTS if layout.shape == (height, width)), None)
    if layout is None:
        known = " and ".join(f"{layout.shape[1]} x {layout.shape[0]}" for layout in LAYOUTS)
        raise InputError(f"{path}: {width} x {height} pixels; montages of volumes have {known}")
    kind = COLOUR_TYPES.get(colours, f"unknown colour type {colours}")
    # Pillow reads 16 bits of grey alone; of colours it drops the lower eight without a word.
    if depth != 8 and (depth, colours) != (16, 0):
        raise InputError(f"{path}: {kind} of {depth} bits; montages of volumes are grey of 8 or 16 bits")
    if colours not in COLOUR_TYPES or colours == 3:
        raise InputError(f"{path}: {kind}, not grey values; montages of volumes are grey of 8 or 16 bits")
    return layout, depth


def _pixels(path: Path) -> npt.NDArray[np.generic]:
    """Decode a PNG whose header has been checked."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        # Pillow raises SyntaxError for broken chunks.
        raise InputError(f"{path}: damaged PNG ({str(error).splitlines()[0]})") from error


def _grey(path: Path, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return the one channel `(y, x)` of a picture without colours."""
    if pixels.ndim == 2:
        return pixels
    channels = pixels.shape[2]
    if channels in (2, 4) and (pixels[..., -1] != 255).any():
        raise InputError(f"{path}: transparent pixels; montages of volumes are grey of 8 or 16 bits")
    colours = pixels[..., : 3 if channels >= 3 else 1]
    if (colours != colours[..., :1]).any():
        raise InputError(f"{path}: colours, not grey values; montages of volumes are grey of 8 or 16 bits")
    return colours[..., 0]
