"""Every backbone: parameters, work, memory, and volumes per second.

    python benchmarks/backbones.py [--device cuda] [--batch_size 4] [--names resnet34,swin3d_t]

Writes benchmarks/results/backbones-DEVICE.json and, on a CPU, the table in docs/backbones.md between its marks. Rates
are medians over repeated calls of the whole network, from raw volumes to scores, at the precision that the bundle
chooses.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import torch
from report import RESULTS, machine, write_results
from torch.utils.flop_counter import FlopCounterMode

from cryo_monai.backbones import BACKBONES
from cryo_monai.errors import InputError
from cryo_monai.memory import estimate_training_memory
from cryo_monai.networks import VideoClassifier
from cryo_monai.weight_records import all_records

PAPER, SMALL = (32, 128, 128), (28, 28, 28)
AVAILABLE = 24 << 30  # bytes of a common card
TABLE = Path(__file__).parents[1] / "docs" / "backbones.md"
MARKS = ("<!-- table: benchmarks/backbones.py -->\n", "<!-- end of table -->\n")


def build(name: str, clip: tuple[int, int, int], device: torch.device, **options: Any) -> VideoClassifier:
    """Make a classifier of ten classes."""
    intensity = "z_score" if name.startswith("medicalnet") else "min_max"
    return VideoClassifier(10, backbone=name, backbone_options=options, clip_size=clip, intensity=intensity).to(device)


def gflop(network: VideoClassifier) -> float:
    """Count multiplications and additions of one volume, forward, in units of 10^9."""
    device = next(network.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.rand(1, 1, *network.clip_size, device=device))
    return counter.get_total_flops() / 1e9


def rate(step: Callable[[], object], batch_size: int, device: torch.device, repeats: int) -> float:
    """Return volumes per second: the median of some calls after two that warm up."""
    seconds = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds)


def measure(name: str, device: torch.device, batch_size: int, repeats: int) -> dict[str, Any]:
    """Measure one backbone at the paper's clip and at 28 x 28 x 28."""
    row: dict[str, Any] = {"native_clip": BACKBONES[name].native}
    for label, clip in (("paper", PAPER), ("small", SMALL)):
        try:
            network = build(name, clip, device)
        except InputError as error:
            row[label] = {"refused": str(error)}
            continue
        volumes = torch.rand(batch_size, 1, 32 if clip is PAPER else 28, 32, 32, device=device)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

        def infer(network: VideoClassifier = network, volumes: torch.Tensor = volumes) -> None:
            with torch.no_grad():
                network(volumes)

        def train(
            network: VideoClassifier = network,
            volumes: torch.Tensor = volumes,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> None:
            optimizer.zero_grad()
            network(volumes).square().mean().backward()
            optimizer.step()

        memory = estimate_training_memory(build(name, clip, torch.device("cpu")))
        row["parameters_m"] = round(sum(p.numel() for p in network.backbone.parameters()) / 1e6, 2)
        row[label] = {
            "gflop": round(gflop(network), 2),
            "infer_per_s": round(rate(infer, batch_size, device, repeats), 3),
            "largest_batch_24_gib": memory.largest_batch(AVAILABLE),
            "training_mib_per_volume": memory.per_sample >> 20,
        }
        network.train()
        row[label]["train_per_s"] = round(rate(train, batch_size, device, repeats), 3)
    try:
        saving = estimate_training_memory(build(name, PAPER, torch.device("cpu"), gradient_checkpointing=True))
        row["paper"]["largest_batch_24_gib_checkpointed"] = saving.largest_batch(AVAILABLE)
    except InputError:
        pass  # this family has no such option
    return row


def weights_of(name: str) -> str:
    """Say which licences a backbone's public weights have, and what input the first of them wants."""
    records = [record for record in all_records() if record.backbone == name]
    if not records:
        return "—"
    mean, std = records[0].input.mean_and_std()
    wanted = "z-score" if records[0].input.intensity == "z_score" else f"(x − {mean:.3g}) / {std:.3g}"
    return f"{', '.join(dict.fromkeys(record.licence for record in records))}; {wanted}"


def write_table(result: dict[str, Any]) -> None:
    """Put the table into docs/backbones.md."""
    lines = [
        "| backbone | native clip | M parameters | GFLOP | at 28³ | infer/s | train/s "
        "| batch in 24 GiB | licence of weights; input |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["backbones"].items():
        paper, small = row["paper"], row["small"]
        batch = f"{paper['largest_batch_24_gib']}"
        if "largest_batch_24_gib_checkpointed" in paper:
            batch += f" ({paper['largest_batch_24_gib_checkpointed']})"
        clip = " × ".join(map(str, row["native_clip"]))
        lines.append(
            f"| `{name}` | {clip} | {row['parameters_m']:.1f} | {paper['gflop']:.1f} | {small.get('gflop', '—')} | "
            f"{paper['infer_per_s']:.2f} | {paper['train_per_s']:.2f} | {batch} | {weights_of(name)} |"
        )
    text = TABLE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    TABLE.write_text(before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after, encoding="utf-8")


def main(
    device: str = "cpu",
    batch_size: int = 4,
    repeats: int = 3,
    names: str = "",
    output: str = "",
    table_only: bool = False,
) -> None:
    """Run the benchmark and write its JSON; ``table_only`` writes the table from the JSON that is there."""
    if table_only:
        write_table(json.loads((RESULTS / "backbones-cpu.json").read_text()))
        return
    warnings.simplefilter("ignore")  # of libraries, about themselves
    place = torch.device(device)
    torch.backends.cudnn.benchmark = True
    chosen = names.split(",") if isinstance(names, str) and names else list(names) or list(BACKBONES)
    rows = {}
    for name in chosen:
        rows[name] = measure(name, place, batch_size, repeats)
        print(name, json.dumps(rows[name]), flush=True)
    result = {"machine": machine(place), "batch_size": batch_size, "clip": PAPER, "backbones": rows}
    write_results("backbones", place, result, output)
    if not output and place.type == "cpu" and chosen == list(BACKBONES):
        write_table(json.loads((RESULTS / "backbones-cpu.json").read_text()))


if __name__ == "__main__":
    fire.Fire(main)
