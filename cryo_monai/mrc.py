"""MRC volumes: a reader that checks the header before it allocates anything, a writer, and a MONAI reader."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mrcfile
import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from cryo_monai.errors import InputError

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".rec", ".st", ".mrc.gz", ".map.gz", ".mrc.bz2", ".map.bz2")

# MRC2014 (Cheng et al. 2015, doi 10.1016/j.jsb.2015.04.002), table 1: header length and data modes.
HEADER_BYTES = 1024
MODES: dict[int, np.dtype[Any]] = {
    0: np.dtype("i1"),
    1: np.dtype("i2"),
    2: np.dtype("f4"),
    6: np.dtype("u2"),
    12: np.dtype("f2"),
}
LITTLE_ENDIAN_STAMPS = (b"\x44\x44", b"\x44\x41")
BIG_ENDIAN_STAMP = b"\x11\x11"
MAX_BYTES = 16 * 2**30  # refuse a header that declares more; pass `max_bytes` for larger volumes
MAX_EXTENDED_HEADER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MRCHeader:
    """The checked part of an MRC header.

    Attributes
    ----------
    shape : tuple of int
        ``(z, y, x)`` of one volume, after undoing axis permutation.
    volumes : int
        Number of volumes: 1, or more for a volume stack (ISPG 401).
    mode : int
        MRC data mode.
    axes : tuple of int
        Transposition from the order on disk to ``(z, y, x)``.
    voxel_size : tuple of float or None
        ``(z, y, x)`` in Å; None when the header does not say.
    origin : tuple of float
        ``(z, y, x)`` in Å: ORIGIN when set, otherwise NSTART x voxel size.
    extended_bytes : int
        Length of the extended header.
    """

    shape: tuple[int, int, int]
    volumes: int
    mode: int
    axes: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    origin: tuple[float, float, float]
    extended_bytes: int

    @property
    def nbytes(self) -> int:
        """Number of data bytes that the header declares."""
        size_z, size_y, size_x = self.shape
        return size_z * size_y * size_x * self.volumes * MODES[self.mode].itemsize


@dataclass(frozen=True)
class MRCVolume:
    """One volume with its geometry: ``data`` `(z, y, x)` float32, ``voxel_size`` and ``origin`` `(z, y, x)` in Å."""

    data: npt.NDArray[np.float32]
    voxel_size: tuple[float, float, float] | None
    origin: tuple[float, float, float]


def _open(path: Path) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    return path.open("rb")


def _byte_order(path: Path, raw: bytes, permissive: bool) -> str:
    stamp, map_id = raw[212:214], raw[208:212]
    if map_id[:3] != b"MAP" and not permissive:
        raise InputError(
            f"{path}: not an MRC2014 file (no 'MAP' identifier in the header; "
            "files of older software open with permissive=True)"
        )
    if stamp in LITTLE_ENDIAN_STAMPS:
        return "<"
    if stamp == BIG_ENDIAN_STAMP:
        return ">"
    if not permissive:
        raise InputError(f"{path}: unknown machine stamp {stamp.hex()} in the MRC header")
    (mode,) = struct.unpack_from("<i", raw, 12)
    return "<" if mode in MODES else ">"


def _geometry(raw: bytes, order: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> dict[str, Any]:
    sampling = struct.unpack_from(order + "3i", raw, 28)
    cell = struct.unpack_from(order + "3f", raw, 40)
    start = struct.unpack_from(order + "3i", raw, 16)
    origin = struct.unpack_from(order + "3f", raw, 196)
    # MX..MZ, CELLA and ORIGIN are stored as x, y, z; NSTART follows the axes on disk (column, row, section).
    known = all(n > 0 and np.isfinite(c) and c > 0 for n, c in zip(sampling, cell, strict=True))
    voxel = tuple(c / n for c, n in zip(cell, sampling, strict=True))[::-1] if known else None
    # A bare 1.0 is what software writes when it does not know.
    if voxel is not None and np.allclose(voxel, 1.0):
        voxel = None
    if any(origin):
        position = origin[::-1]
    else:
        start_zyx = [start[::-1][axis] for axis in axes]
        position = tuple(s * v for s, v in zip(start_zyx, voxel or (0.0, 0.0, 0.0), strict=True))
    return {"voxel_size": voxel, "origin": tuple(float(p) for p in position)}


def _parse_header(path: Path, raw: bytes, permissive: bool, max_bytes: int) -> MRCHeader:
    if len(raw) == 0:
        raise InputError(f"{path}: empty file")
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{path}: {len(raw)} bytes are too few for an MRC header ({HEADER_BYTES})")
    order = _byte_order(path, raw, permissive)
    nx, ny, nz, mode = struct.unpack_from(order + "4i", raw, 0)
    if mode == 4 or mode == 3:
        raise InputError(f"{path}: complex data (mode {mode}) is a transform, not a volume")
    if mode not in MODES:
        raise InputError(f"{path}: unknown MRC mode {mode}; readable modes are {sorted(MODES)}")
    if min(nx, ny, nz) <= 0:
        raise InputError(f"{path}: impossible size {nz} x {ny} x {nx} (z, y, x) in the MRC header")
    (spacegroup, extended) = struct.unpack_from(order + "2i", raw, 88)
    if not 0 <= extended <= MAX_EXTENDED_HEADER_BYTES:
        raise InputError(f"{path}: impossible extended header of {extended} bytes")
    (mz,) = struct.unpack_from(order + "i", raw, 36)
    volumes = 1
    if 401 <= spacegroup <= 630:
        if mz <= 0 or nz % mz:
            raise InputError(f"{path}: a volume stack of {nz} sections cannot hold volumes of {mz} sections")
        volumes, nz = nz // mz, mz
    mapping = struct.unpack_from(order + "3i", raw, 64)
    if sorted(mapping) != [1, 2, 3]:
        if mapping != (0, 0, 0):
            raise InputError(f"{path}: MAPC, MAPR, MAPS = {mapping} do not name each axis once")
        mapping = (1, 2, 3)
    # mapping = the (x=1, y=2, z=3) axis of the columns, rows and sections; disk order is (section, row, column).
    disk = mapping[::-1]
    axes = (disk.index(3), disk.index(2), disk.index(1))
    disk_shape = (nz, ny, nx)
    shape = (disk_shape[axes[0]], disk_shape[axes[1]], disk_shape[axes[2]])
    header = MRCHeader(
        shape=shape,
        volumes=volumes,
        mode=mode,
        axes=axes,
        extended_bytes=extended,
        **_geometry(raw, order, shape, axes),
    )
    if header.nbytes > max_bytes:
        raise InputError(f"{path}: the header declares {header.nbytes} bytes of data, over the limit of {max_bytes}")
    return header


def read_mrc_header(path: str | os.PathLike[str], *, permissive: bool = False, max_bytes: int = MAX_BYTES) -> MRCHeader:
    """Read and check a header; the size of an uncompressed file is compared with what its header declares.

    Parameters
    ----------
    path : path
        An MRC file, plain, ``.gz`` or ``.bz2``.
    permissive : bool
        Accept files without the MRC2014 identifier and machine stamp, as older software wrote them.
    max_bytes : int
        Refuse headers that declare more data than this.

    Raises
    ------
    InputError
        When the file cannot be read, is not MRC, or its header contradicts its size. The message names the file.
    """
    path = Path(path)
    try:
        with _open(path) as stream:
            raw = stream.read(HEADER_BYTES)
        header = _parse_header(path, raw, permissive, max_bytes)
        if path.suffix not in (".gz", ".bz2"):
            _check_size(path, path.stat().st_size, header)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return header


def _check_size(path: Path, size: int, header: MRCHeader) -> None:
    expected = HEADER_BYTES + header.extended_bytes + header.nbytes
    if size < expected:
        raise InputError(f"{path}: truncated, {expected - size} of {expected} bytes are missing")
    if size > expected:
        raise InputError(f"{path}: {size - expected} bytes more than the header declares")


def _check_compressed_size(path: Path, header: MRCHeader) -> None:
    expected = HEADER_BYTES + header.extended_bytes + header.nbytes
    size = 0
    with _open(path) as stream:
        while size <= expected and (block := stream.read(2**20)):
            size += len(block)
    _check_size(path, size, header)


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
        Which volume of a stack (ISPG 401); a stack without it is refused.
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
    header = read_mrc_header(path, permissive=permissive, max_bytes=max_bytes)
    if header.volumes == 1 and 1 in header.shape:
        raise InputError(f"{path}: a two-dimensional image of shape {header.shape}, not a volume")
    if header.volumes > 1 and volume is None:
        raise InputError(f"{path}: a stack of {header.volumes} volumes; write one file per volume or name a volume")
    if volume is not None and not 0 <= volume < header.volumes:
        raise InputError(f"{path}: no volume {volume} in a file of {header.volumes}")
    try:
        if path.suffix in (".gz", ".bz2"):
            _check_compressed_size(path, header)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what mrcfile would warn of has been checked above
            with mrcfile.open(path, permissive=permissive) as file:
                stored = file.data
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if header.volumes > 1:
        stored = stored[volume]
    data = np.array(np.transpose(stored, header.axes), dtype=np.float32, order="C")
    return MRCVolume(data=data, voxel_size=header.voxel_size, origin=header.origin)


def write_mrc(
    path: str | os.PathLike[str],
    data: npt.NDArray[Any],
    *,
    voxel_size: float | tuple[float, float, float],
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
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
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class MRCReader(ImageReader):
    """MONAI reader for MRC volumes, for ``LoadImaged(reader="cryo_monai.MRCReader")`` and ``cryo_monai.LoadVolumed``.

    Arrays come out as `(z, y, x)` float32. The affine in the metadata maps that index order to ``(x, y, z)`` in Å (not
    mm: MONAI compares affines with a tolerance of 1e-3, to which every cryo-ET affine in mm would be zero);
    ``voxel_size`` holds ``(z, y, x)`` in Å, or zeros when the header does not say.

    Parameters
    ----------
    permissive : bool
        Accept files without the MRC2014 identifier and machine stamp.
    """

    def __init__(self, *, permissive: bool = False) -> None:
        super().__init__()
        self.permissive = permissive

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether every file name ends like an MRC file."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else list(filename)
        return all(str(name).lower().endswith(MRC_SUFFIXES) for name in names)

    def read(
        self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any
    ) -> MRCVolume | list[MRCVolume]:
        """Read one file or several; ``kwargs`` go to `read_mrc`."""
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        volumes = [read_mrc(name, permissive=self.permissive, **kwargs) for name in names]
        return volumes[0] if len(volumes) == 1 else volumes

    def get_data(self, img: MRCVolume | list[MRCVolume]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return the array, stacked on a new first axis for several volumes, and its metadata."""
        volumes = img if isinstance(img, list) else [img]
        first = volumes[0]
        array = first.data if len(volumes) == 1 else np.stack([volume.data for volume in volumes])
        affine = np.zeros((4, 4))
        spacing = first.voxel_size or (1.0, 1.0, 1.0)
        for axis in range(3):
            # Index order is (z, y, x), world order (x, y, z).
            affine[2 - axis, axis] = spacing[axis]
            affine[2 - axis, 3] = first.origin[axis]
        affine[3, 3] = 1.0
        metadata = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.asarray(first.data.shape),
            "original_channel_dim": float("nan") if len(volumes) == 1 else 0,
            "voxel_size": np.asarray(first.voxel_size or (0.0, 0.0, 0.0)),
            "space": "RAS",
        }
        return array, metadata
