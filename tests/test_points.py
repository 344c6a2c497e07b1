"""Points that napari, ChimeraX and ArtiaX open."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from cryo_monai.colours import UNKNOWN_COLOUR, colour_of
from cryo_monai.locations import list_particles
from cryo_monai.mrc import write_mrc
from cryo_monai.particles import read_particles
from cryo_monai.points import write_points
from cryo_monai.tomograms import open_tomogram

PLACES = np.array([[1.5, 2.25, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def test_the_same_points_for_every_program(tmp_path: Path) -> None:
    tomograms = []
    for name, origin in (("a", (0.0, 0.0, 0.0)), ("b", (100.0, 200.0, 300.0))):
        write_mrc(tmp_path / f"{name}.mrc", np.zeros((10, 12, 14), np.float32), voxel_size=7.84, origin=origin)
        tomograms.append(open_tomogram(tmp_path / f"{name}.mrc"))
    located = list_particles(tomograms, [1, 0, 1], PLACES, ids=["p<1>", "p2", "p3"])
    names = ["x & y", "unknown", "z"]
    files = write_points(
        tmp_path / "points", located, class_names=names, classes=["x & y", "z"], probabilities=np.array([0.9, 0.2, 0.7])
    )
    assert sorted(f.name for f in files) == ["a.cmm", "a.napari.csv", "a.star", "b.cmm", "b.napari.csv", "b.star"]
    with (tmp_path / "points" / "b.napari.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    # napari takes the columns axis-0, axis-1 ... for coordinates, in the order of the array's axes.
    assert [[float(row[f"axis-{n}"]) for n in range(3)] for row in rows] == PLACES[[0, 2]].tolist()
    assert [(row["id"], row["class_name"], row["probability"]) for row in rows] == [
        ("p<1>", "x & y", "0.900000"),
        ("p3", "z", "0.700000"),
    ]
    markers = ET.parse(tmp_path / "points" / "b.cmm").getroot()
    assert markers.tag == "marker_set"
    first = markers[0].attrib
    assert [float(first[axis]) for axis in "zyx"] == [round(v, 2) for v in PLACES[0] * 7.84 + [100, 200, 300]]
    assert first["note"] == "x & y p<1>"
    assert float(first["r"]) == round(int(colour_of(0)[1:3], 16) / 255, 3)
    other = ET.parse(tmp_path / "points" / "a.cmm").getroot()[0].attrib
    assert float(other["g"]) == round(int(UNKNOWN_COLOUR[3:5], 16) / 255, 3)
    star = read_particles(tmp_path / "points" / "b.star")
    assert np.allclose(star.coordinates, PLACES[[0, 2]])
    assert star.class_names == ["x & y", "z"]
