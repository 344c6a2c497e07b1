"""What a user calls a structure, a file, an id or a name, to the structure itself."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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


@dataclass(frozen=True)
class StructureEntry:
    """A structure as a user names it.

    Attributes
    ----------
    source : str
        A file (mmCIF, PDB, MRC map), an id of the Protein Data Bank, or the name of a built-in assembly.
    name : str or None
        Class name; that of the file or assembly by default.
    assembly : str or None
        Of atomic models; see `read_model`.
    unknown_residues : str
        Of atomic models; see `read_model`.
    contour, mass_kda, voxel_size : float or None
        Of maps; see `structure_of_map`.
    invert : bool
        Of maps; see `structure_of_map`.
    """

    source: str
    name: str | None = None
    assembly: str | None = None
    unknown_residues: str = "refuse"
    contour: float | None = None
    mass_kda: float | None = None
    voxel_size: float | None = None
    invert: bool = False

    @classmethod
    def of(cls, entry: str | Mapping[str, Any] | StructureEntry, *, where: str = "structures") -> StructureEntry:
        """Make an entry of a name, or of a mapping as in JSON.

        Raises
        ------
        InputError
            For unknown keys and values of the wrong kind.
        """
        if isinstance(entry, StructureEntry):
            return entry
        values: Any = {"source": entry} if isinstance(entry, str) else entry
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: {entry!r} is neither a name nor an object with a source")
        unknown = sorted(set(values) - set(known))
        if unknown or "source" not in values:
            wrong = f"unknown {', '.join(unknown)}" if unknown else "a source is missing"
            raise InputError(f"{where}: {dict(values)}: {wrong}; an entry may have {', '.join(known)}")
        for key, value in values.items():
            if key in ("contour", "mass_kda", "voxel_size"):
                number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                right, wanted = number and (key == "contour" or value > 0), "a number" + " above 0" * (key != "contour")
            elif key == "invert":
                right, wanted = isinstance(value, bool), "true or false"
            else:
                right, wanted = isinstance(value, str), "a text"
            if not right:
                raise InputError(f"{where}: {values['source']}: {key} {value!r}: give {wanted}")
        return cls(**values)


def load_structures(
    entries: Sequence[str | Mapping[str, Any] | StructureEntry],
    *,
    voxel_size: float,
    resolution: float,
    assembly: str = "1",
    structure_dir: str | os.PathLike[str] | None = None,
) -> list[Structure]:
    """Load structures, one per class.

    Parameters
    ----------
    entries : sequence of str, mapping or StructureEntry
        Each a source, or a mapping with the keys of `StructureEntry`.
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
    if structure_dir is not None and not Path(structure_dir).is_dir():
        raise InputError(f"{structure_dir}: no such folder of structures")
    for entry in entries:
        structure = _load(StructureEntry.of(entry), voxel_size, resolution, assembly, structure_dir)
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
    entry: StructureEntry,
    voxel_size: float,
    resolution: float,
    assembly: str,
    structure_dir: str | os.PathLike[str] | None,
) -> Structure:
    source = entry.source
    built_in = {a.name: a for a in ASSEMBLIES}
    if source in built_in:
        return structure_of_assembly(built_in[source], voxel_size=voxel_size, resolution=resolution, name=entry.name)
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
            assembly=entry.assembly or assembly,
            unknown_residues=entry.unknown_residues,
            name=entry.name,
        )
    if not path.name.lower().endswith(MRC_SUFFIXES):
        known = ", ".join((*MODEL_SUFFIXES, *MRC_SUFFIXES))
        raise InputError(f"{path}: neither an atomic model nor a density map; known are {known}")
    return structure_of_map(
        path,
        voxel_size=voxel_size,
        resolution=resolution,
        contour=entry.contour,
        mass_kda=entry.mass_kda,
        map_voxel_size=entry.voxel_size,
        invert=entry.invert,
        name=entry.name,
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
