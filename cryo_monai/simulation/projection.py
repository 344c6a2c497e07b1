"""Projection along the beam and weighted back-projection, without interpolation.

The tilt axis is y, the beam is along z. At tilt ``t`` a point ``(z, y, x)`` is seen at ``u = x cos t + z sin t`` (as
IMOD's). A projection is a central slice of the volume's Fourier transform (the slice theorem), and that slice is
summed exactly from all voxels of each ``(z, x)`` plane: one matrix product per tilt. Back-projection is the adjoint,
with the ramp weighting of Radermacher (1992) for a single axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project(volumes: Tensor, angles_deg: Sequence[float], *, width: int | None = None) -> Tensor:
    """Spectra of projections.

    Parameters
    ----------
    volumes : Tensor
        `(B, z, y, x)`. The centre is voxel ``n // 2`` of each axis.
    angles_deg : sequence of float
        Tilts `(T,)`.
    width : int, optional
        Pixels along ``u``, even; ``x`` by default. What projects beyond comes in again at the other side.

    Returns
    -------
    Tensor
        `(B, T, y, width // 2 + 1)` complex: ``torch.fft.rfft2`` of the images, with ``u`` counted from the centre. See
        `images_of`.
    """
    batch, size_z, size_y, size_x = volumes.shape
    width = width or size_x
    # (B, z, y, x) -> (z x, B y): the plane that is summed comes first
    columns = volumes.permute(1, 3, 0, 2).reshape(size_z * size_x, batch * size_y)
    spectra = []
    for angle in angles_deg:
        waves = _waves(angle, (size_z, size_x), width, volumes)
        slices = (waves @ columns).reshape(2, width // 2 + 1, batch, size_y)
        # (k, B, y) -> (B, y, k)
        spectra.append(torch.fft.fft(torch.complex(slices[0], slices[1]).permute(1, 2, 0), dim=1))
    return torch.stack(spectra, dim=1)


def back_project(
    spectra: Tensor, angles_deg: Sequence[float], *, width: int, box: tuple[int, int, int], image_height: int
) -> Tensor:
    """Weighted back-projection.

    Parameters
    ----------
    spectra : Tensor
        `(B, T, image_height, width // 2 + 1)`, as from `project`.
    angles_deg : sequence of float
        Tilts `(T,)`, increasing.
    width, image_height : int
        Pixels of the images.
    box : tuple of int
        ``(z, y, x)`` of the reconstruction, about the centre of the images.

    Returns
    -------
    Tensor
        `(B, z, y, x)`. Without transfer function and noise, and with tilts that go all the way round, the volume.
    """
    size_z, size_y, size_x = box
    batch = len(spectra)
    weights = ramp(width, angles_deg).to(spectra.real)
    # A frequency stands for its opposite too, but for the first.
    double = torch.full((width // 2 + 1,), 2.0 / width, device=spectra.device)
    double[0] = 1.0 / width
    start = image_height // 2 - size_y // 2
    total = torch.zeros(size_z * size_x, batch * size_y, device=spectra.device)
    for tilt, angle in enumerate(angles_deg):
        rows = torch.fft.ifft(spectra[:, tilt], dim=1)[:, start : start + size_y] * (weights[tilt] * double)
        # (B, y, k) -> (k, B y)
        columns = rows.permute(2, 0, 1).reshape(width // 2 + 1, batch * size_y)
        waves = _waves(angle, (size_z, size_x), width, spectra.real)
        total += waves.T @ torch.cat([columns.real, columns.imag])
    return total.reshape(size_z, size_x, batch, size_y).permute(2, 0, 3, 1).contiguous()


def _waves(angle_deg: float, plane: tuple[int, int], width: int, like: Tensor) -> Tensor:
    """Real over imaginary part of ``exp(-2 pi i k u / width)``: `(2 (width // 2 + 1), z x)`."""
    angle = torch.deg2rad(torch.tensor(angle_deg, dtype=torch.float64))
    k = torch.arange(width // 2 + 1, dtype=torch.float64) * (-2 * torch.pi / width)
    along_z, along_x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in plane)
    of_z = torch.polar(torch.ones((), dtype=torch.float64), k[:, None] * (torch.sin(angle) * along_z))
    of_x = torch.polar(torch.ones((), dtype=torch.float64), k[:, None] * (torch.cos(angle) * along_x))
    of_z, of_x = of_z.to(torch.complex64).to(like.device), of_x.to(torch.complex64).to(like.device)
    waves = (of_z[:, :, None] * of_x[:, None, :]).reshape(len(k), -1)
    return torch.cat([waves.real, waves.imag])


def ramp(width: int, angles_deg: Sequence[float]) -> Tensor:
    """Weight `(T, width // 2 + 1)` of frequency ``k`` of each tilt: ``|k| / width`` times the angle that it stands for.

    The ramp is the transform of its kernel on the grid, cut to the image's width (Kak & Slaney 1988, chapter 3), which
    is not zero at ``k = 0``. The Nyquist frequency is left out: between pixels its phase is unknown.
    """
    angles = torch.deg2rad(torch.tensor(list(angles_deg), dtype=torch.float64))
    share = torch.gradient(angles)[0] if len(angles) > 1 else torch.full((1,), torch.pi, dtype=torch.float64)
    steps = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64)
    kernel = torch.where(steps % 2 != 0, -1 / (torch.pi * steps) ** 2, 0.0)
    kernel[0] = 0.25
    weights = torch.fft.rfft(kernel).real
    if width % 2 == 0:
        weights[-1] = 0.0
    weighted: Tensor = share[:, None] * weights
    return weighted


def noise_variance(filters: Tensor, angles_deg: Sequence[float], *, width: int) -> Tensor:
    """Variance of the reconstruction of white noise of variance 1 on every pixel of every image.

    Every tilt adds a field that is constant along the beam, so its variance is that of the filtered image.

    Parameters
    ----------
    filters : Tensor
        `(..., T, y, width // 2 + 1)`: what the spectra are multiplied by before `back_project`.
    angles_deg : sequence of float
        Tilts `(T,)`.
    width : int
        Pixels of the images along ``u``.

    Returns
    -------
    Tensor
        `(...)`.
    """
    gain = (filters.abs() * ramp(width, angles_deg).to(filters.device)[:, None, :]) ** 2
    gain[..., 1 : (width + 1) // 2] *= 2
    variance: Tensor = gain.sum(-1).mean(-1).sum(-1) / width
    return variance


def images_of(spectra: Tensor, *, width: int) -> Tensor:
    """Images `(..., y, u)` of spectra, with the centre at pixel ``width // 2``."""
    images: Tensor = torch.fft.irfft2(spectra, s=(spectra.shape[-2], width))
    return images.roll(width // 2, dims=-1)


def spectra_of(images: Tensor) -> Tensor:
    """Spectra of images `(..., y, u)`; the inverse of `images_of`."""
    spectra: Tensor = torch.fft.rfft2(images.roll(-(images.shape[-1] // 2), dims=-1))
    return spectra
