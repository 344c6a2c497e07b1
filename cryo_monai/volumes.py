"""Any supported volume file or array -> a checked, channel-first tensor `(1, z, y, x)`."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nibabel.filebasedimages
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.montages import MONTAGE_SUFFIXES, check_montage, read_montage
from cryo_monai.mrc import read_mrc
from cryo_monai.mrc_header import MAX_BYTES, MRC_SUFFIXES, NO_LIMIT, read_mrc_header

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NUMPY_SUFFIXES = (".npy",)
VOLUME_SUFFIXES = (*MRC_SUFFIXES, *NIFTI_SUFFIXES, *NUMPY_SUFFIXES, *MONTAGE_SUFFIXES)
NAN_POLICIES = ("error", "mean")

# Images in stacks as RELION names them, counted from 1: FileName::compose and decompose, src/filename.h of 3dem/relion.
_MEMBER = re.compile(r"(\d+)@(.*/)?([^/]+)", re.DOTALL)


@dataclass(frozen=True)
class VolumeFacts:
    """What the header of a volume says: ``shape`` and ``voxel_size`` `(z, y, x)`, the latter in Å, and the data type.

    ``voxel_size`` is None where the header does not say, and for formats other than MRC.
    """

    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float] | None
    data_type: str


def is_volume_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends like a volume that `read_volume` reads."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def volume_path(name: str, folder: Path) -> Path:
    """Return the path of a volume named relative to a folder, with the number of RELION's syntax put to its file.

    ``5@b/stack.mrcs`` in the folder ``a``, which is how RELION writes it, becomes ``a/b/5@stack.mrcs``.
    """
    match = _MEMBER.fullmatch(name)
    if match is None or os.path.exists(folder / name):
        return folder / name
    return folder / (match[2] or "") / f"{match[1]}@{match[3]}"


def stack_member(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Return the file of a volume, and which volume of it is meant: counted from 1, None for the only one.

    Parameters
    ----------
    path : path
        ``folder/000005@stack.mrcs`` is the fifth volume of ``folder/stack.mrcs``, unless there is a file of that name.
    """
    file, number = split_member(os.fspath(path))
    return Path(file), number


def split_member(path: str) -> tuple[str, int | None]:
    """Do as `stack_member` without making a ``Path``, which takes most of its time."""
    folder, name = os.path.split(path)
    match = _MEMBER.fullmatch(name) if "@" in name else None
    if match is None or os.path.exists(path):
        return path, None
    return os.path.join(folder, match[3]), int(match[1])


def volume_identity(path: str | os.PathLike[str], folders: dict[str, str] | None = None) -> str:
    """Return one name for all paths that lead to the same volume, through links or with other leading zeros.

    Parameters
    ----------
    path : path
        Of a volume.
    folders : dict, optional
        Where to keep what is found out about folders, for many volumes of the same ones.
    """
    file, number = split_member(os.fspath(path))
    folders = {} if folders is None else folders
    folder, name = os.path.split(file)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    real = os.path.join(folders[folder], name)
    real = os.path.realpath(real) if os.path.islink(real) else real
    return real + ("" if number is None else f" {number}")


def check_volume_file(path: str | os.PathLike[str], *, permissive: bool = False) -> tuple[int, int, int]:
    """Check that a volume can be read, from its header alone, and return its shape; see `volume_facts`."""
    return volume_facts(path, permissive=permissive).shape


def volume_facts(path: str | os.PathLike[str], *, permissive: bool = False) -> VolumeFacts:
    """Check that a volume can be read, from its header alone, and say what that tells.

    Parameters
    ----------
    path : path
        MRC, NIfTI, NPY or a PNG montage; ``000005@stack.mrcs`` for the fifth volume of a stack.
    permissive : bool
        See `read_mrc`.

    Returns
    -------
    VolumeFacts
        Shape, voxel size and data type.

    Raises
    ------
    InputError
        One line naming the file and the reason.
    """
    path = Path(path)
    file, number = stack_member(path)
    lower = str(file).lower()
    if file.is_dir():
        raise InputError(f"{path}: a folder where a volume file was expected")
    if not is_volume_file(file):
        raise InputError(f"{path}: unknown extension; volumes end in {', '.join(VOLUME_SUFFIXES)}")
    if not file.exists():
        raise InputError(f"{path}: no such file")
    if lower.endswith(MRC_SUFFIXES):
        return _mrc_facts(path, permissive)
    if number is not None:
        raise InputError(f"{path}: only MRC stacks hold several volumes")
    if lower.endswith(MONTAGE_SUFFIXES):
        shape, data_type = check_montage(path)
        return VolumeFacts(shape, None, data_type)
    stored = _open_array(path)
    # NIfTI stores (x, y, z).
    shape = _three_dimensional(path, stored.shape if isinstance(stored, np.ndarray) else stored.shape[::-1])
    return VolumeFacts(shape, None, str(stored.dtype))


def _mrc_facts(path: Path, permissive: bool) -> VolumeFacts:
    file, number = stack_member(path)
    # Of a stack one volume is read: its own size counts, not that of the file.
    header = read_mrc_header(file, permissive=permissive, max_bytes=MAX_BYTES if number is None else NO_LIMIT)
    if 1 in header.shape:
        raise InputError(f"{path}: holds {header.volumes} volume(s) of shape {header.shape}, not one volume")
    if number is None and header.volumes > 1:
        raise InputError(
            f"{path}: holds {header.volumes} volume(s) of shape {header.shape}, not one volume; "
            f"name one as {path.parent / f'000001@{path.name}'}"
        )
    if number is not None and not 1 <= number <= header.volumes:
        raise InputError(f"{path}: no volume {number} in a file of {header.volumes}; they count from 1")
    return VolumeFacts(header.shape, header.voxel_size, header.dtype.name)


def _open_array(path: Path) -> Any:
    """Open a NIfTI file (as nibabel's proxy, in its own order) or an NPY file (mapped) without reading its voxels."""
    try:
        if str(path).lower().endswith(NIFTI_SUFFIXES):
            return nibabel.load(path).dataobj
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise InputError(f"{path}: {reason}") from error


def _three_dimensional(path: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"{path}: shape {tuple(shape)} is not one (z, y, x) volume")
    return shape[0], shape[1], shape[2]


def read_volume(path: str | os.PathLike[str], *, permissive: bool = False) -> npt.NDArray[np.float32]:
    """Read one volume as float32 in ``(z, y, x)`` order.

    Parameters
    ----------
    path : path
        MRC (see `read_mrc`), NIfTI (stored as ``(x, y, z)``, transposed here), NPY (taken as ``(z, y, x)``) or a PNG
        montage (see `read_montage`). ``000005@stack.mrcs`` is the fifth volume of an MRC stack, read alone.
    permissive : bool
        See `read_mrc`.

    Raises
    ------
    InputError
        One line naming the file and the reason.
    """
    path = Path(path)
    shape = check_volume_file(path, permissive=permissive)
    if str(path).lower().endswith(MRC_SUFFIXES):
        file, number = stack_member(path)
        return read_mrc(file, volume=None if number is None else number - 1, permissive=permissive).data
    if str(path).lower().endswith(MONTAGE_SUFFIXES):
        return read_montage(path)
    stored = _open_array(path)
    try:
        array = stored if isinstance(stored, np.ndarray) else np.transpose(np.asanyarray(stored))
        if array.dtype.kind not in "fiub":
            raise InputError(f"{path}: data type {array.dtype} is not a real number")
        return np.array(array, dtype=np.float32, order="C").reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error


def checked_volume(data: npt.NDArray[Any] | Tensor, name: str, *, nan: str = "error") -> Tensor:
    """Return a volume as float32 `(1, z, y, x)` without NaN or infinity.

    Parameters
    ----------
    data : array or tensor
        `(z, y, x)` or `(1, z, y, x)`.
    name : str
        What to call it in messages.
    nan : str
        ``"error"`` refuses voxels that are not finite; ``"mean"`` replaces them by the mean of the others.

    Raises
    ------
    InputError
        When the shape is wrong or, with ``nan="error"``, when voxels are not finite.
    """
    volume = torch.as_tensor(np.asarray(data) if not isinstance(data, Tensor) else data).to(torch.float32)
    if volume.ndim == 3:
        volume = volume.unsqueeze(0)
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise InputError(f"{name}: shape {tuple(volume.shape)} is not (z, y, x) or (1, z, y, x)")
    finite = torch.isfinite(volume)
    bad = volume.numel() - int(finite.sum())
    if bad == volume.numel():
        raise InputError(f"{name}: no voxel is finite")
    if bad and nan == "error":
        raise InputError(f"{name}: {bad} voxels are NaN or infinite (fill them by the mean with --nan mean)")
    if bad:
        volume = torch.where(finite, volume, volume[finite].mean())
    if volume.min() == volume.max():
        warnings.warn(f"{name}: every voxel has the same value", stacklevel=2)
    return volume


class LoadVolumed(MapTransform):
    """Load volumes named by ``keys``: a path, or an array already in memory, becomes a `(1, z, y, x)` float32 tensor.

    One step does for every data source what MONAI's ``LoadImaged``, ``EnsureChannelFirstd`` and ``EnsureTyped`` do for
    medical formats, with one axis order and with checks: voxels that are not finite, wrong shapes and unreadable files
    are refused by name.

    Parameters
    ----------
    keys : str or sequence of str
        Keys of the items to load.
    device : str or torch.device
        Where the tensor is put; ``"cuda"`` keeps a cached data set on the GPU.
    nan : str
        ``"error"`` or ``"mean"``: what to do with voxels that are not finite.
    permissive : bool
        Accept old MRC files without the MRC2014 identifier.
    allow_missing_keys : bool
        Pass items without the key.

    Raises
    ------
    InputError
        One line naming the file and the reason.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        device: str | torch.device = "cpu",
        nan: str = "error",
        permissive: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if nan not in NAN_POLICIES:
            raise InputError(f"nan: {nan!r} is not one of {', '.join(NAN_POLICIES)}")
        self.device = torch.device(device)
        self.nan = nan
        self.permissive = permissive

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load the keyed entries of one item; the other entries are passed on."""
        item = dict(data)
        for key in self.key_iterator(item):
            source = item[key]
            if isinstance(source, (str, os.PathLike)):
                volume = read_volume(source, permissive=self.permissive)
                item[key] = checked_volume(volume, str(source), nan=self.nan).to(self.device)
            else:
                name = str(item.get("path", key))
                item[key] = checked_volume(source, name, nan=self.nan).to(self.device)
        return item
