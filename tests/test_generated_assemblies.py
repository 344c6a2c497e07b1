"""Generated assemblies: what they are, how they lie, that they are none of the targets; and what is learnt of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryo_monai.datasets import ResumableSampler
from cryo_monai.errors import InputError
from cryo_monai.generation import ClipGenerator, ClipNumbers, GeneratedBatches, GeneratedTasksLoss, OwnTask
from cryo_monai.generation.batches import HELD_OUT
from cryo_monai.generation.counters import sample_keys, uniforms
from cryo_monai.generation.particles import (
    FIRST_SEED,
    MAX_BLOBS,
    NUM_PARAMETERS,
    SYMMETRIES,
    AssemblyBank,
    Poses,
    assembly_bank,
    draw_assembly,
    draw_poses,
    render_particles,
    uniform_quaternions,
)
from cryo_monai.simulation.assemblies import ANGSTROM3_PER_KDA, ASSEMBLIES, render_density

SIZE = (10, 12, 14)
BANK = 4096
STEP = 2.0  # Å, of the table of distances
# A target whose blobs are moved by 1 Å is nearer than this to itself; no generated assembly is to any target.
NEAR = 0.5


@pytest.fixture(scope="module")
def bank() -> AssemblyBank:
    return assembly_bank(BANK)


def distance_shares(centres: Tensor, masses: Tensor) -> Tensor:
    """Share of pairs of mass that lie nearer than each distance: `(B, 200)`, the same however a particle is turned.

    Blobs are solid spheres: of two, the root of the mean squared distance is taken.
    """
    squares = 0.6 * (3 * masses * ANGSTROM3_PER_KDA / (4 * torch.pi)) ** (2 / 3)
    distances = (torch.cdist(centres, centres) ** 2 + squares[:, :, None] + squares[:, None]).sqrt()
    bins = (distances / STEP).long().clamp(max=199).flatten(1)
    pairs = (masses[:, :, None] * masses[:, None]).flatten(1)
    counted = torch.zeros(len(centres), 200).scatter_add_(1, bins, pairs)
    return counted.cumsum(1) / counted.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def generated(bank: AssemblyBank) -> Tensor:
    parts = zip(bank.centres.split(256), bank.masses.split(256), strict=True)
    return torch.cat([distance_shares(centres, masses) for centres, masses in parts])


def farthest_from(generated: Tensor, centres: np.ndarray, masses: np.ndarray) -> None:
    """Check that nothing generated is near; distances are mean differences in Å of sorted distances of pairs."""
    centres, masses = torch.as_tensor(centres).float()[None], torch.as_tensor(masses).float()[None]
    target = distance_shares(centres, masses)
    moved = centres + 1.0 / 3**0.5 * torch.randn(centres.shape, generator=torch.Generator().manual_seed(0))
    assert STEP * (distance_shares(moved, masses) - target).abs().sum() < NEAR
    assert (STEP * (generated - target).abs().sum(1)).min() > NEAR


@pytest.mark.parametrize("target", ASSEMBLIES, ids=lambda target: target.name)
def test_no_generated_assembly_is_one_of_the_simulators(generated: Tensor, target: object) -> None:
    farthest_from(generated, *target.blobs())  # type: ignore[attr-defined]


def test_no_generated_assembly_is_one_of_the_atomic_models(generated: Tensor, shared_data: Path) -> None:
    from cryo_monai.simulation.atoms import read_model

    files = sorted((shared_data / "pdb").iterdir())
    assert len(files) == 10
    for file in files:
        model = read_model(file, unknown_residues="as_written")
        cells, which, counts = np.unique(
            np.floor(model.positions / 12), axis=0, return_inverse=True, return_counts=True
        )
        centres = np.zeros((len(cells), 3))
        np.add.at(centres, which.ravel(), model.positions)
        farthest_from(generated, centres / counts[:, None], model.mass_kda * counts / counts.sum())


def test_seeds_and_names_are_not_those_of_the_targets(bank: AssemblyBank) -> None:
    drawn = [draw_assembly(number) for number in range(200)]
    assert max(target.seed for target in ASSEMBLIES) < FIRST_SEED <= min(assembly.seed for assembly in drawn)
    assert len({assembly.seed for assembly in drawn}) == 200
    assert len(set(bank.names)) == BANK
    assert not set(bank.names) & {target.name for target in ASSEMBLIES}


def test_a_bank_fits_and_a_larger_one_begins_with_the_same(bank: AssemblyBank) -> None:
    small = assembly_bank(20)
    assert small.names == bank.names[:20]
    for one, other in zip(
        (small.centres, small.masses, small.radii, small.symmetries),
        (bank.centres, bank.masses, bank.radii, bank.symmetries),
        strict=True,
    ):
        assert torch.equal(one, other[:20])
    masses = bank.masses.sum(1)
    assert ((masses > 59) & (masses < 801)).all()
    expected = torch.tensor([draw_assembly(number).mass_kda for number in range(200)])
    torch.testing.assert_close(masses[:200], expected.float())
    assert (bank.masses > 0).sum(1).max() <= MAX_BLOBS
    assert (torch.einsum("nb,nbc->nc", bank.masses, bank.centres) / masses[:, None]).abs().max() < 1e-3
    assert set(bank.symmetries.tolist()) == set(range(len(SYMMETRIES)))


def fold_of(name: str) -> int:
    return {"T": 2, "O": 4}.get(name) or int(name[1:])


def alone(bank: AssemblyBank, members: Tensor, rotations: Tensor, size: tuple[int, int, int] = (20, 20, 20)) -> Tensor:
    """Render particles in the middle of clips, without neighbours; an odd size would put a voxel there."""
    count = len(members)
    absent = torch.full((count, 2), -1)
    turns = torch.eye(3).expand(count, 3, 3, 3).clone()
    turns[:, 0] = rotations
    poses = Poses(
        torch.cat([members[:, None], absent], 1), turns, torch.zeros(count, 3, 3), torch.full((count,), 400.0)
    )
    return render_particles(poses, bank, size)


def test_assemblies_are_themselves_after_a_turn_about_their_axis(bank: AssemblyBank) -> None:
    members = torch.tensor([bank.symmetries.tolist().index(kind) for kind in range(1, len(SYMMETRIES))])
    folds = [fold_of(SYMMETRIES[int(bank.symmetries[member])]) for member in members]
    poses = torch.as_tensor(Rotation.random(len(members), rng=3).as_matrix()).float()
    axes = poses[:, :, 0]  # where z goes
    about = [2 * math.pi / fold for fold in folds]
    turn = np.stack(
        [Rotation.from_rotvec(a * axis.double().numpy()).as_matrix() for a, axis in zip(about, axes, strict=True)]
    )
    half_way = np.stack(
        [Rotation.from_rotvec(a / 2 * axis.double().numpy()).as_matrix() for a, axis in zip(about, axes, strict=True)]
    )
    still = alone(bank, members, poses)
    turned = alone(bank, members, torch.as_tensor(turn).float() @ poses)
    torch.testing.assert_close(turned, still, atol=1e-4 * float(still.max()), rtol=0)
    between = alone(bank, members, torch.as_tensor(half_way).float() @ poses)
    off = (between - still).flatten(1).norm(dim=1) / still.flatten(1).norm(dim=1)
    assert (off > 0.05).float().mean() > 0.8


def test_mass_is_conserved_within_the_box_and_turning_changes_none(bank: AssemblyBank) -> None:
    members = torch.nonzero(bank.radii < 120)[:40, 0]
    for size in (SIZE, (20, 20, 20)):
        turns = torch.as_tensor(Rotation.random(40, rng=5).as_matrix()).float()
        made = alone(bank, members, turns, size)
        torch.testing.assert_close(
            made.sum((1, 2, 3)), bank.masses[members].sum(1), rtol=1e-2, atol=0
        )  # voxels of 40 Å
        assert (made >= 0).all()


def test_crowded_clips_are_sums_of_what_the_simulator_renders(bank: AssemblyBank) -> None:
    numbers = uniforms(sample_keys(1, torch.arange(40)), NUM_PARAMETERS, stream=0)
    poses = draw_poses(numbers, torch.arange(40) % BANK, bank, crowded=torch.full((40,), 0.6))
    assert 10 < (poses.members[:, 1] >= 0).sum() < 35
    made = render_particles(poses, bank, SIZE)
    expected = torch.zeros_like(made)
    for clip, place in torch.nonzero(poses.members >= 0).tolist():
        member, voxels = poses.members[clip, place], poses.extents[clip] / torch.tensor(SIZE)
        centres = bank.centres[member] @ poses.rotations[clip, place].T + poses.places[clip, place]
        options = {"box": SIZE, "voxel_size": voxels, "resolution": max(20.0, 2 * float(voxels.max()))}
        expected[clip] += render_density(centres[None], bank.masses[member], **options)[0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["assemblies", "sprites"])
def test_a_clip_of_another_size_shows_the_same_signal(task: str) -> None:
    whole = {"noise_prob": 0.0, "shape_prob": 0.0, "wedge_prob": 0.0, "transfer_prob": 0.0}
    clips = ClipGenerator((40, 48, 44), {task: 1.0}, num_assemblies=8, degradation=whole, clip_scales=[1.0, 0.5])
    assert clips.sizes == [(40, 48, 44), (20, 24, 22)]
    numbers = torch.arange(24)
    large, labels = clips.generate(numbers)
    small, same = clips.generate(numbers, size=clips.sizes[1])
    torch.testing.assert_close(same, labels, atol=0, rtol=0, equal_nan=True)
    means = torch.nn.functional.avg_pool3d(large, 2)
    pairs = torch.stack([means.flatten(1), small.flatten(1)], 1)
    alike = [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
    others = [float(torch.corrcoef(torch.stack([pairs[row - 1, 0], pairs[row, 1]]))[0, 1]) for row in range(24)]
    assert min(alike) > 0.9
    assert max(others) < min(alike)


def test_the_target_of_the_axis_follows_the_pose() -> None:
    clips = ClipGenerator(SIZE, {"assemblies": 1.0}, num_assemblies=32, axis_head=True, symmetry_head=True)
    _, targets = clips.generate(torch.arange(300))
    kinds, known = targets[:, 1].long(), ~targets[:, 2].isnan()
    assert torch.equal(kinds, assembly_bank(32).symmetries[targets[:, 0].long()])
    assert torch.equal(known, (kinds > 0) & (kinds < SYMMETRIES.index("T")))
    zz, yy, xx, zy, zx, yx = targets[known, 2:].unbind(1)
    torch.testing.assert_close(zz + yy + xx, torch.ones(len(zz)))
    matrices = torch.stack([zz, zy, zx, zy, yy, yx, zx, yx, xx], 1).view(-1, 3, 3)
    torch.testing.assert_close(matrices @ matrices, matrices, atol=1e-5, rtol=0)
    assert matrices.mean(0).sub(torch.eye(3) / 3).abs().max() < 0.06
    numbers = uniforms(sample_keys(0, torch.arange(50)), NUM_PARAMETERS, stream=0)
    bank = assembly_bank(32)
    poses = draw_poses(numbers, torch.arange(50) % 32, bank, crowded=torch.zeros(50))
    moved = bank.centres[torch.arange(50) % 32, 0] @ poses.rotations[0, 0].T
    torch.testing.assert_close(moved.norm(dim=1), bank.centres[torch.arange(50) % 32, 0].norm(dim=1))
    torch.testing.assert_close(torch.linalg.det(poses.rotations), torch.ones(50, 3))


def test_random_rotations_are_uniform() -> None:
    numbers = np.random.default_rng(0).random((20_000, 3))
    quaternions = uniform_quaternions(numbers)
    assert np.linalg.norm(quaternions, axis=1) == pytest.approx(1)
    second_moments = np.einsum("ni,nj->ij", quaternions, quaternions) / len(quaternions)
    assert np.abs(second_moments - np.eye(4) / 4).max() < 0.01
    # Of a uniform rotation, the angle has the density (1 - cos) / pi: its mean is pi / 2 + 2 / pi.
    angles = 2 * np.arccos(np.abs(quaternions[:, 0]).clip(max=1))
    assert angles.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)


def test_neighbours_are_as_many_as_asked_for_and_stay_outside(bank: AssemblyBank) -> None:
    numbers = uniforms(sample_keys(1, torch.arange(2000)), NUM_PARAMETERS, stream=0)
    classes = torch.arange(2000) % BANK
    poses = draw_poses(numbers, classes, bank, crowded=torch.full((2000,), 0.4))
    assert torch.equal(poses.members[:, 0], classes)
    there = poses.members[:, 1:] >= 0
    assert there.any(1).float().mean() == pytest.approx(0.4, abs=0.04)
    assert there.all(1).float().mean() == pytest.approx(0.2, abs=0.04)
    gaps = (poses.places[:, 1:] - poses.places[:, :1]).norm(dim=2)
    radii = bank.radii[poses.members.clamp(min=0)]
    sums = radii[:, :1] + radii[:, 1:]
    assert (gaps >= 0.79 * sums)[there].all()
    assert (gaps <= 1.05 * sums)[there].all()
    assert (poses.places[:, 0].abs() <= 0.081 * poses.extents[:, None]).all()
    assert (poses.extents >= 2.09 * radii[:, 0]).all()
    assert not (draw_poses(numbers, classes, bank, crowded=torch.zeros(2000)).members[:, 1:] >= 0).any()


def tasks(**options: bool) -> ClipGenerator:
    shares = {"fields": 1.0, "sprites": 1.0, "assemblies": 1.0}
    return ClipGenerator(SIZE, shares, num_assemblies=5, **options)


def test_the_loss_is_the_mean_of_each_clips_own_cross_entropy() -> None:
    clips = tasks()
    _, targets = clips.generate(torch.arange(40))
    scores = torch.randn(40, clips.num_outputs, requires_grad=True)
    loss = GeneratedTasksLoss(clips)(scores, targets)
    ends = np.cumsum([0, *(len(names) for names in clips.groups.values())]).tolist()
    own = []
    for row, label in enumerate(targets[:, 0].long().tolist()):
        place = np.searchsorted(ends, label, side="right") - 1
        within = scores[row, ends[place] : ends[place + 1]]
        own.append(torch.nn.functional.cross_entropy(within, torch.tensor(label - ends[place])))
    torch.testing.assert_close(loss, torch.stack(own).mean())
    loss.backward()
    for row, label in enumerate(targets[:, 0].long().tolist()):
        place = np.searchsorted(ends, label, side="right") - 1
        outside = torch.ones(clips.num_outputs, dtype=torch.bool)
        outside[ends[place] : ends[place + 1]] = False
        assert (scores.grad[row, outside] == 0).all()
        assert (scores.grad[row, ~outside] != 0).all()


def test_the_heads_of_symmetry_and_axis_ask_assemblies_only() -> None:
    clips = tasks(symmetry_head=True, axis_head=True)
    _, targets = clips.generate(torch.arange(60))
    loss = GeneratedTasksLoss(clips, symmetry_weight=0.5, axis_weight=2.0)
    symmetry, axis = loss.ranges["symmetry"], loss.ranges["axis"]
    assert (symmetry.stop, axis.stop) == (axis.start, clips.num_outputs)
    scores = torch.zeros(60, clips.num_outputs)
    base = loss(scores, targets) - 0.5 * math.log(len(SYMMETRIES))
    known = ~targets[:, 2].isnan()
    mean_square = targets[known, 2:].square().mean()
    torch.testing.assert_close(
        base - 2 * mean_square, GeneratedTasksLoss(tasks())(scores[:, : symmetry.start], targets)
    )
    scores[known, axis] = targets[known, 2:]
    rows = targets[:, 1] >= 0
    scores[rows, symmetry.start + targets[rows, 1].long()] = 50.0
    torch.testing.assert_close(loss(scores, targets), base - 2 * mean_square)
    scores.requires_grad_()
    loss(scores, targets).backward()
    assert (scores.grad[~rows, symmetry] == 0).all()
    assert (scores.grad[~known, axis] == 0).all()
    without = targets[~rows]
    assert torch.isfinite(loss(torch.zeros(len(without), clips.num_outputs), without))


def test_accuracies_are_those_of_each_task() -> None:
    clips = tasks(symmetry_head=True)
    _, targets = clips.generate(torch.arange(90))
    classes = targets[:, 0].long()
    scores = torch.zeros(90, clips.num_outputs)
    scores[:, (0, 140, 210)] = 5.0  # wrong answers of every task, higher than right ones of others
    scores[torch.arange(90), classes] = torch.where(torch.arange(90) % 3 > 0, 9.0, -9.0)
    own, labels = OwnTask(clips)({"pred": scores, "label": targets})
    assert own.shape == (90, clips.num_outputs - len(SYMMETRIES))
    assert torch.equal(labels, classes)
    right = own.argmax(1) == labels
    assert torch.equal(right, torch.arange(90) % 3 > 0)
    counts = 0
    for task, (first, last) in {"fields": (0, 135), "sprites": (135, 207), "assemblies": (207, 212)}.items():
        of_task, labels = OwnTask(clips, task)({"pred": scores, "label": targets})
        assert ((labels >= first) & (labels < last)).all()
        assert torch.isinf(of_task[:, :first]).all()
        assert torch.isinf(of_task[:, last:]).all()
        counts += len(labels)
    assert counts == 90
    with pytest.raises(InputError, match="'films' is not one of fields, sprites, assemblies"):
        OwnTask(clips, "films")


class Numbers:
    """Returns the numbers that clips would be made of, twice."""

    def __init__(self, sizes: Sequence[tuple[int, int, int]] = ((8, 8, 8),)) -> None:
        self.sizes = list(sizes)
        self.made: list[int] = []

    def at_once(self) -> int:
        return 20

    def generate(self, numbers: Tensor, device: str, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        self.made.append(len(numbers))
        return numbers + 1000 * size[0], -numbers


def loader(count: int, **options: Any) -> GeneratedBatches:
    numbers = ClipNumbers(Numbers(), count)  # type: ignore[arg-type]
    return GeneratedBatches(numbers, 8, **options)


def test_epochs_have_clips_of_their_own_and_none_are_those_held_out() -> None:
    training, held_out = loader(100), loader(30, held_out=True)
    seen: list[int] = []
    for epoch in (1, 2, 3, 1000):
        for batches in (training, held_out):
            batches.set_epoch(epoch)
        seen += torch.cat([batch["image"] for batch in training]).sub(8000).tolist()
        kept = torch.cat([batch["image"] for batch in held_out])
        assert kept.sub(8000).tolist() == list(range(HELD_OUT, HELD_OUT + 30))
    assert len(set(seen)) == 400
    assert 0 <= min(seen) < max(seen) < HELD_OUT


def test_batches_come_in_the_order_of_the_sampler_and_some_are_made_at_once() -> None:
    order = list(range(43, 0, -1))
    batches = loader(44, sampler=order)
    assert len(batches) == 6
    seen = list(batches)
    assert [(batch["image"] - 8000).tolist() for batch in seen] == [
        order[first : first + 8] for first in range(0, 43, 8)
    ]
    assert torch.equal(torch.cat([batch["label"] for batch in seen]), -torch.tensor(order))
    assert batches.clips.made == [16, 16, 11]  # type: ignore[attr-defined]
    whole = loader(44, sampler=order, drop_last=True)
    assert [len(batch["image"]) for batch in whole] == [8] * 5


def test_batches_take_the_sizes_in_turn_wherever_an_iteration_begins() -> None:
    clips = Numbers([(4, 4, 4), (6, 6, 6), (8, 8, 8)])
    sampler = ResumableSampler(ClipNumbers(clips, 90), seed=1)  # type: ignore[arg-type]
    batches = GeneratedBatches(ClipNumbers(clips, 90), 8, sampler=sampler)  # type: ignore[arg-type]
    whole = [batch["image"].tolist() for batch in batches]
    assert clips.made == [16, 16, 16, 16, 16, 10]
    assert [{number // 1000 for number in batch} for batch in whole] == [{4}, {6}, {8}] * 4
    assert sorted(number % 1000 for batch in whole for number in batch) == list(range(90))
    for done in range(1, 12):
        sampler.skip = done * 8
        assert [batch["image"].tolist() for batch in batches] == whole[done:]


def test_batches_larger_than_what_is_made_at_once_are_whole() -> None:
    numbers = ClipNumbers(Numbers(), 50)  # type: ignore[arg-type]
    assert [len(batch["image"]) for batch in GeneratedBatches(numbers, 30)] == [30, 20]


@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.0, 0.75]])
@pytest.mark.parametrize("done", [1, 31, 32, 45])
def test_an_iteration_that_begins_later_has_the_same_clips_bit_for_bit(done: int, scales: list[float]) -> None:
    shares = {"fields": 1.0, "sprites": 1.0, "assemblies": 2.0}
    clips = ClipGenerator((16, 16, 16), shares, num_assemblies=5, clip_scales=scales)
    numbers = ClipNumbers(clips, 400)
    sampler = ResumableSampler(numbers, seed=1)
    batches = GeneratedBatches(numbers, 8, sampler=sampler)
    whole = list(batches)
    assert [batch["image"].shape[2:] for batch in whole[: len(scales)]] == [torch.Size(size) for size in clips.sizes]
    sampler.skip = done * 8
    rest = list(batches)
    assert len(rest) == 50 - done
    for batch, same in zip(rest, whole[done:], strict=True):
        assert torch.equal(batch["image"], same["image"])
        assert torch.equal(batch["label"].nan_to_num(9.0), same["label"].nan_to_num(9.0))
    assert sampler.skip == 0


def test_an_epoch_is_numbers_and_says_what_they_stand_for() -> None:
    numbers = ClipNumbers(tasks(), 7)
    assert [item["index"] for item in numbers] == list(range(7))
    assert numbers.description()["clips_per_epoch"] == 7
    assert numbers.description()["sizes"] == [list(SIZE)]
    assert numbers.description()["classes"] == {"fields": 135, "sprites": 72, "assemblies": 5}
    with pytest.raises(InputError, match="must be 1 or more"):
        ClipNumbers(tasks(), 0)
