"""Video backbones by name: feature extractors `(B, 3, D, H, W)` -> `(B, features)`.

To add one, write its builder if its family has none, and one line in `BACKBONES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryo_monai.errors import InputError


@dataclass(frozen=True)
class Backbone:
    """How to build a backbone, and where its parts are.

    Attributes
    ----------
    build : callable
        Makes the module from ``arguments`` and the user's options.
    arguments : dict
        What tells this backbone from its family.
    stem : str
        Name of the convolution that sees the three channels.
    heads : tuple of str
        Prefixes of checkpoint keys that belong to the classifier the backbone was trained with.
    """

    build: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)
    stem: str = "conv1"
    heads: tuple[str, ...] = ("fc.",)


class ShortcutA(nn.Module):
    """Parameter-free residual shortcut: subsample, then append zero channels (He et al. 2016, option A).

    Parameters
    ----------
    stride : int
        Subsampling along each axis.
    channels : int
        Number of channels that come out.
    detach : bool
        Stop the gradient, as the original code of the Kinetics checkpoints does.
    """

    def __init__(self, stride: int, channels: int, *, detach: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels
        self.detach = detach

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, C, D, H, W)` to `(B, channels, D / stride, H / stride, W / stride)`."""
        if self.detach:
            features = features.detach()
        step = self.stride
        smaller = features[:, :, ::step, ::step, ::step]
        return F.pad(smaller, [0, 0, 0, 0, 0, 0, 0, self.channels - features.shape[1]])


def hara_resnet(
    *,
    layers: Sequence[int],
    block: str = "basic",
    shortcut: str = "A",
    detach_shortcut: bool = False,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> nn.Module:
    """3D-ResNet of Hara et al. (2018, arXiv 1711.09577): MONAI's network with the stem of their Kinetics checkpoints.

    Parameters
    ----------
    layers : sequence of int
        Residual blocks per stage.
    block : str
        ``"basic"`` or ``"bottleneck"``.
    shortcut : str
        ``"A"`` (their first checkpoints) or ``"B"`` (the later ones).
    detach_shortcut : bool
        Stop the gradient in shortcut A, for parity with their code, MedicalNet and MONAI.
    widths : sequence of int
        Channels of the four stages; the checkpoints have the default.
    """
    from monai.networks.nets import ResNet

    if shortcut not in ("A", "B"):
        raise InputError(f"shortcut: {shortcut!r} is not 'A' or 'B'")
    network = ResNet(
        block=block,
        layers=list(layers),
        block_inplanes=list(widths),
        spatial_dims=3,
        n_input_channels=3,
        conv1_t_size=7,
        conv1_t_stride=(1, 2, 2),
        shortcut_type=shortcut,
        bias_downsample=False,
        feed_forward=False,
    )
    if shortcut == "A":
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            first = stage[0]
            if first.downsample is not None:
                options = first.downsample.keywords
                first.downsample = ShortcutA(options["stride"], options["planes"], detach=detach_shortcut)
    module: nn.Module = network
    module.num_features = network.layer4[-1].bn2.num_features * (4 if block == "bottleneck" else 1)
    return module


class _PooledFeatures(nn.Module):
    """Average the last feature map over space and time; stands where a PyTorchVideo network has its head."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3, 4))


def pytorchvideo_resnet(*, depth: int, stem_kernel: Sequence[int], features: int) -> nn.Module:
    """Slow-pathway ResNet of PyTorchVideo (Feichtenhofer et al. 2019, arXiv 1812.03982) with a pool for any clip size.

    Parameters
    ----------
    depth : int
        Layers, 50 or 101.
    stem_kernel : sequence of int
        Kernel of the stem.
    features : int
        Channels of the last stage.
    """
    try:
        from pytorchvideo.models.resnet import create_resnet
    except ImportError as error:
        raise InputError(f"slow_r50 needs PyTorchVideo ({error}): pip install 'cryo-monai[video]'") from error
    network: nn.Module = create_resnet(model_depth=depth, stem_conv_kernel_size=tuple(stem_kernel))
    network.blocks[-1] = _PooledFeatures()  # type: ignore[assignment,operator]
    network.num_features = features  # type: ignore[assignment]
    return network


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(hara_resnet, {"layers": (2, 2, 2, 2)}),
    "resnet34": Backbone(hara_resnet, {"layers": (3, 4, 6, 3)}),
    "slow_r50": Backbone(
        pytorchvideo_resnet,
        {"depth": 50, "stem_kernel": (1, 7, 7), "features": 2048},
        stem="blocks.0.conv",
        heads=("blocks.5.",),
    ),
}


def look_up_backbone(name: str) -> Backbone:
    """Return the record of a backbone.

    Raises
    ------
    InputError
        Naming the known ones, and the nearest when one is near.
    """
    if name not in BACKBONES:
        from difflib import get_close_matches

        near = get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"backbone: {name!r} is not one of {', '.join(BACKBONES)}{hint}")
    return BACKBONES[name]


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
    """A convolution over three channels, fed one channel that stands for all three.

    Convolving three equal channels equals convolving one with the sum of the kernels over input channels: a third of
    the work, the same parameters, the same output and the same gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, 1, D, H, W)` to `(B, out_channels, ...)`."""
        weight = self.weight.sum(dim=1, keepdim=True)
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
        Name of the convolution that sees the three channels.

    Raises
    ------
    InputError
        When that layer is not a convolution over three channels with zero padding.
    """
    conv = module.get_submodule(stem)
    if not isinstance(conv, nn.Conv3d) or conv.in_channels != 3 or conv.groups != 1 or conv.padding_mode != "zeros":
        raise InputError(f"stem {stem}: {conv} is not a plain convolution over three channels")
    conv.__class__ = ReplicatedChannelConv3d


def build_backbone(name: str, **options: Any) -> tuple[nn.Module, int]:
    """Build a backbone that takes one channel `(B, 1, D, H, W)` in place of three equal ones.

    Parameters
    ----------
    name : str
        A key of `BACKBONES`.
    **options
        Of the family's builder, such as ``widths`` or ``shortcut`` of `hara_resnet`.

    Returns
    -------
    tuple
        The module and its number of features.

    Raises
    ------
    InputError
        For unknown names or options.
    """
    record = look_up_backbone(name)
    try:
        module = record.build(**{**record.arguments, **options})
    except TypeError as error:
        raise InputError(f"backbone {name}: {error}") from error
    for layer in module.modules():
        if type(layer) is nn.Conv3d and layer.padding_mode == "zeros":
            layer.__class__ = SmallMapConv3d
    fold_channel_replication(module, record.stem)
    return module, int(module.num_features)  # type: ignore[arg-type]
