"""Weights of a pre-training on generated clips as a small file, and how they were made.

The file has the backbone in half precision, the description of its network, and the command that makes it again. The
same weights give the same bytes: what differs between two identical trainings (hours, threads, versions) is in a JSON
beside it, with its SHA-256.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from safetensors.torch import save
from torch import Tensor

from cryo_monai.checkpoints import load_verified
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.networks import read_description
from cryo_monai.runs import CIRCUMSTANCES, CONFIGURATION, HOW, PLACES, read_json, read_run
from cryo_monai.weight_files import PRETRAINING

BUNDLE = "_bundle_"  # key of a task file: the bundle that it is for, relative to the file
FILE = "weights.safetensors"
LICENCE = "Apache-2.0"
_STATE = "_extra_state"


def bundle_of_task(task: str | os.PathLike[str]) -> Path:
    """Return the bundle that a task file is for.

    Raises
    ------
    InputError
        When the file is not there or not readable, names no bundle, or one that is not there.
    """
    file = Path(task)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a task, such as configs/pretraining/assemblies.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    named = content.get(BUNDLE) if isinstance(content, dict) else None
    if not isinstance(named, str):
        raise InputError(f"{file}: no task of pre-training: it names no bundle ({BUNDLE!r})")
    bundle = Path(os.path.normpath(file.resolve().parent / named))
    if not (bundle / "configs" / "train.json").is_file():
        raise InputError(f"{file}: its bundle {bundle} is not there")
    return bundle


def overlays_of_task(
    task: str | os.PathLike[str], run_dir: str | os.PathLike[str], overlays: Sequence[str] = (), *, resume: bool = False
) -> list[str]:
    """Return the task with the overlays after it; a resumed run keeps those that it was started with.

    Raises
    ------
    InputError
        When the run was started with another task.
    """
    others = list(overlays)
    if resume and (Path(run_dir) / "run.json").is_file():
        before = list(read_run(run_dir)[1]["overlays"])
        begun = Path(before[0]).name if before else "no task"
        if begun != Path(task).name:
            raise InputError(f"{run_dir}: was begun with {begun}, not with {Path(task).name}")
        others = others or before[1:]
    return [str(task), *others]


def write_weights(run_dir: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the best weights of a pre-training as safetensors, for ``--weights``, and a JSON of the same name.

    Parameters
    ----------
    run_dir : path
        Run folder of a bundle that trains on generated clips.
    output : path, optional
        ``weights.safetensors`` in the run folder by default, which is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        When the run has no weights, was trained on other data, has values that half precision does not hold, or there
        is another file at ``output``.
    """
    folder, record = read_run(run_dir)
    target = Path(output) if output is not None else folder / FILE
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: give a name that ends in .safetensors")
    if "generated" not in record.get("data", {}):
        raise InputError(f"{folder}: was not trained on generated clips; give its models/model.pt to --weights")
    checkpoint = folder / "models" / "model.pt"
    state = load_verified(checkpoint)
    tensors = backbone_in_halves(state, checkpoint)
    metrics = read_json(folder / "metrics.json")
    about = _about(folder, record, metrics, state[_STATE])
    content = save(tensors, metadata={PRETRAINING: json.dumps(about, sort_keys=True)})
    if output is not None and target.exists() and target.read_bytes() != content:
        raise InputError(f"{target}: there already, with other weights; give another output")
    atomic_write_bytes(target, content)
    note = {
        "file": target.name,
        "sha256": sha256_of(target),
        "bytes": len(content),
        **about,
        "hours": round(math.fsum(row.get("seconds") or 0.0 for row in metrics["history"]) / 3600, 4),
        "environment": metrics.get("environment", {}),
    }
    atomic_write_text(target.with_suffix(".json"), json.dumps(note, indent=1) + "\n")
    return target


def backbone_in_halves(state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Take the backbone out of a network's state, in half precision, and the network's description as it is.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of a `VideoClassifier`.
    source : path
        Where it is from, for errors.

    Returns
    -------
    dict of str to Tensor
        Under the same names, so that it is read as a checkpoint of this package.

    Raises
    ------
    InputError
        When a value is not finite, or beyond ± 65504, or there is no backbone.
    """
    tensors = {key: _halved(key, value, source) for key, value in state.items() if key.startswith("backbone.")}
    if not tensors or _STATE not in state:
        raise InputError(f"{source}: not a checkpoint of VideoClassifier")
    return tensors | {_STATE: state[_STATE].clone()}


def _halved(key: str, tensor: Tensor, source: str | os.PathLike[str]) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone().contiguous()
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if not largest <= torch.finfo(torch.float16).max:
        raise InputError(f"{source}: {key} has {largest:.4g}, which half precision does not hold (65504 at most)")
    return tensor.half().contiguous()


def _about(folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any], description: Tensor) -> dict[str, Any]:
    """Say how weights were made: what two identical trainings have in common."""
    network = read_description(description)
    parser = ConfigParser(read_json(folder / CONFIGURATION))
    best = metrics.get("best") or metrics["history"][-1]
    # Values of rows that follow from the training alone: not the seconds.
    scores = {name: value for name, value in best.items() if name.startswith(("train_", "val_"))}
    began_from = record.get("initialisation", {}).get("sha256")
    return {
        "command": command_of(record),
        "task": Path(record["overlays"][0]).name if record["overlays"] else Path(record["bundle"]).name,
        "backbone": network["backbone"],
        "backbone_options": network["backbone_options"],
        "clip_size": list(network["clip_size"]),
        "clip_sizes": record["data"]["generated"]["sizes"],
        "classes": len(network["class_names"]),
        "data": "generated",
        "licence": LICENCE + (", and that of the weights it began from" if began_from else ""),
        "began_from": began_from,
        "seed": parser.get_parsed_content("seed"),
        "clips": best["epoch"] * _clips_per_epoch(parser),
        "metrics": scores | {"epoch": best["epoch"]},
    }


def _clips_per_epoch(parser: ConfigParser) -> int:
    """Clips that an epoch passes through the network: whole batches, where there is one."""
    clips, batch = (int(parser.get_parsed_content(name)) for name in ("clips_per_epoch", "batch_size"))
    return clips - clips % batch if clips >= batch else clips


def command_of(record: Mapping[str, Any]) -> str:
    """Write the command that makes a run again, into a folder ``DIR``, without names of folders of this machine.

    Parameters
    ----------
    record : mapping
        Of `read_run`.
    """
    overlays = [_portable(overlay) for overlay in record["overlays"]]
    words = ["cryo-monai", "train", f"bundles/{Path(record['bundle']).name}", "DIR", "--report", "False"]
    if overlays and _is_task(record["overlays"][0]):
        words = ["cryo-monai", "pretrain", overlays.pop(0), "DIR"]
    if overlays:
        words += ["--overlays", ",".join(overlays)]
    for name, value in sorted(record["ids"].items()):
        if name.split("#")[0] not in (*CIRCUMSTANCES, *HOW):
            value = _portable(value) if name in PLACES and value else value
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def _is_task(overlay: str) -> bool:
    try:
        return BUNDLE in json.loads(Path(overlay).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False


def _portable(path: Any) -> str:
    """Write a path from ``configs/`` on, or its name alone."""
    *folders, name = Path(str(path)).parts
    if "configs" not in folders:
        return name
    last = len(folders) - 1 - folders[::-1].index("configs")
    return "/".join([*folders[last:], name])
