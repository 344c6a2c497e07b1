"""Atomic models of the Protein Data Bank by id: fetched once, hashed, kept in the cache."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.fetching import cache_folder, download, sha256_of
from cryo_monai.files import atomic_write_text

URL = "https://files.rcsb.org/download/{}.cif.gz"


def is_pdb_id(text: str) -> bool:
    """Whether a text looks like an id of the Protein Data Bank, such as 1bxn."""
    return re.fullmatch("[1-9][A-Za-z0-9]{3}", text) is not None


def fetch_entry(pdb_id: str) -> Path:
    """Return the mmCIF file of an entry, downloading it the first time.

    The hash of that first download is kept beside it; a file that changed since is refused.

    Parameters
    ----------
    pdb_id : str
        Four characters.

    Returns
    -------
    Path
        ``structures/ID.cif.gz`` in the cache folder.

    Raises
    ------
    InputError
        In one line naming URL and target, when the entry is not cached and cannot be fetched, or when the cached file
        is not the one that was fetched.
    """
    name = pdb_id.lower()
    target = cache_folder() / "structures" / f"{name}.cif.gz"
    record = target.with_name(f"{name}.json")
    url = URL.format(name.upper())
    if target.is_file() and record.is_file():
        known = str(json.loads(record.read_text())["sha256"])
        if sha256_of(target) != known:
            raise InputError(f"{target}: its SHA-256 is not {known}, as when it was fetched; remove it and fetch again")
        return target
    partial = download(url, target, described=f"{name}: {url}")
    if partial.read_bytes()[:2] != b"\x1f\x8b":
        partial.unlink()
        raise InputError(f"{name}: {url} sent no gzip file; {target} not written")
    content = {"url": url, "sha256": sha256_of(partial), "bytes": partial.stat().st_size}
    atomic_write_text(record, json.dumps(content) + "\n")
    os.replace(partial, target)
    return target
