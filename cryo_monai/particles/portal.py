"""Point annotations of the CryoET Data Portal (``.ndjson``): one JSON object per line.

Locations are voxels of the annotated tomogram, and ``xyz_rotation_matrix`` takes the reference to the particle
(chanzuckerberg/cryoet-data-portal-backend, ingestion_tools/scripts/common/point_converter.py, which inverts RELION's
ZYZ angles as `rotation_matrices_of_angles` does). ``pixel_size`` and the keys that classification adds are ours; other
readers pass over them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.particles.poses import rotations_of_xyz
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import TextColumns, class_names_of, read_text, unique_ids

Array = npt.NDArray[np.float64]

_TYPES = ("point", "orientedPoint", "instancePoint")
MATRIX = "xyz_rotation_matrix"


def read_objects(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read the objects of a file, and their lines from 1.

    Raises
    ------
    InputError
        Naming the line that is not a JSON object.
    """
    objects: list[dict[str, Any]] = []
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}, line {number}: not a JSON object")
        objects.append(content)
        lines.append(number)
    return objects, lines


def flat_text(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of an object as text; those of objects within it under ``outer.inner``."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": text for inner, text in flat_text(value).items()}
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def flat_columns(path: Path, objects: list[dict[str, Any]], lines: list[int]) -> TextColumns:
    """Return objects as columns of text, with "" where an object lacks a key."""
    flat = [flat_text(content) for content in objects]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return TextColumns(path, names, [[row.get(name, "") for name in names] for row in flat], lines, [])


def location(content: Mapping[str, Any], where: str) -> list[float]:
    """Return ``[z, y, x]`` of an object with a ``location``.

    Raises
    ------
    InputError
        Naming the axis that is not a finite number.
    """
    place = content.get("location")
    if not isinstance(place, Mapping):
        raise InputError(f"{where}: no location")
    for axis in "xyz":
        value = place.get(axis)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
            raise InputError(f"{where}, location.{axis}: {value!r} is not a number")
    return [float(place[axis]) for axis in "zyx"]


def matrix(value: Any, size: int, where: str) -> Array:
    """Return a matrix `(size, size)` of finite numbers out of nested lists."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the matrix holds something else than numbers") from error
    if array.shape != (size, size) or not np.isfinite(array).all():
        raise InputError(f"{where}: the matrix is not {size} x {size} finite numbers")
    return array


def read_portal(path: Path, *, pixel_size: float | None, class_column: str | None) -> Particles:
    """Read point annotations of the portal.

    Raises
    ------
    InputError
        Naming the line and key that is wrong.
    """
    objects, lines = read_objects(path)
    where = [f"{path}, line {line}" for line in lines]
    for content, place in zip(objects, where, strict=True):
        if content.get("type") not in _TYPES:
            raise InputError(f"{place}, type: {content.get('type')!r} is none of {', '.join(_TYPES)}")
        if (content["type"] == "orientedPoint") != (MATRIX in content):
            raise InputError(f"{place}: an orientedPoint, and no other, has {MATRIX}")
    oriented = sum(content["type"] == "orientedPoint" for content in objects)
    if oriented not in (0, len(objects)):
        raise InputError(f"{path}: {oriented} of {len(objects)} points are oriented; split the file")
    matrices = [matrix(content[MATRIX], 3, place) for content, place in zip(objects, where, strict=True) if oriented]
    columns = flat_columns(path, objects, lines)
    count = len(columns)
    sizes = np.full(count, np.nan if pixel_size is None else pixel_size)
    if pixel_size is None and "pixel_size" in columns:
        sizes = columns.numbers("pixel_size")
    return Particles(
        ids=unique_ids([columns.texts("id")] if "id" in columns else [], count),
        tomograms=columns.texts("tomogram") if "tomogram" in columns else [""] * count,
        coordinates=np.array([location(content, place) for content, place in zip(objects, where, strict=True)]),
        pixel_size=sizes,
        centred=False,
        rotations=rotations_of_xyz(np.array(matrices), where) if oriented else None,
        class_names=class_names_of(columns, class_column, ("class_name", "className")),
        scores=columns.numbers("score") if "score" in columns else None,
        columns=columns.frame(),
        format="portal",
        path=path,
    )
