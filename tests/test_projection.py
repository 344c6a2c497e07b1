import numpy as np
import pytest
import torch

from cryo_monai.simulation.projection import back_project, images_of, noise_variance, project, ramp, spectra_of

SHAPE = (20, 12, 24)


def blobs(points: list[tuple[float, float, float]], shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape], indexing="ij"), dim=-1).float()
    return torch.stack([torch.exp(-((grid - torch.tensor(p)) ** 2).sum(-1) / 4.5) for p in points]).sum(0)


def test_untilted_and_quarter_turned_projections_are_sums_along_axes() -> None:
    volume = blobs([(2.0, -1.0, 3.0), (-3.0, 2.0, -4.0)])[None]
    images = images_of(project(volume, [0.0, 90.0, -90.0], width=32), width=32)
    assert torch.allclose(images[0, 0, :, 4:28], volume[0].sum(0), atol=1e-4)
    # At 90 degrees u = z, at -90 u = -z.
    along_x = volume[0].sum(2).T
    assert torch.allclose(images[0, 1, :, 6:26], along_x, atol=1e-4)
    assert torch.allclose(images[0, 2, :, 7:27], along_x.flip(-1), atol=1e-4)


def test_a_point_is_seen_at_x_cos_plus_z_sin() -> None:
    z, y, x = 4.0, -0.5, -5.0
    for angle in (-50.0, 20.0, 60.0):
        image = images_of(project(blobs([(z, y, x)])[None], [angle], width=32), width=32)[0, 0]
        rows, columns = torch.arange(12) - 6, torch.arange(32) - 16
        mass = image.sum()
        theta = np.deg2rad(angle)
        seen = x * np.cos(theta) + z * np.sin(theta)
        assert float((image.sum(0) * columns).sum() / mass) == pytest.approx(seen, abs=1e-2)
        assert float((image.sum(1) * rows).sum() / mass) == pytest.approx(y, abs=2e-2)


def test_projection_equals_torch_fourier_slice() -> None:
    reference = pytest.importorskip("torch_fourier_slice")
    volume = blobs([(2.0, -1.0, 3.0), (-3.0, 2.0, -4.0)], (32, 32, 32))
    theta = np.deg2rad(35.0)
    # Their matrix turns the frame of the image into that of the volume, in (x, y, z); ours: u = x cos + z sin.
    matrix = [[np.cos(theta), 0, -np.sin(theta)], [0, 1, 0], [np.sin(theta), 0, np.cos(theta)]]
    expected = reference.project_3d_to_2d(volume, torch.tensor(matrix, dtype=torch.float32)[None], pad_factor=3.0)[0]
    ours = images_of(project(volume[None], [35.0]), width=32)[0, 0]
    # They interpolate, we do not.
    assert float((ours - expected).abs().max() / ours.max()) < 0.02


def test_tilts_all_the_way_round_give_the_volume_back() -> None:
    volume = blobs([(2.0, -1.0, 3.0), (-3.0, 2.0, -4.0)])[None]
    angles = np.arange(-90, 90, 1.0).tolist()
    spectra = project(volume, angles, width=32)
    back = back_project(spectra, angles, width=32, box=SHAPE, image_height=12)
    assert float((back - volume).norm() / volume.norm()) < 0.01


def test_back_projection_is_the_adjoint_of_weighted_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1, *SHAPE, generator=generator)
    images = torch.randn(1, 5, 12, 32, generator=generator)
    angles = [-60.0, -20.0, 5.0, 30.0, 58.0]
    weighted = images_of(project(volume, angles, width=32) * ramp(32, angles).float()[:, None, :], width=32)
    back = back_project(spectra_of(images), angles, width=32, box=SHAPE, image_height=12)
    assert float((weighted * images).sum()) == pytest.approx(float((back * volume).sum()), rel=1e-3)


def test_volumes_do_not_depend_on_their_batch_and_boxes_are_cut_out() -> None:
    generator = torch.Generator().manual_seed(1)
    volumes = torch.randn(3, *SHAPE, generator=generator)
    angles = [-40.0, 0.0, 40.0]
    spectra = project(volumes, angles, width=32)
    assert torch.allclose(spectra[1], project(volumes[1:2], angles, width=32)[0], atol=1e-4)
    whole = back_project(spectra, angles, width=32, box=SHAPE, image_height=12)
    part = back_project(spectra, angles, width=32, box=(10, 6, 8), image_height=12)
    assert torch.allclose(part, whole[:, 5:15, 3:9, 8:16], atol=1e-4)


def test_variance_of_back_projected_noise_is_as_predicted() -> None:
    angles = np.arange(-60, 61, 6.0).tolist()
    filters = torch.linspace(1.5, 0.5, 17).expand(len(angles), 16, 17)
    white = torch.randn(60, len(angles), 16, 32, generator=torch.Generator().manual_seed(2))
    back = back_project(spectra_of(white) * filters, angles, width=32, box=(8, 8, 8), image_height=16)
    assert float((back**2).mean()) == pytest.approx(float(noise_variance(filters, angles, width=32)), rel=0.03)


def test_spectra_and_images_are_inverse() -> None:
    images = torch.randn(2, 3, 10, 14, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(images_of(spectra_of(images), width=14), images, atol=1e-5)
