"""A cache of checked volumes, and the order in which an epoch visits them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from monai.data import CacheDataset
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from cryo_monai.contrasts import CONTRAST_SAMPLE, contrast_of
from cryo_monai.errors import DatasetError, InputError, user_error
from cryo_monai.volume_caches import VolumeCache, only_loader
from cryo_monai.volumes import is_volume_file, stack_member, volume_facts


class CachedVolumes(CacheDataset):
    """MONAI's ``CacheDataset`` that reads every volume once, and reports everything wrong with a data set together.

    Parameters
    ----------
    data : sequence of dict
        Items with ``image`` and ``path``.
    transform : transform
        Deterministic preprocessing; see `LoadVolumed`.
    also_check : sequence of dict
        Items of the other splits: read and checked with these, so that a bad test volume is known before training, but
        not kept.
    num_workers : int
        Threads that read files.
    progress : bool
        Show a progress bar.
    cache_dir : path, optional
        Folder in which all processes of a machine share what `LoadVolumed` made of the files, see `VolumeCache`: only
        files that are new or have changed are read. Arrays, and data sets in which something is wrong, are not kept.

    Raises
    ------
    DatasetError
        Naming each file that cannot be used, and each whose box size differs from the others'.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Any,
        *,
        also_check: Sequence[dict[str, Any]] = (),
        num_workers: int = 2,
        progress: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._kept = len(data)
        self._problems: dict[int, str] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        every = [*data, *also_check]
        cache = VolumeCache(cache_dir, only_loader(transform))
        keys = cache.keys(item["image"] for item in every)
        with cache.filled(keys[: self._kept], others=keys[self._kept :]) as add:
            self._shared = cache, keys, add
            super().__init__(data=every, transform=transform, num_workers=num_workers, progress=progress)
            self._report_problems(every)
        del self._shared, self.data[self._kept :], self._cache[self._kept :]
        self.cache_num = self._kept
        for item, key in zip(self._cache, keys, strict=False):
            # What was read just now gives way to the mapping that all processes have.
            if key is not None and item["image"].device.type == "cpu":
                mapped = cache.volume(key)
                item["image"] = item["image"] if mapped is None else mapped

    def _load_cache_item(self, idx: int) -> Any:
        cache, keys, add = self._shared
        shape, volume = cache.shape(keys[idx]), cache.volume(keys[idx]) if idx < self._kept else None
        if shape is not None and (volume is not None or idx >= self._kept):
            self._shapes[idx] = shape
            return None if volume is None else {**self.data[idx], "image": volume}
        try:
            item = super()._load_cache_item(idx)
        except (InputError, RuntimeError) as error:
            # MONAI wraps what a transform raises in a RuntimeError.
            cause = user_error(error)
            if cause is None:
                raise
            self._problems[idx] = str(cause)
            return None
        self._shapes[idx] = tuple(item["image"].shape[1:])
        add(keys[idx], item["image"])
        return item if idx < self._kept else None

    def _report_problems(self, data: Sequence[dict[str, Any]]) -> None:
        problems = [self._problems[index] for index in sorted(self._problems)]
        counts = Counter(self._shapes.values())
        if len(counts) > 1:
            usual, number = counts.most_common(1)[0]
            problems += [
                f"{data[index]['path']}: box size {shape} differs from the {number} volumes of {usual}"
                for index, shape in sorted(self._shapes.items())
                if shape != usual
            ]
        if problems:
            raise DatasetError("data set", problems)


def describe_volumes(dataset: Dataset[Any]) -> dict[str, Any]:
    """Note what volumes a network is trained on, for those who cut boxes for it later.

    Parameters
    ----------
    dataset : Dataset
        Items with ``image`` `(1, z, y, x)` and ``path``, all of one size.

    Returns
    -------
    dict
        ``box`` ``(z, y, x)``, ``voxel_size`` in Å (None where files do not say), and ``contrast``, see `contrast_of`.
    """
    count = len(dataset)  # type: ignore[arg-type]
    rows = sorted({round(row) for row in np.linspace(0, count - 1, min(count, CONTRAST_SAMPLE))})
    return {
        "box": list(dataset[0]["image"].shape[1:]),
        "voxel_size": _voxel_size(str(dataset[0]["path"])),
        "contrast": contrast_of(dataset[row]["image"][0].cpu().numpy() for row in rows),
    }


def extraction_of(dataset_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the settings that the boxes of a data set were cut with, where its ``dataset.json`` says."""
    place = Path(dataset_dir)
    file = place / "dataset.json" if place.is_dir() else place
    if file.suffix != ".json" or not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    found = content.get("extraction") if isinstance(content, dict) else None
    return dict(found) if isinstance(found, dict) else None


def items_fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """Digest what is known of volumes without reading them: name and label; size and time of files, or arrays whole."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item['path']} {item.get('label')}".encode())
        if isinstance(item["image"], (str, os.PathLike)):
            status = os.stat(stack_member(item["image"])[0])
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(np.ascontiguousarray(item["image"]).tobytes())
    return digest.hexdigest()


def _voxel_size(path: str) -> float | None:
    """Edge of the voxels of a file in Å, when they are cubes."""
    sizes = volume_facts(path, permissive=True).voxel_size if is_volume_file(path) else None
    return float(f"{sizes[0]:.6g}") if sizes and max(sizes) < 1.001 * min(sizes) else None


class ResumableSampler(DistributedSampler[Any]):
    """Random order that depends on (seed, epoch) alone, and can start in the middle of an epoch.

    Parameters
    ----------
    dataset : Dataset
        What is sampled.
    seed : int
        Same seed, same orders. MONAI's engines set the epoch.
    num_replicas, rank : int, optional
        For data-parallel training: of the batches that one process would have, each rank takes its share. None asks
        ``torch.distributed``, if it is in use.

    Attributes
    ----------
    skip : int
        How many samples, of all ranks together, the next iteration leaves out at its start; it returns to 0.
    """

    def __init__(
        self, dataset: Dataset[Any], *, seed: int = 0, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        if num_replicas is None or rank is None:
            in_use = dist.is_initialized()
            num_replicas, rank = (dist.get_world_size(), dist.get_rank()) if in_use else (1, 0)
        # torch adds the epoch to the seed: a stride keeps the epochs of neighbouring seeds apart. Without drop_last it
        # would repeat samples where ranks do not divide the data set, and so could fill a batch that is not full.
        super().__init__(
            dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed * 100_003, drop_last=True
        )
        self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())[self.skip // self.num_replicas :]
        self.skip = 0
        return iter(order)
