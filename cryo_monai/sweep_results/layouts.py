"""How the cells of a sweep lie in a table: which axes are columns, which rows belong together, what they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryo_monai.errors import InputError
from cryo_monai.sweeps.outcomes import Cell, Value

Thing = TypeVar("Thing")

SEED = "seed"
LABEL_FRACTION = "label_fraction"
SHOWN_METRICS = ("accuracy", "auc")
METRIC_NAMES = {
    "accuracy": "Accuracy (%)",
    "auc": "AUC",
    "balanced_accuracy": "Balanced accuracy (%)",
    "macro_f1": "Macro F1",
}


@dataclass(frozen=True)
class Layout:
    """Rows and columns of a sweep.

    Attributes
    ----------
    axes : mapping
        All axes and the names of their values, in order.
    compare : str or None
        The axis whose values are compared in pairs of seeds.
    baseline : str, number or None
        Its value that the others are compared with.
    context : tuple of str
        Axes with several values besides `compare` and the seed; rows that agree in them belong together.
    fixed : mapping
        Axes with a single value, and it.
    metrics : tuple of str
        What is shown.
    """

    axes: Mapping[str, tuple[Value, ...]]
    compare: str | None
    baseline: Value | None
    context: tuple[str, ...]
    fixed: Mapping[str, Value]
    metrics: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Axes that have a column: the context, and what is compared."""
        return (*self.context, *([self.compare] if self.compare else []))

    def context_of(self, cell: Cell) -> tuple[Value | None, ...]:
        """Return what a cell shares with those it is compared with."""
        return tuple(cell.get(axis) for axis in self.context)

    def grouped(self, things: Sequence[Thing], cell_of: Callable[[Thing], Cell]) -> list[list[Thing]]:
        """Put things of the same row together, rows and seeds in order."""
        rows: dict[tuple[int, ...], list[Thing]] = {}
        seeds = self.axes.get(SEED, ())
        for thing in sorted(things, key=lambda thing: _place(seeds, cell_of(thing).get(SEED))):
            rows.setdefault(self.place(cell_of(thing)), []).append(thing)
        return [rows[place] for place in sorted(rows)]

    def place(self, cell: Cell) -> tuple[int, ...]:
        """Return where the row of a cell stands; rows of a context follow each other."""
        return tuple(_place(self.axes[axis], cell.get(axis)) for axis in self.columns)

    def axis_title(self, axis: str) -> str:
        """Name an axis as the head of a column."""
        if axis == LABEL_FRACTION and all(map(_is_number, self.axes.get(axis, ()))):
            return "(%) labelled"
        text = axis.replace("_", " ")
        return text[:1].upper() + text[1:]

    def row_text(self, cell: Cell) -> str:
        """Name a row in words, such as ``simulated, 25 % labelled, video``."""
        return ", ".join(phrase(axis, cell[axis]) for axis in self.columns if axis in cell)

    def context_text(self, cell: Cell) -> str:
        """Name what a row shares with those it is compared with; empty where nothing is to tell apart."""
        return ", ".join(phrase(axis, cell[axis]) for axis in self.context if axis in cell)

    def trial_text(self, cell: Cell) -> str:
        """Name a trial in words: its row and its seed."""
        seed = [phrase(SEED, cell[SEED])] if SEED in cell else []
        return ", ".join([*filter(None, [self.row_text(cell)]), *seed])


def layout_of(cells: Sequence[Cell], sweep: Mapping[str, Any]) -> Layout:
    """Lay a sweep out.

    Parameters
    ----------
    cells : sequence of mapping
        Of all trials.
    sweep : mapping
        The sweep's JSON. ``axes`` gives the order of axes and values, ``layout`` with ``rows`` the axes that come first
        and with ``columns`` the metrics that are shown.

    Raises
    ------
    InputError
        When ``compare`` is no axis, ``baseline`` none of its values, or a column no metric.
    """
    axes = {str(axis): list(values) for axis, values in sweep.get("axes", {}).items()}
    for cell in cells:
        for axis, value in cell.items():
            values = axes.setdefault(axis, [])
            if value not in values:
                values.append(value)
    compare, baseline = sweep.get("compare"), sweep.get("baseline")
    if compare is not None and axes and compare not in axes:
        raise InputError(f"compare: {compare!r} is no axis of the sweep ({', '.join(axes)})")
    if compare is not None and baseline is not None and axes and baseline not in axes[compare]:
        raise InputError(f"baseline: {baseline!r} is no {compare} of the sweep ({', '.join(map(str, axes[compare]))})")
    wanted = sweep.get("layout", {})
    metrics = tuple(wanted.get("columns", SHOWN_METRICS))
    unknown = [name for name in metrics if name not in METRIC_NAMES]
    if unknown:
        raise InputError(f"layout: {unknown[0]!r} is no metric; choose from {', '.join(METRIC_NAMES)}")
    first = [axis for axis in wanted.get("rows", ()) if axis in axes]
    ordered = [axis for axis in dict.fromkeys([*first, *axes]) if axis not in (compare, SEED)]
    return Layout(
        axes={axis: tuple(values) for axis, values in axes.items()},
        compare=compare if compare in axes else None,
        baseline=baseline,
        context=tuple(axis for axis in ordered if len(axes[axis]) > 1),
        fixed={axis: axes[axis][0] for axis in ordered if len(axes[axis]) == 1},
        metrics=metrics,
    )


def same_value(one: Value | None, other: Value | None) -> bool:
    """Whether two names of a value mean the same: 0.25 is ``"0.25"``, and 1 is 1.0."""
    return one == other or (one is not None and other is not None and value_text(one) == value_text(other))


def value_text(value: Value | None) -> str:
    """Write the name of a value; numbers without needless digits."""
    if value is None:
        return ""
    return f"{value:.12g}" if _is_number(value) else str(value)


def cell_text(axis: str, value: Value | None) -> str:
    """Write a value into the column of its axis; fractions of labels in per cent."""
    if axis == LABEL_FRACTION and _is_number(value):
        return f"{100 * float(value or 0):.12g}"
    return value_text(value)


def phrase(axis: str, value: Value) -> str:
    """Name a value so that it can be read without its axis: ``25 % labelled``, ``seed 0``, ``simulated``."""
    if axis == LABEL_FRACTION and _is_number(value):
        return f"{cell_text(axis, value)} % labelled"
    return f"{axis.replace('_', ' ')} {value_text(value)}" if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(values: Sequence[Value], value: Value | None) -> int:
    return next((place for place, other in enumerate(values) if other == value), len(values))
