"""Templates: what picks are compared with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.simulation.loading import StructureEntry, load_structures
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.scenes import SceneRenderer


@dataclass(frozen=True)
class Template:
    """What is looked for.

    Attributes
    ----------
    name : str
        Class name.
    density : array
        Cube `(n, n, n)` float32, density bright, centre at voxel ``n // 2``.
    voxel_size : float
        Å.
    """

    name: str
    density: npt.NDArray[np.float32]
    voxel_size: float


def check_templates(templates: Sequence[Template]) -> tuple[int, float]:
    """Return the edge in voxels and the voxel size in Å that templates have in common.

    Raises
    ------
    InputError
        When they differ, one is constant, not a cube or not finite, or two have one name.
    """
    if not templates:
        raise InputError("templates: none were given")
    first = templates[0]
    for template in templates:
        shape = template.density.shape
        if len(shape) != 3 or len(set(shape)) != 1 or shape[0] < 8:
            raise InputError(f"template {template.name}: shape {shape} is not a cube of 8 voxels or more")
        if not np.isfinite(template.density).all() or np.ptp(template.density) == 0:
            raise InputError(f"template {template.name}: constant, or with voxels that are NaN or infinite")
        if shape != first.density.shape or abs(template.voxel_size / first.voxel_size - 1) > 1e-3:
            raise InputError(
                f"template {template.name}: {shape[0]} voxels of {template.voxel_size:g} Å, but {first.name} has "
                f"{first.density.shape[0]} of {first.voxel_size:g} Å; make them alike"
            )
    names = [template.name for template in templates]
    if len(set(names)) < len(names):
        raise InputError(f"templates: two have one name among {', '.join(names)}")
    return first.density.shape[0], first.voxel_size


def templates_from(
    entries: Sequence[str | Mapping[str, Any] | StructureEntry],
    *,
    voxel_size: float,
    resolution: float,
    box: int,
    structure_dir: str | os.PathLike[str] | None = None,
    assembly: str = "1",
) -> list[Template]:
    """Make templates of maps, atomic models and built-in assemblies, as the simulator reads them.

    Parameters
    ----------
    entries : sequence of str, mapping or StructureEntry
        See `load_structures`.
    voxel_size : float
        Å, of the tomogram.
    resolution : float
        Å; see `low_pass` of the simulator.
    box : int
        Edge in voxels; the particle has to fit in the sphere in it.
    structure_dir, assembly : path, str
        See `load_structures`.

    Raises
    ------
    InputError
        For entries that are no good, or particles larger than the box.
    """
    structures = load_structures(
        entries, voxel_size=voxel_size, resolution=resolution, assembly=assembly, structure_dir=structure_dir
    )
    for structure in structures:
        needed = 2 * int(np.ceil(structure.radius / voxel_size + 1))
        if needed > box:
            raise InputError(
                f"template {structure.name}: a particle of {2 * structure.radius:.0f} Å does not fit in a box of {box} "
                f"voxels of {voxel_size:g} Å; give {needed} at least"
            )
    renderer = SceneRenderer(structures)
    templates = []
    for kind, structure in enumerate(structures):
        alone = Packing(
            np.array([[kind]]), np.array([[[1.0, 0, 0, 0]]]), np.zeros((1, 1, 3)), np.zeros((1, 1, 1, 1), np.float32)
        )
        templates.append(Template(structure.name, renderer.render(alone, (box,) * 3)[0].numpy(), voxel_size))
    return templates
