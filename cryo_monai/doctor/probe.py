"""What runs in a process of its own: imports, which may fail or take the process with them, and questions to torch."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

DEVICES = "devices"
MARK = "cryo-monai-doctor "
_TIMEOUT = 300.0


@dataclass
class Probe:
    """What a process found: reasons of the imports that failed, by module, and what torch says of devices."""

    errors: dict[str, str] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)


def run_probe(modules: Sequence[str], *, timeout: float = _TIMEOUT) -> Probe:
    """Import modules one after the other in another process, which sees the paths of this one, and ask torch.

    A process that dies, or takes longer than ``timeout`` (s), is the failure of what it was importing; the rest is
    asked of the next process.
    """
    found = Probe()
    waiting = [*modules, DEVICES]
    while waiting:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\nfrom cryo_monai.doctor.probe import answer\nanswer({waiting!r})"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
            output, end = done.stdout, _ending(done)
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""  # bytes, whatever was asked for
            output = said.decode(errors="replace") if isinstance(said, bytes) else said
            end = f"took more than {timeout:g} s"
        for entry in _entries(output):
            if waiting and entry["name"] == waiting[0]:
                _note(found, entry)
                waiting = waiting[1:]
        if waiting:
            _note(found, {"name": waiting.pop(0), "error": end})
    return found


def _entries(output: str) -> Iterator[dict[str, Any]]:
    """Yield what `answer` printed, from among what libraries print when they are imported."""
    for line in output.splitlines():
        if line.startswith(MARK):
            with suppress(ValueError):
                yield json.loads(line.removeprefix(MARK))


def _note(found: Probe, entry: dict[str, Any]) -> None:
    if entry["name"] == DEVICES:
        found.devices = entry.get("devices") or {"error": entry["error"]}
    elif entry["error"]:
        found.errors[entry["name"]] = entry["error"]


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip().splitlines()
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"ends the process ({how}{': ' + said[-1][:120] if said else ''})"


def answer(names: Sequence[str]) -> None:
    """Print one line of JSON for each module, and for devices."""
    for name in names:
        entry: dict[str, Any] = {"name": name, "error": ""}
        try:
            if name == DEVICES:
                entry["devices"] = _devices()
            else:
                importlib.import_module(name)
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            entry["error"] = f"{type(error).__name__}: {reason[:160]}"
        print(f"\n{MARK}{json.dumps(entry)}", flush=True)


def _devices() -> dict[str, Any]:
    """Ask torch which devices there are, and the network what ``precision: auto`` chooses on them."""
    import torch

    from cryo_monai.networks import has_fast_bfloat16

    checks = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return {
        "built_for": torch.version.cuda or torch.version.hip or "",
        "reason": str(said[0].message).splitlines()[0] if said else "",
        "gpus": [_gpu(torch.cuda.get_device_properties(n)) for n in range(torch.cuda.device_count())] * available,
        "gpu_bfloat16": available and has_fast_bfloat16(torch.device("cuda")),
        "cpu_bfloat16": has_fast_bfloat16(torch.device("cpu")),
        "cpu_features": [name for name, check in checks.items() if getattr(torch.cpu, check, bool)()],
        "threads": torch.get_num_threads(),
    }


def _gpu(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }
