"""Rotations of particles: uniform, as quaternions, matrices and RELION's angles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def random_quaternions(rng: np.random.Generator, count: int) -> Array:
    """Quaternions `(count, 4)`, ``(w, z, y, x)`` with ``w >= 0``, uniform on SO(3).

    Four normal numbers, normalised, are uniform on the sphere of unit quaternions (Shoemake 1992).
    """
    quaternions = rng.normal(size=(count, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return np.asarray(np.where(quaternions[:, :1] >= 0, quaternions, -quaternions))


def rotation_matrices(quaternions: npt.ArrayLike) -> Array:
    """Matrices `(..., 3, 3)` that act on ``(z, y, x)`` vectors, of unit quaternions `(..., 4)`, ``(w, z, y, x)``.

    A matrix turns the reference into the particle: a point ``p`` of the structure lies at ``R p`` in the volume.
    """
    w, a, b, c = np.moveaxis(np.asarray(quaternions, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (b * b + c * c), 2 * (a * b - c * w), 2 * (a * c + b * w)],
        [2 * (a * b + c * w), 1 - 2 * (a * a + c * c), 2 * (b * c - a * w)],
        [2 * (a * c - b * w), 2 * (b * c + a * w), 1 - 2 * (a * a + b * b)],
    ]
    return np.moveaxis(np.asarray(rows), (0, 1), (-2, -1))


def relion_angles(matrices: Array) -> Array:
    """Angles ``(rot, tilt, psi)`` in degrees, `(n, 3)`, of matrices that act on ``(z, y, x)`` vectors.

    RELION's matrix ``Rz(psi) Ry(tilt) Rz(rot)`` of passive rotations takes the reference to the particle, as ours do;
    its angles are the intrinsic ZYZ angles, of active rotations, of the inverse.
    """
    from scipy.spatial.transform import Rotation

    # Reversing both axes takes a matrix from (z, y, x) to (x, y, z).
    inverse = Rotation.from_matrix(matrices[..., ::-1, ::-1]).inv()
    return np.asarray(inverse.as_euler("ZYZ", degrees=True))


def rotation_matrices_of_angles(angles: npt.ArrayLike) -> Array:
    """Matrices `(n, 3, 3)` that act on ``(z, y, x)`` vectors, of RELION's angles; the inverse of `relion_angles`.

    Parameters
    ----------
    angles : array
        `(n, 3)`, ``(rot, tilt, psi)`` in degrees.
    """
    from scipy.spatial.transform import Rotation

    matrices = Rotation.from_euler("ZYZ", np.asarray(angles, dtype=np.float64), degrees=True).inv().as_matrix()
    return np.ascontiguousarray(matrices[..., ::-1, ::-1])
