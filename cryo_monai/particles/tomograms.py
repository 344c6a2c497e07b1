"""RELION's tables of tomograms, and the optimisation sets that name them.

A tomogram is in voxels of ``rlnTomoTiltSeriesPixelSize * rlnTomoTomogramBinning``, and ``rlnTomoSize[XYZ]`` count
unbinned pixels; x and y of the volume are rounded, z is cut off (3dem/relion,
src/jaz/tomography/programs/reconstruct_tomogram.cpp). Files are named relative to the folder of the project, which is a
folder above the table.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.particles.star import StarTable, read_star
from cryo_monai.particles.table import TomogramRecord
from cryo_monai.particles.text import TextColumns

_PARTICLES, _TOMOGRAMS = "rlnTomoParticlesFile", "rlnTomoTomogramsFile"


def read_tomogram_table(path: str | os.PathLike[str]) -> dict[str, TomogramRecord]:
    """Read RELION 4's or 5's ``tomograms.star``.

    Parameters
    ----------
    path : path
        The table, or an optimisation set that names it.

    Returns
    -------
    dict
        Name of the tomogram to its file, voxel size (Å) and shape, as far as the table tells.

    Raises
    ------
    InputError
        Naming line and column of what is wrong.
    """
    path = Path(path)
    tables = read_star(path)
    listed = optimisation_set(path, tables)
    if listed is not None:
        if listed[1] is None:
            raise InputError(f"{path}: names no {_TOMOGRAMS}")
        return read_tomogram_table(listed[1])
    candidates = [t.columns for t in tables if "rlnTomoName" in t.columns and "rlnTomoTiltSeriesPixelSize" in t.columns]
    candidates = [c for c in candidates if not any(n.startswith(("rlnCoord", "rlnCenteredCoord")) for n in c.names)]
    if len(candidates) != 1:
        raise InputError(f"{path}: not a table of tomograms (rlnTomoName, rlnTomoTiltSeriesPixelSize)")
    columns = candidates[0]
    names = columns.texts("rlnTomoName")
    for row, name in enumerate(names):
        if name in names[:row]:
            raise InputError(f"{path}, line {columns.lines[row]}: tomogram {name} comes twice")
    return dict(zip(names, _records(path, columns), strict=True))


def _records(path: Path, columns: TextColumns) -> list[TomogramRecord]:
    pixel_size = columns.numbers("rlnTomoTiltSeriesPixelSize")
    binning = columns.numbers("rlnTomoTomogramBinning") if "rlnTomoTomogramBinning" in columns else None
    axes = [f"rlnTomoSize{axis}" for axis in "ZYX"]
    sizes = columns.matrix(axes) if all(axis in columns for axis in axes) else None
    volume = "rlnTomoReconstructedTomogram"
    files = columns.texts(volume) if volume in columns else [""] * len(columns)
    records = []
    for row, file in enumerate(files):
        factor = 1.0 if binning is None else float(binning[row])
        if not pixel_size[row] > 0 or not factor > 0:
            raise InputError(f"{path}, line {columns.lines[row]}: pixel size and binning must be positive")
        known = file and binning is not None
        shape = None
        if sizes is not None and known:
            depth, height, width = (float(size) / factor for size in sizes[row])
            shape = (int(depth), int(height + 0.5), int(width + 0.5))
        found = find_listed(path, file) or Path(file) if file else None
        records.append(TomogramRecord(found, float(pixel_size[row]) * factor if known else None, shape))
    return records


def optimisation_set(path: Path, tables: list[StarTable]) -> tuple[Path | None, Path | None] | None:
    """Return the particle file and the tomogram table that an optimisation set names; None for other files.

    Raises
    ------
    InputError
        When a file that it names is not there.
    """
    for table in tables:
        if _PARTICLES in table.columns or _TOMOGRAMS in table.columns:
            if len(table.columns) != 1:
                raise InputError(f"{path}: an optimisation set names one list of particles, not {len(table.columns)}")
            particles, tomograms = (_listed_file(path, table.columns, name) for name in (_PARTICLES, _TOMOGRAMS))
            return particles, tomograms
    return None


def _listed_file(path: Path, columns: TextColumns, name: str) -> Path | None:
    text = columns.texts(name)[0] if name in columns else ""
    if not text:
        return None
    found = find_listed(path, text)
    if found is None:
        raise InputError(f"{path}: {name} is {text}, which is in no folder above it")
    return found


def find_listed(path: Path, name: str) -> Path | None:
    """Return the file that a project's file names, relative to a folder above that file; None where there is none."""
    return next((folder / name for folder in path.absolute().parents if (folder / name).is_file()), None)
