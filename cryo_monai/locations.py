"""Which tomogram a particle lies in, and at which voxel."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.particles import Particles, make_particles
from cryo_monai.tomogram_names import find_tomograms, match_tomograms
from cryo_monai.tomograms import Tomogram, open_tomogram

# A ratio of voxel sizes this near to one moves the corner of a box of 64 voxels by less than a hundredth of a voxel.
SAME_SPACING = 2e-4
# Voxel sizes of a file and of a table of tomograms: more than rounding.
LISTED_TOLERANCE = 0.01


@dataclass(frozen=True)
class LocatedParticles:
    """Particles with the tomogram and the voxel that each lies in.

    Attributes
    ----------
    particles : Particles
        As read.
    tomograms : list of Tomogram
        Each once.
    which : array
        `(n,)`, index of each particle's tomogram.
    places : array
        `(n, 3)`, ``(z, y, x)`` in voxels of that tomogram.
    """

    particles: Particles
    tomograms: list[Tomogram]
    which: npt.NDArray[np.int64]
    places: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.particles)

    def select(self, rows: npt.ArrayLike) -> LocatedParticles:
        """Keep some particles; ``rows`` are indices or a mask."""
        kept = np.arange(len(self))[np.asarray(rows)]
        return LocatedParticles(self.particles.select(kept), self.tomograms, self.which[kept], self.places[kept])

    @property
    def names(self) -> list[str]:
        """Names of the tomograms, as the list has them, or their files' where it has none."""
        listed = {int(number): name for number, name in zip(self.which, self.particles.tomograms, strict=True)}
        return [listed.get(number) or tomogram.name for number, tomogram in enumerate(self.tomograms)]

    @property
    def voxel_size(self) -> float:
        """Voxel size of all tomograms in Å.

        Raises
        ------
        InputError
            When they differ.
        """
        sizes = {tomogram.path: tomogram.voxel_size or math.nan for tomogram in self.tomograms}
        low, high = min(sizes, key=lambda path: sizes[path]), max(sizes, key=lambda path: sizes[path])
        if sizes[high] > sizes[low] * (1 + SAME_SPACING):
            raise InputError(
                f"{high}: voxels of {sizes[high]:g} Å, but {low} has {sizes[low]:g} Å; "
                "say with --voxel_size what boxes of both are to have"
            )
        return sizes[low]


def list_particles(
    tomograms: Sequence[Tomogram],
    which: npt.ArrayLike,
    places: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    **details: Any,
) -> LocatedParticles:
    """Make a list of what was found in tomograms.

    Parameters
    ----------
    tomograms : sequence of Tomogram
        Each once.
    which : array
        `(n,)`, index of each particle's tomogram.
    places : array
        `(n, 3)`, ``(z, y, x)`` in voxels of that tomogram. In the list, all count in voxels of the first tomogram.
    names : sequence of str, optional
        Of each particle's tomogram; by default its file's.
    details : object
        Ids, rotations, class names, scores and columns; see `make_particles`.
    """
    numbers, at = np.asarray(which, dtype=np.int64), np.asarray(places, dtype=np.float64).reshape(-1, 3)
    sizes = np.array([tomogram.voxel_size or math.nan for tomogram in tomograms])
    named = [tomograms[number].name for number in numbers] if names is None else list(names)
    scaled = at * (sizes / sizes[0])[numbers][:, None]
    particles = make_particles(named, scaled, pixel_size=float(sizes[0]), **details)
    return LocatedParticles(particles, list(tomograms), numbers, at)


def open_tomograms(
    places: Sequence[str | os.PathLike[str]], *, voxel_size: float | None = None, permissive: bool = False
) -> list[Tomogram]:
    """Open files, and those in folders, whose voxel size is known, from the file or from ``voxel_size`` (Å).

    Raises
    ------
    DatasetError
        Naming every file that cannot be used.
    """
    opened, problems = [], []
    for file in find_tomograms(places):
        try:
            opened.append(_open_known(file, voxel_size, permissive))
        except InputError as error:
            problems.append(str(error))
    names = Counter(tomogram.name for tomogram in opened)
    problems += [f"{t.path}: another tomogram has the name {t.name!r} too" for t in opened if names[t.name] > 1]
    if problems:
        raise DatasetError("tomograms", problems)
    return opened


def _open_known(file: Path, voxel_size: float | None, permissive: bool, listed: float | None = None) -> Tomogram:
    """Open a tomogram whose voxel size is given, in its file, or (without contradiction) in a table of tomograms."""
    tomogram = open_tomogram(file, voxel_size=voxel_size, permissive=permissive)
    if tomogram.voxel_size is None and listed is not None:
        tomogram = replace(tomogram, voxel_size=listed)
    if tomogram.voxel_size is None:
        raise InputError(f"{file}: voxel size unknown; give it with --tomogram_voxel_size (Å)")
    if voxel_size is None and listed is not None and abs(tomogram.voxel_size / listed - 1) > LISTED_TOLERANCE:
        raise InputError(
            f"{file}: voxels of {tomogram.voxel_size:g} Å, but {listed:g} Å in the table of tomograms; "
            "say which with --tomogram_voxel_size"
        )
    return tomogram


def locate_particles(
    particles: Particles,
    tomograms: Sequence[str | os.PathLike[str]] = (),
    *,
    tomogram_voxel_size: float | None = None,
    permissive: bool = False,
) -> LocatedParticles:
    """Find the tomogram of each particle and its place there.

    Parameters
    ----------
    particles : Particles
        Of `read_particles`.
    tomograms : sequence of path
        Files and folders; a RELION ``tomograms.star`` or optimisation set names its own and needs none.
    tomogram_voxel_size : float, optional
        Å; goes before what the files say.
    permissive : bool
        Accept old MRC files; see `read_mrc`.

    Raises
    ------
    InputError, DatasetError
        For tomograms that are missing, unreadable or of unknown voxel size, and particles that lie outside theirs.
    """
    source = str(particles.path or "particles")
    if len(particles) == 0:
        raise InputError(f"{source}: no particles")
    if tomograms:
        files = match_tomograms(particles.tomograms, find_tomograms(tomograms), source=source)
    else:
        files = _named_by_list(particles, source)
    opened: dict[Path, Tomogram] = {}
    problems = []
    for name, file in sorted(files.items()):
        record = particles.tomogram_files.get(name)
        try:
            listed = record.voxel_size if record else None
            opened[file] = _open_known(file, tomogram_voxel_size, permissive, listed)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(source, problems)
    order = list(opened)
    which = np.array([order.index(files[name]) for name in particles.tomograms])
    places = np.empty((len(particles), 3))
    for number, file in enumerate(order):
        rows = np.flatnonzero(which == number)
        tomogram = opened[file]
        places[rows] = particles.places(rows, tomogram.shape, float(tomogram.voxel_size or math.nan))
    located = LocatedParticles(particles, list(opened.values()), which, places)
    _refuse_outside(located, source)
    return located


def _named_by_list(particles: Particles, source: str) -> dict[str, Path]:
    """Files of tomograms that a RELION project names."""
    files = {}
    for name in dict.fromkeys(particles.tomograms):
        record = particles.tomogram_files.get(name)
        if record is None or record.file is None:
            raise InputError(
                f"{source}: does not say where tomogram {name!r} is; name files or folders with --tomograms"
            )
        files[name] = record.file
    return files


def _refuse_outside(located: LocatedParticles, source: str) -> None:
    shapes = np.array([located.tomograms[number].shape for number in located.which])
    outside = np.flatnonzero(np.any((located.places < -0.5) | (located.places > shapes - 0.5), axis=1))
    if len(outside):
        first = outside[0]
        tomogram = located.tomograms[located.which[first]]
        place = ", ".join(f"{v:.1f}" for v in located.places[first])
        raise InputError(
            f"{source}: {len(outside)} of {len(located)} particles lie outside their tomogram, the first "
            f"({located.particles.ids[first]}) at ({place}) voxels (z, y, x) of {tomogram.path} {tomogram.shape}; "
            "coordinates may be in pixels of another size (--pixel_size, Å)"
        )
