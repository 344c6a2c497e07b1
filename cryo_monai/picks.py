"""Tomograms -> picked particles: blobs, ranked by templates when there are any, kept from one call to the next."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import cryo_monai
from cryo_monai.errors import InputError
from cryo_monai.folders import Journal, claimed, note_recipe
from cryo_monai.locations import LocatedParticles, list_particles
from cryo_monai.particles import write_particles
from cryo_monai.picking import Template, far_apart, pick_blobs, rank_by_templates, templates_from, top_per_class
from cryo_monai.tomograms import Tomogram


@dataclass(frozen=True)
class PickSettings:
    """How particles are sought; lengths in Å.

    Attributes
    ----------
    sigma : float
        Of the narrower Gaussian; 70 Å is what the paper's route takes.
    ratio : float
        Wider to narrower Gaussian.
    threshold : float
        t in mean + t (max - mean) / 20 of the response.
    bright : bool
        Seek density that is brighter than what is around it.
    min_distance : float
        Between picks; 0 for sigma.
    border : float
        Of the tomogram, without picks.
    max_picks : int
        In each tomogram, the strongest; 0 for all.
    templates : tuple of str
        Maps, atomic models, PDB ids or built-in assemblies, as in `load_structures`; without them picks have no class.
    angular_step_deg : float
        Of the rotational search.
    min_tilt_deg, max_tilt_deg : float
        Tilt range, which is the template's missing wedge too.
    low_pass : float
        Å, of the correlation; 0 for Nyquist.
    shift : float
        How far about a pick the centre is sought; picks that come closer than ``min_distance`` then become one.
    template_box : int
        Edge of templates in voxels.
    top : int
        Picks that are kept of each template, over all tomograms; 0 for all.
    assembly : str
        Of atomic models; see `load_structures`.
    """

    sigma: float = 70.0
    ratio: float = 1.1
    threshold: float = 3.0
    bright: bool = False
    min_distance: float = 0.0
    border: float = 0.0
    max_picks: int = 0
    templates: tuple[str, ...] = ()
    angular_step_deg: float = 30.0
    min_tilt_deg: float = -60.0
    max_tilt_deg: float = 60.0
    low_pass: float = 0.0
    shift: float = 30.0
    template_box: int = 32
    top: int = 0
    assembly: str = "1"

    def __post_init__(self) -> None:
        for name in ("sigma", "ratio", "threshold", "angular_step_deg"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name}: {value} must be positive")
        for name in ("min_distance", "border", "max_picks", "low_pass", "shift", "top"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: {getattr(self, name)} must not be negative")
        if self.top and not self.templates:
            raise InputError("top: needs templates, which make the classes; max_picks limits picks without them")


def pick_tomograms(
    tomograms: Sequence[Tomogram],
    output_dir: str | os.PathLike[str],
    settings: PickSettings,
    *,
    structure_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int], object] | None = None,
) -> LocatedParticles:
    """Pick particles in tomograms and write ``picks.star``; ``picking.json`` holds the settings.

    Tomograms that are done are kept: an interrupted call is continued by the same call.

    Parameters
    ----------
    tomograms : sequence of Tomogram
        Of known voxel size.
    output_dir : path
        Created when missing; one that holds something else, or picks of other settings, is refused.
    settings : PickSettings
        How.
    structure_dir : path, optional
        See `load_structures`.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with the name of the tomogram, the steps done in it, and its steps.

    Returns
    -------
    LocatedParticles
        By falling score: that of the template, or the blob's response. With templates, of the best one: class, pose
        and place.

    Raises
    ------
    InputError
        For impossible settings, unusable templates or tomograms, no pick at all, or a folder that is not free.
    """
    folder = Path(output_dir)
    templates = _templates(tomograms, settings, structure_dir)
    with claimed(folder, "picking"):
        recipe = {
            "made_by": f"cryo-monai {cryo_monai.__version__}",
            "settings": asdict(settings),
            "tomograms": [
                {"file": str(t.path), "shape": t.shape, "voxel_size": t.voxel_size, "state": t.state[1]}
                for t in tomograms
            ],
            "templates": {
                f"{made.name} at {size:g} Å": hashlib.sha256(made.density.tobytes()).hexdigest()
                for size, all_made in templates.items()
                for made in all_made
            },
        }
        note_recipe(folder, recipe, "picking")
        journal = Journal(folder / "progress" / "picks.jsonl")
        for tomogram in tomograms[len(journal.entries) :]:
            made = templates[tomogram.voxel_size or math.nan] if settings.templates else []
            journal.append([_pick_one(tomogram, settings, made, device, progress)])
        found = _selected(tomograms, journal.entries, settings)
        write_particles(folder / "picks.star", found.particles)
    return found


def _templates(
    tomograms: Sequence[Tomogram], settings: PickSettings, structure_dir: str | os.PathLike[str] | None
) -> dict[float, list[Template]]:
    """Make templates for each voxel size, before anything is picked."""
    made: dict[float, list[Template]] = {}
    for size in sorted({tomogram.voxel_size or math.nan for tomogram in tomograms} if settings.templates else ()):
        if round(settings.shift / size) > settings.template_box // 4:
            raise InputError(
                f"shift: {settings.shift:g} Å are more than a quarter of templates of {settings.template_box} voxels "
                f"of {size:g} Å; give less, or a larger template_box"
            )
        made[size] = templates_from(
            settings.templates,
            voxel_size=size,
            resolution=max(2 * size, settings.low_pass),
            box=settings.template_box,
            structure_dir=structure_dir,
            assembly=settings.assembly,
        )
    return made


def _pick_one(
    tomogram: Tomogram,
    settings: PickSettings,
    templates: Sequence[Template],
    device: str | torch.device,
    progress: Callable[[str, int, int], object] | None,
) -> dict[str, Any]:
    """Everything about the picks of one tomogram, for JSON."""
    size = tomogram.voxel_size or math.nan
    step = None if progress is None else lambda done, steps: progress(f"picking {tomogram.name}", done, steps)
    peaks = pick_blobs(
        tomogram,
        sigma=settings.sigma / size,
        ratio=settings.ratio,
        threshold=settings.threshold,
        dark=not settings.bright,
        min_distance=(settings.min_distance or settings.sigma) / size,
        border=math.ceil(settings.border / size),
        max_picks=settings.max_picks or None,
        device=device,
        progress=step,
    )
    entry: dict[str, Any] = {
        "tomogram": tomogram.name,
        "positions": peaks.positions.tolist(),
        "responses": [float(f"{value:.6g}") for value in peaks.values],
    }
    if not templates or not len(peaks.values):
        return entry
    rank = None if progress is None else lambda done, steps: progress(f"ranking {tomogram.name}", done, steps)
    ranking = rank_by_templates(
        tomogram,
        peaks.positions,
        templates,
        angular_step_deg=settings.angular_step_deg,
        wedge_deg=(settings.min_tilt_deg, settings.max_tilt_deg),
        low_pass=settings.low_pass or None,
        dark=not settings.bright,
        shift=round(settings.shift / size),
        device=device,
        progress=rank,
    )
    best = ranking.scores.argmax(axis=1)
    rows = np.arange(len(best))
    return {
        **entry,
        "names": list(ranking.names),
        "scores": np.round(ranking.scores, 5).tolist(),
        "rotations": np.round(ranking.rotations[rows, best], 6).tolist(),
        "shifts": np.round(ranking.shifts[rows, best], 3).tolist(),
    }


def _selected(
    tomograms: Sequence[Tomogram], entries: Sequence[dict[str, Any]], settings: PickSettings
) -> LocatedParticles:
    """Put the picks of all tomograms into one list, the best of each class when asked for."""
    which = np.concatenate([np.full(len(entry["positions"]), number) for number, entry in enumerate(entries)])
    if not len(which):
        raise InputError(
            "no blob is above the threshold in any tomogram; lower --threshold, or see --sigma and --bright"
        )
    places = np.concatenate([np.asarray(entry["positions"], float).reshape(-1, 3) for entry in entries])
    ids = [f"{entry['tomogram']}_{row + 1:05d}" for entry in entries for row in range(len(entry["positions"]))]
    if not settings.templates:
        scores = np.concatenate([entry["responses"] for entry in entries])
        order = np.argsort(-scores, kind="stable")
        return list_particles(tomograms, which, places, ids=ids, scores=scores).select(order)
    ranked = [entry for entry in entries if entry["positions"]]
    table = np.concatenate([entry["scores"] for entry in ranked])
    moved = places + np.concatenate([entry["shifts"] for entry in ranked])
    moved = moved.clip(0, np.array([tomogram.shape for tomogram in tomograms])[which] - 1)
    names = ranked[0]["names"]
    found = list_particles(
        tomograms,
        which,
        moved,
        ids=ids,
        scores=table.max(1),
        rotations=_orthogonal(np.concatenate([entry["rotations"] for entry in ranked])),
        class_names=[names[column] for column in table.argmax(1)],
    )
    apart = np.sort(np.concatenate([_apart(found, table.max(1), number, settings) for number in range(len(tomograms))]))
    best = apart[top_per_class(table[apart], names, settings.top or len(table)).indices]
    return found.select(best[np.argsort(-table[best].max(1), kind="stable")])


def _apart(
    found: LocatedParticles, scores: npt.NDArray[np.float64], number: int, settings: PickSettings
) -> npt.NDArray[np.int64]:
    """Rows of a tomogram's picks without those that a better one moved close to."""
    rows = np.flatnonzero(found.which == number)
    distance = (settings.min_distance or settings.sigma) / (found.tomograms[number].voxel_size or math.nan)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    return order[far_apart(found.places[order], distance)]


def _orthogonal(matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Nearest rotations, after the rounding of JSON."""
    left, _, right = np.linalg.svd(matrices)
    return np.asarray(left @ right)
