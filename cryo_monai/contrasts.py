"""Whether density is dark or bright in boxes: a network that knows the one is lost with the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

CONTRAST_SAMPLE = 200  # volumes that are looked at
CONTRAST_SURE = 4.0  # standard errors


def contrast_of(volumes: npt.ArrayLike) -> dict[str, Any]:
    """Say whether density in boxes is dark or bright.

    The middle (within a quarter of the edge of the centre) is compared with the corners (outside the sphere that
    touches the faces), in units of the box's standard deviation, and the mean difference over the boxes with its
    standard error.

    Parameters
    ----------
    volumes : array
        `(n, z, y, x)`, of any sizes and intensities.

    Returns
    -------
    dict
        ``density``: ``"dark"``, ``"bright"``, or ``"unclear"`` below four standard errors; ``difference``;
        ``standard_errors``.
    """
    boxes = np.asarray(volumes, dtype=np.float64)
    axes = [(np.arange(n) - (n - 1) / 2) / n for n in boxes.shape[1:]]
    radius = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    spread = boxes.std(axis=(1, 2, 3))
    found = (boxes[:, radius < 0.25].mean(1) - boxes[:, radius > 0.5].mean(1)) / np.where(spread > 0, spread, 1)
    difference = float(found.mean())
    error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 2 else math.inf
    sure = abs(difference) / error if error > 0 else (math.inf if difference else 0.0)
    density = "unclear" if sure < CONTRAST_SURE else ("bright" if difference > 0 else "dark")
    shown = round(min(sure, 1e6), 2)
    return {"density": density, "difference": round(difference, 4), "standard_errors": shown}


def contrast_warning(wanted: Mapping[str, Any] | None, found: Mapping[str, Any], of: str) -> str | None:
    """Say in a line that contrasts disagree, when both are sure."""
    if not wanted or {wanted["density"], found["density"]} != {"dark", "bright"}:
        return None
    return (
        f"density looks {found['density']} in these boxes ({found['standard_errors']:g} standard errors), but "
        f"{wanted['density']} in {of}; change the sign with --invert"
    )
