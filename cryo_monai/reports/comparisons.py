"""Several runs beside each other: one page that stands alone, its figures as files, and every number as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.files import atomic_write_bytes, atomic_write_text
from cryo_monai.projections import METHODS
from cryo_monai.reports import comparison_texts as texts
from cryo_monai.reports.compared_runs import ComparedRun, Pair, comparison_warnings, pair_runs, read_runs
from cryo_monai.reports.feature_stages import Stage, Stages, measure_stages
from cryo_monai.reports.figures import embedding_figure, recall_figure, run_curves
from cryo_monai.reports.page_figures import PageFigure, page_figure
from cryo_monai.reports.pages import check_folder, render
from cryo_monai.reports.texts import HEADLINES, shown_lines
from cryo_monai.significance import RESAMPLES, SWAPS

CONTENTS = (
    ("runs", "What is compared"),
    ("curves", "Training"),
    ("metrics", "Metrics"),
    ("tests", "Paired tests"),
    ("classes", "Recall by class"),
    ("features", "Features before and after"),
)
Progress = Callable[[int, int | None], None]
HOW_CURVES = (
    "How to read this: dashed in training, solid in validation; the marker is the epoch whose weights were scored. "
    "Curves of one seed each: another seed would move them."
)

HOW_RECALL = (
    "How to read this: a point is the share of a class that a run found, the line its 95 % interval; where lines "
    "of runs lie far apart, they differ in that class."
)


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    names: Sequence[str] = (),
    projection: str = "tsne",
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write what several runs came to, beside each other.

    ``comparison.html`` needs no network and no other file, ``metrics.json`` has its numbers, ``figures/`` its figures
    as SVG and PNG; those that an earlier comparison left there and this one does not have are taken away. A test split
    is scored only if it was not yet. The same runs give the same bytes.

    Parameters
    ----------
    run_dirs : sequence of path
        Two run folders or more, of the same classes.
    output_dir : path
        Created when missing.
    names : sequence of str
        What to call the runs; by default the names of their folders.
    projection : str
        Of the features: ``"tsne"``, ``"umap"`` or ``"pca"``.
    seed : int
        Of the projection, of the cross-validation beside it, of the bootstrap and of the swap test.
    progress : callable, optional
        Called with the steps that are done and the steps there are, from the first run that is read on.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    CryoMonaiError
        In one line, when runs cannot be compared: fewer than two, one twice, not finished, other classes, other labels
        of the same volume; for an unknown projection; for an output folder that holds something else, before
        anything is computed; or when something cannot be written.
    """
    if projection not in METHODS:
        raise InputError(f"projection: {projection!r} is none of {', '.join(METHODS)}")
    folder = Path(output_dir)
    check_folder(folder, "comparison.html")
    steps = _Steps(progress, len(run_dirs))
    runs = read_runs(run_dirs, names, progress=steps.advance)
    pairs = pair_runs(runs, seed=seed, progress=steps.advance)
    stages = measure_stages(runs, projection=projection, seed=seed, progress=steps.advance)
    steps.reach(steps.before_figures)
    warnings = comparison_warnings(runs, pairs)
    figures = {"curves": _curve_figure(runs), "recall": _recall_figure(runs)}
    embeddings = _embedding_figures(stages, runs[0].contents.class_names, steps.advance)
    page = _page(runs, pairs, stages, warnings, figures, embeddings)
    _write_figures(folder / "figures", [f for f in (*figures.values(), *embeddings) if isinstance(f, PageFigure)])
    numbers = comparison_numbers(runs, pairs, stages, warnings)
    atomic_write_text(folder / "metrics.json", json.dumps(numbers, indent=1) + "\n")
    atomic_write_text(folder / "comparison.html", page)
    steps.reach(steps.total)
    return folder / "comparison.html"


class _Steps:
    """What is done of a comparison: reading, pairs, features, figures."""

    def __init__(self, progress: Progress | None, num_runs: int) -> None:
        self.done = 0
        # Of features a start per run, and twice two states; runs that share a start have fewer.
        self.before_figures = num_runs + num_runs * (num_runs - 1) // 2 + 5 * num_runs
        self.total = self.before_figures + 2 * num_runs + 1
        self._progress = progress

    def advance(self) -> None:
        """Say that one more step is done."""
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        """Say that so many steps are done, unless it was said."""
        if done > self.done:
            self.done = done
            if self._progress is not None:
                self._progress(done, self.total)


def _write_figures(folder: Path, figures: Sequence[PageFigure]) -> None:
    """Write the figures, and take away those that an earlier comparison left."""
    for figure in figures:
        atomic_write_text(folder / f"{figure.name}.svg", figure.svg)
        atomic_write_bytes(folder / f"{figure.name}.png", figure.png)
    made = {figure.name for figure in figures}
    for file in [*folder.glob("features_*"), *folder.glob("curves.*")]:
        if file.suffix in (".svg", ".png") and file.stem not in made:
            file.unlink()


def comparison_numbers(
    runs: Sequence[ComparedRun], pairs: Sequence[Pair], stages: Stages, warnings: Sequence[str]
) -> dict[str, Any]:
    """Every number of a comparison."""
    return {
        "verdict": texts.verdict_of(runs, pairs),
        "warnings": list(warnings),
        "best": texts.best_runs(runs, pairs),
        "runs": {
            run.name: {
                "run_dir": str(run.contents.folder),
                "weights": run.weights,
                "training": run.contents.training,
                "evaluation": run.evaluation,
            }
            for run in runs
        },
        "pairs": [asdict(pair) for pair in pairs],
        "features": {
            "num_volumes": stages.num_volumes,
            "stages": [
                {
                    "title": stage.title,
                    "runs": list(stage.runs),
                    "separability": asdict(stage.separability) if stage.separability else None,
                    "projection": stage.projection.description if stage.projection else None,
                    "missing": stage.missing or None,
                }
                for stage in stages.stages
            ],
        },
    }


def _curve_figure(runs: Sequence[ComparedRun]) -> PageFigure | None:
    histories = {run.name: run.contents.history for run in runs}
    if not any(histories.values()):
        return None
    alt = texts.curve_alt(histories, runs)
    return page_figure("curves", run_curves(histories), title="Loss and accuracy", alt=alt, how=HOW_CURVES)


def _recall_figure(runs: Sequence[ComparedRun]) -> PageFigure:
    recalls, intervals = texts.recalls_of(runs)
    class_names = runs[0].contents.class_names
    low = {run: min((v, n) for v, n in zip(values, class_names, strict=True) if v is not None)
           for run, values in recalls.items() if any(value is not None for value in values)}  # fmt: skip
    told = "; ".join(f"{run}: lowest {name} {value:.3f}" for run, (value, name) in low.items())
    figure = recall_figure(class_names, recalls, intervals)
    alt = f"Recall of {len(class_names)} classes in {len(runs)} runs. {told}."
    return page_figure("recall", figure, title="Recall by class and run", alt=alt, how=HOW_RECALL)


def _embedding_figures(
    stages: Stages, class_names: Sequence[str], step: Callable[[], object]
) -> list[PageFigure | dict[str, Any]]:
    """Each state's picture with its numbers below, or the reason why there is none."""
    figures: list[PageFigure | dict[str, Any]] = []
    for number, stage in enumerate(stages.stages):
        title = _title(stage)
        if stage.projection is None or stage.separability is None:
            figures.append({"title": title, "missing": stage.missing})
            continue
        told = texts.measures_text(stage.separability)
        drawing = embedding_figure(stage.projection.points, stages.labels, class_names)
        name = f"features_{number + 1}_{re.sub(r'[^A-Za-z0-9]+', '_', stage.title).strip('_')[:60]}"
        alt = f"{stage.projection.description}, of {len(stages.labels)} test volumes, {stage.title}: {told}."
        how = f"{told[0].upper()}{told[1:]}. {stage.projection.description}."
        figures.append(page_figure(name, drawing, title=title, alt=alt, how=how))
        step()
    return figures


def _title(stage: Stage) -> str:
    text = f"{stage.title[0].upper()}{stage.title[1:]}"
    return f"{text} (start of {', '.join(stage.runs)})" if stage.kind == "start" else text


def _page(
    runs: Sequence[ComparedRun],
    pairs: Sequence[Pair],
    stages: Stages,
    warnings: Sequence[str],
    figures: Mapping[str, PageFigure | None],
    embeddings: Sequence[PageFigure | dict[str, Any]],
) -> str:
    id_rows, more_ids = texts.id_rows(runs)
    called = [run.name for run in runs]
    measured = next((stage.separability for stage in stages.stages if stage.separability is not None), None)
    return render(
        "comparison.html.jinja",
        names=called,
        contents=CONTENTS,
        verdict=texts.verdict_of(runs, pairs),
        warnings=shown_lines(warnings),
        run_rows=texts.run_rows(runs),
        folders=[(run.name, str(run.contents.folder)) for run in runs],
        id_columns=_columns("Id", texts=called),
        id_rows=id_rows,
        more_ids=more_ids,
        **{name: figure.shown if figure else None for name, figure in figures.items()},
        metric_columns=_columns("Run", numbers=[*(label for _, label in HEADLINES), "Most frequent class"]),
        metric_rows=texts.metric_rows(runs, pairs),
        any_best=any(texts.best_runs(runs, pairs).values()),
        num_pairs=len(pairs),
        resamples=RESAMPLES,
        swaps=SWAPS,
        tested=any(pair.tests for pair in pairs),
        accuracy_rows=texts.accuracy_rows(pairs),
        difference_rows=texts.difference_rows(pairs),
        class_columns=_columns("Class", numbers=["Volumes", *called]),
        class_rows=texts.class_rows(runs),
        figures=[figure.shown if isinstance(figure, PageFigure) else figure for figure in embeddings],
        stage_columns=[*_columns("State", texts=["Runs"]), *_columns(numbers=[label for *_, label in texts.MEASURES])],
        stage_rows=texts.stage_rows(stages.stages),
        num_common=stages.num_volumes,
        num_shown=len(stages.labels),
        measured=measured,
        folds=texts.folds_text(measured) if measured else "",
        left_out=texts.left_out_text(measured) if measured else "",
    )


def _columns(*first: str, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Columns of a table: text first, numbers after it."""
    return [
        *({"title": title, "number": False} for title in (*first, *texts)),
        *({"title": title, "number": True} for title in numbers),
    ]
