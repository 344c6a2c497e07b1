"""Searches before anything runs: what a sweep file may say, what is checked, and what a search is called."""

import json
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS, SUBTOMOGRAMS, TINY

from cryo_monai.errors import InputError
from cryo_monai.searches.cell_searches import CellSearch, plan_searches
from cryo_monai.searches.settings import Search, StopEarly, read_search
from cryo_monai.searches.spaces import Choices, Range, grid_points
from cryo_monai.sweeps.plans import Planner
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.workflows import load_workflow

NESTED = "train#random_clips#crop_prob"
SPACE = {
    "lr": {"low": 1e-5, "high": 1e-2, "log": True},
    NESTED: {"low": 0, "high": 1},
    "optimizer": {"choices": ["@optimizers#sgd", "@optimizers#adam"]},
    "batch_size": {"low": 4, "high": 8, "step": 4},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(search: dict[str, Any] | None = None, **changes: Any) -> Path:
        content = {
            "bundle": str(SUBTOMOGRAMS),
            "ids": {**TINY, "num_classes": 3},
            "axes": {"dataset": {"small": {}}, "label_fraction": [0.5, 1.0], "seed": [3, 4]},
            "search": {"space": SPACE, "trials": 5, **(search or {})},
            **changes,
        }
        file = tmp_path / "search.json"
        file.write_text(json.dumps(content))
        return file

    return write


def read(file: Path) -> Search:
    return read_search(read_sweep(file))


def searches(file: Path, data: Path, **ids: Any) -> list[CellSearch]:
    planner = Planner(read_sweep(file), file.parent / "out", data={"": data}, ids=ids)
    return plan_searches(planner, planner.cells(), read_search(planner.sweep))


def test_a_search_is_read_with_its_defaults(write: Write) -> None:
    search = read(write())
    assert search.space["lr"] == Range(1e-5, 1e-2, log=True)
    assert search.space["optimizer"] == Choices(("@optimizers#sgd", "@optimizers#adam"))
    assert (search.trials, search.sampler, search.metric, search.seeds) == (5, "tpe", "val_accuracy", (3,))
    assert search.stop_early is None
    assert not search.minimised


def test_losses_are_minimised_and_early_stopping_has_defaults(write: Write) -> None:
    search = read(write({"metric": "val_loss", "stop_early": {}, "seeds": [3, 4]}))
    assert search.minimised
    assert search.best([2.0, 1.0]) == 1.0
    assert search.stop_early == StopEarly(1, 4)
    assert search.seeds == (3, 4)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"sampla": "tpe"}, "no such key 'sampla'; did you mean sampler?"),
        ({"sampler": "gp"}, "sampler 'gp'; give one of tpe, random, grid"),
        ({"trials": 0}, "trials: give a whole number from 1 on"),
        ({"trials": None}, "trials: give a whole number from 1 on"),
        ({"trials": True}, "trials: give a whole number from 1 on"),
        ({"seed": -1}, "seed: give a whole number from 0 on"),
        ({"seeds": [5]}, "seeds: give a list of values of the axis seed; there are 3, 4"),
        ({"seeds": []}, "seeds: give a list of values of the axis seed; there are 3, 4"),
        ({"metric": 1}, "metric 1 is not a name"),
        ({"space": {}}, "give 'space', an object of ids and their values"),
        ({"space": {"seed": {"low": 0, "high": 5}}}, "seed is not searched for"),
        ({"space": {"label_fraction": {"low": 0.1, "high": 1}}}, "label_fraction is an axis"),
        ({"space": {"lr": [1e-3, 1e-2]}}, "space: lr is not an object with low, high, log, step, choices"),
        ({"space": {"lr": {"low": 1, "hihg": 2}}}, "no such key 'hihg'; did you mean high?"),
        ({"space": {"lr": {"low": 1, "high": 1}}}, "space: lr: give numbers 'low' below 'high'"),
        ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, "space: lr: 'log' is true or false, takes a low above"),
        ({"space": {"lr": {"low": 1, "high": 2, "log": True, "step": 1}}}, "and no step"),
        ({"space": {"lr": {"low": 0, "high": 1, "step": 2}}}, "'step' 2 does not lie between"),
        ({"space": {"lr": {"choices": [1]}}}, "'choices' is a list of two different values or more"),
        ({"space": {"lr": {"choices": [1, 1]}}}, "'choices' is a list of two different values or more"),
        ({"stop_early": {"min_epochs": 0}}, "stop_early: min_epochs: give a whole number from 1 on"),
        ({"stop_early": {"reduction_factor": 1}}, "stop_early: reduction_factor: give a whole number from 2 on"),
        ({"stop_early": True}, "stop_early is not an object with min_epochs, reduction_factor"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write: Write, search: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(write(search))
    assert str(caught.value).startswith(str(write(search)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"lrr": {"low": 0.1, "high": 1}}}, "space: lrr: no such id in this bundle; did you mean lr?"),
        (
            {"space": {"optimizer": {"choices": ["@optimizers#sgd", "@optimizers#adm"]}}},
            "space: optimizer: @optimizers#adm: no such id in this bundle; did you mean @optimizers#adam?",
        ),
        ({"space": {"optimizer": {"low": 0, "high": 1}}}, 'space: optimizer: "@optimizers#sgd" is no number'),
        ({"space": {"batch_size": {"low": 2.5, "high": 8}}}, "space: batch_size: is a whole number, 8; give whole"),
        ({"space": {"lr": {"choices": [0.1, "high"]}}}, 'space: lr: "high" cannot stand for 0.01'),
        ({"metric": "val_f1"}, "metric: no 'val_f1' in this bundle; there are val_accuracy, val_auc, val_loss"),
        ({"stop_early": {"min_epochs": 2}}, "stop_early: min_epochs 2 is not below 2 epochs"),
        ({"space": {"num_workers": {"low": 0, "high": 2}}}, "space: num_workers: its values make no difference"),
        ({"sampler": "grid"}, "space: lr: a grid takes 'choices', or 'low', 'high' and 'step'"),
    ],
)
def test_what_a_bundle_cannot_take_is_said_before_anything_runs(
    write: Write, dataset_dir: Path, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        searches(write(search), dataset_dir)
    assert "\n" not in str(caught.value)
    assert not (write(search).parent / "out" / "trials").exists()


def test_an_id_that_is_searched_for_is_not_taken_from_the_command_line(write: Write, dataset_dir: Path) -> None:
    with pytest.raises(InputError, match="space: lr is searched for; leave out --lr"):
        searches(write(), dataset_dir, lr="0.1")


def test_each_cell_without_its_seed_has_a_search_on_the_first_seed(write: Write, dataset_dir: Path) -> None:
    found = searches(write(), dataset_dir)
    assert [search.cell for search in found] == [
        {"dataset": "small", "label_fraction": 0.5},
        {"dataset": "small", "label_fraction": 1.0},
    ]
    (trial,) = found[0].make({"lr": 0.5})
    assert trial.cell == {"dataset": "small", "label_fraction": 0.5, "seed": 3}
    assert trial.ids["lr"] == 0.5


def test_counts_are_whole_where_the_bundle_has_them_so(write: Write, dataset_dir: Path) -> None:
    space = searches(write(), dataset_dir)[0].search.space
    assert space["batch_size"] == Range(4, 8, step=4, whole=True)
    assert space[NESTED] == Range(0, 1)  # 0.5 in the bundle


def test_a_nested_id_changes_the_trial_and_stands_on_its_command_line(write: Write, dataset_dir: Path) -> None:
    search = searches(write(), dataset_dir)[0]
    (one,), (other,) = search.make({NESTED: 0.25}), search.make({NESTED: 0.75})
    assert one.key != other.key
    words = shlex.split(one.command())
    given = {name[2:]: value for name, value in pairwise(words) if name.startswith("--")}
    assert given[NESTED] == "0.25"
    ids = {name: value for name, value in given.items() if name not in ("idempotent", "report")}
    workflow = load_workflow(SUBTOMOGRAMS, "train", overrides=ids)
    assert workflow.parser[NESTED] == 0.25
    assert workflow.parser.get_parsed_content("train#random_clips").crop_prob == 0.25


def test_the_name_of_a_search_follows_all_that_decides_proposals_but_their_number(
    write: Write, dataset_dir: Path
) -> None:
    def names(search: dict[str, Any] | None = None, **changes: Any) -> list[str]:
        short = {"space": {NESTED: SPACE[NESTED]}, **(search or {})}
        return [found.key for found in searches(write(short, **changes), dataset_dir)]

    before = names()
    assert len(set(before)) == 2
    assert names({"trials": 50}) == before
    others = [
        {"seed": 1},
        {"sampler": "random"},
        {"metric": "val_loss"},
        {"seeds": [4]},
        {"space": {"lr": SPACE["lr"]}},
        {"stop_early": {"min_epochs": 1}},
    ]
    for other in others:
        assert not set(names(other)) & set(before), other
    assert not set(names(ids={**TINY, "num_classes": 3, "dropout": 0.1})) & set(before)


def test_a_grid_has_every_combination_once(write: Write, dataset_dir: Path) -> None:
    space = {"lr": {"low": 0.1, "high": 0.5, "step": 0.2}, "batch_size": {"low": 4, "high": 6}}
    search = searches(write({"space": space, "sampler": "grid", "trials": 100}), dataset_dir)[0].search
    points = grid_points(search.space)
    assert search.trials == len(points) == 9
    assert points[:4] == [{"lr": 0.1, "batch_size": n} for n in (4, 5, 6)] + [{"lr": 0.3, "batch_size": 4}]
    assert {json.dumps(point) for point in points} == {
        json.dumps({"lr": lr, "batch_size": n}) for lr in (0.1, 0.3, 0.5) for n in (4, 5, 6)
    }


def test_the_example_fits_its_bundle(dataset_dir: Path, tmp_path: Path) -> None:
    sweep = read_sweep(CONFIGS / "sweeps" / "search.json")
    planner = Planner(sweep, tmp_path, data={"": dataset_dir}, ids={"num_classes": 3})
    cells = planner.cells({"initialisation": ["random"]})  # that of video needs its weights
    found = plan_searches(planner, cells, read_search(sweep))
    assert len(found) == 1
    assert found[0].search.stop_early is not None
    (trial,) = found[0].make({})
    assert found[0].search.stop_early.min_epochs < trial.max_epochs
