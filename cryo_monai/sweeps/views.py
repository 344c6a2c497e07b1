"""What a terminal shows of a sweep while it runs: the cells so far, where each trial is, and the time left."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from cryo_monai.errors import InputError
from cryo_monai.runs import read_json
from cryo_monai.sweeps.outcomes import Outcome, named
from cryo_monai.sweeps.plans import Trial
from cryo_monai.sweeps.trials import outcome_of

_SHOWN = ("accuracy", "auc", "validation")
_UP, _CLEAR = "\x1b[{}F", "\x1b[J"


class SweepView:
    """Follows a sweep by looking into the folders of its trials, whoever runs them.

    In a terminal a block of lines is redrawn; elsewhere each trial has a line when it begins and when it ends.

    Parameters
    ----------
    trials : sequence of Trial
        Of the sweep.
    stream : text file, optional
        Standard output by default.
    interval : float
        Seconds between two looks.
    """

    def __init__(self, trials: Sequence[Trial], *, stream: TextIO | None = None, interval: float = 2.0) -> None:
        self.trials = list(trials)
        self.stream = stream or sys.stdout
        self.interval = interval
        self.outcomes: dict[str, Outcome] = {}
        self.live = self.stream.isatty()
        self._began = self._looked = time.monotonic()
        self._at_start = 0.0
        self._drawn = 0
        self._scores: dict[str, Mapping[str, Any]] = {}
        self.look()
        self._at_start = self._passed()

    def __call__(self) -> None:
        """Look again, when it is time."""
        now = time.monotonic()
        if now - self._looked >= self.interval:
            self._looked = now
            self.look()

    def look(self) -> None:
        """Find out what became of each trial, and show what is new."""
        for trial in self.trials:
            before = self.outcomes.get(trial.key)
            if before is not None and before.state == "done":
                continue
            found = self.outcomes[trial.key] = outcome_of(trial)
            if found.state == "done":
                self._scores[trial.key] = _read(trial, "evaluation.json") or _validation(trial)
            if before is not None and before.state != found.state and not self.live:
                self._print(self._event(trial, found))
        if self.live:
            self._draw([*self._cells(), *self._running(), self.summary()])

    def close(self) -> None:
        """Show how it ended."""
        self.look()
        if not self.live:
            self._print(self.summary())

    def counts(self) -> dict[str, int]:
        """Count trials by state."""
        states = [outcome.state for outcome in self.outcomes.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def summary(self) -> str:
        """Say in one line how far it is, and how long the rest may take."""
        counts = self.counts()
        parts = [f"{counts.get('done', 0)} of {len(self.trials)} trials done"]
        parts += [f"{counts[state]} {state}" for state in ("running", "stopped", "failed") if counts.get(state)]
        elapsed = time.monotonic() - self._began
        gained = self._passed() - self._at_start
        left = sum(t.cost for t in self.trials if self.outcomes[t.key].state not in ("done", "failed"))
        left -= self._passed() - self._done()
        line = f"{', '.join(parts)}; {_clock(elapsed)}"
        if left > 0 and gained > 0:
            line += f", about {_clock(elapsed * left / gained)} left"
        return line

    def _done(self) -> float:
        return sum(trial.cost for trial in self.trials if self.outcomes[trial.key].state == "done")

    def _passed(self) -> float:
        """Cost of all epochs that are behind, those of unfinished trials too."""
        passed = self._done()
        for trial in self.trials:
            if self.outcomes[trial.key].state in ("running", "stopped"):
                passed += trial.cost * min(1.0, len(_history(trial)) / max(1, trial.max_epochs))
        return passed

    def _event(self, trial: Trial, found: Outcome) -> str:
        if found.state == "done":
            return f"done     {named(trial.cell)}: {_score(self._scores[trial.key])}"
        return f"{found.state:8} {named(trial.cell)}" + (f": {found.reason}" if found.reason else "")

    def _cells(self) -> list[str]:
        """One line for each cell over all its seeds."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            cell = {axis: value for axis, value in trial.cell.items() if axis != "seed"}
            groups.setdefault(", ".join(map(str, cell.values())), []).append(trial)
        width = max(map(len, groups))
        lines = []
        for name, members in groups.items():
            scores = [self._scores[trial.key] for trial in members if trial.key in self._scores]
            means = _score({key: _mean(scores, key) for key in _SHOWN}) if scores else ""
            failed = sum(self.outcomes[trial.key].state == "failed" for trial in members)
            note = f"  {failed} failed" if failed else ""
            lines.append(f"{name:{width}}  {len(scores)}/{len(members)}  {means}{note}".rstrip())
        return lines

    def _running(self) -> list[str]:
        lines = []
        for trial in self.trials:
            if self.outcomes[trial.key].state == "running":
                history = _history(trial)
                at = f"epoch {len(history)}/{trial.max_epochs}"
                if history and history[-1].get("key_metric") is not None:
                    at += f", validation {history[-1]['key_metric']:.3f}"
                lines.append(f"> {named(trial.cell)}: {at}")
        return lines

    def _draw(self, lines: Sequence[str]) -> None:
        width, height = shutil.get_terminal_size()
        shown = [line[: width - 1] for line in lines]
        if len(shown) >= height:
            shown = [*shown[: height - 4], f"... {len(shown) - height + 3} more lines", *shown[-2:]]
        if self._drawn:
            self.stream.write(_UP.format(self._drawn) + _CLEAR)
        self.stream.write("\n".join(shown) + "\n")
        self.stream.flush()
        self._drawn = len(shown)

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _read(trial: Trial, name: str) -> Mapping[str, Any]:
    """Read a file of a trial; nothing where there is none yet."""
    try:
        return read_json(trial.folder / name)
    except InputError:
        return {}


def _history(trial: Trial) -> list[dict[str, Any]]:
    return list(_read(trial, "metrics.json").get("history", []))


def _validation(trial: Trial) -> dict[str, Any]:
    """Return the score of a training that has no test split, as those on generated clips."""
    return {"validation": (_read(trial, "metrics.json").get("best") or {}).get("key_metric")}


def _mean(scores: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [score[key] for score in scores if score.get(key) is not None]
    return sum(values) / len(values) if values else None


def _score(numbers: Mapping[str, Any]) -> str:
    accuracy, auc = numbers.get("accuracy"), numbers.get("auc")
    parts = [f"accuracy {100 * accuracy:.2f} %"] if accuracy is not None else []
    parts += [f"AUC {auc:.4f}"] if auc is not None else []
    parts += [f"validation {numbers['validation']:.3f}"] if numbers.get("validation") is not None else []
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
