"""Verbs about this machine and environment: doctor."""

from __future__ import annotations


def doctor(run: str = "", json: str = "") -> None:
    """Say whether this machine and environment can do what cryo-monai does, before anything runs.

    Python and libraries against the versions that are needed, and whether they can be imported; extras and what each
    enables; devices, precision, memory; settings that make files dangerous; where downloads are kept, and their size.
    Nothing is downloaded or created. The exit code is 1 when something that is needed does not pass; extras and a GPU
    are not. Where cryo-monai itself does not start, python -m cryo_monai.doctor does the same.

    Args:
        run: a run folder or a bundle folder that should be loadable.
        json: file that gets the same, machine-readable; replaced if it exists.
    """
    from cryo_monai.doctor.reporting import report_findings
    from cryo_monai.errors import CryoMonaiError

    if not report_findings(run, json):
        raise CryoMonaiError("doctor: not all that is needed passes, see above")
