"""Subtomograms of a target among neighbours, with the truth of every volume."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.rotations import random_quaternions
from cryo_monai.simulation.imaging import Imaged, TiltSeriesMicroscope, XulabMicroscope, add_up, draw_exposure
from cryo_monai.simulation.packing import Packing, pack_around
from cryo_monai.simulation.scenes import SceneRenderer
from cryo_monai.simulation.settings import SimulationSettings
from cryo_monai.simulation.structures import CONTRAST_PER_KDA, Structure

# Scale of densities in mode xulab: roughly the atoms per kDa that are not hydrogen (68.3 to 70.6 in the ten models of
# configs/simulation/shared_ten.json), chosen so that volumes have the standard deviations of that family.
ATOMS_PER_KDA = 72.0


@dataclass(frozen=True)
class SimulatedBatch:
    """Some volumes of one class.

    Attributes
    ----------
    volumes : Tensor
        `(B, z, y, x)`; density is dark (negative).
    clean : Tensor
        `(B, z, y, x)`: the density of target and neighbours in V above ice (bright), before the microscope.
    truth : list of dict
        For each volume: pose, shift, nominal and measured SNR (none without noise), defocus, neighbours, occupancy,
        seed.
    """

    volumes: Tensor
    clean: Tensor
    truth: list[dict[str, Any]]


class SubtomogramSimulator:
    """Makes volumes of any class, each from (seed, class name, number) alone.

    Parameters
    ----------
    structures : sequence of Structure
        The classes.
    settings : SimulationSettings
        Everything else.
    neighbours : sequence of Structure, optional
        What neighbours are drawn from; the classes by default.
    device : str or torch.device
        Where to compute.

    Raises
    ------
    InputError
        When a structure is larger than the box, or there is nothing to draw neighbours from.
    """

    def __init__(
        self,
        structures: Sequence[Structure],
        settings: SimulationSettings,
        *,
        neighbours: Sequence[Structure] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        edge = settings.box * settings.voxel_size
        for structure in structures:
            if 2 * structure.radius > edge:
                raise InputError(
                    f"{structure.name}: {2 * structure.radius:.0f} Å across, larger than a box of {settings.box} "
                    f"voxels of {settings.voxel_size:g} Å; give a larger box"
                )
        self.settings = settings
        self.class_names = [structure.name for structure in structures]
        self.num_classes = len(structures)
        self._all = [*structures, *(neighbours or [])]
        pool = range(len(structures), len(self._all)) if neighbours else range(len(structures))
        self._pools = []
        for label in range(len(structures)):
            excluded = label if settings.neighbour_classes == "others" else -1
            self._pools.append([index for index in pool if index != excluded])
        if settings.neighbours and not all(self._pools):
            raise InputError("simulation: neighbour_classes others needs two classes, or structures for neighbours")
        self.box = (settings.box,) * 3
        self.renderer = SceneRenderer(self._all, device)
        self.device = self.renderer.device
        self.scene = self.box
        self.microscope: TiltSeriesMicroscope | XulabMicroscope
        if settings.mode == "tilt_series":
            # Neighbours reach out of the box, and are seen through it at high tilts.
            self.scene = (2 * settings.box,) * 3
            self.microscope = TiltSeriesMicroscope(settings, self.scene, self.box, device)
        else:
            self.microscope = XulabMicroscope(settings, self.box, device)

    def simulate(self, label: int, numbers: Sequence[int]) -> SimulatedBatch:
        """Simulate some volumes of one class.

        Parameters
        ----------
        label : int
            Index of the class.
        numbers : sequence of int
            Which of its volumes.
        """
        settings = self.settings
        name = self._all[label].name
        class_seed = zlib.crc32(name.encode())
        generators = [np.random.default_rng([settings.seed, class_seed, number]) for number in numbers]
        packing = self.pack(label, generators)
        scenes = self.renderer.render(packing, self.scene)
        imaged, focus = self.image(scenes, generators)
        # Mode xulab has scaled its noise to the signal already.
        volumes, measured = add_up(imaged, snr=settings.snr if settings.mode == "tilt_series" else None)
        clean = _centre(scenes, settings.box)
        taken = _centre(torch.from_numpy(packing.occupied), settings.box).mean((1, 2, 3))
        truth = [
            {
                "number": number,
                "seed": [settings.seed, class_seed, number],
                "quaternion_wzyx": packing.quaternions[row, 0].round(8).tolist(),
                "shift_voxels_zyx": packing.positions[row, 0].round(6).tolist(),
                "snr_nominal": None if measured is None else settings.snr,
                "snr_measured": None if measured is None else round(float(measured[row]), 6),
                "defocus_um": focus[row],
                "occupancy": round(float(taken[row]), 6),
                "neighbours": self._neighbours_of(packing, row),
            }
            for row, number in enumerate(numbers)
        ]
        return SimulatedBatch(volumes, clean, truth)

    def pack(self, label: int, generators: Sequence[np.random.Generator]) -> Packing:
        """Draw orientations, neighbours and shifts of volumes of a class, and pack them."""
        count = 1 + self.settings.neighbours
        quaternions = np.stack([random_quaternions(rng, count) for rng in generators])
        directions = np.stack([rng.normal(size=(count - 1, 3)) for rng in generators])
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        members = np.full((len(generators), count), label)
        if count > 1:
            pool = np.array(self._pools[label])
            members[:, 1:] = [pool[rng.integers(len(pool), size=count - 1)] for rng in generators]
        limit = self.settings.max_shift
        shifts = np.stack([rng.uniform(-limit, limit, size=3) for rng in generators])
        return pack_around(
            self._all,
            members,
            quaternions,
            directions,
            offsets=shifts,
            voxel_size=self.settings.voxel_size,
            shape=self.scene,
        )

    def image(self, scenes: Tensor, generators: Sequence[np.random.Generator]) -> tuple[Imaged, list[float]]:
        """Signal and noise of scenes `(B, z, y, x)` in V, and the defocus of each in µm."""
        scope = self.microscope
        if isinstance(scope, TiltSeriesMicroscope):
            exposures = [draw_exposure(self.settings, scope.num_tilts, rng) for rng in generators]
            focus = [round(float(exposure.defocus_um.mean()), 4) for exposure in exposures]
            return scope.image(scenes, exposures, self._white(scope.noise_shape, generators)), focus
        atoms = scenes * (self.settings.voxel_size**3 / CONTRAST_PER_KDA * ATOMS_PER_KDA)
        imaged = scope.image(atoms, self._white(scope.noise_shape, generators))
        return imaged, [self.settings.defocus_um] * len(generators)

    def _white(self, shape: tuple[int, ...], generators: Sequence[np.random.Generator]) -> Tensor | None:
        if np.isinf(self.settings.snr):
            return None
        drawn = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators])
        return torch.from_numpy(drawn).to(self.device)

    def _neighbours_of(self, packing: Packing, row: int) -> list[dict[str, Any]]:
        return [
            {
                "class_name": self._all[packing.members[row, particle]].name,
                "quaternion_wzyx": packing.quaternions[row, particle].round(6).tolist(),
                "position_voxels_zyx": packing.positions[row, particle].round(4).tolist(),
            }
            for particle in range(1, packing.members.shape[1])
        ]


def _centre(volumes: Tensor, size: int) -> Tensor:
    """Middle cubes of volumes `(B, z, y, x)`: centre at voxel ``n // 2`` before and after."""
    start = volumes.shape[1] // 2 - size // 2
    cut = slice(start, start + size)
    return volumes[:, cut, cut, cut].contiguous()
