"""Data sets and tomograms on disk."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile

from cryo_monai.errors import InputError
from cryo_monai.folders import Journal
from cryo_monai.mrc import read_mrc
from cryo_monai.simulation import SimulationSettings, read_preset, settings_from, write_dataset, write_tomograms
from cryo_monai.simulation.loading import load_structures
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.tomograms import _rows

SETTINGS = SimulationSettings(box=12, voxel_size=25, resolution=50, max_shift=1.0, tilt_step_deg=15, neighbours=2)
TWO = ("c2_64kda", "t_200kda")
PRESETS = Path(__file__).parents[1] / "configs" / "simulation"


def write(folder: Path, settings: SimulationSettings = SETTINGS, **changes: object) -> Path:
    options: dict[str, object] = {"num_per_class": 20, "structures": TWO, **changes}
    return write_dataset(folder, settings, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert len(first) == 2 * 20 * 2 + 2 + 1 + 2 + 2  # volumes and scenes, structures, wedge, truth, two JSON files
    write(tmp_path / "a")  # again: nothing is left to do
    assert contents(tmp_path / "a") == first


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_call_is_continued_to_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    write(tmp_path / "whole")
    calls = []

    def stop(count: int) -> None:
        calls.append(count)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "part", progress=stop)
    assert not (tmp_path / "part" / "dataset.json").exists()
    kept = (tmp_path / "part" / "c2_64kda" / "00000.mrc").stat().st_mtime_ns
    seen: list[int] = []
    write(tmp_path / "part", progress=seen.append)
    assert sum(seen) == 40
    assert (tmp_path / "part" / "c2_64kda" / "00000.mrc").stat().st_mtime_ns == kept
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_line_that_a_crash_cut_off_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    before = contents(tmp_path / "whole")
    truth = tmp_path / "whole" / "truth" / "t_200kda.jsonl"
    lines = truth.read_text().splitlines(keepends=True)
    truth.write_text("".join(lines[:17]) + lines[17][:30])
    (tmp_path / "whole" / "dataset.json").unlink()
    (tmp_path / "whole" / "t_200kda" / "00018.mrc").unlink()
    write(tmp_path / "whole")
    assert contents(tmp_path / "whole") == before
    damaged = tmp_path / "x.jsonl"
    damaged.write_text('{"a": 1}\n{"a"')
    assert Journal(damaged).entries == [{"a": 1}]
    assert damaged.read_text() == '{"a": 1}\n'


def test_dataset_json_is_a_datalist_with_every_parameter_and_the_truth(tmp_path: Path) -> None:
    content = json.loads(write(tmp_path / "a").read_text())
    assert content["class_names"] == list(TWO)
    assert [len(content[s]) for s in ("training", "validation", "test")] == [24, 8, 8]
    for split, each in (("training", 12), ("validation", 4), ("test", 4)):
        assert [sum(i["label"] == label for i in content[split]) for label in (0, 1)] == [each, each]
    assert settings_from(content["settings"]) == SETTINGS
    assert len(content["tilts"]["angles_deg"]) == 9
    assert [s["kind"] for s in content["structures"]] == ["built-in assembly"] * 2
    assert "dark" in content["contrast"]
    item = content["test"][0]
    assert item.keys() == {
        "image",
        "label",
        "class_name",
        "voxel_size",
        "clean",
        "number",
        "seed",
        "quaternion_wzyx",
        "shift_voxels_zyx",
        "snr_nominal",
        "snr_measured",
        "defocus_um",
        "occupancy",
        "neighbours",
    }
    assert len(item["neighbours"]) == 2
    for name in (item["image"], item["clean"], "structures/c2_64kda.mrc", "wedge_mask.mrc"):
        read = read_mrc(tmp_path / "a" / name)
        assert read.data.shape == (12, 12, 12)
        assert read.voxel_size == pytest.approx((25.0, 25.0, 25.0))
    mask = read_mrc(tmp_path / "a" / "wedge_mask.mrc").data
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask[6, 6, 6] == 1
    header = (tmp_path / "a" / item["image"]).read_bytes()[:1024]
    assert b"density is dark" in header


def test_without_clean_scenes(tmp_path: Path) -> None:
    content = json.loads(write(tmp_path / "a", clean=False).read_text())
    assert "clean" not in content["test"][0]
    assert not (tmp_path / "a" / "clean").exists()


def test_other_settings_foreign_folders_and_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(InputError, match=r"other settings \(num_per_class\)"):
        write(tmp_path / "a", num_per_class=6)
    with pytest.raises(InputError, match=r"other settings \(snr\)"):
        write(tmp_path / "a", settings_from({"snr": 1.0}, SETTINGS))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not empty and not a simulation \(thesis.tex\)"):
        write(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with (tmp_path / "c" / ".in_use").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing into it"):
            write(tmp_path / "c")
    with pytest.raises(InputError, match="too few"):
        write(tmp_path / "d", num_per_class=2)
    with pytest.raises(InputError, match="neither a file"):
        write(tmp_path / "e", structures=["ribosome"])
    assert not (tmp_path / "e").exists()
    with pytest.raises(InputError, match="/nope: no such folder of structures"):
        write(tmp_path / "e", structure_dir="/nope")
    with pytest.raises(InputError, match="three positive fractions"):
        write(tmp_path / "e", split=(0.6, 0.4, 0.0))
    with pytest.raises(InputError, match="no such file; give a file of tilt angles"):
        write(tmp_path / "e", settings_from({"tilts": "none.tlt"}, SETTINGS))
    with pytest.raises(InputError, match="device toaster: give cpu or cuda"):
        write(tmp_path / "e", device="toaster")
    assert not (tmp_path / "e").exists()
    (tmp_path / "f").touch()
    with pytest.raises(InputError, match="not a folder"):
        write(tmp_path / "f")


def tomograms(folder: Path, **changes: object) -> Path:
    settings = SimulationSettings(voxel_size=20, tilt_step_deg=10, snr=0.5)
    options: dict[str, object] = {"num_tomograms": 2, "size": (24, 48, 40), "num_particles": 12, "structures": TWO}
    return write_tomograms(folder, settings, **{**options, **changes})  # type: ignore[arg-type]


def test_tomograms_come_with_particles_and_segmentation(tmp_path: Path) -> None:
    star = tomograms(tmp_path / "t")
    content = starfile.read(star)
    particles = content["particles"]
    assert len(particles) == 24
    assert content["optics"]["rlnTomoTiltSeriesPixelSize"].tolist() == [20.0]
    table = pd.read_csv(tmp_path / "t" / "particles.csv")
    assert table["x"].tolist() == pytest.approx(particles["rlnCoordinateX"].tolist())
    summary = json.loads((tmp_path / "t" / "tomograms.json").read_text())
    for number, tomogram in enumerate(summary["tomograms"]):
        name = f"tomogram_{number:03d}"
        kinds = ("tomogram", "clean", "segmentation")
        volume, clean, labels = (read_mrc(tmp_path / "t" / tomogram[kind]) for kind in kinds)
        assert volume.data.shape == clean.data.shape == labels.data.shape == (24, 48, 40)
        assert volume.voxel_size == pytest.approx((20.0, 20.0, 20.0))
        # Where particles are said to be: bright in the scene, of their class in the segmentation, dark in the tomogram.
        own = table[table["tomogram"] == name]
        index = tuple(np.rint(own[axis].to_numpy()).astype(int) for axis in "zyx")
        solid = (own["class_name"] == "c2_64kda").to_numpy()
        at = labels.data[index]
        assert (at[solid] == 1).mean() > 0.5
        assert not (at[solid] == 2).any()
        assert volume.data[labels.data > 0].mean() < volume.data[labels.data == 0].mean() - 0.2
        assert clean.data[labels.data > 0].min() > 0.5
        assert (labels.data > 0).mean() == pytest.approx(tomogram["occupancy"], rel=0.3)
        assert tomogram["snr_measured"] == pytest.approx(0.5, rel=0.1)


def test_tomograms_are_repeatable_and_resumable(tmp_path: Path) -> None:
    tomograms(tmp_path / "a")

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tomograms(tmp_path / "b", progress=stop)
    assert not (tmp_path / "b" / "particles.star").exists()
    tomograms(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(InputError, match="three even edges"):
        tomograms(tmp_path / "c", size=(24, 48, 41))
    with pytest.raises(InputError, match="mode tilt_series only"):
        write_tomograms(tmp_path / "c", SimulationSettings(mode="xulab"))


def test_particle_lists_say_where_and_how_particles_are() -> None:
    """A structure put at the listed coordinates, turned by the listed angles, is the scene."""
    from scipy.spatial.transform import Rotation

    structures = load_structures(["c7_400kda"], voxel_size=20.0, resolution=40.0)
    quaternion = np.array([[[0.5, -0.5, 0.1, 0.7]]]) / np.linalg.norm([0.5, -0.5, 0.1, 0.7])
    shape = (20, 24, 28)
    packing = Packing(np.array([[0]]), quaternion, np.array([[[1.0, -2.0, 3.0]]]), np.zeros(0, np.float32))
    scene = SceneRenderer(structures).render(packing, shape)[0].numpy()
    [row] = _rows("t", packing, structures, shape)
    matrix = Rotation.from_euler("ZYZ", [row[f"rlnAngle{a}"] for a in ("Rot", "Tilt", "Psi")], degrees=True).inv()
    place = np.array([row[f"rlnCoordinate{a}"] for a in "XYZ"])
    points = matrix.apply(structures[0].inside[:, ::-1] / 20.0) + place
    inside = np.rint(points[:, ::-1]).astype(int)
    assert scene[tuple(inside.T)].min() > 0.3 * structures[0].level
    elsewhere = Rotation.identity().apply(structures[0].inside[:, ::-1] / 20.0) + place
    assert scene[tuple(np.rint(elsewhere[:, ::-1]).astype(int).T)].min() < 0.1 * structures[0].level


@pytest.mark.parametrize("name", ["paper", "offline", "shared_ten"])
def test_presets_are_valid(name: str) -> None:
    preset = read_preset(PRESETS / f"{name}.json")
    assert len({entry.source for entry in preset.structures}) == 10
    assert preset.num_per_class == 500
    settings = preset.settings
    assert (settings.box, settings.voxel_size, settings.neighbours) == (32, 10.0, 4)
    if name != "shared_ten":
        assert (settings.mode, settings.snr, settings.max_shift, settings.max_tilt_deg) == ("xulab", 0.03, 8.0, 60.0)
    assert "cryo-monai simulate" in json.loads((PRESETS / f"{name}.json").read_text())["_desc_"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a readable preset"),
        ("[1]", "a preset is a JSON object"),
        ('{"structures": "3gl1,1aew"}', "structures: give a list"),
        ('{"structures": null}', "structures: give a list"),
        ('{"structures": {"source": "3gl1"}}', "structures: give a list"),
        ('{"neighbours_from": []}', "neighbours_from: give a list"),
        ('{"structures": [3]}', "structures: 3 is neither a name nor an object"),
        ('{"structures": [{"source": "a.mrc", "contour": "high"}]}', "a.mrc: contour 'high': give a number"),
        ('{"structures": [{"source": "a.mrc", "mass_kda": -5}]}', "mass_kda -5: give a number above 0"),
        ('{"structures": [{"source": "a.mrc", "voxel_size": "7.84"}]}', "give a number above 0"),
        ('{"structures": [{"source": "a.mrc", "invert": "no"}]}', "invert 'no': give true or false"),
        ('{"structures": [{"source": "a.mrc", "name": 5}]}', "name 5: give a text"),
        ('{"num_per_class": 3.5}', "num_per_class 3.5: give a whole number"),
        ('{"num_per_class": "many"}', "num_per_class 'many': give a whole number"),
        ('{"SNR": 0.1}', "no setting SNR; did you mean snr?"),
        ('{"box": [32]}', "box [32]: give a whole number"),
        ('{"box": 33}', "box=33 (must be even, 8 or more)"),
        ('{"snr": null}', "snr None: give a number"),
    ],
)
def test_bad_presets_get_one_line_that_names_them(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_preset(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"nowhere.json: not a readable preset"):
        read_preset("nowhere.json")


def test_files_that_are_gone_are_made_again(tmp_path: Path) -> None:
    write(tmp_path / "a")
    before = contents(tmp_path / "a")
    (tmp_path / "a" / "c2_64kda" / "00003.mrc").unlink()
    (tmp_path / "a" / "clean" / "t_200kda" / "00017.mrc").unlink()
    (tmp_path / "a" / "wedge_mask.mrc").unlink()
    write(tmp_path / "a")
    assert contents(tmp_path / "a") == before


def test_a_tomogram_too_full_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found room"):
        tomograms(tmp_path / "t", num_particles=500)
    assert not (tmp_path / "t").exists()
    tomograms(tmp_path / "t", num_tomograms=1)
    assert read_mrc(tmp_path / "t" / "wedge_mask.mrc").data.shape == (24, 48, 40)


def test_the_ten_shared_models_simulate(shared_data: Path, tmp_path: Path) -> None:
    preset = read_preset(PRESETS / "shared_ten.json")
    target = write_dataset(
        tmp_path / "a",
        preset.settings,
        num_per_class=3,
        structures=preset.structures,
        structure_dir=shared_data / "pdb",
    )
    content = json.loads(target.read_text())
    assert len(content["class_names"]) == 10
    assert {s["name"]: s["chains"] for s in content["structures"]}["1aew"] == 24
