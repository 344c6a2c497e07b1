"""What explanations leave in numbers: a table of volumes, and how far the maps are to be trusted."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryo_monai.intervals import interval_of_mean

GROUPS = ("run", "compared", "random_order", "centred_ball")
COLUMNS = ("path", "true_class", "predicted_class", "explained_class", "probability", "deletion", "insertion",
           "mass_inside", "mask_fraction", "map", "panel")  # fmt: skip
COMPARED = ("predicted_class", "probability", "deletion", "insertion", "mass_inside", "map")


def file_names(paths: Sequence[str]) -> list[str]:
    """Make a short name for the files of each volume: number, folder and file, without what file systems dislike."""
    names = []
    for number, path in enumerate(paths):
        parts = Path(path).parts[-2:]
        stem = re.sub(r"(\.nii)?(\.(gz|bz2))?$", "", "_".join(part for part in parts if part != os.sep))
        stem = re.sub(r"\.(mrcs?|map|rec|st|npy|png|nii)$", "", stem)
        names.append(f"{number:04d}_{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)[-60:]}")
    return names


def explanations_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV text with a row per volume; columns of the compared network are led by ``compared_``.

    Parameters
    ----------
    entries : sequence of mapping
        Of a journal: facts of the volume, and under ``groups`` those of each network and control.
    """
    compared = any("compared" in entry["groups"] for entry in entries)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"compared_{name}" for name in COMPARED if compared)])
    for entry in entries:
        row = {**entry["groups"]["run"], **entry}
        other = entry["groups"].get("compared", {})
        table.writerow(
            [
                *(_cell(row.get(name)) for name in COLUMNS),
                *(_cell(other.get(name)) for name in COMPARED if compared),
            ]
        )
    return text.getvalue()


def faithfulness_numbers(
    entries: Sequence[Mapping[str, Any]], *, heading: str, names: Mapping[str, str], **facts: Any
) -> dict[str, Any]:
    """Average over volumes, with bootstrap 95 % intervals of the means.

    Parameters
    ----------
    entries : sequence of mapping
        See `explanations_table`.
    heading : str
        What was explained, for figures.
    names : mapping
        What to call the groups.
    **facts
        Plain values to put beside.

    Returns
    -------
    dict
        ``groups`` with, for each of the networks and controls, the means and intervals of ``deletion``, ``insertion``
        and ``mass_inside`` (over maps that are not zero everywhere, of volumes whose particle is known), how many maps
        were ``empty``, and ``curves``; ``mask_fraction``, the mass inside of a map that knows nothing; ``fractions``.
    """
    groups: dict[str, Any] = {}
    for name in GROUPS:
        found = [entry["groups"][name] for entry in entries if name in entry["groups"]]
        if not found:
            continue
        group: dict[str, Any] = {"name": names.get(name, name)}
        for key in ("deletion", "insertion", "mass_inside"):
            group[key] = _mean([one.get(key) for one in found])
        group["empty"] = sum(bool(one.get("empty")) for one in found)
        if all("deletion_curve" in one for one in found):
            group["curves"] = {
                part: _mean_curve([one[f"{part}_curve"] for one in found]) for part in ("deletion", "insertion")
            }
        groups[name] = group
    steps = next(
        (len(e["groups"]["run"]["deletion_curve"]) for e in entries if "deletion_curve" in e["groups"]["run"]), 0
    )
    return {
        "heading": heading,
        **facts,
        "num_volumes": len(entries),
        "interval": "95 %, bootstrap over volumes; it covers the choice of volumes, not another training",
        "mask_fraction": _mean([entry.get("mask_fraction") for entry in entries]),
        "fractions": np.linspace(0, 1, steps).round(6).tolist() if steps else [],
        "groups": groups,
    }


def _mean(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "interval": interval_of_mean(known), "count": len(known)}


def _mean_curve(curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    means = np.mean(curves, axis=0)
    # A point that does not vary, or of one volume, has no interval.
    intervals = [
        interval_of_mean(list(values)) or [mean] * 2 for values, mean in zip(np.transpose(curves), means, strict=True)
    ]
    low, high = np.transpose(intervals)
    return {"mean": means.round(6).tolist(), "low": low.round(6).tolist(), "high": high.round(6).tolist()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
