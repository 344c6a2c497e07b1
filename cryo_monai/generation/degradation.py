"""What becomes of generated signals before a network sees them: shapes, transfer and wedge, noise.

Added noise decides: without it the tasks are learnt, and help nothing (docs/initialisation.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.generation.counters import complex_noise
from cryo_monai.simulation.microscope import contrast_transfer

NUM_PARAMETERS = 14
_NOISY, _NOISE_SD, _CUT, _TRANSFERRED = 3, 4, 8, 10  # columns; those before are of `shaped`


@dataclass(frozen=True)
class Degradation:
    """How often and how much signals are degraded.

    Attributes
    ----------
    noise_prob : float
        Share of clips with added noise.
    noise_sd : tuple of float
        Smallest and largest standard deviation of the noise over that of the signal, drawn evenly on a logarithmic
        scale.
    shape_prob : float
        Share of clips whose signals are turned into nearly binary shapes first.
    wedge_prob : float
        Share of particles with a missing wedge, of tilts up to 45 to 70 degrees.
    transfer_prob : float
        Share of particles with a contrast transfer function, of 2 to 6 µm underfocus at 300 kV, phases flipped or not.

    Raises
    ------
    InputError
        For probabilities outside 0 to 1 and impossible ranges.
    """

    noise_prob: float = 0.7
    noise_sd: tuple[float, float] = (0.2, 3.0)
    shape_prob: float = 0.3
    wedge_prob: float = 0.5
    transfer_prob: float = 0.4

    def __post_init__(self) -> None:
        for name in ("noise_prob", "shape_prob", "wedge_prob", "transfer_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: {getattr(self, name)} must lie between 0 and 1")
        if len(self.noise_sd) != 2 or not 0 < self.noise_sd[0] <= self.noise_sd[1]:
            raise InputError(f"noise_sd: {list(self.noise_sd)} must be two increasing numbers above 0")


def eased(parameters: Tensor, share: Tensor) -> Tensor:
    """Make degradations as much rarer, and the loudest noise as much quieter, as a share `(B,)` of 0 to 1 says.

    Acts on what was drawn, `(B, NUM_PARAMETERS)`: a number u below a probability p is one below ``p * share`` when it
    is divided by the share.
    """
    eased = parameters.clone()
    for column in (_NOISY, _CUT, _TRANSFERRED):
        eased[:, column] /= share.clamp(min=1e-6)
    eased[:, _NOISE_SD] *= share
    return eased


def shaped(signals: Tensor, parameters: Tensor, prob: float) -> Tensor:
    """Turn some signals `(B, D, H, W)` into nearly binary shapes, in place.

    ``parameters`` `(B, 3)` between 0 and 1 decide which, at what threshold (0.5 standard deviations below the mean to
    1.5 above), and how steeply.
    """
    rows = torch.nonzero(parameters[:, 0] < prob)[:, 0]
    level, steepness = 2 * parameters[rows, 1] - 0.5, 2 + 8 * parameters[rows, 2]
    chosen = signals.index_select(0, rows)
    deviation = _centre(chosen)
    slope, shift = steepness / deviation, level * steepness
    signals[rows] = chosen.mul_(slope[:, None, None, None]).sub_(shift[:, None, None, None]).sigmoid_()
    return signals


def degrade(signals: Tensor, keys: Tensor, parameters: Tensor, extents: Tensor, options: Degradation) -> Tensor:
    """Image particles, add noise, and turn some signals dark.

    Parameters
    ----------
    signals : Tensor
        `(B, D, H, W)`.
    keys : Tensor
        `(B, 2)` of `sample_keys`.
    parameters : Tensor
        `(B, NUM_PARAMETERS)` between 0 and 1, the first three of which are those of `shaped`.
    extents : Tensor
        `(B,)`: edge in Å of the cube that a clip of a particle shows; 0 for what is not a particle.
    options : Degradation
        How much.

    Returns
    -------
    Tensor
        `(B, D, H, W)`: mean 0; the signal has variance 1, positive or negative contrast.
    """
    clip_size = signals.shape[1:]
    is_cut = (extents > 0) & (parameters[:, _CUT] < options.wedge_prob)
    is_transferred = (extents > 0) & (parameters[:, _TRANSFERRED] < options.transfer_prob)
    is_imaged = is_cut | is_transferred
    is_noisy = parameters[:, _NOISY] < options.noise_prob
    # Clips with neither, noise alone, both, and imaged ones without noise: all that have something lie side by side.
    kind = torch.where(is_noisy, torch.where(is_imaged, 2, 1), torch.where(is_imaged, 3, 0))
    order = kind.argsort(stable=True)
    neither, noise_alone, both, _ = torch.bincount(kind, minlength=4).tolist()
    plain, noisy = slice(0, neither + noise_alone), slice(neither, neither + noise_alone + both)
    imaged = slice(plain.stop, len(kind))
    signals, parameters = signals.index_select(0, order), parameters[order]
    _, sd, whiteness, blur, dark, _, tilt, _, defocus, flipped, noise_cut = parameters[:, _NOISY:].unbind(1)
    sign = torch.where(dark < 0.5, -1.0, 1.0)
    cover = _wedge(is_cut[order], clip_size, tilt)
    # Tomograms have no noise in the wedge either; what is wrong with the detector or the tilts may leave some.
    left = torch.where(noise_cut[noisy, None, None] < 0.7, cover[noisy], 1.0)
    low, high = options.noise_sd
    power = _noise_power(low * (high / low) ** sd[noisy], whiteness[noisy], blur[noisy], left, clip_size)
    spectrum = torch.empty(len(kind) - neither, *power.shape[1:], dtype=torch.complex64, device=signals.device)
    complex_noise(keys[order[noisy]], power, stream=2, out=spectrum[: noise_alone + both])
    signals[plain] *= (sign[plain] / _centre(signals[plain]))[:, None, None, None]
    if imaged.start < imaged.stop:
        filters = cover[imaged, : clip_size[0] // 2 + 1, None].expand(-1, -1, clip_size[1] // 2 + 1, -1).contiguous()
        rows = torch.nonzero(is_transferred[order[imaged]])[:, 0]
        seen = rows + imaged.start
        filters[rows] *= _transfer(extents[order[seen]], clip_size, defocus[seen], flipped[seen])
        filtered, deviation = _filtered(signals[imaged], filters)
        # Real and imaginary parts lie side by side; in one pass.
        own, scale = torch.view_as_real(filtered).flatten(1), (sign[imaged] / deviation)[:, None]
        there = torch.view_as_real(spectrum).flatten(1)[noise_alone:]
        there[:both].addcmul_(own[:both], scale[:both])
        torch.mul(own[both:], scale[both:], out=there[both:])
    spectrum[:, 0, 0, 0] = 0
    made = torch.fft.irfftn(spectrum, s=clip_size, dim=(1, 2, 3))
    signals[neither : plain.stop] += made[:noise_alone]
    signals[imaged] = made[noise_alone:]
    return signals.index_select(0, order.argsort())


def _noise_power(level: Tensor, whiteness: Tensor, blur: Tensor, cover: Tensor, clip_size: torch.Size) -> Tensor:
    """Return variances `(B, D, H, W // 2 + 1)` of the parts of coefficients of noise.

    It is white to a share of its power and blurred for the rest; ``cover`` `(B, D, W // 2 + 1)` says what is left of
    it, of which the standard deviation is ``level``.
    """
    depth, height, width = clip_size
    counts = _counts(width, level.device)
    profiles = []
    for axis, along in enumerate(_frequencies(clip_size, level.device)):
        profile = torch.exp((-(along**2) / (0.04 + 0.16 * blur[:, None]) ** 2).clamp(min=-20))
        weights = counts if axis == 2 else torch.ones_like(along)
        profiles.append(profile * (weights.sum() / (profile * weights).sum(1, keepdim=True)))
    along_z, along_y, along_x = profiles
    along_z, white = along_z * (1 - whiteness)[:, None], whiteness[:, None, None]
    # Along y, the white and the blurred share both have a mean of 1.
    kept = ((along_z[:, :, None] * along_x[:, None] + white) * (cover * counts)).sum((1, 2)) / (depth * width)
    kept -= (along_z[:, 0] * along_y[:, 0] * along_x[:, 0] + whiteness) / clip_size.numel()  # the mean stays 0
    unit = (level**2 / kept.clamp(min=1e-4) * (clip_size.numel() / 2))[:, None, None]
    # The inverse transform takes the mean of a coefficient and its mirror image where it stands for one only.
    unit = unit * (2 / counts)
    blurred = along_y[:, :, None] * (along_x[:, None] * unit)
    white = (white * unit).expand(-1, height, -1)
    power = (along_z[:, :, None] * blurred.flatten(1)[:, None]).add_(white.flatten(1)[:, None])
    return power.view(-1, depth, height, width // 2 + 1).mul_(cover[:, :, None])


def _filtered(signals: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return spectra of filtered signals, without their means, and the standard deviations `(B,)` of these signals.

    ``filters`` `(B, D // 2 + 1, H // 2 + 1, W // 2 + 1)` are the same for opposite frequencies along z and y.
    """
    clip_size = signals.shape[1:]
    spectrum: Tensor = torch.fft.rfftn(signals, dim=(1, 2, 3))
    along_z, along_y, _ = (along.abs().round().long() for along in _cycles(clip_size, signals.device))
    spectrum *= filters.index_select(1, along_z).index_select(2, along_y)
    spectrum[:, 0, 0, 0] = 0
    numbers = torch.view_as_real(spectrum).flatten(1)
    weights = _counts(clip_size[2], signals.device)[:, None].expand(*spectrum.shape[1:], 2).flatten()
    deviation = ((numbers * numbers) @ weights).sqrt() / clip_size.numel()  # Parseval
    return spectrum, deviation.clamp(min=1e-12)


def _wedge(cut_off: Tensor, clip_size: torch.Size, tilt: Tensor) -> Tensor:
    """Fourier coefficients `(B, D, W // 2 + 1)` that tilts about y up to 45 to 70 degrees cover; the beam is z."""
    along_z, _, along_x = _cycles(clip_size, tilt.device)  # edges are all equal
    steepest = torch.tan(torch.deg2rad(45 + 25 * tilt))[:, None, None]
    covered = along_z.abs()[:, None] <= along_x * steepest + 1e-6
    return (covered | ~cut_off[:, None, None]).float()


def _transfer(extents: Tensor, clip_size: torch.Size, defocus: Tensor, flipped: Tensor) -> Tensor:
    """Contrast transfer `(B, D // 2 + 1, H // 2 + 1, W // 2 + 1)`; half have flipped phases. Density is bright."""
    along_z, along_y, along_x = (torch.arange(size // 2 + 1, device=extents.device) for size in clip_size)
    cycles = along_z[:, None, None] ** 2 + along_y[:, None] ** 2 + along_x**2
    squared = cycles / extents[:, None, None, None] ** 2
    transfer = contrast_transfer(squared, defocus_um=(2 + 4 * defocus)[:, None, None, None])
    return torch.where(flipped[:, None, None, None] < 0.5, transfer.abs(), -transfer)


def _cycles(clip_size: torch.Size, device: torch.device) -> list[Tensor]:
    """Frequencies along each axis in cycles per edge of the clip, of the grid of ``rfftn``."""
    return [along * size for along, size in zip(_frequencies(clip_size, device), clip_size, strict=True)]


def _frequencies(clip_size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies along each axis in cycles per voxel, of the grid of ``rfftn``."""
    depth, height, width = clip_size
    make, last = torch.fft.fftfreq, torch.fft.rfftfreq
    return make(depth, device=device), make(height, device=device), last(width, device=device)


def _counts(width: int, device: torch.device) -> Tensor:
    """Return how many coefficients each column `(W // 2 + 1,)` of a half-spectrum stands for; the width is even."""
    counts = torch.full((width // 2 + 1,), 2.0, device=device)
    counts[[0, -1]] = 1.0
    return counts


def _centre(signals: Tensor) -> Tensor:
    """Subtract the mean of every signal, in place, and return the standard deviations `(B,)`."""
    flat = signals.flatten(1)  # the same memory
    flat -= flat.mean(1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return (norm / math.sqrt(flat.shape[1])).clamp(min=1e-10)
