"""Particles as blobs: local maxima of a difference of Gaussians, block by block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.filters import band_matrix, full_precision, gaussian_kernel
from cryo_monai.picking.regions import Corner, Tomogram, blocks, checked_device, clipped, read_finite, window

# Neighbours of a voxel that come before it in memory.
_EARLIER = list(itertools.product((-1, 0, 1), repeat=3))[:13]


@dataclass(frozen=True)
class Peaks:
    """Where blobs are, the strongest first.

    Attributes
    ----------
    positions : array
        `(n, 3)` int64, voxels ``(z, y, x)``.
    values : array
        `(n,)` float64: difference of Gaussians there, positive, in units of the tomogram.
    """

    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def pick_blobs(
    tomogram: Tomogram,
    *,
    sigma: float,
    ratio: float = 1.1,
    threshold: float = 3.0,
    dark: bool = True,
    min_distance: float | None = None,
    border: int = 0,
    block: int = 128,
    max_picks: int | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Peaks:
    """Pick blobs of one size.

    The response is what a Gaussian of ``sigma`` leaves of the tomogram, less what one of ``ratio * sigma`` leaves
    (beyond its faces a tomogram has their values; kernels end at four sigma). Picked are voxels that no neighbour of
    the 26 exceeds, above ``mean + threshold * (max - mean) / 20`` of the whole response and above 0, the stronger
    first, none closer than ``min_distance`` to one picked before. The tomogram is read once, in overlapping blocks that
    leave no seams; memory does not depend on its size, but for 12 bytes per local maximum.

    Parameters
    ----------
    tomogram : Tomogram
        What is picked from.
    sigma : float
        Voxels. A ball of radius r answers most to ``sigma = r / sqrt(3)``.
    ratio : float
        Of the wide Gaussian's sigma to the narrow one's.
    threshold : float
        From 0 (the mean) to 20 (the maximum).
    dark : bool
        Particles are darker than what is around them.
    min_distance : float, optional
        Voxels; ``sigma`` by default, 0 to keep all maxima.
    border : int
        Voxels next to the faces where nothing is picked; their response counts for the threshold all the same.
    block : int
        Edge of the blocks in voxels, without overlap. It decides speed and memory, not the picks.
    max_picks : int, optional
        Keep only the strongest.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with the number of blocks done, and of all.

    Returns
    -------
    Peaks
        Positions and responses; there may be none.

    Raises
    ------
    InputError
        For impossible settings, or voxels that are NaN or infinite.
    """
    distance = sigma if min_distance is None else min_distance
    _check(sigma, ratio, threshold, distance, border, block, max_picks)
    place = checked_device(device)
    kernels = [gaussian_kernel(sigma), gaussian_kernel(ratio * sigma)]
    offset = _typical(tomogram)
    # What is kept of a block goes to the end of one buffer: small arrays that live on between large ones that do not
    # would keep the C library from using the memory of the latter again.
    indices, found = bytearray(), bytearray()
    totals: list[tuple[float, float]] = []
    corners = blocks(tomogram.shape, block)
    for done, (start, stop) in enumerate(corners, start=1):
        # One voxel more on each side, so that maxima at the faces of a block know their neighbours.
        first, last = window([a - 1 for a in start], block + 2, tomogram.shape)
        response = _response(tomogram, first, last, kernels, -1.0 if dark else 1.0, offset, place)
        core = tuple(slice(a - f, b - f) for a, b, f in zip(start, stop, first, strict=True))
        totals.append((float(response[core].sum(dtype=torch.float64)), float(response[core].max())))
        at, values = _local_maxima(response, core)
        positions = at.cpu().numpy() + np.asarray(first)
        indices += np.ravel_multi_index(tuple(positions.T), tomogram.shape).astype(np.int64).tobytes()
        found += values.cpu().numpy().tobytes()
        if progress:
            progress(done, len(corners))
    mean = math.fsum(total for total, _ in totals) / math.prod(tomogram.shape)
    limit = mean + threshold * (max(top for _, top in totals) - mean) / 20
    index, value = np.frombuffer(indices, dtype=np.int64), np.frombuffer(found, dtype=np.float32)
    # In the order of the voxels: what is equal is then sorted alike for all sizes of blocks.
    order = np.argsort(index[value > limit])
    places = np.stack(np.unravel_index(index[value > limit][order], tomogram.shape), axis=1).astype(np.int64)
    strengths = value[value > limit][order].astype(np.float64)
    inside = ((places >= border) & (places < np.asarray(tomogram.shape) - border)).all(axis=1)
    return suppress(places[inside], strengths[inside], min_distance=distance, max_picks=max_picks)


def _check(
    sigma: float, ratio: float, threshold: float, distance: float, border: int, block: int, max_picks: int | None
) -> None:
    for name, value, right, rule in (
        ("sigma", sigma, 0.3 <= sigma <= 1000, "0.3 to 1000 voxels"),
        ("ratio", ratio, 1 < ratio <= 10, "more than 1, and 10 at most"),
        ("threshold", threshold, 0 <= threshold <= 20, "0 to 20"),
        ("min_distance", distance, 0 <= distance < math.inf, "0 or more voxels"),
        ("border", border, border >= 0, "0 or more voxels"),
        ("block", block, block >= 8, "8 or more voxels"),
        ("max_picks", max_picks, max_picks is None or max_picks > 0, "1 or more"),
    ):
        if not right:
            raise InputError(f"picking: {name} {value}: give {rule}")


def _typical(tomogram: Tomogram) -> float:
    """Mean of a part in the middle: subtracted first, so that nothing is lost where the mean is large."""
    middle = [size // 2 for size in tomogram.shape]
    start, stop = (
        clipped([at - 32 for at in middle], tomogram.shape),
        clipped([at + 32 for at in middle], tomogram.shape),
    )
    return float(read_finite(tomogram, start, stop).mean(dtype=np.float64))


def _response(
    tomogram: Tomogram,
    start: Corner,
    stop: Corner,
    kernels: Sequence[Tensor],
    sign: float,
    offset: float,
    device: torch.device,
) -> Tensor:
    """Difference of Gaussians of a region, from all that the kernels reach."""
    reach = max(len(kernel) for kernel in kernels) // 2
    edge = max(b - a for a, b in zip(start, stop, strict=True))
    first, last = window([a - reach for a in start], edge + 2 * reach, tomogram.shape)
    region = torch.from_numpy(read_finite(tomogram, first, last)).to(device)
    region = (region - offset) * sign
    bands = []
    for size, wanted, given in zip(
        tomogram.shape, zip(start, stop, strict=True), zip(first, last, strict=True), strict=True
    ):
        both = [band_matrix(kernel, size, rows=wanted, columns=given) for kernel in kernels]
        bands.append(torch.stack(both).to(device))
    along_z, along_y, along_x = bands
    z, y, x = (band.shape[1] for band in bands)
    with full_precision():
        # (Z, Y X) -> (2, z, Y, X) -> (2, z y, X) -> two of (z y, x)
        blurred = torch.matmul(along_z.flatten(0, 1), region.flatten(1)).reshape(2, z, *region.shape[1:])
        blurred = torch.matmul(along_y[:, None], blurred).reshape(2, z * y, -1)
        narrow, wide = torch.matmul(blurred, along_x.transpose(1, 2))
    response: Tensor = narrow - wide
    return response.reshape(z, y, x)


def _local_maxima(response: Tensor, core: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    """Positions `(n, 3)` in the core, and values: positive, no neighbour higher; of equal neighbours, the first."""
    highest = response
    for axis, size in enumerate(response.shape):
        wider = highest.clone()
        lower, upper = wider.narrow(axis, 0, size - 1), wider.narrow(axis, 1, size - 1)
        torch.maximum(lower, highest.narrow(axis, 1, size - 1), out=lower)
        torch.maximum(upper, highest.narrow(axis, 0, size - 1), out=upper)
        highest = wider
    peaks = ((response == highest) & (response > 0))[core].nonzero()
    peaks += torch.tensor([part.start for part in core], device=peaks.device)
    values = response[tuple(peaks.T)]
    sizes = torch.tensor(response.shape, device=peaks.device)
    single = torch.ones_like(values, dtype=torch.bool)
    for step in _EARLIER:
        neighbours = peaks + torch.tensor(step, device=peaks.device)
        inside = ((neighbours >= 0) & (neighbours < sizes)).all(1)
        held = torch.minimum(neighbours.clamp_min(0), sizes - 1)
        single &= ~(inside & (response[tuple(held.T)] == values))
    return peaks[single], values[single]


def suppress(
    positions: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    *,
    min_distance: float,
    max_picks: int | None = None,
) -> Peaks:
    """Keep the strongest of what is close together: greedily, from the highest value down; of equals, the first.

    Parameters
    ----------
    positions : array
        `(n, 3)` voxels.
    values : array
        `(n,)`.
    min_distance : float
        Voxels; what is kept is never closer together than this.
    max_picks : int, optional
        Stop at this number.
    """
    order = np.argsort(-values, kind="stable")
    kept = order[far_apart(positions[order], min_distance)][:max_picks]
    return Peaks(positions[kept], values[kept])


def far_apart(positions: npt.ArrayLike, min_distance: float) -> npt.NDArray[np.int64]:
    """Rows of positions `(n, 3)` that keep their distance: greedily, from the first on."""
    from scipy.spatial import cKDTree

    places = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    if not len(places) or min_distance <= 0:
        return np.arange(len(places))
    tree = cKDTree(places)
    closer = float(np.nextafter(min_distance, 0))
    free = np.ones(len(places), dtype=bool)
    kept = []
    for row in range(len(places)):
        if free[row]:
            kept.append(row)
            free[tree.query_ball_point(places[row], closer)] = False
    return np.array(kept, dtype=np.int64)
