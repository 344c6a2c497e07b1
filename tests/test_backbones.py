import json
import sys

import pytest
import torch
from conftest import CONFIGS
from torch import Tensor

from cryo_monai.backbones import BACKBONES, build_backbone
from cryo_monai.backbones.positions import resample_grid, resample_table
from cryo_monai.backbones.torchvision_nets import window_biases
from cryo_monai.errors import InputError
from cryo_monai.weight_records import RECORDS, default_record

# What PyTorchVideo, torchvision and transformers say of torch 2.15 while they are built or run.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore:.saved_variables")

# One of each family, small enough for a test that trains.
FAMILIES = ("resnet18", "medicalnet_resnet18", "slow_r50", "x3d_s", "mvit_base_16x4", "mvit_v2_s", "s3d", "swin3d_t",
            "vivit_b_16x2", "rb3d")  # fmt: skip


# Half a minute and more each; the smaller ones of the family run by default.
LARGER = ("swin3d_s", "swin3d_b", "mvit_base_32x3", "x3d_l")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGER else []) for name in BACKBONES]
)
@pytest.mark.parametrize("clip", [(32, 128, 128), (28, 128, 128), (28, 28, 28)], ids=str)
def test_every_backbone_takes_the_clips_of_the_paper(name: str, clip: tuple[int, int, int]) -> None:
    """Native clips are run by test_parity.py; ViViT's patches of 16 do not tile 28."""
    if name == "vivit_b_16x2" and clip == (28, 28, 28):
        with pytest.raises(InputError, match=r"multiples of \[2, 16, 16\]"):
            build_backbone(name, clip)
        return
    module, features = build_backbone(name, clip)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = module.eval()(torch.rand(1, 1, *clip))
    assert output.shape == (1, features)
    assert output.isfinite().all()


@pytest.mark.parametrize("name", [n for n in BACKBONES if n.startswith("monai") or n == "rb3d"])
def test_backbones_without_public_weights_take_their_native_clip(name: str) -> None:
    clip = BACKBONES[name].native
    module, features = build_backbone(name, clip)
    with torch.no_grad():
        assert module.eval()(torch.rand(1, 1, *clip)).shape == (1, features)


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_cover_every_parameter_once_and_in_order(name: str) -> None:
    record = BACKBONES[name]
    module, _ = build_backbone(name, record.native)
    places = []
    for key, _ in module.named_parameters():
        stages = [number for number, prefixes in enumerate(record.stages) if key.startswith(prefixes)]
        assert len(stages) == 1, key
        places += stages
    assert sorted(set(places)) == list(range(5))
    assert f"{record.stem}.weight".startswith(record.stages[0])


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_its_overlay(name: str) -> None:
    overlay = json.loads((CONFIGS / "backbones" / f"{name}.json").read_text())
    assert overlay["backbone"] == name
    build_backbone(name, overlay["clip_size"], **overlay["backbone_options"])
    if name.startswith("medicalnet"):
        assert overlay["intensity"] == default_record(name).input.intensity


def test_there_is_no_overlay_without_a_backbone() -> None:
    assert {file.stem for file in (CONFIGS / "backbones").glob("*.json")} == set(BACKBONES)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_do_not_depend_on_the_batch_and_see_every_voxel(name: str) -> None:
    clip = (8, 32, 48)
    torch.manual_seed(0)
    module, _ = build_backbone(name, clip)
    module.eval()
    clips = torch.rand(3, 1, *clip, requires_grad=True)
    features = module(clips)
    with torch.no_grad():
        assert torch.allclose(module(clips[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(features.square().sum(), clips)
    assert gradient.isfinite().all()
    if name in ("mvit_base_16x4", "mvit_v2_s", "s3d", "swin3d_t", "vivit_b_16x2", "rb3d"):
        # In residual networks nothing but strided 1 x 1 x 1 convolutions may be alive before training.
        assert (gradient.abs().amax(dim=(0, 1)) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["mvit_base_16x4", "mvit_v2_s", "swin3d_t", "vivit_b_16x2"])
def test_gradient_checkpointing_changes_neither_output_nor_gradients(name: str) -> None:
    clip = (4, 32, 32)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module, _ = build_backbone(name, clip, gradient_checkpointing=recompute)
        module.train()
        clips = torch.rand(2, 1, *clip)
        kept: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: (k.append(t.nbytes), t)[1], lambda t: t)
        torch.manual_seed(1)  # stochastic depth draws the same in both
        with hooks:
            output = module(clips)
        output.square().sum().backward()
        gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        results.append((output.detach(), gradients, sum(kept)))
    (plain, gradients, memory), (recomputed, others, less) = results
    assert torch.allclose(plain, recomputed, atol=1e-5)
    assert gradients.keys() == others.keys()
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, others[key], rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1)), key
    assert less < memory / 2


def smooth_field(sizes: tuple[int, ...]) -> Tensor:
    """Two features, smooth over the unit cube, sampled at the centres of a grid of cells: `(n, 2)`."""
    axes = [(torch.arange(size) + 0.5) / size for size in sizes]
    mesh = torch.meshgrid(*axes, indexing="ij")
    phase = sum((number + 1) * axis for number, axis in enumerate(mesh))
    return torch.stack([torch.sin(phase), torch.cos(0.7 * phase)], dim=-1).reshape(-1, 2)


@pytest.mark.parametrize("sizes", [(16, 14, 14), (5, 7), (9,)], ids=str)
def test_resampling_positions_to_the_same_size_is_the_identity(sizes: tuple[int, ...]) -> None:
    table = torch.randn(int(torch.tensor(sizes).prod()), 6)
    assert resample_grid(table, sizes, sizes) is table


@pytest.mark.parametrize(
    ("old", "new"), [((16, 14, 14), (16, 8, 8)), ((8, 8, 8), (14, 8, 10)), ((56, 56), (32, 32)), ((8,), (16,))], ids=str
)
def test_a_smooth_position_field_is_reproduced_at_the_new_size(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    error = (resample_grid(smooth_field(old), old, new) - smooth_field(new)).abs()
    # Linear interpolation errs by h^2 / 8 times the curvature, and the outermost half cells are clamped.
    assert error.mean() < 0.02
    assert error.max() < 0.25 / min(old) * sum(range(1, len(old) + 1)) * 2


def test_each_kind_of_position_table_keeps_its_meaning() -> None:
    old, new = (8, 6, 5), (4, 3, 10)
    spatial = smooth_field(old[1:]).unsqueeze(0)
    resampled = resample_table("x.pos_embed_spatial", spatial, (1, 30, 2), old, new)[0]
    assert torch.equal(resampled, resample_grid(spatial[0], old[1:], new[1:]))
    temporal = smooth_field(old[:1]).unsqueeze(0)
    resampled = resample_table("x.pos_embed_temporal", temporal, (1, 4, 2), old, new)[0]
    assert torch.equal(resampled, resample_grid(temporal[0], (8,), (4,)))
    joint = torch.cat([torch.full((1, 2), 9.0), smooth_field(old)]).unsqueeze(0)
    resampled = resample_table("vivit.embeddings.position_embeddings", joint, (1, 121, 2), old, new)[0]
    assert torch.equal(resampled[0], torch.full((2,), 9.0))  # the class token's is no place in the grid
    assert torch.equal(resampled[1:], resample_grid(smooth_field(old), old, new))
    assert resample_table("x.weight", joint, (1, 121, 2), old, new) is None


@pytest.mark.parametrize(("old", "new"), [(56, 32), (14, 8), (7, 28)])
def test_relative_positions_keep_zero_in_the_middle_and_a_smooth_field(old: int, new: int) -> None:
    offsets = (torch.arange(2 * old - 1) - (old - 1)) / old
    table = torch.stack([offsets, offsets.abs(), torch.sin(offsets)], dim=1)
    resampled = resample_table("b.attn.rel_pos_h", table, (2 * new - 1, 3), (1, 1, 1), (1, 1, 1))
    expected = (torch.arange(2 * new - 1) - (new - 1)) / new
    assert resampled[new - 1, 0].abs() < 1e-6
    assert torch.allclose(resampled[:, 0], -resampled.flip(0)[:, 0], atol=1e-6)
    assert torch.allclose(resampled[:, 2], torch.sin(expected), atol=1.0 / old)


def test_biases_of_a_small_window_are_those_of_the_offsets() -> None:
    full, window = (4, 3, 3), (2, 3, 2)
    sizes = [2 * size - 1 for size in full]
    table = torch.arange(sizes[0] * sizes[1] * sizes[2], dtype=torch.float32).reshape(-1, 1)
    from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

    attention = ShiftedWindowAttention3d(8, list(full), [0, 0, 0], 1)
    biases = window_biases(table, attention.relative_position_index, full, window)[0, 0]
    tokens = [(t, y, x) for t in range(window[0]) for y in range(window[1]) for x in range(window[2])]
    for i, one in enumerate(tokens):
        for j, other in enumerate(tokens):
            steps = [a - b + size - 1 for a, b, size in zip(one, other, full, strict=True)]
            assert biases[i, j] == steps[0] * sizes[1] * sizes[2] + steps[1] * sizes[2] + steps[2]
    whole = window_biases(table, attention.relative_position_index, full, full)
    assert torch.equal(whole[0, 0], table[attention.relative_position_index.reshape(-1), 0].view(36, 36))


def test_unknown_names_and_options_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="did you mean 'swin3d_t'"):
        build_backbone("swin3d", (32, 128, 128))
    with pytest.raises(InputError, match=r"backbone rb3d: .*widths"):
        build_backbone("rb3d", (32, 32, 32), widths=3)
    with pytest.raises(InputError, match="even"):
        build_backbone("rb3d", (32, 32, 32), width=3)


def test_readme_counts_what_there_is() -> None:
    text = (CONFIGS.parent / "README.md").read_text()
    assert f"{len(BACKBONES)} networks" in text
    assert f"{len(RECORDS)} public checkpoints" in text


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("slow_r50", "pytorchvideo.models", "video"), ("vivit_b_16x2", "transformers", "vivit")],
)
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"pip install 'cryo-monai\[{extra}\]'") as caught:
        build_backbone(name, (32, 128, 128))
    assert "\n" not in str(caught.value)
