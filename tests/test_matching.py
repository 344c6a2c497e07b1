"""Two lists of the same particles."""

from pathlib import Path

import numpy as np
import pytest

from cryo_monai.errors import InputError
from cryo_monai.matching import label_particles, match_particles, score_particles, score_text
from cryo_monai.particles import Particles, make_particles


def particles(rows: list[tuple[str, float, float, float, str]], pixel_size: float = 10.0) -> Particles:
    return make_particles(
        [row[0] for row in rows],
        np.array([row[1:4] for row in rows]),
        pixel_size=pixel_size,
        ids=[f"p{n}" for n in range(len(rows))],
        class_names=[row[4] for row in rows],
    )


TRUTH = particles([("a", 10, 10, 10, "x"), ("a", 10, 10, 20, "y"), ("b", 10, 10, 10, "y"), ("b", 30, 30, 30, "x")])


def test_the_nearest_pairs_are_the_same_particle_within_one_tomogram() -> None:
    found = particles(
        [("a.mrc", 10, 10, 13, ""), ("a.mrc", 10, 10, 11, ""), ("b.mrc", 10, 10, 20, ""), ("c", 30, 30, 30, "")]
    )
    matches = match_particles(found, TRUTH, distance=50.0)
    assert matches.truth_of.tolist() == [-1, 0, -1, -1]
    assert matches.near.tolist() == [True, True, False, False]


def test_distances_are_in_angstroms_whatever_the_pixels() -> None:
    found = particles([("a", 20, 20, 20.8, "")], pixel_size=5.0)  # 4 Å beside the first
    assert match_particles(found, TRUTH, distance=4.1).truth_of.tolist() == [0]
    assert match_particles(found, TRUTH, distance=3.9).truth_of.tolist() == [-1]


def test_each_particle_is_found_once_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    known = particles([("a", *p, "x") for p in rng.uniform(0, 50, (40, 3))])
    found = particles([("a", *p, "") for p in rng.uniform(0, 50, (60, 3))])
    forward = match_particles(found, known, distance=60.0).truth_of
    paired = forward[forward >= 0]
    assert len(paired) == len(set(paired.tolist())) > 5
    order = rng.permutation(60)
    assert np.array_equal(match_particles(found.select(order), known, distance=60.0).truth_of, forward[order])


def test_labels_are_those_of_the_truth_and_background_where_nothing_is() -> None:
    found = particles(
        [
            ("a", 10, 10, 10, ""),
            ("a", 10, 10, 12, ""),
            ("a", 10, 10, 20, ""),
            ("b", 50, 50, 50, ""),
            ("b", 30, 30, 31, ""),
        ]
    )
    labelled = label_particles(found, TRUTH, distance=50.0)
    assert labelled.class_names == ["x", "", "y", "background", "x"]
    assert labelled.ids == found.ids


def test_a_fraction_of_every_class_is_labelled() -> None:
    rng = np.random.default_rng(1)
    places = np.stack(np.meshgrid(np.arange(10), np.arange(10), [0]), -1).reshape(-1, 3) * 20.0
    names = ["x"] * 60 + ["y"] * 40
    known = particles([("a", *p, name) for p, name in zip(places, names, strict=True)])
    found = particles([("a", *p, "") for p in places + rng.uniform(-1, 1, places.shape)])
    labelled = label_particles(found, known, distance=30.0, fraction=0.2, seed=3)
    assert (labelled.class_names.count("x"), labelled.class_names.count("y")) == (12, 8)
    assert labelled.class_names == label_particles(found, known, distance=30.0, fraction=0.2, seed=3).class_names
    assert labelled.class_names != label_particles(found, known, distance=30.0, fraction=0.2, seed=4).class_names


def test_precision_and_recall_of_each_class() -> None:
    found = particles(
        [("a", 10, 10, 10, "x"), ("a", 10, 10, 20, "x"), ("b", 10, 10, 10, "unknown"), ("b", 50, 50, 50, "y")]
    )
    score = score_particles(found, TRUTH, distance=50.0)
    x, y = score["classes"]["x"], score["classes"]["y"]
    assert (x["true"], x["found"], x["correct"], x["precision"], x["recall"]) == (2, 2, 1, 0.5, 0.5)
    assert (y["true"], y["found"], y["correct"], y["precision"], y["recall"]) == (2, 1, 0, 0.0, 0.0)
    assert score["picking"] == {"true": 4, "particles": 4, "paired": 3, "precision": 0.75, "recall": 0.75}
    assert score["accuracy"] == pytest.approx(1 / 3)
    assert score["confusion"] == {
        "x": {"x": 1, "not found": 1},
        "y": {"x": 1, "unknown": 1},
        "no particle": {"y": 1},
    }
    assert "precision recall" in score_text(score)
    unclassified = particles([("a", 10, 10, 10, "")])
    assert score_text(score_particles(unclassified, TRUTH, distance=50.0)).startswith("picking: 1 of 4 particles found")
    perfect = score_particles(TRUTH, TRUTH, distance=1.0)
    assert perfect["macro_f1"] == 1.0


def test_what_was_trained_on_does_not_count() -> None:
    score = score_particles(TRUTH, TRUTH, distance=1.0, leave_out=["p0", "p2"])
    assert score["picking"]["true"] == 2
    assert score["left_out"] == 2
    assert score["classes"]["x"]["true"] == 1


def test_lists_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tomogram in common"):
        match_particles(particles([("c", 1, 1, 1, "")]), TRUTH, distance=10.0)
    nowhere = make_particles("a", [[1.0, 1, 1]], pixel_size=float("nan"))
    with pytest.raises(InputError, match="does not say how large its pixels are"):
        match_particles(nowhere, TRUTH, distance=10.0)
    with pytest.raises(InputError, match="has no class names"):
        label_particles(TRUTH, particles([("a", 1, 1, 1, "")]), distance=10.0)
    with pytest.raises(InputError, match="has no particle 'elsewhere' to leave out"):
        score_particles(TRUTH, TRUTH, distance=10.0, leave_out=["p0", "elsewhere"])
    with pytest.raises(InputError, match="fraction: 0"):
        label_particles(TRUTH, TRUTH, distance=10.0, fraction=0.0)
    with pytest.raises(InputError, match="distance: -1"):
        match_particles(TRUTH, TRUTH, distance=-1.0)
