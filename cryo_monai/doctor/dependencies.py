"""Versions of Python and of the libraries, against what the package's metadata ask for."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cryo_monai.doctor.findings import ABSENT, FAIL, PASS, WARNING, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "cryo-monai"
# Where the name to import is not that of the distribution.
MODULES = {"pytorch-ignite": "ignite", "scikit-learn": "sklearn", "pillow": "PIL", "umap-learn": "umap"}
# The first releases without holes that files or the network reach: torch CVE-2026-24747 (weights_only), MONAI
# GHSA-89gg-p5r5-q6r4, -qxq5-qhx6-94qw, -rghg-q7wp-9767 (pickles, commands), Ray CVE-2026-27482 (dashboard).
SECURITY_FLOORS = {"torch": "2.10.0", "monai": "1.6.0", "ray": "2.54.0"}
# What an extra is for, in one sentence; others are known by what they bring.
EXTRAS = {
    "video": "PyTorchVideo's backbones: SlowFast's slow path, X3D, C2D, I3D, CSN, MViT",
    "vivit": "the ViViT backbone, from transformers",
    "tomograms": "tomograms in TIFF and OME-Zarr",
    "copick": "particle lists of copick projects on other machines",
    "umap": "UMAP beside PCA and t-SNE in reports",
    "mlflow": "--tracking mlflow",
    "sweep": "--engine ray and searches in sweeps",
    "dev": "the tests and checks of this package",
    "docs": "building the documentation",
    "export": "export to ONNX, and its check",
    "hub": "publishing packages on Hugging Face",
}


def module_of(distribution: str) -> str:
    """Return the name under which a distribution is imported."""
    return MODULES.get(distribution.lower(), distribution.replace("-", "_"))


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Return what the package always needs, and what each of its extras needs, on this platform.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        When the package was not installed.
    ImportError
        Without the library ``packaging``.
    """
    from packaging.requirements import Requirement

    metadata = importlib.metadata.metadata(DISTRIBUTION)
    listed = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    base = [one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})]
    extras = {
        extra: [one for one in listed if one not in base and one.marker and one.marker.evaluate({"extra": extra})]
        for extra in metadata.get_all("Provides-Extra") or []
    }
    return base, extras


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, None without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def python_finding() -> Finding:
    """Compare the version of Python with what the package's metadata ask for."""
    found = f"{platform.python_version()} ({sys.executable})"
    try:
        from packaging.specifiers import SpecifierSet

        wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
        right = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return Finding("packages", "python", PASS, found)
    remedy = "" if right else f"make an environment with Python {wanted}"
    return Finding("packages", "python", PASS if right else FAIL, found, remedy)


def package_findings(base: Sequence[Requirement], errors: Mapping[str, str]) -> list[Finding]:
    """Judge what is always needed: installed, recent enough, importable.

    Parameters
    ----------
    base : sequence of Requirement
        Of `requirements`.
    errors : mapping
        Why modules cannot be imported; see `run_probe`.
    """
    findings = []
    for wanted in base:
        version = version_of(wanted.name)
        how = f"pip install '{wanted.name}{wanted.specifier}'"
        error = errors.get(module_of(wanted.name))
        if version is None:
            findings.append(Finding("packages", wanted.name, FAIL, f"not installed ({wanted.specifier})", how))
        elif not wanted.specifier.contains(version, prereleases=True):
            findings.append(Finding("packages", wanted.name, FAIL, f"{version}, not {wanted.specifier}", how))
        elif error is not None:
            findings.append(
                Finding("packages", wanted.name, FAIL, f"{version} cannot be imported: {error}", _mended(wanted))
            )
        else:
            found = f"{version} ({wanted.specifier}), can be imported"
            findings.append(Finding("packages", wanted.name, PASS, found, brief=f"{wanted.name} {version}"))
    return findings


def _mended(wanted: Requirement) -> str:
    if wanted.name.lower() in ("torch", "torchvision"):
        # Each torchvision is compiled for one torch (pytorch.org/get-started/previous-versions).
        return "pip install --force-reinstall torch torchvision, both from the same index, as a pair"
    return f"pip install --force-reinstall '{wanted.name}{wanted.specifier}'"


def extra_findings(extras: Mapping[str, Sequence[Requirement]]) -> list[Finding]:
    """Say of every extra whether it is there, and what it enables."""
    findings = []
    for extra, wanted in extras.items():
        others = [one for one in wanted if one.name.lower() != DISTRIBUTION]
        versions = {one.name: version_of(one.name) for one in others}
        missing = [name for name, version in versions.items() if version is None]
        old = [
            f"{one.name} {versions[one.name]}, not {one.specifier}"
            for one in others
            if versions[one.name] is not None and not one.specifier.contains(versions[one.name] or "", prereleases=True)
        ]
        purpose = EXTRAS.get(extra) or "brings " + ", ".join(one.name for one in others)
        how = f"pip install 'cryo-monai[{extra}]'"
        if old:
            findings.append(Finding("extras", extra, WARNING, f"{purpose}; {', '.join(old)}", how))
        elif missing:
            some = f" (missing {', '.join(missing)})" if len(missing) < len(others) else ""
            findings.append(Finding("extras", extra, ABSENT, purpose + some, how))
        else:
            findings.append(Finding("extras", extra, PASS, purpose))
    return findings


def security_findings(floors: Mapping[str, str] = SECURITY_FLOORS) -> list[Finding]:
    """Compare installed versions with the first ones without known holes."""
    from packaging.version import Version

    findings, fine = [], []
    for name, floor in floors.items():
        version = version_of(name)
        if version is not None and Version(version) < Version(floor):
            remedy = f"pip install '{name}>={floor}'"
            findings.append(Finding("safety", name, FAIL, f"{version} has known holes", remedy))
        elif version is not None:
            fine.append(f"{name} {version} (>= {floor})")
    if fine:
        findings.append(Finding("safety", "known holes", PASS, f"none in {', '.join(fine)}"))
    return findings
