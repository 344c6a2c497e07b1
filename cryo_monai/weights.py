"""Initialisation of networks from outside: video or image checkpoints, with a full account of every key."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cryo_monai.backbones import look_up_backbone
from cryo_monai.downloads import find_weights, pinned_hash
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.inflation import inflate_state, is_image_state
from cryo_monai.networks import VideoClassifier, read_description
from cryo_monai.recognition import describe_other_fit, recognise
from cryo_monai.weight_files import KeyReport, match_keys, read_pretraining, read_state
from cryo_monai.weight_records import (
    KINDS,
    WeightRecord,
    all_records,
    default_record,
    generated_record,
    look_up_record,
)

INPUT_RANGES = ("checkpoint", "unit")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came of loading a checkpoint.

    Attributes
    ----------
    file : str
        That was read.
    record : WeightRecord or None
        That its keys and classifier were recognised as; None for files of unknown origin.
    keys : KeyReport
        All keys by fate.
    origin : str
        What there is to say of a file without a record.
    """

    file: str
    record: WeightRecord | None
    keys: KeyReport
    origin: str = "of unknown origin"

    def __str__(self) -> str:
        """Return a heading and a table of fates."""
        origin = f"{self.record.name} ({self.record.dataset})" if self.record else self.origin
        return f"{self.file}: {origin}\n{self.keys.table()}"


def load_video_weights(
    network: VideoClassifier,
    path: str | os.PathLike[str],
    *,
    record: WeightRecord | None = None,
    allow_partial: Sequence[str] = (),
    inflation: str = "average",
) -> LoadReport:
    """Load a checkpoint into the backbone of a network; its classifier is left out.

    Parameters
    ----------
    network : VideoClassifier
        Changed in place, and only when every other tensor fits.
    path : path
        As its publisher wrote it: plain or nested, with or without ``module.`` prefixes, pickled tensors or
        safetensors; of a video network, or of a 2-D network of the same make, which is then inflated.
    record : WeightRecord, optional
        What the file is; recognised by its keys by default.
    allow_partial : sequence of str
        Names or patterns of keys that may differ; see `match_keys`.
    inflation : str
        See `inflate_kernel`.

    Returns
    -------
    LoadReport
        The record and the keys by fate.

    Raises
    ------
    InputError
        When any tensor but the classifier's is missing, unexpected or of another shape, naming what the file fits
        instead if it fits anything.
    """
    return _load(network, path, read_state(path), record, allow_partial, inflation)


def _load(
    network: VideoClassifier,
    path: str | os.PathLike[str],
    original: Mapping[str, Tensor],
    record: WeightRecord | None,
    allow_partial: Sequence[str],
    inflation: str,
) -> LoadReport:
    """Load what was read from a file; see `load_video_weights`."""
    backbone = look_up_backbone(network.backbone_name)
    wanted = network.backbone.state_dict()
    if record is None:
        record = recognise(original, network.backbone_name)
    clip = record.clip if record else network.clip_size
    state = inflate_state(original, wanted, inflation) if is_image_state(original) else original
    grids = (backbone.grid(clip), backbone.grid(network.clip_size))
    match = match_keys(state, wanted, backbone, grids=grids, allow_partial=allow_partial)
    report = LoadReport(str(path), record, match.report)
    wrong = match.report.wrong
    if wrong:
        counts = ", ".join(f"{count} {name}" for name, count in match.report.counts().items() if count)
        other = describe_other_fit(original, network.backbone_name, wrong[0])
        raise InputError(
            f"{path}: does not fit backbone {network.backbone_name!r}: {counts}; first: {wrong[0]}. {other}"
        )
    if not match.tensors:
        raise InputError(f"{path}: no tensor of it fits backbone {network.backbone_name!r}")
    network.backbone.load_state_dict(match.tensors, strict=False)
    return report


def initialise(
    network: VideoClassifier,
    weights: str | os.PathLike[str] | None,
    *,
    input_range: str = "checkpoint",
    allow_partial: Sequence[str] = (),
    inflation: str = "average",
) -> VideoClassifier:
    """Start a network from a checkpoint, or leave it random, say in the log which it was, and note it in the network.

    Parameters
    ----------
    network : VideoClassifier
        Changed in place: weights, the mean and std of its input, and ``initialisation``, what there is to know about
        it as plain values.
    weights : path or None
        A file; the name of a record; ``"video"``, ``"image"`` or ``"generated"`` for the first such record of the
        backbone; a checkpoint of this package; None keeps the random initialisation.
    input_range : str
        ``"checkpoint"`` maps intensities to what the checkpoint was trained on; ``"unit"`` leaves them in [0, 1], as
        the code lineage of the paper does. A checkpoint of this package always brings the input it was trained with.
    allow_partial, inflation
        See `load_video_weights`.

    Raises
    ------
    InputError
        In one line, when the file is not there or does not fit, or when nothing says what input it was trained on.
    """
    if input_range not in INPUT_RANGES:
        raise InputError(f"input_range: {input_range!r} is not one of {', '.join(INPUT_RANGES)}")
    if isinstance(allow_partial, str):
        raise InputError(f'allow_partial: give a list of keys, such as ["{allow_partial}"]')
    if weights is None:
        network.initialisation = {"weights": None}
        logger.info("initialisation: random")
        return network
    path, record = resolve_weights(network.backbone_name, weights)
    state = read_state(path)
    if "_extra_state" in state:
        report = _load_own_checkpoint(network, path, state, record, allow_partial)
        input_range = "as it was trained"
    else:
        report = _load(network, path, state, record, allow_partial, inflation)
        _set_input(network, report, input_range)
    digest = sha256_of(path)
    known = report.record is not None and pinned_hash(report.record) == digest
    logger.info(
        "initialisation: %s\n  input      (x - %.4g) / %.4g for intensities x in [0, 1] (%s)\n  SHA-256    %s (%s)",
        report, network.mean, network.std, input_range, digest, "as pinned" if known else "not compared with any pin",
    )  # fmt: skip
    network.initialisation = {
        "weights": str(path),
        "sha256": digest,
        "record": report.record.name if report.record else None,
        "input_range": input_range,
        "mean": network.mean,
        "std": network.std,
        "keys": report.keys.as_plain_values(),
    }
    return network


def resolve_weights(backbone: str, weights: str | os.PathLike[str]) -> tuple[Path, WeightRecord | None]:
    """Turn what `initialise` takes as weights into a file, and its record when the name says it.

    Raises
    ------
    InputError
        When there is no such record, it is for another backbone, or its file is not there.
    """
    name = str(weights)
    if name in KINDS:
        generated = name == "generated"
        record = generated_record(backbone) if generated else default_record(backbone, image=name == "image")
        return find_weights(record), record
    if any(record.name == name for record in all_records()):
        record = look_up_record(name)
        if record.backbone != backbone:
            raise InputError(f"weights {name} are for backbone {record.backbone!r}, not {backbone!r}")
        return find_weights(record), record
    if not Path(weights).exists() and not Path(weights).suffix and os.sep not in name:
        look_up_record(name)  # raises, with the nearest name
    return Path(weights), None


def _load_own_checkpoint(
    network: VideoClassifier,
    path: Path,
    state: Mapping[str, Tensor],
    record: WeightRecord | None,
    allow_partial: Sequence[str],
) -> LoadReport:
    """Load backbone and input of a checkpoint of this package."""
    saved, said = read_description(state["_extra_state"]), read_pretraining(path)
    if saved["backbone"] != network.backbone_name:
        raise InputError(f"{path}: has backbone {saved['backbone']!r}, not {network.backbone_name!r}")
    if saved["intensity"] != network.intensity:
        how = saved["intensity"]
        raise InputError(f"{path}: was trained with intensity {how!r}; add --intensity {how}")
    backbone = look_up_backbone(network.backbone_name)
    inner = {
        key.removeprefix("backbone."): value.float() if value.is_floating_point() else value  # some are kept in halves
        for key, value in state.items()
        if key.startswith("backbone.")
    }
    grids = (backbone.grid(saved["clip_size"]), backbone.grid(network.clip_size))
    match = match_keys(inner, network.backbone.state_dict(), backbone, grids=grids, allow_partial=allow_partial)
    if match.report.wrong:
        raise InputError(f"{path}: does not fit; first: {match.report.wrong[0]}. backbone_options may differ")
    network.backbone.load_state_dict(match.tensors, strict=False)
    network.mean, network.std = saved["mean"], saved["std"]
    if said:
        _tell_other_size(path, said.get("clip_sizes", [saved["clip_size"]]), network.clip_size)
    made = said.get("command")
    return LoadReport(str(path), record, match.report, f"made by `{made}`" if made else "a checkpoint of this package")


def _tell_other_size(path: Path, sizes: Sequence[Sequence[int]], own: Sequence[int]) -> None:
    """Warn of clips beyond those that generated weights were made with: at other sizes they help less."""
    least, most = ([side(axis) for axis in zip(*sizes, strict=True)] for side in (min, max))
    if not all(low <= size <= high for low, size, high in zip(least, own, most, strict=True)):
        made = " to ".join(" x ".join(map(str, size)) for size in (least, most)[: 1 + (least != most)])
        here = " x ".join(map(str, own))
        logger.warning(
            "%s: made with clips of %s, here they are %s: weights help most at their own size", path, made, here
        )


def _set_input(network: VideoClassifier, report: LoadReport, input_range: str) -> None:
    """Map intensities to what the checkpoint was trained on."""
    network.mean, network.std = 0.0, 1.0
    if input_range == "unit":
        return
    if report.record is None:
        raise InputError(
            f"{report.file}: fits, but is none of the known checkpoints, so that nothing says what input it was "
            "trained on; add --input_range unit to give it [0, 1]"
        )
    values = report.record.input
    standardised = values.intensity == "z_score"
    if standardised != (network.intensity == "z_score"):
        wanted = "z_score" if standardised else "min_max or percentile"
        raise InputError(
            f"{report.file}: {report.record.name} was trained on other intensities than {network.intensity!r}; give "
            f"--intensity {wanted}, or --input_range unit"
        )
    network.mean, network.std = values.mean_and_std()
