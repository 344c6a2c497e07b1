"""Sweeps through Ray: what is killed goes on elsewhere, and nothing is done twice. With -m slow on real Rays."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import SUBTOMOGRAMS, TINY

from cryo_monai.completed_runs import is_done, note_failure
from cryo_monai.errors import InputError
from cryo_monai.folders import LOCK, is_locked, locked
from cryo_monai.sweeps.plans import Planner, Trial
from cryo_monai.sweeps.ray_clusters import check_ray, knock
from cryo_monai.sweeps.ray_engine import RayEngine
from cryo_monai.sweeps.ray_jobs import Job, Orders, blindness, missing
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.sweeps.trials import ELSEWHERE, FAILED, STOPPED, outcome_of

EPOCHS = 8
DRIVER = """
import pickle, sys
from cryo_monai.sweeps.ray_engine import RayEngine
if __name__ == "__main__":
    trials = pickle.load(open(sys.argv[1], "rb"))
    engine = RayEngine(sys.argv[2], workers=int(sys.argv[3]))
    sys.exit(0 if engine.run(trials) else 75)
"""
NODES = """
import os, sys
os.environ["RAY_worker_niceness"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
print(cluster.address, *raylets, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
slow = pytest.mark.slow


def plan(folder: Path, data: Path, axes: dict[str, Any], **ids: Any) -> list[Trial]:
    file = folder / "sweep.json"
    content = {"bundle": str(SUBTOMOGRAMS), "ids": {**TINY, "num_classes": 3, "dataset_dir": str(data), **ids}}
    file.write_text(json.dumps({**content, "axes": axes}))
    planner = Planner(read_sweep(file), folder / "out", data={})
    return planner.plan(planner.cells())


def long(dataset_dir: Path, folder: Path, seeds: list[int]) -> list[Trial]:
    """Trials that a test can interrupt."""
    return plan(folder, dataset_dir, {"seed": seeds}, max_epochs=EPOCHS, batch_size=2, clip_size=[16, 32, 32])


def epochs_of(trial: Trial) -> list[int]:
    try:
        content = json.loads((trial.folder / "metrics.json").read_text())
    except FileNotFoundError:
        return []
    return [row["epoch"] for row in content["history"]]


def trainings(trial: Trial) -> int:
    """How many times a training of this trial began or went on."""
    return (trial.folder / "log.txt").read_text().count("initialisation: ")


def resumptions(trial: Trial) -> list[int]:
    """After which epochs a trial went on."""
    record = json.loads((trial.folder / "run.json").read_text())
    return [entry["after_epoch"] for entry in record.get("resumed", [])]


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not come about"
        time.sleep(0.02)


def holder(trial: Trial) -> int:
    """The process that is at a trial."""
    return int((trial.folder / LOCK).read_text().split()[1])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    below = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_child(p, pid)]
    return [*below, *(deeper for child in below for deeper in descendants(child))]


def _is_child(process: Path, pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return parent(int(process.name)) == pid
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a driver of these trials in a process of its own."""
    drivers: list[subprocess.Popen[str]] = []
    (tmp_path / "driver.py").write_text(DRIVER)

    def begin(trials: list[Trial], address: str = "", workers: int = 1) -> subprocess.Popen[str]:
        (tmp_path / "trials.pickle").write_bytes(pickle.dumps(trials))
        arguments = [sys.executable, tmp_path / "driver.py", tmp_path / "trials.pickle", address, str(workers)]
        drivers.append(
            subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        )
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.kill()
        driver.communicate()


def finish(driver: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a driver, and return what it printed."""
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == code, err
    return out + err


def test_orders_reach_the_trial_that_they_name_or_all(tmp_path: Path) -> None:
    orders = Orders.written(tmp_path)
    assert not orders.tell_to_stop("a")
    orders.stop("a")
    assert orders.tell_to_stop("a")
    assert not orders.tell_to_stop("b")
    orders.stop()
    assert orders.tell_to_stop("b")


def test_a_node_with_another_folder_of_that_name_is_blind(tmp_path: Path) -> None:
    orders = Orders.written(tmp_path)
    assert blindness(orders) == ""
    Orders.written(tmp_path)  # another machine's
    assert blindness(orders).startswith(f"{tmp_path}: not seen on ")
    orders.path.unlink()
    assert not orders.tell_to_stop("a")
    assert "\n" not in blindness(orders)


def test_a_missing_bundle_is_named_with_the_node(tmp_path: Path) -> None:
    assert missing([str(tmp_path)]) == ""
    assert missing([str(tmp_path), str(tmp_path / "bundle")]).startswith(f"{tmp_path}/bundle: not there on ")


def test_workers_import_neither_torch_nor_monai() -> None:
    code = (
        "import sys, cryo_monai.sweeps.ray_jobs, cryo_monai.folders\n"
        "assert not {'torch', 'monai', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'not installed .*pip install "cryo-monai\[sweep\]"$'):
        check_ray()


class _Old:
    __version__ = "2.53.0"
    tune = None


def test_an_old_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", _Old)
    monkeypatch.setitem(sys.modules, "ray.tune", _Old)
    with pytest.raises(InputError, match=r"Ray 2\.53\.0 is older than 2\.54; pip install"):
        check_ray()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayEngine]:
    """Engines that have not looked for Ray."""
    monkeypatch.setattr("cryo_monai.sweeps.ray_engine.check_ray", lambda: None)
    return RayEngine


def test_a_client_address_is_refused(engine: Callable[..., RayEngine]) -> None:
    with pytest.raises(InputError, match="--address auto"):
        engine("ray://head:10001")


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=f"--address 127.0.0.1:{port}: no Ray cluster there"):
        knock(f"127.0.0.1:{port}")


def test_nodes_are_shared_out_among_trials(engine: Callable[..., RayEngine]) -> None:
    none = float("inf")
    assert engine()._share([{"CPU": 8}]) == ({"cpu": 8}, none)
    assert engine(workers=3)._share([{"CPU": 8}, {"CPU": 16}]) == ({"cpu": 2}, none)
    assert engine(workers=4)._share([{"CPU": 2}]) == ({"cpu": 0.5}, none)
    gpus = [{"CPU": 16, "GPU": 4}, {"CPU": 64}]
    assert engine()._share(gpus) == ({"gpu": 1, "cpu": 4}, none)
    assert engine(trials_per_gpu=2, workers=3)._share(gpus) == ({"gpu": 0.5, "cpu": 2}, 3)


def trial(folder: Path, key: str, after: tuple[str, ...] = ()) -> Trial:
    (folder / key).mkdir(parents=True, exist_ok=True)
    return Trial(key, {"seed": 0}, folder / key, "bundle", (), {}, 1, 1.0, after)


def finished(trial: Trial) -> None:
    from cryo_monai.fetching import sha256_of

    (trial.folder / "evaluation.json").write_text("{}")
    (trial.folder / "DONE").write_text(json.dumps({"evaluation_sha256": sha256_of(trial.folder / "evaluation.json")}))


def given(engine: RayEngine, trials: list[Trial], folder: Path) -> RayEngine:
    """An engine that is at these trials, but for Ray."""
    engine._waiting, engine._by_key = list(trials), {trial.key: trial for trial in trials}
    engine._orders = Orders.written(folder)
    return engine


def test_trials_wait_for_those_that_they_come_after(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    first, second = trial(tmp_path, "first"), trial(tmp_path, "second", ("first",))
    one = given(engine(), [second, first], tmp_path)
    assert one._take() == "first"
    assert one._take() is None
    finished(first)
    one._hear("first", {"code": 0})
    assert one._take() == "second"
    finished(second)
    one._hear("second", {"code": 0})
    assert one._take() == "FINISHED"


def test_what_another_driver_has_is_looked_at_again_and_costs_no_attempt(
    engine: Callable[..., RayEngine], tmp_path: Path
) -> None:
    held = trial(tmp_path, "held")
    one = given(engine(retries=0), [held], tmp_path)
    with locked(held.folder / LOCK, "held"):
        assert one._take() is None
    for answer in ({"refusal": "locked", "reason": ""}, {"code": ELSEWHERE}):
        assert one._take() == "held"
        one._hear("held", answer)
    assert one._take() == "held"
    assert one._attempts["held"] == 1


def test_dead_workers_are_replaced_so_many_times(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    deadly, other = trial(tmp_path, "deadly"), trial(tmp_path, "other")
    one = given(engine(retries=1), [deadly, other], tmp_path)
    assert one._take() == "deadly"
    one._hear("deadly", {})
    assert one._take() == "other"
    assert one._take() == "deadly"
    one._hear("deadly", {})
    assert one._take() is None
    assert outcome_of(deadly).reason == "its Ray worker or node died 2 times (out of memory?)"
    one._hear("other", {"code": STOPPED})  # its node was told to end
    assert one._take() == "other"


def test_what_a_user_has_to_mend_is_not_tried_again(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    wrong, lacking = trial(tmp_path, "wrong"), trial(tmp_path, "lacking")
    one = given(engine(retries=3), [wrong, lacking], tmp_path)
    assert [one._take(), one._take()] == ["wrong", "lacking"]
    note_failure(wrong.folder, "no such class")
    one._hear("wrong", {"code": FAILED})
    one._hear("lacking", {"refusal": "lack", "reason": "bundle: not there on node1; put it where every node sees it"})
    assert one._take() == "FINISHED"
    assert outcome_of(lacking).reason.startswith("bundle: not there on node1")


def test_a_blind_node_ends_the_sweep(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    one = given(engine(), [trial(tmp_path, "a"), trial(tmp_path, "b")], tmp_path)
    assert one._take() == "a"
    one._hear("a", {"refusal": "blind", "reason": "out: not seen on node1"})
    assert one._take() == "FINISHED"
    assert isinstance(one._error, InputError)


def test_a_trial_is_packed_with_what_it_begins_from(tmp_path: Path) -> None:
    whole = Trial("k", {}, tmp_path, "bundle", ("overlay.json",), {"dataset_dir": "data", "lr": 1}, 1, 1.0)
    job = Job.of(whole, 3)
    assert job.places == ("bundle", "overlay.json", "data")
    assert pickle.loads(job.content) == whole


@slow
def test_a_killed_worker_loses_the_epoch_in_flight_at_most(
    dataset_dir: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    pytest.importorskip("ray")
    trials = long(dataset_dir, tmp_path, [0, 1])
    driver = start(trials)
    until(lambda: len(epochs_of(trials[0])) >= 2)
    at_kill = len(epochs_of(trials[0]))
    worker = parent(parent(holder(trials[0])))  # above the server that forks trials
    os.kill(worker, signal.SIGKILL)
    finish(driver)
    for each in trials:
        assert is_done(each.folder)
        assert epochs_of(each) == list(range(1, EPOCHS + 1))
    assert len(resumptions(trials[0])) == 1
    assert resumptions(trials[0])[0] >= at_kill - 1
    assert [trainings(each) for each in trials] == [2, 1]
    assert not (tmp_path / "out" / "ray").exists()


@slow
def test_a_killed_trial_and_one_that_always_dies(dataset_dir: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    pytest.importorskip("ray")
    deadly = {"initialize": ["$__import__('os').kill(__import__('os').getpid(), 9)"]}
    axes = {"kind": {"dying": {"ids": deadly}, "diverging": {"ids": {"lr": 1e30}}, "sound": {}}}
    trials = plan(tmp_path, dataset_dir, axes)
    finish(start(trials))
    dying, diverging, sound = [outcome_of(each) for each in trials]
    assert dying.reason == "its process was ended by SIGKILL (out of memory?); see log.txt in its folder"
    assert "the loss became" in diverging.reason
    assert trainings(trials[1]) == 1
    assert sound.state == "done"


@slow
def test_a_signal_saves_what_runs_and_a_killed_driver_too(
    dataset_dir: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    pytest.importorskip("ray")
    trials = long(dataset_dir, tmp_path, [0])
    driver = start(trials)
    until(lambda: len(epochs_of(trials[0])) >= 1)
    driver.send_signal(signal.SIGINT)
    assert finish(driver, 75) == "saving what runs; once more ends it at once\n"
    assert outcome_of(trials[0]).state == "stopped"
    saved = len(epochs_of(trials[0]))
    assert saved < EPOCHS

    driver = start(trials)
    until(lambda: len(epochs_of(trials[0])) > saved + 1)
    at_kill, pid = len(epochs_of(trials[0])), holder(trials[0])
    driver.kill()
    until(lambda: not is_locked(trials[0].folder / LOCK))
    until(lambda: not Path(f"/proc/{pid}").exists())
    driver = start(trials)
    finish(driver)
    assert is_done(trials[0].folder)
    assert epochs_of(trials[0]) == list(range(1, EPOCHS + 1))
    assert resumptions(trials[0])[0] == saved
    assert resumptions(trials[0])[1] >= at_kill - 1
    assert trainings(trials[0]) == 3


@slow
def test_signals_to_every_process_at_once_end_it_soon(
    dataset_dir: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    pytest.importorskip("ray")
    trials = long(dataset_dir, tmp_path, [0])
    driver = start(trials)
    until(lambda: len(epochs_of(trials[0])) >= 2)
    at_kill = len(epochs_of(trials[0]))
    for pid in [*descendants(driver.pid), driver.pid]:  # as a scheduler does at the time limit
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    finish(driver, 75)
    assert time.monotonic() - began < 60
    assert not is_locked(trials[0].folder / LOCK)
    finish(start(trials))
    assert resumptions(trials[0])[0] >= at_kill - 1
    assert epochs_of(trials[0]) == list(range(1, EPOCHS + 1))


@slow
def test_a_killed_node_loses_the_epoch_in_flight_at_most(
    dataset_dir: Path, tmp_path: Path, start: Callable[..., Any]
) -> None:
    pytest.importorskip("ray")
    trials = long(dataset_dir, tmp_path, [0, 1, 2])
    (tmp_path / "nodes.py").write_text(NODES)
    cluster = subprocess.Popen(
        [sys.executable, tmp_path / "nodes.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert cluster.stdout is not None
        address, *raylets = cluster.stdout.readline().split()
        driver = start(trials, address)
        until(lambda: len(epochs_of(trials[0])) >= 2)
        victim = holder(trials[0])
        raylet = next(int(pid) for pid in raylets if victim in descendants(int(pid)))
        at_kill = len(epochs_of(trials[0]))
        for pid in [raylet, *descendants(raylet)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        finish(driver)
    finally:
        cluster.communicate("", timeout=120)
    for each in trials:
        assert is_done(each.folder)
        assert epochs_of(each) == list(range(1, EPOCHS + 1))
    assert resumptions(trials[0])[0] >= at_kill - 1
    assert [trainings(each) for each in trials] == [2, 1, 1]


def block(text: str, mark: str) -> str:
    """The code block of a page that has this mark."""
    return next(part.partition("\n")[2] for part in text.split("```")[1::2] if mark in part)


@slow
def test_the_array_job_of_the_documentation_saves_requeues_and_goes_on(dataset_dir: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text()
    (tmp_path / "trial.sbatch").write_text(block(page, "SLURM_ARRAY_TASK_ID"))
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $* >> {tmp_path}/requeued\n")
    (tmp_path / "cryo-monai").write_text(f'#!/bin/bash\nexec {sys.executable} -m cryo_monai "$@"\n')
    for name in ("scontrol", "cryo-monai"):
        (tmp_path / name).chmod(0o755)
    trials = long(dataset_dir, tmp_path, [0, 1])
    (tmp_path / "trials.txt").write_text("".join(each.command() + "\n" for each in trials))
    setting = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7"}

    def job(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", tmp_path / "trial.sbatch", tmp_path / "trials.txt"],
            env=setting | {"SLURM_ARRAY_TASK_ID": str(number)},
        )

    first, second = job(1), job(2)
    until(lambda: len(epochs_of(trials[0])) >= 1)
    first.send_signal(signal.SIGUSR1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=240) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7_1\n"
    saved = len(epochs_of(trials[0]))
    assert 0 < saved < EPOCHS
    again = job(1)
    assert again.wait(timeout=400) == second.wait(timeout=400) == 0
    assert all(is_done(each.folder) for each in trials)
    assert resumptions(trials[0]) == [saved]
    assert epochs_of(trials[0]) == list(range(1, EPOCHS + 1))


def test_lines_of_trials_that_come_after_others_are_told_apart(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "slurm.md").read_text()
    script = "".join(f"{line}\n" for line in block(page, "grep -vE").splitlines() if line.startswith("grep"))
    before = trial(tmp_path / "trials", "0123456789abcdef")
    weights = str(before.folder / "models" / "model.pt")
    after = Trial("f" * 16, {}, tmp_path / "f", "bundle", (), {"weights": weights, "lr": 0.1}, 1, 1.0, (before.key,))
    (tmp_path / "trials.txt").write_text(f"{before.command()}\n{after.command()}\n")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "first.txt").read_text() == before.command() + "\n"
    assert (tmp_path / "then.txt").read_text() == after.command() + "\n"
