"""What becomes of generated signals: shapes, the microscope, noise, contrast."""

import math

import pytest
import torch
from torch import Tensor

from cryo_monai.generation import ClipGenerator
from cryo_monai.generation.counters import normals, sample_keys, uniforms
from cryo_monai.generation.degradation import NUM_PARAMETERS, Degradation, degrade, eased, shaped
from cryo_monai.generation.fields import FIELD_CLASSES, noise_fields

SIZE = (10, 12, 14)
CLEAN = {"noise_prob": 0.0, "shape_prob": 0.0, "wedge_prob": 0.0, "transfer_prob": 0.0}


def keys_of(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, torch.arange(count))


def generator(tasks: dict[str, float], **degradation: float) -> ClipGenerator:
    return ClipGenerator(SIZE, tasks, num_assemblies=8, degradation=degradation)


def plain(count: int, **chosen: float) -> Tensor:
    """Parameters of degradations, all 0.5 but some columns."""
    names = ("shape", "level", "steep", "noisy", "sd", "white", "blur", "dark", "cut", "tilt", "transfer", "defocus")
    parameters = torch.full((count, NUM_PARAMETERS), 0.5)
    for name, value in chosen.items():
        parameters[:, names.index(name)] = value
    return parameters


def signals_of(count: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return 3 + 5 * normals(keys_of(count, seed=9), size, stream=7)


def test_without_noise_clips_are_standardised_and_half_of_them_dark() -> None:
    clean, _ = generator({"fields": 1, "assemblies": 1}, noise_prob=0.0).generate(torch.arange(200))
    assert clean.mean((1, 2, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(clean.var((1, 2, 3, 4), correction=0), torch.ones(200), atol=1e-3, rtol=0)
    sprites, _ = generator({"sprites": 1}, **CLEAN).generate(torch.arange(400))
    dark = (sprites.flatten(1).median(1).values > 0).float().mean()  # the background is brighter than the mean
    assert dark == pytest.approx(0.5, abs=0.1)
    turned = degrade(signals_of(2), keys_of(2), plain(2, dark=0.4), torch.zeros(2), Degradation(**CLEAN))
    as_is = degrade(signals_of(2), keys_of(2), plain(2, dark=0.6), torch.zeros(2), Degradation(**CLEAN))
    torch.testing.assert_close(turned, -as_is)


@pytest.mark.parametrize("white", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("extent", [0.0, 300.0])
def test_noise_has_its_standard_deviation_whatever_its_colour(white: float, extent: float) -> None:
    options = Degradation(noise_prob=1.0, noise_sd=(2.0, 2.0), wedge_prob=1.0, transfer_prob=1.0)
    parameters, extents = plain(300, white=white, blur=0.2), torch.full((300,), extent)
    clips = degrade(signals_of(300), keys_of(300), parameters, extents, options)
    bare = degrade(
        signals_of(300),
        keys_of(300),
        parameters,
        extents,
        Degradation(noise_prob=0.0, wedge_prob=1.0, transfer_prob=1.0),
    )
    noise = clips - bare
    assert noise.mean((1, 2, 3)).abs().max() < 1e-4
    assert noise.square().mean() == pytest.approx(4, rel=0.03)
    assert clips.square().mean() == pytest.approx(5, rel=0.03)
    assert abs((noise * bare).mean()) < 0.03


def test_white_noise_has_a_flat_spectrum_and_smooth_noise_a_falling_one() -> None:
    options = Degradation(**{**CLEAN, "noise_prob": 1.0, "noise_sd": (1.0, 1.0)})
    flat = {}
    for name, white in (("white", 1.0), ("smooth", 0.0)):
        parameters = plain(300, white=white, blur=0.2)
        nothing = torch.zeros(300, *SIZE)
        power = torch.fft.fftn(degrade(nothing, keys_of(300), parameters, torch.zeros(300), options), dim=(1, 2, 3))
        power = power.abs().square().mean(0)
        flat[name] = power / power.mean()
    away = torch.ones(SIZE, dtype=torch.bool)
    away[0, 0, 0] = False
    assert flat["white"][away].min() > 0.7
    assert flat["white"][away].max() < 1.3
    # Also where a coefficient of the half-spectrum stands for itself only.
    assert flat["white"][1:, 1:, [0, 7]].mean() == pytest.approx(1, abs=0.03)
    assert flat["smooth"][0, 0, 1] > 3
    assert flat["smooth"][5, 6, 7] < 0.01


@pytest.mark.parametrize("size", [SIZE, (16, 16, 16)])
def test_the_wedge_is_empty_and_lies_about_the_beam(size: tuple[int, int, int]) -> None:
    options = Degradation(noise_prob=0.0, wedge_prob=1.0, transfer_prob=0.0)
    clips = degrade(signals_of(4, size), keys_of(4), plain(4, tilt=0.6), torch.full((4,), 300.0), options)
    power = torch.fft.fftn(clips, dim=(1, 2, 3)).abs()
    along_z = (torch.fft.fftfreq(size[0]) * size[0]).abs()[:, None, None]
    along_x = (torch.fft.fftfreq(size[2]) * size[2]).abs()[None, None]
    # Tilts of 60 degrees about y: what is farther from the plane of x and y than that is missing, whatever y.
    missing = (along_z > along_x * math.tan(math.radians(60)) + 1e-3).expand(size)
    assert 0.2 < missing.float().mean() < 0.5
    assert power[:, missing].max() < 1e-2
    assert (power[:, ~missing] > 1e-2).float().mean() > 0.99
    other = degrade(signals_of(4, size), keys_of(4), plain(4, tilt=0.6), torch.zeros(4), options)
    assert torch.fft.fftn(other, dim=(1, 2, 3)).abs()[:, missing].mean() > 1  # no particle, no wedge


def test_transfer_keeps_phases_where_they_are_flipped() -> None:
    options = Degradation(noise_prob=0.0, wedge_prob=0.0, transfer_prob=1.0)
    parameters = plain(3)
    parameters[:, -2] = 0.1
    clips = degrade(signals_of(3), keys_of(3), parameters, torch.full((3,), 100.0), options)
    before, after = (torch.fft.fftn(value, dim=(1, 2, 3)) for value in (signals_of(3), clips))
    relative = (after / before).flatten(1)[:, 1:]
    assert relative.real[0].mul(torch.sign(relative.real[0].mean())).min() > -1e-3
    parameters[:, -2] = 0.9
    clips = degrade(signals_of(3), keys_of(3), parameters, torch.full((3,), 100.0), options)
    relative = (torch.fft.fftn(clips, dim=(1, 2, 3)) / before).flatten(1)[:, 1:].real
    assert 0.1 < (relative > 0).float().mean() < 0.9


def test_shapes_are_nearly_binary() -> None:
    classes = torch.full((8,), FIELD_CLASSES.index("coarse_round_slow_stays"))
    fields = noise_fields(keys_of(8), uniforms(keys_of(8), 3, stream=0), classes, SIZE)
    untouched = shaped(fields.clone(), plain(8, shape=0.6)[:, :3], 0.5)
    assert torch.equal(untouched, fields)
    shapes = shaped(fields.clone() * 7 + 3, plain(8, shape=0.4, level=0.25, steep=1.0)[:, :3], 0.5)
    assert ((shapes < 0.1) | (shapes > 0.9)).float().mean() > 0.6
    torch.testing.assert_close(shapes.flatten(1).mean(1), torch.full((8,), 0.5), atol=0.15, rtol=0)  # threshold: mean


def test_easing_makes_degradations_rarer_and_noise_quieter() -> None:
    drawn = uniforms(keys_of(4000), NUM_PARAMETERS, stream=0)
    easier = eased(drawn, torch.full((4000,), 0.25))
    for column in (3, 8, 10):
        assert (easier[:, column] < 0.6).float().mean() == pytest.approx(0.15, abs=0.03)
    assert easier[:, 4].max() < 0.25
    assert torch.equal(eased(drawn, torch.ones(4000)), drawn)
