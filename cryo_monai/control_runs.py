"""Negative controls as experiments: make the data, train on them, and compare with chance."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.controls import chance_interval, write_background_only, write_shuffled_labels
from cryo_monai.datalists import load_datalist
from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import claimed, note_recipe
from cryo_monai.run_evaluation import evaluate_run
from cryo_monai.runs import has_state, train_bundle

CONTROLS = {
    "background": "what surrounds the particles tells the classes apart: suspect acquisition, neighbours, or particles "
    "larger than what was masked out",
    "labels": "labels that say nothing were learnt: suspect volumes that are in two splits, or the evaluation",
}


def run_control(
    kind: str,
    bundle: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    *,
    overlays: Sequence[str | os.PathLike[str]] = (),
    radius: float = 0.8,
    seed: int = 0,
    ids: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Train on a data set that teaches nothing, and say whether the network did better than chance.

    Written are ``data/`` (see `write_background_only` and `write_shuffled_labels`), ``run/``, ``control.json`` (what
    was done) and ``result.json``. An interrupted call is continued by the same call.

    Parameters
    ----------
    kind : str
        ``"background"`` or ``"labels"``.
    bundle, overlays, ids
        As in `train_bundle`.
    output_dir : path
        New, or of the same control.
    dataset_dir : path
        The data set in question.
    radius : float
        Of the sphere that is masked out, in half edges of the box; for ``"background"``.
    seed : int
        Of the split, the permutation or the filling, and the training.
    progress : callable, optional
        Called with the number of volumes just masked.

    Returns
    -------
    dict
        ``accuracy`` and ``auc`` on the test split, ``chance`` (share of its most frequent class) and ``chance_upper``
        (what guessing stays below with a probability of 95 %), ``above_chance``, and ``verdict``.

    Raises
    ------
    CryoMonaiError
        In one line, for anything the user can mend.
    """
    if kind not in CONTROLS:
        raise InputError(f"control: {kind!r} is not one of {', '.join(CONTROLS)}")
    folder, data = Path(output_dir), Path(output_dir) / "data"
    given = dict(ids or {})
    options: dict[str, Any] = {
        "split": _fractions(given.get("split", "0.6,0.2,0.2")),
        "split_by": str(given.get("split_by", "volume")),
        "seed": seed,
        "permissive": str(given.get("permissive", "False")).lower() == "true",
        "nan": str(given.get("nan", "error")),
    }
    with claimed(folder, "control"):
        places = {"bundle": bundle, "dataset_dir": dataset_dir}
        recipe: dict[str, Any] = {name: str(Path(place).resolve()) for name, place in places.items()}
        recipe |= {"overlays": [str(Path(overlay).resolve()) for overlay in overlays], "ids": given, "seed": seed}
        note_recipe(folder, {"control": kind, "radius": radius, **recipe}, "control")
        if not (data / "dataset.json").is_file():
            shutil.rmtree(data, ignore_errors=True)
            if kind == "background":
                write_background_only(dataset_dir, data, radius=radius, progress=progress, **options)
            else:
                write_shuffled_labels(dataset_dir, data, **options)
        run = folder / "run"
        training = {**given, "dataset_dir": str(data), "seed": str(seed)}
        # The lists of the control are divided already.
        training = {name: value for name, value in training.items() if name not in ("split", "split_by")}
        train_bundle(bundle, run, overlays=overlays, resume=has_state(run), ids=training)
        numbers = evaluate_run(run)
        counts = Counter(item["label"] for item in load_datalist(data)["test"])
        share, upper = chance_interval(list(counts.values()))
        above = numbers["accuracy"] > upper
        result = {
            "control": kind,
            "accuracy": numbers["accuracy"],
            "auc": numbers["auc"],
            "num_volumes": sum(counts.values()),
            "chance": share,
            "chance_upper": upper,
            "above_chance": above,
            "verdict": f"above chance: {CONTROLS[kind]}" if above else "not above chance, as it should be",
        }
        atomic_write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _fractions(split: Any) -> list[float]:
    """Read ``0.6,0.2,0.2`` or ``[0.6, 0.2, 0.2]``."""
    parts = split.strip("[] ").split(",") if isinstance(split, str) else split
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise InputError(f"split: {split} is not three fractions, such as 0.6,0.2,0.2") from None
