"""Verbs that question a data set: check, control."""

from __future__ import annotations

import json

from cryo_monai.command_line import counted, late_bar, split_list, split_numbers


def check(
    dataset: str,
    output: str = "",
    split: str = "0.6,0.2,0.2",
    split_by: str = "volume",
    seed: int = 0,
    permissive: bool = False,
    nan: str = "error",
) -> None:
    """Say everything about a data set before training on it; exit code 1 when training should not begin.

    Counts per class and split, box and voxel sizes, volumes that are constant or not finite, duplicates by content,
    volumes and tomograms in two splits, and whether classes can be told by the tomogram they come from.

    Args:
        dataset: a folder per class, a datalist JSON, or a MedMNIST3D npz.
        output: JSON to write.
        split: how training will split data that come without a split.
        split_by: volume, or source (whole tomograms).
        seed: of that split.
        permissive: accept old MRC files.
        nan: error or mean, as in training.
    """
    from cryo_monai.audits import audit_dataset
    from cryo_monai.errors import InputError
    from cryo_monai.files import atomic_write_text

    with late_bar(desc="reading", unit="volume") as bar:
        audit = audit_dataset(
            dataset,
            split=split_numbers("split", split, float),
            split_by=split_by,
            seed=seed,
            permissive=permissive,
            nan=nan,
            progress=counted(bar, None),
        )
    if output:
        atomic_write_text(output, json.dumps(audit.as_dict(), indent=1) + "\n")
    print(audit.as_text())
    if audit.problems:
        raise InputError(f"{dataset}: {len(audit.problems)} problem{'s' * (len(audit.problems) > 1)}, see above")


def control(
    kind: str,
    bundle: str,
    output_dir: str,
    dataset_dir: str,
    overlays: str = "",
    radius: float = 0.8,
    seed: int = 0,
    **ids: str,
) -> None:
    """Train where there is nothing to learn: on boxes without their particle, or with shuffled labels.

    A network above chance tells that something else leaks into the classes. An interrupted call is continued by the
    same call.

    Args:
        kind: background (the particle is masked out) or labels (they are shuffled).
        bundle: as in train.
        output_dir: new folder for the data and the run.
        dataset_dir: the data set in question.
        overlays: as in train.
        radius: of the sphere that is masked out, in half edges of the box.
        seed: of split, masking, shuffling and training.
        ids: as in train, such as --num_classes.
    """
    from cryo_monai.control_runs import run_control

    with late_bar(desc="masking", unit="volume") as bar:
        result = run_control(
            kind,
            bundle,
            output_dir,
            dataset_dir,
            overlays=split_list(overlays),
            radius=radius,
            seed=seed,
            ids=ids,
            progress=counted(bar, None),
        )
    print(
        f"accuracy {result['accuracy']:.3f} on {result['num_volumes']} test volumes; chance is {result['chance']:.3f}, "
        f"and at most {result['chance_upper']:.3f} in 95 % of such tests"
    )
    print(result["verdict"])
