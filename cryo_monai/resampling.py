"""A box around any point of a tomogram, at any voxel size and pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Volume = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
RESCALINGS = ("fourier", "lanczos")
LANCZOS_LOBES = 3
# Fourier sums take the region for periodic: beyond the box they have this share of it, where the seam rings.
FOURIER_MARGIN = 0.25


class Readable(Protocol):
    """A volume of which regions can be read."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)``."""

    def read(self, start: Sequence[int], stop: Sequence[int]) -> Volume:
        """Read the region between two corners."""


def fourier_matrix(length: int, positions: Array, spacing: float) -> Array:
    """Matrix `(M, length)` that evaluates a periodic signal between its samples, low-passed for a coarser spacing.

    It is the discrete Fourier transform, cut off where the coarser samples' Nyquist frequency lies, and the inverse
    sum at the new positions: a Fourier crop for any ratio and offset. Where both grids coincide it is the identity.

    Parameters
    ----------
    length : int
        Number of samples.
    positions : array
        `(M,)`, in samples from the first.
    spacing : float
        Distance of the new samples, in old ones.
    """
    cutoff = 0.5 * length / max(1.0, spacing)
    highest = math.floor(cutoff + 1e-9)
    phase = np.pi / length * (np.asarray(positions, dtype=np.float64)[:, None] - np.arange(length))
    # 1 + 2 cos(2 p) + ... + 2 cos(2 highest p) is Dirichlet's kernel, sin((2 highest + 1) p) / sin(p).
    below, odd = np.sin(phase), 2 * highest + 1
    same = np.abs(below) < 1e-9
    kernel = np.where(same, odd, np.sin(odd * phase) / np.where(same, 1.0, below))
    if abs(highest - cutoff) < 1e-9:
        # The coefficient at the Nyquist frequency itself is shared by both signs.
        kernel -= np.cos(2 * highest * phase)
    return np.asarray(kernel / length)


def lanczos_matrix(length: int, positions: Array, spacing: float) -> Array:
    """Matrix `(M, length)` that interpolates with a Lanczos kernel of three lobes, widened for a coarser spacing.

    The kernel is as wide as the coarser of both grids wants (as Pillow's and torch's antialiased resizing have it), its
    weights sum to one, and beyond the ends a signal has its last value.
    """
    width = max(1.0, spacing)
    reach = math.ceil(LANCZOS_LOBES * width)
    nearest = np.floor(np.asarray(positions, dtype=np.float64)).astype(int)
    taps = nearest[:, None] + np.arange(-reach, reach + 2)
    distance = (positions[:, None] - taps) / width
    weights = np.where(abs(distance) < LANCZOS_LOBES, np.sinc(distance) * np.sinc(distance / LANCZOS_LOBES), 0.0)
    weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((len(positions), length))
    np.add.at(matrix, (np.arange(len(positions))[:, None], taps.clip(0, length - 1)), weights)
    return matrix


def cut_box(
    tomogram: Readable,
    place: npt.ArrayLike,
    box: int,
    *,
    spacing: float = 1.0,
    rotation: npt.ArrayLike | None = None,
    rescaling: str = "fourier",
) -> tuple[Volume, float]:
    """Cut a cube out of a tomogram; its voxel ``box // 2`` of each axis lies exactly at a point.

    Parameters
    ----------
    tomogram : Readable
        Read once, where the box is.
    place : array
        `(3,)`, ``(z, y, x)`` in the tomogram's voxels, with fractions.
    box : int
        Edge of the cube in voxels.
    spacing : float
        Edge of the cube's voxels, in the tomogram's voxels; above 1 what the coarser grid cannot hold is taken out.
    rotation : array, optional
        `(3, 3)`, from reference to particle, on ``(z, y, x)`` vectors: the particle is turned back into the pose of
        the reference. Cubic splines interpolate.
    rescaling : str
        ``"fourier"`` (see `fourier_matrix`) or ``"lanczos"`` (see `lanczos_matrix`).

    Returns
    -------
    volume : array
        `(box, box, box)`.
    inside : float
        The share of the box's voxels that lie within the tomogram. The rest had the mean of what is inside.

    Raises
    ------
    InputError
        When nothing of the box lies inside, or for an unknown rescaling.
    """
    if rescaling not in RESCALINGS:
        raise InputError(f"rescaling: {rescaling!r} is not one of {', '.join(RESCALINGS)}")
    centre = np.asarray(place, dtype=np.float64)
    if rotation is None:
        return _axis_parallel(tomogram, centre, box, spacing, rescaling), _share_inside(tomogram, centre, box, spacing)
    # A cube that holds the turned one, with room for the splines.
    matrix = np.asarray(rotation, dtype=np.float64)
    around = _axis_parallel(tomogram, centre, math.ceil(box * math.sqrt(3)) + 4, spacing, rescaling)
    return turned(around, matrix, box), _share_inside(tomogram, centre, box, spacing, matrix)


def _share_inside(tomogram: Readable, centre: Array, box: int, spacing: float, rotation: Array | None = None) -> float:
    """Share of a box's voxels whose centres lie within the tomogram."""
    steps = (np.arange(box) - box // 2) * spacing
    shape = np.asarray(tomogram.shape)
    if rotation is None:
        at = centre[:, None] + steps
        return float(np.prod(((at > -0.5) & (at < shape[:, None] - 0.5)).mean(1)))
    reach = max(abs(steps[0]), abs(steps[-1])) * math.sqrt(3)
    if np.all(centre - reach > -0.5) and np.all(centre + reach < shape - 0.5):
        return 1.0
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    at = centre + grid @ rotation.T
    return float(np.all((at > -0.5) & (at < shape - 0.5), axis=-1).mean())


def turned(volume: Volume, rotation: Array, box: int) -> Volume:
    """Turn a cube about its voxel ``n // 2``: the voxel at ``p`` from there is that at ``rotation @ p``.

    Parameters
    ----------
    volume : array
        `(n, n, n)`.
    rotation : array
        `(3, 3)` on ``(z, y, x)`` vectors.
    box : int
        Edge of the result.
    """
    from scipy.ndimage import affine_transform

    offset = volume.shape[0] // 2 - rotation @ np.full(3, box // 2)
    return np.asarray(affine_transform(volume, rotation, offset, (box,) * 3, order=3, mode="nearest"), np.float32)


def _axis_parallel(tomogram: Readable, centre: Array, box: int, spacing: float, rescaling: str) -> Volume:
    grid = (np.arange(box) - box // 2) * spacing
    whole = spacing == 1.0 and bool(np.all(centre == np.round(centre)))
    if whole:
        return _padded(tomogram, np.round(centre + grid[0]).astype(int), box)
    if rescaling == "fourier":
        margin = math.ceil(FOURIER_MARGIN * box * spacing)
    else:
        margin = math.ceil(LANCZOS_LOBES * max(1.0, spacing)) + 1
    start = np.floor(centre + grid[0]).astype(int) - margin
    length = math.ceil(grid[-1] - grid[0]) + 2 + 2 * margin
    region = _padded(tomogram, start, length)
    make = fourier_matrix if rescaling == "fourier" else lanczos_matrix
    # The mean is left out of the sums: a constant stays one, to the last bit.
    mean = region.mean(dtype=np.float64)
    data = region - np.float32(mean)
    for axis in range(3):
        matrix = make(length, centre[axis] + grid - start[axis], spacing).astype(np.float32)
        # The first axis is taken off and the new one put last; three times restore the order.
        data = np.tensordot(data, matrix, axes=([0], [1]))
    return data + np.float32(mean)


def _padded(tomogram: Readable, start: npt.NDArray[np.int_], length: int) -> Volume:
    """Read a cube that may reach beyond the tomogram; there it has the mean of what is inside."""
    low, high = np.maximum(start, 0), np.minimum(start + length, tomogram.shape)
    if np.any(high <= low):
        place = tuple(int(n) for n in start)
        raise InputError(f"no voxel of the box at {place} lies inside a tomogram of {tomogram.shape}")
    data = tomogram.read([int(n) for n in low], [int(n) for n in high])
    if data.shape == (length,) * 3:
        return data
    padded = np.full((length,) * 3, data.mean(dtype=np.float64), dtype=np.float32)
    padded[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))] = data
    return padded
