import warnings

import pytest
import torch
from monai.networks.nets import resnet18, resnet34
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from cryo_monai.backbones import BACKBONES, build_backbone
from cryo_monai.backbones.layers import SmallMapConv3d, fold_channel_replication
from cryo_monai.backbones.resnets import resnet3d
from cryo_monai.clips import TIME_AXES, ClipParameters, resample_clips
from cryo_monai.errors import InputError
from cryo_monai.filters import difference_of_gaussians, gaussian_kernel
from cryo_monai.inferers import AxisInferer, NativeSizeInferer
from cryo_monai.networks import VideoClassifier, has_fast_bfloat16, read_description, scale_intensity

SHAPE = (10, 12, 14)
SMALL = {"backbone": "resnet18", "backbone_options": {"widths": [4, 8, 16, 32]}, "clip_size": (16, 24, 20)}


def small(**options: object) -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(3, **{**SMALL, "precision": "float32", **options})  # type: ignore[arg-type]


CLIP = (8, 32, 32)


def replicated(name: str, **options: object) -> nn.Module:
    """The same backbone without folding: it sees three channels."""
    torch.manual_seed(0)
    record = BACKBONES[name]
    return record.build(CLIP, **{**record.arguments, **options})


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "slow_r50"])
@pytest.mark.parametrize("train", [True, False])
def test_folding_equals_three_channel_replication_in_output_and_every_gradient(name: str, train: bool) -> None:
    options = {} if name == "slow_r50" else {"widths": (8, 8, 16, 16)}
    reference = replicated(name, **options).double().train(train)
    torch.manual_seed(0)
    folded, _ = build_backbone(name, CLIP, **options)
    folded = folded.double().train(train)
    assert folded.state_dict().keys() == reference.state_dict().keys()
    clips = torch.rand(2, 1, 8, 32, 32, dtype=torch.float64)
    weight = torch.rand(2, reference.num_features, dtype=torch.float64)  # type: ignore[arg-type]
    expected = reference(clips.expand(-1, 3, -1, -1, -1))
    output = folded(clips)
    assert torch.allclose(output, expected, rtol=1e-9, atol=1e-12)
    (expected * weight).sum().backward()
    (output * weight).sum().backward()
    pairs = zip(reference.named_parameters(), folded.named_parameters(), strict=True)
    for (key, one), (other_key, other) in pairs:
        assert key == other_key
        assert one.grad is not None
        assert other.grad is not None
        scale = one.grad.abs().max() + 1e-12
        assert torch.allclose(one.grad / scale, other.grad / scale, atol=1e-8), key


def test_folding_refuses_what_is_not_a_three_channel_stem() -> None:
    network = nn.Sequential(nn.Conv3d(2, 4, 3))
    with pytest.raises(InputError, match="one or three channels"):
        fold_channel_replication(network, "0")


@pytest.mark.parametrize(("depth", "monai_net"), [(18, resnet18), (34, resnet34)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnet3d_equals_monai_at_parity_settings(depth: int, monai_net: object, shortcut: str) -> None:
    reference = monai_net(  # type: ignore[operator]
        spatial_dims=3,
        n_input_channels=3,
        conv1_t_size=7,
        conv1_t_stride=(1, 2, 2),
        shortcut_type=shortcut,
        bias_downsample=False,
        feed_forward=False,
    )
    ours = resnet3d(CLIP, layers={18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth], shortcut=shortcut, detach_shortcut=True)
    ours.load_state_dict(reference.state_dict())
    clips = torch.rand(1, 3, 8, 32, 32)
    assert torch.allclose(ours.eval()(clips), reference.eval()(clips), atol=1e-5)


def test_resnet34_tensors_and_parameters_are_those_of_the_checkpoints() -> None:
    # field facts: with its classifier (2) a checkpoint has 200 tensors at shortcut A; 63.3 M parameters.
    network = resnet3d(CLIP, shortcut="A", layers=(3, 4, 6, 3))
    assert len(network.state_dict()) == 198
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(63.3e6, rel=0.005)


@pytest.mark.parametrize(("detach", "flows"), [(False, True), (True, False)])
def test_shortcut_a_passes_the_gradient_unless_detached(detach: bool, flows: bool) -> None:
    network = resnet3d(CLIP, shortcut="A", layers=(1, 1, 1, 1), widths=(4, 8, 8, 8), detach_shortcut=detach).eval()
    block = network.layer2[0]  # type: ignore[index]
    for layer in (block.bn2,):  # silence the residual branch: only the shortcut is left
        nn.init.zeros_(layer.weight)
    features = torch.rand(1, 4, 4, 8, 8, requires_grad=True)
    output = block(features)
    assert output.requires_grad
    (gradient,) = torch.autograd.grad(output.sum(), features)
    assert bool(gradient.abs().sum() > 0) is flows


@pytest.mark.parametrize("kernel", [(3, 3, 3), (7, 7, 7), (1, 3, 3)])
@pytest.mark.parametrize("size", [(2, 4, 4), (1, 1, 1), (3, 2, 5), (9, 9, 9)])
def test_small_map_convolution_is_the_convolution(kernel: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    padding = tuple(k // 2 for k in kernel)
    conv = nn.Conv3d(2, 3, kernel, stride=(1, 2, 2), padding=padding).double()
    maps = torch.rand(2, 2, *size, dtype=torch.float64)
    expected = conv(maps)
    conv.__class__ = SmallMapConv3d
    assert torch.allclose(conv(maps), expected, atol=1e-12)


def test_bfloat16_weight_gradients_of_small_maps_are_right() -> None:
    """Without explicit padding these are NaN or wrong on AVX512-BF16 CPUs without AMX; see SmallMapConv3d."""
    conv = nn.Conv3d(64, 64, 3, padding=1, bias=False)
    conv.__class__ = SmallMapConv3d
    maps, weight = torch.randn(8, 64, 2, 4, 4), torch.randn(8, 64, 2, 4, 4)
    (conv(maps) * weight).sum().backward()
    assert conv.weight.grad is not None
    expected, conv.weight.grad = conv.weight.grad.clone(), None
    for _ in range(8):
        for count in (1 << 14, 1 << 18, 1 << 20):  # leave NaN in the memory that the kernel will be handed
            torch.full((count,), float("nan"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (conv(maps).float() * weight).sum().backward()
        error = (conv.weight.grad - expected).norm() / expected.norm()
        assert error < 0.02  # NaN fails too
        conv.weight.grad = None


@pytest.mark.parametrize("how", ["min_max", "percentile", "z_score"])
def test_intensity_ignores_scale_and_offset_and_the_neighbours(how: str) -> None:
    volumes = torch.rand(3, 1, *SHAPE)
    scaled = scale_intensity(volumes, how)
    assert torch.allclose(scale_intensity(volumes * 250 - 17, how), scaled, atol=1e-4)
    assert torch.equal(scale_intensity(volumes[1:2], how), scaled[1:2])
    if how == "z_score":
        assert torch.allclose(scaled.flatten(1).std(1), torch.ones(3), atol=1e-5)
    else:
        assert scaled.amin() == 0
        assert scaled.amax() == 1


@pytest.mark.parametrize("how", ["min_max", "percentile", "z_score"])
def test_a_constant_volume_becomes_zero(how: str) -> None:
    assert torch.equal(scale_intensity(torch.full((1, 1, 4, 4, 4), 7.0), how), torch.zeros(1, 1, 4, 4, 4))


@pytest.mark.parametrize("shape", [(10, 12, 14), (16, 24, 20), (40, 9, 33)])
def test_any_volume_size_gives_scores(shape: tuple[int, int, int]) -> None:
    assert small()(torch.rand(2, 1, *shape)).shape == (2, 3)


def test_scores_do_not_depend_on_the_batch() -> None:
    network = small().eval()
    volumes = torch.rand(4, 1, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(network(volumes)[2:3], network(volumes[2:3]), atol=1e-5)


def test_training_and_inference_share_every_step_but_the_matrices() -> None:
    network = small().eval()
    volumes = torch.rand(2, 1, *SHAPE)
    identity = torch.tensor(ClipParameters().matrix(SHAPE), dtype=torch.float32).expand(2, 3, 3)
    with torch.no_grad():
        assert torch.allclose(network(volumes), network(volumes, identity), atol=1e-4)


def test_clips_are_scaled_at_native_resolution_then_resized_then_normalised() -> None:
    network = small(mean=0.4, std=0.2)
    volumes = torch.rand(2, 1, *SHAPE) * 100
    expected = (resample_clips(scale_intensity(volumes, "min_max"), network.clip_size) - 0.4) / 0.2
    assert torch.equal(network.make_clips(volumes), expected)


def test_depth_is_time() -> None:
    """The stem halves height and width but not depth, which the video network takes for time."""
    seen: list[Tensor] = []
    network = small().eval()
    network.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))  # type: ignore[union-attr]
    network(torch.rand(1, 1, 16, 24, 20))
    assert seen[0].shape[2:] == (16, 12, 10)


def test_bfloat16_is_close_to_float32_and_scores_stay_float32() -> None:
    volumes = torch.rand(4, 1, *SHAPE)
    full, lower = small(precision="float32").eval(), small(precision="bfloat16").eval()
    with torch.no_grad():
        expected, scores = full(volumes), lower(volumes)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, expected, atol=0.05 * float(expected.abs().max()))


def test_automatic_precision_follows_the_hardware() -> None:
    volumes = torch.rand(2, 1, *SHAPE)
    chosen = "bfloat16" if has_fast_bfloat16(torch.device("cpu")) else "float32"
    with torch.no_grad():
        assert torch.equal(small(precision="auto").eval()(volumes), small(precision=chosen).eval()(volumes))


def test_memory_format_does_not_change_scores() -> None:
    volumes = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        last, first = small().eval()(volumes), small(channels_last=False).eval()(volumes)
    assert torch.allclose(last, first, atol=1e-5)


@pytest.mark.parametrize("how", ["min_max", "percentile", "z_score"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_torchscript_takes_raw_volumes_and_equals_eager_float32(how: str, shortcut: str) -> None:
    options = {**SMALL["backbone_options"], "shortcut": shortcut}  # type: ignore[dict-item]
    network = small(intensity=how, backbone_options=options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by torch, still what MONAI's ckpt_export makes
        scripted = torch.jit.script(network)
    volumes = torch.rand(2, 1, *SHAPE) * 40 - 7
    with torch.no_grad():
        assert torch.allclose(scripted(volumes), network(volumes), atol=1e-5)


def test_class_names_travel_with_the_state_dict() -> None:
    network, other = small(), small()
    network.set_class_names(["a", "b ü", "c"])
    other.load_state_dict(network.state_dict())
    assert other.class_names == ["a", "b ü", "c"]
    assert read_description(network.state_dict()["_extra_state"])["clip_size"] == [16, 24, 20]
    with pytest.raises(InputError, match="2 names for 3 classes"):
        network.set_class_names(["a", "b"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"backbone": "resnet43"}, "did you mean 'resnet34'"),
        ({"backbone_options": {"width": 3}}, "width"),
        ({"backbone_options": {"shortcut": "C"}}, "shortcut"),
        ({"clip_size": (16, 16)}, "clip_size"),
        ({"intensity": "minmax"}, "min_max"),
        ({"precision": "half"}, "bfloat16"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        small(**wrong)
    with pytest.raises(InputError, match="num_classes"):
        VideoClassifier(1, **SMALL)  # type: ignore[arg-type]


def test_building_a_network_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small()


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_another_time_axis_is_a_permuted_volume(axis: str) -> None:
    volumes = torch.rand(2, 1, *SHAPE)
    turned = volumes.permute(0, 1, *(a + 2 for a in TIME_AXES[axis]))
    with torch.no_grad():
        assert torch.equal(small(time_axis=axis).eval()(volumes), small().eval()(turned))


@pytest.mark.parametrize("time_axis", ["z", "y", "x"])
def test_averaging_axes_does_not_depend_on_which_comes_first(time_axis: str) -> None:
    network = small(time_axis=time_axis).eval()
    volumes = torch.rand(2, 1, *SHAPE)
    ask = AxisInferer(average_axes=True)
    with torch.no_grad():
        probabilities = ask(volumes, network).softmax(-1)
        turned = [volumes.permute(0, 1, *(a + 2 for a in axes)) for axes in TIME_AXES.values()]
        expected = torch.stack([network(volume).softmax(-1) for volume in turned]).mean(0)
        assert torch.allclose(probabilities, expected, atol=1e-6)
        for volume in turned:
            assert torch.allclose(ask(volume, network).softmax(-1), probabilities, atol=1e-6)
        assert torch.equal(AxisInferer()(volumes, network), network(volumes))


@pytest.mark.parametrize("time_axis", ["z", "y", "x"])
def test_clips_are_seen_at_their_own_size_when_asked_for(time_axis: str) -> None:
    network = small(time_axis=time_axis).eval()
    clips = torch.rand(2, 1, *SHAPE)
    same = small(time_axis=time_axis, clip_size=[SHAPE[axis] for axis in network.volume_axes]).eval()
    ask = NativeSizeInferer(network, [SHAPE, (8, 8, 8)])
    with torch.no_grad():
        before = network(clips)
        assert torch.equal(ask(clips, network), same(clips))
        assert not torch.allclose(same(clips), before)
        assert torch.equal(network(clips), before)
    with pytest.raises(RuntimeError):
        ask(torch.rand(2, 5, *SHAPE), network)
    assert network.clip_size == list(SMALL["clip_size"])


def test_a_network_whose_positions_hang_on_the_size_is_shown_no_other() -> None:
    network = VideoClassifier(3, backbone="mvit_v2_s", clip_size=(4, 16, 16))
    assert NativeSizeInferer(network, [(4, 16, 16)]).classifier is network
    with pytest.raises(InputError, match=r"clip_scales: mvit_v2_s takes clips of one size; give '\[1\.0\]'") as caught:
        NativeSizeInferer(network, [(4, 16, 16), (8, 32, 32)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("narrow", "wide"), [(1.0, 2.0), (0.0, 1.5), (0.7, 6.0)])
def test_band_pass_is_scipys_difference_of_gaussians(narrow: float, wide: float) -> None:
    volume = torch.rand(1, 1, *SHAPE)
    ours = difference_of_gaussians(volume, gaussian_kernel(narrow), gaussian_kernel(wide))[0, 0].numpy()
    expected = [gaussian_filter(volume[0, 0].numpy(), sigma, mode="nearest", truncate=4.0) for sigma in (narrow, wide)]
    assert abs(ours - (expected[0] - expected[1])).max() < 1e-5


def test_band_pass_in_angstrom_and_voxels_agree_and_come_before_everything_else() -> None:
    volumes = torch.rand(2, 1, *SHAPE)
    voxels = small(band_pass={"sigma": [1.0, 2.0]}).eval()
    angstrom = small(band_pass={"sigma": [13.5, 27.0], "voxel_size": 13.5}).eval()
    filtered = difference_of_gaussians(volumes, gaussian_kernel(1.0), gaussian_kernel(2.0))
    with torch.no_grad():
        assert torch.equal(voxels(volumes), angstrom(volumes))
        assert torch.equal(voxels(volumes), small().eval()(filtered))
        assert not torch.allclose(voxels(volumes), small().eval()(volumes))
    assert voxels.state_dict().keys() == small().state_dict().keys()
    assert read_description(voxels.get_extra_state())["band_pass"] == {"sigma": [1.0, 2.0]}


@pytest.mark.parametrize(
    "band_pass",
    [[1, 3], {}, {"sigma": [2.0, 1.0]}, {"sigma": 2.0}, {"sigmas": [1, 2]}, {"sigma": [1, 2], "voxel_size": 0.0}],
)
def test_impossible_band_passes_are_refused(band_pass: dict[str, object]) -> None:
    with pytest.raises(InputError, match="band_pass"):
        small(band_pass=band_pass)


def test_torchscript_keeps_band_pass_time_axis_and_input() -> None:
    network = small(band_pass={"sigma": [0.5, 1.5]}, time_axis="x", mean=0.4, std=0.2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network)
    volumes = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(scripted(volumes), network(volumes), atol=1e-5)


def test_mean_and_std_travel_with_the_state_dict() -> None:
    network, other = small(mean=0.4, std=0.2), small()
    other.load_state_dict(network.state_dict())
    assert (other.mean, other.std) == (0.4, 0.2)
