"""The formats of exported files, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.exports import onnx_files, safetensors_files, torch_files
from cryo_monai.exports.damage import damage_in_one_line
from cryo_monai.exports.tracing import Predict, Probabilities


@dataclass(frozen=True)
class Format:
    """How to write and read files of a format.

    Attributes
    ----------
    suffix : str
        Of the file's name.
    needs : tuple of str
        Modules beyond what this package always has.
    write : callable
        Makes a file of a network, its metadata and a path.
    open : callable
        Loads a file as a function: volumes `(B, 1, z, y, x)` to probabilities `(B, num_classes)`, both float32 arrays.
    metadata : callable
        Reads what a file says of itself.
    runs_alone : bool
        Whether the program is in the file, or only weights.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[Probabilities, Mapping[str, Any], Path], None]
    open: Callable[[Path], Predict]
    metadata: Callable[[Path], dict[str, Any]]
    runs_alone: bool = True


FORMATS = {
    "torchscript": Format(
        ".ts",
        (),
        torch_files.write_torchscript,
        torch_files.open_torchscript,
        torch_files.read_torchscript_metadata,
    ),
    "onnx": Format(
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        onnx_files.write_onnx,
        onnx_files.open_onnx,
        onnx_files.read_onnx_metadata,
    ),
    "torch_export": Format(
        ".pt2",
        (),
        torch_files.write_torch_export,
        torch_files.open_torch_export,
        torch_files.read_torch_export_metadata,
    ),
    "safetensors": Format(
        ".safetensors",
        (),
        safetensors_files.write_safetensors,
        safetensors_files.open_safetensors,
        safetensors_files.read_safetensors_metadata,
        runs_alone=False,
    ),
}


def look_up_format(name: str) -> Format:
    """Return a format that can be written and read here.

    Raises
    ------
    InputError
        For unknown names, with the nearest, and naming what is not installed.
    """
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--format {name}: is not one of {', '.join(FORMATS)}{hint}")
    missing = [module for module in FORMATS[name].needs if find_spec(module) is None]
    if missing:
        raise InputError(f"--format {name}: needs {', '.join(missing)}: pip install 'cryo-monai[export]'")
    return FORMATS[name]


def _format_of(path: Path) -> Format:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not path.stat().st_size:
        raise InputError(f"{path}: an empty file")  # which ONNX takes for a model without metadata
    names = [name for name, known in FORMATS.items() if path.suffix == known.suffix]
    if not names:
        raise InputError(f"{path}: not an exported file; their names end in {', '.join(map(_suffix, FORMATS))}")
    return look_up_format(names[0])


def _suffix(name: str) -> str:
    return FORMATS[name].suffix


def open_export(path: str | os.PathLike[str]) -> Predict:
    """Load a file of ``cryo-monai export`` as a function of float32 arrays, on the CPU.

    Parameters
    ----------
    path : path
        Its name tells the format.

    Returns
    -------
    callable
        Maps volumes `(B, 1, z, y, x)` to probabilities `(B, num_classes)`.

    Raises
    ------
    InputError
        Naming the file when it is missing or damaged, or when what reads it is not installed.
    """
    with damage_in_one_line(path):
        return _format_of(Path(path)).open(Path(path))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a file of ``cryo-monai export`` says of itself; docs/exports.md lists the keys.

    Raises
    ------
    InputError
        As `open_export`.
    """
    with damage_in_one_line(path):
        return _format_of(Path(path)).metadata(Path(path))
