"""Text of particle files: kept by column, and turned into numbers with line and column in every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without byte order mark, line ends as they are.

    Raises
    ------
    InputError
        When it cannot be read, is empty or is not text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise InputError(f"{path}: empty")
    if "\0" in text:
        raise InputError(f"{path}: not a text file (byte {text.index(chr(0))} is zero)")
    return text


@dataclass(frozen=True)
class TextColumns:
    """Columns of a file as text.

    Parameters
    ----------
    path : Path
        The file, for errors.
    names : list of str
        Of the columns.
    rows : list of list of str
        One value per name.
    lines : list of int
        Line of each row, from 1.
    name_lines : list of int
        Line of each name, from 1; empty where they share one.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    name_lines: list[int]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, name: str) -> list[str]:
        """Return one column."""
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def numbers(self, name: str) -> Array:
        """Return one column as finite numbers `(n,)`.

        Raises
        ------
        InputError
            Naming line, column and value of the first that is not one.
        """
        texts = self.texts(name)
        try:
            # NumPy takes '1_0' for 10, as Python does; particle files do not.
            values = np.array([float(text) for text in texts], dtype=np.float64)
            bad = ~np.isfinite(values)
            bad |= np.array(["_" in text for text in texts], dtype=bool)
        except ValueError:
            bad = np.array([not is_number(text) for text in texts])
            values = np.empty(0)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(f"{self.path}, line {self.lines[row]}, column {name}: {texts[row]!r} is not a number")
        return values

    def matrix(self, names: Sequence[str]) -> Array:
        """Return several columns as finite numbers, one axis more at the end `(n, len(names))`."""
        return np.stack([self.numbers(name) for name in names], axis=-1)

    def require(self, names: Sequence[str]) -> None:
        """Raise an `InputError` that names the columns that are not there."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(f"{self.path}: column {', '.join(missing)} is missing; there are {_listed(self.names)}")

    def frame(self) -> pd.DataFrame:
        """Return all columns as text; the index is the row in the file, from 0."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=self.names, dtype=object)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return bool(np.isfinite(float(text))) and "_" not in text
    except ValueError:
        return False


def unique_ids(candidates: Sequence[Sequence[str]], count: int) -> list[str]:
    """Return the first candidate that gives every row an id of its own, otherwise row numbers from "1"."""
    for ids in candidates:
        if len(set(ids)) == count and all(ids):
            return list(ids)
    return [str(number) for number in range(1, count + 1)]


def class_names_of(columns: TextColumns, class_column: str | None, automatic: Sequence[str]) -> list[str]:
    """Return the column that holds class names, or empty texts where none does.

    Raises
    ------
    InputError
        When ``class_column`` names no column.
    """
    if class_column is not None:
        columns.require([class_column])
        return columns.texts(class_column)
    for name in automatic:
        if name in columns:
            return columns.texts(name)
    return [""] * len(columns)
