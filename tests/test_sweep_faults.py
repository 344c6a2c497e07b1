"""Sweeps that are killed, doubled, or fail: nothing is done twice, nothing is lost but the epoch in flight."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.completed_runs import DONE, FAILURE, complete_run, failure_of, is_done
from cryo_monai.errors import InputError
from cryo_monai.folders import LOCK, LockedError, is_locked, locked
from cryo_monai.runs import running
from cryo_monai.sweeps.local_engine import LocalEngine, Slot
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.sweeps.trials import ELSEWHERE, STOPPED, outcome_of, run_trial

EPOCHS, LONG = 6, 30
# Ends the process of a training before its first step, as the out-of-memory killer does.
DEADLY = {"initialize": ["$__import__('os').kill(__import__('os').getpid(), 9)"]}


def plan(folder: Path, data: Path, axes: dict[str, Any], **ids: Any) -> list[Trial]:
    file = folder / "sweep.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"bundle": str(SUBTOMOGRAMS), "ids": {**TINY, "num_classes": 3, "dataset_dir": str(data), **ids}}
    file.write_text(json.dumps({**content, "axes": axes}))
    planner = Planner(read_sweep(file), folder / "out", data={})
    return planner.plan(planner.cells())


def slow(dataset_dir: Path, folder: Path, seeds: list[int], max_epochs: int = EPOCHS) -> list[Trial]:
    """Trials that a test can interrupt; batches of two diverge at a larger rate."""
    sizes = {"batch_size": 2, "clip_size": [16, 24, 24], "lr": 0.0001}
    return plan(folder, dataset_dir, {"seed": seeds}, max_epochs=max_epochs, **sizes)


def epochs_of(trial: Trial) -> list[int]:
    try:
        content = json.loads((trial.folder / "metrics.json").read_text())
    except FileNotFoundError:
        return []
    return [row["epoch"] for row in content["history"]]


def evaluation(trial: Trial) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((trial.folder / "evaluation.json").read_text())
    return {name: numbers[name] for name in ("accuracy", "auc", "confusion_matrix")}


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not come about"
        time.sleep(0.02)


def trainings(trial: Trial) -> int:
    """How many times a training of this trial began or went on."""
    return (trial.folder / "log.txt").read_text().count("initialisation: ")


@pytest.fixture(scope="module")
def reference(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the trials of `slow` come to when nothing happens."""
    trials = slow(dataset_dir, tmp_path_factory.mktemp("reference"), [0, 1])
    assert LocalEngine([Slot()]).run(trials)
    return {trial.key: evaluation(trial) for trial in trials}


@pytest.fixture
def killer() -> Iterator[Callable[[Callable[[], object], Callable[[], None]], None]]:
    """Do something as soon as a condition holds, from a thread."""
    threads: list[threading.Thread] = []

    def when(condition: Callable[[], object], act: Callable[[], None]) -> None:
        def wait() -> None:
            until(condition)
            act()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield when
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()


def holder(trial: Trial) -> int:
    """The process that is at a trial."""
    words = (trial.folder / LOCK).read_text().split()
    return int(words[1])


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with running(tmp_path / "run"):
        assert is_locked(tmp_path / "run" / LOCK)
        with pytest.raises(LockedError, match=rf"run: another process trains there \(process {os.getpid()} on "):
            complete_run(SUBTOMOGRAMS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, "held"):
        stale = lock.open()
        lock.unlink()
        with locked(lock, "held again"):  # another file of that name
            assert is_locked(lock)
            assert os.fstat(stale.fileno()).st_ino != lock.stat().st_ino
        stale.close()


def test_a_killed_trial_goes_on_from_its_last_epoch(
    dataset_dir: Path, tmp_path: Path, killer: Callable[..., None], reference: dict[str, dict[str, Any]]
) -> None:
    (trial,) = slow(dataset_dir, tmp_path, [0])
    seen: list[int] = []

    def kill() -> None:
        seen.append(len(epochs_of(trial)))
        os.kill(holder(trial), signal.SIGKILL)

    killer(lambda: len(epochs_of(trial)) >= 2, kill)
    assert LocalEngine([Slot()], retries=1).run([trial])
    assert epochs_of(trial) == list(range(1, EPOCHS + 1))
    assert trainings(trial) == 2
    record = json.loads((trial.folder / "run.json").read_text())
    assert record["resumed"][0]["after_epoch"] >= seen[0] - 1
    assert record["resumed"][0]["changed"] == {}
    assert evaluation(trial) == reference[trial.key]


def test_two_engines_on_one_folder_do_each_trial_once(
    dataset_dir: Path, tmp_path: Path, reference: dict[str, dict[str, Any]]
) -> None:
    trials = slow(dataset_dir, tmp_path, [0, 1])
    # Signals reach the main thread alone: the second engine is told of none.
    script = (
        "import sys, pickle\n"
        "from cryo_monai.sweeps.local_engine import LocalEngine, Slot\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(0 if LocalEngine([Slot()]).run(pickle.load(open(sys.argv[1], 'rb'))) else 1)\n"
    )
    import pickle

    (tmp_path / "other.py").write_text(script)
    (tmp_path / "trials.pickle").write_bytes(pickle.dumps(trials[::-1]))
    other = subprocess.Popen([sys.executable, tmp_path / "other.py", tmp_path / "trials.pickle"])
    assert LocalEngine([Slot()]).run(trials)
    assert other.wait(timeout=200) == 0
    for trial in trials:
        assert is_done(trial.folder)
        assert trainings(trial) == 1
        assert evaluation(trial) == reference[trial.key]


def test_one_of_two_processes_that_start_at_once_does_the_trial(dataset_dir: Path, tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, dataset_dir, {"seed": [3]})
    barrier = tmp_path / "go"
    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            while not barrier.exists():
                time.sleep(0.001)
            code = 99
            torch.set_num_threads(1)  # OpenMP's threads do not come along in a fork
            try:
                code = run_trial(trial)
            finally:
                os._exit(code)
        pids.append(pid)
    barrier.touch()
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    # The slower one finds it locked, or, when it is slower than the training, done.
    assert codes in ([0, ELSEWHERE], [0, 0])
    assert is_done(trial.folder)
    assert "resumed" not in json.loads((trial.folder / "run.json").read_text())


def test_the_orphan_of_a_dead_sweep_is_waited_for(dataset_dir: Path, tmp_path: Path) -> None:
    orphan, other = plan(tmp_path, dataset_dir, {"seed": [4, 5]})
    held = tmp_path / "held"
    pid = os.fork()
    if not pid:  # a trial that nobody looks after any more, and that takes its time
        with running(orphan.folder):
            held.touch()
            while not is_done(other.folder):
                time.sleep(0.05)
            time.sleep(1)
        os._exit(0)
    until(held.exists)
    assert outcome_of(orphan).state == "running"
    assert LocalEngine([Slot()]).run([orphan, other])
    os.waitpid(pid, 0)
    assert is_done(orphan.folder)
    assert trainings(orphan) == 1
    # It began only after the orphan had ended, which waited for the other.
    assert (orphan.folder / DONE).stat().st_mtime_ns > (other.folder / DONE).stat().st_mtime_ns


def test_a_done_run_is_not_taken_for_another(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {**TINY, "num_classes": 3, "dataset_dir": str(dataset_dir)}
    assert complete_run(SUBTOMOGRAMS, tmp_path, ids=ids)
    elsewhere = {"dataset_dir": str(tmp_path), "num_workers": 1, "cache_dir": str(tmp_path / "cache")}
    assert not complete_run(SUBTOMOGRAMS, tmp_path, ids={**ids, **elsewhere, "lr": str(TINY["lr"])})
    with pytest.raises(InputError, match=r"is done, with lr 0\.01, not 0\.5; give another folder"):
        complete_run(SUBTOMOGRAMS, tmp_path, ids={**ids, "lr": 0.5})
    assert is_done(tmp_path)
    assert failure_of(tmp_path) is None


def test_the_reason_of_a_failure_is_the_first_cause(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {**TINY, "num_classes": 3, "dataset_dir": str(dataset_dir), "train#trainer#max_epochs": 0}
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        complete_run(SUBTOMOGRAMS, tmp_path, ids=ids)
    failure = failure_of(tmp_path)
    assert failure is not None
    assert failure[0].startswith("ValueError: Argument max_epochs is invalid")


def test_a_trial_that_always_fails_is_reported_and_the_others_finish(dataset_dir: Path, tmp_path: Path) -> None:
    axes = {
        "kind": {"sound": {}, "diverging": {"ids": {"lr": 1e30}}, "dying": {"ids": DEADLY}},
        "seed": [0],
    }
    trials = plan(tmp_path, dataset_dir, axes)
    assert LocalEngine([Slot()], retries=1).run(trials)
    found = {trial.cell["kind"]: outcome_of(trial) for trial in trials}
    assert found["sound"].state == "done"
    assert found["diverging"].state == found["dying"].state == "failed"
    assert "the loss became" in found["diverging"].reason
    assert "\n" not in found["diverging"].reason
    assert found["dying"].reason == "its process was ended by SIGKILL (out of memory?); see log.txt in its folder"
    diverging = next(trial for trial in trials if trial.cell["kind"] == "diverging")
    assert trainings(diverging) == 1  # trying again would not help


def test_what_begins_from_a_failed_trial_fails_with_its_name(dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    content = {
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3},
        "axes": {"dataset": {"a": {}}, "initialisation": {"own": {"ids": {"weights": "pretrained:bad"}}}},
        "pretrained": {"bad": {"dataset": "a", "ids": {"lr": 1e30}}},
    }
    file.write_text(json.dumps(content))
    planner = Planner(read_sweep(file), tmp_path / "out", data={"a": dataset_dir})
    bad, trial = planner.plan(planner.cells())
    assert LocalEngine([Slot()]).run([bad, trial])
    assert outcome_of(trial).state == "failed"
    assert outcome_of(trial).reason == f"trial {bad.key}, whose weights it begins from, failed"


def test_a_signal_saves_what_runs_and_the_same_call_goes_on(
    dataset_dir: Path, tmp_path: Path, killer: Callable[..., None], reference: dict[str, dict[str, Any]]
) -> None:
    trials = slow(dataset_dir, tmp_path, [0, 1])
    killer(lambda: epochs_of(trials[0]), lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    assert not LocalEngine([Slot()]).run(trials)
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome_of(trials[0]).state == "stopped"
    assert outcome_of(trials[1]).state == "waiting"
    assert 0 < len(epochs_of(trials[0])) < EPOCHS
    assert LocalEngine([Slot()]).run(trials)
    assert {trial.key: evaluation(trial) for trial in trials} == reference


def test_a_signal_while_a_process_is_made_reaches_it(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = slow(dataset_dir, tmp_path, [0], max_epochs=LONG)
    engine = LocalEngine([Slot()])
    start = engine._context.Process.start

    def interrupted(process: Any) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(engine._context.Process, "start", interrupted)
    assert not engine.run([trial])
    assert outcome_of(trial).state in ("waiting", "stopped")


def test_what_was_stopped_goes_on_after_the_sweep_was_moved(dataset_dir: Path, tmp_path: Path) -> None:
    content = {
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3},
        "axes": {"dataset": {"a": {}}, "initialisation": {"own": {"ids": {"weights": "pretrained:start"}}}},
        "pretrained": {"start": {"dataset": "a", "ids": {"seed": 9}}},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(content))

    def trials_in(folder: Path) -> list[Trial]:
        planner = Planner(read_sweep(tmp_path / "sweep.json"), folder, data={"a": dataset_dir})
        return planner.plan(planner.cells())

    assert LocalEngine([Slot()]).run(trials_in(tmp_path / "before"))
    (tmp_path / "before").rename(tmp_path / "after")
    start, trial = trials_in(tmp_path / "after")
    assert outcome_of(start).state == outcome_of(trial).state == "done"
    (trial.folder / DONE).unlink()  # as if it had been stopped after its last epoch
    (trial.folder / "evaluation.json").unlink()
    assert LocalEngine([Slot()]).run([start, trial])
    assert outcome_of(trial).state == "done"


def test_a_signal_before_the_first_epoch_ends_with_the_code_of_a_stopped_run(dataset_dir: Path, tmp_path: Path) -> None:
    slow_start = {"initialize": ["$__import__('time').sleep(60)"]}
    (trial,) = plan(tmp_path, dataset_dir, {"kind": {"slow": {"ids": slow_start}}})
    pid = os.fork()
    if not pid:
        code = 99
        torch.set_num_threads(1)
        try:
            code = run_trial(trial)
        finally:
            os._exit(code)
    until(lambda: is_locked(trial.folder / LOCK))
    time.sleep(0.5)
    os.kill(pid, signal.SIGUSR1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == STOPPED
    assert not (trial.folder / FAILURE).exists()


def test_torn_marks_are_made_again(dataset_dir: Path, tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, dataset_dir, {"seed": [6]})
    engine = LocalEngine([Slot()])
    assert engine.run([trial])
    whole = (trial.folder / DONE).read_text()
    (trial.folder / DONE).write_text(whole[:10])
    (trial.folder / FAILURE).write_text('{"reas')
    digests = tmp_path / "out" / "data_digests.json"
    digests.write_text(digests.read_text()[:20])
    (again,) = plan(tmp_path, dataset_dir, {"seed": [6]})
    assert again.key == trial.key
    assert outcome_of(again).state == "stopped"
    assert LocalEngine([Slot()]).run([again])
    assert (trial.folder / DONE).read_text() == whole
    assert outcome_of(again).state == "done"


def test_a_killed_sweep_goes_on_where_it_was(dataset_dir: Path, tmp_path: Path) -> None:
    planned = slow(dataset_dir, tmp_path, [0, 1], max_epochs=LONG)
    assert LocalEngine([Slot()]).run(planned)
    reference = {trial.key: evaluation(trial) for trial in planned}
    trials = [replace(trial, folder=tmp_path / "swept" / "trials" / trial.key) for trial in planned]
    command = [sys.executable, "-m", "cryo_monai", "sweep", tmp_path / "sweep.json", tmp_path / "swept"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        until(lambda: driver.poll() is not None or epochs_of(trials[0]))
        orphan = holder(trials[0])
        driver.kill()
    # Its trials notice, save and end.
    until(lambda: not is_locked(trials[0].folder / LOCK), 60)
    done = len(epochs_of(trials[0]))
    assert 0 < done < LONG
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        until(lambda: driver.poll() is not None or epochs_of(trials[1]))
        assert holder(trials[1]) != orphan
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=60) == STOPPED
    assert epochs_of(trials[0]) == list(range(1, LONG + 1))
    assert json.loads((trials[0].folder / "run.json").read_text())["resumed"][0]["after_epoch"] == done
    assert outcome_of(trials[1]).state == "stopped"
    assert LocalEngine([Slot()]).run(trials)
    assert {trial.key: evaluation(trial) for trial in trials} == reference


@pytest.mark.parametrize(
    ("line", "code", "requeued"), [("sleep 60", 138, True), ("exit 75", 75, True), ("false", 1, False)]
)
def test_the_documented_array_job_requeues_what_was_stopped(
    tmp_path: Path, line: str, code: int, requeued: bool
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text()
    script = next(part.partition("\n")[2] for part in page.split("```")[1::2] if "SLURM_ARRAY_TASK_ID}p" in part)
    (tmp_path / "trial.sbatch").write_text(script)
    (tmp_path / "trials.txt").write_text((f"bash -c '{line}'" if " 75" in line else line) + "\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $* >> {tmp_path}/requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "trial.sbatch", "trials.txt"], cwd=tmp_path, env=os.environ | slurm) as job:
        if code == 138:
            until(lambda: any("sleep" in name for name in children_of(job.pid)))
            job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == code
    assert (tmp_path / "requeued").exists() == requeued


def children_of(pid: int) -> list[str]:
    """Names of the processes that a process has started."""
    listed = subprocess.run(["ps", "-o", "comm=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.split()
