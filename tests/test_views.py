"""Files for napari and ChimeraX say where things are."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cryo_monai.__main__ import main
from cryo_monai.colours import UNKNOWN_COLOUR, colour_of
from cryo_monai.errors import DatasetError, InputError
from cryo_monai.locations import list_particles
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.particles import write_particles
from cryo_monai.tomograms import open_tomogram
from cryo_monai.views import view_particles, write_view

SHAPE = (10, 12, 14)
# One voxel per particle is bright, so that a place that is read back can be checked against the volume.
PLACES = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [2, 11, 13]], dtype=float)
NAMES = ["ribosome", "fas", "ribosome", "unknown"]
SIZE, ORIGIN = 7.84, (100.0, -50.0, 25.0)


@pytest.fixture
def tomograms(tmp_path: Path) -> Path:
    """A folder of one tomogram with a segmentation and a list of classified particles."""
    folder = tmp_path / "tomo grams"
    folder.mkdir()
    data = np.zeros(SHAPE, np.float32)
    for number, place in enumerate(PLACES.astype(int)):
        data[tuple(place)] = number + 1
    write_mrc(folder / "TS 1.mrc", data, voxel_size=SIZE, origin=ORIGIN)
    write_mrc(folder / "TS 1_segmentation.mrc", (data > 0).astype(np.int16), voxel_size=SIZE, origin=ORIGIN)
    tomogram = open_tomogram(folder / "TS 1.mrc")
    located = list_particles(
        [tomogram], [0] * 4, PLACES, ids=["a", "b", "c", "d"], class_names=NAMES, scores=[0.9, 0.8, 0.7, 0.3]
    )
    write_particles(folder / "particles.star", located.particles)
    # The order of classes is that of the network, not that of the alphabet.
    (folder / "particles_probabilities.csv").write_text("id,tomogram,z,y,x,class_name,p_ribosome,p_fas\n")
    return folder


def hexadecimal(marker: dict[str, str]) -> str:
    return "#" + "".join(f"{round(float(marker[part]) * 255):02X}" for part in "rgb")


def test_points_are_at_their_voxels_and_markers_at_their_angstroms(tomograms: Path, tmp_path: Path) -> None:
    (scene,) = write_view(tomograms, tmp_path / "out")
    volume, labels, points = scene.plain
    data, segmented = np.load(volume), np.load(labels)
    assert np.array_equal(data, read_mrc(tomograms / "TS 1.mrc").data)
    assert segmented.dtype == np.int32  # which napari takes for labels
    with points.open() as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        place = tuple(int(float(row[f"axis-{axis}"])) for axis in range(3))
        assert data[place] == number + 1
        assert segmented[place] == 1
    assert [row["class_name"] for row in rows] == NAMES
    markers = {}
    for file in (tmp_path / "out").glob("*.cmm"):
        root = ET.parse(file).getroot()
        markers[root.attrib["name"]] = [child.attrib for child in root]
    assert {name: len(found) for name, found in markers.items()} == {"ribosome": 2, "fas": 1, "unknown": 1}
    wanted = (PLACES[1] * SIZE + ORIGIN).round(2)
    assert [float(markers["fas"][0][axis]) for axis in "zyx"] == wanted.tolist()
    assert {hexadecimal(marker) for marker in markers["ribosome"]} == {colour_of(0)}
    assert hexadecimal(markers["fas"][0]) == colour_of(1)
    assert hexadecimal(markers["unknown"][0]) == UNKNOWN_COLOUR


def test_the_chimerax_script_opens_files_that_are_there_each_once(tomograms: Path, tmp_path: Path) -> None:
    (scene,) = write_view(tomograms, tmp_path / "out")
    lines = scene.chimerax.read_text().splitlines()
    opened = [re.fullmatch(r'open "([^"]+)"', line)[1] for line in lines if line.startswith("open")]  # type: ignore[index]
    # ChimeraX runs the commands of a file in the folder of the file.
    found = [(scene.chimerax.parent / name).resolve() for name in opened]
    assert found[0] == (tomograms / "TS 1.mrc").resolve()
    assert sorted(found[1:]) == sorted((tmp_path / "out").resolve().glob("*.cmm"))
    assert all(file.is_file() for file in found)
    assert "volume #1 voxelSize 7.84 origin 25,-50,100" in lines
    assert "volume #1 orthoplanes xyz positionPlanes 7,6,5" in lines
    assert lines[0].startswith("#")
    known = ("#", "open ", "volume #1 ", "view")
    assert all(line.startswith(known) for line in lines)


class Recorder:
    """Stands for a viewer, and keeps what is added."""

    def __init__(self) -> None:
        self.layers: list[tuple[str, Any, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda data, **options: self.layers.append((name, data, options))


def test_the_napari_script_adds_a_layer_per_class(
    tomograms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene,) = write_view(tomograms, tmp_path / "out")
    viewer = Recorder()
    module = ModuleType("napari")
    module.current_viewer = lambda: viewer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari", module)
    runpy.run_path(str(scene.napari))
    kinds = [(kind, options["name"]) for kind, _, options in viewer.layers]
    assert kinds == [
        ("add_image", "TS 1"),
        ("add_labels", "segmentation"),
        ("add_points", "ribosome"),
        ("add_points", "fas"),
        ("add_points", "unknown"),
    ]
    _, places, options = viewer.layers[2]
    assert np.array_equal(places, PLACES[[0, 2]])
    assert options["face_color"] == colour_of(0)
    assert options["features"]["probability"] == ["0.900000", "0.700000"]
    assert viewer.layers[0][1].shape == SHAPE


def test_the_same_call_writes_anew_and_another_source_is_refused(tomograms: Path, tmp_path: Path) -> None:
    (scene,) = write_view(tomograms, tmp_path / "out")
    copied = scene.plain[0].stat().st_mtime_ns
    (again,) = write_view(tomograms, tmp_path / "out")
    assert again == scene
    assert scene.plain[0].stat().st_mtime_ns == copied  # a tomogram that did not change is not copied again
    changed = np.ones(SHAPE, np.float32)
    write_mrc(tomograms / "TS 1.mrc", changed, voxel_size=SIZE, origin=ORIGIN)
    write_view(tomograms, tmp_path / "out")
    assert np.array_equal(np.load(scene.plain[0]), changed)
    with pytest.raises(InputError, match="other settings"):
        write_view(tomograms / "TS 1.mrc", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(InputError, match="not empty"):
        write_view(tomograms, tmp_path / "full")


@pytest.mark.parametrize("older", [0, 3600 * 10**9])
def test_a_tomogram_that_replaced_another_is_copied_however_old_it_is(
    older: int, tomograms: Path, tmp_path: Path
) -> None:
    (scene,) = write_view(tomograms, tmp_path / "out")
    path = tomograms / "TS 1.mrc"
    modified = path.stat().st_mtime_ns - older
    data = read_mrc(path).data + 5
    write_mrc(tmp_path / "other.mrc", data, voxel_size=SIZE, origin=ORIGIN)
    os.utime(tmp_path / "other.mrc", ns=(modified, modified))
    os.replace(tmp_path / "other.mrc", path)
    assert path.stat().st_mtime_ns == modified
    write_view(tomograms, tmp_path / "out")
    assert np.array_equal(np.load(scene.plain[0]), data)


def test_what_cannot_be_shown_is_one_line_and_leaves_nothing(tomograms: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mrc").write_bytes(b"no")
    for source, message in (
        ("gone", "no such file or folder"),
        ("empty", "neither explanations nor particles.star"),
        ("bad.mrc", "too few for an MRC header"),
        ("tomo grams/particles.star", "--tomograms"),
    ):
        with pytest.raises(InputError, match=message):
            write_view(tmp_path / source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
def test_a_tomogram_of_any_type_keeps_its_values(dtype: str, tomograms: Path, tmp_path: Path) -> None:
    data = read_mrc(tomograms / "TS 1.mrc").data.astype(dtype)
    write_mrc(tomograms / "TS 1.mrc", data, voxel_size=SIZE, origin=ORIGIN)
    (scene,) = view_particles(tomograms / "particles.star", tmp_path / "out", tomograms=[tomograms])
    saved = np.load(scene.plain[0])
    assert saved.dtype == ("float32" if dtype == "float16" else dtype)
    assert np.array_equal(saved, data)


def test_without_probabilities_colours_go_by_the_numbers_in_the_list(tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", np.zeros(SHAPE, np.float32), voxel_size=10.0)
    columns = ["rlnTomoName", "rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ", "rlnClassNumber", "className"]
    rows = ["t 3 2 1 5 alpha", "t 6 5 4 2 beta", "t 9 8 7 5 alpha"]
    loop = [f"_{name} #{number + 1}" for number, name in enumerate(columns)]
    (tmp_path / "list.star").write_text("\n".join(["data_", "", "loop_", *loop, *rows, ""]))
    view_particles(tmp_path / "list.star", tmp_path / "out", tomograms=[tmp_path])
    for name, number in (("alpha", 5), ("beta", 2)):
        marker = ET.parse(tmp_path / "out" / f"t.{name}.cmm").getroot()[0].attrib
        assert hexadecimal(marker) == colour_of(number - 1)


def test_names_that_files_cannot_have_stay_apart(tmp_path: Path) -> None:
    write_mrc(tmp_path / "t.mrc", np.zeros(SHAPE, np.float32), voxel_size=10.0)
    names = ['a/b "c"', "a b c", "A b c", ""]
    located = list_particles([open_tomogram(tmp_path / "t.mrc")], [0] * 4, PLACES, class_names=names)
    write_particles(tmp_path / "list.csv", located.particles)
    (scene,) = view_particles(tmp_path / "list.csv", tmp_path / "out", tomograms=[tmp_path])
    files = sorted((tmp_path / "out").glob("*.cmm"))
    assert len(files) == 4
    assert sum(file.name in scene.chimerax.read_text() for file in files) == 4
    assert {ET.parse(file).getroot().attrib["name"] for file in files} == {*names[:3], "particles"}


def explained(folder: Path) -> Path:
    """What `explain` leaves, of an MRC file, a stack's volume and an array."""
    explanations = folder / "run" / "explanations"
    (explanations / "maps").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for name, voxel in (("v.mrc", 5.0), ("w.npy", None)):
        data = rng.normal(size=SHAPE).astype(np.float32)
        if voxel:
            write_mrc(folder / name, data, voxel_size=voxel, origin=ORIGIN)
        else:
            np.save(folder / name, data)
        found = explanations / "maps" / f"{name[0]}.mrc"
        write_mrc(found, np.abs(data), voxel_size=voxel or 1.0, origin=ORIGIN if voxel else (0, 0, 0))
        rows.append({"path": str(folder / name), "explained_class": "fas", "map": f"maps/{found.name}"})
    with (explanations / "explanations.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["path", "explained_class", "map"])
        table.writeheader()
        table.writerows(rows)
    return explanations


def test_explanations_are_volumes_with_their_maps(tmp_path: Path) -> None:
    explanations = explained(tmp_path)
    scenes = write_view(explanations.parent)  # the run that they are in
    assert {scene.chimerax.parent for scene in scenes} == {tmp_path / "run_view"}
    for scene, source in zip(scenes, ("v.mrc", "w.npy"), strict=True):
        volume, found = (np.load(file) for file in scene.plain)
        assert np.array_equal(found, np.abs(volume))
        lines = scene.chimerax.read_text().splitlines()
        opened = [scene.chimerax.parent / line.split('"')[1] for line in lines if line.startswith("open")]
        assert all(file.is_file() for file in opened)
        # An array of numpy is nothing to ChimeraX: it gets a file that is.
        assert (opened[0].name == source) == source.endswith(".mrc")
        assert f"level {float(found.max()) / 2:.6g}" in scene.chimerax.read_text()
    (tmp_path / "v.mrc").unlink()
    (tmp_path / "w.npy").unlink()
    with pytest.raises(DatasetError) as caught:
        write_view(explanations, tmp_path / "other")
    assert len(caught.value.problems) == 2


def test_the_verb_prints_commands_that_a_shell_understands(
    tomograms: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tomograms)
    assert main(["view", "particles.star", "--tomograms", "TS 1.mrc", "--output_dir", "my view"]) == 0
    printed = capsys.readouterr().out
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert [command.split()[0] for command in commands] == ["napari", "napari", "chimerax"]
    for command in commands:
        listed = subprocess.run(
            ["bash", "-c", f'napari() {{ ls "$@"; }}; chimerax() {{ ls "$@"; }}; {command}'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert listed.returncode == 0, listed.stderr
    assert main(["view", "nowhere"]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


# Prints what napari's own reader, and the script, make of the files.
ASK_NAPARI = """
import json, runpy, sys
import napari
from napari.components import ViewerModel
from npe2 import PluginManager

PluginManager.instance().discover()  # which napari's window does when it starts
script, *files = sys.argv[1:]
opened, scripted = ViewerModel(), ViewerModel()
for file in files:
    opened.open(file, plugin="napari")
napari.current_viewer = lambda: scripted
runpy.run_path(script)


def told(layer):
    kind = type(layer).__name__
    facts = {"kind": kind, "name": layer.name}
    if kind == "Points":
        facts["data"] = layer.data.tolist()
        facts["features"] = {key: [str(v) for v in column] for key, column in layer.features.items()}
        facts["colour"] = layer.face_color[0].tolist()
    else:
        facts["shape"] = list(layer.data.shape)
        facts["values"] = [float(layer.data[tuple(int(n) for n in place)]) for place in json.loads(PLACES)]
    return facts


print("@" + json.dumps([[told(layer) for layer in viewer.layers] for viewer in (opened, scripted)]))
"""


@pytest.mark.slow
def test_napari_itself_opens_every_file(tomograms: Path, tmp_path: Path) -> None:
    python = os.environ.get("CRYO_MONAI_NAPARI") or (sys.executable if find_spec("napari") else "")
    if not python:
        pytest.skip("napari is not installed; CRYO_MONAI_NAPARI may name a Python that has it")
    (scene,) = write_view(tomograms, tmp_path / "out")
    code = ASK_NAPARI.replace("PLACES", repr(json.dumps(PLACES.tolist())))
    done = subprocess.run(
        [python, "-c", code, str(scene.napari), *map(str, scene.plain)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = next(line for line in done.stdout.splitlines() if line.startswith("@"))
    opened, scripted = json.loads(answer[1:])
    assert [layer["kind"] for layer in opened] == ["Image", "Labels", "Points"]
    assert opened[0]["shape"] == list(SHAPE)
    assert opened[0]["values"] == [1, 2, 3, 4]
    assert opened[1]["values"] == [1, 1, 1, 1]
    assert opened[2]["data"] == PLACES.tolist()
    assert opened[2]["features"]["class_name"] == NAMES
    assert [(layer["kind"], layer["name"]) for layer in scripted[2:]] == [
        ("Points", "ribosome"),
        ("Points", "fas"),
        ("Points", "unknown"),
    ]
    assert scripted[0]["values"] == [1, 2, 3, 4]
    assert scripted[2]["data"] == PLACES[[0, 2]].tolist()
    red, green, blue = (int(colour_of(0)[start : start + 2], 16) / 255 for start in (1, 3, 5))
    assert scripted[2]["colour"] == pytest.approx([red, green, blue, 1.0], abs=1e-3)
