"""The page of a sweep: what is done, its tables, curves and differences, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.files import atomic_write_text
from cryo_monai.reports import sweep_contents as contents
from cryo_monai.reports.pages import render
from cryo_monai.sweep_results.results import Result, collect_results
from cryo_monai.sweep_results.summaries import Summary, summarise_sweep
from cryo_monai.sweep_results.tables import text_tables
from cryo_monai.sweeps.outcomes import Outcome

PAGE = "sweep.html"
SECTIONS = (
    ("progress", "Progress"),
    ("results", "Results"),
    ("efficiency", "Label efficiency"),
    ("differences", "Differences in pairs"),
    ("effort", "Training effort"),
    ("failures", "Failed trials"),
)


def write_sweep_page(outcomes: Sequence[Outcome], sweep: Mapping[str, Any], output_dir: Path) -> Path:
    """Write ``sweep.html``, whatever of a sweep is done.

    The page needs no network, no other file and no script. The same run folders give the same bytes.

    Parameters
    ----------
    outcomes : sequence of Outcome
        All trials of the sweep.
    sweep : mapping
        The sweep's JSON; see `summarise_sweep`.
    output_dir : Path
        Folder of the sweep.

    Raises
    ------
    CryoMonaiError
        As `cryo_monai.sweep_results.result_files.write_results`.
    """
    results = collect_results(outcomes)
    page = output_dir / PAGE
    atomic_write_text(page, sweep_page(results, summarise_sweep(results, sweep)))
    return page


def sweep_page(results: Sequence[Result], summary: Summary) -> str:
    """Put the page of a sweep together."""
    tables = {table.name: table for table in text_tables(summary)}
    return render(
        "sweep.html.jinja",
        title=summary.title,
        description=summary.description,
        contents=SECTIONS,
        verdict=contents.verdict_of(summary),
        warnings=summary.remarks,
        cards=_cards(summary, results),
        tables=tables,
        efficiency=contents.efficiency_figures(summary),
        how_efficiency=contents.HOW_EFFICIENCY,
        differences=contents.difference_figures(summary),
        how_differences=contents.HOW_DIFFERENCES,
        validation=contents.validation_figures(summary),
        how_validation=contents.HOW_VALIDATION,
        failures=[(summary.layout.trial_text(failed.cell), failed.reason) for failed in summary.failures],
    )


def _cards(summary: Summary, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Count trials by state, and the time that they took."""
    total = sum(summary.counts.values())
    waiting = total - summary.counts["done"] - summary.counts["failed"]
    minutes = [result.minutes for result in results if result.minutes is not None]
    states = [f"{summary.counts[name]} {name}" for name in ("running", "stopped", "waiting") if summary.counts[name]]
    cards = [
        ("Done", str(summary.counts["done"]), f"of {total} trial{'s' if total != 1 else ''}"),
        ("Failed", str(summary.counts["failed"]), "reasons below" if summary.failures else ""),
        ("Not done yet", str(waiting), ", ".join(states)),
        ("Accelerator hours", f"{sum(minutes) / 60:.1f}" if minutes else "–", "of training, in trials that are done"),
    ]
    return [{"label": label, "value": value, "range": "", "scale": None, "note": note} for label, value, note in cards]
