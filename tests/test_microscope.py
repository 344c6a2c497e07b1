from pathlib import Path

import numpy as np
import pytest
import torch

from cryo_monai.errors import InputError
from cryo_monai.simulation.microscope import (
    contrast_transfer,
    dose_damage,
    electron_wavelength,
    missing_wedge_mask,
    squared_frequencies,
)
from cryo_monai.simulation.tilts import read_tilts, tilt_scheme
from cryo_monai.simulation.writing import full_mask


def test_electron_wavelength_golden_value() -> None:
    # Reimer & Kohl 2008, table 2.2: 1.97 pm at 300 kV, 2.51 pm at 200 kV.
    assert electron_wavelength(300) == pytest.approx(0.0197, abs=5e-5)
    assert electron_wavelength(200) == pytest.approx(0.0251, abs=5e-5)


@pytest.mark.parametrize("defocus_um", [1.5, 3.0, 6.0])
def test_ctf_zeros_are_where_theory_puts_them(defocus_um: float) -> None:
    size, pixel = 4096, 2.5
    squared = squared_frequencies((size, 2), pixel)[:, 0]
    transfer = contrast_transfer(squared, defocus_um=defocus_um, amplitude_contrast=0.0, spherical_aberration_mm=0.0)
    half = transfer[1 : size // 2].numpy()
    crossings = np.flatnonzero(np.diff(np.sign(half))) + 1
    # sin(pi lambda dz s^2) = 0 at s = sqrt(n / (lambda dz))
    count = min(len(crossings), 5)
    theory = np.sqrt(np.arange(1, count + 1) / (electron_wavelength(300) * defocus_um * 1e4)) * size * pixel
    assert count >= 3
    assert np.abs(crossings[:count] + 0.5 - theory).max() <= 0.6
    assert half[0] < 0  # underfocus: density is dark


def test_ctf_equals_torch_ctf() -> None:
    torch_ctf = pytest.importorskip("torch_ctf")
    expected = torch_ctf.calculate_ctf_2d(
        defocus=3.0,
        astigmatism=0.0,
        astigmatism_angle=0.0,
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        phase_shift=40.0,
        pixel_size=4.0,
        image_shape=(20, 28),
        rfft=True,
        fftshift=False,
    )
    squared = squared_frequencies((20, 28), 4.0)
    ours = contrast_transfer(
        squared, defocus_um=3.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1, phase_shift_deg=40.0
    )
    # Theirs is positive where density is to be bright.
    assert torch.allclose(ours.float(), -expected.float(), atol=2e-3)


def test_dose_damage_equals_torch_fourier_filter() -> None:
    reference = pytest.importorskip("torch_fourier_filter.dose_weight")
    frequency = torch.linspace(0.01, 0.2, 30, dtype=torch.float64)
    critical = reference.critical_exposure(frequency)
    ours = dose_damage(frequency**2, torch.tensor(40.0, dtype=torch.float64))
    # Their constants are those of the paper, rounded.
    assert torch.allclose(ours, torch.exp(-40.0 / (2 * critical)), rtol=5e-3)
    weaker = dose_damage(frequency**2, torch.tensor(40.0), voltage_kv=200)
    assert bool((weaker < ours).all())
    assert bool((dose_damage(frequency**2, torch.tensor(0.0)) == 1).all())


def test_wedge_keeps_71_percent_of_the_cube_about_the_y_axis() -> None:
    # field facts of the simulations by the Xu lab: a hard wedge of +-60 degrees keeps 71 % of the Fourier cube
    mask = missing_wedge_mask((64, 64, 64), max_tilt_deg=60)
    full = full_mask(mask.numpy(), 64)
    assert full.mean() == pytest.approx(0.71, abs=0.01)
    assert mask[5, :, 0].sum() == 0  # along the beam: missing
    assert mask[0].min() == 1  # the untilted image: there
    assert missing_wedge_mask((8, 10, 12), max_tilt_deg=90).min() == 1


def test_wedge_of_uneven_tilts_and_the_full_mask_are_that_of_a_real_volume() -> None:
    half = missing_wedge_mask((12, 10, 14), min_tilt_deg=-40, max_tilt_deg=70).numpy()
    full = np.fft.ifftshift(full_mask(half, 14))
    assert full.shape == (12, 10, 14)
    assert np.array_equal(full[:, :, :8], half)
    # The inverse transform of a mask of a real volume is real: a frequency and its opposite go together, but for the
    # Nyquist planes, which have no opposite of their own.
    opposite = full[(-np.arange(12)) % 12][:, (-np.arange(10)) % 10][:, :, (-np.arange(14)) % 14]
    inner = np.ix_([k for k in range(12) if k != 6], [k for k in range(10) if k != 5], [k for k in range(14) if k != 7])
    assert np.array_equal(full[inner], opposite[inner])
    # Tilts of +70 hold more than those of -40: kz / kx > 0 is wider than kz / kx < 0.
    assert half[1:6, 0, 1:7].sum() > half[7:, 0, 1:7].sum()


def test_dose_symmetric_order_is_hagens() -> None:
    tilts = tilt_scheme(max_tilt_deg=9, tilt_step_deg=3, scheme="dose_symmetric", dose_per_tilt=2.0)
    order = [angle for _, angle in sorted(zip(tilts.doses, tilts.angles_deg, strict=True))]
    assert order == [0, 3, -3, -6, 6, 9, -9]
    assert min(tilts.doses) == 1.0
    assert max(tilts.doses) == 13.0


@pytest.mark.parametrize(("scheme", "order"), [("bidirectional", [0, 3, 6, -3, -6]), ("continuous", [-6, -3, 0, 3, 6])])
def test_other_orders(scheme: str, order: list[float]) -> None:
    tilts = tilt_scheme(max_tilt_deg=7, tilt_step_deg=3, scheme=scheme, dose_per_tilt=1.0)
    assert [angle for _, angle in sorted(zip(tilts.doses, tilts.angles_deg, strict=True))] == order


def test_tilts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.tlt"
    file.write_text(" 3.01\n-2.99\n\n0.02\n")
    tilts = read_tilts(file, scheme="dose_symmetric", dose_per_tilt=2.0)
    assert tilts.angles_deg == (-2.99, 0.02, 3.01)
    assert tilts.doses == (5.0, 1.0, 3.0)


MDOC = """PixelSpacing = 2.5
Voltage = 300

[T = SerialEM]

[ZValue = 0]
TiltAngle = 0.01
ExposureDose = 3
DateTime = 21-Nov-26  10:00:00

[ZValue = 1]
TiltAngle = -3.0
ExposureDose = 3
DateTime = 21-Nov-26  10:04:00

[ZValue = 2]
TiltAngle = 3.0
ExposureDose = 4
DateTime = 21-Nov-26  10:02:00
"""


def test_tilts_and_doses_of_an_mdoc_file_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    file = tmp_path / "a.mdoc"
    file.write_text(MDOC)
    tilts = read_tilts(file, scheme="continuous", dose_per_tilt=1.0)
    assert tilts.angles_deg == (-3.0, 0.01, 3.0)
    assert tilts.doses == (8.5, 1.5, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.tlt", "0\nthree\n", "a.tlt: line 2: 'three' is not a tilt angle"),
        ("a.tlt", "0\n0\n3\n", "the tilt angle 0 occurs 2 times"),
        ("a.tlt", "0\n", "1 tilt angles; two or more are needed"),
        ("a.tlt", "nan\n3\n", "a.tlt: line 1: 'nan' is not a tilt angle"),
        ("A.MDOC", "hello", "A.MDOC: not a readable mdoc file"),
        ("a.tlt", "0\n120\n", "a tilt of 120 degrees"),
        ("a.mdoc", "hello", "a.mdoc: not a readable mdoc file"),
        ("a.mdoc", "[ZValue = 0]\nDefocus = 1\n", "a.mdoc:"),
    ],
)
def test_bad_files_of_tilts_get_one_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_tilts(file, scheme="continuous", dose_per_tilt=1.0)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_tilts(tmp_path / "none.tlt", scheme="continuous", dose_per_tilt=1.0)
