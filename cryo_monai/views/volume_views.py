"""Volumes, and what a network looked at in them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.colours import COLOURS
from cryo_monai.conversions import StoredVolume, read_stored_volume, write_stored_volume
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.mrc_header import MRC_SUFFIXES
from cryo_monai.views.scenes import (
    Scene,
    chimerax_file,
    safe_name,
    save_array,
    write_chimerax_script,
    write_napari_script,
)
from cryo_monai.volumes import NIFTI_SUFFIXES, check_volume_file, read_volume, stack_member

TABLE = "explanations.csv"


def view_volume(path: str | os.PathLike[str], folder: Path, *, permissive: bool = False) -> list[Scene]:
    """Write a scene of one volume; see `view_explanations` for the files.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    source = Path(path)
    stem = safe_name(source.name.partition(".")[0])
    layers, commands, plain = _volume(source, folder, stem, permissive)
    return [_scene(folder, stem, layers, commands, plain)]


def view_explanations(explanations: str | os.PathLike[str], folder: Path) -> list[Scene]:
    """Write one scene per explained volume: the volume, and over it the map of what the network looked at.

    Written are ``NAME.npy`` and ``NAME_map.npy``, both `(z, y, x)`, ``NAME.py`` and ``NAME.cxc``, which opens the
    volume's own file where ChimeraX can, and the map as a surface at half its maximum.

    Parameters
    ----------
    explanations : path
        A folder that `explain` wrote.
    folder : Path
        Created when missing.

    Raises
    ------
    InputError, DatasetError
        When it is no such folder, or naming every volume and map that cannot be read.
    """
    table = Path(explanations) / TABLE
    if not table.is_file():
        raise InputError(f"{table}: no such file; cryo-monai explain writes it")
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    problems = []
    for row in rows:
        for file in (Path(row["path"]), table.parent / row["map"]):
            try:
                check_volume_file(file, permissive=True)
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise DatasetError(str(table), problems)
    return [_explained(row, table.parent, folder) for row in rows]


def _explained(row: dict[str, str], explanations: Path, folder: Path) -> Scene:
    found = explanations / row["map"]
    stem = safe_name(found.name.partition(".")[0])
    layers, commands, plain = _volume(Path(row["path"]), folder, stem, True)
    data = read_volume(found, permissive=True)
    plain.append(save_array(folder / f"{stem}_map.npy", data))
    options = {"name": f"looked at for {row['explained_class']}", "colormap": "inferno", "opacity": 0.5}
    layers.append({"kind": "image", "file": plain[-1].name, "options": {**options, "blending": "additive"}})
    commands.append(f"open {chimerax_file(found, folder)}")
    highest = float(np.nanmax(data))
    if highest > 0:
        commands.append(f"volume #2 style surface level {highest / 2:.6g} color {COLOURS[0]} transparency 0.5")
    return _scene(folder, stem, layers, commands, plain)


def _volume(
    source: Path, folder: Path, stem: str, permissive: bool
) -> tuple[list[dict[str, Any]], list[str], list[Path]]:
    """Write a volume for napari, and say how ChimeraX opens it."""
    data = read_volume(source, permissive=permissive)
    array = save_array(folder / f"{stem}.npy", data)
    layers = [{"kind": "image", "file": array.name, "options": {"name": stem}}]
    shown = _for_chimerax(source, folder / stem, data, permissive)
    return layers, [f"open {chimerax_file(shown, folder)}", "volume #1 style image"], [array]


def _for_chimerax(source: Path, target: Path, data: Any, permissive: bool) -> Path:
    """Return a file that ChimeraX opens: the volume's own, or one that is written for it."""
    file, number = stack_member(source)
    lower = file.name.lower()
    # ChimeraX opens MRC and NIfTI (open.html, input formats).
    if number is None and lower.endswith((".mrc", ".map", ".rec", ".st", ".mrc.gz", ".map.gz", *NIFTI_SUFFIXES)):
        return source
    if lower.endswith(MRC_SUFFIXES):
        volume = read_stored_volume(source, permissive=permissive)
        written = target.with_name(f"{target.name}.mrc")
        write_stored_volume(written, StoredVolume(data, volume.voxel_size or (1.0, 1.0, 1.0), volume.origin))
        return written
    # Maps of such volumes have the identity for an affine too.
    written = target.with_name(f"{target.name}.nii.gz")
    write_stored_volume(written, StoredVolume(data, (1.0, 1.0, 1.0)))
    return written


def _scene(folder: Path, stem: str, layers: list[dict[str, Any]], commands: list[str], plain: list[Path]) -> Scene:
    script = write_napari_script(folder / f"{stem}.py", stem, layers)
    return Scene(stem, script, tuple(plain), write_chimerax_script(folder / f"{stem}.cxc", stem, commands))
