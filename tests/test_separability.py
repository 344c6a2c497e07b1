from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryo_monai.errors import InputError
from cryo_monai.separability import Separability, measure_separability


def blobs(count: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return rng.normal(size=(count, 6)) + distance * labels[:, None], labels


def test_far_blobs_are_told_apart_by_every_measure() -> None:
    found = measure_separability(*blobs(60, 1000))
    assert found.silhouette == pytest.approx(1, abs=0.01)
    assert (found.neighbour_accuracy, found.neighbour_spread) == (1, 0)
    assert (found.probe_accuracy, found.probe_spread) == (1, 0)
    assert (found.chance, found.num_volumes, found.num_folds) == (0.5, 60, 15)


def test_shuffled_labels_give_chance() -> None:
    features, labels = blobs(400, 3)
    found = measure_separability(features, np.random.default_rng(1).permutation(labels))
    assert found.silhouette == pytest.approx(0, abs=0.02)
    assert found.neighbour_accuracy == pytest.approx(0.5, abs=0.08)
    assert found.probe_accuracy == pytest.approx(0.5, abs=0.08)
    assert found.probe_spread is not None
    assert 0 < found.probe_spread < 0.12


def test_the_silhouette_is_that_of_its_definition() -> None:
    # (b - a) / max(a, b) by hand, of standardised values -1 and 1: a = 0, b = 2.
    labels = np.repeat([0, 1], 6)
    assert measure_separability(np.repeat([[0.0], [4.0]], 6, axis=0), labels).silhouette == 1
    # Thrice -3 and -1 against thrice 1 and 3 (times 1/sqrt 5): a = 3 x 2 / 5 to the own class; outer b = 5, inner 3.
    found = measure_separability(np.repeat([[-3.0], [-1.0], [1.0], [3.0]], 3, axis=0), labels)
    assert found.silhouette == pytest.approx((1 - 6 / 5 / 5 + 1 - 6 / 5 / 3) / 2)


@settings(max_examples=4, deadline=None)
@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-10, 10), seed=st.integers(0, 50))
def test_the_scale_and_origin_of_features_do_not_matter(scale: float, shift: float, seed: int) -> None:
    features, labels = blobs(40, 1.0, seed)
    one, other = measure_separability(features, labels), measure_separability(features * scale + shift, labels)
    assert one.silhouette == pytest.approx(other.silhouette, abs=1e-4)
    assert one.neighbour_accuracy == pytest.approx(other.neighbour_accuracy, abs=0.03)
    assert one.probe_accuracy == pytest.approx(other.probe_accuracy, abs=0.03)


def test_a_seed_decides_everything_and_constant_features_do_no_harm() -> None:
    features, labels = blobs(50, 1)
    dead = np.concatenate([features, np.zeros((50, 3))], axis=1)
    assert measure_separability(features, labels, seed=4) == measure_separability(features, labels, seed=4)
    assert (
        measure_separability(dead, labels).neighbour_accuracy
        == measure_separability(features, labels).neighbour_accuracy
    )
    assert measure_separability(np.zeros((20, 3)), labels[:20]).silhouette == 0


def test_unknown_labels_and_small_classes_are_left_out_and_counted() -> None:
    features, labels = blobs(46, 5)
    mixed = labels.copy()
    mixed[0], mixed[1], mixed[2:6] = -1, 7, 3
    found = measure_separability(features, mixed)
    assert (found.num_volumes, found.num_left_out, found.num_classes_left_out) == (40, 5, 2)
    alone = measure_separability(features[6:], labels[6:])
    assert (alone.num_left_out, alone.num_classes_left_out) == (0, 0)
    assert found == replace(alone, num_left_out=5, num_classes_left_out=2)


def test_a_small_class_does_not_take_folds_from_the_others() -> None:
    features, labels = blobs(42, 5)
    labels[:2] = 2
    assert measure_separability(features, labels).num_folds == 15


@pytest.mark.parametrize(
    ("counts", "measured", "left_out", "classes"),
    [([3], 0, 3, 1), ([5], 5, 0, 0), ([4, 4], 0, 8, 2), ([9, 4], 9, 4, 1), ([0, 0, 5, 1], 5, 1, 1), ([], 0, 0, 0)],
)
def test_without_two_classes_of_five_nothing_is_measured(
    counts: list[int], measured: int, left_out: int, classes: int
) -> None:
    labels = np.repeat(np.arange(len(counts) + 1) - 1, [2, *counts])
    nothing = Separability(None, None, None, None, None, None, None, measured, 0, left_out, classes)
    assert measure_separability(np.random.default_rng(0).normal(size=(len(labels), 2)), labels) == nothing


def test_five_volumes_of_each_class_are_enough() -> None:
    found = measure_separability(np.array([[0.1], [9.0]] * 5) + np.arange(10)[:, None] / 100, np.array([0, 1] * 5))
    assert found.num_folds == 15
    assert found.probe_accuracy == 1


def test_of_many_volumes_a_stratified_part_is_measured() -> None:
    features, labels = blobs(3400, 1000)
    labels = np.where(np.arange(3400) < 5, 2, labels)
    found = measure_separability(features[:, :2], labels)
    assert abs(found.num_volumes - 3000) <= 2
    assert (found.num_folds, found.num_left_out) == (5, 0)
    assert found.probe_accuracy is not None
    assert found.probe_accuracy > 0.99


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match=r"features \(3, 2\) and labels \(2,\)"):
        measure_separability(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(InputError, match="not finite"):
        measure_separability(np.full((4, 2), np.inf), np.array([0, 0, 1, 1]))
