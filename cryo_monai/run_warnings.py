"""What stands between a run's score and belief in it: the audit of its data, and what was changed on the way."""

from __future__ import annotations

import os
from pathlib import Path

from monai.bundle import ConfigParser

from cryo_monai.audits import Audit, audit_dataset
from cryo_monai.runs import configuration_of, evaluation_of, read_run

# Ids of a bundle that `audit_dataset` takes too.
_OPTIONS = ("split", "split_by", "seed", "permissive", "nan")


def audit_run(run_dir: str | os.PathLike[str]) -> Audit:
    """Audit the data of a run, split as the run split them.

    Raises
    ------
    CryoMonaiError
        When the folder is not a run, or its data are gone.
    """
    parser = configuration_of(run_dir).parser
    options = {name: parser.get_parsed_content(name) for name in _OPTIONS if name in parser}
    return audit_dataset(_data_of(parser), **options)


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
    for resumption in record.get("resumed", []):
        if resumption["changed"]:
            changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in resumption["changed"].items())
            lines.append(f"resumed after epoch {resumption['after_epoch']} with a changed configuration: {changes}")
    return lines


def _data_of(parser: ConfigParser) -> Path:
    """Return what `audit_dataset` reads: a folder, a datalist, or the NPZ file of a MedMNIST3D set."""
    place = Path(parser.get_parsed_content("dataset_dir"))
    if "dataset_name" not in parser or place.is_file():
        return place
    name, size = parser.get_parsed_content("dataset_name"), parser.get_parsed_content("dataset_size")
    return place / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
