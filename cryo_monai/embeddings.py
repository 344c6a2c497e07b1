"""Pooled features of a data set, before any classifier: what feature-extraction studies and plots start from."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cryo_monai.datasets import items_fingerprint
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.networks import VideoClassifier
from cryo_monai.parts import compute_in_parts, drop_parts, network_fingerprint

Progress = Callable[[int], None]


def embed_dataset(
    network: VideoClassifier,
    dataset: Dataset[Any],
    items: Sequence[Mapping[str, Any]],
    output: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write the pooled features of every volume to an NPZ and a CSV file.

    Batches are kept in ``OUTPUT.parts`` as they come; an interrupted call goes on with the next batch, unless network
    or data have changed.

    Parameters
    ----------
    network : VideoClassifier
        On the device; put into evaluation mode.
    dataset : Dataset
        Gives ``image`` `(1, z, y, x)`, one per item.
    items : sequence of mapping
        Of `list_volumes`.
    output : path
        The NPZ: ``features`` (n, F) float32, ``labels`` (n,) int64 (-1 where unknown), ``class_names``, ``paths`` and
        ``splits`` (n,) text. The CSV, with the same name but for its ending, has a row per volume: path, split, label,
        class name, features.
    device : torch.device
        Where the network is.
    batch_size, num_workers : int
        Of the loader.
    progress : callable, optional
        Called with the number of volumes that are done, those of an interrupted call included.

    Returns
    -------
    Path
        The NPZ.

    Raises
    ------
    InputError
        When the output is not called ``*.npz``, or exists.
    CryoMonaiError
        When it cannot be written.
    """
    target = Path(output)
    if target.suffix != ".npz":
        raise InputError(f"{target}: embeddings are written as NPZ; give a name that ends in .npz")
    if target.exists():
        raise InputError(f"{target}: exists; remove it, or choose another --output")
    parts = target.with_name(target.name + ".parts")
    network.eval()

    def compute(batch: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return network.extract_features(network.make_clips(batch["image"].to(device))).cpu().numpy()

    features = compute_in_parts(
        parts,
        f"{network_fingerprint(network)} {items_fingerprint(items)}",
        dataset,
        len(items),
        compute,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
    )
    _write(target, features, items)
    drop_parts(parts)
    return target


def _write(target: Path, features: npt.NDArray[np.float32], items: Sequence[Mapping[str, Any]]) -> None:
    columns = {name: [str(item[name]) for item in items] for name in ("path", "split", "class_name")}
    labels = _labels(items)
    arrays: dict[str, npt.NDArray[Any]] = {
        "features": features,
        "labels": labels,
        "class_names": np.array(columns["class_name"], dtype=np.str_),
        "paths": np.array(columns["path"], dtype=np.str_),
        "splits": np.array(columns["split"], dtype=np.str_),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic_write_bytes(target, buffer.getvalue())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "split", "label", "class_name", *(f"f{number}" for number in range(features.shape[1]))])
    for number, row in enumerate(features):
        label = int(labels[number]) if labels[number] >= 0 else ""
        known = [columns["path"][number], columns["split"][number], label, columns["class_name"][number]]
        writer.writerow([*known, *(f"{value:.6g}" for value in row)])
    atomic_write_text(target.with_suffix(".csv"), table.getvalue())


def _labels(items: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.int64]:
    """Return labels; where only names of classes are known, their places in alphabetical order."""
    names = sorted({item["class_name"] for item in items} - {""})
    places = {name: number for number, name in enumerate(names)}
    known = any(item["truth"] >= 0 for item in items)
    return np.array([item["truth"] if known else places.get(item["class_name"], -1) for item in items], dtype=np.int64)
