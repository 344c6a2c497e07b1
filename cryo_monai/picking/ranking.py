"""Ranking of picks by cross-correlation with templates, over rotations and small shifts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.filters import full_precision
from cryo_monai.picking.correlation import Comparison, standardised
from cryo_monai.picking.regions import Tomogram, checked_device, name_of, read_boxes
from cryo_monai.picking.rotations import rotation_grid
from cryo_monai.picking.templates import Template, check_templates

Array = npt.NDArray[np.float64]

# Rotations that one product takes, and numbers (of 4 bytes) in its other factor. On CPUs that fits into memory which is
# used again; on other devices a product should be large.
_ROTATIONS = 1024
_NUMBERS_ON_CPU, _NUMBERS = 2**22, 2**26
# Rotations that are made at once.
_TURNED = 64


@dataclass(frozen=True)
class Ranking:
    """How well each pick fits each template, at its best.

    Attributes
    ----------
    names : tuple of str
        Of the templates.
    scores : array
        `(n, templates)`, from -1 to 1.
    rotations : array
        `(n, templates, 3, 3)`, reference to particle, acting on ``(z, y, x)`` vectors.
    shifts : array
        `(n, templates, 3)` voxels ``(z, y, x)``: the position plus this is where the particle's centre was found.
    """

    names: tuple[str, ...]
    scores: Array
    rotations: Array
    shifts: Array


class Selection(NamedTuple):
    """Picks that were selected: `indices` `(m,)` of them, and the class name of each."""

    indices: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def rank_by_templates(
    tomogram: Tomogram,
    positions: npt.ArrayLike,
    templates: Sequence[Template],
    *,
    angular_step_deg: float,
    wedge_deg: tuple[float, float] | None = (-60.0, 60.0),
    low_pass: float | None = None,
    dark: bool = True,
    shift: int = 2,
    mask_radius: float | None = None,
    batch: int = 512,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Ranking:
    """Score picks by the constrained cross-correlation of Förster et al. (2005, doi 10.1073/pnas.0409178102).

    A template is rotated, loses the wedge, and is masked by a soft sphere; the box about a pick is masked by the same
    sphere. Both lose their mean under the mask. The score is the normalised correlation over the Fourier coefficients
    below the low-pass and outside the wedge, the highest over all rotations and shifts: 1 for the particle itself.
    Contrast transfer is not applied to templates: the low-pass should stay below its first zero, or the tomogram be
    corrected for it.

    The costs are 2 x coefficients x shifts x picks multiplications for each rotation and template (33 shifts for 2
    voxels) and about 1.4 ms on one CPU core to rotate a template of 32^3 voxels: 200 picks, one template, 20° and 32^3
    voxels take 3 s there, with a low-pass at half Nyquist 2 s. Half the step is eight times the rotations.

    Parameters
    ----------
    tomogram : Tomogram
        Where the picks are. Boxes that reach beyond it are filled with the mean of what is inside.
    positions : array
        `(n, 3)` voxels ``(z, y, x)``.
    templates : sequence of Template
        Of one size and voxel size, which are the tomogram's. They are rotated by trilinear interpolation on a grid
        twice as fine.
    angular_step_deg : float
        See `rotation_grid`.
    wedge_deg : tuple of float or None
        Smallest and largest tilt; the tilt axis is y, the beam along z, as in `missing_wedge_mask`.
    low_pass : float or None
        Å, a hard edge; to Nyquist by default.
    dark : bool
        Particles are darker than what is around them.
    shift : int
        Voxels about a position, in all directions, where the centre is looked for; whole voxels.
    mask_radius : float, optional
        Voxels to where the sphere ends, after a soft edge of 2; the largest in the box by default.
    batch : int
        Boxes held at a time. It decides memory, not scores.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with the number of steps done, and of all.

    Returns
    -------
    Ranking
        Scores, and poses to begin an alignment with.

    Raises
    ------
    InputError
        For impossible settings, templates that do not fit each other, positions outside the tomogram, or voxels that
        are NaN or infinite.
    """
    places = _checked_positions(positions, tomogram)
    edge, voxel_size = check_templates(templates)
    if shift < 0 or shift > edge // 4 or batch < 1:
        raise InputError(f"ranking: shift {shift}, batch {batch}; give 0 to {edge // 4} voxels, and boxes above 0")
    comparison = Comparison(
        edge,
        voxel_size=voxel_size,
        wedge_deg=wedge_deg,
        low_pass=low_pass,
        mask_radius=mask_radius,
        device=checked_device(device),
    )
    grid = rotation_grid(angular_step_deg)
    shifts = _ball(shift)
    phases = comparison.phases(shifts.to(comparison.device))
    fine = [comparison.finer(template.density) for template in templates]
    centres = np.floor(places + 0.5).astype(np.int64)
    scores = np.zeros((len(places), len(templates)))
    chosen = np.zeros((2, len(places), len(templates)), dtype=np.int64)
    steps = max(1, -(-len(places) // batch) * len(templates) * -(-len(grid) // _ROTATIONS))
    counter = itertools.count(1)
    with full_precision():
        for start in range(0, len(places), batch):
            part = slice(start, start + batch)
            boxes = _box_vectors(tomogram, centres[part], comparison, dark)
            for column, density in enumerate(fine):
                best = _Best(len(boxes), comparison.device)
                for first, vectors in _rotated(comparison, density, grid):
                    best.update(comparison, boxes, phases, vectors, first)
                    if progress:
                        progress(next(counter), steps)
                scores[part, column] = best.scores.clamp(-1, 1).cpu().numpy()
                chosen[0, part, column] = best.rotations.cpu().numpy()
                chosen[1, part, column] = best.shifts.numpy()
    # Boxes are cut at whole voxels: what that moved them by belongs to the shift.
    found = shifts.numpy()[chosen[1]] + (centres - places)[:, None]
    return Ranking(tuple(template.name for template in templates), scores, grid[chosen[0]], found)


def _checked_positions(positions: npt.ArrayLike, tomogram: Tomogram) -> Array:
    places = np.asarray(positions, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 3:
        raise InputError(f"positions: shape {places.shape} is not (n, 3)")
    inside = ((places > -0.5) & (places < np.asarray(tomogram.shape) - 0.5)).all(axis=1)
    if not inside.all():
        first = int(np.argmin(inside))
        raise InputError(
            f"positions: {int((~inside).sum())} of {len(places)} are outside the {tuple(tomogram.shape)} voxels of "
            f"{name_of(tomogram)}, the first is number {first}, (z, y, x) = {tuple(places[first].tolist())}; are they "
            "in voxels of this tomogram, in this order?"
        )
    return places


def _ball(radius: int) -> Tensor:
    """Shifts `(S, 3)` of whole voxels within a radius, the smallest first."""
    along = range(-radius, radius + 1)
    shifts = [v for v in itertools.product(along, repeat=3) if sum(n * n for n in v) <= radius**2]
    return torch.tensor(sorted(shifts, key=lambda v: sum(n * n for n in v)))


def _box_vectors(tomogram: Tomogram, centres: npt.NDArray[np.int64], comparison: Comparison, dark: bool) -> Tensor:
    """Vectors `(n, length)` of the boxes about voxels, particles bright."""
    parts = []
    boxes = read_boxes(tomogram, centres, comparison.edge)
    while some := list(itertools.islice(boxes, _TURNED)):
        volumes = torch.from_numpy(np.stack([standardised(box) for box in some])).to(comparison.device)
        parts.append(comparison.vectors(-volumes if dark else volumes))
    return torch.cat(parts)


def _rotated(comparison: Comparison, fine: Tensor, grid: Array) -> Iterator[tuple[int, Tensor]]:
    """Index of the first, and vectors of some rotations of a template, until all were made."""
    for first in range(0, len(grid), _ROTATIONS):
        some = torch.as_tensor(grid[first : first + _ROTATIONS], dtype=torch.float32, device=comparison.device)
        yield first, torch.cat([comparison.rotated_vectors(fine, few) for few in torch.split(some, _TURNED)])


class _Best:
    """The highest score of each box so far, with the rotation and the shift that gave it."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.scores = torch.full((count,), -torch.inf, device=device)
        self.rotations = torch.zeros(count, dtype=torch.int64, device=device)
        self.shifts = torch.zeros(count, dtype=torch.int64, device=device)

    def update(self, comparison: Comparison, boxes: Tensor, phases: Tensor, vectors: Tensor, first: int) -> None:
        """Compare boxes, shifted, with rotations of a template, which are numbered from `first`."""
        numbers = _NUMBERS_ON_CPU if boxes.device.type == "cpu" else _NUMBERS
        several = max(1, numbers // (len(phases) * comparison.length))
        for start in range(0, len(boxes), several):
            part = slice(start, start + several)
            moved = comparison.moved(boxes[part], phases)
            # (b S, length) x (R, length) -> (b, S R)
            highest, index = (moved @ vectors.T).view(-1, len(phases) * len(vectors)).max(dim=1)
            better = highest > self.scores[part]
            self.scores[part] = torch.where(better, highest, self.scores[part])
            turned, shifted = first + index % len(vectors), index // len(vectors)
            self.rotations[part] = torch.where(better, turned, self.rotations[part])
            self.shifts[part] = torch.where(better, shifted, self.shifts[part])


def top_per_class(scores: npt.ArrayLike, names: Sequence[str], count: int) -> Selection:
    """Give each pick to its best template, and keep the best picks of each.

    Parameters
    ----------
    scores : array
        `(n, templates)`, see `Ranking`.
    names : sequence of str
        Of the templates.
    count : int
        Picks per class, at most.

    Returns
    -------
    Selection
        Class by class in the order of the templates, the highest score first; of equals, the first.

    Raises
    ------
    InputError
        When names and scores do not fit each other.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(names) or not len(names) or count < 1:
        raise InputError(f"scores: shape {table.shape} for {len(names)} templates, the best {count} of each")
    best = table.argmax(axis=1)
    indices: list[int] = []
    classes: list[str] = []
    for column, name in enumerate(names):
        members = np.flatnonzero(best == column)
        top = members[np.argsort(-table[members, column], kind="stable")][:count]
        indices += top.tolist()
        classes += [name] * len(top)
    return Selection(np.asarray(indices, dtype=np.int64), tuple(classes))
