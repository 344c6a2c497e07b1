"""What Ray Tune runs: one trial at a time in a process of its own, below a Ray worker, on any node.

Imports Ray; `ray_engine` imports this module when it is needed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ray.tune import Trainable
from ray.tune.search import Searcher

from cryo_monai.folders import LOCK, is_locked
from cryo_monai.sweeps.ray_jobs import Job, Orders, blindness, do_job, missing

STEP = 2.0  # seconds between two looks at a running trial


class RayTrial(Trainable):
    """Does one trial after another in processes forked from a server that has imported everything.

    The trial is two processes away from Ray: its main thread gets signals, its memory is its own, and when its worker
    is killed, or the node's Ray, it notices, saves and ends.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        jobs: Mapping[str, Job],
        orders: Orders,
        preload: Sequence[str],
    ) -> None:
        """Begin with a trial, ``config["key"]``."""
        self._jobs, self._orders = jobs, orders
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cryo_monai.sweeps.trials", *preload])
        self._lifeline, self._life = self._context.Pipe(duplex=False)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial."""
        self._job: Job = self._jobs[new_config["key"]]
        self._process: ForkServerProcess | None = None
        self._told = False
        return True

    def step(self) -> dict[str, Any]:
        """Start the trial, or look how it is; ``code`` says how it ended, or ``refusal`` why it did not begin."""
        if self._process is None:
            refusal = self._refusal()
            if refusal:
                return {"done": True, "refusal": refusal[0], "reason": refusal[1]}
            self._process = self._started()
        self._process.join(STEP)
        code = self._process.exitcode
        if code is None and not self._told and self._orders.tell_to_stop(self._job.key):
            self._tell()
        return {"done": code is not None, "code": code}

    def cleanup(self) -> None:
        """Have a trial that still runs save and end, when Tune gives it up."""
        if self._process is not None and self._process.exitcode is None:
            if not self._told:
                self._tell()
            self._process.join()

    def _refusal(self) -> tuple[str, str] | None:
        """Return what keeps the trial from beginning here and now, if anything, and a line about it."""
        if blind := blindness(self._orders):
            return "blind", blind
        if lack := missing(self._job.places):
            return "lack", lack
        if self._orders.tell_to_stop(self._job.key):
            return "told", ""
        if is_locked(self._job.folder / LOCK):
            return "locked", ""
        return None

    def _started(self) -> ForkServerProcess:
        self._job.folder.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=do_job, args=(self._job, self._lifeline), name=self._job.key)
        with _nameless_main():
            process.start()
        return process

    def _tell(self) -> None:
        if self._process is not None and self._process.pid:
            self._told = True
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._process.pid, signal.SIGTERM)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide which script this process runs: every trial would otherwise run that of Ray's worker, and import Ray."""
    main = sys.modules["__main__"]
    file = main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main.__dict__["__file__"] = file


class ReadyTrials(Searcher):
    """Hands trials to Tune when they can start, which may be after others, and hears how they ended.

    Parameters
    ----------
    take : callable
        Returns the key of the next trial, `None` when none can start now, or `Searcher.FINISHED`.
    ended : callable
        Is told the key of a trial that ended and its last result, which is empty when its worker died.
    """

    def __init__(self, take: Callable[[], str | None], ended: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._take, self._ended = take, ended
        self._keys: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of a trial that can start."""
        key = self._take()
        if key is None or key == Searcher.FINISHED:
            return key
        self._keys[trial_id] = key
        return {"key": key}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how a trial ended."""
        self._ended(self._keys.pop(trial_id), {} if error or result is None else result)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: what is done is read from the folders of the trials."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    def __deepcopy__(self, memo: object) -> ReadyTrials:
        return self  # Tune works on a copy, which would hand out the same trials again

    def __getstate__(self) -> dict[str, Any]:
        return {}
