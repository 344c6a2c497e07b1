"""The checks of MONAI's model zoo, by its own script, on both bundles and on a package.

``MONAI_MODEL_ZOO`` names a checkout of https://github.com/Project-MONAI/model-zoo. Its script wants the schema of
metadata beside each bundle; with ``MONAI_SCHEMA`` (a file) nothing is downloaded, otherwise the zoo's own
``ci/prepare_schema.py`` brings it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSIFIERS, SUBTOMOGRAMS, TINY

from cryo_monai.packages import Release, package_run
from cryo_monai.runs import train_bundle
from cryo_monai.workflows import load_workflow

pytestmark = pytest.mark.slow


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A copy of the zoo's scripts, with no models yet."""
    checkout = os.environ.get("MONAI_MODEL_ZOO")
    if not checkout:
        pytest.skip("MONAI_MODEL_ZOO is not set to a checkout of Project-MONAI/model-zoo")
    shutil.copytree(Path(checkout) / "ci", tmp_path / "zoo" / "ci")
    (tmp_path / "zoo" / "models").mkdir()
    (tmp_path / "zoo" / "models" / "model_info.json").write_text("{}")
    return tmp_path / "zoo"


def run_script(zoo: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=zoo, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def verify(zoo: Path, name: str) -> None:
    schema = os.environ.get("MONAI_SCHEMA")
    if schema:
        (zoo / "models" / name / "eval").mkdir()
        shutil.copyfile(schema, zoo / "models" / name / "eval" / "schema.json")
    else:
        run_script(zoo, "ci/prepare_schema.py", "--l", name)
    said = run_script(zoo, "ci/verify_bundle.py", "-b", name, "-m", "full")
    for line in (
        "directory is verified correctly.",
        "version and changelog are verified correctly.",
        "metadata format is verified correctly.",
        "properties are verified correctly.",
        "data shape is verified correctly.",
        "export weights into TorchScript module successfully.",
    ):
        assert line in said


@pytest.mark.parametrize("bundle", CLASSIFIERS, ids=lambda p: p.name)
def test_the_zoos_own_script_passes_a_bundle(bundle: Path, zoo: Path) -> None:
    """With random weights, which is all that a bundle without training has."""
    target = zoo / "models" / bundle.name
    shutil.copytree(bundle, target)
    torch.manual_seed(0)
    network = load_workflow(target, "inference").parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), target / "models" / "model.pt")
    verify(zoo, bundle.name)


def test_the_zoos_own_script_passes_a_package(
    zoo: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``large_files.yml``: the file that is there has the hash that stands in it, so nothing is downloaded."""
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, tmp_path / "run", overlays=[overlay], ids=ids)
    release = Release(weights_url="https://example.org/model.pt")
    package_run(tmp_path / "run", zoo / "models" / "tiny_classification", release)
    verify(zoo, "tiny_classification")
