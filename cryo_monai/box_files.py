"""Boxes on disk: a file for each, or one stack."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryo_monai.boxes import BoxSettings
from cryo_monai.locations import LocatedParticles
from cryo_monai.mrc import write_mrc

STACK = "subtomograms.mrcs"


def box_file_names(located: LocatedParticles, stack: bool) -> list[str]:
    """File of each box below the output folder; in RELION's way, ``NUMBER@STACK``, in a stack."""
    if stack:
        return [f"{row + 1:06d}@{STACK}" for row in range(len(located))]
    names = [
        f"subtomograms/{_plain(tomogram)}/{_plain(name)}"
        for tomogram, name in zip(located.particles.tomograms, located.particles.ids, strict=True)
    ]
    unique = len(set(names)) == len(names)
    return [f"{name}.mrc" if unique else f"{name}_{row + 1}.mrc" for row, name in enumerate(names)]


def _plain(name: str) -> str:
    """Turn text into a file name."""
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "unnamed"


class FileWriter:
    """Write each box to a file of its own, placed in space where it was in the tomogram."""

    def __init__(self, folder: Path, located: LocatedParticles, settings: BoxSettings) -> None:
        self.folder, self.located, self.settings = folder, located, settings
        for name in {_plain(name) for name in located.particles.tomograms}:
            (folder / "subtomograms" / name).mkdir(parents=True, exist_ok=True)

    def write(self, row: int, name: str, volume: npt.NDArray[np.float32]) -> None:
        """Write one box `(z, y, x)`."""
        size = self.settings.voxel_size
        tomogram = self.located.tomograms[self.located.which[row]]
        corner = self.located.places[row] * (tomogram.voxel_size or math.nan) - self.settings.box // 2 * size
        corner += np.asarray(tomogram.origin)
        origin = (float(corner[0]), float(corner[1]), float(corner[2]))
        label = f"cryo-monai: particle {self.located.particles.ids[row]}"
        write_mrc(self.folder / name, volume, voxel_size=size, origin=origin, label=label)

    def has(self, name: str) -> bool:
        """Whether this box is there."""
        return (self.folder / name).is_file()

    def flush(self) -> None:
        """Every file is whole as it is."""

    finish = flush


class StackWriter:
    """Write boxes into one stack, which gets its name when it is complete."""

    def __init__(self, folder: Path, count: int, settings: BoxSettings) -> None:
        import mrcfile

        self.target, self.partial = folder / STACK, folder / f".{STACK}.part"
        box = settings.box
        self.file = None
        self.kept = self.target.is_file() or self.partial.is_file()
        if self.target.is_file():
            return
        if not self.partial.is_file():
            fresh = folder / f".{STACK}.new"
            with mrcfile.new_mmap(fresh, (count, box, box, box), mrc_mode=2, overwrite=True) as file:
                file.voxel_size = settings.voxel_size
                file.header.label[0] = b"cryo-monai: extracted subtomograms"
                file.header.nlabl = 1
            os.replace(fresh, self.partial)
        self.file = mrcfile.mmap(self.partial, mode="r+")

    def write(self, row: int, name: str, volume: npt.NDArray[np.float32]) -> None:
        """Write one box `(z, y, x)`."""
        if self.file is not None:
            self.file.data[row] = volume

    def has(self, name: str) -> bool:
        """Whether boxes that were written are there: all, or none of them."""
        return self.kept

    def flush(self) -> None:
        """Have what was written on disk."""
        if self.file is not None:
            self.file.flush()

    def finish(self) -> None:
        """Give the stack its name."""
        if self.file is not None:
            self.file.close()
            os.replace(self.partial, self.target)
