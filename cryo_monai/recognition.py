"""What a file of weights is, told by its keys, shapes and the size of its classifier."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryo_monai.backbones import BACKBONES, build_backbone, look_up_backbone
from cryo_monai.downloads import cached_path, pinned_hash
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.inflation import inflate_state, is_image_state
from cryo_monai.networks import read_description
from cryo_monai.weight_files import KeyReport, match_keys, read_pretraining, read_state
from cryo_monai.weight_records import RECORDS, InputRecord, WeightRecord, look_up_record

_MOST_NAMES = 20  # of classes that are listed


def inspect_weights(path: str | os.PathLike[str]) -> str:
    """Say what a file of weights is: which backbones and records it fits, or what it fits nearly.

    Parameters
    ----------
    path : path
        A file, or the name of a record, which is then described.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    if not Path(path).exists() and not Path(path).suffix and os.sep not in str(path):
        return describe_record(look_up_record(str(path)))
    state = read_state(path)
    numbers = sum(tensor.numel() for tensor in state.values())
    lines = [f"{path}: {len(state)} tensors, {numbers / 1e6:.1f} M numbers, SHA-256 {sha256_of(path)}"]
    if "_extra_state" in state:
        description = read_description(state["_extra_state"])
        return "\n".join([*lines, "a checkpoint of this package:", *_facts(description), *_made(path)])
    fits, nearest = _fitting_backbones(state)
    for name in fits:
        record = recognise(state, name)
        lines.append(f"fits backbone {name}" + (f" as {record.name}" if record else "; no record has this classifier"))
        if record:
            mean, std = record.input.mean_and_std()
            clip = " x ".join(map(str, record.clip))
            lines.append(f"  {record.dataset}, {record.licence}; {record.citation}; clip {clip}")
            lines.append(f"  input: {_input_in_words(record.input, mean, std)}")
    if not fits:
        lines.append("fits no backbone")
        if nearest is not None:
            lines.append(f"nearest is {nearest[0]}:\n{nearest[1].table()}")
    return "\n".join(lines)


def _facts(description: Mapping[str, Any]) -> list[str]:
    """Write what a checkpoint says of its network, a line each; of many classes the first."""
    names = list(description["class_names"])
    more = f", ... ({len(names)})" if len(names) > _MOST_NAMES else ""
    shown = dict(description) | {"class_names": ", ".join(map(str, names[:_MOST_NAMES])) + more}
    return [f"  {name}: {value}" for name, value in shown.items()]


def _made(path: str | os.PathLike[str]) -> list[str]:
    """Say how a file of `cryo-monai pretrain` was made; nothing of others."""
    said = read_pretraining(path)
    return ["pre-trained on generated clips:", *(f"  {name}: {value}" for name, value in said.items())] if said else []


def _input_in_words(values: InputRecord, mean: float, std: float) -> str:
    if values.intensity == "z_score":
        return "volumes of mean 0 and standard deviation 1"
    return f"(x - {mean:.4g}) / {std:.4g} for intensities x in [0, 1]"


def describe_record(record: WeightRecord) -> str:
    """Return everything a record says, one line per fact."""
    values = record.input
    mean, std = values.mean_and_std()
    pinned = pinned_hash(record) or f"not pinned ({record.sha256_prefix or 'nothing'} is published)"
    size = "unknown" if record.mebibytes is None else f"{record.mebibytes:g} MiB"
    target = cached_path(record)
    facts = {
        "backbone": record.backbone,
        "architecture": look_up_backbone(record.backbone).arguments,
        "trained on": f"{record.dataset}, clips of {' x '.join(map(str, record.clip))}",
        "top-1": "unknown" if record.top1 is None else f"{record.top1} %",
        "input": _input_in_words(values, mean, std),
        "per channel": f"[{values.low:g}, {values.high:g}], mean {values.mean}, std {values.std}",
        "layout": f"{record.layout}, {record.classes or 'no'} classes",
        "licence": record.licence,
        "citation": record.citation,
        "url": (record.url or "shipped") + (f" ({record.file}, by browser)" if record.manual else ""),
        "size": size,
        "SHA-256": pinned,
        "here": f"{target} ({'there' if target.is_file() else 'not there'})",
    }
    return "\n".join([record.name, *(f"  {name:<13}{fact}" for name, fact in facts.items())])


def recognise(state: Mapping[str, Tensor], backbone: str) -> WeightRecord | None:
    """Tell the record of a file that fits a backbone, by its kind and the size of its classifier; else None.

    Parameters
    ----------
    state : mapping of str to Tensor
        From `read_state`, not yet inflated.
    backbone : str
        Key of `BACKBONES`.
    """
    image = is_image_state(state)
    heads = look_up_backbone(backbone).heads
    outputs = {tensor.shape[0] for key, tensor in state.items() if heads and key.startswith(heads) and tensor.dim()}
    for record in RECORDS:
        same_kind = record.backbone == backbone and record.is_image == image
        # MedicalNet's networks had decoders, of which some files hold nothing.
        if same_kind and (record.classes == 0 or record.classes in outputs):
            return record
    return None


def _fitting_backbones(state: Mapping[str, Tensor]) -> tuple[list[str], tuple[str, KeyReport] | None]:
    """Compare a file with every backbone that has its stem, at its native clip; return the fits and the nearest."""
    fits, nearest = [], None
    image = is_image_state(state)
    for name, backbone in BACKBONES.items():
        from_image = any(record.is_image for record in RECORDS if record.backbone == name)
        if not (from_image if image else f"{backbone.stem}.weight" in state):
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                module, _ = build_backbone(name, backbone.native)
        except InputError:  # its library is not installed
            continue
        wanted = module.state_dict()
        candidate = inflate_state(state, wanted) if image else state
        match = match_keys(candidate, wanted, backbone)
        if not match.report.wrong:
            fits.append(name)
        elif match.tensors and (nearest is None or len(match.report.wrong) < len(nearest[1].wrong)):
            nearest = (name, match.report)
    return fits, nearest


def describe_other_fit(state: Mapping[str, Tensor], backbone: str, wrong: str) -> str:
    """Say in a few words what a refused file would fit instead.

    Parameters
    ----------
    state : mapping of str to Tensor
        The file's.
    backbone : str
        That it was refused for.
    wrong : str
        The first key that does not fit.
    """
    fits, nearest = _fitting_backbones(state)
    if backbone in fits:
        return f"It fits {backbone} without your backbone_options"
    if fits:
        return f"It fits {' and '.join(fits)}"
    if nearest is None:
        return "It fits no backbone"
    if nearest[0] == backbone:
        return f"""It is nearest to this one; --allow_partial '["{wrong}"]' and so on would load the rest"""
    return f"It fits no backbone; nearest is {nearest[0]}"
