"""Whether this machine and environment can do what cryo-monai does, found out before anything runs.

Nothing here needs torch, or any library but the standard one, to be importable: that is what is examined.
"""

from __future__ import annotations

from cryo_monai.doctor.examining import examine
from cryo_monai.doctor.findings import Finding, findings_table, findings_text, has_failed

__all__ = ["Finding", "examine", "findings_table", "findings_text", "has_failed"]
