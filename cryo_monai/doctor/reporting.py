"""What `examine` finds, printed and written."""

from __future__ import annotations

import json

from cryo_monai.doctor.examining import examine
from cryo_monai.doctor.findings import findings_table, findings_text, has_failed
from cryo_monai.files import atomic_write_text


def report_findings(given: str = "", target: str = "") -> bool:
    """Examine, print a screen of text, and write JSON; return whether everything needed passes.

    Parameters
    ----------
    given : str
        See `examine`; "" for nothing.
    target : str
        JSON file, replaced if it exists; "" for none.
    """
    findings = examine(given or None)
    print(findings_text(findings))
    if target:
        atomic_write_text(target, json.dumps(findings_table(findings), indent=1, ensure_ascii=False) + "\n")
    return not has_failed(findings)
