"""Position tables of transformers, resampled when a checkpoint's clip differs from the network's.

All tables are taken as samples at the centres of equal cells that tile the field of view, and interpolated linearly
along each axis; interpolation to the same size is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cryo_monai.errors import InputError

Grid = tuple[int, ...]


def resample_grid(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resample a table over a grid of one to three axes.

    Parameters
    ----------
    table : Tensor
        `(n, features)`, where n is the product of ``old``, last axis fastest.
    old, new : sequence of int
        Cells along each axis.

    Returns
    -------
    Tensor
        `(m, features)`, where m is the product of ``new``.

    Raises
    ------
    InputError
        When the table does not have that many entries.
    """
    cells = 1
    for size in old:
        cells *= size
    if table.dim() != 2 or table.shape[0] != cells:
        raise InputError(f"a position table of shape {list(table.shape)} does not cover a grid of {list(old)}")
    if list(old) == list(new):
        return table
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(old)]
    grid = table.T.reshape(1, table.shape[1], *old).float()
    resampled = F.interpolate(grid, size=list(new), mode=mode, align_corners=False)
    return resampled.flatten(2)[0].T.to(table.dtype).contiguous()


def resample_table(key: str, table: Tensor, shape: Sequence[int], old: Grid, new: Grid) -> Tensor | None:
    """Resample a position tensor of PyTorchVideo's MViT, torchvision's MViT or ViViT, recognised by its name.

    Parameters
    ----------
    key : str
        Its name in the checkpoint.
    table : Tensor
        As the checkpoint has it.
    shape : sequence of int
        As the network has it.
    old, new : tuple of int
        Tokens ``(t, h, w)`` of the checkpoint's clip and of the network's.

    Returns
    -------
    Tensor or None
        Of the network's shape; None when the name is no position table.
    """
    name = key.rsplit(".", 1)[-1]
    if name in ("pos_embed_spatial", "spatial_pos"):
        flat = resample_grid(table.reshape(-1, table.shape[-1]), old[1:], new[1:])
    elif name in ("pos_embed_temporal", "temporal_pos"):
        flat = resample_grid(table.reshape(-1, table.shape[-1]), old[:1], new[:1])
    elif name in ("rel_pos_t", "rel_pos_h", "rel_pos_w"):
        # Entry i of 2 S - 1 is the offset i - (S - 1) between query and key; the middle stays the middle.
        flat = resample_grid(table, table.shape[:1], list(shape[:1]))
    elif name == "position_embeddings":
        flat = table.new_empty(shape[1:])
        flat[:1] = table[0, :1]  # the class token's
        flat[1:] = resample_grid(table[0, 1:], old, new)
    else:
        return None
    return flat.reshape(tuple(shape))
