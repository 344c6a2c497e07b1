"""How an evaluator asks the network: once, or once per axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from cryo_monai.clips import TIME_AXES, put_time_first


class AxisInferer(Inferer):
    """Ask a `VideoClassifier` with each axis of a volume in the place of time, and average the probabilities.

    Parameters
    ----------
    average_axes : bool
        False asks once, as `SimpleInferer` does.
    """

    def __init__(self, average_axes: bool = False) -> None:
        super().__init__()
        self.average_axes = average_axes

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Score volumes `(B, 1, z, y, x)`: `(B, classes)`, whose softmax is the average of the axes' softmaxes."""
        if not self.average_axes:
            return network(inputs, *args, **kwargs)
        scores = [network(put_time_first(inputs, list(axes)), *args, **kwargs) for axes in TIME_AXES.values()]
        return torch.stack(scores).log_softmax(-1).logsumexp(0) - torch.log(torch.tensor(float(len(scores))))
