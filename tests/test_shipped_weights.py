"""The weights that come with the package: there, whole, as pinned, and loaded without a connection."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, ROOT
from documented_pages import blocks_of
from safetensors import safe_open

from cryo_monai.__main__ import main
from cryo_monai.backbones import look_up_backbone
from cryo_monai.downloads import find_weights, pinned_hash
from cryo_monai.fetching import sha256_of
from cryo_monai.networks import VideoClassifier
from cryo_monai.pretrained_weights import bundle_of_task
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
    pin = json.loads((ROOT / "cryo_monai" / "weight_pins.json").read_text())[record.name]
    assert (pin["file"], pin["bytes"]) == (file.name, file.stat().st_size)
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
def test_the_recipe_is_still_the_one_that_a_file_was_made_by(record: WeightRecord, tmp_path: Path) -> None:
    with safe_open(str(find_weights(record)), framework="pt") as opened:
        about = json.loads(opened.metadata()["pretraining"])
    words = about["command"].split()
    assert words[:2] == ["cryo-monai", "pretrain"]
    assert words[3:] == ["DIR"]
    places = {"output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "device": torch.device("cpu")}
    workflow = load_workflow(bundle_of_task(ROOT / words[2]), "train", overlays=[ROOT / words[2]], overrides=places)
    now = {name: workflow.parser.get_parsed_content(name) for name in ("backbone", "clip_size", "seed")}
    assert now == {name: about[name] for name in now}
    assert about["metrics"]["epoch"] <= workflow.parser.get_parsed_content("max_epochs")
    assert workflow.parser.get_parsed_content("clips").num_outputs == about["classes"]
    assert workflow.parser.get_parsed_content("clips_per_epoch") * about["metrics"]["epoch"] == about["clips"]


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
    assert (network.mean, network.std) == pytest.approx(record.input.mean_and_std())
    assert (network.mean, network.std) == (0.5, 0.15)
    assert look_up_backbone(record.backbone).arguments["layers"] == (2, 2, 2, 2)


def test_the_documented_commands_run_without_a_connection(
    tmp_path: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bundles", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (block,) = [b for b in blocks_of("docs/initialisation.md") if b.test == "tests/test_shipped_weights.py"]
    for command in block.commands:
        words = [str(dataset_dir) if word == "particles" else word for word in command.words[1:]]
        if words[0] == "train":  # the network and its weights stay as they are
            words += ["--max_epochs", "1", "--clip_size", "[16,16,16]", "--progress", "False", "--report", "False"]
        assert main(words) == 0, command.text
    begun = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["initialisation"]
    assert begun["record"] in [record.name for record in SHIPPED]
    assert "cryo-monai pretrain" in capsys.readouterr().out
