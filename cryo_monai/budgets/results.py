"""Scores of trials with several numbers of labels, read from the results of a sweep or from any CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryo_monai.budgets.trials import Trials
from cryo_monai.errors import InputError

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
# Columns that are no axis; in the results of a sweep the axes stand before the first of them.
_NUMBERS = ("num_train", "num_validation", "num_test", "num_classes", *METRICS)
_OTHERS = ("trial", "state", "reason", "best_epoch", "epochs", "train_seconds", "device", "folder")
# Axes along which the trials of one curve lie.
_ALONG = ("label_fraction", "seed")


@dataclass(frozen=True)
class LabelledGroup:
    """Trials of one data set, network and recipe, with several numbers of labels.

    Attributes
    ----------
    cell : mapping
        Axis to value, without label fraction and seed.
    trials : Trials
        Those that are done.
    num_classes : int or None
        When the file says so.
    num_others : float or None
        Validation and test volumes, whose labels are needed too; mean over trials.
    num_undefined : int
        Finished trials for which the metric is not defined; they do not count.
    """

    cell: Mapping[str, str]
    trials: Trials
    num_classes: int | None
    num_others: float | None
    num_undefined: int = 0


@dataclass(frozen=True)
class _Row:
    """A line of the file that counts."""

    line: int
    cell: tuple[str, ...]
    along: tuple[str, ...]
    seed: str
    numbers: Mapping[str, float]


def find_results(results: str | os.PathLike[str]) -> Path:
    """Return the CSV that is meant: the file itself, or ``results.csv`` in the folder of a sweep.

    Raises
    ------
    InputError
        When there is none.
    """
    path = Path(results)
    if path.is_dir():
        path = path / "results.csv"
        if not path.is_file():
            raise InputError(f"{path.parent}: no results.csv in it; give the output_dir of a sweep, or a CSV")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the output_dir of a sweep, or a CSV")
    return path


def read_groups(
    results: str | os.PathLike[str], *, metric: str = "accuracy", groups: Sequence[str] = ()
) -> list[LabelledGroup]:
    """Read which scores were reached with how many labels.

    Parameters
    ----------
    results : path
        The folder of a sweep, its ``results.csv``, or a CSV with ``num_train``, the metric and, if it is known,
        ``num_test``, ``num_classes``, ``seed`` and ``state``. Rows whose state is not ``"done"`` do not count.
    metric : str
        One of `METRICS`.
    groups : sequence of str
        Columns that tell the curves apart; by default the axes of a sweep but label fraction and seed, and in a CSV
        without trials all columns that a sweep does not have.

    Returns
    -------
    list of LabelledGroup
        In the order of the file; a group of which nothing is done has no trials.

    Raises
    ------
    InputError
        In one line with file, line and column: what is missing, no number, out of range, or there twice.
    """
    if metric not in METRICS:
        raise InputError(f"metric: {metric!r} is none of {', '.join(METRICS)}")
    path = find_results(results)
    found: dict[tuple[str, ...], list[_Row]] = {}
    undefined: dict[tuple[str, ...], int] = {}
    header, lines = _read_rows(path)
    names = _axes(path, header, metric, groups)
    for line, row in lines:
        cell = tuple(row[name] for name in names)
        rows = found.setdefault(cell, [])
        if row.get("state", "done") != "done":
            continue
        numbers = {name: _number(path, line, name, row[name], metric) for name in _NUMBERS if row.get(name, "")}
        if metric not in numbers and "state" in row:
            undefined[cell] = undefined.get(cell, 0) + 1
            continue
        for name in ("num_train", metric):
            if name not in numbers:
                raise InputError(f"{path}, line {line}, column {name}: empty; a finished trial has a number there")
        along = (*(row.get(name, "") for name in _ALONG), f"{numbers['num_train']:.0f}")
        rows.append(_Row(line, cell, along, row.get("seed", "") or f"line {line}", numbers))
    if not found:
        raise InputError(f"{path}: has no rows")
    for rows in found.values():
        _refuse_twins(path, rows, names)
    return [
        _group(dict(zip(names, cell, strict=True)), rows, metric, undefined.get(cell, 0))
        for cell, rows in found.items()
    ]


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the names of the columns, and line and cells of each row that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{path}, line 1: column {twice[0]!r} comes twice")
    rows = [(line, row) for line, row in lines if any(row)]
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: {len(row)} cells under {len(header)} columns")
    return header, [(line, dict(zip(header, row, strict=True))) for line, row in rows]


def _axes(path: Path, columns: Sequence[str], metric: str, groups: Sequence[str]) -> list[str]:
    """List the columns that tell curves apart."""
    for name in ("num_train", metric):
        if name not in columns:
            shown = f"there are {', '.join(columns[:12])} (columns are split at commas)" if columns else "it is empty"
            raise InputError(f"{path}, line 1: no column {name!r}; {shown}")
    for name in groups:
        if name not in columns:
            raise InputError(
                f"{path}, line 1: no column {name!r}, which --groups names; there are {', '.join(columns)}"
            )
    if groups:
        return list(groups)
    before = columns[: columns.index("trial")] if "trial" in columns else columns
    return [name for name in before if name and name not in (*_NUMBERS, *_OTHERS, *_ALONG)]


def _number(path: Path, line: int, column: str, text: str, metric: str) -> float:
    place = f"{path}, line {line}, column {column}"
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{place}: {text!r} is not a number") from None
    if column in METRICS:
        if column == metric and not 0 <= value <= 1:
            raise InputError(f"{place}: {text} is not from 0 to 1; give shares, not percents")
    elif not value.is_integer() or value < (0 if column == "num_validation" else 1):
        raise InputError(f"{place}: {text} is not a whole number of 1 or more")
    return value


def _refuse_twins(path: Path, rows: Sequence[_Row], names: Sequence[str]) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        if not row.along[1]:
            continue  # trials without a seed are trials of their own
        if row.along in seen:
            same = f"the same seed, number of labels{''.join(f', {name}' for name in names)}"
            raise InputError(
                f"{path}, lines {seen[row.along]} and {row.line}: {same}; name the columns that tell them apart with "
                "--groups, or leave one out"
            )
        seen[row.along] = row.line


def _group(cell: Mapping[str, str], rows: Sequence[_Row], metric: str, undefined: int) -> LabelledGroup:
    def column(name: str) -> list[float]:
        return [row.numbers.get(name, np.nan) for row in rows]

    # An AUC is no share of the test volumes.
    num_test = column("num_test") if metric != "auc" else [np.nan] * len(rows)
    trials = Trials(
        np.array(column("num_train"), dtype=np.float64), np.array(column(metric), dtype=np.float64),
        tuple(row.seed for row in rows), np.array(num_test, dtype=np.float64),
    )  # fmt: skip
    classes = {int(n) for n in column("num_classes") if np.isfinite(n)}
    others = np.array(column("num_validation")) + np.array(column("num_test"))
    known = len(others) > 0 and bool(np.isfinite(others).all())
    return LabelledGroup(
        cell,
        trials,
        num_classes=classes.pop() if len(classes) == 1 else None,
        num_others=float(others.mean()) if known else None,
        num_undefined=undefined,
    )
