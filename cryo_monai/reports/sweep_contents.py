"""What the page of a sweep shows: its figures out of the numbers, and its sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cryo_monai.reports.page_figures import page_figure
from cryo_monai.reports.sweep_figures import (
    DifferenceRow,
    EfficiencyLine,
    ValidationCurve,
    difference_figure,
    efficiency_figure,
    validation_figure,
)
from cryo_monai.sweep_results.layouts import LABEL_FRACTION, METRIC_NAMES, phrase, value_text
from cryo_monai.sweep_results.pairs import estimate_mean
from cryo_monai.sweep_results.results import Result
from cryo_monai.sweep_results.summaries import Group, Row, Summary
from cryo_monai.sweep_results.tables import difference_text, estimate_text
from cryo_monai.sweeps.outcomes import Value

LEVEL = 0.05
# Of a kind, and rows of one; a search has hundreds.
MAX_FIGURES = 12
MAX_ROWS = 40
HOW_EFFICIENCY = (
    "the further up and left a line, the fewer labels it needs. Bands are 95 % intervals of the mean "
    "over seeds; dots are single seeds where there are fewer than three."
)
HOW_VALIDATION = (
    "mean over seeds with its 95 % interval, for the epochs that all seeds have; below, the same epochs at the mean "
    "time at which they ended."
)
HOW_DIFFERENCES = (
    "right of 0 is better than the baseline; an interval that holds 0 leaves it open. The intervals "
    "are not corrected for their number; the p values in the table are."
)
Shown = dict[str, Any]


def verdict_of(summary: Summary) -> str:
    """Say in how many rows what is compared differs from the baseline by more than luck with seeds."""
    layout, metric = summary.layout, summary.layout.metrics[0]
    if layout.compare is None or layout.baseline is None:
        return ""
    lines = []
    for value in layout.axes[layout.compare]:
        found = [row.differences.get(metric) for row in summary.rows if row.cell.get(layout.compare) == value]
        tested = [d for d in found if d is not None and d.t_test_p_holm is not None]
        if not tested:
            continue
        clear = [d for d in tested if d.t_test_p_holm is not None and d.t_test_p_holm < LEVEL]
        higher = sum(d.estimate.mean > 0 for d in clear)
        name = METRIC_NAMES[metric].removesuffix(" (%)").lower() if metric != "auc" else "AUC"
        lower = f", a lower one in {len(clear) - higher}" if len(clear) > higher else ""
        rows = f"{len(tested)} row{'s' if len(tested) != 1 else ''} that could be tested"
        lines.append(
            f"{value_text(value)} has a higher {name} than {value_text(layout.baseline)} in {higher} of {rows}{lower}"
        )
    if not lines:
        return "Nothing can be tested yet: that takes three seeds of a row and of its baseline."
    return f"{'; '.join(lines)[0].upper()}{'; '.join(lines)[1:]} (paired t-tests over seeds, p below 0.05 after Holm)."


def efficiency_figures(summary: Summary) -> list[Shown]:
    """Draw label-efficiency curves, one figure for all that differs in nothing but labels and what is compared."""
    axes = [axis for axis in summary.layout.context if axis != LABEL_FRACTION]
    panels: dict[tuple[Value | None, ...], list[Group]] = {}
    for group in summary.groups:
        panels.setdefault(tuple(group.rows[0].cell.get(axis) for axis in axes), []).append(group)
    curves = {
        values: groups
        for values, groups in panels.items()
        if len({number for number in map(_num_train, groups) if number is not None}) > 1
    }
    figures: list[Shown] = []
    for values, groups in list(curves.items())[:MAX_FIGURES]:
        lines = _efficiency_lines(summary, groups)
        named = [phrase(axis, value) for axis, value in zip(axes, values, strict=True) if value is not None]
        title = f"Accuracy over labels{': ' if named else ''}{', '.join(named)}"
        told = "; ".join(f"{name}: {_points_text(line)}" for name, line in lines.items())
        drawing = efficiency_figure(lines, _comparator_points(groups), label=title)
        figures.append(_shown(f"efficiency_{len(figures)}", drawing, title, f"{title}. {told}."))
    return figures + _left_out(len(curves) - MAX_FIGURES)


def validation_figures(summary: Summary) -> list[Shown]:
    """Draw the validation accuracy over training, one figure for rows that are compared."""
    groups = [group for group in summary.groups if any(result.history for row in group.rows for result in row.done)]
    figures: list[Shown] = []
    for group in groups[:MAX_FIGURES]:
        curves = {_name(row, summary): validation_curve(row.done) for row in group.rows}
        known = {name: curve for name, curve in curves.items() if curve is not None}
        where = summary.layout.context_text(group.rows[0].cell)
        title = f"Validation accuracy{': ' if where else ''}{where}"
        if not known:
            figures.append({"title": title, "missing": "No epoch was validated by all seeds of a row."})
            continue
        told = "; ".join(
            f"{name}: {estimate_text('accuracy', curve.accuracies[-1])} % after {curve.epochs[-1]} epochs"
            for name, curve in known.items()
        )
        drawing = validation_figure(known, label=title)
        figures.append(_shown(f"validation_{len(figures)}", drawing, title, f"{title}. {told}."))
    return figures + _left_out(len(groups) - MAX_FIGURES)


def difference_figures(summary: Summary) -> list[Shown]:
    """Draw the differences to the baseline, one figure per metric."""
    layout = summary.layout
    others = [value for value in layout.axes.get(layout.compare or "", ()) if value != layout.baseline]
    compared = value_text(others[0]) if len(others) == 1 else "others"
    figures: list[Shown] = []
    for metric in layout.metrics:
        rows = _difference_rows(summary, metric, several=len(others) != 1)[:MAX_ROWS]
        if not rows:
            continue
        percent = METRIC_NAMES[metric].endswith("(%)")
        name = METRIC_NAMES[metric].removesuffix(" (%)")
        title = f"{name}: {compared} less {value_text(layout.baseline)}"
        told = "; ".join(f"{row.name}: {difference_text(metric, row.estimate)}" for row in rows)
        unit = f"difference in {'percentage points' if percent else name}"
        drawing = difference_figure(rows, factor=100 if percent else 1, unit=unit, label=title)
        figures.append(_shown(f"difference_{metric}", drawing, title, f"{title}. {told}."))
    return figures


def _difference_rows(summary: Summary, metric: str, *, several: bool) -> list[DifferenceRow]:
    """List the differences that there are; what is compared is named where it is not the same in all."""
    rows = []
    for group in summary.groups:
        for row in group.rows:
            found = row.differences.get(metric)
            if found is not None:
                layout = summary.layout
                name = layout.row_text(row.cell) if several else layout.context_text(row.cell) or _name(row, summary)
                rows.append(DifferenceRow(name, found.estimate, _quoted_difference(row, group, summary, metric)))
    return rows


def _comparator_points(groups: Sequence[Group]) -> dict[str, list[tuple[float, float]]]:
    """Return labels and accuracy of other methods, where it is published for which share of the labels."""
    points: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        number = _num_train(group)
        for quotation in group.comparators:
            if number is not None and LABEL_FRACTION in quotation.cell and "accuracy" in quotation.metrics:
                points.setdefault(quotation.method, []).append((number, quotation.metrics["accuracy"]))
    return points


def validation_curve(results: Sequence[Result]) -> ValidationCurve | None:
    """Average the validation accuracy of runs over the epochs that all of them have; None without such an epoch."""
    tracks = [_track(result.history) for result in results if result.history]
    if not tracks:
        return None
    epochs = sorted(set.intersection(*map(set, tracks)))
    accuracies = [estimate_mean([track[epoch][0] for track in tracks]) for epoch in epochs]
    times = [
        estimate_mean([minutes for track in tracks if (minutes := track[epoch][1]) is not None]) for epoch in epochs
    ]
    timed = all(time is not None and len(time.values) == len(tracks) for time in times)
    if not epochs:
        return None
    return ValidationCurve(
        tuple(epochs),
        tuple(time.mean for time in times if time is not None) if timed else (),
        tuple(found for found in accuracies if found is not None),
    )


def _track(history: Sequence[Mapping[str, Any]]) -> dict[int, tuple[float, float | None]]:
    """Return the validation accuracy of each epoch, and the minutes until its end."""
    seconds, track = 0.0, {}
    for row in history:
        seconds += math.nan if row.get("seconds") is None else row["seconds"]
        if row.get("val_accuracy") is not None:
            track[row["epoch"]] = (row["val_accuracy"], None if math.isnan(seconds) else seconds / 60)
    return track


def _efficiency_lines(summary: Summary, groups: Sequence[Group]) -> dict[str, EfficiencyLine]:
    points: dict[str, list[Any]] = {}
    quoted: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for row in group.rows:
            name, estimate = _name(row, summary), row.estimates.get("accuracy")
            number = row.num_train if row.num_train is not None else _num_train(group)
            points.setdefault(name, [])
            if estimate is not None and number is not None:
                points[name].append((number, estimate))
            if row.quoted is not None and "accuracy" in row.quoted.metrics and number is not None:
                quoted.setdefault(name, []).append((number, row.quoted.metrics["accuracy"]))
    return {
        name: EfficiencyLine(tuple(sorted(found, key=lambda point: point[0])), tuple(sorted(quoted.get(name, []))))
        for name, found in points.items()
    }


def _points_text(line: EfficiencyLine) -> str:
    return ", ".join(f"{estimate_text('accuracy', found)} % with {x:.0f} labels" for x, found in line.points)


def _num_train(group: Group) -> float | None:
    """Mean number of labels of the rows of a group; None where it is not recorded."""
    found = estimate_mean([row.num_train for row in group.rows if row.num_train is not None])
    return found.mean if found else None


def _quoted_difference(row: Row, group: Group, summary: Summary, metric: str) -> float | None:
    """Return the published value of a row less that of its baseline; None where one is missing or of another source."""
    layout = summary.layout
    baseline = next(other for other in group.rows if other.cell.get(layout.compare or "") == layout.baseline)
    if row.quoted is None or baseline.quoted is None or row.quoted.source != baseline.quoted.source:
        return None
    if metric not in row.quoted.metrics or metric not in baseline.quoted.metrics:
        return None
    return row.quoted.metrics[metric] - baseline.quoted.metrics[metric]


def _name(row: Row, summary: Summary) -> str:
    """Name a row among those it is compared with."""
    compare = summary.layout.compare
    return phrase(compare, row.cell[compare]) if compare else "ours"


def _shown(name: str, figure: Any, title: str, alt: str) -> Shown:
    return page_figure(name, figure, title=title, alt=alt, how="").shown


def _left_out(number: int) -> list[Shown]:
    """Say how many figures are not drawn, in the place of one."""
    if number <= 0:
        return []
    return [{"title": f"{number} more", "missing": "Not drawn, so that the page stays small."}]
