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

# Orders in which voxels are hidden, and what to call them.
ORDERS = {"map": "map", "random_order": "random blobs", "centred_ball": "ball in the middle"}
COLUMNS = ("path", "true_class", "predicted_class", "explained_class", "probability", "advantage", "ball_advantage",
           "deletion", "insertion", "mass_inside", "mask_fraction", "map", "panel")  # fmt: skip
COMPARED = ("predicted_class", "probability", "advantage", "ball_advantage", "deletion", "insertion", "mass_inside",
            "map")  # fmt: skip
ADVANTAGE = (
    "per volume, (insertion - deletion) of the map less the same of random blobs (taken both ways), for the same "
    "network; 0 is chance. deletion and insertion themselves follow a network's confidence: they rank no networks"
)
INTERVAL = "95 %, Student's t over volumes; it covers the choice of volumes, not another training"


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
        Of a journal: facts of the volume, and under ``networks`` those of each network: of its map and, under
        ``orders``, of its map's order and of controls.
    """
    compared = any("compared" in entry["networks"] for entry in entries)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"compared_{name}" for name in COMPARED if compared)])
    for entry in entries:
        row = {**entry, **_columns_of(entry["networks"]["run"])}
        other = _columns_of(entry["networks"]["compared"]) if compared else {}
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
    """Average over volumes, with 95 % intervals of the means.

    Parameters
    ----------
    entries : sequence of mapping
        See `explanations_table`.
    heading : str
        What was explained, for figures.
    names : mapping
        What to call the networks.
    **facts
        Plain values to put beside.

    Returns
    -------
    dict
        ``networks`` with ``orders`` of each: the map, random blobs and a ball, with means and intervals of
        ``advantage`` over the random blobs, of ``deletion``, ``insertion`` and ``mass_inside`` (over maps that are not
        zero everywhere, of volumes whose particle is known), how many maps were ``empty``, and ``curves``;
        ``mask_fraction``, the mass inside of a map that knows nothing; ``fractions``.
    """
    networks: dict[str, Any] = {
        key: {"name": names[key], "orders": _averaged_orders([entry["networks"][key]["orders"] for entry in entries])}
        for key in (entries[0]["networks"] if entries else ())
    }
    curves = [order["curves"] for network in networks.values() for order in network["orders"].values()]
    steps = len(curves[0]["deletion"]["mean"]) if curves and curves[0] else 0
    return {
        "heading": heading,
        **facts,
        "num_volumes": len(entries),
        "advantage": ADVANTAGE,
        "interval": INTERVAL,
        "mask_fraction": _mean([entry.get("mask_fraction") for entry in entries]),
        "fractions": np.linspace(0, 1, steps).round(6).tolist() if steps else [],
        "networks": networks,
    }


def _columns_of(network: Mapping[str, Any]) -> dict[str, Any]:
    orders = network["orders"]
    return {**orders["map"], **network, "ball_advantage": orders.get("centred_ball", {}).get("advantage")}


def _averaged_orders(volumes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    orders: dict[str, Any] = {}
    for key, name in ORDERS.items():
        found = [volume[key] for volume in volumes if key in volume]
        if not found:
            continue
        orders[key] = {"name": name, "empty": sum(one["empty"] for one in found), "curves": None}
        for number in ("advantage", "deletion", "insertion", "mass_inside"):
            orders[key][number] = _mean([one.get(number) for one in found])
        if all("deletion_curve" in one for one in found):
            orders[key]["curves"] = {
                part: _mean_curve([one[f"{part}_curve"] for one in found]) for part in ("deletion", "insertion")
            }
    return orders


def _mean(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "interval": interval_of_mean(known), "count": len(known)}


def _mean_curve(curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    means = np.mean(curves, axis=0)
    # Of fewer than three volumes there is no interval.
    intervals = [
        interval_of_mean(list(values)) or [mean] * 2 for values, mean in zip(np.transpose(curves), means, strict=True)
    ]
    low, high = np.clip(np.transpose(intervals), 0, 1)
    return {"mean": means.round(6).tolist(), "low": low.round(6).tolist(), "high": high.round(6).tolist()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
