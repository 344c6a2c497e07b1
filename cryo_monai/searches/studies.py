"""Optuna behind four calls: propose, adopt what was proposed before, ask whether to stop, tell what came of it.

A study is in memory only, and is the same after the same calls: the sampler is seeded by the seed of the search and the
number of the proposal, so that a study rebuilt from a journal proposes what the one before it would have.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from cryo_monai.errors import InputError
from cryo_monai.searches.settings import Search
from cryo_monai.searches.spaces import Choices, Range, grid_points

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


class Study:
    """Proposals of one search, numbered from 0 in the order in which they were made.

    Parameters
    ----------
    search : Search
        That `cryo_monai.searches.checks.fit_search` has seen.

    Raises
    ------
    InputError
        When Optuna is not installed.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self._optuna = _optuna()
        self._grid = grid_points(search.space) if search.sampler == "grid" else []
        self._distributions = {name: self._distribution(values) for name, values in search.space.items()}
        self._study = self._optuna.create_study(
            direction="minimize" if search.minimised else "maximize", pruner=self._pruner()
        )
        self._trials: list[Any] = []

    def propose(self) -> dict[str, Any]:
        """Make the next proposal."""
        if self._grid:
            proposal = self._grid[len(self._trials)]
            self.adopt(proposal)
            return proposal
        self._study.sampler = self._sampler(len(self._trials))
        trial = self._study.ask(self._distributions)
        self._trials.append(trial)
        return {name: self._decoded(name, value) for name, value in trial.params.items()}

    def adopt(self, proposal: Mapping[str, Any]) -> None:
        """Take a proposal that was made before as the next one."""
        self._study.enqueue_trial({name: self._encoded(name, value) for name, value in proposal.items()})
        self._trials.append(self._study.ask(self._distributions))

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take the value of a proposal after an epoch; return whether it is so poor that it should end there."""
        self._trials[number].report(value, epoch)
        return bool(self._trials[number].should_prune())

    def tell(self, number: int, state: str, value: float | None = None) -> None:
        """Say how a proposal ended.

        A failed one, most likely of a loss that was not finite, counts as worse than any that was stopped: Optuna's
        own failed trials would not keep the sampler from going there again.
        """
        states = self._optuna.trial.TrialState
        if state == COMPLETE:
            self._study.tell(self._trials[number], value)
        else:
            self._study.tell(self._trials[number], state=states.PRUNED)

    def _distribution(self, values: Range | Choices) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, Choices):
            return kinds.CategoricalDistribution([_text(value) for value in values.values])
        if values.whole:
            return kinds.IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
        return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)

    def _encoded(self, name: str, value: Any) -> Any:
        return _text(value) if isinstance(self.search.space[name], Choices) else value

    def _decoded(self, name: str, value: Any) -> Any:
        return json.loads(value) if isinstance(self.search.space[name], Choices) else value

    def _sampler(self, number: int) -> Any:
        seed = int(np.random.SeedSequence([self.search.seed, number]).generate_state(1)[0])
        if self.search.sampler == "random":
            return self._optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # Proposals that are still running count as poor, so that several workers do not crowd: experimental in
            # Optuna 4, the default in Optuna 5.
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _pruner(self) -> Any:
        rule = self.search.stop_early
        if rule is None:
            return self._optuna.pruners.NopPruner()
        return self._optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rule.min_epochs, reduction_factor=rule.reduction_factor
        )


def _text(value: Any) -> str:
    """Write a choice as text, which is all that Optuna takes without complaint."""
    return json.dumps(value, sort_keys=True)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise InputError('a search needs Optuna: pip install "cryo-monai[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
