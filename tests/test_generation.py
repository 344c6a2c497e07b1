"""Generated clips: random numbers by counting, clips by number, fields and sprites."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.generation import ClipGenerator
from cryo_monai.generation.counters import complex_noise, normals, sample_keys, uniforms
from cryo_monai.generation.fields import ANISOTROPIES, FIELD_CLASSES, noise_fields
from cryo_monai.generation.fields import NUM_PARAMETERS as FIELD_PARAMETERS
from cryo_monai.generation.sprites import LOBES, SPRITE_CLASSES, moving_sprites
from cryo_monai.generation.sprites import NUM_PARAMETERS as SPRITE_PARAMETERS

SIZE = (10, 12, 14)
ALL = {"fields": 1.0, "sprites": 1.0, "assemblies": 2.0}
CLEAN = {"noise_prob": 0.0, "shape_prob": 0.0, "wedge_prob": 0.0, "transfer_prob": 0.0}


def keys_of(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, torch.arange(count))


def generator(tasks: dict[str, float] | None = None, **options: Any) -> ClipGenerator:
    return ClipGenerator(SIZE, tasks or ALL, **{"num_assemblies": 8, **options})


def lowbias32(x: int, between: int = 0) -> int:
    """Wellons 2018, with something added (xor) between its rounds."""
    mask = 0xFFFFFFFF
    x = ((x ^ x >> 16) * 0x7FEB352D) & mask
    x ^= between
    x = ((x ^ x >> 15) * 0x846CA68B) & mask
    return x ^ x >> 16


def test_numbers_are_those_of_the_hash_in_plain_python() -> None:
    for seed, number, stream in ((0, 0, 0), (7, 12345, 3), (2**31 - 1, 5, 1), (1, 2**40 + 9, 31)):
        key = sample_keys(seed, torch.tensor([number]))
        halves = []
        for half in (0, 1):
            low = (number + (seed * 2 + half) * 0x9E3779B9) & 0xFFFFFFFF
            halves.append(lowbias32(lowbias32(low) ^ ((number >> 32) + (seed >> 31))))
        assert [value & 0xFFFFFFFF for value in key[0].tolist()] == halves
        expected = [
            ((lowbias32((position + stream * 2**26 + halves[0]) & 0xFFFFFFFF, halves[1]) >> 8) + 0.5) / 2**24
            for position in range(20)
        ]
        assert uniforms(key, 20, stream=stream)[0].tolist() == pytest.approx(expected, abs=1e-7)


def test_uniform_and_normal_numbers_are_what_they_say() -> None:
    for stream in (0, 3):
        even = uniforms(keys_of(40), 2000, stream=stream).flatten()
        assert 0 < even.min() < even.max() < 1
        assert kstest(even.numpy(), "uniform").pvalue > 1e-3
        bell = normals(keys_of(40), (20, 101), stream=stream).flatten().numpy()
        assert kstest(bell, "norm").pvalue > 1e-3
        moments = np.array([np.mean(bell), np.mean(bell**2) - 1, np.mean(bell**3), np.mean(bell**4) - 3])
        # The variances of powers of a normal number.
        assert np.abs(moments / np.sqrt(np.array([1, 2, 15, 96]) / len(bell))).max() < 4


def test_coefficients_of_noise_are_uniform_and_voxels_are_normal() -> None:
    power = torch.rand(60, 10, 12, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    drawn = complex_noise(keys_of(60), power, stream=1)
    parts = torch.view_as_real(drawn) / power.sqrt()[..., None]
    for part in (parts[..., 0], parts[..., 1]):
        assert kstest(part.flatten().numpy(), "uniform", args=(-math.sqrt(3), 2 * math.sqrt(3))).pvalue > 1e-3
    assert abs((parts[..., 0] * parts[..., 1]).mean()) < 0.02
    voxels = torch.fft.irfftn(drawn, s=SIZE, dim=(1, 2, 3))
    scaled = voxels / voxels.square().mean((1, 2, 3), keepdim=True).sqrt()
    assert kstest(scaled.flatten().numpy(), "norm").pvalue > 1e-3
    written = torch.empty_like(drawn)
    complex_noise(keys_of(60), power, stream=1, out=written)
    assert torch.equal(written, drawn)


def test_neighbouring_numbers_streams_positions_and_seeds_are_not_correlated() -> None:
    one = uniforms(keys_of(200), 500, stream=0) - 0.5
    others = {
        "next position": (one[:, 1:], one[:, :-1]),
        "next number": (one[1:], one[:-1]),
        "next stream": (one, uniforms(keys_of(200), 500, stream=1) - 0.5),
        "next seed": (one, uniforms(keys_of(200, seed=1), 500, stream=0) - 0.5),
        "far number": (one, uniforms(sample_keys(0, torch.arange(200) + 2**40), 500, stream=0) - 0.5),
    }
    for name, (left, right) in others.items():
        correlation = 12 * (left * right).mean()
        assert abs(correlation) < 0.015, name  # the standard error is 0.003
    assert len({tuple(key) for seed in range(4) for key in keys_of(5000, seed).tolist()}) == 20_000


def test_numbers_do_not_depend_on_the_batch() -> None:
    order = torch.randperm(50)
    for make in (lambda k: uniforms(k, 33, stream=2), lambda k: normals(k, (3, 5, 7), stream=2)):
        assert torch.equal(make(keys_of(50))[order], make(keys_of(50)[order]))


def test_a_clip_follows_from_its_number_alone() -> None:
    clips = generator(symmetry_head=True, axis_head=True)
    numbers = torch.arange(150)
    together, targets = clips.generate(numbers)
    assert together.shape == (150, 1, *SIZE)
    order = torch.randperm(150)[:70]
    alone, their_targets = clips.generate(numbers[order])
    # The clips but for rounding: transforms take several at once.
    torch.testing.assert_close(alone, together[order], atol=1e-4, rtol=0)
    torch.testing.assert_close(their_targets, targets[order], atol=0, rtol=0, equal_nan=True)
    again, _ = generator(symmetry_head=True, axis_head=True).generate(numbers)
    assert torch.equal(again, together)
    other, _ = generator(seed=1).generate(numbers)
    far, _ = clips.generate(numbers + 2**40)
    flat = torch.cat([together, other, far]).flatten(1)
    alike = torch.corrcoef(flat).fill_diagonal_(0)
    assert alike.abs().max() < 0.98


def test_tasks_and_classes_come_in_the_shares_asked_for() -> None:
    clips = generator()
    _, targets = clips.generate(torch.arange(6000))
    classes = targets[:, 0].long()
    assert classes.min() == 0
    assert classes.max() == len(FIELD_CLASSES) + len(SPRITE_CLASSES) + 8 - 1
    ends = np.cumsum([0, len(FIELD_CLASSES), len(SPRITE_CLASSES), 8])
    for first, last, share in zip(ends, ends[1:], (0.25, 0.25, 0.5), strict=False):
        own = classes[(classes >= first) & (classes < last)]
        assert len(own) / 6000 == pytest.approx(share, abs=0.03)
        counts = torch.bincount(own - first, minlength=last - first)
        expected = len(own) / (last - first)
        assert ((counts - expected).abs() < 5 * math.sqrt(expected) + 1).all()
    assert (targets[:, 1] == -1).all() == (not clips.symmetry_head) or (targets[classes < ends[2], 1] == -1).all()
    assert len(clips.output_names) == clips.num_outputs == len(set(clips.output_names)) == ends[-1]


def test_frames_of_the_controls_are_those_of_the_moving_clips() -> None:
    numbers = torch.arange(60)
    moving, labels = generator({"fields": 1, "sprites": 1}, degradation=CLEAN).generate(numbers)
    still, still_labels = generator({"fields": 1, "sprites": 1}, degradation=CLEAN, frames="still").generate(numbers)
    mixed, mixed_labels = generator({"fields": 1, "sprites": 1}, degradation=CLEAN, frames="shuffled").generate(numbers)
    for others in (still_labels, mixed_labels):
        torch.testing.assert_close(others, labels, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(still, still[:, :, :1].expand_as(still), atol=1e-5, rtol=0)
    distances = torch.cdist(mixed[:, 0].flatten(2), moving[:, 0].flatten(2))
    # Every slice of the one is one of the other, and each is there once; still sprites have ten equal ones.
    nearest = distances.min(2)
    assert nearest.values.max() < 1e-3
    changing = torch.cdist(moving[:, 0].flatten(2), moving[:, 0].flatten(2)).add(torch.eye(10) * 9).amin((1, 2)) > 0.01
    assert changing.sum() > 30
    assert (nearest.indices[changing].sort(1).values == torch.arange(10)).all()
    assert (nearest.indices[changing] != torch.arange(10)).any(1).float().mean() > 0.99


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_size": (8, 8)}, "three numbers of 4 or more"),
        ({"clip_size": (8, 8, 7)}, "the last one even"),
        ({"clip_size": (2, 8, 8)}, "three numbers of 4 or more"),
        ({"tasks": {}}, "give shares above 0"),
        ({"tasks": {"films": 1.0}}, "fields, sprites, assemblies"),
        ({"tasks": {"fields": 0.0}}, "give shares above 0"),
        ({"frames": "backwards"}, "'backwards' is not one of moving, still, shuffled"),
        ({"num_assemblies": 1}, "must be 2 or more"),
        ({"seed": -1}, "must be 0 or more"),
        ({"clip_scales": []}, "must be a list of numbers above 0"),
        ({"clip_scales": 1.0}, "must be a list of numbers above 0"),
        ({"clip_scales": ["1.0"]}, "must be a list of numbers above 0"),
        ({"clip_scales": [1.0, 0.0]}, "must be a list of numbers above 0"),
        ({"clip_scales": [1.0, float("nan")]}, "must be a list of numbers above 0"),
        ({"clip_scales": [1.0, 0.25]}, r"0\.25 makes clips of \[2, 4, 4\]; 4 is the least"),
        ({"degradation": {"noise_prob": 1.5}}, r"noise_prob: 1\.5 must lie between 0 and 1"),
        ({"degradation": {"noise_sd": [3.0, 0.2]}}, "two increasing numbers above 0"),
        ({"degradation": {"noise_sd": [0.0, 0.2]}}, "two increasing numbers above 0"),
    ],
)
def test_impossible_options_are_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    options = {"clip_size": SIZE, "tasks": ALL, **change}
    with pytest.raises(InputError, match=words) as caught:
        ClipGenerator(**options)
    assert "\n" not in str(caught.value)


def test_further_sizes_are_even_and_the_size_itself_is_as_given() -> None:
    assert ClipGenerator((9, 13, 14), ALL, clip_scales=[1.0, 0.6, 1.333]).sizes == [
        (9, 13, 14),
        (6, 8, 8),
        (12, 18, 18),
    ]
    whole = ClipGenerator((24, 24, 24), ALL, clip_scales=[0.667, 0.75, 0.833, 0.917, 1.083, 1.167, 1.25, 1.333])
    assert [size[0] for size in whole.sizes] == [16, 18, 20, 22, 26, 28, 30, 32]


def test_clips_of_a_size_are_those_of_a_generator_of_that_size() -> None:
    numbers = torch.arange(40)
    several = generator(clip_scales=[1.0, 1.5])
    alone = ClipGenerator((16, 18, 20), ALL, num_assemblies=8)
    assert several.sizes == [SIZE, alone.clip_size]
    for made, same in zip(several.generate(numbers, size=several.sizes[1]), alone.generate(numbers), strict=True):
        torch.testing.assert_close(made, same, atol=0, rtol=0, equal_nan=True)


def fields_of(names: list[str], count: int, size: tuple[int, int, int] = (16, 24, 20)) -> Tensor:
    """So many fields of each class: `(classes, count, D, H, W)`, of the same numbers."""
    keys = keys_of(count).repeat(len(names), 1)
    parameters = uniforms(keys, FIELD_PARAMETERS, stream=0)
    classes = torch.tensor([FIELD_CLASSES.index(name) for name in names]).repeat_interleave(count)
    return noise_fields(keys, parameters, classes, size).view(len(names), count, *size)


def test_fields_change_at_their_rate() -> None:
    made = fields_of([f"medium_round_{rate}_stays" for rate in ("still", "slow", "fast")], 20)
    flat = made - made.mean((3, 4), keepdim=True)
    alike = torch.nn.functional.cosine_similarity(flat[:, :, 1:].flatten(3), flat[:, :, :-1].flatten(3), dim=3)
    still, slow, fast = alike.mean((1, 2)).tolist()
    assert still > slow + 0.02
    assert slow > fast + 0.1
    assert still > 0.97


def test_fields_drift_where_they_say() -> None:
    names = ("stays", "down", "up", "right", "left")
    made = fields_of([f"coarse_round_still_{name}" for name in names], 12)
    spectrum = torch.fft.fft2(made)
    shift = torch.fft.ifft2(spectrum[:, :, 1:] * spectrum[:, :, :-1].conj()).real.mean((1, 2))
    # The peak of the cross-correlation of successive slices lies at the displacement; its slope at 0 has its sign.
    along_y = shift[:, 1, 0] - shift[:, -1, 0]
    along_x = shift[:, 0, 1] - shift[:, 0, -1]
    scale = shift[:, 0, 0]
    signs = torch.stack([along_y, along_x], 1) / scale[:, None]
    expected = torch.tensor([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    for measured, wanted in zip(signs, expected, strict=True):
        assert torch.equal((measured / signs.abs().max()).round(), wanted.float()), (measured, wanted)


def test_fields_have_their_scale_and_their_anisotropy() -> None:
    along_y, along_x = torch.fft.fftfreq(24)[:, None] * 24, torch.fft.fftfreq(20) * 20
    scales = fields_of([f"{scale}_round_slow_stays" for scale in ("coarse", "medium", "fine")], 16)
    power = torch.fft.fft2(scales).abs().square().sum((1, 2))
    centre = (power * (along_y**2 + along_x**2).sqrt()).sum((1, 2)) / power.sum((1, 2))
    assert (centre[1:] > 1.2 * centre[:-1]).all()
    long = fields_of([f"medium_{name}_slow_stays" for name in ANISOTROPIES], 16)
    power = torch.fft.fft2(long).abs().square().sum(2)
    moments = torch.stack([along_y**2 + 0 * along_x, along_y * along_x, 0 * along_y + along_x**2])
    yy, yx, xx = (power[:, :, None] * moments).sum((3, 4)).unbind(2)
    spread = ((yy - xx).square() + 4 * yx.square()).sqrt()
    ratio = ((yy + xx + spread) / (yy + xx - spread)).log().mean(1)
    assert ratio[0] + 0.2 < ratio[1]
    assert ratio[1] + 0.2 < ratio[2]


def sprites_of(motion: str, filling: str = "disc", lobes: int = 3) -> Tensor:
    """Sprites in the middle, without a pattern: `(n, 9, 48, 40)`."""
    parameters = uniforms(keys_of(6), SPRITE_PARAMETERS, stream=0)
    parameters[:, 0:2], parameters[:, 2], parameters[:, 9] = 0.5, 0.1, 0.0
    classes = torch.full((6,), SPRITE_CLASSES.index(f"{lobes}_lobed_{filling}_{motion}"))
    return moving_sprites(parameters, classes, (9, 48, 40))


@pytest.mark.parametrize("motion", ["still", "down", "up", "right", "left", "turning", "growing", "shrinking"])
def test_sprites_move_as_their_class_says(motion: str) -> None:
    made = sprites_of(motion)
    area = made.sum((2, 3))
    y, x = torch.arange(48.0)[:, None], torch.arange(40.0)
    moved = torch.stack([(made * place).sum((2, 3)) / area for place in (y, x)], 2).diff(dim=1)
    wanted = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1)}.get(motion, (0, 0))
    for axis in (0, 1):
        if wanted[axis]:
            assert (moved[..., axis] * wanted[axis] > 0.3).all()
        else:
            assert moved[..., axis].abs().max() < 0.1
    growth = area[:, -1] / area[:, 0]
    bounds = {"growing": (1.5, 9.0), "shrinking": (0.1, 0.7)}.get(motion, (0.97, 1.03))
    assert (growth > bounds[0]).all()
    assert (growth < bounds[1]).all()
    changed = (made[:, 1:] - made[:, :-1]).abs().amax((1, 2, 3))
    assert (changed < 1e-5).all() if motion == "still" else (changed > 0.02).all()


@pytest.mark.parametrize(("motion", "sense"), [("turning", 1), ("counter_turning", -1), ("still", 0)])
def test_sprites_turn_in_their_sense(motion: str, sense: int) -> None:
    made = sprites_of(motion, lobes=3).double()
    y = ((2 * torch.arange(48) + 1) / 48 - 1)[:, None].double()
    x = ((2 * torch.arange(40) + 1) / 40 - 1).double()
    # The phase of the third moment about the centre is three times the angle, from x towards y.
    phase = (made * torch.complex(x + 0 * y, y + 0 * x) ** 3).sum((2, 3)).angle()
    step = torch.remainder(phase.diff(dim=1) + torch.pi, 2 * torch.pi) - torch.pi
    assert torch.equal(
        step.mean(1).mul(10).sign() * (step.mean(1).abs() > 0.05), torch.full((6,), float(sense)).double()
    )


@pytest.mark.parametrize("lobes", [2, 3, 4, 5])
def test_sprites_have_as_many_lobes_as_their_class_says(lobes: int) -> None:
    made = sprites_of("still", lobes=lobes).double().sum(1)
    y = ((2 * torch.arange(48) + 1) / 48 - 1)[:, None].double()
    x = ((2 * torch.arange(40) + 1) / 40 - 1).double()
    around = torch.polar(torch.ones(1).double(), torch.atan2(y + 0 * x, x + 0 * y))
    parts = torch.stack([(made * around**fold).sum((1, 2)).abs() for fold in range(1, 9)], 1)
    assert (parts.argmax(1) == lobes - 1).all()
    angles = np.linspace(0, 2 * np.pi, 50)
    assert np.polynomial.Polynomial(LOBES[lobes])(np.cos(angles)) == pytest.approx(np.cos(lobes * angles))
    assert (parts[:, lobes - 1] > 0.05 * made.sum((1, 2))).all()


def test_rings_have_a_hole_and_discs_have_none() -> None:
    ring, disc = sprites_of("still", "ring"), sprites_of("still", "disc")
    assert ring[:, :, 24, 20].max() < 0.3
    assert disc[:, :, 24, 20].min() > 0.9
    assert (ring <= disc + 1e-5).all()
