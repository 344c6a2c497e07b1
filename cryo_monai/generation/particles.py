"""Generated assemblies: procedural symmetric particles, in random poses, some among neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cryo_monai.rotations import rotation_matrices
from cryo_monai.simulation.assemblies import Assembly, blob_peaks, blob_profile, blob_widths

SYMMETRIES = (*(f"C{fold}" for fold in range(1, 9)), *(f"D{fold}" for fold in range(2, 8)), "T", "O")
_SHARES = np.array([3, 3, 2, 2, 2, 2, 1, 1, 3, 3, 2, 1, 1, 1, 1.5, 1.5])
_MASSES_KDA = (60.0, 800.0)
MAX_BLOBS = 72
MAX_NEIGHBOURS = 2
NUM_PARAMETERS = 9 + 8 * MAX_NEIGHBOURS
# The simulator's built-in assemblies, which models are tested on, have seeds below this; generated ones lie above.
FIRST_SEED = 1_000_000


def draw_assembly(number: int) -> Assembly:
    """Draw an assembly from its number alone: symmetry, one or two chains of 60 to 800 kDa in all, their shapes."""
    rng = np.random.default_rng([20261122, number])
    symmetry = str(rng.choice(SYMMETRIES, p=_SHARES / _SHARES.sum()))
    mass = float(np.exp(rng.uniform(*np.log(_MASSES_KDA))))
    share = rng.uniform(0.2, 0.5)
    order = Assembly("", symmetry, (1.0,), 0, "").mass_kda
    chains = (mass * (1 - share) / order, mass * share / order)
    units = chains if rng.random() < 0.5 and order <= 8 else (mass / order,)
    name = f"{symmetry.lower()}_{number:05d}"
    return Assembly(name, symmetry, units, FIRST_SEED + number, "none: generated for pre-training")


@dataclass(frozen=True)
class AssemblyBank:
    """Assemblies as tensors.

    Attributes
    ----------
    names : tuple of str
        Of the classes.
    centres : Tensor
        `(N, MAX_BLOBS, 3)` in Å, ``(z, y, x)``.
    masses : Tensor
        `(N, MAX_BLOBS)` in kDa, 0 where there is no blob.
    radii : Tensor
        `(N,)` in Å: of the bounding spheres.
    symmetries : Tensor
        `(N,)` indices into `SYMMETRIES`.
    """

    names: tuple[str, ...]
    centres: Tensor
    masses: Tensor
    radii: Tensor
    symmetries: Tensor

    def to(self, device: torch.device) -> AssemblyBank:
        """Return the bank on a device."""
        tensors = (tensor.to(device) for tensor in (self.centres, self.masses, self.radii, self.symmetries))
        return AssemblyBank(self.names, *tensors)


@lru_cache(maxsize=4)
def assembly_bank(count: int) -> AssemblyBank:
    """Make the first assemblies, on the CPU; more of them begin with the same."""
    centres, masses = np.zeros((count, MAX_BLOBS, 3)), np.zeros((count, MAX_BLOBS))
    drawn = [draw_assembly(number) for number in range(count)]
    for row, assembly in enumerate(drawn):
        # Rounding, and the least of three blobs per chain, add up to half.
        positions, weights = assembly.blobs(max(5.0, assembly.mass_kda / (MAX_BLOBS / 1.5)))
        centres[row, : len(weights)], masses[row, : len(weights)] = positions, weights
    reach = np.where(masses > 0, np.linalg.norm(centres, axis=-1), 0).max(1) + 10.0
    return AssemblyBank(
        tuple(assembly.name for assembly in drawn),
        torch.as_tensor(centres, dtype=torch.float32),
        torch.as_tensor(masses, dtype=torch.float32),
        torch.as_tensor(reach, dtype=torch.float32),
        torch.tensor([SYMMETRIES.index(assembly.symmetry) for assembly in drawn]),
    )


@dataclass(frozen=True)
class Poses:
    """Where particles are, for a batch of `B` clips; the particle that a clip is about comes first.

    Attributes
    ----------
    members : Tensor
        `(B, 1 + MAX_NEIGHBOURS)` indices of assemblies; -1 where there is no neighbour.
    rotations : Tensor
        `(B, 1 + MAX_NEIGHBOURS, 3, 3)` acting on ``(z, y, x)``.
    places : Tensor
        `(B, 1 + MAX_NEIGHBOURS, 3)` in Å from the centre of the clip.
    extents : Tensor
        `(B,)`: edge of the cube that a clip shows, in Å.
    """

    members: Tensor
    rotations: Tensor
    places: Tensor
    extents: Tensor


def draw_poses(parameters: Tensor, classes: Tensor, bank: AssemblyBank, *, crowded: Tensor) -> Poses:
    """Turn drawn numbers into poses.

    A clip shows a cube of 220 to 340 Å, but never less than the particle needs. Neighbours touch it with their bounding
    spheres less a fifth, as shapes are not round.

    Parameters
    ----------
    parameters : Tensor
        `(B, NUM_PARAMETERS)` between 0 and 1, on the CPU.
    classes : Tensor
        `(B,)` indices into the bank.
    bank : AssemblyBank
        On the CPU.
    crowded : Tensor
        `(B,)`: probability that a clip has neighbours at all.
    """
    numbers = parameters.double().numpy()
    batch = len(numbers)
    turns = np.concatenate([numbers[:, None, 0:3], numbers[:, 9:].reshape(batch, MAX_NEIGHBOURS, 8)[:, :, 0:3]], axis=1)
    rotations = rotation_matrices(uniform_quaternions(turns.reshape(-1, 3))).reshape(batch, -1, 3, 3)
    extents = np.maximum(220 + 120 * numbers[:, 3], 2.1 * bank.radii[classes].numpy())
    members = np.full((batch, 1 + MAX_NEIGHBOURS), -1)
    members[:, 0] = classes.numpy()
    places = np.zeros((batch, 1 + MAX_NEIGHBOURS, 3))
    places[:, 0] = (numbers[:, 4:7] - 0.5) * 0.16 * extents[:, None]
    neighbours = numbers[:, 9:].reshape(batch, MAX_NEIGHBOURS, 8)
    count = np.where(numbers[:, 7] < crowded.numpy(), 1 + np.floor(numbers[:, 8] * MAX_NEIGHBOURS), 0)
    for place in range(MAX_NEIGHBOURS):
        drawn = neighbours[:, place]
        kinds = np.minimum((drawn[:, 3] * len(bank.names)).astype(int), len(bank.names) - 1)
        members[:, 1 + place] = np.where(place < count, kinds, -1)
        height = 2 * drawn[:, 4] - 1
        angle = 2 * np.pi * drawn[:, 5]
        flat = np.sqrt(1 - height**2)
        direction = np.stack([height, flat * np.sin(angle), flat * np.cos(angle)], axis=1)
        distance = 0.8 * (bank.radii[classes].numpy() + bank.radii[kinds].numpy()) * (1 + 0.3 * drawn[:, 6])
        places[:, 1 + place] = places[:, 0] + direction * distance[:, None]
    tensors = (torch.as_tensor(value, dtype=torch.float32) for value in (rotations, places, extents))
    return Poses(torch.as_tensor(members), *tensors)


def uniform_quaternions(numbers: np.ndarray) -> np.ndarray:
    """Turn three numbers between 0 and 1 into a uniformly random rotation (Shoemake 1992): `(n, 3)` to `(n, 4)`."""
    first, second = np.sqrt(1 - numbers[:, 0]), np.sqrt(numbers[:, 0])
    angles = 2 * np.pi * numbers[:, 1:3]
    columns = (second * np.cos(angles[:, 1]), first * np.sin(angles[:, 0]), first * np.cos(angles[:, 0]))
    return np.stack([*columns, second * np.sin(angles[:, 1])], axis=1)


def render_particles(poses: Poses, bank: AssemblyBank, clip_size: tuple[int, int, int]) -> Tensor:
    """Sample the density of particles, all on one device.

    Returns
    -------
    Tensor
        `(B, D, H, W)` in kDa per voxel, at a resolution of twice the longest edge of a voxel or 20 Å.
    """
    row, place = torch.nonzero(poses.members >= 0, as_tuple=True)
    kinds = poses.members[row, place]
    moved = torch.bmm(bank.centres[kinds], poses.rotations[row, place].transpose(1, 2))
    moved += poses.places[row, place][:, None]
    # All blobs of all clips, one after the other; each a product of profiles along z, y and x, which lie side by side.
    particle, blob = torch.nonzero(bank.masses[kinds], as_tuple=True)
    clip, masses, centres = row[particle], bank.masses[kinds[particle], blob], moved[particle, blob]
    edges = (poses.extents[:, None] / torch.tensor(clip_size, device=row.device))[clip]
    widths = blob_widths(masses, (2 * edges.amax(1)).clamp(min=20.0))
    profiles = []
    for axis, size in enumerate(clip_size):
        places = (torch.arange(size, device=row.device) - size // 2) * edges[:, axis, None]
        profiles.append(blob_profile(places, centres[:, axis, None], widths[:, None]))
    profiles[0] *= blob_peaks(masses, widths, edges.prod(1))[:, None]
    return _summed(torch.cat(profiles, dim=1), torch.bincount(clip, minlength=len(poses.members)), clip_size)


def _summed(profiles: Tensor, counts: Tensor, clip_size: tuple[int, int, int]) -> Tensor:
    """Sum the blobs of every clip, whose counts are given, a few clips with about as many at once.

    So few on a CPU that the products of profiles along y and x, of all their blobs, stay in its cache.
    """
    none = len(profiles)
    profiles = torch.nn.functional.pad(profiles, (0, 0, 0, 1))
    ordered, order = counts.sort()
    first = (counts.cumsum(0) - counts)[order]
    some = max(16, math.ceil(len(counts) / 8))
    volumes = []
    for begins, own in zip(torch.split(first, some), torch.split(ordered, some), strict=True):
        number = torch.arange(int(own[-1]), device=own.device)
        blobs = torch.where(number < own[:, None], begins[:, None] + number, none)
        taken = profiles.index_select(0, blobs.flatten()).view(*blobs.shape, -1)  # faster than indexing
        along_z, along_y, along_x = torch.split(taken, list(clip_size), dim=2)
        planes = along_y[..., None] * along_x[:, :, None]
        volumes.append(torch.bmm(along_z.transpose(1, 2), planes.flatten(2)))
    return torch.cat(volumes).index_select(0, order.argsort()).view(-1, *clip_size)
