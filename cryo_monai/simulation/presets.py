"""Presets: JSON files of ``configs/simulation`` with settings and structures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.simulation.loading import StructureEntry
from cryo_monai.simulation.settings import SimulationSettings, settings_from


@dataclass(frozen=True)
class Preset:
    """What a preset says.

    Attributes
    ----------
    settings : SimulationSettings
        Its settings, and the defaults of all others.
    structures, neighbours_from : tuple of StructureEntry
        See `load_structures`; empty when it does not say.
    num_per_class : int
        Volumes per class; 500 when it does not say.
    """

    settings: SimulationSettings = field(default_factory=SimulationSettings)
    structures: tuple[StructureEntry, ...] = ()
    neighbours_from: tuple[StructureEntry, ...] = ()
    num_per_class: int = 500


def read_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset: a JSON object of settings, ``structures``, ``neighbours_from`` and ``num_per_class``.

    Raises
    ------
    InputError
        Naming the file and the key, when it cannot be read or a value is of the wrong kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not a readable preset ({reason})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: a preset is a JSON object")
    values = {key: value for key, value in content.items() if key != "_desc_"}
    lists = {
        key: _entries(values.pop(key), f"{path}: {key}") for key in ("structures", "neighbours_from") if key in values
    }
    count = values.pop("num_per_class", 500)
    if not isinstance(count, int) or isinstance(count, bool):
        raise InputError(f"{path}: num_per_class {count!r}: give a whole number")
    try:
        settings = settings_from(values, source=str(path))
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return Preset(settings, lists.get("structures", ()), lists.get("neighbours_from", ()), count)


def _entries(value: Any, source: str) -> tuple[StructureEntry, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{source}: give a list of names, files, PDB ids or objects with a source")
    return tuple(StructureEntry.of(entry, where=source) for entry in value)
