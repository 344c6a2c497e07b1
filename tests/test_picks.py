"""Picking as a user does it: tomograms in, a list out, chosen by eye, kept through interruptions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import cryo_monai.picks as picks
from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.locations import open_tomograms
from cryo_monai.matching import score_particles
from cryo_monai.particles import read_particles
from cryo_monai.picks import PickSettings, pick_tomograms
from cryo_monai.simulation import SimulationSettings, write_tomograms

CLASSES = ("o_440kda", "c2_64kda")
TEMPLATES = PickSettings(sigma=60.0, templates=CLASSES, angular_step_deg=40.0, low_pass=50.0, template_box=14)


@pytest.fixture(scope="module")
def tomograms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small tomograms of two quite different particles."""
    folder = tmp_path_factory.mktemp("tomograms") / "sim"
    settings = SimulationSettings(voxel_size=20.0, resolution=40.0, snr=1.0, tilt_step_deg=6.0)
    write_tomograms(folder, settings, num_tomograms=2, size=(24, 64, 64), num_particles=16, structures=CLASSES)
    return folder


def test_blobs_are_the_particles(tomograms: Path, tmp_path: Path) -> None:
    found = pick_tomograms(open_tomograms([tomograms / "tomogram_00?.mrc"]), tmp_path / "p", PickSettings(sigma=60.0))
    score = score_particles(found, read_particles(tomograms / "particles.star"), distance=80.0)
    assert score["picking"]["recall"] > 0.7
    assert score["picking"]["precision"] > 0.4
    scores = found.particles.scores
    assert scores is not None
    assert np.all(np.diff(scores) <= 0)
    again = read_particles(tmp_path / "p" / "picks.star")
    assert again.ids == found.particles.ids
    assert np.allclose(again.coordinates, found.particles.coordinates, atol=1e-4)
    assert again.pixel_size.tolist() == [20.0] * len(again)


def test_templates_give_class_place_and_pose(tomograms: Path, tmp_path: Path) -> None:
    inputs = open_tomograms([tomograms / "tomogram_00?.mrc"])
    found = pick_tomograms(inputs, tmp_path / "p", TEMPLATES)
    score = score_particles(found, read_particles(tomograms / "particles.star"), distance=80.0)
    assert score["accuracy"] > 0.75
    assert found.particles.rotations is not None
    best = pick_tomograms(inputs, tmp_path / "top", PickSettings(**{**vars(TEMPLATES), "top": 4}))
    assert sorted(best.particles.class_names) == sorted([*[CLASSES[0]] * 4, *[CLASSES[1]] * 4])
    assert set(best.particles.ids) <= set(found.particles.ids)
    for number in range(2):
        places = found.places[found.which == number] * 20.0
        apart = np.linalg.norm(places[:, None] - places, axis=2) + np.eye(len(places)) * 1e6
        assert apart.min() >= 60.0


def test_an_interrupted_call_goes_on_with_the_next_tomogram(
    tomograms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = open_tomograms([tomograms / "tomogram_00?.mrc"])
    settings = PickSettings(sigma=60.0)
    pick_tomograms(inputs, tmp_path / "whole", settings)
    pick_one, calls = picks._pick_one, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pick_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(picks, "_pick_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pick_tomograms(inputs, tmp_path / "cut", settings)
    assert not (tmp_path / "cut" / "picks.star").exists()
    pick_tomograms(inputs, tmp_path / "cut", settings)
    assert len(calls) == 3
    for file in ("picks.star", "picking.json", "progress/picks.jsonl"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    with pytest.raises(InputError, match=r"holds another picking with other settings \(sigma\)"):
        pick_tomograms(inputs, tmp_path / "cut", PickSettings(sigma=61.0))


def test_picks_of_a_tomogram_that_has_changed_are_not_taken(tomograms: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.mrc"
    for source in ("tomogram_000.mrc", "tomogram_001.mrc"):
        file.write_bytes((tomograms / source).read_bytes())
        inputs = open_tomograms([file])
        if source == "tomogram_000.mrc":
            pick_tomograms(inputs, tmp_path / "p", PickSettings(sigma=60.0))
        else:
            with pytest.raises(InputError, match=r"with other settings \(tomograms\)"):
                pick_tomograms(inputs, tmp_path / "p", PickSettings(sigma=60.0))


def test_from_pick_to_label_on_the_command_line(
    tomograms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picked = tmp_path / "p"
    assert main(["pick", f"{tomograms}/tomogram_00?.mrc", str(picked), "--sigma", "60", "--max_picks", "12"]) == 0
    assert "24 picks in 2 tomograms" in capsys.readouterr().out
    assert {"picks.star", "picks.png", "picking.json", "review"} <= {file.name for file in picked.iterdir()}
    review = picked / "review" / "review.csv"
    with review.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 24
    for row in rows[::2]:
        row["keep"] = "0"
    with review.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    kept = tmp_path / "kept.star"
    assert main(["keep", str(picked / "picks.star"), str(review), str(kept)]) == 0
    assert set(read_particles(kept).ids) == {row["id"] for row in rows[1::2]}
    assert main(["keep", str(picked / "picks.star"), str(review), str(kept)]) == 1
    assert "kept.star: exists" in capsys.readouterr().err
    labelled = tmp_path / "labels.star"
    truth = str(tomograms / "particles.star")
    assert main(["label", str(kept), truth, str(labelled), "--distance", "80"]) == 0
    assert set(read_particles(labelled).class_names) <= {*CLASSES, "background", ""}
    assert main(["score", str(labelled), truth, "--distance", "80", "--output", str(tmp_path / "s.json")]) == 0
    out = capsys.readouterr().out
    assert "recall" in out
    assert json.loads((tmp_path / "s.json").read_text())["accuracy"] == 1.0


def test_mistakes_are_one_line(tomograms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tomogram = str(tomograms / "tomogram_000.mrc")
    for arguments, message in (
        (["pick", tomogram, str(tmp_path / "a"), "--top", "5"], "top: needs templates"),
        (["pick", tomogram, str(tmp_path / "a"), "--sigma", "-1"], "sigma: -1.0 must be positive"),
        (["pick", tomogram, str(tmp_path / "b"), "--threshold", "19.99"], ""),
        (["pick", tomogram, str(tmp_path / "a"), "--templates", "no_such_thing"], "no_such_thing"),
        (["pick", tomogram, str(tmp_path / "a"), "--templates", "o_440kda", "--shift", "300"], "shift: 300 Å are more"),
        (["pick", str(tmp_path / "none.mrc"), str(tmp_path / "a")], "none.mrc: no such file or folder"),
        (["keep", tomogram, "x.csv", str(tmp_path / "b.star")], "tomogram_000.mrc"),
    ):
        code = main(arguments)
        error = capsys.readouterr().err
        assert code == (0 if not message else 1)
        assert message in error
        assert "Traceback" not in error


def test_bright_particles_are_sought_when_asked(tomograms: Path, tmp_path: Path) -> None:
    inputs = open_tomograms([tomograms / "tomogram_000_clean.mrc"])
    found = pick_tomograms(inputs, tmp_path / "bright", PickSettings(sigma=60.0, bright=True))
    truth = read_particles(tomograms / "particles.star")
    places = truth.coordinates[[name == "tomogram_000" for name in truth.tomograms]]
    near = np.linalg.norm(found.places[:, None] - places, axis=2).min(1)
    assert np.mean(near < 4) > 0.6
