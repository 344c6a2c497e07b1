"""Classified particles as points for napari (CSV), ChimeraX (CMM) and ArtiaX (RELION STAR)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import UNKNOWN_COLOUR, colour_of
from cryo_monai.files import atomic_write_text
from cryo_monai.locations import LocatedParticles, list_particles
from cryo_monai.particles import write_particles
from cryo_monai.tomograms import Tomogram


def write_points(
    folder: Path,
    located: LocatedParticles,
    *,
    class_names: Sequence[str],
    classes: Sequence[str],
    probabilities: npt.NDArray[np.float64],
) -> list[Path]:
    """Write the particles of every tomogram as ``NAME.napari.csv``, ``NAME.cmm`` and ``NAME.star``.

    Parameters
    ----------
    folder : Path
        Created when missing.
    located : LocatedParticles
        Particles and where they lie.
    class_names : sequence of str
        Class of each particle.
    classes : sequence of str
        All classes, which give the colours; others are grey.
    probabilities : array
        `(n,)`, of the class.

    Returns
    -------
    list of Path
        What was written.
    """
    written = []
    for number, tomogram in enumerate(located.tomograms):
        rows = np.flatnonzero(located.which == number)
        names = [class_names[int(row)] for row in rows]
        ids = [located.particles.ids[row] for row in rows]
        places, chances = located.places[rows], probabilities[rows]
        rotations = None if located.particles.rotations is None else located.particles.rotations[rows]
        stem = tomogram.name
        files = [folder / f"{stem}{ending}" for ending in (".napari.csv", ".cmm", ".star")]
        atomic_write_text(files[0], napari_points(ids, places, names, chances))
        atomic_write_text(files[1], chimerax_markers(tomogram, ids, places, names, classes))
        listed = list_particles(
            [tomogram], np.zeros(len(rows)), places, ids=ids, rotations=rotations, class_names=names, scores=chances
        )
        write_particles(files[2], listed.particles)
        written += files
    return written


def napari_points(
    ids: Sequence[str],
    places: npt.NDArray[np.float64],
    class_names: Sequence[str],
    probabilities: npt.NDArray[np.float64],
) -> str:
    """CSV text that napari opens as a Points layer, in voxels, ``axis-0`` being z; other columns become features."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["index", "axis-0", "axis-1", "axis-2", "id", "class_name", "probability"])
    for row, place in enumerate(places):
        shown = [f"{value:.3f}" for value in place]
        writer.writerow([row, *shown, ids[row], class_names[row], f"{probabilities[row]:.6f}"])
    return stream.getvalue()


def chimerax_markers(
    tomogram: Tomogram,
    ids: Sequence[str],
    places: npt.NDArray[np.float64],
    class_names: Sequence[str],
    classes: Sequence[str],
    *,
    name: str | None = None,
) -> str:
    """Markers for ChimeraX (CMM, an XML format), coloured by class, in Å where ChimeraX shows the tomogram.

    ``name`` is what ChimeraX calls the set, by default the tomogram's.
    """
    size = tomogram.voxel_size or math.nan
    lines = [f"<marker_set name={quoteattr(tomogram.name if name is None else name)}>"]
    for row, (z, y, x) in enumerate(places * size + np.asarray(tomogram.origin)):
        class_name = class_names[row]
        colour = colour_of(classes.index(class_name)) if class_name in classes else UNKNOWN_COLOUR
        red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
        lines.append(
            f'<marker id="{row + 1}" x="{x:.2f}" y="{y:.2f}" z="{z:.2f}" r="{red:.3f}" g="{green:.3f}" b="{blue:.3f}" '
            f'radius="{3 * size:.2f}" note={quoteattr(f"{class_name} {ids[row]}")}/>'
        )
    return "\n".join([*lines, "</marker_set>"]) + "\n"
