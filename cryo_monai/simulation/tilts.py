"""Tilt schemes: the angles of a tilt series and the dose that the specimen had taken at each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryo_monai.errors import InputError

SCHEMES = ("dose_symmetric", "bidirectional", "continuous")


@dataclass(frozen=True)
class TiltSeries:
    """Tilts in order of angle.

    Attributes
    ----------
    angles_deg : tuple of float
        Increasing.
    doses : tuple of float
        Electrons/Å^2 that the specimen had taken at the middle of each image's exposure.
    """

    angles_deg: tuple[float, ...]
    doses: tuple[float, ...]


def tilt_scheme(*, max_tilt_deg: float, tilt_step_deg: float, scheme: str, dose_per_tilt: float) -> TiltSeries:
    """Tilts from ``-max_tilt_deg`` to ``+max_tilt_deg``.

    Parameters
    ----------
    max_tilt_deg, tilt_step_deg : float
        Range and step; zero is always a tilt.
    scheme : {"dose_symmetric", "bidirectional", "continuous"}
        Order of exposure: 0, +1, -1, -2, +2, +3 ... steps (Hagen et al. 2017); from 0 up, then from below 0 down; from
        lowest to highest.
    dose_per_tilt : float
        Electrons/Å^2.
    """
    count = int(np.floor(max_tilt_deg / tilt_step_deg + 1e-6))
    angles = np.arange(-count, count + 1) * tilt_step_deg
    return with_doses(angles, np.full(len(angles), dose_per_tilt), acquisition_order(angles, scheme))


def acquisition_order(angles_deg: np.ndarray, scheme: str) -> np.ndarray:
    """Return indices of tilts, which are in order of angle, as a scheme exposes them; see `tilt_scheme`."""
    if scheme == "continuous":
        return np.arange(len(angles_deg))
    first = int(np.abs(angles_deg).argmin())
    up, down = list(range(first + 1, len(angles_deg))), list(range(first - 1, -1, -1))
    if scheme == "bidirectional":
        return np.array([first, *up, *down])
    order = [first]
    sides = [up, down]
    # Pairs change sides: + - | - + | + - ...
    for pair in range(max(len(up), len(down))):
        for side in sides if pair % 2 == 0 else sides[::-1]:
            if pair < len(side):
                order.append(side[pair])
    return np.array(order)


def with_doses(angles_deg: np.ndarray, exposure: np.ndarray, order: np.ndarray) -> TiltSeries:
    """Tilt series of angles, the dose of each, and the order in which they were exposed."""
    doses = np.zeros(len(angles_deg))
    doses[order] = np.cumsum(exposure[order]) - exposure[order] / 2
    by_angle = np.argsort(angles_deg, kind="stable")
    return TiltSeries(tuple(angles_deg[by_angle].tolist()), tuple(doses[by_angle].tolist()))


def read_tilts(path: str | os.PathLike[str], *, scheme: str, dose_per_tilt: float) -> TiltSeries:
    """Read the tilts of a real series.

    Parameters
    ----------
    path : path
        ``.mdoc`` of SerialEM (``TiltAngle``, ``ExposureDose``, and the order of ``DateTime``, or else of the
        sections), or ``.tlt``, ``.rawtlt`` or ``.txt`` with one angle per line.
    scheme : str
        Order of exposure where the file does not tell.
    dose_per_tilt : float
        Where the file does not tell, or says 0.

    Raises
    ------
    InputError
        Naming file, line and reason.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of tilt angles")
    angles, exposure, order = (
        _read_mdoc(path, dose_per_tilt)
        if path.suffix.lower() == ".mdoc"
        else (*_read_angles(path, dose_per_tilt), None)
    )
    if len(angles) < 2:
        raise InputError(f"{path}: {len(angles)} tilt angles; two or more are needed")
    values, counts = np.unique(angles, return_counts=True)
    if counts.max() > 1:
        raise InputError(f"{path}: the tilt angle {values[counts.argmax()]:g} occurs {counts.max()} times")
    if np.abs(angles).max() > 90:
        raise InputError(f"{path}: a tilt of {angles[np.abs(angles).argmax()]:g} degrees; at most 90 are possible")
    if order is None:
        by_angle = np.argsort(angles)
        angles, exposure = angles[by_angle], exposure[by_angle]
        order = acquisition_order(angles, scheme)
    return with_doses(angles, exposure, order)


def _read_angles(path: Path, dose_per_tilt: float) -> tuple[np.ndarray, np.ndarray]:
    angles = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            angles.append(float(line.split()[0]))
            if not np.isfinite(angles[-1]):
                raise ValueError
        except ValueError:
            raise InputError(f"{path}: line {number}: {line.strip()[:40]!r} is not a tilt angle") from None
    return np.array(angles), np.full(len(angles), dose_per_tilt)


def _read_mdoc(path: Path, dose_per_tilt: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import mdocfile

    try:
        table = mdocfile.read(path)
        angles = table["TiltAngle"].to_numpy(dtype=float)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        reason = "no TiltAngle" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable mdoc file of a tilt series ({reason})") from error
    if not np.isfinite(angles).all():
        raise InputError(f"{path}: a section without TiltAngle")
    exposure = np.full(len(angles), dose_per_tilt)
    if "ExposureDose" in table:
        stated = table["ExposureDose"].to_numpy(dtype=float)
        exposure = np.where(np.isfinite(stated) & (stated > 0), stated, dose_per_tilt)
    order = np.arange(len(angles))  # sections are written as they are exposed, unless times say otherwise
    if "DateTime" in table and table["DateTime"].notna().all():
        import pandas as pd

        order = np.argsort(pd.to_datetime(table["DateTime"], format="mixed").to_numpy(), kind="stable")
    return angles, exposure, order
