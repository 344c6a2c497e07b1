"""The weights that come with the package: there, whole, as pinned, and loaded without a connection."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, SUBTOMOGRAMS
from safetensors import safe_open

from cryo_monai.backbones import look_up_backbone
from cryo_monai.downloads import find_weights, pinned_hash
from cryo_monai.fetching import sha256_of
from cryo_monai.networks import VideoClassifier
from cryo_monai.weight_files import read_state
from cryo_monai.weight_records import GENERATED, WeightRecord
from cryo_monai.weights import initialise
from cryo_monai.workflows import load_workflow

SHIPPED = [record for record in GENERATED if not record.url]


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))


def test_there_are_some_for_the_small_network() -> None:
    assert "resnet18_narrow" in {record.backbone for record in SHIPPED}


@pytest.mark.parametrize("record", SHIPPED, ids=lambda record: str(record.name))
def test_a_file_is_small_as_pinned_and_says_how_it_was_made(record: WeightRecord) -> None:
    file = find_weights(record)
    assert file.stat().st_size < 20e6
    assert sha256_of(file) == pinned_hash(record)
    with safe_open(str(file), framework="pt") as opened:
        about = json.loads(opened.metadata()["pretraining"])
    assert about["command"].startswith("cryo-monai pretrain ")
    assert about["data"] == "generated"
    assert about["licence"] == record.licence == "Apache-2.0"
    task = next(word for word in about["command"].split() if word.endswith(".json"))
    assert (CONFIGS / "pretraining" / Path(task).name).is_file()
    tensors = read_state(file)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    assert set(floating) == {torch.float16}


@pytest.mark.parametrize("record", SHIPPED, ids=lambda record: str(record.name))
def test_every_tensor_of_the_backbone_comes_from_the_file(record: WeightRecord) -> None:
    torch.manual_seed(0)
    network = VideoClassifier(3, backbone=record.backbone, clip_size=(24, 24, 24))
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    initialise(network, "generated")
    assert network.initialisation["record"] == record.name
    keys = network.initialisation["keys"]
    assert keys["loaded"] == len(before)
    assert keys["missing"] == keys["unexpected"] == keys["mismatched"] == []
    changed = [key for key, value in network.backbone.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) == len(before)
    assert (network.mean, network.std) == (0.5, 0.15)
    assert look_up_backbone(record.backbone).arguments["layers"] == (2, 2, 2, 2)


def test_the_overlay_needs_nothing_else(tmp_path: Path, dataset_dir: Path) -> None:
    overlay = CONFIGS / "initialisation" / "generated.json"
    ids = {"dataset_dir": str(dataset_dir), "num_classes": 3, "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    workflow = load_workflow(SUBTOMOGRAMS, "train", overlays=[overlay], overrides={**ids, "progress": False})
    workflow.initialize()
    assert workflow.parser.get_parsed_content("network").initialisation["record"] in [r.name for r in SHIPPED]
