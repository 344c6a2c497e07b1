"""Parts of a cache of volumes: pairs of files that are written once, moved into place whole, and mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import secrets
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """One pair of files: ``voxels`` `(n, 1, z, y, x)`, mapped, with the key and the checksum of each volume."""

    file: Path
    voxels: npt.NDArray[Any]
    keys: list[str]
    checksums: list[int]

    @classmethod
    def mapped(cls, file: Path) -> Part:
        """Map a part whose list is this file.

        Raises
        ------
        OSError, ValueError, TypeError, KeyError
            When it cannot be read or is damaged. Checksums are not compared: see `checksum_of`.
        """
        note = json.loads(file.read_text())
        shape, keys, checksums = tuple(note["shape"]), list(map(str, note["keys"])), list(note["crc32"])
        if len(shape) != 5 or not shape[0] == len(keys) == len(checksums):
            raise ValueError("its lists differ in length")
        data, dtype = file.with_suffix(".bin"), np.dtype(note["dtype"])
        size = data.stat().st_size
        if dtype.kind not in "fiu" or size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{size} bytes of voxels are not {shape} of {dtype}")
        # Copy on write: as shared as a mapping for reading, and PyTorch has no tensors that are only for reading.
        return cls(file, np.asarray(np.memmap(data, dtype=dtype, mode="c", shape=shape)), keys, checksums)


class PartWriter:
    """Adds volumes to a new part; without a folder, or once writing failed, to nothing."""

    def __init__(self, prefix: str, folder: Path | None) -> None:
        self._prefix = prefix
        self._folder = folder
        self._stream: BinaryIO | None = None
        self._temporary = Path()
        self._kind: tuple[tuple[int, ...], str] | None = None  # shape and type of all of them
        self._entries: dict[str, int] = {}
        self._threads = threading.Lock()

    def add(self, key: str | None, volume: Tensor) -> None:
        """Append a volume, unless all its voxels are equal: loading such a one warns, and shall every time."""
        if key is None or self._folder is None or bool(volume.min() == volume.max()):
            return
        voxels = np.ascontiguousarray(volume.cpu().numpy())
        checksum = checksum_of(key, voxels)
        with self._threads:
            kind = (voxels.shape, voxels.dtype.str)
            self._kind = self._kind or kind
            if self._folder is None or key in self._entries or kind != self._kind:
                return
            try:
                self._opened(self._folder).write(voxels.data)
                self._entries[key] = checksum
            except OSError as error:
                self._give_up(error)

    def finish(self) -> Path | None:
        """Move the part into place and return its list, or None when there is none."""
        if self._folder is None or self._stream is None or self._kind is None:
            return None
        target = self._folder / f"{self._prefix}-{digest_of(*sorted(self._entries))}.json"
        shape, dtype = [len(self._entries), *self._kind[0]], self._kind[1]
        note = {"shape": shape, "dtype": dtype, "keys": [*self._entries], "crc32": [*self._entries.values()]}
        try:
            self._stream.close()
            os.replace(self._temporary, target.with_suffix(".bin"))
            # Not synced to the disk: what a power failure takes away, sizes and checksums show.
            self._temporary.write_text(json.dumps(note))
            os.replace(self._temporary, target)
        except OSError as error:
            self._give_up(error)
            return None
        return target

    def discard(self) -> None:
        """Remove what is not in place."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # closing writes what is left to write
                self._stream.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._stream = None

    def _opened(self, folder: Path) -> BinaryIO:
        if self._stream is None:
            self._temporary = folder / f"{secrets.token_hex(8)}.tmp"
            self._stream = self._temporary.open("xb")
        return self._stream

    def _give_up(self, error: OSError) -> None:
        if self._folder is not None:
            warn_unwritable(self._folder, error)
        self._folder = None
        self.discard()


def warn_unwritable(folder: Path, error: OSError) -> None:
    """Say in one line that volumes are not kept, and why."""
    logger.warning("%s: volumes are not kept there (%s); nothing else changes", folder, error.strerror or error)


def checksum_of(key: str, voxels: npt.NDArray[Any]) -> int:
    """CRC-32 of a volume, its key, shape and data type."""
    return zlib.crc32(voxels.data, zlib.crc32(f"{key} {voxels.shape} {voxels.dtype.str}".encode()))


def digest_of(*parts: Any) -> str:
    """Name things by their hash, 24 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
