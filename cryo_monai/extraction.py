"""Subtomograms out of tomograms: MRC files or one stack, STAR, and a datalist to train from or to classify."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Subset

import cryo_monai
from cryo_monai.box_files import FileWriter, StackWriter, box_file_names
from cryo_monai.boxes import BoxSettings, ParticleBoxes, sampled_contrast
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import Journal, claimed, listing, note_recipe
from cryo_monai.locations import LocatedParticles, list_particles
from cryo_monai.particles import write_particles

BACKGROUND = "background"
BATCH = 64
# Places drawn for each background box; when too few of them are free, a tomogram counts as full.
TRIES = 200


def extract(
    located: LocatedParticles,
    output_dir: str | os.PathLike[str],
    settings: BoxSettings,
    *,
    background: int = 0,
    seed: int = 0,
    stack: bool = False,
    num_workers: int = 0,
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
    everything = _with_background(located, background, settings, seed)
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
        journal = Journal(folder / "truth" / "boxes.jsonl")
        if progress and journal.entries:
            progress(len(journal.entries))
        writer = StackWriter(folder, len(boxes), settings) if stack else FileWriter(folder, everything, settings)
        left = range(len(journal.entries), len(boxes))
        loader = DataLoader(Subset(boxes, left), batch_size=BATCH, num_workers=num_workers, collate_fn=list)
        for batch in loader:
            for item in batch:
                writer.write(item["index"], names[item["index"]], item["image"][0])
            writer.flush()
            keys = ("index", "inside", "mean", "std")
            journal.append([{key: round(float(item[key]), 6) for key in keys} for item in batch])
            if progress:
                progress(len(batch))
        writer.finish()
        located_items = _items(everything, names, journal.entries)
        _write_star(folder / "particles.star", everything, names, journal.entries)
        target = folder / "dataset.json"
        content = {
            "name": "extracted subtomograms",
            "voxel_size": settings.voxel_size,
            "box": settings.box,
            "contrast": sampled_contrast(boxes),
            **_lists(everything.particles.class_names, located_items),
        }
        atomic_write_text(target, listing(content))
    return target


def background_places(
    located: LocatedParticles, number: int, settings: BoxSettings, count: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw places in one tomogram where no particle is: `(count, 3)` voxels.

    Places are uniform among those whose box lies inside the tomogram and whose centre is half a box or more from every
    particle and from each other.

    Parameters
    ----------
    located : LocatedParticles
        All particles of the list.
    number : int
        Which tomogram.
    settings : BoxSettings
        Box and voxel size.
    count : int
        How many.
    rng : Generator
        Draws them.

    Raises
    ------
    InputError
        When no room is found for so many.
    """
    from scipy.spatial import cKDTree

    tomogram = located.tomograms[number]
    edge = settings.box * settings.voxel_size / (tomogram.voxel_size or math.nan)
    low = np.full(3, edge / 2)
    high = np.asarray(tomogram.shape) - 1 - edge / 2
    if np.any(high < low):
        raise InputError(f"{tomogram.path}: {tomogram.shape} is too small for boxes of {edge:.0f} voxels")
    drawn = np.floor(low + rng.random((count * TRIES, 3)) * (high - low + 1)).clip(low, high)
    particles = cKDTree(located.places[located.which == number])
    free = drawn[particles.query(drawn)[0] >= edge / 2]
    found: list[npt.NDArray[np.float64]] = []
    while len(found) < count and len(free):
        found.append(free[0])
        free = free[np.linalg.norm(free - free[0], axis=1) >= edge / 2]
    if len(found) < count:
        raise InputError(
            f"{tomogram.path}: room for {len(found)} background boxes half a box away from every particle, "
            f"not for {count}"
        )
    return np.array(found)


def _with_background(located: LocatedParticles, count: int, settings: BoxSettings, seed: int) -> LocatedParticles:
    """Make one list, in voxels, of the particles and of background drawn away from them."""
    given = located.particles
    if count < 0:
        raise InputError(f"background: {count} must not be negative")
    drawn = [
        background_places(located, number, settings, count, np.random.default_rng([seed, number]))
        for number in range(len(located.tomograms) if count else 0)
    ]
    places = np.concatenate([located.places, *drawn])
    which = np.concatenate([located.which, np.repeat(np.arange(len(drawn)), count)]).astype(np.int64)
    ids = list(given.ids)
    for number, tomogram in enumerate(located.tomograms if count else ()):
        ids += [f"{BACKGROUND}_{tomogram.name}_{row + 1}" for row in range(len(drawn[number]))]
    added = len(places) - len(given)
    rotations = given.rotations
    if rotations is not None:
        rotations = np.concatenate([rotations, np.broadcast_to(np.eye(3), (added, 3, 3))])
    names = [*given.class_names, *[BACKGROUND] * added]
    return list_particles(located.tomograms, which, places, ids=ids, rotations=rotations, class_names=names)


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
    target: Path, located: LocatedParticles, names: Sequence[str], written: Sequence[dict[str, Any]]
) -> None:
    particles = located.particles
    columns = {"rlnImageName": list(names)}
    columns |= {
        f"cryomonai{key.title()}": [f"{entry[key]:g}" for entry in written] for key in ("inside", "mean", "std")
    }
    listed = list_particles(
        located.tomograms,
        located.which,
        located.places,
        ids=particles.ids,
        rotations=particles.rotations,
        class_names=particles.class_names,
        columns=columns,
    )
    write_particles(target, listed.particles)
