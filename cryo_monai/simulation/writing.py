"""Labelled data sets of simulated subtomograms on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cryo_monai
from cryo_monai.datalists import stratified_split
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import Journal, claimed, listing, note_recipe
from cryo_monai.mrc import write_mrc
from cryo_monai.simulation.assemblies import ASSEMBLIES
from cryo_monai.simulation.loading import StructureEntry, load_structures
from cryo_monai.simulation.microscope import missing_wedge_mask
from cryo_monai.simulation.packing import Packing
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.settings import SimulationSettings
from cryo_monai.simulation.structures import Structure
from cryo_monai.simulation.subtomograms import SimulatedBatch, SubtomogramSimulator

Entries = Sequence[str | Mapping[str, Any] | StructureEntry]
BUILT_IN: tuple[str, ...] = tuple(assembly.name for assembly in ASSEMBLIES)
CONTRAST = "density is dark (negative); files in clean/ and structures/ are in V above ice, bright"
# Volumes that are computed at once. It is part of what decides the last bits.
BATCH = 16


def load_classes(
    settings: SimulationSettings,
    structures: Entries = BUILT_IN,
    neighbours: Entries = (),
    *,
    assembly: str = "1",
    structure_dir: str | os.PathLike[str] | None = None,
) -> tuple[list[Structure], list[Structure]]:
    """Load the structures of the classes, and those that only neighbours are drawn from; see `load_structures`."""
    both = [
        load_structures(
            entries,
            voxel_size=settings.voxel_size,
            resolution=settings.low_pass_resolution,
            assembly=assembly,
            structure_dir=structure_dir,
        )
        if entries
        else []
        for entries in (structures, neighbours)
    ]
    if not both[0]:
        raise InputError("structures: none were given")
    return both[0], both[1]


def recipe_of(
    kind: str, settings: SimulationSettings, structures: Sequence[Structure], neighbours: Sequence[Structure]
) -> dict[str, Any]:
    """Everything that decides the data, for JSON."""
    tilts = asdict(settings.tilt_series()) if settings.mode == "tilt_series" else None
    return {
        "kind": kind,
        "simulator": f"cryo-monai {cryo_monai.__version__}",
        "settings": settings.as_json(),
        "tilts": tilts,
        "structures": [{"name": s.name, **s.origin} for s in structures],
        "neighbours_from": [{"name": s.name, **s.origin} for s in neighbours] or "the classes",
    }


def write_dataset(
    output_dir: str | os.PathLike[str],
    settings: SimulationSettings,
    *,
    num_per_class: int = 500,
    structures: Entries = BUILT_IN,
    neighbours: Entries = (),
    assembly: str = "1",
    structure_dir: str | os.PathLike[str] | None = None,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    clean: bool = True,
    device: str | torch.device = "cpu",
    at_start: Callable[[SubtomogramSimulator], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Simulate a data set of subtomograms.

    Written are ``CLASS/NUMBER.mrc``, ``clean/CLASS/NUMBER.mrc`` (the scene before the microscope),
    ``structures/CLASS.mrc``, ``wedge_mask.mrc`` and ``dataset.json``. An interrupted call is continued by the same
    call, which loses at most the batch in hand and gives the same bytes.

    Parameters
    ----------
    output_dir : path
        Created when missing. A folder that holds something else, or a data set of other settings, is refused.
    settings : SimulationSettings
        Size, imaging, noise and seed.
    num_per_class : int
        Volumes per class.
    structures, neighbours : sequence of str or mapping
        The classes (all built-in assemblies by default), and what neighbours are drawn from (the classes by default);
        see `load_structures`.
    assembly, structure_dir : str, path
        See `load_structures`.
    split : sequence of float
        Fractions of training, validation and test, stratified by class.
    clean : bool
        Write the noise-free scenes.
    device : str or torch.device
        Where to compute.
    at_start : callable, optional
        Called with the simulator before the first volume is made.
    progress : callable, optional
        Called with the number of volumes just written, or found written.

    Returns
    -------
    Path
        The ``dataset.json``: a MONAI datalist with class names, all parameters, and the truth of each volume.

    Raises
    ------
    InputError
        For impossible settings or structures, or a folder that is not free.
    """
    if num_per_class < 3:
        raise InputError(f"num_per_class: {num_per_class} is too few for training, validation and test")
    if len(split) != 3 or min(split) <= 0:
        raise InputError(f"split: {list(split)} must be three positive fractions")
    settings.tilt_series()  # a bad file of tilts is to be known before anything is computed
    folder = Path(output_dir)
    with claimed(folder):
        classes, others = load_classes(settings, structures, neighbours, assembly=assembly, structure_dir=structure_dir)
        simulator = SubtomogramSimulator(classes, settings, neighbours=others, device=device)
        recipe = {
            **recipe_of("subtomograms", settings, classes, others),
            "num_per_class": num_per_class,
            "split": list(split),
            "clean": clean,
        }
        note_recipe(folder, recipe)
        write_references(folder, settings, classes)
        if at_start:
            at_start(simulator)
        items: list[dict[str, Any]] = []
        for label, structure in enumerate(classes):
            truths = _write_class(folder, simulator, label, structure.name, num_per_class, clean, progress)
            items += [_item(structure.name, label, settings.voxel_size, clean, truth) for truth in truths]
        names = [structure.name for structure in classes]
        lists = stratified_split(items, names, split, settings.seed, source=str(folder))
        for members in lists.values():
            for item in members:
                del item["path"]
        content = {
            "name": "simulated subtomograms",
            "class_names": names,
            "contrast": CONTRAST,
            "missing_wedge": "wedge_mask.mrc: 1 where measured, zero frequency at voxel n // 2 of each axis",
            "means": means_of(items),
            **recipe,
            **lists,
        }
        target = folder / "dataset.json"
        atomic_write_text(target, listing(content))
    return target


def means_of(items: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of what was measured in volumes or tomograms."""
    means: dict[str, float | None] = {}
    for name in ("snr_measured", "occupancy"):
        values = [item[name] for item in items if item[name] is not None]
        means[name] = round(float(np.mean(values)), 6) if values else None
    return means


def _item(name: str, label: int, voxel_size: float, clean: bool, truth: Mapping[str, Any]) -> dict[str, Any]:
    file = f"{name}/{truth['number']:05d}.mrc"
    item = {"image": file, "path": file, "label": label, "class_name": name, "voxel_size": voxel_size}
    if clean:
        item["clean"] = f"clean/{file}"
    return {**item, **truth}


def write_references(
    folder: Path,
    settings: SimulationSettings,
    structures: Sequence[Structure],
    volume: tuple[int, int, int] | None = None,
) -> None:
    """Write the structures, unrotated in the box of the settings, and the wedge mask, of that box or of a volume."""
    (folder / "structures").mkdir(exist_ok=True)
    renderer = SceneRenderer(structures)
    box = (settings.box,) * 3
    for index, structure in enumerate(structures):
        target = folder / "structures" / f"{structure.name}.mrc"
        if not target.exists():
            alone = Packing(
                np.array([[index]]), np.array([[[1.0, 0, 0, 0]]]), np.zeros((1, 1, 3)), np.zeros((1, *box), np.float32)
            )
            density = renderer.render(alone, box)[0].numpy()
            write_mrc(target, density, voxel_size=settings.voxel_size, label=f"{structure.name}: V above ice")
    mask = folder / "wedge_mask.mrc"
    if not mask.exists():
        lowest, highest = -settings.max_tilt_deg, settings.max_tilt_deg
        if settings.mode == "tilt_series":
            angles = settings.tilt_series().angles_deg
            lowest, highest = angles[0], angles[-1]
        size = volume or box
        full = full_mask(missing_wedge_mask(size, min_tilt_deg=lowest, max_tilt_deg=highest).numpy(), size[2])
        write_mrc(mask, full, voxel_size=settings.voxel_size, label="Fourier space: 1 where measured")


def full_mask(half: np.ndarray, size: int) -> np.ndarray:
    """Full mask, int8, with the zero frequency at voxel ``n // 2``, of one on the grid of ``torch.fft.rfftn``."""
    # The value at a frequency is that at its opposite.
    opposite = half[(-np.arange(half.shape[0])) % half.shape[0]][:, (-np.arange(half.shape[1])) % half.shape[1]]
    rest = opposite[:, :, 1 : (size + 1) // 2][:, :, ::-1]
    return np.fft.fftshift(np.concatenate([half, rest], axis=2)).astype(np.int8)


def _write_class(
    folder: Path,
    simulator: SubtomogramSimulator,
    label: int,
    name: str,
    count: int,
    clean: bool,
    progress: Callable[[int], object] | None,
) -> list[dict[str, Any]]:
    """Write the volumes of one class that are not there yet, and return the truth of all."""
    journal = Journal(folder / "truth" / f"{name}.jsonl")
    (folder / name).mkdir(exist_ok=True)
    if clean:
        (folder / "clean" / name).mkdir(parents=True, exist_ok=True)
    for start in range(0, count, BATCH):
        # Whole batches, so that a resumed call computes what an uninterrupted one would have.
        numbers = range(start, min(start + BATCH, count))
        files = [f"{name}/{number:05d}.mrc" for number in numbers]
        wanted = [folder / file for file in files] + [folder / "clean" / file for file in files if clean]
        if numbers[-1] >= len(journal.entries) or not all(file.is_file() for file in wanted):
            batch = simulator.simulate(label, numbers)
            _write_batch(folder, files, batch, simulator.settings.voxel_size, clean)
            journal.append([truth for truth in batch.truth if truth["number"] >= len(journal.entries)])
        if progress:
            progress(len(numbers))
    return journal.entries


def _write_batch(folder: Path, files: Sequence[str], batch: SimulatedBatch, voxel_size: float, clean: bool) -> None:
    for file, volume, scene in zip(files, batch.volumes.cpu().numpy(), batch.clean.cpu().numpy(), strict=True):
        write_mrc(folder / file, volume, voxel_size=voxel_size, label="simulated by cryo-monai: density is dark")
        if clean:
            write_mrc(folder / "clean" / file, scene, voxel_size=voxel_size, label="V above ice: density is bright")
