"""The MRC header, checked before anything is allocated."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

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
NO_LIMIT = 2**62  # for files that are never read whole
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
    byte_order : str
        ``"<"`` or ``">"``, as numpy's data types have it.
    """

    shape: tuple[int, int, int]
    volumes: int
    mode: int
    axes: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    origin: tuple[float, float, float]
    extended_bytes: int
    byte_order: Literal["<", ">"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type on disk."""
        return MODES[self.mode].newbyteorder(self.byte_order)

    @property
    def disk_shape(self) -> tuple[int, int, int]:
        """Sections, rows and columns of one volume, before undoing axis permutation."""
        sizes = dict(zip(self.axes, self.shape, strict=True))
        return sizes[0], sizes[1], sizes[2]

    @property
    def nbytes(self) -> int:
        """Number of data bytes that the header declares."""
        size_z, size_y, size_x = self.shape
        return size_z * size_y * size_x * self.volumes * MODES[self.mode].itemsize


def open_mrc(path: Path) -> BinaryIO | gzip.GzipFile | bz2.BZ2File:
    """Open an MRC file for reading bytes, decompressed."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    return path.open("rb")


def _byte_order(path: Path, raw: bytes, permissive: bool) -> Literal["<", ">"]:
    stamp, map_id = raw[212:214], raw[208:212]
    if map_id[:3] != b"MAP" and not permissive:
        raise InputError(
            f"{path}: not an MRC2014 file (no 'MAP' identifier in the header; "
            "for files of older software: --permissive True, or permissive=True in Python)"
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
        byte_order=order,
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
        with open_mrc(path) as stream:
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


def check_compressed_size(path: Path, header: MRCHeader) -> None:
    """Compare the size of a compressed file, decompressed in small blocks, with what its header declares."""
    expected = HEADER_BYTES + header.extended_bytes + header.nbytes
    size = 0
    with open_mrc(path) as stream:
        while size <= expected and (block := stream.read(2**20)):
            size += len(block)
    _check_size(path, size, header)
