"""Doing one trial, and telling from its folder what became of it.

Nothing about a trial is kept anywhere else: whoever asks, after whatever was killed, finds the same.
"""

from __future__ import annotations

import json
import signal
import traceback

from cryo_monai.checkpoints import EXIT_CODE
from cryo_monai.completed_runs import complete_run, is_done
from cryo_monai.errors import InputError, user_error
from cryo_monai.files import atomic_write_text
from cryo_monai.folders import LOCK, LockedError, is_locked
from cryo_monai.runs import has_state, read_json
from cryo_monai.sweeps.outcomes import Outcome
from cryo_monai.sweeps.plans import Trial

FAILURE = "failure.json"
# How the process of a trial ends, besides 0: failed; saved, to be gone on with; another process is at it.
FAILED, STOPPED, ELSEWHERE = 1, EXIT_CODE, 76


def run_trial(trial: Trial) -> int:
    """Do what is missing of a trial, in this process, and return how it ended.

    Returns
    -------
    int
        0 when it is done; ``FAILED``, after which ``failure.json`` in its folder says why; ``STOPPED``; ``ELSEWHERE``.
    """
    try:
        complete_run(trial.bundle, trial.folder, overlays=trial.overlays, ids={**trial.ids, "progress": False})
    except LockedError:
        return ELSEWHERE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            traceback.print_exc()
        reason = str(cause) if cause else f"{type(error).__name__}: {error}"
        # What a user has to mend does not mend itself when it is tried again.
        note_failure(trial, reason, final=cause is not None)
        return FAILED
    (trial.folder / FAILURE).unlink(missing_ok=True)
    return 0


def note_failure(trial: Trial, reason: str, *, final: bool = True) -> None:
    """Write down why a trial failed, in one line; final failures are not tried again by the same sweep."""
    line = " ".join(reason.split())
    atomic_write_text(trial.folder / FAILURE, json.dumps({"reason": line, "final": final}, indent=1) + "\n")


def forget_failure(trial: Trial) -> None:
    """Try a trial that failed in an earlier sweep again."""
    (trial.folder / FAILURE).unlink(missing_ok=True)


def failure_of(trial: Trial) -> tuple[str, bool] | None:
    """Return why a trial failed, and whether that is final; None when it did not."""
    try:
        note = read_json(trial.folder / FAILURE)
    except InputError:
        return None
    return str(note.get("reason", "")), bool(note.get("final", True))


def outcome_of(trial: Trial) -> Outcome:
    """Tell from its folder what became of a trial."""
    state, reason = "waiting", ""
    failure = failure_of(trial)
    if is_done(trial.folder):
        state = "done"
    elif is_locked(trial.folder / LOCK):
        state = "running"
    elif failure:
        state, reason = "failed", failure[0]
    elif has_state(trial.folder):
        state = "stopped"
    return Outcome(trial.cell, trial.folder, state, reason)


def ending(code: int) -> str:
    """Say how a process ended that said nothing itself."""
    if code >= 0:
        return f"its process ended with code {code}; see log.txt in its folder"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{hint}; see log.txt in its folder"
