"""Volumes that were read and checked once, in files that all processes of a machine map.

A part holds what one process read and no other had before: ``volumes-SETTINGS-CONTENT.bin`` has the voxels of one
volume after another, the ``.json`` of that name their keys and checksums; it is moved into place last. Parts are never
changed, so that they are mapped without a lock. Nothing is evicted, and the folder may be deleted at any time.

MONAI's ``PersistentDataset`` takes 5.5 times as long to open 5000 volumes of 32^3 (3.3 s of one core, 0.6 s here),
copies them into every process, and neither compares checksums nor sees that a file changed; ``LMDBDataset`` wants LMDB.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch import Tensor

from cryo_monai.volume_parts import Part, PartWriter, checksum_of, digest_of, warn_unwritable
from cryo_monai.volumes import LoadVolumed, split_member

logger = logging.getLogger(__name__)

LOCK = "lock"
PATIENCE = 120.0  # s that a process waits for another that is reading volumes
# What decides the voxels that a file gives: parts that other code made are not used.
READERS = ("volumes.py", "mrc.py", "mrc_header.py", "montages.py")
Add = Callable[["str | None", Tensor], None]


def only_loader(transform: Any) -> LoadVolumed | None:
    """Return the `LoadVolumed` for ``image`` that a transform is; None when there is anything more to it."""
    steps = transform.transforms if isinstance(transform, Compose) else (transform,)
    alone = len(steps) == 1 and type(steps[0]) is LoadVolumed and tuple(steps[0].keys) == ("image",)
    return steps[0] if alone else None


def volume_key(image: Any) -> str | None:
    """Name a volume by the path, number in a stack, size and times of its file; None for arrays and missing files.

    The time at which the file's record changed and its number in the file system tell apart files that were put in
    place of another with its size and time of modification, as ``cp -p`` and ``rsync -t`` do.
    """
    if not isinstance(image, (str, os.PathLike)):
        return None
    file, number = split_member(os.fspath(image))
    try:
        status = os.stat(file)
    except OSError:
        return None
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return digest_of(os.path.abspath(file), number, stamp)


class VolumeCache:
    """The volumes in a folder that were made with the same settings.

    Parameters
    ----------
    folder : path, optional
        Need not exist. Without it nothing is kept and nothing is found.
    loader : LoadVolumed, optional
        What makes a volume of a file, see `only_loader`; without it nothing is kept and nothing is found.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, loader: LoadVolumed | None) -> None:
        self.folder = None if folder is None or loader is None else Path(folder)
        self._device = torch.device("cpu") if loader is None else loader.device
        self._prefix = "" if loader is None else f"volumes-{digest_of(loader.nan, loader.permissive, _readers())}"
        self._rows: dict[str, tuple[Part, int]] = {}
        self._sound: set[str] = set()  # those whose checksum was compared
        self._seen: set[tuple[str, int, int]] = set()
        self._look()

    def keys(self, images: Iterable[Any]) -> list[str | None]:
        """Return the `volume_key` of each image; None for all where nothing is kept."""
        return [None if self.folder is None else volume_key(image) for image in images]

    def shape(self, key: str | None) -> tuple[int, int, int] | None:
        """Return the ``(z, y, x)`` of a volume that is here, without looking at its voxels."""
        if key is None or key not in self._rows:
            return None
        depth, height, width = self._rows[key][0].voxels.shape[2:]
        return depth, height, width

    def volume(self, key: str | None) -> Tensor | None:
        """Return a volume that is here and was among the keys of `filled`, `(1, z, y, x)`, on the loader's device.

        On the CPU it is mapped: processes share its memory until one writes to it, which changes that one's copy alone.
        """
        if key is None or key not in self._sound:
            return None
        part, row = self._rows[key]
        return torch.from_numpy(part.voxels[row]).to(self._device)

    @contextlib.contextmanager
    def filled(self, keys: Sequence[str | None], *, others: Sequence[str | None] = ()) -> Iterator[Add]:
        """Give a function that adds a volume under its key; what was added is kept when the block ends without error.

        Checksums are compared; a part with a wrong one is removed with a warning. One process at a time adds. Others
        wait, at most `PATIENCE` seconds, and find the volumes there or read them by themselves. Where the folder cannot
        be written, a warning says so and nothing is kept.

        Parameters
        ----------
        keys : sequence of str or None
            Of the volumes that will be asked for; None for those that cannot be kept.
        others : sequence of str or None
            Of volumes that are to be kept, too.
        """
        with contextlib.ExitStack() as turn:
            self._compare_checksums(keys)
            writer = PartWriter(self._prefix, self._place_to_add([*keys, *others], turn))
            self._compare_checksums(keys)
            try:
                yield writer.add
                if file := writer.finish():
                    self._sound.update(self._map(file))
            finally:
                writer.discard()

    def _compare_checksums(self, keys: Sequence[str | None]) -> None:
        for key in keys:
            if key is None or key in self._sound or key not in self._rows:
                continue
            part, row = self._rows[key]
            if checksum_of(key, part.voxels[row]) == part.checksums[row]:
                self._sound.add(key)
                continue
            self._rows = {name: place for name, place in self._rows.items() if place[0] is not part}
            self._sound &= self._rows.keys()
            _remove(part.file, f"volume {row} has another checksum")

    def _place_to_add(self, keys: Sequence[str | None], turn: contextlib.ExitStack) -> Path | None:
        """Take this process's turn to add volumes, if there are any to add."""
        if self.folder is None or not self._lacks(keys):
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = turn.enter_context((self.folder / LOCK).open("a"))
            has_turn = _wait_for(stream, self.folder)
        except OSError as error:
            warn_unwritable(self.folder, error)
            return None
        self._look()
        if has_turn and self._lacks(keys):
            return self.folder
        turn.close()
        return None

    def _lacks(self, keys: Sequence[str | None]) -> bool:
        return any(key is not None and key not in self._rows for key in keys)

    def _look(self) -> None:
        """Map the parts that are new in the folder."""
        if self.folder is not None:
            for file in sorted(self.folder.glob(f"{self._prefix}-*.json")):
                self._map(file)

    def _map(self, file: Path) -> list[str]:
        """Map a part and return its keys; one that is damaged is named in a warning and removed."""
        try:
            status = file.stat()
            stamp = (file.name, status.st_ino, status.st_mtime_ns)
            if stamp in self._seen:
                return []
            self._seen.add(stamp)
            part = Part.mapped(file)
        except FileNotFoundError:
            return []  # deleted this moment
        except (OSError, ValueError, TypeError, KeyError) as error:
            _remove(file, str(error).splitlines()[0] if str(error) else type(error).__name__)
            return []
        for row, key in enumerate(part.keys):
            self._rows.setdefault(key, (part, row))
        return part.keys


def _wait_for(stream: Any, folder: Path) -> bool:
    """Wait for the lock and remove what a killed process left; False when another process still has it."""
    end = time.monotonic() + PATIENCE
    waiting = False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return True  # no locks on this file system: two processes may write the same part, each whole
            if time.monotonic() > end:
                return False
            if not waiting:
                logger.info("another process is reading volumes into %s: waiting for it", folder)
            waiting = True
            time.sleep(0.05)
        else:
            for left in folder.glob("*.tmp"):
                left.unlink(missing_ok=True)
            return True


def _remove(file: Path, reason: str) -> None:
    logger.warning("%s: damaged (%s); its volumes are read again", file, reason)
    for name in (file, file.with_suffix(".bin")):
        with contextlib.suppress(OSError):  # where it cannot be removed it is not used either
            name.unlink()


def _readers() -> list[bytes]:
    return [Path(__file__).with_name(name).read_bytes() for name in READERS]
