"""Boxes around any point, at any voxel size and pose."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryo_monai.errors import InputError
from cryo_monai.resampling import RESCALINGS, cut_box, fourier_matrix, lanczos_matrix, turned

SHAPE = (40, 44, 48)


class InMemory:
    def __init__(self, data: np.ndarray) -> None:
        self.data = data.astype(np.float32)
        self.shape = data.shape
        self.reads: list[int] = []

    def read(self, start: list[int], stop: list[int]) -> np.ndarray:
        part = self.data[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        self.reads.append(part.size)
        return part.copy()


def blob(
    centre: tuple[float, float, float], widths: tuple[float, float, float], shape: tuple[int, int, int]
) -> np.ndarray:
    grid = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.exp(-sum(((g - c) / w) ** 2 / 2 for g, c, w in zip(grid, centre, widths, strict=True)))


@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_a_whole_place_at_the_same_voxel_size_is_a_copy(rescaling: str) -> None:
    noise = InMemory(np.random.default_rng(0).normal(size=SHAPE))
    box, inside = cut_box(noise, (17, 20, 23), 10, rescaling=rescaling)
    assert np.array_equal(box, noise.data[12:22, 15:25, 18:28])
    assert inside == 1.0


@pytest.mark.parametrize(("rescaling", "tolerance"), [("fourier", 1e-3), ("lanczos", 0.01)])
@pytest.mark.parametrize("spacing", [1.0, 1.37, 2.0])
def test_the_place_is_voxel_half_of_the_box_to_a_fraction_of_a_voxel(
    rescaling: str, tolerance: float, spacing: float
) -> None:
    centre, widths = (19.3, 21.6, 24.2), (3.0, 3.4, 3.8)
    tomogram = InMemory(blob(centre, widths, SHAPE))
    box, _ = cut_box(tomogram, centre, 12, spacing=spacing, rescaling=rescaling)
    steps = (np.arange(12) - 6) * spacing
    expected = np.exp(-((steps[:, None, None] / 3.0) ** 2 + (steps[:, None] / 3.4) ** 2 + (steps / 3.8) ** 2) / 2)
    assert abs(box - expected).max() < tolerance


@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_a_constant_stays_one_in_any_box(rescaling: str) -> None:
    tomogram = InMemory(np.full(SHAPE, 3.7))
    box, _ = cut_box(tomogram, (20.2, 21.7, 23.1), 9, spacing=1.3, rescaling=rescaling)
    assert abs(box - 3.7).max() < 1e-5


def test_a_fourier_matrix_is_the_crop_of_a_transform() -> None:
    signal = np.random.default_rng(1).normal(size=24)
    spectrum = np.fft.rfft(signal)[:7]  # 24 -> 12 samples
    spectrum[-1] = spectrum[-1].real  # both signs of the Nyquist frequency fall together
    expected = np.fft.irfft(spectrum, 12) / 2
    assert np.allclose(fourier_matrix(24, np.arange(12) * 2.0, 2.0) @ signal, expected, atol=1e-12)


@pytest.mark.parametrize(("make", "leak"), [(fourier_matrix, 1e-9), (lanczos_matrix, 0.05)])
def test_what_the_coarser_grid_cannot_hold_is_taken_out(make: object, leak: float) -> None:
    places = np.arange(10, 22) * 2.0
    for cycles, kept in ((2, 1.0), (26, 0.0)):
        wave = np.cos(2 * np.pi * cycles * np.arange(64) / 64)
        found = make(64, places, 2.0) @ wave  # type: ignore[operator]
        assert abs(found - kept * np.cos(2 * np.pi * cycles * places / 64)).max() < leak


def test_matrices_of_equal_grids_are_the_identity() -> None:
    for length in (9, 10):
        for make in (fourier_matrix, lanczos_matrix):
            assert np.allclose(make(length, np.arange(length, dtype=float), 1.0), np.eye(length), atol=1e-12)


def test_a_particle_is_turned_back_into_the_pose_of_the_reference() -> None:
    # Two blobs along an axis of the reference, (z, y, x), and where a rotation takes them.
    arm = np.array([5.0, 2.0, -3.0])
    for seed in range(3):
        matrix = Rotation.random(random_state=seed).as_matrix()
        middle = np.array([20.4, 21.3, 23.8])
        ends = [middle + matrix @ arm, middle - 0.6 * (matrix @ arm)]
        tomogram = InMemory(sum(blob(tuple(end), (2.0, 2.0, 2.0), SHAPE) for end in ends))
        box, _ = cut_box(tomogram, middle, 16, rotation=matrix)
        grid = np.stack(np.meshgrid(*[np.arange(16) - 8] * 3, indexing="ij"), -1)
        expected = sum(np.exp(-((grid - end) ** 2).sum(-1) / 8) for end in (arm, -0.6 * arm))
        assert abs(box - expected).max() < 0.02, seed


def test_turning_by_nothing_and_by_right_angles_moves_voxels() -> None:
    volume = np.random.default_rng(2).normal(size=(11, 11, 11)).astype(np.float32)
    assert np.allclose(turned(volume, np.eye(3), 11), volume, atol=1e-5)
    quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y -> x -> -y
    turned_back = turned(turned(volume, quarter, 11), quarter.T, 11)
    assert np.allclose(turned_back, volume, atol=1e-4)
    expected = np.array([[[volume[z, 5 - (x - 5), y] for x in range(11)] for y in range(11)] for z in range(11)])
    assert np.allclose(turned(volume, quarter, 11), expected, atol=1e-4)


def test_beyond_the_faces_is_the_mean_of_what_is_inside() -> None:
    noise = InMemory(np.random.default_rng(3).normal(size=SHAPE) + 5)
    box, inside = cut_box(noise, (2, 20, 20), 10)
    assert inside == pytest.approx(0.7)
    there = noise.data[0:7, 15:25, 15:25]
    assert np.array_equal(box[3:], there)
    assert np.allclose(box[:3], there.mean(dtype=np.float64))
    with pytest.raises(InputError, match="no voxel of the box"):
        cut_box(noise, (-30, 20, 20), 10)


def test_only_the_neighbourhood_is_read() -> None:
    tomogram = InMemory(np.zeros((100, 100, 100)))
    cut_box(tomogram, (50.5, 50.5, 50.5), 16, spacing=1.5)
    assert len(tomogram.reads) == 1
    assert tomogram.reads[0] < 45**3


def test_unknown_rescalings_are_refused() -> None:
    with pytest.raises(InputError, match="'nearest' is not one of fourier, lanczos"):
        cut_box(InMemory(np.zeros(SHAPE)), (20, 20, 20), 8, rescaling="nearest")
