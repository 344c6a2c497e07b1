"""Reading of particle lists: the format is told by the ending and the content, never by trial."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.particles.copick import read_copick
from cryo_monai.particles.delimited import delimited_particles
from cryo_monai.particles.dynamo import read_dynamo
from cryo_monai.particles.portal import read_portal
from cryo_monai.particles.relion import SCORE, relion_particles
from cryo_monai.particles.star import read_star
from cryo_monai.particles.stopgap import stopgap_particles, stopgap_table
from cryo_monai.particles.table import Particles
from cryo_monai.particles.tomograms import optimisation_set, read_tomogram_table

SUFFIXES = (".star", ".tbl", ".json", ".ndjson", ".csv", ".tsv", ".txt")


def read_particles(
    path: str | os.PathLike[str], *, pixel_size: float | None = None, class_column: str | None = None
) -> Particles:
    """Read a list of particles.

    Parameters
    ----------
    path : path
        ``.star`` (RELION 3 to 5 and their optimisation sets, Warp, M, TOMOMAN, STOPGAP), ``.tbl`` (Dynamo), ``.json``
        (picks or project of copick), ``.ndjson`` (CryoET Data Portal), ``.csv``, ``.tsv`` or ``.txt``.
    pixel_size : float, optional
        Å per pixel of the coordinates, in place of what the file says; not for coordinates in Å.
    class_column : str, optional
        Column that holds names of classes. Without it, one of cryomonaiClassName, class_name, className and
        rlnParticleName, or the pickable object; class numbers alone are not names.

    Returns
    -------
    Particles
        With shifts applied, counted from 0, axes ``(z, y, x)``; every column kept as text.

    Raises
    ------
    InputError
        One line naming file, line, column (where they apply) and reason.
    """
    path = Path(path)
    if pixel_size is not None and not 0 < pixel_size < float("inf"):
        raise InputError(f"{path}: pixel_size {pixel_size} is not positive")
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a list of particles")
    suffix = path.suffix.lower()
    if suffix == ".star":
        return _read_star_particles(path, pixel_size, class_column)
    readers = {".tbl": read_dynamo, ".json": read_copick, ".ndjson": read_portal}
    if suffix in readers:
        return readers[suffix](path, pixel_size=pixel_size, class_column=class_column)
    if suffix in SUFFIXES:
        return delimited_particles(path, pixel_size=pixel_size, class_column=class_column)
    if suffix == ".mod":
        raise InputError(
            f"{path}: models of IMOD are not read; write its points with 'model2point {path.name} {path.stem}.txt'"
        )
    raise InputError(f"{path}: unknown ending {suffix!r}; particle lists end in {', '.join(SUFFIXES)}")


def _read_star_particles(path: Path, pixel_size: float | None, class_column: str | None) -> Particles:
    tables = read_star(path)
    listed = optimisation_set(path, tables)
    if listed is not None:
        particle_file, tomogram_file = listed
        if particle_file is None:
            raise InputError(f"{path}: names no rlnTomoParticlesFile")
        particles = read_particles(particle_file, pixel_size=pixel_size, class_column=class_column)
        if tomogram_file is None:
            return replace(particles, read_from=(path,))
        table = read_tomogram_table(tomogram_file)
        return replace(particles, tomogram_files=table, read_from=(path, tomogram_file))
    motive_list = stopgap_table(tables)
    if motive_list is not None:
        return stopgap_particles(path, motive_list, pixel_size=pixel_size, class_column=class_column)
    particles = relion_particles(path, tables, pixel_size=pixel_size, class_column=class_column)
    _refuse_normalised(particles)
    return particles


def _refuse_normalised(particles: Particles) -> None:
    """Refuse peaks of WarpTools' template matching, which are fractions of the tomogram's size."""
    places = particles.coordinates
    fractions = places.size and places.min() >= 0 and places.max() <= 1 and (places % 1).any()
    if fractions and not particles.centred and SCORE in particles.columns:
        # warpem/warp, WarpTools/Commands/Tiltseries/ExportParticlesTiltseries.cs, --normalized_coords
        raise InputError(
            f"{particles.path}: all coordinates lie between 0 and 1, as WarpTools' template matching writes them; "
            "export them with 'WarpTools ts_export_particles --normalized_coords'"
        )
