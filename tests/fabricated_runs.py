"""Run folders made without training: true to the format, and small."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import nn

from cryo_monai.calibration import at_temperature
from cryo_monai.datalists import load_datalist
from cryo_monai.evaluations import EvaluationReport
from cryo_monai.mrc import write_mrc
from cryo_monai.sweeps.outcomes import Cell, Outcome

BUNDLE = Path(__file__).parents[1] / "bundles" / "subtomogram_classification"
SPLITS = ("training", "validation", "test")


class FakeNetwork(nn.Module):
    """Has what an evaluation asks of a network."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.temperature = temperature


def fabricate_data(
    folder: Path,
    class_names: Sequence[str],
    *,
    per_class: int = 6,
    shape: tuple[int, int, int] = (10, 12, 14),
    sources: bool = True,
    seed: int = 0,
) -> Path:
    """Write a datalist with the same number of volumes of each class in each split; half as many to validate."""
    rng = np.random.default_rng(seed)
    (folder / "volumes").mkdir(parents=True)
    lists: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label in range(len(class_names)):
            for number in range(per_class if split != "validation" else max(1, per_class // 2)):
                name = f"volumes/{split}_{label}_{number:04d}.mrc"
                volume = rng.normal(size=shape).astype(np.float32)
                z, y, x = (n // 2 for n in shape)
                volume[z - 2 : z + 2, y - 2 : y + 2, x - 2 : x + 2] -= 3 + label % 3
                write_mrc(folder / name, volume, voxel_size=10.0)
                item = {"image": name, "label": label}
                lists[split].append({**item, "source": f"tomogram_{split}_{number % 3}"} if sources else item)
    text = json.dumps({"class_names": list(class_names), **lists})
    (folder / "dataset.json").write_text(text)
    return folder


def fabricate_run(
    folder: Path,
    data: Path,
    *,
    skill: float = 2.0,
    seed: int = 0,
    epochs: int = 5,
    resumed: Sequence[dict[str, Any]] = (),
    initialisation: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder on fabricated data as training and evaluation leave it; `skill` 0 guesses."""
    content = json.loads((data / "dataset.json").read_text())
    names, items = content["class_names"], content["test"]
    labels = np.array([item["label"] for item in items])
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(labels), len(names))) + skill * np.eye(len(names))[labels]
    features = (scores @ rng.normal(size=(len(names), 20)) + 0.1 * rng.normal(size=(len(labels), 20))).astype(
        np.float32
    )
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    temperature = 1.5
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.pt").write_bytes(b"weights")
    _evaluate(folder, data, items, names, features, at_temperature(probabilities, temperature), temperature)
    record: dict[str, Any] = {
        "bundle": str(BUNDLE),
        "overlays": [],
        "ids": {"dataset_dir": str(data), "num_classes": len(names), "seed": seed},
        "command": ["cryo-monai", "train", "a bundle", str(folder), "--dataset_dir", str(data)],
        "initialisation": initialisation or {"weights": None},
        "data": {"box": [10, 12, 14], "voxel_size": 10.0, "contrast": {"density": "dark"}, "extraction": None},
    }
    if resumed:
        record["resumed"] = list(resumed)
    (folder / "run.json").write_text(json.dumps(record))
    history = [
        {
            "epoch": n, "lr": 1e-3 if n < epochs else 1e-4, "train_loss": 2 / n, "train_accuracy": 1 - 0.8 / n,
            "val_loss": 2.2 / n, "val_accuracy": 1 - 0.9 / n, "val_auc": 1 - 0.4 / n, "key_metric": 1 - 0.9 / n,
            "val_temperature": 1.5, "seconds": 3.5,
        }
        for n in range(1, epochs + 1)
    ]  # fmt: skip
    versions = {"cryo_monai": "0.2.0", "torch": "2.10", "python": "3.11", "device": "cpu", "threads": 2}
    training = {"best_epoch": epochs, "best": history[-1], "environment": versions, "history": history}
    (folder / "metrics.json").write_text(json.dumps(training))
    return folder


def _evaluate(
    folder: Path,
    data: Path,
    items: Sequence[dict[str, Any]],
    names: Sequence[str],
    features: Any,
    probabilities: Any,
    temperature: float,
) -> None:
    network = FakeNetwork(temperature)

    def step(engine: Engine, batch: list[int]) -> list[dict[str, Any]]:
        network.head(torch.from_numpy(features[batch]))
        engine.state.batch = [{"path": str(data / items[row]["image"])} for row in batch]
        return [{"pred": torch.from_numpy(probabilities[row]), "label": items[row]["label"]} for row in batch]

    engine = Engine(step)
    report = EvaluationReport(
        folder,
        names,
        network=network,  # type: ignore[arg-type]
        checkpoint=folder / "models" / "model.pt",
        items=load_datalist(data)["test"],
    )
    report.attach(engine)
    engine.run([list(range(start, min(start + 16, len(items)))) for start in range(0, len(items), 16)])


GRID = {
    "dataset": ["simulated", "real"],
    "label_fraction": [0.25, 1.0],
    "initialisation": ["random", "video"],
    "seed": [0, 1, 2, 3, 4],
}


def fabricate_trial(
    folder: Path,
    cell: Cell,
    *,
    accuracy: float | None = 0.8,
    auc: float | None = 0.95,
    val_accuracies: Sequence[float] = (0.4, 0.6, 0.7),
    seconds: float = 30.0,
    num_train: int = 100,
    environment: Mapping[str, Any] | None = None,
) -> Outcome:
    """Write what of a trial's run folder is read for the tables of a sweep: three files of JSON."""
    folder.mkdir(parents=True)
    history = [
        {"epoch": n, "lr": 1e-3, "train_loss": 2 / n, "val_accuracy": value, "key_metric": value, "seconds": seconds}
        for n, value in enumerate(val_accuracies, 1)
    ]
    versions = {"cryo_monai": "0.2.0", "torch": "2.10", "device": "cpu", "threads": 1, **(environment or {})}
    best = max(history, key=lambda row: row["val_accuracy"])
    scores = {"num_volumes": 60, "accuracy": accuracy, "auc": auc, "balanced_accuracy": accuracy, "macro_f1": accuracy,
              "per_class": {name: {} for name in "abcde"}}  # fmt: skip
    contents = {
        "metrics.json": {"best_epoch": best["epoch"], "best": best, "environment": versions, "history": history},
        "evaluation.json": scores,
        "run.json": {"data": {"num_volumes": {"training": num_train, "validation": 40, "test": 60}}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return Outcome(dict(cell), folder, "done")


def fabricate_sweep(folder: Path, axes: Mapping[str, Sequence[Any]] = GRID, *, epochs: int = 12) -> list[Outcome]:
    """Write the trials of a grid, all done: better with more labels, and from video sooner and better."""
    outcomes = []
    for number, values in enumerate(product(*axes.values())):
        cell = dict(zip(axes, values, strict=True))
        fraction, seed = float(cell.get("label_fraction", 1.0)), int(cell.get("seed", 0))
        video = cell.get("initialisation") == "video"
        rng = np.random.default_rng([seed, number])
        top = 1 - (0.03 if video else 0.08) / fraction**0.5 + 0.01 * rng.normal()
        pace = 2.0 if video else 3.0
        curve = [round(float(top - 0.5 * np.exp(-n / pace) + 0.01 * rng.normal()), 6) for n in range(1, epochs + 1)]
        outcomes.append(
            fabricate_trial(
                folder / "trials" / f"{number:016x}",
                cell,
                accuracy=round(float(top - 0.02), 6),
                auc=round(float(1 - (1 - top) / 5), 6),
                val_accuracies=curve,
                seconds=30.0 + seed,
                num_train=round(2000 * fraction),
            )
        )
    return outcomes
