"""What several ranks compute together, checked against one process; started by test_parallel.py through torchrun."""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cryo_monai.datasets import ResumableSampler
from cryo_monai.errors import InputError
from cryo_monai.metrics import EpochMetric, accuracy
from cryo_monai.parallel import (
    average_gradients,
    in_order,
    is_first,
    largest,
    mean,
    num_ranks,
    over_ranks,
    rank,
    rank_indices,
    rank_share,
)
from cryo_monai.workflows import load_workflow, run_workflow


def layers(momentum: float | None, *, affine: bool) -> nn.Module:
    torch.manual_seed(1)
    options = {"momentum": momentum, "affine": affine}
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm3d(8, **options),
        nn.ReLU(),
        nn.Conv3d(8, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4, **options),
        nn.Flatten(),
        nn.Linear(4 * 64, 3),
    )


def check_batch_norm(momentum: float | None, *, affine: bool) -> None:
    alone, shared = layers(momentum, affine=affine), over_ranks(layers(momentum, affine=affine))
    names = [key for key, _ in alone.state_dict().items()]
    assert list(shared.state_dict()) == names
    wrapped = average_gradients(shared)
    for seed in range(3):
        torch.manual_seed(seed)
        volumes, labels = torch.randn(8, 1, 4, 4, 4) * 3 + 5, torch.randint(0, 3, (8,))
        expected = alone(volumes)
        nn.functional.cross_entropy(expected, labels).backward()
        mine = slice(rank(), None, num_ranks())
        scores = wrapped(volumes[mine])
        nn.functional.cross_entropy(scores, labels[mine]).backward()
        torch.testing.assert_close(scores, expected[mine], rtol=1e-4, atol=1e-5)
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    for one, other in zip(alone.buffers(), shared.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    alone.eval()
    # In evaluation ranks may have unequal shares: nothing is exchanged.
    torch.testing.assert_close(shared.eval()(volumes[: 1 + rank()]), alone(volumes[: 1 + rank()]), rtol=1e-4, atol=1e-5)
    assert not any(type(layer) is nn.BatchNorm3d for layer in shared.modules() if isinstance(layer, _BatchNorm))


def check_agreement() -> None:
    assert largest(10 * rank()) == 10 * (num_ranks() - 1)
    assert mean(float(rank())) == (num_ranks() - 1) / 2
    assert math.isnan(mean(math.nan if rank() else 0.0))


def check_unequal_shares() -> None:
    for number in (num_ranks(), 5, 8):
        torch.manual_seed(number)
        rows, labels = torch.rand(number, 3), torch.randint(0, 3, (number,))
        mine = torch.tensor(list(rank_indices(range(number))))
        assert torch.equal(in_order(rows[mine]), rows)
        metric = EpochMetric(accuracy, check_compute_fn=False)
        for index in mine:  # batches of one
            metric.update((rows[index][None], labels[index][None]))
        assert metric.compute() == accuracy(rows, labels)


def check_order() -> None:
    for number, batch_size in ((18, 8), (19, 8), (15, 8), (16, 4), (6, 8)):
        samplers = [
            ResumableSampler(range(number), seed=3),
            ResumableSampler(range(number), seed=3, num_replicas=1, rank=0),
        ]
        batches = []
        for sampler, size in zip(samplers, (rank_share(batch_size), batch_size), strict=True):
            sampler.set_epoch(2)
            sampler.skip = batch_size if number == 16 else 0
            loader = torch.utils.data.DataLoader(
                range(number), batch_size=size, sampler=sampler, drop_last=number >= batch_size
            )
            batches.append([batch.tolist() for batch in loader])
        shares, whole = batches
        assert shares == [batch[rank() :: num_ranks()] for batch in whole], (number, batch_size)


def check_refusals() -> None:
    with pytest.raises(InputError, match="does not divide among 2 ranks; give a multiple of 2"):
        rank_share(5)
    reason = "5 volumes are less than a batch of 8 and do not divide among 2 ranks; give --batch_size 4 or less"
    with pytest.raises(InputError, match=reason):
        rank_share(8, 5)
    with pytest.raises(InputError, match="1 volumes are fewer than 2 ranks"):
        rank_indices(range(1))


def main() -> None:
    bundle, overlay, ids = sys.argv[1:]
    over_ranks(nn.Linear(1, 1))  # joins
    assert num_ranks() == 2
    assert is_first() == (dist.get_rank() == 0)
    for momentum, affine in ((0.1, True), (None, True), (0.3, False)):
        check_batch_norm(momentum, affine=affine)
    check_agreement()
    check_unequal_shares()
    check_order()
    check_refusals()
    overrides = json.loads(ids)
    workflow = load_workflow(bundle, "train", overlays=[overlay], overrides=copy.deepcopy(overrides))
    Path(overrides["output_dir"]).mkdir(exist_ok=True)
    run_workflow(workflow)
    # The first rank goes on alone; the others have ended by now.
    assert not dist.is_initialized()
    assert is_first()
    assert num_ranks() == 1
    print("all checks passed")


if __name__ == "__main__":
    main()
