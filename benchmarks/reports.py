"""Time, memory and size of the report of a run, against the number of test volumes.

    python benchmarks/reports.py [--volumes 1000,10000]

Volumes of 32^3 (four blob arrangements in noise) are written as MRC files; a small network is trained on 200 of them.
Evaluation and report then run in processes of their own. ``seconds`` are wall clock from start to end of the function,
``peak_mb`` the process's peak, ``peak_mb.imports`` that of one which only imports. Writes
benchmarks/results/reports-cpu.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from report import machine, write_results

from cryo_monai.mrc import write_mrc
from cryo_monai.runs import train_bundle

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "subtomogram_classification"
CLASSES = 4
BOX = 32
TRAINING = 200
STEP = """
import sys
import time
from pathlib import Path
from cryo_monai.reports import write_report
from cryo_monai.run_evaluation import evaluate_run
start = time.perf_counter()
if sys.argv[1] != "imports":
    {"evaluate": evaluate_run, "report": write_report}[sys.argv[1]](sys.argv[2])
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()
print(f"{seconds} {int(status.split('VmHWM:')[1].split()[0]) // 1024}")
"""


def write_volumes(folder: Path, count: int) -> None:
    """Write blobs in noise, and a datalist of which all but the first 200 are test volumes."""
    rng = np.random.default_rng(0)
    axes = np.arange(BOX) - BOX / 2
    centres = rng.uniform(-8, 8, (CLASSES, 6, 3))
    items = []
    for number in range(TRAINING + count):
        label = number % CLASSES
        volume = rng.standard_normal((BOX, BOX, BOX), dtype=np.float32)
        for z, y, x in centres[label] + rng.uniform(-2, 2, 3):
            lobes = [np.exp(-((axes - place) ** 2) / 18) for place in (z, y, x)]
            volume -= np.einsum("i,j,k->ijk", *lobes).astype(np.float32)
        name = f"{label}/{number:06d}.mrc"
        (folder / str(label)).mkdir(exist_ok=True)
        write_mrc(folder / name, volume, voxel_size=10.0)
        items.append({"image": name, "label": label})
    lists = {
        "training": items[: TRAINING // 2],
        "validation": items[TRAINING // 2 : TRAINING],
        "test": items[TRAINING:],
    }
    content = {"class_names": [f"class {n}" for n in range(CLASSES)], **lists}
    (folder / "dataset.json").write_text(json.dumps(content))


def measured(step: str, run: Path) -> tuple[float, int]:
    """Seconds and peak memory in MB of a step in a process of its own."""
    command = [sys.executable, "-c", STEP, step, str(run)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(output[-2]), int(output[-1])


def main(volumes: tuple[int, ...] = (1000, 10_000), output: str = "") -> None:
    """Measure each number of test volumes."""
    sizes = [volumes] if isinstance(volumes, int) else list(volumes)
    result: dict[str, Any] = {"machine": machine(torch.device("cpu")), "test_volumes": {}}
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            data, run = Path(place) / f"data{size}", Path(place) / f"run{size}"
            data.mkdir()
            write_volumes(data, size)
            ids = {
                "dataset_dir": str(data),
                "num_classes": CLASSES,
                "clip_size": [32, 32, 32],
                "max_epochs": 6,
                "lr_milestones": [4],
                "progress": False,
            }
            train_bundle(BUNDLE, run, overlays=[ROOT / "configs" / "quickstart.json"], ids=ids)
            evaluation, report = measured("evaluate", run), measured("report", run)
            pages = {file.name: file.stat().st_size for file in (run / "report").glob("*.*")}
            result["test_volumes"][str(size)] = {
                "evaluate_seconds": round(evaluation[0], 1),
                "report_seconds": round(report[0], 1),
                "evaluate_peak_mb": evaluation[1],
                "report_peak_mb": report[1],
                "page_mb": round(pages["report.html"] / 1e6, 2),
            }
            print(size, result["test_volumes"][str(size)], file=sys.stderr)
    result["imports_peak_mb"] = measured("imports", ROOT)[1]
    write_results("reports", torch.device("cpu"), result, output)


if __name__ == "__main__":
    fire.Fire(main)
