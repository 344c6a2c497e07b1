"""What a network that learns several generated tasks at once is asked, and how well it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from ignite.metrics import Accuracy
from torch import Tensor, nn

from cryo_monai.errors import InputError
from cryo_monai.generation.generator import ClipGenerator


class OwnTask:
    """Scores of a clip's own task: an ``output_transform`` for metrics of trainers whose outputs stay whole batches.

    Parameters
    ----------
    clips : ClipGenerator
        Says which outputs belong together.
    task : str
        Only clips of this task; all by default.
    """

    def __init__(self, clips: ClipGenerator, task: str = "") -> None:
        if task and task not in clips.tasks:
            raise InputError(f"task: {task!r} is not one of {', '.join(clips.tasks)}")
        self.others = _others(clips)
        self.task = list(clips.tasks).index(task) if task else None

    def __call__(self, output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores, those of other tasks minus infinity, and classes."""
        classes = output["label"][:, 0].long()
        others, task_of = (table.to(classes.device) for table in self.others)
        scores = output["pred"][:, : others.shape[1]] + others[task_of[classes]]
        if self.task is None:
            return scores, classes
        own = task_of[classes] == self.task
        return scores[own], classes[own]


class _TaskAccuracy(Accuracy):
    """NaN, not an error, when no clip was of the task."""

    def compute(self) -> float:
        return super().compute() if self._num_examples else float("nan")


def task_accuracies(clips: ClipGenerator) -> dict[str, Accuracy]:
    """Return a metric for every task, called ``val_TASK``; NaN where there were no clips of it."""
    return {f"val_{task}": _TaskAccuracy(output_transform=OwnTask(clips, task)) for task in clips.tasks}


class GeneratedTasksLoss(nn.Module):
    """Cross-entropy among the classes of each clip's own task, and what the further heads add.

    Parameters
    ----------
    clips : ClipGenerator
        Says which outputs belong together, and which heads there are.
    symmetry_weight, axis_weight : float
        Of the cross-entropy of the symmetry, and of the mean squared error of the main axis' matrix ``n n^T``.
    """

    def __init__(self, clips: ClipGenerator, *, symmetry_weight: float = 0.2, axis_weight: float = 1.0) -> None:
        super().__init__()
        self.others = _others(clips)
        ends = torch.tensor([0, *(len(names) for names in clips.groups.values())]).cumsum(0).tolist()
        self.ranges = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(clips.groups)}
        self.weights = {"symmetry": symmetry_weight, "axis": axis_weight}

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores `(B, outputs)` and targets as `ClipGenerator.generate` makes them."""
        classes = targets[:, 0].long()
        others, task_of = (table.to(scores.device) for table in self.others)
        loss = F.cross_entropy(scores[:, : others.shape[1]] + others[task_of[classes]], classes)
        if "symmetry" in self.ranges:
            symmetry = targets[:, 1].long()
            summed = F.cross_entropy(scores[:, self.ranges["symmetry"]], symmetry, ignore_index=-1, reduction="sum")
            loss = loss + self.weights["symmetry"] * summed / (symmetry >= 0).sum().clamp(min=1)
        if "axis" in self.ranges:
            wanted = targets[:, 2:]
            known = ~wanted.isnan()
            off = torch.where(known, scores[:, self.ranges["axis"]] - wanted.nan_to_num(), 0.0)
            loss = loss + self.weights["axis"] * off.square().sum() / known.sum().clamp(min=1)
        return loss


def _others(clips: ClipGenerator) -> tuple[Tensor, Tensor]:
    """Return 0 for classes of a task and minus infinity for all others `(tasks, classes)`; the task of each class."""
    sizes: list[Any] = [len(names) for task, names in clips.groups.items() if task in clips.tasks]
    task_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    others = torch.where(task_of[None] == torch.arange(len(sizes))[:, None], 0.0, -torch.inf)
    return others, task_of
