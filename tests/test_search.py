"""Searches while they run: proposals, early stopping, kills, failures, and the files that are left."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import main
from cryo_monai.completed_runs import DONE, FAILURE, is_done, note_failure
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.folders import LockedError
from cryo_monai.reports.search_pages import write_search_page
from cryo_monai.runs import running
from cryo_monai.searches.cell_searches import CellSearch, plan_searches
from cryo_monai.searches.files import search_csv, write_search_files
from cryo_monai.searches.proposals import Proposal, best_of, kept_values, read_journal
from cryo_monai.searches.searching import Searcher, searching
from cryo_monai.searches.settings import Search, StopEarly, read_search
from cryo_monai.searches.spaces import Choices, Range
from cryo_monai.searches.studies import Study
from cryo_monai.sweeps.local_engine import LocalEngine, Slot
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.workflows import load_workflow

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed")
EPOCHS = 9
SEARCH = Search(
    space={
        "lr": Range(1e-5, 1e-1, log=True),
        "train#random_clips#crop_prob": Range(0.0, 1.0),
        "batch_size": Range(8, 32, step=8, whole=True),
        "optimizer": Choices(("@optimizers#sgd", "@optimizers#adam")),
    },
    trials=14,
    stop_early=StopEarly(1, 3),
)


class Killed(BaseException):
    """Stands for kill -9: nothing after it is run."""


def quality(ids: Mapping[str, Any], seed: int) -> float:
    """The accuracy that made-up trainings come to: best at a learning rate of 1e-3 without crops."""
    import math

    distance = abs(math.log10(ids["lr"]) + 3) / 2 + ids["train#random_clips#crop_prob"] / 4
    return max(0.0, 0.9 - 0.3 * distance + 0.01 * seed)


class MadeUpEngine:
    """Does an epoch of each running trial whenever it is asked to wait; may be killed after so many."""

    def __init__(self, places: int = 1, *, lives: int = 10**9, fails: Callable[[Trial], bool] | None = None) -> None:
        self.free: list[Any] = [None] * places
        self.signals = 0
        self.lives = lives
        self.fails = fails or (lambda trial: False)
        self.started: list[str] = []
        self._running: list[Trial] = []

    @property
    def running(self) -> list[Trial]:
        return list(self._running)

    @contextmanager
    def listening(self) -> Iterator[None]:
        yield

    def start(self, trial: Trial) -> None:
        self.free.pop()
        self.started.append(trial.key)
        self._running.append(trial)
        trial.folder.mkdir(parents=True, exist_ok=True)

    def stop(self, trial: Trial) -> None:
        if trial in self._running:
            self._end(trial)

    def collect(self, seconds: float) -> list[Trial]:
        for trial in self.running:
            if self.signals:
                self._end(trial)
                continue
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            self._train(trial)
        return []

    def _end(self, trial: Trial) -> None:
        self._running.remove(trial)
        self.free.append(None)

    def _train(self, trial: Trial) -> None:
        if self.fails(trial):
            note_failure(trial.folder, "loss is not finite")
            self._end(trial)
            return
        rows = epochs_of(trial)
        best = quality(trial.ids, trial.ids["seed"])
        epoch = len(rows) + 1
        value = round(best * epoch / trial.max_epochs, 6)
        rows.append({"epoch": epoch, "val_accuracy": value, "key_metric": value, "val_loss": 1 - value, "seconds": 2.0})
        (trial.folder / "metrics.json").write_text(json.dumps({"history": rows}))
        if epoch == trial.max_epochs:
            (trial.folder / "evaluation.json").write_text("{}")
            mark = {"evaluation_sha256": sha256_of(trial.folder / "evaluation.json")}
            (trial.folder / DONE).write_text(json.dumps(mark))
            self._end(trial)


def epochs_of(trial: Trial) -> list[dict[str, Any]]:
    file = trial.folder / "metrics.json"
    return json.loads(file.read_text())["history"] if file.is_file() else []


def cell_search(folder: Path, search: Search = SEARCH, seeds: tuple[int, ...] = (0,), cell: str = "a") -> CellSearch:
    """A search of trainings that are made up."""

    def make(ids: Mapping[str, Any]) -> tuple[Trial, ...]:
        trials = []
        for seed in seeds:
            key = hashlib.sha256(json.dumps([dict(ids), seed, cell], sort_keys=True).encode()).hexdigest()[:16]
            place = folder / "trials" / key
            trials.append(Trial(key, {"seed": seed}, place, "bundle", (), {**ids, "seed": seed}, EPOCHS, 1.0))
        return tuple(trials)

    return CellSearch(
        {"dataset": cell},
        f"key-{cell}",
        search,
        folder / "search" / f"{len(cell)}{cell[-3:].strip('/>')}.jsonl",
        make,
        folder / "trials",
    )


def outcomes(search: CellSearch) -> list[tuple[Any, ...]]:
    return [(p.number, p.ids, p.state, p.value, p.curve, p.epochs) for p in search.proposals()]


def run(search: CellSearch, engine: MadeUpEngine | None = None) -> MadeUpEngine:
    engine = engine or MadeUpEngine()
    assert Searcher([search], engine).run()
    return engine


@needs_optuna
def test_a_study_that_is_rebuilt_proposes_what_the_one_before_it_would_have() -> None:
    search = replace(SEARCH, stop_early=None)
    whole = Study(search)
    proposals = []
    for number in range(16):  # after ten that have ended, proposals come of those before them
        proposals.append(whole.propose())
        whole.tell(number, "complete" if number % 5 else "failed", quality(proposals[-1], 0) if number % 5 else None)
    for cut in (0, 1, 9, 13, 15):
        again = Study(search)
        for number, proposal in enumerate(proposals[:cut]):
            again.adopt(proposal)
            again.tell(number, "complete" if number % 5 else "failed", quality(proposal, 0) if number % 5 else None)
        assert again.propose() == proposals[cut]


@needs_optuna
def test_proposals_lie_in_the_space_and_follow_the_seed() -> None:
    drawn = {seed: Study(replace(SEARCH, seed=seed)).propose() for seed in range(20)}
    assert drawn[3] == Study(replace(SEARCH, seed=3)).propose()
    assert len({json.dumps(ids) for ids in drawn.values()}) == 20
    for ids in drawn.values():
        assert 1e-5 <= ids["lr"] <= 1e-1
        assert isinstance(ids["batch_size"], int)
        assert ids["batch_size"] in (8, 16, 24, 32)
        assert ids["optimizer"] in ("@optimizers#sgd", "@optimizers#adam")


@needs_optuna
def test_choices_come_back_as_they_are_in_the_file() -> None:
    values = (True, 1, 1.5, None, "a", [10, 20], {"stem": 5})
    study = Study(Search(space={"x": Choices(values)}, trials=None, sampler="grid"))
    assert [study.propose()["x"] for _ in values] == list(values)


def test_a_missing_optuna_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=re.escape('pip install "cryo-monai[sweep]"')):
        Study(SEARCH)


@needs_optuna
def test_a_search_makes_its_proposals_and_finds_the_best(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    run(search)
    proposals = search.proposals()
    assert [p.number for p in proposals] == list(range(14))
    assert {p.state for p in proposals} == {"complete", "pruned"}
    assert search.is_over()
    best = search.best()
    assert best is not None
    assert best.value == max(p.value for p in proposals if p.state == "complete")
    assert best.value == pytest.approx(quality(best.ids, 0), abs=1e-6)


@needs_optuna
def test_poor_proposals_end_early_by_the_rule_of_successive_halving(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, sampler="random", trials=30))
    run(search)
    rungs: dict[int, list[float]] = {1: [], 3: []}
    for proposal in search.proposals():
        values = dict(proposal.curve)
        for rung, before in rungs.items():
            if rung in values:
                before.append(values[rung])
                # One in three goes on, at first the best (Li et al. 2020, algorithm 2, as Optuna stops for good).
                kept = sorted(before, reverse=True)[: max(1, len(before) // 3)]
                goes_on = values[rung] in kept
                assert (max(values) > rung) == goes_on, proposal
    stopped = [p for p in search.proposals() if p.state == "pruned"]
    assert len(stopped) > 10
    for proposal in stopped:
        (trial,) = search.make(proposal.ids)
        assert proposal.epochs in (1, 3)
        assert not (trial.folder / "evaluation.json").exists()


@needs_optuna
def test_without_early_stopping_all_come_to_their_end(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, stop_early=None, trials=4))
    run(search)
    assert [(p.state, p.epochs) for p in search.proposals()] == [("complete", EPOCHS)] * 4


@needs_optuna
@pytest.mark.parametrize("places", [1, 3])
def test_a_search_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path, places: int) -> None:
    whole = cell_search(tmp_path / "whole")
    run(whole)
    killed = cell_search(tmp_path / "killed")
    epochs = 0
    for lives in (0, 1, 2, 7, 11, 5, 8, 3, 10**9):
        engine = MadeUpEngine(places, lives=lives)
        try:
            run(killed, engine)
        except Killed:
            epochs += lives
    proposals = killed.proposals()
    assert [p.number for p in proposals] == list(range(14))
    if places == 1:
        assert outcomes(killed) == outcomes(whole)
    ended = [entry["number"] for entry in read_journal(killed.journal) if "state" in entry]
    assert sorted(ended) == list(range(14))
    for proposal in proposals:
        (trial,) = killed.make(proposal.ids)
        assert [row["epoch"] for row in epochs_of(trial)] == list(range(1, len(epochs_of(trial)) + 1))
        assert is_done(trial.folder) == (proposal.state == "complete")


@needs_optuna
def test_what_was_under_way_is_finished_before_anything_is_proposed(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    with pytest.raises(Killed):
        run(search, MadeUpEngine(2, lives=3))
    before = [p.keys[0] for p in search.proposals() if p.state == "running"]
    assert before
    assert run(search, MadeUpEngine(2)).started[: len(before)] == before


@needs_optuna
def test_nothing_is_proposed_while_another_process_is_at_what_is_under_way(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    with pytest.raises(Killed):
        run(search, MadeUpEngine(lives=3))
    (proposal,) = (p for p in search.proposals() if p.state == "running")
    made = len(search.proposals())
    engine, waited = MadeUpEngine(), 0
    with running(tmp_path / "trials" / proposal.keys[0]):

        def collect(seconds: float) -> list[Trial]:
            nonlocal waited
            waited += 1
            engine.signals = int(waited == 3)
            return []

        engine.collect = collect  # type: ignore[method-assign]
        assert not Searcher([search], engine).run()
    assert engine.started == []
    assert len(search.proposals()) == made


@needs_optuna
def test_a_search_that_is_over_starts_nothing_and_goes_on_when_more_is_asked_for(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    run(search)
    before = outcomes(search)
    assert run(search).started == []
    assert outcomes(search) == before
    more = cell_search(tmp_path, replace(SEARCH, trials=17))
    run(more)
    assert outcomes(more)[:14] == before
    assert len(outcomes(more)) == 17


@needs_optuna
def test_a_signal_leaves_proposals_to_be_gone_on_with(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    engine = MadeUpEngine()
    train = engine._train

    def train_and_signal(trial: Trial) -> None:
        train(trial)
        engine.signals = 1

    engine._train = train_and_signal  # type: ignore[method-assign]
    assert not Searcher([search], engine).run()
    assert [p.state for p in search.proposals()] == ["running"]
    whole = cell_search(tmp_path / "whole")
    run(search)
    run(whole)
    assert outcomes(search) == outcomes(whole)


@needs_optuna
def test_a_failed_proposal_is_reported_the_rest_go_on_and_its_region_is_left(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, trials=25, stop_early=None))
    run(search, MadeUpEngine(fails=lambda trial: trial.ids["lr"] > 3e-3))
    failed = [p for p in search.proposals() if p.state == "failed"]
    assert failed
    assert {p.reason for p in failed} == {"loss is not finite"}
    assert all(p.ids["lr"] > 3e-3 for p in failed)
    assert len(search.proposals()) == 25
    late = [p.state for p in search.proposals()][15:]
    assert late.count("failed") <= 2  # 37 % of the range


@needs_optuna
def test_a_failure_that_was_removed_is_tried_again(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, trials=3, stop_early=None))
    run(search, MadeUpEngine(fails=lambda trial: True))
    assert [p.state for p in search.proposals()] == ["failed"] * 3
    assert search.best() is None
    assert run(search).started == []
    key = search.proposals()[1].keys[0]
    (tmp_path / "trials" / key / FAILURE).unlink()
    assert run(search).started == [key]
    assert [p.state for p in search.proposals()] == ["failed", "complete", "failed"]


@needs_optuna
def test_an_undefined_metric_is_a_failure_for_good(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, trials=2, stop_early=None, metric="val_auc"))
    run(search)
    assert [(p.state, p.reason) for p in search.proposals()] == [("failed", "val_auc is undefined")] * 2
    assert search.is_over()


@needs_optuna
@pytest.mark.parametrize("places", [1, 3])
def test_equal_proposals_are_trained_once(tmp_path: Path, places: int) -> None:
    space = {"lr": Choices((1e-3, 1e-2)), "train#random_clips#crop_prob": Choices((0.0, 1.0))}
    search = cell_search(tmp_path, Search(space=space, trials=12, sampler="random"))
    engine = run(search, MadeUpEngine(places))
    proposals = search.proposals()
    assert len(proposals) == 12
    assert {p.state for p in proposals} == {"complete"}
    distinct = {p.keys[0] for p in proposals}
    assert len(distinct) <= 4
    assert sorted(engine.started) == sorted(distinct)
    for key in distinct:
        assert len({p.value for p in proposals if p.keys[0] == key}) == 1


@needs_optuna
def test_a_value_is_the_mean_over_seeds_and_only_the_first_is_stopped(tmp_path: Path) -> None:
    search = cell_search(tmp_path, replace(SEARCH, trials=10), seeds=(0, 1, 2))
    run(search, MadeUpEngine(2))
    for proposal in search.proposals():
        trials = search.make(proposal.ids)
        if proposal.state == "pruned":
            assert not any(trial.folder.exists() for trial in trials[1:])
        else:
            assert proposal.epochs == 3 * EPOCHS
            expected = sum(round(quality(proposal.ids, seed), 6) for seed in (0, 1, 2)) / 3
            assert proposal.value == pytest.approx(expected, abs=1e-12)


@needs_optuna
def test_cells_take_turns_and_begin_with_the_same_proposals(tmp_path: Path) -> None:
    searches = [cell_search(tmp_path, replace(SEARCH, trials=6, stop_early=None), cell=cell) for cell in ("a", "b")]
    told: list[str] = []
    Searcher(searches, MadeUpEngine(), told=lambda search, proposal: told.append(search.cell["dataset"])).run()
    assert told == ["a", "b"] * 6
    one, other = (search.proposals() for search in searches)
    assert [p.ids for p in one] == [p.ids for p in other]
    assert {p.keys for p in one}.isdisjoint({p.keys for p in other})


@needs_optuna
def test_a_line_that_was_cut_off_is_dropped_and_proposed_again(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    run(search)
    before = outcomes(search)
    lines = search.journal.read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if '"number": 9, "ids"' in line)
    search.journal.write_text("".join(lines[:place]) + lines[place][:25])
    assert outcomes(search) == before[:9]
    run(search)
    assert outcomes(search) == before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    search = cell_search(tmp_path)
    search.journal.parent.mkdir()
    search.journal.write_text('{"cell": {}}\nnoise\n{"number": 0}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: a line is damaged"):
        search.proposals()


def test_a_second_search_in_a_folder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with (
        searching(tmp_path),
        pytest.raises(LockedError, match=rf"another process is searching there \(process {os.getpid()} on \S+\)$"),
        searching(tmp_path),
    ):
        pass
    with searching(tmp_path):
        pass


def test_the_value_after_an_epoch_is_that_of_the_weights_which_are_kept() -> None:
    history = [
        {"epoch": 1, "train_loss": 1.0},
        {"epoch": 2, "key_metric": None, "val_loss": None},
        {"epoch": 3, "key_metric": 0.5, "val_loss": 3.0},
        {"epoch": 4, "key_metric": 0.5, "val_loss": 2.0},
        {"epoch": 5},
        {"epoch": 6, "key_metric": 0.6, "val_loss": 4.0},
    ]
    assert list(kept_values(history, "val_loss")) == [(2, None), (3, 3.0), (4, 3.0), (5, 3.0), (6, 4.0)]


def test_the_best_is_the_first_of_equal_ones_that_came_to_their_end() -> None:
    values = [("pruned", 0.9), ("complete", 0.5), ("complete", 0.7), ("complete", 0.7), ("failed", None)]
    proposals = [Proposal(n, {}, (), state, value) for n, (state, value) in enumerate(values)]
    best, worst = best_of(proposals, SEARCH), best_of(proposals, replace(SEARCH, metric="val_loss"))
    assert best is not None
    assert worst is not None
    assert (best.number, worst.number) == (2, 1)


@needs_optuna
def test_files_say_what_journals_do_and_the_best_is_an_overlay(tmp_path: Path) -> None:
    searches = [cell_search(tmp_path, cell=cell) for cell in ("first set", "first/set")]
    for search in searches:
        run(search)
    rows = list(csv.DictReader(io.StringIO(search_csv(searches))))
    assert len(rows) == 28
    for row, proposal in zip(rows, (p for search in searches for p in search.proposals()), strict=True):
        assert float(row["lr"]) == proposal.ids["lr"]
        assert (row["state"], float(row["value"])) == (proposal.state, proposal.value)
        assert (tmp_path / row["folder"]).is_dir()
    files = write_search_files(searches, tmp_path)
    assert len({file.name for file in files}) == 3
    best = searches[0].best()
    assert best is not None
    parser = load_workflow(SUBTOMOGRAMS, "train", overlays=[files[1]]).parser
    assert {name: parser[name] for name in best.ids} == best.ids


@needs_optuna
def test_the_page_has_every_proposal_stands_alone_and_is_the_same_each_time(tmp_path: Path) -> None:
    searches = [cell_search(tmp_path, cell=cell) for cell in ("<b>a</b>", "untouched")]
    run(searches[0])
    sweep = {"title": "A & B", "_desc_": "What it is."}
    page = write_search_page(searches, sweep, tmp_path)
    text = page.read_text()
    assert "<b>a</b>" not in text
    assert "A &amp; B" in text
    assert text.count("<tr>") == 1 + 2 + 2 + 14  # heads and rows
    assert "no value yet" in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert write_search_page(searches, sweep, tmp_path).read_text() == text


def write_real(folder: Path) -> Path:
    content = {
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3, "max_epochs": 3, "device": "cpu"},
        "axes": {"dataset": {"small": {}}, "seed": [0]},
        "search": {
            "space": {
                "lr": {"low": 1e-4, "high": 1e-1, "log": True},
                "train#random_clips#crop_prob": {"low": 0, "high": 1},
            },
            "trials": 3,
            "metric": "val_loss",
            "stop_early": {"min_epochs": 1, "reduction_factor": 2},
        },
    }
    folder.mkdir(parents=True)
    file = folder / "search.json"
    file.write_text(json.dumps(content))
    return file


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [entry for file in (folder / "search").glob("*.jsonl") for entry in read_journal(file)]


@needs_optuna
@pytest.mark.slow
def test_a_real_search_whose_driver_is_killed_comes_to_what_an_undisturbed_one_does(
    dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, killed, whole = write_real(tmp_path / "file"), tmp_path / "killed", tmp_path / "whole"
    arguments = ["sweep", str(file), str(killed), "--data", str(dataset_dir)]
    with subprocess.Popen(
        [sys.executable, "-m", "cryo_monai", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        end = time.monotonic() + 300
        # While the second proposal is under way.
        while sum("ids" in entry for entry in journal_of(killed)) < 2:
            assert driver.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert main(arguments) == 0
    assert main([*arguments, "--dry_run", "True"]) == 0  # writes what was found again, and starts nothing
    commands = capsys.readouterr().out.splitlines()[-1:]
    sweep = read_sweep(file)
    planner = Planner(sweep, whole, data={"": dataset_dir})
    (search,) = plan_searches(planner, planner.cells(), read_search(sweep))
    assert Searcher([search], LocalEngine([Slot()])).run()
    kept = ("number", "ids", "trials", "state", "value", "curve")
    found = [[{key: entry[key] for key in kept if key in entry} for entry in journal_of(f)] for f in (killed, whole)]
    assert found[0] == found[1]
    assert sum("state" in entry for entry in found[0]) == 3
    best = search.best()
    assert best is not None
    overlay = json.loads((killed / "best" / "small.json").read_text())
    assert {name: overlay[name] for name in best.ids} == best.ids
    assert commands == [replace_folder(search.make(best.ids)[0].command(), whole, killed)]
    for name in ("search.csv", "search.html", "results.csv", "table.md"):
        assert (killed / name).is_file(), name
    for proposal in search.proposals():
        if proposal.state == "complete":
            assert is_done(killed / "trials" / proposal.keys[0])


def replace_folder(text: str, old: Path, new: Path) -> str:
    return text.replace(str(old), str(new))
