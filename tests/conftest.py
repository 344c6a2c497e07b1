"""Fixtures: a tiny simulated data set, a tiny network, and the shared data when it is there."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from cryo_monai.simulation import SimulationSettings, write_dataset
from cryo_monai.workflows import load_workflow

# Workers of pytest-xdist share the cores: one thread each, also in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "bundles"
CONFIGS = ROOT / "configs"
SUBTOMOGRAMS = BUNDLES / "subtomogram_classification"
MEDMNIST = BUNDLES / "medmnist3d_classification"
CLASSIFIERS = [MEDMNIST, SUBTOMOGRAMS]  # the third bundle makes weights, and classifies nothing

# A network and schedule of seconds.
TINY = {
    "backbone": "resnet18",
    "backbone_options": {"widths": [4, 8, 16, 32]},
    "clip_size": [16, 16, 16],
    "batch_size": 8,
    "max_epochs": 2,
    "lr": 0.01,
    "lr_milestones": [1],
    "progress": False,
}
TINY_INFERENCE = {key: TINY[key] for key in ("backbone", "backbone_options", "clip_size", "batch_size")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the one test of minutes, so that the other workers do not wait for it at the end."""
    items.sort(key=lambda item: "test_tutorial" not in item.nodeid)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real inputs outside the project; tests that want them are skipped without."""
    folder = os.environ.get("CRYO_MONAI_DATA")
    if not folder:
        pytest.skip("CRYO_MONAI_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten volumes of 16 x 16 x 16."""
    folder = tmp_path_factory.mktemp("simulated") / "data"
    settings = SimulationSettings(box=16, voxel_size=20.0, resolution=40.0, snr=2.0, max_shift=1.0, neighbours=0)
    write_dataset(folder, settings, num_per_class=10, structures=("c2_64kda", "c7_400kda", "o_440kda"))
    return folder


@pytest.fixture
def tiny_overlay(tmp_path: Path) -> Path:
    """Overlay that makes either bundle tiny."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return file


@pytest.fixture(autouse=True)
def _restore_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles install an exception hook; give the next test the original."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def training(dataset_dir: Path, run_dir: Path, **ids: object) -> ConfigWorkflow:
    """A tiny subtomogram training, not yet initialised."""
    overrides = {**TINY, "dataset_dir": str(dataset_dir), "output_dir": str(run_dir), "num_classes": 3}
    return load_workflow(
        SUBTOMOGRAMS, "train", overrides={**overrides, "ckpt_dir": str(run_dir / "models"), "device": "cpu", **ids}
    )
