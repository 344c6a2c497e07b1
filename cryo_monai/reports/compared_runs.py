"""Runs that are compared: read and checked together, paired on the volumes that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryo_monai.audits import Audit
from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.reports.contents import RunContents, Scores, read_contents
from cryo_monai.run_warnings import audit_key, audit_run
from cryo_monai.runs import CIRCUMSTANCES
from cryo_monai.significance import PairedComparison, Predictions, compare_all, correct_holm
from cryo_monai.workflows import flattened


@dataclass(frozen=True)
class ComparedRun:
    """A run under the name it has in a comparison."""

    name: str
    contents: RunContents
    scores: Scores

    @property
    def evaluation(self) -> dict[str, Any]:
        """Content of ``evaluation.json``."""
        return self.contents.evaluation

    @property
    def predictions(self) -> Predictions:
        """What the run says of its test volumes."""
        scores = self.scores
        return Predictions(tuple(scores.paths), scores.labels, scores.probabilities, tuple(self.contents.class_names))

    @property
    def weights(self) -> str:
        """Name of the weights it began with, or ``"random"``."""
        weights = (self.contents.record.get("initialisation") or {}).get("weights")
        return Path(str(weights)).name if weights else "random"


@dataclass(frozen=True)
class Pair:
    """Two runs and the tests between them."""

    first: str
    second: str
    tests: PairedComparison | None
    """None when no test volume is common."""
    corrected: dict[str, float | None]
    """p values after Holm over all pairs: ``mcnemar`` and each metric."""


def read_runs(
    run_dirs: Sequence[str | os.PathLike[str]],
    names: Sequence[str] = (),
    *,
    progress: Callable[[], object] | None = None,
) -> list[ComparedRun]:
    """Read the runs of a comparison; data that several share are audited once.

    Parameters
    ----------
    run_dirs : sequence of path
        Two run folders or more.
    names : sequence of str
        What to call them; by default the names of their folders.
    progress : callable, optional
        Called when a run is read.

    Raises
    ------
    CryoMonaiError
        In one line: fewer than two runs, one twice, names that do not fit, a folder that is not a finished run, other
        classes than those of the first run.
    """
    folders = [Path(folder) for folder in run_dirs]
    if len(folders) < 2:
        raise InputError(f"compare: {len(folders)} run given; give two run folders or more, separated by commas")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder}: given twice; each run is compared with the others")
    called = _check_names(names, places)
    runs: list[ComparedRun] = []
    audit_of = _audit_once()
    for name, folder in zip(called, folders, strict=True):
        contents = read_contents(folder, audit_of=audit_of)
        if contents.scores is None:
            raise CryoMonaiError(contents.missing["scores"])
        runs.append(ComparedRun(name, contents, contents.scores))
        ours, theirs = contents.class_names, runs[0].contents.class_names
        if ours != theirs:
            raise InputError(
                f"{folder}: its classes are {', '.join(ours)}; those of {folders[0]} are {', '.join(theirs)}. "
                "Only runs with the same classes in the same order can be compared"
            )
        if progress is not None:
            progress()
    return runs


def _audit_once() -> Callable[[Path], Audit]:
    """Make an `audit_run` that remembers what it has audited."""
    known: dict[tuple[str, ...], Audit] = {}

    def audit(run_dir: Path) -> Audit:
        key = audit_key(run_dir)
        if key not in known:
            known[key] = audit_run(run_dir)
        return known[key]

    return audit


def _check_names(names: Sequence[str], places: Sequence[Path]) -> list[str]:
    if not names:
        short = [place.name for place in places]
        return [f"{p.parent.name}/{p.name}" if short.count(p.name) > 1 else p.name for p in places]
    if len(names) != len(places):
        raise InputError(f"names: {len(names)} for {len(places)} runs; give one for each, in the same order")
    for name in names:
        if not name.strip() or list(names).count(name) > 1:
            raise InputError(f"names: {name!r} is empty or comes twice; each run needs a name of its own")
    return list(names)


def pair_runs(
    runs: Sequence[ComparedRun], *, seed: int = 0, progress: Callable[[], object] | None = None
) -> list[Pair]:
    """Test every pair of runs on their common volumes; p values are corrected over the pairs.

    Parameters
    ----------
    runs : sequence of ComparedRun
        From `read_runs`.
    seed : int
        Of the bootstrap and the swap test.
    progress : callable, optional
        Called when a pair is tested.

    Raises
    ------
    InputError
        When the labels of a volume disagree.
    """
    found = compare_all({run.name: run.predictions for run in runs}, seed=seed, progress=progress)
    tested = [tests for tests in found.values() if tests is not None]
    corrected: dict[str, list[float | None]] = {"mcnemar": correct_holm([tests.mcnemar_p for tests in tested])}
    for metric in tested[0].differences if tested else ():
        corrected[metric] = correct_holm([tests.differences[metric].p_value for tests in tested])
    rows = iter(zip(*corrected.values(), strict=True))
    return [
        Pair(first, second, tests, {} if tests is None else dict(zip(corrected, next(rows), strict=True)))
        for (first, second), tests in found.items()
    ]


def common_volumes(runs: Sequence[ComparedRun]) -> list[str]:
    """Paths of the test volumes that all runs were scored on, sorted."""
    return sorted(set.intersection(*(set(run.scores.paths) for run in runs)))


def comparison_warnings(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> list[str]:
    """List, one line each, what speaks against comparing the runs, and against the numbers of each."""
    lines = []
    if any(set(run.scores.paths) != set(runs[0].scores.paths) for run in runs):
        counts = ", ".join(f"{run.name} {len(run.scores.paths)}" for run in runs)
        lines.append(
            f"the runs were scored on different test volumes ({counts}; {len(common_volumes(runs))} common to all): "
            "metrics are those of each run's own volumes, paired tests use the common volumes of each pair only"
        )
    lines += [f"{pair.first} and {pair.second} have no test volume in common: nothing is tested between them"
              for pair in pairs if pair.tests is None]  # fmt: skip
    places = {str(run.contents.record["ids"].get("dataset_dir", "")) for run in runs}
    if len(places) > 1:
        lines.append(f"the runs were trained on different data: {', '.join(sorted(places))}")
    by_line: dict[str, list[str]] = {}
    for run in runs:
        for line in run.contents.warnings:
            by_line.setdefault(line, []).append(run.name)
    shared = len(runs)
    return lines + [
        f"{'all runs' if len(names) == shared else ', '.join(names)}: {line}" for line, names in by_line.items()
    ]


def differing_ids(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Ids of the configuration that are not the same in all runs, with the value of each; ``–`` where there is none."""
    configurations = [_flat(run.contents.configuration) for run in runs]
    names = dict.fromkeys(name for configuration in configurations for name in configuration)
    found = {}
    for name in names:
        values = [configuration.get(name, "–") for configuration in configurations]
        if len(set(values)) > 1:
            found[name] = values
    return found


def _flat(configuration: Mapping[str, Any] | None) -> dict[str, str]:
    values = dict(flattened(configuration)) if configuration else {}
    return {name: str(value) for name, value in values.items() if name.split("#")[0] not in CIRCUMSTANCES}
