"""A share of the labels of a training list: stratified, and nested, so that more labels are the same and some more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.splits import Item

# Keeps the draws of labels apart from those of the split, which have the same seed.
_DRAW = 20_241


def labelled_subset(items: Sequence[Item], fraction: float, seed: int = 0) -> list[Item]:
    """Keep a fraction of every class, as if only these were labelled.

    Which volumes are kept depends on their paths and the seed alone. With one seed, what a smaller fraction keeps is
    a part of what a larger one keeps.

    Parameters
    ----------
    items : sequence of dict
        A training list: items with integer ``label`` and ``path``.
    fraction : float
        Above 0 and up to 1. Of n volumes of a class the nearest whole number to ``fraction * n`` is kept, at least one.
    seed : int
        Same seed, same volumes.

    Returns
    -------
    list of dict
        In the order of ``items``.

    Raises
    ------
    InputError
        For a fraction that is not above 0 and up to 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise InputError(f"label_fraction: {fraction!r} is not above 0 and up to 1")
    if fraction == 1:
        return list(items)
    kept: set[str] = set()
    for label in sorted({item["label"] for item in items}):
        paths = sorted(str(item["path"]) for item in items if item["label"] == label)
        order = np.random.default_rng([seed, label, _DRAW]).permutation(len(paths))
        number = max(1, int(fraction * len(paths) + 0.5))
        kept |= {paths[n] for n in order[:number]}
    return [item for item in items if str(item["path"]) in kept]
