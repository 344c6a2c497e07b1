"""What a run does around its steps: seeds, memory, progress, predictions."""

from __future__ import annotations

import csv
import ctypes
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm.auto import tqdm

from cryo_monai.errors import CryoMonaiError
from cryo_monai.history import History
from cryo_monai.parallel import is_first, rank

logger = logging.getLogger(__name__)


class HasEpoch(Protocol):
    """Anything whose random numbers depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Use the random numbers of this epoch."""


def seed_everything(seed: int) -> None:
    """Seed torch's global generators, which initialise weights; nothing else here uses global random state."""
    torch.manual_seed(seed)


def keep_freed_memory(device: torch.device | str) -> None:
    """Make the C library keep memory that is freed, when training on a CPU under Linux.

    By default glibc hands blocks of more than 32 MB back to the kernel, and every feature map of the next step is then
    faulted in page by page again: a quarter of the time of a training step of 3D-ResNet-34 at the paper's size. The
    process keeps its peak memory instead. Elsewhere this does nothing.

    Parameters
    ----------
    device : torch.device
        Where the network is.
    """
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc; other C libraries have none
    if set_option is not None:
        # malloc.h: M_MMAP_MAX = -4, no block is mapped on its own; M_TRIM_THRESHOLD = -1, the heap does not shrink.
        set_option(-4, 0)
        set_option(-1, -1)


class EpochStart:
    """Trainer handler that makes an epoch depend on (seed, epoch) alone.

    Parameters
    ----------
    seed : int
        Of the run.
    targets : sequence
        Objects with ``set_epoch``. (MONAI's engines do this for the sampler.)
    """

    def __init__(self, seed: int, targets: Sequence[HasEpoch] = ()) -> None:
        self.seed = seed
        self.targets = list(targets)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the epoch."""
        epoch = engine.state.epoch
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, dtype=np.uint64)[0]
        torch.manual_seed(int(mixed >> np.uint64(1)) + rank())  # ranks drop different features out
        for target in self.targets:
            target.set_epoch(epoch)


class Progress:
    """Trainer handler: keep a history, and show it as one bar over the whole training and a line per epoch.

    The bar has loss and time left. (MONAI's bundle checks want no references among the handlers of a configuration, so
    the history comes in with this one.)

    Parameters
    ----------
    history : History
        Attached to the trainer by this handler, before itself.
    enabled : bool
        False shows nothing.
    """

    def __init__(self, history: History, *, enabled: bool = True) -> None:
        self.history = history
        self.enabled = enabled and is_first()
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Register history and progress with the trainer."""
        self.history.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start_epoch(self, engine: Engine) -> None:
        state = engine.state
        if self._bar is None:
            total = state.max_epochs * state.epoch_length
            self._bar = tqdm(
                total=total, initial=state.iteration, disable=not self.enabled, mininterval=0.5, unit="batch"
            )
        self._bar.set_description(f"epoch {state.epoch}/{state.max_epochs}", refresh=False)

    def _advance(self, engine: Engine) -> None:
        self._bar.set_postfix_str(f"loss {self.history.loss:.4f}", refresh=False)
        self._bar.update()

    def _finish_epoch(self, engine: Engine) -> None:
        row = self.history.rows[-1]
        shown = [
            f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float) and name != "key_metric"
        ]
        if self.enabled:
            tqdm.write(f"epoch {row['epoch']}/{engine.state.max_epochs}: " + ", ".join(shown))

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class PredictionWriter:
    """Evaluator handler that writes a CSV: path, class name, one probability per class.

    Rows go to ``NAME.part`` as they come; the file gets its name when all are there.

    Parameters
    ----------
    output_file : path
        The CSV; its folder is created.
    network : VideoClassifier
        Knows the class names once its checkpoint is loaded.
    """

    def __init__(self, output_file: str | os.PathLike[str], network: Any) -> None:
        self.file = Path(output_file)
        self.network = network
        self._stream: Any = None
        self._table: Any = None

    @property
    def _partial(self) -> Path:
        return self.file.with_name(f"{self.file.name}.part")

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise CryoMonaiError(f"{self.file}: cannot be written ({error.strerror})") from error
        self._table = csv.writer(self._stream)
        self._table.writerow(["path", "class_name", *(f"p_{name}" for name in self.network.class_names)])

    def _append(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            probabilities = [float(p) for p in output["pred"]]
            name = self.network.class_names[int(np.argmax(probabilities))]
            self._table.writerow([item["path"], name, *(f"{p:.6f}" for p in probabilities)])
        self._stream.flush()

    def _close(self, engine: Engine) -> None:
        self._stream.close()
        os.replace(self._partial, self.file)
        logger.info("predictions: %s", self.file)
