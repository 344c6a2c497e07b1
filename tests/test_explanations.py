"""Class activation maps lie where the network looks, on the volume's own grid, and leave the network alone."""

import pytest
import torch
from torch import Tensor, nn

from cryo_monai.errors import InputError
from cryo_monai.explanations.cells import Cells, follow_cells, resample_cells
from cryo_monai.explanations.maps import METHODS, explain_volumes, layer_grid
from cryo_monai.explanations.taps import find_layer, tapped, undisturbed
from cryo_monai.networks import VideoClassifier

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore:.saved_variables")

SHAPE = (10, 12, 14)
NARROW = {"widths": [4, 8, 16, 32]}


def small(backbone: str = "resnet18", clip: tuple[int, ...] = (16, 16, 16), **options: object) -> VideoClassifier:
    torch.manual_seed(0)
    widths = NARROW if "resnet18" in backbone else {}
    return VideoClassifier(3, backbone=backbone, clip_size=clip, backbone_options=widths, **options)


def volumes(count: int = 2) -> Tensor:
    return torch.rand(count, 1, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_explained_as_its_volumes_are_one_by_one(method: str) -> None:
    network = small()
    wanted = [2, 0, 1]
    options = {"method": method, "layer": "layer2", "mask_size": 8}
    maps, classes, probabilities = explain_volumes(network, volumes(3), classes=wanted, **options)
    assert maps.shape == (3, *SHAPE)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.flatten(1).amax(1).gt(0).any()
    assert classes.tolist() == wanted
    for row in range(3):
        alone, _, _ = explain_volumes(network, volumes(3)[row : row + 1], classes=wanted[row : row + 1], **options)
        assert torch.equal(alone[0], maps[row])
    with torch.no_grad():
        network.precision = "float32"
        assert torch.allclose(network.eval()(volumes(3)).softmax(-1), probabilities, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("axis", "turn"), [("y", (2, 0, 1)), ("x", (1, 2, 0))])
def test_a_turned_volume_with_its_own_time_axis_has_the_turned_map(
    method: str, axis: str, turn: tuple[int, int, int]
) -> None:
    """Volumes differ in all three edges, so a map that is not turned back has another shape."""
    straight, other = small(), small(time_axis=axis)
    volume = volumes(1)
    turned = volume.permute(0, 1, *(2 + a for a in turn))
    boxes = (5, 6, 7)
    options = {"method": method, "layer": "layer2", "classes": [1]}
    expected, _, _ = explain_volumes(straight, volume, mask_size=boxes, **options)
    found, _, _ = explain_volumes(other, turned, mask_size=[boxes[a] for a in turn], **options)
    assert expected.any()
    assert torch.allclose(found, expected.permute(0, *(1 + a for a in turn)), atol=1e-6)


class Watcher(nn.Module):
    """Pools cells of 2 x 2 x 2 and averages them: the map of class 0 is the brightness itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(2)

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.pool(clips)
        return features.mean((2, 3, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_the_map_of_a_network_that_sums_brightness_lies_on_the_bright_blob(method: str, axis: str) -> None:
    network = small(clip=(16, 24, 28), time_axis=axis)
    network.backbone = Watcher()
    network.head = nn.Linear(1, 3, bias=False)
    nn.init.ones_(network.head.weight)
    place = (3, 8, 9)
    grids = torch.meshgrid(*(torch.arange(size) for size in SHAPE), indexing="ij")
    squares = sum((grid - centre) ** 2 for grid, centre in zip(grids, place, strict=True))
    volume = torch.exp(-squares / 4.0)[None, None]
    maps, _, _ = explain_volumes(network, volume, method=method, layer="pool", classes=[0], mask_size=2, overlap=0.5)
    found = maps[0] * (maps[0] > 0.2 * maps[0].max())
    for grid, centre in zip(grids, place, strict=True):
        assert float((found * grid).sum() / found.sum()) == pytest.approx(centre, abs=0.35)


@pytest.mark.parametrize(
    ("backbone", "clip", "layer"),
    [
        ("resnet18", (32, 128, 128), "layer3"),
        ("resnet18", (16, 64, 64), "layer2"),
        ("x3d_xs", (8, 96, 96), "blocks.3"),
        ("i3d_r50", (8, 64, 64), "blocks.4"),
        ("swin3d_t", (8, 48, 48), "features.4"),
        ("vivit_b_16x2", (8, 48, 48), "vivit.layers.8"),
    ],
)
def test_cells_are_placed_where_their_gradients_are(backbone: str, clip: tuple[int, ...], layer: str) -> None:
    """The centroid of |d cell / d clip| squared, over inputs and random mixes of channels, in strides of the cell."""
    network = small(backbone, clip)
    assert layer == "layer2" or find_layer(network, "layer3") == find_layer(network, "stage3") == layer
    module = network.backbone.get_submodule(find_layer(network, layer))
    seen: list[Tensor] = []
    total = torch.zeros(clip)
    with undisturbed(network), tapped_map(network, layer, seen), follow_cells(network.backbone, clip) as cells:
        for seed in range(2 if backbone == "resnet18" else 1):
            generator = torch.Generator().manual_seed(seed)
            clips = torch.randn(1, 1, *clip, generator=generator).requires_grad_()
            network.backbone(clips)
            output = seen[-1]
            middle = [size // 2 for size in output.shape[2:]]
            mix = torch.randn(output.shape[1], generator=generator)
            (gradient,) = torch.autograd.grad((output[0, :, middle[0], middle[1], middle[2]] * mix).sum(), clips)
            total += gradient[0, 0] ** 2
    assert module is network.backbone.get_submodule(find_layer(network, layer))
    shape = tuple(output.shape[2:])
    tiled = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        centroid = float((total.sum(others) * torch.arange(clip[axis])).sum() / total.sum())
        place = cells[shape].first[axis] + cells[shape].step[axis] * middle[axis]
        step = cells[shape].step[axis]
        assert abs(centroid - place) < (0.25 * step if step > 1 else 1)
        tiled.append(abs((middle[axis] + 0.5) * clip[axis] / shape[axis] - 0.5 - place) / cells[shape].step[axis])
    maps, _, _ = explain_volumes(network, volumes(1), layer=layer)
    assert maps.shape == (1, *SHAPE)
    # What upsampling as if cells tiled the clip would have been wrong by.
    assert max(tiled) == pytest.approx(0 if backbone in ("swin3d_t", "vivit_b_16x2") else 0.46, abs=0.03)


class tapped_map:
    """Note what a layer puts out as a map with channels first, gradients flowing through."""

    def __init__(self, network: VideoClassifier, layer: str, seen: list[Tensor]) -> None:
        self.network, self.seen = network, seen
        self.module = network.backbone.get_submodule(find_layer(network, layer))

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(
            lambda module, inputs, output: self.seen.append(self.grid(output))
        )

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def grid(self, output: Tensor) -> Tensor:
        if self.network.backbone_name == "swin3d_t":
            return output.movedim(-1, 1)
        if self.network.backbone_name == "vivit_b_16x2":
            return output[:, 1:].transpose(1, 2).reshape(1, -1, 4, 3, 3)
        return output


class Stretching(nn.Module):
    """Pools, stretches the map by what no window does, and convolves that."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(2)
        self.stretch = nn.Upsample(scale_factor=3)
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, clips: Tensor) -> Tensor:
        return self.conv(self.stretch(self.pool(clips))).mean((2, 3, 4))


def test_cells_of_maps_that_windows_do_not_lead_to_are_not_guessed() -> None:
    network = small()
    network.backbone, network.head = Stretching(), nn.Linear(2, 3)
    assert layer_grid(network, "pool") == (8, 8, 8)
    for asked in (layer_grid, lambda *a: explain_volumes(a[0], volumes(1), layer=a[1])):
        with pytest.raises(InputError, match=r"layer conv: where the cells of its map \[24, 24, 24\] lie is not known"):
            asked(network, "conv")


class Patches(nn.Module):
    """Pads at the far ends to whole patches, as Swin does, and embeds these."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, (2, 4, 4), stride=(2, 4, 4))

    def forward(self, clips: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(clips, (0, 2, 0, 2, 0, 1)))


def test_padding_to_fill_a_patch_moves_no_cell() -> None:
    patches = Patches()
    with follow_cells(patches, (7, 34, 38)) as cells:
        patches(torch.zeros(1, 1, 7, 34, 38))
    assert cells[4, 9, 10] == Cells((0.5, 1.5, 1.5), (2.0, 4.0, 4.0))


def test_resampling_puts_the_value_of_a_cell_at_its_place_and_keeps_the_last_beyond() -> None:
    cells = Cells(first=(0.0, 0.5, 7.5), step=(4.0, 2.0, 16.0))
    maps = torch.rand(1, 3, 4, 2)
    placed = resample_cells(maps, cells, (12, 8, 32), (12, 8, 32))
    assert torch.allclose(placed[0, ::4, 2, 7], 0.25 * maps[0, :, 0, 0] + 0.75 * maps[0, :, 1, 0], atol=0.02 + 1e-6)
    assert torch.allclose(placed[0, 4, 0, 0], maps[0, 1, 0, 0])
    assert torch.allclose(placed[0, -1, -1, -1], maps[0, -1, -1, -1])
    same = torch.rand(2, *SHAPE)
    assert torch.allclose(resample_cells(same, Cells(), SHAPE, SHAPE), same)


@pytest.mark.parametrize(
    ("backbone", "clip", "expected"),
    [
        ("rb3d", (16, 16, 16), "blocks.2"),
        ("s3d", (16, 32, 32), "features.12"),
        ("mvit_v2_s", (4, 32, 32), "blocks.13"),
        ("mvit_base_16x4", (4, 32, 32), "blocks.13"),
    ],
)
def test_every_family_has_a_map_of_its_third_stage(backbone: str, clip: tuple[int, ...], expected: str) -> None:
    network = small(backbone, clip)
    assert find_layer(network, "layer3") == find_layer(network, "stage3") == expected
    before = [name for name, _ in network.named_modules()]
    maps, _, _ = explain_volumes(network, volumes(3), classes=range(3))
    assert maps.shape == (3, *SHAPE)
    assert maps.isfinite().all()
    assert maps.any()
    assert [name for name, _ in network.named_modules()] == before


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_was_frozen_parts_and_gradients_too(method: str) -> None:
    network = small(precision="bfloat16")
    network.temperature = 2.0
    network.freeze_stages(["stem", "stage1", "stage2", "stage3"])
    network.train()
    network(volumes()).sum().backward()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    facts = facts_of(network)
    maps, _, _ = explain_volumes(network, volumes(3), method=method, classes=range(3), mask_size=8)
    assert maps.any()
    assert facts_of(network) == facts
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def facts_of(network: VideoClassifier) -> list[object]:
    facts: list[object] = [network.precision, network.temperature, torch.is_grad_enabled()]
    facts += [(name, type(m), m.training, len(m._forward_hooks), len(m._backward_hooks), getattr(m, "inplace", None))
              for name, m in network.named_modules()]  # fmt: skip
    facts += [
        (name, p.requires_grad, None if p.grad is None else float(p.grad.sum()))
        for name, p in network.named_parameters()
    ]
    return facts


@pytest.mark.parametrize("layer", ["layer3.0.bn1", "layer3.0.act", "layer4.1.conv2", "conv1"])
def test_layers_that_the_network_changes_in_place_afterwards_can_be_explained(layer: str) -> None:
    with torch.no_grad():
        maps, _, _ = explain_volumes(small(), volumes(1), layer=layer, method="grad_cam_pp")
    assert maps.isfinite().all()


def test_maps_depend_neither_on_calibration_nor_on_the_precision_of_the_run() -> None:
    network = small(precision="float32")
    expected, _, sharp = explain_volumes(network, volumes(), method="grad_cam_pp")
    network.temperature, network.precision = 3.0, "bfloat16"
    found, _, dull = explain_volumes(network, volumes(), method="grad_cam_pp")
    assert torch.equal(found, expected)
    assert not torch.allclose(sharp, dull)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "grad_cm"}, "method: 'grad_cm' is not one of grad_cam"),
        ({"layer": "layer33"}, r"'layer33' is no module of resnet18; near are .*layer3"),
        ({"layer": "avgpool"}, "avgpool"),
        ({"layer": "qwertz"}, "give stage1 to stage4"),
        ({"classes": [0]}, "2 numbers from 0 to 2"),
        ({"classes": [0, 3]}, "2 numbers from 0 to 2"),
        ({"method": "occlusion", "mask_size": 13}, r"mask_size: 13 must be from 1 voxel to .*\[10, 12, 14\]"),
        ({"method": "occlusion", "overlap": 1.0}, "overlap: 1.0"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(arguments: dict[str, object], message: str) -> None:
    network = small()
    if arguments.get("layer") == "avgpool":
        network.backbone.avgpool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    facts = facts_of(network)
    with pytest.raises(InputError, match=message):
        explain_volumes(network, volumes(), **arguments)  # type: ignore[arg-type]
    assert facts_of(network) == facts


def test_the_grid_of_a_layer_is_told_without_an_explanation() -> None:
    network = small(clip=(16, 32, 48)).train()
    network.backbone.spare = nn.Identity()
    facts = facts_of(network)
    assert layer_grid(network, "layer3") == (2, 2, 3)
    assert layer_grid(network, "stem") == (16, 16, 24)
    for refused in (layer_grid, lambda *a: explain_volumes(a[0], volumes(), layer=a[1])):
        with pytest.raises(InputError, match="layer spare: the network does not pass through it"):
            refused(network, "spare")
    assert facts_of(network) == facts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_maps_of_a_cpu(method: str) -> None:
    network = small()
    expected, classes, probabilities = explain_volumes(network, volumes(), method=method, layer="layer2")
    found, others, scores = explain_volumes(network.cuda(), volumes().cuda(), method=method, layer="layer2")
    assert others.tolist() == classes.tolist()
    assert torch.allclose(scores, probabilities, atol=1e-3)
    assert torch.allclose(found, expected, atol=0.02 * float(expected.max()))


def test_a_tap_is_taken_out_after_an_error() -> None:
    network = small()
    inner = network.backbone.layer3
    with pytest.raises(RuntimeError, match="channels"), tapped(network, "layer3"):
        network.backbone(torch.rand(1, 2, 16, 16, 16))
    assert network.backbone.layer3 is inner
