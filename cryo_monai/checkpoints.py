"""Checkpoints that survive a crash, and training that goes on exactly where it stopped.

A file is written beside its target, synced, and moved over it; the checkpoint before it is kept, and used when the
newest is damaged. ``last.pt`` holds everything that decides the next step; ``model.pt`` the weights of the best
validation epoch as a plain state dict, class names and temperature included.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor, nn

from cryo_monai.datasets import ResumableSampler
from cryo_monai.errors import InputError
from cryo_monai.files import TEMPORARY, atomic_save
from cryo_monai.history import History
from cryo_monai.metrics import gathered_sums, spread_sums
from cryo_monai.networks import VideoClassifier, read_description
from cryo_monai.parallel import in_order, is_first, keep_last_word, largest, num_ranks, rank
from cryo_monai.weight_files import load_tensors

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, saved; run again with resume
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

logger = logging.getLogger(__name__)


def load_verified(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint after comparing every record with its checksum.

    Raises
    ------
    InputError
        When the file is missing, damaged, or holds more than tensors and plain values.
    """
    file = Path(path)
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise InputError(f"{file}: no such checkpoint; train first, or give --ckpt_path") from None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(f"{file}: not a whole checkpoint ({error})") from error
    if damaged is not None:
        raise InputError(f"{file}: damaged (checksum of {damaged})")
    return load_tensors(file)


def load_checkpoint(network: VideoClassifier, path: str | os.PathLike[str]) -> VideoClassifier:
    """Load trained weights, with the names of the classes, into a network of the same make.

    Parameters
    ----------
    network : VideoClassifier
        Changed in place.
    path : path
        ``model.pt`` or ``last.pt``.

    Raises
    ------
    InputError
        One line naming the file when it is missing or damaged, or was trained with another backbone, clip size,
        intensity scaling or number of classes.
    """
    content = load_verified(path)
    weights = content.get("network", content)
    if "_extra_state" not in weights:
        raise InputError(f"{path}: not a checkpoint of VideoClassifier (no class names in it)")
    # Both as JSON gives them back, so that tuples and lists compare equal.
    saved, wanted = (read_description(state) for state in (weights["_extra_state"], network.get_extra_state()))
    names = saved.pop("class_names")
    del saved["mean"], saved["std"], saved["temperature"]  # the checkpoint brings them along
    if len(names) != network.num_classes:
        raise InputError(
            f"{path}: has {len(names)} classes ({', '.join(names)}), but the network has {network.num_classes}; "
            f"add --num_classes {len(names)}"
        )
    different = [f"{key} {saved[key]} (network: {wanted[key]})" for key in saved if saved[key] != wanted.get(key)]
    if different:
        raise InputError(f"{path}: was trained with {', '.join(different)}; add the overlays it was trained with")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path}: does not fit the network ({' '.join(str(error).split())[:300]})") from error
    logger.info("%s: %d tensors, classes %s", path, len(weights) - 1, ", ".join(names))
    return network


class CheckpointHandler:
    """Trainer handler: save after every epoch and on a signal, resume exactly.

    Put it last among the handlers, so that what it saves includes what the others did at the end of the epoch. Of
    several ranks each loads, the first alone saves, and a signal to one stops all after the same iteration. A training
    can go on with another number of ranks.

    Parameters
    ----------
    ckpt_dir : path
        Folder of ``last.pt``, ``previous.pt`` and ``model.pt``.
    network : VideoClassifier
        The network being trained; ``class_names`` are set on it.
    optimizer, scheduler : object
        With ``state_dict`` and ``load_state_dict``.
    history : History
        Knows which epoch was best.
    sampler : ResumableSampler
        Skips what an interrupted epoch has seen.
    batch_size : int
        To count it.
    class_names : sequence of str
        Saved with the weights.
    metrics : mapping, optional
        Training metrics by name, whose sums belong to an unfinished epoch.
    resume : bool
        Go on from ``last.pt`` when there is one.
    recipe : mapping, optional
        Plain values that must not change between a run and its continuation.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        *,
        network: VideoClassifier,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        history: History,
        sampler: ResumableSampler,
        batch_size: int,
        class_names: Sequence[str],
        metrics: Mapping[str, Metric] | None = None,
        resume: bool = False,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(ckpt_dir)
        self.network = network
        self.parts: dict[str, nn.Module | torch.optim.Optimizer | Any] = {
            "network": network,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "history": history,
        }
        self.history = history
        self.sampler = sampler
        self.batch_size = batch_size
        self.class_names = list(class_names)
        self.metrics = dict(metrics or {})
        self.resume = resume
        self.recipe = dict(recipe or {})
        self.signal: int | None = None
        self._signalled = 0.0
        self._parent = 0
        self._previous_handlers: dict[int, Any] = {}
        self._unfinished: dict[str, Any] | None = None

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The one before it."""
        return self.folder / "previous.pt"

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._restore_unfinished_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_on_signal)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._reraise)

    def _start(self, engine: Engine) -> None:
        self.network.set_class_names(self.class_names)
        if is_first():
            for leftover in self.folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        if self.resume:
            self._resume(engine)
        elif is_first() and self.last.exists():
            kept = self.folder / "superseded.pt"
            os.replace(self.last, kept)
            self.previous.unlink(missing_ok=True)
            logger.warning("%s: an earlier run was here; its last state is kept as %s", self.folder, kept.name)
        self._parent = os.getppid()
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._signalled = number, now
            logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)
        elif now > self._signalled + 1.0:  # sooner it is the same one: Slurm and torchrun may both send it
            self._restore_signal_handlers()
            os.kill(os.getpid(), number)

    def _restore_signal_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _read_newest(self) -> dict[str, Any] | None:
        for file in (self.last, self.previous):
            try:
                if file.exists():
                    return load_verified(file)
            except InputError as error:
                logger.warning("%s; trying the checkpoint before it", error)
        if self.last.exists():
            raise InputError(f"{self.last}: damaged, and there is no good one before it; start without --resume")
        return None

    def _resume(self, engine: Engine) -> None:
        state = self._read_newest()
        if state is None:
            self._refuse_other_states(0)
            logger.info("%s: nothing to resume, starting anew", self.folder)
            return
        old, new = state["recipe"], self.recipe
        changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in new | old if old.get(key) != new.get(key)]
        if changed:
            raise InputError(f"{self.last}: cannot resume with another recipe ({'; '.join(changed)})")
        if state["epoch_length"] != engine.state.epoch_length:
            raise InputError(
                f"{self.last}: was trained with {state['epoch_length']} batches an epoch, "
                f"the data now give {engine.state.epoch_length}"
            )
        self._refuse_other_states(state["iteration"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // engine.state.epoch_length
        done = state["iteration"] % engine.state.epoch_length
        self.sampler.skip = done * self.batch_size
        self._unfinished = state if done else None
        logger.info("%s: resuming after epoch %d, iteration %d", self.last, engine.state.epoch, state["iteration"])

    def _refuse_other_states(self, iteration: int) -> None:
        if largest(iteration) != -largest(-iteration):
            raise InputError(f"{self.folder}: ranks see different files there; put it where every machine sees it")

    def _restore_unfinished_epoch(self, engine: Engine) -> None:
        """Go on with dropout's random numbers and the metrics' sums, which the start of the epoch has set anew."""
        if self._unfinished is not None:
            saved: Tensor = self._unfinished["random_state"]
            states = saved.reshape(-1, saved.shape[-1])
            torch.set_rng_state(states[rank() % len(states)])
            for name, metric in self.metrics.items():
                metric.load_state_dict(spread_sums(self._unfinished["metrics"][name]))
            self._unfinished = None

    def _state(self, engine: Engine) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()} | {
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "random_state": in_order(torch.get_rng_state()[None]),
            "metrics": {name: gathered_sums(metric.state_dict()) for name, metric in self.metrics.items()},
            "recipe": self.recipe,
        }

    def _save_last(self, engine: Engine) -> None:
        state = self._state(engine)  # which all ranks make together
        if is_first():
            atomic_save(state, self.last, keep=self.previous)

    def _agreed_signal(self) -> int:
        """Return a signal that any rank got, or 0."""
        # Without torchrun nobody would end these processes, nor keep others from starting.
        orphaned = dist.is_torchelastic_launched() and os.getppid() != self._parent
        return largest(self.signal or (signal.SIGTERM if orphaned else 0))

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        logger.warning("%s: saved %s; go on with --resume True", name, self.last)
        self._restore_signal_handlers()
        if num_ranks() > 1:
            # torchrun ends the other ranks as soon as one has ended: all is saved by then.
            for caught in SIGNALS:
                signal.signal(caught, signal.SIG_IGN)
            largest(0)
        raise SystemExit(EXIT_CODE)

    def _stop_on_signal(self, engine: Engine) -> None:
        # At the end of an epoch, validation and the learning rate come first: see _save_epoch.
        if engine.state.iteration % engine.state.epoch_length and (number := self._agreed_signal()):
            self._save_last(engine)
            self._stop(number)

    def _save_epoch(self, engine: Engine) -> None:
        # First: who is killed between the two redoes this epoch, to the same weights.
        if self.history.best_epoch == engine.state.epoch:
            self._save_model()
        self._save_last(engine)
        if number := self._agreed_signal():
            self._stop(number)

    def _finish(self, engine: Engine) -> None:
        self._restore_signal_handlers()
        if self.history.best_epoch is None:  # no validation was asked for
            self._save_model()

    def _save_model(self) -> None:
        """Save these weights, with the temperature that their validation gave."""
        if not is_first():
            return
        self.network.temperature = self.history.rows[-1].get("val_temperature") or 1.0
        atomic_save(self.network.state_dict(), self.folder / "model.pt")
        self.network.temperature = 1.0

    def _reraise(self, engine: Engine, error: BaseException) -> None:
        self._restore_signal_handlers()
        keep_last_word()
        raise error
