"""Maps written in the format of the volume that they belong to, so that viewers put one on the other."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_bytes
from cryo_monai.mrc import write_mrc
from cryo_monai.mrc_header import HEADER_BYTES, MRC_SUFFIXES, open_mrc, read_mrc_header
from cryo_monai.volumes import NIFTI_SUFFIXES, stack_member

SUFFIXES = (".mrc", ".nii.gz")


def overlay_suffix(source: Any, voxel_size: float | None = None) -> str:
    """Return how the overlay of a volume ends: ``.mrc`` for MRC files and given voxel sizes, else ``.nii.gz``."""
    is_mrc = isinstance(source, (str, os.PathLike)) and str(stack_member(source)[0]).lower().endswith(MRC_SUFFIXES)
    is_nifti = isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(NIFTI_SUFFIXES)
    return ".mrc" if is_mrc or (voxel_size is not None and not is_nifti) else ".nii.gz"


def write_overlay(
    path: str | os.PathLike[str],
    data: npt.NDArray[np.float32],
    source: Any,
    *,
    voxel_size: float | None = None,
    label: str = "",
) -> None:
    """Write a map, crash-safely, with the place in space of the volume that it was made of.

    Parameters
    ----------
    path : path
        Ending as `overlay_suffix` says; its folder must exist.
    data : array
        `(z, y, x)`, written as float32.
    source : path or array
        The volume. An MRC file gives cell, ORIGIN and NSTART (those of its stack for one of several); a NIfTI file its
        affine and units; others, such as arrays, have no place, and get the identity or the voxel size.
    voxel_size : float, optional
        Å, instead of what an MRC file says.
    label : str
        For the header of MRC files.

    Raises
    ------
    InputError
        When the source cannot be read.
    """
    target, data = Path(path), np.ascontiguousarray(data, dtype=np.float32)
    named = isinstance(source, (str, os.PathLike))
    if target.name.endswith(".mrc"):
        file = stack_member(source)[0] if named else None
        if file is None or not str(file).lower().endswith(MRC_SUFFIXES):
            write_mrc(target, data, voxel_size=voxel_size or 1.0, label=label)
        else:
            _write_like_mrc(target, data, file, voxel_size, label)
        return
    image = nibabel.Nifti1Image(data.T, np.eye(4))
    if named and str(source).lower().endswith(NIFTI_SUFFIXES):
        try:
            original: Any = nibabel.load(source)
        except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
            raise InputError(f"{source}: {str(error).splitlines()[0]}") from error
        image = nibabel.Nifti1Image(data.T, original.affine)
        _copy_codes(original.header, image.header)
    import gzip

    # No time in it: the same map gives the same bytes.
    atomic_write_bytes(target, gzip.compress(image.to_bytes(), mtime=0))


def _copy_codes(original: Any, header: Any) -> None:
    """Take over what the affine is relative to, and the units."""
    if "sform_code" in original:
        codes = {key: int(original[key]) for key in ("sform_code", "qform_code", "xyzt_units")}
        # An affine that came from pixdim alone has no code; nibabel has then written it as aligned, which is as good.
        if codes["sform_code"] or codes["qform_code"]:
            for key, value in codes.items():
                header[key] = value
        else:
            header["xyzt_units"] = codes["xyzt_units"]


def _write_like_mrc(
    target: Path, data: npt.NDArray[np.float32], source: Path, voxel_size: float | None, label: str
) -> None:
    """Write an MRC file with the geometry of another, whose axes may be permuted on disk."""
    header = read_mrc_header(source, permissive=True, max_bytes=2**62)
    with open_mrc(source) as stream:
        raw = stream.read(HEADER_BYTES)
    order = header.byte_order
    sampling, cell = struct.unpack_from(order + "3i", raw, 28), struct.unpack_from(order + "3f", raw, 40)
    start = struct.unpack_from(order + "3i", raw, 16)
    origin = struct.unpack_from(order + "3f", raw, 196)
    # CELLA and ORIGIN are stored as x, y, z; NSTART as column, row and section of the disk.
    sizes = [c / n if n > 0 else 0.0 for c, n in zip(cell, sampling, strict=True)][::-1]
    wanted = (voxel_size,) * 3 if voxel_size is not None else (sizes[0], sizes[1], sizes[2])
    starts = [start[::-1][axis] for axis in header.axes]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write_mrc(temporary, data, voxel_size=wanted, origin=(origin[2], origin[1], origin[0]), label=label)
        with temporary.open("r+b") as file:
            file.seek(16)
            file.write(struct.pack("=3i", *starts[::-1]))  # what was written has the byte order of this machine
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
