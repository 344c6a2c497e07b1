"""The bundle that pre-trains on generated clips, as MONAI runs it: whole, stopped and resumed, learning something."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from conftest import BUNDLES, CONFIGS, TINY
from documented_pages import blocks_of
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from cryo_monai.checkpoints import EXIT_CODE, load_verified
from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.workflows import load_workflow

BUNDLE = BUNDLES / "generated_pretraining"
SMALL = {
    **{key: TINY[key] for key in ("backbone", "backbone_options", "progress")},
    "clip_size": [8, 16, 12],
    "num_assemblies": 4,
    "clips_per_epoch": 40,
    "validation_clips": 24,
    "batch_size": 8,
    "max_epochs": 3,
    "lr": 0.005,
    "device": "cpu",
}


def workflow_of(run_dir: Path, **ids: object) -> ConfigWorkflow:
    """A small pre-training, not yet initialised."""
    places = {"output_dir": str(run_dir), "ckpt_dir": str(run_dir / "models")}
    return load_workflow(BUNDLE, "train", overrides={**SMALL, **places, **ids})


def run(run_dir: Path, hook: Callable[[Engine], object] | None = None, **ids: object) -> None:
    """Pre-train, calling ``hook`` after each iteration."""
    workflow = workflow_of(run_dir, **ids)
    workflow.initialize()
    if hook is not None:
        workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, hook)
    with unwrapped_errors():
        workflow.run()


def final_state(run_dir: Path) -> dict[str, Any]:
    return load_verified(run_dir / "models" / "last.pt")


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run_dir / "metrics.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    run(folder)
    return folder


def test_a_run_leaves_weights_and_the_accuracy_of_every_task(uninterrupted: Path) -> None:
    rows = rows_of(uninterrupted)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for key in ("val_fields", "val_sprites", "val_assemblies", "val_accuracy"):
        assert all(0 <= row[key] <= 1 for row in rows), key
    assert load_verified(uninterrupted / "models" / "model.pt").keys() == final_state(uninterrupted)["network"].keys()


@pytest.mark.parametrize("iteration", [2, 7])
def test_stopped_within_an_epoch_and_resumed_it_ends_the_same_bit_for_bit(
    uninterrupted: Path, tmp_path: Path, iteration: int
) -> None:
    def stop(engine: Engine) -> None:
        if engine.state.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run(tmp_path, stop)
    assert caught.value.code == EXIT_CODE
    assert final_state(tmp_path)["iteration"] == iteration + 1  # of five in an epoch
    run(tmp_path, resume=True)
    one, other = final_state(tmp_path), final_state(uninterrupted)
    for key, value in other["network"].items():
        assert torch.equal(one["network"][key], value), key
    for mine, theirs in zip(one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert rows_of(tmp_path) == rows_of(uninterrupted)


def test_a_run_of_other_clips_is_not_resumed(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "last.pt").write_bytes((uninterrupted / "models" / "last.pt").read_bytes())
    with pytest.raises(InputError, match=r"cannot resume with another recipe .*frames: moving -> still"):
        run(tmp_path, resume=True, frames="still")


def test_it_learns_to_tell_two_assemblies(tmp_path: Path) -> None:
    clean = {"noise_prob": 0.0, "shape_prob": 0.0, "wedge_prob": 0.0, "transfer_prob": 0.0}
    two = {"tasks": {"assemblies": 1.0}, "num_assemblies": 2, "crowded": 0.0, "clip_size": [12, 12, 12]}
    few = {"clips_per_epoch": 384, "validation_clips": 256, "max_epochs": 8, "batch_size": 16, "lr": 0.003}
    run(tmp_path, **two, **few, degradation=clean, backbone_options={"widths": [8, 16, 32, 64]})
    rows = rows_of(tmp_path)
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    assert max(row["val_assemblies"] for row in rows) > 0.65  # chance is 0.5, with a standard error of 0.03


@pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI's note that a configuration is a program
def test_monai_runs_it_from_the_configuration_alone(tmp_path: Path) -> None:
    overlay = tmp_path / "small.json"
    overlay.write_text(json.dumps({**SMALL, "max_epochs": 1, "clips_per_epoch": 16}))
    task = CONFIGS / "pretraining" / "motion.json"
    before = sorted(BUNDLE.rglob("*"))
    page = "bundles/generated_pretraining/docs/README.md"
    (command,) = [c for b in blocks_of(page) if b.test == "tests/test_generated_pretraining.py" for c in b.commands]
    assert command.text == "python -m monai.bundle run training --config_file configs/train.json"
    monai.bundle.run(
        run_id="training",
        config_file=[str(BUNDLE / "configs" / "train.json"), str(task), str(overlay)],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=str(BUNDLE / "configs" / "logging.conf"),
        bundle_root=str(BUNDLE),
        output_dir=str(tmp_path / "run"),
        ckpt_dir=str(tmp_path / "run" / "models"),
    )
    assert (tmp_path / "run" / "models" / "model.pt").is_file()
    assert not {key for key in rows_of(tmp_path / "run")[0] if "assemblies" in key}
    assert sorted(BUNDLE.rglob("*")) == before


def test_metadata_describes_the_outputs() -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    clips = parser.get_parsed_content("clips")
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["num_channels"] == clips.num_outputs
    assert outputs["channel_def"]["0"] == clips.output_names[0]
    assert metadata["version"] in metadata["changelog"]
    for batch in (1, 2):
        verify_net_in_out(
            "network_def",
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            config_file=str(BUNDLE / "configs" / "train.json"),
            extra_forward_args={},
            n=batch,
            device="cpu",
        )
