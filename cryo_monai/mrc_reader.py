"""MONAI's interface to MRC volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from cryo_monai.mrc import MRCVolume, read_mrc
from cryo_monai.mrc_header import MRC_SUFFIXES


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
