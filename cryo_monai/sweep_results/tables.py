"""The tables of a sweep as text: the paper's layout, differences in pairs of seeds, and training effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryo_monai.sweep_results.layouts import METRIC_NAMES, SEED, Layout, cell_text, phrase
from cryo_monai.sweep_results.pairs import Estimate
from cryo_monai.sweep_results.quotations import Quotation
from cryo_monai.sweep_results.summaries import Row, Summary
from cryo_monai.sweep_results.table_notes import difference_notes, effort_notes, result_notes
from cryo_monai.sweeps.outcomes import Cell

# Shown in per cent with two decimals, the others as they are with four: as the paper prints them.
_PER_CENT = ("accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Column:
    """Head of a column: its title, and that of the columns it stands with."""

    title: str
    group: str = ""
    number: bool = True


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text.

    Attributes
    ----------
    name : str
        ``"results"``, ``"differences"`` or ``"effort"``.
    caption : str
        What it shows.
    columns : tuple of Column
        Heads.
    rows : tuple of tuple of str
        Cells; blank where there is no number.
    starts : frozenset of int
        Rows that begin a group.
    num_context : int
        Columns at the left whose cells are the same within a group.
    notes : tuple of str
        What the numbers mean, one paragraph each.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    starts: frozenset[int]
    num_context: int
    notes: tuple[str, ...]


def text_tables(summary: Summary) -> list[TextTable]:
    """Write the tables of a sweep; those of differences and effort only where there is a number in them."""
    tables = [_results(summary)]
    if any(found for row in summary.rows for found in row.differences.values()):
        tables.append(_differences(summary))
    if any(row.effort for row in summary.rows):
        tables.append(_effort(summary))
    return tables


def metric_text(metric: str, value: float | None) -> str:
    """Write a metric as the paper does: accuracies in per cent with two decimals, others with four."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" if metric in _PER_CENT else f"{value:.4f}"


def estimate_text(metric: str, estimate: Estimate | None) -> str:
    """Write a mean and half its interval; blank where there is none."""
    if estimate is None:
        return ""
    half = f" ± {metric_text(metric, estimate.half_width)}" if estimate.half_width is not None else ""
    return f"{metric_text(metric, estimate.mean)}{half}"


def difference_text(metric: str, estimate: Estimate | None) -> str:
    """Write a difference with its sign and half its interval; accuracies in percentage points."""
    if estimate is None:
        return ""
    size = metric_text(metric, abs(estimate.mean))
    sign = "" if not size.strip("0.") else "+" if estimate.mean > 0 else "−"
    half = f" ± {metric_text(metric, estimate.half_width)}" if estimate.half_width is not None else ""
    return f"{sign}{size}{half}"


def p_text(p_value: float | None) -> str:
    """Write a p value with three digits; blank where there is none."""
    if p_value is None:
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3g}"


def seeds_text(done: int, planned: int) -> str:
    """Write how many seeds are done, and how many were planned where that is more."""
    return str(done) if done == planned else f"{done}/{planned}"


def source_marks(summary: Summary) -> dict[str, str]:
    """Give every source that is quoted in the tables a letter."""
    quoted = [row.quoted for row in summary.rows] + [q for group in summary.groups for q in group.comparators]
    sources = dict.fromkeys(quotation.source for quotation in quoted if quotation is not None)
    return {source: chr(ord("a") + number % 26) * (1 + number // 26) for number, source in enumerate(sources)}


def _results(summary: Summary) -> TextTable:
    layout, marks = summary.layout, source_marks(summary)
    own_sources = {row.quoted.source for row in summary.rows if row.quoted}
    # One source of all stands at the head of the column, several at the numbers.
    head = f" [{marks[next(iter(own_sources))]}]" if len(own_sources) == 1 else ""
    differs = bool(layout.compare and layout.baseline is not None)
    columns = [*_axis_columns(layout), Column("Seeds")]
    for metric in layout.metrics:
        name = METRIC_NAMES[metric]
        columns += [Column(f"Published{head}", name)] if marks else []
        columns += [Column("Ours", name), *([Column("Difference", name)] if differs else [])]
    rows: list[tuple[str, ...]] = []
    starts = set()
    for group in summary.groups:
        starts.add(len(rows))
        for row in group.rows:
            cells = [*_axis_cells(layout, row.cell), seeds_text(len(row.done), row.planned)]
            for metric in layout.metrics:
                if marks:
                    mark = f" [{marks[row.quoted.source]}]" if row.quoted and not head else ""
                    cells.append(_quoted(row.quoted, metric, mark))
                cells.append(_estimate_with_count(row, metric))
                if differs:
                    found = row.differences.get(metric)
                    cells.append(difference_text(metric, found.estimate if found else None))
            rows.append(tuple(cells))
        rows += [_comparator(quotation, layout, marks, differs=differs) for quotation in group.comparators]
    notes = result_notes(summary, marks, differs=differs)
    return _table("results", summary.title, summary, columns, rows, starts, notes)


def _quoted(quotation: Quotation | None, metric: str, mark: str = "") -> str:
    if quotation is None or metric not in quotation.metrics:
        return ""
    return metric_text(metric, quotation.metrics[metric]) + mark


def _estimate_with_count(row: Row, metric: str) -> str:
    """Write the mean; with the number of seeds where not all that are done have this metric."""
    estimate = row.estimates[metric]
    text = estimate_text(metric, estimate)
    fewer = estimate is not None and len(estimate.values) != len(row.done)
    return f"{text} (n = {len(estimate.values)})" if estimate is not None and fewer else text


def _comparator(quotation: Quotation, layout: Layout, marks: dict[str, str], *, differs: bool) -> tuple[str, ...]:
    name = f"{quotation.method} (quoted) [{marks[quotation.source]}]"
    cells = [cell_text(axis, quotation.cell.get(axis)) for axis in layout.context]
    if layout.compare:
        cells.append(name)
    elif cells:
        cells[-1] = f"{cells[-1]} {name}".strip()
    cells.append("")
    for metric in layout.metrics:
        cells += [_quoted(quotation, metric), "", *([""] if differs else [])]
    return tuple(cells)


def _differences(summary: Summary) -> TextTable:
    layout = summary.layout
    columns = [
        Column("Metric", number=False), *_axis_columns(layout), Column("Pairs"), Column("Difference"), Column("Wins"),
        Column("p", "t-test"), Column("Holm", "t-test"), Column("p", "Sign flips"), Column("Holm", "Sign flips"),
        Column("Hedges' g"),
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    starts = set()
    for metric in layout.metrics:
        starts.add(len(rows))
        for row in summary.rows:
            found = row.differences.get(metric)
            if found is None:
                continue
            pairs = len(found.estimate.values)
            rows.append(
                (
                    METRIC_NAMES[metric], *_axis_cells(layout, row.cell), str(pairs),
                    difference_text(metric, found.estimate), f"{found.wins}/{pairs}", p_text(found.t_test_p),
                    p_text(found.t_test_p_holm), p_text(found.sign_flip_p), p_text(found.sign_flip_p_holm),
                    "" if found.effect_size is None else _signed(found.effect_size),
                )
            )  # fmt: skip
    caption = f"Difference to {_baseline_text(layout)}, in pairs of runs with the same seed"
    return _table("differences", caption, summary, columns, rows, starts, difference_notes(summary), leading=1)


def _effort(summary: Summary) -> TextTable:
    layout = summary.layout
    quotes = any(row.quoted and row.quoted.effort is not None for row in summary.rows)
    columns = [*_axis_columns(layout), Column("Reached")]
    for unit in ("Epochs", "Accelerator minutes"):
        columns += [Column("Ours", unit), Column("Baseline", unit), Column("Ratio", unit)]
    columns += [Column("Published ratio")] if quotes else []
    rows: list[tuple[str, ...]] = []
    for group in summary.groups:
        for row, effort in [(row, row.effort) for row in group.rows if row.effort is not None]:
            cells = [*_axis_cells(layout, row.cell), f"{effort.num_reached}/{len(effort.reaches)}"]
            cells += [_plain(effort.epochs, 1, spread=False), _plain(effort.baseline_epochs, 1, spread=False)]
            cells += [_plain(effort.epochs_ratio, 2)]
            cells += [_plain(effort.minutes, 2, spread=False), _plain(effort.baseline_minutes, 2, spread=False)]
            cells += [_plain(effort.minutes_ratio, 2)]
            published = row.quoted.effort if row.quoted else None
            cells += ["" if published is None else f"{published:.2f}"] if quotes else []
            rows.append(tuple(cells))
    starts = {number for number, row in enumerate(rows) if layout.context and row[0] != rows[number - 1][0]} | {0}
    caption = f"Training effort to the best validation accuracy of {_baseline_text(layout)}"
    return _table("effort", caption, summary, columns, rows, starts, effort_notes(summary, quotes=quotes))


def _table(
    name: str,
    caption: str,
    summary: Summary,
    columns: Sequence[Column],
    rows: Sequence[tuple[str, ...]],
    starts: set[int],
    notes: Sequence[str],
    *,
    leading: int = 0,
) -> TextTable:
    layout = summary.layout
    fixed = [phrase(axis, value) for axis, value in layout.fixed.items()]
    told = f"{caption.rstrip('.')} ({', '.join(fixed)})." if fixed else f"{caption.rstrip('.')}."
    return TextTable(
        name, told, tuple(columns), tuple(rows), frozenset(starts), leading + len(layout.context), tuple(notes)
    )


def _axis_columns(layout: Layout) -> list[Column]:
    return [Column(layout.axis_title(axis), number=False) for axis in layout.columns]


def _axis_cells(layout: Layout, cell: Cell) -> list[str]:
    return [cell_text(axis, cell.get(axis)) for axis in layout.columns if axis != SEED]


def _baseline_text(layout: Layout) -> str:
    if layout.compare is None or layout.baseline is None:
        return "the baseline"
    return f"{layout.axis_title(layout.compare).lower()} {cell_text(layout.compare, layout.baseline)}"


def _signed(value: float) -> str:
    text = f"{abs(value):.2f}"
    return text if not text.strip("0.") else f"{'+' if value > 0 else '−'}{text}"


def _plain(estimate: Estimate | None, places: int, *, spread: bool = True) -> str:
    if estimate is None:
        return ""
    half = f" ± {estimate.half_width:.{places}f}" if spread and estimate.half_width is not None else ""
    return f"{estimate.mean:.{places}f}{half}"
