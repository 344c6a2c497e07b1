"""What the microscope does to a subtomogram, in Fourier space: contrast transfer and the missing wedge."""

from __future__ import annotations

import torch
from torch import Tensor


def frequency_grid(box: tuple[int, int, int], voxel_size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Spatial frequencies ``(z, y, x)`` in 1/Å, broadcastable to the `(z, y, x // 2 + 1)` of ``torch.fft.rfftn``."""
    size_z, size_y, size_x = box
    along_z = torch.fft.fftfreq(size_z, d=voxel_size, dtype=torch.float64)
    along_y = torch.fft.fftfreq(size_y, d=voxel_size, dtype=torch.float64)
    along_x = torch.fft.rfftfreq(size_x, d=voxel_size, dtype=torch.float64)
    return along_z[:, None, None], along_y[None, :, None], along_x[None, None, :]


def electron_wavelength(voltage_kv: float) -> float:
    """Relativistic electron wavelength in Å (Reimer & Kohl 2008, eq. 2.12): 0.0197 Å at 300 kV."""
    volts = voltage_kv * 1e3
    return float(12.2643 / (volts + 0.97845e-6 * volts**2) ** 0.5)


def ctf_3d(
    box: tuple[int, int, int],
    voxel_size: float,
    *,
    defocus_um: float,
    voltage_kv: float = 300.0,
    spherical_aberration_mm: float = 2.0,
    amplitude_contrast: float = 0.07,
    envelope: float = 0.4,
) -> Tensor:
    """Rotationally symmetric contrast transfer function on the grid of ``torch.fft.rfftn``.

    ``-(sqrt(1 - A^2) sin chi + A cos chi)`` with ``chi = pi lambda dz s^2 - pi/2 Cs lambda^3 s^4``, times a Gaussian
    envelope (Reimer & Kohl 2008, chapter 6). Underfocus is positive: density comes out dark (negative).

    Parameters
    ----------
    box : tuple of int
        ``(z, y, x)`` voxels.
    voxel_size : float
        Å.
    defocus_um : float
        Underfocus in µm.
    voltage_kv, spherical_aberration_mm : float
        Defaults are those of the Xu-lab simulations.
    amplitude_contrast : float
        Fraction ``A``.
    envelope : float
        Standard deviation of the envelope in units of the Nyquist frequency.

    Returns
    -------
    Tensor
        `(z, y, x // 2 + 1)`, float32.
    """
    freq_z, freq_y, freq_x = frequency_grid(box, voxel_size)
    squared = freq_z**2 + freq_y**2 + freq_x**2
    wavelength = electron_wavelength(voltage_kv)
    phase = torch.pi * wavelength * defocus_um * 1e4 * squared
    phase -= 0.5 * torch.pi * spherical_aberration_mm * 1e7 * wavelength**3 * squared**2
    transfer = -((1 - amplitude_contrast**2) ** 0.5 * torch.sin(phase) + amplitude_contrast * torch.cos(phase))
    damping = torch.exp(-0.5 * squared / (envelope * 0.5 / voxel_size) ** 2)
    damped: Tensor = (transfer * damping).to(torch.float32)
    return damped


def missing_wedge_mask(box: tuple[int, int, int], *, max_tilt_deg: float) -> Tensor:
    """Fourier coefficients that a single-axis tilt series covers: tilt axis y, beam along z.

    Parameters
    ----------
    box : tuple of int
        ``(z, y, x)`` voxels.
    max_tilt_deg : float
        Tilts run from ``-max_tilt_deg`` to ``+max_tilt_deg``; 90 covers everything.

    Returns
    -------
    Tensor
        `(z, y, x // 2 + 1)`: 1 where measured, 0 in the wedge. The origin counts as measured.
    """
    freq_z, _, freq_x = frequency_grid(box, 1.0)
    angle = torch.rad2deg(torch.atan2(freq_z.abs(), freq_x.abs()))
    covered = (angle <= max_tilt_deg + 1e-6).expand(box[0], box[1], box[2] // 2 + 1)
    return covered.to(torch.float32)
