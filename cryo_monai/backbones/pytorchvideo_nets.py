"""Networks of PyTorchVideo's model zoo, with pools and positions for any clip size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from cryo_monai.backbones.layers import recompute_activations
from cryo_monai.errors import InputError


class PooledFeatures(nn.Module):
    """Average the last feature map over space and time; stands where a network has its head."""

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, C, D, H, W)` to `(B, C)`."""
        return features.mean(dim=(2, 3, 4))


def _hub(name: str) -> Callable[..., Any]:
    """Return the builder of a network in PyTorchVideo's hub."""
    try:
        from pytorchvideo.models import hub
    except ImportError as error:
        raise InputError(f"{name} needs PyTorchVideo ({error}): pip install 'cryo-monai[video]'") from error
    builder: Callable[..., Any] = getattr(hub, name)
    return builder


def pytorchvideo_cnn(clip_size: Sequence[int], *, name: str) -> nn.Module:
    """Build a convolutional network of PyTorchVideo's hub; its head becomes an average over the whole map.

    Parameters
    ----------
    clip_size : sequence of int
        Not used: any size is taken.
    name : str
        In ``pytorchvideo.models.hub``.
    """
    network: nn.Module = _hub(name)()
    blocks: Any = network.blocks
    head = blocks[-1]
    network.num_features = head.proj.in_features
    if hasattr(head.pool, "pre_conv"):
        # X3D: convolutions on both sides of the pool were trained with the network; only the last layer classifies.
        head.pool.pool = nn.AdaptiveAvgPool3d(1)
        head.dropout = head.proj = head.activation = None
    else:
        blocks[-1] = PooledFeatures()
    return network


def pytorchvideo_mvit(clip_size: Sequence[int], *, name: str, gradient_checkpointing: bool = False) -> nn.Module:
    """Multiscale vision transformer (Fan et al. 2021, arXiv 2104.11227) of PyTorchVideo's hub.

    Parameters
    ----------
    clip_size : sequence of int
        Multiples of 2, 4 and 4.
    name : str
        In ``pytorchvideo.models.hub``.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.
    """
    depth, height, width = clip_size
    network: Any = _hub(name)(spatial_size=(height, width), temporal_size=depth)
    network.num_features = network.head.proj.in_features
    network.head.dropout, network.head.proj, network.head.activation = None, nn.Identity(), None
    if gradient_checkpointing:
        recompute_activations(network.blocks)
    module: nn.Module = network
    return module
