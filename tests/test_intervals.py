"""Bootstrap intervals over test volumes."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from cryo_monai.intervals import _area, _ordered, interval_of_mean, metric_intervals
from cryo_monai.metrics import classification_metrics, one_vs_rest_auc


def scores(number: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % classes
    logits = rng.normal(size=(number, classes)) + 1.2 * np.eye(classes)[labels]
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels


def test_each_resample_has_the_metrics_of_the_volumes_drawn() -> None:
    """With ties in the scores, against scikit-learn on the repeated rows."""
    probabilities, labels = scores(40, 3)
    probabilities = np.round(probabilities, 1)
    drawn = np.random.default_rng(1).integers(0, 40, 40)
    weights = np.bincount(drawn, minlength=40)[None].astype(float)
    areas = [_area(weights, *_ordered(probabilities[:, c], labels == c))[0] for c in range(3)]
    assert areas == pytest.approx(one_vs_rest_auc(probabilities[drawn], labels[drawn]))


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    probabilities, labels = scores(300, 3)

    def metric(name: str) -> tuple[float, float]:
        def statistic(rows: np.ndarray) -> float:
            return float(classification_metrics(probabilities[rows], labels[rows], "abc")[name])

        found = bootstrap(
            (np.arange(300),),
            statistic,
            vectorized=False,
            n_resamples=100,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        return tuple(found.confidence_interval)

    ours = metric_intervals(probabilities, labels, resamples=4000)
    for name in ("auc", "balanced_accuracy", "macro_f1"):
        theirs = metric(name)
        # Percentiles of 100 draws scatter by a tenth of the interval.
        assert ours[name] == pytest.approx(theirs, abs=0.3 * (theirs[1] - theirs[0])), name


def test_the_metric_lies_in_its_interval_and_the_order_of_volumes_does_not_matter_much() -> None:
    probabilities, labels = scores(150, 4)
    numbers = classification_metrics(probabilities, labels, "abcd")
    found = metric_intervals(probabilities, labels)
    for name in ("accuracy", "auc", "balanced_accuracy", "macro_f1"):
        assert found[name][0] < numbers[name] < found[name][1]
    for entry, intervals in zip(numbers["per_class"].values(), found["per_class"], strict=True):
        for name, interval in intervals.items():
            assert interval[0] <= entry[name] <= interval[1]
    assert metric_intervals(probabilities, labels) == found
    assert metric_intervals(probabilities, labels, seed=1) != found


def test_four_times_the_volumes_halve_the_interval() -> None:
    widths = []
    for number in (200, 800):
        low, high = metric_intervals(*scores(number, 2))["accuracy"]
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)


def test_a_mistake_lowers_the_interval_of_a_proportion() -> None:
    probabilities = np.eye(2)[np.zeros(20, dtype=int)] * 0.8 + 0.1
    found = [metric_intervals(probabilities, (np.arange(20) < wrong).astype(int))["accuracy"] for wrong in (0, 1)]
    # Clopper and Pearson's table for 20 and 19 of 20.
    assert found[0] == pytest.approx([0.8316, 1.0], abs=1e-4)
    assert found[1] == pytest.approx([0.7513, 0.9987], abs=1e-4)


def test_all_right_does_not_mean_certain() -> None:
    labels = np.arange(20) % 2
    found = metric_intervals(np.eye(2)[labels] * 0.8 + 0.1, labels)
    # Clopper and Pearson: the lower limit of n of n is (0.025)^(1/n).
    assert found["accuracy"] == pytest.approx([0.025 ** (1 / 20), 1.0])
    assert found["auc"] is None
    assert found["per_class"][0]["recall"] == pytest.approx([0.025 ** (1 / 10), 1.0])


def test_a_class_without_volumes_has_no_interval() -> None:
    probabilities, labels = scores(30, 3)
    labels = np.where(labels == 2, 0, labels)
    found = metric_intervals(probabilities, labels)
    assert found["per_class"][2]["recall"] is None
    assert found["per_class"][2]["auc"] is None
    assert found["auc"] is not None


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = interval_of_mean(values.tolist())
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert interval_of_mean([1.0, 2.0]) is None


def test_the_interval_of_a_mean_covers_it_also_for_few_volumes() -> None:
    rng = np.random.default_rng(0)
    for number in (4, 16):
        intervals = [interval_of_mean(rng.normal(0, 1, number).tolist()) for _ in range(1000)]
        covered = np.mean([low < 0 < high for low, high in intervals])
        assert covered == pytest.approx(0.95, abs=0.025)
