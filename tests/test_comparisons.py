import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SUBTOMOGRAMS, TINY
from fabricated_runs import fabricate_data, fabricate_run

from cryo_monai import run_warnings
from cryo_monai.datasets import items_fingerprint
from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.intervals import metric_intervals
from cryo_monai.metrics import classification_metrics
from cryo_monai.reports import comparisons, feature_stages, page_figures
from cryo_monai.reports.compared_runs import (
    ComparedRun,
    common_volumes,
    comparison_warnings,
    differing_ids,
    pair_runs,
    read_runs,
)
from cryo_monai.reports.comparison_texts import (
    best_runs,
    folds_text,
    left_out_text,
    metric_rows,
    run_rows,
    stage_rows,
    verdict_of,
)
from cryo_monai.reports.comparisons import write_comparison
from cryo_monai.reports.contents import RunContents, Scores
from cryo_monai.reports.feature_stages import measure_stages
from cryo_monai.run_evaluation import open_split
from cryo_monai.runs import train_bundle

NAMES = ["ribosome & co", "<b>proteasome</b>", "70S"]


def scores(skill: float, *, seed: int = 0, count: int = 60, start: int = 0, shift: int = 0) -> Scores:
    labels = np.arange(start, start + count) % 3
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(3), count)
    probabilities[np.arange(count), labels] += skill
    features = rng.normal(size=(count, 8)).astype(np.float32) + skill * np.eye(3, 8, dtype=np.float32)[labels] * 3
    paths = [f"/data/{number:03d}.mrc" for number in range(start, start + count)]
    return Scores(features, probabilities / probabilities.sum(1, keepdims=True), (labels + shift) % 3, paths)


def evaluation(found: Scores, names: list[str]) -> dict[str, Any]:
    numbers = classification_metrics(found.probabilities, found.labels, names)
    intervals = metric_intervals(found.probabilities, found.labels, resamples=50)
    for entry, ranges in zip(numbers["per_class"].values(), intervals.pop("per_class"), strict=True):
        entry["intervals"] = ranges
    return {"split": "test", **numbers, "intervals": intervals}


def write_run(folder: Path, found: Scores, *, names: list[str] = NAMES, **ids: Any) -> Path:
    """A run folder as training and evaluation leave it; its data are gone."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.pt").write_bytes(b"weights")
    history = [
        {"epoch": n, "lr": 1e-3, "train_loss": 2 / n, "val_loss": 3 / n, "train_accuracy": 0.5, "val_accuracy": n / 9,
         "val_auc": None, "key_metric": n / 9, "seconds": 1.0}
        for n in range(1, 5)
    ]  # fmt: skip
    checkpoint = {"file": "model.pt", "sha256": sha256_of(folder / "models" / "model.pt")}
    files = {
        "run.json": {"bundle": str(SUBTOMOGRAMS), "overlays": [], "ids": {"dataset_dir": "/gone", **ids},
                     "command": ["x"], "initialisation": {"weights": ids.get("weights")}},
        "configuration.json": {"backbone": "resnet18", "max_epochs": 4, "seed": 0, "output_dir": str(folder), **ids},
        "metrics.json": {"best_epoch": 4, "best": history[-1], "environment": {}, "history": history},
        "evaluation.json": {**evaluation(found, names), "checkpoint": checkpoint},
    }  # fmt: skip
    np.savez(folder / "test_features.npz", features=found.features, probabilities=found.probabilities,
             labels=found.labels, paths=np.array(found.paths), class_names=np.array(names))  # fmt: skip
    files["evaluation.json"]["features_sha256"] = sha256_of(folder / "test_features.npz")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def compared(name: str, found: Scores, **options: Any) -> ComparedRun:
    """A run that was read."""
    given: dict[str, Any] = {"warnings": [], "configuration": {}, "training": {}, **options}
    contents = RunContents(
        folder=Path(name), record={"ids": {"dataset_dir": "/data"}}, evaluation=evaluation(found, NAMES),
        class_names=NAMES, scores=found, **given,
    )  # fmt: skip
    return ComparedRun(name, contents, found)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, np.ndarray]], None]:
    """Give runs the features they started with."""

    def give(found: dict[str, np.ndarray]) -> None:
        def look_up(run_dir: Path) -> np.ndarray:
            if run_dir.name not in found:
                raise InputError(f"{run_dir}: weights\nare gone")
            return found[run_dir.name]

        monkeypatch.setattr(feature_stages, "starting_features", look_up)

    return give


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who do not look at the figures."""
    monkeypatch.setattr(page_figures, "png_of", lambda figure: b"a picture")


def test_a_comparison_is_written_and_needs_nothing_else(
    tmp_path: Path, starts: Callable[[dict[str, np.ndarray]], None], quick: None
) -> None:
    runs = [write_run(tmp_path / "video", scores(1.5, seed=1), weights="/w/slow.pt", lr=0.1),
            write_run(tmp_path / "random", scores(0.1, seed=2))]  # fmt: skip
    rng = np.random.default_rng(0)
    starts({name: rng.normal(size=(60, 8)).astype(np.float32) for name in ("video", "random")})
    steps: list[tuple[int, int | None]] = []
    page = write_comparison(runs, tmp_path / "out", projection="pca", progress=lambda *step: steps.append(step))
    html = page.read_text()
    assert page == tmp_path / "out" / "comparison.html"
    assert page.stat().st_size < 1_000_000
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "&lt;b&gt;proteasome&lt;/b&gt;" in html
    assert "<b>proteasome" not in html
    for text in ("slow.pt", "random weights", "before training", "A picture alone proves nothing", "Linear probe",
                 "★", "McNemar p", "could not be audited"):  # fmt: skip
        assert text in html
    assert html.count("data:image/svg+xml;base64,") == 6
    for picture in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html):
        assert base64.b64decode(picture).startswith(b"<svg")
    files = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(files) == 12
    assert {"curves.svg", "curves.png"} <= set(files)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["verdict"].startswith("The run video is more often right than the other")
    assert numbers["best"]["accuracy"] == "video"
    assert numbers["pairs"][0]["tests"]["differences"]["accuracy"]["value"] == pytest.approx(
        numbers["runs"]["random"]["evaluation"]["accuracy"] - numbers["runs"]["video"]["evaluation"]["accuracy"]
    )
    stages = {stage["title"]: stage["separability"] for stage in numbers["features"]["stages"]}
    assert list(stages) == [
        "before training: slow.pt", "before training: random weights",
        "after training: video", "after training: random",
    ]  # fmt: skip
    assert stages["after training: video"]["probe_accuracy"] > stages["before training: slow.pt"]["probe_accuracy"]
    assert "15 held-out folds (5 folds, 3 times)" in html
    assert "Not measured" not in html
    # Two runs, a pair, two starts, four states measured and projected, four figures, the page.
    assert steps == [(done, 18) for done in range(1, 19)]
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    write_comparison(runs, tmp_path / "out", projection="pca")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_figures_of_an_earlier_comparison_go(
    tmp_path: Path, starts: Callable[[dict[str, np.ndarray]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"uri": "data:", "width": 1, "height": 1, "minimum": 1, "wide": False}
    monkeypatch.setattr(comparisons, "page_figure", lambda name, figure, **texts: page_figures.PageFigure(
        name, "<svg/>", b"a picture", {**shown, **texts}))  # fmt: skip
    runs = [write_run(tmp_path / name, scores(0.5, seed=n)) for n, name in enumerate(("a", "b", "c"))]
    start = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    starts({"a": start, "b": start, "c": start})
    figures = tmp_path / "out" / "figures"
    write_comparison(runs, tmp_path / "out", projection="pca")
    assert (figures / "features_4_after_training_c.svg").is_file()
    (figures / "features_of_mine.txt").write_text("stays")
    write_comparison(runs[:2], tmp_path / "out", projection="pca")
    names = {"features_1_before_training_random_weights", "features_2_after_training_a", "features_3_after_training_b"}
    assert {file.stem for file in figures.glob("features_*.*")} == {*names, "features_of_mine"}


def test_a_run_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / name, scores(0.5, seed=n)) for n, name in enumerate("ab")]
    (runs[1] / "comparison.html").write_text("of an earlier mistake")
    before = {file: file.read_bytes() for file in runs[1].rglob("*") if file.is_file()}
    monkeypatch.setattr(comparisons, "read_runs", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(InputError, match=r"b: holds a run") as caught:
        write_comparison(runs, runs[1], projection="pca")
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in runs[1].rglob("*") if file.is_file()} == before


def test_data_that_runs_share_are_audited_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fabricate_data(tmp_path / "data", ["a", "b"], per_class=2)
    others = fabricate_data(tmp_path / "others", ["a", "b"], per_class=2)
    runs = [fabricate_run(tmp_path / f"run{n}", place) for n, place in enumerate((data, data, others))]
    for run in runs:
        note = run / "evaluation.json"
        fingerprint = items_fingerprint(open_split(run)[0])
        note.write_text(json.dumps({**json.loads(note.read_text()), "data": fingerprint}))
    audited: list[Path] = []
    audit_dataset = run_warnings.audit_dataset

    def count(place: Path, **options: Any) -> Any:
        audited.append(place)
        return audit_dataset(place, **options)

    monkeypatch.setattr(run_warnings, "audit_dataset", count)
    found = read_runs(runs)
    assert audited == [data, others]
    assert found[0].contents.audit == found[1].contents.audit
    assert found[2].contents.audit.dataset == str(others)


def test_small_classes_are_said_to_be_left_out(starts: Callable[[dict[str, np.ndarray]], None]) -> None:
    whole = scores(1.0)
    labels = np.where(np.arange(60) < 2, 2, np.arange(60) % 2)
    few = Scores(whole.features, whole.probabilities, labels, whole.paths)
    starts({})
    stages = measure_stages([compared("a", few), compared("b", few)], projection="pca").stages
    measured = stages[-1].separability
    assert (measured.num_folds, measured.num_volumes) == (15, 58)
    assert left_out_text(measured).startswith("Not measured: 2 volumes of a class with fewer than 5 test volumes")
    assert folds_text(measured) == "15 held-out folds (5 folds, 3 times)"
    tiny = [compared(name, scores(1.0, count=12)) for name in "ab"]
    stages = measure_stages(tiny, projection="pca").stages
    assert {cell for row in stage_rows(stages) for cell in row[2:]} == {"–"}


def test_without_data_the_comparison_says_what_is_missing(tmp_path: Path, quick: None) -> None:
    runs = [write_run(tmp_path / name, scores(0.5, seed=n)) for n, name in enumerate("ab")]
    html = write_comparison(runs, tmp_path / "out", projection="pca").read_text()
    assert html.count('class="missing"') == 2
    assert "/gone" in html
    assert "After training: b" in html


def test_runs_that_start_equal_share_a_start(starts: Callable[[dict[str, np.ndarray]], None]) -> None:
    runs = [compared(name, scores(1.0, seed=n)) for n, name in enumerate(("a", "b", "c", "d"))]
    start = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    starts({"a": start, "b": start * (1 + 1e-6), "c": start[:, ::-1].copy()})
    found = measure_stages(runs, projection="pca").stages
    assert [stage.runs for stage in found] == [("a", "b"), ("c",), ("d",), ("a",), ("b",), ("c",), ("d",)]
    assert [stage.title for stage in found[:3]] == [
        "before training: random weights of a, b", "before training: random weights of c",
        "before training: random weights",
    ]  # fmt: skip
    assert found[2].missing == "d: weights are gone"
    assert found[2].separability is None


def test_features_belong_to_their_volumes_whatever_the_order(starts: Callable[[dict[str, np.ndarray]], None]) -> None:
    whole = scores(1.0)
    order = np.random.default_rng(1).permutation(60)
    turned = Scores(whole.features[order], whole.probabilities[order], whole.labels[order],
                    [whole.paths[n] for n in order])  # fmt: skip
    start = np.random.default_rng(2).normal(size=(60, 8)).astype(np.float32)
    starts({"a": start, "b": start[order]})
    found = measure_stages([compared("a", whole), compared("b", turned)], projection="pca")
    assert [stage.runs for stage in found.stages] == [("a", "b"), ("a",), ("b",)]
    assert found.stages[1].separability == found.stages[2].separability
    np.testing.assert_array_equal(found.stages[1].projection.points, found.stages[2].projection.points)


def test_starts_of_other_volumes_are_refused(starts: Callable[[dict[str, np.ndarray]], None]) -> None:
    starts({"a": np.zeros((59, 8), np.float32), "b": np.zeros((60, 8), np.float32)})
    found = measure_stages([compared(name, scores(1.0)) for name in "ab"], projection="pca").stages
    assert "no longer those that were scored" in next(stage.missing for stage in found if stage.runs == ("a",))


def test_on_different_volumes_only_common_ones_are_tested() -> None:
    runs = [compared("a", scores(1.0)), compared("b", scores(0.2, start=20)), compared("c", scores(0.3, start=500))]
    pairs = pair_runs(runs)
    assert [pair.tests and pair.tests.num_volumes for pair in pairs] == [40, None, None]
    assert common_volumes(runs[:2]) == [f"/data/{number:03d}.mrc" for number in range(20, 60)]
    lines = comparison_warnings(runs, pairs)
    assert "different test volumes (a 60, b 60, c 60; 0 common to all)" in lines[0]
    assert lines[1] == "a and c have no test volume in common: nothing is tested between them"
    assert "not all runs were scored on common volumes" in verdict_of(runs, pairs)
    assert measure_stages(runs).stages == ()


def test_labels_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match=r"a and b: /data/000.mrc: ribosome & co in one run .* 60 labels disagree"):
        pair_runs([compared("a", scores(1.0)), compared("b", scores(1.0, shift=1))])


def test_warnings_of_runs_are_told_once_with_their_names() -> None:
    runs = [compared(name, scores(1.0), warnings=["leak", *extra]) for name, extra in (("a", ["x"]), ("b", []))]
    assert comparison_warnings(runs, pair_runs(runs)) == ["all runs: leak", "a: x"]


def test_p_values_are_corrected_over_the_pairs() -> None:
    runs = [compared(name, scores(skill, seed=n)) for n, (name, skill) in enumerate((("a", 0.1), ("b", 0.4), ("c", 2)))]
    pairs = pair_runs(runs)
    raw = [pair.tests.mcnemar_p for pair in pairs]
    assert min(pair.corrected["mcnemar"] for pair in pairs) == pytest.approx(min(1, 3 * min(raw)))
    assert set(pairs[0].corrected) == {"mcnemar", "accuracy", "auc", "balanced_accuracy", "macro_f1"}


def test_the_best_is_marked_only_when_better_than_every_other() -> None:
    close = [compared("a", scores(0.5, seed=1)), compared("b", scores(0.5, seed=2))]
    pairs = pair_runs(close)
    assert set(best_runs(close, pairs).values()) == {None}
    assert verdict_of(close, pairs).startswith("No run is shown to be more often right")
    assert not any("★" in str(row) for row in metric_rows(close, pairs))
    clear = [compared("weak", scores(0.0, seed=1)), compared("strong", scores(3.0, seed=2))]
    pairs = pair_runs(clear)
    assert best_runs(clear, pairs)["accuracy"] == "strong"
    assert ["★" in str(row) for row in metric_rows(clear, pairs)] == [False, True]
    three = [*clear, compared("strong too", scores(3.0, seed=3))]
    assert best_runs(three, pair_runs(three))["accuracy"] is None


def test_settings_that_differ_are_listed_without_places() -> None:
    runs = [compared("a", scores(1.0), configuration={"lr": 0.1, "train": {"x": 1}, "output_dir": "a", "same": [1]}),
            compared("b", scores(1.0), configuration={"lr": 0.2, "output_dir": "b", "same": [1]})]  # fmt: skip
    assert differing_ids(runs) == {"lr": ["0.1", "0.2"], "train#x": ["1", "–"]}


def test_old_runs_without_history_or_configuration_have_dashes() -> None:
    row = run_rows([compared("a", scores(1.0), configuration=None)])[0]
    assert [cell["text"] if isinstance(cell, dict) else cell for cell in row] == [
        "a", "not recorded", "random", "–", "–", "–", "60",
    ]  # fmt: skip


def test_what_cannot_be_compared_is_named_in_one_line(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x" / "run", scores(1.0))
    second = write_run(tmp_path / "y" / "run", scores(0.5))
    other = write_run(tmp_path / "other", scores(0.5), names=["a", "b", "c"])
    for message, call in {
        "1 run given": lambda: read_runs([first]),
        "given twice": lambda: read_runs([first, tmp_path / "x" / ".." / "x" / "run"]),
        "1 for 2 runs": lambda: read_runs([first, second], ["a"]),
        "'a' is empty or comes twice": lambda: read_runs([first, second], ["a", "a"]),
        "its classes are a, b, c; those of": lambda: read_runs([first, other]),
        "not a run folder": lambda: read_runs([first, tmp_path]),
        "'tsnee' is none of pca, tsne, umap": lambda: write_comparison([first, second], tmp_path, projection="tsnee"),
    }.items():
        with pytest.raises(CryoMonaiError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert [run.name for run in read_runs([first, second])] == ["x/run", "y/run"]
    assert [run.name for run in read_runs([first, second], ["a", "b"])] == ["a", "b"]


@pytest.mark.slow
def test_two_trainings_are_compared_with_their_common_start(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {**TINY, "dataset_dir": str(dataset_dir), "num_classes": 3, "device": "cpu", "seed": 3}
    for name, lr in (("fast", 0.01), ("slow", 0.0001)):
        train_bundle(SUBTOMOGRAMS, tmp_path / name, ids={**ids, "lr": lr})
    page = write_comparison([tmp_path / "fast", tmp_path / "slow"], tmp_path / "out", projection="pca")
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "random weights (start of fast, slow)" in page.read_text()
    titles = [stage["title"] for stage in numbers["features"]["stages"]]
    assert titles == ["before training: random weights", "after training: fast", "after training: slow"]
    assert all(stage["separability"]["num_left_out"] == 6 for stage in numbers["features"]["stages"])
    assert numbers["pairs"][0]["tests"]["num_volumes"] == 6
    assert '<th scope="row">lr</th>' in page.read_text()
