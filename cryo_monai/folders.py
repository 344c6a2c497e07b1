"""Output folders: claimed by one process, resumed by the same call, refused to another."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text

LOCK = ".in_use"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # flock(2): somebody has it


class LockedError(InputError):
    """Another process is at work there."""


@contextmanager
def claimed(folder: Path, kind: str = "simulation") -> Iterator[None]:
    """Hold a folder, new or of this kind, for one process; the operating system lets go when that ends.

    Parameters
    ----------
    folder : Path
        Created when missing.
    kind : str
        What is made there; ``KIND.json`` in it is the mark of such a folder, see `note_recipe`.

    Raises
    ------
    InputError
        When another process is writing into it, when it holds something else, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    if folder.exists() and not (folder / f"{kind}.json").is_file():
        others = [entry.name for entry in folder.iterdir() if entry.name != LOCK]
        if others:
            article = "an" if kind[0] in "aeiou" else "a"
            raise InputError(f"{folder}: not empty and not {article} {kind} ({others[0]}); choose another --output_dir")
    with locked(folder / LOCK, f"{folder}: another process is writing into it"):
        yield


@contextmanager
def locked(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, whose folder is created, for one process; the operating system lets go when that ends.

    A folder that holds nothing else in the end is removed.

    Raises
    ------
    InputError
        With this text, and which process it is, when another one holds it; or when it cannot be made.
    """
    stream = _lock(lock, refusal)
    with stream:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # it holds something
                lock.parent.rmdir()


def _lock(lock: Path, refusal: str) -> IO[str]:
    tries = 3  # `is_locked` holds it for a moment; who held it before may remove the folder
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream = lock.open("a+")
        except OSError as error:
            tries -= 1
            if tries and error.errno == errno.ENOENT:
                continue
            raise InputError(f"{lock.parent}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read(200).strip()
            stream.close()
            if error.errno not in _HELD:
                raise InputError(f"{lock}: this file system has no locks ({error.strerror}); use another") from None
            tries -= 1
            if tries:
                time.sleep(0.05)
                continue
            raise LockedError(refusal + (f" ({holder})" if holder else "")) from None
        # Its last holder may have removed the file between opening and locking: then this is no lock any more.
        if _is_open_at(stream, lock):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            return stream
        stream.close()


def _is_open_at(stream: IO[str], path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(stream.fileno()), there)


def is_locked(lock: Path) -> bool:
    """Whether a process holds a lock file."""
    try:
        stream = lock.open()
    except FileNotFoundError:
        return False
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
        return False


def note_recipe(folder: Path, recipe: Mapping[str, Any], kind: str = "simulation") -> None:
    """Write down what is being made, in ``KIND.json``, or check that what is written there says the same.

    Raises
    ------
    InputError
        Naming the settings that differ.
    """
    # A round trip through JSON, so that tuples and lists compare equal.
    wanted = json.loads(json.dumps(recipe, allow_nan=False))
    note = folder / f"{kind}.json"
    if not note.is_file():
        atomic_write_text(note, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        there = json.loads(note.read_text())
    except ValueError as error:
        raise InputError(f"{note}: damaged ({error}); choose another --output_dir") from error
    flat_there, flat_wanted = _flat(there), _flat(wanted)
    differing = [key for key in flat_wanted | flat_there if flat_there.get(key) != flat_wanted.get(key)]
    if differing:
        raise InputError(
            f"{folder}: holds another {kind} with other settings ({', '.join(differing[:5])}); "
            "choose another --output_dir"
        )


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    settings = recipe.get("settings", {})
    return {**settings, **{key: value for key, value in recipe.items() if key != "settings"}}


class Journal:
    """One JSON object per line, appended when the files that it tells of are complete.

    Parameters
    ----------
    path : Path
        A last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        if path.is_file():
            whole, _, cut = path.read_text().rpartition("\n")
            self.entries = [json.loads(line) for line in whole.splitlines()]
            if cut:
                atomic_write_text(path, whole + "\n" if whole else "")

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add entries, all or (after a crash) the first of them."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as stream:
            stream.write("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries))
            stream.flush()
            os.fsync(stream.fileno())
        # As they will be read again.
        self.entries += json.loads(json.dumps(list(entries)))


def listing(content: Mapping[str, Any]) -> str:
    """JSON text with one line per item of its lists of objects."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(item, allow_nan=False) for item in value)
            parts.append(f" {json.dumps(key)}: [\n  {rows}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
