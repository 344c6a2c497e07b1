from typing import Any

import numpy as np
import pytest
import torch

from cryo_monai.errors import InputError
from cryo_monai.picking import (
    ArrayTomogram,
    Template,
    rank_by_templates,
    rotation_grid,
    templates_from,
    top_per_class,
)
from cryo_monai.picking.correlation import Comparison, standardised
from cryo_monai.rotations import random_quaternions, rotation_matrices
from cryo_monai.simulation.assemblies import render_density
from cryo_monai.simulation.microscope import missing_wedge_mask

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EDGE, VOXEL = 16, 10.0


def blobs_of(seed: int) -> np.ndarray:
    """Centres `(n, 3)` in Å of a particle without symmetry, about 90 Å across."""
    return np.random.default_rng(seed).normal(scale=22.0, size=(6, 3)).clip(-32, 32)


def rendered(seed: int, rotation: np.ndarray, shift: np.ndarray, edge: int) -> np.ndarray:
    """Density without any interpolation, rotated and then moved by voxels."""
    centres = torch.as_tensor(blobs_of(seed) @ rotation.T + shift * VOXEL, dtype=torch.float32)
    masses = torch.linspace(5, 15, len(centres))
    return render_density(centres[None], masses, box=(edge,) * 3, voxel_size=VOXEL, resolution=30.0)[0].numpy()


def without_wedge(volume: np.ndarray, lowest: float = -60, highest: float = 60) -> np.ndarray:
    z, y, x = volume.shape
    mask = missing_wedge_mask((z, y, x), min_tilt_deg=lowest, max_tilt_deg=highest).numpy()
    return np.asarray(np.fft.irfftn(np.fft.rfftn(volume) * mask, s=volume.shape, axes=(0, 1, 2)), np.float32)


def template(seed: int, name: str = "") -> Template:
    return Template(name or f"t{seed}", rendered(seed, np.eye(3), np.zeros(3), EDGE), VOXEL)


def angle_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees between rotations `(..., 3, 3)`."""
    trace = np.einsum("...ij,...ij->...", first, second)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def tomogram_of(seeds: list[int], *, noise: float = 0.0) -> tuple[ArrayTomogram, np.ndarray, np.ndarray, np.ndarray]:
    """Dark particles in a row along y, their nominal positions, rotations, and true shifts from those."""
    rng = np.random.default_rng(5)
    rotations = rotation_matrices(random_quaternions(rng, len(seeds)))
    shifts = rng.integers(-1, 2, (len(seeds), 3))
    volumes = [rendered(s, r, t, 24) for s, r, t in zip(seeds, rotations, shifts, strict=True)]
    row = without_wedge(np.concatenate(volumes, axis=1))
    row = row + noise * row.std() * rng.normal(size=row.shape).astype(np.float32)
    positions = np.array([[12, 24 * n + 12, 12] for n in range(len(seeds))], float)
    return ArrayTomogram(-row), positions, rotations, shifts


@pytest.mark.parametrize("step", [90.0, 40.0, 20.0, 12.0])
def test_every_rotation_is_within_a_step_of_the_grid_and_few_more_than_needed(step: float) -> None:
    grid = rotation_grid(step)
    np.testing.assert_allclose(grid @ grid.transpose(0, 2, 1), np.broadcast_to(np.eye(3), grid.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(grid), 1)
    drawn = rotation_matrices(random_quaternions(np.random.default_rng(0), 2000))
    # The trace of R^T S is the product of the matrices as vectors.
    nearest = np.rad2deg(np.arccos(np.clip(((drawn.reshape(-1, 9) @ grid.reshape(-1, 9).T).max(1) - 1) / 2, -1, 1)))
    assert nearest.max() < 1.07 * step
    assert np.median(nearest) > 0.4 * step


def test_the_grid_is_repeatable_and_refuses_impossible_steps() -> None:
    np.testing.assert_array_equal(rotation_grid(33.0), rotation_grid(33.0))
    for step in (0.0, 91.0, float("nan")):
        with pytest.raises(InputError, match="1 to 90"):
            rotation_grid(step)


@pytest.mark.parametrize("device", DEVICES)
def test_particles_score_high_and_their_pose_is_found_within_the_step(device: str) -> None:
    tomogram, positions, rotations, shifts = tomogram_of([1, 1, 1, 1])
    ranking = rank_by_templates(tomogram, positions, [template(1)], angular_step_deg=18, device=device)
    assert ranking.scores.shape == (4, 1)
    assert (ranking.scores > 0.95).all()
    assert (ranking.scores <= 1).all()
    # Not always the nearest rotation scores best, but one close by.
    angles = angle_between(ranking.rotations[:, 0], rotations)
    assert angles.mean() < 18
    assert angles.max() < 1.5 * 18
    np.testing.assert_array_equal(ranking.shifts[:, 0], shifts)


@pytest.mark.parametrize("wedge", [(-60.0, 60.0), (-40.0, 60.0), None])
def test_a_particle_in_the_pose_of_a_template_correlates_perfectly(wedge: tuple[float, float] | None) -> None:
    settings: dict[str, Any] = {"voxel_size": VOXEL, "low_pass": None, "mask_radius": None}
    comparison = Comparison(EDGE, wedge_deg=wedge, device=torch.device("cpu"), **settings)
    rotation = rotation_matrices(random_quaternions(np.random.default_rng(1), 1))
    density = template(1).density
    turned = comparison.rotated_vectors(comparison.finer(density), torch.as_tensor(rotation, dtype=torch.float32))
    particle = rendered(1, rotation[0], np.zeros(3), EDGE)
    seen = particle if wedge is None else without_wedge(particle, *wedge)
    box = comparison.vectors(torch.from_numpy(standardised(seen))[None])
    assert float(turned @ box.T) > 0.995
    # Another wedge is not the same.
    other = comparison.vectors(torch.from_numpy(standardised(without_wedge(particle, -20, 20)))[None])
    assert float(turned @ other.T) < 0.9


def test_moved_vectors_are_those_of_moved_volumes() -> None:
    comparison = Comparison(
        EDGE, voxel_size=VOXEL, wedge_deg=None, low_pass=None, mask_radius=None, device=torch.device("cpu")
    )
    # Small enough that the mask cuts nothing but the mean.
    grid = np.stack(np.meshgrid(*[np.arange(EDGE) - 8] * 3, indexing="ij"))
    particle = np.exp(-0.5 * (grid**2).sum(0)).astype(np.float32)
    shift = (2, -1, 1)
    away = np.roll(particle, shift, axis=(0, 1, 2))
    centred, beside = (comparison.vectors(torch.from_numpy(v)[None]) for v in (particle, away))
    back = comparison.moved(beside, comparison.phases(torch.tensor([(0, 0, 0), shift])))
    assert float(back[1] @ centred[0]) > 0.98
    assert float(back[0] @ centred[0]) < 0.5


def test_noisy_particles_are_given_to_their_template() -> None:
    seeds = [1, 2] * 6
    tomogram, positions, _, _ = tomogram_of(seeds, noise=2.0)
    templates = [template(1), template(2)]
    ranking = rank_by_templates(tomogram, positions, templates, angular_step_deg=24, low_pass=30.0)
    right = ranking.scores.argmax(1) == np.array(seeds) - 1
    assert right.sum() >= 10
    assert ranking.names == ("t1", "t2")


def test_noise_scores_near_zero() -> None:
    rng = np.random.default_rng(0)
    tomogram = ArrayTomogram(rng.normal(size=(40, 42, 44)).astype(np.float32))
    positions = rng.uniform(8, 30, (20, 3))
    ranking = rank_by_templates(tomogram, positions, [template(1)], angular_step_deg=40)
    # The best of 33 x 170 tries with about 1000 independent coefficients.
    assert 0 < ranking.scores.mean() < 0.3


def test_scores_do_not_depend_on_brightness_batches_or_order() -> None:
    tomogram, positions, _, _ = tomogram_of([1, 2, 1, 2, 1], noise=1.0)
    templates = [template(1), template(2)]
    plain = rank_by_templates(tomogram, positions, templates, angular_step_deg=40)
    single = rank_by_templates(tomogram, positions, templates, angular_step_deg=40, batch=1)
    np.testing.assert_allclose(single.scores, plain.scores, atol=1e-5)
    np.testing.assert_array_equal(single.shifts, plain.shifts)
    bright = ArrayTomogram(500 - 1e-3 * tomogram.data.astype(np.float64))
    other = rank_by_templates(bright, positions[::-1], templates[::-1], angular_step_deg=40, dark=False)
    np.testing.assert_allclose(other.scores[::-1, ::-1], plain.scores, atol=0.01)
    wrong = rank_by_templates(tomogram, positions, templates, angular_step_deg=40, dark=False)
    assert (wrong.scores.max(1) < plain.scores.max(1)).all()


def test_shifts_lead_from_fractional_positions_to_the_particle() -> None:
    tomogram, positions, _, shifts = tomogram_of([1, 1])
    beside = positions + np.array([[0.4, -0.3, 0.2], [-0.2, 0.49, -1.4]])
    ranking = rank_by_templates(tomogram, beside, [template(1)], angular_step_deg=20)
    np.testing.assert_allclose(beside + ranking.shifts[:, 0], positions + shifts, atol=1e-9)


def test_boxes_at_the_faces_and_empty_lists_are_ranked() -> None:
    tomogram, _, _, _ = tomogram_of([1], noise=1.0)
    corners = np.array([[0, 0, 0], [23, 23, 23]])
    ranking = rank_by_templates(tomogram, corners, [template(1)], angular_step_deg=60)
    assert np.isfinite(ranking.scores).all()
    empty = ArrayTomogram(np.zeros((24, 24, 24), np.float32))
    assert rank_by_templates(empty, corners, [template(1)], angular_step_deg=60).scores.tolist() == [[0], [0]]
    none = rank_by_templates(tomogram, np.zeros((0, 3)), [template(1)], angular_step_deg=60)
    assert none.scores.shape == (0, 1)
    assert none.rotations.shape == (0, 1, 3, 3)


def test_progress_ends_at_all() -> None:
    tomogram, positions, _, _ = tomogram_of([1, 1, 1])
    steps: list[tuple[int, int]] = []
    rank_by_templates(
        tomogram,
        positions,
        [template(1), template(2)],
        angular_step_deg=60,
        batch=2,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"positions": [[1.0, 2.0]]}, r"shape \(1, 2\)"),
        ({"positions": [[5, 5, 5], [5, 5, 24]]}, r"1 of 2 are outside .* number 1, "),
        ({"positions": [[5, 5, float("nan")]]}, "outside"),
        ({"templates": []}, "none were given"),
        ({"templates": [template(1), Template("b", template(1).density, 5.0)]}, "make them alike"),
        ({"templates": [template(1), template(1)]}, "one name"),
        ({"templates": [Template("b", np.zeros((10, 12, 14), np.float32), 10.0)]}, "cube"),
        ({"templates": [Template("b", np.zeros((16, 16, 16), np.float32), 10.0)]}, "constant"),
        ({"wedge_deg": (60.0, -60.0)}, "wedge: tilts 60 to -60"),
        ({"low_pass": 200.0}, "low_pass: 200"),
        ({"mask_radius": 9.0}, "mask: radius 9"),
        ({"shift": 5}, "shift 5"),
        ({"angular_step_deg": 0.0}, "angular step"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], words: str) -> None:
    tomogram, positions, _, _ = tomogram_of([1])
    settings = {"positions": positions, "templates": [template(1)], "angular_step_deg": 90.0, **wrong}
    with pytest.raises(InputError, match=words):
        rank_by_templates(tomogram, settings.pop("positions"), settings.pop("templates"), **settings)


def test_top_per_class_gives_each_pick_to_its_best_template() -> None:
    scores = [[0.5, 0.1], [0.2, 0.6], [0.9, 0.8], [0.3, 0.7], [0.5, 0.4], [0.1, 0.65]]
    selection = top_per_class(scores, ["a", "b"], 2)
    assert selection.indices.tolist() == [2, 0, 3, 5]
    assert selection.class_names == ("a", "a", "b", "b")
    everything = top_per_class(scores, ["a", "b"], 100)
    assert sorted(everything.indices.tolist()) == [0, 1, 2, 3, 4, 5]
    assert top_per_class(np.zeros((0, 2)), ["a", "b"], 2).indices.tolist() == []
    for bad, names, count in ((scores, ["a"], 2), (scores, ["a", "b"], 0), ([0.1], ["a"], 1)):
        with pytest.raises(InputError, match="scores: shape"):
            top_per_class(bad, names, count)


def test_templates_come_from_the_simulators_structures_centred_and_bright() -> None:
    entries = ["t_200kda", {"source": "c2_64kda", "name": "small"}]
    made = templates_from(entries, voxel_size=12.0, resolution=30.0, box=20)
    assert [t.name for t in made] == ["t_200kda", "small"]
    for one in made:
        assert one.density.shape == (20, 20, 20)
        assert one.density.dtype == np.float32
        grid = np.stack(np.meshgrid(*[np.arange(20) - 10] * 3, indexing="ij"))
        centre = (grid * one.density).sum((1, 2, 3)) / one.density.sum()
        assert np.abs(centre).max() < 0.1
    assert made[0].density.sum() > 2.5 * made[1].density.sum() > 0
    with pytest.raises(InputError, match=r"template t_200kda: .* does not fit in a box of 8"):
        templates_from(entries, voxel_size=12.0, resolution=30.0, box=8)
