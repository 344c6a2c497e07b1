"""Weights from outside: video checkpoints into backbones, with a full account of every key."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryo_monai.backbones import look_up_backbone
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier

# How checkpoint files nest their tensors: 3D-ResNets-PyTorch and PyTorchVideo.
WRAPPERS = ("state_dict", "model_state")
PREFIX = "module."  # left by DataParallel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came of loading a checkpoint: keys by fate."""

    file: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    head: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.file}: loaded {len(self.loaded)} tensors; {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape; "
            f"{len(self.head)} of its classifier left out"
        )


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values; nothing in it is executed.

    Raises
    ------
    InputError
        When the file is missing, broken, or holds anything but tensors and plain values.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file of weights; get it as README says, or give --weights PATH")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: holds more than tensors and plain values; refused") from error
    except Exception as error:  # whatever the unpickler makes of bytes that are no checkpoint
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{file}: not a readable checkpoint ({type(error).__name__}: {reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: a checkpoint must be a dictionary, not {type(content).__name__}")
    return content


def load_video_weights(network: VideoClassifier, path: str | os.PathLike[str]) -> LoadReport:
    """Load a video checkpoint into the backbone of a network; its classifier is left out.

    Parameters
    ----------
    network : VideoClassifier
        Changed in place, and only when every other tensor fits.
    path : path
        A state dict, plain or under ``state_dict`` or ``model_state``, with or without ``module.`` prefixes.

    Returns
    -------
    LoadReport
        The keys by fate.

    Raises
    ------
    InputError
        When any tensor but the classifier's is missing, unexpected or of another shape.
    """
    content: Mapping[str, Any] = load_tensors(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    found = {key.removeprefix(PREFIX): value for key, value in content.items() if isinstance(value, Tensor)}
    heads = look_up_backbone(network.backbone_name).heads
    head = tuple(key for key in found if key.startswith(heads))
    given = {key: value for key, value in found.items() if key not in head}
    wanted = network.backbone.state_dict()
    # Counters of batches seen are newer than the old checkpoints, and without effect on the output.
    missing = tuple(key for key in wanted if key not in given and not key.endswith("num_batches_tracked"))
    shared = [key for key in given if key in wanted]
    mismatched = tuple(key for key in shared if given[key].shape != wanted[key].shape)
    report = LoadReport(
        file=str(path),
        loaded=tuple(key for key in shared if key not in mismatched),
        missing=missing,
        unexpected=tuple(key for key in given if key not in wanted),
        mismatched=mismatched,
        head=head,
    )
    wrong = report.missing + report.unexpected + report.mismatched
    if wrong:
        raise InputError(f"{report}; first: {wrong[0]}. It does not fit backbone {network.backbone_name!r}")
    network.backbone.load_state_dict({key: given[key] for key in report.loaded}, strict=False)
    return report


def initialise(network: VideoClassifier, weights: str | os.PathLike[str] | None) -> VideoClassifier:
    """Start a network from a video checkpoint, or leave it random, and say in the log which it was.

    Parameters
    ----------
    network : VideoClassifier
        Changed in place.
    weights : path or None
        See `load_video_weights`; None keeps the random initialisation.
    """
    if weights is None:
        logger.info("initialisation: random")
    else:
        logger.info("initialisation: %s", load_video_weights(network, weights))
    return network
