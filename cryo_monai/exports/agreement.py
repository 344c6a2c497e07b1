"""Is a file the network that it was made of? Both are asked about the same volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cryo_monai.exports.tracing import Floats, Predict, Probabilities, predict_with
from cryo_monai.filters import full_precision

# Largest difference of a probability between a file and the network in float32. Both sum the same numbers in another
# order; benchmarks/results/exports-cpu.json has what was measured for every backbone and format.
TOLERANCE = 1e-4


def random_volumes(clip_size: Sequence[int], seed: int = 0) -> list[Floats]:
    """Draw batches `(B, 1, z, y, x)` of several sizes: that of the clip, others, and a very small one.

    Parameters
    ----------
    clip_size : sequence of int
        ``(depth, height, width)`` of the network.
    seed : int
        Same seed, same volumes.
    """
    rng = np.random.default_rng(seed)
    other = [size + 3 if number % 2 else max(2, size - 5) for number, size in enumerate(clip_size)]
    shapes = [(1, 1, *clip_size), (3, 1, *other), (2, 1, 9, 17, 12), (4, 1, 4, 3, 2)]
    return [(rng.normal(size=shape) * 40 - 7).astype(np.float32) for shape in shapes]


def largest_difference(predict: Predict, module: Probabilities, batches: Iterable[Floats]) -> float:
    """Compare a file with the network that it was made of.

    Parameters
    ----------
    predict : callable
        The file, see `Format`.
    module : Probabilities
        The network.
    batches : iterable of array
        Volumes `(B, 1, z, y, x)`.

    Returns
    -------
    float
        Largest absolute difference of a probability; infinite for outputs that differ in shape, or are not finite.
    """
    expect, largest = predict_with(module), 0.0
    with full_precision():
        for volumes in batches:
            found, expected = predict(volumes), expect(volumes)
            if found.shape != expected.shape or not np.isfinite(found).all():
                return float("inf")
            largest = max(largest, float(np.abs(found - expected).max()))
    return largest
