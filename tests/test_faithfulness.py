"""Hiding what matters first makes the probability fall first, and the mass of a map is counted in the particle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cryo_monai.errors import InputError
from cryo_monai.explanations import volume_explanations
from cryo_monai.explanations.faithfulness import blurred_clips, centred_ball, hiding_curves, mass_inside, random_map
from cryo_monai.explanations.faithfulness_pictures import faithfulness_figure
from cryo_monai.explanations.masks import THRESHOLD, ParticleMasks, posed
from cryo_monai.explanations.records import faithfulness_numbers
from cryo_monai.explanations.volume_explanations import VolumeExplainer
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.networks import VideoClassifier
from cryo_monai.reports.canvases import new_figure
from cryo_monai.simulation import SimulationSettings, write_dataset

of_monai = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # its OcclusionSensitivity

SHAPE = (10, 12, 14)
CORNER = (slice(1, 4), slice(2, 6), slice(8, 12))


class Corner(nn.Module):
    """Sees one corner of the clip and nothing else."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, clips: Tensor) -> Tensor:
        return (clips[:, 0] * self.mask).mean((1, 2, 3))[:, None]


def corner_mask() -> Tensor:
    mask = torch.zeros(SHAPE)
    mask[CORNER] = 1
    return mask


def watching(time_axis: str = "z") -> VideoClassifier:
    """A network whose first class is the brightness of the corner; the clip is the volume."""
    turn = {"z": (0, 1, 2), "y": (1, 2, 0), "x": (2, 0, 1)}[time_axis]
    mask = corner_mask().permute(turn)
    network = VideoClassifier(2, backbone="rb3d", clip_size=list(mask.shape), time_axis=time_axis)
    network.backbone = Corner(mask)
    network.head = nn.Linear(1, 2, bias=False)
    network.head.weight.data = torch.tensor([[400.0], [0.0]])
    return network


def bright_corner() -> Tensor:
    noise = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return (noise * 0.1 + corner_mask())[None, None]


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_the_map_of_what_the_network_sees_is_better_than_its_opposite_and_than_chance(axis: str) -> None:
    network = watching(axis)
    maps = torch.stack([corner_mask(), 1 - corner_mask(), random_map(SHAPE, seed=1)])
    curves = hiding_curves(network, bright_corner().expand(3, -1, -1, -1, -1), maps, [0, 0, 0], steps=20)
    assert curves.fractions.tolist() == pytest.approx(np.linspace(0, 1, 21).tolist())
    right, wrong, chance = curves.deletion_areas
    assert right < chance < wrong
    right, wrong, chance = curves.insertion_areas
    assert wrong < chance < right
    # The corner is 48 of 1680 voxels: one step of twenty hides all of it.
    hidden = curves.deletion[0, -1]
    assert curves.deletion[0, 1] == pytest.approx(hidden, abs=0.01)
    assert curves.insertion[0, 1] == pytest.approx(curves.deletion[0, 0], abs=0.01)


def test_curves_begin_and_end_at_the_volume_and_at_the_blurred_one() -> None:
    network = watching()
    volume = bright_corner()
    curves = hiding_curves(network, volume, random_map(SHAPE)[None], [0], steps=4)
    with torch.no_grad():
        whole = float(network.eval()(volume).softmax(-1)[0, 0])
        clip = blurred_clips(network.make_clips(volume))
        hidden = float(network.head(network.extract_features(clip)).softmax(-1)[0, 0])
    assert curves.deletion[0, [0, -1]] == pytest.approx([whole, hidden], abs=1e-6)
    assert curves.insertion[0, [0, -1]] == pytest.approx([hidden, whole], abs=1e-6)
    # Insertion of half of the voxels is deletion of the other half.
    opposite = hiding_curves(network, volume, -random_map(SHAPE)[None], [0], steps=4)
    assert opposite.insertion[0] == pytest.approx(curves.deletion[0, ::-1], abs=1e-6)
    both = curves.either_way()
    assert both.deletion == pytest.approx((curves.deletion + opposite.deletion) / 2, abs=1e-6)
    assert both.insertion == pytest.approx((curves.insertion + opposite.insertion) / 2, abs=1e-6)
    assert both.gains == pytest.approx(0, abs=1e-12)
    assert curves.gains == pytest.approx(-opposite.gains, abs=1e-6)
    assert abs(curves.gains[0]) > 0.01


def test_calibration_changes_no_curve() -> None:
    network = watching()
    volume, found = bright_corner(), random_map(SHAPE)[None]
    expected = hiding_curves(network, volume, found, [0], steps=4)
    network.temperature = 5.0
    curves = hiding_curves(network, volume, found, [0], steps=4)
    assert network.temperature == 5.0
    assert np.array_equal(curves.deletion, expected.deletion)
    assert np.array_equal(curves.insertion, expected.insertion)


def explained_by(networks: dict[str, VideoClassifier], folder: Path, count: int = 3) -> dict[str, object]:
    """Occlusion maps of noisy volumes with the bright corner, judged."""
    folder.mkdir(exist_ok=True)
    names = {key: key for key in networks}
    explainer = VolumeExplainer(folder, networks, "occlusion", "", "class_0", True, None, names)
    entries = []
    for seed in range(count):
        volume = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.1 + corner_mask()
        item = {"path": f"{seed}", "image": volume.numpy()}
        entries.append(explainer.explain(item, volume[None], f"{seed}"))
    return faithfulness_numbers(entries, heading="occlusion", names=names)


@of_monai
def test_neither_confidence_nor_calibration_nor_an_untrained_network_makes_an_advantage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = new_figure(1, width=1, label="blank")
    monkeypatch.setattr(volume_explanations, "explanation_panel", lambda *arguments, **options: blank)
    torch.manual_seed(0)
    untrained = VideoClassifier(2, backbone="resnet18", clip_size=SHAPE, backbone_options={"widths": [4, 8, 16, 32]})
    dull, sure = watching(), watching()
    dull.temperature = 9.0
    networks = {"run": sure, "compared": dull}
    orders = {key: network["orders"] for key, network in explained_by(networks, tmp_path / "a")["networks"].items()}
    assert orders["run"] == orders["compared"]
    low, high = orders["run"]["map"]["advantage"]["interval"]
    assert 0.1 < low < high
    # One that is sure of itself, whatever it sees, has the largest insertion area of all.
    untrained.head[1].bias.data = torch.tensor([9.0, 0.0])
    blind = explained_by({"run": untrained}, tmp_path / "b")["networks"]["run"]["orders"]["map"]
    assert blind["insertion"]["mean"] > orders["run"]["map"]["insertion"]["mean"]
    untrained.head[1].bias.data = torch.zeros(2)
    unsure = explained_by({"run": untrained}, tmp_path / "c")["networks"]["run"]["orders"]["map"]
    for one in (blind, unsure):
        # What it occludes does change its scores, by next to nothing.
        assert all(abs(end) < 0.05 * low for end in one["advantage"]["interval"])


@of_monai
def test_the_figure_never_draws_two_networks_on_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = new_figure(1, width=1, label="blank")
    monkeypatch.setattr(volume_explanations, "explanation_panel", lambda *arguments, **options: blank)
    numbers = explained_by({"run": watching(), "compared": watching()}, tmp_path)
    for number, network in enumerate(numbers["networks"].values()):
        for order in network["orders"].values():
            order["curves"]["deletion"]["mean"] = [number] * 21  # to tell them apart
    figure = faithfulness_figure(json.loads(json.dumps(numbers)))
    summary, *curves = figure.axes
    assert [label.get_text() for label in summary.get_yticklabels()] == ["run", "ball", "compared", "ball"]
    assert [axis.get_title() for axis in curves] == ["run", "compared", "", ""]
    for number, axis in enumerate(curves[:2]):
        drawn = [line.get_ydata()[0] for line in axis.get_lines()]
        assert drawn == [number] * 3  # the map, and this network's own two controls


def test_a_batch_has_the_curves_of_its_volumes() -> None:
    network = watching()
    batch = torch.cat([bright_corner(), bright_corner().flip(2)])
    maps = torch.stack([random_map(SHAPE, seed=seed) for seed in (1, 2)])
    curves = hiding_curves(network, batch, maps, [0, 1], steps=3)
    for row in range(2):
        alone = hiding_curves(network, batch[row : row + 1], maps[row : row + 1], [row], steps=3)
        assert np.array_equal(alone.deletion[0], curves.deletion[row])
        assert np.array_equal(alone.insertion[0], curves.insertion[row])


def test_blur_keeps_constants_and_the_clip_hardly_shows_a_particle_afterwards() -> None:
    assert torch.allclose(blurred_clips(torch.full((1, 1, *SHAPE), 3.0)), torch.tensor(3.0))
    blurred = blurred_clips(corner_mask()[None, None])
    assert blurred.max() - blurred.min() < 0.2


def test_mass_inside_is_the_share_in_the_mask_and_of_a_flat_map_the_share_of_the_volume() -> None:
    masks = torch.zeros(4, *SHAPE, dtype=torch.bool)
    masks[(slice(None), *CORNER)] = True
    maps = torch.stack([masks[0].float(), 1 - masks[0].float(), torch.ones(SHAPE), torch.zeros(SHAPE)])
    found = mass_inside(maps, masks)
    assert found[:3] == pytest.approx([1, 0, 48 / 1680])
    assert np.isnan(found[3])
    assert np.array_equal(mass_inside(7 * maps, masks)[:3], found[:3])
    with pytest.raises(InputError, match="different shapes"):
        mass_inside(maps, masks[:, 1:])


def test_controls_know_where_particles_are_cut_to_be_and_nothing_else() -> None:
    ball = centred_ball(SHAPE)
    assert np.unravel_index(int(ball.argmax()), SHAPE) == (5, 6, 7)
    assert torch.equal(random_map(SHAPE, seed=3), random_map(SHAPE, seed=3))
    assert not torch.equal(random_map(SHAPE, seed=3), random_map(SHAPE, seed=4))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        hiding_curves(watching(), bright_corner(), torch.ones(1, 9, 12, 14), [0])


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles among neighbours, and the same particles alone."""
    folder = tmp_path_factory.mktemp("crowded")
    for name, neighbours in (("alone", 0), ("crowd", 3)):
        settings = SimulationSettings(
            box=24, voxel_size=10.0, resolution=30.0, snr=2.0, max_shift=3.0, neighbours=neighbours
        )
        write_dataset(folder / name, settings, num_per_class=4, structures=("c2_64kda", "o_440kda"))
    return folder


@pytest.mark.parametrize("name", ["alone", "crowd"])
def test_the_mask_is_the_particle_in_its_pose_without_its_neighbours(crowded: Path, name: str) -> None:
    content = json.loads((crowded / name / "dataset.json").read_text())
    masks = ParticleMasks()
    for item in content["training"]:
        mask = masks.of(crowded / name / item["image"])
        structure = read_mrc(crowded / name / "structures" / f"{item['class_name']}.mrc").data
        scene = read_mrc(crowded / name / item["clean"]).data > THRESHOLD * structure.max()
        turned = posed(structure, item["quaternion_wzyx"], item["shift_voxels_zyx"]) > THRESHOLD * structure.max()
        assert mask.shape == (24, 24, 24)
        assert 2 * (mask & turned).sum() / (mask.sum() + turned.sum()) > 0.85
        # All of the particle is in the scene, and the scene holds more where there are neighbours.
        assert (mask & scene).sum() > 0.85 * mask.sum()
        if name == "crowd":
            assert scene.sum() > 1.2 * mask.sum()


def test_volumes_of_other_origin_have_no_mask(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", np.ones(SHAPE, np.float32), voxel_size=10.0)
    assert ParticleMasks().of(tmp_path / "a.mrc") is None
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "a.mrc", "label": 0}]}))
    assert ParticleMasks().of(tmp_path / "a.mrc") is None
