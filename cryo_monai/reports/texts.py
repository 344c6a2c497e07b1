"""The words of a report: its verdict, number cards, tables, and what each figure shows for those who cannot see it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryo_monai.reports.contents import RunContents
from cryo_monai.reports.pages import decimals

HEADLINES = (
    ("accuracy", "Accuracy"),
    ("auc", "AUC"),
    ("balanced_accuracy", "Balanced accuracy"),
    ("macro_f1", "Macro F1"),
)
SHOWN_LINES = 20
SHOWN_SOURCES = 20
Row = list[Any]


def verdict_of(run: RunContents) -> str:
    """One sentence or two in plain words: how often the network is right, against chance, and where it errs most."""
    numbers = run.evaluation
    accuracy, chance = numbers["accuracy"], numbers["chance"]["accuracy"]
    interval = _interval(numbers, "accuracy")
    right = round(accuracy * numbers["num_volumes"])
    how = f"{right} of {numbers['num_volumes']} test volumes right ({_percent(accuracy)}"
    how += f"; 95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ")"
    guess = f"always naming the most frequent class would be right for {_percent(chance)}"
    if accuracy <= chance or (interval and interval[0] <= chance):
        return f"This network is not shown to be better than chance: it has {how}, and {guess}."
    return f"The network has {how}; {guess}. {worst_confusion(run)}"


def _percent(share: float) -> str:
    """Whole percents; one more digit next to none and all."""
    places = 0 if 0.01 <= share <= 0.99 or share in (0, 1) else 1
    return f"{100 * share:.{places}f}\u00a0%"


def worst_confusion(run: RunContents) -> str:
    """Name the most frequent mistake."""
    counts = np.array(run.evaluation["confusion_matrix"])
    errors = counts - np.diag(np.diag(counts))
    if not errors.any():
        return "It made no mistake."
    true, taken = np.unravel_index(errors.argmax(), errors.shape)
    names, total = run.class_names, counts[true].sum()
    return f"Its most frequent mistake: {names[true]} taken for {names[taken]} ({errors[true, taken]} of {total})."


def _interval(numbers: Mapping[str, Any], name: str) -> list[float] | None:
    found = numbers.get("intervals", {}).get(name)
    return found if found and None not in found else None


def range_text(interval: Sequence[float | None] | None, places: int = 3) -> str:
    """Write an interval as "0.89 to 0.96", or nothing where it is undefined."""
    if not interval or any(end is None for end in interval):
        return ""
    return f"{decimals(interval[0], places)} to {decimals(interval[1], places)}"


def cards_of(run: RunContents) -> list[dict[str, Any]]:
    """Headline numbers with interval and chance."""
    cards = []
    chance = {
        "accuracy": (run.evaluation["chance"]["accuracy"], "most frequent class"),
        "auc": (run.evaluation["chance"]["auc"], "chance"),
        "balanced_accuracy": (
            1 / max(sum(e["support"] > 0 for e in run.evaluation["per_class"].values()), 1),
            "chance",
        ),
    }
    for name, label in HEADLINES:
        value, interval = run.evaluation[name], _interval(run.evaluation, name)
        level, what = chance.get(name, (None, ""))
        scale = None
        if value is not None and interval:
            scale = {"low": interval[0], "high": interval[1], "value": value, "chance": level}
        cards.append(
            {
                "label": label,
                "value": decimals(value),
                "range": f"95 %: {range_text(interval)}" if interval else "no interval",
                "scale": scale,
                "note": f"{what} {level:.3f}" if level is not None else "",
            }
        )
    for name, label in (("medmnist_acc", "Accuracy by MedMNIST"), ("medmnist_auc", "AUC by MedMNIST")):
        if name in run.evaluation:
            value = decimals(run.evaluation[name])
            cards.append({"label": label, "value": value, "range": "", "scale": None, "note": "its own evaluator"})
    return cards


def class_rows(run: RunContents, precisions: Mapping[str, float | None] | None) -> list[Row]:
    """One row per class: name, volumes; precision, recall, F1 and AUC with intervals; average precision."""
    rows: list[Row] = []
    for name, entry in run.evaluation["per_class"].items():
        intervals = entry.get("intervals", {})
        numbers = [
            {"text": decimals(entry[key]), "value": entry[key], "range": range_text(intervals.get(key), 2)}
            for key in ("precision", "recall", "f1", "auc")
        ]
        area = (precisions or {}).get(name)
        support = {"text": entry["support"], "value": entry["support"]}
        rows.append([name, support, *numbers, {"text": decimals(area), "value": area}])
    return rows


def calibration_rows(run: RunContents) -> list[Row]:
    """List expected calibration error, Brier score and negative log-likelihood, before and after scaling."""
    calibration = run.evaluation.get("calibration") or {}
    names = {"ece": "Expected calibration error", "brier": "Brier score", "nll": "Negative log-likelihood"}
    states = [calibration.get(state) or {} for state in ("before", "after")]
    return [[label, *(decimals(state.get(key), 4) for state in states)] for key, label in names.items()]


def separability_rows(found: Mapping[str, Any] | None) -> list[Row]:
    """Silhouette, nearest neighbours and linear probe, each with its spread over folds."""
    names = {
        "silhouette": "Silhouette (−1 to 1)",
        "neighbour": "Accuracy of 5 nearest neighbours",
        "probe": "Accuracy of a linear probe",
    }
    rows: list[Row] = []
    for key, label in names.items():
        value = (found or {}).get("silhouette" if key == "silhouette" else f"{key}_accuracy")
        if value is not None and found is not None:
            spread = found[f"{key}_spread"]
            rows.append([label, decimals(value), "–" if spread is None else f"± {spread:.3f}"])
    return rows


def count_table(run: RunContents) -> tuple[list[str], list[Row]]:
    """Columns and rows of volumes by class and split; without an audit, of the test split alone."""
    if run.audit is None:
        return ["test"], [[name, e["support"]] for name, e in run.evaluation["per_class"].items()]
    counts = run.audit.counts
    splits = [split or "not split" for split in counts]
    rows: list[Row] = [[name, *(count.get(name, 0) for count in counts.values())] for name in run.audit.class_names]
    return [*splits, "all"], [[*row, sum(row[1:])] for row in rows]


def data_facts(run: RunContents) -> list[tuple[str, str]]:
    """Place, sizes, contrast and sources of the data."""
    data = run.record.get("data") or {}
    box, size = data.get("box"), data.get("voxel_size")
    rows = [
        ("Data set", run.audit.dataset if run.audit else str(run.record["ids"].get("dataset_dir", "not recorded"))),
        ("Box (z, y, x)", " × ".join(map(str, box)) + " voxels" if box else "not recorded"),
        ("Voxel size", f"{size:g} Å" if size else "not known"),
        ("Contrast", _contrast(data.get("contrast"))),
    ]
    if data.get("extraction"):
        settings = data["extraction"]
        rows.append(("Cut out with", ", ".join(f"{name} {value}" for name, value in settings.items())))
    if run.audit:
        sources = run.audit.sources
        names = ", ".join(sources.sources[:SHOWN_SOURCES])
        more = len(sources.sources) - SHOWN_SOURCES
        told = f"{len(sources.sources)}: {names}" + (f" and {more} more" if more > 0 else "")
        rows.append(("Sources", told if sources.sources else "none is named: leakage through tomograms is not judged"))
        rows.append(("Shapes", _tally(run.audit.shapes)))
        rows.append(("Data types", _tally(run.audit.data_types)))
        if sources.association is not None:
            rows.append(("Class and source", f"Cramér's V {sources.association:.2f} (0 independent, 1 the same)"))
    return rows


def _contrast(found: Mapping[str, Any] | None) -> str:
    return f"density is {found['density']}" if found and found.get("density") else "not recorded"


def _tally(values: Mapping[str, int]) -> str:
    return "; ".join(f"{value} ({count} volumes)" for value, count in values.items())


def shown_lines(lines: Sequence[str], where: str = "metrics.json") -> list[str]:
    """Return the first lines, and where the others are."""
    more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], *([f"… and {more} more, in {where}"] if more > 0 else [])]


def weight_tables(run: RunContents) -> tuple[list[tuple[str, str]], list[Row]]:
    """Facts of the initial weights, and rows of how many keys met which fate, with examples."""
    found = run.record.get("initialisation")
    if not found:
        return [("Initial weights", "not recorded")], []
    if not found.get("weights"):
        return [("Initial weights", "random: nothing was loaded")], []
    keys = found.get("keys", {})
    facts = [
        (name.replace("_", " "), str(value)) for name, value in found.items() if name != "keys" and value is not None
    ]
    rows: list[Row] = []
    for fate, value in keys.items():
        number = value if isinstance(value, int) else len(value)
        names = [] if isinstance(value, int) else [str(key) for key in value]
        examples = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        rows.append([fate, {"text": number, "value": number}, examples or "–"])
    return facts, rows


def command_of(run: RunContents) -> str:
    """Return the commands that started and resumed the run, a line each, as a shell takes them."""
    resumptions = [entry.get("command", []) for entry in run.record.get("resumed", [])]
    commands = [run.record.get("command", []), *resumptions]
    return "\n".join(shlex.join(str(part) for part in command) for command in commands if command)


def configuration_text(run: RunContents) -> str:
    """JSON of the configuration without the bundle's metadata, short lists on one line; empty when there is none."""
    if run.configuration is None:
        return ""
    kept = {name: value for name, value in run.configuration.items() if name != "_meta_"}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]{}]{1,100}?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def environment_rows(run: RunContents) -> list[tuple[str, str]]:
    """Versions, device and time."""
    rows = [(name.replace("_", " "), str(value)) for name, value in run.training.get("environment", {}).items()]
    seconds = [row["seconds"] for row in run.history if row.get("seconds") is not None]
    if seconds:
        total = sum(seconds)
        took = (
            f"{total / 3600:.1f} h" if total >= 5400 else f"{total / 60:.1f} min" if total >= 90 else f"{total:.0f} s"
        )
        rows.append(("training took", f"{took} for {len(seconds)} epochs"))
    checkpoint = run.evaluation.get("checkpoint", {})
    if checkpoint:
        rows.append(("checkpoint", f"{checkpoint['file']}, SHA-256 {checkpoint['sha256']}"))
    return rows


def curve_alt(run: RunContents) -> str:
    """Say what the training curves show."""
    first, last = run.history[0], run.history[-1]
    best = run.training.get("best_epoch")
    row = next((entry for entry in run.history if entry["epoch"] == best), last)
    parts = [f"Training curves over {len(run.history)} epochs."]
    if first.get("train_loss") is not None:
        parts.append(f"The training loss goes from {first['train_loss']:.3f} to {last['train_loss']:.3f}.")
    if row.get("val_accuracy") is not None:
        parts.append(f"Best epoch {row['epoch']}: validation accuracy {row['val_accuracy']:.3f}, AUC "
                     f"{decimals(row.get('val_auc'))}.")  # fmt: skip
    return " ".join(parts)


def extremes(run: RunContents, key: str) -> str:
    """Lowest and highest class by one of the numbers per class."""
    values = {name: entry[key] for name, entry in run.evaluation["per_class"].items() if entry.get(key) is not None}
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    if not values:
        return "It is defined for no class."
    low, high = min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])
    return f"Lowest: {low} {values[low]:.3f}; highest: {high} {values[high]:.3f}."
