"""What ids of a bundle may be in a search: ranges of numbers, and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from cryo_monai.errors import InputError


@dataclass(frozen=True)
class Range:
    """Numbers that an id may have, both ends included.

    Attributes
    ----------
    low, high : float
        Ends.
    log : bool
        Draw from the logarithm.
    step : float, optional
        Only ``low``, ``low + step``, and so on.
    whole : bool
        Only whole numbers, as the bundle has one there; see `cryo_monai.searches.checks`.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that say whether all between them can be used."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def points(self) -> list[Any] | None:
        """Return all values; None where there is no end of them."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = [round(self.low + number * step, 12) for number in range(count)]
        return [int(value) for value in values] if self.whole else values


@dataclass(frozen=True)
class Choices:
    """Values that an id may have: numbers, text, references such as ``"@optimizers#adam"``, lists, objects."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def points(self) -> list[Any]:
        """Return all values."""
        return list(self.values)


Space = Mapping[str, Range | Choices]


def grid_points(space: Space, about: str = "search") -> list[dict[str, Any]]:
    """Return every combination of the values of a space, the last id changing fastest.

    Raises
    ------
    InputError
        For a range without step.
    """
    values = {name: entry.points() for name, entry in space.items()}
    for name, points in values.items():
        if points is None:
            raise InputError(f"{about}: space: {name}: a grid takes 'choices', or 'low', 'high' and 'step'")
    return [dict(zip(values, point, strict=True)) for point in product(*(points or [] for points in values.values()))]


def is_number(value: Any) -> bool:
    """Whether something from JSON is a number that can be reckoned with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
