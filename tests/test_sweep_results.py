"""What the trials of a sweep came to: read, averaged, compared in pairs of seeds."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_runs import GRID, fabricate_sweep, fabricate_trial
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cryo_monai.errors import InputError
from cryo_monai.sweep_results.effort import reach_of, summarise_effort
from cryo_monai.sweep_results.pairs import compare_seeds, correct_rows, estimate_mean, hedges_correction, sign_flip_p
from cryo_monai.sweep_results.result_files import write_results
from cryo_monai.sweep_results.results import collect_results
from cryo_monai.sweep_results.summaries import Row, Summary, summarise_sweep
from cryo_monai.sweeps.outcomes import Outcome

SWEEP: dict[str, Any] = {"axes": GRID, "compare": "initialisation", "baseline": "random"}


def history(accuracies: Sequence[float | None], seconds: float | None = 60.0) -> list[dict[str, Any]]:
    return [{"epoch": n, "val_accuracy": value, "seconds": seconds} for n, value in enumerate(accuracies, 1)]


def pairs(folder: Path, random: Sequence[float], video: Sequence[float], **options: Any) -> list[Outcome]:
    """Trials of two initialisations with these test accuracies, one per seed."""
    return [
        fabricate_trial(
            folder / f"{name}{seed}", {"initialisation": name, "seed": seed}, accuracy=value, auc=value, **options
        )
        for name, values in (("random", random), ("video", video))
        for seed, value in enumerate(values)
    ]


def summarised(outcomes: Sequence[Outcome], **changes: Any) -> Summary:
    return summarise_sweep(collect_results(outcomes), {**SWEEP, "axes": {}, **changes})


def video_row(summary: Summary) -> Row:
    return next(row for row in summary.rows if row.cell["initialisation"] == "video")


def test_the_interval_is_students() -> None:
    # Mean 3, standard deviation sqrt(2.5); t for 4 degrees of freedom is 2.776445 (any table of t).
    found = estimate_mean([1, 2, 3, 4, 5])
    assert found is not None
    assert (found.mean, found.half_width) == (3, pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6))
    for few in ([1.0], [1.0, 2.0]):
        estimate = estimate_mean(few)
        assert estimate is not None
        assert estimate.half_width is None
    assert estimate_mean([]) is None


def test_the_t_test_is_students_paired_test() -> None:
    first, second = [0.71, 0.69, 0.75, 0.70, 0.66], [0.78, 0.74, 0.77, 0.79, 0.71]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = compare_seeds(differences)
    assert found is not None
    assert found.t_test_p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-9)
    # By hand: differences 7, 5, 2, 9, 5 points, mean 5.6, standard deviation sqrt(6.8), t 4.802 with 4 degrees.
    assert found.t_test_p == pytest.approx(2 * stats.t.sf(5.6 / math.sqrt(6.8 / 5), 4), rel=1e-9)
    assert found.effect_size == pytest.approx(5.6 / math.sqrt(6.8) * hedges_correction(4), rel=1e-9)
    assert (found.wins, found.ties) == (5, 0)


def test_five_wins_of_five_have_a_sign_flip_p_of_2_in_32() -> None:
    assert sign_flip_p([0.1, 0.2, 0.05, 0.3, 0.01]) == 2 / 32
    assert sign_flip_p([-0.1, -0.2, -0.05, -0.3, -0.01]) == 2 / 32
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1
    # Of +-1 +-2 +-3 four sums are 4 or more away from 0: +-6 and +-4.
    assert sign_flip_p([-1, 2, 3]) == 4 / 8


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7))
def test_sign_flips_are_those_that_can_be_counted(values: list[int]) -> None:
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
            for signs in product((-1, 1), repeat=len(values))]  # fmt: skip
    share = np.mean([total >= abs(sum(values)) for total in sums])
    assert sign_flip_p([value / 100 for value in values]) == pytest.approx(share)


def test_many_pairs_are_drawn_and_come_near_to_the_normal_test() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, size=40)
    assert sign_flip_p(values) == sign_flip_p(values)
    assert sign_flip_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip_p([1.0] * 40) == pytest.approx(1 / (2**16 + 1))


def test_hedges_correction_is_the_exact_one() -> None:
    # Gamma(2) / (sqrt(2) Gamma(3/2)) with Gamma(3/2) = sqrt(pi) / 2.
    assert hedges_correction(4) == pytest.approx(math.sqrt(2 / math.pi))
    for degrees in (10, 50, 200):  # the approximation of Hedges 1981
        assert hedges_correction(degrees) == pytest.approx(1 - 3 / (4 * degrees - 1), abs=4e-4)
    with pytest.raises(ValueError, match="degrees: 1"):
        hedges_correction(1)


def test_too_few_or_equal_differences_are_not_tested() -> None:
    two, same = compare_seeds([0.1, 0.2]), compare_seeds([0.05, 0.05, 0.05])
    assert two is not None
    assert same is not None
    assert (two.estimate.half_width, two.t_test_p, two.sign_flip_p, two.effect_size) == (None, None, None, None)
    assert two.wins == 2
    assert (same.t_test_p, same.effect_size, same.sign_flip_p) == (None, None, 0.25)
    tied = compare_seeds([0.7 - 0.6 - 0.1, 0.0, 0.1])
    assert tied is not None
    assert (tied.wins, tied.ties) == (1, 2)
    assert compare_seeds([]) is None


def test_rows_are_corrected_for_each_other_and_none_counts_for_no_test() -> None:
    rows = [compare_seeds(values) for values in ([1, 2, 3], [1.0], [5, 6, 5.5], [1, -1, 2])]
    found = correct_rows([*rows, None])
    assert found[-1] is None
    p_values = [row.t_test_p for row in rows if row is not None and row.t_test_p is not None]
    corrected = [row.t_test_p_holm for row in found if row is not None and row.t_test_p_holm is not None]
    assert len(corrected) == 3
    assert min(corrected) == pytest.approx(3 * min(p_values))
    assert max(corrected) == pytest.approx(max(p_values))


def test_effort_counts_to_the_first_epoch_that_is_as_good_as_the_baselines_best() -> None:
    baseline = history([0.2, 0.6, 0.5, 0.6], seconds=30)
    found = reach_of(history([0.3, 0.59, 0.6, 0.9], seconds=60), baseline)
    assert found is not None
    assert (found.target, found.baseline_epoch, found.epoch) == (0.6, 2, 3)
    assert (found.baseline_minutes, found.minutes) == (1, 3)
    never = reach_of(history([0.1, 0.59]), baseline)
    assert never is not None
    assert (never.epoch, never.minutes, never.baseline_minutes) == (None, None, 1)
    itself = reach_of(baseline, baseline)
    assert itself is not None
    assert (itself.epoch, itself.minutes) == (itself.baseline_epoch, itself.baseline_minutes)


def test_epochs_that_were_not_validated_still_take_their_time() -> None:
    found = reach_of(history([None, 0.7]), history([None, None, 0.7], seconds=60))
    assert found is not None
    assert (found.epoch, found.minutes, found.baseline_epoch, found.baseline_minutes) == (2, 2, 3, 3)
    assert reach_of(history([None]), history([0.5])) is None
    assert reach_of([], history([0.5])) is None


def test_minutes_that_cannot_be_compared_are_missing() -> None:
    one, other = history([0.5, 0.7]), history([0.6])
    elsewhere, untimed = reach_of(one, other, same_device=False), reach_of(history([0.7], seconds=None), other)
    for found in (elsewhere, untimed):
        assert found is not None
        assert found.minutes is None
        assert found.epoch is not None
    effort = summarise_effort([reach for reach in (elsewhere, untimed) if reach])
    assert effort is not None
    assert (effort.minutes_ratio, effort.num_reached) == (None, 2)


@pytest.mark.parametrize(
    "computer", [{"device": "another"}, {"threads": 2}, {"ranks": 2}, {"device": "cpu, then another"}]
)
def test_minutes_of_other_computers_are_not_compared(tmp_path: Path, computer: dict[str, Any]) -> None:
    names = ("random", "video")
    for folder, environment in (("same", {}), ("other", computer)):
        outcomes = [
            fabricate_trial(tmp_path / folder / name, {"initialisation": name, "seed": 0}, environment=extra)
            for name, extra in zip(names, ({}, environment), strict=True)
        ]
        effort = video_row(summarised(outcomes)).effort
        assert effort is not None
        assert effort.reaches[0].epoch is not None
        assert (effort.reaches[0].minutes is None) == (folder == "other")


def test_ratios_are_of_pairs_that_reached_the_target() -> None:
    baseline = history([0.1, 0.2, 0.3, 0.4])
    runs = [history([0.4]), history([0.1, 0.4]), history([0.1, 0.1, 0.4]), history([0.1])]
    effort = summarise_effort([reach for run in runs if (reach := reach_of(run, baseline))])
    assert effort is not None
    assert (effort.num_reached, len(effort.reaches)) == (3, 4)
    assert effort.epochs_ratio is not None
    assert effort.epochs_ratio.mean == pytest.approx((1 / 4 + 2 / 4 + 3 / 4) / 3)
    assert effort.epochs_ratio.values == (0.25, 0.5, 0.75)
    assert summarise_effort([]) is None


def test_results_have_what_the_run_folders_say(tmp_path: Path) -> None:
    cell = {"dataset": "simulated", "seed": 3}
    outcome = fabricate_trial(
        tmp_path / "run", cell, accuracy=0.75, auc=None, val_accuracies=(0.5, 0.8, 0.7), seconds=90
    )
    waiting = Outcome({"dataset": "real", "seed": 3}, tmp_path / "nothing", "waiting")
    done, later = collect_results([outcome, waiting])
    assert (done.state, done.accuracy, done.auc, done.macro_f1) == ("done", 0.75, None, 0.75)
    assert (done.num_train, done.num_validation, done.num_test, done.num_classes) == (100, 40, 60, 5)
    assert (done.best_epoch, done.epochs, done.train_seconds, done.minutes, done.device) == (2, 3, 270, 4.5, "cpu")
    assert done.cell == cell
    assert (later.state, later.accuracy, later.num_train, later.minutes, later.history) == (
        "waiting", None, None, None, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("metrics.json", None, "not readable"),
        ("metrics.json", '{"history": [', "not JSON"),
        ("metrics.json", "[]", "no object"),
        ("metrics.json", '{"history": [1]}', "no list of epochs"),
        ("metrics.json", '{"history": [{"epoch": 1, "seconds": "3"}]}', "seconds of epoch 1"),
        ("metrics.json", '{"history": [], "best_epoch": 1.5}', "best_epoch is 1.5"),
        ("evaluation.json", "\x00", "not JSON"),
        ("evaluation.json", '{"auc": 0.5}', "accuracy is missing"),
        ("evaluation.json", '{"accuracy": NaN}', "NaN is no number"),
        ("evaluation.json", '{"accuracy": 75.0}', "accuracy is 75.0, not between 0 and 1"),
        ("run.json", '{"data": {"num_volumes": {"training": "many"}}}', "no whole numbers"),
        ("run.json", '{"data": 3}', "data is no object"),
    ],
)
def test_a_damaged_run_folder_is_a_failed_trial(tmp_path: Path, file: str, content: str | None, reason: str) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7], [0.6, 0.7, 0.8])
    damaged = outcomes[0].folder / file
    damaged.unlink() if content is None else damaged.write_text(content)
    results = collect_results(outcomes)
    assert [result.state for result in results] == ["failed"] + ["done"] * 5
    assert reason in results[0].reason
    assert file in results[0].reason
    assert "\n" not in results[0].reason
    found = video_row(summarised(outcomes)).differences["accuracy"]
    assert found is not None
    assert len(found.estimate.values) == 2


def test_volumes_that_were_not_counted_are_unknown(tmp_path: Path) -> None:
    outcome = fabricate_trial(tmp_path / "run", {"seed": 0})
    (outcome.folder / "run.json").write_text('{"data": {}}')
    (found,) = collect_results([outcome])
    assert (found.state, found.num_train, found.num_validation, found.num_test) == ("done", None, None, 60)


def test_the_same_cell_twice_is_refused(tmp_path: Path) -> None:
    outcomes = [fabricate_trial(tmp_path / name, {"seed": 0}) for name in "ab"]
    with pytest.raises(InputError, match=r"b: has the values of .*a \(seed 0\)"):
        collect_results(outcomes)


def test_differences_are_of_runs_with_the_same_seed(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7, 0.8], [0.6, 0.6, 0.9, 0.7])
    expected = [0.1, 0.0, 0.2, -0.1]
    for order in (outcomes, outcomes[::-1]):
        found = video_row(summarised(order)).differences["accuracy"]
        assert found is not None
        assert sorted(found.estimate.values) == pytest.approx(sorted(expected))
        assert (found.wins, found.ties) == (2, 1)
    outcomes[1] = replace(outcomes[1], state="failed", reason="killed")
    found = video_row(summarised(outcomes)).differences["accuracy"]
    assert found is not None
    assert list(found.estimate.values) == pytest.approx([0.1, 0.2, -0.1])


def test_swapping_baseline_and_other_turns_every_sign(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7, 0.8], [0.6, 0.66, 0.9, 0.7])
    ahead = summarised(outcomes).rows[1].differences["auc"]
    behind = summarised(outcomes, baseline="video").rows[0].differences["auc"]
    assert ahead is not None
    assert behind is not None
    assert behind.estimate.mean == pytest.approx(-ahead.estimate.mean)
    assert behind.effect_size == pytest.approx(-(ahead.effect_size or 0))
    assert behind.t_test_p == pytest.approx(ahead.t_test_p)
    assert behind.sign_flip_p == ahead.sign_flip_p


def test_the_baseline_has_no_difference_to_itself_and_none_is_without_a_baseline(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7], [0.6, 0.7, 0.8])
    assert summarised(outcomes).rows[0].differences == {}
    for missing in ("compare", "baseline"):
        assert all(row.differences == {} for row in summarised(outcomes, **{missing: None}).rows)


def test_an_undefined_metric_is_left_out_of_its_mean_alone(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7], [0.6, 0.7, 0.8])
    scores = json.loads((outcomes[4].folder / "evaluation.json").read_text())
    (outcomes[4].folder / "evaluation.json").write_text(json.dumps({**scores, "auc": None}))
    row = video_row(summarised(outcomes))
    for metric, values in (("accuracy", (0.6, 0.7, 0.8)), ("auc", (0.6, 0.8))):
        estimate = row.estimates[metric]
        assert estimate is not None
        assert estimate.values == values
    assert row.differences["auc"] is not None
    assert row.differences["auc"].estimate.values == pytest.approx((0.1, 0.1))


def test_what_the_sweep_names_must_be_there(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5], [0.6])
    for changes, reason in (
        ({"compare": "start"}, "compare: 'start' is no axis"),
        ({"baseline": "rnadom"}, "baseline: 'rnadom' is no initialisation"),
        ({"layout": {"columns": ["acuracy"]}}, "'acuracy' is no metric"),
        ({"published": [{"accuracy": 0.5}]}, "row 1: has no source"),
        ({"published": [{"accuracy": 65.88, "source": "x"}]}, "65.88; give a share"),
        ({"published": [{"auc": "high", "source": "x"}]}, "not a number"),
    ):
        with pytest.raises(InputError, match=reason):
            summarised(outcomes, **changes)


def test_other_devices_versions_and_volumes_are_told(tmp_path: Path) -> None:
    assert summarised(pairs(tmp_path / "same", [0.5, 0.6], [0.6, 0.7])).remarks == ()
    outcomes = pairs(tmp_path / "cpu", [0.5, 0.6], [0.6, 0.7])
    outcomes += [
        fabricate_trial(tmp_path / "gpu", {"initialisation": "video", "seed": 2},
                        environment={"device": "NVIDIA H200", "threads": 16}, num_train=99),
        fabricate_trial(tmp_path / "old", {"initialisation": "random", "seed": 2}, environment={"torch": "2.9"}),
    ]  # fmt: skip
    conditions, volumes = summarised(outcomes).remarks
    assert "device NVIDIA H200 (1), cpu (5)" in conditions
    assert "torch 2.10 (5), 2.9 (1)" in conditions
    assert "threads" not in conditions
    assert volumes == "Runs of the same seed have different numbers of volumes in this sweep."
    effort = video_row(summarised(outcomes)).effort
    assert effort is not None
    assert effort.reaches[2].minutes is None


def test_the_csv_has_a_row_per_trial_in_the_order_of_the_axes(tmp_path: Path) -> None:
    outcomes = fabricate_sweep(tmp_path)
    outcomes[3] = replace(outcomes[3], state="failed", reason="two\nlines, with a comma")
    write_results(outcomes, SWEEP, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "dataset", "label_fraction", "initialisation", "seed", "trial", "state", "reason", "num_train",
        "num_validation", "num_test", "num_classes", "accuracy", "auc", "balanced_accuracy", "macro_f1", "best_epoch",
        "epochs", "train_seconds", "device", "folder",
    ]  # fmt: skip
    assert len(rows) == len(outcomes) == 40
    assert (rows[3]["state"], rows[3]["reason"], rows[3]["accuracy"]) == ("failed", "two lines, with a comma", "")
    scores = json.loads((outcomes[7].folder / "evaluation.json").read_text())
    assert float(rows[7]["accuracy"]) == scores["accuracy"]
    assert (tmp_path / rows[7]["folder"]).samefile(outcomes[7].folder)
    assert rows[7]["trial"] == outcomes[7].folder.name


def test_the_same_folders_give_the_same_bytes_and_orders_do_not_matter_to_tables(tmp_path: Path) -> None:
    outcomes = fabricate_sweep(tmp_path, {**GRID, "dataset": ["simulated"]}, epochs=3)
    first = {path.name: path.read_bytes() for path in write_results(outcomes, SWEEP, tmp_path)}
    assert set(first) == {"results.csv", "summary.json", "table.md", "table.tex"}
    again = {path.name: path.read_bytes() for path in write_results(outcomes, SWEEP, tmp_path)}
    assert first == again
    turned = {path.name: path.read_bytes() for path in write_results(outcomes[::-1], SWEEP, tmp_path)}
    assert all(first[name] == turned[name] for name in ("summary.json", "table.md", "table.tex"))


def test_the_summary_has_the_numbers_of_the_tables(tmp_path: Path) -> None:
    outcomes = pairs(tmp_path, [0.5, 0.6, 0.7], [0.6, 0.72, 0.8])
    published = [{"initialisation": "video", "accuracy": 0.9, "source": "somewhere"}]
    write_results(outcomes, {**SWEEP, "axes": {}, "published": published}, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert content["trials"]["done"] == 6
    random, video = content["rows"]
    assert video["cell"] == {"initialisation": "video"}
    assert video["seeds"] == [0, 1, 2]
    assert video["published"]["metrics"] == {"accuracy": 0.9}
    assert random["published"] is None
    assert video["ours"]["accuracy"]["mean"] == pytest.approx((0.6 + 0.72 + 0.8) / 3)
    assert video["differences"]["accuracy"]["estimate"]["values"] == pytest.approx([0.1, 0.12, 0.1])
    assert video["effort"]["num_reached"] == 3
    assert video["train_minutes"]["mean"] == pytest.approx(1.5)


def test_nothing_done_gives_blank_files(tmp_path: Path) -> None:
    outcomes = [Outcome({"initialisation": "random", "seed": seed}, tmp_path / str(seed), "waiting") for seed in (0, 1)]
    write_results(outcomes, {}, tmp_path)
    write_results([], {}, tmp_path / "empty")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["rows"][0]["ours"] == {"accuracy": None, "auc": None}
    assert "0 of 2 trials done, 2 waiting." in (tmp_path / "table.md").read_text()
