"""Where the particle is in a simulated subtomogram: its voxels, without those of its neighbours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.datalists import load_json
from cryo_monai.errors import InputError
from cryo_monai.mrc import read_mrc
from cryo_monai.rotations import rotation_matrices
from cryo_monai.splits import SPLITS

# Of the highest density of the structure. At 20 Å it takes about twice the volume of the protein, its blurred rim
# included: what of the particle can be seen.
THRESHOLD = 0.1

Mask = npt.NDArray[np.bool_]


class ParticleMasks:
    """Looks up the particles of subtomograms that `write_dataset` simulated.

    A volume belongs to such a data set when a ``dataset.json`` in its folder, or in the one above, lists it with the
    pose of its particle. Data sets are read once.
    """

    def __init__(self) -> None:
        self._truths: dict[Path, dict[str, dict[str, Any]]] = {}

    def of(self, path: str | os.PathLike[str]) -> Mask | None:
        """Mask `(z, y, x)` of the particle of a volume; None for volumes of other origin.

        The particle is where the density of its structure, in its pose, is over `THRESHOLD` of the structure's highest;
        of a scene without neighbours, where that of the noise-free scene is.

        Raises
        ------
        InputError
            When the data set names files that cannot be read.
        """
        real = Path(os.path.realpath(path))
        for folder in real.parents[:2]:
            truth = self._read(folder).get(str(real))
            if truth is None:
                continue
            file = folder / "structures" / f"{truth['class_name']}.mrc"
            if not file.is_file():
                return None
            structure = read_mrc(file).data
            clean = folder / str(truth.get("clean", ""))
            if not truth["neighbours"] and clean.is_file():
                density = read_mrc(clean).data
            else:
                density = posed(structure, truth["quaternion_wzyx"], truth["shift_voxels_zyx"])
            return np.asarray(density > THRESHOLD * structure.max())
        return None

    def _read(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Items of a simulated data set by the paths of their volumes; empty where there is none."""
        if folder not in self._truths:
            file = folder / "dataset.json"
            content = load_json(file) if file.is_file() else {}
            found = {}
            if isinstance(content, Mapping) and content.get("kind") == "subtomograms":
                items = [item for split in SPLITS for item in content.get(split, [])]
                wanted = {"image", "class_name", "quaternion_wzyx", "shift_voxels_zyx", "neighbours"}
                found = {os.path.realpath(folder / item["image"]): item for item in items if wanted <= set(item)}
            self._truths[folder] = found
        return self._truths[folder]


def posed(
    structure: npt.NDArray[np.float32], quaternion: npt.ArrayLike, shift: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Turn a structure about the centre of its box, voxel ``n // 2``, and move it.

    Parameters
    ----------
    structure : array
        `(z, y, x)`.
    quaternion : array
        ``(w, z, y, x)``, see `rotation_matrices`.
    shift : array
        ``(z, y, x)`` in voxels.

    Raises
    ------
    InputError
        When the quaternion is not four numbers, or the shift not three.
    """
    from scipy.ndimage import affine_transform

    rotation = np.asarray(quaternion, dtype=np.float64)
    move = np.asarray(shift, dtype=np.float64)
    if rotation.shape != (4,) or move.shape != (3,):
        raise InputError(f"pose: {quaternion!r} and {shift!r} must be four and three numbers")
    centre = np.array(structure.shape) // 2
    back = rotation_matrices(rotation).T
    # The structure at p is the reference at R^T p.
    turned = affine_transform(structure, back, offset=centre - back @ (centre + move), order=1)
    return np.asarray(turned, dtype=np.float32)
