"""Figures of a search: values as they were found, and over each id that was searched for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cryo_monai.colours import colour_of
from cryo_monai.reports.canvases import GREY, INK, PALE, legend_below, legend_height, new_figure, short_names, styled
from cryo_monai.searches.proposals import Proposal
from cryo_monai.searches.settings import Search
from cryo_monai.searches.spaces import Choices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2
_COMPLETE: Mapping[str, Any] = {"color": colour_of(4), "marker": "o", "linestyle": "", "ms": 4.5, "mew": 0}
_PRUNED: Mapping[str, Any] = {"color": PALE, "marker": "x", "linestyle": "", "ms": 4}
_BEST: Mapping[str, Any] = {"color": colour_of(5), "marker": "D", "linestyle": "", "ms": 6, "mec": INK, "mew": 0.6}


@styled()
def progress_figure(proposals: Sequence[Proposal], search: Search, *, label: str) -> Figure:
    """Draw the value of each proposal in the order in which they were made, and the best so far."""
    figure = new_figure(2.6 + legend_height(4, columns=2), label=label)
    axis = figure.subplots()
    _draw(axis, {proposal.number: proposal.number + 1 for proposal in proposals}, proposals, search)
    places, bests = _best_so_far(proposals, search)
    axis.step(places, bests, where="post", color=GREY, linewidth=1.2, zorder=1)
    axis.set_xlim(0.5, max((proposal.number for proposal in proposals), default=0) + 1.5)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("proposal")
    axis.set_ylabel(search.metric)
    axis.grid(True)
    legend_below(figure, _handles(line=True), columns=2)
    return figure


@styled()
def slices_figure(proposals: Sequence[Proposal], search: Search, *, label: str) -> Figure:
    """Draw the value of each proposal over each id, two ids to a row."""
    names = list(search.space)
    rows = -(-len(names) // _COLUMNS)
    figure = new_figure(2.1 * rows + legend_height(3, columns=2), label=label)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name, title in zip(axes.flat, names, short_names(_last_parts(names), 24), strict=False):
        values = search.space[name]
        if isinstance(values, Choices):
            texts = [json.dumps(value, sort_keys=True) for value in values.values]
            places = {p.number: texts.index(json.dumps(p.ids[name], sort_keys=True)) for p in proposals}
            shown = _last_parts(
                [value if isinstance(value, str) else text for value, text in zip(values.values, texts, strict=True)]
            )
            turned = 30 if sum(map(len, shown)) > 24 else 0
            axis.set_xticks(
                range(len(texts)), short_names(shown, 18), rotation=turned, ha="right" if turned else "center"
            )
            axis.set_xlim(-0.5, len(texts) - 0.5)
        else:
            places = {p.number: p.ids[name] for p in proposals}
            axis.set_xscale("log" if values.log else "linear")
            if not values.log:
                axis.locator_params(axis="x", nbins=4)
        _draw(axis, places, proposals, search)
        axis.set_xlabel(title)
        axis.grid(True)
    for row in axes:
        row[0].set_ylabel(search.metric)
    legend_below(figure, _handles(line=False), columns=2)
    return figure


def _last_parts(names: Sequence[str]) -> list[str]:
    """Shorten ``train#random_clips#crop_prob`` to ``crop_prob``, unless that makes some equal."""
    short = [name.rpartition("#")[2] for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def _draw(axis: Any, places: Mapping[int, float], proposals: Sequence[Proposal], search: Search) -> None:
    """Draw dots: pruned ones pale and below, the best on top."""
    known = [(places[p.number], p) for p in proposals if p.value is not None]
    for state, look, order in (("pruned", _PRUNED, 1), ("complete", _COMPLETE, 2)):
        points = [(place, p.value) for place, p in known if p.state == state]
        axis.plot([x for x, _ in points], [y for _, y in points], zorder=order, **look)
    values = [p.value for _, p in known if p.state == "complete" and p.value is not None]
    best = next(((x, p.value) for x, p in known if p.state == "complete" and p.value == search.best(values)), None)
    if best:
        axis.plot(*[[number] for number in best], zorder=3, **_BEST)


def _best_so_far(proposals: Sequence[Proposal], search: Search) -> tuple[list[int], list[float]]:
    places: list[int] = []
    bests: list[float] = []
    for proposal in proposals:
        if proposal.state == "complete" and proposal.value is not None:
            places.append(proposal.number + 1)
            bests.append(search.best([*bests[-1:], proposal.value]))
    if places:
        places.append(len(proposals) + 1)
        bests.append(bests[-1])
    return places, bests


def _handles(*, line: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    looks = {"trained to its end": _COMPLETE, "stopped early": _PRUNED, "best": _BEST}
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    return [*handles, Line2D([], [], label="best so far", color=GREY, linewidth=1.2)] if line else handles
