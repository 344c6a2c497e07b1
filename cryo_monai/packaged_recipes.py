"""The configurations of a run's bundle with its overlays and ids merged in, so that they stand alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.runs import CIRCUMSTANCES, HOW, locations, read_json
from cryo_monai.weight_records import KINDS, all_records
from cryo_monai.workflows import load_workflow

CONFIGS = ("train.json", "evaluate.json", "inference.json", "multi_gpu_train.json")
# Ids that say where and how a run was computed: a package has those of the bundle.
_OF_THE_BUNDLE = {"dataset_dir", *HOW, *CIRCUMSTANCES} - {"_meta_"}

# "/home/me", "~/me", "file:...", "../me"; but not "/data", which configurations append to a folder.
_OF_THIS_MACHINE = re.compile(r"""(^|[\s'"=(\[,])(/[^/\s'"]+/|~[^\s'"]*/|file:|\.\./)""")


def merge_recipe(folder: Path, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compose the configurations of a package.

    Parameters
    ----------
    folder : path
        Run folder.
    record : mapping
        What `read_run` says of it.

    Returns
    -------
    dict
        File names in ``configs/`` to configurations. ``evaluate.json`` and ``multi_gpu_train.json`` stay overlays.

    Raises
    ------
    InputError
        When a configuration names a file of this machine.
    """
    bundle = Path(record["bundle"])
    original = {name: read_json(bundle / "configs" / name) for name in CONFIGS}
    kept = {name: record["ids"][name] for name in record["ids"] if name in original["inference.json"]}
    recipe = {
        "train.json": _merged(record, "train", record["ids"], folder, original["train.json"]),
        "inference.json": _merged(record, "inference", kept, folder, original["inference.json"]),
        **{
            name: _overlaid(original[name], record["overlays"])
            for name in CONFIGS
            if name not in ("train.json", "inference.json")
        },
    }
    recipe["train.json"]["weights"] = _portable_weights(recipe["train.json"]["weights"])
    for name, configuration in recipe.items():
        for identifier, text in _texts(configuration):
            if _OF_THIS_MACHINE.search(text):
                raise InputError(f"{folder}: {identifier} in {name} has a path of this machine: {text}")
    recipe["train.json"]["_desc_"] = _description(record)
    return recipe


def portable_initialisation(record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the weights that a run started from, without folders of this machine."""
    start = {name: value for name, value in record.get("initialisation", {}).items() if name != "keys"}
    described: dict[str, Any] = without_places(start)
    return described


def without_places(value: Any) -> Any:
    """Replace paths of this machine in plain values by the names of their files."""
    if isinstance(value, Mapping):
        return {name: without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and _OF_THIS_MACHINE.match(value) else value


def _description(record: Mapping[str, Any]) -> str:
    overlays = [Path(overlay).name for overlay in record["overlays"]]
    changes = ", ".join([*overlays, *(name for name in record["ids"] if name not in _OF_THE_BUNDLE)]) or "no changes"
    return (
        f"The recipe that this network was trained with: bundle {Path(record['bundle']).name} with {changes} merged in."
    )


def _merged(
    record: Mapping[str, Any], kind: str, ids: Mapping[str, Any], folder: Path, original: Mapping[str, Any]
) -> dict[str, Any]:
    """Compose one configuration as a run does, but with the places of the bundle."""
    overrides = {**ids, **locations(folder)}
    workflow = load_workflow(record["bundle"], kind, overlays=record["overlays"], overrides=overrides)
    merged: dict[str, Any] = json.loads(json.dumps(workflow.parser.get()))
    for name in _OF_THE_BUNDLE & merged.keys():
        if name in original:
            merged[name] = original[name]
    # In the order of the bundle; what only overlays of another workflow set is left out.
    return {name: merged[name] for name in original}


def _overlaid(overlay: Mapping[str, Any], others: list[str]) -> dict[str, Any]:
    """Give an overlay of the bundle the values that a run's overlays have for the same ids."""
    result = dict(overlay)
    for other in others:
        content = read_json(Path(other))
        result |= {name: content[name] for name in overlay if name in content and not name.startswith("_")}
    return result


def _portable_weights(weights: Any) -> Any:
    """Return the name of a public or shipped checkpoint, or None for a file, which a package does not bring along."""
    public = weights in KINDS or any(record.name == weights for record in all_records())
    return weights if public else None


def _texts(configuration: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a configuration with its id."""
    if isinstance(configuration, Mapping):
        for name, value in configuration.items():
            yield from _texts(value, f"{prefix}#{name}" if prefix else name)
    elif isinstance(configuration, list):
        for number, value in enumerate(configuration):
            yield from _texts(value, f"{prefix}#{number}")
    elif isinstance(configuration, str):
        yield prefix, configuration
