"""Pre-training over several processes gives what one gives, also when it goes on in the middle of an epoch."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLES, CONFIGS, ROOT, TINY
from documented_pages import blocks_of
from ignite.engine import Events
from test_parallel import history, torchrun

from cryo_monai.__main__ import main
from cryo_monai.checkpoints import load_verified
from cryo_monai.parallel import rank_share
from cryo_monai.workflows import load_workflow

GENERATED = BUNDLES / "generated_pretraining"
OVERLAY = GENERATED / "configs" / "multi_gpu_train.json"
TASK = CONFIGS / "pretraining" / "both.json"
# 37 clips to validate with: the ranks have unequal shares. The learning rate is as in test_parallel; AdamW would make
# steps of one size of gradients that are rounding.
SIZES = {key: TINY[key] for key in ("backbone", "backbone_options")} | {
    "clip_size": [8, 10, 12],
    "precision": "float32",
    "lr": 0.0003,
    "optimizer#_target_": "torch.optim.SGD",
    "warm_up": 0,
    "num_assemblies": 4,
    "clips_per_epoch": 128,
    "validation_clips": 37,
    "max_epochs": 2,
    "batch_size": 32,
    "progress": False,
    "device": "cpu",
}


def documented(page: str) -> list[str]:
    """Return what a page starts with ``torchrun``."""
    (block,) = [b for b in blocks_of(page) if b.test == "tests/test_pretraining_ranks.py"]
    (command,) = block.commands
    assert command.words[:3] == ("torchrun", "--standalone", "--nproc_per_node=2")
    return list(command.words[3:])


def options(**more: Any) -> list[str]:
    values = {
        name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in (SIZES | more).items()
    }
    return [part for name, value in values.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, with the overlay, which then changes nothing."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert main(["pretrain", str(TASK), str(run_dir), "--overlays", str(OVERLAY), *options()]) == 0
    return run_dir


def assert_same(one: Path, other: Path) -> None:
    rows, others = history(one), history(other)
    names = [name for name in rows[0] if name not in ("seconds", "lr")]
    assert "val_fields" in names
    for row, same in zip(rows, others, strict=True):
        assert {name: row[name] for name in names} == pytest.approx({name: same[name] for name in names}, abs=1e-3)
        assert row["lr"] == same["lr"]
    weights, same_weights = (load_verified(run / "models" / "last.pt")["network"] for run in (one, other))
    assert weights.keys() == same_weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, same_weights[name], rtol=0, atol=1e-3 * max(1.0, float(tensor.abs().max())))


def test_two_ranks_train_as_one(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    words = [str(run_dir) if word == "DIR" else word for word in documented("docs/multi_gpu.md")]
    with torchrun(*words, *options(), log=log) as process:
        assert process.wait(240) == 0, log.read_text()
    assert json.loads((run_dir / "metrics.json").read_text())["environment"]["ranks"] == 2
    assert (run_dir / "weights.safetensors").is_file()
    assert_same(alone, run_dir)


def test_two_ranks_go_on_where_one_was_stopped_within_an_epoch(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    places = {"bundle_root": str(GENERATED), "output_dir": str(run_dir), "ckpt_dir": str(run_dir / "models")}
    workflow = load_workflow(GENERATED, "train", overlays=[TASK, OVERLAY], overrides={**SIZES, **places})
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_STARTED(once=6), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        workflow.run()
    assert load_verified(run_dir / "models" / "last.pt")["iteration"] == 6  # the second of four in the second epoch
    monkeypatch.chdir(GENERATED)
    words = documented("bundles/generated_pretraining/docs/README.md")
    with torchrun(*words, *options(**places, resume=True), log=log) as process:
        assert process.wait(240) == 0, log.read_text()
    assert_same(alone, run_dir)


def test_loaders_are_refused_before_the_ranks_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank would train on everything, to numbers that look right."""
    assert rank_share(32) == 32
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"the network \(over_ranks\) is to be resolved before the loaders"):
        rank_share(32)
