import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MEDMNIST, SUBTOMOGRAMS, TINY, TINY_INFERENCE

from cryo_monai import embeddings
from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier
from cryo_monai.run_inference import embed_with
from cryo_monai.runs import train_bundle
from cryo_monai.volumes import read_volume

IDS = {**TINY_INFERENCE, "device": "cpu", "precision": "float32"}


def embed(data: Path, output: Path, **options: object) -> Path:
    ids = {**IDS, **options.pop("ids", {})}  # type: ignore[dict-item]
    return embed_with(options.pop("source", SUBTOMOGRAMS), data, output, ids=ids, **options)  # type: ignore[arg-type]


def test_features_labels_and_paths_of_a_datalist(dataset_dir: Path, tmp_path: Path) -> None:
    written = embed(dataset_dir / "dataset.json", tmp_path / "e.npz", seed=5)
    datalist = json.loads((dataset_dir / "dataset.json").read_text())
    with np.load(written, allow_pickle=False) as arrays:
        content = dict(arrays)
    items = [(item, split) for split in ("training", "validation", "test") for item in datalist[split]]
    assert content["labels"].tolist() == [item["label"] for item, _ in items]
    assert content["splits"].tolist() == [split for _, split in items]
    assert content["class_names"].tolist() == [datalist["class_names"][item["label"]] for item, _ in items]
    torch.manual_seed(5)
    network = VideoClassifier(10, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")}).eval()  # type: ignore[arg-type]
    network.precision = "float32"
    for row in (0, 17):
        volume = torch.as_tensor(read_volume(content["paths"][row]))[None, None]
        with torch.no_grad():
            expected = network.extract_features(network.make_clips(volume))[0].numpy()
        assert np.allclose(content["features"][row], expected, atol=1e-5)
    rows = list(csv.DictReader(written.with_suffix(".csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == content["paths"].tolist()
    assert float(rows[3]["f2"]) == pytest.approx(content["features"][3, 2], rel=1e-4)
    assert not (tmp_path / "e.npz.parts").exists()


def test_an_interrupted_call_goes_on_where_it_stopped(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset_dir / "dataset.json"
    whole = embed(data, tmp_path / "whole.npz")
    calls = []
    extract = VideoClassifier.extract_features

    def interrupted(self: VideoClassifier, clips: torch.Tensor) -> torch.Tensor:
        calls.append(len(clips))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extract(self, clips)

    monkeypatch.setattr(VideoClassifier, "extract_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(data, tmp_path / "cut.npz")
    assert not (tmp_path / "cut.npz").exists()
    seen: list[tuple[int, int]] = []
    cut = embed(data, tmp_path / "cut.npz", progress=lambda done, total: seen.append((done, total)))
    assert sum(calls[3:]) == 30 - 16  # two batches of 8 were kept
    assert seen == [(24, 30), (30, 30)]
    with np.load(whole) as first, np.load(cut) as second:
        for name in first:
            assert np.array_equal(first[name], second[name]), name


def test_parts_of_other_weights_are_not_taken(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset_dir / "dataset.json"
    monkeypatch.setattr(embeddings, "_write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(data, tmp_path / "e.npz", seed=0)
    monkeypatch.undo()
    second = embed(data, tmp_path / "e.npz", seed=1)
    expected = embed(data, tmp_path / "clean.npz", seed=1)
    with np.load(second) as one, np.load(expected) as other:
        assert np.array_equal(one["features"], other["features"])


def test_a_run_embeds_with_its_own_network_and_best_weights(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {
        **TINY,
        "dataset_dir": str(dataset_dir),
        "num_classes": 3,
        "device": "cpu",
        "band_pass": '{"sigma": [0.5, 2]}',
    }
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", ids=ids)
    written = embed_with(tmp_path / "run", dataset_dir / "dataset.json", tmp_path / "e.npz")
    weights = torch.load(tmp_path / "run/models/model.pt", weights_only=True)
    network = VideoClassifier(
        3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")}, band_pass={"sigma": [0.5, 2]}  # type: ignore[arg-type]
    )  # fmt: skip
    network.load_state_dict(weights)
    with np.load(written) as arrays, torch.no_grad():
        volume = torch.as_tensor(read_volume(str(arrays["paths"][0])))[None, None]
        expected = network.eval().extract_features(network.make_clips(volume))[0].numpy()
        assert np.allclose(arrays["features"][0], expected, atol=0.05 * abs(expected).max())
    with pytest.raises(InputError, match="a run has weights and overlays of its own"):
        embed_with(tmp_path / "run", dataset_dir, tmp_path / "e.npz", weights="video")


def test_folders_name_the_classes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "data" / name).mkdir(parents=True)
        np.save(tmp_path / "data" / name / "v.npy", np.random.default_rng(0).random((10, 12, 14), dtype=np.float32))
    with np.load(embed(tmp_path / "data", tmp_path / "e.npz")) as arrays:
        assert arrays["class_names"].tolist() == ["a", "b"]
        assert arrays["labels"].tolist() == [0, 1]
        assert np.array_equal(arrays["features"][0], arrays["features"][1])  # the same volume twice


def test_medmnist_files_are_embedded_with_official_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 255, (3, 28, 28, 28), np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": rng.integers(0, 2, (3, 1)) for part in ("train", "val", "test")}
    np.savez(tmp_path / "adrenalmnist3d.npz", **arrays)
    with np.load(embed(tmp_path / "adrenalmnist3d.npz", tmp_path / "e.npz", source=MEDMNIST)) as content:
        assert content["splits"].tolist() == ["training"] * 3 + ["validation"] * 3 + ["test"] * 3
        assert set(content["class_names"]) <= {"normal", "hyperplasia"}
        assert content["paths"][8] == "adrenalmnist3d.npz:test/2"


def test_the_command_line_and_its_mistakes(
    dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f"--{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in IDS.items()]
    command = ["embed", str(SUBTOMOGRAMS), "--data", str(dataset_dir), "--output", str(tmp_path / "e.npz"), *ids]
    assert main(command) == 0
    assert (tmp_path / "e.csv").is_file()
    with np.load(tmp_path / "e.npz") as arrays:  # the folder has a dataset.json
        assert set(arrays["splits"]) == {"training", "validation", "test"}
    capsys.readouterr()
    assert main(command) == 1
    assert "e.npz: exists" in capsys.readouterr().err
    (tmp_path / "e.npz").unlink()
    assert main([*command[:5], str(tmp_path / "e.txt"), *ids]) == 1
    assert "ends in .npz" in capsys.readouterr().err
    assert main([*command, "--weights", "nothing.pth"]) == 1
    assert "nothing.pth: no such file of weights" in capsys.readouterr().err
    assert main([*command, "--clip_sise", "[8,8,8]"]) == 1
    assert "did you mean clip_size" in capsys.readouterr().err
