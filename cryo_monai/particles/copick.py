"""Picks of copick: one JSON per object, or all picks of a project.

Locations are in Å from the first voxel, and ``transformation_`` takes points of the object to the tomogram; its
translation is a shift in Å (copick/copick, src/copick/models.py, ``CopickPoint``, and ``dynamo_to_copick_transform`` in
src/copick/util/formats.py). Picks of a run lie at ``ExperimentRuns/<run>/Picks/<user>_<session>_<object>.json`` below
the overlay and the static root (src/copick/impl/filesystem.py); roots on this machine are read without the package
``copick``, other ones with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.particles.portal import flat_columns, location, matrix
from cryo_monai.particles.poses import rotations_of_xyz
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import class_names_of, read_text

_LOCAL = ("local://", "file://")
OBJECT = "pickable_object_name"


def read_copick(path: Path, *, pixel_size: float | None, class_column: str | None) -> Particles:
    """Read a picks file or the configuration of a project.

    Raises
    ------
    InputError
        Naming the point and key that is wrong, or why a project cannot be read.
    """
    content = _load(path)
    if pixel_size is not None:
        raise InputError(f"{path}: its coordinates are in Å; leave pixel_size out")
    if isinstance(content, Mapping) and OBJECT in content and "points" in content:
        picks = [(path, content)]
    elif isinstance(content, Mapping) and "pickable_objects" in content:
        picks = _project_picks(path, content)
    else:
        raise InputError(f"{path}: neither picks of copick ({OBJECT}, points) nor a configuration of a copick project")
    return _particles(path, picks, class_column)


def _load(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as JSON ({error})") from error


def _particles(path: Path, picks: list[tuple[Path, Mapping[str, Any]]], class_column: str | None) -> Particles:
    points, where, matrices, oriented = [], [], [], True
    for file, content in picks:
        if content.get("unit", "angstrom") != "angstrom":
            raise InputError(f"{file}: unit is {content['unit']!r}, copick counts in angstrom")
        if not isinstance(content.get("points") or [], list):
            raise InputError(f"{file}: points is not a list")
        oriented &= content.get("trust_orientation") is not False
        head = {key: value for key, value in content.items() if key != "points" and not isinstance(value, (dict, list))}
        for number, point in enumerate(content.get("points") or [], 1):
            place = f"{file}, point {number}"
            if not isinstance(point, Mapping):
                raise InputError(f"{place}: not an object")
            # copick's default is no turn and no shift.
            matrices.append(matrix(point.get("transformation_") or np.eye(4).tolist(), 4, place))
            points.append({**head, **point, "run_name": content.get("run_name") or ""})
            where.append(place)
    if not points:
        raise InputError(f"{path}: holds no picks")
    places = np.array([location(point, place) for point, place in zip(points, where, strict=True)])
    transforms = np.array(matrices)
    columns = flat_columns(path, points, [0] * len(points))
    scored = [point.get("score") for point in points]
    return Particles(
        ids=[str(number) for number in range(1, len(points) + 1)],
        tomograms=columns.texts("run_name"),
        coordinates=places + transforms[:, 2::-1, 3],
        pixel_size=np.ones(len(points)),
        centred=False,
        rotations=rotations_of_xyz(transforms[:, :3, :3], where) if oriented else None,
        class_names=class_names_of(columns, class_column, (OBJECT,)),
        # copick's default score.
        scores=np.array([1.0 if score is None else _number(score, where[n]) for n, score in enumerate(scored)]),
        columns=columns.frame(),
        format="copick",
        path=path,
    )


def _number(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        raise InputError(f"{where}, score: {value!r} is not a number")
    return float(value)


def _project_picks(path: Path, config: Mapping[str, Any]) -> list[tuple[Path, Mapping[str, Any]]]:
    roots = [str(config[key]) for key in ("static_root", "overlay_root") if config.get(key)]
    if config.get("config_type") != "filesystem" or not all(root.startswith(_LOCAL) for root in roots):
        return _remote_picks(path)
    found: dict[tuple[str, str], Path] = {}
    for root in roots:
        folder = Path(root.split("://", 1)[1])
        if not folder.is_dir():
            raise InputError(f"{path}: its folder {folder} is not there")
        for file in sorted(folder.glob("ExperimentRuns/*/Picks/*.json")):
            # The overlay comes last and hides what it names again.
            found[file.parent.parent.name, file.name] = file
    picks: list[tuple[Path, Mapping[str, Any]]] = []
    for (run, _), file in sorted(found.items()):
        content = _load(file)
        if not isinstance(content, Mapping) or OBJECT not in content:
            raise InputError(f"{file}: not picks of copick")
        picks.append((file, {**content, "run_name": run}))
    return picks


def _remote_picks(path: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the picks of a project on another machine, through the package ``copick``."""
    try:
        copick = import_module("copick")
    except ImportError as error:
        raise InputError(
            f"{path}: a copick project on another machine needs the package copick (pip install copick)"
        ) from error
    try:
        root = copick.from_file(str(path))
        return [
            (path, {**picks.load().model_dump(), "run_name": run.name})
            for run in root.runs
            for picks in run.get_picks()
        ]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path}: copick cannot open this project ({str(error).splitlines()[0]})") from error
