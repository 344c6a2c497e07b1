"""Particle lists in plain text: comma, tab, bar, semicolon or blanks between columns, with or without a header.

Without a header the three columns are x, y, z, as the CryoET Data Portal takes them (chanzuckerberg/
cryoet-data-portal-backend, ingestion_tools/scripts/common/point_converter.py, ``from_csv``), in voxels from 0. With
one, the columns are found by name; ``[A]`` or ``[Å]`` after a name says that it is in Å, as TARDIS writes (its ``IDs``
number filaments, not particles). copick's CSV (copick/copick, src/copick/util/formats.py) is in Å, with a 4 x 4 matrix.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.particles.poses import rotations_of_xyz
from cryo_monai.particles.relion import ANGLES
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import TextColumns, class_names_of, is_number, read_text, unique_ids
from cryo_monai.rotations import rotation_matrices_of_angles

Array = npt.NDArray[np.float64]

CLASS_COLUMNS = ("class_name", "className", "cryomonaiClassName", "rlnParticleName", "pickable_object_name")
_TOMOGRAM_COLUMNS = ("tomogram", "tomo_name", "rlnTomoName", "run_name", "run", "rlnMicrographName", "tomo")
_ID_COLUMNS = ("id", "particle_id", "rlnTomoParticleName", "rlnTomoParticleId")
_AXIS = re.compile(r"([xyz])\s*(?:[\[(]\s*(a|å|angstrom|px|pixels?|voxels?)\s*[\])])?", re.IGNORECASE)
# napari's points layer: axis-0 is z.
_NAPARI = {"axis-0": "z", "axis-1": "y", "axis-2": "x"}
_TRANSFORM = [f"transform_{row}{column}" for row in range(3) for column in range(4)]


@dataclass(frozen=True)
class Delimited:
    """A delimited file: its columns, its delimiter, and whether its first line names the columns."""

    columns: TextColumns
    delimiter: str
    header: bool


def read_delimited(path: Path) -> Delimited:
    """Read a delimited file as text.

    Raises
    ------
    InputError
        Naming the line that has another number of columns than the first.
    """
    text = read_text(path)
    lines = [line.strip(" \r") for line in text.split("\n")]
    first = next(line for line in lines if line.strip())
    counts = {delimiter: first.count(delimiter) for delimiter in ",\t|;"}
    delimiter = max(counts, key=lambda sign: counts[sign])
    if not counts[delimiter]:
        delimiter = " "
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        for row in reader:
            if not row:
                continue
            values = [value.strip() for value in row]
            if rows and len(values) != len(rows[0]):
                raise InputError(f"{path}, line {reader.line_num}: {len(values)} values for {len(rows[0])} columns")
            rows.append(values)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    header = not all(is_number(value) for value in rows[0])
    if not header:
        if len(rows[0]) != 3:
            raise InputError(
                f"{path}: {len(rows[0])} columns without names; add a first line with x, y, z and the others"
            )
        return Delimited(TextColumns(path, ["x", "y", "z"], rows, numbers, []), delimiter, header)
    names = rows[0]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}, line {numbers[0]}: column {twice[0]!r} comes twice")
    return Delimited(TextColumns(path, names, rows[1:], numbers[1:], []), delimiter, header)


def delimited_particles(path: Path, *, pixel_size: float | None, class_column: str | None) -> Particles:
    """Read a delimited list of particles.

    Raises
    ------
    InputError
        Naming the line or column that is wrong.
    """
    columns = read_delimited(path).columns
    axes, in_angstrom = _axes(columns)
    count = len(columns)
    if not count:
        raise InputError(f"{path}: holds no particles")
    coordinates = columns.matrix(axes)
    rotations = None
    if all(name in columns for name in _TRANSFORM):
        in_angstrom = True
        transforms = columns.matrix(_TRANSFORM).reshape(count, 3, 4)
        coordinates = coordinates + transforms[:, ::-1, 3]
        where = [f"{path}, line {line}" for line in columns.lines]
        rotations = rotations_of_xyz(transforms[:, :, :3], where)
    elif any(name in columns for name in ANGLES):
        columns.require(ANGLES)
        rotations = rotation_matrices_of_angles(columns.matrix(ANGLES))
    tomogram = next((name for name in _TOMOGRAM_COLUMNS if name in columns), None)
    return Particles(
        ids=unique_ids([columns.texts(name) for name in _ID_COLUMNS if name in columns], count),
        tomograms=columns.texts(tomogram) if tomogram else [""] * count,
        coordinates=coordinates,
        pixel_size=_pixel_sizes(columns, pixel_size, in_angstrom),
        centred=False,
        rotations=rotations,
        class_names=class_names_of(columns, class_column, CLASS_COLUMNS),
        scores=columns.numbers("score") if "score" in columns else None,
        columns=columns.frame(),
        format="csv",
        path=path,
    )


def _axes(columns: TextColumns) -> tuple[list[str], bool]:
    """Return the columns of z, y and x, and whether they are in Å."""
    found: dict[str, str] = {}
    units = set()
    for name in columns.names:
        match = _AXIS.fullmatch(name)
        axis = match[1].lower() if match else _NAPARI.get(name)
        if axis is None:
            continue
        if axis in found:
            raise InputError(f"{columns.path}: columns {found[axis]!r} and {name!r} are both {axis}")
        found[axis] = name
        units.add((match[2] or "").lower()[:1] in ("a", "å") if match else False)
    if len(found) < 3:
        missing = ", ".join(axis for axis in "xyz" if axis not in found)
        if sum(is_number(name) for name in columns.names) >= 3:
            raise InputError(
                f"{columns.path}: its first line is no header, and without one there are three columns, x, y, z; "
                "name the columns in a first line"
            )
        raise InputError(f"{columns.path}: no column {missing}; there are {', '.join(columns.names[:8])}")
    if len(units) > 1:
        raise InputError(f"{columns.path}: some of {', '.join(found.values())} are in Å and some are not")
    return [found[axis] for axis in "zyx"], units.pop()


def _pixel_sizes(columns: TextColumns, given: float | None, in_angstrom: bool) -> Array:
    count = len(columns)
    if in_angstrom:
        if given is not None:
            raise InputError(f"{columns.path}: its coordinates are in Å; leave pixel_size out")
        return np.ones(count)
    if given is not None or "pixel_size" not in columns:
        return np.full(count, np.nan if given is None else given)
    sizes = columns.numbers("pixel_size")
    if not (sizes > 0).all():
        line = columns.lines[int(np.flatnonzero(~(sizes > 0))[0])]
        raise InputError(f"{columns.path}, line {line}, column pixel_size: not positive")
    return sizes
