"""Moving textured sprites: the second kind of generated motion.

A sprite is a lobed disc or ring with a pattern on it that moves with it. Its class says how many lobes it has, whether
it is filled, and how it moves.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

# Numbers of lobes, each with the polynomial (Chebyshev) that makes of a cosine that of so many times the angle.
LOBES = {
    2: (-1.0, 0.0, 2.0, 0.0, 0.0, 0.0),
    3: (0.0, -3.0, 0.0, 4.0, 0.0, 0.0),
    4: (1.0, 0.0, -8.0, 0.0, 8.0, 0.0),
    5: (0.0, 5.0, 0.0, -20.0, 0.0, 16.0),
}
FILLINGS = ("disc", "ring")
# (y, x) displacement, rotation and growth per unit of time; time runs from -1 to 1.
MOTIONS = {
    "still": (0, 0, 0, 0),
    "down": (1, 0, 0, 0),
    "up": (-1, 0, 0, 0),
    "right": (0, 1, 0, 0),
    "left": (0, -1, 0, 0),
    "turning": (0, 0, 1, 0),
    "counter_turning": (0, 0, -1, 0),
    "growing": (0, 0, 0, 1),
    "shrinking": (0, 0, 0, -1),
}

SPRITE_CLASSES = tuple(
    f"{lobes}_lobed_{filling}_{motion}" for lobes, filling, motion in itertools.product(LOBES, FILLINGS, MOTIONS)
)
NUM_PARAMETERS = 10


def moving_sprites(parameters: Tensor, classes: Tensor, clip_size: tuple[int, int, int]) -> Tensor:
    """Draw one sprite per clip, on nothing.

    Parameters
    ----------
    parameters : Tensor
        `(B, NUM_PARAMETERS)` between 0 and 1: place (2), radius, depth of the lobes, first angle, speed, and
        wavelength, direction, phase and strength of the pattern.
    classes : Tensor
        `(B,)` indices into `SPRITE_CLASSES`.
    clip_size : tuple of int
        ``(D, H, W)``.

    Returns
    -------
    Tensor
        `(B, D, H, W)`, 0 outside the sprite, up to 1.6 inside. Height and width count from -1 to 1.
    """
    depth, height, width = clip_size
    device = parameters.device
    polynomial, ring, motion = _factors(classes)
    time, along_y, along_x = (_centred(size, device) for size in (depth, height, width))
    place_y, place_x, radius, lobe_depth, first, speed, wavelength, direction, phase, strength = parameters[
        :, :, None
    ].unbind(1)
    move_y, move_x, turn, growth = motion[:, :, None].unbind(1)
    step = (0.25 + 0.3 * speed) * time
    size = 2 ** (1.6 * growth * step) * (0.3 + 0.25 * radius)
    turned = 2 * torch.pi * first + 2.5 * turn * step
    # All `(B, D)` so far. Offsets from the centre of the sprite:
    offset_y = (along_y - (0.7 * place_y + move_y * step - 0.35)[..., None])[..., None]
    offset_x = (along_x - (0.7 * place_x + move_x * step - 0.35)[..., None])[..., None, :]
    size, turned = size[..., None, None], turned[..., None, None]
    lobe_depth = (0.25 + 0.2 * lobe_depth)[..., None, None]
    sharpness = min(height, width) / 1.5  # the edge is about a pixel wide
    distance = ((offset_y * sharpness) ** 2 + (offset_x * sharpness) ** 2).sqrt_().clamp_(min=1e-6)
    # Cosine of the angle from the first lobe, and a polynomial of it, the highest power first.
    cosine = offset_y * (sharpness * torch.sin(turned)) + offset_x * (sharpness * torch.cos(turned))
    cosine /= distance
    constant, *factors = polynomial[..., None, None, None].unbind(1)
    ripples = torch.zeros_like(cosine)
    for factor in reversed(factors):
        ripples.add_(factor).mul_(cosine)
    ripples += constant
    edge = ripples.mul_(lobe_depth).add_(1).mul_(sharpness * size)
    inside = (edge - distance).sigmoid_()
    hollow = torch.nonzero(ring)[:, 0]
    hole = edge.index_select(0, hollow).mul_(0.55).sub_(distance.index_select(0, hollow)).sigmoid_()
    inside.index_add_(0, hollow, hole, alpha=-1)
    # The pattern is a plane wave that turns and grows with the sprite.
    heading = turned + 2 * torch.pi * direction[..., None, None]
    waves = (3 + 5 * wavelength)[..., None, None] / size
    along = offset_y * (waves * torch.sin(heading)) + 2 * torch.pi * phase[..., None, None]
    pattern = (along + offset_x * (waves * torch.cos(heading))).cos_()
    return pattern.mul_(0.6 * strength[..., None, None]).add_(1).mul_(inside)


def _factors(classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return polynomials of the lobes `(B, 6)`, whether rings `(B,)`, and motions `(B, 4)`, of classes."""
    device = classes.device
    motions = torch.tensor(list(MOTIONS.values()), dtype=torch.float32, device=device)
    lobes = torch.tensor(list(LOBES.values()), device=device)
    rest = classes // len(MOTIONS)
    return lobes[rest // len(FILLINGS)], rest % len(FILLINGS), motions[classes % len(MOTIONS)]


def _centred(size: int, device: torch.device) -> Tensor:
    """Centres of pixels between -1 and 1."""
    return (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
