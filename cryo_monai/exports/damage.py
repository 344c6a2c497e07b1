"""What reads exported files, four libraries, answers damage with errors of its own: here they become one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cryo_monai.errors import CryoMonaiError, InputError


@contextmanager
def damage_in_one_line(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read.

    Parameters
    ----------
    path : path
        The exported file.

    Raises
    ------
    InputError
        When the file is damaged, or no exported file.
    """
    try:
        yield
    except (CryoMonaiError, ImportError, MemoryError):
        raise
    except Exception as error:  # the readers' errors have no base in common
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: not a readable exported file ({type(error).__name__}: {reason}); "
            "write it again with `cryo-monai export`"
        ) from error
