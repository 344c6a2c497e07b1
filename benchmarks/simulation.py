"""Simulation throughput: subtomograms per second and peak memory, computing alone and with writing MRC files.

    python benchmarks/simulation.py [--num_per_class 100] [--device cpu]

Writes benchmarks/results/simulation-DEVICE.json.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import fire
import torch
from report import machine, write_results

from cryo_monai.simulation import ASSEMBLIES, SimulationSettings, simulate_batch, write_dataset


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB (2**20 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(num_per_class: int = 100, device: str = "", output: str = "") -> None:
    """Run the benchmark and write its JSON."""
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = SimulationSettings()
    simulate_batch(ASSEMBLIES[0], range(4), settings, device=target)
    before = peak_mb()
    start = time.perf_counter()
    for assembly in ASSEMBLIES:
        for first in range(0, num_per_class, 64):
            numbers = range(first, min(first + 64, num_per_class))
            simulate_batch(assembly, numbers, settings, device=target).volumes.cpu()
    computing = time.perf_counter() - start
    count = num_per_class * len(ASSEMBLIES)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_dataset(Path(folder) / "data", settings, num_per_class=num_per_class, device=target)
        whole = time.perf_counter() - start
    result = {
        "machine": machine(target),
        "settings": {"num_volumes": count, "box": settings.box, "snr": settings.snr},
        "rates": {"simulate_per_s": count / computing, "write_dataset_per_s": count / whole},
        "peak_mb": {"before": before, "after": peak_mb()},
    }
    write_results("simulation", target, result, output)


if __name__ == "__main__":
    fire.Fire(main)
