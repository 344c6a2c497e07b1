"""What the trials of a sweep came to, read from their run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.sweep_results.effort import total_seconds
from cryo_monai.sweeps.outcomes import Cell, Outcome, Value


@dataclass(frozen=True)
class Result:
    """A trial and its numbers; None where there is none.

    Attributes
    ----------
    outcome : Outcome
        What the sweep says of it.
    state, reason : str
        Those of the outcome, but ``"failed"`` and why when the run folder of a done trial cannot be read.
    num_train, num_validation, num_test, num_classes : int
        Volumes of each split; classes.
    accuracy, auc, balanced_accuracy, macro_f1 : float
        Of the test split, 0 to 1.
    best_epoch, epochs : int
        The epoch whose weights were scored; epochs that were trained.
    train_seconds : float
        Sum over the epochs, validation included; None when an epoch lacks its time.
    device : str
        What it was trained on.
    environment : mapping
        Versions and hardware, from ``metrics.json``.
    history : tuple of mapping
        Rows of ``metrics.json``.
    """

    outcome: Outcome
    state: str
    reason: str = ""
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    accuracy: float | None = None
    auc: float | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    train_seconds: float | None = None
    device: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def cell(self) -> Cell:
        """Axis to the name of its value."""
        return self.outcome.cell

    @property
    def minutes(self) -> float | None:
        """Minutes of the accelerator that training took."""
        return None if self.train_seconds is None else self.train_seconds / 60

    def metric(self, name: str) -> float | None:
        """Return ``accuracy``, ``auc``, ``balanced_accuracy`` or ``macro_f1``."""
        value: float | None = getattr(self, name)
        return value


def collect_results(outcomes: Sequence[Outcome]) -> list[Result]:
    """Read the numbers of every trial that is done, in the order given.

    A done trial with a damaged run folder becomes a failed one, with the reason.

    Raises
    ------
    InputError
        When two trials have the same cell, so that it is unclear which is meant.
    """
    folders: dict[frozenset[tuple[str, Value]], Path] = {}
    for outcome in outcomes:
        cell = frozenset(outcome.cell.items())
        if cell in folders:
            raise InputError(
                f"{outcome.folder}: has the values of {folders[cell]} "
                f"({', '.join(f'{axis} {value}' for axis, value in outcome.cell.items())}); trials differ in some axis"
            )
        folders[cell] = outcome.folder
    return [_collect(outcome) for outcome in outcomes]


def _collect(outcome: Outcome) -> Result:
    if outcome.state != "done":
        return Result(outcome, outcome.state, " ".join(outcome.reason.split()))
    try:
        return _read(outcome)
    except InputError as error:
        return Result(outcome, "failed", str(error))


def _read(outcome: Outcome) -> Result:
    """Read a run folder.

    Raises
    ------
    InputError
        Naming the file that is not what it should be.
    """
    training, scores, record = (
        _Numbers(outcome.folder, name) for name in ("metrics.json", "evaluation.json", "run.json")
    )
    history = training.rows("history")
    counts = record.counts()
    environment = training.object("environment")
    return Result(
        outcome,
        "done",
        num_train=counts.get("training"),
        num_validation=counts.get("validation"),
        num_test=counts.get("test", scores.whole("num_volumes")),
        num_classes=len(scores.object("per_class")) or None,
        accuracy=scores.share("accuracy"),
        auc=scores.share("auc"),
        balanced_accuracy=scores.share("balanced_accuracy"),
        macro_f1=scores.share("macro_f1"),
        best_epoch=training.whole("best_epoch"),
        epochs=len(history),
        train_seconds=total_seconds(history),
        device=str(environment["device"]) if environment.get("device") else None,
        environment=environment,
        history=history,
    )


class _Numbers:
    """An object of a run folder, and what must be in it; what is not raises `InputError`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=self._refuse)
        except OSError as error:
            raise InputError(
                f"{name}: not readable ({error.strerror}); delete the trial's folder to repeat it"
            ) from error
        except ValueError as error:
            raise self._damaged(f"not JSON: {error}") from error
        if not isinstance(content, dict):
            raise self._damaged("no object")
        self.content: dict[str, Any] = content

    def _refuse(self, constant: str) -> float:
        raise self._damaged(f"{constant} is no number")

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.name}: damaged ({why}); delete the trial's folder to repeat it")

    def object(self, key: str) -> dict[str, Any]:
        """Return an object; empty when it is missing."""
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise self._damaged(f"{key} is no object")
        return value

    def rows(self, key: str) -> tuple[dict[str, Any], ...]:
        """Return a list of epochs, with numbers or null in what is read of them."""
        rows = self.content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_whole(row.get("epoch")) for row in rows):
            raise self._damaged(f"{key} is no list of epochs")
        for row in rows:
            for name in ("val_accuracy", "seconds"):
                if row.get(name) is not None and not _is_number(row[name]):
                    raise self._damaged(f"{name} of epoch {row['epoch']} is no number")
        return tuple(rows)

    def counts(self) -> dict[str, int]:
        """Return the volumes of each split; empty when they are not recorded."""
        counts = self.object("data").get("num_volumes") or {}
        if not isinstance(counts, dict) or not all(map(_is_whole, counts.values())):
            raise self._damaged("num_volumes are no whole numbers")
        return counts

    def share(self, key: str) -> float | None:
        """Return a number from 0 to 1, or None where it is null."""
        if key not in self.content:
            raise self._damaged(f"{key} is missing")
        value = self.content[key]
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            raise self._damaged(f"{key} is {value!r}, not between 0 and 1")
        return None if value is None else float(value)

    def whole(self, key: str) -> int | None:
        """Return a whole number, or None where it is null or missing."""
        value = self.content.get(key)
        if value is not None and not _is_whole(value):
            raise self._damaged(f"{key} is {value!r}, not a whole number")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
