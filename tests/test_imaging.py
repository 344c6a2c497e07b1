"""What both modes do to scenes: signal, noise, wedge, SNR."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryo_monai.errors import InputError
from cryo_monai.simulation import BUILT_IN, SimulationSettings, Structure, SubtomogramSimulator, load_structures
from cryo_monai.simulation.imaging import TiltSeriesMicroscope, draw_exposure
from cryo_monai.simulation.microscope import missing_wedge_mask
from cryo_monai.simulation.projection import images_of
from cryo_monai.simulation.settings import settings_from

CLEAN = SimulationSettings(snr=float("inf"))
# The optics of the simulations of the Xu lab: field facts in docs/simulation.md.
XULAB = SimulationSettings(
    mode="xulab",
    resolution=10.0,
    snr=0.03,
    max_shift=8.0,
    defocus_um=5.0,
    defocus_spread_um=0.0,
    spherical_aberration_mm=2.0,
)


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return load_structures(["d3_310kda", "c7_400kda", "o_440kda"], voxel_size=10.0, resolution=20.0)


def shells(spectrum: np.ndarray) -> np.ndarray:
    """Mean of a full spectrum, zero frequency first, over each shell up to half the box."""
    axes = [np.fft.fftfreq(n, 1 / n) for n in spectrum.shape]
    radius = np.rint(np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)).astype(int)
    return np.array([spectrum[radius == k].mean() for k in range(spectrum.shape[0] // 2)])


def shell_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    f, g = np.fft.fftn(one), np.fft.fftn(other)
    return np.real(shells(f * g.conj()) / np.sqrt(shells(np.abs(f) ** 2) * shells(np.abs(g) ** 2)))


def test_an_ideal_microscope_gives_the_truth_back(structures: list[Structure]) -> None:
    """All tilts, no fading, no shifts, phase contrast only: the reconstruction is the scene, up to sign and scale."""
    ideal = replace(
        CLEAN,
        max_tilt_deg=89.0,
        tilt_step_deg=1.0,
        dose_per_tilt=0.0,
        alignment_error=0.0,
        amplitude_contrast=1.0,
        defocus_um=0.001,
        defocus_spread_um=0.0,
        defocus_tilt_um=0.0,
        spherical_aberration_mm=0.0,
    )
    batch = SubtomogramSimulator(structures, ideal).simulate(0, [0])
    fsc = shell_correlation(-batch.volumes[0].numpy(), batch.clean[0].numpy())
    assert fsc[1:12].min() > 0.98


def test_density_comes_out_dark_and_the_wedge_is_empty(structures: list[Structure]) -> None:
    batch = SubtomogramSimulator(structures, CLEAN).simulate(1, range(4))
    correlation = np.corrcoef(batch.volumes.numpy().ravel(), batch.clean.numpy().ravel())[0, 1]
    assert correlation < -0.5
    power = np.abs(np.fft.rfftn(batch.volumes.numpy(), axes=(1, 2, 3))).mean(0) ** 2
    clean = np.abs(np.fft.rfftn(batch.clean.numpy(), axes=(1, 2, 3))).mean(0) ** 2
    # Well inside the wedge and well outside, at middle frequencies.
    inside = missing_wedge_mask((32, 32, 32), max_tilt_deg=75).numpy() == 0
    outside = missing_wedge_mask((32, 32, 32), max_tilt_deg=50).numpy() == 1
    axes = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), np.fft.rfftfreq(32), indexing="ij")
    radius = np.linalg.norm(np.stack(axes), axis=0)
    middle = (radius > 0.12) & (radius < 0.3)
    ratio = power / clean
    assert np.median(ratio[inside & middle]) < 0.02 * np.median(ratio[outside & middle])


def test_the_wedge_of_uneven_tilts_is_where_the_mask_says(structures: list[Structure], tmp_path: Path) -> None:
    tilts = tmp_path / "a.tlt"
    tilts.write_text("\n".join(str(angle) for angle in range(-30, 61, 3)))
    batch = SubtomogramSimulator(structures, replace(CLEAN, tilts=str(tilts))).simulate(1, range(4))
    power = np.abs(np.fft.rfftn(batch.volumes.numpy(), axes=(1, 2, 3))).mean(0) ** 2
    axes = np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), np.fft.rfftfreq(32), indexing="ij")
    radius = np.linalg.norm(np.stack(axes), axis=0)
    middle = (radius > 0.12) & (radius < 0.3)
    angle = np.rad2deg(np.arctan2(axes[0], axes[2]))
    mask = missing_wedge_mask((32, 32, 32), min_tilt_deg=-30, max_tilt_deg=60).numpy() == 1
    well_inside = mask & (angle > -20) & (angle < 50)
    well_outside = ~mask & ((angle < -45) | (angle > 75))
    assert np.median(power[well_outside & middle]) < 0.05 * np.median(power[well_inside & middle])
    mirrored = (angle < -35) & (angle > -50)  # missing, though its opposite tilt was taken
    assert np.median(power[mirrored & middle]) < 0.2 * np.median(power[well_inside & middle])


def test_the_true_pose_reproduces_the_volume(structures: list[Structure]) -> None:
    """From the truth alone: pose and neighbours give the scene that was imaged."""
    from cryo_monai.simulation.packing import Packing
    from cryo_monai.simulation.scenes import SceneRenderer

    simulator = SubtomogramSimulator(structures, CLEAN)
    batch = simulator.simulate(2, [7])
    truth = batch.truth[0]
    names = simulator.class_names
    particles = [(2, truth["quaternion_wzyx"], truth["shift_voxels_zyx"])]
    particles += [
        (names.index(n["class_name"]), n["quaternion_wzyx"], n["position_voxels_zyx"]) for n in truth["neighbours"]
    ]
    kinds, quaternions, positions = (np.array(column)[None] for column in zip(*particles, strict=True))
    solid = (batch.clean[0] > structures[2].level).float().mean()
    assert truth["occupancy"] == pytest.approx(float(solid), rel=0.25)
    scene = SceneRenderer(structures).render(Packing(kinds, quaternions, positions, np.zeros(0)), (32, 32, 32))
    assert torch.allclose(scene[0], batch.clean[0], atol=2e-3 * float(scene.max()))


def test_measured_snr_is_within_five_percent_of_nominal_over_100_volumes(structures: list[Structure]) -> None:
    for snr in (0.03, 0.3):
        simulator = SubtomogramSimulator(structures, replace(CLEAN, snr=snr, tilt_step_deg=6.0))
        measured = []
        variances = []
        for label, numbers in ((0, range(34)), (1, range(33)), (2, range(33))):
            for start in range(0, len(numbers), 17):
                batch = simulator.simulate(label, numbers[start : start + 17])
                measured += [truth["snr_measured"] for truth in batch.truth]
                variances += batch.volumes.var((1, 2, 3)).tolist()
        assert len(measured) == 100
        assert np.mean(measured) == pytest.approx(snr, rel=0.02)
        # Of single volumes, most are within 5 %: the variance of noise in a box of 32^3 varies by some percent.
        assert np.mean(np.abs(np.array(measured) / snr - 1) < 0.05) > 0.9
        assert np.mean(variances) == pytest.approx(1 + snr, rel=0.02)


def test_signal_fades_with_dose_and_shifts_blur(structures: list[Structure]) -> None:
    numbers = [0, 1]
    plain = replace(CLEAN, dose_per_tilt=0.0, alignment_error=0.0)
    truth = SubtomogramSimulator(structures, plain).simulate(0, numbers).clean
    sharpness = []
    for settings in (plain, replace(plain, dose_per_tilt=6.0), replace(plain, alignment_error=15.0)):
        volumes = SubtomogramSimulator(structures, settings).simulate(0, numbers).volumes
        fsc = np.mean([shell_correlation(-v.numpy(), t.numpy()) for v, t in zip(volumes, truth, strict=True)], axis=0)
        power = shells(np.abs(np.fft.fftn(volumes[0].numpy())) ** 2)
        sharpness.append((fsc[6:10].mean(), power[8:12].mean() / power[2:4].mean()))
    assert sharpness[1][1] < 0.8 * sharpness[0][1]
    assert sharpness[2][0] < 0.9 * sharpness[0][0]


def test_phase_flipping_makes_every_transfer_negative(structures: list[Structure]) -> None:
    settings = replace(CLEAN, defocus_um=6.0, defocus_spread_um=0.0, dose_per_tilt=0.0, alignment_error=0.0)
    flipped = SubtomogramSimulator(structures, settings).simulate(1, range(3))
    plain = SubtomogramSimulator(structures, replace(settings, ctf_correction="none")).simulate(1, range(3))
    # First zero at 6 um: 1 / sqrt(lambda dz) = 1 / 34 Å, shell 9.3 of 16.
    good, bad = (
        np.mean([shell_correlation(v.numpy(), c.numpy()) for v, c in zip(b.volumes, b.clean, strict=True)], axis=0)
        for b in (flipped, plain)
    )
    assert good[3:8].max() < 0
    assert good[11:13].max() < 0
    assert bad[11:13].min() > 0


def test_images_have_the_zeros_of_their_defocus(structures: list[Structure]) -> None:
    """The power of noise-free images dips where theory puts the zeros of each tilt's transfer function."""
    settings = replace(CLEAN, defocus_um=8.0, defocus_spread_um=0.0, defocus_tilt_um=0.0, alignment_error=0.0)
    scope = TiltSeriesMicroscope(settings, (64, 64, 64), (32, 32, 32))
    exposure = draw_exposure(settings, scope.num_tilts, np.random.default_rng(0))
    point = torch.zeros(1, 64, 64, 64)
    point[0, 32, 32, 32] = 1
    image = images_of(scope.noise_free_images(point, [exposure]), width=scope.width)[0, 20].numpy()
    power = np.abs(np.fft.fft(image.sum(axis=1))) ** 2  # along y, frequency k / 640 Å
    profile = power[3:26]
    dip = int(profile.argmin()) + 3
    wavelength, defocus, aberration, amplitude = 0.019687, 8e4, 2.7e7, 0.07
    s = np.linspace(0.004, 0.05, 20_000)
    phase = np.pi * wavelength * defocus * s**2 - 0.5 * np.pi * aberration * wavelength**3 * s**4
    transfer = np.sin(phase + np.arcsin(amplitude))
    zeros = s[:-1][np.diff(np.sign(transfer)) != 0] * 640
    assert np.abs(zeros - dip).min() <= 1.0


def test_class_cannot_be_told_from_mean_and_variance(structures: list[Structure]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    simulator = SubtomogramSimulator(structures, SimulationSettings(snr=0.5, tilt_step_deg=10.0))
    volumes = torch.cat([simulator.simulate(label, range(60)).volumes for label in range(3)]).flatten(1)
    statistics = torch.stack([volumes.mean(1), volumes.std(1)], dim=1).numpy()
    statistics = (statistics - statistics.mean(0)) / statistics.std(0)
    accuracy = cross_val_score(LogisticRegression(), statistics, np.repeat(range(3), 60), cv=5).mean()
    assert accuracy < 1 / 3 + 4 * 0.035  # the standard error over 180 volumes


def test_xulab_volumes_have_the_statistics_of_that_family() -> None:
    simulator = SubtomogramSimulator(load_structures(BUILT_IN, voxel_size=10.0, resolution=10.0), XULAB)
    batches = [simulator.simulate(label, range(8)) for label in range(10)]
    volumes = torch.cat([b.volumes for b in batches]).numpy()
    assert volumes.dtype == np.float32
    assert volumes.shape[1:] == (32, 32, 32)
    # Public volumes of that family: standard deviations of 13.5 to 17.2.
    assert 13.5 < np.median(volumes.std((1, 2, 3))) < 17.2
    power = np.mean([shells(np.abs(np.fft.fftn(v)) ** 2) for v in volumes], axis=0)
    assert power[10] < 0.01 * power[7]  # the drop at shell 8 of 16
    assert power[7] > 0.1 * power[3]
    spectrum = np.abs(np.fft.rfftn(volumes, axes=(1, 2, 3))).mean(0)
    wedge = missing_wedge_mask((32, 32, 32), max_tilt_deg=60).numpy()
    assert spectrum[wedge == 0].max() < 1e-3 * spectrum.max()  # a hard wedge
    assert np.mean([t["snr_measured"] for b in batches for t in b.truth]) == pytest.approx(0.03, rel=0.2)


def test_noise_has_its_variance_with_and_without_dose_weights(structures: list[Structure]) -> None:
    signals = []
    for weighting in (True, False):
        settings = SimulationSettings(snr=0.1, tilt_step_deg=6.0, dose_per_tilt=6.0, dose_weighting=weighting)
        batch = SubtomogramSimulator(structures, settings).simulate(0, range(12))
        assert np.mean([truth["snr_measured"] for truth in batch.truth]) == pytest.approx(0.1, rel=0.03)
        clean = SubtomogramSimulator(structures, replace(settings, snr=float("inf"))).simulate(0, range(12)).volumes
        power = np.mean([shells(np.abs(np.fft.fftn(v.numpy())) ** 2) for v in clean], axis=0)
        signals.append(power[10:14].mean() / power[2:5].mean())
    # At equal noise, weights that favour images which still hold a frequency raise its signal.
    assert signals[0] > 1.1 * signals[1]


def test_exposures_are_drawn_as_the_settings_say() -> None:
    settings = SimulationSettings(defocus_um=4.0, defocus_spread_um=1.0, defocus_tilt_um=0.05, alignment_error=3.0)
    drawn = [draw_exposure(settings, 41, np.random.default_rng(number)) for number in range(400)]
    means = np.array([exposure.defocus_um.mean() for exposure in drawn])
    assert 2.9 < means.min() < 3.1
    assert 4.9 < means.max() < 5.1
    assert np.mean([exposure.defocus_um.std() for exposure in drawn]) == pytest.approx(0.05, rel=0.05)
    assert np.std([exposure.shifts for exposure in drawn]) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("mode", ["tilt_series", "xulab"])
def test_volumes_depend_on_seed_class_and_number_alone(structures: list[Structure], mode: str) -> None:
    settings = SimulationSettings(mode=mode, tilt_step_deg=15.0, snr=0.1)
    together = SubtomogramSimulator(structures, settings).simulate(1, range(5))
    alone = SubtomogramSimulator(structures, settings).simulate(1, [3])
    assert torch.allclose(together.volumes[3], alone.volumes[0], atol=1e-3 * float(alone.volumes.std()))
    assert together.volumes.dtype == torch.float32
    assert {k: v for k, v in together.truth[3].items() if k != "snr_measured"} == {
        k: v for k, v in alone.truth[0].items() if k != "snr_measured"
    }
    other = SubtomogramSimulator(structures, replace(settings, seed=1)).simulate(1, [3])
    assert not torch.allclose(other.volumes, alone.volumes, atol=0.1)


def test_infinite_snr_is_without_noise(structures: list[Structure]) -> None:
    batch = SubtomogramSimulator(structures, CLEAN).simulate(0, [0])
    assert batch.truth[0]["snr_measured"] is None
    written = json.loads(json.dumps(CLEAN.as_json(), allow_nan=False))
    assert settings_from(written) == replace(CLEAN, resolution=20.0)  # the one that was used
    assert float(batch.volumes.std()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"snr": 0}, "snr=0"),
        ({"box": 33}, "box=33"),
        ({"box": "big"}, "box 'big': give a whole number"),
        ({"box": 32.5}, "give a whole number"),
        ({"mode": "magic"}, "mode 'magic' is none of tilt_series, xulab"),
        ({"defocus": 3}, "no setting defocus; did you mean defocus_um?"),
        ({"dose_weighting": "perhaps"}, "give True or False"),
        ({"voxel_size": "nan"}, "impossible"),
        ({"defocus_um": 1, "defocus_spread_um": 2}, "defocus_spread_um=2"),
        ({"max_tilt_deg": 95}, "max_tilt_deg=95"),
    ],
)
def test_impossible_settings_get_one_line(values: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_from(values)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
