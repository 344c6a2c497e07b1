"""A search against the configuration of the bundle that it changes, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from monai.bundle import ConfigParser

from cryo_monai.errors import InputError
from cryo_monai.searches.settings import Search, nearest
from cryo_monai.searches.spaces import Choices, Range, grid_points, is_number

_REFERENCES = ("@", "%", "$")


def fit_search(search: Search, configuration: ConfigParser, about: str) -> Search:
    """Check a search against the configuration that it changes, and find where only whole numbers will do.

    Parameters
    ----------
    search : Search
        From `read_search`.
    configuration : ConfigParser
        Of the bundle, with overlays and ids.
    about : str
        What messages begin with.

    Raises
    ------
    InputError
        For ids, references or metrics that the bundle does not have, and values that cannot stand there.
    """
    names = [name for name, _ in _identifiers(configuration.get())]
    space: dict[str, Range | Choices] = {}
    for name, values in search.space.items():
        if name not in configuration:
            raise InputError(f"{about}: space: {name}: no such id in this bundle{nearest(name, names)}")
        configured = _followed(configuration, name)
        if isinstance(values, Range):
            space[name] = _fit_range(values, configured, f"{about}: space: {name}")
        else:
            for value in values.values:
                _check_choice(value, configured, configuration, names, f"{about}: space: {name}")
            space[name] = values
    metrics = _metrics(configuration)
    if search.metric not in metrics:
        raise InputError(f"{about}: metric: no {search.metric!r} in this bundle; there are {', '.join(metrics)}")
    fitted = replace(search, space=space)
    if search.sampler == "grid":
        number = len(grid_points(space, about))
        fitted = replace(fitted, trials=min(search.trials or number, number))
    epochs = _followed(configuration, "max_epochs")
    if search.stop_early and "max_epochs" not in space and search.stop_early.min_epochs >= epochs:
        raise InputError(f"{about}: stop_early: min_epochs {search.stop_early.min_epochs} is not below {epochs} epochs")
    return fitted


def _fit_range(values: Range, configured: Any, place: str) -> Range:
    if not is_number(configured):
        raise InputError(f"{place}: {json.dumps(configured)} is no number; give 'choices'")
    if not isinstance(configured, int):
        return values
    numbers = [number for number in (values.low, values.high, values.step) if number is not None]
    if any(number != int(number) for number in numbers):
        raise InputError(f"{place}: is a whole number, {configured}; give whole low, high and step")
    return replace(values, whole=True)


def _check_choice(value: Any, configured: Any, configuration: ConfigParser, names: Sequence[str], place: str) -> None:
    if isinstance(value, str) and value.startswith(_REFERENCES):
        if value.startswith("@") and value[1:] not in configuration:
            near = get_close_matches(value[1:], names, n=1)
            hint = f"; did you mean @{near[0]}?" if near else ""
            raise InputError(f"{place}: {value}: no such id in this bundle{hint}")
        return
    if value is None or configured is None or _kind(value) == _kind(configured):
        return
    raise InputError(f"{place}: {json.dumps(value)} cannot stand for {json.dumps(configured)}")


def _kind(value: Any) -> str:
    """Name what may stand for each other; references and expressions stand for themselves alone."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "reference" if value.startswith(_REFERENCES) else "text"
    return type(value).__name__


def _followed(configuration: ConfigParser, name: str) -> Any:
    """Return what is configured for an id, following plain references."""
    value = configuration[name]
    for _ in range(10):  # more than any bundle has; a circle ends
        if not (isinstance(value, str) and value.startswith("@") and value[1:] in configuration):
            break
        if isinstance(configuration[value[1:]], (dict, list)):
            break  # a part, not a value: choices name another
        value = configuration[value[1:]]
    return value


def _metrics(configuration: ConfigParser) -> list[str]:
    """Return the columns of the history that say how good a training is."""
    places = ("validate#key_metric", "validate#additional_metrics", "train#key_metric")
    named = [name for place in places if place in configuration for name in configuration[place] if name[0] != "_"]
    return [*named, "train_loss"]


def _identifiers(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in content.items():
        if not key.startswith("_"):
            found.append((f"{prefix}{key}", value))
            if isinstance(value, Mapping):
                found += _identifiers(value, f"{prefix}{key}#")
    return found
