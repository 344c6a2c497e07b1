"""From scenes to what a tomogram shows of them: signal and noise, in two modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryo_monai.simulation.microscope import (
    contrast_transfer,
    dose_damage,
    missing_wedge_mask,
    squared_frequencies,
)
from cryo_monai.simulation.projection import back_project, noise_variance, project, spectra_of
from cryo_monai.simulation.settings import SimulationSettings


@dataclass(frozen=True)
class Imaged:
    """Reconstructions before they are added up.

    Attributes
    ----------
    signal : Tensor
        `(B, z, y, x)`: of the noise-free images.
    noise : Tensor or None
        `(B, z, y, x)`: of the noise alone; none when the SNR is infinite.
    noise_variance : Tensor
        `(B,)`: what the variance of `noise` over the box is on average.
    """

    signal: Tensor
    noise: Tensor | None
    noise_variance: Tensor


def add_up(imaged: Imaged, *, snr: float | None) -> tuple[Tensor, Tensor | None]:
    """Volumes `(B, z, y, x)` of signal and noise, and the SNR `(B,)` that they turned out to have, if they have noise.

    Parameters
    ----------
    imaged : Imaged
        Signal and noise.
    snr : float or None
        The noise is brought to variance 1 on average, and the signal, less its mean, to this variance (to 1 without
        noise), so that mean and variance of a volume say nothing of its class. None: both are added as they are.
    """
    signal, noise = imaged.signal, imaged.noise
    if snr is not None:
        centred = signal - signal.mean((1, 2, 3), keepdim=True)
        power = centred.var((1, 2, 3), keepdim=True)
        signal = centred * ((1.0 if noise is None else snr) / power).sqrt()
        if noise is not None:
            noise = noise / imaged.noise_variance.sqrt()[:, None, None, None]
    if noise is None:
        return signal, None
    return signal + noise, signal.var((1, 2, 3)) / noise.var((1, 2, 3))


@dataclass(frozen=True)
class Exposure:
    """What chance decides about one tilt series: see `draw_exposure`."""

    defocus_um: np.ndarray
    shifts: np.ndarray


def draw_exposure(settings: SimulationSettings, num_tilts: int, rng: np.random.Generator) -> Exposure:
    """Draw the defocus of every tilt `(T,)` in µm, and the shift `(T, 2)` in Å, ``(y, u)``, that alignment left."""
    mean = settings.defocus_um + settings.defocus_spread_um * rng.uniform(-1, 1)
    defocus = mean + settings.defocus_tilt_um * rng.standard_normal(num_tilts)
    return Exposure(defocus, settings.alignment_error * rng.standard_normal((num_tilts, 2)))


class TiltSeriesMicroscope:
    """Projections at every tilt, contrast transfer, fading, noise, and weighted back-projection.

    Parameters
    ----------
    settings : SimulationSettings
        Tilts, optics, dose.
    scene : tuple of int
        ``(z, y, x)`` of what is imaged, in voxels.
    box : tuple of int
        ``(z, y, x)`` of what is reconstructed, about the same centre.
    device : str or torch.device
        Where to compute.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        scene: tuple[int, int, int],
        box: tuple[int, int, int],
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings, self.box, self.height = settings, box, scene[1]
        self.tilts = settings.tilt_series()
        # Wide enough that nothing which projects beyond one side comes in at the other where it would be seen.
        reach = (np.hypot(scene[0], scene[2]) + np.hypot(box[0], box[2])) / 2
        self.width = max(scene[2], 2 * int(np.ceil(min(reach, np.hypot(scene[0], scene[2])) / 2)))
        self.device = torch.device(device)
        self._squared = squared_frequencies((self.height, self.width), settings.voxel_size)
        doses = torch.tensor(self.tilts.doses, dtype=torch.float64)[:, None, None]
        # (T, y, k)
        self._faded = dose_damage(self._squared, doses, voltage_kv=settings.voltage_kv)
        weights = torch.ones_like(self._faded)
        if settings.dose_weighting:
            # Normalised as by Grant & Grigorieff (2015): the power of the noise stays as it was.
            weights = self._faded / (self._faded**2).mean(0, keepdim=True).sqrt()
        self._weights = weights.to(torch.float32).to(self.device)
        self._noise_variance = self._expected_noise_variance(scene).to(torch.float32)

    @property
    def num_tilts(self) -> int:
        """Images per series."""
        return len(self.tilts.angles_deg)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the white noise of one series: `(T, y, u)`."""
        return (self.num_tilts, self.height, self.width)

    def _expected_noise_variance(self, scene: tuple[int, int, int]) -> Tensor:
        """Variance within a box, on average: that of the noise less that of the box's mean."""
        margins = [n // 2 - m // 2 for n, m in zip(scene, self.box, strict=True)]
        inside = tuple(slice(start, start + m) for start, m in zip(margins, self.box, strict=True))
        average = torch.zeros((1, *scene), device=self.device)
        average[0][inside] = 1 / float(np.prod(self.box))
        spectra = project(average, self.tilts.angles_deg, width=self.width)[0]
        whole, of_mean = (
            noise_variance(filters, self.tilts.angles_deg, width=self.width)
            for filters in (self._weights, self._weights * spectra)
        )
        return whole - of_mean

    def transfer(self, exposures: Sequence[Exposure]) -> Tensor:
        """Contrast transfer `(B, T, y, k)` of every image."""
        s = self.settings
        defocus = torch.as_tensor(np.stack([e.defocus_um for e in exposures]))[:, :, None, None]
        transfer = contrast_transfer(
            self._squared.to(torch.float32).to(self.device),
            defocus_um=defocus.to(torch.float32).to(self.device),
            voltage_kv=s.voltage_kv,
            spherical_aberration_mm=s.spherical_aberration_mm,
            amplitude_contrast=s.amplitude_contrast,
            phase_shift_deg=s.phase_shift_deg,
        )
        return transfer

    def noise_free_images(self, scenes: Tensor, exposures: Sequence[Exposure]) -> Tensor:
        """Spectra `(B, T, y, k)` of the images before noise: projected, faded, shifted, transferred."""
        spectra = project(scenes, self.tilts.angles_deg, width=self.width)
        shifts = torch.as_tensor(np.stack([e.shifts for e in exposures]), dtype=torch.float32)
        shifts = (shifts / self.settings.voxel_size).to(self.device)
        along_y = torch.fft.fftfreq(self.height, device=self.device)
        along_u = torch.fft.rfftfreq(self.width, device=self.device)
        phase = shifts[..., 0, None, None] * along_y[:, None] + shifts[..., 1, None, None] * along_u
        moved = torch.polar(torch.ones_like(phase), -2 * torch.pi * phase)
        faded = self._faded.to(torch.float32).to(self.device)
        return spectra * moved * (self.transfer(exposures) * faded)

    def reconstruct(self, spectra: Tensor, exposures: Sequence[Exposure]) -> Tensor:
        """Weighted back-projection `(B, z, y, x)` of images, with dose weights and CTF correction."""
        spectra = spectra * self._weights
        if self.settings.ctf_correction == "phase_flip":
            # All phases as at low frequencies: density stays dark.
            spectra = spectra * -torch.sign(self.transfer(exposures))
        return back_project(spectra, self.tilts.angles_deg, width=self.width, box=self.box, image_height=self.height)

    def image(self, scenes: Tensor, exposures: Sequence[Exposure], white: Tensor | None) -> Imaged:
        """Signal and noise of scenes `(B, z, y, x)`; `white` is normal noise `(B, *noise_shape)`, or none."""
        signal = self.reconstruct(self.noise_free_images(scenes, exposures), exposures)
        noise = None if white is None else self.reconstruct(spectra_of(white), exposures)
        return Imaged(signal, noise, self._noise_variance.expand(len(scenes)))


class XulabMicroscope:
    """One 3-D contrast transfer function and a hard wedge, as in the simulations of the Xu lab (Pei et al. 2016).

    The structure of these steps, and their constants, follow the public description and code of that family: low-pass
    at half the Nyquist frequency with a Gaussian edge of two shells, sine term only, Gaussian envelope, noise half
    before and half after the transfer function, the later half through a wide Gaussian, everything low-passed again
    and cut by wedge and sphere.

    Parameters
    ----------
    settings : SimulationSettings
        Optics, wedge and SNR.
    box : tuple of int
        ``(z, y, x)``; a cube.
    device : str or torch.device
        Where to compute.
    """

    def __init__(
        self, settings: SimulationSettings, box: tuple[int, int, int], device: str | torch.device = "cpu"
    ) -> None:
        self.settings, self.box = settings, box
        size = box[0]
        squared = squared_frequencies(box, settings.voxel_size)
        shells = squared.sqrt() * settings.voxel_size * size
        transfer = contrast_transfer(
            squared,
            defocus_um=settings.defocus_um,
            voltage_kv=settings.voltage_kv,
            spherical_aberration_mm=settings.spherical_aberration_mm,
            amplitude_contrast=0.0,
        )
        transfer = transfer * torch.exp(-0.5 * squared / (settings.envelope * 0.5 / settings.voxel_size) ** 2)
        wedge = missing_wedge_mask(box, max_tilt_deg=settings.max_tilt_deg) * (shells <= size / 2)
        self._transfer = transfer.to(torch.float32).to(device)
        self._wedge = wedge.to(torch.float32).to(device)
        self._low_pass = _soft_edge(shells, size // 4, 2.0).to(torch.float32).to(device)
        self._late = _soft_edge(shells, 1, 0.2 * size).to(torch.float32).to(device)
        # Columns of the half-spectrum that stand for two coefficients.
        double = torch.full((size // 2 + 1,), 2.0)
        double[0] = double[-1] = 1.0
        self._share = (double / size**3).to(device)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the white noise of one volume: before and after the transfer function."""
        return (2, *self.box)

    def image(self, scenes: Tensor, white: Tensor | None) -> Imaged:
        """Signal and noise of scenes `(B, z, y, x)`; `white` is normal noise `(B, *noise_shape)`, or none."""
        both = self._low_pass * self._low_pass * self._transfer * self._wedge
        signal = self._filtered(scenes, both)
        snr = self.settings.snr
        # White noise that has, after transfer and wedge, the variance that the scene has after them, over the SNR.
        through = self._transfer * self._wedge
        variance = self._filtered(scenes, through).var((1, 2, 3)) / ((through**2) * self._share).sum() / snr
        early = 0.5**0.5 * self._low_pass * through
        late = 0.5**0.5 * self._late * self._low_pass * self._wedge
        expected = variance * ((early**2 + late**2) * self._share).sum()
        noise = None
        if white is not None:
            noise = self._filtered(white[:, 0], early) + self._filtered(white[:, 1], late)
            noise = noise * variance.sqrt()[:, None, None, None]
        return Imaged(signal, noise, expected)

    @staticmethod
    def _filtered(volumes: Tensor, filters: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(volumes, dim=(1, 2, 3)) * filters
        filtered: Tensor = torch.fft.irfftn(spectrum, s=volumes.shape[1:], dim=(1, 2, 3))
        return filtered


def _soft_edge(shells: Tensor, radius: float, width: float) -> Tensor:
    """1 up to a radius, then a Gaussian that is cut off at exp(-2)."""
    edge = torch.exp(-(((shells - radius).clamp_min(0) / width) ** 2))
    return torch.where(edge < float(np.exp(-2)), 0.0, edge)
