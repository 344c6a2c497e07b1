"""Subtomograms as files, resumable, with lists to train from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import cryo_monai.extraction as extraction
from cryo_monai.backgrounds import background_places
from cryo_monai.boxes import BoxSettings, ParticleBoxes
from cryo_monai.datalists import load_datalist
from cryo_monai.errors import InputError, user_error
from cryo_monai.extraction import extract
from cryo_monai.locations import LocatedParticles, locate_particles
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.particles import make_particles, read_particles
from cryo_monai.volumes import read_volume

SHAPE = (30, 40, 50)
SETTINGS = BoxSettings(box=8, voxel_size=13.0)


@pytest.fixture
def located(tmp_path: Path) -> LocatedParticles:
    """Two tomograms with ten particles each, of two classes and some without."""
    rng = np.random.default_rng(0)
    for name in ("t 1", "t2"):
        write_mrc(tmp_path / f"{name}.mrc", rng.normal(size=SHAPE).astype(np.float32), voxel_size=10.0)
    places = rng.uniform(6, [24, 34, 44], size=(20, 3))
    places[0] = (1.0, 20.0, 20.0)
    particles = make_particles(
        ["t 1", "t2"] * 10,
        places,
        pixel_size=10.0,
        ids=[f"{n:03d}/é" for n in range(20)],
        class_names=[("ribosome", "atpase", "")[n % 3] for n in range(20)],
    )
    return locate_particles(particles, [tmp_path])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_files_hold_the_boxes_where_they_were_in_space(located: LocatedParticles, tmp_path: Path) -> None:
    target = extract(located, tmp_path / "out", SETTINGS)
    boxes = ParticleBoxes(located, SETTINGS)
    content = json.loads(target.read_text())
    items = {item["id"]: item for item in content["training"] + content["inference"]}
    assert len(items) == 20
    for row, name in enumerate(located.particles.ids):
        item = items[name]
        volume = read_mrc(target.parent / item["image"])
        box = boxes.cut(row)
        assert np.array_equal(volume.data, box.volume)
        assert volume.voxel_size == pytest.approx((13.0,) * 3)
        assert np.allclose(volume.origin, located.places[row] * 10 - 4 * 13, atol=1e-3)
        assert item["mean"] == pytest.approx(box.mean, abs=1e-6)
        assert item["inside"] == pytest.approx(box.inside, abs=1e-6)
        assert item["source"] == located.particles.tomograms[row].replace(".mrc", "")
    assert content["voxel_size"] == 13.0


def test_labelled_boxes_are_a_data_set_to_train_from(located: LocatedParticles, tmp_path: Path) -> None:
    extract(located, tmp_path / "out", SETTINGS, background=4)
    lists = load_datalist(tmp_path / "out")
    assert lists["class_names"] == ["atpase", "ribosome", "background"]
    counts = {name: sum(len(lists[s]) for s in ("training", "validation", "test")) for name in ("all",)}
    assert counts["all"] == 7 + 7 + 8  # six have no class: they are in the list to classify
    assert {item["source"] for item in lists["training"]} == {"t 1", "t2"}


def test_a_stack_holds_the_same_boxes(located: LocatedParticles, tmp_path: Path) -> None:
    files = json.loads(extract(located, tmp_path / "files", SETTINGS).read_text())
    stack = json.loads(extract(located, tmp_path / "stack", SETTINGS, stack=True).read_text())
    assert not list((tmp_path / "stack").rglob("*.mrc"))
    for one, other in zip(files["training"], stack["training"], strict=True):
        assert other["image"].endswith("@subtomograms.mrcs")
        assert np.array_equal(
            read_volume(tmp_path / "files" / one["image"]), read_volume(tmp_path / "stack" / other["image"])
        )
    assert len(load_datalist(tmp_path / "stack")["training"]) > 0


def test_the_star_file_leads_back_to_the_same_voxels(located: LocatedParticles, tmp_path: Path) -> None:
    extract(located, tmp_path / "out", SETTINGS)
    again = read_particles(tmp_path / "out" / "particles.star")
    assert again.ids == located.particles.ids
    assert again.class_names == located.particles.class_names
    for row in range(len(again)):
        assert np.allclose(again.places([row], SHAPE, 10.0)[0], located.places[row], atol=1e-3)
    assert again.columns["rlnImageName"].iloc[0].startswith("subtomograms/t_1/")


@pytest.mark.parametrize("stack", [False, True])
def test_an_interrupted_call_is_continued_by_the_same_call(
    located: LocatedParticles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: bool
) -> None:
    monkeypatch.setattr(extraction, "BATCH", 3)
    extract(located, tmp_path / "whole", SETTINGS, background=2, stack=stack)
    cut, calls = ParticleBoxes.cut, []

    def interrupted(self: ParticleBoxes, index: int) -> object:
        calls.append(index)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return cut(self, index)

    monkeypatch.setattr(ParticleBoxes, "cut", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(located, tmp_path / "cut", SETTINGS, background=2, stack=stack)
    assert not (tmp_path / "cut" / "dataset.json").exists()
    assert not (tmp_path / "cut" / "subtomograms.mrcs").exists()
    done: list[int] = []
    extract(located, tmp_path / "cut", SETTINGS, background=2, stack=stack, progress=done.append)
    assert done[0] == 9  # three batches were kept
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_workers_give_the_same_files(located: LocatedParticles, tmp_path: Path) -> None:
    extract(located, tmp_path / "none", SETTINGS)
    extract(located, tmp_path / "two", SETTINGS, num_workers=2)
    assert contents(tmp_path / "none") == contents(tmp_path / "two")


def test_other_settings_are_refused_the_folder(located: LocatedParticles, tmp_path: Path) -> None:
    extract(located, tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"holds another extraction with other settings"):
        extract(located, tmp_path / "out", BoxSettings(box=10, voxel_size=13.0))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty and not an extraction"):
        extract(located, tmp_path / "thesis", SETTINGS)


def test_boxes_that_reach_beyond_can_be_left_out(located: LocatedParticles, tmp_path: Path) -> None:
    content = json.loads(
        extract(located, tmp_path / "out", BoxSettings(box=8, voxel_size=10.0, edge="skip")).read_text()
    )
    ids = {item["id"] for item in content["training"] + content["inference"]}
    assert "000/é" not in ids
    assert len(ids) == 19
    assert all(item["inside"] == 1.0 for item in content["training"])


def test_background_is_away_from_particles_and_from_itself(located: LocatedParticles) -> None:
    places = background_places(located, 0, SETTINGS, 6, np.random.default_rng(0))
    edge = 8 * 1.3
    others = np.concatenate([located.places[located.which == 0], places])
    for row, place in enumerate(places):
        apart = np.linalg.norm(others - place, axis=1)
        apart[len(others) - len(places) + row] = np.inf
        assert apart.min() >= edge / 2
    assert np.all(places >= edge / 2 - 1)
    assert np.all(places <= np.array(SHAPE) - edge / 2)
    assert np.array_equal(places, background_places(located, 0, SETTINGS, 6, np.random.default_rng(0)))
    with pytest.raises(InputError, match=r"room for .* background boxes half a box away"):
        background_places(located, 0, SETTINGS, 500, np.random.default_rng(0))


def test_one_class_is_nothing_to_train_from(located: LocatedParticles, tmp_path: Path) -> None:
    content = json.loads(extract(located.select(range(0, 20, 3)), tmp_path / "out", SETTINGS).read_text())
    assert "training" not in content
    assert len(content["inference"]) == 7


def test_lost_files_are_made_again(located: LocatedParticles, tmp_path: Path) -> None:
    for stack in (False, True):
        folder = tmp_path / str(stack)
        extract(located, folder, SETTINGS, stack=stack)
        before = contents(folder)
        lost = folder / "subtomograms.mrcs" if stack else sorted(folder.rglob("*.mrc"))[3]
        lost.unlink()
        extract(located, folder, SETTINGS, stack=stack)
        assert contents(folder) == before


def test_the_star_file_keeps_names_scores_and_other_columns(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) * 1e-5
    write_mrc(tmp_path / "TS_01_bin4_denoised.mrc", data, voxel_size=10.0)
    columns = ["rlnTomoName", "rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ", "rlnOriginXAngst", "rlnFoo"]
    columns += ["rlnAutopickFigureOfMerit", "rlnTomoTiltSeriesPixelSize"]
    head = "data_particles\n\nloop_\n" + "\n".join(f"_{name}" for name in columns)
    (tmp_path / "p.star").write_text(head + "\nTS_01 20 20 15 30 bar 3e-8 10\nTS_01 30 20 15 0 001 0.5 10\n")
    located = locate_particles(read_particles(tmp_path / "p.star"), [tmp_path])
    target = extract(located, tmp_path / "out", SETTINGS)
    again = read_particles(tmp_path / "out" / "particles.star")
    assert again.tomograms == ["TS_01", "TS_01"]
    assert list(again.columns["rlnFoo"]) == ["bar", "001"]
    assert again.scores is not None
    assert again.scores.tolist() == [3e-8, 0.5]
    assert "rlnOriginXAngst" not in again.columns
    assert np.allclose(again.coordinates[0], [15, 20, 17])  # the shift has been taken off
    item = json.loads(target.read_text())["inference"][0]
    box = ParticleBoxes(located, SETTINGS).cut(0)
    assert item["std"] == pytest.approx(box.std, rel=1e-5)
    assert item["source"] == "TS_01"


def test_boxes_that_were_turned_have_no_angles_left(located: LocatedParticles, tmp_path: Path) -> None:
    rotations = Rotation.random(len(located), random_state=0).as_matrix()
    turned = replace(located, particles=replace(located.particles, rotations=rotations))
    extract(turned, tmp_path / "out", replace(SETTINGS, rotate=True))
    again = read_particles(tmp_path / "out" / "particles.star")
    assert again.rotations is None
    assert "cryomonaiTilt" in again.columns
    extract(turned, tmp_path / "plain", SETTINGS)
    plain = read_particles(tmp_path / "plain" / "particles.star").rotations
    assert plain is not None
    assert np.allclose(plain, rotations, atol=1e-5)


def test_an_error_in_a_worker_is_one_line(located: LocatedParticles, tmp_path: Path) -> None:
    file = located.tomograms[0].path
    with file.open("r+b") as stream:
        stream.seek(1024)
        stream.write(np.full(int(np.prod(SHAPE)), np.nan, np.float32).tobytes())
    with pytest.raises(InputError) as caught:
        extract(located, tmp_path / "out", SETTINGS, num_workers=1)
    found = user_error(caught.value)
    assert str(found).startswith(f"{file}: voxels that are not finite around particle")
    assert "\n" not in str(found)
