"""Any supported volume file or array -> a checked, channel-first tensor `(1, z, y, x)`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
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
from cryo_monai.mrc import read_mrc
from cryo_monai.mrc_header import MRC_SUFFIXES, read_mrc_header

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NUMPY_SUFFIXES = (".npy",)
VOLUME_SUFFIXES = (*MRC_SUFFIXES, *NIFTI_SUFFIXES, *NUMPY_SUFFIXES)
NAN_POLICIES = ("error", "mean")


def is_volume_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends like a volume that `read_volume` reads."""
    return str(path).lower().endswith(VOLUME_SUFFIXES)


def check_volume_file(path: str | os.PathLike[str], *, permissive: bool = False) -> tuple[int, int, int]:
    """Check that a volume can be read, from its header alone.

    Parameters
    ----------
    path : path
        MRC, NIfTI or NPY.
    permissive : bool
        See `read_mrc`.

    Returns
    -------
    tuple of int
        Shape ``(z, y, x)``.

    Raises
    ------
    InputError
        One line naming the file and the reason.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder where a volume file was expected")
    if not is_volume_file(path):
        raise InputError(f"{path}: unknown extension; volumes end in {', '.join(VOLUME_SUFFIXES)}")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if str(path).lower().endswith(MRC_SUFFIXES):
        header = read_mrc_header(path, permissive=permissive)
        if header.volumes > 1 or 1 in header.shape:
            raise InputError(f"{path}: holds {header.volumes} volume(s) of shape {header.shape}, not one volume")
        return header.shape
    stored = _open_array(path)
    # NIfTI stores (x, y, z).
    return _three_dimensional(path, stored.shape if isinstance(stored, np.ndarray) else stored.shape[::-1])


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
        MRC (see `read_mrc`), NIfTI (stored as ``(x, y, z)``, transposed here) or NPY (taken as ``(z, y, x)``).
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
        return read_mrc(path, permissive=permissive).data
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
