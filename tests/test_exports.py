"""Exported files as other programs meet them: the network of a run, and nothing that only works here."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import numpy as np
import pytest
import torch
from conftest import CLASSIFIERS, ROOT, SUBTOMOGRAMS, TINY, TINY_INFERENCE
from torch import Tensor, nn

from cryo_monai.__main__ import main
from cryo_monai.backbones import BACKBONES
from cryo_monai.checkpoints import load_checkpoint
from cryo_monai.errors import CryoMonaiError, InputError
from cryo_monai.exports import (
    FORMATS,
    export_network,
    load_safetensors,
    open_export,
    read_metadata,
)
from cryo_monai.exports.agreement import random_volumes
from cryo_monai.exports.provenance import describe_run
from cryo_monai.fetching import sha256_of
from cryo_monai.networks import VideoClassifier
from cryo_monai.runs import read_run, train_bundle

EVERY_FORMAT = pytest.mark.parametrize("format", FORMATS)
PAGE = Path(__file__).parents[1] / "docs/exports.md"
# Everything that a network does with volumes before its backbone sees them, none of it as it is by default.
INPUT = {"intensity": "percentile", "band_pass": {"sigma": [0.5, 1.5]}, "time_axis": "y", "clip_size": [8, 20, 16]}


@pytest.fixture(scope="module")
def run_dir(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    overlay = folder.parent / "tiny.json"
    overlay.write_text(json.dumps({**TINY, **INPUT, "max_epochs": 1}))
    ids = {"dataset_dir": str(dataset_dir), "num_classes": 3, "device": "cpu"}
    train_bundle(SUBTOMOGRAMS, folder, overlays=[overlay], ids=ids)
    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    network = VideoClassifier(3, **{k: TINY[k] for k in ("backbone", "backbone_options")}, **INPUT)  # type: ignore[arg-type]
    network.load_state_dict(weights)
    # What one epoch of a tiny network would not show: numbers of the checkpoint's own, and scores that are far apart.
    network.mean, network.std, network.temperature = 0.4, 0.2, 1.7
    with torch.no_grad():
        network.head[1].weight.mul_(20)  # type: ignore[operator, union-attr]
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def network(run_dir: Path) -> VideoClassifier:
    options = {**{k: TINY[k] for k in ("backbone", "backbone_options")}, **INPUT, "precision": "float32"}
    return load_checkpoint(VideoClassifier(3, **options), run_dir / "models" / "model.pt").eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> dict[str, Path]:
    """The files that the commands at the top of docs/exports.md write of the run, by format."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("cryo-monai export ")]
    files = {}
    for words in (shlex.split(line, comments=True) for line in lines):
        format = words[words.index("--format") + 1]
        file = run_dir / "exports" / f"model{FORMATS[format].suffix}"
        if "--output" in words:
            file = run_dir.parent / words[words.index("--output") + 1]
        here = {"runs/mine": str(run_dir), file.name: str(file)}
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([here.get(word, word) for word in words[1:]]) == 0
        assert "compared with the run's network on 4 random batches and 4 volumes of the test split" in said.getvalue()
        files[format] = file
    assert files.keys() == FORMATS.keys()
    return files


def expected(network: VideoClassifier, volumes: Any) -> Any:
    with torch.no_grad():
        return network(torch.from_numpy(volumes)).softmax(-1).numpy()


def noise(*shape: int) -> Any:
    return (np.random.default_rng(3).normal(size=shape) * 200 + 31).astype(np.float32)


@EVERY_FORMAT
def test_a_file_takes_raw_volumes_of_any_size_and_number_and_equals_the_network(
    exported: dict[str, Path], network: VideoClassifier, format: str
) -> None:
    predict = open_export(exported[format])
    for shape in [(1, 1, 8, 20, 16), (1, 1, 20, 16, 8), (4, 1, 31, 9, 14), (2, 1, 6, 40, 5), (1, 1, 2, 2, 2)]:
        volumes = noise(*shape)
        probabilities = predict(volumes)
        assert probabilities.dtype == np.float32
        assert np.allclose(probabilities, expected(network, volumes), atol=1e-5), shape
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
        # These volumes are told apart, so that a file that gave the same for all would be found.
        assert probabilities.std() > 0.05


@EVERY_FORMAT
def test_a_file_says_what_it_is_and_where_it_comes_from(exported: dict[str, Path], run_dir: Path, format: str) -> None:
    about = read_metadata(exported[format])
    assert about["class_names"] == ["c2_64kda", "c7_400kda", "o_440kda"]
    assert about["temperature"] == 1.7
    assert about["network"] | {"mean": 0.4, "std": 0.2} == about["network"]
    assert {key: about["network"][key] for key in INPUT} == INPUT
    assert about["model_sha256"] == sha256_of(run_dir / "models" / "model.pt")
    assert about["bundle"]["version"] == json.loads((SUBTOMOGRAMS / "configs" / "metadata.json").read_text())["version"]
    assert about["run"]["data"]["num_volumes"] == {"training": 18, "validation": 6, "test": 6}
    assert about["run"]["command"]
    assert about["metrics"]["validation"]["epoch"] == 1
    assert about["metrics"]["test"] is None
    assert about["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    if format != "safetensors":
        assert about["input"]["shape"] == ["batch", 1, "z", "y", "x"]
        assert about["output"]["shape"] == ["batch", 3]


def test_test_metrics_are_told_only_of_the_weights_they_are_of(run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("exports"))
    digest = sha256_of(run / "models" / "model.pt")
    for checkpoint, test in ((digest, {"accuracy": 0.5, "num_volumes": 6}), ("0" * 64, None)):
        numbers = {"checkpoint": {"sha256": checkpoint}, "accuracy": 0.5, "num_volumes": 6, "per_class": {}}
        (run / "evaluation.json").write_text(json.dumps(numbers))
        assert describe_run(*read_run(run))["metrics"]["test"] == test


def python_blocks() -> list[str]:
    return re.findall(
        r"<!-- python: run by tests/test_exports.py -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
    )


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(name + " is not to be had here")
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("number", [0, 1])
def test_the_documented_programs_run_with_nothing_but_what_they_import(
    exported: dict[str, Path], network: VideoClassifier, tmp_path: Path, number: int
) -> None:
    """ONNX without PyTorch, MONAI and this package; PyTorch's files without the latter two."""
    for file in exported.values():
        shutil.copy(file, tmp_path)
    np.save(tmp_path / "volumes.npy", noise(3, 12, 14, 10))
    refused = [("torch", "monai", "cryo_monai", "onnx", "onnxscript"), ("monai", "cryo_monai")][number]
    code = BLOCKED.format(refused=set(refused)) + python_blocks()[number]
    command = [sys.executable, "-I", "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    probabilities = expected(network, noise(3, 12, 14, 10)[:, None])
    best = [network.class_names[row.argmax()] for row in probabilities]
    if number == 0:
        assert done.stdout.split("\n")[:3] == [
            f"{name} {row.max():.3f}" for name, row in zip(best, probabilities, strict=True)
        ]
    else:
        assert done.stdout == f"{best[0]}\n1.7\n"


def test_the_documented_program_that_loads_safetensors_runs(
    exported: dict[str, Path], network: VideoClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(exported["safetensors"], tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_blocks()[2], names)
    volumes = torch.from_numpy(noise(2, 1, 9, 9, 9))
    names["network"].precision = "float32"
    with torch.no_grad():
        assert torch.equal(names["network"](volumes), network(volumes))


def test_onnx_has_standard_operators_named_axes(exported: dict[str, Path]) -> None:
    import onnx

    model = onnx.load(str(exported["onnx"]))
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    ports = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert ports == {"volumes": ["batch", 1, "z", "y", "x"], "probabilities": ["batch", 3]}


@pytest.mark.parametrize("format", ["onnx", "torch_export", "safetensors"])
def test_no_path_of_this_machine_is_in_a_file(format: str, exported: dict[str, Path], run_dir: Path) -> None:
    """TorchScript has them for its error messages, as docs/exports.md says."""
    file = exported[format]
    parts = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    for place in (str(ROOT).encode(), sys.prefix.encode(), str(run_dir.parent).encode(), b"site-packages"):
        assert not any(place in part for part in parts), place


def test_safetensors_give_back_every_bit(exported: dict[str, Path], run_dir: Path) -> None:
    saved = torch.load(run_dir / "models" / "model.pt", weights_only=True)
    loaded = load_safetensors(exported["safetensors"])
    assert loaded.state_dict().keys() == saved.keys()
    for key, tensor in saved.items():
        assert loaded.state_dict()[key].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_other_safetensors_are_refused_in_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors, metadata = load_file(exported["safetensors"]), read_metadata(exported["safetensors"])
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file({"head.1.weight": tensors["head.1.weight"]}, tmp_path / "part.safetensors", metadata=texts)
    (tmp_path / "damaged.safetensors").write_bytes(exported["safetensors"].read_bytes()[:-9])
    for name, reason in {
        "plain": "does not say",
        "part": "does not fit",
        "damaged": "not a readable",
        "no": "no such",
    }.items():
        with pytest.raises(InputError, match=rf"{name}\.safetensors: .*{reason}") as caught:
            load_safetensors(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


@EVERY_FORMAT
@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped"])
def test_a_damaged_file_is_named_in_one_line(
    exported: dict[str, Path], tmp_path: Path, format: str, damage: str
) -> None:
    content = exported[format].read_bytes()
    half = content[: len(content) // 2]
    flipped = bytes(255 - byte for byte in content[:64]) + content[64:-64] + bytes(255 - b for b in content[-64:])
    file = tmp_path / f"damaged{FORMATS[format].suffix}"
    file.write_bytes({"empty": b"", "text": b"something else\n" * 9, "half": half, "flipped": flipped}[damage])
    for read in (open_export, read_metadata):
        with pytest.raises(InputError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)


def test_metadata_that_are_not_of_an_export_are_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported["safetensors"])
    for number, metadata in enumerate(({"format": "pt"}, {"network": "{}"}, {"network": "[1]", "class_names": "3"})):
        file = tmp_path / f"{number}.safetensors"
        save_file(tensors, file, metadata=metadata)
        for read in (load_safetensors, open_export):
            with pytest.raises(InputError, match=rf"{number}\.safetensors: not a readable exported file"):
                read(file)


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["export", *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_what_cannot_be_is_refused_before_anything_is_written(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    assert "did you mean onnx?" in refused(str(run_dir), "onyx", capsys=capsys)
    assert "not a run folder" in refused(str(tmp_path), "onnx", capsys=capsys)
    assert "ends in .pt2" in refused(str(run_dir), "torch_export", "-o", str(target), capsys=capsys)
    target.write_text("mine")
    assert "is there already" in refused(str(run_dir), "onnx", "-o", str(target), capsys=capsys)
    assert target.read_text() == "mine"
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], needs=("onnx", "no_such_module")))
    line = refused(str(run_dir), "onnx", capsys=capsys)
    assert "needs no_such_module: pip install 'cryo-monai[export]'" in line
    for path, reason in ((tmp_path / "no.ts", "no such file"), (run_dir / "run.json", "not an exported file")):
        with pytest.raises(InputError, match=reason):
            open_export(path)


def test_the_verb_works_without_the_data_of_the_training_and_says_so(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("exports"))
    record = json.loads((run / "run.json").read_text())
    record["ids"]["dataset_dir"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    assert main(["export", str(run), "--format", "safetensors"]) == 0
    said = capsys.readouterr().out
    assert "none of the test split" in said
    assert f"exported: {run}/exports/model.safetensors" in said


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_file_that_disagrees_is_not_left_behind(
    network: VideoClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def write(module: Any, metadata: Any, path: Path) -> None:
        with torch.no_grad():
            module.network.head[1].bias[0] += wrong
        FORMATS["torchscript"].write(module, metadata, path)
        with torch.no_grad():
            module.network.head[1].bias.copy_(network.head[1].bias)  # type: ignore[union-attr]

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["torchscript"], write=write))
    with pytest.raises(CryoMonaiError, match="probabilities differ by"):
        export_network(network, "onnx", tmp_path / "m.ts")
    assert list(tmp_path.iterdir()) == []


class Undecided(nn.Module):
    """Takes another way for bright clips, which no graph can."""

    num_features = 2

    def forward(self, clips: Tensor) -> Tensor:
        means = clips.mean(dim=(1, 3, 4))[:, :2]
        return means if float(means.sum()) > 0 else -means


def test_a_backbone_that_cannot_be_exported_is_named_in_one_line(network: VideoClassifier, tmp_path: Path) -> None:
    small = VideoClassifier(3, backbone="resnet18", backbone_options={"widths": [4, 4, 4, 4]}, clip_size=(8, 16, 16))
    small.backbone, small.head = Undecided(), nn.Sequential(nn.Dropout(), nn.Linear(2, 3))
    with pytest.raises(CryoMonaiError, match="--format torch_export: backbone resnet18 cannot be exported") as caught:
        export_network(small, "torch_export", tmp_path / "m.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_exporting_leaves_the_network_as_it_was(network: VideoClassifier, tmp_path: Path) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network.train()
    export_network(network, "torchscript", tmp_path / "m.ts")
    assert network.training
    assert network.precision == "float32"
    network.eval()
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def documented_monai_commands() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("python -m monai.bundle ")]
    return {words[3]: words[3:] for words in map(shlex.split, lines)}


@pytest.fixture
def bundle_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documented commands name; they run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize("bundle", CLASSIFIERS, ids=lambda p: p.name)
@pytest.mark.parametrize("verb", ["ckpt_export", "onnx_export"])
def test_monais_own_verbs_export_either_bundle_from_any_directory(
    bundle: Path, verb: str, bundle_elsewhere: Path
) -> None:
    """Checklist row 12: as documented, of a network that would run in bfloat16 elsewhere."""
    if verb == "onnx_export" and bundle != SUBTOMOGRAMS:
        pytest.skip("the other bundle's network_def is the same, see test_bundles.py; this takes ten seconds")
    tiny = {**TINY_INFERENCE, "num_classes": 3}
    del tiny["batch_size"]
    torch.manual_seed(0)
    network = VideoClassifier(**tiny, precision="float32").eval()  # type: ignore[arg-type]
    network.temperature = 1.7
    torch.save(network.state_dict(), bundle_elsewhere / "models" / "model.pt")
    shutil.copytree(bundle / "configs", bundle_elsewhere / "configs")
    ids = [word for key, value in {**tiny, "precision": "bfloat16"}.items() for word in (f"--{key}", json.dumps(value))]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # MONAI calls deprecated parts of PyTorch
        fire.Fire({verb: getattr(monai.bundle, verb)}, command=[*documented_monai_commands()[verb], *ids])
    volumes = noise(2, 1, 12, 16, 9)
    with torch.no_grad():
        scores = network(torch.from_numpy(volumes)).numpy()
    if verb == "ckpt_export":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program, about, _ = monai.data.load_net_with_metadata("model.ts")
        assert about["name"]
        found = program(torch.from_numpy(volumes)).detach().numpy()
    else:
        import onnxruntime

        found = onnxruntime.InferenceSession("model.onnx").run(["pred"], {"image": volumes})[0]
    assert np.allclose(found, scores, atol=1e-5)
    assert {path.name for path in bundle_elsewhere.iterdir()} <= {"models", "configs", "model.ts", "model.onnx"}


def test_random_volumes_differ_in_every_size() -> None:
    shapes = [volumes.shape for volumes in random_volumes((8, 20, 16))]
    for axis in (0, 2, 3, 4):
        assert len({shape[axis] for shape in shapes}) == len(shapes) > 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore:.saved_variables")
@pytest.mark.parametrize("name", ["r3d_18", "s3d", "slow_r50", "x3d_xs", "swin3d_t", "vivit_b_16x2", "rb3d"])
def test_a_network_of_every_family_is_exported(name: str, tmp_path: Path) -> None:
    """The page has them all; those of minutes are left to benchmarks/exports.py."""
    assert name in BACKBONES
    network = VideoClassifier(3, backbone=name, clip_size=(8, 32, 32))
    for format, kind in FORMATS.items():
        done = export_network(network, format, tmp_path / f"m{kind.suffix}")
        assert done.difference <= done.tolerance
        os.remove(done.path)
