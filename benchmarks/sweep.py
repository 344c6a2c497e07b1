"""What a sweep costs besides training: start-up and end of each trial, and the share of its time that is not training.

    python benchmarks/sweep.py FOLDER [--num_per_class 500] [--epochs 6] [--trials 3]

Fabricates a data set of ten classes of 32 x 32 x 32 in FOLDER (as large as the paper's simulated one), and runs a
sweep of so many seeds of the quick start's network on it, one after the other. Writes
benchmarks/results/sweep-DEVICE.json.

Start-up is from the start of a trial's process to the first iteration; the end from the last epoch to DONE. The first
trial reads the volumes and waits for what processes are forked from to import everything; later ones find both.
Overhead is what is neither training, validation included, nor the network's time for the test split, which is measured
afterwards in bare batches.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from report import machine, write_results

from cryo_monai.explanations.explained_runs import network_of
from cryo_monai.mrc import write_mrc
from cryo_monai.run_evaluation import open_split
from cryo_monai.runs import configuration_of
from cryo_monai.sweep_verbs import PRELOADED
from cryo_monai.sweeps.local_engine import LocalEngine, slots
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.sweeps.sweep_files import read_sweep

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10


class TimedEngine(LocalEngine):
    """Notes when trials are started."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started: dict[str, float] = {}

    def start(self, trial: Trial) -> None:
        """Start a trial in a free place."""
        self.started[trial.key] = time.time()
        super().start(trial)


def main(folder: str, num_per_class: int = 500, epochs: int = 6, trials: int = 3, output: str = "") -> None:
    """Run the benchmark and write its JSON."""
    data = fabricate(Path(folder) / "data", num_per_class)
    file = Path(folder) / "sweep.json"
    content = {
        "bundle": str(ROOT / "bundles" / "subtomogram_classification"),
        "overlays": [str(ROOT / "configs" / "quickstart.json")],
        "ids": {"num_classes": CLASSES, "clip_size": [32, 32, 32], "max_epochs": epochs},
        "axes": {"dataset": {"fabricated": {}}, "seed": list(range(trials))},
    }
    file.write_text(json.dumps(content))
    begun = time.perf_counter()
    planner = Planner(read_sweep(file), Path(folder) / "out", data={"fabricated": data})
    planned = planner.plan(planner.cells())
    planning = time.perf_counter() - begun
    engine = TimedEngine(slots(), preload=PRELOADED)
    begun = time.perf_counter()
    if not engine.run(planned):
        raise SystemExit("interrupted")
    wall = time.perf_counter() - begun
    scoring = bare_scoring(planned[-1].folder)
    rows = [timed(trial, engine.started[trial.key], scoring) for trial in planned]
    later = rows[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        "machine": machine(device),
        "volumes": CLASSES * num_per_class,
        "planning_seconds": round(planning, 2),
        "wall_seconds": round(wall, 2),
        "trials": rows,
        "scoring_seconds": round(scoring, 2),
        "start_up_seconds_of_later_trials": max(row["start_up_seconds"] for row in later),
        "ratios": {
            "overhead_over_trial": max(row["overhead_over_trial"] for row in later),
            "overhead_and_scoring_over_trial": max(row["overhead_and_scoring_over_trial"] for row in later),
        },
    }
    write_results("sweep", device, result, output)


def bare_scoring(run_dir: Path) -> float:
    """Time the network of a run on its test split, which is in memory: seconds, the better of two."""
    network, (_, volumes) = network_of(run_dir), open_split(run_dir)
    images = torch.stack([volumes[number]["image"] for number in range(len(volumes))])
    batch_size = configuration_of(run_dir).parser.get_parsed_content("batch_size")
    device = next(network.parameters()).device
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        with torch.inference_mode():
            for batch in images.split(batch_size):
                network(batch.to(device)).cpu()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def timed(trial: Trial, started: float, scoring: float) -> dict[str, float]:
    """Tell from the files of a trial where its time went."""
    begun, done = ((trial.folder / name).stat().st_mtime for name in ("run.json", "DONE"))
    history = json.loads((trial.folder / "metrics.json").read_text())["history"]
    training = sum(row["seconds"] for row in history)
    last_epoch = (trial.folder / "models" / "last.pt").stat().st_mtime
    total = done - started
    return {
        "seconds": round(total, 2),
        "start_up_seconds": round(begun - started, 2),
        "training_seconds": round(training, 2),
        "end_seconds": round(done - last_epoch, 2),
        "overhead_over_trial": round((total - training - scoring) / total, 4),
        "overhead_and_scoring_over_trial": round((total - training) / total, 4),
    }


def fabricate(folder: Path, num_per_class: int) -> Path:
    """Write volumes of noise around a class's mean, unless they are there."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        target = folder / f"class_{label}"
        target.mkdir(parents=True, exist_ok=True)
        for number in range(num_per_class):
            file = target / f"{number:04}.mrc"
            if not file.exists():
                write_mrc(file, rng.normal(label / 10, 1, (32, 32, 32)).astype(np.float32), voxel_size=10.0)
    return folder


if __name__ == "__main__":
    fire.Fire(main)
