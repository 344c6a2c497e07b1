"""Picks in tomograms -> classes: boxes are cut as they are needed, and no file is written between."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cryo_monai.boxes import BoxSettings, ParticleBoxes, sampled_contrast
from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.contrasts import contrast_warning
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.files import atomic_write_text
from cryo_monai.locations import LocatedParticles
from cryo_monai.particles import UNKNOWN, write_classes, write_particles
from cryo_monai.parts import compute_in_parts, drop_parts, network_fingerprint
from cryo_monai.points import write_points
from cryo_monai.run_inference import inference_of
from cryo_monai.runs import read_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParticleClasses:
    """Classes of located particles.

    Attributes
    ----------
    located : LocatedParticles
        Those that were classified: with ``edge="skip"`` not all that were given.
    class_names : list of str
        What the network knows.
    scores : array
        Probabilities `(n, classes)`.
    names : list of str
        Class of each particle, or "unknown" where the probability was too low.
    numbers : array
        `(n,)`, 1 for the first class, 0 for unknown.
    output : Path
        The particle list with classes.
    """

    located: LocatedParticles
    class_names: list[str]
    scores: npt.NDArray[np.float32]
    names: list[str]
    numbers: npt.NDArray[np.int64]
    output: Path

    def named(self) -> LocatedParticles:
        """Return the particles with their classes for names."""
        return replace(self.located, particles=replace(self.located.particles, class_names=self.names))


def settings_for(
    run_dir: str | os.PathLike[str],
    located: LocatedParticles,
    *,
    box: int = 0,
    voxel_size: float = 0.0,
    **options: Any,
) -> BoxSettings:
    """Box and voxel size of what a run was trained on, unless given.

    Parameters
    ----------
    run_dir : path
        The output_dir of a training.
    located : LocatedParticles
        Their tomograms' voxel size is taken when the training's is not known.
    box, voxel_size : int, float
        Go before what the run says; 0 for what it says.
    options : object
        For `BoxSettings`.

    Raises
    ------
    InputError
        When the box is known from neither, or was not a cube.
    """
    folder, record = read_run(run_dir)
    data = record.get("data") or {}
    trained_box, trained_size = data.get("box"), data.get("voxel_size")
    if not box:
        if not trained_box or len(set(trained_box)) > 1:
            raise InputError(f"{folder}: trained on boxes of {trained_box} voxels; give an edge with --box")
        box = trained_box[0]
    if voxel_size and trained_size and abs(voxel_size / trained_size - 1) > 0.01:
        logger.warning("voxels of %g Å, but the network was trained on %g Å", voxel_size, trained_size)
    trained = data.get("extraction") or {}
    for name in ("rotate", "rescaling"):
        if name in trained and trained[name] != options.get(name, trained[name]):
            logger.warning("%s is %s, but the network was trained on boxes of %s", name, options[name], trained[name])
    voxel_size = voxel_size or trained_size or 0.0
    if not voxel_size:
        voxel_size = located.voxel_size
        logger.warning("voxel size of the training data unknown: boxes have that of the tomograms, %g Å", voxel_size)
    return BoxSettings(box=box, voxel_size=voxel_size, **options)


def classify_particles(
    run_dir: str | os.PathLike[str],
    located: LocatedParticles,
    settings: BoxSettings,
    output: str | os.PathLike[str],
    *,
    min_probability: float = 0.0,
    ids: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> ParticleClasses:
    """Classify particles with a run's best checkpoint, and write what came of it.

    Written are ``OUTPUT``, in the format of the list that came in (of its ending, for a list that came from no file),
    with class number, class name and probability; and
    with its stem ``_probabilities.csv``, ``_summary.csv`` (particles per tomogram and class) and ``_points/``, see
    `write_points`. Batches are kept in ``OUTPUT.parts`` as they come: an interrupted call goes on with the next.

    Parameters
    ----------
    run_dir : path
        The output_dir of a training.
    located : LocatedParticles
        Of `locate_particles`.
    settings : BoxSettings
        Of `settings_for`.
    output : path
        Not the file that came in.
    min_probability : float
        Below it a particle is "unknown", with class number 0.
    ids : mapping, optional
        Ids of the bundle's inference.json, such as ``average_axes`` or ``batch_size``.
    progress : callable, optional
        Called with the number of particles that are done, those of an interrupted call included.

    Raises
    ------
    CryoMonaiError
        In one line, for anything the user can mend.
    """
    if not 0 <= min_probability <= 1:
        raise InputError(f"min_probability: {min_probability} must be from 0 to 1")
    target, source = Path(output), located.particles.path
    parts = target.with_name(target.name + ".parts")
    for file in (*([source] if source else []), *located.particles.read_from):
        if target.exists() and os.path.samefile(target, file):
            raise InputError(f"{target}: is what the particles were read from; choose another --output")
    if target.exists() and not parts.exists():
        raise InputError(f"{target}: exists; remove it, or choose another --output")
    boxes = ParticleBoxes(located, settings)
    if settings.edge == "skip":
        located = located.select(boxes.whole)
        if not len(located):
            raise InputError(f"{source}: no box lies wholly inside its tomogram (--edge pad keeps them)")
        boxes = ParticleBoxes(located, settings)
    _, record = read_run(run_dir)
    found = sampled_contrast(boxes)
    warning = contrast_warning((record.get("data") or {}).get("contrast"), found, "the training data")
    if warning:
        logger.warning("%s", warning)
    names, scores = _scores(run_dir, boxes, parts, ids or {}, progress)
    best = scores.argmax(1)
    sure = scores.max(1) >= min_probability
    numbers = np.where(sure, best + 1, 0)
    chosen = [names[number - 1] if number else UNKNOWN for number in numbers]
    probabilities = scores.max(1).astype(np.float64)
    if source is None:
        write_particles(target, replace(located.particles, class_names=chosen, scores=probabilities))
    else:
        write_classes(target, located.particles, class_numbers=numbers, class_names=chosen, probabilities=probabilities)
    result = ParticleClasses(located, names, scores, chosen, numbers, target)
    atomic_write_text(_beside(target, "_probabilities.csv"), _probability_table(result))
    atomic_write_text(_beside(target, "_summary.csv"), summary_table(located, chosen, names, probabilities))
    write_points(_beside(target, "_points"), located, class_names=chosen, classes=names, probabilities=probabilities)
    drop_parts(parts)
    return result


def _scores(
    run_dir: str | os.PathLike[str],
    boxes: ParticleBoxes,
    parts: Path,
    ids: Mapping[str, Any],
    progress: Callable[[int], object] | None,
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Class names, and probabilities `(n, classes)`, from the run's own inference workflow."""
    workflow = inference_of(run_dir, ids)
    content = workflow.parser.get_parsed_content
    with unwrapped_errors():
        workflow.initialize()
        network, device, inferer = (content(name) for name in ("network", "device", "inferer"))
        load_checkpoint(network, content("ckpt_path"))
        postprocessing, batch_size, workers = (
            content(name) for name in ("postprocessing", "batch_size", "num_workers")
        )
    if UNKNOWN in network.class_names:
        raise InputError(
            f"{run_dir}: was trained with a class {UNKNOWN!r}, which is what doubtful particles are called"
        )
    network.eval()

    def compute(batch: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            scores = inferer(batch["image"].to(device), network)
        rows = [postprocessing({"pred": row})["pred"] for row in scores]
        return torch.stack(rows).float().cpu().numpy()

    chosen = {name: str(value) for name, value in ids.items() if name != "num_workers"}
    asked = json.dumps([chosen, content("average_axes"), content("precision")], sort_keys=True)
    fingerprint = f"{network_fingerprint(network)} {asked} {boxes.fingerprint()}"
    scores = compute_in_parts(
        parts,
        fingerprint,
        boxes,
        len(boxes),
        compute,
        batch_size=batch_size,
        num_workers=workers,
        progress=progress,
    )
    return list(network.class_names), scores


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.stem + ending)


def _probability_table(result: ParticleClasses) -> str:
    located = result.located
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "tomogram", "z", "y", "x", "class_name", *(f"p_{name}" for name in result.class_names)])
    tomograms = located.names
    for row, probabilities in enumerate(result.scores):
        place = [f"{value:.3f}" for value in located.places[row]]
        tomogram = tomograms[located.which[row]]
        shown = [f"{value:.6f}" for value in probabilities]
        writer.writerow([located.particles.ids[row], tomogram, *place, result.names[row], *shown])
    return stream.getvalue()


def summary_table(
    located: LocatedParticles,
    chosen: Sequence[str],
    class_names: Sequence[str],
    probabilities: npt.NDArray[np.float64],
) -> str:
    """CSV text: particles of each class, and the mean probability, per tomogram and in all."""
    columns = [*class_names, UNKNOWN]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tomogram", "particles", *columns, "mean_probability"])
    groups = [(name, np.flatnonzero(located.which == number)) for number, name in enumerate(located.names)]
    for name, rows in [*groups, ("all", np.arange(len(located)))]:
        counts = Counter(chosen[int(row)] for row in rows)
        mean = f"{probabilities[rows].mean():.4f}" if len(rows) else ""
        writer.writerow([name, len(rows), *(counts[column] for column in columns), mean])
    return stream.getvalue()
