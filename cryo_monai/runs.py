"""A run folder: what was trained, with which configuration, and what can be done with it afterwards."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.datasets import describe_volumes, extraction_of
from cryo_monai.embeddings import embed_dataset
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.files import atomic_write_text
from cryo_monai.weights import initialise
from cryo_monai.workflows import load_workflow, run_workflow

Paths = Sequence[str | os.PathLike[str]]
PLACES = ("dataset_dir", "weights")  # ids that name files, kept as absolute paths


def train_bundle(
    bundle: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    overlays: Paths = (),
    resume: bool = False,
    ids: Mapping[str, Any] | None = None,
) -> None:
    """Train a bundle into a run folder and note there how, for `evaluate_run` and `classify_with_run`.

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
    if has_state(folder) and not resume:
        raise InputError(f"{folder}: holds a run; add --resume to go on with it, or choose another output_dir")
    if resume:
        if not has_state(folder):
            raise InputError(f"{folder}: nothing to resume there; start without --resume")
        _, before = read_run(folder)
        given = {**before["ids"], **given}
        overlays = overlays or before["overlays"]
    overrides = {**given, **_locations(folder), "resume": resume}
    workflow = load_workflow(bundle, "train", overlays=overlays, overrides=overrides)
    record: dict[str, Any] = {
        "bundle": str(Path(bundle).resolve()),
        "overlays": overlays,
        "ids": given,
        "command": sys.argv,
    }

    def note(engine: Engine) -> None:
        record["initialisation"] = workflow.parser.get_parsed_content("network").initialisation
        described = describe_volumes(workflow.parser.get_parsed_content("train#dataset"))
        cut = extraction_of(workflow.parser.get_parsed_content("dataset_dir"))
        record["data"] = {**described, "extraction": cut}
        atomic_write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")

    with unwrapped_errors():
        workflow.initialize()
        # Noted once data and checkpoint are found good, so that a refused call leaves an earlier run as it was.
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.STARTED, note)
        workflow.run()
        workflow.finalize()


def evaluate_run(run_dir: str | os.PathLike[str], *, ids: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Score the test split of a run's data with its best checkpoint.

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
    overrides = {**record["ids"], **(ids or {}), **_locations(folder)}
    run_workflow(load_workflow(record["bundle"], "evaluate", overlays=record["overlays"], overrides=overrides))
    return _read_json(folder / "evaluation.json")


def classify_with_run(
    run_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    ids: Mapping[str, Any] | None = None,
) -> Path:
    """Classify a volume, a folder or a datalist with a run's best checkpoint.

    Returns
    -------
    Path
        The CSV that was written.

    Raises
    ------
    CryoMonaiError
        When the folder is not a finished run, for unknown ids, or naming every volume that cannot be read.
    """
    target = Path(run_dir) / "predictions.csv" if output is None else Path(output)
    overrides = {**(ids or {}), "dataset_dir": str(data), "output_file": str(target)}
    run_workflow(inference_of(run_dir, overrides))
    return target


def inference_of(run_dir: str | os.PathLike[str], overrides: Mapping[str, Any]) -> ConfigWorkflow:
    """Compose the inference of a run's bundle, with the network that was trained; not yet initialised.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or for unknown ids.
    """
    folder, record = read_run(run_dir)
    # Of the training's ids, those that inference has too describe the network.
    kept = {name: record["ids"][name] for name in record["ids"] if name in _inference_ids(record["bundle"])}
    everything = {**kept, **overrides, **_locations(folder)}
    return load_workflow(record["bundle"], "inference", overlays=record["overlays"], overrides=everything)


def embed_with(
    source: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    overlays: Paths = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    ids: Mapping[str, Any] | None = None,
) -> Path:
    """Write the pooled features of volumes; see `embed_dataset`.

    Parameters
    ----------
    source : path
        A bundle folder, or a run folder for the network and the best weights of that run.
    data : path
        A volume, a folder, a datalist or a MedMNIST3D file.
    output : path
        The NPZ; a CSV is written beside it.
    weights : str, optional
        For bundles; see `initialise`. None for random weights.
    overlays : sequence of path
        For bundles; see `load_workflow`.
    seed : int
        Of random weights.
    progress : callable, optional
        Called with the volumes that are done and the volumes there are.
    ids : mapping, optional
        Ids of the bundle's inference.json; the precision is float32 unless given here.

    Returns
    -------
    Path
        The NPZ.

    Raises
    ------
    CryoMonaiError
        In one line, for anything the user can mend.
    """
    folder = Path(source)
    is_run = (folder / "run.json").is_file()
    if is_run and (weights or overlays):
        raise InputError(f"{folder}: a run has weights and overlays of its own; give a bundle folder to choose others")
    bundle, kept = source, {}
    if is_run:
        _, record = read_run(folder)
        bundle, overlays = record["bundle"], record["overlays"]
        kept = {name: value for name, value in record["ids"].items() if name in _inference_ids(str(bundle))}
    options = dict(ids or {})
    training = {name: options.pop(name) for name in ("input_range", "inflation") if name in options}
    # bfloat16 keeps three digits, enough to classify; features are compared with each other.
    overrides = {**kept, "precision": "float32", **options, "dataset_dir": str(data)}
    workflow = load_workflow(bundle, "inference", overlays=overlays, overrides=overrides)
    with unwrapped_errors():
        workflow.initialize()
        torch.manual_seed(seed)
        network, device = (workflow.parser.get_parsed_content(name) for name in ("network", "device"))
        if is_run:
            load_checkpoint(network, folder / "models" / "model.pt")
        else:
            initialise(network, weights, **training)
        dataset = workflow.parser.get_parsed_content("dataset")
        return embed_dataset(
            network,
            dataset,
            dataset.data,
            output,
            device=device,
            batch_size=workflow.parser.get_parsed_content("batch_size"),
            num_workers=workflow.parser.get_parsed_content("num_workers"),
            progress=None if progress is None else lambda done: progress(done, len(dataset)),
        )


def summarise(run_dir: str | os.PathLike[str]) -> str:
    """Describe an evaluated run in a few lines."""
    folder, _ = read_run(run_dir)
    numbers = _read_json(folder / "evaluation.json")
    chance = numbers["chance"]
    auc = "undefined" if numbers["auc"] is None else f"{numbers['auc']:.3f}"
    lines = [
        f"test split: {numbers['num_volumes']} volumes, {len(numbers['per_class'])} classes",
        f"accuracy    {numbers['accuracy']:.3f}   (most frequent class: {chance['accuracy']:.3f})",
        f"AUC         {auc}   (chance: {chance['auc']:.3f})",
        f"balanced accuracy {numbers['balanced_accuracy']:.3f}, macro F1 {numbers['macro_f1']:.3f}",
        "files:",
    ]
    names = {
        "models/model.pt": "best weights, with class names",
        "metrics.csv": "one row per epoch; metrics.json with the environment",
        "evaluation.json": "every test number",
        "confusion_matrix.csv": "rows are true classes",
        "test_predictions.csv": "probabilities on the test split",
        "predictions.csv": "path, class name, probabilities",
        "tensorboard": "tensorboard --logdir",
    }
    lines += [f"  {folder / name}  {text}" for name, text in names.items() if (folder / name).exists()]
    return "\n".join(lines)


def has_state(run_dir: str | os.PathLike[str]) -> bool:
    """Whether there is a training to resume in a run folder."""
    models = Path(run_dir) / "models"
    return (models / "last.pt").exists() or (models / "previous.pt").exists()


def _absolute(value: Any) -> Any:
    """Make a path that exists independent of the working directory; "video" and "image" are no paths."""
    is_path = isinstance(value, str) and value not in ("", "video", "image") and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def _locations(folder: Path) -> dict[str, str]:
    return {"output_dir": str(folder), "ckpt_dir": str(folder / "models")}


def _inference_ids(bundle: str) -> set[str]:
    return set(_read_json(Path(bundle) / "configs" / "inference.json"))


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
    return folder, _read_json(folder / "run.json")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable ({error})") from error
    return content
