"""Batch norm with the statistics of the whole batch, when each rank has a share of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class RankBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm`` for CPUs, where that does not run.

    In evaluation, and without other ranks, it is an ordinary batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions, as ``SyncBatchNorm``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, ...)`, the share of this rank."""
        if not self.training or not dist.is_initialized():
            output: Tensor = super().forward(input)
            return output
        factor = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain mean over batches
                factor = 1.0 / float(self.num_batches_tracked)
        output, mean, variance, count = _Normalisation.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            number = float(count)
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            # As nn.BatchNorm: normalised by the biased variance, remembered as the unbiased one.
            self.running_var.lerp_((variance * (number / (number - 1))).to(self.running_var), factor)
        return output


class _Normalisation(torch.autograd.Function):
    """Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1, and its gradients, with sums over all ranks."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        dims = [0, *range(2, input.dim())]
        values = input.float()
        own = values.numel() // values.shape[1]
        variance, mean = torch.var_mean(values, dims, correction=0)
        parts = [torch.empty(2, input.shape[1]) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, torch.stack([mean, variance]))
        # Every rank has as many: the mean of means, and of variances about that mean.
        means, variances = torch.stack(parts).double().unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        count = torch.tensor(float(own * len(parts)))
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(input, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> Any:
        input, weight, mean, variance, count = ctx.saved_tensors
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        inverse = torch.rsqrt(variance + ctx.eps)
        normed = (input.float() - mean.view(shape)) * inverse.view(shape)
        gradient = gradient.float()
        sums = torch.stack([gradient.sum(dims), (gradient * normed).sum(dims)])
        own = sums.clone()  # of this rank alone: gradients of parameters are averaged later
        dist.all_reduce(sums)
        offset, slope = (sums / count).unbind(0)
        scale = inverse if weight is None else inverse * weight
        towards = (gradient - offset.view(shape) - normed * slope.view(shape)) * scale.view(shape)
        of_weight = None if weight is None else own[1].to(weight)
        return towards.to(input), of_weight, None if weight is None else own[0].to(weight), None


def normalise_over_ranks(network: nn.Module) -> None:
    """Make batch norm layers of a network those of all ranks, by their class alone: tensors and names stay.

    They become ``torch.nn.SyncBatchNorm`` on GPUs, and `RankBatchNorm` on CPUs.
    """
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            on_gpu = next(network.parameters()).device.type == "cuda"
            layer.__class__ = nn.SyncBatchNorm if on_gpu else RankBatchNorm
            layer.process_group = None  # type: ignore[assignment]  # all ranks
