"""Doing one trial, and telling from its folder what became of it.

Nothing about a trial is kept anywhere else: whoever asks, after whatever was killed, finds the same.
"""

from __future__ import annotations

import signal
import traceback

from cryo_monai.checkpoints import EXIT_CODE
from cryo_monai.completed_runs import complete_run, failure_of, is_done
from cryo_monai.errors import user_error
from cryo_monai.folders import LOCK, LockedError, is_locked
from cryo_monai.runs import has_state
from cryo_monai.sweeps.outcomes import Outcome
from cryo_monai.sweeps.plans import Trial

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
        complete_run(trial.bundle, trial.folder, overlays=trial.overlays, ids=trial.ids)
    except LockedError:
        return ELSEWHERE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except Exception as error:
        if user_error(error) is None:
            traceback.print_exc()
        return FAILED
    return 0


def outcome_of(trial: Trial) -> Outcome:
    """Tell from its folder what became of a trial."""
    state, reason = "waiting", ""
    failure = failure_of(trial.folder)
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
