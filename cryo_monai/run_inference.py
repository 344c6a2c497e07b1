"""What a trained run is used for: classes and features of further volumes, and the features it began with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.bundle import ConfigWorkflow

from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.datasets import items_fingerprint
from cryo_monai.embeddings import embed_dataset
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.parts import network_fingerprint
from cryo_monai.run_evaluation import open_split
from cryo_monai.runs import Paths, configuration_of, locations, read_json, read_run
from cryo_monai.weights import initialise
from cryo_monai.workflows import load_workflow, run_workflow


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
    everything = {**kept, **overrides, **locations(folder)}
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


def starting_features(run_dir: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Features `(n, F)` of a run's test split as the network had them before it was trained.

    The network is built as training built it: seed, weights, initialisation. Features are kept in
    ``starting_features_*.npz`` in the run folder; rows are those of ``test_features.npz``.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or its data or the weights that it began with are gone.
    """
    folder, _ = read_run(run_dir)
    items, dataset = open_split(run_dir)
    workflow = configuration_of(run_dir, "train")
    network, device = (workflow.parser.get_parsed_content(name) for name in ("network", "device"))
    # Named by the network and the volumes: nothing else finds them.
    key = hashlib.sha256(f"{network_fingerprint(network)} {items_fingerprint(items)}".encode()).hexdigest()
    file = folder / f"starting_features_{key[:12]}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return np.asarray(arrays["features"])
    listed = [{**item, "truth": item["label"], "split": "test"} for item in items]
    partial = file.with_name(f"{file.stem}_new.npz")
    partial.unlink(missing_ok=True)
    embed_dataset(network, dataset, listed, partial, device=device)
    partial.with_suffix(".csv").unlink()
    os.replace(partial, file)
    with np.load(file) as arrays:
        return np.asarray(arrays["features"])


def _inference_ids(bundle: str) -> set[str]:
    return set(read_json(Path(bundle) / "configs" / "inference.json"))
