"""Folder per class or MONAI datalist JSON -> checked training, validation and test lists.

Every list holds items ``{"image": path or array, "label": int, "index": int, "path": str}``; ``index`` numbers the
items of a list and seeds their augmentation.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.volumes import VOLUME_SUFFIXES, check_volume_file, checked_volume, is_volume_file, read_volume

SPLITS = ("training", "validation", "test")
Item = dict[str, Any]
Datalist = dict[str, Any]


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    permissive: bool = False,
    nan: str = "error",
) -> Datalist:
    """Read a labelled data set and check everything that can be checked without reading voxels.

    Parameters
    ----------
    dataset_dir : path
        A MONAI datalist JSON (or a folder with ``dataset.json``) with ``training``, ``validation`` and ``test`` lists
        and optional ``class_names``; paths in it are relative to the file. Or a folder with one sub-folder of volumes
        per class, which is split here, stratified by class.
    num_classes : int, optional
        What the network expects; a different number of classes is an error.
    split : sequence of float
        Fractions of training, validation and test for data that come without a split.
    seed : int
        Seed of that split.
    permissive : bool
        Accept old MRC files; see `read_mrc`.
    nan : str
        See `checked_volume`. A list of problems that is made anyway includes voxels that are not finite, unless they
        are to be filled; otherwise voxels are checked where they are read once, by `CachedVolumes`.

    Returns
    -------
    dict
        ``training``, ``validation``, ``test`` (lists of items) and ``class_names``.

    Raises
    ------
    DatasetError
        Every problem found, one line each: missing or unreadable files, unknown extensions, labels out of range,
        classes that are empty or absent from a split, files in two splits, mixed box sizes, a number of classes that is
        not ``num_classes``.
    InputError
        When there is no data set at this place.
    """
    source = Path(dataset_dir)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give the data with --dataset_dir")
    datalist_file = source / "dataset.json" if source.is_dir() else source
    if datalist_file.is_file():
        lists, class_names = _read_json(datalist_file)
        lists = _with_missing_splits(lists, class_names, split, seed, datalist_file)
    else:
        lists, class_names = _read_class_folders(source, split, seed, permissive, nan)
    problems = _label_problems(lists, class_names)
    if num_classes is not None and len(class_names) != num_classes:
        problems.append(
            f"{source}: {len(class_names)} classes ({', '.join(class_names)}), but the network has {num_classes}; "
            f"add --num_classes {len(class_names)}"
        )
    _raise_problems(source, problems, lists, permissive, nan)
    return {name: numbered(lists[name]) for name in SPLITS} | {"class_names": list(class_names)}


def load_json(file: Path) -> Any:
    """Read JSON, or raise an `InputError` that names the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error


def image_path(item: Any, file: Path) -> Path:
    """Return the path of an item of a datalist, relative to the datalist's file."""
    image = item.get("image") if isinstance(item, Mapping) else item
    if not isinstance(image, str):
        raise InputError(f"{file}: an item has no 'image' path: {item!r}")
    return file.parent / image


def _read_json(file: Path) -> tuple[dict[str, list[Item]], list[str]]:
    content = load_json(file)
    if not isinstance(content, Mapping) or "training" not in content:
        raise InputError(f"{file}: a datalist needs a 'training' list")
    lists: dict[str, list[Item]] = {}
    for name in SPLITS:
        lists[name] = []
        for item in content.get(name, []):
            image = image_path(item, file)
            lists[name].append({"image": str(image), "label": item.get("label"), "path": str(image)})
    labels = [i["label"] for items in lists.values() for i in items if isinstance(i["label"], int)]
    class_names = content.get("class_names") or [f"class_{n}" for n in range(max(labels, default=-1) + 1)]
    return lists, [str(name) for name in class_names]


def hidden(path: Path, root: Path) -> bool:
    """Whether a path below a root, or a folder between them, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_class_folders(
    source: Path, split: Sequence[float], seed: int, permissive: bool, nan: str
) -> tuple[dict[str, list[Item]], list[str]]:
    if not source.is_dir():
        raise InputError(f"{source}: neither a folder per class nor a datalist JSON")
    folders = sorted(p for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise InputError(f"{source}: needs a dataset.json or one folder of volumes per class (two at least)")
    items: list[Item] = []
    problems: list[str] = []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not hidden(p, source))
        volumes = [p for p in files if is_volume_file(p)]
        problems += [
            f"{p}: unknown extension; volumes end in {', '.join(VOLUME_SUFFIXES)}" for p in files if p not in volumes
        ]
        if not volumes:
            problems.append(f"{folder}: class without volumes")
        items += [{"image": str(p), "label": label, "path": str(p)} for p in volumes]
    if problems:
        _raise_problems(source, problems, {"data": items}, permissive, nan)
    class_names = [folder.name for folder in folders]
    return stratified_split(items, class_names, split, seed, source=str(source)), class_names


def _with_missing_splits(
    lists: dict[str, list[Item]], class_names: Sequence[str], split: Sequence[float], seed: int, file: Path
) -> dict[str, list[Item]]:
    """Split the training list when a datalist brings neither validation nor test."""
    if lists["validation"] and lists["test"]:
        return lists
    if lists["validation"] or lists["test"]:
        raise InputError(f"{file}: give both 'validation' and 'test', or neither to have 'training' split")
    problems = _label_problems({"training": lists["training"]}, class_names)
    if problems:
        raise DatasetError(str(file), problems)
    return stratified_split(lists["training"], class_names, split, seed, source=str(file))


def stratified_split(
    items: Sequence[Item],
    class_names: Sequence[str],
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    *,
    source: str = "data set",
) -> dict[str, list[Item]]:
    """Split items into training, validation and test with the same fractions in every class.

    Parameters
    ----------
    items : sequence of dict
        With integer ``label`` and ``path``; the split depends on the set of paths, not on their order.
    class_names : sequence of str
        Names by label.
    split : sequence of float
        Three positive fractions; they are normalised to sum to one.
    seed : int
        Same seed, same split.
    source : str
        What to call the data in messages.

    Raises
    ------
    InputError, DatasetError
        For fractions that are not three positive numbers, or classes of fewer than three members.
    """
    if len(split) != 3 or min(split) <= 0:
        raise InputError(f"split: {list(split)} must be three positive fractions")
    fractions = np.asarray(split, dtype=float) / sum(split)
    lists: dict[str, list[Item]] = {name: [] for name in SPLITS}
    problems = []
    for label, class_name in enumerate(class_names):
        members = sorted((i for i in items if i["label"] == label), key=lambda i: str(i["path"]))
        if len(members) < 3:
            problems.append(
                f"{class_name}: {len(members)} volumes are too few for training, validation and test (3 at least)"
            )
            continue
        order = np.random.default_rng([seed, label]).permutation(len(members))
        held_out = np.maximum(1, np.round(fractions[1:] * len(members)).astype(int))
        held_out = np.minimum(held_out, (len(members) - 1) // 2)
        train = len(members) - int(held_out.sum())
        bounds = np.cumsum([0, train, *held_out])
        for name, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
            lists[name] += [members[n] for n in order[start:stop]]
    if problems:
        raise DatasetError(source, problems)
    return lists


def _label_problems(lists: Mapping[str, Sequence[Item]], class_names: Sequence[str]) -> list[str]:
    problems = []
    for name, items in lists.items():
        for item in items:
            label = item["label"]
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(class_names):
                problems.append(f"{item['path']}: label {label!r} is not an integer from 0 to {len(class_names) - 1}")
        counts = Counter(item["label"] for item in items if isinstance(item["label"], int))
        problems += [f"class {c!r} has no volume in {name}" for n, c in enumerate(class_names) if not counts[n]]
    return problems


def _raise_problems(
    source: Path, problems: Sequence[str], lists: Mapping[str, Sequence[Item]], permissive: bool, nan: str
) -> None:
    """Raise what is wrong with the files and what was known before, if anything is; then voxels are looked at too."""
    every = [*problems, *file_problems(lists, permissive)]
    if not every:
        return
    named = "\n".join(every)
    for item in (item for items in lists.values() for item in items):
        if nan == "error" and f"{item['path']}: " not in named:
            try:
                checked_volume(read_volume(item["path"], permissive=permissive), item["path"])
            except InputError as error:
                every.append(str(error))
    raise DatasetError(str(source), every)


def file_problems(lists: Mapping[str, Sequence[Item]], permissive: bool) -> list[str]:
    """Say, one line each, which files cannot be read or have another box size than the first."""
    problems = []
    shapes: dict[tuple[int, int, int], str] = {}
    seen: dict[str, str] = {}
    for name, items in lists.items():
        for item in items:
            path = item["path"]
            real = os.path.realpath(path)
            if real in seen:
                problems.append(f"{path}: listed twice (in {seen[real]} and in {name})")
                continue
            seen[real] = name
            try:
                shape = check_volume_file(path, permissive=permissive)
            except InputError as error:
                problems.append(str(error))
                continue
            if shapes.setdefault(shape, path) == path and len(shapes) > 1:
                first = next(iter(shapes.items()))
                problems.append(f"{path}: box size {shape} differs from {first[0]} of {first[1]}")
    return problems


def numbered(items: Sequence[Item]) -> list[Item]:
    """Give each item its ``index``."""
    return [{**item, "index": number} for number, item in enumerate(items)]
