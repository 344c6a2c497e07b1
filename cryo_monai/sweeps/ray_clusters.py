"""The Ray of a sweep: found or started, kept quiet, and its nodes looked at."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.sweeps.plans import Trial
from cryo_monai.sweeps.ray_jobs import Job, Orders, blindness, missing

OLDEST = (2, 54)  # the first with the security fixes that we ask for
_NODE_CHECK = 120.0  # seconds, of which imports take most
_GRACE = 10.0  # seconds
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # of a Ray of our own; 15 starves beside other work
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be kept quiet
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning on every start
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def check_ray() -> None:
    """Look whether Ray Tune is there, and of an age that will do.

    Raises
    ------
    InputError
        Saying what to install.
    """
    install = 'pip install "cryo-monai[sweep]"'
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise InputError(f"--engine ray: Ray Tune is not installed ({error}); {install}") from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"--engine ray: Ray {ray.__version__} is older than {oldest}; {install}")


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this machine; leave it, or end it."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    knock(address)
    try:
        ray.init(address or "local", **quiet, **({} if address else own))
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        where = f"--address {address}: no Ray cluster there" if address else "--engine ray: Ray did not start"
        raise InputError(f"{where} ({reason})") from error
    try:
        yield
    finally:
        # A Ray that was killed is waited for in vain.
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(_GRACE)


def knock(address: str) -> None:
    """Look whether anything listens at an address; Ray would try for two minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise InputError(f"--address {address}: no Ray cluster there ({error})") from error


def nodes_there() -> list[dict[str, float]]:
    """Return what the nodes of the cluster have."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def check_nodes(trials: Sequence[Trial], orders: Orders) -> None:
    """Look whether every node sees the sweep's folder, bundles and data, and has this package.

    Raises
    ------
    InputError
        In one line.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    places = sorted({place for trial in trials for place in Job.of(trial, 1).places})

    def look() -> str:
        return blindness(orders) or missing(places)

    for node in ray.nodes():
        if not node["Alive"]:
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        found = ray.remote(num_cpus=0, scheduling_strategy=there)(look).remote()
        try:
            problem = ray.get(found, timeout=_NODE_CHECK)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{node['NodeManagerHostname']}: cannot work for this sweep ({reason})") from error
        if problem:
            raise InputError(problem)


@contextmanager
def quiet_environment() -> Iterator[None]:
    """Set what Ray reads from the environment, and keep Tune's log off the terminal, meanwhile."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    log = logging.getLogger("ray.tune")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
