"""The searches of a sweep: one for each cell of all axes but the seed, checked and named before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.searches.checks import fit_search
from cryo_monai.searches.proposals import (
    RUNNING,
    Proposal,
    best_of,
    cell_without,
    proposals_of,
    read_journal,
    search_key,
)
from cryo_monai.searches.settings import Search
from cryo_monai.sweep_results.layouts import SEED
from cryo_monai.sweeps.outcomes import named
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.workflows import load_workflow

FOLDER = "search"


@dataclass(frozen=True)
class CellSearch:
    """The search of one cell of all axes but the seed.

    Attributes
    ----------
    cell : dict
        Axis to the name of its value.
    key : str
        See `search_key`.
    search : Search
        Its settings.
    journal : Path
        Its journal.
    make : callable
        Makes the trials of some ids, one per seed that scores them.
    trials : Path
        Folder of run folders.
    """

    cell: dict[str, Any]
    key: str
    search: Search
    journal: Path
    make: Callable[[Mapping[str, Any]], tuple[Trial, ...]]
    trials: Path

    @property
    def number(self) -> int:
        """How many proposals are to be made."""
        return self.search.trials or 0

    def proposals(self) -> list[Proposal]:
        """Return what was proposed so far."""
        return proposals_of(read_journal(self.journal), self.trials)

    def is_over(self) -> bool:
        """Whether all proposals were made, and have ended."""
        proposals = self.proposals()
        return len(proposals) >= self.number and all(proposal.state != RUNNING for proposal in proposals)

    def best(self) -> Proposal | None:
        """Return the best proposal so far."""
        return best_of(self.proposals(), self.search)


def plan_searches(planner: Planner, cells: Sequence[Mapping[str, Any]], search: Search) -> list[CellSearch]:
    """Make the search of each cell, and check that every value of its space can be used there.

    Parameters
    ----------
    planner : Planner
        Of the sweep.
    cells : sequence of mapping
        Of the sweep; those that differ in their seed alone share a search.
    search : Search
        Of `cryo_monai.searches.settings.read_search`.

    Raises
    ------
    InputError
        In one line, for whatever would stop a proposal before its first step; when a value that is searched for is
        given on the command line as well, or changes nothing.
    """
    about = f"{planner.sweep.path}: search"
    for name in search.space:
        if name in planner.ids:
            raise InputError(f"{about}: space: {name} is searched for; leave out --{name}")
    without_seed = {json.dumps(cell_without(cell, SEED)): cell_without(cell, SEED) for cell in cells}
    return [_plan_search(planner, cell, search, about) for cell in without_seed.values()]


def _plan_search(planner: Planner, cell: dict[str, Any], search: Search, about: str) -> CellSearch:
    scored = [{**cell, **({SEED: seed} if search.seeds else {})} for seed in search.seeds or (0,)]
    scored = [{axis: each[axis] for axis in planner.sweep.axes} for each in scored]  # in their order

    def make(ids: Mapping[str, Any]) -> tuple[Trial, ...]:
        return tuple(planner.changed(each, ids) for each in scored)

    plain = make({})
    first = plain[0]
    workflow = load_workflow(first.bundle, "train", overlays=first.overlays, overrides=first.ids)
    fitted = fit_search(search, workflow.parser, about)
    for name, values in fitted.space.items():
        keys = [planner.changed(scored[0], {name: value}).key for value in values.ends]
        if len(set(keys)) < len(keys):
            raise InputError(f"{about}: space: {name}: its values make no difference to a training")
    key = search_key(plain, fitted)
    return CellSearch(cell, key, fitted, planner.folder / FOLDER / f"{key}.jsonl", make, planner.folder / "trials")


def tuned_trials(planner: Planner, cells: Sequence[Mapping[str, Any]], searches: Sequence[CellSearch]) -> list[Trial]:
    """Return the trials of the cells, each with the best proposal of its search; but those whose search goes on."""
    best = {json.dumps(search.cell): search.best() for search in searches if search.is_over()}
    trials = []
    for cell in cells:
        proposal = best.get(json.dumps(cell_without(cell, SEED)))
        if proposal is not None:
            trials.append(planner.changed(cell, proposal.ids))
    return trials


def unsolved(searches: Sequence[CellSearch]) -> list[str]:
    """Name the cells whose search is over and has no proposal that was trained to its end."""
    return [named(search.cell) for search in searches if search.is_over() and search.best() is None]
