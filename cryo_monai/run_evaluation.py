"""The score of a run: its test split, evaluated once, and opened again to look at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import Dataset

from cryo_monai.datasets import items_fingerprint
from cryo_monai.errors import CryoMonaiError, InputError, unwrapped_errors
from cryo_monai.fetching import sha256_of
from cryo_monai.runs import configuration_of, locations, read_json, read_run
from cryo_monai.tracking import track_test_metrics
from cryo_monai.workflows import load_workflow, run_workflow

# Ids that do not change what is scored.
_HOW = ("device", "batch_size", "num_workers", "progress", "cache_device", "cache_dir", "pictures")


def evaluate_run(
    run_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    ids: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score the test split of a run's data with its best checkpoint.

    Parameters
    ----------
    run_dir : path
        A run folder.
    output_dir : path, optional
        Where the numbers go; the run folder by default.
    ids : mapping, optional
        Ids of the bundle's evaluate.json. Those that change what is scored need an ``output_dir``: the numbers of the
        run itself stay.

    Returns
    -------
    dict
        The content of ``evaluation.json``.

    Raises
    ------
    CryoMonaiError
        When the folder is not a finished run, or for unknown ids.
    """
    folder, record = read_run(run_dir)
    target = folder if output_dir is None else Path(output_dir)
    other = [name for name in ids or {} if name.split("#")[0] not in _HOW]
    if other and target.resolve() == folder.resolve():
        raise InputError(f"--{other[0]}: scores something else than the run did; give --output_dir DIR for its numbers")
    overrides = {**record["ids"], **(ids or {}), **locations(folder), "output_dir": str(target)}
    run_workflow(load_workflow(record["bundle"], "evaluate", overlays=record["overlays"], overrides=overrides))
    numbers = read_json(target / "evaluation.json")
    if record.get("tracking") and target == folder:
        track_test_metrics(folder, numbers, experiment=Path(record["bundle"]).name, run=folder.resolve().name)
    return numbers


def evaluation_of(run_dir: str | os.PathLike[str], *, pictures: bool = True) -> dict[str, Any]:
    """Return the evaluation of a run's best checkpoint on its test split.

    The test split is scored once: again only when the checkpoint, or the volumes and their labels, are no longer those
    that ``evaluation.json`` is of.

    Parameters
    ----------
    run_dir : path
        A run folder.
    pictures : bool
        Draw for TensorBoard, when it is scored.

    Raises
    ------
    CryoMonaiError
        As `evaluate_run`.
    """
    folder, _ = read_run(run_dir)
    if _is_scored(folder):
        return read_json(folder / "evaluation.json")
    return evaluate_run(run_dir, ids={} if pictures else {"pictures": False})


def _is_scored(folder: Path) -> bool:
    """Whether the evaluation in a run folder is whole, and of the checkpoint and the data that are there now."""
    evaluation, features, model = (
        folder / "evaluation.json",
        folder / "test_features.npz",
        folder / "models" / "model.pt",
    )
    if not (evaluation.is_file() and features.is_file() and model.is_file()):
        return False
    numbers = read_json(evaluation)
    if numbers.get("checkpoint", {}).get("sha256") != sha256_of(model):
        return False
    if numbers.get("features_sha256") != sha256_of(features):
        return False
    try:
        items, _ = open_split(folder)
    except CryoMonaiError:
        return True  # the data are gone: what was scored is all there is
    return bool(numbers.get("data") == items_fingerprint(items))


def open_split(run_dir: str | os.PathLike[str], split: str = "test") -> tuple[list[dict[str, Any]], Dataset]:
    """List a split of a run's data, and open it; volumes are read when they are asked for.

    Parameters
    ----------
    run_dir : path
        A run folder.
    split : str
        ``"training"``, ``"validation"`` or ``"test"``.

    Returns
    -------
    tuple
        Items with ``path``, ``label``, ``class_name``, and a dataset whose ``[n]["image"]`` is the volume
        `(1, z, y, x)` of item n; in the order of ``test_features.npz``.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or its data are not what they were: gone, unreadable, other classes.
    """
    parser = configuration_of(run_dir).parser
    with unwrapped_errors():
        datalist = parser.get_parsed_content("datalist")
        transform = parser.get_parsed_content("validate#preprocessing")
    items = [{**item, "class_name": datalist["class_names"][item["label"]]} for item in datalist[split]]
    return items, Dataset(items, transform)


def summarise(folder: str | os.PathLike[str]) -> str:
    """Describe the evaluation in a run folder, or another folder that it was written to, in a few lines."""
    folder = Path(folder)
    numbers = read_json(folder / "evaluation.json")
    chance = numbers["chance"]
    lines = [
        f"test split: {numbers['num_volumes']} volumes, {len(numbers['per_class'])} classes; [95 % intervals]",
        f"accuracy           {_with_interval(numbers, 'accuracy')}   most frequent class: {chance['accuracy']:.3f}",
        f"AUC                {_with_interval(numbers, 'auc')}   chance: {chance['auc']:.3f}",
        f"balanced accuracy  {_with_interval(numbers, 'balanced_accuracy')}",
        f"macro F1           {_with_interval(numbers, 'macro_f1')}",
        "files:",
    ]
    names = {
        "models/model.pt": "best weights, with class names",
        "metrics.csv": "one row per epoch; metrics.json with the environment",
        "evaluation.json": "every test number",
        "report/report.html": "all of it to look at and pass on",
        "confusion_matrix.csv": "rows are true classes",
        "test_predictions.csv": "probabilities on the test split",
        "predictions.csv": "path, class name, probabilities",
        "tensorboard": "tensorboard --logdir",
    }
    lines += [f"  {folder / name}  {text}" for name, text in names.items() if (folder / name).exists()]
    return "\n".join(lines)


def _with_interval(numbers: Mapping[str, Any], name: str) -> str:
    if numbers[name] is None:
        return "undefined"
    interval = numbers.get("intervals", {}).get(name)
    return f"{numbers[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
