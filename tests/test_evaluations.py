"""What training, evaluation and inference leave: numbers that agree, probabilities at one temperature."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.calibration import at_temperature, calibration_metrics
from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.datasets import items_fingerprint
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier
from cryo_monai.run_evaluation import evaluate_run, evaluation_of, open_split
from cryo_monai.run_inference import classify_with_run, starting_features
from cryo_monai.run_warnings import audit_run, run_warnings
from cryo_monai.runs import find_data_again, train_bundle


@pytest.fixture(scope="module")
def run_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    overlay = folder.with_name("tiny.json")
    overlay.write_text(json.dumps(TINY))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, folder, overlays=[overlay], ids=ids)
    evaluate_run(folder)
    return folder


def arrays_of(run_dir: Path) -> dict[str, np.ndarray]:
    with np.load(run_dir / "test_features.npz") as arrays:
        return dict(arrays)


def test_the_best_checkpoint_has_the_temperature_of_its_validation(run_dir: Path) -> None:
    rows = json.loads((run_dir / "metrics.json").read_text())
    best = rows["history"][rows["best_epoch"] - 1]
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")})
    load_checkpoint(network, run_dir / "models" / "model.pt")
    assert network.temperature == best["val_temperature"] != 1.0
    numbers = json.loads((run_dir / "evaluation.json").read_text())
    assert numbers["temperature"] == network.temperature
    load_checkpoint(network, run_dir / "models" / "last.pt")
    assert network.temperature == 1.0  # training goes on without


def test_the_temperature_divides_the_scores(run_dir: Path) -> None:
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")}).eval()
    volumes = torch.randn(2, 1, 10, 12, 14, generator=torch.Generator().manual_seed(0))
    scores = network(volumes)
    network.temperature = 2.5
    torch.testing.assert_close(network(volumes), scores / 2.5)


def test_an_older_checkpoint_has_temperature_one(run_dir: Path) -> None:
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")})
    description = network.description()
    del description["temperature"]
    state = torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)
    network.temperature = 3.0
    network.set_extra_state(state)
    assert network.temperature == 1.0


def test_evaluation_and_inference_give_the_same_probabilities(run_dir: Path, tmp_path: Path) -> None:
    arrays = arrays_of(run_dir)
    items, _ = open_split(run_dir)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"image": item["path"]} for item in items]))
    written = classify_with_run(run_dir, listed, tmp_path / "classes.csv", ids={"device": "cpu"})
    rows = list(csv.DictReader(written.read_text().splitlines()))
    found = [[float(row[f"p_{name}"]) for name in arrays["class_names"]] for row in rows]
    np.testing.assert_allclose(found, arrays["probabilities"], atol=2e-6)


def test_calibration_before_is_that_of_temperature_one(run_dir: Path) -> None:
    arrays, numbers = arrays_of(run_dir), json.loads((run_dir / "evaluation.json").read_text())
    before = at_temperature(arrays["probabilities"], 1 / numbers["temperature"])
    assert numbers["calibration"]["before"] == calibration_metrics(before, arrays["labels"])
    assert numbers["calibration"]["after"] == calibration_metrics(arrays["probabilities"], arrays["labels"])


def test_features_are_those_that_the_head_saw(run_dir: Path) -> None:
    arrays = arrays_of(run_dir)
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")})
    load_checkpoint(network, run_dir / "models" / "model.pt").eval()
    scores = network.head(torch.from_numpy(arrays["features"])) / network.temperature
    np.testing.assert_allclose(scores.softmax(-1).detach().numpy(), arrays["probabilities"], atol=1e-5)


def test_the_open_split_is_in_the_order_of_the_features(run_dir: Path) -> None:
    items, dataset = open_split(run_dir)
    arrays = arrays_of(run_dir)
    assert [item["path"] for item in items] == arrays["paths"].tolist()
    assert [item["class_name"] for item in items] == arrays["class_names"][arrays["labels"]].tolist()
    assert dataset[1]["image"].shape == (1, 16, 16, 16)


def test_the_test_split_is_scored_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cryo_monai.run_evaluation as run_evaluation

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(run_evaluation, "evaluate_run", refuse)
    assert evaluation_of(run_dir)["num_volumes"] == 6
    numbers = json.loads((run_dir / "evaluation.json").read_text())
    file = run_dir / "evaluation.json"
    kept = file.read_text()
    for changed in ({"checkpoint": {"sha256": "of another"}}, {"features_sha256": "torn"}, {"data": "relabelled"}):
        file.write_text(json.dumps(numbers | changed))
        with pytest.raises(AssertionError, match="scored again"):
            evaluation_of(run_dir)
    file.write_text(kept)


def test_the_digest_of_the_data_knows_names_labels_and_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.zeros((2, 3, 4)))
    item = {"image": str(file), "path": str(file), "label": 0}
    array = {"image": np.arange(24).reshape(2, 3, 4), "path": "x.npz:test/0", "label": 0}
    seen = {items_fingerprint([item, array])}
    for changed in ([item | {"label": 1}, array], [item, array | {"image": array["image"] + 1}], [item]):
        seen.add(items_fingerprint(changed))
    np.save(file, np.zeros((2, 3, 5)))
    seen.add(items_fingerprint([item, array]))
    assert len(seen) == 5


def test_numbers_of_other_data_do_not_become_the_runs(run_dir: Path, dataset_dir: Path, tmp_path: Path) -> None:
    before = {name: (run_dir / name).read_bytes() for name in ("evaluation.json", "test_features.npz")}
    with pytest.raises(InputError, match="--dataset_dir: scores something else than the run did; give --output_dir"):
        evaluate_run(run_dir, ids={"dataset_dir": str(dataset_dir)})
    numbers = evaluate_run(run_dir, tmp_path / "axes", ids={"average_axes": "True", "device": "cpu"})
    assert numbers["calibration"]["before"] is None
    assert numbers["averaged_axes"]
    assert arrays_of(tmp_path / "axes")["features"].shape == (6, 32)
    assert {name: (run_dir / name).read_bytes() for name in before} == before


def test_starting_features_are_those_of_the_network_before_training(run_dir: Path) -> None:
    features = starting_features(run_dir)
    assert features.shape == arrays_of(run_dir)["features"].shape
    torch.manual_seed(0)
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options", "clip_size")}).eval()
    _, dataset = open_split(run_dir)
    with torch.no_grad():
        expected = network.extract_features(network.make_clips(dataset[2]["image"][None]))
    np.testing.assert_allclose(features[2], expected[0], rtol=1e-4, atol=1e-5)
    written = list(run_dir.glob("starting_features_*"))
    assert len(written) == 1
    np.testing.assert_array_equal(starting_features(run_dir), features)


def test_sound_data_give_no_warning(run_dir: Path) -> None:
    assert run_warnings(run_dir, audit_run(run_dir)) == []


def test_warnings_name_leakage_missing_classes_and_changes(run_dir: Path) -> None:
    audit = audit_run(run_dir)
    counts = {**audit.counts, "validation": {**audit.counts["validation"], "c7_400kda": 0}}
    audit.counts.update(counts)
    audit.leakage.append("2 of 4 sources have volumes in more than one split")
    record = json.loads((run_dir / "run.json").read_text())
    kept = (run_dir / "run.json").read_text()
    record["resumed"] = [{"after_epoch": 1, "changed": {"max_epochs": [2, 3]}}, {"after_epoch": 2, "changed": {}}]
    (run_dir / "run.json").write_text(json.dumps(record))
    lines = run_warnings(run_dir, audit)
    (run_dir / "run.json").write_text(kept)
    assert lines == [
        "audit of the data: 2 of 4 sources have volumes in more than one split",
        "no volumes of c7_400kda in the validation split",
        "resumed after epoch 1 with a changed configuration: max_epochs 2 -> 3",
    ]


def test_an_unfinished_training_and_a_changed_bundle_are_named(run_dir: Path) -> None:
    file = run_dir / "configuration.json"
    kept = file.read_text()
    file.write_text(json.dumps({**json.loads(kept), "max_epochs": 30}))
    lines = run_warnings(run_dir)
    file.write_text(kept)
    assert lines == [
        "training stopped after epoch 2 of 30",
        "the bundle or its overlays have changed since training: max_epochs 30 -> 2",
    ]


def test_resuming_notes_what_was_changed(dataset_dir: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "max_epochs": 1}))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", overlays=[overlay], ids=ids)
    more = {"max_epochs": "2", "train#random_clips#crop_prob": "0"}
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", resume=True, ids=more)
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    changed = {"max_epochs": [1, 2], "train#random_clips#crop_prob": [0.5, 0]}
    kept = [{key: value for key, value in entry.items() if key != "command"} for entry in record["resumed"]]
    assert kept == [{"after_epoch": 1, "changed": changed}, {"after_epoch": 2, "changed": {}}]
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["max_epochs"] == 2


def test_data_that_were_moved_are_found_again(run_dir: Path, dataset_dir: Path, tmp_path: Path) -> None:
    kept = (run_dir / "run.json").read_text()
    moved = shutil.copytree(dataset_dir, tmp_path / "moved")
    find_data_again(run_dir, moved)
    items, _ = open_split(run_dir)
    warnings = run_warnings(run_dir, audit_run(run_dir))
    (run_dir / "run.json").write_text(kept)
    assert warnings == []  # the recipe is the same
    assert Path(items[0]["path"]).is_relative_to(moved)
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        find_data_again(run_dir, "nowhere")


def test_data_that_are_gone_are_named(run_dir: Path, dataset_dir: Path) -> None:
    moved = dataset_dir.with_name("moved")
    dataset_dir.rename(moved)
    try:
        with pytest.raises(InputError, match=str(dataset_dir)):
            open_split(run_dir)
        with pytest.raises(InputError, match=str(dataset_dir)):
            audit_run(run_dir)
    finally:
        moved.rename(dataset_dir)
