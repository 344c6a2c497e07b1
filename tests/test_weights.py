import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from cryo_monai.backbones import BACKBONES
from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier
from cryo_monai.weights import initialise, load_tensors, load_video_weights

OPTIONS = {"resnet18": {"widths": [4, 8, 16, 32]}, "slow_r50": {}}


def network(name: str) -> VideoClassifier:
    return VideoClassifier(3, backbone=name, backbone_options=OPTIONS[name], clip_size=(8, 32, 32), precision="float32")


def checkpoint(name: str, *, prefix: str = "", wrapper: str = "") -> dict[str, object]:
    """What upstream ships: the three-channel network with its own classifier, under its nesting and prefixes."""
    torch.manual_seed(1)
    record = BACKBONES[name]
    reference = record.build(**{**record.arguments, **OPTIONS[name]})
    state = OrderedDict((prefix + key, value) for key, value in reference.state_dict().items())
    state[prefix + record.heads[0] + "weight"] = torch.zeros(400, 7)
    return {wrapper: state} if wrapper else state


@pytest.mark.parametrize(
    ("name", "prefix", "wrapper"),
    [
        ("resnet18", "", ""),
        ("resnet18", "module.", ""),
        ("resnet18", "module.", "state_dict"),
        ("slow_r50", "", "model_state"),
    ],
)
def test_every_tensor_but_the_classifier_is_loaded(tmp_path: Path, name: str, prefix: str, wrapper: str) -> None:
    content = checkpoint(name, prefix=prefix, wrapper=wrapper)
    torch.save(content, tmp_path / "weights.pth")
    ours = network(name).eval()
    report = load_video_weights(ours, tmp_path / "weights.pth")
    assert len(report.head) == 1
    assert not report.missing + report.unexpected + report.mismatched
    torch.manual_seed(1)
    record = BACKBONES[name]
    reference = record.build(**{**record.arguments, **OPTIONS[name]}).eval()
    clips = torch.rand(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = reference(clips.expand(-1, 3, -1, -1, -1))
        assert torch.allclose(ours.extract_features(clips), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_partial_fit_is_an_error_and_changes_nothing(tmp_path: Path, change: str) -> None:
    content = checkpoint("resnet18")
    if change == "missing":
        del content["layer4.1.bn2.weight"]
    elif change == "unexpected":
        content["layer9.weight"] = torch.zeros(1)
    else:
        content["conv1.weight"] = torch.zeros(4, 3, 3, 3, 3)
    torch.save(content, tmp_path / "weights.pth")
    ours = network("resnet18")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(InputError, match="does not fit backbone 'resnet18'"):
        load_video_weights(ours, tmp_path / "weights.pth")
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


class Exploit:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.sentinel),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Exploit(tmp_path / "PWNED")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth: holds more than tensors"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "PWNED").exists()


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1], tmp_path / "list.pth")
    for name in ("none.pth", "text.pth", "list.pth"):
        with pytest.raises(InputError, match=name):
            load_tensors(tmp_path / name)


def test_initialise_says_which_weights_it_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    initialise(network("resnet18"), None)
    assert "initialisation: random" in caplog.text
    torch.save(checkpoint("resnet18"), tmp_path / "weights.pth")
    initialise(network("resnet18"), tmp_path / "weights.pth")
    assert "0 missing, 0 unexpected" in caplog.text
