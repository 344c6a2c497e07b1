"""Training over several processes gives what one process gives; torchrun is the real one, on CPUs with gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIERS, ROOT, SUBTOMOGRAMS, TINY
from ignite.engine import Engine, Events
from torch import nn

from cryo_monai import parallel
from cryo_monai.checkpoints import CheckpointHandler, load_verified
from cryo_monai.errors import CryoMonaiError
from cryo_monai.metrics import gathered_sums, spread_sums
from cryo_monai.rank_norms import RankBatchNorm, normalise_over_ranks
from cryo_monai.workflows import load_workflow

OVERLAY = SUBTOMOGRAMS / "configs" / "multi_gpu_train.json"
# Float32 sums in another order: at this learning rate the differences stay small over these few steps. At 0.01 the
# same network amplifies one change of 1e-7 to 1e-1 within five.
SIZES = {**TINY, "precision": "float32", "lr": 0.0003, "num_classes": 3}
METRICS = ("train_loss", "train_accuracy", "val_accuracy", "val_auc", "val_loss")
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def uneven(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 volumes to train with and 5 to validate: no two ranks have equal shares."""
    folder = tmp_path_factory.mktemp("uneven") / "data"
    shutil.copytree(dataset_dir, folder)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"].append(content["validation"].pop())
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def ids(data: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    places = {"dataset_dir": str(data), "output_dir": str(run_dir), "ckpt_dir": str(run_dir / "models")}
    return {**SIZES, **places, "device": "cpu", **more}


def train_alone(data: Path, run_dir: Path, hook: Callable[[Engine], object] | None = None, **more: Any) -> None:
    """Train in this process, with the overlay, which then changes nothing."""
    workflow = load_workflow(SUBTOMOGRAMS, "train", overlays=[OVERLAY], overrides=ids(data, run_dir, **more))
    workflow.initialize()
    if hook is not None:
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_STARTED, hook)
    workflow.run()


@contextmanager
def torchrun(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    with (
        log.open("wb") as stream,
        subprocess.Popen([*launcher, *command], stderr=stream, stdout=stream, env=environment) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def bundle_run(data: Path, run_dir: Path, **more: Any) -> list[str]:
    """The command a user types after ``torchrun``."""
    run_dir.mkdir(exist_ok=True)
    overlay = run_dir / "sizes.json"
    overlay.write_text(json.dumps(SIZES))
    files = str([str(SUBTOMOGRAMS / "configs" / "train.json"), str(overlay), str(OVERLAY)])
    given = {"bundle_root": SUBTOMOGRAMS, **{k: v for k, v in ids(data, run_dir, **more).items() if k not in SIZES}}
    given |= more
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["-m", "monai.bundle", "run", "training", "--config_file", files, *options]


def workers(agent: subprocess.Popen[bytes]) -> list[int]:
    """Return the process of each rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0") if parent == agent.pid else []
        except (OSError, IndexError):
            continue
        found |= {int(v[5:]): int(folder.name) for v in variables if v.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def wait_for_epoch(run_dir: Path, process: subprocess.Popen[bytes], log: Path, epoch: int) -> None:
    for _ in range(2400):
        table = run_dir / "metrics.csv"
        if table.exists() and len(table.read_text().splitlines()) > epoch:
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def history(run_dir: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run_dir / "metrics.json").read_text())["history"]
    return rows


def assert_same_training(one: Path, other: Path) -> None:
    """Metrics of every epoch, and the last weights, within TOLERANCE."""
    rows, others = history(one), history(other)
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in others]
    for row, same in zip(rows, others, strict=True):
        assert {name: row[name] for name in METRICS} == pytest.approx(
            {name: same[name] for name in METRICS}, abs=TOLERANCE
        )
    weights, same_weights = (load_verified(run / "models" / "last.pt")["network"] for run in (one, other))
    assert weights.keys() == same_weights.keys()
    for name, tensor in weights.items():
        scale = max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(
            tensor, same_weights[name], rtol=0, atol=TOLERANCE * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def told(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if "error: " in line]


def names(run_dir: Path) -> list[str]:
    return sorted(p.name.split(".")[0] for p in run_dir.rglob("*") if p.name != "sizes.json")


def test_two_ranks_compute_what_one_process_does(uneven: Path, tmp_path: Path) -> None:
    """Batch norm, gradients, order, gathering and refusals (rank_checks.py); then a training with a frozen stem."""
    more = {"max_epochs": 2, "fine_tuning#freeze": {"stem": 1}, "fine_tuning#layer_decay": 0.7}
    log = tmp_path / "log.txt"
    script = [str(ROOT / "tests" / "rank_checks.py"), str(SUBTOMOGRAMS), str(OVERLAY)]
    with torchrun(*script, json.dumps(ids(uneven, tmp_path / "two", **more)), log=log) as process:
        process.wait(timeout=120)
    text = log.read_text()
    assert process.returncode == 0, text
    assert text.count("all checks passed") == 1
    # One rank alone writes, and the end is clean.
    assert text.count("initialisation: random") == 1
    assert "Warning" not in text.replace("PYTHONWARNINGS", ""), text
    train_alone(uneven, tmp_path / "one", **more)
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert_same_training(tmp_path / "two", tmp_path / "one")
    environments = [json.loads((tmp_path / n / "metrics.json").read_text())["environment"] for n in ("one", "two")]
    assert [environment["ranks"] for environment in environments] == [1, 2]


def test_a_signal_to_torchrun_stops_all_ranks_and_one_process_goes_on(uneven: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    with torchrun(*bundle_run(uneven, run_dir, max_epochs=100), log=log) as process:
        wait_for_epoch(run_dir, process, log, 1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    text = log.read_text()
    assert process.returncode == 1  # torchrun's own
    assert text.count("SIGTERM: saved") == 1, text
    assert not told(log)
    stopped = load_verified(run_dir / "models" / "last.pt")
    epochs = stopped["iteration"] // 2 + 1
    train_alone(uneven, run_dir, resume=True, max_epochs=epochs)
    train_alone(uneven, tmp_path / "whole", max_epochs=epochs)
    assert_same_training(run_dir, tmp_path / "whole")


def test_two_ranks_go_on_where_one_process_stopped_and_survive_the_loss_of_one(uneven: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"

    def stop(engine: Engine) -> None:
        if engine.state.iteration == 3:  # the first of two in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train_alone(uneven, run_dir, stop)
    assert load_verified(run_dir / "models" / "last.pt")["iteration"] == 3
    with torchrun(*bundle_run(uneven, run_dir, max_epochs=100, resume=True), log=log) as process:
        wait_for_epoch(run_dir, process, log, 3)
        os.kill(workers(process)[1], signal.SIGKILL)
        start = time.monotonic()
        process.wait(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode == 1
    (line,) = told(log)
    assert "another rank is gone, killed or out of memory; go on with --resume True" in line
    epochs = load_verified(run_dir / "models" / "last.pt")["iteration"] // 2 + 1
    assert len(history(run_dir)) <= epochs  # at most the epoch in flight is lost
    train_alone(uneven, run_dir, resume=True, max_epochs=epochs)
    train_alone(uneven, tmp_path / "whole", max_epochs=epochs)
    assert_same_training(run_dir, tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_failed_rank_is_not_ended_before_it_has_said_why(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "num_ranks", lambda: ranks)
    before = signal.getsignal(signal.SIGTERM)
    try:
        parallel.keep_last_word()
        assert signal.getsignal(signal.SIGTERM) == (before if ranks == 1 else signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_bad_data_end_all_ranks_with_one_line(uneven: Path, tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log.txt"
    shutil.copytree(uneven, data)
    damaged = data / json.loads((data / "dataset.json").read_text())["training"][0]["image"]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with torchrun(*bundle_run(data, tmp_path / "run"), log=log) as process:
        process.wait(timeout=120)
    assert process.returncode == 1
    (line,) = told(log)
    assert line.endswith(f"{damaged}: truncated, 100 of 17408 bytes are missing")
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize("bundle", CLASSIFIERS, ids=lambda p: p.name)
def test_the_overlay_fits_its_bundle(bundle: Path) -> None:
    overlay = bundle / "configs" / "multi_gpu_train.json"
    assert overlay.read_text() == OVERLAY.read_text()
    content = json.loads(overlay.read_text())
    parser = load_workflow(bundle, "train", overlays=[overlay]).parser
    assert all(parser[key] == value for key, value in content.items() if key != "_desc_")
    # None of ignite's own, which wants equal shares.
    validate = parser["validate"]
    targets = {m["_target_"] for kind in ("key_metric", "additional_metrics") for m in validate[kind].values()}
    assert targets == {"cryo_monai.EpochMetric"}
    # Evaluation has ids of its own; training's overlay must leave them.
    own = json.loads((bundle / "configs" / "evaluate.json").read_text())
    assert not set(own) & set(content) - {"_desc_"}


def test_the_overlay_passes_monais_checks_without_torchrun(uneven: Path, tmp_path: Path) -> None:
    workflow = load_workflow(SUBTOMOGRAMS, "train", overlays=[OVERLAY], overrides=ids(uneven, tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.parser.get_parsed_content("train#trainer").network is workflow.parser.get_parsed_content("network")


def test_one_process_stands_for_all_ranks() -> None:
    rows = torch.rand(3, 2)
    assert parallel.is_first()
    assert (parallel.largest(3), parallel.mean(2.5)) == (3, 2.5)
    assert parallel.in_order(rows) is rows
    assert parallel.rank_share(7, 3) == 7
    assert list(parallel.rank_indices(range(3))) == [0, 1, 2]
    network = nn.BatchNorm3d(3)
    assert parallel.average_gradients(parallel.over_ranks(network)) is network
    assert type(network) is nn.BatchNorm3d


def test_batch_norm_over_ranks_is_batch_norm_where_there_are_none() -> None:
    torch.manual_seed(0)
    volumes = torch.randn(4, 3, 2, 2, 2)
    plain, other = nn.Sequential(nn.BatchNorm3d(3)), nn.Sequential(nn.BatchNorm3d(3))
    normalise_over_ranks(other)
    assert type(other[0]) is RankBatchNorm
    assert torch.equal(other(volumes), plain(volumes))
    for one, same in zip(plain.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, same)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parallel.rank_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CryoMonaiError, match="4 processes for 2 GPUs on this machine; give --nproc_per_node 2"):
        parallel.rank_device()


def test_sums_of_a_metric_fit_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = gathered_sums({"key": [{"right": torch.tensor(3), "n": 4}, {"right": torch.tensor(2), "n": 4}]})
    assert saved == {"key": [{"right": torch.tensor(5), "n": 8}]}
    assert spread_sums(saved) == saved
    monkeypatch.setattr("cryo_monai.metrics.num_ranks", lambda: 3)
    zeros = {"right": torch.tensor(0), "n": 0}
    assert spread_sums(saved) == {"key": [{"right": torch.tensor(5), "n": 8}, zeros, zeros]}


def test_one_voice_ends_a_later_failure_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "failed_first", lambda: False)
    with pytest.raises(SystemExit) as ended, parallel.one_voice():
        raise CryoMonaiError("told by another rank")
    assert ended.value.code == 1
    monkeypatch.setattr(parallel, "failed_first", lambda: True)
    with pytest.raises(CryoMonaiError, match="another rank is gone"), parallel.one_voice():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    with pytest.raises(RuntimeError, match="other"), parallel.one_voice():
        raise RuntimeError("some other failure")


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when Slurm signals every process of a step, and torchrun passes on its own."""
    times, killed = iter([10.0, 10.5, 11.5]), []
    monkeypatch.setattr("cryo_monai.checkpoints.time.monotonic", lambda: next(times))
    monkeypatch.setattr("cryo_monai.checkpoints.os.kill", lambda process, number: killed.append(number))
    parts: dict[str, Any] = dict.fromkeys(("network", "optimizer", "scheduler", "history", "sampler"))
    handler = CheckpointHandler(tmp_path, **parts, batch_size=2, class_names=[])
    handler._on_signal(signal.SIGTERM, None)
    handler._on_signal(signal.SIGTERM, None)
    assert handler.signal == signal.SIGTERM
    assert killed == []
    handler._on_signal(signal.SIGTERM, None)
    assert killed == [signal.SIGTERM]
