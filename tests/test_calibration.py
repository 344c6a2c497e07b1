"""Temperature scaling and calibration errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss

from cryo_monai.calibration import at_temperature, calibration_metrics, fit_temperature


def drawn(number: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose softmax at a temperature is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(number, 4))
    true = softmax(scores / temperature, axis=1)
    labels = np.array([rng.choice(4, p=row) for row in true])
    return softmax(scores, axis=1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_truth_is_found(temperature: float) -> None:
    probabilities, labels = drawn(20_000, temperature)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_lower_log_loss() -> None:
    probabilities, labels = drawn(3000, 1.7)
    found = fit_temperature(probabilities, labels)
    costs = [log_loss(labels, at_temperature(probabilities, t)) for t in (0.9 * found, found, 1.1 * found)]
    assert costs[1] == min(costs)
    assert costs[1] < log_loss(labels, probabilities)


def test_a_perfect_validation_does_not_make_probabilities_certain() -> None:
    labels = np.arange(12) % 3
    probabilities = softmax(4.0 * np.eye(3)[labels], axis=1)
    temperature = fit_temperature(probabilities, labels)
    assert 0.3 < temperature < 1
    assert at_temperature(probabilities, temperature).max() < 1 - 1e-6


def test_probabilities_of_zero_and_nan_are_survived() -> None:
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert 0.05 <= fit_temperature(certain, np.array([0, 1, 2, 1])) <= 20
    assert fit_temperature(np.full((4, 3), np.nan), np.array([0, 1, 2, 1])) == 1.0


@settings(max_examples=20)
@given(st.floats(0.5, 10), st.integers(0, 100))  # sharper, and the smallest are cut off
def test_a_temperature_is_taken_back_by_its_inverse_and_changes_no_prediction(temperature: float, seed: int) -> None:
    probabilities, _ = drawn(30, 1.0, seed)
    scaled = at_temperature(probabilities, temperature)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(at_temperature(scaled, 1 / temperature), probabilities, atol=1e-9)


def test_errors_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 0])
    found = calibration_metrics(probabilities, labels)
    # Bins of 1/15: 0.9 twice (one right), 0.7 and 0.6 (right).
    assert found["ece"] == pytest.approx((abs(1.8 - 1) + abs(0.7 - 1) + abs(0.6 - 1)) / 4)
    assert found["brier"] == pytest.approx(2 * (0.01 + 0.81 + 0.09 + 0.16) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.6]).mean())
    assert sum(part["count"] for part in found["bins"]) == 4
    full = [part for part in found["bins"] if part["count"]]
    assert [part["confidence"] for part in full] == pytest.approx([0.6, 0.7, 0.9])
    assert [part["accuracy"] for part in full] == [1, 1, 0.5]


def test_brier_score_is_scikit_learns_for_two_classes() -> None:
    from sklearn.metrics import brier_score_loss

    probabilities, labels = drawn(200, 1.0)
    two = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    # Theirs counts one of the two classes.
    assert calibration_metrics(two, labels % 2)["brier"] == pytest.approx(2 * brier_score_loss(labels % 2, two[:, 1]))


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    found = calibration_metrics(np.eye(3)[[0, 1]], np.array([0, 1]))
    assert found["bins"][-1]["count"] == 2
    assert found["ece"] == 0
