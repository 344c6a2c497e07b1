"""Particles in tomograms -> boxes of one size and voxel size: for files, and for a network without files between."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from cryo_monai.contrasts import CONTRAST_SAMPLE, contrast_of
from cryo_monai.errors import InputError
from cryo_monai.locations import SAME_SPACING, LocatedParticles
from cryo_monai.resampling import RESCALINGS, Volume, cut_box

EDGES = ("pad", "skip", "error")
NORMALISATIONS = ("z_score", "background", "none")


@dataclass(frozen=True)
class BoxSettings:
    """How boxes are cut.

    Attributes
    ----------
    box : int
        Edge in voxels.
    voxel_size : float
        Å.
    rescaling : str
        ``"fourier"`` or ``"lanczos"``; see `cut_box`.
    rotate : bool
        Turn each particle back into the pose of the reference.
    invert : bool
        Change the sign, for tomograms in which density is bright when a network knows it dark.
    edge : str
        Boxes that reach beyond the tomogram: ``"pad"`` with the mean of what is inside, ``"skip"``, or ``"error"``.
    normalise : str
        ``"z_score"``: mean 0, standard deviation 1; ``"background"``: the same measured outside the sphere that touches
        the faces, as RELION does; ``"none"``.
    """

    box: int
    voxel_size: float
    rescaling: str = "fourier"
    rotate: bool = False
    invert: bool = False
    edge: str = "pad"
    normalise: str = "z_score"

    def __post_init__(self) -> None:
        if self.box < 4:
            raise InputError(f"box: {self.box} must be 4 or more voxels")
        if not (self.voxel_size > 0 and math.isfinite(self.voxel_size)):
            raise InputError(f"voxel_size: {self.voxel_size} must be positive (Å)")
        for name, known in (("rescaling", RESCALINGS), ("edge", EDGES), ("normalise", NORMALISATIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")


@dataclass(frozen=True)
class Box:
    """A box `(z, y, x)`, the share of it ``inside`` the tomogram, and the ``mean`` and ``std`` that were taken off."""

    volume: Volume
    inside: float
    mean: float
    std: float


class ParticleBoxes(Dataset[dict[str, Any]]):
    """Boxes of located particles, cut when asked for; items are like those of a bundle's data set.

    Parameters
    ----------
    located : LocatedParticles
        What and where.
    settings : BoxSettings
        How.

    Raises
    ------
    InputError
        When boxes would hold finer voxels than their tomograms have, when poses are wanted and not known, or with
        ``edge="error"`` when a box reaches beyond its tomogram.
    """

    def __init__(self, located: LocatedParticles, settings: BoxSettings) -> None:
        self.located = located
        self.settings = settings
        source = located.particles.path or "particles"
        if settings.rotate and located.particles.rotations is None:
            raise InputError(f"{source}: has no angles to turn particles by (rotate)")
        self.spacings = []
        for tomogram in located.tomograms:
            spacing = settings.voxel_size / (tomogram.voxel_size or math.nan)
            if spacing < 0.95:
                raise InputError(
                    f"{tomogram.path}: voxels of {tomogram.voxel_size:g} Å cannot give boxes of "
                    f"{settings.voxel_size:g} Å; choose a larger --voxel_size"
                )
            self.spacings.append(1.0 if abs(spacing - 1) < SAME_SPACING else spacing)
        if settings.edge == "error" and not self.whole.all():
            first = int(np.flatnonzero(~self.whole)[0])
            raise InputError(
                f"{source}: the boxes of {int((~self.whole).sum())} particles reach beyond their tomogram, the first "
                f"of {located.particles.ids[first]} (--edge pad or skip)"
            )

    def __len__(self) -> int:
        return len(self.located)

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Which boxes lie wholly inside their tomogram, `(n,)`."""
        spacing = np.array(self.spacings)[self.located.which][:, None]
        shapes = np.array([tomogram.shape for tomogram in self.located.tomograms])[self.located.which]
        ends = np.array([-(self.settings.box // 2), self.settings.box - 1 - self.settings.box // 2])
        corners = np.array(list(itertools.product(ends, repeat=3)), dtype=np.float64)
        rotations = self.located.particles.rotations
        turned = np.broadcast_to(corners, (len(self), 8, 3))
        if self.settings.rotate and rotations is not None:
            turned = np.einsum("nij,cj->nci", rotations, corners)
        low = self.located.places + turned.min(1) * spacing
        high = self.located.places + turned.max(1) * spacing
        return np.asarray(np.all((low > -0.5) & (high < shapes - 0.5), axis=1))

    def cut(self, index: int) -> Box:
        """Cut one box.

        Raises
        ------
        InputError
            Naming tomogram and particle, when voxels are not finite.
        """
        located, settings = self.located, self.settings
        number = int(located.which[index])
        tomogram = located.tomograms[number]
        rotations = located.particles.rotations
        rotation = rotations[index] if settings.rotate and rotations is not None else None
        volume, inside = cut_box(
            tomogram,
            located.places[index],
            settings.box,
            spacing=self.spacings[number],
            rotation=rotation,
            rescaling=settings.rescaling,
        )
        if not np.isfinite(volume).all():
            raise InputError(
                f"{tomogram.path}: voxels that are not finite around particle {located.particles.ids[index]}"
            )
        if settings.invert:
            volume = -volume
        mean, std = 0.0, 1.0
        if settings.normalise != "none":
            measured = volume[outside_sphere(settings.box)] if settings.normalise == "background" else volume
            mean, std = float(measured.mean(dtype=np.float64)), float(measured.std(dtype=np.float64))
            std = std if std > 0 else 1.0
        return Box(((volume - np.float32(mean)) / np.float32(std)).astype(np.float32), inside, mean, std)

    def __getitem__(self, index: int) -> dict[str, Any]:
        box = self.cut(index)
        return {"image": box.volume[None], "inside": box.inside, "mean": box.mean, "std": box.std, "index": index}

    def fingerprint(self) -> str:
        """Digest of everything that decides the boxes: places, poses, settings, and the tomograms' sizes and times."""
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        for tomogram in self.located.tomograms:
            digest.update(repr((tomogram.state, tomogram.voxel_size)).encode())
        digest.update(self.located.which.tobytes() + self.located.places.tobytes())
        if self.settings.rotate and self.located.particles.rotations is not None:
            digest.update(self.located.particles.rotations.tobytes())
        digest.update("\n".join(self.located.particles.ids).encode())
        return digest.hexdigest()


def outside_sphere(box: int) -> npt.NDArray[np.bool_]:
    """Mask of the voxels outside the sphere that touches the faces, `(box, box, box)`."""
    axis = np.arange(box) - (box - 1) / 2
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    return np.asarray(squared > (box / 2) ** 2)


def sampled_contrast(boxes: ParticleBoxes) -> dict[str, Any]:
    """Contrast of boxes as they are cut, from evenly spread particles; see `contrast_of`."""
    rows = np.unique(np.linspace(0, len(boxes) - 1, min(CONTRAST_SAMPLE, len(boxes))).astype(int))
    return contrast_of(boxes.cut(int(row)).volume for row in rows)
