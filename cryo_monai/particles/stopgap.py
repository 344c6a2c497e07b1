"""Motive lists of STOPGAP.

``orig_x`` and its like are indices of MATLAB arrays, from 1: the subtomogram's centre is cut at ``floor(orig)``
(williamnwan/STOPGAP, calculate_subtomo_coords.m). Shifts are added (sg_motl_apply_shifts.m), and phi, psi, the take the
reference to the particle (sg_euler2matrix.m). The CryoET Data Portal's converter adds the shifts too and keeps the
indices as they are; here they count from 0, as MATLAB's first voxel is 1. A motive list has no pixel size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.particles.poses import rotations_of_zxz
from cryo_monai.particles.star import StarTable
from cryo_monai.particles.table import Particles
from cryo_monai.particles.text import class_names_of, unique_ids

# williamnwan/STOPGAP, sg_toolbox/sg_get_motl_fields.m
POSITION = ["orig_x", "orig_y", "orig_z"]
SHIFT = ["x_shift", "y_shift", "z_shift"]
ANGLES = ["phi", "the", "psi"]


def stopgap_table(tables: list[StarTable]) -> StarTable | None:
    """Return the table that is a motive list, or None."""
    for table in tables:
        if table.block.startswith("stopgap_motivelist") or set(table.columns.names).issuperset(POSITION):
            return table
    return None


def stopgap_particles(path: Path, table: StarTable, *, pixel_size: float | None, class_column: str | None) -> Particles:
    """Make the list of particles of a motive list.

    Raises
    ------
    InputError
        Naming the line or column that is wrong.
    """
    columns = table.columns
    columns.require([*POSITION, *SHIFT, *ANGLES])
    count = len(columns)
    if not count:
        raise InputError(f"{path}: holds no particles")
    names = ("motl_idx", "subtomo_num")
    return Particles(
        ids=unique_ids([columns.texts(name) for name in names if name in columns], count),
        tomograms=columns.texts("tomo_num") if "tomo_num" in columns else [""] * count,
        coordinates=(columns.matrix(POSITION) + columns.matrix(SHIFT) - 1)[:, ::-1],
        pixel_size=np.full(count, np.nan if pixel_size is None else pixel_size),
        centred=False,
        rotations=rotations_of_zxz(columns.matrix(ANGLES)),
        class_names=class_names_of(columns, class_column, ("class_name", "className")),
        scores=columns.numbers("score") if "score" in columns else None,
        columns=columns.frame(),
        format="stopgap",
        path=path,
    )
