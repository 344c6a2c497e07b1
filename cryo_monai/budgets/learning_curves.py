"""How the score of a network grows with the number of its labels: a power law, with all that the trials leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cryo_monai.budgets.trials import (
    Floats,
    Indices,
    NoCurveError,
    Sizes,
    Trials,
    errors_in_log_odds,
    log_odds,
    put_together,
    share_of,
)

Curves = tuple[Floats, Floats, Floats]  # first error, floor, exponent

LEVEL = 0.95
DRAWS = 4000
MAX_EXPONENT, MIN_EXPONENT = 2.0, 0.01
# Median of the exponent before data are seen, and the standard deviation of its logarithm: 95 % from 0.1 to 2. In
# large tasks 0.07 to 0.35 were measured (Hestness et al. 2017, arXiv:1712.00409); small ones are steeper.
EXPONENT, EXPONENT_SPREAD = 0.5, 0.8
# Of the error's log odds between seeds, before data are seen: scale of a half-Cauchy distribution (Gelman 2006,
# Bayesian Analysis 1:515). 0.25 is 1.2 % about an accuracy of 95 %.
SEED_SPREAD = 0.25
# No error follows a power law exactly: what each size may be off, in log odds, some 5 % of the error.
MISFIT = 0.05

_SPREADS = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.27, 0.35, 0.5, 0.7, 1.0])
_SHARED = (0.0, 0.3, 0.6, 0.9)
_WIDTH = 5.0  # of the grid, in standard errors to either side


@dataclass(frozen=True)
class LearningCurve:
    """Curves that agree with the trials, as many of each kind as it is likely: draws from a posterior distribution.

    The error is ``floor + (first - floor) * (labels / sizes.labels[0]) ** -exponent``, and never above that of chance.
    """

    trials: Trials
    """Those that the curve was fitted to."""
    sizes: Sizes
    groups: Indices
    """Number of the size of each trial."""
    first: Floats
    """`(draws,)`: error with the smallest number of labels."""
    floor: Floats
    """`(draws,)`: error that no number of labels takes away."""
    exponent: Floats
    """`(draws,)`."""
    spread: Floats
    """`(draws,)`: standard deviation between seeds of the error's log odds."""
    shared: float
    """Correlation of trials of one seed, posterior mean."""
    chance: float
    """Score of guessing."""
    left_out: tuple[float, ...]
    """Numbers of labels at which no trial was better than chance; the curve begins after them."""

    @property
    def has_floor(self) -> bool:
        """Whether the floor was fitted, not set to 0 for want of a third size."""
        return len(self.sizes.labels) > 2

    @property
    def misfit(self) -> float:
        """How far, at most, the mean of a size lies from the median curve, in its standard errors."""
        evidence = Evidence(self.trials, self.groups)
        middle = np.median(log_odds(1 - self.scores_at(self.sizes.labels)), axis=0)
        return float(np.abs((evidence.means - middle) / evidence.standard_errors()).max())

    def select(self, rows: Indices) -> LearningCurve:
        """Return some of the draws."""
        chosen = {name: getattr(self, name)[rows] for name in ("first", "floor", "exponent", "spread")}
        return replace(self, **chosen)

    def scores_at(self, labels: Sequence[float] | Floats) -> Floats:
        """Score `(draws, m)` that is expected with numbers of labels `(m,)`, over seeds."""
        ratio = np.asarray(labels, dtype=np.float64)[None] / self.sizes.labels[0]
        first, floor, exponent = (values[:, None] for values in (self.first, self.floor, self.exponent))
        return np.asarray(1 - np.minimum(floor + (first - floor) * ratio**-exponent, 1 - self.chance))

    def runs_at(self, labels: Sequence[float] | Floats, *, seed: int = 0) -> Floats:
        """Score `(draws, m)` of a single training, whose seed is lucky or not, on endless test volumes."""
        error = 1 - self.scores_at(labels)
        luck = self.spread * np.random.default_rng(seed).standard_normal(len(self.spread))
        return np.asarray(1 - share_of(log_odds(error) + luck[:, None]))

    def labels_for(self, score: float | Floats) -> Floats:
        """Labels `(draws,)` with which a score, one or one per draw, is expected; infinite where it never is."""
        error = 1 - np.asarray(score, dtype=np.float64)
        reached = error > self.floor
        left = np.where(reached, error - self.floor, 1.0)
        with np.errstate(over="ignore"):
            labels = self.sizes.labels[0] * ((self.first - self.floor) / left) ** (1 / self.exponent)
        return np.where(reached, labels, np.inf)


def fit_curve(trials: Trials, *, chance: float = 0.0, draws: int = DRAWS, seed: int = 0) -> LearningCurve:
    """Fit error = floor + a * labels ** -exponent to the scores of trials.

    The inverse power law of Cortes et al. 1993 (NIPS 6, 327), used to plan labels by Figueroa et al. 2012 (BMC Medical
    Informatics and Decision Making 12:8). Those fit it by least squares; with a few sizes and seeds many curves fit
    about as well, so here all are kept, weighted by how likely they are (Bayes' rule on a grid).

    Trials scatter normally about the curve in the log odds of their error: by the binomial luck of the test volumes, by
    the seed, with trials of one seed alike to an unknown degree, and by `MISFIT` per size. Before data are seen the
    first error is uniform up to chance, the exponent log-normal about `EXPONENT` up to `MAX_EXPONENT`, the floor a
    uniform share of the error with the most labels, and the spread between seeds half-Cauchy. With two sizes the floor
    is 0.

    Measured on 800 simulated sets of three to five seeds and three or four sizes, 95 % intervals of the score held the
    truth in 97 to 98 % among the sizes, 96 % at twice the largest, 93 % at four times and 90 % at ten times it. Where
    the error truly followed another law, these were 97 to 98 %, 87 to 92 %, 76 to 81 % and 65 to 74 %.

    Parameters
    ----------
    trials : Trials
        Of one data set, network and recipe.
    chance : float
        Score of guessing. The smallest sizes at which no more than that is shown are left out: power laws begin
        after them (Hestness et al. 2017, fig. 6).
    draws : int
        Curves that are kept.
    seed : int
        Of the drawing.

    Raises
    ------
    NoCurveError
        With fewer than two sizes, or a score that falls with the number of labels.
    """
    trials, sizes, groups, left_out = put_together(trials, chance=chance)
    evidence = Evidence(trials, groups)
    axes = _axes(evidence)
    points = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    curves, log_prior = _curves_at(points, sizes, chance)
    if not np.isfinite(log_prior).any() or evidence.falls():
        raise NoCurveError("the score does not grow with the number of labels: no curve can say how many are needed")
    odds = log_odds(_errors(curves, sizes.labels))
    spreads = [(float(spread), shared) for spread in _SPREADS for shared in _SHARED]
    log_likelihood = np.stack([evidence.log_likelihood(odds, *pair) for pair in spreads])
    log_weights = log_likelihood + np.log(_spread_prior())[:, None] + log_prior
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    by_curve, by_spread = weights.sum(axis=0), weights.sum(axis=1)
    rng = np.random.default_rng(seed)
    rows = resample(by_curve, draws, rng)
    spread = np.array([spreads[row][0] for row in rng.permutation(resample(by_spread, draws, rng))])
    shared = float(sum(weight * pair[1] for weight, pair in zip(by_spread, spreads, strict=True)))
    moved, moved_prior = _curves_at(_within_cells([point[rows] for point in points], axes, rng), sizes, chance)
    first, floor, exponent = (
        np.where(np.isfinite(moved_prior), new, old[rows]) for new, old in zip(moved, curves, strict=True)
    )
    return LearningCurve(trials, sizes, groups, first, floor, exponent, spread, shared, chance, left_out)


class Evidence:
    """What trials say of curves: the likelihood of the log odds of their errors.

    Parameters
    ----------
    trials : Trials
        From `put_together`.
    groups : array
        `(n,)`: number of the size of each.
    """

    def __init__(self, trials: Trials, groups: Indices) -> None:
        self.values = errors_in_log_odds(trials)
        self.member = np.eye(groups.max() + 1)[groups]  # trial, size
        self.counts = self.member.sum(axis=0)
        self.means = self.member.T @ self.values / self.counts
        seeds = np.array(trials.seeds)
        self.same_seed = (seeds[:, None] == seeds[None]) & ~np.eye(len(seeds), dtype=bool)
        error = share_of(self.member @ self.means)
        known = np.isfinite(trials.num_test)
        self.binomial = np.where(known, 1 / (np.where(known, trials.num_test, 1.0) * error * (1 - error)), 0.0)

    def log_likelihood(self, odds: Floats, spread: float, shared: float) -> Floats:
        """Of curves `(c, k)`, as log odds of errors; given the spread of seeds and what trials of one share."""
        deviation = np.sqrt(spread**2 + self.binomial)
        correlation = np.eye(len(self.values)) + shared * self.same_seed
        return log_normal(odds, self.values, self.member, correlation * deviation[:, None] * deviation)

    def standard_errors(self) -> Floats:
        """Rough standard errors of the means `(k,)`, to place the grid."""
        freedom = len(self.values) - len(self.counts)
        residual = self.values - self.member @ self.means
        spread = float(residual @ residual) / freedom if freedom > 0 else SEED_SPREAD**2
        binomial = self.member.T @ self.binomial / self.counts
        return np.asarray(np.sqrt(np.maximum(spread, 0.05**2) + binomial) / np.sqrt(self.counts) + MISFIT)

    def falls(self) -> bool:
        """Whether the error with the most labels is above that with the fewest by more than luck."""
        errors = self.standard_errors()
        return bool(self.means[-1] - self.means[0] > 2 * np.hypot(errors[0], errors[-1]))


def log_normal(odds: Floats, values: Floats, member: Floats, covariance: Floats) -> Floats:
    """Log density, but for a constant, of values `(n,)` about each of many curves.

    Parameters
    ----------
    odds : array
        `(c, k)`: what each curve expects at each size.
    values : array
        `(n,)`.
    member : array
        `(n, k)`: 1 where a value is of a size.
    covariance : array
        `(n, n)`; that of the misfit of each size is added.
    """
    covariance = covariance + MISFIT**2 * member @ member.T
    precision = np.linalg.inv(covariance)
    by_size = member.T @ precision
    distance = ((odds @ (by_size @ member)) * odds).sum(axis=1) - 2 * odds @ (by_size @ values)
    return np.asarray(-0.5 * (distance + values @ precision @ values + np.linalg.slogdet(covariance)[1]))


def _spread_prior() -> Floats:
    density = np.gradient(_SPREADS) / (1 + (_SPREADS / SEED_SPREAD) ** 2)
    return np.repeat(density / density.sum(), len(_SHARED)) / len(_SHARED)


def _axes(evidence: Evidence) -> list[Floats]:
    """Place the grid: log odds of the first and of the last error, and where the exponent lies, from 0 to 1."""
    half = _WIDTH * evidence.standard_errors()
    few = len(evidence.counts) == 2
    ends = [np.linspace(evidence.means[n] - half[n], evidence.means[n] + half[n], 61 if few else 27) for n in (0, -1)]
    return [*ends, np.zeros(1) if few else np.linspace(0, 1, 31)]


def _curves_at(points: Sequence[Floats], sizes: Sizes, chance: float) -> tuple[Curves, Floats]:
    """Turn coordinates `(c,)` each into curves, with the logarithm of their prior `(c,)`: minus infinity where none is.

    The exponent lies, by its logarithm, between that which has no floor and the largest. The prior is that of
    `fit_curve` times the Jacobian of the coordinates.
    """
    first, last, place = share_of(points[0]), share_of(points[1]), points[2]
    decades = np.log(sizes.labels[-1] / sizes.labels[0])
    lowest = np.maximum(np.log(first / last) / decades, MIN_EXPONENT)
    allowed = (first > last) & (lowest < MAX_EXPONENT) & (first <= 1 - chance)
    lowest = np.where(allowed, lowest, 1.0)
    stretch = np.log(MAX_EXPONENT / lowest)
    exponent = lowest * np.exp(place * stretch)
    shrink = np.exp(-exponent * decades)
    floor = np.clip((last - first * shrink) / (1 - shrink), 0, last)
    log_prior = np.log(first) + np.log1p(-first) + np.log1p(-last)
    log_prior -= 0.5 * (np.log(exponent / EXPONENT) / EXPONENT_SPREAD) ** 2
    if len(sizes.labels) == 2:
        floor = np.zeros_like(floor)
        log_prior -= np.log(exponent)
    else:
        ends = np.where((place == 0) | (place == 1), 0.5, 1.0)
        log_prior += np.log(ends * stretch * shrink * first / (last * (1 - shrink)))
    return (first, floor, exponent), np.where(allowed, log_prior, -np.inf)


def _within_cells(points: Sequence[Floats], axes: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    """Move points of the grid to anywhere in their cells, so that draws are no finer or coarser than the data."""
    steps = [axis[1] - axis[0] if len(axis) > 1 else 0.0 for axis in axes]
    moved = [point + step * (rng.random(len(point)) - 0.5) for point, step in zip(points, steps, strict=True)]
    return [*moved[:2], np.clip(moved[2], 0, 1)]


def _errors(curves: Curves, labels: Floats) -> Floats:
    first, floor, exponent = (values[:, None] for values in curves)
    return np.asarray(floor + (first - floor) * (labels / labels[0]) ** -exponent)


def resample(weights: Floats, number: int, rng: np.random.Generator) -> Indices:
    """Choose rows as often as weights say: systematic resampling (Carpenter et al. 1999, IEE Proc. F 146:2)."""
    steps = (np.arange(number) + rng.random()) / number
    return np.asarray(np.minimum(np.searchsorted(np.cumsum(weights), steps), len(weights) - 1), dtype=np.intp)
