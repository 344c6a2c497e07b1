"""Particles of a list over their tomograms."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.colours import UNKNOWN_COLOUR, colour_of
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.locations import LocatedParticles, locate_particles
from cryo_monai.mrc import read_mrc
from cryo_monai.particles import UNKNOWN, Particles, read_particles
from cryo_monai.points import chimerax_markers, napari_points
from cryo_monai.tomograms import Tomogram
from cryo_monai.views.scenes import (
    LABEL_TYPE,
    Scene,
    chimerax_file,
    image_type,
    safe_names,
    write_chimerax_script,
    write_napari_script,
)

# Read at a time.
_SECTIONS = 16
# Diameter of points in voxels, that of the markers in ChimeraX too; see `chimerax_markers`.
POINT_SIZE = 6


def view_particles(
    particles: str | os.PathLike[str],
    folder: Path,
    *,
    tomograms: Sequence[str | os.PathLike[str]] = (),
    pixel_size: float | None = None,
    tomogram_voxel_size: float | None = None,
    permissive: bool = False,
) -> list[Scene]:
    """Write one scene per tomogram of a particle list, one layer and one set of markers per class.

    Written are ``NAME.npy`` (the tomogram), ``NAME_segmentation.npy`` where the tomogram has one beside it,
    ``NAME.points.csv`` (in voxels, in the order of the array's axes), ``NAME.py``, ``NAME.CLASS.cmm`` (in Å) and
    ``NAME.cxc``. Colours are those of reports: by the number of the class, where the list or the probabilities beside
    it say it, else in the order of names.

    Parameters
    ----------
    particles : path
        See `read_particles`.
    folder : Path
        Created when missing.
    tomograms, tomogram_voxel_size, permissive
        See `locate_particles`.
    pixel_size : float, optional
        See `read_particles`.

    Raises
    ------
    InputError, DatasetError
        See `read_particles` and `locate_particles`.
    """
    listed = read_particles(particles, pixel_size=pixel_size)
    located = locate_particles(listed, tomograms, tomogram_voxel_size=tomogram_voxel_size, permissive=permissive)
    classes = class_order(listed)
    stems = safe_names([tomogram.name for tomogram in located.tomograms])
    return [_write_scene(folder, stem, located, number, classes) for number, stem in enumerate(stems)]


def class_order(particles: Particles) -> list[str]:
    """Return names of classes so that a class's place is its number; "" where a number has no name here."""
    source = particles.path
    table = None if source is None else source.with_name(f"{source.stem}_probabilities.csv")
    if table is not None and table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            columns = next(csv.reader(stream), [])
        order = [column.removeprefix("p_") for column in columns if column.startswith("p_")]
        if order:
            return order
    named = sorted(set(particles.class_names) - {"", UNKNOWN})
    numbers: dict[str, set[str]] = {name: set() for name in named}
    if "rlnClassNumber" in particles.columns:
        for name, number in zip(particles.class_names, particles.columns["rlnClassNumber"], strict=True):
            if name in numbers:
                numbers[name].add(str(number))
    given = [next(iter(found)) for found in numbers.values() if len(found) == 1]
    if not named or len(set(given)) < len(named) or not all(number.isdigit() and int(number) > 0 for number in given):
        return named
    order = [""] * max(int(number) for number in given)
    for name, number in zip(named, given, strict=True):
        order[int(number) - 1] = name
    return order


def _write_scene(folder: Path, stem: str, located: LocatedParticles, number: int, classes: Sequence[str]) -> Scene:
    tomogram = located.tomograms[number]
    mine = located.select(located.which == number)
    folder.mkdir(parents=True, exist_ok=True)
    volume = _save_tomogram(folder / f"{stem}.npy", tomogram)
    layers: list[dict[str, Any]] = [{"kind": "image", "file": volume.name, "options": {"name": tomogram.name}}]
    commands = _tomogram_commands(tomogram, folder)
    plain = [volume]
    segmentation = tomogram.path.with_name(f"{tomogram.path.stem}_segmentation.mrc")
    if segmentation.is_file():
        labels = folder / f"{stem}_segmentation.npy"
        _save_labels(labels, segmentation)
        layers.append({"kind": "labels", "file": labels.name, "options": {"name": "segmentation", "opacity": 0.4}})
        plain.append(labels)
    names = mine.particles.class_names
    scores = mine.particles.scores
    chances = np.full(len(mine), np.nan) if scores is None else scores
    points = folder / f"{stem}.points.csv"
    atomic_write_text(points, napari_points(mine.particles.ids, mine.places, names, chances))
    # napari's reader takes no table without rows; every tomogram here has at least one particle.
    plain.append(points)
    ordered = sorted(set(names), key=lambda one: (classes.index(one) if one in classes else len(classes), one))
    for name, ending in zip(ordered, safe_names([one or "particles" for one in ordered]), strict=True):
        colour = colour_of(classes.index(name)) if name in classes else UNKNOWN_COLOUR
        options = {"name": name or "particles", "face_color": colour, "size": POINT_SIZE}
        layers.append({"kind": "points", "file": points.name, "class_name": name, "options": options})
        rows = np.flatnonzero(np.array(names) == name)
        markers = folder / f"{stem}.{ending}.cmm"
        ids = [mine.particles.ids[row] for row in rows]
        shown = [names[row] for row in rows]
        text = chimerax_markers(tomogram, ids, mine.places[rows], shown, classes, name=name or "particles")
        atomic_write_text(markers, text)
        commands.append(f"open {chimerax_file(markers, folder)}")
    script = write_napari_script(folder / f"{stem}.py", tomogram.name, layers)
    scene = write_chimerax_script(folder / f"{stem}.cxc", tomogram.name, commands)
    return Scene(tomogram.name, script, tuple(plain), scene)


def _tomogram_commands(tomogram: Tomogram, folder: Path) -> list[str]:
    """Open a tomogram as three planes through its middle, where markers say that it is.

    Options are those of ChimeraX's volume command (register_volume_command, bundles/map/src/volumecommand.py).
    """
    middle = ",".join(str(size // 2) for size in tomogram.shape[::-1])
    origin = ",".join(f"{place:.6g}" for place in tomogram.origin[::-1])
    return [
        f"open {chimerax_file(tomogram.path, folder)}",
        # Said even where the file says it: what was given to us goes before it.
        f"volume #1 voxelSize {tomogram.voxel_size or 1.0:g} origin {origin}",
        f"volume #1 orthoplanes xyz positionPlanes {middle}",
    ]


def _save_tomogram(target: Path, tomogram: Tomogram) -> Path:
    """Write a tomogram as NPY, some sections at a time, unless that was done of the same file or folder.

    A hidden file beside it notes of what it was made.
    """
    note, state = target.with_name(f".{target.name}.source"), _state(tomogram)
    if target.is_file() and note.is_file() and note.read_bytes() == state.encode():
        return target
    note.unlink(missing_ok=True)
    first = tomogram.load((slice(0, 1), slice(0, 1), slice(0, 1)))
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.npy")
    try:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=image_type(first.dtype), shape=tomogram.shape)
        whole = (slice(0, tomogram.shape[1]), slice(0, tomogram.shape[2]))
        for start in range(0, tomogram.shape[0], _SECTIONS):
            sections = slice(start, min(start + _SECTIONS, tomogram.shape[0]))
            mapped[sections] = tomogram.load((sections, *whole))
        mapped.flush()
        del mapped
        os.replace(temporary, target)
    except (OSError, ValueError) as error:
        raise InputError(f"{tomogram.path}: cannot be written to {target} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write_text(note, state)
    return target


def _state(tomogram: Tomogram) -> str:
    """Return a text that is another one when the tomogram changed, or was replaced by one of any age."""
    try:
        return json.dumps([*tomogram.state, tomogram.path.stat().st_ctime_ns]) + "\n"
    except OSError as error:
        raise InputError(f"{tomogram.path}: {error.strerror}") from error


def _save_labels(target: Path, segmentation: Path) -> None:
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.npy")
    try:
        np.save(temporary, read_mrc(segmentation, permissive=True).data.astype(LABEL_TYPE))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
