"""What to train how fast: learning rates by depth, frozen stages, frozen BatchNorm, and decay towards the start.

All of it is off by default, as in the paper, which trains every weight.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from cryo_monai.errors import InputError
from cryo_monai.networks import VideoClassifier

logger = logging.getLogger(__name__)


def parameter_groups(
    network: VideoClassifier,
    *,
    lr: float,
    weight_decay: float = 0.0,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    l2_sp: float = 0.0,
    freeze: Mapping[str, int | None] | None = None,
) -> list[dict[str, Any]]:
    """Sort parameters into groups for an optimiser of ``torch.optim``.

    Parameters
    ----------
    network : VideoClassifier
        Whose stages are told apart.
    lr : float
        Learning rate of the last stage of the backbone.
    weight_decay : float
        Of all parameters; of the head alone when there is ``l2_sp``.
    head_lr_factor : float
        The head learns at ``lr`` times this.
    layer_decay : float
        Each stage before the last learns at this times the rate of the one after it (Howard & Ruder 2018, arXiv
        1801.06146; ``layer_decay`` of Clark et al. 2020, arXiv 2003.10555).
    l2_sp : float
        See `FineTuning`: it takes the place of weight decay in the backbone.
    freeze : mapping, optional
        See `FineTuning`. Stages that may thaw need groups of their own: torch's fused SGD wants all weights of a group
        to have momentum, or none.

    Returns
    -------
    list of dict
        One group of everything when nothing differs; else the stages from the last to the stem, then the head.

    Raises
    ------
    InputError
        When a factor is out of its range.
    """
    if not head_lr_factor > 0:
        raise InputError(f"fine_tuning: head_lr_factor {head_lr_factor} must be positive")
    if not 0 < layer_decay <= 1:
        raise InputError(f"fine_tuning: layer_decay {layer_decay} must lie in (0, 1]")
    if not l2_sp >= 0:
        raise InputError(f"fine_tuning: l2_sp {l2_sp} must not be negative")
    if head_lr_factor == layer_decay == 1.0 and l2_sp == 0.0 and not freeze:
        return [{"params": list(network.parameters())}]
    groups = []
    stages = network.stage_parameters()
    for steps, parameters in enumerate(reversed(list(stages.values()))):
        decay = 0.0 if l2_sp else weight_decay
        groups.append({"params": parameters, "lr": lr * layer_decay**steps, "weight_decay": decay})
    groups.append({"params": list(network.head.parameters()), "lr": lr * head_lr_factor, "weight_decay": weight_decay})
    names = (*reversed(stages), "head")
    rates = ", ".join(f"{name} {group['lr']:.3g}" for name, group in zip(names, groups, strict=True))
    logger.info("learning rates: %s%s", rates, f"; decay towards the start: {l2_sp:g}" if l2_sp else "")
    return groups


class FineTuning:
    """Trainer handler: freeze stages, freeze BatchNorm, pull weights towards their start.

    Which stages are frozen follows from the epoch alone, so that a resumed training goes on as it would have.

    Parameters
    ----------
    network : VideoClassifier
        Initialised: its weights at this point are the start.
    freeze : mapping, optional
        Stage (``"stem"``, ``"stage1"`` to ``"stage4"``, or ``"backbone"`` for all of them) to the number of epochs it
        stays frozen, null for always. A frozen stage keeps its weights and running statistics and drops nothing out.
    freeze_batch_norm : bool
        Keep the running statistics of every BatchNorm in the backbone, and normalise by them.
    l2_sp : float
        Strength a of the penalty ``a/2 |w - w0|^2`` on the backbone's distance to its start (L2-SP, Li, Grandvalet &
        Davoine 2018, arXiv 1802.01483).

    Raises
    ------
    InputError
        For unknown stages or impossible numbers.
    """

    def __init__(
        self,
        network: VideoClassifier,
        *,
        freeze: Mapping[str, int | None] | None = None,
        freeze_batch_norm: bool = False,
        l2_sp: float = 0.0,
    ) -> None:
        stages = network.stage_parameters()
        self.network = network
        self.epochs: dict[str, int | None] = {}
        for name, epochs in (freeze or {}).items():
            if name != "backbone" and name not in stages:
                raise InputError(f"fine_tuning: freeze {name!r} is not one of {', '.join(stages)}, backbone")
            if epochs is not None and (not isinstance(epochs, int) or epochs < 0):
                raise InputError(f"fine_tuning: freeze {name!r}: {epochs!r} is neither a number of epochs nor null")
            for stage in stages if name == "backbone" else (name,):
                self.epochs[stage] = epochs
        network.freeze_batch_norm = freeze_batch_norm
        self.l2_sp = l2_sp
        self._shown: tuple[str, ...] = ()
        self._start: list[tuple[Tensor, Tensor]] = []
        if l2_sp:
            self._start = [(p, p.detach().clone()) for group in stages.values() for p in group]

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._freeze)
        if self.l2_sp:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._pull)

    def frozen(self, epoch: int) -> tuple[str, ...]:
        """Return the stages that are frozen in an epoch, counted from 1."""
        return tuple(name for name, epochs in self.epochs.items() if epochs is None or epoch <= epochs)

    def _freeze(self, engine: Engine) -> None:
        frozen = self.frozen(engine.state.epoch)
        if frozen != self._shown:
            logger.info("epoch %d: frozen stages: %s", engine.state.epoch, ", ".join(frozen) or "none")
            self._shown = frozen
        self.network.freeze_stages(frozen)

    @torch.no_grad()
    def _pull(self, engine: Engine) -> None:
        for parameter, start in self._start:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.l2_sp)
