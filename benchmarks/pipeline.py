"""Training throughput: the bundle's loop, the bare network step, and the plain-MONAI equivalent, in one run.

    python benchmarks/pipeline.py [--backbone resnet34] [--batch_size 32] [--iterations 6] [--device cpu]

The three are interleaved iteration by iteration, so that a drifting machine slows them alike; ratios are of medians.
Writes benchmarks/results/pipeline-DEVICE.json.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fire
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.networks import nets
from monai.transforms import Compose, RandAffined, RandScaleCropd, RepeatChanneld, Resized, ScaleIntensityd
from report import machine, write_results
from torch import Tensor, nn

from cryo_monai import LoadVolumed
from cryo_monai.networks import VideoClassifier, has_fast_bfloat16
from cryo_monai.simulation import SimulationSettings, write_dataset
from cryo_monai.workflows import load_workflow

ROOT = Path(__file__).parents[1]
CLIP_SIZE = [32, 128, 128]
Step = Callable[[], None]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bare_step(backbone: str, batch_size: int, device: torch.device) -> Step:
    """One optimiser step of the bundle's network on clips that are already on the device."""
    network = VideoClassifier(10, backbone=backbone, clip_size=CLIP_SIZE).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    clips = torch.rand(batch_size, 1, *CLIP_SIZE, device=device)
    labels = torch.arange(batch_size, device=device) % 10

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network.head(network.extract_features(clips)), labels).backward()
        optimizer.step()

    return step


def plain_monai_step(backbone: str, items: list[dict[str, Any]], batch_size: int, device: torch.device) -> Step:
    """One step as MONAI's tutorials write it: per-sample transforms in a Compose, three channels, float32."""
    transforms = Compose(
        [
            LoadVolumed("image"),
            ScaleIntensityd("image"),
            RandScaleCropd("image", roi_scale=0.5, max_roi_scale=1.0, random_size=True, random_center=True),
            Resized("image", CLIP_SIZE, mode="trilinear"),
            RandAffined(
                "image",
                prob=0.5,
                rotate_range=(torch.pi / 4, 0.0, 0.0),
                translate_range=(0, 13, 13),
                scale_range=(0.1, 0.1, 0.1),
                padding_mode="border",
            ),
            RepeatChanneld("image", 3),
        ]
    )
    dataset = CacheDataset(items, transforms, progress=False)
    workers = 8 if device.type == "cuda" else 0
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers)
    network = getattr(nets, backbone)(
        spatial_dims=3,
        n_input_channels=3,
        num_classes=10,
        conv1_t_size=7,
        conv1_t_stride=(1, 2, 2),
        shortcut_type="A",
    )
    network = network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in itertools.count():
            yield from loader

    stream = batches()

    def step() -> None:
        batch = next(stream)
        optimizer.zero_grad(set_to_none=True)
        scores = network(batch["image"].to(device))
        nn.functional.cross_entropy(scores, torch.as_tensor(batch["label"]).to(device)).backward()
        optimizer.step()

    return step


def serve_plain_monai(
    link: Connection, backbone: str, items: list[dict[str, Any]], batch_size: int, device: str
) -> None:
    """Take one step whenever asked, in a process of its own: only the bundle tunes memory."""
    target = torch.device(device)
    step = plain_monai_step(backbone, items, batch_size, target)
    while link.recv():
        start = time.perf_counter()
        step()
        synchronise(target)
        link.send(time.perf_counter() - start)


def bfloat16_matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large bfloat16 matrix product of random numbers."""
    size = 8192
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    synchronise(device)
    start = time.perf_counter()
    for _ in range(10):
        one @ other
    synchronise(device)
    return 10 * 2 * size**3 / (time.perf_counter() - start)


def main(
    backbone: str = "resnet34", batch_size: int = 32, iterations: int = 6, device: str = "", output: str = ""
) -> None:
    """Run the benchmark and write its JSON."""
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seconds: dict[str, list[float]] = {"loop": [], "bare": [], "plain_monai": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_dataset(data, SimulationSettings(neighbours=0), num_per_class=max(12, batch_size), clean=False)
        workflow = load_workflow(
            ROOT / "bundles" / "subtomogram_classification",
            "train",
            overrides={
                "dataset_dir": str(data),
                "output_dir": f"{folder}/run",
                "ckpt_dir": f"{folder}/run/models",
                "backbone": backbone,
                "batch_size": batch_size,
                "device": target,
                "progress": False,
                "val_interval": 10**6,
                "max_epochs": 10**6,
            },
        )
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        items = workflow.parser.get_parsed_content("datalist")["training"]
        bare = bare_step(backbone, batch_size, target)
        link, far_end = multiprocessing.get_context("spawn").Pipe()
        plain = multiprocessing.get_context("spawn").Process(
            target=serve_plain_monai, args=(far_end, backbone, items, batch_size, str(target))
        )
        plain.start()
        clock = {"start": time.perf_counter()}

        def others(engine: Engine) -> None:
            """Time what just ended in the bundle's loop, then one step of each of the others."""
            synchronise(target)
            times = {"loop": time.perf_counter() - clock["start"]}
            start = time.perf_counter()
            bare()
            synchronise(target)
            times["bare"] = time.perf_counter() - start
            link.send(True)
            times["plain_monai"] = link.recv()
            # Warm-up, and iterations with a checkpoint or a new pass over the data in them, are left out.
            position = engine.state.iteration % engine.state.epoch_length
            if engine.state.iteration > 2 and position != 1:
                for name, value in times.items():
                    seconds[name].append(value)
            print({name: round(value, 3) for name, value in times.items()}, file=sys.stderr, flush=True)
            if len(seconds["loop"]) >= iterations:
                engine.terminate()
            clock["start"] = time.perf_counter()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, others)
        workflow.run()
        link.send(False)
        plain.join()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "loop_over_bare": medians["bare"] / medians["loop"],
        "loop_over_plain_monai": medians["plain_monai"] / medians["loop"],
    }
    result: dict[str, Any] = {
        "machine": machine(target),
        "settings": {
            "backbone": backbone,
            "clip_size": CLIP_SIZE,
            "batch_size": batch_size,
            "iterations": iterations,
            "precision": "bfloat16" if has_fast_bfloat16(target) else "float32",
        },
        "seconds_per_iteration": {
            name: {"median": medians[name], "min": min(values), "max": max(values)} for name, values in seconds.items()
        },
        "samples_per_second": {name: batch_size / value for name, value in medians.items()},
        "ratios": ratios,
    }
    if target.type == "cuda":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            bare()
        rate = bfloat16_matrix_rate(target)
        achieved = counter.get_total_flops() / medians["bare"]
        result["matrix_rate_tflops"] = rate / 1e12
        result["achieved_tflops"] = achieved / 1e12
        ratios["achieved_over_matrix_rate"] = achieved / rate
    write_results("pipeline", target, result, output)


if __name__ == "__main__":
    fire.Fire(main)
