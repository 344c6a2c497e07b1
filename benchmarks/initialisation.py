"""Pictures of two sweeps: what generated weights give, and how that grows with their pre-training.

    python benchmarks/initialisation.py runs/initialisation runs/scale

Copies results.csv and table.md of configs/sweeps/initialisation.json and pretraining_scale.json to
benchmarks/results/initialisation and pretraining_scale, and draws docs/pictures/initialisation.png and
pretraining_scale.png from their summary.json: means over seeds with 95 % intervals (Student). Prints the tables of
docs/initialisation.md.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
from matplotlib.figure import Figure
from report import RESULTS
from scipy import stats

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PROBED = ("random", "motion", "assemblies", "both")
ARMS = ("random", "random, lr 0.0003", "motion", "assemblies", "both")
OTHERS = (
    "still frames",
    "shuffled frames",
    "assemblies, lr 0.0003",
    "random, 192 epochs",
    "assemblies, 192 epochs",
)
SETS = {"ten": "accuracy", "shared_ten": "accuracy", "adrenal": "auc"}
NAMES = {"ten": "ten simulated assemblies", "shared_ten": "ten atomic models", "adrenal": "AdrenalMNIST3D"}
SCALED = "shared_ten"  # data set of the second sweep
CLIPS = {"8 k clips": 8192, "33 k clips": 32768, "131 k clips": 131072, "328 k clips": 327680}
LARGER_CLIPS = {
    "131 k clips of 24 x 24 x 24": 131072,
    "328 k clips of 24 x 24 x 24": 327680,
    "983 k clips of 24 x 24 x 24": 983040,
}
CLASSES = {
    "131 k clips, 16 classes": 16,
    "131 k clips": 64,
    "131 k clips, 256 classes": 256,
    "131 k clips, 1024 classes": 1024,
}
LARGER_CLASSES = {"328 k clips of 24 x 24 x 24": 64, "328 k clips of 24 x 24 x 24, 256 classes": 256}
SIDES = {"131 k clips": 16, "131 k clips of 24 x 24 x 24": 24, "131 k clips of 32 x 32 x 32": 32}
CURVES = {  # axis of the second picture to its curves
    "generated clips, 64 classes": {"clips of 16 x 16 x 16": CLIPS, "24 x 24 x 24": LARGER_CLIPS},
    "classes": {"131 thousand clips of 16 x 16 x 16": CLASSES, "328 thousand of 24 x 24 x 24": LARGER_CLASSES},
    "side of the clips in voxels, 131 thousand clips": {"": SIDES},
}


def _rows(folder: Path, layers: str = "all") -> list[dict[str, Any]]:
    """Return rows of a sweep's summary, of trainings of these layers."""
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return [row for row in rows if row["cell"].get("layers", "all") == layers]


def _per_cent(found: dict[str, Any] | None, scale: float = 100, digits: int = 1) -> str:
    if not found:
        return ""
    half = found["half_width"]
    return f"{scale * found['mean']:.{digits}f}" + ("" if half is None else f" ± {scale * half:.{digits}f}")


def _epochs(effort: dict[str, Any] | None) -> str:
    """Epochs to the baseline's best over the baseline's own, and in how many pairs it was reached."""
    if not effort or not effort["epochs_ratio"]:
        return ""
    return f"{_per_cent(effort['epochs_ratio'], 1, 2)} ({effort['num_reached']} of {len(effort['reaches'])})"


def table(rows: list[dict[str, Any]], arms: Sequence[str], text: Callable[[dict[str, Any]], str]) -> str:
    """Return a table: a line for each data set and share of the labels, a column for each initialisation."""
    found = {
        (row["cell"]["dataset"], float(row["cell"]["label_fraction"]), row["cell"]["initialisation"]): text(row)
        for row in rows
    }
    lines = [f"| target | labels | {' | '.join(arms)} |", "|---|---|" + "---|" * len(arms)]
    for dataset, fraction in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((dataset, fraction, arm), "") for arm in arms]
        if any(cells):
            lines.append(f"| {NAMES[dataset]} | {100 * fraction:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: Sequence[float], sign: str = "") -> str:
    """Mean ± half of its 95 % interval (Student)."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{sign}.1f} ± {half:.1f}"


def gains(folder: Path, metric: str) -> str:
    """Return a table of differences in pairs of seeds to random weights, at the learning rate that suits them better.

    Which of the two that is, the mean of the test split itself says, for each target and share: in favour of random.
    """
    found: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["state"] == "done" and row["layers"] == "all":
                cell = found.setdefault((row["dataset"], float(row["label_fraction"])), {})
                cell.setdefault(row["initialisation"], {})[row["seed"]] = 100 * float(row[metric])
    arms = (*ARMS[2:], *OTHERS)
    lines = [f"| target | labels | {' | '.join(arms)} |", "|---|---|" + "---|" * len(arms)]
    for (dataset, fraction), cell in found.items():
        base = max((cell[arm] for arm in ARMS[:2] if arm in cell), key=lambda seeds: np.mean(list(seeds.values())))
        texts = []
        for arm in arms:
            pairs = [cell[arm][seed] - base[seed] for seed in cell.get(arm, {}) if seed in base]
            texts.append(_interval(pairs, "+") if pairs else "")
        lines.append(f"| {NAMES[dataset]} | {100 * fraction:g} % | {' | '.join(texts)} |")
    return "\n".join(lines)


def print_tables(folder: Path) -> None:
    """Print accuracy, AUC, gains, effort and linear probes of the first sweep."""
    rows, probes = _rows(folder), _rows(folder, "head")
    for name, metric in (("Accuracy, %", "accuracy"), ("AUC, %", "auc")):
        print(f"\n{name}\n\n{table(rows, ARMS + OTHERS, lambda row, metric=metric: _per_cent(row['ours'][metric]))}")
    for metric in ("accuracy", "auc"):
        print(f"\nDifference of {metric}, points\n\n{gains(folder, metric)}")
    print(f"\nEpochs, of random weights' own\n\n{table(rows, ARMS[1:], lambda row: _epochs(row['effort']))}")
    print(f"\nLinear probe, accuracy, %\n\n{table(probes, PROBED, lambda row: _per_cent(row['ours']['accuracy']))}")


def scale_tables(folder: Path) -> str:
    """Return tables of the second sweep: each pre-training, then those that were tried at several clip sizes."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["state"] == "done":
                scores = {metric: 100 * float(row[metric]) for metric in ("accuracy", "auc")}
                found.setdefault((row["initialisation"], row["clip_size"]), {})[row["seed"]] = scores
    arms = list(dict.fromkeys(arm for arm, _ in found))
    sizes = sorted({size for _, size in found})

    def text(arm: str, size: str, metric: str = "accuracy", base: str = "") -> str:
        own, other = found.get((arm, size), {}), found.get((base, size), {})
        values = [scores[metric] - (other[seed][metric] if base else 0) for seed, scores in own.items()]
        if not values or arm == base:
            return ""
        return _interval(values, "+" if base else "")

    lines = ["| pre-training | accuracy | AUC | gain in accuracy |", "|---|---|---|---|"]
    for arm in arms:
        cells = (text(arm, "24"), text(arm, "24", "auc"), text(arm, "24", base="random"))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", f"| pre-training | {' | '.join(sizes)} |", "|---|" + "---|" * len(sizes)]
    for arm in arms:
        if any((arm, size) in found for size in sizes if size != "24"):
            cells = [text(arm, size) + f" ({text(arm, size, base='random')})" for size in sizes]
            lines.append(f"| {arm} | {' | '.join(cells).replace(' ()', '')} |")
    return "\n".join(lines)


def _points(rows: list[dict[str, Any]], metric: str, **cell: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return means and intervals of a metric by label fraction and initialisation."""
    own = [row for row in rows if all(row["cell"][axis] == value for axis, value in cell.items())]
    found = {(row["cell"]["label_fraction"], row["cell"]["initialisation"]): row["ours"][metric] for row in own}
    found = {key: value for key, value in found.items() if value}
    means = {key: value["mean"] for key, value in found.items()}
    return means, {key: value["half_width"] or 0.0 for key, value in found.items()}


def draw_initialisations(rows: list[dict[str, Any]], target: Path) -> None:
    """One panel per data set: accuracy, or AUC, against the share of the labels."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(SETS))
    for axis, (dataset, metric) in zip(axes, SETS.items(), strict=True):
        means, halves = _points(rows, metric, dataset=dataset)
        fractions = sorted({fraction for fraction, _ in means})
        for place, arm in enumerate(ARMS):
            there = [number for number, fraction in enumerate(fractions) if (fraction, arm) in means]
            axis.errorbar(
                [number + 0.06 * (place - 2) for number in there],
                [means[fractions[number], arm] for number in there],
                [halves[fractions[number], arm] for number in there],
                fmt="o-",
                capsize=3,
                label=arm,
            )
        axis.set(title=NAMES[dataset], xlabel="labels", ylabel="test AUC" if metric == "auc" else "test accuracy")
        axis.set_xticks(range(len(fractions)), [f"{100 * fraction:g} %" for fraction in fractions])
    axes[0].legend(fontsize=8)
    figure.savefig(target, dpi=120, metadata={"Software": "cryo-monai"})


def draw_scale(rows: list[dict[str, Any]], target: Path) -> None:
    """Accuracy with 20 % of the labels against clips, classes and clip size of the pre-training."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, len(CURVES), sharey=True)
    means, halves = _points(rows, "accuracy", dataset=SCALED, label_fraction=0.2, clip_size="24")
    for axis, (label, curves) in zip(axes, CURVES.items(), strict=True):
        for name, arms in curves.items():
            there = [arm for arm in arms if (0.2, arm) in means]
            values, errors = [means[0.2, arm] for arm in there], [halves[0.2, arm] for arm in there]
            axis.errorbar([arms[arm] for arm in there], values, errors, fmt="o-", capsize=3, label=name or None)
        if (0.2, "random") in means:
            axis.axhline(means[0.2, "random"], color="gray", ls=":", label="random weights")
        axis.set(xscale="linear" if curves.get("") is SIDES else "log", xlabel=label)
        axis.legend(fontsize=8, loc="upper right")
    axes[0].set_ylabel(f"test accuracy, 20 % of the labels\n({NAMES[SCALED]})")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.3 * (high - low))  # room for the legends
    figure.savefig(target, dpi=120, metadata={"Software": "cryo-monai"})


def main(initialisation: str = "", scale: str = "") -> None:
    """Copy, draw and print what is given."""
    if initialisation:
        print_tables(Path(initialisation))
    if scale:
        print(f"\nScale\n\n{scale_tables(Path(scale))}")
    for folder, name, draw in (
        (initialisation, "initialisation", draw_initialisations),
        (scale, "pretraining_scale", draw_scale),
    ):
        if folder:
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            for file in ("results.csv", "table.md"):
                shutil.copy(Path(folder) / file, RESULTS / name / file)
            draw(_rows(Path(folder)), PICTURES / f"{name}.png")


if __name__ == "__main__":
    fire.Fire(main)
