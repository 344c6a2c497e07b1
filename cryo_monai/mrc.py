"""MRC volumes: a reader that checks the header before it allocates anything, and a writer."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.mrc_header import (
    HEADER_BYTES,
    MAX_BYTES,
    NO_LIMIT,
    MRCHeader,
    check_compressed_size,
    read_mrc_header,
)


@dataclass(frozen=True)
class MRCVolume:
    """One volume with its geometry: ``data`` `(z, y, x)` float32, ``voxel_size`` and ``origin`` `(z, y, x)` in Å."""

    data: npt.NDArray[np.float32]
    voxel_size: tuple[float, float, float] | None
    origin: tuple[float, float, float]


def read_mrc(
    path: str | os.PathLike[str],
    *,
    volume: int | None = None,
    permissive: bool = False,
    max_bytes: int = MAX_BYTES,
) -> MRCVolume:
    """Read one volume as float32 in ``(z, y, x)`` order, whatever the axis order and byte order on disk.

    Parameters
    ----------
    path : path
        Modes 0, 1, 2, 6 and 12; plain, ``.gz`` or ``.bz2``; little or big endian.
    volume : int, optional
        Which volume of a stack (ISPG 401), counted from 0; a stack without it is refused. Of a plain file no other
        volume is read.
    permissive : bool
        Accept files without the MRC2014 identifier and machine stamp.
    max_bytes : int
        Refuse headers that declare more data than this.

    Returns
    -------
    MRCVolume
        Data, voxel size and origin.

    Raises
    ------
    InputError
        One line naming the file and the reason: unreadable, not MRC, truncated, trailing bytes, unknown mode, complex,
        two-dimensional, or a stack without ``volume``.
    """
    path = Path(path)
    header = read_mrc_header(path, permissive=permissive, max_bytes=max_bytes if volume is None else NO_LIMIT)
    if header.nbytes // header.volumes > max_bytes:
        raise InputError(f"{path}: volumes of {header.nbytes // header.volumes} bytes, over the limit of {max_bytes}")
    if header.volumes == 1 and 1 in header.shape:
        raise InputError(f"{path}: a two-dimensional image of shape {header.shape}, not a volume")
    if header.volumes > 1 and volume is None:
        raise InputError(f"{path}: a stack of {header.volumes} volumes; name one as 000001@{path.name}")
    if volume is not None and not 0 <= volume < header.volumes:
        raise InputError(f"{path}: no volume {volume} in a file of {header.volumes}")
    try:
        compressed = path.suffix in (".gz", ".bz2")
        if compressed:
            check_compressed_size(path, header)
        if header.volumes > 1 and not compressed:
            stored = _map_volume(path, header, volume or 0)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what mrcfile would warn of has been checked above
                with mrcfile.open(path, permissive=permissive) as file:
                    stored = file.data
            # A stack has a fourth axis, even of one volume.
            stored = stored[volume or 0] if stored.ndim == 4 else stored
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    data = np.array(np.transpose(stored, header.axes), dtype=np.float32, order="C")
    return MRCVolume(data=data, voxel_size=header.voxel_size, origin=header.origin)


def _map_volume(path: Path, header: MRCHeader, volume: int) -> npt.NDArray[Any]:
    """Map one volume of a stack, in the order on disk; the others are not read."""
    offset = HEADER_BYTES + header.extended_bytes + volume * (header.nbytes // header.volumes)
    return np.memmap(path, dtype=header.dtype, mode="r", offset=offset, shape=header.disk_shape)


def write_mrc(
    path: str | os.PathLike[str],
    data: npt.NDArray[Any],
    *,
    voxel_size: float | tuple[float, float, float],
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    label: str = "",
) -> None:
    """Write a volume as MRC mode 2 (or 0, 1, 6, 12 for int8, int16, uint16, float16 data), crash-safely.

    Parameters
    ----------
    path : path
        Target; its folder must exist. A partly written file never appears under this name.
    data : array
        `(z, y, x)`.
    voxel_size : float or tuple
        Å; one number or ``(z, y, x)``.
    origin : tuple of float
        ``(z, y, x)`` in Å.
    label : str
        Text for the header, at most 80 ASCII characters. No time is written: the same data give the same bytes.

    Raises
    ------
    InputError
        When the data are not three-dimensional.
    """
    if data.ndim != 3:
        raise InputError(f"{path}: an MRC volume has three dimensions, not {data.ndim}")
    path = Path(path)
    size_z, size_y, size_x = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else voxel_size
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with mrcfile.new(temporary, overwrite=True) as file:
            file.set_data(np.ascontiguousarray(data, dtype=np.float32 if data.dtype == np.float64 else None))
            file.voxel_size = (size_x, size_y, size_z)
            file.header.origin = origin[::-1]
            file.set_volume()
            file.header.label[0] = (label or "cryo-monai").encode("ascii", "replace")[:80]
            file.header.nlabl = 1
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
