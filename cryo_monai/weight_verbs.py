"""The verbs of ``cryo-monai weights``."""

from __future__ import annotations

from cryo_monai.command_line import late_bar


def list_weights(backbone: str = "") -> None:
    """List the public weights and those that are shipped: name, data set, accuracy, licence, whether they are here.

    Args:
        backbone: only those of this backbone.
    """
    from difflib import get_close_matches

    from cryo_monai.downloads import cached_path, pinned_hash
    from cryo_monai.errors import InputError
    from cryo_monai.weight_records import all_records

    records = all_records()
    if backbone and all(record.backbone != backbone for record in records):
        near = get_close_matches(backbone, {record.backbone for record in records}, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--backbone {backbone}: no public weights for a backbone of that name{hint}")
    rows: list[tuple[str, ...]] = [("name", "backbone", "data set", "top-1", "licence", "pinned", "here")]
    for record in records:
        if backbone in ("", record.backbone):
            top1 = "" if record.top1 is None else f"{record.top1:.1f} %"
            marks = ("yes" if there else "no" for there in (pinned_hash(record), cached_path(record).is_file()))
            rows.append((record.name, record.backbone, record.dataset, top1, record.licence, *marks))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fetch_weights(name: str, sha256: str = "") -> None:
    """Download weights into the cache folder and verify them; the same call goes on with a download that was cut.

    Args:
        name: as `weights list` shows it.
        sha256: hash that the file must have, for weights that are not pinned yet.
    """
    from cryo_monai.downloads import fetch_weights as fetch
    from cryo_monai.weight_records import look_up_record

    record = look_up_record(name)
    with late_bar(desc=name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        path = fetch(record, sha256 or None, progress)
    shipped = ": shipped with this package, nothing to fetch" if record.is_shipped else ""
    print(f"{path}{shipped}\nuse it with: --weights {name}")


def pin_weights(name: str, file: str = "") -> None:
    """Take the hash of published weights, on a connected machine that you trust, so that others can verify theirs.

    Args:
        name: as `weights list` shows it.
        file: JSON to write to; weight_pins.json in the cache folder by default. Wanted for weights that are shipped.
    """
    from pathlib import Path

    from cryo_monai.downloads import pin_weights as pin
    from cryo_monai.weight_records import look_up_record

    with late_bar(desc=name, unit="B", unit_scale=True, unit_divisor=1024) as progress:
        written, sha256 = pin(look_up_record(name), Path(file) if file else None, progress)
    print(f"{name}: SHA-256 {sha256}, kept in {written}")


def inspect_weights(file: str) -> None:
    """Say what a file of weights is and which backbones it fits, or fits nearly.

    Args:
        file: as its publisher wrote it, or a checkpoint of this package; or the name of published weights.
    """
    from cryo_monai.recognition import inspect_weights as inspect

    print(inspect(file))
