"""Volumes as they are stored: voxels in their own data type, always ``(z, y, x)``, with voxel size and origin."""

from __future__ import annotations

import gzip
import io
import os
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nibabel.filebasedimages
import nibabel.spatialimages
import numpy as np
import numpy.typing as npt

from cryo_monai.conversions.geometries import Triple, geometry_of
from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.files import atomic_write_bytes
from cryo_monai.mrc import write_mrc
from cryo_monai.mrc_header import HEADER_BYTES, MRC_SUFFIXES, check_compressed_size, open_mrc, read_mrc_header
from cryo_monai.volumes import NIFTI_SUFFIXES, NUMPY_SUFFIXES, check_volume_file, stack_member

Array = npt.NDArray[Any]
SOURCE_SUFFIXES = (*MRC_SUFFIXES, *NIFTI_SUFFIXES, *NUMPY_SUFFIXES)
TARGET_SUFFIXES = (".mrc", ".nii.gz", ".nii", ".npy")
# MRC2014 (doi 10.1016/j.jsb.2015.04.002), table 1, modes 0, 1, 6, 12 and 2.
MRC_TYPES = ("int8", "int16", "uint16", "float16", "float32")
# NIfTI-1 (nifti1.h, DT_*), real numbers.
NIFTI_TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


@dataclass(frozen=True)
class StoredVolume:
    """A volume with nothing lost of what its file holds.

    Attributes
    ----------
    data : array
        `(z, y, x)` in the data type of the file, in the byte order of this machine.
    voxel_size : tuple of float or None
        ``(z, y, x)`` in Å; None when the file does not say.
    origin : tuple of float
        ``(z, y, x)`` in Å.
    notes : tuple of str
        What could not be kept, or how something was understood.
    """

    data: Array
    voxel_size: Triple | None
    origin: Triple = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return which format a name means: mrc, nifti, npy, or nothing.

    Compression makes no difference to that.
    """
    lower = str(path).lower()
    kinds = {"mrc": MRC_SUFFIXES, "nifti": NIFTI_SUFFIXES, "npy": NUMPY_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if lower.endswith(suffixes)), "")


def read_stored_volume(path: str | os.PathLike[str], *, permissive: bool = False) -> StoredVolume:
    """Read a volume without changing its data type.

    Axes are those of `cryo_monai.volumes.read_volume`, whatever the order on disk: both read the same numbers.

    Parameters
    ----------
    path : path
        MRC, plain or compressed, or one volume of a stack as ``000005@stack.mrcs``; NIfTI; NPY.
    permissive : bool
        See `read_mrc`.

    Raises
    ------
    InputError
        One line naming the file and the reason.
    """
    file = Path(path)
    if not kind_of(file):
        raise InputError(f"{file}: unknown extension; volumes to convert end in {', '.join(SOURCE_SUFFIXES)}")
    shape = check_volume_file(file, permissive=permissive)
    geometry = geometry_of(file, permissive=permissive)
    notes = list(geometry.notes)
    try:
        stored = _READERS[kind_of(file)](file, permissive, notes)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: {str(error).splitlines()[0]}") from error
    if stored.dtype.kind not in "fiub":
        raise InputError(f"{file}: data type {stored.dtype} is not a real number")
    data = np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C").reshape(shape)
    return StoredVolume(data, geometry.voxel_size, geometry.origin, tuple(notes))


def _read_mrc(file: Path, permissive: bool, notes: list[str]) -> Array:
    path, number = stack_member(file)
    header = read_mrc_header(path, permissive=permissive, max_bytes=2**62)
    if path.suffix in (".gz", ".bz2"):
        check_compressed_size(path, header)
    size = header.nbytes // header.volumes
    with open_mrc(path) as stream:
        stream.seek(HEADER_BYTES + header.extended_bytes + ((number or 1) - 1) * size)
        stored = np.frombuffer(stream.read(size), dtype=header.dtype)
    return stored.reshape(header.disk_shape).transpose(header.axes)


def _read_nifti(file: Path, permissive: bool, notes: list[str]) -> Array:
    try:
        stored = nibabel.load(file).dataobj
        if (getattr(stored, "slope", 1.0), getattr(stored, "inter", 0.0)) == (1.0, 0.0):
            return np.asarray(stored.get_unscaled()).T
        notes.append("its numbers are stored with a slope, and were multiplied with it")
        # The same rounding as in `read_volume`.
        return _rounded(np.asanyarray(stored), "float32", file).T
    except nibabel.filebasedimages.ImageFileError as error:
        raise InputError(f"{file}: {str(error).splitlines()[0]}") from error


def _read_npy(file: Path, permissive: bool, notes: list[str]) -> Array:
    return np.asarray(np.load(file, allow_pickle=False))


_READERS: dict[str, Callable[[Path, bool, list[str]], Array]] = {
    "mrc": _read_mrc,
    "nifti": _read_nifti,
    "npy": _read_npy,
}


def write_stored_volume(path: str | os.PathLike[str], volume: StoredVolume, *, label: str = "") -> tuple[str, ...]:
    """Write a volume, crash-safely; a data type that the format has not becomes one that holds the numbers, if any.

    NIfTI gets an affine of the voxel size and the origin in Å, and ``unknown`` for the unit: NIfTI knows nothing
    smaller than micrometres, and the numbers of a box of 300 Å in mm are too small for viewers and for comparisons of
    affines. The same volume gives the same bytes.

    Parameters
    ----------
    path : path
        Ends in one of `TARGET_SUFFIXES`; its folder is created.
    volume : StoredVolume
        What to write.
    label : str
        For the header of MRC files.

    Returns
    -------
    tuple of str
        What could not be kept.

    Raises
    ------
    InputError
        When the format cannot hold the volume or numbers in it, or the voxel size is not known and the format wants
        one.
    """
    target = Path(path)
    kind = kind_of(target)
    if not target.name.lower().endswith(TARGET_SUFFIXES):
        raise InputError(f"{target}: can be written as {', '.join(TARGET_SUFFIXES)}, not as {target.suffix or 'that'}")
    if volume.voxel_size is None and kind != "npy":
        raise InputError(f"{target}: the voxel size is not known; give it with --voxel_size (Å)")
    data, notes = _fitted(volume.data, kind, target)
    if kind == "npy":
        stream = io.BytesIO()
        np.save(stream, data)
        atomic_write_bytes(target, stream.getvalue())
        return (*notes, *(["NPY has no voxel size and no origin"] if volume.voxel_size else []))
    if kind == "nifti":
        atomic_write_bytes(target, _nifti_bytes(target, data, volume))
        return notes
    if 1 in data.shape:
        raise InputError(f"{target}: a volume of shape {data.shape} would be a picture as MRC")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of voxels that are not finite: they are kept
            write_mrc(target, data, voxel_size=volume.voxel_size or 1.0, origin=volume.origin, label=label)
    except OSError as error:
        raise CryoMonaiError(f"{target}: cannot be written ({error.strerror})") from error
    return notes


def _fitted(data: Array, kind: str, target: Path) -> tuple[Array, tuple[str, ...]]:
    """Return the data in a type that the format has, and what that changed."""
    held = {"mrc": MRC_TYPES, "nifti": NIFTI_TYPES, "npy": (data.dtype.name,)}[kind]
    if data.dtype.name in held:
        return data, ()
    if data.dtype.kind == "b":
        choices = ["uint8", "int8"]
    else:
        choices = ["int16", "uint16", "float32"] if data.dtype.kind in "iu" else ["float32", "float64"]
    for name in choices:
        if name in held and _holds(name, data):
            return data.astype(name), (f"{data.dtype} became {name}, exactly",)
    last = "float64" if kind == "nifti" else "float32"
    return _rounded(data, last, target), (f"{data.dtype} was rounded to {last}",)


def _holds(name: str, data: Array) -> bool:
    """Whether a type has every number of the data; none is cast where it has not, which is not defined."""
    if data.dtype.kind == "b":
        return True
    if np.dtype(name).kind in "iu":
        limits = np.iinfo(name)
        return int(data.min()) >= limits.min and int(data.max()) <= limits.max
    with np.errstate(all="ignore"):
        cast = data.astype(name)
        if data.dtype.kind == "f":
            return np.array_equal(cast.astype(data.dtype), data, equal_nan=True)
        # The largest number may have been rounded to the power of two above what the type of the data has.
        return int(cast.max()) <= np.iinfo(data.dtype).max and np.array_equal(cast.astype(data.dtype), data)


def _rounded(data: Array, name: str, file: Path) -> Array:
    """Return the data in a type of floating point.

    Raises
    ------
    InputError
        When a number would become infinite.
    """
    with np.errstate(all="ignore"):
        cast = data.astype(name)
    lost = int(np.count_nonzero(np.isinf(cast) & np.isfinite(data)))
    if lost:
        limit = f"{np.finfo(name).max:.2g}"
        raise InputError(f"{file}: {lost} voxels are beyond {limit}, the most that {name} holds; scale them first")
    return cast


def _nifti_bytes(target: Path, data: Array, volume: StoredVolume) -> bytes:
    """NIfTI-1 file of a volume whose voxel size is known, compressed if its name says so."""
    affine = np.diag([*(volume.voxel_size or (1.0,) * 3)[::-1], 1.0])
    affine[:3, 3] = volume.origin[::-1]
    try:
        image = nibabel.Nifti1Image(data.T, affine, dtype=data.dtype)
        image.set_qform(affine, code="aligned")
        image.header.set_xyzt_units("unknown")
        image.header["descrip"] = b"cryo-monai: lengths in Angstrom"
        content: bytes = image.to_bytes()
    except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
        raise InputError(f"{target}: NIfTI cannot hold this volume ({error})") from error
    # No time in it: the same volume gives the same bytes. Noise hardly shrinks at any level, and 1 is the fastest.
    return gzip.compress(content, 1, mtime=0) if target.name.lower().endswith(".gz") else content
