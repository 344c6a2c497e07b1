"""Whole crowded tomograms, with particle lists and segmentations, for picking."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import Journal, claimed, listing, note_recipe
from cryo_monai.mrc import write_mrc
from cryo_monai.rotations import relion_angles, rotation_matrices
from cryo_monai.simulation.imaging import TiltSeriesMicroscope, add_up, draw_exposure
from cryo_monai.simulation.packing import Packing, pack_tomogram
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.settings import SimulationSettings
from cryo_monai.simulation.structures import Structure
from cryo_monai.simulation.writing import (
    BUILT_IN,
    CONTRAST,
    Entries,
    load_classes,
    means_of,
    recipe_of,
    write_references,
)

# Separates the random numbers of tomograms from those of subtomograms.
_STREAM = 7


def write_tomograms(
    output_dir: str | os.PathLike[str],
    settings: SimulationSettings,
    *,
    num_tomograms: int = 1,
    size: tuple[int, int, int] = (64, 256, 256),
    num_particles: int = 200,
    structures: Entries = BUILT_IN,
    assembly: str = "1",
    structure_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Simulate tomograms with known particles.

    Written for each are ``NAME.mrc`` (the tomogram), ``NAME_clean.mrc`` (density in V above ice) and
    ``NAME_segmentation.mrc`` (0, or label + 1); for all, ``particles.star`` and ``particles.csv``, ``structures/``,
    ``wedge_mask.mrc``, and ``tomograms.json``. Finished tomograms are kept when the call is repeated.

    Parameters
    ----------
    output_dir : path
        As in `write_dataset`.
    settings : SimulationSettings
        In mode ``tilt_series``; box, shift and neighbours play no part. The SNR is over the whole tomogram.
    num_tomograms : int
        How many.
    size : tuple of int
        ``(z, y, x)`` in voxels, even.
    num_particles : int
        In each tomogram, of all classes together, drawn with equal probability.
    structures, assembly, structure_dir, device
        As in `write_dataset`.
    progress : callable, optional
        Called with 1 for each tomogram.

    Returns
    -------
    Path
        ``particles.star``: RELION's columns. Coordinates are voxels from 0, ``(n // 2)`` being the centre.

    Raises
    ------
    InputError
        For impossible settings, structures or packings, or a folder that is not free.
    """
    if settings.mode != "tilt_series":
        raise InputError("tomograms: simulated in mode tilt_series only")
    if num_tomograms < 1 or num_particles < 1 or len(size) != 3 or min(size) < 16 or any(n % 2 for n in size):
        raise InputError(
            f"tomograms: {num_tomograms} of {size} voxels with {num_particles} particles; give positive numbers, "
            "and three even edges of 16 or more"
        )
    settings.tilt_series()  # a bad file of tilts is to be known before anything is computed
    folder = Path(output_dir)
    with claimed(folder):
        classes, _ = load_classes(settings, structures, assembly=assembly, structure_dir=structure_dir)
        recipe = {
            **recipe_of("tomograms", settings, classes, []),
            "num_tomograms": num_tomograms,
            "size": list(size),
            "num_particles": num_particles,
        }
        # Whether so many find room is known before anything is written.
        _pack(settings, 0, classes, num_particles, size)
        note_recipe(folder, recipe)
        write_references(folder, settings, classes, size)
        journal = Journal(folder / "truth" / "tomograms.jsonl")
        if progress and journal.entries:
            progress(len(journal.entries))
        if len(journal.entries) < num_tomograms:
            renderer = SceneRenderer(classes, device)
            microscope = TiltSeriesMicroscope(settings, size, size, device)
            for number in range(len(journal.entries), num_tomograms):
                journal.append([_write_one(folder, number, settings, classes, num_particles, renderer, microscope)])
                if progress:
                    progress(1)
        rows = [row for tomogram in journal.entries for row in tomogram["particles"]]
        target = _write_particles(folder, rows, settings.voxel_size)
        content = {
            "name": "simulated tomograms",
            "class_names": [s.name for s in classes],
            "contrast": CONTRAST,
            "means": means_of(journal.entries),
            **recipe,
            "tomograms": [{k: v for k, v in tomogram.items() if k != "particles"} for tomogram in journal.entries],
        }
        atomic_write_text(folder / "tomograms.json", listing(content))
    return target


def _pack(
    settings: SimulationSettings,
    number: int,
    classes: Sequence[Structure],
    num_particles: int,
    size: tuple[int, int, int],
) -> tuple[Packing, np.random.Generator]:
    """Pack a tomogram; the generator goes on from there."""
    rng = np.random.default_rng([settings.seed, _STREAM, number])
    return pack_tomogram(classes, num_particles, rng, voxel_size=settings.voxel_size, shape=size), rng


def _write_one(
    folder: Path,
    number: int,
    settings: SimulationSettings,
    classes: Sequence[Structure],
    num_particles: int,
    renderer: SceneRenderer,
    microscope: TiltSeriesMicroscope,
) -> dict[str, Any]:
    name = f"tomogram_{number:03d}"
    size = microscope.box
    packing, rng = _pack(settings, number, classes, num_particles, size)
    density = renderer.render(packing, size)
    exposure = draw_exposure(settings, microscope.num_tilts, rng)
    white = None
    if np.isfinite(settings.snr):
        drawn = rng.standard_normal((1, *microscope.noise_shape), dtype=np.float32)
        white = torch.from_numpy(drawn).to(microscope.device)
    imaged = microscope.image(density, [exposure], white)
    volumes, ratios = add_up(imaged, snr=settings.snr)
    measured = None if ratios is None else round(float(ratios[0]), 6)
    voxel_size = settings.voxel_size
    segmentation = _segmentation(renderer, packing, classes, size)
    for suffix, data, label in (
        ("", volumes[0].cpu().numpy(), "simulated by cryo-monai: density is dark"),
        ("_clean", density[0].cpu().numpy(), "V above ice: density is bright"),
        ("_segmentation", segmentation, "0 or class label + 1"),
    ):
        write_mrc(folder / f"{name}{suffix}.mrc", data, voxel_size=voxel_size, label=label)
    return {
        "tomogram": f"{name}.mrc",
        "clean": f"{name}_clean.mrc",
        "segmentation": f"{name}_segmentation.mrc",
        "seed": [settings.seed, _STREAM, number],
        "snr_nominal": None if measured is None else settings.snr,
        "snr_measured": measured,
        "defocus_um": round(float(exposure.defocus_um.mean()), 4),
        "occupancy": round(float(packing.occupied.mean()), 6),
        "particles": _rows(name, packing, classes, size),
    }


def _segmentation(
    renderer: SceneRenderer, packing: Packing, classes: Sequence[Structure], size: tuple[int, int, int]
) -> np.ndarray:
    """Label + 1 where the density of a class is above its surface's level."""
    labels = np.zeros(size, dtype=np.int16)
    for label, structure in enumerate(classes):
        of_class = packing.members[0] == label
        alone = Packing(
            packing.members[:, of_class],
            packing.quaternions[:, of_class],
            packing.positions[:, of_class],
            packing.occupied,
        )
        labels[(renderer.render(alone, size)[0] >= structure.level).cpu().numpy()] = label + 1
    return labels


def _rows(
    name: str, packing: Packing, classes: Sequence[Structure], size: tuple[int, int, int]
) -> list[dict[str, Any]]:
    angles = relion_angles(rotation_matrices(packing.quaternions[0]))
    places = packing.positions[0] + np.array([n // 2 for n in size])
    return [
        {
            "rlnTomoName": name,
            "rlnCoordinateX": round(float(place[2]), 4),
            "rlnCoordinateY": round(float(place[1]), 4),
            "rlnCoordinateZ": round(float(place[0]), 4),
            "rlnAngleRot": round(float(angle[0]), 4),
            "rlnAngleTilt": round(float(angle[1]), 4),
            "rlnAnglePsi": round(float(angle[2]), 4),
            "rlnClassNumber": int(label) + 1,
            "className": classes[label].name,
        }
        for place, angle, label in zip(places, angles, packing.members[0], strict=True)
    ]


def _write_particles(folder: Path, rows: list[dict[str, Any]], voxel_size: float) -> Path:
    import pandas as pd
    import starfile

    table = pd.DataFrame(rows)
    optics = pd.DataFrame(
        [{"rlnOpticsGroup": 1, "rlnOpticsGroupName": "simulated", "rlnTomoTiltSeriesPixelSize": voxel_size}]
    )
    target = folder / "particles.star"
    temporary = folder / ".particles.star"
    starfile.write({"optics": optics, "particles": table.assign(rlnOpticsGroup=1)}, temporary)
    # starfile heads its files with the time; the same call is to give the same bytes.
    lines = [line for line in temporary.read_text().splitlines() if not line.startswith("#")]
    temporary.unlink()
    atomic_write_text(target, "\n".join(lines) + "\n")
    named = table.rename(
        columns={"rlnTomoName": "tomogram", "className": "class_name", "rlnClassNumber": "label"}
        | {f"rlnCoordinate{axis}": axis.lower() for axis in "XYZ"}
        | {f"rlnAngle{angle}": angle.lower() for angle in ("Rot", "Tilt", "Psi")}
    )
    atomic_write_text(folder / "particles.csv", named.assign(label=named["label"] - 1).to_csv(index=False))
    return target
