"""Whether one network is better than another on the same test volumes, or only luckier with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.intervals import metric_draws, weighted_areas
from cryo_monai.metrics import classification_metrics

Draws = dict[str, npt.NDArray[np.float64]]

METRICS = ("accuracy", "auc", "balanced_accuracy", "macro_f1")
LEVEL = 0.95
RESAMPLES = 2000
SWAPS = 1000
# Swaps that are scored together; their weights take 32 bytes per volume each.
_BLOCK = 64
# What differs by rounding is equal.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Predictions:
    """What a network says of labelled volumes."""

    paths: tuple[str, ...]
    """Which volumes; each once."""
    labels: npt.NDArray[np.int64]
    """`(n,)`."""
    probabilities: npt.NDArray[np.float64]
    """`(n, num_classes)`."""
    class_names: tuple[str, ...]
    """By label."""

    def select(self, paths: Sequence[str]) -> Predictions:
        """Return the rows of some volumes, in the order given."""
        place = {path: row for row, path in enumerate(self.paths)}
        rows = [place[path] for path in paths]
        return Predictions(tuple(paths), self.labels[rows], self.probabilities[rows], self.class_names)


@dataclass(frozen=True)
class Difference:
    """A metric of the second network less that of the first."""

    value: float | None
    """None where the metric is undefined."""
    interval: tuple[float, float] | None
    """Of 95 %, by the paired bootstrap; None where no resample defines it."""
    p_value: float | None
    """Two-sided, by the swap test: how often a difference so far from zero comes about when there is none."""


@dataclass(frozen=True)
class PairedComparison:
    """Two networks on the same volumes."""

    num_volumes: int
    """That both were scored on."""
    only_first_right: int
    """Volumes that the first network has right and the second wrong."""
    only_second_right: int
    """The other way round."""
    mcnemar_p: float
    """Of `mcnemar_exact`."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """By the name of the metric."""

    @property
    def num_discordant(self) -> int:
        """Volumes that exactly one of the networks has right."""
        return self.only_first_right + self.only_second_right


def pair_predictions(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Return the predictions of two networks for the volumes that both have seen, sorted by path.

    Raises
    ------
    InputError
        When the networks have other classes or other labels for the same volume, a volume comes twice, or there is
        none in common.
    """
    if first.class_names != second.class_names:
        raise InputError(
            f"classes differ: {', '.join(first.class_names)} and {', '.join(second.class_names)}; "
            "only runs with the same classes in the same order can be compared"
        )
    for predictions in (first, second):
        if len(set(predictions.paths)) != len(predictions.paths):
            raise InputError("a test volume comes twice in a run; list each once")
    common = sorted(set(first.paths) & set(second.paths))
    if not common:
        raise InputError("no test volume is common to both runs: nothing can be tested in pairs")
    one, other = first.select(common), second.select(common)
    differ = np.flatnonzero(one.labels != other.labels)
    if len(differ):
        row = int(differ[0])
        names = [one.class_names[int(predictions.labels[row])] for predictions in (one, other)]
        raise InputError(
            f"{common[row]}: {names[0]} in one run and {names[1]} in the other; {len(differ)} labels disagree, so that "
            "the runs were not scored on the same data"
        )
    return one, other


def compare_predictions(
    first: Predictions, second: Predictions, *, resamples: int = RESAMPLES, swaps: int = SWAPS, seed: int = 0
) -> PairedComparison:
    """Compare two networks on the volumes that both were scored on.

    The p value is that of a paired permutation test, which holds its level with few volumes too (Good 2005,
    Permutation, Parametric and Bootstrap Tests of Hypotheses; for metrics of classifiers, as approximate randomisation,
    Yeh 2000, COLING, 947): if the networks are alike, what they say of a volume may be exchanged. So it is, for each
    volume or not by a fair coin, a thousand times, and those differences are counted that are at least as far from zero
    as the one found, with one more for the finding itself (Phipson & Smyth 2010, Statistical Applications in Genetics
    and Molecular Biology 9:39). Where the networks differ on so few volumes that there are fewer exchanges than that,
    each is made once and p is exact.

    The interval lies between the 2.5th and 97.5th percentile of the difference when volumes are drawn with replacement,
    the same for both networks (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). It says how the
    difference would vary with other test volumes; neither says how with other seeds of training.

    Parameters
    ----------
    first, second : Predictions
        Of networks with the same classes; the order of the volumes does not matter.
    resamples : int
        Draws of the bootstrap.
    swaps : int
        Exchanges of the permutation test.
    seed : int
        Of both.

    Raises
    ------
    InputError
        See `pair_predictions`.
    """
    one, other = pair_predictions(first, second)
    draws = _metric_draws(one, resamples, seed), _metric_draws(other, resamples, seed)
    return _compare(one, other, *draws, swaps, seed)


def compare_all(
    predictions: Mapping[str, Predictions],
    *,
    resamples: int = RESAMPLES,
    swaps: int = SWAPS,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> dict[tuple[str, str], PairedComparison | None]:
    """Compare every pair of networks as `compare_predictions` does; None where no volume is common.

    Parameters
    ----------
    predictions : mapping
        By the name of the network.
    resamples, swaps, seed
        See `compare_predictions`.
    progress : callable, optional
        Called when a pair is done.

    Raises
    ------
    InputError
        See `pair_predictions`; with the names of the two.
    """
    draws: dict[tuple[str, tuple[str, ...]], Draws] = {}
    found: dict[tuple[str, str], PairedComparison | None] = {}
    advance = progress or (lambda: None)
    for names in combinations(predictions, 2):
        first, second = (predictions[name] for name in names)
        if not set(first.paths) & set(second.paths):
            found[names] = None
            advance()
            continue
        try:
            pair = pair_predictions(first, second)
        except InputError as error:
            raise InputError(f"{names[0]} and {names[1]}: {error}") from error
        for name, paired in zip(names, pair, strict=True):
            # Runs on the same volumes are drawn once, however many pairs they are in.
            if (name, paired.paths) not in draws:
                draws[name, paired.paths] = _metric_draws(paired, resamples, seed)
        drawn, drawn_other = (draws[name, paired.paths] for name, paired in zip(names, pair, strict=True))
        found[names] = _compare(*pair, drawn, drawn_other, swaps, seed)
        advance()
    return found


def _compare(
    one: Predictions, other: Predictions, draws_one: Draws, draws_other: Draws, swaps: int, seed: int
) -> PairedComparison:
    values = [classification_metrics(p.probabilities, p.labels, p.class_names) for p in (one, other)]
    p_values = _swap_test(one, other, swaps, seed)
    differences = {}
    for name in METRICS:
        before, after = values[0][name], values[1][name]
        if before is None or after is None:
            differences[name] = Difference(None, None, None)
        else:
            differences[name] = _difference(after - before, draws_other[name] - draws_one[name], p_values[name])
    right = [p.probabilities.argmax(axis=1) == p.labels for p in (one, other)]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return PairedComparison(len(one.labels), *only, mcnemar_exact(*only), differences)


def _swap_test(one: Predictions, other: Predictions, swaps: int, seed: int) -> dict[str, float | None]:
    """P values of the metrics when what two networks say of a volume is exchanged; None where one is undefined."""
    guesses_differ = one.probabilities.argmax(axis=1) != other.probabilities.argmax(axis=1)
    scores_differ = (one.probabilities != other.probabilities).any(axis=1)
    found: Draws = _in_blocks(
        _exchanges(guesses_differ, swaps, seed), lambda part: _count_differences(one, other, part)
    )
    found |= _in_blocks(
        _exchanges(scores_differ, swaps, seed), lambda part: {"auc": _area_differences(one, other, part)}
    )
    return {name: _share_as_far(found[name]) for name in METRICS}


def _exchanges(differ: npt.NDArray[np.bool_], swaps: int, seed: int) -> npt.NDArray[np.bool_]:
    """Choose which volumes that differ are exchanged, `(m, n)`, none in the first row; all ways if these are few."""
    places = np.flatnonzero(differ)
    if len(places) < 63 and 2 ** len(places) <= swaps:
        chosen = (np.arange(2 ** len(places))[:, None] >> np.arange(len(places)) & 1).astype(bool)
    else:
        chosen = np.random.default_rng(seed).integers(0, 2, (swaps + 1, len(places))).astype(bool)
        chosen[0] = False
    swapped = np.zeros((len(chosen), len(differ)), dtype=bool)
    swapped[:, places] = chosen
    return swapped


def _in_blocks(swapped: npt.NDArray[np.bool_], score: Callable[[npt.NDArray[np.bool_]], Draws]) -> Draws:
    blocks = [score(swapped[start : start + _BLOCK]) for start in range(0, len(swapped), _BLOCK)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _count_differences(one: Predictions, other: Predictions, swapped: npt.NDArray[np.bool_]) -> Draws:
    """Metrics that depend on the predicted classes alone, of the second network less the first, after each exchange."""
    truths, first, second = (
        np.eye(len(one.class_names))[rows]
        for rows in (one.labels, one.probabilities.argmax(axis=1), other.probabilities.argmax(axis=1))
    )
    support = truths.sum(axis=0)
    present = support > 0

    def metrics(taken: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        right = (1 - taken) @ (truths * first) + taken @ (truths * second)
        guessed = (1 - taken) @ first + taken @ second
        recall = (right / np.maximum(support, 1))[:, present]
        f1 = (2 * right / np.maximum(support + guessed, 1))[:, present]
        return np.stack([right.sum(axis=1) / len(truths), recall.mean(axis=1), f1.mean(axis=1)])

    taken = swapped.astype(np.float64)
    return dict(zip(("accuracy", "balanced_accuracy", "macro_f1"), metrics(1 - taken) - metrics(taken), strict=True))


def _area_differences(one: Predictions, other: Predictions, swapped: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """AUC of the second network less that of the first after each exchange, `(m,)`; NaN where it is undefined.

    What is mixed from two networks is a choice among the scores of both: a weight of 0 or 1 for each.
    """
    own, taken = (~swapped).astype(np.float64), swapped.astype(np.float64)
    weights = np.concatenate([own, taken], axis=1), np.concatenate([taken, own], axis=1)
    differences = []
    for label in np.unique(one.labels):
        positive = one.labels == label
        if positive.all():
            continue
        scores = np.concatenate([one.probabilities[:, label], other.probabilities[:, label]])
        areas = [weighted_areas(chosen, scores, np.tile(positive, 2)) for chosen in weights]
        differences.append(areas[1] - areas[0])
    return np.mean(differences, axis=0) if differences else np.full(len(swapped), np.nan)


def _share_as_far(differences: npt.NDArray[np.float64]) -> float | None:
    """Share of differences at least as far from zero as the first, which is the one that was found."""
    if not np.isfinite(differences[0]):
        return None
    return float((np.abs(differences) >= abs(differences[0]) - _ROUNDING).mean())


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p value for two networks that are equally often right, from the volumes that only one has right.

    Under that hypothesis each of these volumes is a fair coin: McNemar 1947 (Psychometrika 12:153), with the binomial
    distribution instead of its approximation; Dietterich 1998 (Neural Computation 10:1895) recommends the test for two
    classifiers that were trained once. 1 when there is no such volume.
    """
    from scipy.stats import binomtest

    both = only_first + only_second
    return float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def correct_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values of several tests so that any false finding among them has the stated probability.

    Holm 1979 (Scandinavian Journal of Statistics 6:65): the smallest is multiplied by the number of tests, the next by
    one less, and none becomes smaller than one before it. None stays None and is no test.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = highest
    return adjusted


def _difference(value: float, draws: npt.NDArray[np.float64], p_value: float | None) -> Difference:
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return Difference(value, None, p_value)
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Difference(float(value), (float(low), float(high)), p_value)


def _metric_draws(predictions: Predictions, resamples: int, seed: int) -> Draws:
    return metric_draws(predictions.probabilities, predictions.labels, resamples=resamples, seed=seed)
