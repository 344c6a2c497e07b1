"""Built-in macromolecular assemblies: symmetric arrangements of Gaussian blobs with known mass."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryo_monai.errors import InputError

Array = npt.NDArray[np.float64]

# Volume of a protein per mass: 1.212e-3 nm^3 / Da (Erickson 2009, doi 10.1007/s12575-009-9008-x).
ANGSTROM3_PER_KDA = 1212.0
BLOB_KDA = 5.0


def symmetry_rotations(symmetry: str) -> Array:
    """Rotation matrices of a point group.

    Parameters
    ----------
    symmetry : str
        ``"C1"``, ``"C2"`` ...; ``"D2"`` ...; ``"T"`` or ``"O"``. The main axis of C and D groups is z.

    Returns
    -------
    array
        `(order, 3, 3)`, acting on ``(z, y, x)`` vectors; the identity comes first.

    Raises
    ------
    InputError
        When the group is not one of these.
    """
    if symmetry in ("T", "O"):
        return _cubic_rotations(only_even=symmetry == "T")
    match = re.fullmatch(r"([CD])([1-9]\d*)", symmetry)
    if match is None:
        raise InputError(f"symmetry: {symmetry!r} is not Cn, Dn, T or O")
    angles = 2 * np.pi * np.arange(int(match[2])) / int(match[2])
    cos, sin = np.cos(angles), np.sin(angles)
    rotations = np.zeros((len(angles), 3, 3))
    rotations[:, 0, 0] = 1
    rotations[:, 1, 1], rotations[:, 1, 2] = cos, sin
    rotations[:, 2, 1], rotations[:, 2, 2] = -sin, cos
    if match[1] == "D":
        flip = np.diag([-1.0, -1.0, 1.0])  # two-fold axis along x
        rotations = np.concatenate([rotations, rotations @ flip])
    return rotations


def _cubic_rotations(*, only_even: bool) -> Array:
    """Signed permutation matrices of determinant 1 (group O); the even permutations among them form group T."""
    rotations = []
    for order in itertools.permutations(range(3)):
        permutation = np.eye(3)[list(order)]
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = permutation * np.asarray(signs)
            even = np.linalg.det(permutation) > 0
            if np.linalg.det(matrix) > 0 and (even or not only_even):
                rotations.append(matrix)
    return np.asarray(rotations)


@dataclass(frozen=True)
class Assembly:
    """A symmetric particle.

    Attributes
    ----------
    name : str
        Class name in data sets.
    symmetry : str
        Point group; see `symmetry_rotations`.
    units_kda : tuple of float
        Masses of the different chains of the asymmetric unit, inner ones first.
    seed : int
        Decides the shapes of the chains and where they sit.
    like : str
        The PDB entry whose symmetry and mass were followed.
    """

    name: str
    symmetry: str
    units_kda: tuple[float, ...]
    seed: int
    like: str

    @property
    def mass_kda(self) -> float:
        """Mass of the whole assembly."""
        return sum(self.units_kda) * len(symmetry_rotations(self.symmetry))

    def blobs(self, blob_kda: float = BLOB_KDA) -> tuple[Array, Array]:
        """Return centres `(n, 3)` in Å, ``(z, y, x)`` about the centre of mass, and masses `(n,)` in kDa.

        Parameters
        ----------
        blob_kda : float
            About the mass of a blob; a chain has three or more. Another mass makes another shape.
        """
        rng = np.random.default_rng([20240618, self.seed])
        rotations = symmetry_rotations(self.symmetry)
        centres, masses = [], []
        inner = 0.0
        for unit_kda in self.units_kda:
            chain = _chain(unit_kda, blob_kda, rng)
            radius = _sphere_radius(unit_kda)
            position = _contact_position(rotations, radius, inner, rng)
            centres.append(np.einsum("gij,nj->gni", rotations, chain + position).reshape(-1, 3))
            masses.append(np.full(len(chain) * len(rotations), unit_kda / len(chain)))
            inner = float(np.linalg.norm(position)) + 0.6 * radius
        positions, weights = np.concatenate(centres), np.concatenate(masses)
        return positions - np.average(positions, axis=0, weights=weights), weights


def _sphere_radius(mass_kda: float) -> float:
    """Radius in Å of a solid sphere of protein."""
    return float((3 * mass_kda * ANGSTROM3_PER_KDA / (4 * np.pi)) ** (1 / 3))


def _chain(mass_kda: float, blob_kda: float, rng: np.random.Generator) -> Array:
    """Make a compact, irregular chain of blobs about the origin: `(n, 3)` in Å."""
    count = max(3, round(mass_kda / blob_kda))
    # At this distance the densest packing of blobs is about as dense as protein.
    step = 2.0 * _sphere_radius(mass_kda / count)
    points = [np.zeros(3)]
    while len(points) < count:
        # Of some steps from a random point, take the one that stays compact without overlapping.
        start = points[rng.integers(len(points))]
        directions = rng.normal(size=(24, 3))
        candidates = start + step * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        nearest = np.linalg.norm(candidates[:, None] - np.asarray(points)[None], axis=-1).min(axis=1)
        free = candidates[nearest > 0.9 * step]
        if len(free):
            points.append(free[np.linalg.norm(free - np.mean(points, axis=0), axis=1).argmin()])
    chain: Array = np.asarray(points)
    return np.asarray(chain - chain.mean(axis=0))


def _contact_position(rotations: Array, radius: float, inner: float, rng: np.random.Generator) -> Array:
    """Where a chain of this radius touches its symmetry mates (and stays outside ``inner``)."""
    if len(rotations) == 1:
        return np.zeros(3)
    directions = rng.normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mates = np.einsum("gij,nj->gni", rotations[1:], directions)
    gaps = np.linalg.norm(mates - directions, axis=-1).min(axis=0)
    # The most compact of a few random directions: real subunits touch.
    best = np.argsort(gaps)[-8:]
    choice = best[rng.integers(len(best))]
    distance = max(1.8 * radius / gaps[choice], inner)
    return np.asarray(directions[choice] * distance)


# Symmetry and mass follow eight of the ten entries of the paper's figure 2 as far as they are well known, and two
# other assemblies (ferritin, a seven-fold ring) so that octahedral and odd cyclic symmetry occur. Shapes are
# procedural: these are not the atomic structures.
ASSEMBLIES: tuple[Assembly, ...] = (
    Assembly("c2_64kda", "C2", (16.0, 16.0), 1, "3hhb, haemoglobin"),
    Assembly("c2_84kda", "C2", (42.0,), 2, "3gl1, Hsp70 ATPase domain, two per asymmetric unit"),
    Assembly("c7_400kda", "C7", (57.0,), 3, "seven-fold ring, as GroEL's"),
    Assembly("d2_140kda", "D2", (35.0,), 4, "2ldb, lactate dehydrogenase"),
    Assembly("d3_290kda", "D3", (48.0,), 5, "2h12, citrate synthase hexamer"),
    Assembly("d3_310kda", "D3", (34.0, 17.0), 6, "1f1b, aspartate transcarbamoylase"),
    Assembly("d4_540kda", "D4", (53.0, 14.0), 7, "1bxn, Rubisco"),
    Assembly("d7_300kda", "D7", (21.5,), 8, "1yg6, ClpP"),
    Assembly("o_440kda", "O", (18.5,), 9, "1aew, ferritin"),
    Assembly("t_200kda", "T", (16.5,), 10, "2byu, small heat-shock protein"),
)


def blob_widths(masses: Tensor, resolution: Tensor) -> Tensor:
    """Return standard deviations in Å of the Gaussians that stand for blobs of masses in kDa, at a resolution in Å.

    The second moment is that of a solid sphere of the mass plus that of a low-pass to the resolution (sigma = 0.225 x
    resolution, the convention of Chimera's molmap).
    """
    radii = (3 * masses * ANGSTROM3_PER_KDA / (4 * torch.pi)) ** (1 / 3)
    return torch.sqrt(radii**2 / 5 + (0.225 * resolution) ** 2)


def blob_profile(places: Tensor, centres: Tensor, widths: Tensor) -> Tensor:
    """Return blobs along an axis, 1 at their centres; all in Å, of shapes that go together."""
    # Beyond 7 sigma nothing is left; without the limit the products would be denormal numbers, which are slow.
    return (places - centres).div_(widths).square_().mul_(-0.5).clamp_(min=-24.5).exp_()


def blob_peaks(masses: Tensor, widths: Tensor, voxel_volume: Tensor) -> Tensor:
    """Return densities in kDa per voxel at the centres of blobs: of masses in kDa, widths in Å, volume in Å^3."""
    peaks: Tensor = masses * voxel_volume / ((2 * torch.pi) ** 1.5 * widths**3)
    return peaks


def render_density(
    centres: Tensor,
    masses: Tensor,
    *,
    box: tuple[int, int, int],
    voxel_size: float | Tensor,
    resolution: float | Tensor,
) -> Tensor:
    """Sample blobs on a grid, without interpolation.

    Each blob is a Gaussian of `blob_widths`.

    Parameters
    ----------
    centres : Tensor
        `(B, n, 3)` in Å from the box centre, ``(z, y, x)``.
    masses : Tensor
        `(n,)` or `(B, n)` in kDa; blobs of mass 0 are none.
    box : tuple of int
        ``(z, y, x)`` voxels. The centre is voxel ``n // 2`` of each axis.
    voxel_size : float or Tensor
        Å; `(B, 3)` where boxes differ, or their voxels are no cubes.
    resolution : float or Tensor
        Å; `(B,)` where boxes differ.

    Returns
    -------
    Tensor
        `(B, z, y, x)` in kDa per voxel: it sums to the mass when the particle lies inside the box.
    """
    edges = torch.as_tensor(voxel_size, dtype=centres.dtype, device=centres.device).expand(len(centres), 3)
    low_pass = torch.as_tensor(resolution, dtype=centres.dtype, device=centres.device).reshape(-1, 1)
    masses = masses.expand(len(centres), -1)
    sigma = blob_widths(masses, low_pass)
    profiles = []
    for axis, size in enumerate(box):
        grid = (torch.arange(size, dtype=centres.dtype, device=centres.device) - size // 2) * edges[:, axis, None]
        profiles.append(blob_profile(grid[..., None], centres[:, None, :, axis], sigma[:, None]))
    along_z, along_y, along_x = profiles
    peaks = blob_peaks(masses, sigma, edges.prod(1, keepdim=True))
    # (B, z, y, n) times (B, n, x)
    plane = (peaks[:, None] * along_z).unsqueeze(2) * along_y.unsqueeze(1)
    volume: Tensor = torch.bmm(plane.flatten(1, 2), along_x.transpose(1, 2))
    return volume.reshape(len(centres), *box)
