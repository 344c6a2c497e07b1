"""Runs to be completed: trained and scored, however often they are interrupted, and then marked as done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.files import atomic_write_text
from cryo_monai.run_evaluation import evaluation_of
from cryo_monai.runs import Paths, has_state, read_json, running, train_held

DONE = "DONE"


def complete_run(
    bundle: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    overlays: Paths = (),
    tracking: str = "",
    ids: Mapping[str, Any] | None = None,
) -> bool:
    """Do what is missing of a run: train, from the last checkpoint on, score the test split, and write ``DONE``.

    The same call may be made any number of times, on any machine that sees the folder: one process at a time works
    in it, a run that is done stays as it is, and what a kill loses is at most the epoch in flight.

    Parameters
    ----------
    bundle, overlays, tracking, ids
        See `train_bundle`.
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
        One line for anything the user can mend.
    """
    folder = Path(run_dir)
    with running(folder):
        if is_done(folder):
            return False
        resume = has_state(folder)
        train_held(bundle, folder, overlays=overlays, resume=resume, tracking=tracking, ids=ids or {})
        evaluation_of(folder, pictures=False)  # they take seconds, and nobody looks at those of a grid
        mark = {"evaluation_sha256": sha256_of(folder / "evaluation.json")}
        atomic_write_text(folder / DONE, json.dumps(mark, indent=1) + "\n")
    return True


def is_done(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a run is trained and scored, and its score is the one that was written then."""
    folder = Path(run_dir)
    done, evaluation = folder / DONE, folder / "evaluation.json"
    if not (done.is_file() and evaluation.is_file()):
        return False
    try:
        mark = read_json(done)
    except InputError:
        return False  # cut off: what it stands for is looked at again
    return bool(mark.get("evaluation_sha256") == sha256_of(evaluation))
