"""Review of picks by eye: a page of thumbnails with tick boxes, and a table for those who prefer a spreadsheet."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.files import atomic_write_text

COLUMNS = ("id", "tomogram", "z", "y", "x", "score", "class_name", "keep")
KEPT = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
# Larger views are made smaller, so that a page of 1000 picks stays below 15 MB.
_MAX_VIEW = 48


def write_review(
    folder: Path,
    box_of: Callable[[int], npt.NDArray[np.float32]],
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
) -> Path:
    """Write ``review.html`` and ``review.csv`` for choosing picks by eye; all are ticked at first.

    The page stands alone: three views of each pick (xy, xz, yz; the mean of the three central slices) by class and
    score, and a button that saves the choice as ``review.csv``.

    Parameters
    ----------
    folder : path
        Created when missing.
    box_of : callable
        Returns the box `(d, h, w)` of a pick, given its place in `rows`; called once for each.
    rows : sequence of mapping
        With ``id`` (one of its own for each), ``tomogram``, ``z``, ``y``, ``x``, ``score`` and ``class_name``.
    title : str
        Heading of the page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        When rows are incomplete, two have one id, a box is not a volume, or a ``review.csv`` with other content is
        there, which may hold choices.
    """
    folder = Path(folder)
    _check_rows(rows)
    order = sorted(range(len(rows)), key=lambda n: (str(rows[n]["class_name"]), -float(rows[n]["score"]), n))
    lines = [_csv_line([*_values(rows[n])]) for n in order]
    table = "".join(f"{line}\n" for line in [",".join(COLUMNS), *(f"{line},1" for line in lines)])
    target = folder / "review.csv"
    if target.exists() and target.read_bytes() != table.encode():
        raise InputError(
            f"{target}: there is another review, perhaps with choices; move it away or choose a new folder"
        )
    cards = [_card(number, rows[n], thumbnail(box_of(n))) for number, n in enumerate(order)]
    classes = sorted({str(row["class_name"]) for row in rows})
    page = files("cryo_monai.picking").joinpath("review.html").read_text(encoding="utf-8")
    # One pass, so that nothing in a value is taken for a place.
    parts = {
        "TITLE": html.escape(title),
        "CLASSES": "".join(f'<option value="{html.escape(c)}">{html.escape(c)}</option>' for c in classes),
        "CARDS": "\n".join(cards),
        "LINES": json.dumps([",".join(COLUMNS), *lines]).replace("<", "\\u003c"),
    }
    pieces = page.split("@@")
    filled = "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))
    atomic_write_text(folder / "review.html", filled)
    atomic_write_text(target, table)
    return folder / "review.html"


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    seen: set[str] = set()
    problems = []
    for number, row in enumerate(rows):
        missing = [name for name in COLUMNS[:-1] if name not in row]
        if missing:
            problems.append(f"review: row {number} has no {', '.join(missing)}")
            continue
        if str(row["id"]) in seen or not str(row["id"]).strip():
            problems.append(f"review: row {number}: id {row['id']!r} is empty or taken; give each pick its own")
        seen.add(str(row["id"]))
    if not rows:
        problems.append("review: there are no picks to review")
    if problems:
        raise DatasetError("review", problems)


def _values(row: Mapping[str, Any]) -> list[str]:
    numbers = [f"{float(row[axis]):.2f}" for axis in ("z", "y", "x")]
    return [str(row["id"]), str(row["tomogram"]), *numbers, f"{float(row['score']):.6g}", str(row["class_name"])]


def _csv_line(values: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(values)
    return stream.getvalue()


def thumbnail(box: npt.NDArray[Any]) -> bytes:
    """PNG of three views of a box `(d, h, w)` side by side: xy, xz and yz, each the mean of three central slices.

    Grey runs from the 1st to the 99th percentile of the views; what is not finite is black.
    """
    from PIL import Image

    volume = np.asarray(box, dtype=np.float32)
    if volume.ndim != 3 or not volume.size:
        raise InputError(f"review: a box of shape {volume.shape} is not a volume (z, y, x)")
    views = [_view(volume, 0), _view(volume, 1), _view(volume, 2).T]
    values = np.concatenate([view[np.isfinite(view)] for view in views])
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    height, gap = max(view.shape[0] for view in views), 2
    sheet = np.zeros((height, sum(view.shape[1] for view in views) + 2 * gap), dtype=np.uint8)
    left = 0
    for view in views:
        grey = np.clip((view - low) / max(high - low, 1e-30), 0, 1)
        sheet[: view.shape[0], left : left + view.shape[1]] = np.nan_to_num(grey) * 255
        left += view.shape[1] + gap
    image = Image.fromarray(sheet)
    largest = max(volume.shape)
    if largest > _MAX_VIEW:
        scale = _MAX_VIEW / largest
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _view(volume: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    middle = volume.shape[axis] // 2
    first, last = max(middle - 1, 0), min(middle + 2, volume.shape[axis])
    return np.asarray(np.take(volume, range(first, last), axis=axis).mean(axis=axis))


def _card(number: int, row: Mapping[str, Any], picture: bytes) -> str:
    """One pick of the page."""
    name, group = html.escape(str(row["id"])), html.escape(str(row["class_name"]))
    place = ", ".join(f"{float(row[axis]):.0f}" for axis in ("x", "y", "z"))
    tooltip = f"{html.escape(str(row['tomogram']))}: x, y, z = {place}"
    source = base64.b64encode(picture).decode()
    return (
        f'<label class="pick" data-class="{group}" title="{tooltip}"><img alt="slices xy, xz, yz of {name}" '
        f'src="data:image/png;base64,{source}"><span><input type="checkbox" checked data-line="{number}"> {name} '
        f"<small>{group} · {float(row['score']):.3f}</small></span></label>"
    )


def read_review(path: Path) -> dict[str, bool]:
    """Read which picks are kept, by id, from a ``review.csv`` as the page or a spreadsheet saves it.

    Commas, semicolons or tabs; 1, true or yes, and 0, false or no. Only the columns ``id`` and ``keep`` are needed.

    Raises
    ------
    DatasetError
        Every problem, by line and column.
    InputError
        When it is no such table.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as a table ({error})") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    # Strict, so that a quote that is never closed does not swallow the rest.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    kept: dict[str, bool] = {}
    problems: list[str] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in ("id", "keep") if names.count(name) != 1]
        if missing:
            raise InputError(f"{path}: line 1: no single column {' nor '.join(missing)}; give {','.join(COLUMNS)}")
        for values in reader:
            if any(value.strip() for value in values):
                problems += _read_line(f"{path}: line {reader.line_num}", names, values, kept)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error
    if not kept and not problems:
        problems.append(f"{path}: no picks below the header")
    if problems:
        raise DatasetError(str(path), problems)
    return kept


def _read_line(place: str, names: Sequence[str], values: Sequence[str], kept: dict[str, bool]) -> list[str]:
    """Add a line to what is kept, and return what is wrong with it."""
    if len(values) != len(names):
        return [f"{place}: {len(values)} columns, but {len(names)} in line 1"]
    row = dict(zip(names, (value.strip() for value in values), strict=True))
    name, keep = row["id"], row["keep"].lower()
    if not name:
        return [f"{place}, column id: empty"]
    if name in kept:
        return [f"{place}, column id: {name!r} was there before"]
    if keep not in KEPT:
        return [f"{place}, column keep: {row['keep']!r}; write 1 to keep the pick, 0 to drop it"]
    kept[name] = KEPT[keep]
    return []
