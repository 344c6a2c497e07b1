"""A bundle, overlays and overrides -> a MONAI ``ConfigWorkflow`` whose every id exists."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from cryo_monai.errors import InputError, unwrapped_errors
from cryo_monai.trusts import SUMS, require_trust

# What each kind of workflow reads from a bundle's configs folder, later files winning.
FILES = {"train": ("train.json",), "evaluate": ("train.json", "evaluate.json"), "inference": ("inference.json",)}
WORKFLOW_TYPES = {"train": "train", "evaluate": "train", "inference": "inference"}


def load_workflow(
    bundle: str | os.PathLike[str],
    kind: str,
    *,
    overlays: Sequence[str | os.PathLike[str]] = (),
    overrides: Mapping[str, Any] | None = None,
) -> ConfigWorkflow:
    """Compose a bundle's configuration and refuse what it does not know.

    Parameters
    ----------
    bundle : path
        Folder with ``configs/``.
    kind : str
        ``"train"``, ``"evaluate"`` or ``"inference"``.
    overlays : sequence of path
        JSON files whose ids replace the bundle's; ids that only another workflow of the bundle has are passed over.
    overrides : mapping, optional
        Ids such as ``"train#trainer#max_epochs"`` to values; text is read as JSON where the configured value is not
        text.

    Returns
    -------
    ConfigWorkflow
        Not yet initialised.

    Raises
    ------
    InputError
        For missing or broken files, for ids that the bundle does not have, with the nearest that it has, and for a
        package that is not trusted.
    """
    configs = Path(bundle) / "configs"
    files = [configs / name for name in FILES[kind]]
    if kind != "train" and has_workflow(bundle, "train") and not has_workflow(bundle, kind):
        raise InputError(f"{bundle}: has no {files[-1].name}; it makes weights that others begin from (--weights)")
    missing = [str(file) for file in (*files, *map(Path, overlays)) if not Path(file).is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file; name a bundle folder and overlay files")
    if (Path(bundle) / SUMS).is_file():
        require_trust(bundle)
    parser = _parse(files)
    there = [name for name in FILES if has_workflow(bundle, name)]
    known = {name: _parse([configs / part for part in FILES[name]]) for name in there}
    chosen: dict[str, Any] = {}
    for overlay in overlays:
        for identifier, value in _read_overlay(Path(overlay)).items():
            if not any(identifier in other for other in known.values()):
                raise InputError(f"{overlay}: {_unknown(identifier, known.values())}")
            if identifier in parser:
                _choose(chosen, identifier, value)
    for identifier, value in (overrides or {}).items():
        if identifier not in parser:
            raise InputError(f"--{_unknown(identifier, [parser])}")
        _choose(chosen, identifier, _typed(identifier, value, parser[identifier]))
    monai_logger = logging.getLogger("monai.bundle.workflows")
    level = monai_logger.level
    monai_logger.setLevel(logging.ERROR)  # it tells where logging.conf is, every time
    try:
        return ConfigWorkflow(
            workflow_type=WORKFLOW_TYPES[kind],
            config_file=[str(file) for file in files],
            meta_file=str(configs / "metadata.json"),
            logging_file=str(configs / "logging.conf"),
            **{"bundle_root": str(bundle), **chosen},
        )
    finally:
        monai_logger.setLevel(level)


def has_workflow(bundle: str | os.PathLike[str], kind: str) -> bool:
    """Whether a bundle has that kind of workflow; those that only pre-train have neither evaluation nor inference."""
    return all((Path(bundle) / "configs" / name).is_file() for name in FILES[kind])


def _choose(chosen: dict[str, Any], identifier: str, value: Any) -> None:
    """Set an id after all that were set before: they are applied in order, and ``a`` and ``a#b`` overlap."""
    chosen.pop(identifier, None)
    chosen[identifier] = value


def run_workflow(workflow: ConfigWorkflow) -> None:
    """Initialise, run and finalise; errors of this package come out as they were raised."""
    with unwrapped_errors():
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def _parse(files: Sequence[Path]) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except (ValueError, OSError) as error:
        raise InputError(f"{files[-1]}: not readable as JSON ({str(error).splitlines()[0]})") from error
    return parser


def _read_overlay(overlay: Path) -> dict[str, Any]:
    """Return the ids that an overlay sets, with their values; ``a#b`` names a nested one."""
    try:
        content = json.loads(overlay.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise InputError(f"{overlay}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{overlay}: an overlay must be a JSON object of ids")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _unknown(identifier: str, parsers: Any) -> str:
    names = sorted({name for parser in parsers for name in _flatten(parser.get())})
    near = get_close_matches(identifier, names, n=1)
    return f"{identifier}: no such id in this bundle" + (f"; did you mean {near[0]}?" if near else "")


def _flatten(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not key.startswith("_"):
                yield f"{prefix}{key}"
                yield from _flatten(value, f"{prefix}{key}#")


def flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the ids of a configuration, such as ``train#trainer#max_epochs``, with their values; lists are values."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}#")
        elif key != "_desc_":
            yield f"{prefix}{key}", value


def _typed(identifier: str, value: Any, configured: Any) -> Any:
    """Read text from the command line as the type that the configuration has there."""
    if not isinstance(value, str) or value.startswith(("$", "@", "%")):
        return value
    if isinstance(configured, str):
        if configured.startswith("@"):
            raise InputError(f"--{identifier} {value}: give a reference, such as {configured}")
        if not configured.startswith(("$", "%")):
            return value
    try:
        read = {"True": True, "False": False, "None": None}[value] if value in _WORDS else json.loads(value)
    except ValueError:
        read = value
    expected = _expected(configured, read)
    if expected:
        raise InputError(f"--{identifier} {value}: give {expected}, as {json.dumps(configured)}")
    return read


_WORDS = ("True", "False", "None")


def _expected(configured: Any, value: Any) -> str | None:
    """Say what should have been given, when a value cannot stand for the configured one."""
    if isinstance(configured, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(configured, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and (value >= 0 or configured < 0) else "a whole number that is not negative"
    if isinstance(configured, float):
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    if isinstance(configured, list):
        return None if isinstance(value, list) else "a list"
    if isinstance(configured, dict):
        return None if isinstance(value, dict) else "an object"
    return None
