"""A labelling budget in plain words, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryo_monai.budgets.learning_curves import LEVEL
from cryo_monai.budgets.planning import EXTRAPOLATED, LIMIT, Budget, Comparison, Estimate, GroupBudget, Target, estimate
from cryo_monai.files import atomic_write_text

# Standard errors between a curve and the mean of a size from which on it is said.
MISFIT_NOTED = 2.5
NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "auc": "AUC"}


def write_budget(budget: Budget, output_dir: Path) -> None:
    """Write ``budget.json``, everything, and ``budget.csv``, a row per group.

    Raises
    ------
    CryoMonaiError
        When they cannot be written.
    """
    atomic_write_text(output_dir / "budget.json", json.dumps(budget_numbers(budget), indent=1, allow_nan=False) + "\n")
    atomic_write_text(output_dir / "budget.csv", _table(budget))


def budget_lines(budget: Budget) -> list[str]:
    """Say it all for a terminal: a table, what one saves against the other, and what to beware of."""
    metric = NAMES[budget.metric]
    rows = [["", f"labels for {metric} {budget.target:g}", "per class", f"{metric} with all labels tried"]]
    for group in budget.groups:
        per_class = group.target.per_class if group.target else None
        rows.append(
            [
                group.name,
                labels_text(group),
                "–" if per_class is None else count_text(per_class.median),
                most_text(group),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"[{100 * LEVEL:.0f} % intervals]")
    for group in budget.groups:
        lines += [f"{group.name}: {line}" for line in expected_texts(group, metric)]
    lines += [comparison_text(comparison, budget.metric) for comparison in budget.comparisons]
    return lines + [f"note: {line}" for line in notes_of(budget)]


def labels_text(group: GroupBudget) -> str:
    """Labels for the target in a few words."""
    target = group.target
    if target is None:
        return "no curve"
    if target.status == "with the fewest":
        return f"{count_text(target.labels.median)} or fewer"
    if target.status == "out of reach":
        return f"not within {count_text(target.limit)}"
    mark = " (far beyond what was tried)" if target.far else " (beyond what was tried)"
    return estimate_text(target.labels, target.limit) + (mark if target.status == "extrapolated" else "")


def most_text(group: GroupBudget) -> str:
    """Mean score with the most labels that were tried."""
    if group.curve is None:
        return "–"
    sizes = group.curve.sizes
    return f"{sizes.scores[-1]:.3f} ({count_text(float(sizes.labels[-1]))} labels)"


def answer_text(group: GroupBudget, metric: str) -> str:
    """Answer for one group in a sentence or two."""
    if group.curve is None or group.target is None:
        return f"No curve: {group.reason}."
    target = group.target
    most = float(group.curve.sizes.labels[-1])
    aim = f"{capitalised(NAMES[metric])} {target.score:g}"
    if target.status == "out of reach":
        return (
            f"{aim} is not reached within {LIMIT:g} times the most labels tried ({count_text(target.limit)}): the "
            f"probability that it is reached there is {target.probability_within:.2f}, and with any number of labels "
            f"{target.probability_ever:.2f}."
        )
    if target.status == "with the fewest":
        return f"{aim} is already reached with the fewest labels tried ({count_text(target.labels.median)})."
    needed = f"{estimate_text(target.labels, target.limit)} labels{_per_class(target)}"
    if target.status == "reached":
        measured = f"; measured: with {count_text(target.measured)}" if target.measured else ""
        return f"{aim} is already reached with {needed} of the {count_text(most)} tried{measured}."
    more = f"{(target.labels.median or most) / most:.1f} times the most tried ({count_text(most)})"
    warning = (
        " So far beyond what was tried the curve may be another one: label some more and ask again."
        if target.far
        else ""
    )
    return (
        f"{aim} is expected with {needed}, {more}; the probability that {count_text(target.limit)} are enough is "
        f"{target.probability_within:.2f}.{warning}"
    )


def capitalised(text: str) -> str:
    """Write the first letter large and leave the others."""
    return text[:1].upper() + text[1:]


def _per_class(target: Target) -> str:
    found = target.per_class
    return f" ({count_text(found.median)} per class)" if found and found.median is not None else ""


def expected_texts(group: GroupBudget, metric: str) -> list[str]:
    """Say what the numbers of labels that were asked for give."""
    lines = []
    for each in group.expected:
        told = f"{count_text(each.labels)} labels: {metric} {score_text(each.score)}"
        told += f", a single training {range_text(each.run)}"
        lines.append(told + (" (outside of what was tried)" if each.extrapolated else ""))
    return lines


def step_text(group: GroupBudget) -> str:
    """Labels that one more percent costs."""
    if group.curve is None or group.next_step is None:
        return "–"
    limit = (LIMIT - 1) * float(group.curve.sizes.labels[-1])
    if group.next_step.median is None:
        return f"more than {count_text(limit)}"
    return estimate_text(group.next_step, limit)


def comparison_text(comparison: Comparison, metric: str) -> str:
    """Say how many times the labels one initialisation needs."""
    where = f" ({', '.join(comparison.cell.values())})" if comparison.cell else ""
    aim = f"{NAMES[metric]} {comparison.score:.3g}"
    if comparison.matches:
        aim += f", which the curve of {comparison.baseline} has with all labels tried"
    if comparison.ratio is None:
        return f"{aim}: too likely reached by neither {comparison.value} nor {comparison.baseline}; no ratio{where}"
    ratio = comparison.ratio
    found = "more than any number of" if ratio.median is None else f"{ratio_text(ratio)}"
    beyond = "; beyond what was tried" if comparison.extrapolated else ""
    return f"for {aim}: {comparison.value} needs {found} times the labels of {comparison.baseline}{where}{beyond}"


def notes_of(budget: Budget) -> list[str]:
    """List what to beware of, one line each."""
    lines = [f"{group.name}: no curve: {group.reason}" for group in budget.groups if group.curve is None]
    found: dict[str, list[str]] = {}
    for group in budget.groups:
        for line in _group_notes(group):
            found.setdefault(line, []).append(group.name)
    for line, names in found.items():
        lines.append(f"{'all' if len(names) == len(budget.groups) else '; '.join(names)}: {line}")
    others = [group.group.num_others for group in budget.groups if group.group.num_others is not None]
    if others:
        low, high = min(others), max(others)
        span = count_text(low) if high < low + 1 else f"{count_text(low)} to {count_text(high)}"
        lines.append(f"labels are those of training volumes; validation and test took {span} more")
    return lines


def _group_notes(group: GroupBudget) -> list[str]:
    lines = []
    if group.group.num_undefined:
        lines.append(f"trials without this score: {group.group.num_undefined}; they do not count")
    curve = group.curve
    if curve is None:
        return lines
    if not curve.has_floor:
        lines.append(
            "only two numbers of labels: the curve is one whose error goes to 0 in the end, which may promise too much"
        )
    if curve.misfit > MISFIT_NOTED:
        lines.append("the trials do not lie on such a curve: its numbers are doubtful, look at the figure")
    if max(curve.sizes.counts) == 1:
        lines.append("one trial for each number of labels: how much seeds differ is assumed, not measured")
    if curve.left_out:
        told = ", ".join(count_text(n) for n in curve.left_out)
        lines.append(f"no better than chance with {told} labels; the curve begins after that")
    if not group.group.num_classes and group.chance == 0:
        lines.append("the number of classes is not given: curves are not held above chance")
    return lines


def count_text(number: float | None, missing: str = "") -> str:
    """Write a number of labels, rounded up; from 1000 on with three digits."""
    if number is None:
        return missing
    unit = 10 ** max(math.floor(math.log10(max(number, 1))) - 2, 0)
    return str(math.ceil(round(number / unit, 6)) * unit)


def estimate_text(found: Estimate, limit: float) -> str:
    """Write labels with their interval."""
    over = f"over {count_text(limit)}"
    low, high = count_text(found.low, over), count_text(found.high, over)
    return f"{count_text(found.median, over)} [{low}, {high}]"


def score_text(found: Estimate) -> str:
    """Write a score with its interval."""
    return "–" if found.median is None else f"{found.median:.3f} {range_text(found)}"


def range_text(found: Estimate) -> str:
    """Write the interval of a score."""
    return f"[{found.low or 0:.3f}, {found.high or 0:.3f}]"


def ratio_text(ratio: Estimate) -> str:
    """Write a ratio with its interval."""
    shown = ["any number" if n is None else f"{n:.2f}" for n in (ratio.median, ratio.low, ratio.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def budget_numbers(budget: Budget) -> dict[str, Any]:
    """Every number of a budget, for JSON; null where one lies beyond what is given."""
    return {
        "results": budget.source,
        "metric": budget.metric,
        "target": budget.target,
        "level": LEVEL,
        "extrapolated_beyond": EXTRAPOLATED,
        "limit": LIMIT,
        "groups": [_group_numbers(group, budget.metric) for group in budget.groups],
        "comparisons": [
            asdict(each) | {"cell": dict(each.cell), "text": comparison_text(each, budget.metric)}
            for each in budget.comparisons
        ],
        "notes": notes_of(budget),
    }


def _group_numbers(group: GroupBudget, metric: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cell": dict(group.group.cell),
        "num_trials": len(group.group.trials.labels),
        "num_classes": group.group.num_classes,
        "chance": group.chance,
        "answer": answer_text(group, metric),
        "target": asdict(group.target) if group.target else None,
        "labels_for_one_percent_more": asdict(group.next_step) if group.next_step else None,
        "expected": [asdict(each) for each in group.expected],
    }
    if group.curve is not None:
        sizes = group.curve.sizes
        found["sizes"] = [
            {"labels": float(n), "score": float(score), "trials": int(count)}
            for n, score, count in zip(sizes.labels, sizes.scores, sizes.counts, strict=True)
        ]
        found["curve"] = {
            name: asdict(estimate(getattr(group.curve, name))) for name in ("first", "floor", "exponent", "spread")
        }
        found["left_out"] = list(group.curve.left_out)
    return found


def _table(budget: Budget) -> str:
    axes = list(dict.fromkeys(axis for group in budget.groups for axis in group.group.cell))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*axes, *_COLUMNS])
    for group in budget.groups:
        writer.writerow([*(group.group.cell.get(axis, "") for axis in axes), *_cells(group, budget)])
    return stream.getvalue()


_COLUMNS = (
    "metric", "target", "labels", "labels_low", "labels_high", "per_class", "status", "probability_within_limit",
    "probability_ever", "limit", "trials", "most_labels_tried", "score_with_most", "reason",
)  # fmt: skip


def _cells(group: GroupBudget, budget: Budget) -> Sequence[Any]:
    target, curve = group.target, group.curve
    first = [budget.metric, budget.target]
    trials = len(group.group.trials.labels)
    if target is None or curve is None:
        return [*first, "", "", "", "", "no curve", "", "", "", trials, "", "", group.reason]
    found = target.labels
    per_class = target.per_class.median if target.per_class else None
    numbers = ["" if n is None else f"{n:.1f}" for n in (found.median, found.low, found.high, per_class)]
    chances = [f"{p:.3f}" for p in (target.probability_within, target.probability_ever)]
    most = [f"{curve.sizes.labels[-1]:.1f}", f"{curve.sizes.scores[-1]:.4f}"]
    return [*first, *numbers, target.status, *chances, f"{target.limit:.0f}", trials, *most, ""]
