"""What is installed: the wheel has the bundles, the sdist builds it, and their names work anywhere."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import BUNDLES, CONFIGS, ROOT

from cryo_monai import command_line
from cryo_monai.__main__ import main

RELEASE = ROOT / "docs" / "release.md"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel (made from the sdist) and sdist, by the command of docs/release.md."""
    pytest.importorskip("build")
    target = tmp_path_factory.mktemp("dist")
    [command] = re.findall(r"^python (-m build --outdir) dist \.$", RELEASE.read_text(), re.MULTILINE)
    # The environment of the tests has hatchling, so nothing is fetched.
    done = subprocess.run(
        [sys.executable, *command.split(), str(target), "--no-isolation", "."],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def tracked(folder: Path) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder.name], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.splitlines())


def test_wheel_and_sdist_have_what_is_tracked(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name.removeprefix("cryo_monai/shipped/") for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (BUNDLES, CONFIGS, ROOT / "cryo_monai"):
        files = tracked(folder)
        assert len(files) > 10
        assert files <= in_wheel
        assert files <= in_sdist
    assert not {name for name in in_wheel if name.startswith(("tests/", "docs/", "benchmarks/"))}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= in_sdist


def test_the_installed_wheel_runs_from_outside_the_repository(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, with only the libraries borrowed: the shipped bundle is found and composed."""
    [wheel] = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    [site] = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # Libraries come after the wheel, and no .pth of an editable installation is read.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *borrowed])}
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "cryo-monai"), "train", "bundles/subtomogram_classification", "out",
         "--overlays", "configs/quickstart.json", "--dataset_dir", "nowhere"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Read from the wheel: the bundle and the overlay were found and composed, and only the data are missing.
    assert done.stderr.splitlines()[-1] == "error: nowhere: no such file or folder; give the data with --dataset_dir"


def test_names_in_the_working_directory_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "SHIPPED", ROOT)  # as a wheel has them
    monkeypatch.chdir(tmp_path)
    assert command_line._located("configs/quickstart.json") == str(CONFIGS / "quickstart.json")
    assert command_line._located("--overlays=configs/quickstart.json,mine.json") == (
        f"--overlays={CONFIGS / 'quickstart.json'},mine.json"
    )
    for other in ("configs/none.json", "runs/mine", "--dataset_dir=bundle", "README.md"):
        assert command_line._located(other) == other
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.json").write_text("{}")
    assert command_line._located("configs/quickstart.json") == "configs/quickstart.json"
    assert main(["train", "bundles/none", "out"]) == 1
    assert "bundles/none/configs/train.json: no such file" in capsys.readouterr().err
