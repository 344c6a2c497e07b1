import numpy as np
import pytest

from cryo_monai.errors import InputError
from cryo_monai.simulation import SimulationSettings, Structure, SubtomogramSimulator, load_structures
from cryo_monai.simulation.packing import Packing, pack_tomogram
from cryo_monai.simulation.scenes import SceneRenderer

NAMES = ["c2_64kda", "c7_400kda", "d7_300kda", "o_440kda"]


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return load_structures(NAMES, voxel_size=10.0, resolution=20.0)


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(number) for number in range(count)]


def one_by_one(structures: list[Structure], packing: Packing, shape: tuple[int, int, int]) -> np.ndarray:
    """Which voxels are above each particle's own level: `(B, M, z, y, x)`."""
    renderer = SceneRenderer(structures)
    masks = []
    for particle in range(packing.members.shape[1]):
        arrays = (packing.members, packing.quaternions, packing.positions)
        only = [array[:, particle : particle + 1] for array in arrays]
        density = renderer.render(Packing(*only, packing.occupied), shape).numpy()
        levels = np.array([structures[kind].level for kind in packing.members[:, particle]])
        masks.append(density >= levels[:, None, None, None])
    return np.stack(masks, axis=1)


def test_neighbours_touch_without_overlap(structures: list[Structure]) -> None:
    simulator = SubtomogramSimulator(structures, SimulationSettings(neighbours=4))
    packing = simulator.pack(1, generators(8))
    masks = one_by_one(structures, packing, simulator.scene)
    overlap = (masks.sum(axis=1) > 1).sum() / masks.any(axis=1).sum()
    assert overlap < 0.005  # half a voxel of a step, at corners
    radii = np.array([s.radius for s in structures])[packing.members] / 10.0
    for row in range(8):
        distance = np.linalg.norm(packing.positions[row, 1:] - packing.positions[row, 0], axis=1)
        reach = radii[row, 0] + radii[row, 1:]
        assert distance[0] < reach[0] + 1e-6  # nearer than touching spheres
        assert (distance > 0).all()
    assert np.isclose(packing.occupied.sum(), masks.any(axis=1).sum(), rtol=0.15)


def test_targets_are_shifted_within_limits_and_neighbours_come_from_the_pool(structures: list[Structure]) -> None:
    simulator = SubtomogramSimulator(
        structures, SimulationSettings(neighbours=3, neighbour_classes="others", max_shift=4.0)
    )
    packing = simulator.pack(2, generators(60))
    assert np.abs(packing.positions[:, 0]).max() <= 4
    assert np.abs(packing.positions[:, 0]).max() > 3
    assert (packing.members[:, 0] == 2).all()
    assert set(packing.members[:, 1:].ravel()) == {0, 1, 3}
    everyone = SubtomogramSimulator(structures, SimulationSettings(neighbours=3)).pack(2, generators(60))
    assert set(everyone.members[:, 1:].ravel()) == {0, 1, 2, 3}
    others = load_structures(["t_200kda"], voxel_size=10.0, resolution=20.0)
    foreign = SubtomogramSimulator(structures, SimulationSettings(neighbours=3), neighbours=others)
    assert set(foreign.pack(2, generators(5)).members[:, 1:].ravel()) == {4}


def test_no_neighbours(structures: list[Structure]) -> None:
    simulator = SubtomogramSimulator(structures, SimulationSettings(neighbours=0))
    packing = simulator.pack(0, generators(3))
    assert packing.members.shape == (3, 1)
    volume = structures[0].mass_kda * 1212 / 1000
    assert packing.occupied.sum() / 3 == pytest.approx(volume, rel=0.3)


def test_a_tomogram_is_filled_without_overlap(structures: list[Structure]) -> None:
    shape = (32, 64, 80)
    packing = pack_tomogram(structures, 30, np.random.default_rng(0), voxel_size=10.0, shape=shape)
    masks = one_by_one(structures, packing, shape)
    assert (masks.sum(axis=1) > 1).sum() / masks.any(axis=1).sum() < 0.005
    assert (np.abs(packing.positions[0]) < np.array(shape) / 2).all()
    again = pack_tomogram(structures, 30, np.random.default_rng(0), voxel_size=10.0, shape=shape)
    assert np.array_equal(packing.positions, again.positions)
    assert 0.01 < packing.occupied.mean() < 0.3


def test_impossible_packings_get_one_line(structures: list[Structure]) -> None:
    with pytest.raises(InputError, match=r"only \d+ of 500 particles found room .* ask for fewer"):
        pack_tomogram(structures, 500, np.random.default_rng(0), voxel_size=10.0, shape=(24, 32, 32))
    with pytest.raises(InputError, match=r"larger than a tomogram of 120 x 640 x 640 Å"):
        pack_tomogram(structures[3:], 1, np.random.default_rng(0), voxel_size=10.0, shape=(12, 64, 64))
    with pytest.raises(InputError, match=r"c7_400kda: \d+ Å across, larger than a box of 12 voxels of 10 Å"):
        SubtomogramSimulator(structures, SimulationSettings(box=12, max_shift=1.0))
    with pytest.raises(InputError, match="needs two classes"):
        SubtomogramSimulator(structures[:1], SimulationSettings(neighbour_classes="others"))
