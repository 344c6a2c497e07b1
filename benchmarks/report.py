"""What every benchmark writes: the machine, and a JSON file named after benchmark and device."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

import cryo_monai

RESULTS = Path(__file__).parent / "results"


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, without anything that names a particular computer."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "avx512_bf16": capabilities.get("avx512_bf16"),
        "amx_bf16": capabilities.get("amx_bf16"),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cryo_monai": cryo_monai.__version__,
    }


def write_results(benchmark: str, device: torch.device, result: dict[str, Any], output: str = "") -> None:
    """Write ``results/BENCHMARK-DEVICE.json``, or ``output``, and print the numbers."""
    name = torch.cuda.get_device_name(device).lower().replace(" ", "-") if device.type == "cuda" else "cpu"
    target = Path(output) if output else RESULTS / f"{benchmark}-{name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"written: {target}")
