"""What is examined before anything runs: right here, and named where it is broken."""

import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT, SUBTOMOGRAMS
from packaging.requirements import Requirement

from cryo_monai.__main__ import main
from cryo_monai.doctor import Finding, findings_table, findings_text, has_failed
from cryo_monai.doctor.dependencies import (
    EXTRAS,
    extra_findings,
    module_of,
    package_findings,
    requirements,
    security_findings,
)
from cryo_monai.doctor.given import given_finding
from cryo_monai.doctor.machine import _group_files, cores_allowed, machine_findings, memory_limit
from cryo_monai.doctor.probe import run_probe
from cryo_monai.doctor.storage import storage_findings, variable_findings
from cryo_monai.downloads import cached_path
from cryo_monai.weight_records import RECORDS


def of(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, list[Finding]]:
    """Exit code, text and findings of the verb, which takes as long as the imports."""
    table = tmp_path_factory.mktemp("doctor") / "found.json"
    with redirect_stdout(io.StringIO()) as text:
        code = main(["doctor", "--run", str(SUBTOMOGRAMS), "--json", str(table)])
    content = json.loads(table.read_text())
    findings = [Finding(**finding) for finding in content["findings"]]
    assert content["passed"] != has_failed(findings)
    return code, text.getvalue(), findings


@pytest.fixture
def everything(printed: tuple[int, str, list[Finding]]) -> list[Finding]:
    return printed[2]


def test_here_everything_needed_passes_and_every_dependency_is_listed(everything: list[Finding]) -> None:
    failed = [finding for finding in everything if finding.status == "fail"]
    assert failed == []
    base, extras = requirements()
    named = {(finding.section, finding.name) for finding in everything}
    assert {("packages", one.name) for one in base} <= named
    assert {("extras", extra) for extra in extras} <= named
    assert all(finding.found for finding in everything)
    assert all(finding.remedy for finding in everything if finding.status == "warning")
    precision = of(everything, "precision").found
    import torch

    from cryo_monai.networks import has_fast_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert ("bfloat16 here" in precision) == has_fast_bfloat16(device)
    assert "a bundle: train, evaluate, inference" in of(everything, str(SUBTOMOGRAMS)).found


def test_the_text_is_about_a_screen_and_says_the_verdict_last(printed: tuple[int, str, list[Finding]]) -> None:
    code, text, findings = printed
    lines = text.splitlines()
    assert code == 0
    assert len(lines) < 50
    assert [line for line in lines if len(line) > 120 and " " in line[30:].strip()] == []  # but words too long to break
    assert lines[-1].startswith("everything needed passes")
    bundle = Finding("given", "/a/folder/" * 12 + "bundle", "pass", "a bundle: train, evaluate, inference")
    assert findings_text([bundle]).splitlines()[1:3] == [f"  ok    {bundle.name}", " " * 29 + bundle.found]
    bad = Finding("packages", "torch", "fail", "1.0, not >=2.10", "pip install it")
    text = findings_text([*findings, bad])
    assert "  FAIL  torch                1.0, not >=2.10 -> pip install it" in text
    assert text.splitlines()[-1].startswith("1 of what is needed fail: torch")
    table = findings_table([bad])
    assert table["passed"] is False
    assert table["findings"][0]["remedy"] == "pip install it"


def broken(folder: Path, name: str, content: str) -> dict[str, str]:
    """An environment in which a module is this text instead."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content)
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize(
    ("command", "more"), [(["-m", "cryo_monai", "doctor"], []), (["-m", "cryo_monai.doctor"], ["fire"])]
)
def test_a_library_that_cannot_be_imported_is_a_line_and_the_rest_goes_on(
    command: list[str], more: list[str], tmp_path: Path
) -> None:
    for name in more:
        broken(tmp_path / "path", name, "raise ImportError('not today')")
    environment = broken(tmp_path / "path", "torch", "raise ImportError('libcudart.so.12: cannot open')")
    environment["CRYO_MONAI_CACHE"] = str(tmp_path / "cache")
    table = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, *command, "--json", str(table), "--run", str(SUBTOMOGRAMS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be imported: ImportError: libcudart.so.12: cannot open" in " ".join(done.stdout.split())
    content = json.loads(table.read_text())
    assert content["passed"] is False
    found = {finding["name"]: finding for finding in content["findings"]}
    assert found["torch"]["status"] == "fail"
    assert "torchvision, both from the same index" in found["torch"]["remedy"]
    assert found["numpy"]["status"] == found["mrcfile"]["status"] == "pass"
    assert found["fire"]["status"] == ("fail" if more else "pass")
    assert found["devices"]["status"] == "fail"
    assert {"memory", "CPU", "cache", "weights", "loading"} <= set(found)
    assert "not tried" in found[str(SUBTOMOGRAMS)]["found"]
    assert not (tmp_path / "cache").exists()  # nothing is created


def test_a_library_that_ends_the_process_is_named_and_the_others_are_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, "ends_everything", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    broken(tmp_path, "prints", "print('cryo-monai-doctor is not this', flush=True)")
    broken(tmp_path, "torch", "raise OSError('no libraries')")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["prints", "ends_everything", "json", "not_there_at_all"]
    found = run_probe(names, timeout=120)
    assert found.errors == {
        "ends_everything": "ends the process (signal 11)",
        "not_there_at_all": "ModuleNotFoundError: No module named 'not_there_at_all'",
    }
    assert found.devices == {"error": "OSError: no libraries"}


def test_an_import_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(tmp_path, "never_ends", "import time; time.sleep(60)")
    broken(tmp_path, "torch", "import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run_probe(["never_ends"], timeout=2)
    assert found.errors == {"never_ends": "took more than 2 s"}
    assert found.devices == {"error": "took more than 2 s"}


def test_importing_the_doctor_imports_nothing_that_it_examines() -> None:
    code = """
import sys
import cryo_monai.doctor, cryo_monai.doctor.reporting
heavy = {"torch", "monai", "numpy", "fire", "packaging", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_versions_below_the_floor_and_libraries_that_are_not_there_fail() -> None:
    version = importlib.metadata.version("numpy")
    wanted = [Requirement("numpy>=999"), Requirement("no-such-library>=1"), Requirement("numpy>=1")]
    old, missing, fine = package_findings(wanted, {})
    assert (old.status, old.found) == ("fail", f"{version}, not >=999")
    assert old.remedy == "pip install 'numpy>=999'"
    assert (missing.status, missing.found) == ("fail", "not installed (>=1)")
    assert fine.status == "pass"
    assert package_findings([Requirement("scikit-learn>=1")], {"sklearn": "ImportError: x"})[0].status == "fail"


def test_extras_are_absent_old_or_there_and_never_fail() -> None:
    there = importlib.metadata.version("numpy")
    found = extra_findings(
        {
            "video": [Requirement("no-such-library==1"), Requirement("numpy>=1")],
            "sweep": [Requirement("numpy>=999")],
            "other": [Requirement("numpy>=1")],
        }
    )
    assert [finding.status for finding in found] == ["absent", "warning", "pass"]
    assert found[0].found.endswith("(missing no-such-library)")
    assert found[0].remedy == "pip install 'cryo-monai[video]'"
    assert f"numpy {there}, not >=999" in found[1].found
    assert found[2].found == "brings numpy"
    assert not has_failed(found)


def test_every_extra_says_what_it_enables_and_every_dependency_can_be_imported() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) <= set(EXTRAS)
    for text in project["dependencies"]:
        name = Requirement(text).name
        assert importlib.util.find_spec(module_of(name)) is not None, name


def test_versions_with_known_holes_fail() -> None:
    assert [finding.status for finding in security_findings()] == ["pass"]
    old = security_findings({"torch": "999", "numpy": "1", "no-such-library": "1"})
    assert [(finding.name, finding.status) for finding in old] == [("torch", "fail"), ("known holes", "pass")]
    assert old[0].remedy == "pip install 'torch>=999'"


@pytest.mark.parametrize("name", ["MONAI_ALLOW_PICKLE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_variables_that_make_files_dangerous_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert [(finding.name, finding.status) for finding in variable_findings()] == [(name, "fail")]
    monkeypatch.setenv(name, "0")
    assert [finding.status for finding in variable_findings()] == ["pass"]


def test_the_cache_its_size_and_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(cache))
    found = storage_findings()
    assert f"{cache} (CRYO_MONAI_CACHE): not there yet" in of(found, "cache").found
    assert of(found, "weights").status == "absent"
    assert not cache.exists()
    record = RECORDS[0]
    cached_path(record).parent.mkdir(parents=True)
    cached_path(record).write_bytes(bytes(3 << 20))
    found = storage_findings()
    assert "1 files, 3.0 MiB" in of(found, "cache").found
    assert of(found, "weights").status == "warning"
    assert of(found, "weights").remedy == f"cryo-monai weights pin {record.name}"
    (cache / "weight_pins.json").write_text(json.dumps({record.name: {"sha256": "0" * 64}}))
    assert of(storage_findings(), "weights").status == "pass"
    (cache / "weight_pins.json").write_text("{")
    assert of(storage_findings(), "weights").status == "fail"
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(cached_path(record)))  # a file
    assert "cannot be written" in of(storage_findings(), "cache").found


@contextmanager
def not_root() -> Iterator[None]:
    """Without the rights of root, which may search every folder."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root only: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_that_may_not_be_searched_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(locked / "below" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(locked / "below"))
    try:
        with not_root():
            found = storage_findings()
    finally:
        locked.chmod(0o700)
    for name, status in (("cache", "warning"), ("temporary files", "fail")):
        assert of(found, name).status == status
        assert of(found, name).found.startswith(str(locked / "below"))
        assert of(found, name).found.endswith("Permission denied")
        assert of(found, name).remedy.startswith("set ")
    assert {"weights", "structures", "working folder"} <= {finding.name for finding in found}


def test_names_that_the_system_refuses_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / ("x" * 300)))
    finding = of(storage_findings(), "cache")
    assert finding.status == "warning"
    assert finding.found.endswith("File name too long")


def test_a_gpu_is_described_and_its_absence_is_no_failure() -> None:
    cpu = {"built_for": "", "reason": "", "gpus": [], "gpu_bfloat16": False, "cpu_bfloat16": True, "threads": 1}
    cpu["cpu_features"] = ["AMX"]
    assert "bfloat16 here: the CPU has AMX" in of(machine_findings(cpu), "precision").found
    card = {"name": "NVIDIA H200", "memory": 139 << 30, "capability": "9.0"}
    gpu = {**cpu, "gpus": [card], "gpu_bfloat16": True, "cpu_bfloat16": False}
    found = machine_findings(gpu)
    assert of(found, "GPU 0").found == "NVIDIA H200, 139 GiB, compute capability 9.0"
    assert "bfloat16 here: the GPU" in of(found, "precision").found
    assert not has_failed(found)
    assert of(machine_findings({**cpu, "threads": 4096}), "CPU").status == "warning"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    assert 0 < cores_allowed() <= (os.cpu_count() or 1)
    limit = memory_limit()
    assert limit is None or limit > 0
    (tmp_path / "memory.max").write_text("1073741824\n")
    # The outermost group counts for every process in it.
    assert "1073741824" in list(_group_files("memory.max", root=tmp_path))


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    assert "neither a run" in given_finding(tmp_path).found
    (tmp_path / "configs").mkdir()
    finding = given_finding(tmp_path)
    assert finding.status == "fail"
    assert "no such file" in finding.found
    (tmp_path / "run.json").write_text("{")
    assert given_finding(tmp_path).status == "fail"
