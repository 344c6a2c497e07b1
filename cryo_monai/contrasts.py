"""Whether density is dark or bright in boxes: a network that knows the one is lost with the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

CONTRAST_SAMPLE = 200  # volumes that are looked at
CONTRAST_SURE = 4.0  # standard errors


def contrast_of(volumes: Iterable[npt.ArrayLike]) -> dict[str, Any]:
    """Say whether density in boxes is dark or bright.

    The middle (within a quarter of the edge of the centre) is compared with the corners (outside the sphere that
    touches the faces), in units of the box's standard deviation, and the mean difference over the boxes with its
    standard error.

    Parameters
    ----------
    volumes : iterable of array
        `(z, y, x)` each, of any size and intensity; looked at one by one.

    Returns
    -------
    dict
        ``density``: ``"dark"``, ``"bright"``, or ``"unclear"`` below four standard errors; ``difference``;
        ``standard_errors``.
    """
    found = np.array([_middle_less_corners(np.asarray(volume)) for volume in volumes])
    difference = float(found.mean())
    error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 2 else math.inf
    sure = abs(difference) / error if error > 0 else (math.inf if difference else 0.0)
    density = "unclear" if sure < CONTRAST_SURE else ("bright" if difference > 0 else "dark")
    shown = round(min(sure, 1e6), 2)
    return {"density": density, "difference": round(difference, 4), "standard_errors": shown}


def _middle_less_corners(volume: npt.NDArray[Any]) -> float:
    axes = [(np.arange(n) - (n - 1) / 2) / n for n in volume.shape]
    squared = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    spread = float(volume.std(dtype=np.float64))
    middle, corners = volume[squared < 0.25**2], volume[squared > 0.5**2]
    apart = float(middle.mean(dtype=np.float64) - corners.mean(dtype=np.float64))
    return apart / spread if spread > 0 else 0.0


def contrast_warning(wanted: Mapping[str, Any] | None, found: Mapping[str, Any], of: str) -> str | None:
    """Say in a line that contrasts disagree, when both are sure."""
    if not wanted or {wanted["density"], found["density"]} != {"dark", "bright"}:
        return None
    return (
        f"density looks {found['density']} in these boxes ({found['standard_errors']:g} standard errors), but "
        f"{wanted['density']} in {of}; change the sign with --invert"
    )
