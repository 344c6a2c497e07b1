"""The parity table: every weight record, loaded through our path, against its publisher's network.

    python benchmarks/parity.py

Runs what tests/test_parity.py tests, at the native clips, and writes benchmarks/results/parity-cpu.json: the largest
difference of pooled features over the largest feature, for a colour clip and for a grey one in one channel.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import fire
import torch
from report import machine, write_results

from cryo_monai.weight_records import RECORDS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main(output: str = "") -> None:
    """Run the comparison and write its JSON."""
    warnings.simplefilter("ignore")  # of libraries, about themselves
    import references

    differences = {}
    for record in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            differences[record.name] = references.parity(record, Path(folder))
        print(record.name, differences[record.name], flush=True)
    largest = max(max(pair.values()) for pair in differences.values())
    result = {
        "machine": machine(torch.device("cpu")), "largest": largest, "max_relative_difference": differences
    }  # fmt: skip
    write_results("parity", torch.device("cpu"), result, output)


if __name__ == "__main__":
    fire.Fire(main)
