"""Both bundles, unmodified, in a real MONAI Label 0.8.5 server on loopback.

It needs an environment of its own, because it wants numpy 1::

    python3.11 -m venv label
    label/bin/pip install "monailabel==0.8.5" "monai==1.6.1" "pydicom<3" -e .
    MONAI_LABEL_PYTHON=label/bin/python pytest -m slow -n 0 tests/test_monai_label.py
"""

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLES
from documented_pages import blocks_of

from cryo_monai.mrc import write_mrc
from cryo_monai.networks import read_description
from cryo_monai.workflows import load_workflow, run_workflow

pytestmark = pytest.mark.slow

PAGE = "docs/monai_label.md"
VOLUMES = [f"{number:04d}" for number in range(1, 11)]
LABELLED, UNLABELLED = VOLUMES[:6], VOLUMES[6:]
SHAPE = {"subtomogram_classification": (20, 24, 28), "medmnist3d_classification": (28, 28, 28)}  # (z, y, x)


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that MONAI Label is installed for."""
    named = os.environ.get("MONAI_LABEL_PYTHON")
    if not named:
        pytest.skip("MONAI_LABEL_PYTHON is not set: name the Python of an environment with MONAI Label 0.8.5 in it")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return os.path.abspath(named)


class Server:
    """MONAI Label's own app for bundles, in a workspace of its own, and curl as an annotator uses it."""

    def __init__(self, python: str, workspace: Path, name: str) -> None:
        self.python, self.workspace, self.name = python, workspace, name
        self.app, self.studies = workspace / "monaibundle", workspace / "studies"
        self.bundle = self.app / "model" / name
        self.log = workspace / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.studies.mkdir(parents=True)
        # What MONAI Label starts, it starts as "python".
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
        self._label("apps", "--download", "--name", "monaibundle", "--output", str(workspace))

    def _label(self, *arguments: str) -> None:
        command = [self.python, "-m", "monailabel.main", *arguments]
        done = subprocess.run(
            command, cwd=self.workspace, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = [f"--app={self.app}", f"--studies={self.studies}", "--host=127.0.0.1", f"--port={port}"]
        for key, value in {
            "models": self.name,
            "zoo_source": "local",
            "sam2": "false",
            "epistemic_model": self.name,
            "epistemic_simulation_size": "3",
        }.items():
            options += ["--conf", key, value]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "monailabel.main", "start_server", *options],
                cwd=self.workspace,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            if self.ask("GET", "/info/", check=False)[0] == 200:
                return
            time.sleep(1)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        """End the server and what it started."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self.process = None

    def ask(self, method: str, path: str, *arguments: str, check: bool = True) -> tuple[int, Any]:
        """Return status and answer of a request."""
        command = ["curl", "-s", "-m", "600", "-w", "\n%{http_code}", "-X", method, self.url + path, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=620, check=False)
        answer, _, status = done.stdout.rpartition("\n")
        assert status == "200" or not check, f"{command}: {status} {answer}\n{self.log.read_text()[-3000:]}"
        return int(status), json.loads(answer) if status == "200" else answer

    def say(self, path: str, content: dict[str, Any]) -> Any:
        return self.ask("POST", path, "-H", "Content-Type: application/json", "-d", json.dumps(content))[1]

    def scores(self, *arguments: str, query: str = "") -> list[float]:
        """Return what the model says, by class."""
        answer = self.ask("POST", f"/infer/{self.name}?output=json{query}", *arguments)[1]["prediction"]
        assert [row["idx"] for row in answer] == list(range(len(answer)))
        return [row["score"] for row in answer]

    def label(self, image: str, file: Path, info: dict[str, Any] | None = None) -> None:
        params = ["-F", f"params={json.dumps(info)}"] if info else []
        self.ask("PUT", f"/datastore/label?image={image}&tag=final", "-F", f"label=@{file}", *params)

    def train(self) -> dict[str, Any]:
        """Train for an epoch; see `await_training`."""
        self.say(f"/train/{self.name}", {"max_epochs": 1, "val_split": 0.34})
        return self.await_training()

    def await_training(self) -> dict[str, Any]:
        """Return what became of a training, once none runs."""
        for _ in range(900):
            if self.ask("GET", "/train/?check_if_running=true", check=False)[0] == 404:
                told: dict[str, Any] = self.ask("GET", "/train/")[1]
                if told["status"] in ("DONE", "ERROR"):  # written a moment after the process has ended
                    return told
            time.sleep(1)
        raise AssertionError("training does not end")


def class_names(name: str) -> list[str]:
    metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [channels[str(number)] for number in range(len(channels))]


@pytest.fixture(scope="module", params=sorted(SHAPE))
def server(request: pytest.FixtureRequest, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one bundle as it is in this project, with weights and volumes."""
    name = request.param
    server = Server(python, tmp_path_factory.mktemp("label") / "workspace", name)
    shutil.copytree(BUNDLES / name, server.bundle)
    network = load_workflow(server.bundle, "inference").parser.get_parsed_content("network_def")
    network.set_class_names(class_names(name))
    network.temperature = 1.5
    torch.save(network.state_dict(), server.bundle / "models" / "model.pt")
    for number, volume in enumerate(VOLUMES):
        rng = np.random.default_rng(number)
        voxels = rng.normal(size=SHAPE[name]) + 3 * (rng.random(SHAPE[name]).cumsum(1) > 2 * number)
        if name == "medmnist3d_classification":  # which has bytes
            voxels = np.clip(40 * (voxels + 2), 0, 255).astype(np.uint8)
        else:
            voxels = voxels.astype(np.float32)
            write_mrc(server.workspace / f"{volume}.mrc", voxels, voxel_size=10.0)
        image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), np.diag([10.0, 10.0, 10.0, 1.0]))
        nibabel.save(image, server.studies / f"{volume}.nii.gz")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def classified(server: Server, data: Path) -> dict[str, list[float]]:
    """Return what ``python -m monai.bundle run inference`` says of volumes, by name."""
    output = server.workspace / "predictions.csv"
    options = ["--bundle_root", str(server.bundle), "--dataset_dir", str(data), "--output_file", str(output)]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", "--config_file"]
    done = subprocess.run(
        [*command, str(server.bundle / "configs" / "inference.json"), *options],
        cwd=server.workspace,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return predictions(output)


def predictions(file: Path) -> dict[str, list[float]]:
    rows = csv.DictReader(file.read_text().splitlines())
    return {Path(row["path"]).name: [float(row[key]) for key in row if key.startswith("p_")] for row in rows}


# The tests below are one session of an annotator, in this order.


def test_info_shows_a_classifier_with_our_class_names(server: Server) -> None:
    info = server.ask("GET", "/info/")[1]
    assert info["models"][server.name]["type"] == "classification"
    names = {name.lower(): number for number, name in enumerate(class_names(server.name))}
    assert info["models"][server.name]["labels"] == names
    assert server.name in info["trainers"]
    assert server.name in info["scoring"]


def test_infer_says_what_the_bundle_says(server: Server) -> None:
    """Of uploaded NIfTI volumes, of those in the data store, and of MRC volumes, whose axes come in another order."""
    expected = classified(server, server.studies)
    file = server.studies / "0001.nii.gz"
    uploaded = server.scores("-F", f"file=@{file}")
    assert uploaded == pytest.approx(expected["0001.nii.gz"], abs=1e-4)
    assert sum(uploaded) == pytest.approx(1, abs=1e-5)
    stored = server.scores(query="&image=0002")
    assert stored == pytest.approx(expected["0002.nii.gz"], abs=1e-4)
    assert max(abs(a - b) for a, b in zip(uploaded, stored, strict=True)) > 1e-4
    volume = server.workspace / "0001.mrc"
    if volume.exists():
        assert server.scores("-F", f"file=@{volume}") == pytest.approx(uploaded, abs=1e-4)


def test_a_label_that_is_no_class_is_named_in_the_log_of_training(server: Server) -> None:
    wrong = server.workspace / "label.json"
    wrong.write_text('{"label": "unheard of"}')
    before = (server.bundle / "models" / "model.pt").stat().st_mtime_ns
    for volume in LABELLED[:2]:
        server.label(volume, wrong)
    told = server.train()
    assert told["status"] == "ERROR"
    assert "'unheard of' is no class; give the name or the index" in "\n".join(told["details"])
    assert (server.bundle / "models" / "model.pt").stat().st_mtime_ns == before


def test_training_on_labels_of_every_kind_changes_what_is_served(server: Server) -> None:
    names = class_names(server.name)
    before = server.scores(query="&image=0010")
    answer = server.ask("POST", f"/infer/{server.name}?output=json&image=0001")[1]
    folder = server.workspace
    (folder / "answer.json").write_text(json.dumps(answer))
    (folder / "name.json").write_text(json.dumps({"label": names[1].upper()}))
    (folder / "index.txt").write_text("2\n")
    map_ = nibabel.Nifti1Image(np.zeros(SHAPE[server.name][::-1], np.uint8), np.eye(4))
    map_.dataobj[3:5, 3:5, 3:5] = 1
    nibabel.save(map_, folder / "segments.nii.gz")
    server.label("0001", folder / "answer.json")
    server.label("0002", folder / "name.json")
    server.label("0003", folder / "index.txt")
    # As 3D Slicer's module saves it: a label map, and the names of its segments.
    server.label("0004", folder / "segments.nii.gz", {"label_info": [{"name": names[3].lower(), "idx": 1}]})
    server.label("0005", folder / "name.json")
    server.label("0006", folder / "index.txt")
    assert server.ask("GET", "/datastore/")[1]["completed"] == len(LABELLED)
    told = server.train()
    assert told["status"] == "DONE", "\n".join(told["details"])
    assert any("epoch 1/1: lr" in line for line in told["details"])
    assert [file.name for file in (server.bundle / "models").glob("*.pt")] == ["model.pt"]
    described = read_description(torch.load(server.bundle / "models" / "model.pt")["_extra_state"])
    assert described["class_names"] == names
    after = server.scores(query="&image=0010")
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 1e-3
    output = folder / "new.csv"
    ids = {"dataset_dir": str(server.studies / "0010.nii.gz"), "output_file": str(output)}
    run_workflow(
        load_workflow(server.bundle, "inference", overrides={**ids, "ckpt_dir": str(server.bundle / "models")})
    )
    assert after == pytest.approx(predictions(output)["0010.nii.gz"], abs=1e-4)


def uncertainties(server: Server) -> dict[str, float]:
    """Return what the scoring noted of volumes without a label, the most uncertain first."""
    objects = server.ask("GET", "/datastore/?output=all")[1]["objects"]
    noted = {name: entry["image"]["info"] for name, entry in objects.items() if not entry["labels"]}
    found = {name: info["epistemic_entropy"] for name, info in noted.items() if "epistemic_entropy" in info}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def test_scoring_ranks_the_unlabelled_volumes(server: Server) -> None:
    assert uncertainties(server) == {}
    told = server.ask("POST", f"/scoring/{server.name}?run_sync=true")[1]
    assert (told["total"], told["executed"]) == (len(UNLABELLED), len(UNLABELLED))
    found = uncertainties(server)
    assert sorted(found) == UNLABELLED
    assert len(set(found.values())) == len(UNLABELLED)
    # The mean over the classes of -p log p of the mean answer: monailabel/tasks/scoring/epistemic_v2.py.
    classes = len(class_names(server.name))
    assert all(0 < value <= math.log(classes) / classes + 1e-6 for value in found.values())
    assert server.ask("POST", f"/scoring/{server.name}?run_sync=true")[1]["skipped"] == len(UNLABELLED)


def documented(what: str) -> str:
    """Return the block of commands of the page that has a text."""
    (block,) = [b for b in blocks_of(PAGE) if b.test == "tests/test_monai_label.py" and what in b.text]
    return block.text


def follow(server: Server, commands: str) -> str:
    """Run commands of the page, and return what they print."""
    environment = {**server.environment, "URL": getattr(server, "url", ""), "NAME": server.name}
    commands = commands.replace("CLASS", class_names(server.name)[2])
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands],
        cwd=server.workspace.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, commands + done.stderr + server.log.read_text()[-3000:]
    return done.stdout


def test_active_learning_serves_the_most_uncertain_first(server: Server) -> None:
    """Its app for bundles has no strategy that follows the scores; MONAI Label has: two lines bring it in."""
    server.stop()
    follow(server, documented("sed -i"))
    server.start()
    order = list(uncertainties(server))
    served = [server.say("/activelearning/epistemic", {})["id"] for _ in order]
    assert served == order
    assert sorted(served) == UNLABELLED


def test_the_commands_of_the_page_work(server: Server) -> None:
    if server.name != "subtomogram_classification":
        pytest.skip("one bundle is enough")
    blocks = [b.text for b in blocks_of(PAGE) if b.test == "tests/test_monai_label.py" and "sed -i" not in b.text]
    said = [follow(server, block) for block in blocks]
    assert len(said) >= 7
    (ranking,) = [text for text, block in zip(said, blocks, strict=True) if "sorted(" in block]
    order = uncertainties(server)
    assert [literal_eval(line)[::-1] for line in ranking.splitlines()] == list(order.items())
    labels = server.studies / "labels" / "final"
    assert json.loads((labels / "0001.json").read_text()) == {"label": class_names(server.name)[2]}
    assert server.await_training()["status"] == "DONE"
