"""Packages of others: whether they are whole, and whether the user trusts who made them.

The configuration of a bundle is a program: MONAI calls every ``_target_`` and evaluates every ``$`` text in it. So a
package is used only after its user said once that it may be; what was said is kept as the SHA-256 of its list of
checksums.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.fetching import cache_folder, sha256_of
from cryo_monai.files import atomic_write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file to ``SHA256SUMS``, as ``sha256sum --check`` reads it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines))


def check_sums(folder: str | os.PathLike[str]) -> None:
    """Compare the files of a package with its ``SHA256SUMS``.

    Raises
    ------
    InputError
        Naming every file that is missing or changed, or saying that there is no list.
    """
    folder = Path(folder)
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a package (no readable {SUMS})") from error
    wrong = []
    listed = set()
    for line in lines:
        digest, _, name = line.partition("  ")
        file = folder / name
        listed.add(name)
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif sha256_of(file) != digest:
            wrong.append(f"{name} has changed")
    # What the list does not know would be read all the same.
    read = [*folder.glob("configs/**/*"), *folder.glob("scripts/**/*"), *folder.glob("*.json"), *folder.glob("*.py")]
    unlisted = {file.relative_to(folder).as_posix() for file in read if file.is_file()} - listed
    wrong += [f"{name} is not in {SUMS}" for name in sorted(unlisted)]
    if wrong:
        raise InputError(f"{folder}: not as it was packaged: {', '.join(wrong)}")


def trust(folder: str | os.PathLike[str]) -> None:
    """Note that a package may be used, after checking that it is whole.

    Raises
    ------
    InputError
        When it is not whole.
    """
    check_sums(folder)
    digest = sha256_of(Path(folder) / SUMS)
    if digest not in _trusted():
        atomic_write_text(_ledger(), "".join(f"{known}\n" for known in [*_trusted(), digest]))


def require_trust(folder: str | os.PathLike[str]) -> None:
    """Refuse a package that is not whole, or that its user has not said to trust.

    Raises
    ------
    InputError
    """
    check_sums(folder)
    if sha256_of(Path(folder) / SUMS) not in _trusted():
        raise InputError(
            f"{folder}: a package made elsewhere, whose configuration is a program; if you trust who made it: "
            f"cryo-monai trust {folder}"
        )


def _ledger() -> Path:
    return cache_folder() / "trusted_packages"


def _trusted() -> list[str]:
    return _ledger().read_text().split() if _ledger().is_file() else []
