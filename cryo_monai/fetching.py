"""Files from the internet: downloads that resume, hashes, and the folder where they are kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO

from cryo_monai.errors import InputError

MAX_BYTES = 4 << 30  # the largest public checkpoint here has 0.4 GB
_BLOCK = 1 << 20
Progress = Callable[[int, int | None], None]


def cache_folder() -> Path:
    """Return where downloads are kept: ``$CRYO_MONAI_CACHE``, or ``cryo-monai`` in the user's cache folder."""
    chosen = os.environ.get("CRYO_MONAI_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryo-monai"


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, target: Path, *, described: str, progress: Progress | None = None) -> Path:
    """Bring all bytes of a URL into ``TARGET.part``, after those that are there already.

    Parameters
    ----------
    url : str
        Where they come from.
    target : Path
        Where the caller will move them once they are verified; its folder is created.
    described : str
        What the error names: the URL, and the hash that is expected.
    progress : callable, optional
        Called with the bytes there are and the bytes there will be (or None).

    Returns
    -------
    Path
        ``TARGET.part``.

    Raises
    ------
    InputError
        In one line, when the server cannot be reached, the connection ends, or another process downloads the same.
    """
    partial = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{partial}: another process is downloading it") from None
            _receive(url, stream, progress)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        there = partial.stat().st_size if partial.exists() else 0
        if not there:
            partial.unlink(missing_ok=True)
        kept = f"; {there} bytes are kept, the same call goes on from there" if there else ""
        raise InputError(f"{described} -> {target}: not downloaded ({reason}){kept}") from error
    return partial


def _receive(url: str, stream: IO[bytes], progress: Progress | None) -> None:
    start = stream.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "cryo-monai"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing is left to send
            return
        raise
    with response:
        if start and response.status != 206:  # the server sends all of it again
            stream.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if total is not None and total > MAX_BYTES:
            raise ValueError(f"{total} bytes are more than any file of ours has")
        there = start
        while block := response.read(_BLOCK):
            there += stream.write(block)
            if there > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes came")
            if progress is not None:
                progress(there, total)
        if total is not None and there < total:
            raise OSError(f"the connection ended at {there} of {total} bytes")
