"""Particles in tomograms -> classes, the same as through files."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.extraction import extract
from cryo_monai.folders import locked
from cryo_monai.inferers import AxisInferer
from cryo_monai.locations import LocatedParticles, locate_particles
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.particles import read_particles
from cryo_monai.runs import train_bundle
from cryo_monai.tomogram_classes import UNKNOWN, classify_particles, settings_for
from cryo_monai.workflows import load_workflow, run_workflow

SHAPE = (24, 60, 60)


@pytest.fixture(scope="module")
def run_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for two epochs on boxes of 16 voxels of 20 Å."""
    folder = tmp_path_factory.mktemp("run") / "run"
    overlay = folder.with_name("tiny.json")
    overlay.write_text(json.dumps(TINY))
    train_bundle(SUBTOMOGRAMS, folder, overlays=[overlay], ids={"dataset_dir": str(dataset_dir), "num_classes": "3"})
    return folder


@pytest.fixture(scope="module")
def picks(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A STAR file of twelve particles in two tomograms that simulated subtomograms were put into."""
    folder = tmp_path_factory.mktemp("tomograms")
    rng = np.random.default_rng(0)
    volumes = sorted(dataset_dir.glob("c*_*/0000?.mrc"))
    lines = []
    for name in ("001", "002"):
        data = rng.normal(size=SHAPE).astype(np.float32)
        for y in (12, 36):
            for x in (10, 28, 46):
                data[4:20, y - 8 : y + 8, x - 8 : x + 8] = read_mrc(volumes[rng.integers(len(volumes))]).data
                lines.append(f"{name} {x + 0.25} {y} 12.5 {len(lines) + 1:03d}")
        write_mrc(folder / f"{name}.mrc", data, voxel_size=20.0)
    columns = ("rlnTomoName", "rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ", "myOwnColumn")
    head = "\n".join(["data_particles", "", "loop_", *(f"_{name} #{n + 1}" for n, name in enumerate(columns))])
    file = folder / "picks.star"
    file.write_text(head + "\n" + "\n".join(lines) + "\n")
    return file


def located_picks(picks: Path) -> LocatedParticles:
    return locate_particles(read_particles(picks), [picks.parent])


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_picks_have_the_probabilities_of_monai_bundle_run_inference(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    settings = settings_for(run_dir, located)
    assert (settings.box, settings.voxel_size) == (16, 20.0)
    result = classify_particles(run_dir, located, settings, tmp_path / "classes.star")
    data = extract(located, tmp_path / "boxes", settings)
    overrides = {
        "dataset_dir": str(data),
        "output_file": str(tmp_path / "bundle.csv"),
        "ckpt_dir": str(run_dir / "models"),
        "num_classes": 3,
    }
    overlay = run_dir.with_name("tiny.json")
    run_workflow(load_workflow(SUBTOMOGRAMS, "inference", overlays=[overlay], overrides=overrides))
    by_bundle = [[float(row[f"p_{name}"]) for name in result.class_names] for row in rows_of(tmp_path / "bundle.csv")]
    assert np.allclose(result.scores, by_bundle, atol=2e-6)
    assert np.allclose(result.scores.sum(1), 1, atol=1e-5)


def test_the_list_comes_back_with_classes_and_everything_it_had(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    before = picks.read_bytes()
    result = classify_particles(run_dir, located, settings_for(run_dir, located), tmp_path / "classes.star")
    assert picks.read_bytes() == before
    again = read_particles(tmp_path / "classes.star")
    assert again.class_names == result.names
    assert list(again.columns["myOwnColumn"]) == [f"{n + 1:03d}" for n in range(12)]
    assert again.tomograms == ["001"] * 6 + ["002"] * 6
    assert np.array_equal(again.coordinates, located.particles.coordinates)
    assert [int(n) for n in again.columns["rlnClassNumber"]] == result.numbers.tolist()
    table = rows_of(tmp_path / "classes_probabilities.csv")
    assert [row["class_name"] for row in table] == result.names
    summary = rows_of(tmp_path / "classes_summary.csv")
    assert [row["tomogram"] for row in summary] == ["001", "002", "all"]
    assert sum(int(summary[2][name]) for name in [*result.class_names, UNKNOWN]) == 12
    assert (tmp_path / "classes_points" / "001.cmm").is_file()
    assert not (tmp_path / "classes.star.parts").exists()


def test_below_the_probability_a_particle_is_unknown(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    settings = settings_for(run_dir, located)
    every = classify_particles(run_dir, located, settings, tmp_path / "all.star")
    bar = float(np.median(every.scores.max(1)))
    some = classify_particles(run_dir, located, settings, tmp_path / "some.star", min_probability=bar)
    low = every.scores.max(1) < bar
    assert 0 < low.sum() < 12
    assert [name == UNKNOWN for name in some.names] == low.tolist()
    assert np.all(some.numbers[low] == 0)
    assert np.array_equal(some.numbers[~low], every.numbers[~low])
    with pytest.raises(InputError, match="min_probability: 2"):
        classify_particles(run_dir, located, settings, tmp_path / "x.star", min_probability=2)


def test_three_axes_are_averaged(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    settings = settings_for(run_dir, located)
    once = classify_particles(run_dir, located, settings, tmp_path / "once.star")
    averaged = classify_particles(run_dir, located, settings, tmp_path / "av.star", ids={"average_axes": "True"})
    assert not np.allclose(once.scores, averaged.scores, atol=1e-3)
    assert np.allclose(averaged.scores.sum(1), 1, atol=1e-5)


def test_an_interrupted_call_goes_on_and_ends_the_same(
    run_dir: Path, picks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = located_picks(picks)
    settings = settings_for(run_dir, located)
    ids = {"batch_size": "4"}
    whole = classify_particles(run_dir, located, settings, tmp_path / "whole.star", ids=ids)
    call, batches = AxisInferer.__call__, []

    def interrupted(self: AxisInferer, inputs: torch.Tensor, *args: object) -> torch.Tensor:
        batches.append(len(inputs))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return call(self, inputs, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(AxisInferer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classify_particles(run_dir, located, settings, tmp_path / "cut.star", ids=ids)
    assert not (tmp_path / "cut.star").exists()
    seen: list[int] = []
    cut = classify_particles(run_dir, located, settings, tmp_path / "cut.star", ids=ids, progress=seen.append)
    assert seen == [12]
    assert np.array_equal(cut.scores, whole.scores)
    assert (tmp_path / "cut.star").read_bytes() == (tmp_path / "whole.star").read_bytes()


def test_batches_of_something_else_are_not_taken(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    parts = tmp_path / "c.star.parts"
    parts.mkdir()
    np.save(parts / "00000000.npy", np.full((12, 3), 7.0))
    (parts / "fingerprint.txt").write_text("of something else")
    result = classify_particles(run_dir, located, settings_for(run_dir, located), tmp_path / "c.star")
    assert result.scores.max() <= 1


def test_the_opposite_contrast_is_warned_of(
    run_dir: Path, picks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert json.loads((run_dir / "run.json").read_text())["data"]["contrast"]["density"] == "dark"
    bright = tmp_path / "bright"
    bright.mkdir()
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    for file in picks.parent.glob("*.mrc"):
        data = rng.normal(size=SHAPE) * 0.1
        for y in (12, 36):
            for x in (10, 28, 46):
                data += np.exp(-((grid - [12, y, x]) ** 2).sum(-1) / 18)
        write_mrc(bright / file.name, data.astype(np.float32), voxel_size=20.0)
    located = locate_particles(read_particles(picks), [bright])
    with caplog.at_level(logging.WARNING):
        classify_particles(run_dir, located, settings_for(run_dir, located), tmp_path / "b.star")
        assert "density looks bright in these boxes" in caplog.text
        caplog.clear()
        classify_particles(run_dir, located, settings_for(run_dir, located, invert=True), tmp_path / "i.star")
        assert "density looks" not in caplog.text


def test_the_input_is_never_overwritten(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    link = tmp_path / "link.star"
    link.symlink_to(picks)
    for target in (picks, link):
        with pytest.raises(InputError, match="is what the particles were read from"):
            classify_particles(run_dir, located, settings_for(run_dir, located), target)
    (tmp_path / "there.star").write_text("something else")
    with pytest.raises(InputError, match=r"there\.star: exists; remove it"):
        classify_particles(run_dir, located, settings_for(run_dir, located), tmp_path / "there.star")


def test_the_command_line(run_dir: Path, picks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["classify", str(run_dir), "--particles", str(picks), "--tomograms", str(picks.parent)]
    output = tmp_path / "out.star"
    assert main([*arguments, "--output", str(output), "--min_probability", "0.3", "--three_axis", "True"]) == 0
    assert "12 particles (" in capsys.readouterr().out
    assert output.is_file()
    assert (tmp_path / "out_slices.png").is_file()
    assert main([*arguments, "--output", str(tmp_path / "far.star"), "--pixel_size", "10"]) == 0
    assert "warning" not in capsys.readouterr().err  # the list says nothing of pixels
    assert main([*arguments, "--data", "x"]) == 2
    assert main(["classify", str(run_dir), str(picks.parent), "--box", "16"]) == 2
    assert "--box: for --particles, not for volumes" in capsys.readouterr().err
    assert main([*arguments, "--no_such_id", "1"]) == 1
    assert "no_such_id: no such id" in capsys.readouterr().err


def test_two_calls_do_not_share_their_batches(run_dir: Path, picks: Path, tmp_path: Path) -> None:
    located = located_picks(picks)
    settings = settings_for(run_dir, located)
    lock = locked(tmp_path / "c.star.parts.lock", "held")
    with lock, pytest.raises(InputError, match=r"c\.star\.parts: another process is computing this"):
        classify_particles(run_dir, located, settings, tmp_path / "c.star")
    classify_particles(run_dir, located, settings, tmp_path / "c.star")
    assert not (tmp_path / "c.star.parts.lock").exists()
