"""Video backbones by name: feature extractors `(B, 1, D, H, W)` -> `(B, features)`.

To add one, write its builder if its family has none, and one line in `BACKBONES`; docs/backbones.md says what else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cryo_monai.backbones.layers import fold_channel_replication, pad_small_maps
from cryo_monai.backbones.pytorchvideo_nets import pytorchvideo_cnn, pytorchvideo_mvit
from cryo_monai.backbones.rb3d import RB3D
from cryo_monai.backbones.resnets import resnet3d
from cryo_monai.backbones.torchvision_nets import torchvision_cnn, torchvision_mvit, torchvision_swin
from cryo_monai.backbones.vivit import ViViT
from cryo_monai.errors import InputError

Clip = tuple[int, int, int]
Stages = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Backbone:
    """How to build a backbone, and where its parts are.

    Attributes
    ----------
    build : callable
        Makes the module from the clip size, ``arguments`` and the user's options.
    arguments : dict
        What tells this backbone from its family.
    native : tuple of int
        Clip ``(D, H, W)`` that its public weights were trained on.
    stem : str
        Name of the convolution that sees the channels.
    stages : tuple of tuple of str
        Prefixes of parameter names, from the stem (first) to the last stage; together they cover every parameter.
    heads : tuple of str
        Prefixes of checkpoint keys that belong to the classifier the backbone was trained with.
    tokens : tuple of int, optional
        For networks whose positions depend on the clip size: voxels per token along each axis, of which the clip size
        must be a multiple.
    renamed : tuple of tuple of str
        Parts of checkpoint keys and what the module calls them, applied in order to keys that the module does not have.
    """

    build: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)
    native: Clip = (16, 112, 112)
    stem: str = "conv1"
    stages: Stages = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))
    heads: tuple[str, ...] = ("fc.",)
    tokens: Clip | None = None
    renamed: tuple[tuple[str, str], ...] = ()

    def grid(self, clip_size: Sequence[int]) -> tuple[int, ...]:
        """Tokens ``(t, h, w)`` that a clip is cut into; empty for networks without positions."""
        return tuple(size // step for size, step in zip(clip_size, self.tokens or (), strict=False))


def _hara(layers: tuple[int, ...], native: Clip = (16, 112, 112), **arguments: Any) -> Backbone:
    return Backbone(resnet3d, {"layers": layers, **arguments}, native)


def _medicalnet(layers: tuple[int, ...], **arguments: Any) -> Backbone:
    # Stem, dilation and 1 channel: Tencent/MedicalNet, med3d/models/resnet.py. Its clip: sample sizes of its training.
    shape = {"in_channels": 1, "stem_stride": (2, 2, 2), "dilations": (1, 1, 2, 4)}
    return Backbone(resnet3d, {"layers": layers, **shape, **arguments}, (56, 448, 448), heads=("conv_seg.",))


def _pytorchvideo(name: str, native: Clip, *, blocks: int = 6, stem: str = "blocks.0.conv") -> Backbone:
    head = f"blocks.{blocks - 1}."
    stages = tuple((f"blocks.{number}.",) for number in range(blocks - 1))
    if blocks == 7:  # the third block is a pool, and so without parameters
        stages = stages[:2] + stages[3:]
    return Backbone(pytorchvideo_cnn, {"name": name}, native, stem, stages, (f"{head}proj.",))


def _x3d(name: str, native: Clip) -> Backbone:
    stages = (*((f"blocks.{number}.",) for number in range(4)), ("blocks.4.", "blocks.5."))
    return Backbone(pytorchvideo_cnn, {"name": name}, native, "blocks.0.conv.conv_t", stages, ("blocks.5.proj.",))


def _blocks(prefix: str, *groups: range, stem: tuple[str, ...], last: str) -> Stages:
    stages = [tuple(f"{prefix}{number}." for number in group) for group in groups]
    stages[-1] += (last,)
    return (stem, *stages)


# Blocks between two poolings of the queries, the same in both versions.
_MVIT = (range(1), range(1, 3), range(3, 14), range(14, 16))


def _mvit(name: str, native: Clip) -> Backbone:
    stages = _blocks("blocks.", *_MVIT, stem=("patch_embed.", "cls_positional_encoding."), last="norm_embed.")
    stem = "patch_embed.patch_model"
    return Backbone(pytorchvideo_mvit, {"name": name}, native, stem, stages, ("head.proj.",), tokens=(2, 4, 4))


def _torchvision(name: str) -> Backbone:
    stages = (("stem.",), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))
    return Backbone(torchvision_cnn, {"name": name}, (16, 112, 112), "stem.0", stages)


def _swin(name: str) -> Backbone:
    stages = _blocks("features.", range(2), range(2, 4), range(4, 6), range(6, 7), stem=("patch_embed.",), last="norm.")
    return Backbone(torchvision_swin, {"name": name}, (32, 224, 224), "patch_embed.proj", stages, ("head.",))


BACKBONES: dict[str, Backbone] = {
    # Hara et al.; shortcut A is that of their first checkpoints of 18 and 34 layers, _b that of the later ones.
    "resnet18": _hara((2, 2, 2, 2), shortcut="A"),
    "resnet34": _hara((3, 4, 6, 3), shortcut="A"),
    # A quarter as wide, for CPUs and few volumes; its weights are generated_weights/.
    "resnet18_narrow": _hara((2, 2, 2, 2), (24, 24, 24), shortcut="A", widths=(16, 32, 64, 128)),
    "resnet50": _hara((3, 4, 6, 3), block="bottleneck"),
    "resnet18_b": _hara((2, 2, 2, 2)),
    "resnet34_b": _hara((3, 4, 6, 3)),
    # MONAI's defaults: one channel, no subsampling in the stem, biases in the shortcuts.
    "monai_resnet18": _hara((2, 2, 2, 2), in_channels=1, stem_stride=(1, 1, 1), shortcut_bias=True),
    "monai_resnet34": _hara((3, 4, 6, 3), in_channels=1, stem_stride=(1, 1, 1), shortcut_bias=True),
    "monai_resnet50": _hara((3, 4, 6, 3), block="bottleneck", in_channels=1, stem_stride=(1, 1, 1), shortcut_bias=True),
    "medicalnet_resnet18": _medicalnet((2, 2, 2, 2), shortcut="A"),
    "medicalnet_resnet34": _medicalnet((3, 4, 6, 3), shortcut="A"),
    "medicalnet_resnet50": _medicalnet((3, 4, 6, 3), block="bottleneck"),
    "slow_r50": _pytorchvideo("slow_r50", (8, 224, 224)),
    "c2d_r50": _pytorchvideo("c2d_r50", (8, 224, 224), blocks=7),
    "i3d_r50": _pytorchvideo("i3d_r50", (8, 224, 224), blocks=7),
    "x3d_xs": _x3d("x3d_xs", (4, 160, 160)),
    "x3d_s": _x3d("x3d_s", (13, 160, 160)),
    "x3d_m": _x3d("x3d_m", (16, 224, 224)),
    "x3d_l": _x3d("x3d_l", (16, 312, 312)),
    "r2plus1d_r50": _pytorchvideo("r2plus1d_r50", (16, 224, 224)),
    "csn_r101": _pytorchvideo("csn_r101", (32, 224, 224)),
    "mvit_base_16x4": _mvit("mvit_base_16x4", (16, 224, 224)),
    "mvit_base_32x3": _mvit("mvit_base_32x3", (32, 224, 224)),
    "r3d_18": _torchvision("r3d_18"),
    "mc3_18": _torchvision("mc3_18"),
    "r2plus1d_18": _torchvision("r2plus1d_18"),
    "s3d": Backbone(
        torchvision_cnn,
        {"name": "s3d"},
        (64, 224, 224),
        "features.0.0.0",
        (
            ("features.0.",),
            ("features.2.", "features.3."),
            ("features.5.", "features.6."),
            tuple(f"features.{number}." for number in range(8, 13)),
            ("features.14.", "features.15."),
        ),
        ("classifier.",),
    ),
    "mvit_v2_s": Backbone(
        torchvision_mvit,
        {"name": "mvit_v2_s"},
        (16, 224, 224),
        "conv_proj",
        _blocks("blocks.", *_MVIT, stem=("conv_proj.", "pos_encoding."), last="norm."),
        ("head.",),
        tokens=(2, 4, 4),
    ),
    "swin3d_t": _swin("swin3d_t"),
    "swin3d_s": _swin("swin3d_s"),
    "swin3d_b": _swin("swin3d_b"),
    "vivit_b_16x2": Backbone(
        ViViT,
        {},
        (32, 224, 224),
        "vivit.embeddings.patch_embeddings.projection",
        _blocks(
            "vivit.layers.",
            *(range(first, first + 3) for first in (0, 3, 6, 9)),
            stem=("vivit.embeddings.",),
            last="vivit.layernorm.",
        ),
        ("classifier.", "vivit.pooler."),
        tokens=(2, 16, 16),
        # The published file has the names of transformers 4.
        renamed=(
            (".encoder.layer.", ".layers."),
            (".attention.attention.query.", ".attention.q_proj."),
            (".attention.attention.key.", ".attention.k_proj."),
            (".attention.attention.value.", ".attention.v_proj."),
            (".attention.output.dense.", ".attention.o_proj."),
            (".intermediate.dense.", ".mlp.fc1."),
            (".output.dense.", ".mlp.fc2."),
        ),
    ),
    "rb3d": Backbone(
        RB3D, {}, (32, 32, 32), "conv", (("conv.",), *((f"blocks.{number}.",) for number in range(4))), ()
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


def build_backbone(name: str, clip_size: Sequence[int], **options: Any) -> tuple[nn.Module, int]:
    """Build a backbone that takes one channel `(B, 1, D, H, W)` in place of three equal ones.

    Parameters
    ----------
    name : str
        A key of `BACKBONES`.
    clip_size : sequence of int
        ``(D, H, W)`` of the clips it will see; positions of transformers have its size.
    **options
        Of the family's builder, such as ``widths`` of `resnets.resnet3d`.

    Returns
    -------
    tuple
        The module and its number of features.

    Raises
    ------
    InputError
        For unknown names or options, and clip sizes that the network cannot take.
    """
    record = look_up_backbone(name)
    steps = record.tokens or (1, 1, 1)
    if any(size % step for size, step in zip(clip_size, steps, strict=True)):
        raise InputError(f"clip_size: {list(clip_size)} must be multiples of {list(steps)} for backbone {name!r}")
    try:
        module = record.build(clip_size, **{**record.arguments, **options})
    except TypeError as error:
        raise InputError(f"backbone {name}: {error}") from error
    pad_small_maps(module)
    fold_channel_replication(module, record.stem)
    return module, int(module.num_features)  # type: ignore[arg-type]
