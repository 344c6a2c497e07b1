"""Everything that is examined, in the order in which it is shown."""

from __future__ import annotations

import importlib.metadata
import os

from cryo_monai.doctor.dependencies import (
    extra_findings,
    module_of,
    package_findings,
    python_finding,
    requirements,
    security_findings,
    version_of,
)
from cryo_monai.doctor.findings import FAIL, Finding, has_failed
from cryo_monai.doctor.given import given_finding
from cryo_monai.doctor.machine import machine_findings
from cryo_monai.doctor.probe import Probe, run_probe
from cryo_monai.doctor.storage import storage_findings, variable_findings


def examine(given: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Examine Python, libraries, extras, machine, safety and storage; nothing is downloaded, created or changed.

    Libraries are imported in a process of their own, so that one that is broken, or ends its process, is a line.

    Parameters
    ----------
    given : path, optional
        A run or a bundle that should be loadable; see `given_finding`.
    """
    findings = [python_finding()]
    try:
        base, extras = requirements()
    except ImportError as error:  # PackageNotFoundError is one too
        missing = isinstance(error, importlib.metadata.PackageNotFoundError)
        found = "is not installed: what it needs is not known" if missing else f"cannot compare versions: {error}"
        remedy = "pip install . in its folder" if missing else "pip install packaging"
        findings.append(Finding("packages", "cryo-monai", FAIL, found, remedy))
        probe = run_probe(["torch", "torchvision", "monai"])
    else:
        probe = run_probe([module_of(one.name) for one in base if version_of(one.name) is not None])
        findings += [*package_findings(base, probe.errors), *extra_findings(extras), *security_findings()]
    findings += [*machine_findings(probe.devices), *variable_findings(), *storage_findings()]
    if given is not None:
        findings.append(_examined(given, findings, probe))
    return findings


def _examined(given: str | os.PathLike[str], findings: list[Finding], probe: Probe) -> Finding:
    """Load what was given only where the libraries that this takes are fine."""
    if has_failed([finding for finding in findings if finding.section == "packages"]) or "error" in probe.devices:
        return Finding("given", os.fspath(given), FAIL, "not tried, since packages fail", "mend what fails above first")
    return given_finding(given)
