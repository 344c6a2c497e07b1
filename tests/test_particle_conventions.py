"""One particle, written by hand in every convention, is read to one voxel and one rotation."""

import json
from pathlib import Path

import numpy as np
import pytest

from cryo_monai.particles import Particles, read_particles, read_tomogram_table
from cryo_monai.rotations import (
    random_quaternions,
    relion_angles,
    rotation_matrices,
    rotation_matrices_of_angles,
)

SHAPE = (40, 60, 80)
VOXEL_SIZE = 10.0
PLACE = (11.5, 20.25, 33.75)


def about(axis: str, degrees: float) -> np.ndarray:
    """Active rotation of (x, y, z) vectors about an axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


# From the reference to the particle, on (x, y, z): STOPGAP's phi 30, the 60, psi 45. Rx(60) is Rz(-90) Ry(60) Rz(90),
# so that it is Rz(-45) Ry(60) Rz(120), and RELION's angles turn the other way: rot -120, tilt -60, psi 45.
POSE = about("z", 45) @ about("x", 60) @ about("z", 30)
MATRIX = [[float(value) for value in row] for row in POSE]
TRANSFORM = [[*row, shift] for row, shift in zip(MATRIX, (7.5, 2.5, 5.0), strict=True)] + [[0.0, 0.0, 0.0, 1.0]]
ANGLES = "rlnAngleRot rlnAngleTilt rlnAnglePsi"


def star(**blocks: str) -> str:
    """STAR text with one block per argument: the labels, then a line of values."""
    text = ""
    for name, content in blocks.items():
        labels, *rows = content.strip().split("\n")
        text += f"\ndata_{name.strip('_')}\n\nloop_\n" + "".join(f"_{label}\n" for label in labels.split())
        text += "".join(f"{row}\n" for row in rows)
    return text


PLAIN = "rlnCoordinateX rlnCoordinateY rlnCoordinateZ"
CENTRED = "rlnCenteredCoordinateXAngst rlnCenteredCoordinateYAngst rlnCenteredCoordinateZAngst"
ORIGINS = "rlnOriginXAngst rlnOriginYAngst rlnOriginZAngst"
SUBTOMOGRAM = "rlnTomoSubtomogramRot rlnTomoSubtomogramTilt rlnTomoSubtomogramPsi"
TEXTS = {
    # Detector pixels of 10 µm at 10,000 are 10 Å; origins in pixels are taken off.
    "relion3": star(
        _=f"rlnMicrographName {PLAIN} {ANGLES} rlnMagnification rlnDetectorPixelSize rlnOriginX rlnOriginY rlnOriginZ\n"
        "t 34.75 18.25 12 -120 -60 45 10000 10 1 -2 0.5"
    ),
    "relion3.1": star(
        optics="rlnOpticsGroup rlnImagePixelSize\n1 99\n2 10",
        particles=f"rlnMicrographName {PLAIN} {ANGLES} rlnOpticsGroup {ORIGINS}\n"
        "t 34.75 18.25 12 -120 -60 45 2 10 -20 5",
    ),
    # Tilt images of 2.5 Å: four of their pixels are a voxel; the size of extracted images is beside the point.
    "relion4": star(
        optics="rlnOpticsGroup rlnTomoTiltSeriesPixelSize rlnImagePixelSize\n1 2.5 5",
        particles=f"rlnTomoName {PLAIN} {ANGLES} rlnOpticsGroup {ORIGINS}\nt 139 73 48 -120 -60 45 1 10 -20 5",
    ),
    # The subtomogram's frame is Rz(-45), in which the origin (10, 0, 0) is (7.07.., -7.07.., 0).
    "relion5": star(
        optics="rlnOpticsGroup rlnTomoTiltSeriesPixelSize\n1 2.5",
        particles=f"rlnTomoName {CENTRED} {SUBTOMOGRAM} {ANGLES} rlnOpticsGroup {ORIGINS}\n"
        "t -55.42893219 -104.57106781 -85 0 0 45 -120 -60 0 1 10 0 0",
    ),
    "warp": star(
        _=f"rlnMicrographName {PLAIN} {ANGLES} rlnMagnification rlnDetectorPixelSize\n"
        "t.tomostar 67.5 40.5 23 60 60 -135 10000 5"
    ),
    "stopgap": star(
        stopgap_motivelist="motl_idx tomo_num orig_x orig_y orig_z x_shift y_shift z_shift phi psi the class\n"
        "1 1 34 20 12 0.75 1.25 0.5 30 45 60 1"
    ),
}
DYNAMO = "7 1 1 0.75 1.25 0.5 -45 -60 -30 0.5 0 0 1 -60 60 0 0 0 0 1 0 3 0 34 20 12\n"
COPICK = {
    "pickable_object_name": "ribosome",
    "user_id": "a",
    "session_id": "1",
    "run_name": "t",
    "unit": "angstrom",
    "points": [{"location": {"x": 330.0, "y": 200.0, "z": 110.0}, "transformation_": TRANSFORM, "score": 0.25}],
}
PORTAL = {"type": "orientedPoint", "location": {"x": 33.75, "y": 20.25, "z": 11.5}, "xyz_rotation_matrix": MATRIX}
COPICK_CSV = (
    "run_name,x,y,z," + ",".join(f"transform_{i}{j}" for i in range(4) for j in range(4)) + "\n"
    "t,330,200,110," + ",".join(str(value) for row in TRANSFORM for value in row) + "\n"
)
FILES = [(f"{name}.star", name, text) for name, text in TEXTS.items()] + [
    ("a.tbl", "dynamo", DYNAMO),
    ("a.json", "copick", json.dumps(COPICK)),
    ("a.ndjson", "portal", json.dumps(PORTAL) + "\n"),
    ("a.csv", "csv", f"z,y,x,{ANGLES.replace(' ', ',')}\n11.5,20.25,33.75,60,60,-135\n"),
    ("copick.csv", "csv", COPICK_CSV),
]
BARE = {
    "comma.csv": "33.75,20.25,11.5\n",
    "tab.csv": "33.75\t20.25\t11.5\n",
    "blanks.txt": "   33.75  20.25   11.5\n",
    "bar.csv": "x|y|z\n33.75|20.25|11.5\n",
    "tardis.csv": "IDs,X [A],Y [A],Z [A]\n0,337.5,202.5,115\n",
    "napari.csv": "index,axis-0,axis-1,axis-2\n0,11.5,20.25,33.75\n",
}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "kind", "text"), FILES, ids=[name for name, _, _ in FILES])
def test_one_particle_is_the_same_in_every_convention(tmp_path: Path, name: str, kind: str, text: str) -> None:
    particles = read_particles(written(tmp_path, name, text))
    assert particles.format == kind
    assert particles.places([0], SHAPE, VOXEL_SIZE) == pytest.approx(np.array([PLACE]), abs=1e-6)
    assert particles.rotations is not None
    assert particles.rotations[0] == pytest.approx(POSE[::-1, ::-1], abs=1e-7)


@pytest.mark.parametrize("name", BARE)
def test_positions_without_poses_are_the_same_too(tmp_path: Path, name: str) -> None:
    particles = read_particles(written(tmp_path, name, BARE[name]))
    assert particles.rotations is None
    assert particles.ids == ["1"]
    assert particles.places([0], SHAPE, VOXEL_SIZE) == pytest.approx(np.array([PLACE]))


def test_the_inverse_of_relions_angles() -> None:
    matrices = rotation_matrices(random_quaternions(np.random.default_rng(0), 200))
    assert rotation_matrices_of_angles(relion_angles(matrices)) == pytest.approx(matrices, abs=1e-12)
    # Passive turns, on (x, y, z): 3dem/relion, src/euler.cpp.
    expected = about("z", -30) @ about("y", -20) @ about("z", -10)
    assert rotation_matrices_of_angles([[10, 20, 30]])[0] == pytest.approx(expected[::-1, ::-1])


def test_names_scores_and_classes_come_along(tmp_path: Path) -> None:
    dynamo = read_particles(written(tmp_path, "a.tbl", DYNAMO))
    assert (dynamo.ids, dynamo.tomograms, dynamo.class_names) == (["7"], ["1"], [""])
    written(tmp_path, "a.doc", "1 tomograms/TS 1.rec\n")
    assert read_particles(tmp_path / "a.tbl").tomograms == ["tomograms/TS 1.rec"]
    copick = read_particles(written(tmp_path, "a.json", json.dumps(COPICK)))
    assert (copick.tomograms, copick.class_names) == (["t"], ["ribosome"])
    assert copick.scores == pytest.approx([0.25])
    untrusted = written(tmp_path, "b.json", json.dumps({**COPICK, "trust_orientation": False}))
    assert read_particles(untrusted).rotations is None


def test_class_numbers_are_names_only_when_asked(tmp_path: Path) -> None:
    path = written(tmp_path, "a.star", star(_=f"{PLAIN} rlnClassNumber rlnParticleName\n1 2 3 7 ribosome"))
    assert read_particles(path).class_names == ["ribosome"]
    assert read_particles(path, class_column="rlnClassNumber").class_names == ["7"]


def test_ids_stay_text_and_columns_stay_whole(tmp_path: Path) -> None:
    text = star(_=f"rlnTomoName {PLAIN} rlnTomoParticleName note\n001 1 2 3 007 'a b'\n1e5 1 2 3 08 None")
    particles = read_particles(written(tmp_path, "a.star", text))
    assert particles.ids == ["007", "08"]
    assert particles.tomograms == ["001", "1e5"]
    assert list(particles.columns["note"]) == ["a b", "None"]
    twice = read_particles(written(tmp_path, "b.star", text.replace(" 08 ", " 007 ")))
    assert twice.ids == ["1", "2"]


def test_a_given_pixel_size_replaces_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, "a.star", TEXTS["relion4"])
    assert read_particles(path).pixel_size == pytest.approx([2.5])
    # Origins in Å then are other fractions of a pixel: 139 - 10 / 5.
    given = read_particles(path, pixel_size=5.0)
    assert given.pixel_size == pytest.approx([5.0])
    assert given.coordinates == pytest.approx(np.array([[47.0, 77.0, 137.0]]))


def project(folder: Path) -> Path:
    """A RELION 5 project with an optimisation set, in folders as RELION makes them."""
    for job in ("Picks/job1", "Tomograms/job2/tomograms"):
        (folder / job).mkdir(parents=True)
    (folder / "Tomograms/job2/tomograms/t.mrc").touch()
    written(folder, "Picks/job1/particles.star", TEXTS["relion5"])
    written(
        folder,
        "Tomograms/job2/tomograms.star",
        star(
            global_="rlnTomoName rlnTomoTiltSeriesPixelSize rlnTomoTomogramBinning "
            "rlnTomoSizeX rlnTomoSizeY rlnTomoSizeZ rlnTomoReconstructedTomogram\n"
            "t 2.5 4 320 240 160 Tomograms/job2/tomograms/t.mrc\nu 2.5 4 320 240 160 u.mrc"
        ),
    )
    items = "_rlnTomoParticlesFile Picks/job1/particles.star\n_rlnTomoTomogramsFile Tomograms/job2/tomograms.star\n"
    return written(folder, "Picks/job1/optimisation_set.star", f"data_\n\n{items}_rlnTomoTrajectoriesFile ''\n")


def test_an_optimisation_set_brings_its_tomograms(tmp_path: Path) -> None:
    path = project(tmp_path)
    particles = read_particles(path)
    record = particles.tomogram_files[particles.tomograms[0]]
    assert record.file == tmp_path / "Tomograms/job2/tomograms/t.mrc"
    assert (record.shape, record.voxel_size) == (SHAPE, VOXEL_SIZE)
    assert particles.places([0], record.shape, record.voxel_size) == pytest.approx(np.array([PLACE]), abs=1e-6)
    assert particles.path == tmp_path / "Picks/job1/particles.star"
    assert read_tomogram_table(path) == particles.tomogram_files
    assert str(particles.tomogram_files["u"].file) == "u.mrc"


def test_a_local_copick_project_is_read_whole(tmp_path: Path) -> None:
    for run in ("TS_2", "TS_1"):
        folder = tmp_path / "ExperimentRuns" / run / "Picks"
        folder.mkdir(parents=True)
        for name in ("ribosome", "atpase"):
            picks = {**COPICK, "pickable_object_name": name, "run_name": None}
            written(folder, f"a_1_{name}.json", json.dumps(picks))
    config = {"pickable_objects": [], "config_type": "filesystem", "overlay_root": f"local://{tmp_path}"}
    particles = read_particles(written(tmp_path, "config.json", json.dumps(config)))
    assert particles.tomograms == ["TS_1", "TS_1", "TS_2", "TS_2"]
    assert particles.class_names == ["atpase", "ribosome"] * 2
    assert particles.places([3], SHAPE, VOXEL_SIZE) == pytest.approx(np.array([PLACE]))


def shared(folder: Path, name: str) -> Particles:
    return read_particles(folder / "particles" / "portal" / name)


def test_the_portals_files_agree_where_they_tell_the_same(shared_data: Path) -> None:
    relion3 = shared(shared_data, "relion_3_star.star")
    for name in ("relion_4_star.star", "tomoman_relion_star.star"):
        other = shared(shared_data, name)
        assert other.coordinates == pytest.approx(relion3.coordinates)
        assert other.rotations == pytest.approx(relion3.rotations)
    # The same numbers under STOPGAP's names: shifts are added, and places count from 1.
    stopgap = shared(shared_data, "stopgap_star.star")
    raw = stopgap.columns[["orig_z", "orig_y", "orig_x"]].astype(float).to_numpy()
    assert stopgap.coordinates + 1 - raw == pytest.approx(raw - relion3.coordinates)
    # What the portal itself makes of row 1 (point_converter.py): 90, 45, 180 as ZYZ, inverted.
    expected = (about("z", 90) @ about("y", 45) @ about("z", 180)).T
    assert relion3.rotations is not None
    assert relion3.rotations[0] == pytest.approx(expected[::-1, ::-1], abs=1e-12)
    points = [shared(shared_data, f"points{end}.csv") for end in ("", "_with_header", "_with_header_pipe_delim")]
    for other in points:
        assert other.coordinates == pytest.approx(np.array([[3, 2, 1], [2, 2, 2], [0, 3, 0]]))
