"""Pictures of explanations: slices of volumes with maps on them, and the figure that says how far to trust maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import COLOURS
from cryo_monai.reports.canvases import GREY, INK, LINE_STYLES, WIDTH, legend_below, legend_height, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR_MAP = "plasma"  # even to the eye, also without colour
OPACITY = 0.75  # of the highest of a map; zero lets the volume through
OUTLINE = "#00FFFF"
_PLANES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))  # cut along, to the right, upwards

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@styled()
def explanation_panel(
    volume: Volume, maps: Mapping[str, Volume], *, mask: Mask | None = None, title: str = ""
) -> Figure:
    """Draw three orthogonal slices of a volume, and beside them the same with each map on top.

    Parameters
    ----------
    volume : array
        `(z, y, x)`.
    maps : mapping
        Heading to map `(z, y, x)`, zero or positive; each is drawn as shares of its own highest value.
    mask : array, optional
        `(z, y, x)`, true in the particle: slices go through its middle, and it is outlined.
    title : str
        Above all.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    place = _middle(volume.shape, mask)
    columns = {"volume": None, **maps}
    figure = new_figure(3 * 1.75 + 0.5, width=1.75 * len(columns) + 0.75, label=title or "explanation")
    axes = figure.subplots(3, len(columns), squeeze=False)
    low, high = np.percentile(volume, (1, 99))
    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, 256))
    colours[:, 3] = OPACITY * np.linspace(0, 1, 256)
    ramp = ListedColormap(colours)
    for column, (heading, found) in enumerate(columns.items()):
        for row, (cut, right, up) in enumerate(_PLANES):
            axis = axes[row, column]
            options = {"origin": "lower", "interpolation": "nearest"}
            axis.imshow(_slice(volume, row, place), cmap="gray", vmin=low, vmax=high, **options)
            if found is not None:
                highest = float(found.max()) or 1.0
                axis.imshow(_slice(found, row, place) / highest, cmap=ramp, vmin=0, vmax=1, **options)
            if mask is not None and _slice(mask, row, place).any():
                axis.contour(_slice(mask, row, place).astype(float), levels=[0.5], colors=OUTLINE, linewidths=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if column == 0:
                axis.set_ylabel(f"{cut} = {place[row]}", fontsize=8)
            axis.set_xlabel(f"{right} →, {up} ↑", fontsize=7, color=GREY)
            if row == 0:
                empty = "" if found is None or found.max() > 0 else "\n(nothing speaks for the class)"
                axis.set_title(heading + empty, fontsize=8)
    if maps:
        bar = figure.colorbar(ScalarMappable(cmap=ramp), ax=axes, shrink=0.5, aspect=30, pad=0.02)
        bar.set_label("share of the map's highest value" + (", particle outlined" if mask is not None else ""))
        bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


@styled()
def sample_slices(volumes: Sequence[Volume], headings: Sequence[str]) -> Figure:
    """Draw the three middle slices of some volumes `(z, y, x)`, one volume in a column."""
    count = max(1, len(volumes))
    figure = new_figure(3 * 1.3 + 0.4, width=1.3 * count + 0.3, label="sample slices")
    axes = figure.subplots(3, count, squeeze=False)
    for column, (volume, heading) in enumerate(zip(volumes, headings, strict=True)):
        low, high = np.percentile(volume, (1, 99))
        for row in range(3):
            axis = axes[row, column]
            picture = _slice(volume, row, _middle(volume.shape, None))
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        axes[0, column].set_title(heading, fontsize=7)
    for row, (cut, _, _) in enumerate(_PLANES):
        axes[row, 0].set_ylabel(f"middle {cut}", fontsize=8)
    return figure


@styled()
def faithfulness_figure(numbers: Mapping[str, Any]) -> Figure:
    """Draw deletion and insertion curves and the mass of maps inside particles, with 95 % intervals.

    Parameters
    ----------
    numbers : mapping
        Of `faithfulness_numbers`: groups such as ``run`` and ``random_order``, in the order of the legend.
    """
    from matplotlib.lines import Line2D

    groups = list(numbers["groups"].items())
    curved = [(name, group) for name, group in groups if group.get("curves")]
    inside = [(name, group) for name, group in groups if group.get("mass_inside")]
    parts = [*(["deletion", "insertion"] if curved else []), *(["inside"] if inside else [])]
    extra = legend_height(len(curved), columns=1) + 0.2
    figure = new_figure(2.1 * max(1, len(parts)) + extra, width=WIDTH, label="faithfulness of explanations")
    axes = figure.subplots(max(1, len(parts)), 1, squeeze=False)[:, 0]
    look = {name: (COLOURS[(4, 5, 2, 6)[n % 4]], LINE_STYLES[n % 4]) for n, (name, _) in enumerate(groups)}
    for axis, part in zip(axes, parts, strict=False):
        if part == "inside":
            _draw_inside(axis, inside, numbers.get("mask_fraction"), look)
            continue
        for name, group in curved:
            curve, (colour, style) = group["curves"][part], look[name]
            axis.fill_between(numbers["fractions"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
            axis.plot(numbers["fractions"], curve["mean"], color=colour, linestyle=style)
        axis.set_ylim(0, 1.02)
        axis.set_xlim(0, 1)
        axis.set_ylabel("probability")
        axis.grid(True)
        better, done = ("lower", "hidden") if part == "deletion" else ("higher", "shown")
        axis.set_title(f"{part}: {better} is better", loc="left")
        axis.set_xlabel(f"fraction of voxels {done}, highest of the map first")
    handles = [
        Line2D([], [], color=look[name][0], linestyle=look[name][1], label=_entry(group)) for name, group in curved
    ]
    legend_below(figure, handles, columns=1)
    figure.suptitle(f"{numbers['heading']}, {numbers['num_volumes']} volumes", fontsize=9)
    return figure


def _entry(group: Mapping[str, Any]) -> str:
    areas = [group[part]["mean"] for part in ("deletion", "insertion")]
    return f"{group['name']} (areas {areas[0]:.2f}, {areas[1]:.2f})"


def _draw_inside(
    axis: Any, groups: Sequence[tuple[str, Any]], chance: Mapping[str, Any] | None, look: Mapping[str, tuple[str, str]]
) -> None:
    for place, (name, group) in enumerate(groups):
        mean, interval = group["mass_inside"]["mean"], group["mass_inside"]["interval"]
        low, high = interval or (mean, mean)
        axis.plot([low, high], [-place, -place], color=look[name][0], linewidth=2)
        axis.plot([mean], [-place], color=look[name][0], marker="oD^s"[place % 4], markersize=6)
        axis.annotate(f"{mean:.3f}", (high, -place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if chance:
        axis.axvline(chance["mean"], color=INK, linestyle=":", linewidth=1)
        below = (chance["mean"], -len(groups) + 0.35)
        axis.annotate(f"chance {chance['mean']:.3f}", below, (4, 0), textcoords="offset points", fontsize=8)
    axis.set_yticks([-place for place in range(len(groups))], [group["name"] for _, group in groups])
    axis.set_ylim(-len(groups) + 0.1, 0.6)
    axis.set_xlim(0, None)
    axis.margins(x=0.15)
    axis.set_title("fraction of the map inside the particle", loc="left")


def _middle(shape: Sequence[int], mask: Mask | None) -> tuple[int, int, int]:
    """Voxel that slices go through: the middle of the particle, or of the volume."""
    if mask is not None and mask.any():
        places = [round(float(places.mean())) for places in np.nonzero(mask)]
    else:
        places = [size // 2 for size in shape]
    return places[0], places[1], places[2]


def _slice(volume: npt.NDArray[Any], axis: int, place: Sequence[int]) -> npt.NDArray[Any]:
    return np.asarray(np.take(volume, place[axis], axis=axis))
