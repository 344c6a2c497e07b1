"""MRC volumes: a reader that checks the header before it allocates anything, a writer, and a MONAI reader."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from cryo_monai.errors import InputError
from cryo_monai.mrc_header import MAX_BYTES, MRC_SUFFIXES, check_compressed_size, read_mrc_header


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
            check_compressed_size(path, header)
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
