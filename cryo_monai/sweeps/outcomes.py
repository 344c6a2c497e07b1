"""What became of the trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Value = str | float | int
Cell = Mapping[str, Value]

STATES = ("done", "failed", "stopped", "running", "waiting")


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes
    ----------
    cell : mapping
        Axis to the name of its value, such as ``{"dataset": "simulated", "label_fraction": 0.25, "seed": 0}``.
    folder : Path
        Its run folder.
    state : str
        ``"done"``; ``"failed"``; ``"stopped"``, by a signal or a scheduler, to be gone on with; ``"running"``, in
        another process; or ``"waiting"``.
    reason : str
        Why it failed, in one line.
    """

    cell: Cell
    folder: Path
    state: str
    reason: str = ""


def named(cell: Cell) -> str:
    """Write a cell in one line: ``dataset simulated, label_fraction 0.25, seed 0``."""
    return ", ".join(f"{axis} {value}" for axis, value in cell.items())
