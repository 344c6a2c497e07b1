"""What an exported file says of itself: how to use it, what it was trained on, how well it did."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cryo_monai
from cryo_monai.errors import InputError
from cryo_monai.exports.tracing import AXES, INPUT, OUTPUT
from cryo_monai.fetching import sha256_of
from cryo_monai.networks import VideoClassifier
from cryo_monai.packaged_recipes import portable_initialisation, without_places
from cryo_monai.runs import read_json

_PACKAGES = ("monai", "torch", "torchvision", "pytorchvideo", "transformers", "onnx", "onnxscript")
_TEST_METRICS = ("num_volumes", "accuracy", "auc", "balanced_accuracy", "macro_f1", "intervals")


def describe_network(network: VideoClassifier, *, runs_alone: bool = True) -> dict[str, Any]:
    """Describe a network and, for files that have it in them, its input and output.

    Parameters
    ----------
    network : VideoClassifier
        What is exported.
    runs_alone : bool
        Whether the program is in the file.

    Returns
    -------
    dict
        Plain values, for JSON.
    """
    described = network.description()
    names, temperature = described.pop("class_names"), described.pop("temperature")
    ports = {
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["batch", 1, *AXES[2:]],
            "meaning": "raw volumes, any intensity range and size, all of one batch of the same size",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", len(names)],
            "meaning": "softmax of the scores divided by the temperature, in the order of class_names",
        },
    }
    return {
        "class_names": names,
        "temperature": temperature,
        **(ports if runs_alone else {}),
        "network": described,
        "versions": _versions(),
    }


def describe_run(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the run that a network comes from.

    Parameters
    ----------
    folder : Path
        The run folder, with its best weights.
    record : mapping
        What its ``run.json`` says.

    Returns
    -------
    dict
        Plain values, for JSON: ``bundle``, ``run``, ``model_sha256`` and ``metrics``.
    """
    bundle, weights = Path(record["bundle"]), folder / "models" / "model.pt"
    about = read_json(bundle / "configs" / "metadata.json")
    digest = sha256_of(weights)
    return {
        "bundle": {"name": bundle.name, "version": about.get("version"), "intended_use": about.get("intended_use")},
        "run": {
            "name": folder.resolve().name,
            "command": without_places(record["command"]),
            "initialisation": portable_initialisation(record),
            "data": record.get("data", {}),
        },
        "model_sha256": digest,
        "metrics": {"validation": _validation(folder), "test": _test(folder, digest)},
    }


def _validation(folder: Path) -> dict[str, Any] | None:
    """Return the row of the best epoch, when training left one."""
    file = folder / "metrics.json"
    return read_json(file).get("best") if file.is_file() else None


def _test(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return the numbers of the test split, when they are of these weights."""
    try:
        numbers = read_json(folder / "evaluation.json")
    except InputError:
        return None
    if numbers.get("checkpoint", {}).get("sha256") != digest:
        return None
    return {name: numbers[name] for name in _TEST_METRICS if name in numbers}


def _versions() -> dict[str, str]:
    found = {"cryo-monai": cryo_monai.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
