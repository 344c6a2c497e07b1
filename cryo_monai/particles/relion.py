"""Particle lists of RELION 3 to 5, Warp and M.

Sources, by file in 3dem/relion unless another is named:

- Position: the coordinate less ``A_subtomogram * rlnOrigin[XYZ]Angst``, over the pixel size
  (``ParticleSet::getPosition`` in src/jaz/tomography/particle_set.cpp). M takes origins off in the same way
  (warpem/warp, MTools/Commands/CreateSpecies.cs); before RELION 3.1, ``rlnOrigin[XYZ]`` are pixels.
- Pose: ``A_subtomogram * A_particle`` (``getMatrix3x3``), each the passive ZYZ matrix of rot, tilt and psi
  (src/euler.cpp), which takes the reference to the particle. The CryoET Data Portal (point_converter.py) and ArtiaX
  (RELIONParticleData.py) read the same.
- RELION 5 counts ``rlnCenteredCoordinate[XYZ]Angst`` in Å from half the size of the tomogram (``out.centre`` in
  tomogram_set.cpp); plain coordinates are ignored beside them.
- RELION 4 counts in pixels of ``rlnTomoTiltSeriesPixelSize``. Other lists do not say outright: M takes
  ``rlnDetectorPixelSize * 1e4 / rlnMagnification`` and then ``rlnImagePixelSize``; TOMOMAN and Warp write
  ``rlnPixelSize``; RELION's 2D programs count in ``rlnMicrographPixelSize``. Any of them is taken when all that are
  there agree; when they differ, the caller has to say.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.particles.star import StarTable
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import TextColumns, class_names_of, unique_ids
from cryo_monai.rotations import rotation_matrices_of_angles

Array = npt.NDArray[np.float64]

PLAIN = [f"rlnCoordinate{axis}" for axis in "XYZ"]
CENTRED = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
SUBTOMOGRAM_ANGLES = ["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]
# What this package writes goes before what was there already.
CLASS_COLUMNS = ("cryomonaiClassName", "class_name", "className", "rlnParticleName")
SCORE = "rlnAutopickFigureOfMerit"
# Of one file; a part in two hundred is a rounded number.
_AGREEMENT = 5e-3


def particle_table(path: Path, tables: list[StarTable]) -> StarTable:
    """Return the table that holds coordinates.

    Raises
    ------
    InputError
        When there is none (naming what is missing) or several.
    """
    found = [t for t in tables if set(t.columns.names).issuperset(CENTRED) or set(t.columns.names).issuperset(PLAIN)]
    named = [table for table in found if table.block == "particles"]
    if len(found) == 1 or len(named) == 1:
        return (named or found)[0]
    if found:
        blocks = ", ".join(f"data_{table.block}" for table in found)
        raise InputError(f"{path}: several blocks with coordinates ({blocks}); keep one, or call it data_particles")
    for table in tables:
        for names in (CENTRED, PLAIN):
            if set(names) & set(table.columns.names):
                table.columns.require(names)
    if any("rlnTomoTiltSeriesStarFile" in table.columns or "rlnTomoSizeX" in table.columns for table in tables):
        raise InputError(f"{path}: a table of tomograms, not of particles; give particles.star or the optimisation set")
    blocks = ", ".join(f"data_{table.block}" for table in tables) or "no table"
    raise InputError(f"{path}: no particles (columns {', '.join(PLAIN)}) in {blocks}")


def relion_particles(
    path: Path, tables: list[StarTable], *, pixel_size: float | None, class_column: str | None
) -> Particles:
    """Make the list of particles of a RELION, Warp or TOMOMAN file.

    Raises
    ------
    InputError
        Naming the line or column that is wrong.
    """
    columns = particle_table(path, tables).columns
    if not len(columns):
        raise InputError(f"{path}: holds no particles")
    optics = next((table.columns for table in tables if table.block == "optics"), None)
    centred = all(name in columns for name in CENTRED)
    if centred and pixel_size is not None:
        raise InputError(f"{path}: its coordinates are in Å; leave pixel_size out")
    sizes = np.ones(len(columns)) if centred else _pixel_sizes(columns, optics, pixel_size)
    inner = _matrices(columns, SUBTOMOGRAM_ANGLES)
    outer = _matrices(columns, ANGLES)
    rotations = outer if inner is None else inner if outer is None else inner @ outer
    shifts = _shifts(columns, sizes, centred)
    if inner is not None:
        shifts = np.einsum("nij,nj->ni", inner, shifts)
    tomogram = next((name for name in ("rlnTomoName", "rlnMicrographName") if name in columns), None)
    names = ("rlnTomoParticleName", "rlnTomoParticleId")
    return Particles(
        ids=unique_ids([columns.texts(name) for name in names if name in columns], len(columns)),
        tomograms=columns.texts(tomogram) if tomogram else [""] * len(columns),
        coordinates=columns.matrix(CENTRED if centred else PLAIN)[:, ::-1] - shifts,
        pixel_size=sizes,
        centred=centred,
        rotations=rotations,
        class_names=class_names_of(columns, class_column, CLASS_COLUMNS),
        scores=columns.numbers(SCORE) if SCORE in columns else None,
        columns=columns.frame(),
        format=_format(columns, optics, centred),
        path=path,
    )


def _format(columns: TextColumns, optics: TextColumns | None, centred: bool) -> str:
    if centred:
        return "relion5"
    if optics is not None or "rlnOriginXAngst" in columns:
        return "relion4" if "rlnTomoName" in columns else "relion3.1"
    # Warp names its series .tomostar and its volumes by their pixel size; RELION adds groups.
    names = columns.texts("rlnMicrographName") if "rlnMicrographName" in columns else [""]
    by_warp = all(re.search(r"\.tomostar$|\d+\.\d+Apx\.mrc$", name) for name in names)
    return "warp" if by_warp and "rlnGroupNumber" not in columns else "relion3"


def _matrices(columns: TextColumns, names: list[str]) -> Array | None:
    if not any(name in columns for name in names):
        return None
    columns.require(names)
    return rotation_matrices_of_angles(columns.matrix(names))


def _shifts(columns: TextColumns, sizes: Array, centred: bool) -> Array:
    """Return origins as ``(z, y, x)`` in units of the coordinates; a missing axis is 0, as in RELION."""
    for names, in_pixels in (("rlnOrigin{}Angst", False), ("rlnOrigin{}", True)):
        axes = [names.format(axis) for axis in "ZYX"]
        if not any(name in columns for name in axes):
            continue
        zero = np.zeros(len(columns))
        shifts = np.stack([columns.numbers(name) if name in columns else zero for name in axes], axis=1)
        if not shifts.any():
            return shifts
        if in_pixels and centred:
            raise InputError(f"{columns.path}: origins in pixels (rlnOriginX) beside coordinates in Å")
        if not in_pixels and np.isnan(sizes).any():
            raise InputError(f"{columns.path}: origins in Å (rlnOriginXAngst) but no pixel size; give pixel_size")
        return shifts if in_pixels else shifts / sizes[:, None]
    return np.zeros((len(columns), 3))


def _pixel_sizes(columns: TextColumns, optics: TextColumns | None, given: float | None) -> Array:
    if given is not None:
        return np.full(len(columns), given)
    sizes = _of_rows("rlnTomoTiltSeriesPixelSize", columns, optics)
    if sizes is None:
        stated = {name: _of_rows(name, columns, optics) for name in _STATED}
        magnification = _of_rows("rlnMagnification", columns, optics)
        detector = _of_rows("rlnDetectorPixelSize", columns, optics)
        if magnification is not None and detector is not None:
            with np.errstate(divide="ignore"):
                stated["rlnDetectorPixelSize * 1e4 / rlnMagnification"] = detector * 1e4 / magnification
        known = {name: values for name, values in stated.items() if values is not None}
        if not known:
            return np.full(len(columns), np.nan)
        first, sizes = next(iter(known.items()))
        for name, values in known.items():
            if not np.allclose(values, sizes, rtol=_AGREEMENT):
                row = int(np.argmax(np.abs(values - sizes)))
                raise InputError(
                    f"{columns.path}, line {columns.lines[row]}: {first} says {sizes[row]:g} Å, {name} says "
                    f"{values[row]:g} Å; say which pixels the coordinates count in with pixel_size"
                )
    if not (sizes > 0).all() or not np.isfinite(sizes).all():
        row = int(np.flatnonzero(~(sizes > 0) | ~np.isfinite(sizes))[0])
        raise InputError(f"{columns.path}, line {columns.lines[row]}: pixel size {sizes[row]:g} is not positive")
    return sizes


_STATED = ("rlnPixelSize", "rlnMicrographPixelSize", "rlnImagePixelSize")


def _of_rows(name: str, columns: TextColumns, optics: TextColumns | None) -> Array | None:
    """Return a number of each particle, its own or its optics group's; None where the file has none."""
    if name in columns:
        return columns.numbers(name)
    if optics is None or name not in optics:
        return None
    values = optics.numbers(name)
    if "rlnOpticsGroup" not in columns or "rlnOpticsGroup" not in optics:
        if len(values) == 1:
            return np.full(len(columns), values[0])
        raise InputError(f"{columns.path}: several optics groups, but rlnOpticsGroup is missing")
    by_group = dict(zip(optics.numbers("rlnOpticsGroup"), values, strict=True))
    groups = columns.numbers("rlnOpticsGroup")
    for row, group in enumerate(groups):
        if group not in by_group:
            raise InputError(
                f"{columns.path}, line {columns.lines[row]}, column rlnOpticsGroup: no group {group:g} in data_optics"
            )
    return np.array([by_group[group] for group in groups])
