"""Video networks of torchvision, with pools, positions and windows for any clip size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cryo_monai.backbones.layers import recompute_activations


class _S3DPool(nn.Module):
    """S3D's pool: a window of two frames and the whole plane, moved over time.

    With the average that follows it is the fixed pool of torchvision at its native 7 x 7 map, and works at any other.
    """

    def forward(self, features: Tensor) -> Tensor:
        depth, height, width = features.shape[2:]
        return F.avg_pool3d(features, (min(depth, 2), height, width), stride=1)


def torchvision_cnn(clip_size: Sequence[int], *, name: str) -> nn.Module:
    """Build a convolutional video network of torchvision without its classifier.

    Parameters
    ----------
    clip_size : sequence of int
        Not used: any size is taken.
    name : str
        In ``torchvision.models.video``.
    """
    from torchvision.models import video

    network: Any = getattr(video, name)()
    if name == "s3d":
        network.num_features = network.classifier[1].in_channels
        network.avgpool, network.classifier = _S3DPool(), nn.Identity()
    else:
        network.num_features, network.fc = network.fc.in_features, nn.Identity()
    module: nn.Module = network
    return module


def torchvision_mvit(clip_size: Sequence[int], *, name: str, gradient_checkpointing: bool = False) -> nn.Module:
    """Multiscale vision transformer, second version (Li et al. 2022, arXiv 2112.01526), of torchvision.

    Parameters
    ----------
    clip_size : sequence of int
        Multiples of 2, 4 and 4.
    name : str
        In ``torchvision.models.video``.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.
    """
    from torchvision.models import video

    network: Any = getattr(video, name)()
    network.num_features, network.head = network.head[-1].in_features, nn.Identity()
    grid = [size // step for size, step in zip(clip_size, network.conv_proj.stride, strict=True)]
    network.pos_encoding.temporal_size, network.pos_encoding.spatial_size = grid[0], tuple(grid[1:])
    for block in network.blocks:
        grid = _resize_offsets(block.attn, grid)
    if gradient_checkpointing:
        recompute_activations(network.blocks)
    module: nn.Module = network
    return module


def _resize_offsets(attention: Any, grid: Sequence[int]) -> list[int]:
    """Give an attention of MViT tables of relative positions for a grid of tokens; return the grid that leaves it."""
    queries = _pooled(attention.pool_q, grid)
    for axis, query, key in zip("thw", queries, _pooled(attention.pool_k, grid), strict=True):
        name = f"rel_pos_{axis}"
        table = getattr(attention, name)
        offsets = 2 * max(query, key) - 1
        setattr(
            attention, name, nn.Parameter(nn.init.trunc_normal_(table.new_empty(offsets, table.shape[1]), std=0.02))
        )
    return queries


def _pooled(pool: Any, grid: Sequence[int]) -> list[int]:
    """Tokens along each axis after a convolution that pads by half its kernel, or none."""
    if pool is None:
        return list(grid)
    return [(size - 1) // step + 1 for size, step in zip(grid, pool.pool.stride, strict=True)]


def torchvision_swin(clip_size: Sequence[int], *, name: str, gradient_checkpointing: bool = False) -> nn.Module:
    """Video Swin transformer (Liu et al. 2022, arXiv 2106.13230) of torchvision, right at maps smaller than its window.

    Where a map is smaller than the window, torchvision (0.29) shrinks the window but looks its biases up as if the
    first tokens of the full window were those of the shrunken one, which pairs offsets with biases of other offsets.
    Here the biases are those of the offsets; at the native size the two agree.

    Parameters
    ----------
    clip_size : sequence of int
        Not used: any size is taken.
    name : str
        In ``torchvision.models.video``.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.
    """
    from torchvision.models import video
    from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

    class WindowAttention(ShiftedWindowAttention3d):
        def get_relative_position_bias(self, window_size: list[int]) -> Tensor:
            return window_biases(
                self.relative_position_bias_table, self.relative_position_index, self.window_size, window_size
            )

    network: Any = getattr(video, name)()
    network.head = nn.Identity()
    for layer in network.modules():
        if isinstance(layer, ShiftedWindowAttention3d):
            layer.__class__ = WindowAttention
    if gradient_checkpointing:
        recompute_activations(block for stage in network.features[::2] for block in stage)
    module: nn.Module = network
    return module


def window_biases(table: Tensor, index: Tensor, full: Sequence[int], window: Sequence[int]) -> Tensor:
    """Look up the position biases of a window that may be smaller than the one they were learned for.

    Parameters
    ----------
    table : Tensor
        `(offsets, heads)`.
    index : Tensor
        `(n, n)`, the entry of the table for each pair of tokens of the full window, last axis fastest.
    full, window : sequence of int
        Tokens of the full window and of the one at hand, ``(t, h, w)``.

    Returns
    -------
    Tensor
        `(1, heads, m, m)`, where m is the product of ``window``.
    """
    depth, height, width = window
    pairs = index.view(*full, *full)[:depth, :height, :width, :depth, :height, :width]
    tokens = depth * height * width
    return table[pairs.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
