"""Thumbnails of volumes: three orthogonal slices each, one by one or on sheets of hundreds for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Picture = npt.NDArray[np.uint8]

GAP = 1  # pixels between the slices of a thumbnail
PER_SHEET = 500
COLUMNS = 10
QUALITIES = (85, 70, 55, 40, 28)
# Pictures of pure noise hardly compress: smaller ones say more than worse ones.
SCALES = (1.0, 0.8, 0.65, 0.5, 0.35)


@dataclass(frozen=True)
class Sheets:
    """Thumbnails of one size on pictures that a browser decodes.

    Attributes
    ----------
    images : list of bytes
        WebP; thumbnail ``n`` is number ``n % per_sheet`` of image ``n // per_sheet``, counted row by row.
    width, height : int
        Of a thumbnail in pixels.
    columns, per_sheet : int
        Thumbnails in a row, and on an image.
    quality : int
        Of the compression, 0 to 100.
    """

    images: list[bytes]
    width: int
    height: int
    columns: int
    per_sheet: int
    quality: int


def choose_rows(labels: npt.ArrayLike, wrong: npt.ArrayLike, most: int) -> list[int]:
    """Choose volumes to show: mistakes first, then the same number of each class as far as there are so many.

    Parameters
    ----------
    labels : array
        `(n,)`, true classes.
    wrong : array
        `(n,)`, whether the volume was misclassified.
    most : int
        How many there is room for; when mistakes alone are more, they are shared out by class too.

    Returns
    -------
    list of int
        Rows in ascending order; the same for the same input.
    """
    classes, mistaken = np.asarray(labels), np.asarray(wrong, dtype=bool)
    chosen: list[int] = []
    for group in (np.flatnonzero(mistaken), np.flatnonzero(~mistaken)):
        members = [group[classes[group] == label] for label in np.unique(classes[group])]
        chosen += _share([rows.tolist() for rows in members], most - len(chosen))
    return sorted(chosen)


def _share(groups: Sequence[list[int]], most: int) -> list[int]:
    """Take equally many of each group, evenly spread, until `most` are taken or none is left."""
    chosen: list[int] = []
    # The smallest first: what they leave goes to the others.
    ordered = sorted(groups, key=len)
    for number, rows in enumerate(ordered):
        room = (most - len(chosen)) // (len(ordered) - number)
        count = min(len(rows), max(room, 0))
        chosen += [rows[(2 * n + 1) * len(rows) // (2 * count)] for n in range(count)]
    return chosen


def three_slices(volume: npt.ArrayLike, *, edge: int) -> Picture:
    """Show a volume by its slices xy, xz and yz side by side.

    Parameters
    ----------
    volume : array
        `(z, y, x)`; each slice is the mean of the three in the middle.
    edge : int
        Pixels of the longest edge of the volume; each slice is centred on a square of that size. Smaller volumes are
        not enlarged.

    Returns
    -------
    array
        `(edge, 3 * edge + 2 * GAP)`; grey runs from the 1st to the 99th percentile of the slices, what is not finite is
        black.

    Raises
    ------
    InputError
        When it is not a volume.
    """
    from PIL import Image

    data = np.asarray(volume, dtype=np.float32)
    if data.ndim != 3 or not data.size:
        raise InputError(f"thumbnail: an array of shape {data.shape} is not a volume (z, y, x)")
    slices = [_middle(data, 0), _middle(data, 1), _middle(data, 2).T]
    values = np.concatenate([picture[np.isfinite(picture)] for picture in slices])
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    scale = min(1.0, edge / max(data.shape))
    sheet = np.zeros((edge, 3 * edge + 2 * GAP), dtype=np.uint8)
    for number, picture in enumerate(slices):
        grey = np.nan_to_num(np.clip((picture - low) / max(high - low, 1e-30), 0, 1), nan=0.0)
        image = Image.fromarray((grey * 255).astype(np.uint8))
        if scale < 1:
            size = [max(1, round(scale * length)) for length in (image.width, image.height)]
            image = image.resize((size[0], size[1]), Image.Resampling.BOX)
        top, left = (edge - image.height) // 2, (edge - image.width) // 2 + number * (edge + GAP)
        sheet[top : top + image.height, left : left + image.width] = np.asarray(image)
    return sheet


def _middle(volume: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    centre = volume.shape[axis] // 2
    first, last = max(centre - 1, 0), min(centre + 2, volume.shape[axis])
    return np.asarray(np.take(volume, range(first, last), axis=axis).mean(axis=axis))


def as_webp(picture: Picture, *, quality: int = 85) -> bytes:
    """Encode a picture `(h, w)` of greys."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="WEBP", quality=quality, method=4)
    return stream.getvalue()


def pack_sheets(thumbnails: Sequence[Picture], *, budget: int) -> Sheets:
    """Put thumbnails of one size on sheets, as large and as little compressed as the budget allows.

    Parameters
    ----------
    thumbnails : sequence of array
        `(h, w)` each.
    budget : int
        Bytes of all images together; when even the smallest and worst exceed it, they are taken.

    Raises
    ------
    InputError
        When they differ in size, or there are none.
    """
    shapes = {picture.shape for picture in thumbnails}
    if len(shapes) != 1:
        raise InputError(f"thumbnails: {len(shapes)} sizes, not 1")
    found = None
    for scale in SCALES:
        pictures = [_scaled(picture, scale) for picture in thumbnails]
        found = _compress(pictures, budget, last=scale == SCALES[-1])
        if found is not None:
            break
    images, quality = found or ([], 0)
    height, width = pictures[0].shape
    return Sheets(images, width, height, COLUMNS, PER_SHEET, quality)


def _compress(pictures: Sequence[Picture], budget: int, *, last: bool) -> tuple[list[bytes], int] | None:
    """Return sheets of the best quality that the budget allows; None, or if this is the last try the worst, if none."""
    sheets = [_sheet(pictures[start : start + PER_SHEET]) for start in range(0, len(pictures), PER_SHEET)]
    share = budget * sheets[0].size / sum(sheet.size for sheet in sheets)
    if not last and len(as_webp(sheets[0], quality=QUALITIES[-1])) > share:
        return None
    images: list[bytes] = []
    for quality in QUALITIES:
        # The first tells whether it is worth while to compress the others.
        first = as_webp(sheets[0], quality=quality)
        if len(first) <= share or quality == QUALITIES[-1]:
            images = [first, *(as_webp(sheet, quality=quality) for sheet in sheets[1:])]
            if sum(map(len, images)) <= budget:
                return images, quality
    return (images, QUALITIES[-1]) if last else None


def _scaled(picture: Picture, scale: float) -> Picture:
    from PIL import Image

    if scale == 1:
        return picture
    size = (max(1, round(scale * picture.shape[1])), max(1, round(scale * picture.shape[0])))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _sheet(pictures: Sequence[Picture]) -> Picture:
    height, width = pictures[0].shape
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.zeros((rows * height, min(COLUMNS, len(pictures)) * width), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return sheet
