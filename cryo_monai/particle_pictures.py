"""Pictures of particles: where they are in tomograms, and what their boxes hold."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.boxes import ParticleBoxes
from cryo_monai.colours import UNKNOWN_COLOUR, colour_of
from cryo_monai.files import atomic_write_bytes
from cryo_monai.locations import LocatedParticles
from cryo_monai.previews import power_spectrum_xz

MAX_TOMOGRAMS = 3
SLICES = 3
SHOWN = 48  # boxes on a sheet
AVERAGED = 400
AVERAGED_BYTES = 256 * 2**20  # fewer of large boxes


def write_particle_slices(
    located: LocatedParticles, path: str | os.PathLike[str], *, classes: Sequence[str] = (), radius: float = 80.0
) -> None:
    """Write a PNG of slices through tomograms with a circle around each particle that they meet.

    Parameters
    ----------
    located : LocatedParticles
        Their class names give the colours.
    path : path
        The PNG; its folder is created.
    classes : sequence of str
        Classes in the order of their colours; by default those of the particles, sorted. Others are grey.
    radius : float
        Å, of the circles; a particle is met by slices nearer than that.
    """
    names = list(classes) or sorted(set(located.particles.class_names) - {""})
    shown = located.tomograms[:MAX_TOMOGRAMS]
    aspect = shown[0].shape[1] / shown[0].shape[2]
    figure = _figure(4.2 * SLICES, (4.2 * aspect + 0.3) * len(shown) + 0.5)
    axes = figure.subplots(len(shown), SLICES, squeeze=False)
    for number, tomogram in enumerate(shown):
        depth, height, width = tomogram.shape
        size = tomogram.voxel_size or math.nan
        places = located.places[located.which == number]
        labels = [located.particles.class_names[row] for row in np.flatnonzero(located.which == number)]
        for column in range(SLICES):
            z = (column + 1) * depth // (SLICES + 1)
            slab = tomogram.read((max(0, z - 1), 0, 0), (min(depth, z + 2), height, width)).mean(0)
            axis = axes[number, column]
            low, high = np.percentile(slab, (1, 99))
            axis.imshow(slab, cmap="gray", origin="lower", vmin=low, vmax=high)
            axis.set_title(f"{tomogram.name}, z = {z}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            for place, label in zip(places, labels, strict=True):
                apart = abs(place[0] - z) * size
                if apart < radius:
                    # The circle is where the slice cuts a sphere.
                    _circle(axis, place, math.sqrt(radius**2 - apart**2) / size, _colour(label, names))
    _legend(figure, located.particles.class_names, names)
    _save(figure, path)


def write_box_sheet(boxes: ParticleBoxes, path: str | os.PathLike[str]) -> None:
    """Write a PNG to judge boxes by: central slices, averages over classes, mean power, and intensities.

    Parameters
    ----------
    boxes : ParticleBoxes
        Evenly spread ones are shown and averaged.
    path : path
        The PNG; its folder is created.
    """
    most = min(AVERAGED, AVERAGED_BYTES // (4 * boxes.settings.box**3))
    rows = np.unique(np.linspace(0, len(boxes) - 1, max(1, min(most, len(boxes)))).astype(int))
    cut = [boxes.cut(int(row)) for row in rows]
    names = [boxes.located.particles.class_names[row] or "not labelled" for row in rows]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))
    volumes = np.stack([box.volume for box in cut])
    groups = list(dict.fromkeys(sorted(names)))[:11]
    columns = 12
    lines = -(-len(shown) // columns)
    figure = _figure(columns, lines + 3.2)
    grid = figure.add_gridspec(lines + 2, columns, height_ratios=[*[1] * lines, 1, 1.4])
    middle = volumes.shape[1] // 2
    for position, index in enumerate(shown):
        axis = figure.add_subplot(grid[position // columns, position % columns])
        _slice(axis, volumes[index][middle - 1 : middle + 2].mean(0))
        axis.set_title(boxes.located.particles.ids[rows[index]][-20:], fontsize=5, pad=2)
    for position, name in enumerate(groups):
        of_class = np.array([other == name for other in names])
        axis = figure.add_subplot(grid[lines, position])
        _slice(axis, volumes[of_class].mean(0)[middle])
        axis.set_title(f"mean {name} ({of_class.sum()})", fontsize=5, pad=2)
    axis = figure.add_subplot(grid[lines + 1, :2])
    spectrum = np.mean([power_spectrum_xz(volume) for volume in volumes[shown]], axis=0)
    _slice(axis, spectrum)
    axis.set_title("log power, kx kz", fontsize=6)
    for start, values, title in (
        (3, [box.mean for box in cut], "mean of box (before normalising)"),
        (6, [box.std for box in cut], "standard deviation of box"),
        (9, [box.inside for box in cut], "share of box inside tomogram"),
    ):
        axis = figure.add_subplot(grid[lines + 1, start : start + 3])
        axis.hist(values, bins=30, color=colour_of(4))
        axis.set_title(title, fontsize=6)
        axis.tick_params(labelsize=5)
    settings = boxes.settings
    figure.suptitle(
        f"{len(boxes)} boxes of {settings.box} voxels of {settings.voxel_size:g} Å; central slices of {len(shown)}, "
        f"the rest over {len(rows)}",
        fontsize=8,
    )
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": "cryo-monai"})
    atomic_write_bytes(path, buffer.getvalue())


def _slice(axis: Any, picture: npt.NDArray[Any]) -> None:
    low, high = np.percentile(picture, (1, 99))
    axis.imshow(picture, cmap="gray", origin="lower", vmin=low, vmax=high)
    axis.set_xticks([])
    axis.set_yticks([])


def _circle(axis: Any, place: npt.NDArray[np.float64], radius: float, colour: str) -> None:
    from matplotlib.patches import Circle

    axis.add_patch(Circle((place[2], place[1]), radius, fill=False, edgecolor=colour, linewidth=1.0))


def _colour(label: str, names: Sequence[str]) -> str:
    if not names:
        return colour_of(0)  # nothing to tell apart, and grey is hard to see
    return colour_of(names.index(label)) if label in names else UNKNOWN_COLOUR


def _legend(figure: Any, labels: Sequence[str], names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    counts = Counter(labels)
    entries = [name for name in [*names, *sorted(set(labels) - set(names))] if counts[name]]
    handles = [
        Line2D([], [], marker="o", linestyle="", fillstyle="none", color=_colour(name, names)) for name in entries
    ]
    texts = [f"{name or 'no class'} ({counts[name]})" for name in entries]
    figure.legend(handles, texts, loc="outside lower center", ncols=min(6, len(entries)), fontsize=8, frameon=False)
