"""One volume file to another format."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cryo_monai.conversions.geometries import Triple, checked_voxel_size
from cryo_monai.conversions.stored import kind_of, read_stored_volume, write_stored_volume
from cryo_monai.errors import InputError


def convert_volume(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    voxel_size: float | Triple | None = None,
    permissive: bool = False,
    replacing: bool = False,
) -> tuple[str, ...]:
    """Write a volume in another format, voxel for voxel, in the data type that it has.

    Parameters
    ----------
    source : path
        See `read_stored_volume`.
    target : path
        Of another format; what it ends in says which.
    voxel_size : float or tuple, optional
        Å, one number or ``(z, y, x)``; goes before what the file says.
    permissive : bool
        See `read_mrc`.
    replacing : bool
        Write over a target that exists.

    Returns
    -------
    tuple of str
        What could not be kept, and what was assumed.

    Raises
    ------
    InputError
        When the source cannot be read, the target exists or is of the same format, or the voxel size is not known.
    """
    given = checked_voxel_size(voxel_size)
    if kind_of(source) == kind_of(target) != "":
        raise InputError(f"{target}: has the format of {source}; compress or copy it with other programs")
    if os.path.lexists(target) and not replacing:
        raise InputError(f"{target}: exists; remove it, or choose another name")
    volume = read_stored_volume(source, permissive=permissive)
    notes = list(volume.notes)
    if given is not None:
        if volume.voxel_size is not None and not _agree(volume.voxel_size, given):
            said = " x ".join(f"{size:g}" for size in volume.voxel_size)
            notes.append(f"its header says voxels of {said} Å (z, y, x); what was given goes before")
        volume = replace(volume, voxel_size=given)
    return (*notes, *write_stored_volume(target, volume, label=f"converted from {Path(source).name}"))


def _agree(sizes: Triple, given: Triple) -> bool:
    return all(abs(size / other - 1) < 1e-4 for size, other in zip(sizes, given, strict=True))
