"""safetensors files: weights and what network they belong to, without a program."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.exports.damage import damage_in_one_line
from cryo_monai.exports.tracing import Predict, Probabilities, exported_module, predict_with
from cryo_monai.networks import VideoClassifier
from cryo_monai.weight_files import load_tensors

_STATE = "_extra_state"  # the description as a tensor; here it is in the metadata


def write_safetensors(module: Probabilities, metadata: Mapping[str, Any], path: Path) -> None:
    """Write the weights of a network, bit for bit, with its description."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {
        key: tensor.contiguous() for key, tensor in module.network.state_dict().items() if key != _STATE
    }
    described = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    path.write_bytes(save(tensors, metadata=described))  # save_file would make it its owner's alone


def load_safetensors(path: str | os.PathLike[str], *, precision: str = "auto") -> VideoClassifier:
    """Build the network that a file of ``cryo-monai export --format safetensors`` describes, with its weights.

    Parameters
    ----------
    path : path
        The file.
    precision : str
        See `VideoClassifier`.

    Returns
    -------
    VideoClassifier
        For evaluation, on the CPU, with class names, temperature, mean and std of the run.

    Raises
    ------
    InputError
        Naming the file when it is missing, damaged, or another file of weights.
    """
    tensors = load_tensors(path)
    with damage_in_one_line(path):
        metadata = read_safetensors_metadata(Path(path))
        if "network" not in metadata:
            raise InputError(f"{path}: does not say what network it belongs to; export it with `cryo-monai export`")
        described = dict(metadata["network"])
        network = VideoClassifier(len(metadata["class_names"]), precision=precision, **described)
        network.set_class_names(metadata["class_names"])
        network.temperature = metadata["temperature"]
    try:
        network.load_state_dict({**tensors, _STATE: network.get_extra_state()})
    except RuntimeError as error:
        raise InputError(f"{path}: does not fit its network ({' '.join(str(error).split())[:300]})") from error
    return network.eval()


def open_safetensors(path: Path) -> Predict:
    """Load a safetensors file as a function of arrays: with this package, as it has no program in it."""
    return predict_with(exported_module(load_safetensors(path, precision="float32")))


def read_safetensors_metadata(path: Path) -> dict[str, Any]:
    """Read what a safetensors file says of itself."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        described: dict[str, str] = file.metadata() or {}
    return {key: json.loads(value) for key, value in described.items()}
