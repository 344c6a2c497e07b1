import json
from pathlib import Path

import pytest
import torch
from conftest import SUBTOMOGRAMS, TINY, training
from ignite.engine import Engine, Events

from cryo_monai.errors import InputError
from cryo_monai.fine_tuning import FineTuning, parameter_groups
from cryo_monai.networks import VideoClassifier
from cryo_monai.runs import train_bundle

STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


def network(**options: object) -> VideoClassifier:
    torch.manual_seed(0)
    small = {"backbone": "resnet18", "backbone_options": {"widths": [4, 8, 16, 32]}, "clip_size": (8, 16, 16)}
    return VideoClassifier(3, **{**small, "precision": "float32", **options})  # type: ignore[arg-type]


def train(dataset_dir: Path, run_dir: Path, **fine_tuning: object) -> VideoClassifier:
    ids = {f"fine_tuning#{name}": value for name, value in fine_tuning.items()}
    workflow = training(dataset_dir, run_dir, **ids)
    workflow.initialize()
    trained: VideoClassifier = workflow.parser.get_parsed_content("network")
    trained.start = {key: value.clone() for key, value in trained.state_dict().items()}  # type: ignore[assignment]
    workflow.run()
    workflow.finalize()
    return trained


def changed(trained: VideoClassifier) -> set[str]:
    """Keys of tensors that training has changed."""
    start: dict[str, torch.Tensor] = trained.start  # type: ignore[assignment]
    return {key for key, value in trained.state_dict().items() if not torch.equal(value, start[key])}


def test_everything_is_off_by_default(dataset_dir: Path, tmp_path: Path) -> None:
    net = network()
    (group,) = parameter_groups(net, lr=0.1, weight_decay=0.2)
    assert list(group) == ["params"]
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    trained = train(dataset_dir, tmp_path)
    weights = {key for key, _ in trained.named_parameters()}
    assert weights <= changed(trained)


def test_groups_cover_every_parameter_once_with_rates_by_depth() -> None:
    net = network()
    groups = parameter_groups(net, lr=0.1, weight_decay=0.01, head_lr_factor=10, layer_decay=0.5)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625, 1.0])
    assert all(group["weight_decay"] == 0.01 for group in groups)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())
    assert groups[-1]["params"] == list(net.head.parameters())
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], 0.1)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(0.1)  # the schedule acts on every rate


def test_decay_towards_the_start_replaces_decay_towards_zero_in_the_backbone() -> None:
    groups = parameter_groups(network(), lr=0.1, weight_decay=0.01, l2_sp=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0] * 5 + [0.01]


def test_frozen_stages_keep_weights_and_statistics_and_the_rest_learns(dataset_dir: Path, tmp_path: Path) -> None:
    trained = train(dataset_dir, tmp_path, freeze={"stem": None, "stage1": None})
    touched = changed(trained)
    assert not any(key.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for key in touched)
    for part in ("backbone.layer2", "backbone.layer4", "head"):
        assert any(key.startswith(part) for key in touched)


def test_a_frozen_backbone_leaves_a_linear_probe(dataset_dir: Path, tmp_path: Path) -> None:
    assert {key.split(".")[0] for key in changed(train(dataset_dir, tmp_path, freeze={"backbone": None}))} <= {
        "head", "_extra_state"
    }  # fmt: skip


def test_stages_thaw_after_their_epochs(dataset_dir: Path, tmp_path: Path) -> None:
    net = network()
    handler = FineTuning(net, freeze={"backbone": 2, "stem": None, "stage4": 0})
    assert [handler.frozen(epoch) for epoch in (1, 3)] == [tuple(s for s in STAGES if s != "stage4"), ("stem",)]
    net.train()
    net.freeze_stages(handler.frozen(1))
    assert not net.backbone.get_submodule("layer1").training
    assert net.backbone.get_submodule("layer4").training
    net.eval().train()  # as every evaluation between two epochs does
    assert not net.backbone.get_submodule("layer1").training
    net.freeze_stages(handler.frozen(3))
    assert net.backbone.get_submodule("layer1").training
    assert [name for name, ps in net.stage_parameters().items() if not ps[0].requires_grad] == ["stem"]


def test_frozen_batch_norm_keeps_statistics_but_not_weights(dataset_dir: Path, tmp_path: Path) -> None:
    touched = changed(train(dataset_dir, tmp_path, freeze_batch_norm=True))
    assert not any("running" in key or "batches_tracked" in key for key in touched)
    assert "backbone.bn1.weight" in touched


def test_l2_sp_is_the_gradient_of_its_penalty() -> None:
    net = network().double()
    handler = FineTuning(net, l2_sp=0.3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    start = network().double().state_dict()
    penalty = sum(
        0.15 * (p - start[key]).square().sum() for key, p in net.named_parameters() if key.startswith("backbone.")
    )
    expected = torch.autograd.grad(penalty, list(net.backbone.parameters()))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    handler._pull(None)  # type: ignore[arg-type]
    for parameter, gradient in zip(net.backbone.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-12)
    assert all(not p.grad.any() for p in net.head.parameters())


def test_l2_sp_keeps_weights_near_their_start(dataset_dir: Path, tmp_path: Path) -> None:
    distances = {}
    for strength in (0.0, 50.0):
        trained = train(dataset_dir, tmp_path / str(strength), l2_sp=strength)
        start = trained.start  # type: ignore[has-type]
        distances[strength] = sum(
            float((p.detach() - start[f"backbone.{key}"]).norm()) for key, p in trained.backbone.named_parameters()
        )
    assert distances[50.0] < 0.9 * distances[0.0]


def test_a_resumed_run_goes_on_as_it_would_have(dataset_dir: Path, tmp_path: Path) -> None:
    """Thawing in epoch 2, rates by depth and the start of L2-SP survive a stop after epoch 1, bit for bit."""
    options = {"freeze": {"stem": 1, "stage1": 1}, "layer_decay": 0.7, "head_lr_factor": 2.0, "l2_sp": 0.5}
    whole = train(dataset_dir, tmp_path / "whole", **options)
    train_ids = {f"fine_tuning#{name}": value for name, value in options.items()}
    first = training(dataset_dir, tmp_path / "cut", max_epochs=1, **train_ids)
    first.initialize()
    first.run()
    second = training(dataset_dir, tmp_path / "cut", resume=True, **train_ids)
    second.initialize()
    resumed = second.parser.get_parsed_content("network")
    second.run()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("freeze", {"layer1": None}, "'layer1' is not one of stem, stage1"),
        ("freeze", {"stem": "x"}, "neither a number of epochs nor null"),
        ("layer_decay", 0.0, "must lie in"),
        ("layer_decay", 7, "must lie in"),
        ("head_lr_factor", -1.0, "head_lr_factor -1.0 must be positive"),
        ("l2_sp", -1.0, "must not be negative"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    dataset_dir: Path, tmp_path: Path, option: str, value: object, reason: str
) -> None:
    ids = {**TINY, "dataset_dir": str(dataset_dir), "num_classes": 3, f"fine_tuning#{option}": json.dumps(value)}
    with pytest.raises(InputError, match=reason):
        train_bundle(SUBTOMOGRAMS, tmp_path / "run", ids={**ids, "device": "cpu"})
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize("name", ["swin3d_t", "mvit_v2_s"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_frozen_transformers_draw_no_stochastic_depth(name: str) -> None:
    net = VideoClassifier(2, backbone=name, clip_size=(4, 32, 32), precision="float32").train()
    volumes = torch.rand(2, 1, 8, 9, 10)
    net.freeze_stages(STAGES)
    assert torch.equal(net(volumes), net(volumes))


def test_a_stage_that_thaws_trains_on(dataset_dir: Path, tmp_path: Path) -> None:
    # The fused SGD of torch 2.15 cannot have weights with and without momentum in one group.
    workflow = training(dataset_dir, tmp_path, **{"fine_tuning#freeze": {"stem": 1}})
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    start = [weights.clone() for weights in network.stage_parameters()["stem"]]
    seen = []

    def look(engine: Engine) -> None:
        now = network.stage_parameters()["stem"]
        seen.append(all(torch.equal(before, after) for before, after in zip(start, now, strict=True)))

    workflow.parser.get_parsed_content("train#trainer").add_event_handler(Events.EPOCH_COMPLETED, look)
    workflow.run()
    assert seen == [True, False]
