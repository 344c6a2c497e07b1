"""What was found: one line each, with what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

PASS, FAIL, WARNING, ABSENT = "pass", "fail", "warning", "absent"
SHOWN = {PASS: "ok", FAIL: "FAIL", WARNING: "warn", ABSENT: "-"}
SECTIONS = ("packages", "extras", "machine", "safety", "storage", "given")
_WIDTH = 118
_NAME = 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    section : str
        One of `SECTIONS`.
    name : str
        What was looked at.
    status : str
        ``"pass"``; ``"fail"`` for what is needed; ``"warning"`` for what may become a problem; ``"absent"`` for what
        can be done without.
    found : str
        The reason for the status.
    remedy : str
        What to do, "" where nothing has to be done.
    brief : str
        What to say of it where it passes and shares a line with others of its section; "" for a line of its own.
    """

    section: str
    name: str
    status: str
    found: str
    remedy: str = ""
    brief: str = ""


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether anything that is needed does not pass."""
    return any(finding.status == FAIL for finding in findings)


def findings_table(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything as plain values for JSON: ``passed``, and ``findings`` as a list of mappings."""
    rows = [{key: value for key, value in asdict(finding).items() if key != "brief"} for finding in findings]
    return {"passed": not has_failed(findings), "findings": rows}


def findings_text(findings: Sequence[Finding]) -> str:
    """Return a screen of aligned text, section by section, ending with what fails."""
    lines = []
    ordered = sorted(findings, key=lambda finding: SECTIONS.index(finding.section))
    for section, members in groupby(ordered, key=lambda finding: finding.section):
        lines.append(section)
        rows = list(members)
        short = [row for row in rows if row.status == PASS and row.brief]
        for row in rows:
            if row not in short:
                text = row.found + (f" -> {row.remedy}" if row.remedy else "")
                lines += _lines(SHOWN[row.status], row.name, text)
        if short:
            lines += _lines(SHOWN[PASS], f"{len(short)} others", ", ".join(row.brief for row in short))
    failed = [finding.name for finding in findings if finding.status == FAIL]
    warned = sum(finding.status == WARNING for finding in findings)
    verdict = f"{len(failed)} of what is needed fail: {', '.join(failed)}" if failed else "everything needed passes"
    return "\n".join([*lines, verdict + (f"; {warned} warnings" if warned else "")])


def _lines(status: str, name: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, _WIDTH - _NAME - 10, break_long_words=False, break_on_hyphens=False) or [""]
    first = f"  {status:<5} {name:<{_NAME}} "
    indent = " " * (_NAME + 9)
    if len(name) > _NAME:  # such as a folder: a line of its own, and what was found below it
        wrapped = ["", *wrapped]
    return [(head + part).rstrip() for head, part in zip([first] + [indent] * (len(wrapped) - 1), wrapped, strict=True)]
