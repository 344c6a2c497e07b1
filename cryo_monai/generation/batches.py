"""Generated clips as MONAI's engines want them: a data set of numbers, and a loader that makes clips of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cryo_monai.datasets import ResumableSampler
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


class GeneratedBatches(DataLoader[Any]):
    """A loader whose batches are made on the device, some at once: small batches cost more than their clips.

    All clips of a batch have one size; batches take the sizes of `ClipGenerator` in turn. Neither that nor which are
    made together depends on where an iteration begins (`ResumableSampler.skip`): clips are the same to rounding in any
    company, and bit for bit in the same.

    Parameters
    ----------
    dataset : ClipNumbers
        The clips of an epoch. Every epoch makes others of them; set by `EpochStart`.
    batch_size : int
        Clips of a batch.
    device : torch.device
        Where they are made.
    sampler : iterable, optional
        Order of the numbers; None takes them as they come.
    drop_last : bool
        Leave a last batch out that is not full.
    held_out : bool
        For validation: the same clips whatever the epoch, which training never sees.

    Attributes
    ----------
    together : int
        How many batches are made at once: as many of each size.

    Yields
    ------
    dict
        ``image`` and ``label``: clips and targets of `ClipGenerator.generate`.
    """

    def __init__(
        self,
        dataset: ClipNumbers,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        sampler: Iterable[int] | None = None,
        drop_last: bool = False,
        held_out: bool = False,
    ) -> None:
        self.clips = dataset.clips
        self.count = dataset.count
        self.device = device
        self.held_out = held_out
        self.epoch = 1
        self.together = len(self.clips.sizes) * max(1, self.clips.at_once() // batch_size)
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make other clips from now on, unless they are held out."""
        self.epoch = epoch

    # torch says that it is an iterator class of its own; a generator does as well.
    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        first = HELD_OUT if self.held_out else (self.epoch - 1) * self.count
        done = self._step_back()
        batches: Iterator[list[int]] = iter(self.batch_sampler)  # type: ignore[arg-type]  # there, as batch_size is
        while several := list(islice(batches, self.together)):
            for image, label in self._made([torch.tensor(batch) + first for batch in several])[done:]:
                yield {"image": image, "label": label}
            done = 0

    def _made(self, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Make clips and targets of batches of numbers, those of one size together."""
        made: dict[int, tuple[Tensor, Tensor]] = {}
        turns = len(self.clips.sizes)
        for turn, size in enumerate(self.clips.sizes):
            own = batches[turn::turns]
            if own:
                lengths = [len(batch) for batch in own]
                clips, targets = self.clips.generate(torch.cat(own), self.device, size)
                parts = zip(torch.split(clips, lengths), torch.split(targets, lengths), strict=True)
                made |= zip(range(turn, len(batches), turns), parts, strict=True)
        return [made[place] for place in range(len(batches))]

    def _step_back(self) -> int:
        """Let the sampler begin with the first of batches made together; return how many of them are not wanted."""
        if not isinstance(self.sampler, ResumableSampler):
            return 0
        step = int(self.batch_size or 1) * self.sampler.num_replicas
        done = self.sampler.skip // step % self.together
        self.sampler.skip -= done * step
        return done
