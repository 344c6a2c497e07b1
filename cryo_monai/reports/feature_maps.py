"""The interactive map of a run's features: points, classes and thumbnails as plain values for the page's script."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.colours import colour_of, marker_of
from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.projections import MIN_VOLUMES, Projection, describe_projection
from cryo_monai.reports.contents import RunContents, Scores
from cryo_monai.reports.pages import data_uri
from cryo_monai.reports.thumbnails import choose_rows, pack_sheets, three_slices

MAX_POINTS = 2000
# Pixels along the longest edge of a volume; with 2000 points of noise the sheets stay good enough to look at.
THUMBNAIL_EDGE = 40
# Base64 adds a third, so that the sheets take 1.5 MB of the page.
THUMBNAIL_BYTES = 1_100_000
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class FeatureMap:
    """What the page shows of the features.

    Attributes
    ----------
    data : dict or None
        For the page's script; None when there is no map.
    rows : list of int
        Test volumes that are shown.
    projections : list of Projection
        Of them.
    reasons : dict
        Why there is no map (``"features"``), or no picture of the volumes (``"thumbnails"``).
    """

    data: dict[str, Any] | None = None
    rows: Sequence[int] = ()
    projections: Sequence[Projection] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


def make_feature_map(run: RunContents) -> FeatureMap:
    """Choose test volumes, project their features, and read their thumbnails."""
    if run.scores is None:
        return FeatureMap(reasons={"features": f"There is no map: {run.missing['scores']}"})
    rows = shown_rows(run.scores)
    try:
        projections = project_rows(run.scores, rows)
    except InputError as error:
        return FeatureMap(reasons={"features": f"There is no map: {error}"})
    if not projections:
        return FeatureMap(reasons={"features": f"There is no map: {len(rows)} test volumes are too few."})
    thumbnails, reasons = None, {}
    try:
        thumbnails = thumbnails_of(run, rows, volume_edge(run, THUMBNAIL_EDGE))
    except CryoMonaiError as error:
        reasons["thumbnails"] = " ".join(str(error).split())
    return FeatureMap(map_data(run, run.scores, rows, projections, thumbnails), rows, projections, reasons)


def available_methods() -> list[str]:
    """Projections that can be made here: UMAP only where it is installed."""
    return ["tsne", "pca", *(["umap"] if find_spec("umap") else [])]


def shown_rows(scores: Scores, most: int = MAX_POINTS) -> list[int]:
    """Test volumes that the map shows: mistakes first, classes in equal parts."""
    return choose_rows(scores.labels, scores.wrong, most)


def project_rows(scores: Scores, rows: Sequence[int]) -> list[Projection]:
    """Project the features of the volumes that are shown; nothing when they are too few.

    Raises
    ------
    InputError
        When features are not finite.
    """
    if len(rows) < MIN_VOLUMES:
        return []
    features = scores.features[list(rows)]
    return [describe_projection(features, method) for method in available_methods()]


def thumbnails_of(run: RunContents, rows: Sequence[int], edge: int) -> list[npt.NDArray[np.uint8]]:
    """Read volumes of a run, one after the other, into thumbnails.

    Raises
    ------
    CryoMonaiError
        When one can no longer be read.
    """
    if run.volumes is None:
        raise CryoMonaiError(run.missing["volumes"])
    return [three_slices(run.volumes[row]["image"][0], edge=edge) for row in rows]


def volume_edge(run: RunContents, most: int) -> int:
    """Longest edge of the first volume in voxels, or fewer pixels."""
    return min(most, max(run.volumes[0]["image"].shape[1:])) if run.volumes is not None and len(run.volumes) else most


def map_data(
    run: RunContents,
    scores: Scores,
    rows: Sequence[int],
    projections: Sequence[Projection],
    thumbnails: Sequence[npt.NDArray[np.uint8]] | None,
) -> dict[str, Any]:
    """Gather what the page's script draws.

    Parameters
    ----------
    run : RunContents
        For the names of classes.
    scores : Scores
        Of all test volumes.
    rows : sequence of int
        Those that are shown.
    projections : sequence of Projection
        Of them.
    thumbnails : sequence of array, optional
        Of them; None when they could not be read.
    """
    folder, paths = shortened([scores.paths[row] for row in rows])
    sheets = None
    if thumbnails:
        packed = pack_sheets(thumbnails, budget=THUMBNAIL_BYTES)
        sheets = {
            "images": [data_uri(image, "webp") for image in packed.images],
            "width": packed.width,
            "height": packed.height,
            "columns": packed.columns,
            "perSheet": packed.per_sheet,
        }
    return {
        "classes": [
            {"name": name, "colour": colour_of(n), "shape": marker_of(n)} for n, name in enumerate(run.class_names)
        ],
        "labels": scores.labels[list(rows)].tolist(),
        "predicted": scores.predicted[list(rows)].tolist(),
        "probabilities": [round(float(value), 4) for value in scores.confidence[list(rows)]],
        "folder": folder,
        "paths": paths,
        "projections": [
            {"method": p.method, "name": NAMES[p.method], "description": p.description, "points": _places(p.points)}
            for p in projections
        ],
        "sheets": sheets,
    }


def shortened(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Take off the folder that all paths begin with; return it and what is left."""
    if len(paths) < 2 or any(not os.path.isabs(path) for path in paths):
        return "", list(paths)
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder, [os.path.relpath(path, folder) for path in paths]


def _places(points: npt.NDArray[np.float32]) -> list[list[float]]:
    """Points in a square from -1 to 1, one scale for both axes."""
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2
    scaled = centred / max(float(np.abs(centred).max()), 1e-12)
    return [[round(float(x), 4), round(float(y), 4)] for x, y in scaled]
