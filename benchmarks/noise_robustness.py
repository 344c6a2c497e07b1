"""How well networks of a sweep stand noise that they were not trained with, by initialisation.

    python benchmarks/noise_robustness.py runs/initialisation --label_fraction 1.0

Scores the test split of every finished trial (all layers trained) with white noise of 0, 1, 2 and 4 times each
volume's own standard deviation added, the same noise for all trials of a seed. Writes, per data set, initialisation and
noise, the mean accuracy over seeds with its 95 % interval (Student), and the difference to the baseline in pairs of one
seed, to benchmarks/results/noise_robustness-cpu.json.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from report import machine, write_results
from scipy import stats

from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.run_evaluation import open_split
from cryo_monai.runs import configuration_of

LEVELS = (0.0, 1.0, 2.0, 4.0)


def _accuracies(run: Path, seed: int, batch_size: int = 64) -> list[float]:
    """Accuracy on the test split at every level of noise."""
    network = configuration_of(run).parser.get_parsed_content("network")
    load_checkpoint(network, run / "models" / "model.pt").eval()
    items, dataset = open_split(run)
    volumes = torch.stack([torch.as_tensor(dataset[row]["image"]) for row in range(len(items))]).float()
    labels = torch.tensor([item["label"] for item in items])
    noise = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(seed))
    noise *= volumes.flatten(1).std(1)[:, None, None, None, None]
    found = []
    for level in LEVELS:
        with torch.no_grad():
            scores = torch.cat([network(part) for part in (volumes + level * noise).split(batch_size)])
        found.append(float((scores.argmax(1) == labels).float().mean()))
    return found


def _mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    count = len(values)
    half = None
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return float(np.mean(values)), half


def main(folder: str, label_fraction: str = "1.0", baseline: str = "random", output: str = "") -> None:
    """Score, compare and write."""
    root = Path(folder)
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(dict)
    with (root / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "done"]
    for row in rows:
        if float(row["label_fraction"]) == float(label_fraction) and row.get("layers", "all") == "all":
            seed = int(row["seed"])
            found[row["dataset"], row["initialisation"]][seed] = _accuracies(root / row["folder"], seed)
            print(row["dataset"], row["initialisation"], seed, found[row["dataset"], row["initialisation"]][seed])
    table: list[dict[str, Any]] = []
    for (dataset, initialisation), by_seed in found.items():
        base = found.get((dataset, baseline), {})
        for place, level in enumerate(LEVELS):
            mean, half = _mean_and_interval([values[place] for values in by_seed.values()])
            entry = {"dataset": dataset, "initialisation": initialisation, "noise": level, "seeds": len(by_seed)}
            entry |= {"accuracy": mean, "half_interval": half}
            pairs = [by_seed[seed][place] - base[seed][place] for seed in by_seed if seed in base]
            if initialisation != baseline and pairs:
                entry["difference"], entry["difference_half_interval"] = _mean_and_interval(pairs)
            table.append(entry)
    device = torch.device("cpu")
    result = {
        "machine": machine(device),
        "settings": {"label_fraction": label_fraction, "levels": LEVELS},
        "rows": table,
    }
    write_results("noise_robustness", device, result, output)


if __name__ == "__main__":
    fire.Fire(main)
