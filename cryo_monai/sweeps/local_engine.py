"""Trials on this machine: one process each, so many at a time, a GPU each where there are GPUs.

Processes are forked from a server that has imported everything, which takes longer than starting small trainings does.
A trial is in a session of its own: Ctrl-C reaches the sweep alone, which asks its trials to save and end. When the
sweep dies, they notice and do so.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from cryo_monai.completed_runs import failure_of, is_done, note_failure
from cryo_monai.errors import InputError
from cryo_monai.folders import LOCK, is_locked
from cryo_monai.sweeps.plans import Trial
from cryo_monai.sweeps.trials import ELSEWHERE, FAILED, STOPPED, ending, run_trial

TICK = 0.5  # seconds
MOST_LOSSES = 3  # of the server that trials are forked from, before trials are blamed
_LOST = 255  # what multiprocessing says of a process whose server has died


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time.

    Attributes
    ----------
    device : str
        What ``CUDA_VISIBLE_DEVICES`` is set to; empty leaves it as it is.
    threads : int
        CPU threads.
    """

    device: str = ""
    threads: int = 1


def slots(workers: int = 0, trials_per_gpu: int = 1) -> list[Slot]:
    """Divide this machine among trials.

    Parameters
    ----------
    workers : int
        Trials at a time. By default one, or ``trials_per_gpu`` on each GPU.
    trials_per_gpu : int
        Trials that share a GPU, where there are GPUs; 0 leaves GPUs alone.

    Returns
    -------
    list of Slot
        With the threads that torch would use shared out evenly.

    Raises
    ------
    InputError
        When GPUs have fewer places than there are workers, or for negative numbers.
    """
    import torch

    gpus: list[str] = []
    if workers < 0 or trials_per_gpu < 0:
        raise InputError(f"workers {workers}, trials_per_gpu {trials_per_gpu}: must not be negative")
    if trials_per_gpu and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
    places = [gpu for _ in range(trials_per_gpu) for gpu in gpus] or [""] * max(1, workers)
    if workers > len(places):
        raise InputError(f"workers {workers}: {len(gpus)} GPUs have {len(places)} places; raise --trials_per_gpu")
    if workers:
        places = places[:workers]
    return [Slot(place, max(1, torch.get_num_threads() // len(places))) for place in places]


class LocalEngine:
    """Runs trials in processes of this machine.

    Parameters
    ----------
    places : sequence of Slot
        See `slots`.
    retries : int
        How often a trial whose process died, or that failed for no fault of the user's, is tried again.
    preload : sequence of str
        Modules that are imported once for all trials.
    tick : callable, optional
        Called about twice a second while trials run.
    """

    def __init__(
        self,
        places: Sequence[Slot],
        *,
        retries: int = 1,
        preload: Sequence[str] = (),
        tick: Callable[[], object] | None = None,
    ) -> None:
        self.free = list(places)
        self.retries = retries
        self.tick = tick or (lambda: None)
        self.signals = 0
        self._running: dict[int, tuple[Trial, Slot, ForkServerProcess]] = {}
        self._attempts: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._losses = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cryo_monai.sweeps.trials", *preload])
        # The system closes the end that is written into when this process ends, however it does.
        self._lifeline, self._life = self._context.Pipe(duplex=False)

    @property
    def running(self) -> list[Trial]:
        """Trials that this engine is at."""
        return [trial for trial, _, _ in self._running.values()]

    def run(self, trials: Sequence[Trial]) -> bool:
        """Do all trials that are not done.

        Parameters
        ----------
        trials : sequence of Trial
            In this order, but that each waits for those that it comes after, and those that another process is at are
            looked at again later.

        Returns
        -------
        bool
            False when a signal stopped it: then all running trials have saved and ended.
        """
        waiting = list(trials)
        by_key = {trial.key: trial for trial in trials}
        with self.listening():
            while (waiting and not self.signals) or self._running:
                waiting = [trial for trial in waiting if not self._is_settled(trial, by_key)]
                while self.free and not self.signals:
                    trial = next((trial for trial in waiting if self._can_start(trial, by_key)), None)
                    if trial is None:
                        break
                    waiting.remove(trial)
                    self.start(trial)
                waiting += self.collect(TICK)
                self.tick()
        return not self.signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count signals meanwhile, and pass them on: at the first, running trials save and end."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def start(self, trial: Trial) -> None:
        """Start a trial in a free place."""
        slot = self.free.pop(0)
        trial.folder.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=do_trial, args=(trial, slot, self._lifeline), name=trial.key)
        process.start()
        self._attempts[trial.key] = self._attempts.get(trial.key, 0) + 1
        self._stopped.discard(trial.key)
        self._running[process.sentinel] = (trial, slot, process)
        if self.signals:  # that came while the process was made
            self.stop(trial)

    def collect(self, seconds: float) -> list[Trial]:
        """Wait for trials to end, for so long; return those that are to be tried again."""
        if not self._running:
            time.sleep(seconds)
            return []
        again = []
        for sentinel in wait(list(self._running), timeout=seconds):
            trial, slot, process = self._running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            self.free.append(slot)
            if self._is_to_be_tried_again(trial, process.exitcode or 0):
                again.append(trial)
            process.close()
        return again

    def stop(self, trial: Trial) -> None:
        """Ask a running trial to save and end."""
        self._stopped.add(trial.key)
        for running, _, process in self._running.values():
            if running.key == trial.key and process.pid:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, signal.SIGTERM)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals += 1
        if self.signals == 1:
            print("saving what runs; once more ends it at once", file=sys.stderr, flush=True)
        for trial in self.running:
            self.stop(trial)

    def _is_to_be_tried_again(self, trial: Trial, code: int) -> bool:
        asked = bool(self.signals) or trial.key in self._stopped
        if code == 0 or (asked and (code == STOPPED or code < 0)):
            return False
        if code in (ELSEWHERE, STOPPED):  # of another sweep, or stopped by somebody else: no failure
            self._attempts[trial.key] -= 1
            return True
        if code == _LOST and self._losses < MOST_LOSSES:
            self._losses += 1
            self._attempts[trial.key] -= 1
            return True
        failure = failure_of(trial.folder)
        if code == FAILED and failure and failure[1]:
            return False
        if self._attempts[trial.key] <= self.retries:
            return True
        note_failure(trial.folder, failure[0] if failure else ending(code))
        return False

    def _is_settled(self, trial: Trial, by_key: dict[str, Trial]) -> bool:
        """Whether nothing is left to do for a trial: it is done, or what it begins from failed."""
        if is_done(trial.folder):
            return True
        broken = [key for key in trial.after if key not in map(_key, self.running) and self._has_failed(by_key[key])]
        if broken:
            note_failure(trial.folder, f"trial {broken[0]}, whose weights it begins from, failed")
        return bool(broken)

    def _has_failed(self, trial: Trial) -> bool:
        failure = failure_of(trial.folder)
        return failure is not None and failure[1] and not is_done(trial.folder)

    def _can_start(self, trial: Trial, by_key: dict[str, Trial]) -> bool:
        ready = all(is_done(by_key[key].folder) for key in trial.after)
        return ready and not is_locked(trial.folder / LOCK)


def _key(trial: Trial) -> str:
    return trial.key


def do_trial(trial: Trial, slot: Slot, lifeline: Connection) -> None:
    """Do a trial in a process of its own, which ends as `run_trial` says.

    Parameters
    ----------
    trial : Trial
        Which.
    slot : Slot
        Where.
    lifeline : Connection
        Of a pipe into which only the process that started this one can write: when that is gone, this one saves and
        ends.
    """
    os.setsid()
    log = os.open(trial.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    if slot.device:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.device
    import torch

    torch.set_num_threads(slot.threads)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    sys.exit(run_trial(trial))


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGTERM)
