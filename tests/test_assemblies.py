import numpy as np
import pytest
import torch

from cryo_monai.errors import InputError
from cryo_monai.simulation.assemblies import ASSEMBLIES, render_density, symmetry_rotations


@pytest.mark.parametrize(("symmetry", "order"), [("C1", 1), ("C7", 7), ("D2", 4), ("D7", 14), ("T", 12), ("O", 24)])
def test_point_groups_have_their_order_and_are_closed(symmetry: str, order: int) -> None:
    rotations = symmetry_rotations(symmetry)
    assert rotations.shape == (order, 3, 3)
    assert np.allclose(np.linalg.det(rotations), 1)
    assert np.allclose(rotations[0], np.eye(3)) or symmetry in "TO"
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 1, 3, 3)
    assert np.abs(products - rotations).max(axis=(2, 3)).min(axis=1).max() < 1e-9
    assert len(np.unique(rotations.round(6).reshape(order, 9), axis=0)) == order


@pytest.mark.parametrize("symmetry", ["C0", "D", "I", "x"])
def test_unknown_point_groups_are_refused(symmetry: str) -> None:
    with pytest.raises(InputError, match="symmetry"):
        symmetry_rotations(symmetry)


@pytest.mark.parametrize("assembly", ASSEMBLIES, ids=lambda a: a.name)
def test_an_assembly_has_its_symmetry_and_mass(assembly: object) -> None:
    centres, masses = assembly.blobs()  # type: ignore[attr-defined]
    assert masses.sum() == pytest.approx(assembly.mass_kda)  # type: ignore[attr-defined]
    assert f"{assembly.name}".endswith("kda")  # type: ignore[attr-defined]
    named = float(assembly.name.split("_")[1].removesuffix("kda"))  # type: ignore[attr-defined]
    assert masses.sum() == pytest.approx(named, rel=0.02)
    assert np.allclose(np.average(centres, axis=0, weights=masses), 0, atol=1e-6)
    for rotation in symmetry_rotations(assembly.symmetry):  # type: ignore[attr-defined]
        turned = centres @ rotation.T
        nearest = np.linalg.norm(turned[:, None] - centres[None], axis=-1).min(axis=1)
        assert nearest.max() < 1e-6
    # It fits a box of 32 voxels of 10 Å with room for shifts.
    assert np.linalg.norm(centres, axis=1).max() < 110


def test_ten_classes_cover_the_asked_symmetries() -> None:
    assert len({a.name for a in ASSEMBLIES}) == 10
    assert {a.symmetry[0] for a in ASSEMBLIES} == {"C", "D", "T", "O"}


def test_density_sums_to_the_mass_and_is_rotation_equivariant_and_off_cubic() -> None:
    centres, masses = ASSEMBLIES[3].blobs()
    box, options = (20, 24, 28), {"voxel_size": 8.0, "resolution": 20.0}

    def render(points: np.ndarray) -> torch.Tensor:
        tensor = torch.tensor(points[None], dtype=torch.float32)
        return render_density(tensor, torch.tensor(masses, dtype=torch.float32), box=box, **options)[0]  # type: ignore[arg-type]

    volume = render(centres)
    assert volume.shape == box
    assert volume.sum() == pytest.approx(masses.sum(), rel=1e-3)
    moved = render(centres + np.array([8.0, -16.0, 24.0]))
    assert torch.allclose(moved, volume.roll((1, -2, 3), (0, 1, 2)), atol=1e-3 * float(volume.max()))
    quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y -> x, x -> -y
    cubic = {"box": (24, 24, 24), **options}
    weights = torch.tensor(masses, dtype=torch.float32)
    one = render_density(torch.tensor(centres[None], dtype=torch.float32), weights, **cubic)[0]  # type: ignore[arg-type]
    turned = render_density(torch.tensor((centres @ quarter.T)[None], dtype=torch.float32), weights, **cubic)[0]  # type: ignore[arg-type]
    # Voxel n // 2 is the centre: on an even grid a quarter turn of indices 1.. about it is exact.
    expected = one[1:, 1:, 1:].rot90(1, (2, 1))
    assert torch.allclose(turned[1:, 1:, 1:], expected, atol=1e-4 * float(one.max()))
