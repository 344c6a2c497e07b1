"""What an explanation starts from: networks of runs, the volumes to explain, and which of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.networks import VideoClassifier
from cryo_monai.run_evaluation import open_split
from cryo_monai.run_inference import inference_of
from cryo_monai.runs import configuration_of

TEST = "test"


def network_of(run_dir: str | os.PathLike[str], *, ids: Mapping[str, Any] | None = None) -> VideoClassifier:
    """Return the network of a run with its best weights, on the device of the bundle's inference.

    Raises
    ------
    CryoMonaiError
        When the folder is not a finished run, or for unknown ids.
    """
    workflow = inference_of(run_dir, dict(ids or {}))
    with unwrapped_errors():
        workflow.initialize()
        network: VideoClassifier = workflow.parser.get_parsed_content("network")
        load_checkpoint(network, Path(run_dir) / "models" / "model.pt")
    return network.eval()


def starting_network(run_dir: str | os.PathLike[str], like: VideoClassifier) -> VideoClassifier:
    """Return the network of a run as training began with it: same seed, same initial weights.

    Parameters
    ----------
    run_dir : path
        A run folder.
    like : VideoClassifier
        Of `network_of`: gives the names of the classes, and the device.

    Raises
    ------
    CryoMonaiError
        When the run cannot be set up again, as when its data or its first weights are gone.
    """
    workflow = configuration_of(run_dir, "train")
    with unwrapped_errors():
        network: VideoClassifier = workflow.parser.get_parsed_content("network")
    network.set_class_names(like.class_names)
    return network.to(next(like.parameters()).device).eval()


def volumes_of(
    run_dir: str | os.PathLike[str], data: str | os.PathLike[str], *, ids: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Any]], Any]:
    """List the volumes of a place, or of a run's test split, and open them.

    Parameters
    ----------
    run_dir : path
        A run folder.
    data : path
        The word ``"test"`` is the run's test split; anything else is a place, see `list_volumes`. A folder of that name
        is ``"./test"``, or a `Path`.
    ids : mapping, optional
        Ids of the bundle's inference.json.

    Returns
    -------
    tuple
        Items with ``path``, ``image`` and ``class_name`` (empty where unknown), and a dataset whose ``[n]["image"]`` is
        volume `(1, z, y, x)` n.

    Raises
    ------
    CryoMonaiError
        When there are none, or naming every one that cannot be read.
    """
    if data == TEST:
        return open_split(run_dir)
    workflow = inference_of(run_dir, {**(ids or {}), "dataset_dir": str(data)})
    with unwrapped_errors():
        workflow.initialize()
        dataset = workflow.parser.get_parsed_content("dataset")
    return [dict(item) for item in dataset.data], dataset


def choose_volumes(class_names: Sequence[str], limit: int | None, *, seed: int = 0) -> list[int]:
    """Choose volumes at random, as many of each class as of any other as far as they go.

    Parameters
    ----------
    class_names : sequence of str
        Of all volumes; those without one count as a class.
    limit : int, optional
        How many at most; None for all.
    seed : int
        Same seed, same choice. A larger limit keeps the choice of a smaller one.

    Returns
    -------
    list of int
        Their places, in order.

    Raises
    ------
    InputError
        When the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} must be 1 or more; leave it out for all volumes")
    if limit is None or limit >= len(class_names):
        return list(range(len(class_names)))
    rng = np.random.default_rng(seed)
    turns = []
    for name in sorted(set(class_names)):
        members = rng.permutation([row for row, other in enumerate(class_names) if other == name])
        turns += [(turn, name, int(row)) for turn, row in enumerate(members)]
    return sorted(row for _, _, row in sorted(turns)[:limit])


def as_plain_tensor(image: Any) -> Tensor:
    """Return a volume as a plain float32 tensor on the CPU, without MONAI's metadata."""
    return torch.from_numpy(np.array(torch.as_tensor(image).cpu().numpy(), dtype=np.float32))
