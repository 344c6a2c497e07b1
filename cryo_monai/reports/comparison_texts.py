"""The words and tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cryo_monai.reports.compared_runs import ComparedRun, Pair, differing_ids
from cryo_monai.reports.feature_stages import Stage
from cryo_monai.reports.pages import decimals
from cryo_monai.reports.texts import HEADLINES, range_text
from cryo_monai.separability import FOLDS, Separability
from cryo_monai.significance import Difference

LEVEL = 0.05
MAX_IDS = 40
MAX_TEXT = 60
Row = list[Any]
MEASURES = (
    ("silhouette", "silhouette_spread", "Silhouette"),
    ("neighbour_accuracy", "neighbour_spread", "5 nearest neighbours"),
    ("probe_accuracy", "probe_spread", "Linear probe"),
)


def verdict_of(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> str:
    """Say which run is best in accuracy, and whether that is more than luck with the test volumes."""
    order = sorted(runs, key=lambda run: -run.evaluation["accuracy"])
    scores = "; ".join(f"{run.name} {decimals(run.evaluation['accuracy'])}" for run in order)
    best = best_runs(runs, pairs)["accuracy"]
    if best is not None:
        others = "the other" if len(runs) == 2 else "each of the others"
        how = f"The run {best} is more often right than {others}, by more than luck with test volumes"
        return f"{how} (accuracy: {scores})."
    untested = any(pair.tests is None for pair in pairs)
    why = "not all runs were scored on common volumes" if untested else "the differences may be luck with test volumes"
    return f"No run is shown to be more often right than all others: {why} (accuracy: {scores})."


def best_runs(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> dict[str, str | None]:
    """Return for each metric the run that is better than every other with a corrected p below 0.05, or None.

    Accuracies are judged by McNemar's test, the others by the swap test.
    """
    found: dict[str, str | None] = {}
    for metric, _ in HEADLINES:
        beaten: dict[str, int] = {run.name: 0 for run in runs}
        for pair in pairs:
            p = pair.corrected.get("mcnemar" if metric == "accuracy" else metric)
            value = pair.tests.differences[metric].value if pair.tests else None
            if p is not None and p < LEVEL and value:
                beaten[pair.second if value > 0 else pair.first] += 1
        found[metric] = next((name for name, number in beaten.items() if number == len(runs) - 1), None)
    return found


def run_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """One row per run: what it is and how much it has seen."""
    rows: list[Row] = []
    for run in runs:
        training, configuration = run.contents.training, run.contents.configuration or {}
        seen = run.contents.audit.counts.get("training", {}) if run.contents.audit else {}
        rows.append(
            [
                run.name,
                str(configuration.get("backbone", "not recorded")),
                run.weights,
                _count(len(run.contents.history) or None),
                _count(training.get("best_epoch")),
                _count(sum(seen.values()) or None),
                _count(run.evaluation["num_volumes"]),
            ]
        )
    return rows


def id_rows(runs: Sequence[ComparedRun]) -> tuple[list[Row], int]:
    """Ids that differ, with their value in each run; and how many more there are."""
    found = differing_ids(runs)
    rows = [[name, *(_cut(value) for value in values)] for name, values in list(found.items())[:MAX_IDS]]
    return rows, max(0, len(found) - MAX_IDS)


def metric_rows(runs: Sequence[ComparedRun], pairs: Sequence[Pair]) -> list[Row]:
    """One row per run: the headline metrics with their intervals; the best marked where it is significantly so."""
    best = best_runs(runs, pairs)
    rows: list[Row] = []
    for run in runs:
        row: Row = [run.name]
        for metric, _ in HEADLINES:
            value = run.evaluation[metric]
            text = decimals(value) + (" ★" if best[metric] == run.name else "")
            interval = run.evaluation.get("intervals", {}).get(metric)
            row.append({"text": text, "value": "" if value is None else value, "range": range_text(interval)})
        rows.append([*row, {"text": decimals(run.evaluation["chance"]["accuracy"]), "range": ""}])
    return rows


def accuracy_rows(pairs: Sequence[Pair]) -> list[Row]:
    """One row per pair: difference of accuracies, volumes that one run alone has right, McNemar's test."""
    rows: list[Row] = []
    for pair in pairs:
        tests = pair.tests
        if tests is None:
            rows.append([pair.second, pair.first, _count(0), *(["–"] * 5)])
            continue
        rows.append(
            [
                pair.second,
                pair.first,
                _count(tests.num_volumes),
                difference_cell(tests.differences["accuracy"]),
                _count(tests.only_second_right),
                _count(tests.only_first_right),
                p_cell(tests.mcnemar_p),
                p_cell(pair.corrected["mcnemar"]),
            ]
        )
    return rows


def difference_rows(pairs: Sequence[Pair]) -> list[Row]:
    """One row per pair and metric but accuracy: difference, p of the swap test, and that corrected."""
    rows: list[Row] = []
    for metric, label in HEADLINES[1:]:
        for pair in pairs:
            if pair.tests is not None:
                found = pair.tests.differences[metric]
                cells = [difference_cell(found), p_cell(found.p_value), p_cell(pair.corrected[metric])]
                rows.append([pair.second, pair.first, label, *cells])
    return rows


def class_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """One row per class: volumes in the test split of the first run, and the recall in each run with its interval."""
    recalls, intervals = recalls_of(runs)
    rows: list[Row] = []
    for number, (name, entry) in enumerate(runs[0].evaluation["per_class"].items()):
        cells = [
            {"text": decimals(values[number]), "value": _sortable(values[number]),
             "range": "" if values[number] is None else range_text(intervals[run][number], 2)}
            for run, values in recalls.items()
        ]  # fmt: skip
        rows.append([name, _count(entry["support"]), *cells])
    return rows


def recalls_of(
    runs: Sequence[ComparedRun],
) -> tuple[dict[str, list[float | None]], dict[str, list[list[float] | None]]]:
    """Recall of each class and its interval by the name of the run; None for classes without test volumes."""
    recalls: dict[str, list[float | None]] = {}
    intervals: dict[str, list[list[float] | None]] = {}
    for run in runs:
        entries = list(run.evaluation["per_class"].values())
        recalls[run.name] = [entry["recall"] if entry["support"] else None for entry in entries]
        intervals[run.name] = [entry.get("intervals", {}).get("recall") for entry in entries]
    return recalls, intervals


def stage_rows(stages: Sequence[Stage]) -> list[Row]:
    """One row per state of a network: the three measures of its features."""
    rows: list[Row] = []
    for stage in stages:
        found = stage.separability
        cells: Row = ["–"] * len(MEASURES)
        if found is not None and found.num_folds:
            cells = [
                {"text": _minus(decimals(getattr(found, value))), "value": _sortable(getattr(found, value)),
                 "range": f"± {decimals(getattr(found, spread))}"}
                for value, spread, _ in MEASURES
            ]  # fmt: skip
        rows.append([stage.title, ", ".join(stage.runs), *cells])
    return rows


def measures_text(found: Separability) -> str:
    """Put the three measures into one line, or say why there are none."""
    if not found.num_folds:
        return f"not measured: there are no two classes of {FOLDS} test volumes"
    shown = [
        f"{label.lower()} {_minus(decimals(getattr(found, value)))} ± {decimals(getattr(found, spread))}"
        for value, spread, label in MEASURES
    ]
    return "; ".join(shown)


def folds_text(found: Separability) -> str:
    """Say over which folds the measures were taken."""
    repeats = found.num_folds // FOLDS
    return f"{found.num_folds} held-out folds" + (f" ({FOLDS} folds, {repeats} times)" if repeats > 1 else "")


def left_out_text(found: Separability) -> str:
    """Say what was not measured; nothing when everything was."""
    volumes, classes = found.num_left_out, found.num_classes_left_out
    if not volumes:
        return ""
    whose = "a class" if classes == 1 else f"{classes} classes"
    return (
        f"Not measured: {volumes} volume{'s' if volumes > 1 else ''} of {whose} with fewer than {FOLDS} test volumes, "
        "which cannot be in every fold."
    )


def difference_cell(found: Difference) -> dict[str, Any]:
    """Show a difference with its sign, and its interval."""
    if found.value is None:
        return {"text": "–", "value": "", "range": ""}
    interval = "" if found.interval is None else f"{_signed(found.interval[0])} to {_signed(found.interval[1])}"
    return {"text": _signed(found.value), "value": found.value, "range": interval}


def p_cell(p: float | None) -> dict[str, Any]:
    """Show a p value with three decimals, and small ones as small."""
    return {"text": "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}", "value": _sortable(p), "range": ""}


def curve_alt(histories: Mapping[str, Sequence[Mapping[str, Any]]], runs: Sequence[ComparedRun]) -> str:
    """Say what the curves of several runs show."""
    parts = [f"Losses and accuracies of {len(histories)} runs over the epochs."]
    for run in runs:
        best = run.contents.training.get("best") or {}
        if best.get("val_accuracy") is not None:
            parts.append(f"{run.name}: best epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.3f}.")
    return " ".join(parts)


def _signed(value: float) -> str:
    return _minus(f"{value:+.3f}") if round(value, 3) else "0.000"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _sortable(value: float | None) -> float | str:
    return "" if value is None else value


def _count(value: int | None) -> dict[str, Any]:
    return {"text": "–" if value is None else str(value), "value": _sortable(value), "range": ""}


def _cut(value: str) -> str:
    return value if len(value) <= MAX_TEXT else f"{value[: MAX_TEXT // 2 - 1]}…{value[-(MAX_TEXT // 2) :]}"
