"""Every backbone in every format of `cryo-monai export`: does it agree, how large is it, how fast.

    python benchmarks/exports.py [--part backbones|speed] [--names resnet34,swin3d_t] [--formats onnx] [--anew]

``backbones`` writes each network, untrained and of ten classes, at a small clip and compares it with itself in float32
on random volumes of several sizes; it takes minutes for each transformer, adds to the rows that are there (``--anew``
forgets them), and so may be run in pieces. ``speed`` asks two networks in all formats in turn, one call of each after
the other, and takes five minutes. Both write benchmarks/results/exports-cpu.json and the tables in docs/exports.md.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from report import RESULTS, machine, write_results

from cryo_monai.backbones import BACKBONES
from cryo_monai.errors import CryoMonaiError
from cryo_monai.exports import FORMATS, export_network, open_export, read_metadata
from cryo_monai.exports.tracing import Probabilities, predict_with
from cryo_monai.networks import VideoClassifier

CLIP = (8, 32, 32)
# One of each family first, so that a run that is cut short has seen them all.
FIRST = ("resnet18", "resnet34", "medicalnet_resnet18", "monai_resnet18", "rb3d", "r3d_18", "s3d", "slow_r50", "x3d_xs")
FIRST += ("swin3d_t", "mvit_v2_s", "vivit_b_16x2", "mvit_base_16x4", "csn_r101", "r2plus1d_r50")
NETWORKS: dict[str, dict[str, Any]] = {
    "quick start": {"backbone": "resnet18", "backbone_options": {"widths": [16, 32, 64, 128]}, "clip_size": (32,) * 3},
    "paper": {"backbone": "resnet34", "clip_size": (32, 128, 128)},
}
ROUNDS = {"quick start": 30, "paper": 3}
SIDE = 32  # voxels of the volumes that speed is measured with
RESULT = RESULTS / "exports-cpu.json"
TABLES = Path(__file__).parents[1] / "docs" / "exports.md"
MARK = "<!-- table: benchmarks/exports.py, {} -->\n"
END = "<!-- end of table -->\n"


def build(**options: Any) -> VideoClassifier:
    """Make an untrained network of ten classes."""
    torch.manual_seed(0)
    return VideoClassifier(10, **options)


def try_formats(name: str, folder: Path, formats: list[str]) -> dict[str, Any]:
    """Write a backbone in each format, and say how it differs from the network, or why it could not be written."""
    intensity = "z_score" if name.startswith("medicalnet") else "min_max"
    network = build(backbone=name, clip_size=CLIP, intensity=intensity)
    row: dict[str, Any] = {}
    for format in formats:
        kind = FORMATS[format]
        start, file = time.perf_counter(), folder / f"{name}{kind.suffix}"
        try:
            done = export_network(network, format, file)
        except CryoMonaiError as error:
            row[format] = {"refused": str(error)}
            continue
        row[format] = {
            "difference": float(f"{done.difference:.1e}"),
            "mib": round(file.stat().st_size / 2**20, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }
        if format == "torchscript":
            row[format]["how"] = read_metadata(file)["torchscript"]
        file.unlink()
    return row


def time_formats(name: str, folder: Path) -> dict[str, Any]:
    """Time a network in each format against itself, in turn."""
    network = build(**NETWORKS[name]).eval()
    full = build(**NETWORKS[name], precision="float32").eval()
    ways: dict[str, Callable[[Any], Any]] = {
        "eager_float32": predict_with(Probabilities(full)),
        "eager_automatic": predict_with(Probabilities(network)),
    }
    sizes = {}
    for format, kind in FORMATS.items():
        file = folder / f"{name.replace(' ', '_')}{kind.suffix}"
        export_network(network, format, file)
        sizes[format] = round(file.stat().st_size / 2**20, 1)
        if kind.runs_alone:
            ways[format] = open_export(file)
    rows: dict[str, Any] = {}
    for batch in (1, 8) if name == "quick start" else (1,):
        volumes = np.random.default_rng(0).normal(size=(batch, 1, SIDE, SIDE, SIDE)).astype(np.float32)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS[name] + 2):
            for way, predict in ways.items():
                start = time.perf_counter()
                predict(volumes)
                if turn >= 2:  # TorchScript compiles in its first calls
                    seconds[way].append(time.perf_counter() - start)
        reference = seconds["eager_float32"]
        rows[f"batch {batch}"] = {
            way: {
                "ms_per_volume": round(1000 * statistics.median(taken) / batch, 2),
                "of_eager_float32": round(
                    statistics.median(one / other for one, other in zip(taken, reference, strict=True)), 3
                ),
            }
            for way, taken in seconds.items()
        }
    return {"mib": sizes, **rows}


def backbone_lines(rows: dict[str, Any]) -> list[str]:
    """Make the table of differences."""
    lines = ["| backbone | " + " | ".join(FORMATS) + " |", "|---|" + "---|" * len(FORMATS)]
    for name in (name for name in BACKBONES if name in rows):
        cells = []
        for format in FORMATS:
            cell = rows[name][format]
            text = (f"{cell['difference']:.0e}" if cell["difference"] else "0") if "difference" in cell else "no"
            cells.append(text + (" (backbone traced)" if "traced" in cell.get("how", "") else ""))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def speed_lines(speed: dict[str, Any]) -> list[str]:
    """Make the table of sizes and times."""
    lines = [
        "| network, batch | file or way | MiB | ms per volume | time over eager float32 |",
        "|---|---|---|---|---|",
    ]
    for name, result in speed.items():
        for batch in (key for key in result if key.startswith("batch")):
            for way, row in result[batch].items():
                mib = result["mib"].get(way, "")
                lines.append(
                    f"| {name}, {batch.split()[1]} | {way.replace('_', ' ')} | {mib} | {row['ms_per_volume']:g} | "
                    f"{row['of_eager_float32']:.2f} |"
                )
        lines.append(f"| {name} | safetensors | {result['mib']['safetensors']} | — | — |")
    return lines


def write_tables(result: dict[str, Any]) -> None:
    """Put the tables into docs/exports.md."""
    text = TABLES.read_text(encoding="utf-8")
    for part, lines in (("backbones", backbone_lines), ("speed", speed_lines)):
        if part in result:
            before, rest = text.split(MARK.format(part))
            _, after = rest.split(END, 1)
            text = before + MARK.format(part) + "\n".join(lines(result[part])) + "\n" + END + after
    TABLES.write_text(text, encoding="utf-8")


def listed(text: Any) -> list[str]:
    """Split what Fire makes of a comma-separated argument."""
    return [part for part in text.split(",") if part] if isinstance(text, str) else list(text)


def main(part: str = "", names: str = "", formats: str = "", anew: bool = False, tables_only: bool = False) -> None:
    """Run one part or both; ``tables_only`` writes the tables from the JSON that is there."""
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    if tables_only:
        write_tables(result)
        return
    warnings.simplefilter("ignore")  # of libraries, about themselves
    place = torch.device("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        if part in ("", "backbones"):
            rows = {} if anew else result.get("backbones", {})
            given = listed(names)
            for name in given or dict.fromkeys((*FIRST, *BACKBONES)):
                if given or name not in rows:
                    rows.setdefault(name, {}).update(try_formats(name, Path(scratch), listed(formats) or list(FORMATS)))
                    print(name, json.dumps(rows[name]), flush=True)
                    result |= {"clip": CLIP, "backbones": rows}
                    RESULT.write_text(json.dumps(result, indent=1) + "\n")
        if part in ("", "speed"):
            timed = {name: time_formats(name, Path(scratch)) for name in NETWORKS}
            result |= {"machine": machine(place), "side": SIDE, "speed": timed}
    write_results("exports", place, {"machine": machine(place), **result})
    write_tables(result)


if __name__ == "__main__":
    fire.Fire(main)
