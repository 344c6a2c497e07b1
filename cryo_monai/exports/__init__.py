"""A trained network as one file that other programs run: raw volumes in, class probabilities out.

Read in this order: `tracing` (what is exported), `torch_files`, `onnx_files` and `safetensors_files` (a file of each
kind), `damage` (files that cannot be read), `formats` (their table), `agreement` (is a file the network it was made
of?), `provenance` (what a file says of itself) and `exporting` (a run to a file). docs/exports.md is for those who use
the files.
"""

from __future__ import annotations

from cryo_monai.exports.exporting import Exported, export_network, export_run, some_test_volumes
from cryo_monai.exports.formats import FORMATS, open_export, read_metadata
from cryo_monai.exports.safetensors_files import load_safetensors

__all__ = [
    "FORMATS",
    "Exported",
    "export_network",
    "export_run",
    "load_safetensors",
    "open_export",
    "read_metadata",
    "some_test_volumes",
]
