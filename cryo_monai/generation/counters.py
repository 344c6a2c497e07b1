"""Random numbers by counting: each a hash of (key, stream, position), the same on every device and in any batch.

A generator with a state would have to be seeded anew for every sample, one sample at a time. Here the numbers of a
batch are drawn together on the device, and still each sample has its own, as with Philox (Salmon et al. 2011, SC11).
The mixing is the 32-bit integer hash ``lowbias32`` of Wellons (2018, "Prospecting for hash functions", public domain),
with half of the key added before its first round and half between its rounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Multipliers of lowbias32, as signed 32-bit integers.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
# Positions of a stream; streams lie one after the other.
STREAM_LENGTH = 1 << 26


def sample_keys(seed: int, numbers: Tensor) -> Tensor:
    """Make the keys of samples.

    Parameters
    ----------
    seed : int
        0 or more.
    numbers : Tensor
        `(B,)` int64: which samples, 0 or more.

    Returns
    -------
    Tensor
        `(B, 2)` int32, different for all (seed, number) below 2^32 but for chance: 64 bits.
    """
    low, high = _as_int32(numbers), _as_int32(numbers >> 32)
    halves = []
    for half in (0, 1):
        offset = (seed * 2 + half) * 0x9E3779B9 & 0xFFFFFFFF  # the golden ratio keeps neighbouring seeds apart
        signed = offset - (1 << 32) if offset >= 1 << 31 else offset
        halves.append(_mixed(_mixed(low + signed) ^ (high + (seed >> 31))))
    return torch.stack(halves, dim=1)


def uniforms(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Draw numbers between 0 and 1, both excluded.

    Parameters
    ----------
    keys : Tensor
        `(B, 2)` of `sample_keys`.
    count : int
        Numbers per sample, fewer than `STREAM_LENGTH`.
    stream : int
        0 to 31: which of the independent sequences of a sample.

    Returns
    -------
    Tensor
        `(B, count)` float32, multiples of 2^-24 plus half a step.
    """
    return _unit(_bits(keys, count, stream))


def normals(keys: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
    """Draw numbers of mean 0 and variance 1.

    Parameters
    ----------
    keys, stream
        See `uniforms`.
    shape : tuple of int
        Of one sample.

    Returns
    -------
    Tensor
        `(B, *shape)` float32.
    """
    count = math.prod(shape)
    # Box & Muller 1958, a pair from 32 bits; 16 bits for the radius end the tails at 4.9 standard deviations.
    bits = _bits(keys, (count + 1) // 2, stream)
    radius = _shifted(bits, 16).float().add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFF).float().mul_(2 * math.pi / 2**16)
    drawn = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return drawn[:, :count].reshape(-1, *shape)


def complex_noise(keys: Tensor, power: Tensor, *, stream: int, out: Tensor | None = None) -> Tensor:
    """Draw complex numbers whose parts have mean 0 and these variances, as coefficients of noise.

    Parts are uniform, not normal, which takes half the time: voxels are sums over all of them, and normal all the same
    unless a few have nearly all the power.

    Parameters
    ----------
    keys, stream
        See `uniforms`.
    power : Tensor
        `(B, ...)` float32, 0 or more.
    out : Tensor, optional
        Where to write them.
    """
    bits = _bits(keys, math.prod(power.shape[1:]), stream).view_as(power)
    unit = power.sqrt().mul_(math.sqrt(12) / 2**16)  # the variance of whole numbers below n is n^2 / 12
    real = (bits >> 16).float().add_(0.5).mul_(unit)
    return torch.complex(real, bits.bitwise_and_(0xFFFF).float().sub_(2**15 - 0.5).mul_(unit), out=out)


def _bits(keys: Tensor, count: int, stream: int) -> Tensor:
    positions = torch.arange(count, dtype=torch.int32, device=keys.device) + stream * STREAM_LENGTH
    mixed = positions + keys[:, :1]
    mixed ^= _shifted(mixed, 16)
    mixed *= _FIRST
    mixed ^= keys[:, 1:]
    mixed ^= _shifted(mixed, 15)
    mixed *= _SECOND
    mixed ^= _shifted(mixed, 16)
    return mixed


def _shifted(values: Tensor, places: int) -> Tensor:
    """Shift to the right, zeros coming in from the left."""
    return (values >> places).bitwise_and_((1 << 32 - places) - 1)


def _unit(bits: Tensor) -> Tensor:
    """Take the upper 24 bits, which float32 holds exactly."""
    return _shifted(bits, 8).float().add_(0.5).mul_(2**-24)


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 16)) * _FIRST
    values = (values ^ _shifted(values, 15)) * _SECOND
    return values ^ _shifted(values, 16)


def _as_int32(numbers: Tensor) -> Tensor:
    low = numbers & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
