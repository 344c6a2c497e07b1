"""How hard the simulated data are: accuracy of the quick-start network, from random weights, by volumes and SNR.

    python benchmarks/learning_curve.py runs/learning_curve --structure_dir FOLDER

Every training makes the same number of optimiser steps. Data and trainings are kept in the folder: an interrupted
call goes on where it was. Writes benchmarks/results/learning_curve-cpu.json and docs/pictures/learning_curve.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fire
import torch
from report import machine, write_results

ROOT = Path(__file__).resolve().parent.parent
STEPS = 720
VALIDATION = 10  # volumes per class


def _call(*arguments: str) -> None:
    # A process for every step: memory and random state start anew.
    subprocess.run([sys.executable, "-m", "cryo_monai", *arguments], check=True, cwd=ROOT)


def _subset(data: Path, per_class: int) -> Path:
    """Write a datalist with the first volumes of each class of the training split."""
    content = json.loads((data / "dataset.json").read_text())
    for split, count in (("training", per_class), ("validation", VALIDATION)):
        chosen = []
        for name in content["class_names"]:
            members = sorted((i for i in content[split] if i["class_name"] == name), key=lambda i: i["number"])
            chosen += members[:count]
        content[split] = chosen
    target = data / f"dataset_{per_class}.json"
    target.write_text(json.dumps(content))
    return target


def _train(data: Path, run: Path, per_class: int, num_classes: int) -> None:
    datalist = _subset(data, per_class)
    epochs = max(1, round(STEPS * 32 / (per_class * num_classes)))
    flags = {
        "clip_size": [32, 32, 32],
        "max_epochs": epochs,
        "lr_milestones": [round(epochs * 2 / 3), round(epochs * 11 / 12)],
        "val_interval": max(1, epochs // 24),
        "num_classes": num_classes,
    }
    if (run / "models" / "last.pt").exists():
        _call("train", "bundles/subtomogram_classification", str(run), "--resume")
    else:
        options = [part for key, value in flags.items() for part in (f"--{key}", json.dumps(value))]
        overlays = ["--overlays", "configs/quickstart.json", "--weights", "None", "--dataset_dir", str(datalist)]
        _call("train", "bundles/subtomogram_classification", str(run), *overlays, *options)
    _call("evaluate", str(run))


def main(
    folder: str,
    structure_dir: str = "",
    config: str = "configs/simulation/shared_ten.json",
    snrs: tuple[float, ...] = (float("inf"), 0.3, 0.1, 0.03),
    per_class: tuple[int, ...] = (10, 30, 60, 120),
    num_per_class: int = 200,
) -> None:
    """Simulate, train and score every pair, and write table and picture."""
    root = Path(folder).resolve()
    rows = []
    for snr in snrs:
        data = root / f"data_{snr}"
        if not (data / "dataset.json").is_file():
            where = ["--structure_dir", os.path.abspath(structure_dir)] if structure_dir else []
            options = ["--num_per_class", str(num_per_class), "--snr", str(snr), "--clean", "False"]
            _call("simulate", str(data), "--config", config, *where, *options)
        classes = json.loads((data / "dataset.json").read_text())["class_names"]
        for count in per_class:
            run = root / f"run_{snr}_{count}"
            if not (run / "evaluation.json").is_file():
                _train(data, run, count, len(classes))
            scores = json.loads((run / "evaluation.json").read_text())
            row = {"snr": str(snr), "training_volumes": count * len(classes)}
            rows.append({**row, **{key: round(scores[key], 4) for key in ("accuracy", "auc", "num_volumes")}})
    result = {
        "machine": machine(torch.device("cpu")),
        "settings": {"config": config, "steps": STEPS, "seed": 0, "neighbours": 4, "classes": 10},
        "rows": rows,
    }
    _draw(rows, ROOT / "docs" / "pictures" / "learning_curve.png")
    write_results("learning_curve", torch.device("cpu"), result)


def _draw(rows: list[dict[str, object]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    for snr in dict.fromkeys(row["snr"] for row in rows):
        own = [row for row in rows if row["snr"] == snr]
        axis.plot([r["training_volumes"] for r in own], [r["accuracy"] for r in own], "o-", label=f"SNR {snr}")
    axis.axhline(0.1, color="gray", ls=":", label="chance")
    axis.set(xscale="log", xlabel="training volumes, 10 classes", ylabel="test accuracy", ylim=(0, 1))
    axis.legend(fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120, metadata={"Software": "cryo-monai"})


if __name__ == "__main__":
    fire.Fire(main)
