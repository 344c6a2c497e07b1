"""Volumes -> clips on the device: random resized crop, affine and resize as one interpolation.

A random transform draws parameters, its deterministic twin applies them: `RandomClips` draws one matrix per
volume from (seed, epoch, index); `resample_clips`, called by `VideoClassifier.forward`, applies a batch of matrices, or
only resizes without them. Training and inference share every step but the matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cryo_monai.errors import InputError

Floats = npt.NDArray[np.float64]

# Which axes of a volume become depth (time), height and width of a clip: cyclic, so that no choice mirrors anything.
TIME_AXES = {"z": (0, 1, 2), "y": (1, 2, 0), "x": (2, 0, 1)}


@dataclass(frozen=True)
class ClipParameters:
    """What one random clip is made of; the defaults are the whole volume, as it is.

    Attributes
    ----------
    crop_fraction : float
        Edge of the crop box over the edge of the volume, the same for all axes.
    crop_position : tuple of float
        Where the box lies in the room it has, ``(z, y, x)``: 0 at the low end, 1 at the high end.
    rotation_deg : float
        Rotation of the content about the z axis; positive turns +y towards +x.
    translation : tuple of float
        Shift of the content along ``(y, x)``, in units of the crop box's height and width.
    scale : float
        Magnification of the content.
    """

    crop_fraction: float = 1.0
    crop_position: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rotation_deg: float = 0.0
    translation: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def matrix(self, shape: Sequence[int]) -> Floats:
        """Map positions in the clip to positions in a volume of this shape.

        Parameters
        ----------
        shape : sequence of int
            ``(z, y, x)`` voxels of the volume.

        Returns
        -------
        array
            `(3, 3)`. The first two rows map ``(x, y, 1)`` of the clip to x and y of the volume; z goes by itself, from
            the third row ``(factor, offset, 0)``. Coordinates run from -1 to 1 over the outer faces of the voxel grid,
            as ``torch.nn.functional.affine_grid`` wants.
        """
        _, height, width = (float(size) for size in shape)
        angle = np.deg2rad(self.rotation_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        shift_y, shift_x = self.translation
        # Clip -> crop box, undoing shift, rotation and magnification; the rotation is one of voxels, not of the
        # normalised coordinates, so it stays rigid when height and width differ.
        content = np.array([[cos, -sin * height / width], [sin * width / height, cos]]) / self.scale
        shift = content @ np.array([2.0 * shift_x, 2.0 * shift_y])
        # Crop box -> volume.
        room = 1.0 - self.crop_fraction
        centre_x, centre_y, centre_z = room * (2.0 * np.asarray(self.crop_position[::-1]) - 1.0)
        matrix = np.zeros((3, 3))
        matrix[:2, :2] = self.crop_fraction * content
        matrix[:2, 2] = np.array([centre_x, centre_y]) - self.crop_fraction * shift
        matrix[2, :2] = self.crop_fraction / self.scale, centre_z
        return matrix


def check_time_axis(axis: str) -> None:
    """Raise an `InputError` unless there is such an axis."""
    if axis not in TIME_AXES:
        raise InputError(f"time_axis: {axis!r} is not one of {', '.join(TIME_AXES)}")


def put_time_first(volumes: Tensor, axes: list[int]) -> Tensor:
    """Turn volumes `(B, C, z, y, x)` so that one of their axes comes first; see `TIME_AXES`."""
    return volumes.permute(0, 1, axes[0] + 2, axes[1] + 2, axes[2] + 2)


def is_traced() -> bool:
    """Whether torch.export or torch.jit.trace is watching, for which sizes of volumes have to stay free."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def resample_clips(volumes: Tensor, clip_size: list[int], matrices: Tensor | None = None) -> Tensor:
    """Resample volumes to the clip size with one trilinear interpolation.

    Clips are turned about z only, so that trilinear interpolation is exactly linear interpolation along z times
    bilinear interpolation in the plane: one small matrix product and one 2-D resampling of all slices, in a fraction of
    the time that a 3-D grid takes.

    Parameters
    ----------
    volumes : Tensor
        `(B, C, z, y, x)`.
    clip_size : list of int
        ``[depth, height, width]`` of the clips.
    matrices : Tensor, optional
        `(B, 3, 3)`, see `ClipParameters.matrix`. None resizes whole volumes, as MONAI's ``Resized`` in mode trilinear.

    Returns
    -------
    Tensor
        `(B, C, depth, height, width)`. Positions outside a volume take the value of its nearest voxel.
    """
    depth, height, width = clip_size
    if matrices is None:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            same = list(volumes.shape[2:]) == clip_size
        else:
            same = not is_traced() and list(volumes.shape[2:]) == clip_size
        if same:
            return volumes
        return F.interpolate(volumes, size=[depth, height, width], mode="trilinear", align_corners=False)
    batch, channels = volumes.shape[0], volumes.shape[1]
    matrices = matrices.to(volumes)
    slices = _resample_depth(volumes, depth, matrices[:, 2]).flatten(1, 2)
    # slices: (B, C * depth, y, x)
    grid = F.affine_grid(matrices[:, :2], [batch, channels * depth, height, width], align_corners=False)
    clips = F.grid_sample(slices, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return clips.reshape(batch, channels, depth, height, width)


def _resample_depth(volumes: Tensor, depth: int, rows: Tensor) -> Tensor:
    """Interpolate linearly along z: `(B, C, z, y, x)` to `(B, C, depth, y, x)`."""
    size = volumes.shape[2]
    centres = (torch.arange(depth, device=volumes.device, dtype=volumes.dtype) * 2 + 1) / depth - 1
    positions = rows[:, 0:1] * centres + rows[:, 1:2]
    positions = (((positions + 1) * size - 1) / 2).clamp(0, size - 1)
    voxels = torch.arange(size, device=volumes.device, dtype=volumes.dtype)
    weights = (1 - (positions[:, :, None] - voxels).abs()).clamp(min=0)
    # weights: (B, depth, z), two neighbours in each row
    mixed = torch.matmul(weights[:, None], volumes.flatten(3))
    return mixed.reshape(volumes.shape[0], volumes.shape[1], depth, volumes.shape[3], volumes.shape[4])


class RandomClips:
    """Random resized crop and random affine of the paper, as a ``prepare_batch`` of MONAI's ``SupervisedTrainer``.

    The parameters of a volume depend on (seed, epoch, index) alone: not on the batch, its neighbours, the number of
    workers or the global random state. The epoch is set by `EpochStart`.

    Parameters
    ----------
    crop_prob : float
        Probability of a random resized crop.
    crop_scale : sequence of float
        Smallest and largest edge of the crop box, as fractions of the volume's edges.
    affine_prob : float
        Probability of a random affine about the time axis.
    rotate_deg : float
        Rotation from ``-rotate_deg`` to ``rotate_deg``.
    translate : float
        Shift along y and x up to this fraction of height and width, either way.
    scale : float
        Magnification from ``1 - scale`` to ``1 + scale``.
    time_axis : str
        The network's: clips are turned about it, and shifted across it.
    seed : int
        Same seed, same clips.

    Raises
    ------
    InputError
        When a probability or a range is impossible.
    """

    def __init__(
        self,
        *,
        crop_prob: float = 0.5,
        crop_scale: Sequence[float] = (0.5, 1.0),
        affine_prob: float = 0.5,
        rotate_deg: float = 45.0,
        translate: float = 0.1,
        scale: float = 0.1,
        time_axis: str = "z",
        seed: int = 0,
    ) -> None:
        check_time_axis(time_axis)
        if not (0 <= crop_prob <= 1 and 0 <= affine_prob <= 1):
            raise InputError(f"crop_prob {crop_prob} and affine_prob {affine_prob} must lie between 0 and 1")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise InputError(f"crop_scale {list(crop_scale)} must be two increasing fractions in (0, 1]")
        if not (rotate_deg >= 0 and translate >= 0 and 0 <= scale < 1):
            raise InputError(f"rotate_deg {rotate_deg}, translate {translate} and scale {scale} must not be negative")
        self.crop_prob = crop_prob
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        self.affine_prob = affine_prob
        self.rotate_deg = rotate_deg
        self.translate = translate
        self.scale = scale
        self.time_axis = time_axis
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other clips from now on."""
        self.epoch = epoch

    def draw(self, index: int) -> ClipParameters:
        """Draw the parameters of one volume in the current epoch."""
        rng = np.random.default_rng([self.seed, self.epoch, index])
        # All numbers are drawn every time, so that one option does not shift the draws of another.
        crop, affine = rng.random(2)
        fraction = rng.uniform(*self.crop_scale)
        position = rng.random(3)
        rotation = rng.uniform(-self.rotate_deg, self.rotate_deg)
        shift_y, shift_x = rng.uniform(-self.translate, self.translate, size=2)
        magnification = rng.uniform(1 - self.scale, 1 + self.scale)
        chosen: dict[str, Any] = {}
        if crop < self.crop_prob:
            chosen |= {"crop_fraction": fraction, "crop_position": tuple(position)}
        if affine < self.affine_prob:
            chosen |= {"rotation_deg": rotation, "translation": (shift_y, shift_x), "scale": magnification}
        return ClipParameters(**chosen)

    def matrices(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Draw a batch: `(B, 3, 3)` for volumes of this ``(z, y, x)`` shape."""
        shape = [shape[axis] for axis in TIME_AXES[self.time_axis]]
        return torch.as_tensor(np.stack([self.draw(int(i)).matrix(shape) for i in indices]), dtype=torch.float32)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Move a batch to the device and draw its matrices.

        Parameters
        ----------
        batchdata : mapping
            ``image`` `(B, 1, z, y, x)`, ``label`` `(B,)` and ``index`` `(B,)`.
        device : torch.device
            Where the network is.
        non_blocking : bool
            Passed to ``Tensor.to``, as ``kwargs`` are.

        Returns
        -------
        tuple
            Volumes, labels, and the further arguments of `VideoClassifier.forward`.
        """
        volumes = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
        labels = batchdata["label"].to(device=device, non_blocking=non_blocking, **kwargs)
        matrices = self.matrices(batchdata["index"].tolist(), volumes.shape[2:])
        return volumes, labels, (), {"matrices": matrices.to(device=device, non_blocking=non_blocking)}
