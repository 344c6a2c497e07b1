"""A packaged run is a bundle that says, scores and trains what the run did, wherever it is taken."""

import csv
import json
import shlex
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import monai.bundle
import pytest
import torch
from conftest import ROOT, SUBTOMOGRAMS, TINY
from monai.bundle import ConfigParser, create_workflow

from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.packaged_recipes import without_places
from cryo_monai.packages import Release, package_run
from cryo_monai.run_evaluation import evaluation_of
from cryo_monai.run_inference import classify_with_run
from cryo_monai.runs import find_data_again, train_bundle
from cryo_monai.trusts import SUMS, check_sums, trust, write_sums

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file"),  # MONAI's note that a configuration is a program
    pytest.mark.filterwarnings("ignore:.*bundle.*:UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is trusted here out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CRYO_MONAI_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an overlay, ids, and an overlay's id that only evaluation has."""
    folder = tmp_path_factory.mktemp("packaged")
    overlay = folder / "tiny.json"
    overlay.write_text(json.dumps({**TINY, "train#random_clips#crop_prob": 0.25, "pictures": False}))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": "3", "device": "cpu", "lr": "0.02", "dropout": "0.1"}
    train_bundle(SUBTOMOGRAMS, folder / "run", overlays=[overlay], ids=ids)
    return folder / "run"


@pytest.fixture(scope="module")
def packaged(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unzipped package, away from the run, the repository and their parents."""
    folder = tmp_path_factory.mktemp("elsewhere")
    archive = package_run(run_dir, folder / "tiny_classification.zip", Release(version="1.2.0", authors="A. Biologist"))
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder / "tiny_classification"


def probabilities(file: Path) -> list[list[float]]:
    with file.open() as stream:
        return [[float(v) for k, v in row.items() if k.startswith("p_")] for row in csv.DictReader(stream)]


def test_the_package_is_the_recipe_of_the_run_with_the_places_of_a_bundle(run_dir: Path, packaged: Path) -> None:
    recipe = json.loads((packaged / "configs" / "train.json").read_text())
    trained = json.loads((run_dir / "configuration.json").read_text())
    bundle = json.loads((SUBTOMOGRAMS / "configs" / "train.json").read_text())
    places = {"dataset_dir", "output_dir", "ckpt_dir", "bundle_root", "device", "progress"}
    assert list(recipe) == list(bundle)
    assert {k: v for k, v in recipe.items() if k not in places | {"_desc_"}} == {
        k: trained[k] for k in recipe if k not in places | {"_desc_"}
    }
    assert {k: recipe[k] for k in places} == {k: bundle[k] for k in places}
    assert (recipe["lr"], recipe["dropout"], recipe["train"]["random_clips"]["crop_prob"]) == (0.02, 0.1, 0.25)
    assert json.loads((packaged / "configs" / "evaluate.json").read_text())["pictures"] is False
    inference = json.loads((packaged / "configs" / "inference.json").read_text())
    assert inference["network_def"] == recipe["network_def"]
    assert all(inference[name] == recipe[name] for name in ("backbone", "clip_size", "dropout", "num_classes"))


def test_no_file_of_a_package_names_a_place_of_this_machine(run_dir: Path, packaged: Path, dataset_dir: Path) -> None:
    texts = [file for file in packaged.rglob("*") if file.is_file() and file.suffix != ".pt"]
    assert len(texts) == 12
    for file in texts:
        for place in (run_dir.parent, dataset_dir, ROOT):
            assert str(place) not in file.read_text(), file


def test_metadata_and_card_have_what_was_measured(run_dir: Path, packaged: Path) -> None:
    metadata = json.loads((packaged / "configs" / "metadata.json").read_text())
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert metadata["eval_metrics"] == {key: evaluation[key] for key in metadata["eval_metrics"]}
    assert set(metadata["eval_metrics"]) == {"accuracy", "auc", "balanced_accuracy", "macro_f1"}
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "c2_64kda", "1": "c7_400kda", "2": "o_440kda"}
    assert output["num_channels"] == 3
    assert (metadata["version"], metadata["authors"]) == ("1.2.0", "A. Biologist")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["weights_sha256"] == sha256_of(run_dir / "models" / "model.pt")
    card = (packaged / "docs" / "README.md").read_text()
    assert f"| accuracy | {evaluation['accuracy']:.3f} |" in card
    for words in (
        metadata["intended_use"],
        metadata["weights_sha256"],
        "18 training, 6 validation, 6 test",
        "o_440kda",
    ):
        assert words in card


def test_monai_scores_with_the_package_as_the_run_does(
    run_dir: Path, packaged: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = classify_with_run(run_dir, dataset_dir, tmp_path / "run.csv", ids={"device": "cpu"})
    monkeypatch.chdir(tmp_path)
    for kind, run_id in (("inference", None), ("train", "training")):
        workflow = create_workflow(
            config_file=str(packaged / "configs" / f"{kind}.json"),
            workflow_type=kind,
            bundle_root=str(packaged),
            dataset_dir=str(dataset_dir),
            output_dir=str(tmp_path / "output"),
            device="cpu",
            **({} if run_id is None else {"run_id": run_id, "ckpt_dir": str(tmp_path / "models"), "max_epochs": 1}),
        )
        assert workflow.check_properties() == []
        workflow.run()
    assert probabilities(tmp_path / "output" / "predictions.csv") == probabilities(expected)
    assert (tmp_path / "models" / "model.pt").is_file()
    for kind in ("train", "inference"):
        network = monai.bundle.load(packaged.name, bundle_dir=str(packaged.parent), workflow_type=kind, source="github")
        saved = torch.load(run_dir / "models" / "model.pt", weights_only=True)
        assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())


def test_a_package_is_used_as_a_run_is_and_trained_on(
    run_dir: Path, packaged: Path, dataset_dir: Path, tmp_path: Path
) -> None:
    expected = classify_with_run(run_dir, dataset_dir, tmp_path / "run.csv")
    assert probabilities(classify_with_run(packaged, dataset_dir, tmp_path / "own.csv")) == probabilities(expected)
    ids = {"dataset_dir": str(dataset_dir), "max_epochs": "1", "weights": str(packaged / "models" / "model.pt")}
    train_bundle(packaged, tmp_path / "further", ids=ids)
    configuration = json.loads((tmp_path / "further" / "configuration.json").read_text())
    assert configuration["backbone_options"] == TINY["backbone_options"]
    # Its own package names the weights that it started from, and does not point at them.
    assert evaluation_of(tmp_path / "further")["num_volumes"] == 6
    again = package_run(tmp_path / "further", tmp_path / "again_classification")
    assert json.loads((again / "configs" / "train.json").read_text())["weights"] is None
    assert sha256_of(packaged / "models" / "model.pt") in (again / "docs" / "README.md").read_text()


def test_the_same_run_gives_the_same_bytes(run_dir: Path, tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / number).mkdir()
        package_run(run_dir, tmp_path / number / "same.zip")
    assert sha256_of(tmp_path / "1" / "same.zip") == sha256_of(tmp_path / "2" / "same.zip")
    assert [p.name for p in (tmp_path / "1").iterdir()] == ["same.zip"]


def test_sha256sum_reads_the_list(packaged: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=packaged, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == sum(file.is_file() for file in packaged.rglob("*")) - 1


@pytest.mark.parametrize("what", ["changed", "missing", "added"])
def test_a_package_that_is_not_whole_is_refused(what: str, packaged: Path, dataset_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken_classification"
    shutil.copytree(packaged, broken)
    weights, config = broken / "models" / "model.pt", broken / "configs" / "extra.json"
    if what == "changed":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif what == "missing":
        weights.unlink()
    else:
        config.write_text("{}")
    reason = {
        "changed": "models/model.pt has changed",
        "missing": "models/model.pt is missing",
        "added": "configs/extra.json is not in SHA256SUMS",
    }[what]
    for use in (lambda: classify_with_run(broken, dataset_dir, tmp_path / "x.csv"), lambda: trust(broken)):
        with pytest.raises(InputError, match=f"broken_classification: not as it was packaged: {reason}"):
            use()


def test_a_package_of_others_runs_nothing_before_it_is_trusted(
    packaged: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile_classification"
    shutil.copytree(packaged, hostile)
    inference = hostile / "configs" / "inference.json"
    content = json.loads(inference.read_text())
    sentinel = tmp_path / "sentinel"
    content["initialize"].append(f"$__import__('pathlib').Path({str(sentinel)!r}).touch()")
    inference.write_text(json.dumps(content))
    write_sums(hostile)
    with pytest.raises(InputError, match="if you trust who made it: cryo-monai trust"):
        classify_with_run(hostile, dataset_dir, tmp_path / "x.csv")
    with pytest.raises(InputError, match="if you trust who made it"):
        train_bundle(hostile, tmp_path / "run", ids={"dataset_dir": str(dataset_dir)})
    assert not sentinel.exists()
    trust(hostile)
    classify_with_run(hostile, dataset_dir, tmp_path / "x.csv")
    assert sentinel.exists()


@pytest.mark.parametrize("how", ["inner bundle", "ids", "no sums", "own ids"])
def test_no_run_json_leads_past_the_check(how: str, packaged: Path, dataset_dir: Path, tmp_path: Path) -> None:
    """Of a package that was trusted, only ``run.json``, the list of sums or an unlisted folder has changed."""
    hostile = tmp_path / "hostile_classification"
    shutil.copytree(packaged, hostile)
    sentinel = tmp_path / "sentinel"
    program = f"$__import__('pathlib').Path({str(sentinel)!r}).touch()"
    record = json.loads((hostile / "run.json").read_text())
    if how == "inner bundle":
        shutil.copytree(hostile / "configs", hostile / "docs" / "b" / "configs")
        inner = hostile / "docs" / "b" / "configs" / "inference.json"
        content = json.loads(inner.read_text())
        inner.write_text(json.dumps({**content, "initialize": [program]}))
        record["bundle"] = "docs/b"
    elif how == "ids":
        record |= {"bundle": str(SUBTOMOGRAMS), "ids": {**TINY, "num_classes": 3, "device": program}}
    else:
        record["ids"] = {"device": program}
    (hostile / "run.json").write_text(json.dumps(record))
    if how == "no sums":
        (hostile / SUMS).unlink()
    with pytest.raises(InputError, match="hostile_classification: not as it was packaged: run"):
        classify_with_run(hostile, dataset_dir, tmp_path / "x.csv")
    assert not sentinel.exists()


@pytest.mark.parametrize("bundle", ["sender", "docs", "/proc/self/cwd/sender"])
def test_a_run_that_brings_its_bundle_along_is_refused(
    bundle: str, packaged: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(packaged, tmp_path / "sender")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sender" / SUMS).unlink()
    record = json.loads((tmp_path / "sender" / "run.json").read_text())
    (tmp_path / "sender" / "run.json").write_text(json.dumps({**record, "bundle": bundle}))
    with pytest.raises(InputError, match=r"sender: run\.json has a bundle of its own"):
        classify_with_run(tmp_path / "sender", dataset_dir, tmp_path / "x.csv")


def test_nothing_is_written_into_a_package(packaged: Path, dataset_dir: Path) -> None:
    with pytest.raises(InputError, match="a package, which stays as it is; choose another output_dir"):
        train_bundle(SUBTOMOGRAMS, packaged, ids={"dataset_dir": str(dataset_dir)})
    with pytest.raises(InputError, match="a package, which stays as it is"):
        find_data_again(packaged, dataset_dir)
    check_sums(packaged)


def test_the_cards_own_commands_leave_the_package_whole(
    packaged: Path, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / packaged.name
    shutil.copytree(packaged, copy)
    card = (copy / "docs" / "README.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in card.splitlines() if line.startswith("python -m monai.bundle run ")]
    assert [command[4] for command in commands] == ["inference", "training", "evaluating"]
    monkeypatch.chdir(copy)
    for command in commands:
        options = dict(zip(command[5::2], command[6::2], strict=True))
        ids = {name.removeprefix("--"): value for name, value in options.items()}
        files = ids.pop("config_file")
        chosen = json.loads(files.replace("'", '"')) if files.startswith("[") else files
        ids["dataset_dir"] = str(dataset_dir)
        monai.bundle.run(
            run_id=command[4], config_file=chosen, **ids, **({"max_epochs": 1} if "weights" in ids else {})
        )
    check_sums(copy)
    assert (copy / "FURTHER" / "models" / "model.pt").is_file()
    assert (copy / "output" / "evaluation.json").is_file()


def test_a_score_without_interval_or_undefined_is_packaged(run_dir: Path, tmp_path: Path) -> None:
    """AUC 1.0 has no interval, and of a class that the test split lacks it is not defined."""
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    numbers = json.loads((copy / "evaluation.json").read_text())
    numbers["intervals"] |= {"auc": None, "balanced_accuracy": None}
    numbers |= {"auc": None, "balanced_accuracy": 1.0}
    (copy / "evaluation.json").write_text(json.dumps(numbers))
    card = (package_run(copy, tmp_path / "p") / "docs" / "README.md").read_text()
    assert "| AUC | undefined |  |" in card
    assert "| balanced accuracy | 1.000 |  |" in card


def test_what_the_packager_says_is_in_the_card_and_the_licence(run_dir: Path, tmp_path: Path) -> None:
    release = Release(title="Ribosomes or not", data_source="our tomograms", data_license="CC BY 4.0")
    package = package_run(run_dir, tmp_path / "said", release)
    assert (package / "docs" / "README.md").read_text().startswith("# Ribosomes or not\n")
    licence = (package / "docs" / "data_license.txt").read_text()
    assert "Trained on: our tomograms\nLicence of these data: CC BY 4.0\n" in licence
    unsaid = (package_run(run_dir, tmp_path / "unsaid") / "docs" / "data_license.txt").read_text()
    assert "Not stated by who packaged this network" in unsaid


def test_names_of_files_stay_and_their_folders_go() -> None:
    values = {
        "list": ["/home/me/picks.star", "~/w/a.pt", "file:///home/me/b.pt", "../../me/c.pt"],
        "box": 32,
        "unit": "e/A^2",
    }
    assert without_places(values) == {"list": ["picks.star", "a.pt", "b.pt", "c.pt"], "box": 32, "unit": "e/A^2"}


def test_large_files_name_the_weights_by_hash(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.apps.utils import download_url

    bundle = package_run(run_dir, tmp_path / "zoo_classification", Release(weights_url="https://example.org/model.pt"))
    parser = ConfigParser()
    parser.read_config(str(bundle / "large_files.yml"))
    [entry] = parser.get()["large_files"]
    assert entry["url"] == "https://example.org/model.pt"
    # MONAI compares the file that is there with the hash, and downloads nothing.
    download_url(entry["url"], str(bundle / entry["path"]), hash_val=entry["hash_val"], hash_type=entry["hash_type"])
    assert not (package_run(run_dir, tmp_path / "without") / "large_files.yml").exists()


@pytest.mark.parametrize(
    ("name", "release", "reason"),
    [
        ("there", Release(), "is there already"),
        ("with space", Release(), "'with space' is no name for a bundle"),
        ("3dnet", Release(), "'3dnet' is no name for a bundle; a letter first"),
        ("fine", Release(version="two"), "--version two: give three numbers"),
        ("fine", Release(weights_url="model.pt"), "--weights_url model.pt: give an address"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(
    name: str, release: Release, reason: str, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=reason):
        package_run(run_dir, tmp_path / name, release)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("identifier", ["band_pass", "train#history#output_dir"])
def test_a_recipe_with_files_of_this_machine_is_refused(identifier: str, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    record = json.loads((copy / "run.json").read_text())
    record["ids"]["output_dir"] = str(tmp_path)  # a place is no part of the recipe
    (copy / "run.json").write_text(json.dumps(record))
    package_run(copy, tmp_path / "fine")
    record["ids"][identifier] = {"sigma": str(tmp_path)} if identifier == "band_pass" else f"${str(tmp_path)!r}"
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        InputError, match=rf"{identifier}.* in train\.json has a path of this machine: .*{tmp_path.name}"
    ):
        package_run(copy, tmp_path / "p")


def test_a_run_without_weights_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match=r"has no models/model\.pt; finish the training"):
        package_run(copy, tmp_path / "p")


class Hub(BaseHTTPRequestHandler):
    """A server that makes repositories, and refuses files once it knows their names."""

    seen: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self.seen.append((self.path, content))
        accepted = {"/api/repos/create": {"url": "http://127.0.0.1/me/tiny"}, "/api/validate-yaml": {"errors": []}}
        self._answer(200 if self.path in accepted else 403, accepted.get(self.path, {"error": "enough"}))

    def do_GET(self) -> None:
        self._answer(403, {"error": "enough"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


def test_a_package_goes_to_the_hugging_face_hub_up_to_the_network(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    shutil.copytree(packaged, tmp_path / packaged.name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(hub.errors.HfHubHTTPError, match="403"):
        monai.bundle.push_to_hf_hub("me/tiny", packaged.name, str(tmp_path), token="hf_none")
    server.shutdown()
    server.server_close()
    asked = dict(Hub.seen)
    assert asked["/api/repos/create"]["name"] == "tiny"
    sent = {file["path"] for path, content in Hub.seen if "preupload" in path for file in content["files"]}
    assert sent >= {"README.md", "models/model.pt", "configs/metadata.json", SUMS}
    card = (tmp_path / packaged.name / "README.md").read_text()
    assert card.startswith("---\ntags:\n- monai")
    assert "license: apache-2.0" in card
