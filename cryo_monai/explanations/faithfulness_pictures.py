"""The figure that says how far to trust maps: their advantage over chance, and the curves that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cryo_monai.colours import COLOURS
from cryo_monai.reports.canvases import GREY, INK, LINE_STYLES, legend_below, legend_height, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour, line style and marker of each order in which voxels are hidden.
LOOKS = {
    "map": (COLOURS[4], LINE_STYLES[0], "o"),
    "random_order": (GREY, LINE_STYLES[1], "s"),
    "centred_ball": (COLOURS[5], LINE_STYLES[2], "D"),
}
PARTS = {"deletion": ("hidden", "below"), "insertion": ("shown", "above")}
ROW, AROUND, CURVE = 0.22, 0.62, 1.6  # inches: a dot with its interval, what is around dots, a panel of curves

Dot = tuple[str, str, Mapping[str, Any]]


@styled()
def faithfulness_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draw the advantage of maps over random blobs, each network's curves in a column, and the mass inside particles.

    Parameters
    ----------
    numbers : mapping
        Of `faithfulness_numbers`. Curves of different networks are never drawn on one axis: how high they are says how
        confident a network is.
    """
    networks = list(numbers["networks"].values())
    advantages = [dot for network in networks for dot in _dots(network, "advantage", ("map", "centred_ball"))]
    curved = [network for network in networks if network["orders"]["map"].get("curves")]
    inside = [dot for network in networks for dot in _dots(network, "mass_inside", ("map",))]
    inside += _dots(networks[0], "mass_inside", ("centred_ball",))  # the same for every network
    parts = {
        "advantages": AROUND + ROW * len(advantages) if advantages else 0,
        "curves": 2 * CURVE + 0.4 if curved else 0,
        "inside": AROUND + ROW * len(inside) if inside else 0,
    }
    heights = {part: height for part, height in parts.items() if height}
    figure = new_figure(sum(heights.values()) + legend_height(1) + 0.3, label="faithfulness of explanations")
    figure.suptitle(f"{numbers['heading']}, {numbers['num_volumes']} volumes, 95 % intervals", fontsize=9)
    rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    for part, within in zip(heights, rows, strict=True):
        if part == "curves":
            _draw_curves(within, curved, numbers["fractions"])
        elif part == "advantages":
            _draw_dots(within, advantages, 0.0)
            within.suptitle("Does the map beat chance? Yes, where clearly right of the line", fontsize=9)
            within.supxlabel("advantage over random blobs (insertion − deletion)", fontsize=9)
        else:
            axis = _draw_dots(within, inside, (numbers.get("mask_fraction") or {}).get("mean"))
            axis.set_xlim(0, None)
            within.suptitle("Is the map on the particle? Yes, where clearly right of the line", fontsize=9)
            within.supxlabel("fraction of the map inside the particle", fontsize=9)
    legend_below(figure, _legend(networks), columns=3)
    return figure


def _dots(network: Mapping[str, Any], number: str, orders: Sequence[str]) -> list[Dot]:
    """Label, order, and mean with interval, of the orders of a network that have the number."""
    found = [(key, network["orders"].get(key, {})) for key in orders]
    return [
        (network["name"] if key == "map" else "ball", key, order[number]) for key, order in found if order.get(number)
    ]


def _draw_dots(figure: Any, dots: Sequence[Dot], chance: float | None) -> Any:
    axis = figure.subplots()
    for place, (_, key, number) in enumerate(dots):
        mean, (colour, _, marker) = number["mean"], LOOKS[key]
        low, high = number["interval"] or (mean, mean)
        axis.plot([low, high], [-place, -place], color=colour, linewidth=2)
        axis.plot([mean], [-place], color=colour, marker=marker, markersize=6)
        axis.annotate(f"{mean:.3f}", (high, -place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if chance is not None:
        axis.axvline(chance, color=INK, linestyle=":", linewidth=1, zorder=0)
    axis.set_yticks([-place for place in range(len(dots))], [label for label, _, _ in dots])
    axis.set_ylim(0.4 - len(dots), 0.6)
    axis.margins(x=0.15)
    return axis


def _draw_curves(figure: Any, networks: Sequence[Mapping[str, Any]], fractions: Sequence[float]) -> None:
    figure.suptitle("Where it comes from: compare with grey, within a column", fontsize=9)
    axes = figure.subplots(2, len(networks), squeeze=False, sharey=True)
    for network, column in zip(networks, axes.T, strict=True):
        column[0].set_title(network["name"])
        for (part, (done, better)), axis in zip(PARTS.items(), column, strict=True):
            for key, order in network["orders"].items():
                curve, (colour, style, _) = order["curves"][part], LOOKS[key]
                axis.fill_between(fractions, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
                axis.plot(fractions, curve["mean"], color=colour, linestyle=style)
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=f"fraction {done}", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axis.grid(True)
            axes[list(PARTS).index(part), 0].set_ylabel(f"probability\n({better} grey is better)", fontsize=8)


def _legend(networks: Sequence[Mapping[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    names = {key: order["name"] for network in networks for key, order in network["orders"].items()}
    return [
        Line2D([], [], color=LOOKS[key][0], linestyle=LOOKS[key][1], marker=LOOKS[key][2], markersize=4, label=name)
        for key, name in names.items()
    ]
