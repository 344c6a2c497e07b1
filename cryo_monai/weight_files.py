"""Files of weights: read as tensors and plain values only, unwrapped, and matched with backbones by their keys."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from cryo_monai.backbones import Backbone
from cryo_monai.backbones.positions import resample_table
from cryo_monai.errors import InputError
from cryo_monai.fetching import MAX_BYTES

# How checkpoint files nest their tensors: 3D-ResNets-PyTorch, PyTorchVideo.
WRAPPERS = ("state_dict", "model_state")
PREFIX = "module."  # left by DataParallel
PRETRAINING = "pretraining"  # metadata of a safetensors file, as JSON
MAX_TENSORS = 20_000
# Counters and constants that have no effect on the output, or follow from the architecture.
DERIVED = ("num_batches_tracked", "relative_position_index")


@dataclass(frozen=True)
class KeyReport:
    """The keys of a file and of a backbone by fate.

    Attributes
    ----------
    loaded, missing, unexpected, mismatched, head : tuple of str
        Equal; only in the backbone; only in the file; of another shape; of the classifier, which is left out.
    resized : tuple of str
        Positions that were interpolated to the backbone's clip size; counted among ``loaded`` too.
    allowed : tuple of str
        Those of missing, unexpected and mismatched that the user allowed.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        """Keys that stand in the way of loading."""
        return tuple(key for key in self.missing + self.unexpected + self.mismatched if key not in self.allowed)

    def counts(self) -> dict[str, int]:
        """Return how many keys met each fate."""
        names = ("loaded", "resized", "missing", "unexpected", "mismatched", "head", "allowed")
        return {name: len(getattr(self, name)) for name in names}

    def as_plain_values(self) -> dict[str, Any]:
        """Return the keys by fate, and of those loaded the number, for JSON."""
        return {name: count if name == "loaded" else list(getattr(self, name)) for name, count in self.counts().items()}

    def table(self) -> str:
        """Return one line per fate, with the first keys."""
        lines = []
        for name, count in self.counts().items():
            keys = getattr(self, name)
            shown = "" if name == "loaded" else ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
            lines.append(f"  {name:<11}{count:>6}  {shown}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class Match:
    """A file's tensors under the names and shapes of a backbone, and how that came about."""

    tensors: dict[str, Tensor]
    report: KeyReport = field(default_factory=KeyReport)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values, or a safetensors file; nothing in it is executed.

    Raises
    ------
    InputError
        When the file is missing, broken, larger than 4 GiB on disk or unpacked, or holds anything but tensors and plain
        values.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file of weights; get it as README says, or give --weights PATH")
    if not file.stat().st_size:
        raise InputError(f"{file}: an empty file")
    if _declared_bytes(file) > MAX_BYTES:
        raise InputError(f"{file}: larger than {MAX_BYTES >> 30} GiB; refused")
    try:
        content = _read(file)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: holds more than tensors and plain values; refused") from error
    except InputError:
        raise
    except Exception as error:  # whatever the readers make of bytes that are no checkpoint
        reason = (str(error).splitlines() or [""])[0][:100]
        raise InputError(f"{file}: not a readable checkpoint ({type(error).__name__}: {reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: a checkpoint must be a dictionary, not {type(content).__name__}")
    return content


def _declared_bytes(file: Path) -> int:
    """Bytes that a file will take, from its size and, for archives, from their directory."""
    size = file.stat().st_size
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        except (zipfile.BadZipFile, OSError):
            return size  # the reader will say what is wrong with it
    return size


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a network from a file, out of their nesting and without ``module.`` prefixes.

    Raises
    ------
    InputError
        As `load_tensors`, and when there are no tensors, more than 20 000, or one that declares more than 4 GiB.
    """
    content: Mapping[str, Any] = load_tensors(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    state = {str(key).removeprefix(PREFIX): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{path}: no tensors in it (keys: {', '.join(map(str, list(content)[:5]))})")
    if len(state) > MAX_TENSORS:
        raise InputError(f"{path}: {len(state)} tensors; a network has fewer than {MAX_TENSORS}")
    for key, tensor in state.items():
        if tensor.numel() * tensor.element_size() > MAX_BYTES or tensor.is_sparse or tensor.is_quantized:
            raise InputError(f"{path}: tensor {key} of shape {list(tensor.shape)} is no plain tensor of a network")
    return state


def read_pretraining(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a file of `write_weights` says of its making; nothing for other files."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(PRETRAINING, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}  # who reads its tensors says what is wrong with it
    return said if isinstance(said, dict) else {}


def match_keys(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    backbone: Backbone,
    *,
    grids: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    allow_partial: Sequence[str] = (),
) -> Match:
    """Bring a file's tensors under the names and shapes of a backbone.

    Parameters
    ----------
    state : mapping of str to Tensor
        From `read_state`.
    wanted : mapping of str to Tensor
        The backbone's state dict; only names and shapes are looked at.
    backbone : Backbone
        Says which keys are the classifier's, and what is called otherwise in files.
    grids : tuple
        Tokens ``(t, h, w)`` of the checkpoint's clip and of the backbone's, between which positions are resampled.
    allow_partial : sequence of str
        Names, or patterns such as ``layer4.*``, of keys that may be missing, unexpected or of another shape.

    Returns
    -------
    Match
        The tensors to load, and all keys by fate.
    """
    head = tuple(key for key in state if key.startswith(backbone.heads)) if backbone.heads else ()
    given = {_rename(key, wanted, backbone): tensor for key, tensor in state.items() if key not in head}
    shared = [key for key in given if key in wanted]
    tensors, resized, mismatched = {}, [], []
    for key in shared:
        tensor, shape = given[key], wanted[key].shape
        if tensor.shape != shape:
            fitted = _resample(key, tensor, shape, grids)
            if fitted is None or not tensor.is_floating_point():
                mismatched.append(key)
                continue
            resized.append(key)
            tensor = fitted
        tensors[key] = tensor
    missing = tuple(key for key in wanted if key not in given and not key.endswith(DERIVED))
    unexpected = tuple(key for key in given if key not in wanted)
    problems = (*missing, *unexpected, *mismatched)
    allowed = tuple(key for key in problems if any(fnmatch(key, pattern) for pattern in allow_partial))
    report = KeyReport(tuple(tensors), missing, unexpected, tuple(mismatched), tuple(resized), head, allowed)
    return Match(tensors, report)


def _rename(key: str, wanted: Mapping[str, Tensor], backbone: Backbone) -> str:
    if key in wanted:
        return key
    for old, new in backbone.renamed:
        key = key.replace(old, new)
    return key


def _resample(key: str, tensor: Tensor, shape: Sequence[int], grids: tuple[tuple[int, ...], ...]) -> Tensor | None:
    old, new = grids
    if not old or tensor.dim() != len(shape) or tensor.shape[-1] != shape[-1]:
        return None
    try:
        return resample_table(key, tensor, shape, old, new)
    except InputError:  # of a size that belongs to no known clip
        return None
