"""Trials on a Ray cluster, or on a Ray of this machine: Ray Tune finds places for them and notices what dies.

It only schedules. Whether a trial is done, and where it goes on, is in its folder, which all nodes have to see.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryo_monai.completed_runs import note_failure
from cryo_monai.errors import InputError
from cryo_monai.folders import LOCK, is_locked
from cryo_monai.sweeps.local_engine import TICK, LocalEngine
from cryo_monai.sweeps.plans import Trial
from cryo_monai.sweeps.ray_clusters import check_nodes, check_ray, joined_cluster, nodes_there, quiet_environment
from cryo_monai.sweeps.ray_jobs import Job, Orders
from cryo_monai.sweeps.trials import ELSEWHERE, FAILED, STOPPED

_GRACE = 10.0  # seconds


class RayEngine(LocalEngine):
    """Runs trials through Ray Tune.

    Parameters
    ----------
    address : str
        Of a cluster, as ``ray start`` prints it, or ``"auto"`` on one of its nodes; by default a Ray of its own is
        started on this machine, and ended.
    workers : int
        Trials at a time on each machine; with GPUs, in all. By default one, or ``trials_per_gpu`` on each GPU.
    trials_per_gpu : int
        Trials that share a GPU, where there are GPUs.
    retries : int
        How often a trial whose process, worker or node died, or that failed for no fault of the user's, is tried again.
    preload : sequence of str
        Modules that a worker imports once for all its trials.
    tick : callable, optional
        Called about twice a second while trials run.

    Raises
    ------
    InputError
        When Ray is not installed, or too old.
    """

    def __init__(
        self,
        address: str = "",
        *,
        workers: int = 0,
        trials_per_gpu: int = 1,
        retries: int = 1,
        preload: Sequence[str] = (),
        tick: Callable[[], object] | None = None,
    ) -> None:
        super().__init__([], retries=retries, tick=tick)
        check_ray()
        if address.startswith("ray://"):
            raise InputError(f"--address {address}: start the sweep on a node of the cluster, with --address auto")
        self.address = address
        self.workers = workers
        self.trials_per_gpu = max(1, trials_per_gpu)
        self.preload = tuple(preload)
        self._waiting: list[Trial] = []
        self._by_key: dict[str, Trial] = {}
        self._at_work: dict[str, Trial] = {}
        self._limit = math.inf
        self._orders: Orders | None = None
        self._error: BaseException | None = None
        self._free_since = 0.0

    @property
    def running(self) -> list[Trial]:
        """Trials that Tune is at, or is about to start."""
        return list(self._at_work.values())

    def run(self, trials: Sequence[Trial]) -> bool:
        """Do all trials that are not done; see `LocalEngine.run`.

        Raises
        ------
        InputError
            When there is no cluster at the address, or a node does not see the sweep's folder, a bundle or data.
        """
        self._by_key = {trial.key: trial for trial in trials}
        self._waiting = [trial for trial in trials if not self._is_settled(trial, self._by_key)]
        if not self._waiting:
            return True
        with (
            quiet_environment(),
            _storage(trials[0].folder.parents[1]) as storage,
            joined_cluster(self.address),
            self.listening(),
        ):
            self._orders = Orders.written(storage)
            if self.address:
                check_nodes(self._waiting, self._orders)
            thread = threading.Thread(target=self._schedule, args=(storage,), daemon=True)
            thread.start()
            while thread.is_alive() and not self._is_over():
                thread.join(TICK)
                self.tick()
        if self._error is not None and not self.signals:
            raise self._error
        return not self.signals

    def stop(self, trial: Trial) -> None:
        """Ask a running trial to save and end."""
        self._stopped.add(trial.key)
        if self._orders is not None:
            self._orders.stop(trial.key)

    def _on_signal(self, number: int, frame: object) -> None:
        super()._on_signal(number, frame)
        self._stop_all()  # also those that Tune starts just now

    def _stop_all(self) -> None:
        if self._orders is not None:
            self._orders.stop()

    def _is_over(self) -> bool:
        """Whether to end without Tune: at a second signal, or when all is saved and it does not see that.

        A scheduler that ends a job signals all of its processes, and Ray's own may be gone before the trials.
        """
        if not self.signals or any(is_locked(trial.folder / LOCK) for trial in self.running):
            self._free_since = time.monotonic()
        return self.signals > 1 or time.monotonic() - self._free_since > _GRACE

    def _schedule(self, storage: Path) -> None:
        """Have Tune run trials until none is left."""
        try:
            self._fit(storage)
        except BaseException as error:
            self._error = self._error or error

    def _fit(self, storage: Path) -> None:
        from ray import tune

        from cryo_monai.sweeps.ray_trials import RayTrial, ReadyTrials

        resources, limit = self._share(nodes_there())
        self._limit = limit
        threads = max(1, int(resources["cpu"]))
        trainable = tune.with_parameters(
            RayTrial,
            jobs={trial.key: Job.of(trial, threads) for trial in self._waiting},
            orders=self._orders,
            preload=self.preload,
        )
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=ReadyTrials(self._take, self._hear),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            # What died is tried again by `_hear`, after the others.
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(storage),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()

    def _share(self, nodes: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], float]:
        """Return what of a node a trial takes, and how many trials there may be at a time."""
        if not nodes:
            raise InputError(f"--address {self.address}: no node there has CPUs for work")
        gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
        if gpus:
            cores = min(node.get("CPU", 1) / (node["GPU"] * self.trials_per_gpu) for node in gpus)
            share = {"gpu": 1 / self.trials_per_gpu, "cpu": _whole(cores)}
            return share, self.workers or math.inf
        return {"cpu": _whole(min(node.get("CPU", 1) for node in nodes) / max(1, self.workers))}, math.inf

    def _take(self) -> str | None:
        """Take the next trial that can start."""
        if self.signals or self._error:
            return "FINISHED"
        self._waiting = [trial for trial in self._waiting if not self._is_settled(trial, self._by_key)]
        if not self._waiting and not self._at_work:
            return "FINISHED"
        trial = next((trial for trial in self._waiting if self._can_start(trial, self._by_key)), None)
        if trial is None or len(self._at_work) >= self._limit:
            return None
        self._waiting.remove(trial)
        self._attempts[trial.key] = self._attempts.get(trial.key, 0) + 1
        self._at_work[trial.key] = trial
        return trial.key

    def _hear(self, key: str, result: Mapping[str, Any]) -> None:
        """Hear how a trial ended, and have it tried again where that helps."""
        trial = self._at_work.pop(key)
        code, refusal = result.get("code"), result.get("refusal")
        if refusal == "blind":
            self._error = self._error or InputError(result["reason"])
            self._stop_all()
        elif refusal == "lack":
            note_failure(trial.folder, result["reason"])
        elif refusal == "locked" or code == ELSEWHERE:
            self._attempts[key] -= 1
            self._waiting.append(trial)
        elif refusal == "told" or self.signals or key in self._stopped:
            return
        elif code == STOPPED:
            self._waiting.append(trial)  # its node was asked to end: it goes on on another
        elif self._is_to_be_tried_again(trial, FAILED if code is None else code):
            self._waiting.append(trial)
        elif code is None:
            note_failure(trial.folder, f"its Ray worker or node died {self._attempts[key]} times (out of memory?)")


@contextmanager
def _storage(folder: Path) -> Iterator[Path]:
    """Make a folder for Tune in that of the sweep, which all nodes see; nothing in it is needed later."""
    (folder / "ray").mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder / "ray"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if not any((folder / "ray").iterdir()):
            (folder / "ray").rmdir()


def _whole(cores: float) -> float:
    """Round down to what Ray takes: whole cores, or a part of one."""
    return math.floor(cores) if cores >= 1 else math.floor(cores * 1000) / 1000


def _name(trial: Any) -> str:
    return str(trial.config["key"])
