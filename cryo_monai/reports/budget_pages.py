"""The page of a labelling budget: how many labels a target takes, and what one initialisation saves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryo_monai.budgets.answers import (
    NAMES,
    answer_text,
    capitalised,
    comparison_text,
    count_text,
    labels_text,
    most_text,
    notes_of,
    range_text,
    ratio_text,
    score_text,
    step_text,
)
from cryo_monai.budgets.planning import EXTRAPOLATED, LIMIT, Budget, Comparison, GroupBudget
from cryo_monai.files import atomic_write_text
from cryo_monai.reports.budget_figures import budget_figure
from cryo_monai.reports.page_figures import PageFigure, page_figure
from cryo_monai.reports.pages import render

HOW = (
    "How to read this: a mark is one training; the line is the middle of the curves that agree with them, dotted where "
    "nothing was tried; the shaded band holds the mean over seeds with 95 % probability. Trials with more labels, or "
    "with more seeds, make it narrower."
)
Row = list[Any]


def write_budget_page(budget: Budget, output_dir: str | os.PathLike[str]) -> Path:
    """Write ``budget.html``: one page that needs no network and no other file. The same budget gives the same bytes.

    Parameters
    ----------
    budget : Budget
        From `cryo_monai.budgets.planning.plan_budget`.
    output_dir : path
        Created when missing.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    CryoMonaiError
        When it cannot be written.
    """
    panels = panels_of(budget)
    axes = differing_axes(budget) or ["Trials"]
    metric = NAMES[budget.metric]
    contents = [("answer", "How many labels"), ("curves", "Learning curves")]
    contents += [("savings", f"Against {budget.baseline}")] if budget.comparisons else []
    contents += [("expected", "Numbers asked for")] if any(group.expected for group in budget.groups) else []
    page = render(
        "budget.html.jinja",
        contents=[*contents, ("method", "How this is found")],
        target=f"{budget.target:g}",
        metric=metric,
        metric_title=capitalised(metric),
        source=budget.source,
        verdict=verdict_of(budget),
        notes=notes_of(budget),
        answer_columns=[
            *({"title": axis, "number": False} for axis in axes),
            *(
                {"title": title, "number": True}
                for title in ("Labels needed", "Per class", "One percent more", "With all labels tried", "Trials")
            ),
        ],
        answer_rows=[_answer_row(group, axes) for group in budget.groups],
        answers=[(group.name, answer_text(group, budget.metric)) for group in budget.groups],
        figures=[
            _panel_figure(number, name, groups, budget).shown for number, (name, groups) in enumerate(panels.items(), 1)
        ],
        baseline=budget.baseline,
        saving_rows=[_saving_row(comparison, budget) for comparison in budget.comparisons],
        expected_rows=[row for group in budget.groups for row in _expected_rows(group)],
        extrapolated=f"{EXTRAPOLATED:g}",
        limit=f"{LIMIT:g}",
    )
    file = Path(output_dir) / "budget.html"
    atomic_write_text(file, page)
    return file


def verdict_of(budget: Budget) -> str:
    """Say in a sentence or two what there is to know first: savings where networks are compared, else the labels."""
    aimed = [each for each in budget.comparisons if not each.matches]
    if len(aimed) == 1:
        text = comparison_text(aimed[0], budget.metric)
        return f"{capitalised(text)}."
    if aimed:
        fewer = [each for each in aimed if each.probability_fewer is not None and each.probability_fewer >= 0.975]
        more = [each for each in aimed if each.probability_fewer is not None and each.probability_fewer <= 0.025]
        return (
            f"For {NAMES[budget.metric]} {budget.target:g}, {len(fewer)} of {len(aimed)} comparisons with "
            f"{budget.baseline} show that fewer labels do (with a probability above 0.975), {len(more)} that more are "
            "needed; the others are open."
        )
    if len(budget.groups) == 1:
        return answer_text(budget.groups[0], budget.metric)
    reached = sum(1 for group in budget.groups if group.target is not None and group.target.status != "out of reach")
    return (
        f"{reached} of {len(budget.groups)} groups of trials reach {NAMES[budget.metric]} {budget.target:g} with what "
        f"was tried, or within {LIMIT:g} times that as their curves foretell."
    )


def differing_axes(budget: Budget) -> list[str]:
    """List the axes that tell the groups apart."""
    cells = [group.group.cell for group in budget.groups]
    return [axis for axis in cells[0] if len({cell[axis] for cell in cells}) > 1]


def panels_of(budget: Budget) -> dict[str, list[tuple[str, GroupBudget]]]:
    """Put groups that differ in the compared axis alone into one figure, each with the name of its line."""
    axes = differing_axes(budget)
    along = budget.axis if budget.axis in axes or not axes else axes[-1]
    found: dict[str, list[tuple[str, GroupBudget]]] = {}
    for group in budget.groups:
        if not len(group.group.trials.labels):
            continue
        name = ", ".join(group.group.cell[axis] for axis in axes if axis != along)
        found.setdefault(name, []).append((group.group.cell.get(along, "trials"), group))
    return found


def _panel_figure(number: int, name: str, groups: Sequence[tuple[str, GroupBudget]], budget: Budget) -> PageFigure:
    metric = NAMES[budget.metric]
    drawing = budget_figure([g for _, g in groups], [line for line, _ in groups], metric=metric, target=budget.target)
    told = " ".join(f"{line}: {answer_text(group, budget.metric)}" for line, group in groups)
    title = name or f"{capitalised(metric)} over labels"
    alt = f"{metric} over the number of labelled training volumes. {told}"
    return page_figure(f"budget_{number}", drawing, title=title, alt=alt, how=HOW)


def _answer_row(group: GroupBudget, axes: Sequence[str]) -> Row:
    target = group.target
    per_class = target.per_class if target is not None else None
    needed = target.labels.median if target is not None else None
    text, *more = labels_text(group).split(" [", 1)
    more = [f"[{line}" for line in more]
    return [
        *(group.group.cell.get(axis, "all") for axis in axes),
        {"text": text, "value": needed, "range": " ".join(more)},
        "–" if per_class is None else {"text": count_text(per_class.median, "–"), "value": per_class.median},
        step_text(group),
        most_text(group),
        str(len(group.group.trials.labels)),
    ]


def _saving_row(comparison: Comparison, budget: Budget) -> Row:
    ratio = comparison.ratio
    if ratio is None:
        shown: Any = "no ratio: too likely that neither gets there"
    else:
        shown = {"text": ratio_text(ratio), "value": ratio.median}
    fewer = comparison.probability_fewer
    aim = f"{comparison.score:.3g}" + (f" (as {comparison.baseline} with all labels)" if comparison.matches else "")
    return [
        ", ".join(comparison.cell.values()) or "all",
        comparison.value,
        aim,
        shown,
        "–" if fewer is None else f"{fewer:.2f}",
        "beyond what was tried" if comparison.extrapolated else "within what was tried",
    ]


def _expected_rows(group: GroupBudget) -> list[Row]:
    return [
        [
            group.name,
            {"text": count_text(each.labels), "value": each.labels},
            {"text": score_text(each.score), "value": each.score.median},
            range_text(each.run),
            "outside of what was tried" if each.extrapolated else "within what was tried",
        ]
        for each in group.expected
    ]
