"""3D-ResNets in the layout of Hara et al., MONAI and MedicalNet, which share key names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cryo_monai.errors import InputError


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


def resnet3d(
    clip_size: Sequence[int],
    *,
    layers: Sequence[int],
    block: str = "basic",
    shortcut: str = "B",
    detach_shortcut: bool = False,
    widths: Sequence[int] = (64, 128, 256, 512),
    in_channels: int = 3,
    stem_stride: Sequence[int] = (1, 2, 2),
    shortcut_bias: bool = False,
    dilations: Sequence[int] = (1, 1, 1, 1),
) -> nn.Module:
    """3D-ResNet of Hara et al. (2018, arXiv 1711.09577) and its relatives, built on MONAI's network.

    Parameters
    ----------
    clip_size : sequence of int
        Not used: any size is taken.
    layers : sequence of int
        Residual blocks per stage.
    block : str
        ``"basic"`` or ``"bottleneck"``.
    shortcut : str
        ``"A"`` (Hara's first checkpoints of 18 and 34 layers, MedicalNet's) or ``"B"`` (all others).
    detach_shortcut : bool
        Stop the gradient in shortcut A, for parity with Hara's code, MedicalNet and MONAI.
    widths : sequence of int
        Channels of the four stages; the checkpoints have the default.
    in_channels : int
        3 for video, 1 for networks made for volumes.
    stem_stride : sequence of int
        ``(1, 2, 2)`` in Hara's networks, 2 in MedicalNet, 1 by MONAI's default.
    shortcut_bias : bool
        Biases in the convolutions of shortcut B, as MONAI has by default.
    dilations : sequence of int
        Per stage; a dilated stage does not subsample (MedicalNet: 1, 1, 2, 4).
    """
    from monai.networks.nets import ResNet

    if shortcut not in ("A", "B"):
        raise InputError(f"shortcut: {shortcut!r} is not 'A' or 'B'")
    network = ResNet(
        block=block,
        layers=list(layers),
        block_inplanes=list(widths),
        spatial_dims=3,
        n_input_channels=in_channels,
        conv1_t_size=7,
        conv1_t_stride=tuple(stem_stride),
        shortcut_type=shortcut,
        bias_downsample=shortcut_bias,
        feed_forward=False,
    )
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    for stage, dilation in zip(stages, dilations, strict=True):
        if shortcut == "A" and stage[0].downsample is not None:
            options = stage[0].downsample.keywords
            stage[0].downsample = ShortcutA(options["stride"], options["planes"], detach=detach_shortcut)
        if dilation != 1:
            _dilate(stage, dilation)
    module: nn.Module = network
    module.num_features = network.layer4[-1].bn2.num_features * (4 if block == "bottleneck" else 1)
    return module


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Replace a stage's subsampling by dilation; kernels keep their shapes."""
    for layer in stage.modules():
        if isinstance(layer, ShortcutA):
            layer.stride = 1
        elif isinstance(layer, nn.Conv3d):
            layer.stride = (1, 1, 1)
            if layer.kernel_size == (3, 3, 3):
                layer.dilation = layer.padding = (dilation, dilation, dilation)
