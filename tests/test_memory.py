"""The memory estimate against the memory that processes take."""

import os
import subprocess
import sys

import pytest
import torch

from cryo_monai.memory import TrainingMemory, estimate_training_memory
from cryo_monai.networks import VideoClassifier

CLIP = (16, 96, 96)

# A training step in a process of its own; what the first, tiny network brings along is not counted.
STEP = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from cryo_monai.networks import VideoClassifier
VideoClassifier(2, backbone="rb3d", clip_size=(8, 16, 16))(torch.rand(1, 1, 8, 16, 16)).sum().backward()
network = VideoClassifier(2, backbone=sys.argv[1], backbone_options=eval(sys.argv[2]), clip_size=(16, 96, 96),
                          precision="float32").train()
optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
volumes = torch.rand(int(sys.argv[3]), 1, 16, 96, 96)
for _ in range(2):
    optimizer.zero_grad()
    network(volumes).square().sum().backward()
    optimizer.step()
# Not ru_maxrss, which remembers the process that started this one.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def build(backbone: str, **options: object) -> VideoClassifier:
    return VideoClassifier(2, backbone=backbone, backbone_options=options, clip_size=CLIP, precision="float32")


def peak_rss(backbone: str, options: dict[str, object], batch_size: int) -> int:
    command = [sys.executable, "-c", STEP, backbone, repr(options), str(batch_size)]
    # Freed blocks go back to the system at once, so that the peak is one of use and not of fragmentation.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    return int(done.stdout) << 10


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("backbone", "options"),
    [("resnet18", {}), pytest.param("swin3d_t", {"gradient_checkpointing": True}, marks=pytest.mark.slow)],
)
def test_another_volume_takes_what_was_estimated(backbone: str, options: dict[str, object]) -> None:
    few, many = 2, 8
    measured = (peak_rss(backbone, options, many) - peak_rss(backbone, options, few)) / (many - few)
    estimate = estimate_training_memory(build(backbone, **options))
    assert estimate.per_sample == pytest.approx(measured, rel=0.25)


def test_the_network_is_left_as_it_was() -> None:
    network = build("resnet18", widths=[4, 8, 8, 8]).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    estimate_training_memory(network)
    assert torch.equal(torch.rand(1), expected)
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_saves_memory_is_seen_to_save_it() -> None:
    whole = estimate_training_memory(build("swin3d_t"))
    recomputed = estimate_training_memory(build("swin3d_t", gradient_checkpointing=True))
    assert recomputed.per_sample < 0.6 * whole.per_sample
    frozen = build("swin3d_t")
    frozen.freeze_stages(["stem", "stage1", "stage2", "stage3", "stage4"])
    assert estimate_training_memory(frozen).per_sample < whole.per_sample / 2
    assert estimate_training_memory(frozen).fixed < whole.fixed
    adam = estimate_training_memory(build("swin3d_t"), optimizer_states=2)
    weights = sum(p.numel() for p in build("swin3d_t").parameters()) * 4
    assert adam.fixed - whole.fixed == weights


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    memory = TrainingMemory(fixed=100, per_sample=30)
    assert memory.largest_batch(200) == 3
    assert memory.total(3) <= 200 < memory.total(4)
    assert memory.largest_batch(50) == 0
