"""Published numbers: beside ours where the cell is the same, in rows of their own where the method is another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.sweep_results.layouts import METRIC_NAMES, Layout, same_value
from cryo_monai.sweeps.outcomes import Cell


@dataclass(frozen=True)
class Quotation:
    """What a publication says.

    Attributes
    ----------
    cell : mapping
        The axes that it names, and their values.
    method : str
        Of a method that is none of ours; empty where it is.
    metrics : mapping
        Name of a metric to its value, 0 to 1; what is not published is missing.
    effort : float or None
        Training effort over that of the baseline.
    source : str
        Where it stands.
    """

    cell: Cell
    method: str
    metrics: Mapping[str, float]
    effort: float | None
    source: str

    def is_of(self, cell: Cell, layout: Layout) -> bool:
        """Whether it tells of a row of ours: it must name every axis that has a column, and no other value of one."""
        if self.method or not all(axis in self.cell for axis in layout.columns):
            return False
        return self.agrees_with(cell, layout)

    def belongs_to(self, cell: Cell, layout: Layout) -> bool:
        """Whether a method that is none of ours is to be read beside a row."""
        return bool(self.method) and self.agrees_with(cell, layout)

    def agrees_with(self, cell: Cell, layout: Layout) -> bool:
        """Whether no axis that it names has another value in a row; what is compared is no matter to another method."""
        axes = [*layout.context, *layout.fixed, *([layout.compare] if layout.compare and not self.method else [])]
        return all(same_value(self.cell[axis], cell.get(axis)) for axis in axes if axis in self.cell)


def read_quotations(sweep: Mapping[str, Any], layout: Layout) -> list[Quotation]:
    """Read the ``published`` rows of a sweep.

    A row has the values of axes, any metrics as shares from 0 to 1, ``source``, and for comparators ``method``.
    ``effort`` is the training effort over the baseline's.

    Raises
    ------
    InputError
        When a number is none, a metric is not between 0 and 1, or a row lacks its source.
    """
    quotations = []
    for number, row in enumerate(sweep.get("published", ()), 1):
        where = f"published row {number}"
        if not row.get("source"):
            raise InputError(f"{where}: has no source; say where its numbers stand")
        metrics = {name: _number(row[name], f"{where}: {name}") for name in METRIC_NAMES if row.get(name) is not None}
        above = [name for name, value in metrics.items() if not 0 <= value <= 1]
        if above:
            raise InputError(f"{where}: {above[0]} is {metrics[above[0]]:g}; give a share from 0 to 1, not per cent")
        effort = _number(row["effort"], f"{where}: effort") if row.get("effort") is not None else None
        cell = {axis: value for axis, value in row.items() if axis in layout.axes}
        quotations.append(Quotation(cell, str(row.get("method", "")), metrics, effort, str(row["source"])))
    return quotations


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {value!r}, not a number")
    return float(value)
