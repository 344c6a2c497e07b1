"""Evolving noise fields: the first kind of generated motion.

A field is Gaussian noise of three octaves whose amplitude halves from one to the next, as in video Perlin noise
(Kataoka et al., WACV 2022), but made in the Fourier domain of space and time, so that drift and rate of change are
exact. Its class says its spatial scale, how much longer its structures are than wide, how fast they change, and where
they drift.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cryo_monai.generation.counters import complex_noise

# Wavelength of the coarsest octave over the edge of a clip.
SCALES = {"coarse": 1 / 2, "medium": 1 / 4, "fine": 1 / 8}
# Length of structures over their width.
ANISOTROPIES = {"round": 1.0, "oval": 2.25, "long": 5.0}
# Changes over the length of a clip: the standard deviation of temporal frequencies.
RATES = {"still": 0.2, "slow": 1.0, "fast": 3.5}
# Direction (y, x) of the drift.
DRIFTS = {"stays": (0, 0), "down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}

FIELD_CLASSES = tuple("_".join(names) for names in itertools.product(SCALES, ANISOTROPIES, RATES, DRIFTS))
NUM_PARAMETERS = 3
_PERSISTENCE = 0.5
_OCTAVES = 3


def noise_fields(keys: Tensor, parameters: Tensor, classes: Tensor, clip_size: tuple[int, int, int]) -> Tensor:
    """Make noise fields.

    Parameters
    ----------
    keys : Tensor
        `(B, 2)` of `sample_keys`.
    parameters : Tensor
        `(B, NUM_PARAMETERS)` between 0 and 1: exact scale, orientation, speed of the drift.
    classes : Tensor
        `(B,)` indices into `FIELD_CLASSES`.
    clip_size : tuple of int
        ``(D, H, W)``.

    Returns
    -------
    Tensor
        `(B, D, H, W)`; they go on at the other side of every edge.
    """
    depth, height, width = clip_size
    device = keys.device
    scale, anisotropy, rate, drift = _factors(classes)
    # Half an octave between a scale and the next is left out.
    wavelength = scale * 2 ** (0.5 * parameters[:, 0] - 0.25)
    angle = torch.pi * parameters[:, 1]
    speed = 0.2 + 0.3 * parameters[:, 2]
    # Cycles per edge of the clip.
    along_y = (torch.fft.fftfreq(height, device=device) * height)[None, :, None]
    along_x = (torch.fft.rfftfreq(width, device=device) * width)[None, None, :]
    along_t = (torch.fft.fftfreq(depth, device=device) * depth)[None, :, None, None]
    power = _octaves(along_y, along_x, wavelength, angle, anisotropy)
    power[:, :, 0] *= 2  # the inverse transform takes the mean of a coefficient there and its mirror image
    moved = along_y * drift[:, 0, None, None] + along_x * drift[:, 1, None, None]
    # Over the depth, so that frequencies wrap at 1; `spread` is the share of each in the power.
    distance = along_t / depth + (moved * (speed / depth)[:, None, None])[:, None]
    distance -= torch.round(distance)
    spread = distance.square_().mul_(-((depth / rate[:, None, None, None]) ** 2)).clamp_(min=-60).exp_()
    spread *= (power / spread.sum(1))[:, None]
    spectrum = complex_noise(keys, spread, stream=1)
    fields: Tensor = torch.fft.irfftn(spectrum, s=clip_size, dim=(1, 2, 3))
    return fields


def _factors(classes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scale, anisotropy and rate `(B,)`, and drift `(B, 2)`, of classes."""
    kinds = [torch.tensor(list(kind.values()), device=classes.device) for kind in (SCALES, ANISOTROPIES, RATES)]
    drifts = torch.tensor(list(DRIFTS.values()), dtype=torch.float32, device=classes.device)
    rest, drift = classes // len(DRIFTS), drifts[classes % len(DRIFTS)]
    rest, rate = rest // len(RATES), kinds[2][rest % len(RATES)]
    return kinds[0][rest // len(ANISOTROPIES)], kinds[1][rest % len(ANISOTROPIES)], rate, drift


def _octaves(along_y: Tensor, along_x: Tensor, wavelength: Tensor, angle: Tensor, anisotropy: Tensor) -> Tensor:
    """Power `(B, H, W // 2 + 1)` of spatial frequencies, in bands about 1, 2 and 4 over the wavelength."""
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    stretch = anisotropy.sqrt()[:, None, None]
    squared = ((cos * along_y + sin * along_x) * stretch) ** 2 + ((cos * along_x - sin * along_y) / stretch) ** 2
    relative = squared.sqrt() * wavelength[:, None, None]
    power = torch.zeros_like(relative)
    for octave in range(_OCTAVES):
        band = torch.exp((-0.5 * ((relative / 2**octave - 1) / 0.3) ** 2).clamp(min=-30))
        # The bands' areas grow fourfold from octave to octave.
        power += (_PERSISTENCE**2 / 4) ** octave * band
    return power
