import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Affine, Resize, SpatialCrop
from torch import Tensor

from cryo_monai.clips import TIME_AXES, ClipParameters, RandomClips, put_time_first, resample_clips
from cryo_monai.errors import InputError

SHAPE = (10, 12, 14)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def smooth_volume(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """A volume that is well sampled and has no symmetry: `(1, 1, z, y, x)`."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    data = np.sin(2 * z + 1) + np.cos(3 * y - x) + np.sin(3 * x) * z + 0.5 * y
    return torch.tensor(data, dtype=torch.float32)[None, None]


def matrices(*parameters: ClipParameters, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.tensor(np.stack([p.matrix(shape) for p in parameters]), dtype=torch.float32)


def test_same_size_without_matrices_is_the_volume_itself() -> None:
    volume = torch.rand(2, 1, *SHAPE)
    assert resample_clips(volume, list(SHAPE)) is volume


@pytest.mark.parametrize("device", DEVICES)
def test_default_parameters_are_the_identity(device: str) -> None:
    volume = torch.rand(2, 1, *SHAPE, device=device)
    same = resample_clips(volume, list(SHAPE), matrices(ClipParameters(), ClipParameters()).to(device))
    assert torch.allclose(same, volume, atol=1e-5)


@pytest.mark.parametrize("clip_size", [(20, 30, 25), (5, 6, 7), (10, 24, 14)])
def test_nothing_drawn_equals_monai_resize(clip_size: tuple[int, int, int]) -> None:
    volume = torch.rand(1, 1, *SHAPE)
    expected = Resize(clip_size, mode="trilinear")(volume[0]).as_tensor()[None]
    assert torch.allclose(resample_clips(volume, list(clip_size)), expected, atol=1e-6)
    assert torch.allclose(resample_clips(volume, list(clip_size), matrices(ClipParameters())), expected, atol=1e-5)


def test_a_crop_equals_monai_crop_then_resize_inside() -> None:
    # The box of half the edges at its low end in z, high end in y and middle in x: whole voxels of an even volume.
    shape = (12, 16, 20)
    volume = smooth_volume(shape)
    parameters = ClipParameters(crop_fraction=0.5, crop_position=(0.0, 1.0, 0.5))
    clip = resample_clips(volume, [24, 32, 40], matrices(parameters, shape=shape))[0]
    box = SpatialCrop(roi_start=(0, 8, 5), roi_end=(6, 16, 15))(volume[0])
    expected = Resize((24, 32, 40), mode="trilinear")(box).as_tensor()
    inside = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))  # MONAI repeats the box's border, we see beyond
    assert torch.allclose(clip[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("rotation_deg", [0.0, 30.0, -45.0])
@pytest.mark.parametrize("shape", [(12, 16, 16), (10, 12, 18)])
def test_crop_affine_resize_equals_the_plain_monai_chain(rotation_deg: float, shape: tuple[int, int, int]) -> None:
    volume = smooth_volume(shape)
    size = tuple(
        2 * n for n in shape
    )  # same aspect as the volume, so that MONAI's rotation of clip voxels is rigid too
    parameters = ClipParameters(rotation_deg=rotation_deg, translation=(0.1, -0.05), scale=1.1)
    ours = resample_clips(volume, size, matrices(parameters, shape=shape))[0]
    resized = Resize(size, mode="trilinear")(volume[0])
    chain = Affine(
        # MONAI moves the sampling grid: angle and scale are the inverses of what happens to the content.
        rotate_params=(-np.deg2rad(rotation_deg), 0.0, 0.0),
        scale_params=(1 / 1.1,) * 3,
        mode="bilinear",
        padding_mode="border",
        image_only=True,
    )
    shifted = np.zeros((4, 4))
    np.fill_diagonal(shifted, 1)
    # Content moved by (0.1, -0.05) of height and width, before rotation and scale are undone.
    shifted[1, 3], shifted[2, 3] = -0.1 * size[1], 0.05 * size[2]
    rotated = _grid_matrix(-rotation_deg, 1 / 1.1) @ shifted
    expected = Affine(affine=rotated, mode="bilinear", padding_mode="border", image_only=True)(resized).as_tensor()
    inside = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
    assert torch.allclose(ours[inside], expected[inside], atol=0.04)  # about 1 % of the range of values
    # And without the shift, against MONAI's own parametrisation, which fixes the sign of the rotation.
    plain = ClipParameters(rotation_deg=rotation_deg, scale=1.1)
    unshifted = resample_clips(volume, size, matrices(plain, shape=shape))[0]
    assert torch.allclose(
        unshifted[inside], chain(resized).as_tensor()[inside], atol=0.04
    )  # about 1 % of the range of values


def _grid_matrix(rotation_deg: float, scale: float) -> np.ndarray:
    """Output voxel -> input voxel for MONAI's ``Affine(affine=...)``, about the centre, ``(z, y, x)``."""
    cos, sin = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    return matrix @ np.diag([scale, scale, scale, 1.0])


def test_rotation_turns_y_towards_x_rigidly_on_unequal_axes() -> None:
    volume = torch.zeros(1, 1, 5, 9, 13)
    volume[0, 0, 3, 6, 6] = 1  # two voxels from the centre (2, 4, 6) along +y, one along +z
    turned = resample_clips(volume, [5, 9, 13], matrices(ClipParameters(rotation_deg=90), shape=(5, 9, 13)))
    expected = torch.zeros_like(volume)
    expected[0, 0, 3, 4, 8] = 1  # two voxels along +x, z untouched
    assert torch.allclose(turned, expected, atol=1e-5)


def test_translation_moves_content_along_y_and_x() -> None:
    volume = torch.zeros(1, 1, *SHAPE)
    volume[0, 0, 4, 5, 6] = 1
    moved = resample_clips(volume, list(SHAPE), matrices(ClipParameters(translation=(2 / 12, -3 / 14))))
    expected = torch.zeros_like(volume)
    expected[0, 0, 4, 7, 3] = 1
    assert torch.allclose(moved, expected, atol=1e-5)


def test_scale_magnifies() -> None:
    volume = torch.zeros(1, 1, 9, 9, 9)
    volume[0, 0, 4, 4, 6] = 1
    larger = resample_clips(volume, [9, 9, 9], matrices(ClipParameters(scale=1.5), shape=(9, 9, 9)))
    assert tuple(int(i) for i in torch.nonzero(larger == larger.max())[0][2:]) == (4, 4, 7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(0, 5))
def test_a_clip_does_not_depend_on_its_batch(seed: int, first: int) -> None:
    volumes = torch.rand(6, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    clips = RandomClips(seed=seed)
    clips.set_epoch(2)
    together = resample_clips(volumes, [8, 16, 16], clips.matrices(range(6), SHAPE))
    alone = resample_clips(volumes[first : first + 1], [8, 16, 16], clips.matrices([first], SHAPE))
    assert torch.equal(together[first : first + 1], alone)


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    clips, again = RandomClips(seed=1), RandomClips(seed=1)
    for one in (clips, again):
        one.set_epoch(3)
    np.random.default_rng().random()
    torch.rand(1)
    assert [clips.draw(n) for n in (5, 2, 5)] == [again.draw(n) for n in (5, 2, 5)]
    assert clips.draw(5) != clips.draw(6)
    again.set_epoch(4)
    assert any(clips.draw(n) != again.draw(n) for n in range(20))


def test_draws_keep_the_stated_probabilities_and_ranges() -> None:
    clips = RandomClips(seed=0)
    drawn = [clips.draw(n) for n in range(4000)]
    cropped = [p for p in drawn if p.crop_fraction < 1]
    affine = [p for p in drawn if p.rotation_deg != 0]
    both = [p for p in cropped if p.rotation_deg != 0]
    # Standard error of a fraction of 1/2 in 4000 is 0.008; four of them.
    assert len(cropped) / 4000 == pytest.approx(0.5, abs=0.032)
    assert len(affine) / 4000 == pytest.approx(0.5, abs=0.032)
    assert len(both) / 4000 == pytest.approx(0.25, abs=0.028)
    for values, low, high in [
        ([p.crop_fraction for p in cropped], 0.5, 1.0),
        ([p.crop_position[0] for p in cropped], 0.0, 1.0),
        ([p.rotation_deg for p in affine], -45.0, 45.0),
        ([p.translation[0] for p in affine], -0.1, 0.1),
        ([p.translation[1] for p in affine], -0.1, 0.1),
        ([p.scale for p in affine], 0.9, 1.1),
    ]:
        span = high - low
        assert low <= min(values) < low + 0.02 * span
        assert high - 0.02 * span < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.03 * span)


def test_probability_zero_draws_nothing() -> None:
    clips = RandomClips(crop_prob=0, affine_prob=0)
    assert {clips.draw(n) for n in range(50)} == {ClipParameters()}


def test_prepare_batch_moves_and_draws_by_index() -> None:
    clips = RandomClips(seed=5)
    batch = {
        "image": torch.rand(3, 1, *SHAPE),
        "label": torch.tensor([0, 1, 2]),
        "index": torch.tensor([7, 3, 9]),
    }
    volumes, labels, args, kwargs = clips(batch, "cpu")
    assert torch.equal(volumes, batch["image"])
    assert torch.equal(labels, batch["label"])
    assert args == ()
    assert torch.equal(kwargs["matrices"], clips.matrices([7, 3, 9], SHAPE))


@pytest.mark.parametrize(
    "wrong",
    [{"crop_prob": 1.5}, {"crop_scale": (0.9, 0.5)}, {"crop_scale": (0, 1)}, {"scale": 1.0}, {"rotate_deg": -1}],
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        RandomClips(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("axis", "order"), [("z", (0, 1, 2)), ("y", (1, 2, 0)), ("x", (2, 0, 1))])
def test_the_time_axis_comes_first_and_nothing_is_mirrored(axis: str, order: tuple[int, int, int]) -> None:
    volume = torch.rand(1, 1, 10, 12, 14)
    turned = put_time_first(volume, list(TIME_AXES[axis]))
    assert TIME_AXES[axis] == order
    assert torch.equal(turned, volume.permute(0, 1, *(a + 2 for a in order)))
    assert np.linalg.det(np.eye(3)[list(order)]) == 1.0  # a rotation: left hands stay left


@pytest.mark.parametrize("axis", ["y", "x"])
def test_random_clips_are_turned_about_the_time_axis(axis: str) -> None:
    """Clips of a volume with its axes permuted, time z, are those of the volume itself with the other time axis."""
    turned_shape = [(10, 12, 14)[a] for a in TIME_AXES[axis]]
    options = {"crop_prob": 1.0, "affine_prob": 1.0, "seed": 3}
    assert torch.equal(
        RandomClips(**options, time_axis=axis).matrices([0, 1], (10, 12, 14)),
        RandomClips(**options).matrices([0, 1], turned_shape),
    )
    with pytest.raises(InputError, match="time_axis: 't' is not one of z, y, x"):
        RandomClips(time_axis="t")
