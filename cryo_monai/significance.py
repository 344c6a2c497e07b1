"""Whether one network is better than another on the same test volumes, or only luckier with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.intervals import metric_draws
from cryo_monai.metrics import classification_metrics

Draws = dict[str, npt.NDArray[np.float64]]

METRICS = ("accuracy", "auc", "balanced_accuracy", "macro_f1")
LEVEL = 0.95
RESAMPLES = 2000


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
    """Of 95 %; None where no resample defines it."""
    p_value: float | None
    """Two-sided: how often a difference so far from zero comes about when there is none."""


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
    first: Predictions, second: Predictions, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedComparison:
    """Compare two networks on the volumes that both were scored on.

    Volumes are drawn with replacement, the same ones for both networks, and the difference of the metrics is taken for
    each draw (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 10 and 13). The interval lies between
    the 2.5th and 97.5th percentile; the p value is twice the smaller share of draws on either side of zero, counted
    with one draw more so that it is never 0 (Davison & Hinkley 1997, Bootstrap Methods, section 4.2). Both say how
    the difference would vary with other test volumes; not with other seeds of training.

    Parameters
    ----------
    first, second : Predictions
        Of networks with the same classes; the order of the volumes does not matter.
    resamples : int
        Draws.
    seed : int
        Of the draws.

    Raises
    ------
    InputError
        See `pair_predictions`.
    """
    one, other = pair_predictions(first, second)
    return _compare(one, other, _metric_draws(one, resamples, seed), _metric_draws(other, resamples, seed))


def compare_all(
    predictions: Mapping[str, Predictions], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[tuple[str, str], PairedComparison | None]:
    """Compare every pair of networks as `compare_predictions` does; None where no volume is common.

    Raises
    ------
    InputError
        See `pair_predictions`; with the names of the two.
    """
    draws: dict[tuple[str, tuple[str, ...]], Draws] = {}
    found: dict[tuple[str, str], PairedComparison | None] = {}
    for names in combinations(predictions, 2):
        first, second = (predictions[name] for name in names)
        if not set(first.paths) & set(second.paths):
            found[names] = None
            continue
        try:
            pair = pair_predictions(first, second)
        except InputError as error:
            raise InputError(f"{names[0]} and {names[1]}: {error}") from error
        for name, paired in zip(names, pair, strict=True):
            # Runs on the same volumes are drawn once, however many pairs they are in.
            if (name, paired.paths) not in draws:
                draws[name, paired.paths] = _metric_draws(paired, resamples, seed)
        found[names] = _compare(*pair, *(draws[name, paired.paths] for name, paired in zip(names, pair, strict=True)))
    return found


def _compare(one: Predictions, other: Predictions, draws_one: Draws, draws_other: Draws) -> PairedComparison:
    values = [classification_metrics(p.probabilities, p.labels, p.class_names) for p in (one, other)]
    differences = {}
    for name in METRICS:
        before, after = values[0][name], values[1][name]
        if before is None or after is None:
            differences[name] = Difference(None, None, None)
        else:
            differences[name] = _difference(after - before, draws_other[name] - draws_one[name])
    right = [p.probabilities.argmax(axis=1) == p.labels for p in (one, other)]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return PairedComparison(len(one.labels), *only, mcnemar_exact(*only), differences)


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


def _difference(value: float, draws: npt.NDArray[np.float64]) -> Difference:
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return Difference(value, None, None)
    low, high = np.percentile(defined, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    # What differs by rounding is equal.
    sides = int((defined <= 1e-12).sum()), int((defined >= -1e-12).sum())
    p_value = min(1.0, 2 * (1 + min(sides)) / (len(defined) + 1))
    return Difference(float(value), (float(low), float(high)), p_value)


def _metric_draws(predictions: Predictions, resamples: int, seed: int) -> Draws:
    return metric_draws(predictions.probabilities, predictions.labels, resamples=resamples, seed=seed)
