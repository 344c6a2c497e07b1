"""Crowded particles: placed without overlap, by bounding spheres first and by their true shapes after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.rotations import random_quaternions, rotation_matrices
from cryo_monai.simulation.structures import OVERSAMPLING, Structure

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Where particles are, for a batch of `B` volumes of `M` particles; the target is the first.

    Attributes
    ----------
    members : array
        `(B, M)` indices of structures.
    quaternions : array
        `(B, M, 4)`, ``(w, z, y, x)``.
    positions : array
        `(B, M, 3)` in voxels from the scene's centre, ``(z, y, x)``.
    occupied : array
        `(B, z, y, x)`: how much of each voxel of the scene is inside particles, from a lattice of points in each.
    """

    members: Indices
    quaternions: Array
    positions: Array
    occupied: npt.NDArray[np.float32]


class _Grid:
    """What each voxel of a scene holds. Everything outside is free."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        # A border of one voxel, always free, stands for the outside.
        self.padded = np.zeros([size + 2 for size in shape], dtype=np.float32)
        self.flat = self.padded.reshape(-1)
        self.centre = np.array([size // 2 + 1 for size in shape], dtype=np.int32)
        self.last = np.array([size + 1 for size in shape], dtype=np.int32)

    def _index(self, points: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """Flat index of points `(..., 3)` in voxels from the centre."""
        cells = np.rint(points).astype(np.int32)
        cells += self.centre
        np.clip(cells, 0, self.last, out=cells)
        _, along_y, along_x = self.padded.shape
        return np.asarray((cells[..., 0] * along_y + cells[..., 1]) * along_x + cells[..., 2])

    def taken(self, points: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return np.asarray(self.flat[self._index(points)] > 0)

    def take(self, points: npt.NDArray[np.float32]) -> None:
        # Each point stands for a cube of two samples of the structure's grid.
        np.add.at(self.flat, self._index(points), np.float32((2 / OVERSAMPLING) ** 3))
        for axis in range(3):
            border = np.moveaxis(self.padded, axis, 0)
            border[[0, -1]] = 0

    def volume(self) -> npt.NDArray[np.float32]:
        return self.padded[1:-1, 1:-1, 1:-1].copy()


def pack_around(
    structures: Sequence[Structure],
    members: Indices,
    quaternions: Array,
    directions: Array,
    *,
    offsets: Array,
    voxel_size: float,
    shape: tuple[int, int, int],
) -> Packing:
    """Pull neighbours towards targets until they touch.

    A neighbour starts on its ray from the target, where its bounding sphere touches those of all before it, and moves
    inwards by half voxels as long as its surface stays out of their shapes.

    Parameters
    ----------
    structures : sequence of Structure
        What members refer to.
    members : array
        `(B, M)`; the first of each row is the target.
    quaternions : array
        `(B, M, 4)`.
    directions : array
        `(B, M - 1, 3)` unit vectors.
    offsets : array
        `(B, 3)`: where the targets are, in voxels from the scenes' centres.
    voxel_size : float
        Å.
    shape : tuple of int
        ``(z, y, x)`` of the scenes in voxels.

    Returns
    -------
    Packing
        Poses as given, positions, and what is occupied.
    """
    positions = np.zeros((*members.shape, 3))
    occupied = np.zeros((len(members), *shape), dtype=np.float32)
    rotations = rotation_matrices(quaternions).astype(np.float32)
    for row, kinds in enumerate(members):
        own = [structures[kind] for kind in kinds]
        positions[row], occupied[row] = _pack_one(own, rotations[row], directions[row], offsets[row], voxel_size, shape)
    return Packing(members, quaternions, positions, occupied)


def _pack_one(
    own: Sequence[Structure],
    rotations: npt.NDArray[np.float32],
    directions: Array,
    offset: Array,
    voxel_size: float,
    shape: tuple[int, int, int],
) -> tuple[Array, npt.NDArray[np.float32]]:
    grid = _Grid(shape)
    positions = np.zeros((len(own), 3))
    positions[0] = offset
    radii = np.array([structure.radius for structure in own]) / voxel_size
    for particle, structure in enumerate(own):
        turn = rotations[particle].T / np.float32(voxel_size)
        if particle > 0:
            ray = directions[particle - 1]
            reach = radii[:particle] + radii[particle]
            start = _touching_distance(ray, positions[:particle] - offset, reach)
            surface = structure.surface @ turn + offset.astype(np.float32)
            positions[particle] = offset + ray * _closest(grid, surface, ray, start)
        grid.take(structure.inside @ turn + positions[particle].astype(np.float32))
    return positions, grid.volume()


def _closest(grid: _Grid, surface: npt.NDArray[np.float32], ray: Array, start: float) -> float:
    """How far along a ray a shape gets, coming in from `start` by half voxels, before it meets another."""
    # Spheres that touch hold shapes that do not overlap: `start` itself is free.
    distances = np.maximum(start - 0.5 * np.arange(int(np.ceil(2 * start)) + 1), 0.0)
    free = len(distances)
    # A few points tell soon where it cannot get; all of them are then tried only before that.
    for points in (surface[::16], surface[::4], surface):
        free = _steps_without_contact(grid, points, ray, distances[:free])
    return float(distances[free - 1])


def _steps_without_contact(grid: _Grid, points: npt.NDArray[np.float32], ray: Array, distances: Array) -> int:
    """Count the distances, from the first, at which no point is in what is taken; the first is taken on trust."""
    for begin in range(1, len(distances), 8):
        offsets = (distances[begin : begin + 8, None] * ray).astype(np.float32)
        meets = grid.taken(points + offsets[:, None]).any(axis=1)
        if meets.any():
            return begin + int(meets.argmax())
    return len(distances)


def _touching_distance(ray: Array, centres: Array, reach: Array) -> float:
    """Smallest distance along a ray `(3,)` beyond which a point stays out of spheres about centres `(n, 3)`."""
    along = centres @ ray
    under_root = reach**2 - (centres**2).sum(-1) + along**2
    roots = np.where(under_root > 0, along + np.sqrt(np.maximum(under_root, 0)), 0.0)
    return float(max(roots.max(), 0.0))


def pack_tomogram(
    structures: Sequence[Structure],
    num_particles: int,
    rng: np.random.Generator,
    *,
    voxel_size: float,
    shape: tuple[int, int, int],
    tries: int = 400,
) -> Packing:
    """Scatter particles over a tomogram, uniformly, in random orientations, without overlap.

    Parameters
    ----------
    structures : sequence of Structure
        Classes; each is drawn with equal probability.
    num_particles : int
        How many.
    rng : Generator
        Decides everything.
    voxel_size : float
        Å.
    shape : tuple of int
        ``(z, y, x)`` in voxels. Particles lie wholly inside.
    tries : int
        Places tried for a particle before giving up.

    Returns
    -------
    Packing
        Of batch size one.

    Raises
    ------
    InputError
        When a structure is larger than the tomogram, or so many particles find no room.
    """
    grid = _Grid(shape)
    members = rng.integers(len(structures), size=num_particles)
    quaternions = random_quaternions(rng, num_particles)
    rotations = rotation_matrices(quaternions).astype(np.float32)
    positions = np.zeros((num_particles, 3))
    # Large ones first: they would not find room among the small.
    for particle in np.argsort([-structures[kind].radius for kind in members], kind="stable"):
        structure = structures[members[particle]]
        room = np.array(shape) / 2 - structure.radius / voxel_size - 1
        if (room < 0).any():
            raise InputError(
                f"{structure.name}: {2 * structure.radius:.0f} Å across, larger than a tomogram of "
                f"{' x '.join(f'{n * voxel_size:.0f}' for n in shape)} Å"
            )
        surface = structure.surface @ rotations[particle].T / np.float32(voxel_size)
        for _ in range(max(1, tries // 20)):
            places = rng.uniform(-room, room, size=(20, 3))
            free = ~grid.taken(surface + places[:, None].astype(np.float32)).any(axis=1)
            if free.any():
                positions[particle] = places[free.argmax()]
                break
        else:
            share, placed = grid.volume().mean(), int(positions.any(axis=1).sum())
            raise InputError(
                f"packing: only {placed} of {num_particles} particles found room ({share:.1%} of the tomogram is "
                "occupied); ask for fewer, or for a larger tomogram"
            )
        inside = structure.inside @ rotations[particle].T / np.float32(voxel_size)
        grid.take(inside + positions[particle].astype(np.float32))
    return Packing(members[None], quaternions[None], positions[None], grid.volume()[None])
