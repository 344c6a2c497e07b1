"""What stands between a run's score and belief in it: the audit of its data, and what was changed on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from cryo_monai.audits import Audit, audit_dataset
from cryo_monai.run_evaluation import evaluation_of
from cryo_monai.runs import CONFIGURATION, changes, configuration_of, locations, read_json, read_run, shortened
from cryo_monai.workflows import load_workflow

# Ids of a bundle that `audit_dataset` takes too.
_OPTIONS = ("split", "split_by", "seed", "permissive", "nan")


def audit_run(run_dir: str | os.PathLike[str]) -> Audit:
    """Audit the data of a run, split as the run split them.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or its data are gone.
    """
    place, options = _audited(run_dir)
    return audit_dataset(place, **options)


def audit_key(run_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """Name what `audit_run` would audit: runs with the same key have the same audit.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or its configuration cannot be read.
    """
    place, options = _audited(run_dir)
    return str(place.resolve()), *(f"{name}={options[name]}" for name in sorted(options))


def run_warnings(run_dir: str | os.PathLike[str], audit: Audit | None = None) -> list[str]:
    """List, one line each, why a run's test score may not mean what it seems to.

    Parameters
    ----------
    run_dir : path
        A run folder.
    audit : Audit, optional
        Of `audit_run`; without it nothing is said about the data.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or cannot be evaluated.
    """
    _, record = read_run(run_dir)
    lines: list[str] = []
    if audit is not None:
        lines += [f"audit of the data: {line}" for line in (*audit.problems, *audit.leakage)]
        for split, counts in audit.counts.items():
            missing = [name for name, count in counts.items() if not count]
            if missing and split:
                lines.append(f"no volumes of {', '.join(missing)} in the {split} split")
    else:
        support = {name: entry["support"] for name, entry in evaluation_of(run_dir)["per_class"].items()}
        missing = [name for name, count in support.items() if not count]
        if missing:
            lines.append(f"no volumes of {', '.join(missing)} in the test split")
    lines += _training_warnings(run_dir)
    for resumption in record.get("resumed", []):
        if resumption["changed"]:
            changes = ", ".join(
                f"{name} {shortened(old)} -> {shortened(new)}" for name, (old, new) in resumption["changed"].items()
            )
            lines.append(f"resumed after epoch {resumption['after_epoch']} with a changed configuration: {changes}")
    return lines


def _training_warnings(run_dir: str | os.PathLike[str]) -> list[str]:
    """Say whether training came to its end, and whether the recipe is still the one it had."""
    folder, record = read_run(run_dir)
    lines = []
    if not (folder / CONFIGURATION).is_file():  # of a version that did not keep it
        return []
    before = read_json(folder / CONFIGURATION)
    history = read_json(folder / "metrics.json").get("history", []) if (folder / "metrics.json").is_file() else []
    done, wanted = history[-1]["epoch"] if history else 0, before.get("max_epochs", 0)
    if history and done < wanted:
        lines.append(f"training stopped after epoch {done} of {wanted}")
    overrides = {**record["ids"], **locations(folder)}
    now = load_workflow(record["bundle"], "train", overlays=record["overlays"], overrides=overrides)
    # Data that were moved are no other recipe: see `find_data_again`.
    changed = {name: pair for name, pair in changes(folder, now.parser.get()).items() if name != "dataset_dir"}
    if changed:
        named = ", ".join(f"{name} {shortened(old)} -> {shortened(new)}" for name, (old, new) in changed.items())
        lines.append(f"the bundle or its overlays have changed since training: {named}")
    return lines


def _audited(run_dir: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return the data of a run and the options of `audit_dataset` as the run had them."""
    parser = configuration_of(run_dir).parser
    return _data_of(parser), {name: parser.get_parsed_content(name) for name in _OPTIONS if name in parser}


def _data_of(parser: ConfigParser) -> Path:
    """Return what `audit_dataset` reads: a folder, a datalist, or the NPZ file of a MedMNIST3D set."""
    place = Path(parser.get_parsed_content("dataset_dir"))
    if "dataset_name" not in parser or place.is_file():
        return place
    name, size = parser.get_parsed_content("dataset_name"), parser.get_parsed_content("dataset_size")
    return place / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
