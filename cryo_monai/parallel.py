"""Data-parallel training: one process per GPU, or several on a CPU, started by ``torchrun``.

A rank is one of these processes. Each takes its share of every batch; gradients, batch norm, losses and metrics are
those of the whole batch, and rank 0 alone writes. What ranks have to agree on goes through the CPU (gloo), so that no
GPU is waited for. In a process that ``torchrun`` did not start, everything here stands for one rank.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cryo_monai.errors import CryoMonaiError, InputError, causes
from cryo_monai.rank_norms import normalise_over_ranks

Network = TypeVar("Network", bound=nn.Module)


def is_first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return rank() == 0


def rank() -> int:
    """Return which of the processes of ``torchrun`` this one is; 0 when it is none."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def num_ranks() -> int:
    """Return how many ranks train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_device() -> torch.device:
    """Return the GPU of this rank, by ``LOCAL_RANK`` of ``torchrun``, or the CPU where there are none.

    Raises
    ------
    InputError
        When ``torchrun`` started more processes here than there are GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not dist.is_torchelastic_launched():
        return torch.device("cuda")
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise InputError(
            f"torchrun: {os.environ['LOCAL_WORLD_SIZE']} processes for {gpus} GPUs on this machine; "
            f"give --nproc_per_node {gpus}, or --device cpu"
        )
    return torch.device("cuda", local)


def over_ranks(network: Network) -> Network:
    """Join the other processes of ``torchrun``, and make batch norm use the statistics of the whole batch.

    Ranks but the first show no log lines and no warnings from here on. A failure is told once, by the rank that failed
    first. See `average_gradients` for the rest.

    Parameters
    ----------
    network : nn.Module
        On its device. Changed in place: see `normalise_over_ranks`.
    """
    if _is_to_join():
        _join(next(network.parameters()).device)
    if num_ranks() > 1:
        normalise_over_ranks(network)
    return network


def _is_to_join() -> bool:
    """Whether ``torchrun`` started several processes that do not know of each other yet."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized()


def _join(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave)
    if not is_first():
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if failed_first():
            told = in_words(error)
            previous(type(told), told, traceback)

    sys.excepthook = hook


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class AveragedGradients(nn.Module):
    """A network whose backward pass leaves the mean of all ranks' gradients in its parameters.

    Parameters
    ----------
    network : nn.Module
        What `over_ranks` returned; it stays what is evaluated and saved.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._learning: list[bool] = []
        self._wrapped: list[DistributedDataParallel] = []  # in a list, so that it is no part of this module

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute what the network does."""
        learning = [parameter.requires_grad for parameter in self.network.parameters()]
        if learning != self._learning:  # a stage was frozen or thawed, of which the wrapper takes no notice
            self._wrapped.clear()
            self._wrapped.append(self._wrap())
            self._learning = learning
        return self._wrapped[0](*inputs, **options)

    def _wrap(self) -> DistributedDataParallel:
        device = next(self.network.parameters()).device
        devices = [device] if device.type == "cuda" else None
        # Buffers are equal without being sent: batch norm has the statistics of all ranks. Torch 2.15 renamed this.
        known = signature(DistributedDataParallel.__init__).parameters
        unsent: dict[str, Any] = {next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known): False}
        return DistributedDataParallel(self.network, device_ids=devices, **unsent)


def average_gradients(network: nn.Module) -> nn.Module:
    """Wrap a network in `AveragedGradients`, where there are ranks."""
    return network if num_ranks() == 1 else AveragedGradients(network)


def rank_share(batch_size: int, num_volumes: int | None = None) -> int:
    """Return how many volumes of a batch a rank takes.

    Parameters
    ----------
    batch_size : int
        Of all ranks together.
    num_volumes : int, optional
        Of the training set, which has to divide as well when it is less than a batch.

    Raises
    ------
    InputError
        When the ranks cannot take equal shares.
    RuntimeError
        When `over_ranks` has not joined the ranks of ``torchrun`` yet: each would take all.
    """
    if _is_to_join():
        raise RuntimeError("rank_share: no ranks yet; the network (over_ranks) is to be resolved before the loaders")
    ranks = num_ranks()
    if batch_size % ranks:
        raise InputError(
            f"batch_size: {batch_size} does not divide among {ranks} ranks; give a multiple of {ranks}, "
            f"or another --nproc_per_node"
        )
    if num_volumes is not None and num_volumes < batch_size and num_volumes % ranks:
        raise InputError(
            f"training set: {num_volumes} volumes are less than a batch of {batch_size} and do not divide among "
            f"{ranks} ranks; give --batch_size {max(num_volumes // ranks, 1) * ranks} or less"
        )
    return batch_size // ranks


def rank_indices(dataset: Sized) -> range:
    """Return which items of a data set this rank validates: every rank others, and none twice.

    Raises
    ------
    InputError
        When there are fewer items than ranks.
    """
    if len(dataset) < num_ranks():
        raise InputError(f"validation set: {len(dataset)} volumes are fewer than {num_ranks()} ranks; start fewer")
    return range(rank(), len(dataset), num_ranks())


def train_over_ranks(trainer: Any) -> None:
    """Run a trainer; after that rank 0 is on its own, and the others end.

    Parameters
    ----------
    trainer : ignite.engine.Engine
        Of every rank alike.
    """
    trainer.run()
    if num_ranks() == 1:
        return
    largest(0)
    _leave()
    if not is_first():
        raise SystemExit(0)
    # What follows, such as the report, is no part of the job that torchrun started.
    del os.environ["TORCHELASTIC_RUN_ID"]


def largest(value: int) -> int:
    """Return the largest of all ranks' numbers. Every rank waits here for the others."""
    if num_ranks() == 1:
        return value
    numbers = torch.tensor([value])
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers.item())


def mean(value: float) -> float:
    """Return the mean of all ranks' numbers; NaN if one is."""
    if num_ranks() == 1:
        return value
    numbers = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(numbers)
    return numbers.item() / num_ranks()


def in_order(rows: Tensor) -> Tensor:
    """Return the rows that all ranks have, in the order of the data set.

    Parameters
    ----------
    rows : Tensor
        `(n, ...)`, n may differ between ranks: one row per item of `rank_indices`, in that order.

    Returns
    -------
    Tensor
        `(N, ...)` on the CPU.
    """
    ranks = num_ranks()
    if ranks == 1:
        return rows
    rows = rows.detach().cpu()
    most = largest(len(rows))
    padded = torch.zeros(most, *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    every = torch.zeros(sum(int(count) for count in counts), *rows.shape[1:], dtype=rows.dtype)
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        every[number::ranks] = part[: int(count)]
    return every


def failed_first() -> bool:
    """Whether no other rank is known to have failed before this one, which then is the one to say why.

    The ranks ask the store that ``torchrun`` keeps for them.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return True
    places = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"cryo_monai/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    mine = os.environ["RANK"]
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            *places, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
        return bool(store.compare_set(key, "", mine) == mine.encode())
    except RuntimeError:  # kept by a rank that is gone, or by a launcher that is busy: rather two voices than none
        return True


def in_words(error: BaseException) -> BaseException:
    """Return a one-line error for what a collective raises when another rank was lost; any other as it is."""
    for cause in causes(error):
        if isinstance(cause, dist.DistError) or (isinstance(cause, RuntimeError) and "gloo" in str(cause)):
            reason = str(cause).splitlines()[0][:200]
            return CryoMonaiError(f"another rank is gone, killed or out of memory; go on with --resume True ({reason})")
    return error


def keep_last_word() -> None:
    """Of a rank that has failed, ignore SIGTERM from now on: ``torchrun`` ends all ranks when it sees that one is gone.

    Otherwise it would often end this one before it has said why. What hangs is killed half a minute later anyway.
    """
    if num_ranks() > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def one_voice() -> Iterator[None]:
    """Let only the rank that fails first raise its error; the others end without a word."""
    try:
        yield
    except Exception as error:
        if not failed_first():
            raise SystemExit(1) from None
        told = in_words(error)
        if told is error:
            raise
        raise told from error
