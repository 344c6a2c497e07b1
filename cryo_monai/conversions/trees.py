"""All volumes below a folder to another format, with the same sub-folders; resumed by the same call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryo_monai.conversions.converting import convert_volume
from cryo_monai.conversions.geometries import Triple, checked_voxel_size, geometry_of
from cryo_monai.conversions.stored import SOURCE_SUFFIXES, TARGET_SUFFIXES, kind_of
from cryo_monai.datalists import hidden
from cryo_monai.errors import CryoMonaiError, DatasetError, InputError
from cryo_monai.folders import Journal, claimed, note_recipe
from cryo_monai.volumes import check_volume_file

KIND = "conversion"
_AT_ONCE = 64


@dataclass
class TreeConversion:
    """What became of the volumes below a folder.

    Attributes
    ----------
    converted, present : int
        Written by this call, and by calls before it.
    left_out : int
        Of the wanted format already; they are not copied.
    notes : Counter
        What could not be kept, and for how many volumes.
    """

    converted: int = 0
    present: int = 0
    left_out: int = 0
    notes: Counter[str] = field(default_factory=Counter)


def convert_tree(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str,
    voxel_size: float | Triple | None = None,
    permissive: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> TreeConversion:
    """Convert every volume below a folder; see `convert_volume`.

    Headers are all checked before anything is written. ``conversion.json`` in the target notes what is made there,
    ``conversion.jsonl`` what was begun: a file is written once, again if its source has changed since, and never over
    one that was there before. What was made of a source that has changed is removed before it is made again.

    Parameters
    ----------
    source : path
        Folder; files and folders whose names begin with a dot, and PNG files, are passed over.
    target : path
        Created when missing; not inside the source.
    to : str
        nii.gz, nii, mrc or npy.
    voxel_size : float or tuple, optional
        See `convert_volume`.
    permissive : bool
        See `read_mrc`.
    progress : callable, optional
        Called with the volumes that are done and those there are to do.

    Raises
    ------
    InputError, DatasetError
        Naming every file that cannot be converted; those whose header is right but whose voxels cannot be read are
        named after the others were converted.
    """
    root, folder, given = Path(source), Path(target), checked_voxel_size(voxel_size)
    suffix = f".{to.lstrip('.')}"
    if suffix not in TARGET_SUFFIXES:
        raise InputError(f"--to {to}: is not one of {', '.join(known[1:] for known in TARGET_SUFFIXES)}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if folder.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{folder}: lies inside {root}; choose a folder beside it")
    files = sorted(p for p in root.rglob("*") if p.is_file() and kind_of(p) and not hidden(p, root))
    wanted = [file for file in files if kind_of(file) != kind_of(suffix)]
    if not wanted:
        raise InputError(f"{root}: no volumes to convert to {to} ({', '.join(SOURCE_SUFFIXES)})")
    targets = {file: folder / file.relative_to(root).parent / (_stem(file) + suffix) for file in wanted}
    _refuse_bad_headers(root, targets, given, to, permissive)
    result = TreeConversion(left_out=len(files) - len(wanted))
    recipe = {"source": str(root.resolve()), "to": to, "voxel_size": given, "permissive": permissive}
    with claimed(folder, KIND):
        note_recipe(folder, recipe, KIND)
        journal = Journal(folder / f"{KIND}.jsonl")
        todo = _todo(journal, root, folder, targets)
        result.present = len(wanted) - len(todo)
        problems: list[str] = []
        for start in range(0, len(todo), _AT_ONCE):
            batch = todo[start : start + _AT_ONCE]
            # What is there is of sources as they were: noted as begun, it would pass for what is made of them now.
            for file in batch:
                _remove(targets[file])
            journal.append([_entry(file, root, targets[file], folder) for file in batch])
            for number, file in enumerate(batch):
                problems += _convert(file, targets[file], given, permissive, result)
                if progress is not None:
                    progress(start + number + 1, len(todo))
    if problems:
        raise DatasetError(str(root), problems)
    return result


def _convert(
    file: Path, target: Path, voxel_size: Triple | None, permissive: bool, result: TreeConversion
) -> Sequence[str]:
    """Convert one file, and return what is wrong with it."""
    try:
        notes = convert_volume(file, target, voxel_size=voxel_size, permissive=permissive, replacing=True)
    except InputError as error:
        return [str(error)]
    result.converted += 1
    result.notes.update(notes)
    return []


def _stem(file: Path) -> str:
    """File name without the ending of its format."""
    endings = sorted((s for s in SOURCE_SUFFIXES if file.name.lower().endswith(s)), key=len)
    return file.name[: -len(endings[-1])]


def _refuse_bad_headers(
    root: Path, targets: dict[Path, Path], voxel_size: Triple | None, to: str, permissive: bool
) -> None:
    problems = []
    owners: dict[Path, Path] = {}
    for file, target in targets.items():
        try:
            check_volume_file(file, permissive=permissive)
            known = voxel_size or geometry_of(file, permissive=permissive).voxel_size
            if known is None and to != "npy":
                raise InputError(f"{file}: the voxel size is not known; give it with --voxel_size (Å)")
        except InputError as error:
            problems.append(str(error))
        other = owners.setdefault(target, file)
        if other != file:
            problems.append(f"{file}: would become {target.name}, as {other.name} does; rename one")
    if problems:
        raise DatasetError(str(root), problems)


def _todo(journal: Journal, root: Path, folder: Path, targets: dict[Path, Path]) -> list[Path]:
    """Return the files that are still to be converted.

    Raises
    ------
    DatasetError
        Naming every target that exists and was not made here.
    """
    begun = {entry["target"]: entry for entry in journal.entries}
    todo, problems = [], []
    for file, target in targets.items():
        entry = _entry(file, root, target, folder)
        noted = begun.get(entry["target"])
        if noted is None and os.path.lexists(target):
            problems.append(f"{target}: exists and was not made by this conversion; remove it")
        elif noted != entry or not target.exists():
            todo.append(file)
    if problems:
        raise DatasetError(str(folder), problems)
    return todo


def _remove(target: Path) -> None:
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        raise CryoMonaiError(f"{target}: cannot be made again ({error.strerror}); remove it") from error


def _entry(file: Path, root: Path, target: Path, folder: Path) -> dict[str, Any]:
    """Return what the journal says of a file that is being converted."""
    status = file.stat()
    return {
        "source": str(file.relative_to(root)),
        "target": str(target.relative_to(folder)),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }
