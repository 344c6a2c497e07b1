"""Particles in tomograms: where they lie, and the boxes around them."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryo_monai.boxes import BoxSettings, ParticleBoxes, outside_sphere, sampled_contrast
from cryo_monai.contrasts import contrast_of, contrast_warning
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.locations import LocatedParticles, list_particles, locate_particles, open_tomograms
from cryo_monai.mrc import write_mrc
from cryo_monai.particles import Particles, TomogramRecord, make_particles

SHAPE = (40, 44, 48)
PLACES = np.array([[20.0, 21.0, 22.0], [10.25, 30.5, 12.75], [19.0, 22.0, 40.0], [2.0, 22.0, 24.0]])


def write_tomogram(file: Path, *, seed: int = 0, voxel_size: float = 10.0, sign: float = -1.0) -> np.ndarray:
    """Noise with a blob at each place, dark by default."""
    data = np.random.default_rng(seed).normal(size=SHAPE)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    for place in PLACES:
        data += sign * 4 * np.exp(-((grid - place) ** 2).sum(-1) / 18)
    data = data.astype(np.float32)
    write_mrc(file, data, voxel_size=voxel_size)
    return data


def listed(names: list[str] | str = "t", **details: object) -> Particles:
    return make_particles(names, PLACES, pixel_size=10.0, **details)  # type: ignore[arg-type]


@pytest.fixture
def located(tmp_path: Path) -> LocatedParticles:
    write_tomogram(tmp_path / "t.mrc")
    return locate_particles(listed(), [tmp_path])


def test_places_are_voxels_of_the_tomogram_at_any_binning(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc", voxel_size=20.0)
    located = locate_particles(listed(), [tmp_path / "t.mrc"])
    assert np.allclose(located.places, PLACES / 2)
    assert located.voxel_size == 20.0


def test_particles_outside_their_tomogram_stop_everything(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc", voxel_size=5.0)  # so coordinates double
    with pytest.raises(InputError, match=r"4 of 4 particles lie outside.*\(40.0, 42.0, 44.0\) voxels.*--pixel_size"):
        locate_particles(listed(), [tmp_path])


def test_unknown_voxel_sizes_want_a_number(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc", voxel_size=1.0)  # a bare 1.0 is what software writes when it does not know
    with pytest.raises(InputError, match=r"t\.mrc: voxel size unknown; give it with --tomogram_voxel_size"):
        locate_particles(listed(), [tmp_path])
    with pytest.raises(InputError, match="voxel size unknown"):
        open_tomograms([tmp_path])
    assert locate_particles(listed(), [tmp_path], tomogram_voxel_size=10.0).voxel_size == 10.0


def test_tomograms_of_different_voxel_sizes_are_not_mixed_silently(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "a.mrc")
    write_tomogram(tmp_path / "b.mrc", voxel_size=13.0)
    located = locate_particles(listed(["a", "b", "a", "b"]), [tmp_path])
    assert np.allclose(located.places[1], PLACES[1] / 1.3)
    with pytest.raises(InputError, match=r"b\.mrc: voxels of 13 Å, but .*a\.mrc has 10 Å; say with --voxel_size"):
        _ = located.voxel_size
    boxes = ParticleBoxes(located, BoxSettings(box=8, voxel_size=13.0))
    assert boxes.spacings == [1.3, 1.0]
    again = list_particles(located.tomograms, located.which, located.places)
    assert np.allclose(again.particles.coordinates, PLACES)  # all in voxels of the first
    with pytest.raises(InputError, match=r"b.mrc: voxels of 13 Å cannot give boxes of 10 Å"):
        ParticleBoxes(located, BoxSettings(box=8, voxel_size=10.0))


def test_every_missing_tomogram_is_named(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "a.mrc")
    with pytest.raises(DatasetError) as caught:
        locate_particles(listed(["a", "b", "c", "a"]), [tmp_path])
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="does not say where tomogram 'a' is"):
        locate_particles(listed(["a", "b", "c", "a"]))


def test_two_tomograms_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tomogram(tmp_path / folder / "t.mrc")
    with pytest.raises(DatasetError, match="another tomogram has the name 't' too"):
        open_tomograms([tmp_path / "x", tmp_path / "y"])


def test_boxes_are_copies_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    data = write_tomogram(tmp_path / "t.mrc")
    boxes = ParticleBoxes(locate_particles(listed(), [tmp_path]), BoxSettings(box=8, voxel_size=10.0, normalise="none"))
    assert np.array_equal(boxes.cut(0).volume, data[16:24, 17:25, 18:26])
    inverted = ParticleBoxes(boxes.located, replace(boxes.settings, invert=True))
    assert np.array_equal(inverted.cut(0).volume, -boxes.cut(0).volume)


def test_normalisation_is_recorded_and_can_be_undone(located: LocatedParticles) -> None:
    raw = ParticleBoxes(located, BoxSettings(box=12, voxel_size=13.0, normalise="none"))
    for normalise, where in (("z_score", np.ones((12,) * 3, bool)), ("background", outside_sphere(12))):
        box = ParticleBoxes(located, replace(raw.settings, normalise=normalise)).cut(1)
        assert box.volume[where].mean() == pytest.approx(0, abs=1e-5)
        assert box.volume[where].std() == pytest.approx(1, abs=1e-4)
        assert np.allclose(box.volume * box.std + box.mean, raw.cut(1).volume, atol=1e-4)


def test_edges_are_padded_skipped_or_refused(located: LocatedParticles) -> None:
    settings = BoxSettings(box=10, voxel_size=10.0)
    boxes = ParticleBoxes(located, settings)
    assert boxes.whole.tolist() == [True, True, True, False]
    assert boxes.cut(3).inside == pytest.approx(0.7)
    assert boxes.cut(0).inside == 1.0
    with pytest.raises(InputError, match=r"the boxes of 1 particles reach beyond their tomogram, the first of 4"):
        ParticleBoxes(located, replace(settings, edge="error"))


def test_items_are_those_of_a_bundle(located: LocatedParticles) -> None:
    item = ParticleBoxes(located, BoxSettings(box=8, voxel_size=10.0))[2]
    assert item["image"].shape == (1, 8, 8, 8)
    assert item["image"].dtype == np.float32


def test_the_fingerprint_knows_what_decides_the_boxes(tmp_path: Path, located: LocatedParticles) -> None:
    settings = BoxSettings(box=8, voxel_size=10.0)
    prints = {ParticleBoxes(located, settings).fingerprint()}
    assert ParticleBoxes(located, settings).fingerprint() in prints
    prints.add(ParticleBoxes(located, replace(settings, invert=True)).fingerprint())
    prints.add(ParticleBoxes(located.select([0, 1]), settings).fingerprint())
    write_tomogram(tmp_path / "t.mrc", seed=1)
    prints.add(ParticleBoxes(located, settings).fingerprint())
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": 2}, "box: 2"),
        ({"voxel_size": 0.0}, "voxel_size: 0.0"),
        ({"edge": "wrap"}, "edge: 'wrap' is not one of pad, skip, error"),
        ({"normalise": "minmax"}, "normalise: 'minmax'"),
        ({"rescaling": "none"}, "rescaling: 'none'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BoxSettings(**{"box": 8, "voxel_size": 10.0, **change})  # type: ignore[arg-type]


def test_poses_are_needed_to_turn_boxes(located: LocatedParticles) -> None:
    with pytest.raises(InputError, match="has no angles to turn particles by"):
        ParticleBoxes(located, BoxSettings(box=8, voxel_size=10.0, rotate=True))


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_voxels_that_are_not_finite_are_named(tmp_path: Path) -> None:
    data = write_tomogram(tmp_path / "t.mrc")
    data[20, 21, 22] = np.nan
    write_mrc(tmp_path / "t.mrc", data, voxel_size=10.0)
    boxes = ParticleBoxes(locate_particles(listed(), [tmp_path]), BoxSettings(box=8, voxel_size=10.0))
    with pytest.raises(InputError, match=r"t\.mrc: voxels that are not finite around particle 1"):
        boxes.cut(0)


@pytest.mark.parametrize(("sign", "density"), [(-1.0, "dark"), (1.0, "bright"), (0.0, "unclear")])
def test_contrast_is_found_or_said_to_be_unclear(sign: float, density: str) -> None:
    rng = np.random.default_rng(0)
    axis = np.arange(16) - 7.5
    radius = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    volumes = rng.normal(size=(60, 16, 16, 16)) + sign * 0.3 * np.exp(-radius / 18)
    found = contrast_of(volumes)
    assert found["density"] == density
    assert (
        contrast_of(5 - 3 * volumes)["density"] == {"dark": "bright", "bright": "dark", "unclear": "unclear"}[density]
    )


def test_contrast_of_boxes_is_that_of_the_tomogram(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc", sign=1.0)
    located = locate_particles(listed(), [tmp_path])
    found = sampled_contrast(ParticleBoxes(located, BoxSettings(box=16, voxel_size=10.0)))
    assert found["difference"] > 0


def test_a_warning_needs_two_that_are_sure() -> None:
    dark, bright, unclear = ({"density": name, "standard_errors": 9.0} for name in ("dark", "bright", "unclear"))
    text = contrast_warning(dark, bright, "the training data")
    assert text is not None
    assert "looks bright" in text
    assert "--invert" in text
    assert contrast_warning(dark, unclear, "x") is None
    assert contrast_warning(dark, dark, "x") is None
    assert contrast_warning(None, dark, "x") is None


def test_a_turned_box_reaches_as_far_as_its_corners(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc")
    quarter = Rotation.from_euler("z", 45, degrees=True).as_matrix()[::-1, ::-1]  # about z, on (z, y, x)
    particles = make_particles("t", [[20.0, 8.0, 24.0], [20.0, 22.0, 24.0]], pixel_size=10.0, rotations=[quarter] * 2)
    located = locate_particles(particles, [tmp_path])
    settings = BoxSettings(box=14, voxel_size=10.0)
    assert ParticleBoxes(located, settings).whole.tolist() == [True, True]
    turned = ParticleBoxes(located, replace(settings, rotate=True))
    assert turned.whole.tolist() == [False, True]
    assert turned.cut(0).inside < 1.0
    assert turned.cut(1).inside == 1.0


def test_the_table_of_tomograms_and_the_file_have_to_agree(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "t.mrc")
    record = TomogramRecord(tmp_path / "t.mrc", 5.0, None)
    particles = replace(listed(), tomogram_files={"t": record})
    with pytest.raises(InputError, match="voxels of 10 Å, but 5 Å in the table of tomograms"):
        locate_particles(particles)
    assert locate_particles(particles, tomogram_voxel_size=10.0).voxel_size == 10.0
    write_tomogram(tmp_path / "t.mrc", voxel_size=1.0)
    known = replace(listed(), tomogram_files={"t": TomogramRecord(tmp_path / "t.mrc", 10.0, None)})
    assert locate_particles(known).voxel_size == 10.0


def test_located_particles_can_be_sent_to_other_processes(located: LocatedParticles) -> None:
    again = pickle.loads(pickle.dumps(located))
    assert np.array_equal(
        again.tomograms[0].read((1, 2, 3), (4, 5, 6)), located.tomograms[0].read((1, 2, 3), (4, 5, 6))
    )
