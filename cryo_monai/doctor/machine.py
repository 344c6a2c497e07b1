"""Processors, memory and GPUs that this process may use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryo_monai.doctor.findings import ABSENT, FAIL, PASS, WARNING, Finding

GIB = 2**30
# Importing torch and MONAI takes 0.9 GiB, a small training 2 (README, what was measured).
LITTLE_MEMORY = 4 * GIB
# Of 32 volumes of 64 x 64 x 64 in float32, a batch is 32 MiB, and torch.utils.data.DataLoader keeps two per worker
# (prefetch_factor); four workers then hold 256 MiB there. Docker gives 64 MiB unless told otherwise.
LITTLE_SHARED = 256 * 2**20
_UNLIMITED = 2**60


def machine_findings(devices: Mapping[str, Any]) -> list[Finding]:
    """Say what there is to compute with.

    Parameters
    ----------
    devices : mapping
        Of `run_probe`; ``error`` in it says why torch could not be asked.
    """
    return [*_device_findings(devices), _cores(devices), _memory(), _shared_memory()]


def _device_findings(devices: Mapping[str, Any]) -> Iterator[Finding]:
    if "error" in devices or not devices:
        reason = f"torch could not be asked: {devices.get('error', 'no answer')}"
        yield Finding("machine", "devices", FAIL, reason, "mend what fails above first")
        return
    gpus = devices["gpus"]
    for number, gpu in enumerate(gpus):
        shown = f"{gpu['name']}, {gpu['memory'] / GIB:.0f} GiB, compute capability {gpu['capability']}"
        yield Finding("machine", f"GPU {number}", PASS, shown)
    if not gpus:
        yield _no_gpu(devices)
    where = "GPU" if gpus else "CPU"
    lower = devices["gpu_bfloat16" if gpus else "cpu_bfloat16"]
    if gpus:
        why = "compute capability of 8.0 or more" if lower else "a compute capability below 8.0"
    else:
        features = " and ".join(devices["cpu_features"])
        why = features if lower else "neither AVX512-BF16 nor AMX"
    yield Finding(
        "machine", "precision", PASS, f"auto is {'bfloat16' if lower else 'float32'} here: the {where} has {why}"
    )


def _no_gpu(devices: Mapping[str, Any]) -> Finding:
    seen = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None
    if not seen:
        return Finding("machine", "GPU", ABSENT, "none; the CPU is used")
    if not devices["built_for"]:
        reason, remedy = "there is one, but this torch is built for CPUs", "install torch for CUDA (pytorch.org)"
    else:
        reason = f"there is one, but torch cannot use it: {devices['reason'] or 'the driver shows none'}"
        remedy = f"a driver for CUDA {devices['built_for']}, or CUDA_VISIBLE_DEVICES"
    return Finding("machine", "GPU", WARNING, reason, remedy)


def cores_allowed() -> float:
    """Return how many processor cores this process may use: affinity, and the quota of its control groups."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(affinity)]
    for text in _group_files("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas)


def memory_limit() -> int | None:
    """Return the bytes that this process's control groups allow it, None without a limit."""
    limits = [int(text) for text in _group_files("memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def _group_files(*names: str, root: Path = Path("/sys/fs/cgroup")) -> Iterator[str]:
    """Contents of these files in the control groups of this process, from its own to the outermost (cgroups(7))."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top = root if not controllers else root / controllers.split(",")[0]
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(top):
                break
            for name in names:
                try:
                    yield (folder / name).read_text().strip()
                except OSError:
                    continue


def _cores(devices: Mapping[str, Any]) -> Finding:
    allowed, present = cores_allowed(), os.cpu_count() or 1
    found = f"{allowed:g} of {present} cores may be used"
    if devices.get("threads"):
        found += f"; torch uses {devices['threads']}"
    if devices.get("threads", 0) > max(1.0, allowed):
        return Finding("machine", "CPU", WARNING, found, f"export OMP_NUM_THREADS={max(1, int(allowed))}")
    return Finding("machine", "CPU", PASS, found)


def _memory() -> Finding:
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding("machine", "memory", ABSENT, "not known on this system")
    limit = memory_limit()
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if limit is not None and limit < total:
        available = min(available, limit)
        found += f"; this process is limited to {limit / GIB:.1f} GiB (control group)"
    if available < LITTLE_MEMORY:
        return Finding("machine", "memory", WARNING, found, "4 GiB are enough for a small training")
    return Finding("machine", "memory", PASS, found)


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Judge where the workers of data loaders pass batches on."""
    if not folder.is_dir():
        return Finding("machine", str(folder), ABSENT, "not there; workers of data loaders use other means")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free, for batches from workers of data loaders"
    if not os.access(folder, os.W_OK):
        return Finding("machine", str(folder), WARNING, "cannot be written", "--num_workers 0")
    if usage.free < LITTLE_SHARED:
        remedy = "--num_workers 0, or more of it (docker run --shm-size 1g)"
        return Finding("machine", str(folder), WARNING, found, remedy)
    return Finding("machine", str(folder), PASS, found)
