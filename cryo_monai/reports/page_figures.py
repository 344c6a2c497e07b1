"""The figures of a report: made, written, put into the page, and told in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cryo_monai.projections import Projection
from cryo_monai.reports.contents import RunContents
from cryo_monai.reports.figures import (
    confusion_figure,
    embedding_figure,
    png_of,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    svg_of,
    training_curves,
)
from cryo_monai.reports.pages import data_uri, decimals
from cryo_monai.reports.texts import curve_alt, extremes, worst_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = (
    "training_curves",
    "confusion_counts",
    "confusion_normalised",
    "roc",
    "precision_recall",
    "reliability",
    "embedding_tsne",
    "embedding_pca",
    "embedding_umap",
)
# Larger drawings go into the page as pixels; the file has the drawing all the same.
MAX_SVG_BYTES = 180_000
# Smallest text in the page, in CSS pixels; a figure is never shown narrower than that, but scrolls.
MIN_TEXT = 11.0
MIN_POINTS = 9.0
MAX_ENLARGED = 6  # classes; the cells of larger confusion matrices have no room
MAX_GAIN = 1.16  # of the size on screen over the figure's own


@dataclass(frozen=True)
class PageFigure:
    """A figure, its files and its place in the page.

    Attributes
    ----------
    name : str
        Of its files.
    svg, png
        Their content.
    shown : dict
        For the macro ``figure`` of ``parts.html.jinja``.
    """

    name: str
    svg: str
    png: bytes
    shown: dict[str, Any]


def page_figure(name: str, figure: Figure, *, title: str, alt: str, how: str, enlarged: bool = True) -> PageFigure:
    """Write a figure to SVG and PNG, and say how the page shows it.

    Parameters
    ----------
    name : str
        Of the files.
    figure : Figure
        From `cryo_monai.reports.figures`.
    title, how : str
        Caption: what it is, and in one sentence how to read it.
    alt : str
        What it shows, for those who cannot see it.
    enlarged : bool
        Raise small text to what a telephone can show in full width; else the figure scrolls there.
    """
    if enlarged:
        _enlarge_text(figure)
    svg, png = svg_of(figure), png_of(figure)
    width, texts = drawn_size(svg)
    inches = figure.get_size_inches()
    minimum = width * MIN_TEXT / min(texts, default=MIN_TEXT)
    shown_width = max(MAX_GAIN * width, minimum)
    uri = data_uri(svg, "svg") if len(svg) <= MAX_SVG_BYTES else data_uri(png, "png")
    shown = {
        "title": title,
        "alt": alt,
        "how": how,
        "uri": uri,
        "width": round(shown_width),
        "height": round(shown_width * inches[1] / inches[0]),
        "minimum": math.ceil(minimum),
        "wide": shown_width > 640,
    }
    return PageFigure(name, svg, png, shown)


def _enlarge_text(figure: Figure) -> None:
    """Raise small text to 9 points, which a telephone of 390 pixels shows in full width with 11 pixels."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.tick_params(labelsize=MIN_POINTS)
    for text in figure.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), MIN_POINTS))


def training_figures(run: RunContents) -> list[PageFigure]:
    """Fig. 6 of the paper; nothing without a history."""
    if not run.history:
        return []
    figure = training_curves(run.history, best_epoch=run.training.get("best_epoch"))
    how = (
        "How to read this: validation should follow training; where it turns while training still improves, the "
        "network has begun to learn the training volumes by heart."
    )
    return [page_figure("training_curves", figure, title="Loss, accuracy and AUC", alt=curve_alt(run), how=how)]


def confusion_figures(run: RunContents) -> list[PageFigure]:
    """Show counts, and shares of each true class (fig. 4 of the paper)."""
    matrix, names = run.evaluation["confusion_matrix"], run.class_names
    right = int(np.trace(np.array(matrix)))
    alt = f"{right} of {run.evaluation['num_volumes']} volumes are on the diagonal. {worst_confusion(run)}"
    kinds = (
        (
            "confusion_counts",
            "Counts",
            False,
            "How to read this: a row is a true class, a column what it was taken for; all off the diagonal is wrong.",
        ),
        (
            "confusion_normalised",
            "Share of each true class",
            True,
            "How to read this: each row adds up to 1, so that the diagonal is the recall of the class.",
        ),
    )
    return [
        page_figure(
            name,
            confusion_figure(matrix, names, normalised=normalised),
            title=title,
            alt=f"Confusion matrix, {title.lower()}. {alt}",
            how=how,
            enlarged=len(names) <= MAX_ENLARGED,
        )
        for name, title, normalised, how in kinds
    ]


def curve_figures(run: RunContents) -> list[PageFigure]:
    """ROC and precision over recall, each class against the others."""
    if run.scores is None:
        return []
    given = (run.scores.probabilities, run.scores.labels, run.class_names)
    return [
        page_figure(
            "roc",
            roc_figure(*given),
            title="Receiver operating characteristic",
            alt=f"ROC curves, each class against the others; mean area {decimals(run.evaluation['auc'])}. "
            f"{extremes(run, 'auc')}",
            how="How to read this: the further a curve goes into the upper left corner, the better the class is told "
            "from the others; the dotted diagonal is chance.",
        ),
        page_figure(
            "precision_recall",
            precision_recall_figure(*given),
            title="Precision and recall",
            alt=f"Precision over recall, each class against the others. By F1: {extremes(run, 'f1')}",
            how="How to read this: a curve shows what share of the picks is right when so many of the class are to be "
            "found; with rare classes it says more than the ROC curve.",
        ),
    ]


def reliability_figures(run: RunContents) -> list[PageFigure]:
    """Accuracy over confidence, before and after temperature scaling."""
    calibration = run.evaluation.get("calibration") or {}
    after = calibration.get("after")
    if not after:
        return []
    before = calibration.get("before") or {"bins": [], "ece": None}
    alt = (
        f"Reliability diagram: expected calibration error {decimals(before['ece'])} before and "
        f"{decimals(after['ece'])} after temperature scaling."
    )
    how = (
        "How to read this: on the diagonal, of volumes that are given a class with 80 % eighty in a hundred are of it; "
        "below it the network is too sure, above it too cautious."
    )
    figure = reliability_figure(before["bins"], after["bins"])
    return [page_figure("reliability", figure, title="Reliability diagram", alt=alt, how=how)]


def embedding_figures(run: RunContents, rows: Sequence[int], projections: Sequence[Projection]) -> list[PageFigure]:
    """Each projection as a figure, for paper."""
    how = "How to read this: near points look alike to the network; distances between groups mean little."
    figures: list[PageFigure] = []
    if run.scores is None:
        return figures
    labels = run.scores.labels[list(rows)]
    for projection in projections:
        figure = embedding_figure(projection.points, labels, run.class_names, title=projection.description)
        alt = (
            f"{projection.description}, of the features of {len(rows)} test volumes of {len(run.class_names)} classes."
        )
        figures.append(
            page_figure(f"embedding_{projection.method}", figure, title="Features of the network", alt=alt, how=how)
        )
    return figures


def drawn_size(svg: str) -> tuple[float, list[float]]:
    """Width of an SVG in CSS pixels at its own size, and the sizes of its text in the same."""
    unit = {"pt": 96 / 72, "px": 1.0, "": 1.0}
    found = re.search(r'<svg[^>]*?\swidth="([\d.]+)(pt|px|)"', svg)
    box = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+)', svg)
    width = float(found[1]) * unit[found[2]] if found else 0.0
    scale = width / float(box[1]) if box else 1.0
    sizes = [float(size) * scale for size in re.findall(r"font(?:-size)?:[^;\"]*?([\d.]+)px", svg)]
    return width, sizes
