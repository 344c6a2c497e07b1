"""Start-up time of the command line and of importing the package, each in fresh processes.

    python benchmarks/start_up.py [--repeats 10]

Writes benchmarks/results/start_up-cpu.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import fire
import torch
from report import machine, write_results

COMMANDS = {
    "python": ["-c", "pass"],
    "import_cryo_monai": ["-c", "import cryo_monai"],
    "help": ["-m", "cryo_monai", "--help"],
}


def main(repeats: int = 10, output: str = "") -> None:
    """Run the benchmark and write its JSON."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    result = {"machine": machine(torch.device("cpu")), "median_seconds": medians}
    write_results("start_up", torch.device("cpu"), result, output)


if __name__ == "__main__":
    fire.Fire(main)
