"""Figures of a sweep: label efficiency, validation over epochs and minutes, differences in pairs of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryo_monai.colours import curve_colour, marker_of
from cryo_monai.reports.canvases import (
    GREY,
    INK,
    LINE_STYLES,
    legend_below,
    legend_height,
    new_figure,
    short_names,
    styled,
)
from cryo_monai.sweep_results.pairs import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAND = 0.16


@dataclass(frozen=True)
class EfficiencyLine:
    """Test accuracy over the number of labelled volumes.

    Attributes
    ----------
    points : tuple
        Number of volumes and accuracy over seeds, 0 to 1.
    quoted : tuple
        Number of volumes and published accuracy.
    """

    points: tuple[tuple[float, Estimate], ...]
    quoted: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ValidationCurve:
    """Validation accuracy over training, a point per epoch that all seeds have.

    Attributes
    ----------
    epochs : tuple of int
        Epochs.
    minutes : tuple of float
        Mean minutes of the accelerator at the end of these epochs; empty where an epoch lacks its time.
    accuracies : tuple of Estimate
        Over seeds, 0 to 1.
    """

    epochs: tuple[int, ...]
    minutes: tuple[float, ...]
    accuracies: tuple[Estimate, ...]


@dataclass(frozen=True)
class DifferenceRow:
    """A row of `difference_figure`: what it is, the difference found, and the published one."""

    name: str
    estimate: Estimate
    quoted: float | None


@styled()
def efficiency_figure(
    lines: Mapping[str, EfficiencyLine], others: Mapping[str, Sequence[tuple[float, float]]], *, label: str
) -> Figure:
    """Draw test accuracies over the number of labels, on a logarithmic axis.

    Parameters
    ----------
    lines : mapping
        By name. A band is the 95 % interval of the mean; where there is none, seeds are dots. Published values are open
        markers.
    others : mapping
        Number of volumes and accuracy of other methods, by name.
    label : str
        What it shows.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    # Which handles there will be is known once all is drawn; so is the height.
    quotes = any(line.quoted for line in lines.values())
    entries = len(lines) + quotes + len(others)
    figure = new_figure(3.1 + legend_height(entries, columns=1), label=label)
    axis = figure.subplots()
    handles = []
    for number, (name, line) in enumerate(zip(short_names(list(lines), 44), lines.values(), strict=True)):
        look = _look(number)
        _draw_estimates(axis, [x for x, _ in line.points], [value for _, value in line.points], look)
        axis.plot(*_columns([(x, 100 * y) for x, y in line.quoted]), **_open(look))
        handles.append(_handle(name, **look, ms=5))
    if quotes:
        handles.append(_handle("open: published", **_open({"color": INK, "marker": "o"})))
    for number, (name, points) in enumerate(zip(short_names(list(others), 40), others.values(), strict=True)):
        grey: dict[str, Any] = {"color": GREY, "marker": ("x", "+", "1", "2")[number % 4], "linestyle": "", "ms": 7}
        axis.plot(*_columns([(x, 100 * y) for x, y in points]), **grey)
        handles.append(_handle(f"{name}, quoted", **grey))
    axis.set_xscale("log")
    numbers = sorted({x for line in lines.values() for x in [*(x for x, _ in line.points), *_columns(line.quoted)[0]]})
    axis.xaxis.set_major_locator(FixedLocator(_apart(numbers)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter("{x:.0f}")
    if len(numbers) > 1:
        axis.set_xlim(numbers[0] / 1.15, numbers[-1] * 1.15)
    axis.set_xlabel("labelled volumes to train on")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(True)
    legend_below(figure, handles, columns=1)
    return figure


@styled()
def validation_figure(curves: Mapping[str, ValidationCurve], *, label: str) -> Figure:
    """Draw the mean validation accuracy over epochs, and below over minutes, with its 95 % interval as a band."""
    timed = any(curve.minutes for curve in curves.values())
    figure = new_figure((4.4 if timed else 2.8) + legend_height(len(curves), columns=2), label=label)
    axes = figure.subplots(2 if timed else 1, 1, squeeze=False, sharey=True)[:, 0]
    handles = []
    for number, (name, curve) in enumerate(zip(short_names(list(curves), 24), curves.values(), strict=True)):
        look = _look(number)
        plain = {**look, "marker": look["marker"] if len(curve.epochs) == 1 else ""}
        _draw_estimates(axes[0], curve.epochs, curve.accuracies, plain, dots=False)
        if curve.minutes:
            _draw_estimates(axes[1], curve.minutes, curve.accuracies, plain, dots=False)
        handles.append(_handle(name, **plain))
    for axis, title in zip(axes, ("epoch", "minutes of the accelerator"), strict=False):
        axis.set_xlabel(title)
        axis.set_ylabel("validation accuracy (%)")
        axis.set_xlim(left=0)
        axis.grid(True)
    legend_below(figure, handles, columns=2)
    return figure


@styled()
def difference_figure(rows: Sequence[DifferenceRow], *, factor: float, unit: str, label: str) -> Figure:
    """Draw the difference of each row with its interval, the pairs as dots, and the published one as an open marker.

    Parameters
    ----------
    rows : sequence of DifferenceRow
        From above.
    factor, unit
        What differences are multiplied with, and the name of the axis.
    label : str
        What it shows.
    """
    quotes = any(row.quoted is not None for row in rows)
    entries = 2 + quotes
    figure = new_figure(0.75 + 0.42 * len(rows) + legend_height(entries, columns=3), label=label)
    axis = figure.subplots()
    axis.axvline(0, color=GREY, linewidth=1)
    look = _look(0)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    names = short_names([row.name for row in rows], 52)
    for place, row in enumerate(rows):
        values = [factor * value for value in row.estimate.values]
        axis.plot(values, [place + 0.17] * len(values), linestyle="", marker="o", ms=3, color=GREY, mew=0)
        mean = factor * row.estimate.mean
        if row.estimate.half_width is not None:
            half = factor * row.estimate.half_width
            axis.plot([mean - half, mean + half], [place] * 2, color=look["color"], linewidth=1.8)
        axis.plot([mean], [place], marker="o", ms=6, color=look["color"], mec=INK, mew=0.5)
        if row.quoted is not None:
            axis.plot([factor * row.quoted], [place], **_open({"color": INK, "marker": "D"}))
        # On white, so that no line runs through the words.
        axis.text(
            0.0,
            place - 0.3,
            names[place],
            transform=axis.get_yaxis_transform(),
            fontsize=8,
            color=INK,
            va="center",
            bbox=plate,
        )
    axis.set_ylim(len(rows) - 0.55, -0.6)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(unit)
    axis.margins(x=0.06)
    axis.grid(True, axis="x")
    handles = [
        _handle("mean, 95 % interval", color=look["color"], marker="o", ms=6, mec=INK, mew=0.5, linewidth=1.8),
        _handle("pairs", color=GREY, marker="o", ms=3, linestyle="", mew=0),
        *([_handle("published", **_open({"color": INK, "marker": "D"}))] if quotes else []),
    ]
    legend_below(figure, handles, columns=3)
    return figure


def _draw_estimates(
    axis: Any, places: Sequence[float], estimates: Sequence[Estimate], look: Mapping[str, Any], *, dots: bool = True
) -> None:
    """Draw means as a line, their intervals as a band, and seeds as dots where there is no interval."""
    axis.plot(places, [100 * estimate.mean for estimate in estimates], **look, ms=5, zorder=3)
    known = [
        (x, 100 * e.mean, 100 * e.half_width)
        for x, e in zip(places, estimates, strict=True)
        if e.half_width is not None
    ]
    if len(known) > 1:
        low, high = [max(0.0, y - half) for _, y, half in known], [min(100.0, y + half) for _, y, half in known]
        axis.fill_between([x for x, *_ in known], low, high, color=look["color"], alpha=_BAND, linewidth=0)
    elif known:
        axis.errorbar(*known[0][:2], yerr=known[0][2], color=look["color"], linewidth=1.2)
    if dots:
        for x, estimate in zip(places, estimates, strict=True):
            if estimate.half_width is None:
                values = [100 * value for value in estimate.values]
                axis.plot([x] * len(values), values, linestyle="", marker=".", ms=4, color=look["color"])


def _look(number: int) -> dict[str, Any]:
    return {
        "color": curve_colour(number),
        "marker": marker_of(number),
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
    }


def _open(look: Mapping[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "marker": look["marker"], "linestyle": "", "ms": 7, "mfc": "none", "mew": 1.3}


def _handle(name: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, **look)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _apart(numbers: Sequence[float], factor: float = 1.25) -> list[float]:
    """Leave out ticks whose labels would touch on the logarithmic axis."""
    kept: list[float] = []
    for number in numbers:
        if not kept or number > factor * kept[-1]:
            kept.append(number)
    return kept
