"""Proposals of a search, and the journal that they are found again in.

A journal has a line when a proposal is made, before it is run, and one when it has ended; the rest is in run folders.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryo_monai.completed_runs import FAILURE, failure_of, is_done
from cryo_monai.errors import InputError
from cryo_monai.runs import read_json
from cryo_monai.searches.settings import Search
from cryo_monai.searches.studies import COMPLETE, FAILED
from cryo_monai.sweeps.outcomes import Cell
from cryo_monai.sweeps.plans import Trial

RUNNING = "running"
KEY_LENGTH = 16


@dataclass
class Proposal:
    """Values for the ids of a search, and what came of them.

    Attributes
    ----------
    number : int
        From 0, in the order in which they were made.
    ids : dict
        Id to value.
    keys : tuple of str
        Of its trials, one per seed that scores it.
    state : str
        ``"running"``, ``"complete"``, ``"pruned"`` or ``"failed"``.
    value : float or None
        Mean of the metric over the seeds, each at the epoch whose weights were kept; of a pruned one that of its first
        seed when it was stopped.
    curve : list
        ``(epoch, value)`` of the first seed, as they were looked at.
    epochs : int
        That were trained, over all seeds.
    seconds : float
        That they took, validation included.
    reason : str
        Why it failed.
    """

    number: int
    ids: dict[str, Any]
    keys: tuple[str, ...]
    state: str = RUNNING
    value: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""

    def made(self) -> dict[str, Any]:
        """Return its first line in the journal."""
        return {"number": self.number, "ids": self.ids, "trials": list(self.keys)}

    def ended(self) -> dict[str, Any]:
        """Return its last line in the journal."""
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "curve": [list(point) for point in self.curve],
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
        }


def search_key(trials: Sequence[Trial], search: Search) -> str:
    """Name a search by what decides its proposals: the trials that it changes, and its settings but how many it makes.

    Returns
    -------
    str
        16 hexadecimal digits.
    """
    text = json.dumps({"trials": [trial.key for trial in trials], "search": search.described}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def read_journal(file: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a journal that another process may be writing; none where there is none.

    Raises
    ------
    InputError
        When a line is damaged.
    """
    if not file.is_file():
        return []
    lines = file.read_text().rpartition("\n")[0].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{file}: a line is damaged ({error}); remove it, and the search goes on") from error


def proposals_of(entries: Sequence[Mapping[str, Any]], trials: Path) -> list[Proposal]:
    """Return the proposals that a journal tells of.

    Parameters
    ----------
    entries : sequence of mapping
        Of the journal.
    trials : Path
        Folder of run folders; a failed proposal whose ``failure.json`` was removed is running again.
    """
    found: dict[int, Proposal] = {}
    for entry in entries:
        number = int(entry.get("number", -1))
        if "ids" in entry:
            found[number] = Proposal(number, dict(entry["ids"]), tuple(entry["trials"]))
        elif number in found:
            proposal = found[number]
            proposal.state, proposal.value = entry["state"], entry["value"]
            proposal.curve = [(int(epoch), float(value)) for epoch, value in entry["curve"]]
            proposal.epochs, proposal.seconds, proposal.reason = entry["epochs"], entry["seconds"], entry["reason"]
    for proposal in found.values():
        folders = [trials / key for key in proposal.keys]
        noted = any((folder / FAILURE).is_file() for folder in folders) or all(map(is_done, folders))
        if proposal.state == FAILED and not noted:
            found[proposal.number] = Proposal(proposal.number, proposal.ids, proposal.keys)
    return list(found.values())


def best_of(proposals: Sequence[Proposal], search: Search) -> Proposal | None:
    """Return the proposal with the best value among those that were trained to their end, the first of equal ones."""
    whole = [proposal for proposal in proposals if proposal.state == COMPLETE and proposal.value is not None]
    values = [proposal.value for proposal in whole if proposal.value is not None]
    return next((proposal for proposal in whole if proposal.value == search.best(values)), None)


def kept_values(history: Sequence[Mapping[str, Any]], metric: str) -> Iterator[tuple[int, float | None]]:
    """Yield for each epoch the metric of the weights that a training which ended there would have kept.

    They are those of the epoch with the best key metric so far, as in `cryo_monai.history.History`. None where the
    metric is undefined; epochs before the first validation are left out.
    """
    best, kept = None, None
    for row in history:
        if "key_metric" in row:
            score = -math.inf if row["key_metric"] is None else row["key_metric"]
            if best is None or score > best:
                best, kept = score, row.get(metric)
        if best is not None:
            yield row["epoch"], kept


def history_of(trial: Trial) -> list[dict[str, Any]]:
    """Return the epochs of a trial so far."""
    try:
        return list(read_json(trial.folder / "metrics.json").get("history", []))
    except InputError:
        return []


def trial_value(trial: Trial, metric: str) -> float | None:
    """Return the metric of the weights that a trial keeps; None where it is undefined."""
    values = [value for _, value in kept_values(history_of(trial), metric)]
    return values[-1] if values else None


def final_failure(trial: Trial) -> str:
    """Say why a trial will not be done; empty while it may be."""
    failure = failure_of(trial.folder)
    return failure[0] or "it failed" if failure and failure[1] and not is_done(trial.folder) else ""


def cell_without(cell: Cell, axis: str) -> dict[str, Any]:
    """Return a cell without one of its axes."""
    return {name: value for name, value in cell.items() if name != axis}
