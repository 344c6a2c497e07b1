"""The key ``search`` of a sweep file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.searches.spaces import Choices, Range, is_number
from cryo_monai.sweep_results.layouts import SEED
from cryo_monai.sweeps.outcomes import Value
from cryo_monai.sweeps.sweep_files import Sweep

KEYS = ("space", "trials", "sampler", "seed", "seeds", "metric", "stop_early")
SAMPLERS = ("tpe", "random", "grid")


@dataclass(frozen=True)
class StopEarly:
    """When poor proposals end early: asynchronous successive halving.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", MLSys (arXiv 1810.05934), algorithm 2, in
    Optuna's variant: what does not go on ends for good, and the first few go on when they are the best so far.

    Attributes
    ----------
    min_epochs : int
        Proposals are compared after so many epochs, then after ``reduction_factor`` times as many, and so on.
    reduction_factor : int
        One in so many goes on; 4 is Optuna's default.
    """

    min_epochs: int = 1
    reduction_factor: int = 4


@dataclass(frozen=True)
class Search:
    """The key ``search`` of a sweep file.

    Attributes
    ----------
    space : dict
        Id of the bundle to its values.
    trials : int or None
        Proposals for each cell; None: every point of a grid.
    sampler : str
        ``"tpe"``, ``"random"`` or ``"grid"``.
    seed : int
        Of the sampler.
    seeds : tuple
        Values of the axis ``seed`` over which the value of a proposal is the mean; empty without such an axis.
    metric : str
        Column of the history.
    stop_early : StopEarly or None
        See there.
    """

    space: dict[str, Range | Choices]
    trials: int | None
    sampler: str = "tpe"
    seed: int = 0
    seeds: tuple[Value, ...] = ()
    metric: str = "val_accuracy"
    stop_early: StopEarly | None = None
    described: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def minimised(self) -> bool:
        """Whether less is better: for losses."""
        return self.metric.endswith("loss")

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.minimised else max(values)


def read_search(sweep: Sweep) -> Search:
    """Read the key ``search`` of a sweep file; docs/sweeps.md says what may be in it.

    Raises
    ------
    InputError
        In one line naming the file and the key.
    """
    reader = _Reader(sweep.path)
    content = reader.object("search", sweep.content.get("search"), KEYS)
    space = content.get("space")
    if not isinstance(space, dict) or not space:
        raise reader.error("give 'space', an object of ids and their values")
    for name in space:
        if name == SEED:
            raise reader.error("space: seed is not searched for, as that finds the luckiest; make it an axis")
        if name in sweep.axes:
            raise reader.error(f"space: {name} is an axis; search for it, or have it as an axis")
    sampler = content.get("sampler", "tpe")
    if sampler not in SAMPLERS:
        raise reader.error(f"sampler {sampler!r}; give one of {', '.join(SAMPLERS)}")
    metric = content.get("metric", "val_accuracy")
    if not isinstance(metric, str):
        raise reader.error(f"metric {metric!r} is not a name")
    trials = content.get("trials")
    if trials is not None or sampler != "grid":
        trials = reader.whole("trials", trials, least=1)
    return Search(
        space={name: reader.values(name, value) for name, value in space.items()},
        trials=trials,
        sampler=sampler,
        seed=reader.whole("seed", content.get("seed", 0), least=0),
        seeds=_seeds(reader, content, sweep),
        metric=metric,
        stop_early=reader.stop_early(content.get("stop_early")),
        described={key: value for key, value in content.items() if key != "trials" and not key.startswith("_")},
    )


class _Reader:
    """Reads parts of a search, and says which of them is wrong."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def error(self, text: str) -> InputError:
        return InputError(f"{self.file}: search: {text}")

    def object(self, place: str, content: Any, known: Sequence[str]) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise self.error(f"{place} is not an object with {', '.join(known)}")
        for key in content:
            if key not in known and not key.startswith("_"):
                raise self.error(f"no such key {key!r}{nearest(key, known) or '; there are ' + ', '.join(known)}")
        return content

    def whole(self, place: str, value: Any, *, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(f"{place}: give a whole number from {least} on")
        return value

    def values(self, name: str, content: Any) -> Range | Choices:
        place = f"space: {name}"
        if isinstance(content, dict) and "choices" in content:
            choices = self.object(place, content, ("choices",))["choices"]
            texts = [json.dumps(choice, sort_keys=True) for choice in choices] if isinstance(choices, list) else []
            if len(texts) < 2 or len(set(texts)) < len(texts):
                raise self.error(f"{place}: 'choices' is a list of two different values or more")
            return Choices(tuple(choices))
        content = self.object(place, content, ("low", "high", "log", "step", "choices"))
        low, high, step, log = (content.get(key) for key in ("low", "high", "step", "log"))
        if not (is_number(low) and is_number(high) and low < high):
            raise self.error(f"{place}: give numbers 'low' below 'high', or 'choices'")
        if step is not None and not (is_number(step) and 0 < step <= high - low):
            raise self.error(f"{place}: 'step' {step} does not lie between 0 and high - low")
        if log not in (None, True, False) or (log and (low <= 0 or step is not None)):
            raise self.error(f"{place}: 'log' is true or false, takes a low above 0, and no step")
        return Range(low, high, bool(log), step)

    def stop_early(self, content: Any) -> StopEarly | None:
        if content is None:
            return None
        given = self.object("stop_early", content, ("min_epochs", "reduction_factor"))
        least, factor = StopEarly.min_epochs, StopEarly.reduction_factor
        return StopEarly(
            self.whole("stop_early: min_epochs", given.get("min_epochs", least), least=1),
            self.whole("stop_early: reduction_factor", given.get("reduction_factor", factor), least=2),
        )


def _seeds(reader: _Reader, content: Mapping[str, Any], sweep: Sweep) -> tuple[Value, ...]:
    there = [setting.name for setting in sweep.axes.get(SEED, [])]
    wanted = content.get("seeds", there[:1])
    if not isinstance(wanted, list) or any(value not in there for value in wanted) or (there and not wanted):
        listed = ", ".join(map(str, there)) or "none"
        raise reader.error(f"seeds: give a list of values of the axis seed; there are {listed}")
    return tuple(dict.fromkeys(wanted))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ``; did you mean NAME?``, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
