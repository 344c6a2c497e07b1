"""Learning curves with their bands, the trials they were fitted to, and where they reach a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.budgets.learning_curves import LEVEL
from cryo_monai.budgets.planning import LIMIT, GroupBudget
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 120


@styled()
def budget_figure(groups: Sequence[GroupBudget], names: Sequence[str], *, metric: str, target: float) -> Figure:
    """Draw the score over the number of labels: each trial, the fitted curve with its 95 % band, and the target.

    A curve is dashed where no trial is; a bar on the line of the target is the interval of the labels that reach it.

    Parameters
    ----------
    groups : sequence of GroupBudget
        To be drawn on one axis, at least one with trials.
    names : sequence of str
        What to call them.
    metric : str
        Name of the score.
    target : float
        Score that is aimed at.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(3.3 + legend_height(len(groups) + 2, columns=1), label=f"{metric} over the number of labels")
    axis = figure.subplots()
    last = _last(groups)
    handles: list[Any] = []
    lowest = target
    for number, (group, name) in enumerate(zip(groups, short_names(names, 40), strict=True)):
        colour, style = curve_colour(number), LINE_STYLES[number % 2 * 3]
        look: dict[str, Any] = {"color": colour, "marker": marker_of(number), "ms": 4.5, "mec": INK, "mew": 0.4}
        trials = group.group.trials
        axis.plot(trials.labels, trials.scores, linestyle="none", alpha=0.75, zorder=3, **look)
        lowest = min(lowest, *trials.scores)
        if group.curve is not None:
            lowest = min(lowest, _draw_curve(axis, group, last, colour, style))
        handles.append(Line2D([], [], label=name, linestyle=style if group.curve is not None else "none", **look))
    axis.axhline(target, color=INK, linewidth=0.9, linestyle=":", zorder=2)
    handles += [
        Line2D([], [], color=INK, linewidth=0.9, linestyle=":", label=f"target {target:g}; bar: labels that reach it"),
        Line2D([], [], color=GREY, linewidth=6, alpha=0.35, label=f"{100 * LEVEL:.0f} % band of the mean over seeds"),
    ]
    _finish(axis, metric, lowest)
    legend_below(figure, handles, columns=1)
    return figure


def _last(groups: Sequence[GroupBudget]) -> float:
    """Largest number of labels to draw: twice the most tried, or farther if a target lies there."""
    ends = [2 * float(group.group.trials.labels.max()) for group in groups if len(group.group.trials.labels)]
    for group in groups:
        if group.target is not None and group.target.labels.median is not None:
            ends.append(1.5 * group.target.labels.median)
    limits = [LIMIT * float(group.curve.sizes.labels[-1]) for group in groups if group.curve is not None]
    return min(max(ends), max([*limits, max(ends[:1])]))


def _draw_curve(axis: Any, group: GroupBudget, last: float, colour: str, style: Any) -> float:
    """Draw the median curve, its band, and the bar on the target; return the lowest score."""
    curve, target = group.curve, group.target
    if curve is None or target is None:
        return 1.0
    sizes = curve.sizes.labels
    labels = np.geomspace(sizes[0], max(last, sizes[-1]), POINTS)
    low, middle, high = _quantiles(curve.scores_at(labels))
    axis.fill_between(labels, low, high, color=colour, alpha=0.18, linewidth=0, zorder=1)
    tried = labels <= sizes[-1]
    beyond = labels >= labels[tried][-1]
    axis.plot(labels[tried], middle[tried], color=colour, linestyle=style, linewidth=1.6, zorder=4)
    axis.plot(labels[beyond], middle[beyond], color=colour, linestyle=(0, (1.5, 1.5)), linewidth=1.4, zorder=4)
    found = target.labels
    if found.median is not None and target.status != "with the fewest":
        end = min(found.high or target.limit, last)
        axis.plot([found.low or sizes[0], end], [target.score] * 2, color=colour, linewidth=4, alpha=0.55,
                  solid_capstyle="butt", zorder=5)  # fmt: skip
        axis.plot([found.median] * 2, [0, target.score], color=colour, linewidth=0.8, zorder=2)
        axis.plot(found.median, target.score, "|", color=INK, ms=9, mew=1.4, zorder=6)
    return float(low.min())


def _quantiles(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.quantile(scores, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0))


def _finish(axis: Any, metric: str, lowest: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("labelled training volumes")
    axis.set_ylabel(metric)
    axis.set_ylim(max(0.0, lowest - 0.05), 1.01)
    axis.grid(True)
