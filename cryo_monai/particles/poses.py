"""Poses of particles in the conventions of other programs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.rotations import relion_angles

Array = npt.NDArray[np.float64]

# A matrix written with few digits still is a rotation; a mirror image or a scaling is not.
_TOLERANCE = 1e-2


def rotations_of_xyz(matrices: npt.ArrayLike, where: list[str]) -> Array:
    """Return rotations that act on ``(z, y, x)`` vectors of matrices `(n, 3, 3)` that act on ``(x, y, z)``.

    Parameters
    ----------
    matrices : array
        `(n, 3, 3)`.
    where : list of str
        Places in the file, for errors.

    Raises
    ------
    InputError
        Naming the place of the first matrix that is not a rotation.
    """
    turned = np.asarray(matrices, dtype=np.float64).reshape(-1, 3, 3)[:, ::-1, ::-1]
    off = np.abs(turned @ turned.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = ~(off < _TOLERANCE) | ~(np.linalg.det(turned) > 0)
    if bad.any():
        raise InputError(f"{where[int(np.flatnonzero(bad)[0])]}: the matrix is not a rotation")
    return np.ascontiguousarray(turned)


def rotations_of_zxz(angles: npt.ArrayLike) -> Array:
    """Return rotations `(n, 3, 3)` on ``(z, y, x)`` vectors of angles ``(phi, the, psi)`` in degrees, as STOPGAP means.

    The matrix is ``Rz(psi) Rx(the) Rz(phi)`` and takes the reference to the particle (williamnwan/STOPGAP,
    sg_toolbox/sg_euler2matrix.m).
    """
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_euler("zxz", np.asarray(angles, dtype=np.float64), degrees=True).as_matrix()
    return np.ascontiguousarray(matrices[:, ::-1, ::-1])


def zxz_angles(rotations: Array) -> Array:
    """Return the angles ``(phi, the, psi)`` in degrees, `(n, 3)`, of rotations; inverse of `rotations_of_zxz`."""
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_matrix(rotations[:, ::-1, ::-1])
    with _without_gimbal_warning():
        return np.asarray(matrices.as_euler("zxz", degrees=True))


def zyz_angles(rotations: Array) -> Array:
    """Return RELION's angles ``(rot, tilt, psi)`` in degrees, `(n, 3)`, of rotations."""
    with _without_gimbal_warning():
        return relion_angles(rotations)


@contextmanager
def _without_gimbal_warning() -> Iterator[None]:
    # At a tilt of 0 two of the angles turn about one axis: any split of them is the same pose.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gimbal lock", category=UserWarning)
        yield
