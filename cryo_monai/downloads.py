"""Checkpoints from the internet: resumable, verified before use, kept in one cache folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.fetching import Progress, cache_folder, download, sha256_of
from cryo_monai.files import atomic_write_text
from cryo_monai.weight_records import WeightRecord

PACKAGE_PINS = Path(__file__).with_name("weight_pins.json")
PACKAGE_WEIGHTS = Path(__file__).with_name("generated_weights")


def cached_path(record: WeightRecord) -> Path:
    """Return where a record's file belongs, whether it is there or not.

    The record's name is in it: one publisher calls every file ``pytorch_model.bin``. What is shipped is in the package.
    """
    if record.is_shipped:
        return PACKAGE_WEIGHTS / record.file
    return cache_folder() / "weights" / f"{record.name}{Path(record.file).suffix}"


def pinned_hash(record: WeightRecord) -> str | None:
    """Return the SHA-256 that a record's file must have: the user's pin, else the package's, else None.

    Of what is shipped the package alone knows the hash.

    Raises
    ------
    InputError
        When a file of pins is damaged.
    """
    own = () if record.is_shipped else (cache_folder() / "weight_pins.json",)
    for file in (*own, PACKAGE_PINS):
        pin = _read_pins(file).get(record.name)
        if pin is not None:
            return str(pin["sha256"])
    return None


def find_weights(record: WeightRecord) -> Path:
    """Return the cached or shipped file of a record; nothing is downloaded.

    Raises
    ------
    InputError
        In one line, when the file is not there, or is not the one that was pinned.
    """
    target = cached_path(record)
    if record.is_shipped:
        return _find_shipped(record, target)
    if not target.is_file():
        how = "get it with a browser" if record.manual else f"get it with `cryo-monai weights fetch {record.name}`"
        raise InputError(f"{target}: not there; {how} ({_origin(record)}), or give --weights PATH")
    expected = pinned_hash(record)
    if expected is not None and sha256_of(target) != expected:
        raise InputError(f"{target}: its SHA-256 is not the pinned {expected}; remove it and fetch it again")
    return target


def _find_shipped(record: WeightRecord, target: Path) -> Path:
    if not target.is_file():
        raise InputError(f"{target}: not there, though it is shipped; install this package again")
    expected = pinned_hash(record)
    if expected is not None and sha256_of(target) != expected:
        raise InputError(f"{target}: its SHA-256 is not the pinned {expected}; install this package again")
    return target


def fetch_weights(record: WeightRecord, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Download a record's file into the cache unless it is there, or shipped; go on with a download that was cut.

    Parameters
    ----------
    record : WeightRecord
        What to fetch.
    sha256 : str, optional
        Hash that the file must have; the pinned one by default.
    progress : callable, optional
        Called with the bytes there are and the bytes there will be (or None).

    Returns
    -------
    Path
        The verified file.

    Raises
    ------
    InputError
        In one line naming URL, hash and target: when no hash is known, when only a browser can get the file, when the
        server cannot be reached, or when the file has another hash (it is then removed).
    """
    if record.is_shipped:
        path = find_weights(record)
        if sha256 and sha256_of(path) != sha256.lower():
            raise InputError(f"{path}: its SHA-256 is not {sha256}")
        return path
    expected = sha256.lower() if sha256 else pinned_hash(record)
    target = cached_path(record)
    if expected is None:
        raise InputError(
            f"{record.name}: its SHA-256 is not pinned yet, so that nothing could be verified; pin it on a connected "
            f"machine that you trust (`cryo-monai weights pin {record.name}`), or give --sha256 ({_origin(record)} -> "
            f"{target})"
        )
    if not re.fullmatch("[0-9a-f]{64}", expected):
        raise InputError(f"--sha256 {expected}: not 64 hexadecimal digits")
    if not expected.startswith(record.sha256_prefix):
        raise InputError(f"--sha256 {expected}: the publisher's begins with {record.sha256_prefix} ({record.url})")
    if target.is_file() and sha256_of(target) == expected:
        return target
    _refuse_manual(record, target)
    partial = download(record.url, target, described=_origin(record, expected), progress=progress)
    found = sha256_of(partial)
    if found != expected:
        partial.unlink()
        raise InputError(f"{record.url}: SHA-256 {found}, expected {expected}; {target} not written")
    os.replace(partial, target)
    return target


def pin_weights(record: WeightRecord, file: Path | None = None, progress: Progress | None = None) -> tuple[Path, str]:
    """Take the hash of a record's file, downloading it unless it is in the cache, and keep it in a file of pins.

    Parameters
    ----------
    record : WeightRecord
        What to pin.
    file : Path, optional
        JSON to write to; ``weight_pins.json`` in the cache folder by default, which shipped weights do not look into.
    progress : callable, optional
        See `fetch_weights`.

    Returns
    -------
    tuple
        The file of pins and the hash.

    Raises
    ------
    InputError
        When the file cannot be had, or has not the beginning of the hash that its publisher put into its name.
    """
    if record.is_shipped and file is None:
        raise InputError(
            f"{record.name}: is shipped, and its hash with it; --file FILE takes the hash of what is there"
        )
    target = cached_path(record)
    source = target
    if not target.is_file():
        if record.is_shipped:
            raise InputError(f"{target}: not there; make it with `{record.citation}`")
        _refuse_manual(record, target)
        source = download(record.url, target, described=_origin(record), progress=progress)
    found = sha256_of(source)
    if not found.startswith(record.sha256_prefix):
        raise InputError(f"{source}: SHA-256 {found} does not begin with {record.sha256_prefix}, as its name says")
    size = source.stat().st_size
    os.replace(source, target)
    pins_file = file or cache_folder() / "weight_pins.json"
    pins = _read_pins(pins_file)
    pins[record.name] = {"file": record.file, "sha256": found, "bytes": size}
    atomic_write_text(pins_file, json.dumps(dict(sorted(pins.items())), indent=1) + "\n")
    return pins_file, found


def _refuse_manual(record: WeightRecord, target: Path) -> None:
    if record.manual:
        raise InputError(f"{record.name}: only a browser gets it; put {_origin(record)} at {target}")


def _origin(record: WeightRecord, sha256: str | None = None) -> str:
    published = f"{record.sha256_prefix}..., " if record.sha256_prefix else ""
    expected = sha256 or pinned_hash(record) or f"{published}not pinned"
    where = f"{record.file} from {record.url}" if record.manual else record.url
    return f"{where}, SHA-256 {expected}"


def _read_pins(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    return content
