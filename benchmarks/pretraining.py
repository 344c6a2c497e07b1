"""What generating clips costs beside training on them, and what the bundle's loop adds to a bare step.

    python benchmarks/pretraining.py [--turns 20] [--batch_size 32] [--clip_size 24,24,24]
        [--tasks both,motion] [--device cpu]

For every task of configs/pretraining, three things take turns of a few batches of every clip size, as many as are made
together, so that a drifting machine slows them alike; ratios are of medians:

- the bundle's own training loop: clips generated, forward, backward, optimiser, metrics;
- a bare step: forward, backward and optimiser of a network as the bundle's, on clips that are there already;
- the generator alone: clips of as many other batches, made as the loop makes them.

`generator_over_step` is generator / bare step, `loop_over_bare` the loop's clips/s over the bare step's. Writes
benchmarks/results/pretraining-DEVICE.json.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import fire
import torch
from ignite.engine import Engine, Events
from report import machine, write_results

from cryo_monai.handlers import keep_freed_memory
from cryo_monai.inferers import NativeSizeInferer
from cryo_monai.networks import has_fast_bfloat16
from cryo_monai.workflows import load_workflow

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "generated_pretraining"
LEAST = 8  # batches of a turn
EPOCH = 144  # batches: several turns, whole ones of the usual lengths
FIRST = 1 << 24  # epoch whose clips the loop does not reach
Seconds = dict[str, list[float]]


def timed(call: Callable[[], object], turn: int, device: torch.device) -> float:
    """Seconds that a call takes, of a turn of them, until the device has done them."""
    start = time.perf_counter()
    for _ in range(turn):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / turn


def loaded(task: Path, folder: str, device: torch.device, ids: dict[str, Any]) -> Any:
    """Return the bundle with a task, ready to run."""
    places = {"output_dir": folder, "ckpt_dir": f"{folder}/models", "device": device, "progress": False}
    workflow = load_workflow(BUNDLE, "train", overlays=[task], overrides={**ids, **places})
    workflow.initialize()
    return workflow


def bare_step(parser: Any, batch_size: int, device: torch.device) -> Callable[[], None]:
    """One optimiser step of the bundle's network and loss on clips that are on the device, of each size in turn."""
    clips = parser.get_parsed_content("clips")
    network = parser.get_parsed_content("network_def", instantiate=True).to(device).train()
    loss = parser.get_parsed_content("loss")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    ask = NativeSizeInferer(network, clips.sizes)
    batches = cycle([clips.generate(torch.arange(batch_size), device, size) for size in clips.sizes])

    def step() -> None:
        made, targets = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss(ask(made, network), targets).backward()
        optimizer.step()

    return step


def measure(task: Path, turns: int, device: torch.device, ids: dict[str, Any]) -> Seconds:
    """Seconds per batch of loop, bare step and generator, of every turn."""
    seconds: Seconds = {"loop": [], "bare": [], "generator": []}
    with tempfile.TemporaryDirectory() as folder:
        workflow = loaded(task, f"{folder}/run", device, ids)
        other = loaded(task, f"{folder}/other", device, ids)  # a network of its own
        trainer = workflow.parser.get_parsed_content("train#trainer")
        bare = bare_step(other.parser, workflow.parser["batch_size"], device)
        batches = other.parser.get_parsed_content("train#dataloader")
        batches.set_epoch(FIRST)
        turn = batches.together * math.ceil(LEAST / batches.together)
        clock = {"start": 0.0}

        def others(engine: Engine) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            times = {"loop": (time.perf_counter() - clock["start"]) / turn}
            times["bare"] = timed(bare, turn, device)
            # An iterator for every turn: what a turn makes at once stays within it, as in the loop.
            made = iter(batches)
            times["generator"] = timed(lambda: next(made), turn, device)
            # The first turn of an epoch comes after validation and checkpoints, and the very first one warms up.
            if engine.state.iteration % engine.state.epoch_length != turn:
                for name, value in times.items():
                    seconds[name].append(value)
            if len(seconds["loop"]) >= turns:
                engine.terminate()
            clock["start"] = time.perf_counter()

        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=turn), others)
        workflow.run()
    return seconds


def main(
    turns: int = 20,
    batch_size: int = 32,
    device: str = "",
    tasks: str = "",
    backbone: str = "",
    clip_size: tuple[int, ...] = (),
    output: str = "",
) -> None:
    """Run the benchmark and write its JSON."""
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    keep_freed_memory(target)
    # Without the warm-up of the recipe, during which clips are degraded less.
    ids: dict[str, Any] = {"batch_size": batch_size, "clips_per_epoch": EPOCH * batch_size, "warm_up": 0}
    ids |= {"validation_clips": batch_size, "max_epochs": 10**6} | ({"backbone": backbone} if backbone else {})
    ids |= {"clip_size": list(clip_size)} if clip_size else {}
    wanted = tasks.split(",") if isinstance(tasks, str) and tasks else list(tasks)
    files = sorted((ROOT / "configs" / "pretraining").glob("*.json"))
    result: dict[str, Any] = {"machine": machine(target), "settings": {}, "tasks": {}}
    for file in files:
        if wanted and file.stem not in wanted:
            continue
        seconds = measure(file, turns, target, ids)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        result["tasks"][file.stem] = {
            "seconds_per_batch": {
                name: {"median": medians[name], "min": min(values), "max": max(values)}
                for name, values in seconds.items()
            },
            "clips_per_second": {name: batch_size / value for name, value in medians.items()},
            "ratios": {
                "generator_over_step": medians["generator"] / medians["bare"],
                "loop_over_bare": medians["bare"] / medians["loop"],
            },
        }
        print(file.stem, result["tasks"][file.stem]["ratios"], file=sys.stderr, flush=True)
    configured = load_workflow(BUNDLE, "train", overrides=ids).parser
    result["settings"] = {key: configured[key] for key in ("backbone", "clip_size", "clip_scales", "batch_size")} | {
        "turns": turns,
        "precision": "bfloat16" if has_fast_bfloat16(target) else "float32",
    }
    every = [task["ratios"] for task in result["tasks"].values()]
    result["ratios"] = {
        "generator_over_step": max(ratios["generator_over_step"] for ratios in every),
        "loop_over_bare": min(ratios["loop_over_bare"] for ratios in every),
    }
    write_results("pretraining", target, result, output)


if __name__ == "__main__":
    fire.Fire(main)
