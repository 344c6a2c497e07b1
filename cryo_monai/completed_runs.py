"""Runs to be completed: trained and scored, however often they are interrupted, and then marked as done.

Where a bundle has no evaluation, since it is there for the weights alone, the mark stands for these.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from cryo_monai.checkpoints import EXIT_CODE, SIGNALS
from cryo_monai.errors import InputError, user_error
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_text
from cryo_monai.parallel import is_first, one_voice
from cryo_monai.run_evaluation import evaluation_of
from cryo_monai.runs import Paths, has_state, read_json, refuse_changes, running, train_held
from cryo_monai.workflows import has_workflow

DONE = "DONE"
# What is compared with the mark: the score, or the weights of a bundle that scores nothing.
MARKED = {"evaluation_sha256": "evaluation.json", "model_sha256": "models/model.pt"}
FAILURE = "failure.json"


def complete_run(
    bundle: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    overlays: Paths = (),
    tracking: str = "",
    ids: Mapping[str, Any] | None = None,
) -> bool:
    """Do what is missing of a run: train, from the last checkpoint on, score the test split if any, write ``DONE``.

    The same call may be made any number of times, on any machine that sees the folder: one process at a time works
    in it, a run that is done stays as it is, and what a kill loses is at most the epoch in flight. SIGTERM, SIGINT and
    SIGUSR1 end it with code 75 at any time. Why it failed is in ``failure.json``.

    Parameters
    ----------
    bundle, overlays, tracking, ids
        See `train_bundle`; nothing is taken over from an earlier call.
    run_dir : path
        Run folder.

    Returns
    -------
    bool
        Whether anything was to do.

    Raises
    ------
    LockedError
        When another process is at work there.
    CryoMonaiError
        One line for anything the user can mend, such as a run that is done with another configuration.
    """
    folder = Path(run_dir)
    with one_voice(), _ending_on_signals(), running(folder) if is_first() else nullcontext():
        if is_done(folder):
            refuse_changes(bundle, folder, overlays=overlays, ids=ids or {})
            return False
        try:
            train_held(
                bundle,
                folder,
                overlays=overlays,
                resume=has_state(folder),
                tracking=tracking,
                ids=ids or {},
                inherit=False,
            )
            if scored := has_workflow(bundle, "evaluate"):
                evaluation_of(folder, pictures=False)  # they take seconds, and nobody looks at those of a grid
        except Exception as error:
            cause = user_error(error)
            # What a user has to mend does not mend itself when it is tried again.
            note_failure(folder, str(cause or _first_cause(error)), final=cause is not None)
            raise
        name = "evaluation_sha256" if scored else "model_sha256"
        mark = {name: sha256_of(folder / MARKED[name])}
        atomic_write_text(folder / DONE, json.dumps(mark, indent=1) + "\n")
        forget_failure(folder)
    return True


def _first_cause(error: BaseException) -> str:
    """Say what MONAI's errors, which name an expression of the configuration, were raised from."""
    seen = [error]
    while seen[-1].__cause__ is not None and seen[-1].__cause__ not in seen:
        seen.append(seen[-1].__cause__)
    return f"{type(seen[-1]).__name__}: {seen[-1]}"


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """End with code 75 where training does not: while it starts, and while it is scored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_CODE)

    previous = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_done(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a run is trained and scored, and its score (or its weights, see above) is the one of that time."""
    folder = Path(run_dir)
    if not (folder / DONE).is_file():
        return False
    try:
        mark = read_json(folder / DONE)
    except InputError:
        return False  # cut off: what it stands for is looked at again
    named = next(((sha256, folder / MARKED[name]) for name, sha256 in mark.items() if name in MARKED), None)
    return named is not None and named[1].is_file() and named[0] == _digest(named[1])


def _digest(file: Path) -> str:
    """Hash a file; a large one once, as sweeps ask twice a second."""
    status = file.stat()
    if status.st_size < 1 << 20:
        return sha256_of(file)
    return _digest_of(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(file: Path, *version: int) -> str:
    return sha256_of(file)


def note_failure(run_dir: str | os.PathLike[str], reason: str, *, final: bool = True) -> None:
    """Write down why a run failed, in one line; it makes no sense to try final failures again at once."""
    note = {"reason": " ".join(reason.split()), "final": final}
    atomic_write_text(Path(run_dir) / FAILURE, json.dumps(note, indent=1) + "\n")


def forget_failure(run_dir: str | os.PathLike[str]) -> None:
    """Remove what `note_failure` wrote."""
    (Path(run_dir) / FAILURE).unlink(missing_ok=True)


def failure_of(run_dir: str | os.PathLike[str]) -> tuple[str, bool] | None:
    """Return why a run failed, and whether that is final; None when it did not."""
    try:
        note = read_json(Path(run_dir) / FAILURE)
    except InputError:
        return None
    return str(note.get("reason", "")), bool(note.get("final", True))
