"""Lists that are written back change in their class columns alone, and are never written over."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cryo_monai.errors import InputError
from cryo_monai.particles import make_particles, read_particles, write_classes, write_rows

RELION = """# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 10.0   # as given


data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_rlnClassNumber #5
_rlnOpticsGroup #6
001   1.0  2.0  3.0    9   1
002   4.0  5.0  6.0   12   1   # kept

# the end
"""
WRITTEN = """# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 10.0   # as given


data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_rlnClassNumber #5
_rlnOpticsGroup #6
_cryomonaiClassName #7
_cryomonaiProbability #8
001   1.0  2.0  3.0    2   1 "26S cap" 0.750000
002   4.0  5.0  6.0    0   1 unknown 0.500000   # kept

# the end
"""
STOPGAP = (
    "data_stopgap_motivelist\n\nloop_\n_motl_idx\n_tomo_num\n_orig_x\n_orig_y\n_orig_z\n_x_shift\n_y_shift\n_z_shift\n"
    "_phi\n_psi\n_the\n_class\n\n  5 1 1 2 3 0 0 0 0 0 0 1\n  6 1 4 5 6 0 0 0 0 0 0 1\n"
)
POINTS = [{"type": "point", "location": {"x": 1.5, "y": 2, "z": 3}, "note": "é"} for _ in range(2)]
CLASSES = {"class_numbers": [2, 0], "class_names": ["26S cap", "unknown"], "probabilities": [0.75, 0.5]}


def back(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, newline="")
    return write_classes(folder / f"out{Path(name).suffix}", read_particles(folder / name), **CLASSES)


def test_relion_lists_change_in_their_class_columns_alone(tmp_path: Path) -> None:
    path = back(tmp_path, "a.star", RELION)
    assert path.read_text() == WRITTEN
    assert read_particles(path).class_names == ["26S cap", "unknown"]
    # Once more over what is there: the columns are replaced, not added.
    again = write_classes(tmp_path / "b.star", read_particles(path), **CLASSES)
    assert again.read_text().split() == WRITTEN.split()
    windows = back(tmp_path, "w.star", RELION.replace("\n", "\r\n"))
    assert windows.read_bytes() == WRITTEN.replace("\n", "\r\n").encode()


def test_a_selection_keeps_its_rows_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text(RELION.replace("_rlnTomoName", "_rlnTomoParticleName"))
    particles = read_particles(tmp_path / "a.star").select([1, 0])
    read = read_particles(write_classes(tmp_path / "b.star", particles, **CLASSES))
    assert (read.ids, read.class_names) == (["002", "001"], ["26S cap", "unknown"])
    one = particles.select([False, True])
    classes = {"class_numbers": [1], "class_names": ["a"], "probabilities": [1.0]}
    read = read_particles(write_classes(tmp_path / "c.star", one, **classes))
    assert (read.ids, read.class_names) == (["001"], ["a"])


def test_single_items_and_lists_without_a_last_line_end_are_written_back(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text(
        "data_\n_rlnCoordinateX 1\n_rlnCoordinateY 2\n_rlnClassNumber 1\n_rlnCoordinateZ 3"
    )
    classes = {"class_numbers": [4], "class_names": ["a b"], "probabilities": [1.0]}
    path = write_classes(tmp_path / "b.star", read_particles(tmp_path / "a.star"), **classes)
    read = read_particles(path)
    assert read.class_names == ["a b"]
    assert read.columns.loc[0, "rlnClassNumber"] == "4"
    cut = back(tmp_path, "cut.star", RELION[: RELION.index("   # kept")])
    assert read_particles(cut).class_names == ["26S cap", "unknown"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3\n4,5,6\n", "x,y,z,class,class_name,probability\n1,2,3,2,26S cap,0.750000\n4,5,6,0,unknown,0.500000\n"),
        (
            "x|class|y|z\r\n1|9|2|3\r\n4|9|5|6\r\n",
            "x|class|y|z|class_name|probability\r\n1|2|2|3|26S cap|0.750000\r\n4|0|5|6|unknown|0.500000\r\n",
        ),
    ],
)
def test_delimited_lists_keep_their_delimiter_and_columns(tmp_path: Path, text: str, expected: str) -> None:
    assert back(tmp_path, "a.csv", text).read_bytes().decode() == expected


def test_portal_points_gain_two_keys(tmp_path: Path) -> None:
    path = back(tmp_path, "a.ndjson", "".join(json.dumps(point) + "\n" for point in POINTS))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written[0] == {**POINTS[0], "class_name": "26S cap", "probability": 0.75}
    assert written[1] == {**POINTS[1], "class_name": "unknown", "probability": 0.5}


def test_stopgap_and_dynamo_take_numbers_and_names_go_beside(tmp_path: Path) -> None:
    path = back(tmp_path, "a.star", STOPGAP)
    assert path.read_text() == STOPGAP.replace("0 0 0 1\n  6", "0 0 0 2\n  6").replace("0 0 0 1\n", "0 0 0 0\n")
    beside = "id,class,class_name,probability\n5,2,26S cap,0.750000\n6,0,unknown,0.500000\n"
    assert (tmp_path / "out_classes.csv").read_text() == beside
    table = "".join(f"{tag} " + "1 " * 25 + "1e-3\n" for tag in (5, 6))
    rows = [line.split() for line in back(tmp_path, "a.tbl", table).read_text().splitlines()]
    assert [row[21] for row in rows] == ["2", "0"]
    assert [row[:21] + row[22:] for row in rows] == [r[:21] + r[22:] for r in map(str.split, table.splitlines())]
    assert (tmp_path / "out_classes.csv").read_text() == beside
    assert not (tmp_path / "out.doc").exists()
    (tmp_path / "a.doc").write_text("1 TS 1.mrc\n")
    assert read_particles(back(tmp_path, "a.tbl", table)).tomograms == ["TS 1.mrc"] * 2


def test_copick_picks_become_one_file_per_class(tmp_path: Path) -> None:
    points = [{"location": {"x": n, "y": 2.0, "z": 3.0}, "instance_id": n, "score": 1.0} for n in range(2)]
    picks = {"pickable_object_name": "all", "user_id": "u", "session_id": "1", "run_name": "TS_1", "points": points}
    (tmp_path / "a.json").write_text(json.dumps(picks))
    folder = write_classes(tmp_path / "out", read_particles(tmp_path / "a.json"), **CLASSES)
    read = read_particles(folder / "ExperimentRuns/TS_1/Picks/cryo-monai_0_26S-cap.json")
    assert (read.class_names, read.tomograms, list(read.columns["instance_id"])) == (["26S-cap"], ["TS_1"], ["0"])
    assert read.scores == pytest.approx([0.75])
    read = read_particles(folder / "ExperimentRuns/TS_1/Picks/cryo-monai_0_unknown.json")
    assert read.coordinates == pytest.approx(np.array([[3.0, 2.0, 1.0]]))


def test_the_list_that_came_in_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "a.star"
    source.write_text(RELION)
    particles = read_particles(source)
    (tmp_path / "link.star").symlink_to(source)
    os.link(source, tmp_path / "hard.star")
    for name in ("a.star", "link.star", "hard.star", "../" + tmp_path.name + "/a.star"):
        with pytest.raises(InputError, match="is what the particles were read from"):
            write_classes(tmp_path / name, particles, **CLASSES)
    with pytest.raises(InputError, match=r"end the name in \.star"):
        write_classes(tmp_path / "b.csv", particles, **CLASSES)
    source.write_text(RELION.replace("4.0", "4.5"))
    with pytest.raises(InputError, match="has changed since it was read"):
        write_classes(tmp_path / "b.star", particles, **CLASSES)
    assert not (tmp_path / "b.star").exists()
    with pytest.raises(InputError, match="read from no file"):
        write_classes(tmp_path / "b.star", make_particles("t", np.zeros((2, 3)), pixel_size=1.0), **CLASSES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_numbers": [1]}, "1 class_numbers for 2"),
        ({"probabilities": [0.5, 1.5]}, "probability 1.5"),
        ({"probabilities": [0.5, np.nan]}, "probability nan"),
        ({"class_numbers": [0, 0]}, "'26S cap' has number 0"),
        ({"class_numbers": [2, 3]}, "'unknown' has number 3"),
        ({"class_numbers": [2, -1]}, "has number -1"),
        ({"class_names": ["a", "b"], "class_numbers": [1, 1]}, "class 1 is 'a'"),
        ({"class_names": ["a", "a"], "class_numbers": [1, 2]}, "'a' is class 1"),
    ],
)
def test_classes_that_do_not_fit_together_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    (tmp_path / "a.star").write_text(RELION)
    with pytest.raises(InputError, match=reason):
        write_classes(tmp_path / "b.star", read_particles(tmp_path / "a.star"), **{**CLASSES, **change})
    assert not (tmp_path / "b.star").exists()


@pytest.mark.parametrize(
    "name",
    [
        "atpase.star",
        "dynamo2m_relion3.1.star",
        "dynamo2m_warp_example.star",
        "dynamo_double.tbl",
        "portal/stopgap_star.star",
        "portal/tardis.csv",
        "relion5/cylindra_job_class3d_run_it025_data.star",
    ],
)
def test_real_lists_come_back_with_everything_they_had(shared_data: Path, tmp_path: Path, name: str) -> None:
    particles = read_particles(shared_data / "particles" / name)
    numbers = [row % 3 for row in range(len(particles))]
    names = [["unknown", "a", "b c"][number] for number in numbers]
    shares = np.linspace(0, 1, len(particles))
    target = tmp_path / f"out{Path(name).suffix}"
    path = write_classes(target, particles, class_numbers=numbers, class_names=names, probabilities=shares)
    again = read_particles(path)
    assert np.array_equal(again.coordinates, particles.coordinates)
    kept = [c for c in particles.columns.columns if c not in ("rlnClassNumber", "class")]
    assert again.columns[kept].equals(particles.columns[kept])
    if particles.format in ("stopgap", "dynamo"):
        assert [int(value) for value in again.columns["class"]] == numbers
    else:
        assert again.class_names == names


def test_rows_are_kept_as_they_are_with_everything_else(tmp_path: Path) -> None:
    source = tmp_path / "p.star"
    source.write_text(RELION)
    particles = read_particles(source)
    write_rows(tmp_path / "kept.star", particles.select([1]))
    assert (tmp_path / "kept.star").read_text() == RELION.replace("001   1.0  2.0  3.0    9   1\n", "")
    write_rows(tmp_path / "named.star", particles, class_names=["ribosome", ""])
    again = read_particles(tmp_path / "named.star")
    assert again.class_names == ["ribosome", ""]
    assert list(again.columns["rlnClassNumber"]) == ["9", "12"]


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("p.csv", "x;y;z;note\n1;2;3;a\n4;5;6;b\n", "x;y;z;note\n4;5;6;b\n"),
        (
            "p.ndjson",
            '{"type": "point", "location": {"x": 1, "y": 2, "z": 3}, "k": 1}\n'
            '{"type": "point", "location": {"x": 4, "y": 5, "z": 6}, "k": 2}\n',
            '{"type": "point", "location": {"x": 4, "y": 5, "z": 6}, "k": 2}\n',
        ),
    ],
)
def test_rows_of_other_formats(tmp_path: Path, name: str, text: str, kept: str) -> None:
    (tmp_path / name).write_text(text)
    particles = read_particles(tmp_path / name).select([1])
    target = tmp_path / f"kept_{name}"
    write_rows(target, particles)
    assert target.read_text() == kept
    write_rows(target, particles, class_names=["x"])
    assert read_particles(target).class_names == ["x"]


def test_names_have_no_room_in_tables_of_numbers(tmp_path: Path) -> None:
    row = [0.0] * 35
    row[:3] = [1, 1, 1]
    (tmp_path / "p.tbl").write_text(" ".join(f"{value:g}" for value in row) + "\n")
    particles = read_particles(tmp_path / "p.tbl")
    with pytest.raises(InputError, match=r"not in the format dynamo; write \.star or \.csv instead"):
        write_rows(tmp_path / "q.tbl", particles, class_names=["x"])
    write_rows(tmp_path / "q.tbl", particles)
    assert (tmp_path / "q.tbl").read_text() == (tmp_path / "p.tbl").read_text()
