import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY, training
from ignite.engine import Engine, Events

from cryo_monai import history
from cryo_monai.checkpoints import EXIT_CODE, CheckpointHandler, load_checkpoint, load_verified
from cryo_monai.errors import CryoMonaiError, DivergedError, InputError, unwrapped_errors
from cryo_monai.files import atomic_save
from cryo_monai.networks import VideoClassifier, has_fast_bfloat16

EPOCHS = 3


class Killed(BaseException):
    """Stands for a kill -9 within this process: nothing after it runs."""


def run(dataset_dir: Path, run_dir: Path, hook: Callable[[Engine], object] | None = None, **ids: object) -> None:
    """Train, calling ``hook`` after each iteration."""
    workflow = training(dataset_dir, run_dir, **{"max_epochs": EPOCHS, "batch_size": 4, **ids})
    workflow.initialize()
    if hook is not None:
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, hook)
    with unwrapped_errors():
        workflow.run()


def final_state(run_dir: Path) -> dict[str, Any]:
    return load_verified(run_dir / "models" / "last.pt")


def assert_bitwise_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in ("seconds", "random_state"):
                assert_bitwise_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_bitwise_equal(a, b)
    else:
        assert one == other


@pytest.fixture(scope="module")
def uninterrupted(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(dataset_dir, folder, dropout=0.2)
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_number_of_workers_changes_nothing(
    dataset_dir: Path, uninterrupted: Path, tmp_path: Path, num_workers: int
) -> None:
    run(dataset_dir, tmp_path, num_workers=num_workers, dropout=0.2)
    assert_bitwise_equal(final_state(tmp_path), final_state(uninterrupted))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("iteration", [2, 4, 5, 7])
@pytest.mark.parametrize("how", ["kill", "SIGTERM"])
def test_interrupt_and_resume_equals_no_interruption_bitwise(
    dataset_dir: Path, uninterrupted: Path, tmp_path: Path, num_workers: int, iteration: int, how: str
) -> None:
    # 18 volumes in batches of 4 without the rest: 4 iterations an epoch. A signal in 4 or 7 is seen at an end.
    def stop(engine: Engine) -> None:
        if engine.state.iteration == iteration:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((Killed, SystemExit)) as caught:
        run(dataset_dir, tmp_path, stop, num_workers=num_workers, dropout=0.2)
    assert signal.getsignal(signal.SIGTERM) == before
    if how == "SIGTERM":
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == EXIT_CODE
        # The signal comes after the checkpoint handler of its iteration: one more is done, or the epoch ends.
        assert final_state(tmp_path)["iteration"] == iteration + bool(iteration % 4)
    run(dataset_dir, tmp_path, num_workers=num_workers, resume=True, dropout=0.2)
    assert_bitwise_equal(final_state(tmp_path), final_state(uninterrupted))
    assert_bitwise_equal(
        load_verified(tmp_path / "models" / "model.pt"), load_verified(uninterrupted / "models" / "model.pt")
    )
    rows = [list(csv.DictReader((f / "metrics.csv").read_text().splitlines())) for f in (tmp_path, uninterrupted)]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]


def test_another_seed_gives_another_run(dataset_dir: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run(dataset_dir, tmp_path, seed=1, dropout=0.2)
    one, other = final_state(tmp_path)["network"], final_state(uninterrupted)["network"]
    assert not torch.equal(one["head.1.weight"], other["head.1.weight"])


def test_resume_refuses_another_recipe_and_lists_the_differences(
    dataset_dir: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "last.pt").write_bytes((uninterrupted / "models" / "last.pt").read_bytes())
    with pytest.raises(InputError, match=r"lr: 0\.01 -> 0\.5.*batch_size: 4 -> 2|batch_size.*lr"):
        run(dataset_dir, tmp_path, resume=True, lr=0.5, batch_size=2)


def test_resume_without_anything_to_resume_starts_anew(dataset_dir: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run(dataset_dir, tmp_path, resume=True, dropout=0.2)
    assert_bitwise_equal(final_state(tmp_path), final_state(uninterrupted))


def test_a_new_run_keeps_the_last_state_of_an_old_one(dataset_dir: Path, tmp_path: Path) -> None:
    run(dataset_dir, tmp_path)
    old = final_state(tmp_path)
    run(dataset_dir, tmp_path, seed=1)
    assert_bitwise_equal(load_verified(tmp_path / "models" / "superseded.pt"), old)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(
    dataset_dir: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run(dataset_dir, tmp_path, dropout=0.2)
    last = tmp_path / "models" / "last.pt"
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 1  # one bit of rot
    last.write_bytes(raw)
    with pytest.raises(InputError, match=r"last\.pt: "):
        load_verified(last)
    run(dataset_dir, tmp_path, resume=True, dropout=0.2)
    assert_bitwise_equal(final_state(tmp_path), final_state(uninterrupted))


def test_a_loss_that_is_not_finite_stops_before_the_step(dataset_dir: Path, tmp_path: Path) -> None:
    workflow = training(dataset_dir, tmp_path, max_epochs=EPOCHS)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    network = workflow.parser.get_parsed_content("network")
    seen = {}

    def poison(engine: Engine) -> None:
        if engine.state.iteration == 3:
            seen.update({key: value.clone() for key, value in network.named_parameters()})
            engine.state.batch["image"][:] = torch.nan

    trainer.add_event_handler(Events.ITERATION_STARTED, poison)
    with pytest.raises(DivergedError, match=r"epoch 2, iteration 3.*--lr"), unwrapped_errors():
        workflow.run()
    for key, value in network.named_parameters():
        assert torch.equal(value, seen[key])
    assert final_state(tmp_path)["iteration"] == 2


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    target = tmp_path / "last.pt"
    atomic_save({"a": torch.zeros(10)}, target)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(CryoMonaiError, match=r"last\.pt: not written .* MiB are free"):
            atomic_save({"a": torch.zeros(1_000_000)}, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert torch.equal(load_verified(target)["a"], torch.zeros(10))
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_a_crash_are_swept(dataset_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "last.pt.999.tmp").write_bytes(b"half a file")
    run(dataset_dir, tmp_path)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["last.pt", "model.pt", "previous.pt"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"num_classes": 4},
            "has 3 classes (c2_64kda, c7_400kda, o_440kda), but the network has 4; add --num_classes 3",
        ),
        ({"clip_size": (16, 16, 24)}, "clip_size [16, 16, 16] (network: [16, 16, 24])"),
        ({"backbone": "resnet34"}, "backbone resnet18 (network: resnet34)"),
    ],
)
def test_weights_for_another_network_are_refused_by_name(
    uninterrupted: Path, change: dict[str, Any], reason: str
) -> None:
    options = {key: TINY[key] for key in ("backbone", "backbone_options", "clip_size")}
    network = VideoClassifier(**{"num_classes": 3, **options, **change})
    with pytest.raises(InputError) as caught:
        load_checkpoint(network, uninterrupted / "models" / "model.pt")
    assert reason in str(caught.value)
    assert "model.pt" in str(caught.value)


def test_class_names_and_weights_come_back(uninterrupted: Path) -> None:
    network = VideoClassifier(3, **{key: TINY[key] for key in ("backbone", "backbone_options", "clip_size")})  # type: ignore[arg-type]
    load_checkpoint(network, uninterrupted / "models" / "last.pt")
    assert network.class_names == ["c2_64kda", "c7_400kda", "o_440kda"]
    assert torch.equal(network.state_dict()["head.1.weight"], final_state(uninterrupted)["network"]["head.1.weight"])


def test_options_given_as_tuples_are_the_same_network(tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "resnet18", "backbone_options": {"widths": (4, 8, 16, 32)}}
    network, other = (VideoClassifier(3, clip_size=(16, 16, 16), **options) for _ in range(2))
    atomic_save(network.state_dict(), tmp_path / "model.pt")
    load_checkpoint(other, tmp_path / "model.pt")
    assert torch.equal(other.state_dict()["head.1.weight"], network.state_dict()["head.1.weight"])


def test_metrics_files_agree_and_name_the_best_epoch(uninterrupted: Path) -> None:
    content = json.loads((uninterrupted / "metrics.json").read_text())
    rows = list(csv.DictReader((uninterrupted / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in content["history"]] == [1, 2, 3]
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in content["history"]]
    assert [row["lr"] for row in content["history"]] == pytest.approx([0.01, 0.001, 0.001])
    values = [row["val_accuracy"] for row in content["history"]]
    assert content["best_epoch"] == 1 + values.index(max(values))
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert content["environment"]["fast_bfloat16"] == has_fast_bfloat16(torch.device("cpu"))


def test_a_run_resumed_elsewhere_names_both_machines(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(engine: Engine) -> None:
        if engine.state.iteration == 6:
            raise Killed

    with pytest.raises(Killed):
        run(dataset_dir, tmp_path, stop)
    real = history.environment
    monkeypatch.setattr(history, "environment", lambda device: {**real(device), "device": "another", "threads": 99})
    run(dataset_dir, tmp_path, resume=True)
    found = json.loads((tmp_path / "metrics.json").read_text())["environment"]
    assert found["device"] == f"{real('cpu')['device']}, then another"
    assert found["threads"] == f"{real('cpu')['threads']}, then 99"
    assert found["torch"] == torch.__version__


def start(dataset_dir: Path, run_dir: Path, *more: str) -> subprocess.Popen[str]:
    """The command a user types, in a process of its own."""
    overlay = run_dir / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "max_epochs": 40}))
    files = f"['{SUBTOMOGRAMS}/configs/train.json','{overlay}']"
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file", files]
    places = {
        "bundle_root": SUBTOMOGRAMS,
        "dataset_dir": dataset_dir,
        "output_dir": run_dir,
        "ckpt_dir": run_dir / "models",
    }
    options = [part for name, value in places.items() for part in (f"--{name}", str(value))]
    command += [*options, "--num_classes", "3", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_epochs(run_dir: Path, process: subprocess.Popen[str], count: int) -> None:
    for _ in range(2400):
        table = run_dir / "metrics.csv"
        if table.exists() and len(table.read_text().splitlines()) > count:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no epoch was finished")


def test_signals_to_the_real_command(dataset_dir: Path, tmp_path: Path) -> None:
    """SIGTERM saves and exits with 75; a resumed run survives kill -9; a third goes on from its last epoch."""
    with start(dataset_dir, tmp_path) as process:
        wait_for_epochs(tmp_path, process, 1)
        process.terminate()
        error = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_CODE, error
    assert "Traceback" not in error
    assert "go on with --resume True" in error
    stopped = final_state(tmp_path)["iteration"]
    with start(dataset_dir, tmp_path, "--resume", "True") as process:
        # metrics.csv is written before last.pt: one epoch more is safely in both.
        wait_for_epochs(tmp_path, process, stopped // 2 + 3)
        process.kill()
        process.communicate(timeout=60)
    killed = final_state(tmp_path)["iteration"]
    assert killed >= stopped + 2
    with start(dataset_dir, tmp_path, "--resume", "True", "--max_epochs", str(killed // 2 + 1)) as process:
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert "resuming after epoch" in error
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, killed // 2 + 2))


def test_who_is_killed_after_the_best_weights_has_them_again(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two files of an epoch: the epoch is redone, and its weights are the best ones."""
    whole = training(dataset_dir, tmp_path / "whole")
    whole.initialize()
    whole.run()
    saved = CheckpointHandler._save_model

    def killed(handler: CheckpointHandler) -> None:
        saved(handler)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointHandler, "_save_model", killed)
    first = training(dataset_dir, tmp_path / "killed", max_epochs=2)
    first.initialize()
    with pytest.raises(KeyboardInterrupt):
        first.run()
    monkeypatch.setattr(CheckpointHandler, "_save_model", saved)
    again = training(dataset_dir, tmp_path / "killed", resume=True)
    again.initialize()
    again.run()
    states = [load_verified(tmp_path / name / "models" / "model.pt") for name in ("whole", "killed")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
