"""Particle lists of RELION, Warp, STOPGAP, Dynamo, copick, the CryoET Data Portal and plain text."""

from __future__ import annotations

from cryo_monai.particles.reading import read_particles
from cryo_monai.particles.rewriting import write_classes, write_rows
from cryo_monai.particles.table import BACKGROUND, UNKNOWN, Particles, TomogramRecord, make_particles
from cryo_monai.particles.tomograms import read_tomogram_table
from cryo_monai.particles.writing import further_columns, write_particles

__all__ = [
    "BACKGROUND",
    "UNKNOWN",
    "Particles",
    "TomogramRecord",
    "further_columns",
    "make_particles",
    "read_particles",
    "read_tomogram_table",
    "write_classes",
    "write_particles",
    "write_rows",
]
