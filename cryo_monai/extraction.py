"""Subtomograms out of tomograms: MRC files or one stack, STAR, and a datalist to train from or to classify."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Subset

import cryo_monai
from cryo_monai.backgrounds import with_background
from cryo_monai.box_files import FileWriter, StackWriter, box_file_names
from cryo_monai.boxes import BoxSettings, ParticleBoxes, sampled_contrast
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import Journal, claimed, listing, note_recipe
from cryo_monai.locations import LocatedParticles, list_particles
from cryo_monai.particles import BACKGROUND, further_columns, write_particles
from cryo_monai.rotations import relion_angles

BATCH = 64


def extract(
    located: LocatedParticles,
    output_dir: str | os.PathLike[str],
    settings: BoxSettings,
    *,
    background: int = 0,
    seed: int = 0,
    stack: bool = False,
    num_workers: int = 0,
    at_end: Callable[[ParticleBoxes], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write the boxes of located particles.

    Written are ``subtomograms/TOMOGRAM/ID.mrc`` (or one stack, ``subtomograms.mrcs``), ``particles.star`` and
    ``dataset.json``; ``extraction.json`` holds the settings. An interrupted call is continued by the same call.

    Parameters
    ----------
    located : LocatedParticles
        Of `locate_particles`. Those with a class name go to the datalist's ``training`` list (`load_datalist` splits
        it), the others, or all when fewer than two classes have names, to ``inference``.
    output_dir : path
        Created when missing. A folder that holds something else, or boxes of other settings, is refused.
    settings : BoxSettings
        How boxes are cut.
    background : int
        Boxes of class ``background`` in each tomogram; see `background_places`.
    seed : int
        Of the background's places.
    stack : bool
        One stack instead of a file per box.
    num_workers : int
        Processes that cut boxes.
    at_end : callable, optional
        Called with the boxes that were written, the background among them, for example to draw them.
    progress : callable, optional
        Called with the number of boxes just written, or found written.

    Returns
    -------
    Path
        The ``dataset.json``: MONAI's datalist, with ``class_names``, ``voxel_size``, and for each box its tomogram
        (``source``), place, share inside, and the mean and standard deviation that were taken off.

    Raises
    ------
    InputError
        For what `ParticleBoxes` refuses, when there is no room for the background, or a folder that is not free.
    """
    folder = Path(output_dir)
    ParticleBoxes(located, settings)  # what it refuses is to be said of the list that came in
    everything = with_background(located, background, settings, seed)
    boxes = ParticleBoxes(everything, settings)
    if settings.edge == "skip":
        everything = everything.select(boxes.whole)
        if not len(everything):
            raise InputError(
                f"{located.particles.path}: no box lies wholly inside its tomogram (--edge pad keeps them)"
            )
        boxes = ParticleBoxes(everything, settings)
    names = box_file_names(everything, stack)
    with claimed(folder, "extraction"):
        recipe = {
            "made_by": f"cryo-monai {cryo_monai.__version__}",
            "settings": asdict(settings),
            "particles": str(located.particles.path),
            "tomograms": [
                {"file": str(t.path), "shape": t.shape, "voxel_size": t.voxel_size} for t in located.tomograms
            ],
            "background": background,
            "seed": seed,
            "stack": stack,
            "fingerprint": boxes.fingerprint(),
        }
        note_recipe(folder, recipe, "extraction")
        journal = Journal(folder / "progress" / "boxes.jsonl")
        writer = StackWriter(folder, len(boxes), settings) if stack else FileWriter(folder, everything, settings)
        left = [row for row in range(len(boxes)) if row >= len(journal.entries) or not writer.has(names[row])]
        if progress and len(left) < len(boxes):
            progress(len(boxes) - len(left))
        loader = DataLoader(Subset(boxes, left), batch_size=BATCH, num_workers=num_workers, collate_fn=list)
        for batch in loader:
            for item in batch:
                writer.write(item["index"], names[item["index"]], item["image"][0])
            writer.flush()
            # Of boxes whose files were lost and have been made again, the journal knows already.
            fresh = [item for item in batch if item["index"] >= len(journal.entries)]
            keys = ("inside", "mean", "std")
            journal.append([{key: float(f"{item[key]:.7g}") for key in keys} for item in fresh])
            if progress:
                progress(len(batch))
        writer.finish()
        located_items = _items(everything, names, journal.entries)
        _write_star(folder / "particles.star", everything, names, journal.entries, settings.rotate)
        target = folder / "dataset.json"
        content = {
            "name": "extracted subtomograms",
            "extraction": asdict(settings),
            "voxel_size": settings.voxel_size,
            "box": settings.box,
            "contrast": sampled_contrast(boxes),
            **_lists(everything.particles.class_names, located_items),
        }
        atomic_write_text(target, listing(content))
        if at_end:
            at_end(boxes)
    return target


def _items(located: LocatedParticles, names: Sequence[str], written: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "image": name,
            "id": located.particles.ids[row],
            "source": located.particles.tomograms[row],
            "place": [round(float(v), 3) for v in located.places[row]],
            **{key: entry[key] for key in ("inside", "mean", "std")},
        }
        for row, (name, entry) in enumerate(zip(names, written, strict=True))
    ]


def _lists(class_names: Sequence[str], items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sort items into a list to train from and one to classify."""
    known = sorted({name for name in class_names if name}, key=lambda name: (name == BACKGROUND, name))
    if len(known) < 2:
        return {"class_names": known, "inference": list(items)}
    labelled = [
        {**item, "label": known.index(name), "class_name": name}
        for item, name in zip(items, class_names, strict=True)
        if name
    ]
    others = [item for item, name in zip(items, class_names, strict=True) if not name]
    return {"class_names": known, "training": labelled, **({"inference": others} if others else {})}


def _write_star(
    target: Path, located: LocatedParticles, names: Sequence[str], written: Sequence[dict[str, Any]], rotate: bool
) -> None:
    particles, rotations = located.particles, located.particles.rotations
    columns = further_columns(particles) | {"rlnImageName": list(names)}
    columns |= {
        f"cryomonai{key.title()}": [f"{entry[key]:g}" for entry in written] for key in ("inside", "mean", "std")
    }
    if rotate and rotations is not None:
        # Boxes that have been turned have no pose left; the one they had is noted apart.
        for name, angles in zip(("Rot", "Tilt", "Psi"), relion_angles(rotations).T, strict=True):
            columns[f"cryomonai{name}"] = [f"{angle:.4f}" for angle in angles]
        rotations = None
    listed = list_particles(
        located.tomograms,
        located.which,
        located.places,
        names=particles.tomograms,
        ids=particles.ids,
        rotations=rotations,
        class_names=particles.class_names,
        scores=particles.scores,
        columns=columns,
    )
    write_particles(target, listed.particles)
