"""Where the cells of a feature map lie in the clip, and the map on another grid.

The usual upsampling of class activation maps takes cells to tile the clip. Those of patch transformers do. But a
convolution of stride s that keeps its borders by padding puts cell i at voxel s * i, and each further one goes on from
that: in ``layer3`` of 3D-ResNet-34, stride 16 in the plane, tiling would shift a map by 7.5 of 128 pixels. Here places
are followed from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Place = tuple[float, float, float]


@dataclass(frozen=True)
class Cells:
    """Cell i along an axis of a map is centred at voxel ``first + i * step`` of the clip; axes are time, height, width.

    Attributes
    ----------
    first, step : tuple of float
        In voxels of the clip, whose first voxel is centred at 0.
    """

    first: Place = (0.0, 0.0, 0.0)
    step: Place = (1.0, 1.0, 1.0)

    def after(self, kernel: Place, stride: Place, padding: Place, dilation: Place) -> Cells:
        """Cells of what a windowed layer makes of a map with these cells."""
        axes = range(3)
        shift = [dilation[a] * (kernel[a] - 1) / 2 - padding[a] for a in axes]
        first = [self.first[a] + self.step[a] * shift[a] for a in axes]
        step = [self.step[a] * stride[a] for a in axes]
        return Cells((first[0], first[1], first[2]), (step[0], step[1], step[2]))


@contextmanager
def follow_cells(backbone: nn.Module, clip_size: Sequence[int]) -> Iterator[dict[Shape, Cells]]:
    """Note the cells of every map that a backbone makes while this is entered.

    A layer that keeps a map's size keeps its cells where they are, and branches that lead to the same size must agree
    on places if they are to be added; so the size tells the cells.

    Parameters
    ----------
    backbone : nn.Module
        Convolutions and pools are followed, and the merging of patches in torchvision's Swin transformers.
    clip_size : sequence of int
        ``(depth, height, width)`` of what it will see.

    Yields
    ------
    dict
        From ``(t, h, w)`` of a map to its `Cells`, in the order in which they came up; filled by forward passes. A
        size that no followed layer led to is not in it.
    """
    known: dict[Shape, Cells] = {(clip_size[0], clip_size[1], clip_size[2]): Cells()}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        channels_last = _merges_patches(module)
        before, after = _spatial(inputs[0], channels_last), _spatial(output, channels_last)
        if before is None or after is None or after in known:
            return
        window = _window(module, before, after)
        cells = _cells_of(before, window[0], known)
        if cells is not None:
            known[after] = cells.after(*window)

    handles = [m.register_forward_hook(note) for m in backbone.modules() if _is_windowed(m)]
    try:
        yield known
    finally:
        for handle in handles:
            handle.remove()


def resample_cells(maps: Tensor, cells: Cells, clip_size: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Interpolate maps linearly to a grid of any size over the clip's field of view.

    Parameters
    ----------
    maps : Tensor
        `(B, t, h, w)`.
    cells : Cells
        Where its cells are.
    clip_size : sequence of int
        ``(depth, height, width)``.
    shape : sequence of int
        Voxels of the grid, along the clip's axes; it and the clip cover the same field, face to face.

    Returns
    -------
    Tensor
        `(B, *shape)`. Beyond the first and the last cell their values go on.
    """
    for axis in range(3):
        size, count = shape[axis], maps.shape[axis + 1]
        voxels = (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5) / size * clip_size[axis] - 0.5
        places = ((voxels - cells.first[axis]) / cells.step[axis]).clamp(0, count - 1)
        weights = (1 - (places[:, None] - torch.arange(count, device=maps.device)).abs()).clamp(min=0)
        # weights: (size, count), two neighbours in each row
        maps = torch.movedim(torch.movedim(maps, axis + 1, -1) @ weights.T, -1, axis + 1)
    return maps


def _merges_patches(module: nn.Module) -> bool:
    return type(module).__name__ == "PatchMerging"


def _is_windowed(module: nn.Module) -> bool:
    kinds = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
    return isinstance(module, kinds) or _merges_patches(module)


def _spatial(tensor: Any, channels_last: bool) -> Shape | None:
    if not isinstance(tensor, Tensor) or tensor.ndim != 5:
        return None
    depth, height, width = tensor.shape[1:4] if channels_last else tensor.shape[2:]
    return depth, height, width


def _cells_of(shape: Shape, kernel: Place, known: dict[Shape, Cells]) -> Cells | None:
    """Look up a map that may have been padded at its far ends to fill a window, which moves no cell."""
    if shape in known:
        return known[shape]
    padded = [o for o in known if all(0 <= s - n < k for s, n, k in zip(shape, o, kernel, strict=True))]
    return known[max(padded, key=sum)] if padded else None


def _window(module: Any, before: Shape, after: Shape) -> tuple[Place, Place, Place, Place]:
    """Kernel, stride, padding and dilation of a layer."""
    if _merges_patches(module):
        return (1.0, 2.0, 2.0), (1.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if isinstance(module, (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)):
        share = _three([b / a for b, a in zip(before, after, strict=True)])
        return share, share, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    kernel, dilation = _three(module.kernel_size), _three(getattr(module, "dilation", 1))
    padding = module.padding
    if isinstance(padding, str):
        # "same" pads by half the reach of the kernel; "valid" not at all.
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    return kernel, _three(module.stride), _three(padding), dilation


def _three(value: Any) -> Place:
    values = [value] * 3 if isinstance(value, (int, float)) else list(value)
    return float(values[0]), float(values[1]), float(values[2])
