from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryo_monai.errors import InputError
from cryo_monai.metrics import classification_metrics
from cryo_monai.significance import (
    METRICS,
    Predictions,
    compare_all,
    compare_predictions,
    correct_holm,
    mcnemar_exact,
    pair_predictions,
)


def predictions(seed: int, *, skill: float = 0.4, count: int = 50, classes: int = 3) -> Predictions:
    truth = np.random.default_rng(99)
    labels = truth.integers(0, classes, count)
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), count)
    probabilities[np.arange(count), labels] += skill
    probabilities /= probabilities.sum(1, keepdims=True)
    return Predictions(tuple(f"{n:03d}.mrc" for n in range(count)), labels, probabilities, ("a", "b", "c")[:classes])


def certain(right: list[bool]) -> Predictions:
    """Predictions for two classes by turns that are right or wrong as told."""
    labels = np.arange(len(right)) % 2
    shown = np.where(right, labels, 1 - labels)
    return Predictions(tuple(f"{n:03d}" for n in range(len(right))), labels, np.eye(2)[shown] * 0.8 + 0.1, ("a", "b"))


def alike(seed: int) -> Predictions:
    """One of many networks that are equally good: right in four of five volumes, with thirty of two classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 2
    shown = np.where(rng.random(30) < 0.8, labels, 1 - labels)
    confidence = rng.uniform(0.5, 1, 30)
    second = np.where(shown == 1, confidence, 1 - confidence)
    return Predictions(tuple(f"{n:03d}" for n in range(30)), labels, np.stack([1 - second, second], 1), ("a", "b"))


def test_mcnemar_has_published_and_countable_values() -> None:
    # Fisher's 1 of 12 and so on can be counted: (1 + 12) of 2^12 outcomes, on either side.
    assert mcnemar_exact(1, 11) == pytest.approx(2 * 13 / 4096)
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    # Approval ratings, Agresti 1990, Categorical Data Analysis, p. 350, as in the help of R's mcnemar.test: 150 and 86
    # of 1600 changed their mind; chi-squared 34.71 with continuity correction belongs to 3e-5 at its square root, 4.12.
    assert mcnemar_exact(150, 86) == pytest.approx(3.716e-5, rel=1e-3)
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(7, 7) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_does_not_know_which_network_is_first(one: int, other: int) -> None:
    assert mcnemar_exact(one, other) == pytest.approx(mcnemar_exact(other, one))
    assert 0 < mcnemar_exact(one, other) <= 1


def test_discordant_volumes_are_counted() -> None:
    found = compare_predictions(certain([True] * 8 + [False] * 2), certain([True] * 3 + [False] * 6 + [True]))
    assert (found.only_first_right, found.only_second_right, found.num_discordant) == (5, 1, 6)
    assert found.mcnemar_p == pytest.approx(2 * 7 / 64)
    assert found.differences["accuracy"].value == pytest.approx(-0.4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_the_networks_flips_the_sign_and_nothing_else(seed: int) -> None:
    first, second = predictions(seed), predictions(seed + 1, skill=0.6)
    one, other = (compare_predictions(*pair, resamples=200) for pair in ((first, second), (second, first)))
    assert one.mcnemar_p == pytest.approx(other.mcnemar_p)
    for name in METRICS:
        ours, theirs = one.differences[name], other.differences[name]
        assert ours.value == pytest.approx(-theirs.value, abs=1e-12)
        assert ours.interval == pytest.approx([-theirs.interval[1], -theirs.interval[0]], abs=1e-12)
        assert ours.p_value == theirs.p_value


def test_a_network_does_not_differ_from_itself() -> None:
    found = compare_predictions(predictions(1), predictions(1), resamples=200)
    assert found.mcnemar_p == 1
    for difference in found.differences.values():
        assert (difference.value, difference.interval, difference.p_value) == (0, (0, 0), 1)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_volumes_does_not_matter(seed: int) -> None:
    first, second = predictions(1), predictions(2)
    order = np.random.default_rng(seed).permutation(first.paths).tolist()
    assert compare_predictions(first.select(order), second, resamples=100) == compare_predictions(
        first, second, resamples=100
    )


def test_values_are_those_of_the_evaluation_and_intervals_hold_them() -> None:
    first, second = predictions(1), predictions(2, skill=2.0)
    found = compare_predictions(first, second, resamples=500)
    numbers = [classification_metrics(p.probabilities, p.labels, p.class_names) for p in (first, second)]
    for name in METRICS:
        difference = found.differences[name]
        assert difference.value == pytest.approx(numbers[1][name] - numbers[0][name])
        assert difference.interval[0] < difference.value < difference.interval[1]
        assert difference.interval[0] > 0
        assert difference.p_value == pytest.approx(1 / 1001)


def test_p_values_are_rarely_small_when_there_is_no_difference() -> None:
    pairs = [(alike(2 * n), alike(2 * n + 1)) for n in range(150)]
    found = [compare_predictions(*pair, resamples=2, swaps=200, seed=n) for n, pair in enumerate(pairs)]
    for name in METRICS:
        # Of 150, 7.5 are expected; more than 12 come with the binomial probability 0.039.
        assert sum(pair.differences[name].p_value <= 0.05 for pair in found) <= 12, name


@settings(max_examples=20, deadline=None)
@given(right=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=40))
def test_where_classes_are_balanced_exchanging_is_mcnemars_test(right: list[tuple[bool, bool]]) -> None:
    first, second = (certain([pair[n] for pair in right[: len(right) // 2 * 2]]) for n in (0, 1))
    found = compare_predictions(first, second, resamples=10, swaps=4096)
    # Of 4096 exchanges the standard error is below 0.008; of up to twelve discordant volumes every one is made.
    margin = 1e-9 if found.num_discordant <= 12 else 0.04
    for name in ("accuracy", "balanced_accuracy"):
        assert found.differences[name].p_value == pytest.approx(found.mcnemar_p, abs=margin)


def test_five_discordant_volumes_are_no_proof() -> None:
    # McNemar's p is 2 / 32; a bootstrap hardly ever draws a difference of the other sign, and gave 0.013.
    found = compare_predictions(certain([True] * 25 + [False] * 5), certain([True] * 30))
    assert found.mcnemar_p == 0.0625
    assert found.differences["balanced_accuracy"].p_value == 0.0625
    assert found.differences["accuracy"].p_value == 0.0625


def test_few_volumes_have_the_p_values_that_can_be_counted() -> None:
    first, second = predictions(1, count=6), predictions(2, count=6, skill=1.0)
    found = compare_predictions(first, second, resamples=2)
    numbers = []
    for exchanged in product((False, True), repeat=6):
        sides = [np.array(exchanged)[:, None] ^ turned for turned in (False, True)]
        mixed = [np.where(side, second.probabilities, first.probabilities) for side in sides]
        numbers.append([classification_metrics(p, first.labels, first.class_names) for p in mixed])
    for name in METRICS:
        differences = np.abs([after[name] - before[name] for before, after in numbers])
        share = (differences >= differences[0] - 1e-9).mean()
        assert found.differences[name].p_value == pytest.approx(share), name


def test_drawn_exchanges_come_near_to_all_of_them() -> None:
    first, second = predictions(3, count=9), predictions(4, count=9, skill=1.0)
    every, drawn = (compare_predictions(first, second, resamples=2, swaps=swaps).differences for swaps in (512, 511))
    assert every["auc"] != drawn["auc"]
    for name in METRICS:
        assert drawn[name].p_value == pytest.approx(every[name].p_value, abs=0.1)


def test_all_pairs_are_those_of_two() -> None:
    three = {name: predictions(seed) for seed, name in enumerate("abc")}
    three["c"] = three["c"].select(three["c"].paths[::-1][:30])
    alone = Predictions(("elsewhere",), np.array([0]), np.eye(3)[:1], ("a", "b", "c"))
    found = compare_all({**three, "d": alone}, resamples=50)
    assert list(found) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        assert found[first, second] == compare_predictions(three[first], three[second], resamples=50)
    assert found["a", "d"] is found["c", "d"] is None


def test_the_seed_decides_the_draws() -> None:
    first, second = predictions(1), predictions(2)
    once, again, other = (compare_predictions(first, second, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once.differences["auc"].interval != other.differences["auc"].interval


def test_only_common_volumes_count() -> None:
    first, second = predictions(1), predictions(2)
    some = second.select(second.paths[10:30])
    one, other = pair_predictions(first, some)
    assert one.paths == other.paths == first.paths[10:30]
    assert compare_predictions(first, some, resamples=50) == compare_predictions(
        first.select(first.paths[10:30]), some, resamples=50
    )


def test_an_undefined_metric_stays_undefined() -> None:
    first = predictions(1).select(
        [path for path, label in zip(predictions(1).paths, predictions(1).labels, strict=True) if label == 0]
    )
    found = compare_predictions(first, first, resamples=50)
    assert (found.differences["auc"].value, found.differences["auc"].p_value) == (None, None)
    assert found.differences["accuracy"].p_value == 1


def test_what_cannot_be_paired_is_named() -> None:
    first = predictions(1)
    with pytest.raises(InputError, match="classes differ: a, b, c and a, b"):
        pair_predictions(first, predictions(1, classes=2))
    with pytest.raises(InputError, match="no test volume is common"):
        pair_predictions(first.select(first.paths[:5]), first.select(first.paths[5:]))
    moved = Predictions(first.paths, (first.labels + 1) % 3, first.probabilities, first.class_names)
    with pytest.raises(InputError, match=r"000.mrc: \w in one run and \w in the other; 50 labels disagree"):
        pair_predictions(first, moved)
    with pytest.raises(InputError, match="comes twice"):
        pair_predictions(first, Predictions(("x",) * 50, first.labels, first.probabilities, first.class_names))


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    # Worked example: 0.01, 0.04, 0.03, 0.005 become 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last not below it.
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.2, None, 0.9]) == [pytest.approx(0.4), None, pytest.approx(0.9)]
    assert correct_holm([0.03]) == [0.03]
    assert correct_holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = correct_holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1, len(p_values) * p) + 1e-12 or q == max(
            a for a, b in zip(adjusted, p_values, strict=True) if b <= p
        )
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
