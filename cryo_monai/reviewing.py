"""Picks and the review sheet that they are chosen on."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.locations import LocatedParticles
from cryo_monai.particles import Particles
from cryo_monai.picking import read_review, write_review
from cryo_monai.resampling import cut_box

# Edge of a thumbnail in its own voxels.
VIEW = 40


def write_pick_review(located: LocatedParticles, folder: Path, *, edge: float) -> Path:
    """Write the review of picks; see `write_review`.

    Parameters
    ----------
    located : LocatedParticles
        With scores, and classes if there are any.
    folder : Path
        Created when missing.
    edge : float
        Of the boxes that are shown, in Å.
    """
    particles = located.particles
    scores = np.zeros(len(located)) if particles.scores is None else particles.scores

    def box(row: int) -> npt.NDArray[np.float32]:
        tomogram = located.tomograms[located.which[row]]
        spacing = max(1.0, edge / VIEW / (tomogram.voxel_size or math.nan))
        size = round(edge / (spacing * (tomogram.voxel_size or math.nan)))
        return cut_box(tomogram, located.places[row], max(8, size), spacing=spacing, rescaling="lanczos")[0]

    rows = [
        {
            "id": particles.ids[row],
            "tomogram": particles.tomograms[row],
            **dict(zip("zyx", located.places[row], strict=True)),
            "score": scores[row],
            "class_name": particles.class_names[row],
        }
        for row in range(len(located))
    ]
    return write_review(folder, box, rows, title=f"{len(rows)} picks in {len(located.tomograms)} tomograms")


def kept_particles(particles: Particles, review: str | os.PathLike[str]) -> Particles:
    """Keep what a review has ticked.

    Raises
    ------
    InputError
        When the review does not name every particle, ticks none, or cannot be read.
    """
    choice = read_review(Path(review))
    missing = [name for name in particles.ids if name not in choice]
    if missing:
        raise InputError(
            f"{review}: says nothing of {len(missing)} particles of {particles.path}, the first {missing[0]!r}; "
            "is it the review of this list?"
        )
    if not any(choice[name] for name in particles.ids):
        raise InputError(f"{review}: nothing is ticked")
    return particles.select([row for row, name in enumerate(particles.ids) if choice[name]])
