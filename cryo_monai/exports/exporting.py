"""A run -> one file, compared with the run's network before it gets its name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.errors import CryoMonaiError, InputError, causes, unwrapped_errors
from cryo_monai.exports.agreement import TOLERANCE, largest_difference, random_volumes
from cryo_monai.exports.formats import Format, look_up_format
from cryo_monai.exports.provenance import describe_network, describe_run
from cryo_monai.exports.tracing import Floats, Probabilities, exported_module
from cryo_monai.files import TEMPORARY
from cryo_monai.networks import VideoClassifier
from cryo_monai.run_evaluation import open_split
from cryo_monai.run_inference import inference_of
from cryo_monai.runs import read_run


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what it was compared on.

    Attributes
    ----------
    path : Path
        The file.
    difference : float
        Largest absolute difference of a probability from the network's own in float32.
    tolerance : float
        What would have been accepted.
    num_random, num_real : int
        Batches of random volumes, and other batches, of the run's test split.
    """

    path: Path
    difference: float
    tolerance: float
    num_random: int
    num_real: int


def export_run(
    run_dir: str | os.PathLike[str],
    format: str,
    output: str | os.PathLike[str] | None = None,
    *,
    volumes: Sequence[Floats] = (),
) -> Exported:
    """Write the network of a run, with its best weights, as one file for other programs.

    The file takes raw volumes `(B, 1, z, y, x)` and gives probabilities `(B, num_classes)`; every step of
    `VideoClassifier.forward` is in it. It is compared with the run's network before it gets its name.

    Parameters
    ----------
    run_dir : path
        A run folder.
    format : str
        A key of `FORMATS`.
    output : path, optional
        The file, ``exports/model.SUFFIX`` in the run folder by default; not there yet.
    volumes : sequence of array, optional
        Batches `(B, 1, z, y, x)` to compare on, beside random ones, such as `some_test_volumes`.

    Raises
    ------
    CryoMonaiError
        In one line: the folder is not a finished run, the target exists or has another format's name, something is not
        installed, the backbone cannot be written in this format, or the file disagrees with the network.
    """
    kind = look_up_format(format)
    folder, record = read_run(run_dir)
    if not (folder / "models" / "model.pt").is_file():
        raise InputError(f"{folder}: has no models/model.pt; finish the training")
    target = _free_target(folder / "exports" / f"model{kind.suffix}" if output is None else Path(output), kind)
    workflow = inference_of(folder, {"precision": "float32"})
    with unwrapped_errors():
        network = workflow.parser.get_parsed_content("network_def")
    load_checkpoint(network, folder / "models" / "model.pt")
    about = describe_run(folder, record)
    return export_network(network, format, target, metadata=about, volumes=volumes)


def export_network(
    network: VideoClassifier,
    format: str,
    output: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    volumes: Sequence[Floats] = (),
) -> Exported:
    """Write any network as one file for other programs; see `export_run`.

    Parameters
    ----------
    network : VideoClassifier
        Not changed.
    format : str
        A key of `FORMATS`.
    output : path
        The file; not there yet.
    metadata : mapping, optional
        Plain values that the file says of itself, beside those of `describe_network`.
    volumes : sequence of array, optional
        Batches `(B, 1, z, y, x)` to compare on, beside random ones.

    Raises
    ------
    CryoMonaiError
        As `export_run`.
    """
    kind = look_up_format(format)
    target = _free_target(Path(output), kind)
    module = exported_module(network)
    described = {**describe_network(network, runs_alone=kind.runs_alone), **(metadata or {})}
    tolerance = TOLERANCE if kind.runs_alone else 0.0
    random = random_volumes(network.clip_size)
    partial = target.with_name(f"{target.stem}.{secrets.token_hex(6)}{TEMPORARY}{kind.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(kind, module, described, partial, f"--format {format}: backbone {network.backbone_name}")
        difference = largest_difference(kind.open(partial), module, (*random, *volumes))
        if not difference <= tolerance:
            raise CryoMonaiError(
                f"{target}: not written; probabilities differ by {difference:.1e} from the network's "
                f"({tolerance:g} is tolerated)"
            )
        os.replace(partial, target)
    except OSError as error:
        raise CryoMonaiError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return Exported(target, difference, tolerance, len(random), len(volumes))


def _write(kind: Format, module: Probabilities, metadata: Mapping[str, Any], path: Path, what: str) -> None:
    try:
        kind.write(module, metadata, path)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        # What the exporters raise of operations that they do not know; the first cause says which.
        first = list(causes(error))[-1]
        reason = " ".join(str(first).split())[:300]
        raise CryoMonaiError(f"{what} cannot be exported ({type(first).__name__}: {reason})") from error


def _free_target(target: Path, kind: Format) -> Path:
    if target.suffix != kind.suffix:
        raise InputError(f"--output {target}: the name of such a file ends in {kind.suffix}")
    if target.exists():
        raise InputError(f"{target}: is there already; give another --output, or remove it")
    return target


def some_test_volumes(run_dir: str | os.PathLike[str], limit: int = 4) -> list[Floats]:
    """Read volumes of a run's test split, spread evenly over it.

    Parameters
    ----------
    run_dir : path
        A run folder.
    limit : int
        Most volumes.

    Returns
    -------
    list of array
        `(1, 1, z, y, x)` each.

    Raises
    ------
    CryoMonaiError
        When the data are not what they were: gone, unreadable, other classes.
    """
    items, dataset = open_split(run_dir)
    chosen = sorted({round(number) for number in np.linspace(0, len(items) - 1, min(limit, len(items)))})
    return [np.asarray(dataset[number]["image"], dtype=np.float32)[None] for number in chosen]
