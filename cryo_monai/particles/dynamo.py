"""Tables of Dynamo (``.tbl``).

Columns: https://wiki.dynamo.biozentrum.unibas.ch/w/index.php/Table_convention. Coordinates are indices of MATLAB
arrays, from 1, and shifts are added. dynamo2m and copick carry the same numbers over to programs that count from 0, one
voxel off; here the first voxel is 0.

Angles tdrot, tilt, narot are -psi, -the, -phi of STOPGAP (williamnwan/STOPGAP, sg_motl_dynamo_to_stopgap.m, after
Dynamo's own dynamo__motl2table.m), that is the inverse of the extrinsic zxz rotation by them. eulerangles (teamtomo),
copick and cryoCAT agree; ArtiaX (DynamoParticleData.py) does not invert.

Tomograms are numbers. A table map, ``<name>.doc`` beside the table, holds a number and a file per line (dynamotable
writes the same); its files then are the names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.particles.poses import rotations_of_zxz
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import TextColumns, class_names_of, read_text, unique_ids

_COLUMNS = (
    "tag aligned averaged dx dy dz tdrot tilt narot cc cc2 cpu ftype ymintilt ymaxtilt xmintilt xmaxtilt fs1 fs2 "
    "tomo reg class annotation x y z dshift daxis dnarot dcc otag npar column_33 ref sref apix def"
)
_NAMED = _COLUMNS.split()
# Through z.
_NEEDED = 26


def column_names(count: int) -> list[str]:
    """Return Dynamo's names of the first columns of a table."""
    return _NAMED[:count] + [f"column_{number}" for number in range(len(_NAMED) + 1, count + 1)]


def dynamo_columns(path: Path) -> TextColumns:
    """Read a table as text.

    Raises
    ------
    InputError
        Naming the line that has too few columns, or other ones than the first.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        values = line.split()
        if not values:
            continue
        if len(values) < _NEEDED:
            raise InputError(f"{path}, line {number}: {len(values)} columns, a Dynamo table has at least {_NEEDED}")
        if rows and len(values) != len(rows[0]):
            raise InputError(f"{path}, line {number}: {len(values)} values for {len(rows[0])} columns")
        rows.append(values)
        lines.append(number)
    return TextColumns(path, column_names(len(rows[0])), rows, lines, [])


def read_dynamo(path: Path, *, pixel_size: float | None, class_column: str | None) -> Particles:
    """Read a table of Dynamo.

    Raises
    ------
    InputError
        Naming the line or column that is wrong.
    """
    columns = dynamo_columns(path)
    count = len(columns)
    if pixel_size is not None:
        sizes = np.full(count, pixel_size)
    elif "apix" in columns:
        stated = columns.numbers("apix")
        sizes = np.where(stated > 0, stated, np.nan)
    else:
        sizes = np.full(count, np.nan)
    angles = -columns.matrix(["narot", "tilt", "tdrot"])
    return Particles(
        ids=unique_ids([columns.texts("tag")], count),
        tomograms=_tomograms(columns),
        coordinates=(columns.matrix(["z", "y", "x"]) + columns.matrix(["dz", "dy", "dx"]) - 1),
        pixel_size=sizes,
        centred=False,
        rotations=rotations_of_zxz(angles),
        class_names=class_names_of(columns, class_column, ()),
        scores=columns.numbers("cc"),
        columns=columns.frame(),
        format="dynamo",
        path=path,
    )


def _tomograms(columns: TextColumns) -> list[str]:
    numbers = columns.texts("tomo")
    table_map = columns.path.with_suffix(".doc")
    if not table_map.is_file():
        return numbers
    names: dict[str, str] = {}
    for line_number, line in enumerate(read_text(table_map).splitlines(), 1):
        number, name = [*line.split(None, 1), "", ""][:2]
        if line.strip() and (not number.isdigit() or not name.strip()):
            raise InputError(f"{table_map}, line {line_number}: {line!r} is not a number and a file")
        names[number] = name.strip()
    for row, number in enumerate(numbers):
        if number not in names:
            raise InputError(
                f"{table_map}: no tomogram {number}, which {columns.path}, line {columns.lines[row]} names"
            )
    return [names[number] for number in numbers]
