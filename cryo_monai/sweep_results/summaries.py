"""A sweep in numbers: every row of its tables, with what is published, compared in pairs of seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cryo_monai.sweep_results.effort import Effort, Reach, reach_of, summarise_effort
from cryo_monai.sweep_results.layouts import SEED, Layout, layout_of
from cryo_monai.sweep_results.pairs import Estimate, PairedDifference, compare_seeds, correct_rows, estimate_mean
from cryo_monai.sweep_results.quotations import Quotation, read_quotations
from cryo_monai.sweep_results.results import Result
from cryo_monai.sweeps.outcomes import STATES, Cell, Value

# Of the environment in metrics.json; these may differ without making numbers another kind.
_CIRCUMSTANCES = ("threads",)


@dataclass(frozen=True)
class Row:
    """Trials that differ in their seed alone.

    Attributes
    ----------
    cell : mapping
        Axis to the name of its value, without the seed.
    members : tuple of Result
        The trials, by seed.
    quoted : Quotation or None
        What is published of the same.
    estimates : mapping
        Metric to its mean over the seeds that are done; None where there is none.
    differences : mapping
        Metric to its difference to the baseline; empty for the baseline itself and where none is named.
    effort : Effort or None
        What it took to come as far as the baseline; None as `differences`.
    """

    cell: Cell
    members: tuple[Result, ...]
    quoted: Quotation | None
    estimates: Mapping[str, Estimate | None]
    differences: Mapping[str, PairedDifference | None]
    effort: Effort | None

    @property
    def planned(self) -> int:
        """Trials of the row."""
        return len(self.members)

    @property
    def done(self) -> tuple[Result, ...]:
        """Its trials that are done."""
        return tuple(member for member in self.members if member.state == "done")

    @property
    def num_train(self) -> float | None:
        """Mean number of labelled volumes to train on; None where it is not recorded."""
        found = estimate_mean([member.num_train for member in self.done if member.num_train is not None])
        return found.mean if found else None


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other, and other methods on the same task."""

    rows: tuple[Row, ...]
    comparators: tuple[Quotation, ...]


@dataclass(frozen=True)
class Summary:
    """Everything that the tables and figures of a sweep are made of.

    Attributes
    ----------
    title, description : str
        The sweep's own.
    layout : Layout
        Rows and columns.
    groups : tuple of Group
        In the order of the tables.
    counts : mapping
        State to the number of trials.
    failures : tuple of Result
        Trials that failed, with their reasons.
    remarks : tuple of str
        What must be known before the numbers are used: conditions that differ between the runs.
    num_unplaced : int
        Published rows that tell of none of ours.
    """

    title: str
    description: str
    layout: Layout
    groups: tuple[Group, ...]
    counts: Mapping[str, int]
    failures: tuple[Result, ...]
    remarks: tuple[str, ...]
    num_unplaced: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of ours."""
        return tuple(row for group in self.groups for row in group.rows)


def summarise_sweep(results: Sequence[Result], sweep: Mapping[str, Any]) -> Summary:
    """Compute what the tables of a sweep say.

    Parameters
    ----------
    results : sequence of Result
        From `cryo_monai.sweep_results.results.collect_results`.
    sweep : mapping
        The sweep's JSON: ``title``, ``_desc_``, ``axes``, ``compare``, ``baseline``, ``published``, ``layout``; all
        may be missing.

    Raises
    ------
    InputError
        When that JSON names something that is not there; see `layout_of` and `read_quotations`.
    """
    layout = layout_of([result.cell for result in results], sweep)
    quotations = read_quotations(sweep, layout)
    rows = [_row(members, layout, quotations) for members in layout.grouped(results, lambda result: result.cell)]
    grouped: dict[tuple[Value | None, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(layout.context_of(row.cell), []).append(row)
    compared = _corrected([_compared(row, group, layout) for group in grouped.values() for row in group], layout)
    groups = _groups(compared, layout, quotations)
    placed = {id(quotation) for group in groups for quotation in group.comparators}
    placed |= {id(row.quoted) for row in compared}
    counts = Counter(result.state for result in results)
    return Summary(
        title=" ".join(str(sweep.get("title") or "Sweep").split()),
        description=_description(sweep.get("_desc_")),
        layout=layout,
        groups=groups,
        counts={state: counts[state] for state in STATES},
        failures=tuple(result for result in results if result.state == "failed"),
        remarks=tuple(filter(None, [_mixed_conditions(results), _unequal_pairs(groups, layout)])),
        num_unplaced=sum(id(quotation) not in placed for quotation in quotations),
    )


def summary_numbers(summary: Summary) -> dict[str, Any]:
    """Every number of the tables, for machines: shares from 0 to 1, not rounded; null where there is none."""
    layout = summary.layout
    return {
        "title": summary.title,
        "trials": dict(summary.counts),
        "axes": {axis: list(values) for axis, values in layout.axes.items()},
        "compare": layout.compare,
        "baseline": layout.baseline,
        "remarks": list(summary.remarks),
        "rows": [_row_numbers(row) for row in summary.rows],
        "comparators": [asdict(quotation) for group in summary.groups for quotation in group.comparators],
        "failures": [{"cell": dict(result.cell), "reason": result.reason} for result in summary.failures],
    }


def _row_numbers(row: Row) -> dict[str, Any]:
    return {
        "cell": dict(row.cell),
        "planned": row.planned,
        "seeds": [result.cell.get(SEED) for result in row.done],
        "num_train": row.num_train,
        "train_minutes": _numbers(estimate_mean([r.minutes for r in row.done if r.minutes is not None])),
        "published": _numbers(row.quoted),
        "ours": {name: _numbers(estimate) for name, estimate in row.estimates.items()},
        "differences": {name: _numbers(found) for name, found in row.differences.items()},
        "effort": _numbers(row.effort),
    }


def _numbers(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _row(members: Sequence[Result], layout: Layout, quotations: Sequence[Quotation]) -> Row:
    cell = {axis: value for axis, value in members[0].cell.items() if axis != SEED}
    quoted = next((quotation for quotation in quotations if quotation.is_of(cell, layout)), None)
    estimates = {
        name: estimate_mean([value for value in (member.metric(name) for member in members) if value is not None])
        for name in layout.metrics
    }
    return Row(cell, tuple(members), quoted, estimates, {}, None)


def _compared(row: Row, group: Sequence[Row], layout: Layout) -> Row:
    """Add the differences to the baseline of the row's group, if it is another row."""
    if layout.compare is None or layout.baseline is None or row.cell.get(layout.compare) == layout.baseline:
        return row
    baseline = next((other for other in group if other.cell.get(layout.compare) == layout.baseline), None)
    if baseline is None:
        return row
    pairs = pairs_of(row, baseline)
    differences = {}
    for name in layout.metrics:
        values = [(own.metric(name), other.metric(name)) for own, other in pairs]
        known = [own - other for own, other in values if own is not None and other is not None]
        differences[name] = compare_seeds(known)
    return replace(row, differences=differences, effort=summarise_effort(_reaches(pairs)))


def pairs_of(row: Row, baseline: Row) -> list[tuple[Result, Result]]:
    """Return runs of the same seed that are both done."""
    others = {result.cell.get(SEED): result for result in baseline.done}
    return [(own, others[own.cell.get(SEED)]) for own in row.done if own.cell.get(SEED) in others]


def _computer(result: Result) -> list[object]:
    """Return what has to be equal for minutes to be compared."""
    return [result.environment.get(key) for key in ("device", "threads", "ranks")]


def _reaches(pairs: Sequence[tuple[Result, Result]]) -> list[Reach]:
    found = [
        reach_of(own.history, other.history, same_device=_computer(own) == _computer(other)) for own, other in pairs
    ]
    return [reach for reach in found if reach is not None]


def _corrected(rows: Sequence[Row], layout: Layout) -> list[Row]:
    """Correct the p values of each metric for the number of rows."""
    changed = list(rows)
    for name in layout.metrics:
        corrected = correct_rows([row.differences.get(name) for row in changed])
        changed = [
            replace(row, differences={**row.differences, name: found}) if name in row.differences else row
            for row, found in zip(changed, corrected, strict=True)
        ]
    return changed


def _groups(rows: Sequence[Row], layout: Layout, quotations: Sequence[Quotation]) -> tuple[Group, ...]:
    """Put rows of a context together, and other methods behind the last context they belong to."""
    grouped: dict[tuple[Value | None, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(layout.context_of(row.cell), []).append(row)
    comparators: dict[tuple[Value | None, ...], list[Quotation]] = {context: [] for context in grouped}
    for quotation in quotations:
        homes = [context for context, group in grouped.items() if quotation.belongs_to(group[0].cell, layout)]
        if homes:
            comparators[homes[-1]].append(quotation)
    return tuple(Group(tuple(group), tuple(comparators[context])) for context, group in grouped.items())


def _description(given: Any) -> str:
    lines = given if isinstance(given, list) else [given]
    return " ".join(" ".join(str(line) for line in lines if line).split())


def _mixed_conditions(results: Sequence[Result]) -> str:
    """Say in which devices and versions the runs differ; empty where they do not."""
    done = [result for result in results if result.state == "done"]
    names = sorted({name for result in done for name in result.environment if name not in _CIRCUMSTANCES})
    mixed = []
    for name in names:
        found = Counter(str(result.environment.get(name) or "not recorded") for result in done)
        if len(found) > 1:
            mixed.append(f"{name} {', '.join(f'{value} ({found[value]})' for value in sorted(found))}")
    return f"The runs were not all made under the same conditions: {'; '.join(mixed)}." if mixed else ""


def _unequal_pairs(groups: Sequence[Group], layout: Layout) -> str:
    """Say where runs of a seed have other numbers of volumes, so that their difference is not that of a pair."""
    places = []
    for group in groups:
        volumes: dict[Value | None, set[tuple[int | None, ...]]] = {}
        for row in group.rows:
            for result in row.done:
                counts = (result.num_train, result.num_validation, result.num_test)
                volumes.setdefault(result.cell.get(SEED), set()).add(counts)
        if any(len(found) > 1 for found in volumes.values()):
            places.append(layout.context_text(group.rows[0].cell) or "this sweep")
    return f"Runs of the same seed have different numbers of volumes in {'; '.join(places)}." if places else ""
