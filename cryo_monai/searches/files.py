"""The files that searches leave: a row for each proposal, and the best of each cell as an overlay."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.files import atomic_write_text
from cryo_monai.searches.cell_searches import CellSearch
from cryo_monai.searches.proposals import Proposal
from cryo_monai.sweeps.outcomes import named

BEST = "best"
OUTCOMES = ("state", "value", "epochs", "seconds", "reason", "folder")


def write_search_files(searches: Sequence[CellSearch], output_dir: Path) -> list[Path]:
    """Write ``search.csv``, and ``best/NAME.json`` for each cell that has a value, whatever is done.

    Parameters
    ----------
    searches : sequence of CellSearch
        All of the sweep.
    output_dir : Path
        Folder of the sweep.

    Returns
    -------
    list of Path
        The files.
    """
    files = [output_dir / "search.csv"]
    atomic_write_text(files[0], search_csv(searches))
    for name, search in zip(best_names(searches), searches, strict=True):
        best = search.best()
        if best is not None:
            files.append(output_dir / BEST / f"{name}.json")
            atomic_write_text(files[-1], json.dumps(_overlay(search, best), indent=4) + "\n")
    return files


def search_csv(searches: Sequence[CellSearch]) -> str:
    """Write a row per proposal: its cell, its values, its state and numbers, and the run folder of its first seed."""
    axes = list(dict.fromkeys(axis for search in searches for axis in search.cell))
    ids = list(dict.fromkeys(name for search in searches for name in search.search.space))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["number", *axes, *ids, *OUTCOMES])
    for search in searches:
        for proposal in search.proposals():
            table.writerow(
                [
                    proposal.number + 1,
                    *(search.cell.get(axis) for axis in axes),
                    *(_written(proposal.ids[name]) if name in proposal.ids else None for name in ids),
                    proposal.state,
                    proposal.value,
                    proposal.epochs or None,
                    round(proposal.seconds, 1) or None,
                    proposal.reason,
                    f"trials/{proposal.keys[0]}",
                ]
            )
    return text.getvalue()


def best_names(searches: Sequence[CellSearch]) -> list[str]:
    """Return the name of each cell's file: the names of its values, in what every file system takes."""
    names: list[str] = []
    for search in searches:
        text = "-".join(str(value) for value in search.cell.values()) or BEST
        name = re.sub(r"[^\w.-]+", "_", text)
        names.append(f"{name}-{search.key}" if name.lower() in map(str.lower, names) else name)
    return names


def finding(search: CellSearch) -> str:
    """Say in one line how far a search is, and what is best so far."""
    proposals = search.proposals()
    states = [proposal.state for proposal in proposals]
    parts = [f"{len(proposals) - states.count('running')} of {search.number} proposals"]
    parts += [f"{states.count(state)} {said}" for state, said in _SAID.items() if state in states]
    best = search.best()
    found = f"best {search.search.metric} {best.value:.4f} with {settings_text(best.ids)}" if best else "no value yet"
    return f"{named(search.cell) or 'search'}: {', '.join(parts)}; {found}"


_SAID = {"running": "under way", "pruned": "stopped early", "failed": "failed"}


def ending_text(search: CellSearch, proposal: Proposal) -> str:
    """Say in one line how a proposal ended."""
    about = f"{named(search.cell)}: proposal {proposal.number + 1} of {search.number}".lstrip(": ")
    value = "" if proposal.value is None else f"{search.search.metric} {proposal.value:.4f}"
    if proposal.state == "failed":
        return f"{about}: failed, {settings_text(proposal.ids)}: {proposal.reason}"
    if proposal.state == "pruned":
        return f"{about}: stopped after epoch {proposal.curve[-1][0]}, {value}, {settings_text(proposal.ids)}"
    return f"{about}: {value}, {settings_text(proposal.ids)}"


def settings_text(ids: Mapping[str, Any]) -> str:
    """Write values in one line: ``lr 0.00123, optimizer @optimizers#adam``."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {_written(value)}"
        for name, value in ids.items()
    )


def _overlay(search: CellSearch, best: Proposal) -> dict[str, Any]:
    ended = sum(proposal.state != "running" for proposal in search.proposals())
    note = (
        f"Best of {ended} proposals for {named(search.cell) or 'this sweep'}: {search.search.metric} {best.value:.6g}, "
        f"proposal {best.number + 1}, run folder trials/{best.keys[0]}. Chosen on the validation split."
    )
    return {"_desc_": note, **best.ids}


def _written(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else json.dumps(value)
