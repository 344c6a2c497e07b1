"""The files that a sweep leaves of its results: for spreadsheets, for machines, for pages and papers."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.files import atomic_write_text
from cryo_monai.sweep_results.layouts import layout_of
from cryo_monai.sweep_results.markup import latex_of, markdown_of
from cryo_monai.sweep_results.results import Result, collect_results
from cryo_monai.sweep_results.summaries import summarise_sweep, summary_numbers
from cryo_monai.sweep_results.tables import text_tables
from cryo_monai.sweeps.outcomes import Outcome

NUMBERS = (
    "num_train", "num_validation", "num_test", "num_classes", "accuracy", "auc", "balanced_accuracy", "macro_f1",
    "best_epoch", "epochs", "train_seconds", "device",
)  # fmt: skip


def write_results(outcomes: Sequence[Outcome], sweep: Mapping[str, Any], output_dir: Path) -> list[Path]:
    """Write what a sweep came to, whatever of it is done.

    ``results.csv`` has a row per trial; ``summary.json`` every number of the tables; ``table.md`` and ``table.tex``
    the tables. The same run folders give the same bytes.

    Parameters
    ----------
    outcomes : sequence of Outcome
        All trials of the sweep.
    sweep : mapping
        The sweep's JSON; see `summarise_sweep`.
    output_dir : Path
        Folder of the sweep.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    CryoMonaiError
        When the sweep's JSON names something that is not there, two trials are the same, or a file cannot be written.
    """
    results = collect_results(outcomes)
    summary = summarise_sweep(results, sweep)
    tables = text_tables(summary)
    contents = {
        "results.csv": results_csv(results, sweep, output_dir),
        "summary.json": json.dumps(summary_numbers(summary), indent=1, allow_nan=False) + "\n",
        "table.md": markdown_of(summary, tables),
        "table.tex": latex_of(summary, tables),
    }
    for name, text in contents.items():
        atomic_write_text(output_dir / name, text)
    return [output_dir / name for name in contents]


def results_csv(results: Sequence[Result], sweep: Mapping[str, Any], output_dir: Path) -> str:
    """Write a row per trial: its cell, its state, its numbers, and its folder relative to that of the sweep."""
    axes = list(layout_of([result.cell for result in results], sweep).axes)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*axes, "trial", "state", "reason", *NUMBERS, "folder"])
    for result in results:
        folder = result.outcome.folder
        table.writerow(
            [
                *(result.cell.get(axis) for axis in axes),
                folder.name,
                result.state,
                result.reason,
                *(getattr(result, name) for name in NUMBERS),
                Path(os.path.relpath(folder, output_dir)).as_posix(),
            ]
        )
    return text.getvalue()
