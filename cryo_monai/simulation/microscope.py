"""What the microscope does to an image, in Fourier space: contrast transfer, dose, and the missing wedge."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_frequencies(shape: tuple[int, ...], spacing: float) -> Tensor:
    """Squared spatial frequencies in 1/Å^2 on the grid of ``torch.fft.rfftn``, in float64.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)`` or ``(z, y, x)``.
    spacing : float
        Å per pixel or voxel.
    """
    total = torch.zeros((1,) * len(shape), dtype=torch.float64)
    for axis, size in enumerate(shape):
        last = axis == len(shape) - 1
        make = torch.fft.rfftfreq if last else torch.fft.fftfreq
        along = make(size, d=spacing, dtype=torch.float64) ** 2
        total = total + along.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return total


def electron_wavelength(voltage_kv: float) -> float:
    """Relativistic electron wavelength in Å (Reimer & Kohl 2008, eq. 2.12): 0.0197 Å at 300 kV."""
    volts = voltage_kv * 1e3
    return float(12.2643 / (volts + 0.97845e-6 * volts**2) ** 0.5)


def contrast_transfer(
    squared: Tensor,
    *,
    defocus_um: float | Tensor,
    voltage_kv: float = 300.0,
    spherical_aberration_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    phase_shift_deg: float = 0.0,
) -> Tensor:
    """Contrast transfer function, without envelope.

    ``-(sqrt(1 - A^2) sin chi + A cos chi)`` with ``chi = pi lambda dz s^2 - pi/2 Cs lambda^3 s^4 + phase shift``
    (Reimer & Kohl 2008, chapter 6). Underfocus is positive: density comes out dark (negative).

    Parameters
    ----------
    squared : Tensor
        Squared frequencies ``s^2`` in 1/Å^2, any shape; see `squared_frequencies`.
    defocus_um : float or Tensor
        Underfocus in µm; a tensor is broadcast against `squared`.
    voltage_kv, spherical_aberration_mm, phase_shift_deg : float
        Of the microscope and its phase plate.
    amplitude_contrast : float
        Fraction ``A``.

    Returns
    -------
    Tensor
        float64, as `squared` and `defocus_um` broadcast.
    """
    wavelength = electron_wavelength(voltage_kv)
    phase = torch.pi * wavelength * 1e4 * squared * defocus_um
    phase = phase - 0.5 * torch.pi * spherical_aberration_mm * 1e7 * wavelength**3 * squared**2
    phase = phase + torch.pi / 180 * phase_shift_deg
    transfer: Tensor = -((1 - amplitude_contrast**2) ** 0.5 * torch.sin(phase) + amplitude_contrast * torch.cos(phase))
    return transfer


def dose_damage(squared: Tensor, dose: Tensor, *, voltage_kv: float = 300.0) -> Tensor:
    """Fraction of an amplitude that is left after a dose (Grant & Grigorieff 2015).

    ``exp(-N / (2 Ne))`` with the critical dose ``Ne = 0.24499 s^-1.6649 + 2.8141`` at 300 kV and 0.8 times that at
    200 kV and below; in between, linear.

    Parameters
    ----------
    squared : Tensor
        Squared frequencies in 1/Å^2.
    dose : Tensor
        Electrons/Å^2, broadcast against `squared`.
    voltage_kv : float
        Acceleration voltage.
    """
    frequency = squared.sqrt().clamp_min(1e-6)
    critical = 0.24499 * frequency**-1.6649 + 2.8141
    scale = 0.8 + 0.2 * min(max((voltage_kv - 200) / 100, 0.0), 1.0)
    left: Tensor = torch.exp(-dose / (2 * scale * critical))
    return left


def missing_wedge_mask(box: tuple[int, int, int], *, max_tilt_deg: float, min_tilt_deg: float | None = None) -> Tensor:
    """Fourier coefficients that a single-axis tilt series covers: tilt axis y, beam along z.

    Parameters
    ----------
    box : tuple of int
        ``(z, y, x)`` voxels.
    max_tilt_deg : float
        Largest tilt; 90 covers everything.
    min_tilt_deg : float, optional
        Smallest tilt, ``-max_tilt_deg`` by default.

    Returns
    -------
    Tensor
        `(z, y, x // 2 + 1)`: 1 where measured, 0 in the wedge. The origin counts as measured.
    """
    lowest = -max_tilt_deg if min_tilt_deg is None else min_tilt_deg
    freq_z = torch.fft.fftfreq(box[0], dtype=torch.float64)[:, None, None]
    freq_x = torch.fft.rfftfreq(box[2], dtype=torch.float64)[None, None, :]
    # With x' = x cos + z sin, the image at a tilt holds the frequencies (kz, kx) = k (sin, cos).
    angle = torch.rad2deg(torch.atan2(freq_z, freq_x))
    covered = (angle <= max_tilt_deg + 1e-6) & (angle >= lowest - 1e-6)
    # On the plane kx = 0, and on the axis, a frequency and its opposite are one.
    covered |= (freq_x == 0) & (angle.abs() >= 90 - 1e-6) & (max(max_tilt_deg, -lowest) >= 90)
    covered[freq_z.flatten() == 0, :, 0] = True
    return covered.expand(box[0], box[1], box[2] // 2 + 1).to(torch.float32)
