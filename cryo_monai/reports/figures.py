"""Figures of a report: the same size, the same colours and shapes, readable on a phone and in print.

Nothing is told by colour alone: classes have shapes or line styles too, runs have markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import colour_of, marker_of
from cryo_monai.reports.canvases import (
    GREY,
    INK,
    WIDTH,
    legend_below,
    legend_height,
    new_figure,
    png_of,
    short_names,
    styled,
    svg_of,
)
from cryo_monai.reports.curve_figures import precision_recall_figure, reliability_figure, roc_figure
from cryo_monai.reports.epoch_figures import run_curves, training_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]

__all__ = [
    "confusion_figure",
    "embedding_figure",
    "png_of",
    "precision_recall_figure",
    "recall_figure",
    "reliability_figure",
    "roc_figure",
    "run_curves",
    "svg_of",
    "training_curves",
]

MAX_VECTOR_POINTS = 2000


@styled()
def confusion_figure(matrix: Sequence[Sequence[int]], class_names: Sequence[str], *, normalised: bool) -> Figure:
    """Draw a confusion matrix (fig. 4 of the paper).

    Parameters
    ----------
    matrix : sequence of sequence of int
        Counts; rows are true classes.
    class_names : sequence of str
        By label.
    normalised : bool
        Divide each row by its sum: the diagonal is the recall. Rows without volumes stay grey.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    number = len(class_names)
    width = min(max(WIDTH, 1.3 + 0.28 * number), 14.0)
    kind = "row-normalised" if normalised else "counts"
    figure = new_figure(width * 0.95, width=width, label=f"Confusion matrix of {number} classes, {kind}")
    axis = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shown = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0) if normalised else counts
    top = 1.0 if normalised else max(float(counts.max(initial=1)), 1.0)
    axis.set_facecolor("#EDEDED")
    axis.imshow(np.ma.masked_invalid(shown), cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
    size = 8 if number <= 11 else 6.5
    names = short_names(class_names, 20)
    axis.set_xticks(range(number), names, rotation=90, fontsize=size)
    axis.set_yticks(range(number), names, fontsize=size)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.spines[:].set_visible(False)
    if number <= 30:
        for (row, column), value in np.ndenumerate(shown):
            text = _cell(value, normalised=normalised, blank=number > 6)
            dark = np.isfinite(value) and value > 0.55 * top
            axis.text(column, row, text, ha="center", va="center", fontsize=size - 1, color="white" if dark else INK)
    return figure


@styled()
def recall_figure(
    class_names: Sequence[str],
    recalls: Mapping[str, Sequence[float | None]],
    intervals: Mapping[str, Sequence[Sequence[float] | None]],
) -> Figure:
    """Draw the recall of each class in several runs, with its interval.

    Parameters
    ----------
    class_names : sequence of str
        By label; one row each, the first on top.
    recalls, intervals : mapping
        By the name of the run; one value and one ``[low, high]`` per class, None where undefined.
    """
    row = max(0.24, 0.1 * len(recalls) + 0.1)
    height = 0.6 + row * len(class_names) + legend_height(len(recalls), columns=1)
    figure = new_figure(height, label=f"Recall of {len(class_names)} classes in {len(recalls)} runs")
    axis = figure.subplots()
    names = short_names(list(recalls), 48)
    step = 0.8 / len(recalls)
    for number, run in enumerate(recalls):
        offset = (number - (len(recalls) - 1) / 2) * step
        places = [(place + offset, value) for place, value in enumerate(recalls[run]) if value is not None]
        for place, interval in enumerate(intervals[run]):
            if interval is not None:
                axis.plot(interval, [place + offset] * 2, color=colour_of(number), linewidth=1.6)
        axis.plot([v for _, v in places], [y for y, _ in places], color=colour_of(number), **_look(number))
    axis.set_yticks(range(len(class_names)), short_names(class_names, 18))
    axis.set_ylim(len(class_names) - 0.45, -0.55)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("recall")
    axis.grid(True, axis="x")
    for place in range(1, len(class_names)):
        axis.axhline(place - 0.5, color="#E6E6E6", linewidth=0.7)
    axis.tick_params(axis="y", length=0)
    handles = [_point(colour_of(n), marker_of(n), label=name) for n, name in enumerate(names)]
    legend_below(figure, handles, columns=1)
    return figure


@styled()
def embedding_figure(points: Floats, labels: Labels, class_names: Sequence[str], *, title: str = "") -> Figure:
    """Draw projected features `(n, 2)` with the colour and shape of their class; labels below 0 are unknown.

    Above two thousand points they become pixels in the SVG, which else would be too large.
    """
    columns = 2 if len(class_names) <= 24 else 3
    entries = len(class_names) + int((labels < 0).any())
    height = 3.7 + (0.25 if title else 0) + legend_height(entries, columns=columns)
    figure = new_figure(height, label=title or "Projection of the features of the volumes, by class")
    axis = figure.subplots()
    area = float(np.clip(4000 / max(len(points), 1), 6, 26))
    options: dict[str, Any] = {"linewidths": 0.4, "rasterized": len(points) > MAX_VECTOR_POINTS}
    unknown = labels < 0
    if unknown.any():
        axis.scatter(points[unknown, 0], points[unknown, 1], s=area, c=GREY, marker="x", **options)
    handles = []
    for number, name in enumerate(short_names(class_names, 44 // columns - 2)):
        at = labels == number
        axis.scatter(
            points[at, 0], points[at, 1], s=area, c=colour_of(number), marker=marker_of(number), edgecolors=INK,
            **options,
        )  # fmt: skip
        shown = name if at.any() else f"{name} (none)"
        handles.append(_point(colour_of(number), marker_of(number), label=shown))
    if unknown.any():
        handles.append(_point(GREY, "x", label="unknown"))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.set_title(title)
    legend_below(figure, handles, columns=columns)
    return figure


def _cell(value: float, *, normalised: bool, blank: bool) -> str:
    """Text of a cell of a confusion matrix; zeros are left blank where there are many."""
    if not np.isfinite(value):
        return "–"
    if value == 0 and blank:
        return ""
    return f"{value:.2f}".removeprefix("0") if normalised else f"{value:.0f}"


def _look(number: int) -> dict[str, Any]:
    return {"linestyle": "", "marker": marker_of(number), "ms": 5, "mec": INK, "mew": 0.5}


def _point(colour: str, marker: str, *, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", color=colour, marker=marker, ms=5.5, mew=0.5 if marker != "x" else 1.2,
                  mec=INK if marker != "x" else colour, label=label)  # fmt: skip
