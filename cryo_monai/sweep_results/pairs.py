"""Means over seeds, and differences of runs in pairs of the same seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cryo_monai.intervals import interval_of_mean

# With fewer there is neither interval nor test.
MIN_SEEDS = 3
MAX_ENUMERATED = 16
# What differs by rounding is equal.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes
    ----------
    mean : float
        Of `values`.
    half_width : float or None
        Half of its 95 % interval, after Student (1908); None for fewer than three values.
    values : tuple of float
        One per seed.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class PairedDifference:
    """A metric of runs less that of the baseline's runs with the same seeds.

    Attributes
    ----------
    estimate : Estimate
        Of the differences.
    wins, ties : int
        Seeds with a difference above 0, and of 0.
    t_test_p : float or None
        Two-sided, of Student's paired test; None for fewer than three pairs, or when all differences are equal.
    sign_flip_p : float or None
        Of `sign_flip_p`; None for fewer than three pairs.
    effect_size : float or None
        Hedges' g of the differences: their mean over their standard deviation (Cohen's d_z) times
        `hedges_correction`. None as `t_test_p`.
    t_test_p_holm, sign_flip_p_holm : float or None
        Corrected for the rows of a table, see `correct_rows`.
    """

    estimate: Estimate
    wins: int
    ties: int
    t_test_p: float | None = None
    sign_flip_p: float | None = None
    effect_size: float | None = None
    t_test_p_holm: float | None = None
    sign_flip_p_holm: float | None = None


def estimate_mean(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values with its 95 % interval; None when there is no value."""
    if not values:
        return None
    interval = interval_of_mean(values)
    half_width = None if interval is None else (interval[1] - interval[0]) / 2
    return Estimate(math.fsum(values) / len(values), half_width, tuple(values))


def compare_seeds(differences: Sequence[float]) -> PairedDifference | None:
    """Describe the differences of pairs of runs, one per seed; None when there is no pair.

    The t-test asks whether their mean is 0 if they are normal; `sign_flip_p` asks it without that assumption, but
    with few seeds it cannot become small.
    """
    from scipy.stats import ttest_1samp

    estimate = estimate_mean(differences)
    if estimate is None:
        return None
    wins = sum(value > _ROUNDING for value in differences)
    ties = sum(abs(value) <= _ROUNDING for value in differences)
    if len(differences) < MIN_SEEDS:
        return PairedDifference(estimate, wins, ties)
    found = PairedDifference(estimate, wins, ties, sign_flip_p=sign_flip_p(differences))
    deviation = float(np.std(differences, ddof=1))
    if deviation <= _ROUNDING:
        return found
    return replace(
        found,
        t_test_p=float(ttest_1samp(differences, 0.0).pvalue),
        effect_size=hedges_correction(len(differences) - 1) * estimate.mean / deviation,
    )


def sign_flip_p(differences: Sequence[float], *, draws: int = 2**MAX_ENUMERATED, seed: int = 0) -> float:
    """Two-sided p value of the hypothesis that a difference is as likely as its negative.

    The share of all ways to choose signs whose mean is at least as far from 0 as the one found (Fisher 1935, The Design
    of Experiments, section 21): exact, and with n pairs never below 2 / 2^n. Above sixteen pairs signs are drawn
    instead, and the finding itself counts as one draw (Phipson & Smyth 2010, Statistical Applications in Genetics and
    Molecular Biology 9:39).

    Parameters
    ----------
    differences : sequence of float
        One per pair, at least one.
    draws : int
        Choices of signs above sixteen pairs.
    seed : int
        Of the draws.
    """
    values = np.asarray(differences, dtype=np.float64)
    number = len(values)
    if number <= MAX_ENUMERATED:
        flipped = (np.arange(2**number)[:, None] >> np.arange(number) & 1).astype(bool)
    else:
        flipped = np.random.default_rng(seed).integers(0, 2, (draws + 1, number)).astype(bool)
        flipped[0] = False
    means = np.abs(np.where(flipped, -values, values).mean(axis=1))
    return float((means >= means[0] - _ROUNDING).mean())


def hedges_correction(degrees: int) -> float:
    """Factor that takes the bias of few samples off a standardised mean difference, for so many degrees of freedom.

    The exact form, Γ(m/2) / (√(m/2) Γ((m − 1)/2)); the usual 1 − 3/(4m − 1) approximates it (Hedges 1981, Journal of
    Educational Statistics 6:107).

    Raises
    ------
    ValueError
        Below two degrees of freedom, where it is not defined.
    """
    if degrees < 2:
        raise ValueError(f"degrees: {degrees} is below 2")
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def correct_rows(rows: Sequence[PairedDifference | None]) -> list[PairedDifference | None]:
    """Correct the p values of the rows of a table after Holm, each of the two tests for itself; see `correct_holm`."""
    from cryo_monai.significance import correct_holm

    t_test = correct_holm([None if row is None else row.t_test_p for row in rows])
    sign_flip = correct_holm([None if row is None else row.sign_flip_p for row in rows])
    return [
        None if row is None else replace(row, t_test_p_holm=one, sign_flip_p_holm=other)
        for row, one, other in zip(rows, t_test, sign_flip, strict=True)
    ]
