"""What a user calls a structure, a file, an id or a name, to the structure itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.mrc_header import MRC_SUFFIXES
from cryo_monai.simulation.assemblies import ASSEMBLIES
from cryo_monai.simulation.atoms import MODEL_SUFFIXES, is_model_file
from cryo_monai.simulation.protein_bank import fetch_entry, is_pdb_id
from cryo_monai.simulation.structures import Structure, structure_of_assembly, structure_of_map, structure_of_model

# Folders of a data set beside those of the classes.
_RESERVED = ("clean", "structures", "truth")
_KEYS = ("name", "source", "assembly", "unknown_residues", "contour", "mass_kda", "invert", "voxel_size")


def load_structures(
    entries: Sequence[str | Mapping[str, Any]],
    *,
    voxel_size: float,
    resolution: float,
    assembly: str = "1",
    structure_dir: str | os.PathLike[str] | None = None,
) -> list[Structure]:
    """Load structures, one per class.

    Parameters
    ----------
    entries : sequence of str or mapping
        Each a file (mmCIF, PDB, MRC map), an id of the Protein Data Bank, or the name of a built-in assembly; or a
        mapping with ``source`` and options: ``name``, ``assembly``, ``unknown_residues`` (see `read_model`), and for
        maps ``contour``, ``mass_kda``, ``voxel_size`` and ``invert`` (see `structure_of_map`).
    voxel_size : float
        Å, of the simulation.
    resolution : float
        Å; see `low_pass`.
    assembly : str
        Biological assembly of atomic models, or ``"asu"``.
    structure_dir : path, optional
        Where files are looked for before the working folder, ids included.

    Returns
    -------
    list of Structure
        In the order of the entries.

    Raises
    ------
    InputError
        When an entry is unknown, two have one name, or a file is no good.
    """
    if not entries:
        raise InputError("structures: none were given")
    loaded: list[Structure] = []
    for entry in entries:
        options = {"source": entry} if isinstance(entry, str) else dict(entry)
        unknown = sorted(set(options) - set(_KEYS))
        if unknown or "source" not in options:
            wrong = f"unknown {', '.join(unknown)}" if unknown else "a source is missing"
            raise InputError(f"structures: {entry}: {wrong}; an entry may have {', '.join(_KEYS)}")
        structure = _load(options, voxel_size, resolution, assembly, structure_dir)
        if not re.fullmatch(r"\w[\w.+-]*", structure.name) or structure.name in _RESERVED:
            raise InputError(
                f"structures: {structure.name!r} cannot name a folder of a class (letters, digits, . _ + -, and not "
                f"{', '.join(_RESERVED)}); give the entry a name"
            )
        if structure.name in {other.name for other in loaded}:
            raise InputError(f"structures: two are called {structure.name}; give one a name of its own")
        loaded.append(structure)
    return loaded


def _load(
    options: dict[str, Any],
    voxel_size: float,
    resolution: float,
    assembly: str,
    structure_dir: str | os.PathLike[str] | None,
) -> Structure:
    source = str(options["source"])
    built_in = {a.name: a for a in ASSEMBLIES}
    if source in built_in:
        return structure_of_assembly(
            built_in[source], voxel_size=voxel_size, resolution=resolution, name=options.get("name")
        )
    path = _find_file(source, structure_dir)
    if path is None and is_pdb_id(source):
        path = fetch_entry(source)
    if path is None:
        near = get_close_matches(source, built_in, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; built in are {', '.join(built_in)}"
        raise InputError(f"structures: {source}: neither a file, nor a PDB id, nor a built-in assembly{hint}")
    if is_model_file(path.name):
        return structure_of_model(
            path,
            voxel_size=voxel_size,
            resolution=resolution,
            assembly=str(options.get("assembly", assembly)),
            unknown_residues=options.get("unknown_residues", "refuse"),
            name=options.get("name"),
        )
    if not path.name.lower().endswith(MRC_SUFFIXES):
        known = ", ".join((*MODEL_SUFFIXES, *MRC_SUFFIXES))
        raise InputError(f"{path}: neither an atomic model nor a density map; known are {known}")
    return structure_of_map(
        path,
        voxel_size=voxel_size,
        resolution=resolution,
        contour=options.get("contour"),
        mass_kda=options.get("mass_kda"),
        map_voxel_size=options.get("voxel_size"),
        invert=bool(options.get("invert", False)),
        name=options.get("name"),
    )


def _find_file(source: str, structure_dir: str | os.PathLike[str] | None) -> Path | None:
    folders = [Path(structure_dir)] if structure_dir else []
    names = [source]
    if is_pdb_id(source):
        names += [f"{case}{suffix}" for case in (source.lower(), source.upper()) for suffix in MODEL_SUFFIXES]
    for folder in (*folders, Path()):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None
