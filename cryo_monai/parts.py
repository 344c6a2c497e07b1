"""A row of numbers per item of a data set, computed in batches, of which none is computed twice."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.folders import locked
from cryo_monai.networks import VideoClassifier


def network_fingerprint(network: VideoClassifier) -> str:
    """Digest of a network's description and tensors, its head included."""
    digest = hashlib.sha256(json.dumps(network.description(), sort_keys=True).encode())
    for part in (network.backbone, network.head):
        for key, tensor in part.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compute_in_parts(
    parts: Path,
    fingerprint: str,
    dataset: Dataset[Any],
    count: int,
    compute: Callable[[Any], npt.NDArray[np.float32]],
    *,
    batch_size: int,
    num_workers: int = 0,
    progress: Callable[[int], object] | None = None,
) -> npt.NDArray[np.float32]:
    """Compute rows batch by batch; batches that an interrupted call left are not computed again.

    Parameters
    ----------
    parts : Path
        Folder for the batches. The caller removes it, with `drop_parts`, when the result is written.
    fingerprint : str
        Of all that decides the rows; batches of another one are dropped.
    dataset : Dataset
        One item per row; PyTorch's default collation makes batches.
    count : int
        Number of items.
    compute : callable
        Batch to rows, `(b, n)`.
    batch_size, num_workers : int
        Of the loader.
    progress : callable, optional
        Called with the number of rows that are there.

    Returns
    -------
    array
        `(count, n)` float32.

    Raises
    ------
    CryoMonaiError
        When another process is at it, or the folder cannot be written.
    """
    lock = parts.with_name(parts.name + ".lock")
    with locked(lock, f"{parts}: another process is computing this"):
        _prepare(parts, f"{fingerprint} {batch_size}")
        starts = range(0, count, batch_size)
        left = [start for start in starts if not (parts / f"{start:08d}.npy").is_file()]
        indices = [i for start in left for i in range(start, min(start + batch_size, count))]
        finished = count - len(indices)
        loader = DataLoader(Subset(dataset, indices), batch_size=batch_size, num_workers=num_workers)
        for start, batch in zip(left, loader, strict=True):
            rows = compute(batch)
            buffer = io.BytesIO()
            np.save(buffer, rows)
            atomic_write_bytes(parts / f"{start:08d}.npy", buffer.getvalue())
            finished += len(rows)
            if progress is not None:
                progress(finished)
        return np.concatenate([np.load(parts / f"{start:08d}.npy", allow_pickle=False) for start in starts])


def drop_parts(parts: Path) -> None:
    """Remove the batches."""
    shutil.rmtree(parts)


def _prepare(parts: Path, fingerprint: str) -> None:
    """Keep what an interrupted call left, if it was the same call."""
    noted = parts / "fingerprint.txt"
    if parts.exists() and (not noted.is_file() or noted.read_text() != fingerprint):
        shutil.rmtree(parts)
    atomic_write_text(noted, fingerprint)
