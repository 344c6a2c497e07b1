"""The mistakes that a network was surest of, to be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryo_monai.errors import CryoMonaiError
from cryo_monai.reports.contents import RunContents
from cryo_monai.reports.feature_maps import shortened, thumbnails_of, volume_edge
from cryo_monai.reports.pages import data_uri, decimals
from cryo_monai.reports.thumbnails import as_webp

SHOWN = 12
EDGE = 96  # pixels of a slice; smaller volumes are enlarged by the browser


def mistake_tiles(run: RunContents) -> tuple[list[dict[str, Any]], str]:
    """Pictures of the misclassified test volumes with the highest probability for the wrong class.

    Returns
    -------
    tuple
        Tiles with ``uri``, ``width``, ``height``, ``alt``, ``true``, ``predicted``, ``probability`` and ``path``, the
        surest first; and a sentence on why there are none.
    """
    if run.scores is None:
        return [], f"The mistakes cannot be shown: {run.missing['scores']}"
    scores = run.scores
    rows = sorted(np.flatnonzero(scores.wrong).tolist(), key=lambda row: (-scores.confidence[row], row))[:SHOWN]
    if not rows:
        return [], "No test volume was misclassified."
    try:
        pictures = thumbnails_of(run, rows, volume_edge(run, EDGE))
    except CryoMonaiError as error:
        reason = " ".join(str(error).split())
        return [], f"{scores.wrong.sum()} volumes were misclassified, but cannot be shown: {reason}"
    _, paths = shortened(scores.paths)
    tiles = []
    for row, picture in zip(rows, pictures, strict=True):
        true, taken = (run.class_names[labels[row]] for labels in (scores.labels, scores.predicted))
        chance = decimals(scores.confidence[row], 2)
        tiles.append(
            {
                "uri": data_uri(as_webp(picture, quality=90), "webp"),
                "width": picture.shape[1],
                "height": picture.shape[0],
                "alt": f"Slices xy, xz and yz of {paths[row]}: {true}, taken for {taken} with probability {chance}.",
                "true": true,
                "predicted": taken,
                "probability": chance,
                "path": paths[row],
            }
        )
    return tiles, ""
