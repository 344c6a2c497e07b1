"""Structures to be imaged: atomic models, density maps and built-in assemblies, as density on one grid."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.mrc import read_mrc
from cryo_monai.simulation.assemblies import ANGSTROM3_PER_KDA, Assembly, render_density
from cryo_monai.simulation.atoms import model_name, potential, read_model

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]

# Densities are kept this much finer than the voxels to be simulated, so that linear interpolation suffices.
OVERSAMPLING = 3
# Integral of protein above ice, V Å^3 per kDa: 9750 of the atoms less 1200 Å^3 of ice at 4.53 V (1bxn, 3hhb, 2cg9).
CONTRAST_PER_KDA = 4300.0


@dataclass(frozen=True)
class Structure:
    """A particle as density about its centre of mass.

    Attributes
    ----------
    name : str
        Class name.
    density : array
        Cube of even edge ``n`` at `spacing`, ``(z, y, x)``, in V above the ice around it, centre at voxel ``n // 2``.
    spacing : float
        Å; the voxel size of the simulation over `OVERSAMPLING`.
    mass_kda : float
        Of the whole particle.
    level : float
        V; the isosurface at it, the particle's surface here, encloses the volume of the mass (1212 Å^3 per kDa).
    radius : float
        Å from the centre to the farthest point inside the surface.
    inside, surface : array
        `(n, 3)` points in Å, ``(z, y, x)``: a lattice of 2 x `spacing` inside the surface, and those of them next to
        it.
    origin : dict
        Where it comes from: kind, file, SHA-256, assembly, chains and what else is known.
    """

    name: str
    density: Array
    spacing: float
    mass_kda: float
    level: float
    radius: float
    inside: Points
    surface: Points
    origin: dict[str, Any]


def structure_of_model(
    path: str | os.PathLike[str],
    *,
    voxel_size: float,
    resolution: float,
    assembly: str = "1",
    unknown_residues: str = "refuse",
    name: str | None = None,
) -> Structure:
    """Read an atomic model as a structure; see `read_model` and `potential`."""
    model = read_model(path, assembly=assembly, unknown_residues=unknown_residues)
    spacing = voxel_size / OVERSAMPLING
    extent = float(np.linalg.norm(model.positions, axis=1).max())
    size = _edge(extent, spacing, voxel_size, resolution)
    origin = {
        "kind": "atomic model",
        "file": Path(path).name,
        "sha256": sha256_of(path),
        "assembly": model.assembly,
        "chains": model.chains,
        "ligands_without_hydrogens": list(model.as_written),
    }
    volts = potential(model, spacing=spacing, size=size)
    return _finished(name or model_name(path), volts, voxel_size, resolution, model.mass_kda, origin)


def structure_of_assembly(
    assembly: Assembly, *, voxel_size: float, resolution: float, name: str | None = None
) -> Structure:
    """Render a built-in assembly as a structure."""
    spacing = voxel_size / OVERSAMPLING
    centres, masses = assembly.blobs()
    size = _edge(float(np.linalg.norm(centres, axis=1).max()) + 15.0, spacing, voxel_size, resolution)
    kda = render_density(
        torch.tensor(centres[None], dtype=torch.float32),
        torch.tensor(masses, dtype=torch.float32),
        box=(size,) * 3,
        voxel_size=spacing,
        resolution=2 * spacing,
    )[0].numpy()
    origin = {"kind": "built-in assembly", "symmetry": assembly.symmetry, "like": assembly.like}
    volts = kda / spacing**3 * CONTRAST_PER_KDA
    return _finished(name or assembly.name, volts, voxel_size, resolution, assembly.mass_kda, origin)


def structure_of_map(
    path: str | os.PathLike[str],
    *,
    voxel_size: float,
    resolution: float,
    contour: float | None = None,
    mass_kda: float | None = None,
    map_voxel_size: float | None = None,
    invert: bool = False,
    name: str | None = None,
) -> Structure:
    """Read a density map as a structure.

    What lies below the contour is removed, with a soft edge of two voxels. The rest is scaled so that it integrates to
    `CONTRAST_PER_KDA` times the mass.

    Parameters
    ----------
    path : path
        MRC or MAP, plain, gzip or bzip2.
    voxel_size, resolution : float
        Å, of the simulation.
    contour : float, optional
        Level of the particle's surface, in the inverted map if it is inverted; by default three standard deviations
        above the mean, which is what many entries of the EMDB recommend, roughly.
    mass_kda : float, optional
        By default that of protein filling the contour.
    map_voxel_size : float, optional
        Å; needed when the header does not say.
    invert : bool
        The particle is dark in the map.
    name : str, optional
        Class name; the file's by default.

    Raises
    ------
    InputError
        When the voxel size is unknown or differs between axes, or nothing is above the contour.
    """
    from scipy import ndimage

    volume = read_mrc(path, permissive=True)
    if map_voxel_size is None:
        if volume.voxel_size is None:
            raise InputError(
                f"{path}: a map without a voxel size; write it into the header, or name it in a preset as "
                '{"source": ..., "voxel_size": Å}'
            )
        if max(volume.voxel_size) > 1.01 * min(volume.voxel_size):
            raise InputError(f"{path}: voxels of {volume.voxel_size} Å are not cubes")
        map_voxel_size = float(np.mean(volume.voxel_size))
    data = -volume.data if invert else volume.data
    if not np.isfinite(data).all():
        raise InputError(f"{path}: the map holds values that are not finite")
    level = float(data.mean() + 3 * data.std()) if contour is None else float(contour)
    inside = data > level
    if data.std() == 0:
        raise InputError(f"{path}: all values of the map are {data.flat[0]:g}")
    if not inside.any():
        raise InputError(f"{path}: nothing is above the contour {level:g}; give another contour, or invert")
    mass = mass_kda or float(inside.sum()) * map_voxel_size**3 / ANGSTROM3_PER_KDA
    soft = ndimage.gaussian_filter(ndimage.binary_dilation(inside, iterations=2).astype(np.float32), 1.0)
    particle = np.maximum(data - np.median(data), 0) * soft
    spacing = voxel_size / OVERSAMPLING
    centre = np.array(ndimage.center_of_mass(particle))
    corners = (np.argwhere(inside) - centre) * map_voxel_size
    size = _edge(float(np.linalg.norm(corners, axis=1).max()), spacing, voxel_size, resolution)
    # The map is smoothed before it is sampled more coarsely than it was.
    particle = ndimage.gaussian_filter(particle, max(0.0, 0.4 * (spacing / map_voxel_size - 1)))
    scale = spacing / map_voxel_size
    sampled = ndimage.affine_transform(
        particle, np.full(3, scale), offset=centre - scale * (size // 2), output_shape=(size,) * 3, order=3
    )
    volts = sampled * (mass * CONTRAST_PER_KDA / (sampled.sum(dtype=np.float64) * spacing**3))
    origin = {
        "kind": "density map",
        "file": Path(path).name,
        "sha256": sha256_of(path),
        "contour": level,
        "inverted": invert,
        "map_voxel_size": map_voxel_size,
    }
    stem = Path(path).name.split(".")[0]
    return _finished(name or stem, volts, voxel_size, resolution, mass, origin)


def _edge(extent: float, spacing: float, voxel_size: float, resolution: float) -> int:
    """Even edge of a cube, in multiples of `spacing`, with room for what a low-pass spreads."""
    return 2 * int(np.ceil((extent + 2 * voxel_size + 0.5 * resolution) / spacing))


def low_pass(density: npt.NDArray[Any], *, spacing: float, voxel_size: float, resolution: float) -> Array:
    """Limit a density to a resolution, and to what voxels of a size can hold.

    A Gaussian that falls to 1/e at ``1 / resolution`` (sigma = 0.225 x resolution in real space, as Chimera's
    molmap), and a cosine edge between 0.9 and 1 times the Nyquist frequency of the voxels.

    Parameters
    ----------
    density : array
        Cube.
    spacing : float
        Å, of its samples.
    voxel_size, resolution : float
        Å.
    """
    import scipy.fft

    size = density.shape[0]
    along = np.fft.fftfreq(size, spacing)
    half = np.fft.rfftfreq(size, spacing)
    frequency = np.sqrt(along[:, None, None] ** 2 + along[None, :, None] ** 2 + half[None, None, :] ** 2)
    edge = np.clip((frequency * 2 * voxel_size - 0.9) / 0.1, 0, 1)
    filtered = np.exp(-((frequency * resolution) ** 2)) * (0.5 + 0.5 * np.cos(np.pi * edge))
    spectrum = scipy.fft.rfftn(density.astype(np.float64)) * filtered
    return np.asarray(scipy.fft.irfftn(spectrum, s=density.shape), dtype=np.float32)


def _finished(
    name: str,
    volts: npt.NDArray[Any],
    voxel_size: float,
    resolution: float,
    mass_kda: float,
    origin: dict[str, Any],
) -> Structure:
    spacing = voxel_size / OVERSAMPLING
    density = low_pass(volts, spacing=spacing, voxel_size=voxel_size, resolution=resolution)
    level, inside, surface, radius = _surface_points(density, spacing, mass_kda)
    summary = {**origin, "mass_kda": round(mass_kda, 1), "radius": round(radius, 1)}
    return Structure(name, density, spacing, mass_kda, level, radius, inside, surface, summary)


def _surface_points(density: Array, spacing: float, mass_kda: float) -> tuple[float, Points, Points, float]:
    """Level of the isosurface that encloses the volume of a mass, points inside it, those near it, and its radius."""
    from scipy import ndimage

    count = min(max(1, round(mass_kda * ANGSTROM3_PER_KDA / spacing**3)), density.size)
    level = np.partition(density, density.size - count, axis=None)[density.size - count]
    mask = density >= level
    # A lattice of every second sample, through the centre.
    start = (density.shape[0] // 2) % 2
    lattice = mask[start::2, start::2, start::2]
    if not lattice.any():
        raise InputError(f"a structure of {mass_kda:.1f} kDa is too small for samples of {spacing:.1f} Å")
    border = lattice & ~ndimage.binary_erosion(lattice)

    def points(where: npt.NDArray[np.bool_]) -> Points:
        index = 2 * np.argwhere(where) + start - density.shape[0] // 2
        return np.asarray(index * spacing, dtype=np.float32)

    radius = float(np.linalg.norm((np.argwhere(mask) - density.shape[0] // 2) * spacing, axis=1).max())
    return float(level), points(lattice), points(border), radius + spacing
