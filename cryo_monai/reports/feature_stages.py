"""Features of the same volumes before training and after, of every run: fig. 3 of the paper, with numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import CryoMonaiError
from cryo_monai.projections import Projection, describe_projection
from cryo_monai.reports.compared_runs import ComparedRun, common_volumes
from cryo_monai.run_inference import starting_features
from cryo_monai.separability import Separability, measure_separability

# Points of a picture; t-SNE of more takes minutes, and they hide each other.
MAX_SHOWN = 2000


@dataclass(frozen=True)
class Stage:
    """A state of a network and what its features of the test volumes are worth."""

    title: str
    kind: str
    """``"start"`` or ``"trained"``."""
    runs: tuple[str, ...]
    """Names of the runs that it belongs to."""
    separability: Separability | None = None
    projection: Projection | None = None
    missing: str = ""
    """Why there are no features."""


@dataclass(frozen=True)
class Stages:
    """All states, on the same volumes."""

    stages: tuple[Stage, ...]
    num_volumes: int
    """That are common to all runs."""
    labels: npt.NDArray[np.int64]
    """Of the volumes in the pictures."""


def measure_stages(
    runs: Sequence[ComparedRun],
    *,
    projection: str = "tsne",
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Stages:
    """Measure and project the features of every start and of every trained run.

    Runs that started equal, from the same weights or the same random numbers, share a start.

    Parameters
    ----------
    runs : sequence of ComparedRun
        Their common test volumes are used.
    projection : str
        See `project`.
    seed : int
        Of the projection and the cross-validation.
    progress : callable, optional
        Called when the features of a start are there, and when those of a state are measured and when projected: at
        most five times per run.
    """
    paths = common_volumes(runs)
    if not paths:
        return Stages((), 0, np.zeros(0, dtype=np.int64))
    rows = [_rows(run, paths) for run in runs]
    labels = runs[0].scores.labels[rows[0]]
    step = progress or (lambda: None)
    starts, failures = _find_starts(runs, rows, step)
    shown = _shown(labels)
    stages = []
    trained = [(f"after training: {run.name}", "trained", (run.name,), run.scores.features[at])
               for run, at in zip(runs, rows, strict=True)]  # fmt: skip
    for title, kind, names, features in [*starts, *trained]:
        try:
            measured = measure_separability(features, labels, seed=seed)
            step()
            projected = describe_projection(features[shown], projection, seed=seed)
            step()
            stages.append(Stage(title, kind, names, measured, projected))
        except CryoMonaiError as error:
            stages.append(Stage(title, kind, names, missing=_one_line(error)))
    ordered = [stage for stage in stages if stage.kind == "start"] + failures
    ordered += [stage for stage in stages if stage.kind == "trained"]
    return Stages(tuple(ordered), len(paths), labels[shown])


def _find_starts(
    runs: Sequence[ComparedRun], rows: Sequence[npt.NDArray[np.intp]], step: Callable[[], object]
) -> tuple[list[tuple[str, str, tuple[str, ...], npt.NDArray[np.float32]]], list[Stage]]:
    """Return distinct starts with their features, and stages of the runs that have none any more."""
    starts: list[tuple[str, str, tuple[str, ...], npt.NDArray[np.float32]]] = []
    failures = []
    for run, at in zip(runs, rows, strict=True):
        title = f"before training: {_weights_text(run)}"
        try:
            features = _starting_features(run)[at]
        except CryoMonaiError as error:
            failures.append(Stage(title, "start", (run.name,), missing=_one_line(error)))
        else:
            place = next((n for n, start in enumerate(starts) if _alike(start[3], features)), None)
            if place is None:
                starts.append((title, "start", (run.name,), features))
            else:
                known = starts[place]
                starts[place] = (known[0], known[1], (*known[2], run.name), known[3])
        step()
    return _told_apart(starts), failures


def _starting_features(run: ComparedRun) -> npt.NDArray[np.float32]:
    features = starting_features(run.contents.folder)
    if len(features) != len(run.scores.paths):
        raise CryoMonaiError(f"{run.contents.folder}: its test volumes are no longer those that were scored")
    return features


def _told_apart(starts: list[Any]) -> list[Any]:
    """Add the names of runs to titles that come twice, such as random weights of two seeds."""
    titles = [title for title, *_ in starts]
    return [
        (f"{title} of {', '.join(names)}" if titles.count(title) > 1 else title, kind, names, features)
        for title, kind, names, features in starts
    ]


def _weights_text(run: ComparedRun) -> str:
    return "random weights" if run.weights == "random" else run.weights


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Whether features are the same but for rounding, which differs with the number of threads."""
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1e-4 * max(float(np.abs(one).max()), 1e-30))


def _rows(run: ComparedRun, paths: Sequence[str]) -> npt.NDArray[np.intp]:
    place = {path: row for row, path in enumerate(run.scores.paths)}
    return np.array([place[path] for path in paths], dtype=np.intp)


def _shown(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Rows of a picture: all, or every so many of each class."""
    if len(labels) <= MAX_SHOWN:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, MAX_SHOWN).astype(np.intp)])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
