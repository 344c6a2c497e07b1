"""How much training a run needs to come as far as the baseline of its seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryo_monai.sweep_results.pairs import Estimate, estimate_mean

History = Sequence[Mapping[str, Any]]

# What differs by rounding is equal; metrics.json has six decimals.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Reach:
    """When two runs of a seed first came to the same validation accuracy.

    Attributes
    ----------
    target : float
        The best validation accuracy that the baseline run ever had.
    baseline_epoch, baseline_minutes
        When the baseline first had it; minutes of the accelerator since its start, validation included. Minutes are
        None where an epoch lacks its time, or the two runs were not made on the same device.
    epoch, minutes
        When the other run first had as much or more; None if it never did.
    """

    target: float
    baseline_epoch: int
    baseline_minutes: float | None
    epoch: int | None
    minutes: float | None


@dataclass(frozen=True)
class Effort:
    """What it takes to come as far as the baseline, over seeds.

    Attributes
    ----------
    reaches : tuple of Reach
        One per pair of runs with the same seed.
    num_reached : int
        Pairs in which the run came as far as its baseline. All that follows is of these alone, and so is too
        favourable where there are fewer than pairs.
    epochs, baseline_epochs, minutes, baseline_minutes : Estimate or None
        Means.
    epochs_ratio, minutes_ratio : Estimate or None
        Mean of the ratios of a pair: below 1 is less effort than the baseline's.
    """

    reaches: tuple[Reach, ...]
    num_reached: int
    epochs: Estimate | None
    baseline_epochs: Estimate | None
    epochs_ratio: Estimate | None
    minutes: Estimate | None
    baseline_minutes: Estimate | None
    minutes_ratio: Estimate | None


def reach_of(history: History, baseline: History, *, same_device: bool = True) -> Reach | None:
    """Find when a run first reached the best validation accuracy that its baseline ever had.

    Parameters
    ----------
    history, baseline : sequence of mapping
        Rows of ``metrics.json`` with ``epoch``, ``val_accuracy`` and ``seconds``.
    same_device : bool
        Whether minutes can be compared.

    Returns
    -------
    Reach or None
        None when one of the runs has no validation accuracy.
    """
    scored, goals = (
        [row["val_accuracy"] for row in rows if row.get("val_accuracy") is not None] for rows in (history, baseline)
    )
    if not scored or not goals:
        return None
    target = float(max(goals))
    first = next(number for number, row in enumerate(baseline) if row.get("val_accuracy") == max(goals))
    own = _first_row(history, target)
    return Reach(
        target=target,
        baseline_epoch=int(baseline[first]["epoch"]),
        baseline_minutes=_minutes(baseline, first) if same_device else None,
        epoch=None if own is None else int(history[own]["epoch"]),
        minutes=None if own is None or not same_device else _minutes(history, own),
    )


def summarise_effort(reaches: Sequence[Reach]) -> Effort | None:
    """Average over seeds; None when there is no pair."""
    if not reaches:
        return None
    epochs = [(reach.epoch, reach.baseline_epoch) for reach in reaches if reach.epoch is not None]
    minutes = [
        (reach.minutes, reach.baseline_minutes)
        for reach in reaches
        if reach.minutes is not None and reach.baseline_minutes is not None
    ]
    return Effort(
        tuple(reaches),
        len(epochs),
        *_means(epochs),
        *_means(minutes),
    )


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[Estimate | None, Estimate | None, Estimate | None]:
    own, baseline = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    defined = all(value > 0 for value in baseline)
    ratios = [one / other for one, other in pairs] if defined else []
    return estimate_mean(own), estimate_mean(baseline), estimate_mean(ratios)


def _first_row(history: History, target: float) -> int | None:
    """Where a run first has this validation accuracy."""
    for number, row in enumerate(history):
        if row.get("val_accuracy") is not None and row["val_accuracy"] >= target - _ROUNDING:
            return number
    return None


def _minutes(history: History, last: int) -> float | None:
    """Minutes of the accelerator up to and with a row."""
    seconds = total_seconds(history[: last + 1])
    return None if seconds is None else seconds / 60


def total_seconds(history: History) -> float | None:
    """Sum the time of epochs, validation included; None when one lacks its time, or there is none."""
    seconds = [row["seconds"] for row in history if row.get("seconds") is not None]
    return round(math.fsum(seconds), 3) if len(seconds) == len(history) > 0 else None
