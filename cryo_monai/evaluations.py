"""What an evaluation leaves in writing: every number of the test split, its predictions and their features."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from cryo_monai.calibration import at_temperature, calibration_metrics
from cryo_monai.datasets import items_fingerprint
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.intervals import metric_intervals
from cryo_monai.metrics import Floats, Labels, classification_metrics
from cryo_monai.networks import VideoClassifier

logger = logging.getLogger(__name__)


def scored_volumes(engine: Engine) -> list[tuple[Mapping[str, Any], int, Floats]]:
    """Return what an evaluator's iteration scored, whether it took the batch apart (``decollate``) or not.

    Returns
    -------
    list of tuple
        Of each volume its item of the batch, its label, and its probabilities `(num_classes,)`.
    """
    batch, output = engine.state.batch, engine.state.output
    if isinstance(output, Mapping):
        probabilities = np.asarray(output["pred"].detach().cpu(), dtype=np.float64)
        labels = [int(label) for label in output["label"].tolist()]
        items = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return list(zip(items, labels, probabilities, strict=True))
    return [
        (item, int(one["label"]), np.asarray(one["pred"].detach().cpu(), dtype=np.float64))
        for item, one in zip(batch, output, strict=True)
    ]


class EvaluationReport:
    """Evaluator handler that writes what a report is made of.

    Written are ``evaluation.json`` (metrics, 95 % intervals, calibration, checkpoint), ``confusion_matrix.csv``,
    ``SPLIT_predictions.csv``, and with a network ``SPLIT_features.npz``: ``features`` (n, F) float32, pooled, as the
    head saw them, ``probabilities`` (n, num_classes), ``labels``, ``paths`` and ``class_names``, in the CSV's order.

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
    network : VideoClassifier, optional
        The network that is evaluated: gives features, and the temperature that its scores are divided by.
    checkpoint : path, optional
        Where its weights came from; the file's SHA-256 is written beside the numbers.
    items : sequence of dict, optional
        The volumes as they are listed; a digest of them is written beside the numbers.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        split: str = "test",
        extra: Callable[[Floats, Labels], dict[str, float]] | None = None,
        network: VideoClassifier | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        items: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.class_names = list(class_names)
        self.split = split
        self.extra = extra
        self.network = network
        self.checkpoint = checkpoint
        self.items = items
        self._rows: list[tuple[str, int, Floats]] = []
        self._features: list[Tensor] = []
        self._seen: list[Tensor] = []  # of this iteration; several when axes are averaged
        self._averaged = False
        self._hook: Any = None

    def attach(self, engine: Engine) -> None:
        """Collect from each iteration, write when the engine completes."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        self._rows, self._features, self._seen, self._averaged = [], [], [], False
        if self.network is not None:
            self._hook = self.network.head.register_forward_pre_hook(self._take_features)

    def _take_features(self, head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0].detach().float().cpu())

    def _collect(self, engine: Engine) -> None:
        rows = scored_volumes(engine)
        self._rows += [(str(item["path"]), label, probabilities) for item, label, probabilities in rows]
        if self._seen:
            self._averaged |= len(self._seen) > 1
            self._features.append(torch.stack(self._seen).mean(dim=0))
            self._seen = []

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._release()
        raise error

    def _write(self, engine: Engine) -> None:
        self._release()
        labels = np.asarray([label for _, label, _ in self._rows])
        probabilities = np.stack([row for _, _, row in self._rows])
        numbers = self._numbers(probabilities, labels)
        names = self.class_names
        confusion = [[name, *row] for name, row in zip(names, numbers["confusion_matrix"], strict=True)]
        predictions = [
            [path, names[label], names[int(row.argmax())], *(f"{p:.6f}" for p in row)]
            for path, label, row in self._rows
        ]
        header = ["path", "true_class", "class_name", *(f"p_{name}" for name in names)]
        atomic_write_text(self.folder / "confusion_matrix.csv", _table(["true class", *names], confusion))
        atomic_write_text(self.folder / f"{self.split}_predictions.csv", _table(header, predictions))
        if self._features:
            features = self._arrays(probabilities, labels)
            atomic_write_bytes(self.folder / f"{self.split}_features.npz", features)
            numbers["features_sha256"] = hashlib.sha256(features).hexdigest()
        # Last: who finds it finds the others too.
        atomic_write_text(self.folder / "evaluation.json", json.dumps(numbers, indent=1) + "\n")
        auc = "undefined" if numbers["auc"] is None else f"{numbers['auc']:.3f}"
        logger.info("%s: accuracy %.3f, AUC %s", self.folder / "evaluation.json", numbers["accuracy"], auc)

    def _numbers(self, probabilities: Floats, labels: Labels) -> dict[str, Any]:
        numbers: dict[str, Any] = {"split": self.split}
        numbers |= classification_metrics(probabilities, labels, self.class_names)
        intervals = metric_intervals(probabilities, labels)
        for entry, found in zip(numbers["per_class"].values(), intervals.pop("per_class"), strict=True):
            entry["intervals"] = found
        temperature = 1.0 if self.network is None else self.network.temperature
        # What axes were averaged to has no one temperature that could be taken back.
        before = None if self._averaged else calibration_metrics(at_temperature(probabilities, 1 / temperature), labels)
        numbers |= {
            "intervals": intervals,
            "temperature": temperature,
            "calibration": {"before": before, "after": calibration_metrics(probabilities, labels)},
            "averaged_axes": self._averaged,
        }
        if self.checkpoint is not None:
            file = Path(self.checkpoint)
            numbers["checkpoint"] = {"file": file.name, "sha256": sha256_of(file)}
        if self.items is not None:
            numbers["data"] = items_fingerprint(self.items)
        if self.extra is not None:
            numbers |= self.extra(probabilities, labels)
        return numbers

    def _arrays(self, probabilities: Floats, labels: Labels) -> bytes:
        arrays: dict[str, npt.NDArray[Any]] = {
            "features": torch.cat(self._features).numpy(),
            "probabilities": probabilities,
            "labels": labels,
            "paths": np.array([path for path, _, _ in self._rows], dtype=np.str_),
            "class_names": np.array(self.class_names, dtype=np.str_),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()
