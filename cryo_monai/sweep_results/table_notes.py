"""What the numbers in the tables of a sweep mean, in sentences to stand below them."""

from __future__ import annotations

from collections.abc import Mapping

from cryo_monai.sweep_results.layouts import METRIC_NAMES, cell_text
from cryo_monai.sweep_results.summaries import Summary


def result_notes(summary: Summary, marks: Mapping[str, str], *, differs: bool) -> list[str]:
    """Say what the table of results shows, and the sources of what is quoted."""
    notes = [
        "Ours: mean over seeds of the metric on the test split ± half of its 95 % interval (Student's t); with fewer "
        "than three seeds the mean alone. Seeds: done, or done/planned. What is not there is blank."
    ]
    if differs:
        notes.append(
            f"Difference: to {_baseline(summary)}, mean ± half of its 95 % interval over pairs of runs with the same "
            "seed, data and split; of accuracies in percentage points."
        )
    if marks:
        notes.append("Published numbers, and rows marked as quoted, are not ours: " + _sources(marks))
    if summary.num_unplaced:
        notes.append(f"Published rows that have no place here and are left out: {summary.num_unplaced}.")
    return notes


def difference_notes(summary: Summary) -> list[str]:
    """Say how differences are tested."""
    families = []
    for metric in summary.layout.metrics:
        found = [row.differences.get(metric) for row in summary.rows]
        tests = sum(difference is not None and difference.t_test_p is not None for difference in found)
        families.append(f"{tests} of {METRIC_NAMES[metric].removesuffix(' (%)')}")
    pairs = [len(f.estimate.values) for row in summary.rows for f in row.differences.values() if f is not None]
    most = max(pairs, default=0)
    floor = f" (with {most} pairs {2 / 2**most:.3g})" if 3 <= most <= 16 else ""
    return [
        "Difference: mean ± half of its 95 % interval (Student's t). Wins: pairs with a difference above 0; a tie is "
        "none. Fewer than three pairs are not tested.",
        "t-test: Student's paired test, two-sided. Sign flips: share of all 2ⁿ choices of the signs of the n "
        f"differences whose mean is as far from 0; never below 2/2ⁿ{floor}. Holm: p corrected for the tests of a "
        f"metric in this table (t-tests: {', '.join(families)}).",
        "Hedges' g: mean of the differences over their standard deviation (Cohen's d_z) times the exact correction for "
        "few pairs of Hedges (1981).",
    ]


def effort_notes(summary: Summary, *, quotes: bool) -> list[str]:
    """Say what effort is."""
    notes = [
        f"For each seed: when the validation accuracy first reached the best that the run with {_baseline(summary)} of "
        "the same seed ever had (Ours), and when that run first had it itself (Baseline). Minutes are those of the "
        "accelerator since the start, validation included, and only of pairs on the same device.",
        "Ratio: mean of the ratios of the pairs ± half of its 95 % interval (Student's t); 0.5 is half the effort. "
        "Reached: pairs that came so far, of all; about half would if the runs were no better than their baseline. "
        "Means and ratios are of these alone, and flatter where they are not all.",
    ]
    if quotes:
        marks = dict.fromkeys(row.quoted.source for row in summary.rows if row.quoted and row.quoted.effort is not None)
        notes.append(f"Published ratio, not ours: {'; '.join(marks)}.")
    return notes


def progress_text(counts: Mapping[str, int]) -> str:
    """Say how many trials are in which state."""
    total = sum(counts.values())
    others = [f"{number} {state}" for state, number in counts.items() if number and state != "done"]
    return f"{counts['done']} of {total} trial{'s' if total != 1 else ''} done" + "".join(f", {o}" for o in others)


def _baseline(summary: Summary) -> str:
    layout = summary.layout
    if layout.compare is None or layout.baseline is None:
        return "the baseline"
    return f"{layout.axis_title(layout.compare).lower()} {cell_text(layout.compare, layout.baseline)}"


def _sources(marks: Mapping[str, str]) -> str:
    return "; ".join(f"[{mark}] {source.rstrip('.')}" for source, mark in marks.items()) + "."
