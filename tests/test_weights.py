import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import references
import torch
from conftest import training
from safetensors.torch import save_file
from torch import Tensor

from cryo_monai import downloads, weight_files
from cryo_monai.backbones import BACKBONES
from cryo_monai.errors import InputError
from cryo_monai.inflation import inflate_kernel, inflate_state
from cryo_monai.networks import VideoClassifier
from cryo_monai.recognition import inspect_weights
from cryo_monai.runs import train_bundle
from cryo_monai.weight_files import load_tensors, read_state
from cryo_monai.weight_records import RECORDS, InputRecord, look_up_record
from cryo_monai.weights import initialise, load_video_weights

SMALL = {"resnet18": {"widths": [4, 8, 16, 32]}, "slow_r50": {}}


def network(name: str, **options: object) -> VideoClassifier:
    arguments = {"backbone_options": SMALL.get(name, {}), "clip_size": (8, 32, 32), "precision": "float32", **options}
    return VideoClassifier(3, backbone=name, **arguments)  # type: ignore[arg-type]


def checkpoint(name: str = "resnet18", *, classes: int = 400) -> dict[str, Tensor]:
    """A state dict of the backbone with its own classifier."""
    torch.manual_seed(1)
    record = BACKBONES[name]
    reference = record.build((8, 32, 32), **{**record.arguments, **SMALL.get(name, {})})
    state = OrderedDict(reference.state_dict())
    state[f"{record.heads[0]}weight"] = torch.zeros(classes, 7)
    return state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "weights.pth"
    torch.save(checkpoint(), file)
    return file


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_every_nesting_and_container_is_read(tmp_path: Path, prefix: str, wrapper: str, container: str) -> None:
    state = {prefix + key: value.clone() for key, value in checkpoint().items()}
    if container == "safetensors":
        save_file(state, tmp_path / "w.safetensors")
        report = load_video_weights(network("resnet18"), tmp_path / "w.safetensors")
    else:
        content = {wrapper: state, "epoch": 3} if wrapper else state
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=container == "zip")
        report = load_video_weights(network("resnet18"), tmp_path / "w.pth")
    assert report.record is look_up_record("resnet18-kinetics400")
    assert report.keys.counts()["head"] == 1
    assert not report.keys.missing + report.keys.unexpected + report.keys.mismatched


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "missing": lambda state: state.pop("layer4.1.bn2.weight"),
    "unexpected": lambda state: state.update({"layer9.weight": torch.zeros(1)}),
    "mismatched": lambda state: state.update({"conv1.weight": torch.zeros(4, 3, 3, 3, 3)}),
}
CHANGED = {"missing": "layer4.1.bn2.weight", "unexpected": "layer9.weight", "mismatched": "conv1.weight"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_partial_fit_is_an_error_unless_its_keys_are_allowed(tmp_path: Path, change: str) -> None:
    state = checkpoint()
    CHANGES[change](state)
    torch.save(state, tmp_path / "weights.pth")
    ours = network("resnet18")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(InputError, match=f"does not fit backbone 'resnet18': .*1 {change}.*first: {CHANGED[change]}"):
        load_video_weights(ours, tmp_path / "weights.pth")
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())
    report = load_video_weights(ours, tmp_path / "weights.pth", allow_partial=[CHANGED[change].split(".")[0] + ".*"])
    assert report.keys.allowed == (CHANGED[change],)
    loaded = ours.backbone.state_dict()
    for key in report.keys.loaded:
        assert torch.equal(loaded[key], state[key])


def test_a_list_is_wanted_for_allow_partial(saved: Path) -> None:
    with pytest.raises(InputError, match=r'give a list of keys, such as \["fc"\]'):
        initialise(network("resnet18"), saved, allow_partial="fc")


def test_a_file_of_another_network_is_refused_with_what_it_is(tmp_path: Path) -> None:
    torch.save(checkpoint("slow_r50"), tmp_path / "slow.pyth")
    with pytest.raises(InputError, match=r"does not fit backbone 'resnet18'.*It fits slow_r50") as caught:
        initialise(network("resnet18"), tmp_path / "slow.pyth")
    assert "\n" not in str(caught.value)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="It fits no backbone"):
        initialise(network("resnet18"), tmp_path / "other.pth")


def test_a_network_of_shortcut_b_does_not_pass_for_shortcut_a(tmp_path: Path) -> None:
    state = checkpoint("resnet34_b", classes=700)
    torch.save({"state_dict": state}, tmp_path / "r3d34_K_200ep.pth")
    with pytest.raises(InputError, match=r"'resnet34': .*unexpected.*downsample.*It fits resnet34_b"):
        initialise(VideoClassifier(2, clip_size=(8, 32, 32)), tmp_path / "r3d34_K_200ep.pth")


class Exploit:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": Exploit(tmp_path / "PWNED")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pth: holds more than tensors"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "PWNED").exists()


def test_missing_broken_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    for name in ("none.pth", "text.pth", "text.safetensors", "list.pth", "numbers.pth"):
        with pytest.raises(InputError, match=name) as caught:
            read_state(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_sizes_are_capped_before_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One number that claims to be a terabyte: what would come of it is memory for all of it.
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 20, 1 << 18)}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match=r"bomb\.pth: tensor conv1\.weight of shape \[1048576, 262144\]"):
        read_state(tmp_path / "bomb.pth")
    torch.save({str(number): torch.zeros(1) for number in range(30)}, tmp_path / "many.pth")
    monkeypatch.setattr(weight_files, "MAX_TENSORS", 20)
    with pytest.raises(InputError, match=r"many\.pth: 30 tensors"):
        read_state(tmp_path / "many.pth")
    monkeypatch.setattr(weight_files, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"many\.pth: larger than"):
        read_state(tmp_path / "many.pth")


def test_positions_are_resized_to_the_clip_and_reported(tmp_path: Path) -> None:
    record = look_up_record("mvit_v2_s-kinetics400")
    reference, _ = references.build_reference(record)
    torch.save(reference.state_dict(), tmp_path / record.file)
    ours = VideoClassifier(2, backbone="mvit_v2_s", clip_size=(32, 128, 128))
    report = load_video_weights(ours, tmp_path / record.file)
    assert report.keys.resized
    assert all("rel_pos" in key for key in report.keys.resized)
    native = VideoClassifier(2, backbone="mvit_v2_s", clip_size=record.clip)
    assert not load_video_weights(native, tmp_path / record.file).keys.resized


def test_the_log_has_the_table_and_the_network_remembers(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ours = initialise(network("resnet18"), None)
    assert "initialisation: random" in caplog.text
    assert ours.initialisation == {"weights": None}
    initialise(ours, saved)
    for line in (
        "loaded",
        "missing",
        "unexpected",
        "resized",
        "head            1  fc.weight",
        "not compared with any pin",
    ):
        assert line in caplog.text
    known = json.loads(json.dumps(ours.initialisation))
    assert known["record"] == "resnet18-kinetics400"
    assert known["keys"]["head"] == ["fc.weight"]
    assert known["keys"]["missing"] == []
    assert known["keys"]["loaded"] == len(ours.backbone.state_dict())


def test_the_input_is_that_of_the_checkpoint_unless_unit(saved: Path) -> None:
    ours = initialise(network("resnet18"), saved)
    volumes = torch.rand(2, 1, 10, 12, 14)
    # 3D-ResNets-PyTorch, first release: values of 0 to 255 less the mean over channels of (114.77, 107.74, 99.48).
    unit = initialise(network("resnet18"), saved, input_range="unit").make_clips(volumes)
    assert torch.allclose(ours.make_clips(volumes), unit * 255 - (114.7748 + 107.7354 + 99.4750) / 3, atol=1e-3)
    with pytest.raises(InputError, match="input_range: 'uint' is not one of checkpoint, unit"):
        initialise(network("resnet18"), saved, input_range="uint")


def test_files_of_unknown_origin_need_an_explicit_input(tmp_path: Path) -> None:
    torch.save(checkpoint(classes=17), tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"none of the known checkpoints.*--input_range unit"):
        initialise(network("resnet18"), tmp_path / "mine.pth")
    assert initialise(network("resnet18"), tmp_path / "mine.pth", input_range="unit").std == 1.0


def test_intensity_must_be_what_the_checkpoint_can_take(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_max or percentile"):
        initialise(network("resnet18", intensity="z_score"), saved)
    torch.save(checkpoint("medicalnet_resnet18"), tmp_path / "resnet_18_23dataset.pth")
    with pytest.raises(InputError, match="--intensity z_score"):
        initialise(network("medicalnet_resnet18"), tmp_path / "resnet_18_23dataset.pth")
    initialise(network("medicalnet_resnet18", intensity="z_score"), tmp_path / "resnet_18_23dataset.pth")


@pytest.mark.parametrize("values", dict.fromkeys(record.input for record in RECORDS), ids=str)
def test_one_mean_and_std_stand_for_three(values: InputRecord) -> None:
    mean, std = values.mean_and_std()
    if values.intensity == "z_score":
        assert (mean, std) == (0.0, 1.0)
        return
    for low, high in ((values.low, values.high),):
        for x in (0.0, 0.3, 1.0):
            exact = [(low + (high - low) * x - m) / s for m, s in zip(values.mean, values.std, strict=True)]
            channel_spread = max(values.mean) - min(values.mean)
            assert abs((x - mean) / std - sum(exact) / 3) <= 0.1 * (high - low) / min(values.std)
            assert channel_spread <= 0.1 * (high - low)


def test_a_checkpoint_of_our_own_starts_another_training(tmp_path: Path, saved: Path) -> None:
    first = initialise(network("resnet18"), saved)
    first.set_class_names(["a", "b", "c"])
    torch.save(first.state_dict(), tmp_path / "model.pt")
    options = {"backbone_options": SMALL["resnet18"], "clip_size": (16, 16, 16), "precision": "float32"}
    second = initialise(VideoClassifier(5, backbone="resnet18", **options), tmp_path / "model.pt")  # type: ignore[arg-type]
    assert (second.mean, second.std) == (first.mean, first.std)
    assert second.initialisation["input_range"] == "as it was trained"
    for key, value in first.backbone.state_dict().items():
        assert torch.equal(second.backbone.state_dict()[key], value)
    with pytest.raises(InputError, match="has backbone 'resnet18', not 'r3d_18'"):
        initialise(network("r3d_18"), tmp_path / "model.pt")
    assert "a checkpoint of this package" in inspect_weights(tmp_path / "model.pt")


def test_inspect_names_backbone_record_and_input(tmp_path: Path) -> None:
    torch.save({"state_dict": checkpoint("resnet34_b", classes=700)}, tmp_path / "unnamed.pth")
    text = inspect_weights(tmp_path / "unnamed.pth")
    assert "fits backbone resnet34_b as resnet34_b-kinetics700" in text
    assert "(x - 0.4057) / 0.2739" in text
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7, 7), "x": torch.zeros(1)}, tmp_path / "odd.pth")
    assert "fits no backbone" in inspect_weights(tmp_path / "odd.pth")


def test_inspect_describes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path))
    text = inspect_weights("r3d_18-kinetics400")
    for part in ("63.2 %", "BSD-3-Clause", "1711.11248", "r3d_18-b3b3357e.pth", "127.359 MiB", "b3b3357e is published",
                 "16 x 112 x 112", "(x - 0.4011) / 0.2222", str(tmp_path)):  # fmt: skip
        assert part in text


def test_record_names_are_resolved_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))
    record = look_up_record("resnet18-kinetics400")
    ours = network("resnet18")
    for name in ("video", record.name):
        with pytest.raises(InputError, match=r"resnet18-kinetics400\.pth: not there; get it with a browser") as caught:
            initialise(ours, name)
        assert record.url in str(caught.value)
    downloads.cached_path(record).parent.mkdir(parents=True)
    saved.rename(downloads.cached_path(record))
    assert initialise(ours, "video").initialisation["record"] == record.name
    pins = {record.name: {"sha256": "0" * 64}}
    (tmp_path / "cache/weight_pins.json").write_text(json.dumps(pins))
    with pytest.raises(InputError, match="not the pinned 000"):
        initialise(ours, "video")
    with pytest.raises(InputError, match="for backbone 'r3d_18', not 'resnet18'"):
        initialise(ours, "r3d_18-kinetics400")
    with pytest.raises(InputError, match="did you mean r3d_18-kinetics400"):
        initialise(ours, "r3d_18-kinetics40")
    with pytest.raises(InputError, match="'resnet18' has no public image weights"):
        initialise(ours, "image")


def test_average_and_centre_inflation_of_a_kernel() -> None:
    kernel = torch.randn(2, 3, 5, 5)
    for how in ("average", "centre"):
        inflated = inflate_kernel(kernel, 3, how)
        assert inflated.shape == (2, 3, 3, 5, 5)
        assert torch.allclose(inflated.sum(2), kernel, atol=1e-6)
    assert torch.equal(inflate_kernel(kernel, 7, "centre")[:, :, 3], kernel)
    with pytest.raises(InputError, match="'mean' is not one of average, centre"):
        inflate_state({}, {}, "mean")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["average", "centre"])
def test_inflated_swin_gives_the_image_networks_features_on_equal_frames(tmp_path: Path, how: str) -> None:
    """Exact for both: its one convolution has no padding, and equal tokens share their attention equally."""
    record = look_up_record("swin3d_t-imagenet")
    image, last = references.build_reference(record)
    references.settle(record, image)
    torch.save(image.state_dict(), tmp_path / record.file)
    ours = VideoClassifier(2, backbone="swin3d_t", clip_size=(16, 224, 224), precision="float32").eval()
    load_video_weights(ours, tmp_path / record.file, inflation=how)
    frame = references.natural_images(1, 3, 1, 224, 224)
    expected = references.reference_features(record, image, last, frame)
    with torch.no_grad():
        features = ours.extract_features(frame.expand(-1, -1, 16, -1, -1))
    assert references.relative_difference(features, expected) < 1e-5


def test_average_inflation_of_a_resnet_is_exact_away_from_the_ends_only(tmp_path: Path) -> None:
    """Zero padding in depth cuts averaged kernels off; the centre kernel, tested with every record, is exact."""
    record = look_up_record("resnet18_b-imagenet")
    image, _ = references.build_reference(record)
    references.settle(record, image)
    torch.save(image.state_dict(), tmp_path / record.file)
    frame = references.natural_images(1, 3, 1, 64, 64)
    stems = {}
    for how in ("average", "centre"):
        ours = VideoClassifier(2, backbone="resnet18_b", clip_size=(16, 64, 64), precision="float32").eval()
        load_video_weights(ours, tmp_path / record.file, inflation=how)
        with torch.no_grad():
            stems[how] = ours.backbone.conv1(frame.expand(-1, -1, 16, -1, -1))  # type: ignore[operator]
    assert torch.allclose(stems["average"][:, :, 3:-3], stems["centre"][:, :, 3:-3], atol=1e-4)
    assert not torch.allclose(stems["average"][:, :, 0], stems["centre"][:, :, 0], atol=1e-2)


def test_the_run_records_its_initialisation(dataset_dir: Path, tmp_path: Path, saved: Path) -> None:
    workflow = training(dataset_dir, tmp_path / "probe", weights=str(saved), input_range="unit")
    workflow.initialize()
    assert workflow.parser.get_parsed_content("network").initialisation["record"] == "resnet18-kinetics400"
    from conftest import SUBTOMOGRAMS, TINY

    ids = {**TINY, "max_epochs": 1, "dataset_dir": str(dataset_dir), "num_classes": 3, "weights": str(saved)}
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", ids={**ids, "device": "cpu"})
    noted = json.loads((tmp_path / "run/run.json").read_text())["initialisation"]
    assert noted["input_range"] == "checkpoint"
    assert noted["std"] == pytest.approx(1 / 255)
    assert noted["keys"]["loaded"] > 100
