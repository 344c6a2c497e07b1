"""Handlers of MONAI's engines: what happens at the start of an epoch, what is written down, what is shown."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from tqdm.auto import tqdm

from cryo_monai.errors import CryoMonaiError, DivergedError
from cryo_monai.files import atomic_write_text


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
        torch.manual_seed(int(mixed >> np.uint64(1)))
        for target in self.targets:
            target.set_epoch(epoch)


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions and hardware of this run."""
    import ignite
    import monai

    import cryo_monai

    device = torch.device(device)
    return {
        "cryo_monai": cryo_monai.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "ignite": ignite.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }


class History:
    """Trainer handler that checks the loss before each step and writes ``metrics.json`` and ``metrics.csv`` per epoch.

    Parameters
    ----------
    output_dir : path
        Where the files go; created when missing.
    optimizer : torch.optim.Optimizer
        For the learning rate.
    evaluator : Engine
        The validation engine; its key metric decides which epoch is best. NaN never is.

    Raises
    ------
    DivergedError
        At a loss that is not finite, before the optimiser's step.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], *, optimizer: torch.optim.Optimizer, evaluator: Engine
    ) -> None:
        self.folder = Path(output_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self.loss = math.nan
        self._loss_sum = 0.0
        self._batches = 0
        self._volumes = 0
        self._seconds = 0.0
        self._clock = 0.0
        self._validation: dict[str, float] | None = None
        self._fresh = True

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        self.evaluator.add_event_handler(Events.COMPLETED, self._take_validation)

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best validation metric so far; None before the first validation."""
        best: tuple[float, int] | None = None
        for row in self.rows:
            if "key_metric" in row:
                value = -math.inf if row["key_metric"] is None else row["key_metric"]
                if best is None or value > best[0]:
                    best = (value, row["epoch"])
        return None if best is None else best[1]

    def state_dict(self) -> dict[str, Any]:
        """Return rows, and the sums of an unfinished epoch."""
        return {
            "rows": self.rows,
            "loss_sum": self._loss_sum,
            "batches": self._batches,
            "volumes": self._volumes,
            "seconds": self._seconds + time.perf_counter() - self._clock if self._batches else 0.0,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take rows and sums back."""
        self.rows = list(state["rows"])
        self._loss_sum, self._batches = state["loss_sum"], state["batches"]
        self._volumes, self._seconds = state["volumes"], state["seconds"]
        self._fresh = self._batches == 0

    def _start_epoch(self, engine: Engine) -> None:
        if self._fresh:
            self._loss_sum, self._batches, self._volumes, self._seconds = 0.0, 0, 0, 0.0
        self._fresh = True
        self._clock = time.perf_counter()
        self._validation = None

    def _check_loss(self, engine: Engine) -> None:
        # The only wait for the device in an iteration; here the backward pass has not been queued yet.
        self.loss = float(engine.state.output["loss"].detach())
        if not math.isfinite(self.loss):
            raise DivergedError(
                f"the loss became {self.loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}; "
                "weights and checkpoints are those before it. Try a lower learning rate (--lr)"
            )
        self._loss_sum += self.loss
        self._batches += 1
        self._volumes += len(engine.state.output["label"])

    def _take_validation(self, evaluator: Engine) -> None:
        self._validation = {name: float(value) for name, value in evaluator.state.metrics.items()}

    def _finish_epoch(self, engine: Engine) -> None:
        engine.state.metrics["train_loss"] = self._loss_sum / self._batches
        seconds = self._seconds + time.perf_counter() - self._clock
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: _finite(float(value)) for name, value in engine.state.metrics.items()},
            "seconds": round(seconds, 3),
        }
        if self._validation is not None:
            row |= {name: _finite(value) for name, value in self._validation.items()}
            row["key_metric"] = _finite(self._validation[self.evaluator.state.key_metric_name])
        self.rows.append(row)
        self._batches = 0
        self._write(engine)

    def _write(self, engine: Engine) -> None:
        best = self.best_epoch
        content = {
            "best_epoch": best,
            "best": next((row for row in self.rows if row["epoch"] == best), None),
            "environment": environment(engine.state.device),
            "history": self.rows,
        }
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write_text(self.folder / "metrics.json", json.dumps(content, indent=1) + "\n")
        atomic_write_text(self.folder / "metrics.csv", table.getvalue())


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


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
        self.enabled = enabled
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
            raise CryoMonaiError(f"{self._partial}: cannot be written ({error.strerror})") from error
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
