"""The verb of sweeps."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cryo_monai.command_line import UsageError, split_list

if TYPE_CHECKING:
    from cryo_monai.sweeps.local_engine import LocalEngine
    from cryo_monai.sweeps.plans import Planner, Trial
    from cryo_monai.sweeps.sweep_files import Sweep

ENGINES = ("local", "ray")
# What processes of trials find imported: all that a training and its evaluation need.
PRELOADED = (
    "cryo_monai.evaluations",
    "cryo_monai.inferers",
    "cryo_monai.tensorboard_pictures",
    "matplotlib.backends.backend_agg",
)


def sweep(
    file: str,
    output_dir: str,
    data: str = "",
    only: str = "",
    engine: str = "local",
    workers: int = 0,
    trials_per_gpu: int = 1,
    address: str = "",
    retries: int = 1,
    dry_run: bool = False,
    tables: bool = False,
    **ids: str,
) -> None:
    """Do every training of a sweep that is not done, and write its tables.

    The same call goes on where an interrupted one stopped, on this machine or another that sees output_dir; a changed
    sweep file redoes only what it changes. Written are results.csv, table.md, table.tex, summary.json and sweep.html,
    and in trials/ a run folder for each training.

    Args:
        file: such as configs/sweeps/quick.json; docs/sweeps.md says what is in one.
        output_dir: new folder, or of a sweep.
        data: where data sets are: NAME=DIR,NAME=DIR, or one DIR for all.
        only: a part of the grid: dataset=simulated|noble,seed=0|1; the tables are then of that part.
        engine: local, or ray for clusters.
        workers: trainings at a time on this machine; by default one, or trials_per_gpu on each GPU.
        trials_per_gpu: trainings that share a GPU.
        address: of a Ray cluster, with --engine ray; by default a Ray of its own on this machine.
        retries: how often a training that died is tried again.
        dry_run: only print the command of each training, in an order in which they can be run, for sbatch --array and
            the like; data that the sweep simulates are made first.
        tables: only write the tables of what is done; wants the same data.
        ids: any id of the bundles' train.json, for all trainings: --device cpu, --num_workers 2, --max_epochs 1;
            --weights FILE stands for video and image weights.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: give one of {', '.join(ENGINES)}")
    from cryo_monai.errors import InputError
    from cryo_monai.sweeps.plans import Planner
    from cryo_monai.sweeps.sweep_files import note_sweep, read_sweep

    content = read_sweep(file)
    folder = Path(output_dir)
    if ids.get("device") == "cpu":
        trials_per_gpu = 0
    planner = Planner(content, folder, data=_places(data), ids=ids)
    cells = planner.cells(_parts(only))
    note_sweep(folder, content)
    with redirect_stdout(sys.stderr):  # standard output is for commands and tables
        if not tables:
            _simulate_missing(planner, content, planner.datasets(cells))
        trials = planner.plan(cells)
    start = partial(_engine, engine, address, workers, trials_per_gpu, retries)
    unsolved: list[str] = []
    if "search" in content.content:
        from cryo_monai.search_verbs import tuned

        if engine == "ray":
            print("proposals run on this machine; Ray runs what is found best", file=sys.stderr)
        trials, unsolved = tuned(
            planner,
            cells,
            pretraining=[trial for trial in trials if any(trial.key in other.after for other in trials)],
            run=lambda trials: _run(trials, start),
            engine=None if dry_run or tables else partial(_engine, "local", "", workers, trials_per_gpu, retries),
        )
    if dry_run:
        for trial in trials:
            print(trial.command())
        return
    described = content.described() | {
        "title": content.content.get("title", "Sweep") + (f" (only {only})" if only else "")
    }
    check_tables(trials, described)
    finished = tables or _run(trials, start)
    states = write_tables(folder, trials, described)
    if not finished:
        print("stopped; the same command goes on")
        raise SystemExit(75)
    failed, done = states.count("failed"), states.count("done")
    if failed:
        raise InputError(
            f"{failed} of {len(trials)} trials failed; {folder}/table.md says why, the same command retries"
        )
    if unsolved:
        raise InputError(f"{'; '.join(unsolved)}: no proposal was trained to its end; {folder}/search.csv says why")
    if done < len(trials) and not tables:
        raise InputError(f"{len(trials) - done} of {len(trials)} trials are not done; the same command goes on")


def check_tables(trials: Sequence[Trial], described: Mapping[str, Any]) -> None:
    """Refuse what would stop the tables, before anything is trained for them."""
    from cryo_monai.sweep_results.result_files import write_results
    from cryo_monai.sweeps.outcomes import Outcome

    with TemporaryDirectory() as nowhere:
        waiting = [Outcome(t.cell, t.folder, "waiting") for t in trials if "pretrained" not in t.cell]
        write_results(waiting, described, Path(nowhere))


def write_tables(folder: Path, trials: Sequence[Trial], described: Mapping[str, Any]) -> list[str]:
    """Write and print what came of a sweep; return the states of its trials."""
    from cryo_monai.reports import write_sweep_page
    from cryo_monai.sweep_results.result_files import write_results
    from cryo_monai.sweeps.trials import outcome_of

    outcomes = [outcome_of(trial) for trial in trials]
    of_grid = [outcome for outcome in outcomes if "pretrained" not in outcome.cell]
    write_results(of_grid, described, folder)
    page = write_sweep_page(of_grid, described, folder)
    print((folder / "table.md").read_text())
    print(f"results: {folder}/results.csv, {folder}/table.md, {folder}/table.tex, {page}")
    return [outcome.state for outcome in outcomes]


def _run(trials: Sequence[Trial], start: Callable[..., LocalEngine]) -> bool:
    """Run what is not done; return False when it was stopped by a signal."""
    from cryo_monai.completed_runs import forget_failure
    from cryo_monai.sweeps.trials import outcome_of
    from cryo_monai.sweeps.views import SweepView

    for trial in trials:
        if outcome_of(trial).state == "failed":
            forget_failure(trial.folder)
    view = SweepView(trials)
    finished = start(tick=view).run(trials)
    view.close()
    return finished


def _engine(
    name: str,
    address: str,
    workers: int,
    trials_per_gpu: int,
    retries: int,
    tick: Callable[[], object] | None = None,
) -> LocalEngine:
    """Make the engine of this name."""
    from cryo_monai.sweeps.local_engine import LocalEngine, slots

    if name == "local":
        return LocalEngine(slots(workers, trials_per_gpu), retries=retries, preload=PRELOADED, tick=tick)
    from cryo_monai.sweeps.ray_engine import RayEngine

    options: dict[str, Any] = {"workers": workers, "trials_per_gpu": trials_per_gpu, "retries": retries}
    return RayEngine(address, **options, preload=PRELOADED, tick=tick)


def _places(data: str) -> dict[str, str]:
    """Read ``simulated=DIR,noble=DIR``, or one folder for all."""
    pairs = [part.partition("=") for part in split_list(data)]
    return {name if equals else "": place if equals else name for name, equals, place in pairs}


def _parts(only: str) -> dict[str, list[str]]:
    """Read ``dataset=simulated|noble,seed=0``; names of values may have commas."""
    parts: dict[str, list[str]] = {}
    for part in re.split(r",(?=[^,|=]*=)", only) if only else []:
        axis, equals, values = part.strip(", ").partition("=")
        if not equals or not values:
            raise UsageError(f"--only {only}: give AXIS=VALUE, or AXIS=VALUE|VALUE, separated by commas")
        parts[axis] = values.split("|")
    return parts


def _simulate_missing(planner: Planner, content: Sweep, datasets: list[str]) -> None:
    """Simulate what the sweep says how to, and is not given with --data."""
    from cryo_monai.folders import LockedError
    from cryo_monai.simulation_verbs import simulate

    for name in datasets:
        folder = planner.folder / "data" / name
        if name in content.data and name not in planner.data.given and "" not in planner.data.given:
            while True:
                try:
                    simulate(str(folder), **content.data[name])
                    break
                except LockedError:  # another sweep on this folder is at it
                    time.sleep(1)
