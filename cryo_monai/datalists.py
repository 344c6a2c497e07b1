"""Folder per class or MONAI datalist JSON -> checked training, validation and test lists.

Every list holds items ``{"image": path or array, "label": int, "index": int, "path": str, "source": str}``; ``index``
numbers the items of a list and seeds their augmentation; ``source`` is the tomogram, or "" where that is unknown.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.label_fractions import labelled_subset
from cryo_monai.splits import SPLIT_BY, split_items
from cryo_monai.splits import SPLITS as SPLITS
from cryo_monai.splits import Item as Item
from cryo_monai.splits import stratified_split as stratified_split
from cryo_monai.volume_caches import VolumeCache, volume_key
from cryo_monai.volumes import (
    VOLUME_SUFFIXES,
    LoadVolumed,
    check_volume_file,
    checked_volume,
    is_volume_file,
    read_volume,
    volume_identity,
    volume_path,
)

Datalist = dict[str, Any]
Lists = Mapping[str, Sequence[Item]]


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_by: str = "volume",
    seed: int = 0,
    label_fraction: float = 1.0,
    permissive: bool = False,
    nan: str = "error",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Datalist:
    """Read a labelled data set and check everything that can be checked without reading voxels.

    Parameters
    ----------
    dataset_dir : path
        A MONAI datalist JSON (or a folder with ``dataset.json``) with ``training``, ``validation`` and ``test`` lists
        and optional ``class_names``; paths in it are relative to the file; items may name their tomogram as
        ``source``. Or a folder with one sub-folder of volumes per class, which is split here, stratified by class.
    num_classes : int, optional
        What the network expects; a different number of classes is an error.
    split : sequence of float
        Fractions of training, validation and test for data that come without a split.
    split_by : str
        ``"volume"``: each volume for itself, see `stratified_split`. ``"source"``: all volumes of a source go to one
        split, see `grouped_split`; a split that comes with the data is then refused when it divides a source.
    seed : int
        Seed of that split, and of the choice of labels.
    label_fraction : float
        Share of the training list that is kept; see `labelled_subset`. Validation and test stay whole.
    permissive : bool
        Accept old MRC files; see `read_mrc`.
    nan : str
        See `checked_volume`. A list of problems that is made anyway includes voxels that are not finite, unless they
        are to be filled; otherwise voxels are checked where they are read once, by `CachedVolumes`.
    cache_dir : path, optional
        Of `CachedVolumes`: headers of files that are in it, and have not changed since, are not read again.

    Returns
    -------
    dict
        ``training``, ``validation``, ``test`` (lists of items) and ``class_names``.

    Raises
    ------
    DatasetError
        Every problem found, one line each: missing or unreadable files, unknown extensions, labels out of range,
        classes that are empty or absent from a split, files in two splits, mixed box sizes, a number of classes that is
        not ``num_classes``, sources that cannot be kept in one split.
    InputError
        When there is no data set at this place.
    """
    if split_by not in SPLIT_BY:
        raise InputError(f"split_by: {split_by!r} is not one of {', '.join(SPLIT_BY)}")
    data = gather(dataset_dir)
    problems = [*data.problems, *label_problems(data.lists, data.class_names)]
    # A split needs sound labels.
    lists = data.lists if problems else divide(data, split, split_by, seed)
    if data.is_split and split_by == "source":
        problems += divided_sources(lists)
    if num_classes is not None and len(data.class_names) != num_classes:
        problems.append(
            f"{dataset_dir}: {len(data.class_names)} classes ({', '.join(data.class_names)}), but the network has "
            f"{num_classes}; add --num_classes {len(data.class_names)}"
        )
    cache = VolumeCache(cache_dir, LoadVolumed("image", nan=nan, permissive=permissive))
    _raise_problems(Path(dataset_dir), problems, lists, permissive, nan, cache)
    lists = {**lists, "training": labelled_subset(lists["training"], label_fraction, seed)}
    return {name: numbered(lists[name]) for name in SPLITS} | {"class_names": list(data.class_names)}


@dataclass(frozen=True)
class GatheredItems:
    """A labelled data set as it is written down, before anything is split or checked.

    Attributes
    ----------
    place : Path
        The folder or file it was read from.
    lists : dict
        Items by split, or all of them under ``""`` when the data come without a split.
    class_names : list of str
        Names by label.
    problems : list of str
        What could not be understood, one line each.
    """

    place: Path
    lists: dict[str, list[Item]]
    class_names: list[str]
    problems: list[str] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        """Whether the data come with a split."""
        return "" not in self.lists


def gather(dataset_dir: str | os.PathLike[str]) -> GatheredItems:
    """Read what a datalist or a folder per class lists, without looking into the volumes; see `load_datalist`.

    Raises
    ------
    InputError
        When there is no data set at this place.
    """
    source = Path(dataset_dir)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give the data with --dataset_dir")
    datalist_file = source / "dataset.json" if source.is_dir() else source
    return _read_json(datalist_file) if datalist_file.is_file() else _read_class_folders(source)


def divide(data: GatheredItems, split: Sequence[float], split_by: str, seed: int) -> dict[str, list[Item]]:
    """Return the lists of data that come with a split, else split them; see `split_items`.

    Raises
    ------
    InputError, DatasetError
        When they cannot be split so.
    """
    if data.is_split:
        return data.lists
    if split_by == "source" and data.place.is_dir():
        raise InputError(
            f"{data.place}: a folder per class does not say which tomogram a volume is from; split by volume, or "
            "write a datalist JSON whose items have a 'source'"
        )
    return split_items(data.lists[""], data.class_names, split, seed, split_by=split_by, place=str(data.place))


def divided_sources(lists: Mapping[str, Sequence[Item]]) -> list[str]:
    """Say, one line each, which sources have volumes in more than one split."""
    places: dict[str, dict[str, int]] = {}
    for name, items in lists.items():
        for item in items:
            if item.get("source"):
                counts = places.setdefault(str(item["source"]), {})
                counts[name] = counts.get(name, 0) + 1
    return [
        f"source {source!r} is in {len(counts)} splits ({', '.join(f'{n} in {name}' for name, n in counts.items())})"
        for source, counts in sorted(places.items())
        if len(counts) > 1
    ]


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
    return volume_path(image, file.parent)


def _read_json(file: Path) -> GatheredItems:
    content = load_json(file)
    if not isinstance(content, Mapping) or not isinstance(content.get("training"), list):
        raise InputError(f"{file}: a datalist needs a 'training' list")
    lists: dict[str, list[Item]] = {}
    problems: list[str] = []
    for name in SPLITS:
        lists[name] = []
        members = content.get(name) or []
        if not isinstance(members, list):
            raise InputError(f"{file}: {name!r} is not a list")
        for member in members:
            try:
                lists[name].append(_listed_item(member, file))
            except InputError as error:
                problems.append(str(error))
    labels = [i["label"] for items in lists.values() for i in items if isinstance(i["label"], int)]
    class_names = content.get("class_names") or [f"class_{n}" for n in range(max(labels, default=-1) + 1)]
    if not isinstance(class_names, list):
        raise InputError(f"{file}: 'class_names' is not a list")
    if not lists["validation"] and not lists["test"]:
        lists = {"": lists["training"]}
    elif not lists["validation"] or not lists["test"]:
        problems.append(f"{file}: give both 'validation' and 'test', or neither to have 'training' split")
    return GatheredItems(file, lists, [str(name) for name in class_names], problems)


def _listed_item(member: Any, file: Path) -> Item:
    path = str(image_path(member, file))
    label, source = (member.get("label"), member.get("source")) if isinstance(member, Mapping) else (None, None)
    if source is not None and (not isinstance(source, (str, int)) or isinstance(source, bool)):
        raise InputError(f"{file}: the 'source' of {path} is {source!r}, not a name")
    return {"image": path, "label": label, "path": path, "source": "" if source is None else str(source)}


def hidden(path: Path, root: Path) -> bool:
    """Whether a path below a root, or a folder between them, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_class_folders(source: Path) -> GatheredItems:
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
            f"{p}: unknown extension; volumes end in {', '.join(VOLUME_SUFFIXES)}"
            for p in files
            if not is_volume_file(p)
        ]
        if not volumes:
            problems.append(f"{folder}: class without volumes")
        items += [{"image": str(p), "label": label, "path": str(p), "source": ""} for p in volumes]
    return GatheredItems(source, {"": items}, [folder.name for folder in folders], problems)


def label_problems(lists: Mapping[str, Sequence[Item]], class_names: Sequence[str]) -> list[str]:
    """Say, one line each, which labels are impossible and which classes are absent from a split."""
    problems = []
    for name, items in lists.items():
        for item in items:
            label = item["label"]
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(class_names):
                problems.append(f"{item['path']}: label {label!r} is not an integer from 0 to {len(class_names) - 1}")
        counts = Counter(item["label"] for item in items if isinstance(item["label"], int))
        if name:
            problems += [f"class {c!r} has no volume in {name}" for n, c in enumerate(class_names) if not counts[n]]
    return problems


def _raise_problems(
    source: Path, problems: Sequence[str], lists: Lists, permissive: bool, nan: str, cache: VolumeCache
) -> None:
    """Raise what is wrong with the files and what was known before, if anything is; then voxels are looked at too."""
    every = [*problems, *file_problems(lists, permissive, cache)]
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


def file_problems(lists: Lists, permissive: bool, cache: VolumeCache | None = None) -> list[str]:
    """Say, one line each, which files cannot be read or have another box size than the first.

    Of files in a cache, which are as they were when they were read, the shape is taken from there.
    """
    problems = []
    shapes: dict[tuple[int, int, int], str] = {}
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name, items in lists.items():
        for item in items:
            path = item["path"]
            real = volume_identity(path, folders)
            if real in seen:
                twice = f" (in {seen[real]} and in {name})" if name else ""
                problems.append(f"{path}: listed twice{twice}")
                continue
            seen[real] = name
            try:
                known = cache.shape(volume_key(path)) if cache else None
                shape = known or check_volume_file(path, permissive=permissive)
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
