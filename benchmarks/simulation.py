"""Simulation throughput: subtomograms per second in both modes, by stage, and memory against the number of volumes.

    python benchmarks/simulation.py [--models FOLDER] [--device cuda]

With the ten atomic models of configs/simulation/shared_ten.json in FOLDER; with the built-in assemblies without. 32^3
voxels, 4 neighbours. Writes benchmarks/results/simulation-DEVICE.json.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from report import machine, write_results

from cryo_monai.simulation import (
    BUILT_IN,
    SimulationSettings,
    StructureEntry,
    SubtomogramSimulator,
    load_structures,
    read_preset,
)
from cryo_monai.simulation.writing import BATCH

PRESET = Path(__file__).resolve().parent.parent / "configs" / "simulation" / "shared_ten.json"
# Peak memory of a process of its own: "VmHWM", because what a child inherits counts in ru_maxrss.
MEMORY = """
import sys
from pathlib import Path
from cryo_monai.simulation import SimulationSettings, write_dataset
settings = SimulationSettings(mode=sys.argv[2])
write_dataset(Path(sys.argv[1]), settings, num_per_class=int(sys.argv[3]), structures=["o_440kda", "d3_310kda"])
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


class Clock:
    """Adds up the seconds of named stages."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def stages(simulator: SubtomogramSimulator, device: torch.device, batches: int) -> dict[str, float]:
    """Milliseconds per subtomogram that each stage takes; imaging includes drawing the noise."""
    clock = Clock(device)
    for batch in range(batches):
        label = batch % simulator.num_classes
        generators = [np.random.default_rng([batch, number]) for number in range(BATCH)]
        with clock("pack"):
            packing = simulator.pack(label, generators)
        with clock("render"):
            scenes = simulator.renderer.render(packing, simulator.scene)
        with clock("image"):
            simulator.image(scenes, generators)
    return {name: round(1e3 * seconds / (batches * BATCH), 3) for name, seconds in clock.seconds.items()}


def rate(simulator: SubtomogramSimulator, device: torch.device, batches: int) -> float:
    """Subtomograms per second, computed and brought to the host."""
    clock = Clock(device)
    with clock("all"):
        for batch in range(batches):
            simulator.simulate(batch % simulator.num_classes, range(BATCH)).volumes.cpu()
    return batches * BATCH / clock.seconds["all"]


def peak_mb(mode: str, volumes: int) -> int:
    """Peak memory in MB of writing so many volumes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MEMORY, f"{folder}/data", mode, str(volumes // 2)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(models: str = "", device: str = "", batches: int = 20, memory: bool = True, output: str = "") -> None:
    """Run the benchmark and write its JSON."""
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    entries = read_preset(PRESET).structures if models else BUILT_IN
    result: dict[str, Any] = {"machine": machine(target), "settings": {"box": 32, "neighbours": 4, "batch": BATCH}}
    result["settings"]["structures"] = [StructureEntry.of(entry).source for entry in entries]
    rates: dict[str, float] = {}
    for mode in ("xulab", "tilt_series"):
        settings = SimulationSettings(mode=mode)
        structures = load_structures(
            entries, voxel_size=10.0, resolution=settings.low_pass_resolution, structure_dir=models or None
        )
        simulator = SubtomogramSimulator(structures, settings, device=target)
        rate(simulator, target, 2)
        rates[f"{mode}_per_s"] = round(rate(simulator, target, batches), 1)
        result[f"{mode}_ms_per_volume"] = stages(simulator, target, batches)
    if memory:
        for count in (100, 2000):
            rates[f"peak_mb_{count}"] = peak_mb("tilt_series", count)
    result["rates"] = rates
    write_results("simulation", target, result, output)


if __name__ == "__main__":
    fire.Fire(main)
