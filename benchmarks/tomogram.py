"""From tomogram to classes: rates of picking, extraction and classification, and memory against tomogram size.

    python benchmarks/tomogram.py [--device cuda] [--num_workers 8]

A tomogram of 256 x 512 x 512 voxels of noise and 1500 blobs is written, picked, and its particles are cut (32^3, at
the tomogram's voxel size and 1.25 times it) and classified, with the paper's network and with that of the quick start.
``ratios.classify_over_bare`` is the rate of `classify_particles`, all it reads and writes included, over the rate of
the network alone on a batch in memory. ``peak_mb`` are peaks of processes of their own that pick, extract and classify
in tomograms of two sizes; ``peak_mb.imports`` is one that only imports. Writes benchmarks/results/tomogram-DEVICE.json.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
import mrcfile
import numpy as np
import torch
from report import machine, write_results

from cryo_monai.boxes import BoxSettings, ParticleBoxes
from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.extraction import extract
from cryo_monai.locations import LocatedParticles, list_particles, locate_particles
from cryo_monai.particles import read_particles
from cryo_monai.picking import pick_blobs
from cryo_monai.run_inference import inference_of
from cryo_monai.runs import train_bundle
from cryo_monai.simulation import SimulationSettings, write_dataset
from cryo_monai.tomogram_classes import classify_particles
from cryo_monai.tomograms import open_tomogram

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "subtomogram_classification"
SIGMA = 5.0  # voxels
MEMORY = """
import sys
from pathlib import Path
from cryo_monai.boxes import BoxSettings
from cryo_monai.extraction import extract
from cryo_monai.locations import list_particles
from cryo_monai.picking import pick_blobs
from cryo_monai.tomogram_classes import classify_particles
from cryo_monai.tomograms import open_tomogram
if len(sys.argv) > 1:
    tomogram, run, folder = open_tomogram(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    peaks = pick_blobs(tomogram, sigma=5.0)
    places = peaks.positions[:500]
    located = list_particles([tomogram], [0] * len(places), places)
    settings = BoxSettings(box=32, voxel_size=12.5)
    extract(located, folder / "boxes", settings)
    classify_particles(run, located, settings, folder / "classes.star")
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def write_tomogram(file: Path, shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Write noise with dark blobs, section by section; return the places `(count, 3)`."""
    rng = np.random.default_rng(0)
    places = rng.uniform(20, np.array(shape) - 20, (count, 3))
    grid = np.arange(-12, 13)
    with mrcfile.new_mmap(file, shape, mrc_mode=2, overwrite=True) as stream:
        stream.voxel_size = 10.0
        for z in range(shape[0]):
            section = rng.standard_normal(shape[1:], dtype=np.float32)
            for place in places[abs(places[:, 0] - z) < 12]:
                y, x = np.round(place[1:]).astype(int)
                squared = (z - place[0]) ** 2 + grid[:, None] ** 2 + grid**2
                section[y - 12 : y + 13, x - 12 : x + 13] -= 3 * np.exp(-squared / (2 * SIGMA**2))
            stream.data[z] = section
    return places


def timed(function: Any, *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def train_run(folder: Path, overlays: list[Path], data: Path, device: str, **more: Any) -> Path:
    """Train for one epoch: a run folder is what counts."""
    ids = {"dataset_dir": str(data), "num_classes": "2", "max_epochs": "1", "batch_size": "6", "device": device}
    train_bundle(BUNDLE, folder, overlays=overlays, ids={**ids, "progress": "False", **more})
    return folder


def classification(
    run: Path, located: LocatedParticles, folder: Path, device: str, batch_size: int, workers: int
) -> dict[str, float]:
    """Particles per second of `classify_particles`, and volumes per second of the network alone."""
    settings = BoxSettings(box=32, voxel_size=10.0)
    ids = {"device": device, "batch_size": str(batch_size), "num_workers": str(workers)}
    workflow = inference_of(run, ids)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    load_checkpoint(network, run / "models" / "model.pt")
    network.eval()
    boxes = ParticleBoxes(located, settings)
    batch = torch.stack([torch.from_numpy(boxes.cut(row).volume)[None] for row in range(batch_size)])

    def bare(times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                network(batch.to(device)).cpu()

    bare(2)
    times = max(1, len(located) // batch_size)
    before, _ = timed(bare, times)
    seconds, _ = timed(classify_particles, run, located, settings, folder / f"{run.name}.star", ids=ids)
    after, _ = timed(bare, times)
    bare_rate = 2 * times * batch_size / (before + after)
    rate = len(located) / seconds
    return {"per_s": round(rate, 2), "bare_per_s": round(bare_rate, 2), "ratio": round(rate / bare_rate, 3)}


def peak_mb(*arguments: str) -> int:
    """Peak memory of a process that picks, extracts and classifies, or only imports."""
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main(device: str = "cpu", num_workers: int = 0, particles: int = 1500, paper: int = 192, output: str = "") -> None:
    """Run all.

    Args:
        device: cpu or cuda.
        num_workers: processes that cut boxes.
        particles: that are extracted, and classified with the small network.
        paper: particles that are classified with the paper's network.
        output: JSON file.
    """
    logging.disable(logging.INFO)
    where = torch.device(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = write_tomogram(folder / "t.mrc", (256, 512, 512), particles)
        tomogram = open_tomogram(folder / "t.mrc")
        timed(pick_blobs, tomogram, sigma=SIGMA, device=device, max_picks=10)
        pick_s, peaks = timed(pick_blobs, tomogram, sigma=SIGMA, device=device)
        located = list_particles([tomogram], np.zeros(len(places)), places)
        rates: dict[str, Any] = {
            "pick_mvoxels_per_s": round(np.prod(tomogram.shape) / pick_s / 1e6, 2),
            "picks": len(peaks.values),
        }
        for voxel_size in (10.0, 12.5):
            settings = BoxSettings(box=32, voxel_size=voxel_size)
            seconds, _ = timed(extract, located, folder / f"{voxel_size}", settings, num_workers=num_workers)
            rates[f"extract_per_s_at_{voxel_size:g}"] = round(len(located) / seconds, 1)
        rates["extract_per_s"] = rates["extract_per_s_at_12.5"]
        again = locate_particles(read_particles(folder / "12.5" / "particles.star"), [folder / "t.mrc"])
        assert np.allclose(again.places, places, atol=1e-3)
        data = folder / "data"
        settings = SimulationSettings(neighbours=0, snr=0.5)
        write_dataset(data, settings, num_per_class=10, structures=["o_440kda", "c2_64kda"], clean=False)
        small = train_run(
            folder / "small", [ROOT / "configs" / "quickstart.json"], data, device, clip_size=[32, 32, 32]
        )
        large = train_run(folder / "paper", [], data, device)
        networks = {
            "paper": classification(large, located.select(range(paper)), folder, device, 16, num_workers),
            "quickstart": classification(small, located, folder, device, 32, num_workers),
        }
        peaks_mb = {"imports": peak_mb()}
        for shape in ((256, 256, 256), (256, 1024, 1024)):
            label = "x".join(map(str, shape))
            file = folder / f"{label}.mrc"
            write_tomogram(file, shape, 500)
            (folder / label).mkdir()
            peaks_mb[label] = peak_mb(str(file), str(small), str(folder / label))
            file.unlink()
    result = {
        "benchmark": "tomogram",
        "machine": machine(where),
        "num_workers": num_workers,
        "ratios": {"classify_over_bare": networks["paper"]["ratio"], "quickstart": networks["quickstart"]["ratio"]},
        "rates": rates,
        "classification": networks,
        "peak_mb": peaks_mb,
    }
    write_results("tomogram", where, result, output)


if __name__ == "__main__":
    fire.Fire(main)
