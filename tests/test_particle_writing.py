"""New lists are read back as they were."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryo_monai.errors import InputError
from cryo_monai.particles import Particles, make_particles, read_particles, write_particles
from cryo_monai.rotations import random_quaternions, rotation_matrices

FORMATS = ["a.star", "a.csv", "a.tbl", "a.ndjson"]


def some_particles(seed: int, count: int = 7, *, pixel_size: float = 7.84, poses: bool = True) -> Particles:
    rng = np.random.default_rng(seed)
    return make_particles(
        [f"TS {row % 3}" for row in range(count)],
        rng.uniform(-5, 4000, (count, 3)),
        pixel_size=pixel_size,
        ids=[f"{row:03d}" for row in range(count)],
        rotations=rotation_matrices(random_quaternions(rng, count)) if poses else None,
        class_names=[["", "ribosome", "26S cap"][row % 3] for row in range(count)],
        scores=rng.normal(size=count),
    )


def assert_same(read: Particles, particles: Particles) -> None:
    assert read.coordinates == pytest.approx(particles.coordinates, abs=1e-3)
    assert read.pixel_size == pytest.approx(particles.pixel_size, nan_ok=True)
    if particles.rotations is None:
        assert read.rotations is None
    else:
        assert read.rotations == pytest.approx(particles.rotations, abs=1e-4)
    assert read.tomograms == particles.tomograms
    assert read.scores == pytest.approx(particles.scores, abs=1e-5)


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**32 - 1), pixel_size=st.sampled_from([float("nan"), 0.5, 13.48]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, seed: int, pixel_size: float) -> None:
    particles = some_particles(seed, pixel_size=pixel_size)
    read = read_particles(write_particles(tmp_path / name, particles))
    assert_same(read, particles)
    if name != "a.tbl":
        assert read.ids == particles.ids
        assert read.class_names == particles.class_names


@pytest.mark.parametrize("name", ["a.star", "a.csv", "a.ndjson"])
def test_lists_without_poses_have_none_after_writing(tmp_path: Path, name: str) -> None:
    particles = some_particles(1, poses=False)
    assert_same(read_particles(write_particles(tmp_path / name, particles)), particles)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_data_give_the_same_bytes_and_poses_of_no_turn_stay(tmp_path: Path, name: str) -> None:
    particles = make_particles("1", [[1, 2, 3]], pixel_size=2.0, rotations=np.eye(3)[None], scores=[0.5])
    path = write_particles(tmp_path / name, particles)
    content = path.read_bytes()
    assert write_particles(path, particles).read_bytes() == content
    read = read_particles(path)
    assert read.rotations == pytest.approx(np.eye(3)[None])
    assert (read.ids, read.tomograms) == (["1"], ["1"])


def test_dynamo_counts_from_one_and_names_go_beside_it(tmp_path: Path) -> None:
    particles = some_particles(0)
    path = write_particles(tmp_path / "a.tbl", particles)
    row = path.read_text().split("\n")[1].split()
    assert [float(v) for v in row[23:26]] == pytest.approx(particles.coordinates[1, ::-1] + 1, abs=1e-6)
    assert (tmp_path / "a.doc").read_text() == "1 TS 0\n2 TS 1\n3 TS 2\n"
    beside = (tmp_path / "a_classes.csv").read_text().split("\n")
    # A map of another table is not left for these tomograms.
    numbered = make_particles("2", [[1, 2, 3]], pixel_size=2.0)
    assert read_particles(write_particles(path, numbered)).tomograms == ["2"]
    assert beside[:4] == ["id,class,class_name", "1,0,", "2,2,ribosome", "3,1,26S cap"]


def test_several_pixel_sizes_make_several_optics_groups(tmp_path: Path) -> None:
    first, second = some_particles(0, pixel_size=2.0), some_particles(1, pixel_size=3.0)
    both = Particles(
        ids=[f"{name}{group}" for group, part in (("a", first), ("b", second)) for name in part.ids],
        tomograms=first.tomograms + second.tomograms,
        coordinates=np.concatenate([first.coordinates, second.coordinates]),
        pixel_size=np.concatenate([first.pixel_size, second.pixel_size]),
        centred=False,
        rotations=None,
        class_names=first.class_names + second.class_names,
        scores=np.zeros(14),
        columns=some_particles(2, 14).columns,
        format="new",
    )
    read = read_particles(write_particles(tmp_path / "a.star", both.select(np.arange(13, -1, -1))))
    assert read.pixel_size == pytest.approx([3.0] * 7 + [2.0] * 7)
    assert read.coordinates[0] == pytest.approx(second.coordinates[-1], abs=1e-5)


CENTRED = """
data_particles

loop_
_rlnTomoName #1
_rlnCenteredCoordinateXAngst #2
_rlnCenteredCoordinateYAngst #3
_rlnCenteredCoordinateZAngst #4
t 10.5 -20 30
"""
TABLE = (
    "data_global\n\n_rlnTomoName t\n_rlnTomoTiltSeriesPixelSize 2.5\n_rlnTomoTomogramBinning 4\n_rlnTomoSizeX 320\n"
    "_rlnTomoSizeY 240\n_rlnTomoSizeZ 160\n_rlnTomoReconstructedTomogram t.mrc\n"
)


def test_centred_lists_stay_centred_or_need_the_size_of_the_tomogram(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text(CENTRED)
    particles = read_particles(tmp_path / "a.star")
    again = read_particles(write_particles(tmp_path / "b.star", particles))
    assert (again.format, again.centred) == ("relion5", True)
    assert again.coordinates == pytest.approx(particles.coordinates)
    with pytest.raises(InputError, match="whose size is not known"):
        write_particles(tmp_path / "a.csv", particles)
    (tmp_path / "t.star").write_text(TABLE)
    (tmp_path / "set.star").write_text("data_\n_rlnTomoParticlesFile a.star\n_rlnTomoTomogramsFile t.star\n")
    particles = read_particles(tmp_path / "set.star")
    cornered = read_particles(write_particles(tmp_path / "a.csv", particles))
    places = particles.places([0], (40, 60, 80), 10.0)
    assert cornered.places([0], (40, 60, 80), 10.0) == pytest.approx(places)
    assert places == pytest.approx(np.array([[23.0, 28.0, 41.05]]))


def test_unknown_endings_and_half_known_pixel_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown ending '\.em'"):
        write_particles(tmp_path / "a.em", some_particles(0))
    particles = some_particles(0)
    particles.pixel_size[2] = np.nan
    with pytest.raises(InputError, match="1 of 7 particles have no pixel size"):
        write_particles(tmp_path / "a.star", particles)


@pytest.mark.parametrize("name", ["a.star", "a.csv"])
def test_further_columns_of_a_new_list_are_written(tmp_path: Path, name: str) -> None:
    particles = make_particles("t", [[1.0, 2, 3]], pixel_size=10.0, columns={"rlnImageName": ["000001@a b.mrcs"]})
    read = read_particles(write_particles(tmp_path / name, particles))
    assert list(read.columns["rlnImageName"]) == ["000001@a b.mrcs"]
