"""Every record: the publisher's network and file, loaded through our path, gives the publisher's features."""

import contextlib
from pathlib import Path

import pytest
import references
import torch
from torch import Tensor, nn

from cryo_monai.backbones import BACKBONES
from cryo_monai.networks import VideoClassifier
from cryo_monai.weight_records import RECORDS, WeightRecord
from cryo_monai.weights import initialise

# Forward passes of more than half a teraflop at the native clip: their grey pass runs under -m slow only.
HEAVY = ("swin3d_t-k", "swin3d_s-k", "swin3d_b-k", "swin3d_b-imagenet22k", "vivit", "mvit_base_32x3", "csn", "s3d")
LARGER = ("swin3d_s", "swin3d_b", "mvit_base_32x3", "x3d_m", "x3d_l", "medicalnet_resnet34")
TOLERANCE = 1e-5

# What PyTorchVideo, torchvision and transformers say of torch 2.15 while they are built or run.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore:.saved_variables")


def is_heavy(record: WeightRecord) -> bool:
    return record.name.startswith(HEAVY)


def is_another_size(record: WeightRecord) -> bool:
    """Whether a smaller network of the same make, or the same network in the same layout, is tested as well."""
    return record.name.startswith(LARGER) or "mit" in record.name


def records_with_slow_ones() -> list[object]:
    """Give every record; those that only repeat another at more cost run under -m slow."""
    marks = {record.name: [pytest.mark.slow] if is_another_size(record) else [] for record in RECORDS}
    return [pytest.param(record, marks=marks[record.name], id=record.name) for record in RECORDS]


@pytest.mark.parametrize("record", records_with_slow_ones())
def test_features_are_the_publishers(record: WeightRecord, tmp_path: Path) -> None:
    kinds = ["colour"] if is_heavy(record) else ["colour", "grey"]
    differences = references.parity(record, tmp_path, kinds)
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.slow
@pytest.mark.parametrize("record", [record for record in RECORDS if is_heavy(record)], ids=lambda record: record.name)
def test_grey_features_of_heavy_networks_are_the_publishers(record: WeightRecord, tmp_path: Path) -> None:
    assert max(references.parity(record, tmp_path, ["grey"]).values()) <= TOLERANCE


class Reached(Exception):
    """Stops a forward pass at the layer of interest."""


def stem_responses(network: nn.Module, layer: nn.Module, *arguments: object) -> Tensor:
    """What enters a normalisation, or leaves a convolution, with the borders that padding reaches cut off."""
    seen: list[Tensor] = []
    after = isinstance(layer, nn.Conv3d)

    def stop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        seen.append(inputs[0] if output is None else output)
        raise Reached

    handle = layer.register_forward_hook(stop) if after else layer.register_forward_pre_hook(stop)
    with torch.no_grad(), contextlib.suppress(Reached):
        network(*arguments)
    handle.remove()
    responses = seen[0]
    for axis, border in ((2, 3), (3, 3), (4, 3)):
        if responses.shape[axis] > 2 * border + 1:
            responses = responses.narrow(axis, border, responses.shape[axis] - 2 * border)
    return responses


def stem_layer(network: nn.Module, stem: str) -> nn.Module:
    """The first BatchNorm, whose running statistics remember what it was trained on, or else the stem itself."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm3d)]
    return norms[0] if norms else network.get_submodule(stem)


# field-facts: "[0,1] makes stem responses ~255x too small"; the others divide by a std of about 1/4, ViViT by 1/2.
MISMATCH = {"hara-2017": 255.0, "hara-2020": 3.65, "torchvision": 4.5, "pytorchvideo": 4.44, "transformers": 2.0}


@pytest.mark.parametrize("record", [r for r in RECORDS if not r.is_image], ids=lambda record: record.name)
def test_the_stem_sees_what_it_was_trained_on(record: WeightRecord, tmp_path: Path) -> None:
    """Grey natural images respond within the running statistics under `checkpoint`, and too weakly under `unit`."""
    torch.manual_seed(0)
    reference, _ = references.build_reference(record)
    clip = record.clip if BACKBONES[record.backbone].tokens else (16, 96, 96)  # positions want the native clip
    frames = references.natural_images(1, 3, *clip, seed=3)
    frames[..., 0, 0], frames[..., 0, 1] = 0.0, 1.0  # black and white are in it, as in most frames
    stem = BACKBONES[record.backbone].stem
    theirs = stem_layer(reference.eval(), stem)
    inputs = references.preprocessed(record, frames)
    inputs = inputs.transpose(1, 2) if record.layout == "transformers" else inputs
    trained = stem_responses(reference, theirs, inputs)
    if isinstance(theirs, nn.BatchNorm3d):  # what training would have left there
        theirs.running_var.copy_(trained.var(dim=(0, 2, 3, 4)))
    references.save_as_published(record, reference, tmp_path / record.file)
    intensity = "z_score" if record.layout == "medicalnet" else "min_max"
    ours = VideoClassifier(2, backbone=record.backbone, clip_size=clip, intensity=intensity, precision="float32")
    layer = stem_layer(ours.eval().backbone, stem)
    spread = {}
    for how in ("checkpoint", "unit"):
        initialise(ours, tmp_path / record.file, input_range=how)
        volumes = 40.0 * frames.mean(1, keepdim=True) - 7.0  # any intensities
        spread[how] = stem_responses(ours, layer, volumes).std(dim=(0, 2, 3, 4))
    expected = layer.running_var.sqrt() if isinstance(layer, nn.BatchNorm3d) else trained.std(dim=(0, 2, 3, 4))
    ratio = (spread["checkpoint"] / expected).median()
    assert 1 / 3 < ratio < 3
    if record.layout == "medicalnet":
        assert torch.equal(spread["unit"], spread["checkpoint"])  # standardised volumes have no unit range
    else:
        too_weak = float((spread["checkpoint"] / spread["unit"]).median())
        assert too_weak == pytest.approx(MISMATCH[record.layout], rel=0.05)


def test_records_say_what_the_libraries_say() -> None:
    """URL, accuracy, size, mean and std of torchvision's enums; URL and accuracy of PyTorchVideo's hub."""
    import torchvision.models as models
    from pytorchvideo.models import hub
    from pytorchvideo.models.hub import csn, r2plus1d, resnet, vision_transformers, x3d

    urls = {k: v for m in (csn, r2plus1d, resnet, vision_transformers, x3d) for k, v in m.checkpoint_paths.items()}
    for record in RECORDS:
        if record.layout.startswith("torchvision"):
            enum = models.get_model_weights(record.file.split("-")[0].replace("_22k", "").replace("_1k", ""))
            (weights,) = [entry for entry in enum if entry.url == record.url]
            transforms = weights.transforms()
            assert weights.meta["_file_size"] == record.mebibytes
            assert next(iter(weights.meta["_metrics"].values()))["acc@1"] == record.top1
            assert tuple(transforms.mean) == record.input.mean
            assert tuple(transforms.std) == record.input.std
            assert record.sha256_prefix in record.file
            assert len(record.sha256_prefix) == 8
        elif record.layout == "pytorchvideo":
            assert urls[record.backbone] == record.url
            described = getattr(hub, record.backbone).__doc__
            if not record.backbone.startswith("mvit"):
                assert f"{record.top1:.1f}".rstrip("0").rstrip(".") in described or f"{record.top1}" in described
            else:
                assert f"{record.top1}%" in " ".join(described.split())


def test_every_record_fits_its_backbone_and_is_named_once() -> None:
    names = [record.name for record in RECORDS]
    assert len(set(names)) == len(names)
    for record in RECORDS:
        assert record.backbone in BACKBONES
        assert record.licence
        assert record.citation
        assert record.is_image or record.clip == BACKBONES[record.backbone].native
