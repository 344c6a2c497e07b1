"""Tomograms read by region, and the regions: overlapping blocks and boxes about positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cryo_monai.errors import InputError
from cryo_monai.resampling import Readable, cut_box

Corner = tuple[int, int, int]
Array = npt.NDArray[np.float32]
Tomogram = Readable  # all that picking asks of one


@dataclass(frozen=True)
class ArrayTomogram:
    """A tomogram in memory: ``data`` `(z, y, x)`."""

    data: npt.NDArray[Any]

    @property
    def shape(self) -> Corner:
        """``(z, y, x)`` voxels."""
        z, y, x = self.data.shape
        return z, y, x

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Array:
        """Return the region between two corners."""
        inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.asarray(self.data[inside], dtype=np.float32)


def blocks(shape: Sequence[int], edge: int) -> list[tuple[Corner, Corner]]:
    """Corners of the blocks that a volume is cut into; the last along an axis may be smaller."""
    along_z, along_y, along_x = (range(0, size, edge) for size in shape)
    starts = itertools.product(along_z, along_y, along_x)
    return [(start, clipped([begin + edge for begin in start], shape)) for start in starts]


def clipped(corner: Sequence[int], shape: Sequence[int]) -> Corner:
    """Move a corner into a volume."""
    z, y, x = (min(max(int(at), 0), int(size)) for at, size in zip(corner, shape, strict=True))
    return z, y, x


def window(corner: Sequence[int], length: int, shape: Sequence[int]) -> tuple[Corner, Corner]:
    """Corners of a cube of this edge, moved into the volume (as far as that is large enough).

    Cubes of one size, at faces too, let the C library use freed memory again: with many sizes it would fragment.
    """
    edges = [min(length, int(size)) for size in shape]
    z, y, x = (min(max(int(at), 0), int(size) - edge) for at, size, edge in zip(corner, shape, edges, strict=True))
    return (z, y, x), (z + edges[0], y + edges[1], x + edges[2])


def read_finite(tomogram: Tomogram, start: Corner, stop: Corner) -> Array:
    """Read a region.

    Raises
    ------
    InputError
        When voxels in it are NaN or infinite, with their number and the first of them.
    """
    region = np.asarray(tomogram.read(start, stop), dtype=np.float32)
    if not np.isfinite(region.sum(dtype=np.float64)):
        wrong = np.argwhere(~np.isfinite(region))
        place = tuple(int(n) for n in wrong[0] + np.asarray(start))
        raise InputError(
            f"{name_of(tomogram)}: {len(wrong)} voxels from {start} to {stop} are NaN or infinite, the first at (z, y, "
            f"x) = {place}; reconstruct it again, or replace them by the mean"
        )
    return region


def name_of(tomogram: Tomogram) -> str:
    """Return the path of a tomogram, when it has one, for messages."""
    return str(getattr(tomogram, "path", "tomogram"))


def read_box(tomogram: Tomogram, centre: Sequence[int], edge: int) -> Array:
    """Read a cube about a voxel, which comes to lie at ``edge // 2``; outside the tomogram it has the mean of the rest.

    Raises
    ------
    InputError
        When no voxel of the cube is inside, or one is NaN or infinite.
    """
    box = cut_box(tomogram, centre, edge)[0]
    if not np.isfinite(box.sum(dtype=np.float64)):
        raise InputError(f"{name_of(tomogram)}: voxels around {tuple(centre)} are NaN or infinite")
    return box


def read_boxes(tomogram: Tomogram, centres: npt.NDArray[np.int64], edge: int) -> Iterator[Array]:
    """Read cubes about voxels `(n, 3)`, one after the other; see `read_box`."""
    for centre in centres.tolist():
        yield read_box(tomogram, centre, edge)


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device that is there.

    Raises
    ------
    InputError
        When it is not.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        unknown = reason.startswith("Expected one of")
        raise InputError(f"device {device}: {'give cpu or cuda' if unknown else reason}") from error
    return found
