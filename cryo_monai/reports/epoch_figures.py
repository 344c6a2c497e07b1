"""Losses and accuracies over the epochs, of one run and of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import colour_of, marker_of
from cryo_monai.reports.canvases import GREY, INK, PALE, legend_below, new_figure, short_names, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Epochs = npt.NDArray[np.int64]


@styled()
def training_curves(history: Sequence[Mapping[str, Any]], *, best_epoch: int | None = None) -> Figure:
    """Draw loss above accuracy and AUC over the epochs of one run (fig. 6 of the paper).

    Parameters
    ----------
    history : sequence of mapping
        Rows of ``metrics.json``; columns that are missing or null are not drawn.
    best_epoch : int, optional
        Marked; by default the first with the highest ``key_metric``.
    """
    columns = ("train_loss", "val_loss"), ("train_accuracy", "val_accuracy", "val_auc")
    looks = {"train": ("training", 4, "--"), "val": ("validation", 5, "-"), "auc": ("validation AUC", 2, "-.")}
    figure = new_figure(4.5, label="Loss, accuracy and AUC of training and validation over the epochs")
    axes = figure.subplots(2, 1, sharex=True)
    drawn = {}
    for axis, names in zip(axes, columns, strict=True):
        for column in names:
            epochs, values = _column(history, column)
            name, colour, style = looks["auc" if column == "val_auc" else column.partition("_")[0]]
            if len(epochs):
                marker = "o" if len(epochs) <= 3 else None
                (line,) = axis.plot(epochs, values, style, color=colour_of(colour), label=name, marker=marker, ms=4)
                drawn[name] = line
    best = _best_epoch(history) if best_epoch is None else best_epoch
    _mark_epochs(axes, best, _rate_drops(history))
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("accuracy, AUC")
    axes[1].set_ylim(-0.02, 1.02)
    _finish_epochs(axes, [row["epoch"] for row in history])
    legend_below(figure, list(drawn.values()), columns=3)
    return figure


@styled()
def run_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the losses and accuracies of several runs on one axis: dashed in training, solid in validation.

    Parameters
    ----------
    histories : mapping
        Rows of ``metrics.json`` by the name of the run. The best epoch of each has a marker.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(
        4.6 + 0.16 * len(histories), label=f"Loss and accuracy of {', '.join(histories)} over the epochs"
    )
    axes = figure.subplots(2, 1, sharex=True)
    for number, history in enumerate(histories.values()):
        best = _best_epoch(history)
        for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
            for split, style, width in (("train", "--", 1.0), ("val", "-", 1.6)):
                epochs, values = _column(history, f"{split}_{quantity}")
                axis.plot(epochs, values, style, color=colour_of(number), linewidth=width)
                at = (epochs == best) & (split == "val")
                axis.plot(epochs[at], values[at], marker_of(number), color=colour_of(number), ms=6, mec=INK, mew=0.6)
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("accuracy")
    axes[1].set_ylim(-0.02, 1.02)
    _finish_epochs(axes, [row["epoch"] for history in histories.values() for row in history])
    handles = [
        Line2D([], [], color=colour_of(number), label=name, marker=marker_of(number), ms=6, mec=INK, mew=0.6)
        for number, name in enumerate(short_names(list(histories), 48))
    ]
    handles += [Line2D([], [], color=GREY, label="validation; marker: best epoch"),
                Line2D([], [], color=GREY, ls="--", lw=1.0, label="training")]  # fmt: skip
    legend_below(figure, handles, columns=1)
    return figure


def _column(history: Sequence[Mapping[str, Any]], name: str) -> tuple[Epochs, npt.NDArray[np.float64]]:
    """Epochs and values of a column, where it has any."""
    rows = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    return np.array([epoch for epoch, _ in rows], dtype=np.int64), np.array([value for _, value in rows], dtype=float)


def _best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    epochs, values = _column(history, "key_metric")
    return int(epochs[values.argmax()]) if len(epochs) else None


def _rate_drops(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Epochs from which the learning rate is at most half of that before; none when it falls all the time."""
    epochs, rates = _column(history, "lr")
    at = np.flatnonzero(rates[1:] <= 0.5 * rates[:-1]) + 1
    return [(int(epochs[n]), float(rates[n])) for n in at] if len(at) <= 5 else []


def _finish_epochs(axes: Any, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if len(set(epochs)) == 1:
        axes[-1].set_xlim(epochs[0] - 1, epochs[0] + 1)
    for axis in axes:
        axis.grid(True)


def _mark_epochs(axes: Any, best: int | None, drops: Sequence[tuple[int, float]]) -> None:
    """Mark the best epoch with a line and a triangle, and where the learning rate fell with dotted lines."""
    for axis in axes:
        for epoch, _ in drops:
            axis.axvline(epoch - 0.5, color=PALE, linestyle=":", linewidth=1.2, zorder=1)
        if best is not None:
            axis.axvline(best, color=INK, linestyle="-", linewidth=0.8, zorder=1)
    top = axes[0].get_xaxis_transform()
    for epoch, rate in drops:
        axes[0].text(epoch - 0.5, 1.02, f"lr {rate:.0e}".replace("e-0", "e-"), transform=top, fontsize=7, color=GREY,
                     ha="right", va="bottom")  # fmt: skip
    if best is not None:
        axes[0].text(best, 1.1, f"best epoch {best} ▾", transform=top, fontsize=8, color=INK, ha="right", va="bottom")
