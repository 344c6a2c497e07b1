"""Tomogram files, and the names that particle lists give them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryo_monai.errors import DatasetError, InputError

MRC_ENDINGS = (".mrc", ".rec", ".map", ".st", ".ali")
TIFF_ENDINGS = (".tif", ".tiff")
ZARR_ENDINGS = (".zarr",)
TOMOGRAM_ENDINGS = (*MRC_ENDINGS, *TIFF_ENDINGS, *ZARR_ENDINGS)
ENDING = re.compile(r"(\.tomostar|\.mrc|\.rec|\.map|\.st|\.ali|\.tiff?|\.zarr|_\d+(\.\d+)?Apx)$", re.IGNORECASE)


def tomogram_name(text: str) -> str:
    """Return what is the same in the names that programs give one tomogram.

    Folders, endings (``.mrc``, ``.tomostar`` ...) and the pixel size that Warp appends (``_10.00Apx``) are taken off.
    """
    name = re.split(r"[/\\]", text.rstrip("/"))[-1]
    while True:
        shorter = ENDING.sub("", name)
        if shorter in (name, ""):
            return name
        name = shorter


def find_tomograms(places: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List tomogram files: those named, those that a pattern (``*``, ``?``) fits, and those directly in folders.

    Raises
    ------
    InputError
        For a place that is not there, or without tomograms.
    """
    found: list[Path] = []
    for place in map(Path, places):
        is_array = any(part.lower().endswith(ZARR_ENDINGS) for part in place.parts)
        if not place.exists() and any(mark in place.name for mark in "*?"):
            files = list(place.parent.glob(place.name))
        elif not place.exists():
            raise InputError(f"{place}: no such file or folder")
        elif place.is_dir() and not is_array:
            files = list(place.iterdir())
        else:
            found.append(place)
            continue
        files = [file for file in files if file.name.lower().endswith(TOMOGRAM_ENDINGS) and file.name[0] != "."]
        if not files:
            raise InputError(f"{place}: no tomograms here ({', '.join(TOMOGRAM_ENDINGS)})")
        found += sorted(files)
    return list(dict.fromkeys(found))


def match_tomograms(names: Iterable[str], files: Sequence[Path], *, source: str) -> dict[str, Path]:
    """Find the file of each tomogram that a particle list names.

    Names are compared as `tomogram_name` makes them; failing that, a file may have more after the name (``TS_01`` and
    ``TS_01_bin4_denoised.mrc``) when just one does, or, for names that are numbers, end in
    that number. One file serves a list of one name, or of none.

    Raises
    ------
    DatasetError
        Naming every tomogram without a file, with several, or with that of another.
    """
    wanted = list(dict.fromkeys(names))
    if len(wanted) == 1 and len(files) == 1 and (not wanted[0] or _belongs(tomogram_name(wanted[0]), files[0])):
        return {wanted[0]: files[0]}
    problems = []
    chosen: dict[str, Path] = {}
    shorts = {tomogram_name(name) for name in wanted}
    for name in wanted:
        short = tomogram_name(name)
        same = [file for file in files if tomogram_name(file.name) == short]
        # A file that has another name of the list is that one's.
        others = [file for file in files if tomogram_name(file.name) not in shorts]
        near = same or [file for file in others if short and _belongs(short, file)]
        if not near and short.isdigit():
            near = [file for file in others if _number(file) == int(short)]
        if len(near) == 1:
            chosen[name] = near[0]
        elif near:
            shown = ", ".join(file.name for file in near[:3])
            problems.append(f"{source}: tomogram {name!r} may be any of {shown}; name the files with --tomograms")
        else:
            shown = ", ".join(file.name for file in files[:3])
            problems.append(f"{source}: no file for tomogram {name!r} among {len(files)} ({shown} ...)")
    owners: dict[Path, str] = {}
    for name, file in chosen.items():
        if owners.setdefault(file, name) != name:
            problems.append(f"{source}: tomograms {owners[file]!r} and {name!r} would both be {file.name}")
    if problems:
        raise DatasetError(source, problems)
    return chosen


def _number(file: Path) -> int | None:
    """Return the number that a file's name ends in."""
    digits = re.search(r"\d+$", tomogram_name(file.name))
    return int(digits[0]) if digits else None


def _belongs(short: str, file: Path) -> bool:
    """Whether a file's name is the short name, or that and more after a character that is neither letter nor digit."""
    return re.fullmatch(re.escape(short) + r"([^A-Za-z0-9].*)?", tomogram_name(file.name)) is not None
