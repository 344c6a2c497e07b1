"""RB3D, the comparator network of Gupta et al. 2022 for small subtomograms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cryo_monai.errors import InputError


class _Block(nn.Module):
    """Half of the channels by one wide convolution, half by a bottleneck of three."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.wide = nn.Conv3d(width, half, 3, padding=1)
        self.deep = nn.Sequential(
            nn.Conv3d(width, half, 1),
            nn.ReLU(),
            nn.Conv3d(half, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(width, half, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.deep(features), self.wide(features)], dim=1).relu()


class RB3D(nn.Module):
    """Residual-block network for subtomograms of about 32 x 32 x 32.

    Named by Che et al. (2018, arXiv 1707.04885); the layers are those of the public tutorial of Gupta et al. (2022, doi
    10.3389/fphys.2022.957484): one convolution, a pool, four blocks without normalisation that join two branches by
    concatenation, and a pool to 2 x 2 x 2.

    Parameters
    ----------
    clip_size : sequence of int
        Not used: any size is taken.
    width : int
        Channels of every layer; 32 in the publication.
    """

    def __init__(self, clip_size: Sequence[int], *, width: int = 32) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise InputError(f"width: {width} must be even")
        self.conv = nn.Conv3d(1, width, 3, padding=1)
        self.pool = nn.MaxPool3d(2)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(4)))
        self.average = nn.AdaptiveAvgPool3d(2)
        self.num_features = width * 8
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, clips: Tensor) -> Tensor:
        """Map `(B, 1, D, H, W)` to `(B, 8 * width)`."""
        features = self.pool(self.conv(clips).relu())
        pooled: Tensor = self.average(self.blocks(features))
        return pooled.flatten(1)
