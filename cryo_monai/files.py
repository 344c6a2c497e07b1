"""Files that are whole or not there: written beside their target, synced, and moved over it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from cryo_monai.errors import CryoMonaiError

TEMPORARY = ".tmp"


def atomic_save(content: Any, path: str | os.PathLike[str], *, keep: str | os.PathLike[str] | None = None) -> None:
    """Save with ``torch.save`` so that ``path`` always names a whole file.

    Parameters
    ----------
    content : object
        Tensors and plain values.
    path : path
        Target; its folder is created.
    keep : path, optional
        Where the file that was at ``path`` is moved.

    Raises
    ------
    CryoMonaiError
        Naming the file when it cannot be written; what was there before is untouched.
    """
    import torch  # some seconds, which those who write text alone need not wait

    target = Path(path)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if keep is not None and target.exists():
            os.replace(target, keep)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        free = os.statvfs(target.parent).f_bavail * os.statvfs(target.parent).f_frsize
        raise CryoMonaiError(
            f"{target}: not written ({str(error).splitlines()[0]}); {free >> 20} MiB are free there. "
            "The checkpoint before it is intact"
        ) from error


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, in UTF-8, as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that ``path`` always names a whole file; its folder is created.

    Raises
    ------
    CryoMonaiError
        Naming the file when it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CryoMonaiError(f"{target}: cannot be written ({error.strerror})") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
