"""Files of PyTorch's own: TorchScript (``.ts``) and torch.export (``.pt2``)."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cryo_monai.exports.tracing import Predict, Probabilities, example_volumes, predict_with, traced_program

# The name that MONAI's ckpt_export and load_net_with_metadata use.
METADATA = "metadata.json"


@contextmanager
def _torchscript() -> Iterator[Any]:
    """Give ``torch.jit`` without being told that it is deprecated, which PyTorch 2.15 does at every call."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        # Of attributes that no exported method reads.
        warnings.filterwarnings("ignore", "The TorchScript type system doesn't support instance-level", UserWarning)
        yield torch.jit


def write_torchscript(module: Probabilities, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a network as TorchScript: compiled from its source, but for a backbone that TorchScript cannot compile.

    Such a backbone is traced on clips, whose size is the same whatever the volumes are. The metadata gain
    ``torchscript``: ``"scripted"``, or ``"scripted, backbone traced"``.
    """
    with _torchscript() as jit, torch.no_grad():
        try:
            program, how = jit.script(module), "scripted"
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError):  # of code that it cannot compile or find
            program, how = jit.script(_with_traced_backbone(module)), "scripted, backbone traced"
        jit.save(program, str(path), _extra_files={METADATA: json.dumps({**metadata, "torchscript": how})})


def _with_traced_backbone(module: Probabilities) -> Probabilities:
    """Copy a network and replace its backbone by a trace; whether the batch stayed free is for the caller to see."""
    traced = copy.deepcopy(module)
    for layer in list(traced.modules()):
        for name, part in layer.named_children():
            if type(part).__name__ == "Swish":  # PyTorchVideo's, a Python function with a gradient of its own
                setattr(layer, name, torch.nn.SiLU())
    clips = traced.network.make_clips(example_volumes())
    with warnings.catch_warnings():
        jit: Any = torch.jit
        warnings.simplefilter("ignore", jit.TracerWarning)
        traced.network.backbone = jit.trace(traced.network.backbone, (clips,), check_trace=False)
    return traced


def open_torchscript(path: Path) -> Predict:
    """Load a TorchScript file as a function of arrays."""
    with _torchscript() as jit:
        return predict_with(jit.load(str(path), map_location="cpu"))


def read_torchscript_metadata(path: Path) -> dict[str, Any]:
    """Read what a TorchScript file says of itself."""
    files = {METADATA: ""}
    with _torchscript() as jit:
        jit.load(str(path), map_location="cpu", _extra_files=files)
    return _decoded(files)


def write_torch_export(module: Probabilities, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a network as a torch.export program."""
    program = traced_program(module)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    torch.export.save(program, str(path), extra_files={METADATA: json.dumps(metadata)})


def open_torch_export(path: Path) -> Predict:
    """Load a torch.export file as a function of arrays."""
    return predict_with(torch.export.load(str(path)).module())


def read_torch_export_metadata(path: Path) -> dict[str, Any]:
    """Read what a torch.export file says of itself."""
    files = {METADATA: ""}
    torch.export.load(str(path), extra_files=files)
    return _decoded(files)


def _decoded(files: Mapping[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(files[METADATA])
    return metadata
