"""A run's explanations: overlays lie on their volumes, numbers add up, and what is there is not computed again."""

import csv
import json
import re
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.explanations import explaining, volume_explanations
from cryo_monai.explanations.explained_runs import choose_volumes, network_of, starting_network, volumes_of
from cryo_monai.explanations.explaining import explain_run
from cryo_monai.explanations.faithfulness import hiding_curves, random_map
from cryo_monai.explanations.maps import explain_volumes
from cryo_monai.explanations.overlays import overlay_suffix, write_overlay
from cryo_monai.explanations.pictures import explanation_panel
from cryo_monai.explanations.records import file_names
from cryo_monai.mrc import read_mrc, write_mrc
from cryo_monai.mrc_header import read_mrc_header
from cryo_monai.runs import train_bundle

IDS = {"device": "cpu"}
SHAPE = (10, 12, 14)
OPTIONS = {"layer": "layer1", "ids": IDS}


@pytest.fixture(scope="module")
def run_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    overlay = folder.parent / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": 3, "max_epochs": 1, "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, folder, overlays=[overlay], ids=ids)
    return folder


@pytest.fixture(scope="module")
def explained(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "out"
    table = explain_run(run_dir, "test", folder, limit=3, against_start=True, **OPTIONS)
    assert table == folder / "explanations.csv"
    return folder


@pytest.fixture
def volume_file(tmp_path: Path) -> Path:
    """Not a cube, voxels not cubes, with an origin and a start."""
    data = np.random.default_rng(0).normal(size=SHAPE).astype("f4")
    path = tmp_path / "box.mrc"
    write_mrc(path, data, voxel_size=(3.0, 4.0, 5.0), origin=(1.0, 2.0, 3.0))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<3i", raw, 16, -7, 8, 9)
    path.write_bytes(raw)
    return path


def text_and_numbers(file: Path) -> tuple[str, list[float]]:
    """A file's text with its fractions taken out, and these."""
    fraction, text = r"-?\d+\.\d+(?:e[-+]\d+)?|-?\d+e[-+]\d+", file.read_text()
    return re.sub(fraction, "#", text), [float(number) for number in re.findall(fraction, text)]


def assert_same(made: Path, expected: Path) -> None:
    """Fail when folders differ, naming the file; a map that was computed again may differ in its last digits."""
    for file in sorted(file.relative_to(expected) for file in expected.rglob("*") if file.is_file()):
        if file.suffix == ".mrc":
            assert np.allclose(read_mrc(made / file).data, read_mrc(expected / file).data, atol=1e-6), file
        elif file.suffix == ".png":
            assert (made / file).is_file(), file
        else:
            (text, numbers), (expected_text, expected_numbers) = (
                text_and_numbers(folder / file) for folder in (made, expected)
            )
            assert text == expected_text, file
            assert numbers == pytest.approx(expected_numbers, abs=1e-5), file


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "explanations.csv").read_text().splitlines()))


def test_test_volumes_are_explained_evenly_over_classes_with_every_file(explained: Path) -> None:
    rows = rows_of(explained)
    assert Counter(row["true_class"] for row in rows) == {"c2_64kda": 1, "c7_400kda": 1, "o_440kda": 1}
    for row in rows:
        found, volume = read_mrc(explained / row["map"]), read_mrc(row["path"])
        assert found.data.shape == volume.data.shape
        assert found.voxel_size == pytest.approx(volume.voxel_size)
        assert found.data.min() >= 0
        assert (explained / row["panel"]).read_bytes().startswith(b"\x89PNG")
        assert row["explained_class"] == row["predicted_class"]
        assert 0 < float(row["mask_fraction"]) < 0.5
        assert 0 <= float(row["probability"]) <= 1
    assert not (explained / ".in_use").exists()


def test_written_maps_are_those_of_the_trained_network_and_of_the_one_before_training(
    explained: Path, run_dir: Path
) -> None:
    network = network_of(run_dir, ids=IDS)
    before = starting_network(run_dir, network)
    assert before.class_names == network.class_names
    for row in rows_of(explained):
        volume = torch.from_numpy(read_mrc(row["path"]).data)[None, None]
        label = network.class_names.index(row["explained_class"])
        for one, name in ((network, "map"), (before, "compared_map")):
            maps, _, _ = explain_volumes(one, volume, layer="layer1", classes=[label])
            assert np.allclose(read_mrc(explained / row[name]).data, maps[0].numpy(), atol=1e-7)


def test_faithfulness_numbers_are_the_means_of_the_table(explained: Path) -> None:
    numbers = json.loads((explained / "faithfulness.json").read_text())
    rows = rows_of(explained)
    assert list(numbers["networks"]) == ["run", "compared"]
    for network, prefix in (("run", ""), ("compared", "compared_")):
        orders = numbers["networks"][network]["orders"]
        assert list(orders) == ["map", "random_order", "centred_ball"]
        for key in ("advantage", "deletion", "insertion", "mass_inside"):
            values = [float(row[prefix + key]) for row in rows if row[prefix + key]]
            if not values:  # maps that are zero everywhere have no mass
                assert key == "mass_inside"
                assert orders["map"][key] is None
                continue
            assert orders["map"][key]["mean"] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6)
            assert orders["map"][key]["count"] == len(values)
        ball = np.mean([float(row[prefix + "ball_advantage"]) for row in rows])
        assert orders["centred_ball"]["advantage"]["mean"] == pytest.approx(ball, rel=1e-4, abs=1e-6)
        curve = orders["map"]["curves"]["deletion"]
        assert len(curve["mean"]) == len(numbers["fractions"]) == 21
        assert all(
            low <= mean + 1e-6 <= high + 2e-6
            for low, mean, high in zip(*(curve[k] for k in ("low", "mean", "high")), strict=True)
        )
    assert numbers["mask_fraction"]["mean"] == pytest.approx(np.mean([float(row["mask_fraction"]) for row in rows]))
    assert numbers["volumes_there_are"] == 6
    assert numbers["choice"] == "at random, evenly over classes"
    assert (explained / "faithfulness.svg").read_text().startswith("<svg")


def test_the_advantage_of_a_volume_is_over_the_networks_own_random_blobs(explained: Path, run_dir: Path) -> None:
    entries = [json.loads(line) for line in (explained / "progress" / "volumes.jsonl").read_text().splitlines()]
    network = network_of(run_dir, ids=IDS)
    networks = {"run": network, "compared": starting_network(run_dir, network)}
    controls = []
    for entry, row in zip(entries, rows_of(explained), strict=True):
        data = read_mrc(entry["path"]).data
        label = network.class_names.index(entry["explained_class"])
        blobs = random_map(data.shape, seed=zlib.crc32(data.tobytes()))
        controls.append(blobs)
        for key, prefix in (("run", ""), ("compared", "compared_")):
            orders = entry["networks"][key]["orders"]
            gains = {o: found["insertion"] - found["deletion"] for o, found in orders.items()}
            volume = torch.from_numpy(data)[None, None]
            chance = hiding_curves(networks[key], volume, blobs[None], [label]).either_way()
            assert orders["random_order"]["deletion_curve"] == pytest.approx(chance.deletion[0], abs=1e-6)
            assert float(row[prefix + "advantage"]) == pytest.approx(gains["map"] - gains["random_order"], abs=1e-5)
    assert not torch.equal(controls[0], controls[1])


def test_test_is_the_test_split_also_where_a_folder_is_called_so(
    run_dir: Path, volume_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test").mkdir()
    shutil.copy(volume_file, tmp_path / "test" / "mine.mrc")
    monkeypatch.chdir(tmp_path)
    items, _ = volumes_of(run_dir, "test", ids=IDS)
    assert len(items) == 6
    assert not any("mine" in str(item["path"]) for item in items)
    for place in ("./test", Path("test")):
        (item,), _ = volumes_of(run_dir, place, ids=IDS)
        assert str(item["path"]).endswith("mine.mrc")


def test_what_is_there_is_not_computed_again_and_what_is_lost_is(
    explained: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(explained, folder)
    lost = sorted((folder / "maps").iterdir())[1]
    lost.unlink()
    calls: list[int] = []
    real = volume_explanations.explain_volumes
    monkeypatch.setattr(volume_explanations, "explain_volumes", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    done: list[tuple[int, int]] = []
    explain_run(run_dir, "test", folder, limit=3, against_start=True, progress=lambda *n: done.append(n), **OPTIONS)
    assert len(calls) == 2  # the run's map and the compared one, of one volume
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert_same(folder, explained)


def test_an_interrupted_call_loses_one_volume_at_most(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = volume_explanations.explain_volumes

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(volume_explanations, "explain_volumes", interrupted)
    options = {"limit": 2, "faithfulness": False, **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        explain_run(run_dir, "test", tmp_path / "a", **options)
    explain_run(run_dir, "test", tmp_path / "a", **options)
    assert len(calls) == 2 + 1
    explain_run(run_dir, "test", tmp_path / "b", **options)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_another_request_is_refused_in_the_same_folder(explained: Path, run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"holds another explanation with other settings \(layer\)"):
        explain_run(run_dir, "test", explained, limit=3, against_start=True, layer="layer2", ids=IDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "method: 'gradcam' is not one of"),
        ({"layer": "layer9"}, "'layer9' is no module of resnet18"),
        ({"class_name": "ribosome"}, "class_name: 'ribosome' is not one of c2_64kda"),
        ({"compare": "nowhere"}, "nowhere: not a run folder"),
        ({"compare": "nowhere", "against_start": True}, "not both"),
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    run_dir: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    given = {"layer": "layer1", "ids": IDS, **options}
    with pytest.raises(InputError, match=message):
        explain_run(run_dir, given.pop("data", "test"), tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_negative_limit_is_told_before_a_network_is_loaded(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "network_of", lambda *arguments, **options: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"^limit: -3 must be 0 or more; 0 is for all volumes$"):
        explain_run(run_dir, "test", limit=-3, **OPTIONS)


def test_overlays_of_mrc_files_keep_cell_origin_and_start(run_dir: Path, volume_file: Path, tmp_path: Path) -> None:
    explain_run(run_dir, volume_file, tmp_path / "out", class_name="o_440kda", faithfulness=False, **OPTIONS)
    (row,) = rows_of(tmp_path / "out")
    assert row["explained_class"] == "o_440kda"
    assert row["mask_fraction"] == row["deletion"] == row["true_class"] == ""
    with mrcfile.open(tmp_path / "out" / row["map"]) as found, mrcfile.open(volume_file) as volume:
        assert found.data.shape == SHAPE
        assert found.data.dtype == np.float32
        for field in ("cella", "origin", "nxstart", "nystart", "nzstart", "mx", "my", "mz"):
            assert found.header[field] == volume.header[field], field
    assert mrcfile.validate(tmp_path / "out" / row["map"])


def test_overlays_of_permuted_files_lie_where_their_volumes_do(volume_file: Path, tmp_path: Path) -> None:
    """Columns along z, rows along x, sections along y; no ORIGIN, so that the start tells the place."""
    raw = bytearray(volume_file.read_bytes())
    data = read_mrc(volume_file).data
    struct.pack_into("<3i", raw, 0, SHAPE[0], SHAPE[2], SHAPE[1])
    struct.pack_into("<3i", raw, 64, 3, 1, 2)
    struct.pack_into("<3f", raw, 196, 0, 0, 0)
    raw[1024:] = data.transpose(1, 2, 0).tobytes()
    volume_file.write_bytes(raw)
    assert np.array_equal(read_mrc(volume_file).data, data)
    write_overlay(tmp_path / "map.mrc", data, volume_file)
    wanted, found = read_mrc_header(volume_file), read_mrc_header(tmp_path / "map.mrc")
    assert np.array_equal(read_mrc(tmp_path / "map.mrc").data, data)
    assert found.origin == pytest.approx(wanted.origin)
    assert found.voxel_size == pytest.approx(wanted.voxel_size)


def test_overlays_of_nifti_files_keep_the_affine_and_arrays_get_what_is_known(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(data.T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "v.nii.gz")
    assert overlay_suffix(tmp_path / "v.nii.gz", 3.0) == ".nii.gz"
    write_overlay(tmp_path / "map.nii.gz", data, tmp_path / "v.nii.gz")
    found = nibabel.load(tmp_path / "map.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj).T, data)
    assert np.allclose(found.affine, affine)
    assert found.header["sform_code"] == image.header["sform_code"]
    assert found.header.get_xyzt_units()[0] == "mm"
    assert (overlay_suffix(data), overlay_suffix(data, 3.0)) == (".nii.gz", ".mrc")
    write_overlay(tmp_path / "array.nii.gz", data, data)
    assert np.allclose(nibabel.load(tmp_path / "array.nii.gz").affine, np.eye(4))
    write_overlay(tmp_path / "array.mrc", data, data, voxel_size=3.0)
    assert read_mrc(tmp_path / "array.mrc").voxel_size == pytest.approx((3.0, 3.0, 3.0))


def test_a_choice_is_even_over_classes_and_grows_without_changing() -> None:
    names = ["a"] * 20 + ["b"] * 3 + ["c"] * 10
    chosen = choose_volumes(names, 9)
    assert Counter(names[row] for row in chosen) == {"a": 3, "b": 3, "c": 3}
    assert Counter(names[row] for row in choose_volumes(names, 12))["b"] == 3
    assert set(chosen) < set(choose_volumes(names, 12))
    assert choose_volumes(names, None) == list(range(33))
    assert choose_volumes(names, 9, seed=1) != chosen


def test_file_names_tell_volumes_apart_and_are_safe() -> None:
    names = file_names(["/d/a/00001.mrc", "/d/b/00001.mrc", "0003@s t.mrcs", "organ.npz:3", "x/v.nii.gz"])
    assert names == ["0000_a_00001", "0001_b_00001", "0002_0003-s-t", "0003_organ.npz-3", "0004_x_v"]


def test_panels_show_a_column_for_each_map_and_say_when_one_is_empty() -> None:
    volume = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    figure = explanation_panel(volume, {"run": volume, "start": np.zeros(SHAPE, np.float32)}, mask=volume > 0.9)
    shown = [axis for axis in figure.axes if axis.get_images()]
    assert [len(axis.get_images()) for axis in shown] == [1, 2, 2] * 3
    assert shown[0].get_images()[0].get_array().shape == SHAPE[1:]
    assert "nothing speaks" in shown[2].get_title()


def test_the_verb_says_whether_maps_beat_their_controls(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--layer", "layer1", "--limit", "3", "--device", "cpu", "--output_dir", str(tmp_path / "maps")]
    assert main(["explain", str(run_dir), *flags]) == 0
    numbers = json.loads((tmp_path / "maps" / "faithfulness.json").read_text())
    mean = numbers["networks"]["run"]["orders"]["map"]["advantage"]["mean"]
    said = capsys.readouterr().out
    assert f"advantage over a random order: maps {mean:.2f}" in said
    assert "a ball in the middle" in said
