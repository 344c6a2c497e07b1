"""Constrained cross-correlation as products of vectors: boxes and rotated templates as the coefficients they share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.simulation.microscope import missing_wedge_mask

# Templates are sampled this much more finely, by zeros around their spectrum, before they are rotated.
_FINER = 2
_SOFT_EDGE = 2.0  # voxels


class Comparison:
    """What two volumes are compared by: a soft sphere, and the Fourier coefficients in a band and outside the wedge.

    Of each pair of opposite frequencies one is kept, and never the zero frequency nor one of Nyquist's.

    Parameters
    ----------
    edge : int
        Of the cubes, in voxels. Their centre is voxel ``edge // 2``.
    voxel_size : float
        Å.
    wedge_deg : tuple of float or None
        Smallest and largest tilt about y, or None when nothing is missing.
    low_pass : float or None
        Å; the finest detail that counts.
    mask_radius : float or None
        Voxels, with the soft edge of 2; the largest in the box by default.
    device : torch.device
        Where to compute.

    Raises
    ------
    InputError
        When too little is left to compare, or the mask does not fit.
    """

    def __init__(
        self,
        edge: int,
        *,
        voxel_size: float,
        wedge_deg: tuple[float, float] | None,
        low_pass: float | None,
        mask_radius: float | None,
        device: torch.device,
    ) -> None:
        largest = (edge - 1) // 2
        radius = largest if mask_radius is None else mask_radius
        if not _SOFT_EDGE < radius <= largest:
            raise InputError(f"mask: radius {radius:g} voxels in a box of {edge}; give more than 2, {largest} at most")
        self.edge, self.device = edge, device
        along = torch.arange(edge, dtype=torch.float64) - edge // 2
        distance = torch.sqrt(along[:, None, None] ** 2 + along[None, :, None] ** 2 + along[None, None, :] ** 2)
        fall = ((distance - radius + _SOFT_EDGE) / _SOFT_EDGE).clamp(0, 1)
        self._mask = (0.5 + 0.5 * torch.cos(torch.pi * fall)).to(torch.float32).to(device)
        # (P, 3): voxels inside the sphere, from the centre
        self._points = ((self._mask > 0).nonzero() - edge // 2).to(torch.float32)
        self._inside = self._mask.flatten().nonzero().flatten()
        self._measured = self._wedge(edge, wedge_deg).to(device)
        self._chosen, self._frequencies = self._band(voxel_size, low_pass)

    @staticmethod
    def _wedge(edge: int, wedge_deg: tuple[float, float] | None) -> Tensor:
        if wedge_deg is None:
            return torch.ones(edge, edge, edge // 2 + 1)
        lowest, highest = wedge_deg
        if not -90 <= lowest < highest <= 90:
            raise InputError(f"wedge: tilts {lowest:g} to {highest:g} degrees; give the smallest and the largest")
        return missing_wedge_mask((edge,) * 3, min_tilt_deg=lowest, max_tilt_deg=highest)

    def _band(self, voxel_size: float, low_pass: float | None) -> tuple[Tensor, Tensor]:
        """Flat indices `(m,)` into a half-spectrum, and the frequencies `(m, 3)` in cycles per voxel."""
        along = torch.fft.fftfreq(self.edge, dtype=torch.float64)
        half = torch.fft.rfftfreq(self.edge, dtype=torch.float64)
        z, y, x = torch.meshgrid(along, along, half, indexing="ij")
        cut = 0.5 if low_pass is None else min(0.5, voxel_size / low_pass)
        inside = z**2 + y**2 + x**2 <= cut**2
        inside &= (z.abs() < 0.5) & (y.abs() < 0.5) & (x < 0.5)
        # Where x = 0 a frequency and its opposite are both there.
        inside &= (x > 0) | (y > 0) | ((y == 0) & (z > 0))
        inside &= self._measured.cpu() > 0
        if inside.sum() < 16:
            raise InputError(
                f"low_pass: {low_pass} Å leaves {int(inside.sum())} coefficients of a box of {self.edge} voxels of "
                f"{voxel_size:g} Å; give a finer one, or a larger box"
            )
        frequencies = torch.stack([z[inside], y[inside], x[inside]], dim=1)
        return inside.flatten().nonzero().flatten().to(self.device), frequencies.to(torch.float32).to(self.device)

    @property
    def length(self) -> int:
        """Numbers per vector: two per coefficient."""
        return 2 * len(self._chosen)

    def vectors(self, volumes: Tensor) -> Tensor:
        """Return unit vectors `(B, length)` of cubes `(B, n, n, n)` from `standardised`; zeros for a cube of zeros."""
        mean = (volumes * self._mask).sum((1, 2, 3), keepdim=True) / self._mask.sum()
        spectra = torch.fft.rfftn((volumes - mean) * self._mask, dim=(1, 2, 3)).flatten(1)
        vectors = torch.view_as_real(spectra.index_select(1, self._chosen)).flatten(1)
        vectors /= vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return vectors

    def phases(self, shifts: Tensor) -> Tensor:
        """Complex factors `(S, length / 2)` that take what is at shifts `(S, 3)`, in voxels, to the centre."""
        angles = 2 * torch.pi * shifts.to(torch.float32) @ self._frequencies.T
        return torch.polar(torch.ones_like(angles), angles)

    def moved(self, vectors: Tensor, phases: Tensor) -> Tensor:
        """Vectors `(B S, length)` of volumes `(B, length)`, each moved by each of the shifts of `phases`."""
        spectra = torch.view_as_complex(vectors.unflatten(1, (-1, 2)))  # type: ignore[no-untyped-call]
        return torch.view_as_real(spectra[:, None] * phases).flatten(0, 1).flatten(1)

    def rotated_vectors(self, fine: Tensor, rotations: Tensor) -> Tensor:
        """Return unit vectors `(R, length)` of a template, from `finer`, in rotations `(R, 3, 3)`, under the wedge."""
        turned = self._rotated(fine, rotations)
        spectra = torch.fft.rfftn(turned, dim=(1, 2, 3)) * self._measured
        return self.vectors(torch.fft.irfftn(spectra, s=turned.shape[1:], dim=(1, 2, 3)))

    def finer(self, density: npt.NDArray[np.float32]) -> Tensor:
        """Template on a grid twice as fine, `(1, 1, 2 n, 2 n, 2 n)`, sharpened by what interpolation takes off it."""
        spectrum = torch.fft.fftshift(torch.fft.fftn(torch.as_tensor(standardised(density), dtype=torch.float64)))
        size = _FINER * self.edge
        before = size // 2 - self.edge // 2
        after = size - self.edge - before
        frequency = torch.fft.fftshift(torch.fft.fftfreq(size, dtype=torch.float64))
        loss = torch.sinc(frequency) ** 2
        padded = F.pad(spectrum, [before, after] * 3) / (loss[:, None, None] * loss[:, None] * loss)
        # Linear interpolation multiplies the spectrum by sinc^2 along each axis.
        fine: Tensor = torch.fft.ifftn(torch.fft.ifftshift(padded)).real * _FINER**3
        return fine.to(torch.float32).to(self.device)[None, None]

    def _rotated(self, fine: Tensor, rotations: Tensor) -> Tensor:
        """Cubes `(R, n, n, n)`: the template in each pose, in the sphere, with its mean there taken off."""
        # The particle at p is the reference at R^T p; row vectors, hence p R.
        places = (self._points @ rotations + self.edge // 2) * _FINER
        normalised = (places * (2 / (_FINER * self.edge - 1)) - 1).flip(-1)  # grid_sample wants (x, y, z)
        sampled = F.grid_sample(fine, normalised[None, :, :, None], mode="bilinear", align_corners=True)[0, 0, ..., 0]
        cubes = torch.zeros((len(rotations), self.edge**3), device=self.device)
        cubes.index_copy_(
            1, self._inside, (sampled - sampled.mean(1, keepdim=True)) * self._mask.flatten()[self._inside]
        )
        return cubes.unflatten(1, (self.edge,) * 3)  # type: ignore[no-untyped-call, no-any-return]


def standardised(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Bring a volume to mean 0 and standard deviation 1, or to zeros when it is constant."""
    if np.ptp(volume) == 0:
        return np.zeros(volume.shape, dtype=np.float32)
    values = volume.astype(np.float64)
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float32)
