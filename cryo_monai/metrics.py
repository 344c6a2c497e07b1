"""Classification metrics over a fixed set of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.metrics import EpochMetric as IgniteEpochMetric
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from cryo_monai.calibration import calibration_metrics, fit_temperature
from cryo_monai.errors import InputError
from cryo_monai.parallel import in_order, num_ranks

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

    Raises
    ------
    InputError
        When scores are not finite, as those of a network that diverged.
    """
    if broken := int((~np.isfinite(probabilities).all(axis=1)).sum()):
        raise InputError(f"scores of {broken} of {len(labels)} volumes are not finite: training diverged; lower --lr")
    predicted = probabilities.argmax(axis=1)
    every = list(range(len(class_names)))
    present = sorted(set(labels.tolist()))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
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
                "precision": _defined(precision[n]),
                "recall": _defined(recall[n]),
                "f1": _defined(f1[n]),
                "auc": areas[n],
                "support": int(support[n]),
            }
            for n, name in enumerate(class_names)
        },
        "confusion_matrix": sklearn_metrics.confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _epoch_metric(name: str) -> Callable[[Tensor, Tensor], float]:
    def compute(probabilities: Tensor, labels: Tensor) -> float:
        if not probabilities.isfinite().all():
            return math.nan
        names = [str(n) for n in range(probabilities.shape[1])]
        value = classification_metrics(probabilities.cpu().numpy(), labels.cpu().numpy().astype(int), names)[name]
        return math.nan if value is None else float(value)

    compute.__name__ = name
    compute.__doc__ = f"``{name}`` of `classification_metrics`, for ``ignite.metrics.EpochMetric``; NaN when undefined."
    return compute


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of right answers, for ``ignite.metrics.EpochMetric``; NaN when scores are not finite."""
    right = (probabilities.argmax(dim=1) == labels).double().mean()
    return float(right) if probabilities.isfinite().all() else math.nan


auc = _epoch_metric("auc")
balanced_accuracy = _epoch_metric("balanced_accuracy")
macro_f1 = _epoch_metric("macro_f1")


def cross_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of labels `(n,)`, for ``ignite.metrics.EpochMetric``; NaN of scores not finite."""
    if not probabilities.isfinite().all():
        return math.nan
    return float(calibration_metrics(*_arrays(probabilities, labels))["nll"])


def temperature(probabilities: Tensor, labels: Tensor) -> float:
    """Temperature of `fit_temperature`, for ``ignite.metrics.EpochMetric``: kept with the best checkpoint."""
    return fit_temperature(*_arrays(probabilities, labels))


def _arrays(probabilities: Tensor, labels: Tensor) -> tuple[Floats, Labels]:
    return probabilities.double().cpu().numpy(), labels.cpu().numpy().astype(np.int64)


class EpochMetric(IgniteEpochMetric):
    """Ignite's ``EpochMetric`` for ranks that have unequal shares, each validating its `rank_indices`.

    Every rank computes the number, from the same rows in the same order as one process would.
    """

    def compute(self) -> float:
        """Return the number for the rows of all ranks."""
        if self._result is None:
            rows = (in_order(torch.cat(parts)) for parts in (self._predictions, self._targets))
            self._result: float | None = self.compute_fn(*rows)
        return float(self._result)


def gathered_sums(state: Mapping[str, Any]) -> dict[str, Any]:
    """Add the sums that every rank has of a metric, such as numbers of right answers.

    Parameters
    ----------
    state : mapping
        ``state_dict()`` of an ignite metric: one key, a mapping for each rank.

    Returns
    -------
    dict
        What one process would have saved.
    """
    return {key: [{name: sum(own[name] for own in ranks) for name in ranks[0]}] for key, ranks in state.items()}


def spread_sums(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give the sums of one process to the first rank, and zeros to the others; see `gathered_sums`."""
    nothing = {key: {name: value * 0 for name, value in ranks[0].items()} for key, ranks in state.items()}
    return {key: [*ranks, *[nothing[key]] * (num_ranks() - 1)] for key, ranks in state.items()}


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
