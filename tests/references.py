"""Reference networks in their publishers' own code and file layout, with random weights of realistic statistics."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import resnet18, resnet34, resnet50
from torch import Tensor, nn

from cryo_monai.networks import VideoClassifier
from cryo_monai.weight_records import WeightRecord
from cryo_monai.weights import load_video_weights


def natural_images(*shape: int, seed: int = 0) -> Tensor:
    """Images in [0, 1] with the 1/f spectrum of natural ones, `(..., y, x)`; colours, dimension 1, are correlated."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    if shape[1] > 1:
        noise = noise + 2.0 * noise[:, :1]
    spectrum = torch.fft.rfft2(noise)
    y, x = torch.fft.fftfreq(shape[-2]), torch.fft.rfftfreq(shape[-1])
    frequency = (y[:, None] ** 2 + x[None, :] ** 2).sqrt().clamp(min=1.0 / max(shape[-2:]))
    images = torch.fft.irfft2(spectrum / frequency, s=shape[-2:])
    # mean 0.45 and standard deviation 0.25 are those of Kinetics frames, about.
    return (0.45 + 0.25 * (images - images.mean()) / images.std()).clamp(0, 1)


class MedicalNetReference(nn.Module):
    """MedicalNet's encoder and decoder as its repository describes them, written with plain functional calls."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.plan = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
        self.bottleneck = depth == 50
        source = {18: resnet18, 34: resnet34, 50: resnet50}[depth](
            spatial_dims=3, n_input_channels=1, shortcut_type="B" if self.bottleneck else "A", bias_downsample=False,
            feed_forward=False,
        )  # fmt: skip
        for name, child in source.named_children():
            setattr(self, name, child)  # tensors and their names; the arithmetic is below
        self.conv_seg = nn.Sequential(nn.ConvTranspose3d(2048 if self.bottleneck else 512, 2, 2, stride=2))

    def features(self, clips: Tensor) -> Tensor:
        maps = F.conv3d(clips, self.conv1.weight, stride=2, padding=3)
        maps = F.max_pool3d(self.bn1(maps).relu(), 3, stride=2, padding=1)
        for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
            for number in range(self.plan[stage]):
                block = getattr(self, f"layer{stage + 1}")[number]
                maps = self.block(block, maps, stride if number == 0 else 1, dilation, first=number == 0)
        return maps.mean(dim=(2, 3, 4))

    def block(self, block: Any, maps: Tensor, stride: int, dilation: int, *, first: bool) -> Tensor:
        if self.bottleneck:
            out = block.bn1(F.conv3d(maps, block.conv1.weight)).relu()
            out = F.conv3d(out, block.conv2.weight, stride=stride, padding=dilation, dilation=dilation)
            out = block.bn3(F.conv3d(block.bn2(out).relu(), block.conv3.weight))
        else:
            out = F.conv3d(maps, block.conv1.weight, stride=stride, padding=dilation, dilation=dilation)
            out = F.conv3d(block.bn1(out).relu(), block.conv2.weight, padding=dilation, dilation=dilation)
            out = block.bn2(out)
        if self.bottleneck and first:
            maps = block.downsample[1](F.conv3d(maps, block.downsample[0].weight, stride=stride))
        elif stride != 1 or maps.shape[1] != out.shape[1]:
            maps = F.avg_pool3d(maps, 1, stride=stride)
            maps = torch.cat([maps, maps.new_zeros(maps.shape[0], out.shape[1] - maps.shape[1], *maps.shape[2:])], 1)
        return (out + maps).relu()

    def forward(self, clips: Tensor) -> Tensor:
        return self.conv_seg(self.features(clips)[..., None, None, None])


def build_reference(record: WeightRecord) -> tuple[nn.Module, nn.Module]:
    """The publisher's network, and the last layer, whose input is the pooled features."""
    if record.layout.startswith("hara"):
        depth = "".join(c for c in record.backbone.split("_")[0] if c.isdigit())
        network = {"18": resnet18, "34": resnet34, "50": resnet50}[depth](
            spatial_dims=3, n_input_channels=3, num_classes=record.classes, conv1_t_size=7, conv1_t_stride=(1, 2, 2),
            shortcut_type="A" if record.backbone in ("resnet18", "resnet34") else "B", bias_downsample=False,
        )  # fmt: skip
        return network, network.fc
    if record.layout == "medicalnet":
        network = MedicalNetReference(int(record.backbone[-2:]))
        return network, network.conv_seg
    if record.layout == "pytorchvideo":
        from pytorchvideo.models import hub

        network = getattr(hub, record.backbone)()
        return network, (network.head if record.backbone.startswith("mvit") else network.blocks[-1]).proj
    if record.layout == "torchvision":
        from torchvision.models import video

        network = getattr(video, record.backbone)()
        name = next(n for n in ("fc", "classifier", "head") if hasattr(network, n))
        return network, getattr(network, name)
    if record.layout == "torchvision-image":
        import torchvision.models as images

        network = getattr(images, record.file.split("-")[0])()
        return network, network.fc if hasattr(network, "fc") else network.head
    from transformers import VivitConfig, VivitForVideoClassification

    network = VivitForVideoClassification(VivitConfig(num_labels=record.classes))
    return network, network.classifier


def preprocessed(record: WeightRecord, images: Tensor) -> Tensor:
    """What the publisher's loader makes of images in [0, 1], `(B, 3, ...)`: with a mean and std for each channel."""
    values = record.input
    if values.intensity == "z_score":
        grey = images.mean(1, keepdim=True)
        return (grey - grey.mean()) / grey.std()
    shape = (1, 3) + (1,) * (images.dim() - 2)
    mean, std = (torch.tensor(numbers).view(shape) for numbers in (values.mean, values.std))
    return (values.low + (values.high - values.low) * images - mean) / std


def run(record: WeightRecord, network: nn.Module, clips: Tensor) -> Tensor:
    """Call a reference on `(B, C, D, H, W)`, or on the first frame if it is an image network."""
    if record.is_image:
        clips = clips[:, :, 0]
    if record.layout == "transformers":
        clips = clips.transpose(1, 2)
    return network(clips)


def settle(record: WeightRecord, network: nn.Module, seed: int = 0) -> None:
    """Give random weights the statistics of trained ones: running statistics of natural clips, no zeros."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
        if name.endswith(
            ("pos_embed_spatial", "pos_embed_temporal", "position_embeddings", "cls_token", "class_token")
        ):
            nn.init.normal_(parameter, std=0.2)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)]
    if not norms:
        network.eval()
        return
    for name, layer in network.named_modules():
        if layer in norms:
            layer.momentum = None  # the average over the calls below
            # Trained residual branches end in small factors; with large ones rounding errors grow from block to block.
            closes_branch = name.endswith(("norm_c", "bn3", "bn2", "conv2.1"))
            nn.init.uniform_(layer.weight, *((0.1, 0.3) if closes_branch else (0.5, 1.0)))
            nn.init.uniform_(layer.bias, 0.0, 1.0)
    depth, height, width = record.clip
    small = (min(depth, 16), min(height, 112), min(width, 112))
    if hasattr(network, "blocks") or record.backbone == "s3d":  # fixed pools want the native size
        small = record.clip
    network.train()
    with torch.no_grad():
        run(record, network, preprocessed(record, natural_images(2, 3, *small, seed=seed + 1)))
    network.eval()


def reference_features(record: WeightRecord, network: nn.Module, last: nn.Module, clips: Tensor) -> Tensor:
    """What enters the last layer, averaged over any positions left: `(B, features)`."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        run(record, network, clips)
    handle.remove()
    features = seen[0]
    if features.dim() == 5:
        positions = (1, 2, 3) if record.layout == "pytorchvideo" else (2, 3, 4)
        features = features.mean(dim=positions)
    return features


def save_as_published(record: WeightRecord, network: nn.Module, path: Path) -> None:
    """Write a state dict with the nesting, prefixes and container format of the publisher."""
    state: dict[str, Any] = dict(network.state_dict())
    if record.layout == "transformers":
        folder = path.with_suffix("")
        network.save_pretrained(folder)  # with the key names of the published file
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), path)
        return
    if record.layout in ("hara-2017", "hara-2020", "medicalnet"):
        state = {f"module.{key}": value for key, value in state.items()}
    wrapped: dict[str, Any] = {
        "hara-2017": state,
        "hara-2020": {"epoch": 200, "arch": "resnet-34", "state_dict": state},
        "medicalnet": {"state_dict": state},
        "pytorchvideo": {"model_state": state},
    }.get(record.layout, state)
    old_format = record.layout in ("hara-2017", "medicalnet", "pytorchvideo")  # written before torch 1.6
    torch.save(wrapped, path, _use_new_zipfile_serialization=not old_format)


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours - reference).abs().max() / reference.abs().max())


def parity(record: WeightRecord, folder: Path, kinds: Sequence[str] = ("colour", "grey")) -> dict[str, float]:
    """Largest relative differences between ours and the reference, on colour and on replicated grey clips."""
    torch.manual_seed(0)
    reference, last = build_reference(record)
    settle(record, reference)
    save_as_published(record, reference, folder / record.file)
    depth = 8 if record.is_image else record.clip[0]
    clip_size = (depth, *record.clip[1:])
    if record.layout == "medicalnet":
        clip_size = (28, 64, 72)  # of any size; its own would take minutes
    ours = VideoClassifier(
        2, backbone=record.backbone, clip_size=clip_size, precision="float32", channels_last=False
    ).eval()
    report = load_video_weights(ours, folder / record.file, inflation="centre")
    assert report.record is not None
    assert not report.keys.resized
    colour = natural_images(1, 3, *clip_size, seed=5)
    if record.is_image:
        colour = colour[:, :, :1].expand(-1, -1, depth, -1, -1)  # equal frames, where inflation is exact
    grey = preprocessed(record, colour).mean(1, keepdim=True)
    inputs: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "colour": lambda: (preprocessed(record, colour), preprocessed(record, colour)),
        "grey": lambda: (grey, grey.expand(-1, 1 if record.layout == "medicalnet" else 3, -1, -1, -1)),
    }
    differences = {}
    for name in kinds:
        mine, theirs = inputs[name]()
        with torch.no_grad():
            features = ours.extract_features(mine)
        differences[name] = relative_difference(features, reference_features(record, reference, last, theirs))
    return differences
