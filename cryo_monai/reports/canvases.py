"""What all figures share: their size and look, legends, and how they become SVG and PNG.

A figure is a matplotlib ``Figure`` made without pyplot. The same numbers give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.2  # inches; with text of 9 points it is readable at 390 pixels
LINE_STYLES = ("-", "--", ":", "-.")
INK, GREY, PALE = "#222222", "#767676", "#C8C8C8"

STYLE = {
    "font.size": 9,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,  # a name of a class may have dollar signs
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "cryo-monai",
}


@contextmanager
def styled() -> Iterator[None]:
    """Set the look of everything that is drawn inside; also a decorator."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(height: float, *, width: float = WIDTH, label: str) -> Figure:
    """Make an empty figure of a size in inches; ``label`` says what it shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_label(label)
    return figure


@styled()
def svg_of(figure: Figure) -> str:
    """Return a figure as one ``<svg>`` element, to be written to a file or put into a page.

    Text stays text, in the reader's sans-serif. The element has ``role="img"`` and what the figure shows as
    ``aria-label``; only ids that the picture itself refers to are kept, so that several fit into one page.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), dpi=150)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", text)
    text = _renamed_ids(text)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', 'Liberation Sans', Arial")
    return text.replace("<svg ", f'<svg role="img" aria-label={quoteattr(str(figure.get_label()))} ', 1).strip() + "\n"


def _renamed_ids(text: str) -> str:
    """Name ids by what the picture shows; matplotlib's hang on the last bits of coordinates, which vary by rounding."""
    references = r'( id="|url\(#|href="#)([^")]+)'
    ids = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in re.findall(references, text)))}
    text = re.sub(references, lambda match: f"{match[1]}{ids[match[2]]}", text)
    picture = hashlib.sha256(text.encode()).hexdigest()[:10]
    return re.sub(references, lambda match: f"{match[1]}p{picture}_{match[2]}", text)


@styled()
def png_of(figure: Figure, dpi: int = 150) -> bytes:
    """Return a figure as a PNG picture."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Cut names to a length, with an ellipsis in the middle; if that makes some equal, all are led by their number."""
    short = [_shorten(name, length) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{number}: {_shorten(name, max(length - 4, 3))}" for number, name in enumerate(names)]


def _shorten(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def legend_below(figure: Figure, handles: list[Any], *, columns: int = 2) -> None:
    """Put a legend below all axes; how high `legend_height` says."""
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2, handletextpad=0.5,
            labelspacing=0.25, borderaxespad=0.2,
        )  # fmt: skip


def legend_height(entries: int, *, columns: int = 2) -> float:
    """Inches that a legend of so many entries takes."""
    return 0.1 + 0.155 * -(-entries // columns)
