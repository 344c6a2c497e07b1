"""Where downloads are kept, how much there is, and whether there is room; nothing is created."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cryo_monai.doctor.findings import ABSENT, FAIL, PASS, WARNING, Finding
from cryo_monai.downloads import cached_path, pinned_hash
from cryo_monai.errors import InputError
from cryo_monai.fetching import cache_folder
from cryo_monai.weight_records import RECORDS

MIB = 2**20
# The largest public checkpoint has 0.4 GB; a training keeps two with optimiser, 0.8 GB for 3D-ResNet-34.
LITTLE_SPACE = 2 * 2**30
# Both make torch or MONAI run what a file says (monai.utils.MONAIEnvVars; torch.serialization.load).
UNSAFE_VARIABLES = ("MONAI_ALLOW_PICKLE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def storage_findings() -> list[Finding]:
    """Say what is kept where, and whether it can be."""
    elsewhere = "set CRYO_MONAI_CACHE to a folder that you may write to"
    return [
        *_tried("cache", lambda: [_cache(elsewhere)], elsewhere),
        *_tried("weights", lambda: list(_weights()), elsewhere),
        *_tried("structures", lambda: [_structures()], elsewhere),
        *_tried("temporary files", lambda: [_temporary()], "set TMPDIR", needed=True),
        *_tried("working folder", lambda: [_working()], "change to a folder that is there"),
    ]


def _tried(name: str, examine: Callable[[], list[Finding]], remedy: str, *, needed: bool = False) -> list[Finding]:
    """Examine, and say what the system refuses, such as looking below a folder that may not be searched."""
    try:
        return examine()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [Finding("storage", name, FAIL if needed else WARNING, f"{where}{error.strerror or error}", remedy)]


def variable_findings() -> list[Finding]:
    """Name environment variables that make loading a file run what is in it."""
    findings = [
        Finding(
            "safety", name, FAIL, f"is {os.environ[name]!r}: files that are loaded may run programs", f"unset {name}"
        )
        for name in UNSAFE_VARIABLES
        if os.environ.get(name, "").strip().lower() not in ("", "0", "false", "f", "no", "n", "off")
    ]
    if findings:
        return findings
    return [Finding("safety", "loading", PASS, f"{' and '.join(UNSAFE_VARIABLES)} are not set")]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


def _size(folder: Path) -> str:
    files = _files(folder)
    if not files:
        return "empty" if folder.is_dir() else "not there yet"
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / MIB:.1f} MiB"


def _cache(remedy: str) -> Finding:
    cache = cache_folder()
    chosen = "CRYO_MONAI_CACHE" if os.environ.get("CRYO_MONAI_CACHE") else "CRYO_MONAI_CACHE chooses another"
    return _folder("cache", cache, f"{cache} ({chosen}): {_size(cache)}", remedy)


def _structures() -> Finding:
    return _kept("structures", cache_folder() / "structures", "atomic models of the Protein Data Bank")


def _temporary() -> Finding:
    folder = tempfile.gettempdir()
    return _folder("temporary files", Path(folder), folder, "set TMPDIR", needed=True)


def _working() -> Finding:
    return _folder("working folder", Path.cwd(), str(Path.cwd()), "runs go where you say: name a folder elsewhere")


def _folder(name: str, folder: Path, found: str, remedy: str, *, needed: bool = False) -> Finding:
    """Judge a folder, or, where it is not there, the one that it would be made in."""
    there = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("storage", name, FAIL if needed else WARNING, f"{found}; {there} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    found += f"; {free / 2**30:.1f} GiB free"
    if free < LITTLE_SPACE:
        return Finding("storage", name, WARNING, found, "make room: checkpoints take up to 0.8 GB each")
    return Finding("storage", name, PASS, found)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _kept(name: str, folder: Path, what: str) -> Finding:
    there = bool(_files(folder))
    return Finding("storage", name, PASS if there else ABSENT, f"{what}: {_size(folder)}")


def _weights() -> Iterator[Finding]:
    """Judge cached checkpoints and their pins; hashes are compared when a file is used, not here."""
    try:
        pinned = {record.name for record in RECORDS if pinned_hash(record) is not None}
    except InputError as error:
        yield Finding("storage", "weights", FAIL, str(error), "remove that file, and pin again")
        return
    cached = [record.name for record in RECORDS if cached_path(record).is_file()]
    unpinned = [name for name in cached if name not in pinned]
    found = f"{len(cached)} of {len(RECORDS)} public checkpoints are here, {len(pinned)} are pinned"
    partial = [file.name for file in _files(cache_folder() / "weights") if file.suffix == ".part"]
    if partial:
        found += f"; downloads not finished: {', '.join(partial)}"
    if unpinned:
        remedy = f"cryo-monai weights pin {unpinned[0]}"
        yield Finding("storage", "weights", WARNING, f"{found}; without a pin: {', '.join(unpinned)}", remedy)
    elif cached:
        yield Finding("storage", "weights", PASS, found)
    else:
        yield Finding("storage", "weights", ABSENT, found, "cryo-monai weights list")
