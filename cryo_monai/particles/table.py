"""Lists of particles: one table for all the formats they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]
# Classes with a meaning of their own: where no particle is, and what a network is not sure about.
BACKGROUND = "background"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class TomogramRecord:
    """A tomogram that a table of tomograms tells of.

    Parameters
    ----------
    file : Path or None
        The reconstructed volume; None where the table names none. It is as in the table where no such file was found.
    voxel_size : float or None
        Å.
    shape : tuple of int or None
        `(z, y, x)`, in voxels of the reconstructed volume.
    """

    file: Path | None
    voxel_size: float | None
    shape: tuple[int, int, int] | None


@dataclass(frozen=True)
class Particles:
    """Places of particles in tomograms, with what is known of their poses, classes and scores.

    Parameters
    ----------
    ids : list of str
        Unique; the file's own where it has unique ones, otherwise row numbers from "1".
    tomograms : list of str
        Names as in the file, "" where it names none.
    coordinates : array
        `(n, 3)`, ``(z, y, x)`` in pixels of ``pixel_size``, with shifts applied. 0 is the centre of the first voxel, or
        the centre of the tomogram when ``centred``.
    pixel_size : array
        `(n,)`, Å per unit of the coordinates; NaN where the file does not say, 1 where it counts in Å.
    centred : bool
        Whether coordinates count from the centre of the tomogram (RELION 5).
    rotations : array or None
        `(n, 3, 3)`, acting on ``(z, y, x)`` vectors, from the reference to the particle.
    class_names : list of str
        "" where unknown.
    scores : array or None
        `(n,)`.
    columns : pandas.DataFrame
        Every column of the file as text, in the order of the particles; its index is the row in the file, from 0.
    format : str
        relion3, relion3.1, relion4, relion5, warp, stopgap, dynamo, copick, portal or csv; new for a list made here.
    path : Path or None
        The file that holds the rows.
    tomogram_files : dict
        Name to `TomogramRecord`, when a table of tomograms came with the list.
    read_from : tuple of Path
        Files that were read besides ``path``: an optimisation set and its table of tomograms.
    """

    ids: list[str]
    tomograms: list[str]
    coordinates: Array
    pixel_size: Array
    centred: bool
    rotations: Array | None
    class_names: list[str]
    scores: Array | None
    columns: pd.DataFrame
    format: str
    path: Path | None = None
    tomogram_files: dict[str, TomogramRecord] = field(default_factory=dict)
    read_from: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.ids)
        lengths = {
            "tomograms": len(self.tomograms),
            "coordinates": len(self.coordinates),
            "pixel_size": len(self.pixel_size),
            "rotations": count if self.rotations is None else len(self.rotations),
            "class_names": len(self.class_names),
            "scores": count if self.scores is None else len(self.scores),
            "columns": len(self.columns),
        }
        wrong = [f"{length} {name}" for name, length in lengths.items() if length != count]
        if wrong:
            raise InputError(f"{self.path or 'particles'}: {count} ids but {', '.join(wrong)}")
        if len(set(self.ids)) != count:
            raise InputError(f"{self.path or 'particles'}: ids are not unique")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: npt.ArrayLike) -> Particles:
        """Return some of the particles, in the order asked for.

        Parameters
        ----------
        rows : array of int or of bool
            Rows from 0, or a mask of all rows.
        """
        chosen = self._rows(rows)
        return replace(
            self,
            ids=[self.ids[row] for row in chosen],
            tomograms=[self.tomograms[row] for row in chosen],
            coordinates=self.coordinates[chosen],
            pixel_size=self.pixel_size[chosen],
            rotations=None if self.rotations is None else self.rotations[chosen],
            class_names=[self.class_names[row] for row in chosen],
            scores=None if self.scores is None else self.scores[chosen],
            columns=self.columns.iloc[chosen],
        )

    def places(self, rows: npt.ArrayLike, shape: Sequence[int], voxel_size: float) -> Array:
        """Return voxel coordinates `(n, 3)`, ``(z, y, x)``, in a tomogram.

        Coordinates at other binnings differ by a factor alone, and the centre is half the size (not rounded), as in
        RELION (3dem/relion, ``ParticleSet::getParticleCoordDecenteredPixel`` in src/jaz/tomography/particle_set.cpp and
        ``out.centre`` in tomogram_set.cpp).

        Parameters
        ----------
        rows : array of int or of bool
            Rows from 0, or a mask of all rows.
        shape : sequence of int
            `(z, y, x)` of the tomogram; it matters to centred coordinates alone.
        voxel_size : float
            Å, of the tomogram; particles without a pixel size count in its voxels.

        Raises
        ------
        InputError
            When the voxel size is not positive.
        """
        if not voxel_size > 0:
            raise InputError(f"voxel size {voxel_size} is not positive")
        chosen = self._rows(rows)
        pixel_size = self.pixel_size[chosen]
        factor = np.where(np.isnan(pixel_size), 1.0, pixel_size / voxel_size)
        centre = np.asarray(shape, dtype=np.float64) / 2 if self.centred else np.zeros(3)
        return np.asarray(self.coordinates[chosen] * factor[:, None] + centre)

    def _rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise InputError(f"a mask of {chosen.shape} for {len(self)} particles")
            return np.flatnonzero(chosen).astype(np.int64)
        return chosen.astype(np.int64).reshape(-1)


def make_particles(
    tomograms: str | Sequence[str],
    coordinates: npt.ArrayLike,
    *,
    pixel_size: float,
    ids: Sequence[str] | None = None,
    rotations: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    scores: npt.ArrayLike | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Particles:
    """Make a new list, for example of picks.

    Parameters
    ----------
    tomograms : str or sequence of str
        One name for all, or one each.
    coordinates : array
        `(n, 3)`, ``(z, y, x)`` in voxels; 0 is the centre of the first voxel.
    pixel_size : float
        Å per voxel; NaN when it is not known.
    ids : sequence of str, optional
        Unique; row numbers from "1" otherwise.
    rotations : array, optional
        `(n, 3, 3)`, acting on ``(z, y, x)`` vectors, from the reference to the particle.
    class_names : sequence of str, optional
        "" where unknown.
    scores : array, optional
        `(n,)`.
    columns : mapping, optional
        More columns, kept as text.

    Raises
    ------
    InputError
        When numbers are not finite, the pixel size is not positive, or lengths differ.
    """
    import pandas as pd

    places = np.asarray(coordinates, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(places).all():
        raise InputError(f"coordinates of particle {int(np.argwhere(~np.isfinite(places))[0, 0]) + 1} are not finite")
    if pixel_size <= 0 or np.isinf(pixel_size):
        raise InputError(f"pixel size {pixel_size} is not positive")
    count = len(places)
    texts = {name: [str(value) for value in values] for name, values in (columns or {}).items()}
    return Particles(
        ids=[str(number) for number in range(1, count + 1)] if ids is None else [str(name) for name in ids],
        tomograms=[tomograms] * count if isinstance(tomograms, str) else [str(name) for name in tomograms],
        coordinates=places,
        pixel_size=np.full(count, pixel_size, dtype=np.float64),
        centred=False,
        rotations=None if rotations is None else np.asarray(rotations, dtype=np.float64).reshape(-1, 3, 3),
        class_names=[""] * count if class_names is None else [str(name) for name in class_names],
        scores=None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1),
        columns=pd.DataFrame(texts, index=range(count), dtype=object),
        format="new",
    )
