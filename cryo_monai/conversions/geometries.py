"""Where a volume lies and how large its voxels are, as its header says, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.mrc_header import MRC_SUFFIXES, NO_LIMIT, read_mrc_header
from cryo_monai.volumes import NIFTI_SUFFIXES, stack_member

Triple = tuple[float, float, float]

# NIfTI-1 (nifti1.h, XYZT_TO_SPACE and NIFTI_UNITS_*): the lower three bits of xyzt_units; 0 unknown, 1 m, 2 mm, 3 µm.
SPACE_BITS = 0x07
METRES, MILLIMETRES, MICROMETRES = 1, 2, 3
ANGSTROMS_PER_UNIT = {METRES: 1e10, MICROMETRES: 1e4}


@dataclass(frozen=True)
class Geometry:
    """What a header says of space.

    Attributes
    ----------
    voxel_size : tuple of float or None
        ``(z, y, x)`` in Å; None when the header does not say. A bare 1.0 counts as not said, as it does for MRC.
    origin : tuple of float
        Of the first voxel, ``(z, y, x)`` in Å.
    notes : tuple of str
        What of the header other formats cannot hold, or how it was understood.
    """

    voxel_size: Triple | None
    origin: Triple = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()


def geometry_of(path: Path, *, permissive: bool = False) -> Geometry:
    """Read the geometry of a file that `check_volume_file` has passed.

    Lengths of NIfTI are understood as Å where its units are unknown, as `write_stored_volume` leaves them, and where
    they are mm, since programs built on ITK write Å as mm (``itkMRCImageIO.cxx`` takes the cell of an MRC file for
    ITK's millimetres); micrometres and metres are what they say.

    Raises
    ------
    InputError
        When the header is no good.
    """
    lower = str(path).lower()
    if lower.endswith(MRC_SUFFIXES):
        header = read_mrc_header(stack_member(path)[0], permissive=permissive, max_bytes=NO_LIMIT)
        return Geometry(header.voxel_size, header.origin)
    if lower.endswith(NIFTI_SUFFIXES):
        return _nifti_geometry(nibabel.load(path))
    return Geometry(None)


def _nifti_geometry(image: Any) -> Geometry:
    header = image.header
    if "sform_code" not in header:
        return Geometry(None)
    unit = int(header["xyzt_units"]) & SPACE_BITS
    scale = ANGSTROMS_PER_UNIT.get(unit, 1.0)
    notes = []
    if int(header["sform_code"]) or int(header["qform_code"]):
        affine = np.asarray(image.affine, dtype=np.float64)
        # Columns are the steps along x, y, z; the length of an axis-aligned one is exact.
        steps = np.sqrt((affine[:3, :3] ** 2).sum(0))
        upright = np.allclose(affine[:3, :3], np.diag(steps), atol=1e-4 * float(steps.max()))
        origin = affine[:3, 3] if upright else np.zeros(3)
        if not upright:
            mirrored = np.linalg.det(affine[:3, :3]) < 0
            notes.append(
                "its affine turns or flips axes, which is not kept: voxels stay in the order in which they are stored"
                + (", the mirror image of what viewers of NIfTI show" if mirrored else "")
            )
    else:
        steps, origin = np.asarray(header.get_zooms()[:3], dtype=np.float64), np.zeros(3)
    known = bool(np.all(np.isfinite(steps)) and np.all(steps > 0)) and not np.allclose(steps, 1.0)
    if known and unit == MILLIMETRES:
        notes.append("its lengths are called mm and taken for Å; --voxel_size says otherwise")
    size_x, size_y, size_z = (float(step) * scale for step in steps)
    x, y, z = (float(place) * scale for place in origin)
    return Geometry((size_z, size_y, size_x) if known else None, (z, y, x), tuple(notes))


def checked_voxel_size(voxel_size: float | Triple | None) -> Triple | None:
    """Return a voxel size that was given as one number or ``(z, y, x)``, in Å, as three.

    Raises
    ------
    InputError
        When one of them is not above 0.
    """
    if voxel_size is None:
        return None
    sizes = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else voxel_size
    if len(sizes) != 3 or not all(np.isfinite(size) and size > 0 for size in sizes):
        raise InputError(f"voxel_size: {voxel_size} must be one number above 0, or three for z, y, x")
    return float(sizes[0]), float(sizes[1]), float(sizes[2])
