"""How much memory a training step takes, counted without doing its arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cryo_monai.networks import VideoClassifier


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of a training step in bytes.

    Attributes
    ----------
    fixed : int
        Whatever the batch: weights, gradients, the optimiser's state.
    per_sample : int
        That one more volume in the batch takes at the worst moment of the step.
    """

    fixed: int
    per_sample: int

    def total(self, batch_size: int) -> int:
        """Return the bytes that a batch takes."""
        return self.fixed + batch_size * self.per_sample

    def largest_batch(self, available: int) -> int:
        """Return the largest batch that fits into so many bytes; 0 if none does."""
        return max(0, (available - self.fixed) // self.per_sample)


def estimate_training_memory(network: VideoClassifier, *, optimizer_states: int = 1) -> TrainingMemory:
    """Estimate the memory of a training step: forward, backward, optimiser.

    The step is run on tensors with shapes but no numbers, and the bytes that are alive at once are counted; the largest
    tensor that a convolution meets is added twice, for the copies that its kernels make in layouts of their own.
    Fragmentation and the context of a device are not in it.

    Parameters
    ----------
    network : VideoClassifier
        As it will be trained: precision, frozen stages and gradient checkpointing count. It is not changed.
    optimizer_states : int
        Numbers that the optimiser keeps per weight: 1 for SGD with momentum, 2 for Adam.

    Returns
    -------
    TrainingMemory
        From batches of 2 and 4.
    """
    training = network.training
    network.train()
    with torch.random.fork_rng(devices=[]):
        small, large = (_step_bytes(network, size) for size in (2, 4))
    network.train(training)
    per_sample = (large - small) // 2
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    states = optimizer_states * sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    return TrainingMemory(weights + states + max(0, small - 2 * per_sample), per_sample)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.convolved = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._seen:
                    size = storage.nbytes()
                    self._seen[storage] = size
                    weakref.finalize(storage, self._free, size)
                    self.now += size
                    self.peak = max(self.peak, self.now)
        if "convolution" in str(func):
            operands = (leaf for leaf in tree_leaves((args, outputs)) if isinstance(leaf, Tensor))
            self.convolved = max(self.convolved, *(operand.nbytes for operand in operands))
        return outputs

    def _free(self, size: int) -> None:
        self.now -= size


class _Step(nn.Module):
    """Forward and backward in one call, so that recomputed blocks meet the same tensors in both."""

    def __init__(self, network: VideoClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Tensor) -> None:
        self.network(volumes).sum().backward()


def _step_bytes(network: VideoClassifier, batch_size: int) -> int:
    """Return the most bytes alive at once in forward and backward, beside weights and buffers."""
    step = _Step(network)
    with FakeTensorMode() as fake:
        tensors: dict[str, Tensor] = {key: fake.from_tensor(tensor) for key, tensor in step.named_parameters()}
        tensors |= {key: fake.from_tensor(tensor) for key, tensor in step.named_buffers()}
        volumes = torch.zeros(batch_size, 1, *network.clip_size)
        live = _LiveBytes()
        with live:
            torch.func.functional_call(step, tensors, (volumes,))
        return live.peak + 2 * live.convolved
