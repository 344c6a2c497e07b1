"""Labelled data sets of simulated subtomograms, with the truth of every volume."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryo_monai.datalists import stratified_split
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.mrc import write_mrc
from cryo_monai.simulation.microscope import ctf_3d, missing_wedge_mask
from cryo_monai.simulation.assemblies import Assembly, assemblies_by_name, render_density


@dataclass(frozen=True)
class SimulationSettings:
    """Everything that decides a simulated volume besides its class and number.

    Attributes
    ----------
    box : int
        Edge of the volumes in voxels.
    voxel_size, resolution : float
        Å.
    snr : float
        Nominal signal-to-noise ratio: variance of the signal over variance of the noise, both over the whole box and
        after contrast transfer, envelope and missing wedge. ``inf`` leaves the noise out.
    max_tilt_deg : float
        Tilt range, one side.
    defocus_um : float
        Underfocus.
    max_shift : float
        Largest shift of the particle from the box centre along each axis, in voxels.
    seed : int
        Same seed, same data.
    """

    box: int = 32
    voxel_size: float = 10.0
    resolution: float = 25.0
    snr: float = 0.03
    max_tilt_deg: float = 60.0
    defocus_um: float = 5.0
    max_shift: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "box": self.box >= 8,
            "voxel_size": self.voxel_size > 0,
            "resolution": self.resolution > 0,
            "snr": self.snr > 0,
            "max_tilt_deg": 0 < self.max_tilt_deg <= 90,
            "defocus_um": self.defocus_um > 0,
            "max_shift": 0 <= self.max_shift < self.box / 4,
        }
        broken = [f"{name}={getattr(self, name)}" for name, kept in rules.items() if not kept]
        if broken:
            raise InputError(f"simulation: impossible {', '.join(broken)}")


@dataclass(frozen=True)
class SimulatedBatch:
    """Volumes `(B, z, y, x)`, and for each its truth: pose, shift, nominal and measured SNR."""

    volumes: Tensor
    truth: list[dict[str, Any]]


def _random_quaternion(rng: np.random.Generator) -> np.ndarray:
    """Uniform on the unit sphere of quaternions, hence uniform on SO(3) (Shoemake 1992)."""
    quaternion = rng.normal(size=4)
    quaternion /= np.linalg.norm(quaternion)
    return np.asarray(quaternion if quaternion[0] >= 0 else -quaternion)


def rotation_from_quaternion(quaternion: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation matrix `(3, 3)` on ``(z, y, x)`` vectors of a unit quaternion ``(w, z, y, x)``."""
    w, a, b, c = (float(q) for q in quaternion)
    return np.asarray(
        [
            [1 - 2 * (b * b + c * c), 2 * (a * b - c * w), 2 * (a * c + b * w)],
            [2 * (a * b + c * w), 1 - 2 * (a * a + c * c), 2 * (b * c - a * w)],
            [2 * (a * c - b * w), 2 * (b * c + a * w), 1 - 2 * (a * a + b * b)],
        ]
    )


def simulate_batch(
    assembly: Assembly,
    numbers: Sequence[int],
    settings: SimulationSettings,
    *,
    class_seed: int = 0,
    device: str | torch.device = "cpu",
) -> SimulatedBatch:
    """Simulate some volumes of one assembly.

    Signal: blobs in a random pose -> contrast transfer x missing wedge. Noise of variance 1: half of it (in variance)
    passes the contrast transfer function, all of it the wedge. The signal is scaled to the nominal SNR over that noise,
    so that mean and variance of a volume say nothing of its class. (At equal SNR over the box, the convention of the
    field, a small particle is brighter than a large one.)

    Parameters
    ----------
    assembly : Assembly
        What is imaged.
    numbers : sequence of int
        Which volumes of the class; each is drawn from (seed, class seed, number) alone.
    settings : SimulationSettings
        Size, imaging and noise.
    class_seed : int
        Separates the random numbers of classes.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    SimulatedBatch
        Volumes and truths. With infinite SNR, noise-free volumes of variance 1.
    """
    box = (settings.box,) * 3
    positions, masses = assembly.blobs()
    generators = [np.random.default_rng([settings.seed, class_seed, number]) for number in numbers]
    quaternions = [_random_quaternion(rng) for rng in generators]
    shifts = [rng.uniform(-settings.max_shift, settings.max_shift, size=3) for rng in generators]
    noise = np.stack([rng.standard_normal((2, *box), dtype=np.float32) for rng in generators])
    posed = [
        positions @ rotation_from_quaternion(q).T + shift * settings.voxel_size
        for q, shift in zip(quaternions, shifts, strict=True)
    ]
    density = render_density(
        torch.as_tensor(np.stack(posed), dtype=torch.float32, device=device),
        torch.as_tensor(masses, dtype=torch.float32, device=device),
        box=box,
        voxel_size=settings.voxel_size,
        resolution=settings.resolution,
    )
    transfer = ctf_3d(box, settings.voxel_size, defocus_um=settings.defocus_um).to(device)
    wedge = missing_wedge_mask(box, max_tilt_deg=settings.max_tilt_deg).to(device)
    signal = _filtered(density, transfer * wedge)
    signal = (signal - signal.mean((1, 2, 3), keepdim=True)) / signal.std((1, 2, 3), keepdim=True)
    if np.isinf(settings.snr):
        volumes, measured = signal, torch.full((len(generators),), torch.inf)
    else:
        fields = torch.as_tensor(noise, device=device)
        background = _unit_noise(fields[:, 0], transfer * wedge) + _unit_noise(fields[:, 1], wedge)
        background *= 0.5**0.5
        signal = signal * settings.snr**0.5
        volumes = signal + background
        measured = signal.var((1, 2, 3)) / background.var((1, 2, 3))
    truth = [
        {
            "number": number,
            "quaternion_wzyx": [round(float(q), 8) for q in quaternion],
            "shift_voxels_zyx": [round(float(s), 6) for s in shift],
            "snr_nominal": settings.snr,
            "snr_measured": round(float(ratio), 6),
        }
        for number, quaternion, shift, ratio in zip(numbers, quaternions, shifts, measured, strict=True)
    ]
    return SimulatedBatch(volumes=volumes, truth=truth)


def _filtered(volumes: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.rfftn(volumes, dim=(1, 2, 3)) * transfer
    filtered: Tensor = torch.fft.irfftn(spectrum, s=volumes.shape[1:], dim=(1, 2, 3))
    return filtered


def _unit_noise(white: Tensor, transfer: Tensor) -> Tensor:
    """White noise through a filter, scaled by the filter's expected gain so that its variance is 1 on average."""
    size_x = white.shape[-1]
    # Columns of the half-spectrum that stand for two coefficients.
    weight = torch.full((transfer.shape[-1],), 2.0, device=transfer.device)
    weight[0] = 1.0
    if size_x % 2 == 0:
        weight[-1] = 1.0
    gain = ((transfer**2) * weight).sum() / white[0].numel()
    return _filtered(white, transfer) / gain.sqrt()


def write_dataset(
    output_dir: str | os.PathLike[str],
    settings: SimulationSettings,
    *,
    num_per_class: int = 500,
    classes: tuple[str, ...] | None = None,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Simulate a data set: MRC files in one folder per class, and ``dataset.json``.

    An interrupted call is continued by the same call; classes that are complete are kept.

    Parameters
    ----------
    output_dir : path
        Created when missing. A folder that holds a data set of other settings is refused.
    settings : SimulationSettings
        Size, imaging, noise and seed.
    num_per_class : int
        Volumes per class.
    classes : tuple of str, optional
        Names of built-in assemblies; all ten by default.
    split : sequence of float
        Fractions of training, validation and test, stratified by class.
    batch_size : int
        Volumes computed at once; does not change them.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with the number of volumes just written.

    Returns
    -------
    Path
        The ``dataset.json``: a MONAI datalist with class names, settings, and the truth of each volume.

    Raises
    ------
    InputError
        For unknown classes or impossible settings, or when the folder holds something else.
    """
    if num_per_class < 3:
        raise InputError(f"num_per_class: {num_per_class} is too few for training, validation and test")
    assemblies = assemblies_by_name(classes)
    folder = Path(output_dir)
    recipe = {"settings": asdict(settings), "num_per_class": num_per_class, "classes": [a.name for a in assemblies]}
    _claim(folder, recipe)
    items: list[dict[str, Any]] = []
    for label, assembly in enumerate(assemblies):
        truths = _write_class(folder, assembly, settings, num_per_class, batch_size, device, progress)
        items += [
            {
                "image": f"{assembly.name}/{truth['number']:05d}.mrc",
                "path": f"{assembly.name}/{truth['number']:05d}.mrc",
                "label": label,
                "class_name": assembly.name,
                "voxel_size": settings.voxel_size,
                **truth,
            }
            for truth in truths
        ]
    names = [assembly.name for assembly in assemblies]
    lists = stratified_split(items, names, split, settings.seed, source=str(folder))
    for members in lists.values():
        for item in members:
            del item["path"]
    content = {
        "name": "simulated subtomograms of built-in assemblies",
        "class_names": names,
        "assemblies": [{**asdict(a), "mass_kda": round(a.mass_kda, 1)} for a in assemblies],
        "contrast": "density is dark (negative)",
        **recipe,
        **lists,
    }
    target = folder / "dataset.json"
    atomic_write_text(target, json.dumps(content, indent=1) + "\n")
    return target


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Note in the folder what is being simulated, or check that the note there says the same."""
    note = folder / "simulation.json"
    # A round trip through JSON, so that tuples and lists compare equal.
    wanted = json.loads(json.dumps(recipe))
    if note.is_file():
        if json.loads(note.read_text()) != wanted:
            raise InputError(f"{folder}: holds a simulation with other settings; choose another --output_dir")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty and not a simulation; choose another --output_dir")
    atomic_write_text(note, json.dumps(wanted, indent=1) + "\n")


def _write_class(
    folder: Path,
    assembly: Assembly,
    settings: SimulationSettings,
    num_per_class: int,
    batch_size: int,
    device: str | torch.device,
    progress: Callable[[int], object] | None,
) -> list[dict[str, Any]]:
    """Write the volumes of one class, then its truth; return the truth at once when it is already there."""
    record = folder / f"{assembly.name}.truth.json"
    if record.is_file():
        kept: list[dict[str, Any]] = json.loads(record.read_text())
        if progress:
            progress(len(kept))
        return kept
    volumes_dir = folder / assembly.name
    volumes_dir.mkdir(exist_ok=True)
    truths: list[dict[str, Any]] = []
    for start in range(0, num_per_class, batch_size):
        numbers = range(start, min(start + batch_size, num_per_class))
        batch = simulate_batch(assembly, numbers, settings, class_seed=assembly.seed, device=device)
        for truth, volume in zip(batch.truth, batch.volumes.cpu().numpy(), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                write_mrc(volumes_dir / f"{truth['number']:05d}.mrc", volume, voxel_size=settings.voxel_size)
        truths += batch.truth
        if progress:
            progress(len(numbers))
    atomic_write_text(record, json.dumps(truths, indent=1) + "\n")
    return truths
