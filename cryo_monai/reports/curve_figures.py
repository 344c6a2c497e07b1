"""Curves of probabilities against labels: ROC, precision and recall, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import COLOURS, colour_of
from cryo_monai.reports.canvases import (
    GREY,
    INK,
    LINE_STYLES,
    PALE,
    legend_below,
    legend_height,
    new_figure,
    short_names,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]
Curves = dict[int, tuple[Floats, Floats, float]]

# With more classes only the worst have a curve in colour.
MAX_CURVES, NUM_WORST = 12, 6


@styled()
def roc_figure(probabilities: Floats, labels: Labels, class_names: Sequence[str]) -> Figure:
    """Draw the ROC curve of each class against the others, from probabilities `(n, C)` and labels `(n,)`.

    A class without volumes, or without volumes of other classes, has no curve. Of more than twelve classes the six
    with the lowest areas are in colour.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    curves: Curves = {}
    for number in range(len(class_names)):
        positive = labels == number
        if 0 < positive.sum() < len(labels):
            score = probabilities[:, number]
            rate, hits, _ = roc_curve(positive, score)
            curves[number] = (rate, hits, float(roc_auc_score(positive, score)))
    label = "Receiver operating characteristic of each class against the others"
    figure, axis = _draw_curves(curves, class_names, value="AUC", label=label)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 3)), zorder=1)
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    return figure


@styled()
def precision_recall_figure(probabilities: Floats, labels: Labels, class_names: Sequence[str]) -> Figure:
    """Draw precision over recall of each class; arguments as `roc_figure`, the number is the average precision."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    curves: Curves = {}
    for number in range(len(class_names)):
        positive = labels == number
        if positive.any():
            score = probabilities[:, number]
            precision, recall, _ = precision_recall_curve(positive, score, drop_intermediate=True)
            curves[number] = (recall, precision, float(average_precision_score(positive, score)))
    label = "Precision over recall of each class against the others"
    figure, axis = _draw_curves(curves, class_names, value="AP", label=label, drawstyle="steps-post")
    axis.set_xlabel("recall")
    axis.set_ylabel("precision")
    return figure


@styled()
def reliability_figure(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy over confidence, before and after temperature scaling, above the share of volumes in each bin.

    The area of a point grows with the share of its bin.

    Parameters
    ----------
    before, after : sequence of mapping
        Bins with ``lower``, ``upper``, ``count``, ``confidence`` and ``accuracy``; the last two are null where the
        count is 0.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(4.9, label="Reliability diagram: accuracy over confidence before and after temperature scaling")
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 3)))
    handles = []
    for bins, name, colour, style, marker in ((before, "before", 5, "--", "s"), (after, "after", 4, "-", "o")):
        filled = [entry for entry in bins if entry["count"]]
        total = sum(entry["count"] for entry in filled) or 1
        x = [entry["confidence"] for entry in filled]
        y = [entry["accuracy"] for entry in filled]
        look: dict[str, Any] = {"color": colour_of(colour), "linestyle": style}
        axis.plot(x, y, linewidth=0.9, **look)
        areas = [12 + 150 * entry["count"] / total for entry in filled]
        axis.scatter(x, y, s=areas, marker=marker, c=colour_of(colour), edgecolors=INK, linewidths=0.5, zorder=3)
        handles.append(Line2D([], [], marker=marker, ms=5, mec=INK, mew=0.5, label=f"{name} scaling", **look))
        edges = [entry["lower"] for entry in bins] + [entry["upper"] for entry in bins[-1:]]
        if len(edges) > 1:
            below.stairs([entry["count"] / total for entry in bins], edges, linewidth=1.3, **look)
    axis.set_ylabel("accuracy")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    below.set_ylabel("share of\nvolumes")
    below.set_xlabel("confidence (highest probability)")
    for each in (axis, below):
        each.grid(True)
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="ideal"))
    legend_below(figure, handles, columns=3)
    return figure


def _draw_curves(
    curves: Curves, class_names: Sequence[str], *, value: str, label: str, drawstyle: str = "default"
) -> tuple[Figure, Any]:
    """Draw a curve per class into the unit square, with its number in the legend, the lowest first."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke

    order = sorted(curves, key=lambda number: curves[number][2])
    told = order if len(curves) <= MAX_CURVES else order[:NUM_WORST]
    others = [number for number in order if number not in told]
    entries = len(told) + bool(others)
    figure = new_figure(3.9 + legend_height(entries), label=label)
    axis = figure.subplots()
    for number in others:
        axis.plot(*curves[number][:2], color=PALE, linewidth=0.9, drawstyle=drawstyle)
    handles: list[Any] = []
    names = short_names(class_names, 18)
    for number in reversed(told):
        style = LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)]
        # A dark rim, since yellow is hard to see on white.
        rim = [Stroke(linewidth=2.1, foreground=INK), Normal()]
        options: dict[str, Any] = {
            "color": colour_of(number),
            "linestyle": style,
            "linewidth": 1.5,
            "path_effects": rim,
        }
        axis.plot(*curves[number][:2], drawstyle=drawstyle, **options)
        handles.insert(0, Line2D([], [], label=f"{names[number]} {curves[number][2]:.3f}", **options))
    if others:
        handles.append(Line2D([], [], color=PALE, label=f"{len(others)} others ≥ {curves[others[0]][2]:.3f}"))
    if not curves:
        axis.text(0.5, 0.5, "not defined:\nthe labels are all of one class", ha="center", va="center", color=INK)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_aspect("equal")
    axis.grid(True)
    axis.set_title(f"Classes by {value}, the lowest first" if curves else "")
    legend_below(figure, handles)
    return figure, axis
