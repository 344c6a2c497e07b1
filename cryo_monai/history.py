"""What a training leaves in writing: one row per epoch, the best of them, and where it ran."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from cryo_monai.errors import DivergedError
from cryo_monai.files import atomic_write_text
from cryo_monai.networks import has_fast_bfloat16
from cryo_monai.parallel import is_first, mean, num_ranks


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions and hardware of this run."""
    import ignite
    import monai

    import cryo_monai

    device = torch.device(device)
    return {
        "cryo_monai": cryo_monai.__version__,
        "monai": monai.__version__,
        "torch": str(torch.__version__),  # of a class that checkpoints may not hold
        "ignite": ignite.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        # Decide how sums are rounded: training repeats bit for bit only where they are the same.
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": has_fast_bfloat16(device),
        "threads": torch.get_num_threads(),
        "ranks": num_ranks(),
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
        self._seconds = 0.0
        self._environments: list[dict[str, Any]] = []
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
            "seconds": self._seconds + time.perf_counter() - self._clock if self._batches else 0.0,
            "environments": self._environments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take rows and sums back."""
        self.rows = list(state["rows"])
        self._loss_sum, self._batches = state["loss_sum"], state["batches"]
        self._seconds = state["seconds"]
        self._environments = list(state["environments"])
        self._fresh = self._batches == 0

    def _start_epoch(self, engine: Engine) -> None:
        if self._fresh:
            self._loss_sum, self._batches, self._seconds = 0.0, 0, 0.0
        self._fresh = True
        self._clock = time.perf_counter()
        self._validation = None
        now = environment(engine.state.device)
        if now not in self._environments:
            self._environments.append(now)

    def _check_loss(self, engine: Engine) -> None:
        # The only wait for the device in an iteration; here the backward pass has not been queued yet.
        self.loss = mean(float(engine.state.output["loss"].detach()))
        if not math.isfinite(self.loss):
            raise DivergedError(
                f"the loss became {self.loss} in epoch {engine.state.epoch}, iteration {engine.state.iteration}; "
                "weights and checkpoints are those before it. Try a lower learning rate (--lr)"
            )
        self._loss_sum += self.loss
        self._batches += 1

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
        if is_first():
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        best = self.best_epoch
        content = {
            "best_epoch": best,
            "best": next((row for row in self.rows if row["epoch"] == best), None),
            "environment": _joined(self._environments),
            "history": self.rows,
        }
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write_text(self.folder / "metrics.json", json.dumps(content, indent=1) + "\n")
        atomic_write_text(self.folder / "metrics.csv", table.getvalue())


def _joined(environments: list[dict[str, Any]]) -> dict[str, Any]:
    """Give each entry the values that it had while the run was resumed: "a, then b" where there are several."""
    found = {key: list(dict.fromkeys(one.get(key) for one in environments)) for key in environments[-1]}
    return {
        key: values[0] if len(values) == 1 else ", then ".join(str(value) for value in values)
        for key, values in found.items()
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
