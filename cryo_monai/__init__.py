"""Video-initialised 3D classification of cryo-ET subtomograms and small medical volumes, as MONAI bundles.

The names below are what bundle JSON may target, as ``cryo_monai.NAME``. They are loaded on first use: importing this
package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_HOME = {
    "AnnotatedVolumes": "annotations",
    "AnnotationTraining": "annotations",
    "AxisInferer": "inferers",
    "CachedVolumes": "datasets",
    "CheckpointHandler": "checkpoints",
    "ClipGenerator": "generation.generator",
    "ClipNumbers": "generation.batches",
    "ClipParameters": "clips",
    "DropoutInferer": "inferers",
    "EpochMetric": "metrics",
    "EpochStart": "handlers",
    "EvaluationReport": "evaluations",
    "FineTuning": "fine_tuning",
    "GeneratedBatches": "generation.batches",
    "GeneratedTasksLoss": "generation.objectives",
    "History": "history",
    "InputError": "errors",
    "LoadVolumed": "volumes",
    "MRCReader": "mrc_reader",
    "MedMNISTEvaluator": "metrics",
    "NativeSizeInferer": "inferers",
    "OwnTask": "generation.objectives",
    "PredictionWriter": "handlers",
    "Progress": "handlers",
    "RandomClips": "clips",
    "ResumableSampler": "datasets",
    "TensorBoardPictures": "tensorboard_pictures",
    "VideoClassifier": "networks",
    "accuracy": "metrics",
    "auc": "metrics",
    "average_gradients": "parallel",
    "balanced_accuracy": "metrics",
    "bundle_datalist": "annotations",
    "cross_entropy": "metrics",
    "initialise": "weights",
    "is_first": "parallel",
    "keep_freed_memory": "handlers",
    "list_volumes": "listings",
    "load_checkpoint": "checkpoints",
    "load_datalist": "datalists",
    "load_medmnist": "medmnist3d",
    "macro_f1": "metrics",
    "parameter_groups": "fine_tuning",
    "over_ranks": "parallel",
    "rank_device": "parallel",
    "rank_indices": "parallel",
    "rank_share": "parallel",
    "read_annotation": "annotations",
    "read_mrc": "mrc",
    "seed_everything": "handlers",
    "show_errors_in_one_line": "errors",
    "task_accuracies": "generation.objectives",
    "temperature": "metrics",
    "train_over_ranks": "parallel",
    "write_mrc": "mrc",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cryo_monai' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cryo_monai.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
