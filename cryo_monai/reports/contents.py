"""Everything a report of a run shows, read once; what is not there is named with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.audit_reports import Audit
from cryo_monai.errors import CryoMonaiError
from cryo_monai.run_evaluation import evaluation_of, open_split
from cryo_monai.run_warnings import audit_run, run_warnings
from cryo_monai.runs import CONFIGURATION, read_json, read_run
from cryo_monai.workflows import load_workflow


@dataclass(frozen=True)
class Scores:
    """Row by row what the network said of the test volumes: the content of ``test_features.npz``."""

    features: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    paths: list[str]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Class of the highest probability."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """Highest probability."""
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Whether the predicted class is not the true one."""
        return np.asarray(self.predicted != self.labels)


@dataclass(frozen=True)
class RunContents:
    """A run and its evaluation.

    Attributes
    ----------
    folder : Path
        The run folder.
    record, evaluation, training : dict
        Content of ``run.json``, ``evaluation.json`` and ``metrics.json``.
    class_names : list of str
        By label.
    warnings : list of str
        What speaks against believing the numbers; one line each.
    scores : Scores or None
        Of the test volumes.
    volumes : sequence or None
        Test volumes as ``volumes[n]["image"]``, in the order of `scores`, read when asked for.
    audit : Audit or None
        Of the data.
    configuration : dict or None
        With overlays and ids applied.
    missing : dict
        Why what is None is None, by its name.
    """

    folder: Path
    record: dict[str, Any]
    evaluation: dict[str, Any]
    training: dict[str, Any]
    class_names: list[str]
    warnings: list[str]
    scores: Scores | None = None
    volumes: Any = None
    audit: Audit | None = None
    configuration: dict[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """Rows of epochs."""
        rows: list[dict[str, Any]] = self.training.get("history", [])
        return rows


def read_contents(run_dir: str | os.PathLike[str], *, audit_of: Callable[[Path], Audit] = audit_run) -> RunContents:
    """Read a run for its report; the test split is scored only if it was not yet.

    Parameters
    ----------
    run_dir : path
        A run folder.
    audit_of : callable
        Audits the data of a run; one that remembers saves reading the data of several runs again.

    Raises
    ------
    CryoMonaiError
        When the folder is not a finished run.
    """
    folder, record = read_run(run_dir)
    evaluation = evaluation_of(folder)
    missing: dict[str, str] = {}

    def attempt(name: str, make: Any) -> Any:
        try:
            return make()
        except CryoMonaiError as error:
            missing[name] = " ".join(str(error).split())
            return None

    training = attempt("training", lambda: read_json(folder / "metrics.json")) or {}
    scores = attempt("scores", lambda: _read_scores(folder))
    volumes = attempt("volumes", lambda: _open_volumes(folder, scores))
    audit, warnings = _honesty(folder, missing, audit_of)
    if "volumes" in missing and "audit" not in missing:
        warnings.append(missing["volumes"])
    return RunContents(
        folder=folder,
        record=record,
        evaluation=evaluation,
        training=training,
        class_names=list(evaluation["per_class"]),
        warnings=warnings,
        scores=scores,
        volumes=volumes,
        audit=audit,
        configuration=attempt("configuration", lambda: _configuration(folder, record)),
        missing=missing,
    )


def _read_scores(folder: Path) -> Scores:
    file = folder / "test_features.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Scores(
                np.asarray(arrays["features"], dtype=np.float32),
                np.asarray(arrays["probabilities"], dtype=np.float64),
                np.asarray(arrays["labels"], dtype=np.int64),
                [str(path) for path in arrays["paths"]],
            )
    except (OSError, ValueError, KeyError) as error:
        raise CryoMonaiError(f"{file}: not readable ({error}); run `cryo-monai evaluate` again") from error


def _open_volumes(folder: Path, scores: Scores | None) -> Any:
    items, dataset = open_split(folder)
    if scores is not None and [str(item["path"]) for item in items] != scores.paths:
        raise CryoMonaiError(f"{folder}: the test volumes are no longer those that were scored")
    return dataset


def _honesty(
    folder: Path, missing: dict[str, str], audit_of: Callable[[Path], Audit]
) -> tuple[Audit | None, list[str]]:
    """Audit the data, and say what speaks against the numbers."""
    try:
        audit = audit_of(folder)
    except CryoMonaiError as error:
        reason = missing["audit"] = " ".join(str(error).split())
        return None, [*run_warnings(folder), f"the data could not be audited: {reason}"]
    return audit, run_warnings(folder, audit)


def _configuration(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / CONFIGURATION
    if file.is_file():
        return read_json(file)
    workflow = load_workflow(record["bundle"], "train", overlays=record["overlays"], overrides=record["ids"])
    content: dict[str, Any] = workflow.parser.get()
    return content
