"""Boxes of nothing: places in tomograms away from all particles, for a class of junk."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

from cryo_monai.boxes import BoxSettings
from cryo_monai.errors import InputError
from cryo_monai.locations import LocatedParticles, list_particles
from cryo_monai.particles import BACKGROUND, further_columns

# Places drawn for each background box; when too few of them are free, a tomogram counts as full.
TRIES = 200


def background_places(
    located: LocatedParticles, number: int, settings: BoxSettings, count: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw places in one tomogram where no particle is: `(count, 3)` voxels.

    Places are uniform among those whose box lies inside the tomogram and whose centre is half a box or more from every
    particle and from each other.

    Parameters
    ----------
    located : LocatedParticles
        All particles of the list.
    number : int
        Which tomogram.
    settings : BoxSettings
        Box and voxel size.
    count : int
        How many.
    rng : Generator
        Draws them.

    Raises
    ------
    InputError
        When no room is found for so many.
    """
    from scipy.spatial import cKDTree

    tomogram = located.tomograms[number]
    edge = settings.box * settings.voxel_size / (tomogram.voxel_size or math.nan)
    low = np.full(3, edge / 2)
    high = np.asarray(tomogram.shape) - 1 - edge / 2
    if np.any(high < low):
        raise InputError(f"{tomogram.path}: {tomogram.shape} is too small for boxes of {edge:.0f} voxels")
    drawn = np.floor(low + rng.random((count * TRIES, 3)) * (high - low + 1)).clip(low, high)
    particles = cKDTree(located.places[located.which == number])
    free = drawn[particles.query(drawn)[0] >= edge / 2]
    found: list[npt.NDArray[np.float64]] = []
    while len(found) < count and len(free):
        found.append(free[0])
        free = free[np.linalg.norm(free - free[0], axis=1) >= edge / 2]
    if len(found) < count:
        raise InputError(
            f"{tomogram.path}: room for {len(found)} background boxes half a box away from every particle, "
            f"not for {count}"
        )
    return np.array(found)


def with_background(located: LocatedParticles, count: int, settings: BoxSettings, seed: int) -> LocatedParticles:
    """Make one list of particles and of background drawn away from them.

    Parameters
    ----------
    located : LocatedParticles
        The particles; they keep what their list says, except that coordinates are those of `list_particles`.
    count : int
        Background boxes in each tomogram; see `background_places`.
    settings : BoxSettings
        Box and voxel size.
    seed : int
        Of the places.

    Raises
    ------
    InputError
        When the count is negative or there is no room.
    """
    given = located.particles
    if count < 0:
        raise InputError(f"background: {count} must not be negative")
    drawn = [
        background_places(located, number, settings, count, np.random.default_rng([seed, number]))
        for number in range(len(located.tomograms) if count else 0)
    ]
    which = np.concatenate([located.which, np.repeat(np.arange(len(drawn)), count)]).astype(np.int64)
    added = len(which) - len(given)
    listed = located.names
    names = [listed[number] for number in located.which]
    ids, taken = list(given.ids), set(given.ids)
    for number, tomogram in enumerate(located.tomograms if count else ()):
        fresh = (f"{BACKGROUND}_{tomogram.name}_{n}" for n in itertools.count(1))
        ids += list(itertools.islice((name for name in fresh if name not in taken), count))
        names += [listed[number]] * count
    rotations = given.rotations
    if rotations is not None:
        rotations = np.concatenate([rotations, np.broadcast_to(np.eye(3), (added, 3, 3))])
    scores = given.scores
    return list_particles(
        located.tomograms,
        which,
        np.concatenate([located.places, *drawn]),
        names=names,
        ids=ids,
        rotations=rotations,
        class_names=[*given.class_names, *[BACKGROUND] * added],
        scores=None if scores is None else np.concatenate([scores, np.zeros(added)]),
        columns={name: [*texts, *[""] * added] for name, texts in further_columns(given).items()},
    )
