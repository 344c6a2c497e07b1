"""Structures from atomic models, maps and names."""

import gzip
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from atomic_models import protein_text, write_protein

from cryo_monai.errors import InputError
from cryo_monai.mrc import write_mrc
from cryo_monai.rotations import random_quaternions, relion_angles, rotation_matrices
from cryo_monai.simulation.assemblies import ANGSTROM3_PER_KDA
from cryo_monai.simulation.atoms import ICE_VOLT, AtomicModel, potential, read_model
from cryo_monai.simulation.loading import load_structures
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.structures import CONTRAST_PER_KDA, Structure, low_pass, structure_of_map, structure_of_model

GRID = {"voxel_size": 10.0, "resolution": 20.0}


def centre_of(density: np.ndarray) -> np.ndarray:
    axes = [np.arange(n) - n // 2 for n in density.shape]
    return np.array([np.tensordot(density, a, (i, 0)).sum() / density.sum() for i, a in enumerate(axes)])


def moved(model: AtomicModel, matrix: np.ndarray, shift: np.ndarray) -> AtomicModel:
    """The model with every atom at ``matrix @ p + shift``, in (z, y, x)."""
    atoms = model.model.clone()
    for chain in atoms:
        for residue in chain:
            for atom in residue:
                z, y, x = matrix @ np.array(atom.pos.tolist()[::-1]) + shift
                atom.pos = gemmi.Position(x, y, z)
    return replace(model, model=atoms)


def posed(
    structure: Structure, quaternion: np.ndarray, position: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    alone = Packing(np.array([[0]]), quaternion[None, None], position[None, None], np.zeros((1, *shape), bool))
    return SceneRenderer([structure]).render(alone, shape)[0].numpy()


def test_the_biological_assembly_is_built_unless_asked_otherwise(tmp_path: Path) -> None:
    file = write_protein(tmp_path)
    dimer, alone = read_model(file), read_model(file, assembly="asu")
    assert (dimer.assembly, dimer.chains) == ("1", 2)
    assert (alone.assembly, alone.chains) == ("asu", 1)
    # Alanine residue: C3H5NO, 71.08 Da; water is left out.
    assert alone.mass_kda == pytest.approx(216 * 71.08 / 1e3, rel=1e-3)
    assert dimer.mass_kda == pytest.approx(2 * alone.mass_kda)
    assert len(alone.positions) == 5 * 216
    masses = np.tile([14.0, 12.0, 12.0, 16.0, 12.0], 432)
    assert np.abs(np.average(dimer.positions, axis=0, weights=masses)).max() < 0.1
    with pytest.raises(InputError, match=r"no assembly '7'; there are 1, and asu"):
        read_model(file, assembly="7")
    unnamed = write_protein(tmp_path, "b.pdb", assembly=False)
    assert read_model(unnamed).assembly == "asu (the file names no assembly)"


def test_gzipped_and_mmcif_files_give_the_same(tmp_path: Path) -> None:
    file = write_protein(tmp_path)
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress(file.read_bytes()))
    gemmi.read_structure(str(file)).make_mmcif_document().write_file(str(tmp_path / "c.cif"))
    expected = read_model(file, assembly="asu")
    for name in ("b.pdb.gz", "c.cif"):
        model = read_model(tmp_path / name, assembly="asu")
        assert model.mass_kda == pytest.approx(expected.mass_kda)
        assert np.allclose(model.positions, expected.positions, atol=1e-3)


def test_potential_holds_the_scattering_of_all_atoms_and_displaces_ice(tmp_path: Path) -> None:
    model = read_model(write_protein(tmp_path), assembly="asu")
    spacing, size = 3.0, 24
    vacuum = potential(model, spacing=spacing, size=size, solvent=False)
    # Zero-angle electron scattering of alanine C3H5NO in Å (International Tables C, 4.3.2.2: C 2.509, N 2.211, O 1.983,
    # H 0.529), times h^2 / (2 pi m e) = 47.878 V Å^2.
    expected = 216 * 47.878 * (3 * 2.509 + 2.211 + 1.983 + 5 * 0.529)
    assert vacuum.sum(dtype=np.float64) * spacing**3 == pytest.approx(expected, rel=0.01)
    contrast = potential(model, spacing=spacing, size=size)
    displaced = (vacuum.sum(dtype=np.float64) - contrast.sum(dtype=np.float64)) * spacing**3 / ICE_VOLT
    assert displaced / model.mass_kda == pytest.approx(ANGSTROM3_PER_KDA, rel=0.25)  # a lattice is no real protein
    assert np.abs(centre_of(vacuum)).max() * spacing < 0.3


def test_models_of_explicit_hydrogens_are_not_given_more(tmp_path: Path) -> None:
    text = protein_text(count=8, water=False, assembly=False)
    extra = "ATOM    999  HA  ALA A   1       0.000   0.000   0.000  1.00 30.00           H"
    (tmp_path / "h.pdb").write_text(text.replace("TER", extra + "\nTER"))
    with_one = read_model(tmp_path / "h.pdb", assembly="asu")
    without = read_model(write_protein(tmp_path, count=8, water=False, assembly=False))
    assert without.mass_kda - with_one.mass_kda == pytest.approx(4 * 1.008 / 1e3, rel=1e-2)


def test_density_is_rotation_equivariant(tmp_path: Path) -> None:
    """Turning the structure's grid gives what turning the atoms gives, off the grid and in a box that is no cube."""
    file = write_protein(tmp_path)
    structure = structure_of_model(file, **GRID)
    quaternion = random_quaternions(np.random.default_rng(5), 1)[0]
    position = np.array([0.4, -0.7, 1.3])
    ours = posed(structure, quaternion, position, (18, 20, 22))
    turned = moved(read_model(file), rotation_matrices(quaternion), position * 10.0)
    fine = low_pass(potential(turned, spacing=10 / 3, size=66), spacing=10 / 3, **GRID)
    expected = fine[::3, ::3, ::3][2:20, 1:21]
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 0.05
    assert ours.sum() * 1e3 == pytest.approx(structure.density.sum(dtype=np.float64) * structure.spacing**3, rel=1e-3)


def test_translation_by_voxels_is_exact(tmp_path: Path) -> None:
    structure = structure_of_model(write_protein(tmp_path), **GRID)
    unit = np.array([1.0, 0, 0, 0])
    still = posed(structure, unit, np.zeros(3), (20, 22, 24))
    shifted = posed(structure, unit, np.array([1.0, -2.0, 3.0]), (20, 22, 24))
    assert np.allclose(shifted, np.roll(still, (1, -2, 3), (0, 1, 2)), atol=1e-5)
    assert np.abs(centre_of(still)).max() < 0.05


def test_the_surface_encloses_the_volume_of_the_mass(tmp_path: Path) -> None:
    structure = structure_of_model(write_protein(tmp_path), **GRID)
    volume = (structure.density >= structure.level).sum() * structure.spacing**3
    assert volume == pytest.approx(structure.mass_kda * ANGSTROM3_PER_KDA, rel=0.01)
    assert len(structure.inside) * (2 * structure.spacing) ** 3 == pytest.approx(volume, rel=0.1)
    assert np.linalg.norm(structure.inside, axis=1).max() <= structure.radius
    assert len(structure.surface) < len(structure.inside)


def test_low_pass_removes_what_voxels_cannot_hold() -> None:
    density = np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32)
    filtered = low_pass(density, spacing=4.0, voxel_size=12.0, resolution=1.0)
    frequency = np.linalg.norm(np.stack(np.meshgrid(*[np.fft.fftfreq(30, 4.0)] * 3, indexing="ij")), axis=0)
    spectrum = np.abs(np.fft.fftn(filtered))
    assert spectrum[frequency > 1 / 24].max() < 1e-3 * spectrum.max()
    # 1/e at 1 / resolution
    gentle = low_pass(density, spacing=4.0, voxel_size=4.0, resolution=40.0)
    ratio = np.abs(np.fft.fftn(gentle)) / np.abs(np.fft.fftn(density))
    at = np.abs(frequency - 1 / 40) < 1e-4
    assert at.any()
    assert ratio[at].mean() == pytest.approx(np.exp(-1), rel=0.01)


def test_a_map_is_centred_scaled_by_mass_and_resampled(tmp_path: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 44, 48)], indexing="ij"), axis=-1)
    ball = (np.linalg.norm((grid - [15, 20, 26]) * 4.0, axis=-1) < 40).astype(np.float32)
    noise = np.random.default_rng(0).normal(scale=0.02, size=ball.shape)
    write_mrc(tmp_path / "ball.mrc", ball * 3 + noise.astype(np.float32) + 7, voxel_size=4.0)
    structure = structure_of_map(tmp_path / "ball.mrc", contour=8.5, **GRID)
    assert structure.name == "ball"
    mass = 4 / 3 * np.pi * 40**3 / ANGSTROM3_PER_KDA
    assert structure.mass_kda == pytest.approx(mass, rel=0.03)
    assert structure.density.sum(dtype=np.float64) * structure.spacing**3 == pytest.approx(
        CONTRAST_PER_KDA * structure.mass_kda, rel=1e-3
    )
    assert np.abs(centre_of(structure.density)).max() * structure.spacing < 0.5
    assert structure.radius == pytest.approx(40 + structure.spacing, abs=4)
    given = structure_of_map(tmp_path / "ball.mrc", contour=8.5, mass_kda=100.0, **GRID)
    assert given.mass_kda == 100.0
    write_mrc(tmp_path / "dark.mrc", -(ball * 3 + noise.astype(np.float32) + 7), voxel_size=4.0)
    dark = structure_of_map(tmp_path / "dark.mrc", contour=8.5, invert=True, **GRID)
    assert np.allclose(dark.density, structure.density, atol=1e-4)


def test_entries_are_names_files_and_mappings(tmp_path: Path) -> None:
    write_protein(tmp_path, "1abc.pdb")
    entries = ["o_440kda", "1abc", {"source": "1ABC", "name": "monomer", "assembly": "asu"}]
    structures = load_structures(entries, structure_dir=tmp_path, **GRID)
    assert [s.name for s in structures] == ["o_440kda", "1abc", "monomer"]
    assert structures[1].origin["chains"] == 2
    assert structures[2].origin["assembly"] == "asu"
    assert len(structures[1].origin["sha256"]) == 64


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "none were given"),
        (["o_440kd"], "did you mean o_440kda?"),
        (["nowhere.pdb"], "neither a file, nor a PDB id, nor a built-in assembly"),
        ([{"name": "x"}], "a source is missing"),
        ([{"source": "o_440kda", "colour": 1}], "unknown colour"),
        (["o_440kda", "o_440kda"], "two are called o_440kda"),
        ([{"source": "o_440kda", "name": "clean"}], "'clean' cannot name a folder"),
        ([{"source": "o_440kda", "name": "../x"}], "'../x' cannot name a folder"),
        (["notes.txt"], "neither an atomic model nor a density map"),
        (["empty.pdb"], "without atoms"),
        (["water.pdb"], "nothing but water"),
        (["strange.pdb"], "strange.pdb: unknown residues ZZQ"),
        (["element.pdb"], "element.pdb: atom"),
        (["binary.cif"], "binary.cif: not a readable atomic model"),
        (["unknown_voxel.mrc"], "unknown_voxel.mrc: a map without a voxel size"),
        (["flat.mrc"], "flat.mrc: all values of the map are 0"),
        ([{"source": "unknown_voxel.mrc", "voxel_size": 5.0, "contour": 9.0}], "nothing is above the contour 9"),
        (["oblong.mrc"], "are not cubes"),
    ],
)
def test_bad_structures_get_one_line(
    entries: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.pdb").write_text("END\n")
    (tmp_path / "water.pdb").write_text(protein_text(count=0, assembly=False))
    write_protein(tmp_path, "strange.pdb", residue="ZZQ")
    (tmp_path / "element.pdb").write_text(protein_text(count=4).replace("           N", "           X"))
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    cube = np.zeros((12, 12, 12), np.float32)
    write_mrc(tmp_path / "flat.mrc", cube, voxel_size=5.0)
    cube[4:8, 4:8, 4:8] = 1
    write_mrc(tmp_path / "unknown_voxel.mrc", cube, voxel_size=0.0)
    write_mrc(tmp_path / "oblong.mrc", cube, voxel_size=(5.0, 5.0, 8.0))
    with pytest.raises(InputError) as caught:
        load_structures(entries, **GRID)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_residues_may_be_taken_as_written(tmp_path: Path) -> None:
    write_protein(tmp_path, "strange.pdb", residue="ZZQ")
    [structure] = load_structures([{"source": str(tmp_path / "strange.pdb"), "unknown_residues": "as_written"}], **GRID)
    assert structure.origin["ligands_without_hydrogens"] == ["ZZQ"]


def test_relion_angles_take_the_reference_to_the_particle() -> None:
    quaternions = random_quaternions(np.random.default_rng(0), 5)
    matrices = rotation_matrices(quaternions)
    angles = np.deg2rad(relion_angles(matrices))
    for matrix, (rot, tilt, psi) in zip(matrices, angles, strict=True):
        # RELION (src/euler.cpp): A = Rz(psi) Ry(tilt) Rz(rot), of passive rotations in (x, y, z).
        def about_z(a: float) -> np.ndarray:
            return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])

        about_y = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
        relion = about_z(psi) @ about_y @ about_z(rot)
        assert np.allclose(relion, matrix[::-1, ::-1], atol=1e-9)


def test_rotations_are_uniform() -> None:
    matrices = rotation_matrices(random_quaternions(np.random.default_rng(0), 4000))
    assert np.allclose(np.linalg.det(matrices), 1)
    # Each entry of a uniform rotation has mean 0 and variance 1/3; the angle's density is (1 - cos a) / pi.
    assert np.abs(matrices.mean(0)).max() < 4 * (1 / 3 / 4000) ** 0.5
    assert np.allclose((matrices**2).mean(0), 1 / 3, atol=0.03)
    angles = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert angles.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.04)


# Chains of the asymmetric units and the biological assemblies, and masses of the assemblies from the sequences.
CHAINS = {"1aew": (1, 24), "3j9i": (28, 28), "1bxn": (8, 16), "3cf3": (3, 6), "1qvr": (3, 6), "1aon": (21, 21)}


@pytest.mark.parametrize("name", CHAINS)
def test_real_models_have_the_chains_and_mass_of_their_assembly(shared_data: Path, name: str) -> None:
    file = shared_data / "pdb" / f"{name}.pdb.gz"
    unit, whole = read_model(file, assembly="asu"), read_model(file)
    assert (unit.chains, whole.chains) == CHAINS[name]
    assert whole.mass_kda / unit.mass_kda == pytest.approx(whole.chains / unit.chains, rel=0.01)
    structure = structure_of_model(file, **GRID)
    assert np.abs(centre_of(structure.density)).max() * structure.spacing < 0.5
    integral = structure.density.sum(dtype=np.float64) * structure.spacing**3
    assert integral / structure.mass_kda == pytest.approx(CONTRAST_PER_KDA, rel=0.04)


def test_real_contrast_is_like_that_of_a_published_map(shared_data: Path) -> None:
    """GroEL-GroES from atoms against GroEL as EMD-1832 and the real average of hsp60: as far as size goes."""
    model = structure_of_model(shared_data / "pdb" / "1aon.pdb.gz", **GRID)
    real = structure_of_map(shared_data / "maps" / "hsp60.mrc", **GRID)
    assert real.origin["map_voxel_size"] == pytest.approx(7.84, abs=0.01)
    assert real.radius == pytest.approx(model.radius, rel=0.3)


@pytest.mark.parametrize("name", ["3gl1", "1gme", "1bxn"])
def test_density_of_an_asymmetric_unit_is_like_a_template_of_the_emdb_kind(shared_data: Path, name: str) -> None:
    """Against a map made as EMDB templates are: Gaussians of the atoms' masses (molmap), without form factors."""
    file = shared_data / "pdb" / f"{name}.pdb.gz"
    structure = structure_of_model(file, assembly="asu", **GRID)
    size = structure.density.shape[0]
    model = read_model(file, assembly="asu")
    weights = [atom.element.weight for chain in model.model for residue in chain for atom in residue]
    index = np.rint(model.positions / structure.spacing).astype(int) + size // 2
    template = np.zeros((size,) * 3)
    np.add.at(template, tuple(index.T), weights)
    template = low_pass(template, spacing=structure.spacing, **GRID)
    assert np.corrcoef(template.ravel(), structure.density.ravel())[0, 1] > 0.98
