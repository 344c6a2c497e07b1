"""Everything about a data set that should be known before training on it, in one reading of every voxel."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.audit_reports import Audit as Audit
from cryo_monai.datalists import GatheredItems, divide, divided_sources, gather, label_problems
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.leakage import audit_sources
from cryo_monai.medmnist3d import read_medmnist
from cryo_monai.splits import SPLIT_BY, Item
from cryo_monai.volumes import NAN_POLICIES, VolumeFacts, read_volume, volume_facts, volume_identity

# Voxel sizes that differ by less than this are rounding in the header.
VOXEL_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Volume:
    """What was found in one volume; ``error`` says why nothing was."""

    path: str
    split: str
    label: Any
    error: str = ""
    facts: VolumeFacts | None = None
    digest: str = ""
    not_finite: int = 0
    statistics: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def audit_dataset(
    dataset_dir: str | os.PathLike[str],
    *,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_by: str = "volume",
    seed: int = 0,
    permissive: bool = False,
    nan: str = "error",
    progress: Callable[[int], object] | None = None,
) -> Audit:
    """Read a labelled data set whole and say what is wrong or doubtful about it.

    Parameters
    ----------
    dataset_dir : path
        What `load_datalist` reads, sound or not, or an NPZ file of MedMNIST3D.
    split, split_by, seed
        How training would split data that come without a split; see `load_datalist`.
    permissive : bool
        Accept old MRC files; see `read_mrc`.
    nan : str
        ``"error"``: voxels that are not finite are a problem. ``"mean"``: they are a warning.
    progress : callable, optional
        Called with the number of volumes just read.

    Returns
    -------
    Audit
        Problems, for which training would refuse the data or its score would be wrong, warnings, and numbers.

    Raises
    ------
    InputError
        When there is nothing at this place, or for an option that does not exist.
    """
    if nan not in NAN_POLICIES:
        raise InputError(f"nan: {nan!r} is not one of {', '.join(NAN_POLICIES)}")
    if split_by not in SPLIT_BY:
        raise InputError(f"split_by: {split_by!r} is not one of {', '.join(SPLIT_BY)}")
    data = _gather(Path(dataset_dir))
    wrong = label_problems(data.lists, data.class_names)
    lists, problems = data.lists, [*data.problems, *wrong]
    if not problems:
        try:
            lists = divide(data, split, split_by, seed)
        except InputError as error:
            problems += error.problems if isinstance(error, DatasetError) else [str(error)]
    problems += divided_sources(lists) if split_by == "source" else []
    sound = {name: [i for i in items if _is_label(i["label"], data.class_names)] for name, items in lists.items()}
    sources = audit_sources(sound, data.class_names, split=split, seed=seed)
    leakage = sources.warnings()
    if sources.divided and split_by == "volume":
        leakage.append(
            f"{len(sources.divided)} of {len(sources.sources)} sources have volumes in more than one split "
            f"({_some(sources.divided)}): the test is not on new tomograms; see split_by source"
        )
    warnings = list(leakage)
    volumes = _read_all(lists, permissive, progress)
    read = [volume for volume in volumes if volume.facts is not None]
    problems += [volume.error for volume in volumes if volume.error]
    for found, lines in (_listed_twice(lists), _mixed(read), _duplicates(read), _contents(read, nan)):
        problems += found
        warnings += lines
    if not volumes and not problems:
        problems.append(f"{dataset_dir}: no volumes")
    return Audit(
        dataset=str(dataset_dir),
        class_names=data.class_names,
        counts=_counts(sound, data.class_names),
        num_volumes=len(volumes),
        num_read=len(read),
        shapes=_tally(" x ".join(map(str, v.facts.shape)) for v in read if v.facts),
        voxel_sizes=_tally(_voxel_size(v.facts) for v in read if v.facts),
        data_types=_tally(v.facts.data_type for v in read if v.facts),
        intensities=_intensities(read, data.class_names),
        sources=sources,
        problems=problems,
        warnings=warnings,
        leakage=leakage,
    )


def _gather(source: Path) -> GatheredItems:
    """Read what a data set lists; what cannot be understood at all becomes its problem."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    try:
        if source.suffix != ".npz":
            return gather(source)
        lists, class_names = read_medmnist(source)
    except InputError as error:
        return GatheredItems(source, {"": []}, [], [str(error)])
    labels = [item["label"] for items in lists.values() for item in items]
    return GatheredItems(source, lists, class_names or [f"class_{n}" for n in range(max(labels, default=-1) + 1)])


def _is_label(label: Any, class_names: Sequence[str]) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(class_names)


def _read_all(
    lists: Mapping[str, Sequence[Item]], permissive: bool, progress: Callable[[int], object] | None
) -> list[_Volume]:
    every = [(split, item) for split, items in lists.items() for item in items]
    volumes = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for volume in pool.map(lambda pair: _read(pair[0], pair[1], permissive), every):
            volumes.append(volume)
            if progress:
                progress(1)
    return volumes


def _read(split: str, item: Item, permissive: bool) -> _Volume:
    path, label, image = str(item["path"]), item["label"], item["image"]
    try:
        if isinstance(image, np.ndarray):
            facts, data = VolumeFacts(image.shape, None, str(image.dtype)), image.astype(np.float32)
        else:
            facts, data = volume_facts(image, permissive=permissive), read_volume(image, permissive=permissive)
    except InputError as error:
        return _Volume(path, split, label, error=str(error))
    # Zeros of both signs are the same voxel; NaN stays as it is.
    data = np.ascontiguousarray(data) + np.float32(0)
    digest = hashlib.sha256(data.data, usedforsecurity=False).hexdigest()
    finite = data[np.isfinite(data)].astype(float)
    statistics = (finite.min(), finite.max(), finite.mean(), finite.std()) if finite.size else (np.nan,) * 4
    return _Volume(path, split, label, "", facts, digest, data.size - finite.size, statistics)


def _counts(lists: Mapping[str, Sequence[Item]], class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count volumes by split and class."""
    return {
        split: {name: sum(item["label"] == n for item in items) for n, name in enumerate(class_names)}
        for split, items in lists.items()
    }


def _tally(values: Any) -> dict[str, int]:
    """Count values, the most frequent first."""
    return dict(Counter(values).most_common())


def _some(names: Sequence[str], count: int = 5) -> str:
    """Name the first, and say how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _voxel_size(facts: VolumeFacts) -> str:
    if facts.voxel_size is None:
        return "unknown"
    return " x ".join(f"{size:.4g}" for size in facts.voxel_size) + " Å"


def _listed_twice(lists: Mapping[str, Sequence[Item]]) -> tuple[list[str], list[str]]:
    seen: dict[str, str] = {}
    problems = []
    for split, items in lists.items():
        for item in (i for i in items if isinstance(i["image"], str)):
            real = volume_identity(item["image"])
            if real in seen:
                twice = f" (in {seen[real]} and in {split})" if split else ""
                problems.append(f"{item['path']}: listed twice{twice}")
            seen.setdefault(real, split)
    return problems, []


def _mixed(volumes: Sequence[_Volume]) -> tuple[list[str], list[str]]:
    """Compare shapes, voxel sizes and data types."""
    problems = _minorities(volumes, "box size", lambda facts: str(facts.shape))
    sizes = [v.facts.voxel_size for v in volumes if v.facts and v.facts.voxel_size]
    known = [v for v in volumes if v.facts and v.facts.voxel_size]
    if sizes and (np.max(sizes, axis=0) > np.min(sizes, axis=0) * (1 + VOXEL_SIZE_TOLERANCE)).any():
        problems += _minorities(known, "voxel size", _voxel_size)
    warnings = _minorities(volumes, "data type", lambda facts: facts.data_type)
    if sizes and len(sizes) < len(volumes):
        unknown = next(v.path for v in volumes if v.facts and not v.facts.voxel_size)
        warnings.append(f"{len(volumes) - len(sizes)} volumes do not say their voxel size, such as {unknown}")
    return problems, warnings


def _minorities(volumes: Sequence[_Volume], what: str, key: Callable[[VolumeFacts], str]) -> list[str]:
    """Say, one line each, which values are less frequent than the most frequent one, with an example."""
    groups: dict[str, list[str]] = {}
    for volume in volumes:
        if volume.facts:
            groups.setdefault(key(volume.facts), []).append(volume.path)
    (usual, members), *others = sorted(groups.items(), key=lambda group: -len(group[1])) or [("", [])]
    return [
        f"{paths[0]}: {what} {value} ({len(paths)} volumes) differs from the {usual} of {len(members)}"
        for value, paths in others
    ]


def _duplicates(volumes: Sequence[_Volume]) -> tuple[list[str], list[str]]:
    """Find equal voxels under different names: wrong across splits or classes, doubtful within."""
    groups: dict[tuple[str, Any], dict[str, _Volume]] = {}
    for volume in volumes:
        shape = volume.facts.shape if volume.facts else None
        groups.setdefault((volume.digest, shape), {}).setdefault(volume_identity(volume.path), volume)
    problems, warnings = [], []
    for same in (list(group.values()) for group in groups.values() if len(group) > 1):
        named = _some([f"{v.path} ({v.split})" if v.split else v.path for v in same])
        if len({v.split for v in same}) > 1:
            problems.append(f"the same voxels in more than one split: {named}")
        elif len({str(v.label) for v in same}) > 1:
            problems.append(f"the same voxels in more than one class: {named}")
        else:
            warnings.append(f"the same voxels under {len(same)} names: {named}")
    return problems, warnings


def _contents(volumes: Sequence[_Volume], nan: str) -> tuple[list[str], list[str]]:
    """Look at voxels that are not finite and at volumes without contrast."""
    problems, warnings = [], []
    for volume in volumes:
        lowest, highest, *_ = volume.statistics
        if volume.not_finite:
            line = f"{volume.path}: {volume.not_finite} voxels are NaN or infinite"
            if np.isnan(lowest):
                problems.append(f"{volume.path}: no voxel is finite")
            elif nan == "error":
                problems.append(f"{line} (fill them by the mean with --nan mean)")
            else:
                warnings.append(line)
        if lowest == highest:
            warnings.append(f"{volume.path}: every voxel has the same value")
    return problems, warnings


def _intensities(volumes: Sequence[_Volume], class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Medians over volumes of minimum, maximum, mean and standard deviation, for all of them and for each class."""
    groups = {"all classes": list(volumes)}
    for label, name in enumerate(class_names):
        groups[name] = [v for v in volumes if v.label == label and _is_label(v.label, class_names)]
    keys = ("minimum", "maximum", "mean", "standard deviation")
    summary = {}
    for name, members in groups.items():
        values = np.array([v.statistics for v in members if np.isfinite(v.statistics).all()])
        if len(values):
            summary[name] = dict(zip(keys, np.median(values, axis=0).tolist(), strict=True))
    return summary
