"""Experiment tracking: what MONAI's ``--tracking mlflow`` does, with the recipe's values as parameters."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.utils import path_to_sqlite_uri

from cryo_monai.errors import InputError
from cryo_monai.workflows import flattened

TRACKERS = ("mlflow",)
TRACKED = "tracked_configuration.json"


def add_tracking(workflow: ConfigWorkflow, tracker: str, *, experiment: str, run: str) -> None:
    """Add MLflow's handlers to a workflow that is not initialised yet.

    Metrics and losses go to ``mlruns.db`` (SQLite) in the workflow's ``output_dir``, or where the environment variable
    ``MLFLOW_TRACKING_URI`` says; the composed configuration is an artifact there, and its plain values are parameters.

    Parameters
    ----------
    workflow : ConfigWorkflow
        Changed in place.
    tracker : str
        ``"mlflow"``.
    experiment, run : str
        Their names in MLflow. A run of this name that did not finish is continued.

    Raises
    ------
    InputError
        For another tracker, and when MLflow is not installed.
    """
    if tracker not in TRACKERS:
        raise InputError(f"tracking: {tracker!r} is not one of {', '.join(TRACKERS)}")
    if find_spec("mlflow") is None:
        raise InputError("tracking: mlflow is not installed: pip install 'cryo-monai[mlflow]'")
    settings: dict[str, Any] = copy.deepcopy(DEFAULT_MLFLOW_SETTINGS)
    settings["configs"] |= {"experiment_name": experiment, "run_name": run}
    settings["configs"]["trainer"]["experiment_param"] = plain_values(workflow.parser.get())
    # MONAI makes a path of its own out of output_dir, and only where that is an expression.
    workflow.parser["save_execute_config"] = f"{workflow.parser.get_parsed_content('output_dir')}/{TRACKED}"
    workflow.patch_bundle_tracking(workflow.parser, settings)


def track_test_metrics(output_dir: Path, numbers: Mapping[str, Any], *, experiment: str, run: str) -> None:
    """Add the metrics of the test split to the tracked run; see `add_tracking`."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or _database(output_dir))
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    for tracked in (one for one in runs if one.info.run_name == run):
        for name in ("accuracy", "auc", "balanced_accuracy", "macro_f1"):
            if numbers[name] is not None:
                client.log_metric(tracked.info.run_id, f"test_{name}", numbers[name])
        return  # the newest comes first


def _database(output_dir: Path) -> str:
    return str(path_to_sqlite_uri(str(output_dir / "mlruns.db")))


def plain_values(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that are no expressions, such as ``lr`` and ``fine_tuning.l2_sp``.

    Only those at its top, and in groups at its top that build nothing: what is deeper is made of them.
    """
    groups = {
        name: value
        for name, value in configuration.items()
        if not name.startswith("_") and not (isinstance(value, dict) and _builds(value))
    }
    found = {}
    for name, value in flattened(groups):
        text = isinstance(value, str) and value.startswith(("$", "%"))
        reference = isinstance(value, str) and value.startswith("@")
        if not text and not (isinstance(value, list) and any(isinstance(part, (str, dict)) for part in value)):
            # "@optimizers#adam" is the choice "adam"; as a reference MONAI would put the object there.
            found[name.replace("#", ".")] = value.rpartition("#")[2].lstrip("@") if reference else value
    return found


def _builds(value: dict[str, Any]) -> bool:
    return "_target_" in value or any(isinstance(part, dict) and _builds(part) for part in value.values())
