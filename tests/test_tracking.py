"""MLflow: losses, metrics, parameters and configuration in SQLite."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai import tracking
from cryo_monai.errors import InputError
from cryo_monai.run_evaluation import evaluate_run
from cryo_monai.runs import train_bundle
from cryo_monai.tracking import plain_values

# The library's own deprecations are none of ours.
pytestmark = pytest.mark.filterwarnings("default")


def tracked(file: Path) -> Any:
    """The one run of a database."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiments = [experiment for experiment in client.search_experiments() if experiment.name != "Default"]
    (run,) = client.search_runs([experiments[0].experiment_id])
    return client, experiments[0], run


def test_a_run_is_tracked_and_continued_as_one(dataset_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", overlays=[overlay], tracking="mlflow", ids=ids)
    client, experiment, run = tracked(tmp_path / "run" / "mlruns.db")
    assert experiment.name == "subtomogram_classification"
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.01"
    assert run.data.params["backbone_options.widths"] == "[4, 8, 16, 32]"
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    values = [metric.value for metric in client.get_metric_history(run.info.run_id, "val_accuracy")]
    assert values == pytest.approx([row["val_accuracy"] for row in history], abs=1e-6)
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) >= len(history)
    assert run.data.params["optimizer"] == "sgd"
    numbers = evaluate_run(tmp_path / "run")
    _, _, run = tracked(tmp_path / "run" / "mlruns.db")
    assert run.data.metrics["test_accuracy"] == numbers["accuracy"]
    artifacts = list((tmp_path / "run" / "mlruns").rglob("*.json"))
    assert [file.name for file in artifacts] == [tracking.TRACKED]


def test_training_is_the_same_with_tracking(dataset_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "max_epochs": 1}))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu"}
    rows = []
    for name in ("", "mlflow"):
        train_bundle(SUBTOMOGRAMS, tmp_path / f"run{name}", overlays=[overlay], tracking=name, ids=ids)
        (row,) = json.loads((tmp_path / f"run{name}" / "metrics.json").read_text())["history"]
        rows.append({key: value for key, value in row.items() if key != "seconds"})
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_monais_own_flag_works(dataset_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "max_epochs": 1}))
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--tracking", "mlflow"]
    command += ["--config_file", f"['{SUBTOMOGRAMS}/configs/train.json','{overlay}']", "--num_classes", "3"]
    command += ["--dataset_dir", str(dataset_dir), "--output_dir", str(tmp_path / "out")]
    subprocess.run([*command, "--ckpt_dir", str(tmp_path / "models")], check=True, cwd=tmp_path)
    _, _, run = tracked(tmp_path / "out" / "mlruns.db")
    assert "val_accuracy" in run.data.metrics


def test_only_plain_values_are_parameters() -> None:
    configuration = {
        "imports": ["$import torch"],
        "lr": 0.1,
        "weights": None,
        "device": "$torch.device('cpu')",
        "fine_tuning": {"l2_sp": 0.0, "freeze": {}},
        "network_def": {"_target_": "cryo_monai.VideoClassifier", "num_classes": "@num_classes", "width": 3},
        "train": {"trainer": {"_target_": "SupervisedTrainer"}, "deep": 1},
        "_meta_": {"version": "1"},
        "clip_size": [16, 16, 16],
    }
    expected = {"lr": 0.1, "weights": None, "fine_tuning.l2_sp": 0.0, "clip_size": [16, 16, 16]}
    assert plain_values(configuration) == expected


def test_unknown_and_missing_trackers_are_named(dataset_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="'wandb' is not one of mlflow"):
        train_bundle(SUBTOMOGRAMS, tmp_path / "run", tracking="wandb")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cryo-monai\[mlflow\]"):
        train_bundle(SUBTOMOGRAMS, tmp_path / "run", tracking="mlflow")
    assert not (tmp_path / "run").exists()
