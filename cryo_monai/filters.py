"""Gaussian filters of batches of volumes, on any device."""

from __future__ import annotations

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
