"""Pictures of explanations: slices of volumes with maps on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.reports.canvases import GREY, new_figure, styled

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


def _middle(shape: Sequence[int], mask: Mask | None) -> tuple[int, int, int]:
    """Voxel that slices go through: the middle of the particle, or of the volume."""
    if mask is not None and mask.any():
        places = [round(float(places.mean())) for places in np.nonzero(mask)]
    else:
        places = [size // 2 for size in shape]
    return places[0], places[1], places[2]


def _slice(volume: npt.NDArray[Any], axis: int, place: Sequence[int]) -> npt.NDArray[Any]:
    return np.asarray(np.take(volume, place[axis], axis=axis))
