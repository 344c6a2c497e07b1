"""Searches on this machine: what is proposed for each cell is run, stopped early when it is poor, and never lost.

The journal says what was proposed and how it ended, run folders the rest, so that whoever calls again after whatever
was killed finishes what was under way, and then goes on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from cryo_monai.completed_runs import forget_failure, is_done
from cryo_monai.folders import LOCK, Journal, is_locked, locked
from cryo_monai.searches.cell_searches import FOLDER, CellSearch
from cryo_monai.searches.proposals import (
    RUNNING,
    Proposal,
    final_failure,
    history_of,
    kept_values,
    proposals_of,
    read_journal,
    trial_value,
)
from cryo_monai.searches.studies import COMPLETE, FAILED, PRUNED, Study
from cryo_monai.sweeps.plans import Trial

TICK = 0.5  # seconds


class Engine(Protocol):
    """What a search asks of `cryo_monai.sweeps.local_engine.LocalEngine`."""

    free: list[Any]
    signals: int

    @property
    def running(self) -> list[Trial]:
        """Trials that it is at."""

    def listening(self) -> AbstractContextManager[None]:
        """Count signals meanwhile."""

    def start(self, trial: Trial) -> None:
        """Start a trial in a free place."""

    def collect(self, seconds: float) -> list[Trial]:
        """Wait for trials to end, for so long."""

    def stop(self, trial: Trial) -> None:
        """Ask a running trial to save and end."""


@contextmanager
def searching(folder: Path) -> Iterator[None]:
    """Hold the searches of a sweep for this process.

    Raises
    ------
    LockedError
        When another process is searching there, naming it and its host.
    """
    with locked(folder / FOLDER / LOCK, f"{folder}: another process is searching there"):
        yield


class Searcher:
    """Runs searches to their end, those with the fewest proposals first.

    Parameters
    ----------
    searches : sequence of CellSearch
        Of `plan_searches`, held with `searching`.
    engine : Engine
        Runs trials.
    told : callable, optional
        Called with the search and the proposal when one has ended.
    """

    def __init__(
        self,
        searches: Sequence[CellSearch],
        engine: Engine,
        *,
        told: Callable[[CellSearch, Proposal], object] | None = None,
    ) -> None:
        self.engine = engine
        self.told = told or (lambda search, proposal: None)
        self._books = [_Book(search) for search in searches]

    def run(self) -> bool:
        """Make all proposals, and see them to their end.

        Returns
        -------
        bool
            False when a signal stopped it: then all running trials have saved and ended.
        """
        with self.engine.listening():
            while True:
                for book in self._books:
                    self._look(book)
                if not self.engine.signals:
                    self._fill()
                if not self.engine.running and (self.engine.signals or all(book.over for book in self._books)):
                    return not self.engine.signals
                self.engine.collect(TICK)

    def _look(self, book: _Book) -> None:
        """End the proposals that are done, failed, or to be stopped."""
        running = {trial.key for trial in self.engine.running}
        for proposal in list(book.active):
            trials = book.trials[proposal.number]
            book.follow(proposal, running)
            if proposal.state == RUNNING:
                continue
            if proposal.state == PRUNED and trials[0].key in running:
                self.engine.stop(trials[0])
            book.end(proposal)
            self.told(book.search, proposal)

    def _fill(self) -> None:
        """Start what can be started, proposing more where nothing is left to start."""
        while self.engine.free:
            waiting = [trial for book in self._books for trial in self._waiting(book)]
            trial = next((trial for trial in waiting if not is_locked(trial.folder / LOCK)), None)
            if trial is not None:
                self.engine.start(trial)
                continue
            if waiting:  # another process is at them, as one that a killed search left: what is under way comes first
                break
            open_books = [book for book in self._books if len(book.proposals) < book.search.number]
            if not open_books:
                break
            book = min(open_books, key=lambda book: len(book.proposals))
            book.propose()
            self._look(book)  # an equal one may have been done before

    def _waiting(self, book: _Book) -> Iterator[Trial]:
        running = {trial.key for trial in self.engine.running}
        for proposal in book.active:
            first, *others = book.trials[proposal.number]
            # Seeds after the first wait for it: it may be stopped early.
            for trial in [first, *others] if is_done(first.folder) else [first]:
                if trial.key not in running and not is_done(trial.folder):
                    yield trial


class _Book:
    """A search while it runs: its study, its journal, and the proposals that have not ended."""

    def __init__(self, search: CellSearch) -> None:
        self.search = search
        read_journal(search.journal)  # says in one line what is damaged
        self.journal = Journal(search.journal)
        self.study = Study(search.search)
        self.trials: dict[int, tuple[Trial, ...]] = {}
        self.proposals = proposals_of(self.journal.entries, search.trials)
        if not self.journal.entries:
            search.journal.parent.mkdir(parents=True, exist_ok=True)
            self.journal.append([{"cell": search.cell, "search": search.search.described}])
        for proposal in self.proposals:
            self.study.adopt(proposal.ids)
            if proposal.state == RUNNING:
                self.trials[proposal.number] = search.make(proposal.ids)
                for trial in self.trials[proposal.number]:
                    forget_failure(trial.folder)
                continue
            for epoch, value in proposal.curve:
                self.study.report(proposal.number, epoch, value)
            self.study.tell(proposal.number, proposal.state, proposal.value)

    @property
    def active(self) -> list[Proposal]:
        """Proposals that have not ended."""
        return [proposal for proposal in self.proposals if proposal.state == RUNNING]

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.proposals) >= self.search.number and not self.active

    def propose(self) -> None:
        """Make one more proposal, and write it down before anything is run."""
        ids = self.study.propose()
        trials = self.search.make(ids)
        proposal = Proposal(len(self.proposals), ids, tuple(trial.key for trial in trials))
        self.journal.append([proposal.made()])
        self.proposals.append(proposal)
        self.trials[proposal.number] = trials

    def follow(self, proposal: Proposal, running: set[str]) -> None:
        """Look at the epochs and the ends of a proposal's trials; set its state."""
        trials = self.trials[proposal.number]
        metric = self.search.search.metric
        seen = proposal.curve[-1][0] if proposal.curve else 0
        for epoch, value in kept_values(history_of(trials[0]), metric):
            if epoch > seen and value is not None:
                proposal.curve.append((epoch, value))
                poor = self.study.report(proposal.number, epoch, value)
                # One that has come to its last epoch has nothing left to save.
                if poor and epoch < trials[0].max_epochs:
                    proposal.state, proposal.value = PRUNED, value
                    return
        if all(is_done(trial.folder) for trial in trials):
            values = [trial_value(trial, metric) for trial in trials]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                proposal.state, proposal.reason = FAILED, f"{metric} is undefined"
            else:
                proposal.state, proposal.value = COMPLETE, sum(known) / len(known)
            return
        failures = [final_failure(trial) for trial in trials if trial.key not in running]
        if any(failures):
            proposal.state, proposal.reason = FAILED, next(filter(None, failures))

    def end(self, proposal: Proposal) -> None:
        """Write down how a proposal ended."""
        histories = [history_of(trial) for trial in self.trials.pop(proposal.number)]
        proposal.epochs = sum(map(len, histories))
        proposal.seconds = sum(row.get("seconds") or 0.0 for history in histories for row in history)
        self.study.tell(proposal.number, proposal.state, proposal.value)
        self.journal.append([proposal.ended()])
