"""A layer of a backbone by name, and its output as a map with channels first that gradients can be read from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cryo_monai.backbones import look_up_backbone
from cryo_monai.errors import InputError
from cryo_monai.explanations.cells import Cells, Shape, follow_cells
from cryo_monai.networks import VideoClassifier

MAP = "map"  # the part of a tap that sees the map


def find_layer(network: VideoClassifier, layer: str) -> str:
    """Return the name of a module within the backbone.

    Parameters
    ----------
    network : VideoClassifier
        Whose backbone is looked into.
    layer : str
        A module's name, with or without ``backbone.``; or ``stem``, ``stage1`` to ``stage4`` (``layer1`` to ``layer4``
        mean the same where no module is called so): the last module of that stage before maps shrink again.

    Raises
    ------
    InputError
        Naming the nearest modules.
    """
    names = [name for name, _ in network.backbone.named_modules() if name]
    wanted = layer.removeprefix("backbone.")
    if wanted in names:
        return wanted
    stage = re.fullmatch(r"stem|(?:layer|stage)([1-4])", wanted)
    if stage:
        prefixes = look_up_backbone(network.backbone_name).stages[int(stage[1] or 0)]
        modules = [prefix.rstrip(".") for prefix in prefixes]
        merging = {n for n in modules if type(network.backbone.get_submodule(n)).__name__ == "PatchMerging"}
        return next(name for name in reversed(modules) if name not in merging)
    near = get_close_matches(wanted, [*names, "stem", *(f"stage{n}" for n in range(1, 5))], n=4)
    hint = f"; near are {', '.join(near)}" if near else "; give stage1 to stage4, or a module of the backbone"
    raise InputError(f"layer: {layer!r} is no module of {network.backbone_name}{hint}")


@contextmanager
def tapped(network: VideoClassifier, name: str) -> Iterator[tuple[str, Mapping[Shape, Cells]]]:
    """Put a tap where a module of the backbone is, and the module back at the end.

    Behind the tap nothing has changed; in it, the module's output is seen as a map `(B, C, t, h, w)`, which is where
    the graph of gradients begins: nothing before it needs gradients or memory for them, frozen or not.

    Parameters
    ----------
    network : VideoClassifier
        Left as it was found, also after errors.
    name : str
        Of `find_layer`.

    Yields
    ------
    tuple
        Name in the network of a module whose output is the map; and the cells of maps, see `follow_cells`.
    """
    backbone = network.backbone
    parent, _, child = name.rpartition(".")
    holder, inner = backbone.get_submodule(parent), backbone.get_submodule(name)
    tokens_last = look_up_backbone(network.backbone_name).build.__name__ == "torchvision_swin"
    with follow_cells(backbone, network.clip_size) as cells:
        setattr(holder, child, _Tap(inner, name, cells, tokens_last and not isinstance(inner, nn.Conv3d)))
        try:
            yield f"backbone.{name}.{MAP}", cells
        finally:
            setattr(holder, child, inner)


@contextmanager
def undisturbed(network: VideoClassifier) -> Iterator[None]:
    """Evaluate a network in float32 at temperature 1, without gradients of parameters; then all is as it was."""
    modes = [(module, module.training) for module in network.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    precision, temperature = network.precision, network.temperature
    try:
        network.eval()
        network.precision, network.temperature = "float32", 1.0
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        network.precision, network.temperature = precision, temperature
        for module, mode in modes:
            module.training = mode
        for parameter, wanted, gradient in parameters:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


class _Tap(nn.Module):
    """A module whose output passes through an identity as a map with channels first."""

    def __init__(self, inner: nn.Module, name: str, cells: Mapping[Shape, Cells], channels_last: bool) -> None:
        super().__init__()
        self.inner = inner
        self.name = name
        self.cells = cells
        self.channels_last = channels_last
        self.map = nn.Identity()

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = self.inner(*arguments, **options)
        # MViT's blocks give tokens and their grid.
        several = isinstance(output, (tuple, list))
        tensor = output[0] if several else output
        grid, put_back = self._as_map(tensor, output[1] if several and len(output) == 2 else None)
        # A clone, since what comes next may work in place.
        seen = put_back(self.map(grid.detach().requires_grad_(torch.is_grad_enabled())).clone())
        return type(output)([seen, *output[1:]]) if several else seen

    def _as_map(self, tensor: Any, shape: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if isinstance(tensor, Tensor) and tensor.ndim == 5:
            if self.channels_last:
                return tensor.movedim(-1, 1), lambda grid: grid.movedim(1, -1)
            return tensor, lambda grid: grid
        if isinstance(tensor, Tensor) and tensor.ndim == 3:
            found = self._grid_of(tensor.shape[1], shape)
            if found is not None:
                leading = tensor[:, : tensor.shape[1] - math.prod(found)]  # the class token, where there is one
                tokens = tensor[:, leading.shape[1] :]
                grid = tokens.transpose(1, 2).reshape(tensor.shape[0], tensor.shape[2], *found)
                return grid, lambda g: torch.cat([leading, g.flatten(2).transpose(1, 2)], dim=1)
        shown = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"layer {self.name}: its output {shown} is no feature map; choose another, such as stage3")

    def _grid_of(self, tokens: int, shape: Any) -> Shape | None:
        """Grid `(t, h, w)` of tokens with or without a class token: the one that came with them, or the last seen."""
        known = [shape] if isinstance(shape, (tuple, list)) and len(shape) == 3 else list(self.cells)[::-1]
        for grid in known:
            if math.prod(grid) in (tokens, tokens - 1):
                return int(grid[0]), int(grid[1]), int(grid[2])
        return None
