"""How many labels a network needs for a target score, and how many times those of another: a budget for labelling."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cryo_monai.budgets.learning_curves import LEVEL, LearningCurve, fit_curve
from cryo_monai.budgets.results import LabelledGroup, read_groups
from cryo_monai.budgets.savings import label_ratios
from cryo_monai.budgets.trials import SAME_SIZE, Floats, NoCurveError
from cryo_monai.errors import InputError

# Times the most labels that were tried: beyond the first, numbers are marked; beyond the second, none are given.
EXTRAPOLATED, LIMIT = 2.0, 10.0
# A ratio is given unless neither network reaches the score in more than this share of the draws.
_UNDEFINED = 0.05
# What sweeps of initialisations call them.
COMPARE, BASELINE = "initialisation", "random"
STEP = 0.01


@dataclass(frozen=True)
class Estimate:
    """A number that is not known exactly; None where it lies beyond what is given."""

    median: float | None
    low: float | None
    """2.5th percentile."""
    high: float | None
    """97.5th."""


@dataclass(frozen=True)
class Target:
    """What it takes to reach a score."""

    score: float
    status: str
    """``"with the fewest"`` labels tried, ``"reached"`` with at most the most tried, ``"extrapolated"``, or ``"out of
    reach"``: with more than `LIMIT` times those that were tried, or never."""
    labels: Estimate
    """None beyond `LIMIT` times the most labels that were tried; never below the fewest."""
    per_class: Estimate | None
    far: bool
    """More than `EXTRAPOLATED` times the most labels that were tried."""
    limit: float
    """`LIMIT` times the most labels that were tried."""
    probability_within: float
    """That the score is reached within the limit."""
    probability_ever: float
    """That it is reached with any number of labels."""
    measured: float | None
    """Fewest labels tried with which the mean of the trials was as good."""


@dataclass(frozen=True)
class Expected:
    """The score that a number of labels gives."""

    labels: float
    score: Estimate
    """Mean over seeds."""
    run: Estimate
    """Of one training."""
    extrapolated: bool


@dataclass(frozen=True)
class GroupBudget:
    """What the trials of one group say; without a curve there is only the reason why."""

    group: LabelledGroup
    chance: float
    curve: LearningCurve | None
    reason: str
    target: Target | None
    next_step: Estimate | None
    """Labels beyond the most that were tried, for a score higher by `STEP`; None where it is beyond `LIMIT`."""
    expected: tuple[Expected, ...]
    name: str
    """Values of the axes that tell the groups apart."""


@dataclass(frozen=True)
class Comparison:
    """How many times the labels of the baseline another network needs on the same data."""

    cell: Mapping[str, str]
    """Axes that both have in common, and that tell comparisons apart."""
    value: str
    baseline: str
    score: float
    matches: bool
    """Whether the score is that of the baseline with the most labels tried, not the target."""
    ratio: Estimate | None
    """None where neither reaches the score too often."""
    probability_fewer: float | None
    extrapolated: bool
    """Whether one of the numbers is outside of what was tried with that network."""


@dataclass(frozen=True)
class Budget:
    """The answer for all groups of a file."""

    source: str
    metric: str
    target: float
    groups: tuple[GroupBudget, ...]
    comparisons: tuple[Comparison, ...]
    axis: str
    """That is compared along."""
    baseline: str


def plan_budget(
    results: str | os.PathLike[str],
    *,
    target: float = 0.9,
    metric: str = "accuracy",
    labels: Sequence[float] = (),
    compare: str = COMPARE,
    baseline: str = BASELINE,
    groups: Sequence[str] = (),
    seed: int = 0,
) -> Budget:
    """Say how many labels reach a target score, for each group of trials, and what one group saves against another.

    Parameters
    ----------
    results : path
        See `read_groups`.
    target : float
        Score, above 0 and below 1.
    metric : str
        Name of the score.
    labels : sequence of float
        Numbers of labels whose score is to be foretold.
    compare, baseline : str
        Axis whose values are compared, and the value that the others are compared with.
    groups : sequence of str
        See `read_groups`.
    seed : int
        Of all draws.

    Raises
    ------
    InputError
        In one line, for results that cannot be used, or a target or number of labels out of range.
    """
    if not 0 < target < 1:
        hint = f", such as {target / 100:g}" if 1 < target < 100 else ""
        raise InputError(f"target: {target:g} is not between 0 and 1; give a share{hint}")
    for number in labels:
        if not (number >= 1 and np.isfinite(number)):
            raise InputError(f"labels: {number:g} is not a number of labels of 1 or more")
    found = read_groups(results, metric=metric, groups=groups)
    _check_comparison(found, compare, baseline)
    differing = [axis for axis in found[0].cell if len({group.cell[axis] for group in found}) > 1]
    budgets = tuple(_budget(group, metric, target, labels, seed, differing) for group in found)
    comparisons = _compare(budgets, compare, baseline, target, seed, differing)
    return Budget(str(results), metric, target, budgets, tuple(comparisons), compare, baseline)


def chance_of(metric: str, num_classes: int | None) -> float:
    """Score of guessing among classes of equal size; 0, which is no limit, where their number is not known."""
    if metric == "auc":
        return 0.5
    return 1 / num_classes if num_classes and num_classes > 1 else 0.0


def estimate(draws: Floats, *, limit: float = np.inf) -> Estimate:
    """Median and 95 % interval of draws; None where above a limit or infinite."""
    levels = [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2]
    values = np.quantile(draws, levels, method="inverted_cdf")
    return Estimate(*(float(value) if np.isfinite(value) and value <= limit else None for value in values))


def _budget(
    group: LabelledGroup, metric: str, target: float, labels: Sequence[float], seed: int, differing: Sequence[str]
) -> GroupBudget:
    chance = chance_of(metric, group.num_classes)
    name = ", ".join(group.cell[axis] for axis in differing) or "all trials"
    try:
        curve = fit_curve(group.trials, chance=chance, seed=seed)
    except NoCurveError as error:
        return GroupBudget(group, chance, None, str(error), None, None, (), name)
    most = float(curve.sizes.labels[-1])
    step = curve.labels_for(curve.scores_at([most])[:, 0] + STEP) - most
    expected = tuple(
        Expected(
            float(number),
            estimate(curve.scores_at([number])[:, 0]),
            estimate(curve.runs_at([number], seed=seed)[:, 0]),
            not curve.sizes.labels[0] <= number <= most,
        )
        for number in labels
    )
    found = _target(curve, target, group.num_classes)
    return GroupBudget(group, chance, curve, "", found, estimate(step, limit=(LIMIT - 1) * most), expected, name)


def _target(curve: LearningCurve, score: float, num_classes: int | None) -> Target:
    draws = curve.labels_for(score)
    sizes = curve.sizes
    most = float(sizes.labels[-1])
    limit = LIMIT * most
    found = estimate(np.maximum(draws, sizes.labels[0]), limit=limit)
    enough = sizes.labels[sizes.scores >= score]
    per_class = None
    if num_classes:
        per_class = Estimate(*(None if n is None else n / num_classes for n in (found.median, found.low, found.high)))
    if found.median is None:
        status = "out of reach"
    elif found.median <= sizes.labels[0]:
        status = "with the fewest"
    else:
        status = "reached" if found.median <= most else "extrapolated"
    return Target(
        score, status, found, per_class,
        far=found.median is None or found.median > EXTRAPOLATED * most,
        limit=limit,
        probability_within=float((draws <= limit).mean()),
        probability_ever=float(np.isfinite(draws).mean()),
        measured=float(enough[0]) if len(enough) else None,
    )  # fmt: skip


def _check_comparison(groups: Sequence[LabelledGroup], compare: str, baseline: str) -> None:
    """Refuse names that were given and are not there; the defaults need not be."""
    if compare != COMPARE and compare not in groups[0].cell:
        raise InputError(f"compare: {compare!r} is not one of {', '.join(groups[0].cell) or 'no columns'}")
    values = list(dict.fromkeys(group.cell[compare] for group in groups if compare in group.cell))
    if (compare, baseline) != (COMPARE, BASELINE) and values and baseline not in values:
        raise InputError(f"baseline: {compare} has no value {baseline!r}; there are {', '.join(map(str, values))}")


def _compare(
    budgets: Sequence[GroupBudget], axis: str, baseline: str, target: float, seed: int, differing: Sequence[str]
) -> list[Comparison]:
    """Compare each group with the one that differs from it in one axis alone; at the target, and at a score reached."""
    found = []
    for first in budgets:
        cell = dict(first.group.cell)
        value = cell.pop(axis, baseline)
        for second in budgets:
            if value == baseline or dict(second.group.cell) != cell | {axis: baseline}:
                continue
            if first.curve is not None and second.curve is not None:
                shown = {name: cell[name] for name in differing if name in cell}
                found += [_comparison(first.curve, second.curve, shown, (value, baseline), score, seed)
                          for score in (target, None)]  # fmt: skip
    return found


def _comparison(
    first: LearningCurve,
    second: LearningCurve,
    cell: Mapping[str, str],
    names: tuple[str, str],
    score: float | None,
    seed: int,
) -> Comparison:
    ours, theirs = label_ratios(first, second, score=score, seed=seed)
    defined = np.isfinite(ours) | np.isfinite(theirs)
    ratio, fewer = None, None
    if defined.mean() >= 1 - _UNDEFINED:
        draws = ours[defined] / theirs[defined]
        ratio, fewer = estimate(draws), float((draws < 1).mean())
    extrapolated = any(not _inside(curve, draws) for curve, draws in ((first, ours), (second, theirs)))
    shown = float(np.median(second.scores_at(second.sizes.labels[-1:]))) if score is None else score
    return Comparison(cell, *names, shown, score is None, ratio, fewer, extrapolated)


def _inside(curve: LearningCurve, labels: Floats) -> bool:
    """Whether the median of numbers of labels lies among those tried, give or take rounding."""
    median = np.quantile(labels, 0.5, method="inverted_cdf")
    return bool(curve.sizes.labels[0] / SAME_SIZE <= median <= curve.sizes.labels[-1] * SAME_SIZE)
