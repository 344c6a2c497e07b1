"""What is exported: a `VideoClassifier` that ends in probabilities, and its graph with free sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cryo_monai.networks import VideoClassifier

INPUT, OUTPUT = "volumes", "probabilities"
AXES = ("batch", "channel", "z", "y", "x")
# Volumes that a graph is traced with. Unequal and not 1, so that no axis is taken for another or for a constant.
_SHAPE = (2, 1, 11, 12, 14)

Floats = npt.NDArray[np.float32]
Predict = Callable[[Floats], Floats]


class Probabilities(nn.Module):
    """A classifier whose output is the softmax of its scores.

    Parameters
    ----------
    network : VideoClassifier
        Its scores are divided by the temperature already, so that these are the calibrated probabilities.
    """

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Tensor) -> Tensor:
        """Map volumes `(B, 1, z, y, x)` to `(B, num_classes)`, float32; rows sum to 1."""
        probabilities: Tensor = self.network(volumes).softmax(dim=-1)
        return probabilities


def exported_module(network: VideoClassifier) -> Probabilities:
    """Copy a network to the CPU, for evaluation in float32, with tensors in the order that files keep."""
    module = copy.deepcopy(network).cpu().float().eval()
    module.precision = "float32"
    module.memory_format = torch.contiguous_format
    return Probabilities(module.to(memory_format=torch.contiguous_format)).eval().requires_grad_(False)


def example_volumes() -> Tensor:
    """Volumes that a graph is traced with."""
    return torch.rand(_SHAPE, generator=torch.Generator().manual_seed(0))


def traced_program(module: Probabilities) -> ExportedProgram:
    """Capture a network as a graph in which batch size and all sizes of volumes are free."""
    free = {0: Dim("batch", min=1), 2: Dim("z", min=2), 3: Dim("y", min=2), 4: Dim("x", min=2)}
    return torch.export.export(module, (example_volumes(),), dynamic_shapes={INPUT: free}, strict=False)


def predict_with(module: Callable[[Tensor], Tensor]) -> Predict:
    """Make a PyTorch module a function of arrays."""

    def predict(volumes: Floats) -> Floats:
        with torch.inference_mode():
            return module(torch.from_numpy(volumes)).numpy()

    return predict
