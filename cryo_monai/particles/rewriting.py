"""Rows, and predicted classes, written back into the format that the particles came in.

RELION numbers classes from 1 (``rlnClassNumber``) and keeps columns that it does not know (3dem/relion,
src/metadata_table.cpp, unknown labels), as Warp and M do with columns of others. The programs behind STOPGAP and Dynamo
read numbers in fixed columns, so that names and probabilities go to a file beside their lists.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.particles.delimited import read_delimited
from cryo_monai.particles.dynamo import dynamo_columns
from cryo_monai.particles.portal import flat_columns, read_objects
from cryo_monai.particles.relion import particle_table
from cryo_monai.particles.star import StarTable, read_star, with_columns
from cryo_monai.particles.stopgap import stopgap_table
from cryo_monai.particles.table import UNKNOWN, Particles
from cryo_monai.particles.text import TextColumns, read_text
from cryo_monai.particles.writing import decimal, delimited_text

# Column 22, https://wiki.dynamo.biozentrum.unibas.ch/w/index.php/Table_convention
_DYNAMO_CLASS = 21


def write_classes(
    path: str | os.PathLike[str],
    particles: Particles,
    *,
    class_numbers: Sequence[int] | npt.NDArray[np.integer[Any]],
    class_names: Sequence[str],
    probabilities: npt.ArrayLike,
) -> Path:
    """Write the file that particles were read from once more, with a class for each of them.

    RELION, Warp: ``rlnClassNumber``, ``cryomonaiClassName``, ``cryomonaiProbability``. Delimited text: class,
    class_name, probability; a header is added where there was none. Portal: keys class_name and probability. STOPGAP,
    Dynamo: their class column, and ``<name>_classes.csv`` beside it. copick: a folder with one picks file per run and
    class, below ``ExperimentRuns/<run>/Picks``, or in the folder itself for picks without a run; scores are
    probabilities. All other text stays as it was; of a selection, only its rows are written.

    Parameters
    ----------
    path : path
        With the ending of the file that came in; a folder for copick.
    particles : Particles
        As read, or a selection of it.
    class_numbers : sequence of int
        From 1; 0 for the class "unknown", and for it alone.
    class_names : sequence of str
        One each.
    probabilities : array
        `(n,)`, 0 to 1.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    InputError
        When the target is the file that came in, also by another name, or has another ending; when that file has
        changed since it was read; when lengths, numbers and names do not fit together.
    """
    path = Path(path)
    numbers = [int(number) for number in class_numbers]
    names = [str(name) for name in class_names]
    shares = np.asarray(probabilities, dtype=np.float64).reshape(-1)
    _check(particles, numbers, names, shares)
    source = _checked_source(path, particles)
    texts = [decimal(share) for share in shares]
    if particles.format == "copick":
        return _write_copick(path, particles, names, shares)
    classes = [str(number) for number in numbers]
    by_format: dict[str, Mapping[Any, list[Any]]] = {
        "portal": {"class_name": names, "probability": [round(float(share), 6) for share in shares]},
        "csv": {"class": classes, "class_name": names, "probability": texts},
        "dynamo": {_DYNAMO_CLASS: classes},
        "stopgap": {"class": classes},
    }
    relion = {"rlnClassNumber": classes, "cryomonaiClassName": names, "cryomonaiProbability": texts}
    atomic_write_text(path, _rewritten(source, particles, by_format.get(particles.format, relion)))
    table_map = source.with_suffix(".doc")
    if particles.format == "dynamo" and table_map.is_file():
        atomic_write_text(path.with_suffix(".doc"), read_text(table_map))
    if particles.format in ("dynamo", "stopgap"):
        listed = zip(particles.ids, classes, names, texts, strict=True)
        beside = delimited_text([["id", "class", "class_name", "probability"], *(list(row) for row in listed)])
        atomic_write_text(path.with_name(f"{path.stem}_classes.csv"), beside)
    return path


def write_rows(path: str | os.PathLike[str], particles: Particles, *, class_names: Sequence[str] | None = None) -> Path:
    """Write some of the rows of the file that particles were read from, all else as it was.

    Parameters
    ----------
    path : path
        With the ending of the file that came in.
    particles : Particles
        As read, or a selection of it; not from copick.
    class_names : sequence of str, optional
        Put into the column ``cryomonaiClassName`` of RELION's and Warp's files, ``class_name`` of others. STOPGAP's and
        Dynamo's have no room for names.

    Raises
    ------
    InputError
        As `write_classes` does, and for names in a format without room for them.
    """
    path = Path(path)
    source = _checked_source(path, particles)
    if particles.format == "copick" or (class_names is not None and particles.format in ("dynamo", "stopgap")):
        raise InputError(f"{path}: not in the format {particles.format}; write .star or .csv instead")
    column = "class_name" if particles.format in ("csv", "portal") else "cryomonaiClassName"
    values = {} if class_names is None else {column: [str(name) for name in class_names]}
    atomic_write_text(path, _rewritten(source, particles, values))
    return path


def _rewritten(source: Path, particles: Particles, values: Mapping[Any, list[Any]]) -> str:
    """Text of the file with these rows alone, and with values put into columns: names, for Dynamo indices."""
    rows = [int(row) for row in particles.columns.index]
    if particles.format == "portal":
        return _portal_text(source, particles, rows, values)
    if particles.format == "csv":
        return _delimited_text(source, particles, rows, values)
    if particles.format == "dynamo":
        table = dynamo_columns(source)
        _check_unchanged(table, particles, rows)
        kept = [[*table.rows[row]] for row in rows]
        for column, texts in values.items():
            for cells, text in zip(kept, texts, strict=True):
                cells[column] = text
        return "".join(" ".join(cells) + "\n" for cells in kept)
    tables = read_star(source)
    found = stopgap_table(tables) if particles.format == "stopgap" else particle_table(source, tables)
    return _star_text(source, found, particles, rows, dict(values))


def _check(particles: Particles, numbers: list[int], names: list[str], shares: npt.NDArray[np.float64]) -> None:
    lengths = {"class_numbers": len(numbers), "class_names": len(names), "probabilities": len(shares)}
    for name, length in lengths.items():
        if length != len(particles):
            raise InputError(f"{length} {name} for {len(particles)} particles")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"probability {shares[~((shares >= 0) & (shares <= 1))][0]:g} is not between 0 and 1")
    by_number: dict[int, str] = {}
    by_name: dict[str, int] = {}
    for number, name in zip(numbers, names, strict=True):
        if number < 0 or (number == 0) != (name == UNKNOWN):
            raise InputError(f"class {name!r} has number {number}; numbers begin at 1, and 0 is {UNKNOWN!r} alone")
        if by_number.setdefault(number, name) != name or by_name.setdefault(name, number) != number:
            raise InputError(
                f"class {number} is {by_number[number]!r} and {name!r} is class {by_name.get(name, number)}"
            )


def _checked_source(path: Path, particles: Particles) -> Path:
    source = particles.path
    if source is None:
        raise InputError(f"{path}: these particles were read from no file; use write_particles")
    for file in (source, *particles.read_from):
        if path.exists() and file.exists() and path.samefile(file):
            raise InputError(f"{path}: is what the particles were read from ({file}); choose another name")
    if particles.format == "copick":
        if path.suffix or path.is_file():
            raise InputError(f"{path}: picks of copick are written to a folder; name one")
    elif path.suffix.lower() != source.suffix.lower():
        raise InputError(f"{path}: the list came as {source.suffix}; end the name in {source.suffix}")
    return source


def _check_unchanged(columns: TextColumns, particles: Particles, rows: Sequence[int]) -> None:
    kept = particles.columns
    same = list(kept.columns) == columns.names and all(
        row < len(columns) and columns.rows[row] == texts
        for row, texts in zip(rows, kept.to_numpy(dtype=object).tolist(), strict=True)
    )
    if not same:
        raise InputError(f"{columns.path}: has changed since it was read; read it again")


def _star_text(
    source: Path, table: StarTable | None, particles: Particles, rows: list[int], values: dict[str, list[str]]
) -> str:
    if table is None:
        raise InputError(f"{source}: has changed since it was read; read it again")
    _check_unchanged(table.columns, particles, rows)
    return with_columns(source, table, rows, values)


def _delimited_text(source: Path, particles: Particles, rows: list[int], values: Mapping[str, list[str]]) -> str:
    content = read_delimited(source)
    _check_unchanged(content.columns, particles, rows)
    names = [*content.columns.names, *(name for name in values if name not in content.columns)]
    out = [names]
    for n, row in enumerate(rows):
        cells = dict(zip(content.columns.names, content.columns.rows[row], strict=True))
        cells |= {name: texts[n] for name, texts in values.items()}
        out.append([cells[name] for name in names])
    end = "\r\n" if "\r\n" in read_text(source) else "\n"
    return delimited_text(out, delimiter=content.delimiter, end=end)


def _portal_text(source: Path, particles: Particles, rows: list[int], values: Mapping[str, list[Any]]) -> str:
    objects, lines = read_objects(source)
    _check_unchanged(flat_columns(source, objects, lines), particles, rows)
    text = []
    for n, row in enumerate(rows):
        content = {**objects[row], **{name: given[n] for name, given in values.items()}}
        text.append(json.dumps(content, ensure_ascii=False) + "\n")
    return "".join(text)


def _write_copick(folder: Path, particles: Particles, names: list[str], shares: npt.NDArray[np.float64]) -> Path:
    """Write picks for each run and class; session 0 tells copick that a tool made them."""
    objects = {name: _copick_name(name) for name in sorted(set(names))}
    if len(set(objects.values())) < len(objects):
        raise InputError(f"{folder}: copick would call two classes alike: {', '.join(objects)}")
    groups: dict[tuple[str, str], list[int]] = {}
    for row, (run, name) in enumerate(zip(particles.tomograms, names, strict=True)):
        groups.setdefault((run, objects[name]), []).append(row)
    instances = particles.columns.get("instance_id")
    for (run, name), rows in sorted(groups.items()):
        points = []
        for row in rows:
            z, y, x = (float(value) for value in particles.coordinates[row])
            transform = np.eye(4)
            if particles.rotations is not None:
                transform[:3, :3] = particles.rotations[row][::-1, ::-1]
            points.append(
                {
                    "location": {"x": x, "y": y, "z": z},
                    "transformation_": transform.tolist(),
                    "instance_id": 0 if instances is None else json.loads(instances.iloc[row] or "0"),
                    "score": round(float(shares[row]), 6),
                }
            )
        content = {
            "pickable_object_name": name,
            "user_id": "cryo-monai",
            "session_id": "0",
            "run_name": run or None,
            "voxel_spacing": None,
            "unit": "angstrom",
            "points": points,
            "trust_orientation": particles.rotations is not None,
        }
        where = folder / "ExperimentRuns" / run / "Picks" if run else folder
        atomic_write_text(where / f"cryo-monai_0_{name}.json", json.dumps(content, indent=1) + "\n")
    return folder


def _copick_name(name: str) -> str:
    """Return a name that copick takes for an object: no blank, no underscore, nothing file names may not hold."""
    # copick/copick, src/copick/util/escape.py
    clean = re.sub(r"""[<>:"/\\|?*\x00-\x1f\x7f\s_]""", "-", name).strip("-")
    if not clean:
        raise InputError(f"class {name!r} cannot name an object of copick")
    return clean
