"""ONNX files: standard operators only, for onnxruntime, TensorRT and others that have no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cryo_monai.errors import CryoMonaiError
from cryo_monai.exports.tracing import AXES, INPUT, OUTPUT, Floats, Predict, Probabilities, traced_program


def write_onnx(module: Probabilities, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a network as ONNX.

    Raises
    ------
    CryoMonaiError
        When it would need operators that are not ONNX's own.
    """
    onnx: Any = import_module("onnx")
    program: Any = torch.onnx.export(
        traced_program(module),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
        custom_translation_table={torch.ops.aten._adaptive_avg_pool3d.default: _adaptive_pool},
    )
    model = program.model_proto
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain})
    if foreign or model.functions:
        raise CryoMonaiError(f"needs operators that ONNX does not have: {', '.join(foreign) or 'functions'}")
    _tidy(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _adaptive_pool(maps: Any, sizes: list[int]) -> Any:
    """Translate an average over equal parts of a map, for which ONNX has no operator of that name and PyTorch none."""
    operators: Any = import_module("onnxscript").opset20
    shape = list(maps.shape[2:])
    if any(size % parts for size, parts in zip(shape, sizes, strict=True)):
        raise ValueError(f"ONNX has no average of a map {shape} over {sizes} parts: they are not equal")
    kernel = [size // parts for size, parts in zip(shape, sizes, strict=True)]
    return operators.AveragePool(maps, kernel_shape=kernel, strides=kernel)


def _tidy(model: Any) -> None:
    """Name the free axes, and drop where in which source file each operator came from."""
    graph = model.graph
    axes = [axis.dim_param for axis in graph.input[0].type.tensor_type.shape.dim]
    names = {param: name for param, name in zip(axes, AXES, strict=True) if param}
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = names.get(axis.dim_param, axis.dim_param)
    del graph.value_info[:]
    noted: Iterable[Any] = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for part in noted:
        del part.metadata_props[:]


def open_onnx(path: Path) -> Predict:
    """Load an ONNX file into onnxruntime, on the CPU, with as many threads as PyTorch has."""
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(volumes: Floats) -> Floats:
        probabilities: Floats = session.run([OUTPUT], {INPUT: volumes})[0]
        return probabilities

    return predict


def read_onnx_metadata(path: Path) -> dict[str, Any]:
    """Read what an ONNX file says of itself."""
    onnx: Any = import_module("onnx")
    return {entry.key: json.loads(entry.value) for entry in onnx.load(str(path)).metadata_props}
