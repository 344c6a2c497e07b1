"""Explanations of a run's decisions: maps to open over the volumes, panels to look at, and how far to trust them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cryo_monai
from cryo_monai.datasets import items_fingerprint
from cryo_monai.errors import InputError
from cryo_monai.explanations.cells import Shape
from cryo_monai.explanations.explained_runs import (
    as_plain_tensor,
    choose_volumes,
    network_of,
    starting_network,
    volumes_of,
)
from cryo_monai.explanations.faithfulness_pictures import faithfulness_figure
from cryo_monai.explanations.maps import check_request, layer_grid
from cryo_monai.explanations.records import explanations_table, faithfulness_numbers, file_names
from cryo_monai.explanations.volume_explanations import VolumeExplainer
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.folders import Journal, claimed, note_recipe
from cryo_monai.networks import VideoClassifier
from cryo_monai.parts import network_fingerprint
from cryo_monai.reports.canvases import png_of, short_names, svg_of

LIMIT = 16
KIND = "explanation"
FEW_CELLS = 4

logger = logging.getLogger(__name__)


def explain_run(
    run_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    method: str = "grad_cam",
    layer: str = "layer3",
    class_name: str | None = None,
    limit: int | None = LIMIT,
    compare: str | os.PathLike[str] | None = None,
    against_start: bool = False,
    faithfulness: bool = True,
    voxel_size: float | None = None,
    progress: Callable[[int, int], object] | None = None,
    ids: Mapping[str, Any] | None = None,
) -> Path:
    """Explain a run's network on volumes; see `explain_volumes` for the maps and `hiding_curves` for their tests.

    Written are ``maps/NAME.mrc`` (or ``.nii.gz``, see `write_overlay`), ``compared_maps/``, ``panels/NAME.png``,
    ``explanations.csv``, ``faithfulness.json`` and the figure of it as SVG and PNG; ``explanation.json`` holds the
    request. An interrupted call is continued by the same call and loses at most a volume.

    Parameters
    ----------
    run_dir : path
        A run folder; its best weights are explained.
    data : path
        A volume, a folder or a datalist; ``"test"`` for the run's test split, ``"./test"`` for a folder of that name.
    output_dir : path, optional
        Created when missing; ``explanations`` in the run folder by default. A folder that holds something else, or
        another explanation, is refused.
    method, layer : str
        See `explain_volumes`.
    class_name : str, optional
        Explained in every volume; by default what the run predicts for it.
    limit : int, optional
        Volumes at most, chosen at random and evenly over classes, see `choose_volumes`; 0 or None for all.
    compare : path, optional
        Another run of the same classes, such as one from random weights; explained for the same class.
    against_start : bool
        Compare with the run's own network before training (Adebayo et al. 2018, arXiv 1810.03292: a map that does not
        change when weights are random explains no weights).
    faithfulness : bool
        Compute deletion and insertion curves, for which each network runs some 120 times per volume.
    voxel_size : float, optional
        Å of the overlays, where files do not say.
    progress : callable, optional
        Called with the volumes that are done and those there are to do.
    ids : mapping, optional
        Ids of the bundle's inference.json, such as ``device``.

    Returns
    -------
    Path
        The ``explanations.csv``.

    Raises
    ------
    CryoMonaiError
        In one line, before anything is computed, for what the user can mend.
    """
    if compare is not None and against_start:
        raise InputError("compare: give another run, or against_start for the same run before training, not both")
    if limit is not None and limit < 0:
        raise InputError(f"limit: {limit} must be 0 or more; 0 is for all volumes")
    networks = {"run": network_of(run_dir, ids=ids)}
    cells = _checked_cells(networks["run"], method, layer)
    _check_class(class_name, networks["run"])
    items, dataset = volumes_of(run_dir, data, ids=ids)
    rows = choose_volumes([str(item.get("class_name", "")) for item in items], limit or None)
    if against_start or compare is not None:
        networks["compared"] = _compared_network(run_dir, compare, networks["run"], ids)
        _checked_cells(networks["compared"], method, layer)
    settings = {
        "method": method,
        "layer": layer,
        "class_name": class_name,
        "limit": limit or None,
        "compare": None if compare is None else str(Path(compare).resolve()),
        "against_start": against_start,
        "faithfulness": faithfulness,
        "voxel_size": voxel_size,
    }
    folder = Path(run_dir) / "explanations" if output_dir is None else Path(output_dir)
    called = _names_of(run_dir, compare)
    with claimed(folder, KIND):
        note_recipe(folder, _recipe(run_dir, data, settings, networks, [items[row] for row in rows]), KIND)
        explainer = VolumeExplainer(folder, networks, method, layer, class_name, faithfulness, voxel_size, called)
        entries = _explain_each(explainer, items, dataset, rows, progress)
        facts = {
            "method": method,
            "layer": None if cells is None else layer,
            "cells": cells,
            "class_explained": class_name or "predicted by the run",
            "volumes_there_are": len(items),
            "choice": "all" if len(rows) == len(items) else "at random, evenly over classes",
        }
        _write_summary(folder, entries, facts, called)
    return folder / "explanations.csv"


def _recipe(
    run_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    settings: Mapping[str, Any],
    networks: Mapping[str, VideoClassifier],
    chosen: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that the files hang on; another recipe is another explanation."""
    return {
        "made_by": f"cryo-monai {cryo_monai.__version__}",
        "run": str(Path(run_dir).resolve()),
        "data": str(data),
        "settings": settings,
        "network": network_fingerprint(networks["run"]),
        "compared_network": network_fingerprint(networks["compared"]) if "compared" in networks else None,
        "volumes": items_fingerprint(chosen),
    }


def _explain_each(
    explainer: VolumeExplainer,
    items: Sequence[Mapping[str, Any]],
    dataset: Any,
    rows: Sequence[int],
    progress: Callable[[int, int], object] | None,
) -> Sequence[Mapping[str, Any]]:
    """Explain the volumes whose files are not there yet, and return what is noted of all."""
    journal = Journal(explainer.folder / "progress" / "volumes.jsonl")
    names = file_names([str(items[row]["path"]) for row in rows])
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        known = journal.entries[number] if number < len(journal.entries) else None
        if known is None or not all((explainer.folder / file).is_file() for file in known["files"]):
            entry = explainer.explain(items[row], as_plain_tensor(dataset[row]["image"]), name)
            if known is None:
                journal.append([entry])
        if progress:
            progress(number + 1, len(rows))
    return journal.entries


def _write_summary(
    folder: Path, entries: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    heading = str(facts["method"]).replace("_", "-") + (f", {facts['layer']}" if facts["layer"] else "")
    numbers = faithfulness_numbers(entries, heading=heading, names=names, **facts)
    atomic_write_text(folder / "faithfulness.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    maps = [network["orders"]["map"] for network in numbers["networks"].values()]
    if any(found["curves"] or found["mass_inside"] for found in maps):
        figure = faithfulness_figure(numbers)
        atomic_write_text(folder / "faithfulness.svg", svg_of(figure))
        atomic_write_bytes(folder / "faithfulness.png", png_of(figure))
    atomic_write_text(folder / "explanations.csv", explanations_table(entries))


def _checked_cells(network: VideoClassifier, method: str, layer: str) -> Shape | None:
    """Check the request, and return the cells of the layer's map; warn when they are too few to show places."""
    check_request(network, method=method, layer=layer)
    if method == "occlusion":
        return None
    cells = layer_grid(network, layer)
    if min(cells[1:]) < FEW_CELLS:
        shown, clip = (" x ".join(map(str, sizes)) for sizes in (cells, network.clip_size))
        logger.warning(
            "%s: its map of clips of %s has %s cells; an earlier layer tells places better", layer, clip, shown
        )
    return cells


def _names_of(run_dir: str | os.PathLike[str], compare: str | os.PathLike[str] | None) -> dict[str, str]:
    run, other = Path(run_dir).resolve().name, "before training" if compare is None else Path(compare).resolve().name
    if other == run:
        run, other = "this run", "compared run"
    run, other = short_names([run, other], 18)
    return {"run": run, "compared": other}


def _check_class(class_name: str | None, network: VideoClassifier) -> None:
    if class_name is not None and class_name not in network.class_names:
        raise InputError(f"class_name: {class_name!r} is not one of {', '.join(network.class_names)}")


def _compared_network(
    run_dir: str | os.PathLike[str],
    compare: str | os.PathLike[str] | None,
    network: VideoClassifier,
    ids: Mapping[str, Any] | None,
) -> VideoClassifier:
    """Return the network of another run, or of this one as its training began."""
    if compare is None:
        return starting_network(run_dir, network)
    other = network_of(compare, ids=ids)
    if set(other.class_names) != set(network.class_names):
        raise InputError(
            f"{compare}: has other classes ({', '.join(other.class_names)}) than the run that it is compared with"
        )
    return other
