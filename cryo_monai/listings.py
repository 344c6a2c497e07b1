"""Volumes to classify or embed: a file, a folder, a datalist or a MedMNIST3D file -> one list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.datalists import SPLITS, Item, file_problems, hidden, image_path, load_json, numbered
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.medmnist3d import read_medmnist
from cryo_monai.volumes import VOLUME_SUFFIXES, is_volume_file, stack_member


def list_volumes(path: str | os.PathLike[str], *, permissive: bool = False) -> list[Item]:
    """List volumes: one file, all files below a folder, all items of a datalist JSON, or of a MedMNIST3D file.

    Parameters
    ----------
    path : path
        A volume (``000005@stack.mrcs`` for the fifth of a stack), a folder searched recursively unless there is a
        ``dataset.json`` in it, a JSON file holding a list of items or a datalist, or an NPZ file of MedMNIST3D.
    permissive : bool
        Accept old MRC files; see `read_mrc`.

    Returns
    -------
    list of dict
        Items with ``image``, ``path`` and ``index``, sorted by path for folders, in file order for datalists; and what
        the source says of them: ``truth`` (label, -1 where unknown), ``class_name`` (in folders, the first folder below
        ``path``) and ``split``, empty where unknown.

    Raises
    ------
    InputError, DatasetError
        When nothing is there to classify, or naming every file that cannot be read.
    """
    source = Path(path)
    if not stack_member(source)[0].exists():
        raise InputError(f"{source}: no such file or folder")
    if source.suffix == ".npz":
        lists, class_names = read_medmnist(source)
        every = [(item, split) for split in SPLITS for item in lists[split]]
        return numbered([_item(i["image"], i["path"], i["label"], class_names, split) for i, split in every])
    if (source / "dataset.json").is_file():
        source /= "dataset.json"
    if source.suffix == ".json":
        items = _listed(source)
    elif source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.is_file() and is_volume_file(p) and not hidden(p, source))
        items = [_folder_item(p, source) for p in paths]
    else:
        items = [_item(str(source), source)]
    if not items:
        raise InputError(f"{source}: no volumes ({', '.join(VOLUME_SUFFIXES)})")
    problems = file_problems({"inference": items}, permissive)
    if problems:
        raise DatasetError(str(source), problems)
    return numbered(items)


def _item(image: Any, path: Any, label: Any = None, class_names: Sequence[str] = (), split: str = "") -> Item:
    """Make an item of `list_volumes`, with the same keys for all sources."""
    known = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    name = str(class_names[label]) if known and label < len(class_names) else ""
    return {"image": image, "path": str(path), "truth": label if known else -1, "class_name": name, "split": split}


def _listed(file: Path) -> list[Item]:
    """Read all items of a list or a datalist, with what it says of them."""
    content = load_json(file)
    splits = {"": content} if isinstance(content, list) else {s: content.get(s, []) for s in (*SPLITS, "inference")}
    class_names = [] if isinstance(content, list) else content.get("class_names") or []
    items = []
    for split, members in splits.items():
        for member in members:
            image = str(image_path(member, file))
            label = member.get("label") if isinstance(member, Mapping) else None
            items.append(_item(image, image, label, class_names, split))
    return items


def _folder_item(path: Path, root: Path) -> Item:
    """Take the first folder below the root as the name of the class."""
    parts = path.relative_to(root).parts
    return _item(str(path), path) | {"class_name": parts[0] if len(parts) > 1 else ""}
