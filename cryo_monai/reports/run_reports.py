"""The report of a run: one page that stands alone, its figures as files, and every number of it as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.reports import texts
from cryo_monai.reports.contents import RunContents, Scores, read_contents
from cryo_monai.reports.feature_maps import FeatureMap, make_feature_map
from cryo_monai.reports.mistakes import mistake_tiles
from cryo_monai.reports.page_figures import (
    FIGURES,
    PageFigure,
    confusion_figures,
    curve_figures,
    embedding_figures,
    reliability_figures,
    training_figures,
)
from cryo_monai.reports.pages import check_folder, render
from cryo_monai.separability import measure_separability

CONTENTS = (
    ("summary", "Summary"),
    ("training", "Training"),
    ("confusion", "Confusion matrix"),
    ("classes", "Classes"),
    ("curves", "ROC and precision"),
    ("calibration", "Calibration"),
    ("mistakes", "Mistakes"),
    ("features", "Map of the features"),
    ("data", "Data"),
    ("weights", "Initial weights"),
    ("command", "Command"),
    ("environment", "Environment"),
)
_STEPS = 4  # reading and audit, map of features, figures, page
Figures = Mapping[str, Sequence[PageFigure]]


def write_report(
    run_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write what a run came to, for those who were not there.

    ``report.html`` needs no network and no other file, ``metrics.json`` has its numbers, ``figures/`` its figures as
    SVG and PNG. The test split is scored only if it was not yet. The same run gives the same bytes.

    Parameters
    ----------
    run_dir : path
        A run folder.
    output_dir : path, optional
        ``report/`` in the run folder by default.
    progress : callable, optional
        Called with the steps that are done and those there are.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    CryoMonaiError
        When the folder is not a finished run, or something cannot be written.
    """
    target = Path(run_dir) / "report" if output_dir is None else Path(output_dir)
    check_folder(target, "report.html")
    step = progress or (lambda done, total: None)
    run = read_contents(run_dir)
    step(1, _STEPS)
    feature_map = make_feature_map(run)
    step(2, _STEPS)
    figures = {
        "training": training_figures(run),
        "confusion": confusion_figures(run),
        "curves": curve_figures(run),
        "calibration": reliability_figures(run),
        "features": embedding_figures(run, feature_map.rows, feature_map.projections),
    }
    step(3, _STEPS)
    numbers = report_numbers(run)
    page = render_report(run, numbers, figures, feature_map)
    _write_figures(target / "figures", figures)
    atomic_write_text(target / "metrics.json", json.dumps(numbers, indent=1) + "\n")
    # Last: who finds it finds the others too.
    atomic_write_text(target / "report.html", page)
    step(_STEPS, _STEPS)
    return target / "report.html"


def report_numbers(run: RunContents) -> dict[str, Any]:
    """Return every number of the report: evaluation, average precisions, separability, training, audit, warnings."""
    numbers: dict[str, Any] = {"verdict": texts.verdict_of(run), "warnings": run.warnings, **run.evaluation}
    numbers["average_precision"] = average_precisions(run.scores, run.class_names) if run.scores else None
    numbers["separability"] = _separability(run.scores) if run.scores else None
    numbers["training"] = run.training
    numbers["audit"] = run.audit.as_dict() if run.audit else None
    numbers["initialisation"] = run.record.get("initialisation")
    numbers["missing"] = dict(run.missing)
    return numbers


def average_precisions(scores: Scores, class_names: Sequence[str]) -> dict[str, float | None]:
    """Area under precision over recall of each class; None for classes without volumes."""
    from sklearn.metrics import average_precision_score

    found: dict[str, float | None] = {}
    for number, name in enumerate(class_names):
        positive = scores.labels == number
        area = average_precision_score(positive, scores.probabilities[:, number]) if positive.any() else None
        found[name] = None if area is None else float(area)
    return found


def _separability(scores: Scores) -> dict[str, Any]:
    try:
        return asdict(measure_separability(scores.features, scores.labels))
    except InputError as error:
        return {"undefined": str(error)}


def render_report(run: RunContents, numbers: Mapping[str, Any], figures: Figures, feature_map: FeatureMap) -> str:
    """Fill the page.

    Parameters
    ----------
    run : RunContents
        The run.
    numbers : mapping
        From `report_numbers`.
    figures : mapping
        Of each section that has some.
    feature_map : FeatureMap
        From `make_feature_map`.
    """
    splits, counts = texts.count_table(run)
    weight_facts, weight_rows = texts.weight_tables(run)
    mistakes, no_mistakes = mistake_tiles(run)
    page_map = feature_map.data
    return render(
        "report.html.jinja",
        name=run.folder.resolve().name,
        contents=CONTENTS,
        best_epoch=run.training.get("best_epoch"),
        verdict=numbers["verdict"],
        warnings=texts.shown_lines(run.warnings),
        cards=texts.cards_of(run),
        evaluation=run.evaluation,
        num_classes=len(run.class_names),
        num_volumes=run.evaluation["num_volumes"],
        figures={name: [figure.shown for figure in group] for name, group in figures.items()},
        class_rows=texts.class_rows(run, numbers["average_precision"]),
        calibration_rows=texts.calibration_rows(run),
        mistakes=mistakes,
        num_mistakes=int(run.scores.wrong.sum()) if run.scores else 0,
        page_map=page_map,
        num_shown=len(feature_map.rows),
        separability_rows=texts.separability_rows(numbers["separability"]),
        count_columns=[{"title": "Class", "number": False}, *({"title": name, "number": True} for name in splits)],
        count_rows=counts,
        data_facts=texts.data_facts(run),
        audit=run.audit,
        audit_problems=texts.shown_lines(run.audit.problems) if run.audit else [],
        audit_warnings=texts.shown_lines(run.audit.warnings) if run.audit else [],
        weight_facts=weight_facts,
        weight_rows=weight_rows,
        command=texts.command_of(run),
        record=run.record,
        configuration=texts.configuration_text(run),
        has_environment=bool(run.training.get("environment")),
        environment=texts.environment_rows(run),
        reasons={**run.missing, **feature_map.reasons, "mistakes": no_mistakes},
    )


def _write_figures(folder: Path, figures: Figures) -> None:
    """Write the figures, and take away those that an earlier report left and this one does not have."""
    made = {figure.name: figure for group in figures.values() for figure in group}
    for name in FIGURES:
        if name in made:
            atomic_write_text(folder / f"{name}.svg", made[name].svg)
            atomic_write_bytes(folder / f"{name}.png", made[name].png)
        else:
            for ending in (".svg", ".png"):
                (folder / f"{name}{ending}").unlink(missing_ok=True)
