"""Classification metrics over a fixed set of classes, and the handler that writes them for a test split."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def one_vs_rest_auc(probabilities: Floats, labels: Labels) -> list[float | None]:
    """Area under the ROC curve of each class against the others; None where a class has no or only positives."""
    areas: list[float | None] = []
    for label in range(probabilities.shape[1]):
        positive = labels == label
        defined = 0 < positive.sum() < len(labels)
        areas.append(float(sklearn_metrics.roc_auc_score(positive, probabilities[:, label])) if defined else None)
    return areas


def classification_metrics(probabilities: Floats, labels: Labels, class_names: Sequence[str]) -> dict[str, Any]:
    """Compute every number of an evaluation.

    Parameters
    ----------
    probabilities : array
        `(n, num_classes)`.
    labels : array
        `(n,)`, integers below the number of classes.
    class_names : sequence of str
        Names by label.

    Returns
    -------
    dict
        ``accuracy``, ``auc`` (one versus rest, mean over the classes where it is defined), ``balanced_accuracy`` and
        ``macro_f1`` (over the classes that occur), ``per_class`` (precision, recall, f1, auc, support) and
        ``confusion_matrix`` (row: true class). Undefined numbers are None.
    """
    predicted = probabilities.argmax(axis=1)
    every = list(range(len(class_names)))
    present = sorted(set(labels.tolist()))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    areas = one_vs_rest_auc(probabilities, labels)
    defined = [area for area in areas if area is not None]
    return {
        "num_volumes": len(labels),
        "accuracy": float(np.mean(predicted == labels)),
        "auc": float(np.mean(defined)) if defined else None,
        "balanced_accuracy": float(np.mean(recall[present])),
        "macro_f1": float(np.mean(f1[present])),
        "chance": {"accuracy": float(np.bincount(labels).max() / len(labels)), "auc": 0.5},
        "per_class": {
            name: {
                "precision": float(precision[n]),
                "recall": float(recall[n]),
                "f1": float(f1[n]),
                "auc": areas[n],
                "support": int(support[n]),
            }
            for n, name in enumerate(class_names)
        },
        "confusion_matrix": sklearn_metrics.confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def _epoch_metric(name: str) -> Callable[[Tensor, Tensor], float]:
    def compute(probabilities: Tensor, labels: Tensor) -> float:
        names = [str(n) for n in range(probabilities.shape[1])]
        value = classification_metrics(probabilities.cpu().numpy(), labels.cpu().numpy().astype(int), names)[name]
        return math.nan if value is None else float(value)

    compute.__name__ = name
    compute.__doc__ = f"``{name}`` of `classification_metrics`, for ``ignite.metrics.EpochMetric``; NaN when undefined."
    return compute


accuracy = _epoch_metric("accuracy")
auc = _epoch_metric("auc")
balanced_accuracy = _epoch_metric("balanced_accuracy")
macro_f1 = _epoch_metric("macro_f1")


class MedMNISTEvaluator:
    """AUC and accuracy as MedMNIST's own evaluator computes them.

    Parameters
    ----------
    flag : str
        Such as ``"organmnist3d"``.
    """

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __call__(self, probabilities: Floats, labels: Labels) -> dict[str, float]:
        """Score probabilities `(n, num_classes)` against labels `(n,)`."""
        from medmnist import INFO  # imports torchvision: only when MedMNIST is used
        from medmnist.evaluator import getACC, getAUC

        if self.flag not in INFO:
            raise InputError(f"dataset_name: {self.flag!r} is not a MedMNIST flag")
        task = INFO[self.flag]["task"]
        truth = labels[:, None]
        return {
            "medmnist_auc": float(getAUC(truth, probabilities, task)),
            "medmnist_acc": float(getACC(truth, probabilities, task)),
        }


class EvaluationReport:
    """Evaluator handler that writes ``evaluation.json``, ``confusion_matrix.csv`` and ``SPLIT_predictions.csv``.

    Parameters
    ----------
    output_dir : path
        Where the files go.
    class_names : sequence of str
        Names by label.
    split : str
        Which split this is; written beside the numbers.
    extra : callable, optional
        ``(probabilities, labels) -> dict`` of further numbers, such as `MedMNISTEvaluator`.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        split: str = "test",
        extra: Callable[[Floats, Labels], dict[str, float]] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.class_names = list(class_names)
        self.split = split
        self.extra = extra
        self._rows: list[tuple[str, int, Floats]] = []

    def attach(self, engine: Engine) -> None:
        """Collect from each iteration, write when the engine completes."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._rows = []

    def _collect(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            probabilities = np.asarray(output["pred"].detach().cpu(), dtype=np.float64)
            self._rows.append((str(item["path"]), int(output["label"]), probabilities))

    def _write(self, engine: Engine) -> None:
        labels = np.asarray([label for _, label, _ in self._rows])
        probabilities = np.stack([row for _, _, row in self._rows])
        numbers: dict[str, Any] = {"split": self.split}
        numbers |= classification_metrics(probabilities, labels, self.class_names)
        if self.extra is not None:
            numbers |= self.extra(probabilities, labels)
        names = self.class_names
        confusion = [[name, *row] for name, row in zip(names, numbers["confusion_matrix"], strict=True)]
        predictions = [
            [path, names[label], names[int(row.argmax())], *(f"{p:.6f}" for p in row)]
            for path, label, row in self._rows
        ]
        header = ["path", "true_class", "class_name", *(f"p_{name}" for name in names)]
        atomic_write_text(self.folder / "evaluation.json", json.dumps(numbers, indent=1) + "\n")
        atomic_write_text(self.folder / "confusion_matrix.csv", _table(["true class", *names], confusion))
        atomic_write_text(self.folder / f"{self.split}_predictions.csv", _table(header, predictions))
        auc = "undefined" if numbers["auc"] is None else f"{numbers['auc']:.3f}"
        logger.info("%s: accuracy %.3f, AUC %s", self.folder / "evaluation.json", numbers["accuracy"], auc)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()
