"""Scenes: structures in their poses, as density on the grid of the simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.rotations import rotation_matrices
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.structures import OVERSAMPLING, Structure


class SceneRenderer:
    """Samples structures in any pose, by linear interpolation from a grid three times finer.

    Linear interpolation multiplies the spectrum by ``sinc^2`` along each axis; the densities are divided by that
    first, so that only its images beyond the fine grid's Nyquist frequency remain as error.

    Parameters
    ----------
    structures : sequence of Structure
        What packings refer to.
    device : str or torch.device
        Where scenes are made.

    Raises
    ------
    InputError
        When the device is not there.
    """

    def __init__(self, structures: Sequence[Structure], device: str | torch.device = "cpu") -> None:
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            unknown = reason.startswith("Expected one of")
            raise InputError(f"device {device}: {'give cpu or cuda' if unknown else reason}") from error
        self._densities = [_sharpened(s.density).to(self.device) for s in structures]

    def render(self, packing: Packing, shape: tuple[int, int, int], *, only_targets: bool = False) -> Tensor:
        """Density of scenes.

        Parameters
        ----------
        packing : Packing
            Who is where.
        shape : tuple of int
            ``(z, y, x)`` in voxels; what lies outside is cut off.
        only_targets : bool
            Leave the neighbours out.

        Returns
        -------
        Tensor
            `(B, z, y, x)` in V.
        """
        members = packing.members[:, :1] if only_targets else packing.members
        rotations = torch.as_tensor(rotation_matrices(packing.quaternions), dtype=torch.float32, device=self.device)
        scenes = torch.zeros((len(members), *shape), device=self.device)
        for kind, density in enumerate(self._densities):
            rows, particles = np.nonzero(members == kind)
            # Some at a time: memory does not grow with the number of particles.
            for first in range(0, len(rows), 64):
                chosen = rows[first : first + 64], particles[first : first + 64]
                places = packing.positions[chosen]
                corners, cubes = _posed(density, rotations[chosen], places)
                for row, corner, cube in zip(chosen[0], corners, cubes, strict=True):
                    _add(scenes[row], cube, corner)
        return scenes


def _sharpened(density: np.ndarray) -> Tensor:
    """Divide by what linear interpolation will do to the spectrum."""
    volume = torch.as_tensor(density)
    size = volume.shape[0]
    along = torch.sinc(torch.fft.fftfreq(size)) ** 2
    half = torch.sinc(torch.fft.rfftfreq(size)) ** 2
    spectrum = torch.fft.rfftn(volume) / (along[:, None, None] * along[None, :, None] * half[None, None, :])
    sharpened: Tensor = torch.fft.irfftn(spectrum, s=volume.shape)
    return sharpened


def _posed(density: Tensor, rotations: Tensor, places: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Cubes `(n, L, L, L)` of a structure in poses, and the voxel, from the scene's centre, where each begins."""
    size = density.shape[0]
    half = int(np.ceil(size / 2 / OVERSAMPLING))
    whole = np.floor(places).astype(np.int64)
    fraction = torch.as_tensor(places - whole, dtype=torch.float32, device=density.device)
    steps = torch.arange(-half, half + 2, dtype=torch.float32, device=density.device)
    points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1)
    length = len(steps)
    # The structure at p is the reference at R^T p; row vectors, hence p R.
    reference = (points.reshape(1, -1, 3) - fraction[:, None]) @ rotations * OVERSAMPLING + size // 2
    normalised = (reference * (2 / (size - 1)) - 1).flip(-1)  # grid_sample wants (x, y, z)
    cubes = F.grid_sample(
        density.expand(len(places), 1, -1, -1, -1),
        normalised.reshape(len(places), length, length, length, 3),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return whole - half, cubes[:, 0]


def _add(scene: Tensor, cube: Tensor, corner: np.ndarray) -> None:
    """Add a cube to a scene, cutting off what lies outside."""
    into, of = [], []
    for size, length, begin in zip(scene.shape, cube.shape, corner, strict=True):
        start = int(begin) + size // 2
        low, high = max(start, 0), min(start + length, size)
        if low >= high:
            return
        into.append(slice(low, high))
        of.append(slice(low - start, high - start))
    scene[tuple(into)] += cube[tuple(of)]
