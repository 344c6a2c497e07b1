"""Every real file is read or refused for its own reason; every fault is named with file, line and column."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cryo_monai.errors import InputError
from cryo_monai.particles import make_particles, read_particles, read_tomogram_table

NO_PARTICLES = "no particles"
SEVERAL = "several blocks with coordinates"
ELSEWHERE = "in no folder above"
# Format and number of particles, or the reason of refusal.
SHARED: dict[str, tuple[str, int] | str] = {
    "atpase.star": ("relion3", 933),
    "hsp60.star": ("relion3", 27),
    "putative_prohibitin.star": ("relion3", 279),
    "dynamo2m_relion3.1.star": ("relion3.1", 57),
    "dynamo2m_warp_example.star": ("warp", 1399),
    "dynamo_double.tbl": ("dynamo", 300),
    "copick/overlay_local.json": "copick_project is not there",
    "copick/overlay_local_static_data_portal.json": "package copick",
    "copick/overlay_local_static_local.json": "copick_project_static is not there",
    "copick/overlay_local_static_s3.json": "package copick",
    "copick/overlay_local_static_smb.json": "package copick",
    "copick/overlay_local_static_ssh.json": "package copick",
    "portal/copick.json": ("copick", 4),
    "portal/copick_instance.json": ("copick", 6),
    "portal/oriented_points.mod": "model2point oriented_points.mod",
    "portal/points.csv": ("csv", 3),
    "portal/points.mod": "model2point points.mod",
    "portal/points_tab_delim.csv": ("csv", 3),
    "portal/points_with_header.csv": ("csv", 3),
    "portal/points_with_header_pipe_delim.csv": ("csv", 3),
    "portal/relion_3_star.star": ("relion3", 6),
    "portal/relion_4_star.star": ("relion4", 6),
    "portal/stopgap_star.star": ("stopgap", 6),
    "portal/tardis.csv": ("csv", 6),
    "portal/tomogram_metadata.json": "neither picks of copick",
    "portal/tomoman_relion_star.star": ("relion3", 6),
    "relion5/cylindra_job_class3d_run_it025_data.star": ("relion5", 10),
    "relion5/cylindra_job_class3d_run_it025_optimisation_set.star": ELSEWHERE,
    "relion5/cylindra_job_picks_optimisation_set.star": ELSEWHERE,
    "relion5/cylindra_job_picks_particles.star": ("relion5", 5),
    "relion5/cylindra_job_refine_run_it040_optimisation_set.star": ELSEWHERE,
    "relion5/cylindra_job_refine_run_it050_data.star": ("relion5", 5),
    "relion5/cylindra_job_refine_run_it050_optimisation_set.star": ELSEWHERE,
    "relion5/cylindra_job_tomo_tomograms.star": "a table of tomograms",
    "relion5/cylindra_tilt_series_13pf_MT.star": NO_PARTICLES,
    "relion5/cylindra_tilt_series_14pf_MT.star": NO_PARTICLES,
    "starfile/basic_double_quote.star": NO_PARTICLES,
    "starfile/basic_single_quote.star": NO_PARTICLES,
    "starfile/default_pipeline.star": NO_PARTICLES,
    "starfile/empty_loop.star": "column rlnCoordinateY, rlnCoordinateZ is missing",
    "starfile/loop_double_quote.star": NO_PARTICLES,
    "starfile/loop_single_quote.star": NO_PARTICLES,
    "starfile/one_loop.star": ("warp", 16),
    "starfile/postprocess.star": NO_PARTICLES,
    "starfile/rln3.1_data_style.star": SEVERAL,
    "starfile/run_it025_optimiser_2D.star": NO_PARTICLES,
    "starfile/run_it025_optimiser_3D.star": NO_PARTICLES,
    "starfile/run_it025_sampling_2D.star": NO_PARTICLES,
    "starfile/run_it025_sampling_3D.star": NO_PARTICLES,
    "starfile/single_line_end_of_multiblock.star": SEVERAL,
    "starfile/single_line_middle_of_multiblock.star": SEVERAL,
    "starfile/two_basic_blocks.star": NO_PARTICLES,
    "starfile/two_single_line_loop_blocks.star": NO_PARTICLES,
}


@pytest.fixture(autouse=True)
def _without_copick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copick", None)


def test_every_shared_file_is_expected_here(shared_data: Path) -> None:
    folder = shared_data / "particles"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_shared_file_is_read_or_refused_for_its_own_reason(shared_data: Path, name: str) -> None:
    path, expected = shared_data / "particles" / name, SHARED[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=re.escape(expected)) as caught:
            read_particles(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    particles = read_particles(path)
    assert (particles.format, len(particles)) == expected
    assert len(particles.columns) == len(particles)
    assert np.isfinite(particles.coordinates).all()


def test_shared_pixel_sizes(shared_data: Path) -> None:
    folder = shared_data / "particles"
    sizes = {
        "dynamo2m_relion3.1.star": 5.0,
        "dynamo2m_warp_example.star": 5.0,
        "portal/relion_3_star.star": 1.7005,
        "portal/relion_4_star.star": 1.0,
        "portal/tomoman_relion_star.star": 1.96,
        "portal/tardis.csv": 1.0,
        "atpase.star": np.nan,
    }
    for name, size in sizes.items():
        assert read_particles(folder / name).pixel_size == pytest.approx(size, nan_ok=True)
    assert set(read_particles(folder / "atpase.star", pixel_size=1.96).pixel_size) == {1.96}


def test_shared_tomogram_table(shared_data: Path) -> None:
    table = read_tomogram_table(shared_data / "particles/relion5/cylindra_job_tomo_tomograms.star")
    assert list(table) == ["TS_01", "TS_02"]
    assert (table["TS_02"].shape, table["TS_02"].voxel_size) == ((44, 136, 84), 10.52)
    assert str(table["TS_01"].file) == "Tomograms/job_tomo/tomograms/13pf_MT.mrc"


LABELS = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n_rlnTomoName #4\n"
GOOD = LABELS + "1 2 3 a\n4 5 6 b\n"
JSON = {"pickable_object_name": "a", "points": [{"location": {"x": 1, "y": 2, "z": 3}}]}
POINT = {"type": "point", "location": {"x": 1, "y": 2, "z": 3}}
PLACE = "rlnCoordinateX rlnCoordinateY rlnCoordinateZ"


def one_row(labels: str, values: str) -> str:
    return "data_\nloop_\n" + "".join(f"_{label}\n" for label in labels.split()) + values + "\n"


def nested(point: dict[str, object]) -> str:
    return json.dumps({**JSON, "points": [*JSON["points"], point]})  # type: ignore[misc]


FAULTS = {
    "truncated row": ("a.star", LABELS + "1 2 3 a\n4 5\n", "line 9: 2 values for 4 columns"),
    "number": ("a.star", LABELS + "1 2 3 a\n4 5x 6 b\n", "line 9, column rlnCoordinateY: '5x' is not a number"),
    "nan": ("a.star", LABELS + "1 2 nan a\n", "line 8, column rlnCoordinateZ: 'nan' is not a number"),
    "underscore": ("a.star", LABELS + "1 1_0 2 a\n", "line 8, column rlnCoordinateY: '1_0' is not a number"),
    "empty": ("a.star", "", "empty"),
    "blank": ("a.csv", " \n\n", "empty"),
    "no rows": ("a.star", LABELS, "holds no particles"),
    "csv as star": ("a.star", "x,y,z\n1,2,3\n", "line 1: text before the first data_ block; not a STAR file"),
    "quote": ("a.star", LABELS + "1 2 3 'a\n", "line 8: a quote (') is not closed"),
    "label twice": ("a.star", LABELS.replace("CoordinateY", "CoordinateX"), "line 5: label _rlnCoordinateX comes"),
    "missing": ("a.star", LABELS.replace("CoordinateZ", "Other") + "1 2 3 a\n", "column rlnCoordinateZ is missing"),
    "angles": ("a.star", one_row(f"{PLACE} rlnAngleRot", "1 2 3 4"), "column rlnAngleTilt, rlnAnglePsi is missing"),
    "binary": ("a.star", "data_\n\0\n", "not a text file"),
    "origins": ("a.star", one_row(f"{PLACE} rlnOriginXAngst", "1 2 3 4"), "no pixel size; give pixel_size"),
    "two sizes": ("a.star", one_row(f"{PLACE} rlnPixelSize rlnImagePixelSize", "1 2 3 4 5"), "line 8: rlnPixelSize"),
    "no size": ("a.star", one_row(f"{PLACE} rlnPixelSize", "1 2 3 0"), "pixel size 0 is not positive"),
    "fractions": ("a.star", one_row(f"{PLACE} rlnAutopickFigureOfMerit", "0.1 0.2 0.3 9"), "--normalized_coords"),
    "stopgap": ("a.star", "data_stopgap_motivelist\nloop_\n_orig_x\n1\n", "column orig_y, orig_z, x_shift"),
    "tbl columns": ("a.tbl", "1 2 3\n", "line 1: 3 columns, a Dynamo table has at least 26"),
    "tbl ragged": ("a.tbl", "1 " * 30 + "\n" + "1 " * 29 + "\n", "line 2: 29 values for 30 columns"),
    "tbl number": ("a.tbl", "1 " * 25 + "z\n", "line 1, column z: 'z' is not a number"),
    "csv ragged": ("a.csv", "x,y,z\n1,2,3\n1,2\n", "line 3: 2 values for 3 columns"),
    "csv number": ("a.csv", "x,y,z\n1,2,3\n\n1,,2\n", "line 4, column y: '' is not a number"),
    "csv missing": ("a.csv", "x,y,w\n1,2,3\n", "no column z"),
    "csv nameless": ("a.csv", "1,2,3,4\n", "4 columns without names"),
    "csv units": ("a.csv", "x [A],y,z\n1,2,3\n", "some of"),
    "csv twice": ("a.csv", "x,y,z,x\n1,2,3,4\n", "column 'x' comes twice"),
    "json": ("a.json", "{", "not readable as JSON"),
    "json place": ("a.json", nested({"location": {"x": 1, "y": "b", "z": 2}}), "point 2, location.y: 'b' is not"),
    "json matrix": ("a.json", nested({**POINT, "transformation_": [[1]]}), "point 2: the matrix is not 4 x 4"),
    "json mirror": (
        "a.json",
        nested({**POINT, "transformation_": np.diag([1, 1, -1, 1]).tolist()}),
        "point 2: the matrix is not a rotation",
    ),
    "json unit": ("a.json", json.dumps({**JSON, "unit": "nm"}), "unit is 'nm'"),
    "json empty": ("a.json", json.dumps({**JSON, "points": []}), "holds no picks"),
    "ndjson": ("a.ndjson", json.dumps(POINT) + "\n{\n", "line 2: not JSON"),
    "ndjson type": ("a.ndjson", json.dumps({**POINT, "type": "line"}), "line 1, type: 'line' is none of point"),
    "ndjson pose": ("a.ndjson", json.dumps({**POINT, "type": "orientedPoint"}), "line 1: an orientedPoint"),
    "ending": ("a.em", "x", "unknown ending '.em'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(tmp_path: Path, fault: str) -> None:
    name, text, reason = FAULTS[fault]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        read_particles(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mended_file_is_read_afresh(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(GOOD.replace("5 6", "5"))
    with pytest.raises(InputError, match="line 9"):
        read_particles(path)
    path.write_text(GOOD)
    assert len(read_particles(path)) == 2


@pytest.mark.parametrize("name", ["a.star", "a.csv", "a.tbl"])
def test_byte_order_marks_and_windows_line_ends_change_nothing(tmp_path: Path, name: str) -> None:
    text = {"a.star": GOOD, "a.csv": "x,y,z\n1,2,3\n4,5,6\n", "a.tbl": "1 " * 26 + "\n" + "2 " * 26 + "\n"}[name]
    (tmp_path / name).write_text(text)
    plain = read_particles(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    windows = read_particles(tmp_path / name)
    assert np.array_equal(windows.coordinates, plain.coordinates)
    assert windows.ids == plain.ids
    assert windows.columns.equals(plain.columns)


def test_files_that_are_not_there_and_arguments_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_particles(tmp_path / "a.star")
    with pytest.raises(InputError, match="a folder"):
        read_particles(tmp_path)
    (tmp_path / "a.star").write_text(GOOD)
    with pytest.raises(InputError, match="pixel_size -1"):
        read_particles(tmp_path / "a.star", pixel_size=-1.0)
    with pytest.raises(InputError, match="column kind is missing"):
        read_particles(tmp_path / "a.star", class_column="kind")
    (tmp_path / "a.csv").write_text("x [A],y [A],z [A]\n1,2,3\n")
    with pytest.raises(InputError, match="in Å; leave pixel_size out"):
        read_particles(tmp_path / "a.csv", pixel_size=2.0)
    with pytest.raises(InputError, match="not a table of tomograms"):
        read_tomogram_table(tmp_path / "a.star")


def test_lists_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InputError, match="ids are not unique"):
        make_particles("t", np.zeros((2, 3)), pixel_size=1.0, ids=["a", "a"])
    with pytest.raises(InputError, match="2 ids but 1 class_names"):
        make_particles("t", np.zeros((2, 3)), pixel_size=1.0, class_names=["a"])
    with pytest.raises(InputError, match="particle 2 are not finite"):
        make_particles("t", [[0, 0, 0], [0, np.nan, 0]], pixel_size=1.0)
    with pytest.raises(InputError, match="voxel size 0"):
        make_particles("t", np.zeros((1, 3)), pixel_size=1.0).places([0], (4, 5, 6), 0.0)


def test_remote_copick_projects_come_through_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picks = SimpleNamespace(load=lambda: SimpleNamespace(model_dump=lambda: JSON))
    root = SimpleNamespace(runs=[SimpleNamespace(name="TS_1", get_picks=lambda: [picks, picks])])
    fake = SimpleNamespace(from_file=lambda path: root)
    monkeypatch.setitem(sys.modules, "copick", fake)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"pickable_objects": [], "config_type": "filesystem", "overlay_root": "s3://bucket/x"}))
    particles = read_particles(path)
    assert particles.tomograms == ["TS_1", "TS_1"]
    assert particles.coordinates == pytest.approx(np.array([[3, 2, 1]] * 2))


def test_a_list_without_a_header_has_three_columns(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("89.0,62.0,34.0,tomogram_000\n1,2,3,tomogram_000\n")
    with pytest.raises(InputError, match=r"p\.csv: its first line is no header"):
        read_particles(tmp_path / "p.csv")
