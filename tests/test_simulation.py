import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from cryo_monai.errors import InputError
from cryo_monai.mrc import read_mrc
from cryo_monai.simulation import (
    ASSEMBLIES,
    SimulationSettings,
    ctf_3d,
    missing_wedge_mask,
    render_density,
    simulate_batch,
    symmetry_rotations,
    write_dataset,
)
from cryo_monai.simulation.microscope import electron_wavelength
from cryo_monai.simulation.assemblies import assemblies_by_name
from cryo_monai.simulation.subtomograms import _random_quaternion, rotation_from_quaternion

CLEAN = SimulationSettings(snr=float("inf"), max_tilt_deg=90)


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


def test_electron_wavelength_golden_value() -> None:
    # Reimer & Kohl 2008, table 2.2: 1.97 pm at 300 kV, 2.51 pm at 200 kV.
    assert electron_wavelength(300) == pytest.approx(0.0197, abs=5e-5)
    assert electron_wavelength(200) == pytest.approx(0.0251, abs=5e-5)


def test_ctf_first_zero_is_where_theory_puts_it() -> None:
    box, voxel_size, defocus_um = (256, 2, 2), 5.0, 3.0
    ctf = ctf_3d(box, voxel_size, defocus_um=defocus_um, amplitude_contrast=0.0, spherical_aberration_mm=0.0)
    profile = ctf[1:100, 0, 0].numpy()
    crossing = int(np.flatnonzero(np.diff(np.sign(profile)))[0]) + 1
    theory = (1 / (electron_wavelength(300) * defocus_um * 1e4)) ** 0.5 * box[0] * voxel_size
    assert crossing <= theory <= crossing + 1
    assert profile[0] < 0  # underfocus: density is dark


def test_wedge_keeps_71_percent_of_the_cube_about_the_y_axis() -> None:
    # field facts of the simulations by the Xu lab: a hard wedge of +-60 degrees keeps 71 % of the Fourier cube
    mask = missing_wedge_mask((64, 64, 64), max_tilt_deg=60)
    weight = torch.full((33,), 2.0)
    weight[0] = weight[-1] = 1
    assert float((mask * weight).sum() / 64**3) == pytest.approx(0.71, abs=0.01)
    assert mask[5, :, 0].sum() == 0  # along the beam: missing
    assert mask[0].min() == 1  # the untilted image: there
    assert missing_wedge_mask((8, 10, 12), max_tilt_deg=90).min() == 1


def test_rotations_are_uniform() -> None:
    rng = np.random.default_rng(0)
    axes = np.stack([rotation_from_quaternion(_random_quaternion(rng)) for _ in range(4000)])
    assert np.allclose(np.linalg.det(axes), 1)
    # Each matrix entry of a uniform rotation has mean 0 and variance 1/3; the angle density is (1 - cos a) / pi.
    assert np.abs(axes.mean(0)).max() < 4 * (1 / 3 / 4000) ** 0.5
    assert np.allclose((axes**2).mean(0), 1 / 3, atol=0.03)
    angles = np.arccos(np.clip((np.trace(axes, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert angles.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.04)


def test_the_true_pose_reproduces_the_volume() -> None:
    batch = simulate_batch(ASSEMBLIES[6], [3], CLEAN)
    truth = batch.truth[0]
    centres, masses = ASSEMBLIES[6].blobs()
    shift = np.array(truth["shift_voxels_zyx"]) * CLEAN.voxel_size
    posed = centres @ rotation_from_quaternion(truth["quaternion_wzyx"]).T + shift
    density = render_density(
        torch.tensor(posed[None], dtype=torch.float32),
        torch.tensor(masses, dtype=torch.float32),
        box=(32, 32, 32),
        voxel_size=10.0,
        resolution=25.0,
    )[0]
    transfer = ctf_3d((32, 32, 32), 10.0, defocus_um=5.0)
    expected = torch.fft.irfftn(torch.fft.rfftn(density) * transfer, s=(32, 32, 32))
    pair = torch.stack([expected.flatten(), batch.volumes[0].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.9999


@pytest.mark.parametrize("snr", [0.03, 0.5])
def test_measured_snr_is_the_nominal_one_and_intensity_is_normalised(snr: float) -> None:
    settings = SimulationSettings(snr=snr)
    for assembly in (ASSEMBLIES[0], ASSEMBLIES[6]):
        batch = simulate_batch(assembly, range(40), settings)
        measured = [truth["snr_measured"] for truth in batch.truth]
        assert np.mean(measured) == pytest.approx(snr, rel=0.03)
        assert float(batch.volumes.var()) == pytest.approx(1 + snr, rel=0.03)


def test_volumes_do_not_depend_on_the_batch() -> None:
    settings = SimulationSettings(box=16, voxel_size=20, resolution=40)
    together = simulate_batch(ASSEMBLIES[0], range(5), settings)
    alone = simulate_batch(ASSEMBLIES[0], [3], settings)
    assert torch.allclose(together.volumes[3], alone.volumes[0], atol=1e-5)
    assert together.truth[3] == alone.truth[0]


def test_mean_and_variance_say_nothing_of_the_class() -> None:
    settings = SimulationSettings(snr=0.5)
    volumes = torch.cat([simulate_batch(a, range(60), settings, class_seed=a.seed).volumes for a in ASSEMBLIES])
    flat = volumes.flatten(1)
    statistics = torch.stack([flat.mean(1), flat.std(1)], dim=1).numpy()
    statistics = (statistics - statistics.mean(0)) / statistics.std(0)
    labels = np.repeat(np.arange(10), 60)
    accuracy = cross_val_score(LogisticRegression(max_iter=500), statistics, labels, cv=5).mean()
    # Chance is 0.1; its standard error over 600 volumes 0.012. (Extremes do differ: at equal SNR a small particle is
    # brighter than a large one. That is structure.)
    assert accuracy < 0.1 + 4 * 0.012


def write(folder: Path, **changes: object) -> Path:
    settings = SimulationSettings(box=12, voxel_size=25, resolution=50, max_shift=1.0)
    options: dict[str, object] = {"num_per_class": 5, "classes": ("c2_64kda", "t_200kda"), **changes}
    return write_dataset(folder, settings, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes()[1024:] for p in folder.rglob("*.mrc")} | {
        "dataset.json": (folder / "dataset.json").read_bytes()
    }


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", batch_size=64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_interrupted_call_is_continued(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    calls = []

    def stop(count: int) -> None:
        calls.append(count)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "part", batch_size=2, progress=stop)
    assert not (tmp_path / "part" / "dataset.json").exists()
    kept = (tmp_path / "part" / "c2_64kda" / "00000.mrc").stat().st_mtime_ns
    write(tmp_path / "part")
    assert (tmp_path / "part" / "c2_64kda" / "00000.mrc").stat().st_mtime_ns == kept
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_dataset_json_is_a_datalist_with_the_truth(tmp_path: Path) -> None:
    content = json.loads(write(tmp_path / "a").read_text())
    assert content["class_names"] == ["c2_64kda", "t_200kda"]
    assert [len(content[s]) for s in ("training", "validation", "test")] == [6, 2, 2]
    item = content["test"][0]
    assert item.keys() >= {"image", "label", "quaternion_wzyx", "shift_voxels_zyx", "snr_nominal", "snr_measured"}
    read = read_mrc(tmp_path / "a" / item["image"])
    assert read.data.shape == (12, 12, 12)
    assert read.voxel_size == pytest.approx((25.0, 25.0, 25.0))


def test_other_settings_foreign_folders_and_impossible_values_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(InputError, match="other settings"):
        write(tmp_path / "a", num_per_class=6)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        write(tmp_path / "b")
    with pytest.raises(InputError, match="unknown ribosome"):
        assemblies_by_name(("ribosome",))
    with pytest.raises(InputError, match="snr=0"):
        SimulationSettings(snr=0)
    with pytest.raises(InputError, match="too few"):
        write(tmp_path / "c", num_per_class=2)
