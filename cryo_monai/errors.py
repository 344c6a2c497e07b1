"""Errors that a user can act on: one line, naming the thing and the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType


class CryoMonaiError(Exception):
    """A failure that is explained by its message alone; programs show it without a traceback."""


class InputError(CryoMonaiError, ValueError):
    """A file, an argument or a configuration that cannot be used."""


class DatasetError(InputError):
    """Everything that is wrong with a data set, one line per problem.

    Parameters
    ----------
    source : str
        The folder or file the problems were found in.
    problems : sequence of str
        One line each, naming the file and the reason.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            shown = "\n".join(f"  {problem}" for problem in self.problems)
            super().__init__(f"{source}: {len(self.problems)} problems\n{shown}")


class DivergedError(CryoMonaiError, RuntimeError):
    """Training met a loss that is not finite; the weights were left as they were before it."""


def user_error(error: BaseException | None) -> CryoMonaiError | None:
    """Return the `CryoMonaiError` behind ``error``, following causes, or None."""
    for cause in causes(error):
        if isinstance(cause, CryoMonaiError):
            return _without_worker(cause)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of, each once: what is raised from what it caused goes in circles."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _without_worker(error: CryoMonaiError) -> CryoMonaiError:
    """Take off the traceback that PyTorch puts into the message of what a loader's worker raised."""
    text = str(error)
    if not (text.startswith("Caught ") and "DataLoader worker" in text):
        return error
    return InputError(text.strip().splitlines()[-1].partition(": ")[2])


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise the `CryoMonaiError` behind what MONAI makes of it (a RuntimeError naming the configuration item)."""
    try:
        yield
    except RuntimeError as error:
        cause = user_error(error)
        if cause is None or isinstance(error, CryoMonaiError):
            raise
        raise cause from error


def show_errors_in_one_line() -> None:
    """Install an exception hook that prints user errors without a traceback.

    Bundles call this from their ``initialize`` list, so that ``python -m monai.bundle run`` answers a user's mistake
    with one line on standard error; every other exception keeps its traceback.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = user_error(error)
        if cause is None:
            previous(kind, error, traceback)
        else:
            print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = hook
