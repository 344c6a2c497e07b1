"""Tables of docs/initialisation.md, but that of epochs, are those of the trainings in benchmarks/results."""

import csv
import importlib
import json
from types import ModuleType

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "initialisation.md").read_text().splitlines()
NAMES = {"ten": "ten simulated assemblies", "shared_ten": "ten atomic models", "adrenal": "AdrenalMNIST3D (AUC)"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/initialisation.py, which prints the tables."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("initialisation")


def rows_below(header: str) -> list[list[str]]:
    """The rows of every table of the page with this header, as cells."""
    found: list[list[str]] = []
    for place, line in enumerate(PAGE):
        if line == header:
            for row in PAGE[place + 2 :]:
                if not row.startswith("|"):
                    break
                found.append([cell.strip() for cell in row.strip("|").split("|")])
    return found


def values_of(layers: str) -> dict[tuple[str, str, str], list[float]]:
    """Accuracies in % of five seeds, AUCs of AdrenalMNIST3D, by name of the target, labels and initialisation."""
    found: dict[tuple[str, str, str], list[float]] = {}
    with (ROOT / "benchmarks" / "results" / "initialisation" / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["state"] == "done" and row["layers"] == layers:
                metric = "auc" if row["dataset"] == "adrenal" else "accuracy"
                key = (NAMES[row["dataset"]], f"{100 * float(row['label_fraction']):g} %", row["initialisation"])
                found.setdefault(key, []).append(100 * float(row[metric]))
    return found


@pytest.mark.parametrize(
    ("arms", "num_cells"),
    [
        (("random", "random, lr 0.0003", "motion", "assemblies", "both"), 40),
        (
            (
                "random, 192 epochs",
                "assemblies, 192 epochs",
                "assemblies, lr 0.0003",
                "still frames",
                "shuffled frames",
            ),
            12,
        ),
    ],
)
def test_accuracies_are_means_of_the_committed_trainings(
    tables: ModuleType, arms: tuple[str, ...], num_cells: int
) -> None:
    values, seen = values_of("all"), 0
    for target, labels, *cells in rows_below(f"| target | labels | {' | '.join(arms)} |"):
        for arm, cell in zip(arms, cells, strict=True):
            own = values.get((target, labels, arm))
            assert cell == (tables._interval(own) if own else ""), (target, labels, arm)
            seen += own is not None and len(own) == 5
    assert seen == num_cells


def test_linear_probes_are_those_of_the_committed_trainings(tables: ModuleType) -> None:
    values = values_of("head")
    rows = rows_below("| target | random | motion | assemblies | both |")
    assert len(rows) == 2
    for target, *cells in rows:
        assert cells == [tables._interval(values[target, "100 %", arm]) for arm in tables.PROBED]


def test_gains_are_differences_in_pairs_of_the_committed_trainings(tables: ModuleType) -> None:
    lines = tables.gains(tables.RESULTS / "initialisation", "accuracy").splitlines()[2:]
    made = [[cell.strip() for cell in line.strip("|").split("|")][:5] for line in lines]
    assert len(made) == 8
    assert rows_below("| target | labels | motion | assemblies | both |")[:8] == made


def test_the_tables_of_scale_are_those_of_the_committed_trainings(tables: ModuleType) -> None:
    lines = [line for line in tables.scale_tables(tables.RESULTS / "pretraining_scale").splitlines() if "±" in line]
    assert len(lines) > 12
    assert [line for line in lines if line not in PAGE] == []


def test_noise_is_that_of_the_committed_benchmark() -> None:
    arms = ("random", "random, lr 0.0003", "motion", "assemblies", "both")
    measured = json.loads((ROOT / "benchmarks" / "results" / "noise_robustness-cpu.json").read_text())["rows"]
    found = {(NAMES[row["dataset"]], f"{row['noise']:g}", row["initialisation"]): row for row in measured}
    rows = rows_below(f"| target | added noise | {' | '.join(arms)} |")
    assert len(rows) == 6
    for target, noise, *cells in rows:
        own = [found[target, noise, arm] for arm in arms]
        assert cells == [f"{100 * row['accuracy']:.1f} ± {100 * row['half_interval']:.1f}" for row in own]
