"""Negative controls: data sets on which a network must be at chance, unless labels or backgrounds leak.

Only data are made here; a network is trained on them as on any other data set, and its accuracy compared with
`chance_interval`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.datalists import SPLITS, Datalist, Item, load_datalist
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import listing
from cryo_monai.mrc import write_mrc
from cryo_monai.volumes import checked_volume, read_volume, volume_facts


def write_shuffled_labels(
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_by: str = "volume",
    seed: int = 0,
    permissive: bool = False,
    nan: str = "error",
) -> Path:
    """Write a datalist of the same volumes whose labels are permuted within each split.

    What a network still learns of these labels tells of the evaluation (a volume in two splits, say), not of the
    volumes. Class counts stay as they are.

    Parameters
    ----------
    dataset_dir : path
        See `load_datalist`.
    output_dir : path
        New or empty. Volumes are not copied but referred to by absolute path.
    split, split_by, permissive, nan
        See `load_datalist`.
    seed : int
        Seed of the split and of the permutations.

    Returns
    -------
    Path
        The ``dataset.json``.

    Raises
    ------
    InputError, DatasetError
        When the folder holds something already, or for what `load_datalist` refuses.
    """
    folder = _empty(Path(output_dir))
    options: dict[str, Any] = {"split": split, "split_by": split_by, "permissive": permissive, "nan": nan}
    datalist = load_datalist(dataset_dir, seed=seed, **options)
    lists: dict[str, list[Item]] = {}
    for number, name in enumerate(SPLITS):
        items = datalist[name]
        order = np.random.default_rng([seed, number]).permutation(len(items))
        lists[name] = [
            {"image": os.path.abspath(item["image"]), "label": items[other]["label"], **_origin(item)}
            for item, other in zip(items, order, strict=True)
        ]
    note = "Labels permuted within each split: a negative control."
    return _write_datalist(folder, note, dataset_dir, {"seed": seed}, datalist, lists)


def write_background_only(
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    radius: float = 0.8,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    split_by: str = "volume",
    seed: int = 0,
    permissive: bool = False,
    nan: str = "error",
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write the same data set with the particles replaced by noise that resembles their surroundings.

    A network at chance on these volumes tells classes by the particles. One above chance tells them by what lies
    around: by the tomogram or grid they were picked from, but also by neighbours, by a particle that is larger than the
    sphere or off the centre, or by its streaks along the missing wedge, which reach beyond any sphere. Compare
    several radii before calling it leakage.

    Parameters
    ----------
    dataset_dir : path
        See `load_datalist`.
    output_dir : path
        New or empty. Written are ``volumes/NUMBER.mrc`` (float32, with the voxel size of the volume, 0 where that is
        unknown) and ``dataset.json`` with the same splits and labels.
    radius : float
        Of the sphere, relative to half the shortest edge of the box: above 0, at most 1. See `without_particle`.
    split, split_by, permissive, nan
        See `load_datalist`.
    seed : int
        Seed of the split and, with the number of the volume, of the noise.
    progress : callable, optional
        Called with the number of volumes just written.

    Returns
    -------
    Path
        The ``dataset.json``.

    Raises
    ------
    InputError, DatasetError
        When the folder holds something already, for an impossible radius, a volume that cannot be used, or what
        `load_datalist` refuses.
    """
    _check_radius(radius)
    folder = _empty(Path(output_dir))
    options: dict[str, Any] = {"split": split, "split_by": split_by, "permissive": permissive, "nan": nan}
    datalist = load_datalist(dataset_dir, seed=seed, **options)
    every = [item for name in SPLITS for item in datalist[name]]
    names = [f"volumes/{number:06d}.mrc" for number in range(len(every))]
    (folder / "volumes").mkdir(parents=True)

    def write(number: int) -> None:
        image = every[number]["image"]
        volume = checked_volume(read_volume(image, permissive=permissive), str(image), nan=nan)[0].numpy()
        masked = without_particle(volume, np.random.default_rng([seed, number]), radius=radius)
        size = volume_facts(image, permissive=permissive).voxel_size or 0.0
        write_mrc(folder / names[number], masked, voxel_size=size, label="particle replaced by noise")

    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(write, range(len(every))):
                if progress:
                    progress(1)
    except InputError:
        shutil.rmtree(folder / "volumes")  # the same call works when the data have been mended
        raise
    lists: dict[str, list[Item]] = {}
    remaining = iter(names)
    for name in SPLITS:
        lists[name] = [
            {
                "image": next(remaining),
                "label": item["label"],
                **_origin(item),
                "original": os.path.abspath(item["path"]),
            }
            for item in datalist[name]
        ]
    note = "Particles replaced by noise: a negative control."
    return _write_datalist(folder, note, dataset_dir, {"seed": seed, "radius": radius}, datalist, lists)


def without_particle(
    volume: npt.NDArray[np.float32], rng: np.random.Generator, *, radius: float = 0.8
) -> npt.NDArray[np.float32]:
    """Replace a sphere around the centre by noise with the spectrum, mean and deviation of what is around it.

    The noise has the Fourier amplitudes of the surroundings (the volume with the sphere set to their mean), so that it
    has their resolution and their missing wedge, and random phases. The edge is sharp, for a soft one would keep a part
    of the particle: the result depends on nothing that was in the sphere, and outside nothing changes.

    Parameters
    ----------
    volume : array
        `(z, y, x)`.
    rng : Generator
        Draws the phases.
    radius : float
        Relative to half the shortest edge; the centre is voxel ``n // 2``.

    Raises
    ------
    InputError
        For an impossible radius.
    """
    _check_radius(radius)
    grids = np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in volume.shape)]
    inside = sum(grid**2 for grid in grids) <= (radius * min(volume.shape) / 2) ** 2
    around = volume[~inside].astype(float)
    mean, deviation = around.mean(), around.std()
    amplitudes = np.abs(np.fft.rfftn(np.where(inside, 0.0, volume - mean)))
    phases = np.fft.rfftn(rng.normal(size=volume.shape))
    noise = np.fft.irfftn(amplitudes * phases / np.maximum(np.abs(phases), 1e-12), s=volume.shape, axes=(0, 1, 2))
    noise *= deviation / max(float(noise.std()), 1e-12)
    return np.where(inside, (mean + noise).astype(np.float32), volume)


def chance_interval(counts: Sequence[int], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the accuracy of always naming the most frequent class, and the highest that chance is likely to reach.

    Parameters
    ----------
    counts : sequence of int
        Volumes of each class in the test split.
    confidence : float
        Probability that guesses, each right with the first of the two accuracies, stay at or below the second: a
        quantile of the binomial distribution.

    Raises
    ------
    InputError
        For counts that are negative or all zero, or a confidence outside of 0 to 1.
    """
    from scipy.stats import binom

    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise InputError(f"counts: {list(counts)} are not numbers of volumes")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} is not between 0 and 1")
    share = max(counts) / total
    return share, float(binom.ppf(confidence, total, share)) / total


def _check_radius(radius: float) -> None:
    if not 0 < radius <= 1:
        raise InputError(f"radius: {radius} is not above 0 and at most 1 (half the shortest edge of the box)")


def _empty(folder: Path) -> Path:
    """Return a folder that is there and empty.

    Raises
    ------
    InputError
        When it holds something or cannot be made.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty; choose another --output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder


def _origin(item: Item) -> Item:
    """Keep the source of an item where it is known."""
    return {"source": item["source"]} if item.get("source") else {}


def _write_datalist(
    folder: Path,
    description: str,
    dataset_dir: str | os.PathLike[str],
    settings: dict[str, Any],
    datalist: Datalist,
    lists: dict[str, list[Item]],
) -> Path:
    target = folder / "dataset.json"
    content = {
        "description": description,
        "made_from": os.path.abspath(dataset_dir),
        **settings,
        "class_names": datalist["class_names"],
        **lists,
    }
    atomic_write_text(target, listing(content))
    return target
