"""Label fractions: stratified, nested, the same whatever the order, and what the bundles train on."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import MEDMNIST, training
from hypothesis import given
from hypothesis import strategies as st

from cryo_monai.datalists import load_datalist
from cryo_monai.errors import InputError
from cryo_monai.label_fractions import labelled_subset
from cryo_monai.workflows import load_workflow


def items_of(counts: list[int]) -> list[dict[str, object]]:
    return [
        {"path": f"{label}/{n:03d}.mrc", "label": label} for label, count in enumerate(counts) for n in range(count)
    ]


def paths(items: list[dict[str, object]]) -> set[object]:
    return {item["path"] for item in items}


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 2**16),
)
def test_fractions_are_stratified_and_nested(counts: list[int], fractions: tuple[float, float], seed: int) -> None:
    items = items_of(counts)
    small, large = (labelled_subset(items, fraction, seed) for fraction in sorted(fractions))
    assert paths(small) <= paths(large)
    kept = Counter(item["label"] for item in small)
    for label, count in enumerate(counts):
        assert kept[label] == max(1, int(min(fractions) * count + 0.5))


def test_all_labels_are_the_list_itself_and_order_is_kept() -> None:
    items = items_of([7, 5])[::-1]
    assert labelled_subset(items, 1.0, seed=3) == items
    half = labelled_subset(items, 0.5, seed=3)
    assert half == [item for item in items if item in half]
    assert paths(half) == paths(labelled_subset(items[::-1], 0.5, seed=3))


def test_another_seed_labels_other_volumes() -> None:
    items = items_of([40])
    assert paths(labelled_subset(items, 0.25, seed=0)) != paths(labelled_subset(items, 0.25, seed=1))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, "5%", True, None, float("nan")])
def test_impossible_fractions_are_refused(fraction: object) -> None:
    with pytest.raises(InputError, match="label_fraction"):
        labelled_subset(items_of([4]), fraction)  # type: ignore[arg-type]


def test_a_bundle_trains_on_the_fraction_and_is_scored_on_the_whole_test_split(
    dataset_dir: Path, tmp_path: Path
) -> None:
    whole = load_datalist(dataset_dir)
    workflow = training(dataset_dir, tmp_path, label_fraction=0.5)
    workflow.initialize()
    found = workflow.parser.get_parsed_content("datalist")
    assert paths(found["training"]) < paths(whole["training"])
    assert Counter(item["label"] for item in found["training"]) == {0: 3, 1: 3, 2: 3}
    assert [item["index"] for item in found["training"]] == list(range(9))
    for split in ("validation", "test"):
        assert paths(found[split]) == paths(whole[split])
    assert len(workflow.parser.get_parsed_content("train#dataset")) == 9


def test_medmnist_has_its_official_validation_and_test(shared_data: Path) -> None:
    ids = {"dataset_dir": str(shared_data / "medmnist3d"), "dataset_name": "adrenalmnist3d", "num_classes": 2}
    lists = {
        fraction: load_workflow(MEDMNIST, "train", overrides={**ids, "label_fraction": fraction}).parser
        for fraction in (0.05, 0.1, 1.0)
    }
    found = {fraction: parser.get_parsed_content("datalist") for fraction, parser in lists.items()}
    assert {fraction: len(found[fraction]["training"]) for fraction in found} == {0.05: 59, 0.1: 119, 1.0: 1188}
    assert paths(found[0.05]["training"]) < paths(found[0.1]["training"])
    assert len(found[0.05]["test"]) == 298
    assert len(found[0.05]["validation"]) == 98
