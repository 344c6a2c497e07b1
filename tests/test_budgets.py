import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cryo_monai.budget_verbs import budget as verb
from cryo_monai.budgets.answers import (
    answer_text,
    budget_lines,
    budget_numbers,
    comparison_text,
    count_text,
    labels_text,
    notes_of,
    write_budget,
)
from cryo_monai.budgets.planning import Budget, plan_budget
from cryo_monai.budgets.results import read_groups
from cryo_monai.command_line import run
from cryo_monai.errors import InputError
from cryo_monai.reports.budget_pages import panels_of, verdict_of, write_budget_page

FRACTIONS = (0.05, 0.1, 0.25, 1.0)
# Video needs this share of the labels of random.
SAVING = 0.35


def sweep_rows(
    *, seeds: int = 4, datasets: tuple[str, ...] = ("real",), floor: float = 0.02
) -> list[dict[str, object]]:
    """Rows of a sweep's results.csv about true curves, of 1000 volumes with 200 test volumes."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for dataset in datasets:
        for initialisation, ratio in (("random", 1.0), ("video", SAVING)):
            for fraction in FRACTIONS:
                for seed in range(seeds):
                    error = min(floor + 0.55 * (20 * fraction / ratio) ** -0.6, 0.9)
                    wrong = rng.binomial(200, error * np.exp(0.1 * rng.standard_normal()))
                    row = {"dataset": dataset, "label_fraction": fraction, "initialisation": initialisation}
                    row |= {"backbone": "resnet18", "seed": seed, "trial": f"{len(rows):016x}", "state": "done"}
                    row |= {"reason": "", "num_train": round(1000 * fraction), "num_validation": 200, "num_test": 200}
                    row |= {"num_classes": 10, "accuracy": 1 - wrong / 200, "auc": 1 - wrong / 2000}
                    rows.append(row | {"balanced_accuracy": 1 - wrong / 200, "macro_f1": 1 - wrong / 200, "epochs": 5})
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_text(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sweep of two data sets, in which trials failed and wait."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = sweep_rows(datasets=("real", "simulated <b>"))
    rows[0] |= {"state": "failed", "reason": "out of memory, or so", "num_train": "", "accuracy": ""}
    rows[1] |= {"state": "waiting", "num_train": "", "num_test": "", "accuracy": 0.01}
    write_rows(folder / "results.csv", rows)
    return folder


@pytest.fixture(scope="module")
def planned(sweep: Path) -> Budget:
    return plan_budget(sweep, target=0.9, labels=[300, 5000])


def test_only_trials_that_are_done_count(sweep: Path) -> None:
    groups = read_groups(sweep)
    assert [len(group.trials.labels) for group in groups] == [14, 16, 16, 16]
    assert groups[0].cell == {"dataset": "real", "initialisation": "random", "backbone": "resnet18"}
    assert groups[0].trials.scores.min() > 0.1
    assert (groups[0].num_classes, groups[0].num_others) == (10, 400)


def test_a_csv_of_ones_own_needs_two_columns(tmp_path: Path) -> None:
    path = write_text(tmp_path, "\ufeffnum_train,accuracy\r\n100,0.5\r\n\r\n100,0.5\r\n400,0.7\r\n1600,0.8\r\n")
    (group,) = read_groups(path)
    assert group.trials.labels.tolist() == [100, 100, 400, 1600]
    assert len(set(group.trials.seeds)) == 4
    found = plan_budget(path, target=0.85)
    assert found.groups[0].name == "all trials"
    assert "the number of classes is not given" in "\n".join(notes_of(found))


def test_other_columns_make_groups_or_those_that_are_named(tmp_path: Path) -> None:
    path = write_text(tmp_path, "num_train,accuracy,microscope,comment\n100,0.5,a,x\n400,0.7,a,y\n100,0.4,b,z\n")
    assert len(read_groups(path)) == 3
    assert [dict(group.cell) for group in read_groups(path, groups=["microscope"])] == [
        {"microscope": "a"},
        {"microscope": "b"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'num_train'"),
        ("num_train;accuracy\n100;0.5\n", "line 1: no column 'num_train'; there are num_train;accuracy"),
        ("num_train,accuracy\n", "has no rows"),
        ("num_train,accuracy\n100,0.5\n100,many\n", "line 3, column accuracy: 'many' is not a number"),
        ("num_train,accuracy\n100,93.1\n", "line 2, column accuracy: 93.1 is not from 0 to 1; give shares"),
        ("num_train,accuracy\n100,nan\n", "line 2, column accuracy: nan is not from 0 to 1"),
        ("num_train,accuracy\n0,0.5\n", "line 2, column num_train: 0 is not a whole number of 1 or more"),
        ("num_train,accuracy\n10.5,0.5\n", "line 2, column num_train: 10.5 is not a whole number"),
        ("num_train,accuracy\ninf,0.5\n", "line 2, column num_train: inf is not a whole number"),
        ("num_train,accuracy\n,0.5\n", "line 2, column num_train: empty"),
        ("num_train,accuracy\n10,\n", "line 2, column accuracy: empty"),
        ("num_train,accuracy\n100,0.5,x\n", "line 2: 3 cells under 2 columns"),
        ("num_train,accuracy,accuracy\n100,0.5,0.5\n", "line 1: column 'accuracy' comes twice"),
        (
            "num_train,accuracy,seed\n100,0.5,1\n400,0.6,1\n100,0.7,1\n",
            "lines 2 and 4: the same seed, number of labels",
        ),
        ('num_train,accuracy\n100,"0.5\n', "cannot be read as CSV"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = write_text(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_groups(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_named(tmp_path: Path, sweep: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00num_train")
    mistakes = [
        ({"results": tmp_path}, "no results.csv in it"),
        ({"results": tmp_path / "none"}, "no such file"),
        ({"results": tmp_path / "binary.csv"}, "cannot be read as CSV"),
        ({"results": sweep, "target": 90}, "give a share, such as 0.9"),
        ({"results": sweep, "target": float("nan")}, "target: nan is not between 0 and 1"),
        ({"results": sweep, "labels": [0]}, "labels: 0 is not a number of labels"),
        ({"results": sweep, "metric": "acuracy"}, "is none of accuracy"),
        ({"results": sweep, "groups": ["microscope"]}, "no column 'microscope'"),
        ({"results": sweep, "compare": "init"}, "compare: 'init' is not one of .*initialisation"),
        ({"results": sweep, "baseline": "rnd"}, "initialisation has no value 'rnd'; there are random, video"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(InputError, match=message):
            plan_budget(**arguments)


def test_a_target_within_reach_is_found_and_the_saving_too(planned: Budget) -> None:
    for group in planned.groups:
        ratio = SAVING if group.group.cell["initialisation"] == "video" else 1.0
        truth = 50 * ratio * (0.55 / 0.08) ** (1 / 0.6)
        found = group.target.labels
        high = found.high or np.inf
        assert found.low < truth < high
        assert found.low < found.median < high
        assert group.target.per_class.median == pytest.approx(found.median / 10)
        assert group.target.status == ("reached" if found.median <= 1000 else "extrapolated")
        assert group.target.probability_within <= group.target.probability_ever <= 1
    for comparison in planned.comparisons:
        assert (comparison.value, comparison.baseline) == ("video", "random")
        assert comparison.ratio.low < SAVING < comparison.ratio.high
        assert comparison.probability_fewer > 0.97
    assert [comparison.matches for comparison in planned.comparisons] == [False, True] * 2


def test_scores_of_numbers_asked_for_are_foretold(planned: Budget) -> None:
    for group in planned.groups:
        ratio = SAVING if group.group.cell["initialisation"] == "video" else 1.0
        near, far = group.expected
        for each in (near, far):
            truth = 1 - (0.02 + 0.55 * (each.labels / 50 / ratio) ** -0.6)
            assert each.score.low < truth < each.score.high
            assert each.run.low < each.score.low
            assert each.run.high > each.score.high
        assert (near.extrapolated, far.extrapolated) == (False, True)
        step = group.next_step
        most = group.curve.scores_at([1000, 1000 + step.median])
        assert np.median(most[:, 1] - most[:, 0]) == pytest.approx(0.01, abs=0.002)


def test_what_is_out_of_reach_is_said_with_its_probability(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "results.csv", sweep_rows(floor=0.2))
    found = plan_budget(path, target=0.97)
    group = found.groups[0]
    assert group.target.status == "out of reach"
    assert group.target.labels.median is None
    assert group.target.probability_ever < 0.3
    assert labels_text(group) == "not within 10000"
    assert "not reached within 10 times the most labels tried (10000)" in answer_text(group, "accuracy")
    target = next(each for each in found.comparisons if not each.matches)
    assert target.ratio is None
    assert "no ratio" in comparison_text(target, "accuracy")
    assert next(each for each in found.comparisons if each.matches).ratio.median is not None


def test_what_the_fewest_labels_reach_is_not_extrapolated_downwards(sweep: Path) -> None:
    for group in plan_budget(sweep, target=0.15).groups:
        assert group.target.status == "with the fewest"
        assert group.target.labels.median == group.curve.sizes.labels[0]
        assert labels_text(group) == "50 or fewer"


def test_beyond_twice_the_most_labels_tried_is_marked(tmp_path: Path) -> None:
    found = plan_budget(write_rows(tmp_path / "results.csv", sweep_rows()), target=0.955)
    random = found.groups[0]
    assert random.target.labels.median is None or random.target.labels.median > 2000
    assert random.target.far
    assert all(each.extrapolated for each in found.comparisons if not each.matches)


def test_too_few_points_give_a_sentence_and_no_number(tmp_path: Path) -> None:
    rows = [row for row in sweep_rows() if row["label_fraction"] == 1]
    found = plan_budget(write_rows(tmp_path / "results.csv", rows))
    for group in found.groups:
        assert (group.curve, group.target, group.next_step, group.expected) == (None, None, None, ())
        assert "one number of labels (1000)" in group.reason
        assert labels_text(group) == "no curve"
    assert found.comparisons == ()
    write_budget(found, tmp_path)
    with (tmp_path / "budget.csv").open() as stream:
        (first, _) = csv.DictReader(stream)
    assert (first["labels"], first["status"]) == ("", "no curve")
    assert "one number of labels" in first["reason"]
    assert "no curve" in write_budget_page(found, tmp_path).read_text()


def test_nothing_done_is_no_crash(tmp_path: Path) -> None:
    rows = [row | {"state": "failed", "num_train": "", "accuracy": ""} for row in sweep_rows()]
    found = plan_budget(write_rows(tmp_path / "results.csv", rows))
    assert {group.reason for group in found.groups} == {"there is no finished trial"}
    assert "no trial is finished" in write_budget_page(found, tmp_path).read_text()


def test_two_sizes_and_one_seed_are_noted(tmp_path: Path) -> None:
    rows = [row for row in sweep_rows(seeds=1) if row["label_fraction"] in (0.25, 1)]
    notes = notes_of(plan_budget(write_rows(tmp_path / "results.csv", rows)))
    assert any("only two numbers of labels" in line for line in notes)
    assert any("one trial for each number of labels" in line for line in notes)
    assert notes[-1] == "labels are those of training volumes; validation and test took 400 more"


def test_metrics_that_are_undefined_for_a_trial_are_counted(tmp_path: Path) -> None:
    rows = sweep_rows()
    rows[0] |= {"auc": ""}
    found = plan_budget(write_rows(tmp_path / "results.csv", rows), metric="auc", target=0.99)
    assert found.groups[0].group.num_undefined == 1
    assert any("trials without this score: 1" in line for line in notes_of(found))
    assert found.groups[0].chance == 0.5


def test_files_repeat_and_hold_what_is_shown(sweep: Path, planned: Budget, tmp_path: Path) -> None:
    again = plan_budget(sweep, target=0.9, labels=[300, 5000])
    for folder, found in ((tmp_path / "a", planned), (tmp_path / "b", again)):
        write_budget(found, folder)
        write_budget_page(found, folder)
    for name in ("budget.json", "budget.csv", "budget.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    numbers = json.loads((tmp_path / "a/budget.json").read_text())
    assert numbers == json.loads(json.dumps(budget_numbers(planned)))
    with (tmp_path / "a/budget.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["initialisation"] for row in rows] == ["random", "video"] * 2
    for row, group in zip(rows, numbers["groups"], strict=True):
        assert float(row["labels"]) == pytest.approx(group["target"]["labels"]["median"], abs=0.06)


def test_the_page_has_a_figure_for_each_dataset_and_escapes_names(planned: Budget, tmp_path: Path) -> None:
    page = write_budget_page(planned, tmp_path).read_text()
    assert list(panels_of(planned)) == ["real", "simulated <b>"]
    assert page.count("<figure") == 2
    assert "simulated &lt;b&gt;" in page
    assert "simulated <b>" not in page
    assert "://" not in page
    assert verdict_of(planned).startswith("For accuracy 0.9, 2 of 2 comparisons with random show that fewer labels do")


def test_lines_for_the_terminal_are_plain(planned: Budget) -> None:
    lines = budget_lines(planned)
    assert lines[0].split("  ")[-1] == "accuracy with all labels tried"
    assert lines[1].startswith("real, random")
    assert any(
        line.startswith("for accuracy 0.9: video needs 0.") and "times the labels of random" in line for line in lines
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(7.2, "8"), (410, "410"), (999.5, "1000"), (1234.5, "1240"), (156_001, "157000"), (5000, "5000")],
)
def test_numbers_of_labels_are_rounded_up(number: float, text: str) -> None:
    assert count_text(number) == text


def test_the_verb_prints_and_writes_beside_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "results.csv", sweep_rows())
    assert run({"budget": verb}, ["budget", str(tmp_path), "--labels", "300", "--target", "0.88"]) == 0
    told = capsys.readouterr().out
    assert "labels for accuracy 0.88" in told
    assert "300 labels: accuracy 0." in told
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "budget.html", "budget.json", "budget.csv"}
    assert run({"budget": verb}, ["budget", str(tmp_path), "--labels", "many"]) == 2
    assert run({"budget": verb}, ["budget", str(tmp_path), "--target", "90"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: --labels many: give numbers, separated by commas",
        "error: target: 90 is not between 0 and 1; give a share, such as 0.9",
    ]
