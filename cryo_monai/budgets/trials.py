"""Trials of learning curves: scores with several numbers of labels, put together by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Numbers of labels that differ by less are one size.
SAME_SIZE = 1.05
# An error of none is taken for this one where the number of test volumes is not known.
LEAST_ERROR = 1e-3


class NoCurveError(InputError):
    """Trials that no curve can be drawn through; the message says why."""


@dataclass(frozen=True)
class Trials:
    """Scores of networks that were trained with several numbers of labels.

    Attributes
    ----------
    labels, scores : array
        `(n,)`: labelled training volumes; the score, from 0 to 1.
    seeds : tuple of str
        Of each; trials of one seed share their split, so that they are lucky or unlucky together.
    num_test : array
        `(n,)`: test volumes that the score is a share of; NaN where that is not known or it is no share.
    """

    labels: Floats
    scores: Floats
    seeds: tuple[str, ...]
    num_test: Floats


@dataclass(frozen=True)
class Sizes:
    """Trials put together by their number of labels; `(k,)` each, the smallest first."""

    labels: Floats
    scores: Floats
    """Means."""
    counts: Indices
    """Trials."""


def select_trials(trials: Trials, chosen: npt.NDArray[np.bool_]) -> Trials:
    """Return the trials that are chosen, `(n,)`."""
    seeds = tuple(seed for seed, keep in zip(trials.seeds, chosen, strict=True) if keep)
    return Trials(trials.labels[chosen], trials.scores[chosen], seeds, trials.num_test[chosen])


def put_together(trials: Trials, *, chance: float) -> tuple[Trials, Sizes, Indices, tuple[float, ...]]:
    """Group trials by their number of labels, without the smallest numbers if these show no more than chance.

    Parameters
    ----------
    trials : Trials
        Of one data set, network and recipe.
    chance : float
        Score of guessing.

    Returns
    -------
    tuple
        The trials that are kept, their `Sizes`, the number of its size for each of them, and the sizes left out.

    Raises
    ------
    NoCurveError
        With fewer than two sizes.
    """
    groups = _groups(trials.labels)
    first = _first_above_chance(trials, groups, chance)
    chosen = groups >= first
    left_out = tuple(float(trials.labels[groups == group].mean()) for group in range(first))
    kept, groups = select_trials(trials, chosen), groups[chosen] - first
    counts = np.bincount(groups)
    sizes = Sizes(
        np.bincount(groups, kept.labels) / counts, np.bincount(groups, kept.scores) / counts, counts.astype(np.intp)
    )
    if len(counts) < 2:
        raise NoCurveError(_too_few(sizes, left_out))
    return kept, sizes, groups, left_out


def _groups(labels: Floats) -> Indices:
    """Size of each trial `(n,)`, numbered from 0; numbers that differ by less than `SAME_SIZE` are one."""
    values = np.unique(labels)
    number, begun, numbers = -1, 0.0, np.zeros(len(values), dtype=np.intp)
    for place, value in enumerate(values):
        if value > begun * SAME_SIZE:
            number, begun = number + 1, value
        numbers[place] = number
    return np.asarray(numbers[np.searchsorted(values, labels)], dtype=np.intp)


def _first_above_chance(trials: Trials, groups: Indices, chance: float) -> int:
    """Find the first size that is above chance by more than two standard errors of its test volumes."""
    number = int(groups.max()) + 1 if len(groups) else 0
    for group in range(number):
        chosen = groups == group
        volumes = np.nansum(trials.num_test[chosen])
        error = np.sqrt(chance * (1 - chance) / volumes) if volumes else 0.0
        if trials.scores[chosen].mean() > chance + 2 * error:
            return group
    return number


def _too_few(sizes: Sizes, left_out: Sequence[float]) -> str:
    if not len(sizes.labels) and not left_out:
        return "there is no finished trial"
    told = f"with {', '.join(f'{n:.0f}' for n in left_out)} labels it was no better than chance" if left_out else ""
    if not len(sizes.labels):
        return f"{told}; train with more"
    one = f"{'only one number of labels' if told else 'all trials have one number of labels'} ({sizes.labels[0]:.0f})"
    return f"{told + '; ' if told else ''}{one}{' remains' if told else ''}; a curve needs two, better three or more"


def log_odds(share: Floats) -> Floats:
    """Logarithm of the odds of a share; all and none become very likely and very unlikely."""
    share = np.clip(share, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(share) - np.log1p(-share))


def share_of(odds: Floats) -> Floats:
    """Share whose odds have this logarithm."""
    return np.asarray(1 / (1 + np.exp(-odds)))


def errors_in_log_odds(trials: Trials) -> Floats:
    """Log odds of the errors `(n,)`; half a volume is added to the wrong ones and to the right ones (Haldane 1956)."""
    known = np.isfinite(trials.num_test)
    volumes = np.where(known, trials.num_test, 1.0)
    smoothed = ((1 - trials.scores) * volumes + 0.5) / (volumes + 1)
    return log_odds(np.where(known, smoothed, np.clip(1 - trials.scores, LEAST_ERROR, 1 - LEAST_ERROR)))
