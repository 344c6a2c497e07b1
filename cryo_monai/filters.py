"""Gaussian filters of batches of volumes, and of regions of volumes, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

TRUNCATE = 4.0  # kernels end at this many standard deviations, as scipy's do


def gaussian_kernel(sigma: float) -> Tensor:
    """Return samples of a Gaussian that sum to one: `(2 r + 1,)` with r = 4 sigma, rounded.

    Parameters
    ----------
    sigma : float
        Standard deviation in voxels; 0 gives a kernel that changes nothing.
    """
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else torch.ones(1, dtype=torch.float64)
    return (kernel / kernel.sum()).float()


def blur(volumes: Tensor, kernel: Tensor) -> Tensor:
    """Convolve volumes with the same kernel along z, y and x; beyond its faces a volume has their values.

    Parameters
    ----------
    volumes : Tensor
        `(B, 1, z, y, x)`.
    kernel : Tensor
        `(2 r + 1,)`, see `gaussian_kernel`.
    """
    size = kernel.shape[0]
    reach = size // 2
    volumes = F.conv3d(F.pad(volumes, [0, 0, 0, 0, reach, reach], mode="replicate"), kernel.view(1, 1, size, 1, 1))
    volumes = F.conv3d(F.pad(volumes, [0, 0, reach, reach, 0, 0], mode="replicate"), kernel.view(1, 1, 1, size, 1))
    return F.conv3d(F.pad(volumes, [reach, reach, 0, 0, 0, 0], mode="replicate"), kernel.view(1, 1, 1, 1, size))


def difference_of_gaussians(volumes: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
    """Band-pass volumes: what a narrow Gaussian leaves, less what a wide one leaves.

    Parameters
    ----------
    volumes : Tensor
        `(B, 1, z, y, x)`.
    narrow, wide : Tensor
        Kernels, see `gaussian_kernel`.
    """
    return blur(volumes, narrow) - blur(volumes, wide)


def band_matrix(kernel: Tensor, size: int, *, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Matrix `(rows, columns)` of a convolution along an axis; beyond its ends an axis has their values, as in `blur`.

    Dense, with many zeros, and yet ten times faster on CPUs than ``conv1d`` for the long kernels of picking.

    Parameters
    ----------
    kernel : Tensor
        `(2 r + 1,)`, symmetric, see `gaussian_kernel`.
    size : int
        Length of the whole axis.
    rows : tuple of int
        First position wanted, and the one after the last.
    columns : tuple of int
        First position given, and the one after the last: all that `rows` reach, as far as the axis goes.
    """
    reach = kernel.shape[0] // 2
    wanted = torch.arange(*rows)[:, None]
    given = (wanted + torch.arange(-reach, reach + 1)).clamp(0, size - 1) - columns[0]
    matrix = torch.zeros(rows[1] - rows[0], columns[1] - columns[0])
    return matrix.scatter_add_(1, given, kernel.cpu().expand(len(wanted), -1))


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply matrices in float32, whatever a training has allowed (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
