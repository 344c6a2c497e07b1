"""Generated clips as MONAI's trainers want them: a data set of numbers, and what turns a batch of them into clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cryo_monai.errors import InputError
from cryo_monai.generation.generator import ClipGenerator

# Clips that validation sees are none that training ever reaches.
HELD_OUT = 1 << 40


class ClipNumbers(Dataset[dict[str, int]]):
    """The clips of an epoch: items ``{"index": 0}``, ``{"index": 1}`` and so on, and nothing else.

    Parameters
    ----------
    clips : ClipGenerator
        What they are numbers of.
    count : int
        How many an epoch has.

    Raises
    ------
    InputError
        When there are none.
    """

    def __init__(self, clips: ClipGenerator, count: int) -> None:
        if count < 1:
            raise InputError(f"clips of an epoch: {count} must be 1 or more")
        self.clips = clips
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {"index": index}

    def description(self) -> dict[str, Any]:
        """Return what the clips are, as plain values."""
        return self.clips.description() | {"clips_per_epoch": self.count}


class GeneratedBatches:
    """Make the clips of a batch on the device: a ``prepare_batch`` for MONAI's trainers and evaluators.

    Parameters
    ----------
    clips : ClipGenerator
        Makes them.
    count : int
        Clips of an epoch: every epoch has others. Set by `EpochStart`.
    held_out : bool
        For validation: the same clips whatever the epoch, which training never sees.
    """

    def __init__(self, clips: ClipGenerator, count: int, *, held_out: bool = False) -> None:
        self.clips = clips
        self.count = count
        self.first = HELD_OUT if held_out else 0
        self.held_out = held_out
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Make other clips from now on, unless they are held out."""
        self.epoch = epoch

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Make a batch.

        Parameters
        ----------
        batchdata : mapping
            ``index`` `(B,)`.
        device : torch.device
            Where the network is.
        non_blocking, kwargs
            Not used.

        Returns
        -------
        tuple
            Clips and targets, see `ClipGenerator.generate`.
        """
        first = self.first if self.held_out else (self.epoch - 1) * self.count
        return self.clips.generate(batchdata["index"].long().cpu() + first, device or "cpu")
