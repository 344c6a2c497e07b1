"""A run folder: what was trained, with which configuration, and how it scored."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.data import Dataset

from cryo_monai.datasets import describe_volumes, extraction_of, items_fingerprint
from cryo_monai.errors import CryoMonaiError, InputError, unwrapped_errors
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_text
from cryo_monai.tracking import add_tracking, track_test_metrics
from cryo_monai.workflows import flattened, load_workflow, run_workflow

Paths = Sequence[str | os.PathLike[str]]
CONFIGURATION = "configuration.json"
PLACES = ("dataset_dir", "weights")  # ids that name files, kept as absolute paths
# Ids that differ between a run and its continuation without making it another.
CIRCUMSTANCES = ("resume", "bundle_root", "output_dir", "ckpt_dir", "progress", "_meta_", "run_name")
# Ids that do not change what is scored.
_HOW = ("device", "batch_size", "num_workers", "progress", "cache_device")


def train_bundle(
    bundle: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    overlays: Paths = (),
    resume: bool = False,
    tracking: str = "",
    ids: Mapping[str, Any] | None = None,
) -> None:
    """Train a bundle into a run folder and note there how, for `evaluate_run` and `classify_with_run`.

    ``run.json`` has the command, weights and data, and what was changed whenever the run was resumed;
    ``configuration.json`` the recipe with all overlays and ids, as ``monai.bundle run`` takes it.

    Parameters
    ----------
    bundle : path
        Bundle folder.
    output_dir : path
        Run folder; checkpoints go to ``models/`` in it.
    overlays : sequence of path
        See `load_workflow`.
    resume : bool
        Go on with the run in this folder; what it was started with need not be given again.
    tracking : str
        ``"mlflow"`` tracks the run; see `add_tracking`.
    ids : mapping, optional
        Overrides; see `load_workflow`.

    Raises
    ------
    CryoMonaiError
        One line for anything the user can mend.
    """
    folder = Path(output_dir)
    given = {name: _absolute(value) if name in PLACES else value for name, value in (ids or {}).items()}
    overlays = [str(Path(overlay).resolve()) for overlay in overlays]
    resumed: list[dict[str, Any]] = []
    command = sys.argv
    if has_state(folder) and not resume:
        raise InputError(f"{folder}: holds a run; add --resume to go on with it, or choose another output_dir")
    if resume:
        if not has_state(folder):
            raise InputError(f"{folder}: nothing to resume there; start without --resume")
        _, before = read_run(folder)
        given = {**before["ids"], **given}
        overlays = overlays or before["overlays"]
        resumed, command = before.get("resumed", []), before["command"]
        tracking = tracking or before.get("tracking", "")
    overrides = {**given, **locations(folder), "resume": resume}
    workflow = load_workflow(bundle, "train", overlays=overlays, overrides=overrides)
    configuration = copy.deepcopy(workflow.parser.get())
    if tracking:
        add_tracking(workflow, tracking, experiment=Path(bundle).resolve().name, run=folder.resolve().name)
    changed = changes(folder, configuration) if resume else {}
    record: dict[str, Any] = {
        "bundle": str(Path(bundle).resolve()),
        "overlays": overlays,
        "ids": given,
        "tracking": tracking,
        "command": command,
    }

    def note(engine: Engine) -> None:
        record["initialisation"] = workflow.parser.get_parsed_content("network").initialisation
        described = describe_volumes(workflow.parser.get_parsed_content("train#dataset"))
        cut = extraction_of(workflow.parser.get_parsed_content("dataset_dir"))
        record["data"] = {**described, "extraction": cut}
        if resume:
            now = {"after_epoch": engine.state.epoch, "command": sys.argv, "changed": changed}
            record["resumed"] = [*resumed, now]
        atomic_write_text(folder / CONFIGURATION, json.dumps(configuration, indent=1) + "\n")
        atomic_write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")

    with unwrapped_errors():
        workflow.initialize()
        # Noted once data and checkpoint are found good, so that a refused call leaves an earlier run as it was.
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.STARTED, note)
        workflow.run()
        workflow.finalize()


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


def evaluation_of(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the evaluation of a run's best checkpoint on its test split.

    The test split is scored once: again only when the checkpoint, or the volumes and their labels, are no longer those
    that ``evaluation.json`` is of.

    Raises
    ------
    CryoMonaiError
        As `evaluate_run`.
    """
    folder, _ = read_run(run_dir)
    return read_json(folder / "evaluation.json") if _is_scored(folder) else evaluate_run(run_dir)


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


def configuration_of(run_dir: str | os.PathLike[str], kind: str = "evaluate") -> ConfigWorkflow:
    """Compose a run's bundle again, with its overlays and ids, and initialise it; see `load_workflow`."""
    folder, record = read_run(run_dir)
    overrides = {**record["ids"], **locations(folder)}
    workflow = load_workflow(record["bundle"], kind, overlays=record["overlays"], overrides=overrides)
    with unwrapped_errors():
        workflow.initialize()
    return workflow


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


def find_data_again(run_dir: str | os.PathLike[str], dataset_dir: str | os.PathLike[str]) -> None:
    """Note in ``run.json`` where the data of a run are now, after they were moved.

    Raises
    ------
    InputError
        When the folder is not a run, or there is nothing at that place.
    """
    folder, record = read_run(run_dir)
    if not Path(dataset_dir).exists():
        raise InputError(f"{dataset_dir}: no such file or folder")
    record["ids"]["dataset_dir"] = str(Path(dataset_dir).resolve())
    atomic_write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def has_state(run_dir: str | os.PathLike[str]) -> bool:
    """Whether there is a training to resume in a run folder."""
    models = Path(run_dir) / "models"
    return (models / "last.pt").exists() or (models / "previous.pt").exists()


def _absolute(value: Any) -> Any:
    """Make a path that exists independent of the working directory; "video" and "image" are no paths."""
    is_path = isinstance(value, str) and value not in ("", "video", "image") and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def changes(folder: Path, configuration: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return ids that differ from those that a run was last trained with: old and new value."""
    if not (folder / CONFIGURATION).is_file():  # of a version that did not keep it
        return {}
    before, now = (dict(flattened(config)) for config in (read_json(folder / CONFIGURATION), configuration))
    names = [name for name in before | now if name.split("#")[0] not in CIRCUMSTANCES]
    # Compared as JSON, which knows no tuples.
    pairs = {name: [before.get(name), json.loads(json.dumps(now.get(name)))] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def locations(folder: Path) -> dict[str, str]:
    """Ids that say where a run writes."""
    return {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}


def read_run(run_dir: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return a run folder and the record of how it was made.

    Raises
    ------
    InputError
        When it is not a run folder.
    """
    folder = Path(run_dir)
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder}: not a run folder (no run.json); give the output_dir of `cryo-monai train`")
    return folder, read_json(folder / "run.json")


def read_json(file: Path) -> dict[str, Any]:
    """Read an object of a run folder.

    Raises
    ------
    InputError
        When it is not readable.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable ({error})") from error
    return content
