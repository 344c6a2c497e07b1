"""Layers that change how a backbone computes, not what it computes nor how its tensors are named.

Each is put in place by changing the class of an existing layer, so that parameters and their names stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cryo_monai.errors import InputError


class SmallMapConv3d(nn.Conv3d):
    """A convolution that pads maps smaller than its kernel explicitly when it runs on a CPU.

    oneDNN's bfloat16 kernel for AVX512-BF16 without AMX (seen: v3.13.3, ``jit_bf16:avx512_core_bf16``) reads memory it
    never wrote when it computes weight gradients of such maps with implicit padding: gradients hold whatever was there,
    NaN included. The paper's network meets this in its last stage, whose maps are 2 x 4 x 4. Padding them is exact and
    cheap.
    """

    @torch.jit.unused
    def _convolve(self, input: Tensor, weight: Tensor) -> Tensor:
        small = any(size <= kernel for size, kernel in zip(input.shape[2:], self.kernel_size, strict=True))
        if not small or input.device.type != "cpu" or isinstance(self.padding, str):
            implicit: Tensor = self._conv_forward(input, weight, self.bias)
            return implicit
        depth, height, width = self.padding
        padded = F.pad(input, (width, width, height, height, depth, depth))
        output: Tensor = F.conv3d(padded, weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return output

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, in_channels, D, H, W)` to `(B, out_channels, ...)`."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = self._conv_forward(input, self.weight, self.bias)
            return output
        return self._convolve(input, self.weight)


class ReplicatedChannelConv3d(SmallMapConv3d):
    """A convolution over three channels that may be fed one channel, which then stands for all three.

    Convolving three equal channels equals convolving one with the sum of the kernels over input channels: a third of
    the work, the same parameters, the same output and the same gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, 1, D, H, W)` or `(B, 3, D, H, W)` to `(B, out_channels, ...)`."""
        weight = self.weight
        if input.shape[1] == 1:
            weight = weight.sum(dim=1, keepdim=True)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = self._conv_forward(input, weight, self.bias)
            return output
        return self._convolve(input, weight)


def fold_channel_replication(module: nn.Module, stem: str) -> None:
    """Make a backbone take one channel in place of three equal ones; its parameters and their names stay.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    stem : str
        Name of the convolution that sees the channels; one that sees a single channel is left as it is.

    Raises
    ------
    InputError
        When that layer is not a convolution over one or three channels with zero padding.
    """
    conv = module.get_submodule(stem)
    plain = isinstance(conv, nn.Conv3d) and conv.groups == 1 and conv.padding_mode == "zeros"
    if not plain or conv.in_channels not in (1, 3):
        raise InputError(f"stem {stem}: {conv} is not a plain convolution over one or three channels")
    if conv.in_channels == 3:
        conv.__class__ = ReplicatedChannelConv3d


def pad_small_maps(module: nn.Module) -> None:
    """Make every plain 3-D convolution of a module a `SmallMapConv3d`."""
    for layer in module.modules():
        if type(layer) is nn.Conv3d and layer.padding_mode == "zeros":
            layer.__class__ = SmallMapConv3d


class _Recomputed:
    """Mixed into a block's class: activations inside it are computed again in the backward pass, not kept."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        usual = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return usual(*arguments, **options)
        return checkpoint(usual, *arguments, use_reentrant=False, **options)


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """Trade time for memory (gradient checkpointing, Chen et al. 2016, arXiv 1604.06174) in each of some blocks.

    Gradients stay those of the block; only its input is kept between forward and backward.
    """
    for block in blocks:
        kind = type(block)
        block.__class__ = type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {})
