"""How far the metrics of a test split would vary with other test volumes: 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Interval = list[float] | None

LEVEL = 0.95
RESAMPLES = 1000
# Resamples that are computed together; their weights take 8 bytes per volume each.
_BLOCK = 64


def metric_intervals(
    probabilities: Floats, labels: Labels, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Give the metrics of `classification_metrics` intervals over test volumes.

    Proportions (accuracy, recall, precision) have the exact interval of Clopper & Pearson (1934), which also holds when
    all of twenty are right. For the others volumes are drawn with replacement; the interval is from percentile 2.5 to
    percentile 97.5 (Efron & Tibshirani 1993, chapter 13). Intervals cover the choice of test volumes, not another seed
    of training nor other tomograms.

    Parameters
    ----------
    probabilities : array
        `(n, num_classes)`.
    labels : array
        `(n,)`.
    resamples : int
        Draws.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        Intervals of ``accuracy``, ``auc``, ``balanced_accuracy`` and ``macro_f1``; in ``per_class`` a list of dicts of
        those of ``recall``, ``precision``, ``f1`` and ``auc``; None where a number is undefined, or none of the draws
        changes it.
    """
    num_classes = probabilities.shape[1]
    draws = metric_draws(probabilities, labels, resamples=resamples, seed=seed)
    predicted = probabilities.argmax(axis=1)
    support, guessed, right = (
        np.bincount(rows, minlength=num_classes) for rows in (labels, predicted, labels[labels == predicted])
    )
    per_class = [
        {
            "recall": _exact(right[c], support[c]),
            "precision": _exact(right[c], guessed[c]),
            "f1": _percentiles(draws["f1"][:, c]),
            "auc": _percentiles(draws["class_auc"][:, c]),
        }
        for c in range(num_classes)
    ]
    return {
        "accuracy": _exact(right.sum(), len(labels)),
        **{name: _percentiles(draws[name]) for name in ("auc", "balanced_accuracy", "macro_f1")},
        "level": LEVEL,
        "method": "Clopper-Pearson for proportions (accuracy, recall, precision), percentile bootstrap for the others",
        "resamples": resamples,
        "per_class": per_class,
    }


def metric_draws(
    probabilities: Floats, labels: Labels, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Floats]:
    """Compute the metrics of volumes drawn with replacement; the same number and seed draw the same volumes.

    Parameters
    ----------
    probabilities : array
        `(n, num_classes)`.
    labels : array
        `(n,)`.

    Returns
    -------
    dict
        ``accuracy``, ``auc``, ``balanced_accuracy`` and ``macro_f1`` `(resamples,)`; ``recall``, ``precision``, ``f1``
        and ``class_auc`` `(resamples, num_classes)`. NaN where a draw leaves a number undefined.
    """
    num_classes = probabilities.shape[1]
    truths, guesses = np.eye(num_classes)[labels], np.eye(num_classes)[probabilities.argmax(axis=1)]
    curves = [_ordered(probabilities[:, c], labels == c) for c in range(num_classes)]
    blocks = []
    for weights in _weights(len(labels), resamples, seed):
        hits, truth, guess = weights @ (truths * guesses), weights @ truths, weights @ guesses
        areas = np.stack([_area(weights, *curve) for curve in curves], axis=1)
        recall, f1 = _ratio(hits, truth), _ratio(2 * hits, truth + guess)
        present = truth > 0  # a class that a draw lacks does not count in it
        blocks.append(
            {
                "accuracy": hits.sum(axis=1) / len(labels),
                "auc": _mean(areas, np.isfinite(areas)),
                "balanced_accuracy": _mean(recall, present),
                "macro_f1": _mean(f1, present),
                "recall": recall,
                "precision": _ratio(hits, guess),
                "f1": f1,
                "class_auc": areas,
            }
        )
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval_of_mean(values: Sequence[float]) -> Interval:
    """95 % interval of the mean of numbers, one per volume, after Student (1908); None for fewer than three."""
    from scipy.stats import t

    if len(values) < 3:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    half = t.ppf((1 + LEVEL) / 2, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers))
    return [float(numbers.mean() - half), float(numbers.mean() + half)]


def weighted_areas(weights: Floats, scores: Floats, positive: npt.NDArray[np.bool_]) -> Floats:
    """Compute the area under the ROC curve `(m,)` for each of many weightings of the same scores.

    Parameters
    ----------
    weights : array
        `(m, n)`; how often each score counts, 0 or more.
    scores, positive : array
        `(n,)`.

    Returns
    -------
    array
        Equal scores count half; NaN where the positives, or the others, weigh nothing.
    """
    return _area(weights, *_ordered(scores, positive))


def _weights(number: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each volume is drawn, `(block, n)`, a block of resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        yield rng.multinomial(number, np.full(number, 1 / number), size=rows).astype(np.float64)


def _ordered(scores: Floats, positive: npt.NDArray[np.bool_]) -> tuple[Any, Any, Any, Any]:
    """Return positives, negatives by score, and how many of these score less, and no more, than each positive."""
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    less, no_more = (np.searchsorted(scores[negatives], scores[positive], side) for side in ("left", "right"))
    return np.flatnonzero(positive), negatives, less, no_more


def _area(weights: Floats, positives: Any, negatives: Any, less: Any, no_more: Any) -> Floats:
    """Weighted area under the ROC curve of each resample: pairs in the right order, equal scores counting half."""
    counts = np.zeros((len(weights), len(negatives) + 1))
    np.cumsum(weights[:, negatives], axis=1, out=counts[:, 1:])
    drawn = weights[:, positives]
    pairs = (drawn * (counts[:, less] + counts[:, no_more])).sum(axis=1) / 2
    return _ratio(pairs, drawn.sum(axis=1) * counts[:, -1])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)


def _mean(values: Floats, counted: npt.NDArray[np.bool_]) -> Floats:
    return _ratio(np.where(counted, values, 0).sum(axis=1), counted.sum(axis=1).astype(float))


def _percentiles(values: Floats) -> Interval:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)] if high - low > 1e-12 else None


def _exact(successes: float, trials: float) -> Interval:
    from scipy.stats import binomtest

    if not trials:
        return None
    interval = binomtest(int(successes), int(trials)).proportion_ci(LEVEL, method="exact")
    return [float(interval.low), float(interval.high)]
