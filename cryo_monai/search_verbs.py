"""The search of a sweep: from its file to the trials of what was found best."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryo_monai.searches.cell_searches import CellSearch
    from cryo_monai.searches.searching import Engine
    from cryo_monai.sweeps.plans import Planner, Trial


def tuned(
    planner: Planner,
    cells: Sequence[Mapping[str, Any]],
    *,
    pretraining: Sequence[Trial],
    run: Callable[[list[Trial]], bool],
    engine: Callable[[], Engine] | None,
) -> tuple[list[Trial], list[str]]:
    """Search for each cell, write what was found, and return what is to be run with it.

    Parameters
    ----------
    planner : Planner
        Of the sweep.
    cells : sequence of mapping
        Of the sweep.
    pretraining : sequence of Trial
        Trials whose weights others begin from.
    run : callable
        Does trials; False when a signal stopped it.
    engine : callable or None
        Makes what proposals run on; None only writes what was found so far.

    Returns
    -------
    list of Trial
        Those of pre-training, and of the cells whose search is over, with the best proposal.
    list of str
        Cells whose search is over and found nothing.

    Raises
    ------
    SystemExit
        With 75, when a signal stopped it.
    InputError
        In one line; see `plan_searches` and `searching`.
    """
    from cryo_monai.errors import InputError
    from cryo_monai.searches.cell_searches import plan_searches, tuned_trials, unsolved
    from cryo_monai.searches.proposals import final_failure
    from cryo_monai.searches.settings import read_search

    searches = plan_searches(planner, cells, read_search(planner.sweep))
    finished = True
    if engine is not None:
        finished = not pretraining or run(list(pretraining))
        failures = [final_failure(trial) for trial in pretraining]
        if any(failures):
            raise InputError(f"pre-training failed: {next(filter(None, failures))}")
        finished = finished and _run(planner, searches, engine)
    _write(planner, searches)
    if not finished:
        print("stopped; the same command goes on")
        raise SystemExit(75)
    trials = tuned_trials(planner, cells, searches)
    if not trials:
        raise InputError(f"no search has come to a result yet; {planner.folder / 'search.csv'} has its proposals")
    return [*pretraining, *trials], unsolved(searches)


def _run(planner: Planner, searches: Sequence[CellSearch], engine: Callable[[], Engine]) -> bool:
    from cryo_monai.searches.files import ending_text, write_search_files
    from cryo_monai.searches.proposals import Proposal
    from cryo_monai.searches.searching import Searcher, searching

    def tell(search: CellSearch, proposal: Proposal) -> None:
        print(ending_text(search, proposal), flush=True)
        write_search_files(searches, planner.folder)

    with searching(planner.folder):
        return Searcher(searches, engine(), told=tell).run()


def _write(planner: Planner, searches: Sequence[CellSearch]) -> None:
    from cryo_monai.reports.search_pages import write_search_page
    from cryo_monai.searches.files import finding, write_search_files

    files = write_search_files(searches, planner.folder)
    files.append(write_search_page(searches, planner.sweep.described(), planner.folder))
    for search in searches:
        print(finding(search), file=sys.stderr)
    print(f"search: {', '.join(map(str, files))}", file=sys.stderr)
