"""How an engine asks the network: once, once per axis, with features left out at random, or at any clip size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from cryo_monai.backbones import look_up_backbone
from cryo_monai.clips import TIME_AXES, put_time_first
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier


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


class DropoutInferer(AxisInferer):
    """`AxisInferer` that draws from a network in training mode: what is dropped out varies, and nothing else.

    MONAI Label ranks volumes by the entropy of several answers in training mode. There, batch norm would normalise each
    volume by itself, which no network was trained for: answers and ranking would be arbitrary. Evaluators put the
    network in evaluation mode, in which this is `AxisInferer`.

    Parameters
    ----------
    average_axes : bool
        See `AxisInferer`.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Score volumes `(B, 1, z, y, x)`: `(B, classes)`."""
        if isinstance(network, nn.Module) and network.training:
            for layer in network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return super().__call__(inputs, network, *args, **kwargs)


class NativeSizeInferer(Inferer):
    """Show a `VideoClassifier` clips of the size that they have, where it would resample all to its own.

    Parameters
    ----------
    classifier : VideoClassifier
        The network that is asked, without what wraps it for several processes.
    sizes : sequence of sequence of int
        What will be shown.

    Raises
    ------
    InputError
        When there are several sizes and the backbone takes one alone.
    """

    def __init__(self, classifier: VideoClassifier, sizes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if len({tuple(size) for size in sizes}) > 1 and look_up_backbone(classifier.backbone_name).tokens:
            raise InputError(f"clip_scales: {classifier.backbone_name} takes clips of one size; give '[1.0]'")
        self.classifier = classifier

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Score clips `(B, 1, D, H, W)`: `(B, classes)`."""
        own = self.classifier.clip_size
        self.classifier.clip_size = [inputs.shape[axis + 2] for axis in self.classifier.volume_axes]
        try:
            return network(inputs, *args, **kwargs)
        finally:
            self.classifier.clip_size = own
