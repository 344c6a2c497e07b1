"""Pre-training by its verb, the file of weights that it writes, and weights that are shipped."""

import io
import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLES, CONFIGS, SUBTOMOGRAMS, TINY
from documented_inputs import flags_for
from documented_pages import ROOT, blocks_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cryo_monai import downloads, weight_records
from cryo_monai.__main__ import main
from cryo_monai.completed_runs import DONE, complete_run, is_done
from cryo_monai.errors import InputError
from cryo_monai.fetching import sha256_of
from cryo_monai.networks import VideoClassifier
from cryo_monai.pretrained_weights import backbone_in_halves, bundle_of_task, command_of, write_weights
from cryo_monai.weight_records import OWN_LAYOUT, InputRecord, WeightRecord, default_record, generated_record
from cryo_monai.weights import initialise
from cryo_monai.workflows import load_workflow

GENERATED = BUNDLES / "generated_pretraining"
TASK = CONFIGS / "pretraining" / "both.json"
EPOCHS = 3
NETWORK = {key: TINY[key] for key in ("backbone", "backbone_options", "clip_size")}
SMALL = {
    **NETWORK,
    "batch_size": 8,
    "clips_per_epoch": 16,
    "validation_clips": 16,
    "max_epochs": EPOCHS,
    "lr": 0.01,
    "device": "cpu",
    "progress": False,
}


def pretrain(folder: Path, *more: str, task: Path = TASK, **ids: object) -> tuple[int, str]:
    """Exit code and what was printed."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = main(["pretrain", str(task), str(folder), *more, *flags_for({**SMALL, "seed": 1, **ids})])
    return code, said.getvalue()


def small_network(**changes: Any) -> VideoClassifier:
    return VideoClassifier(3, **{**NETWORK, "precision": "float32", **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A pre-training of seconds, and what the verb printed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    code, said = pretrain(folder)
    assert code == 0
    return folder, said


def note_of(folder: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads((folder / "weights.json").read_text())
    return note


def test_the_verb_says_what_it_wrote_and_how_to_use_it(run: tuple[Path, str]) -> None:
    folder, said = run
    file, note = folder / "weights.safetensors", note_of(folder)
    assert note["sha256"] == sha256_of(file)
    assert note["bytes"] == file.stat().st_size
    lines = said.splitlines()
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert f"{100 * best['val_accuracy']:.2f} %" in lines[0]
    assert lines[1] == f"SHA-256: {note['sha256']}"
    assert lines[2] == f"use it with: --weights {file}"


def test_the_file_has_the_backbone_in_halves_and_the_description_as_it_is(run: tuple[Path, str]) -> None:
    folder, _ = run
    written = load_file(folder / "weights.safetensors")
    trained = torch.load(folder / "models" / "model.pt", weights_only=True)
    kept = [key for key in trained if key.startswith("backbone.")]
    assert set(written) == {*kept, "_extra_state"} < set(trained)
    assert torch.equal(written["_extra_state"], trained["_extra_state"])
    for key in kept:
        assert written[key].dtype == (torch.float16 if trained[key].is_floating_point() else trained[key].dtype)
        torch.testing.assert_close(written[key].to(trained[key].dtype), trained[key], rtol=2**-10, atol=2**-24)


def test_the_file_says_how_it_was_made_and_nothing_of_when_and_where(run: tuple[Path, str]) -> None:
    folder, _ = run
    with safe_open(str(folder / "weights.safetensors"), framework="pt") as file:
        said = json.loads(file.metadata()["pretraining"])
    note = note_of(folder)
    assert {key: note[key] for key in said} == said
    assert said["licence"] == "Apache-2.0"
    assert said["data"] == "generated"
    assert said["task"] == "both.json"
    assert (said["seed"], said["clip_size"], said["clip_sizes"]) == (1, [16, 16, 16], [[16, 16, 16]])
    assert said["clips"] == 16 * said["metrics"]["epoch"]
    assert shlex.split(said["command"])[:4] == ["cryo-monai", "pretrain", "configs/pretraining/both.json", "DIR"]
    assert "--max_epochs 3" in said["command"]
    for word in ("hours", "threads", "torch", "--device", str(folder.parent), str(ROOT)):
        assert word not in json.dumps(said)
    rows = json.loads((folder / "metrics.json").read_text())["history"]
    assert note["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600, abs=1e-4)
    assert note["environment"]["threads"] == torch.get_num_threads()


def test_clips_of_other_sizes_than_those_it_was_made_with_are_told(
    run: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several = tmp_path / "weights.safetensors"
    with safe_open(str(run[0] / "weights.safetensors"), framework="pt") as file:
        said = json.loads(file.metadata()["pretraining"]) | {"clip_sizes": [[16, 16, 16], [12, 20, 24]]}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it has no iterator
    save_file(tensors, several, metadata={"pretraining": json.dumps(said)})
    told = []
    for weights in (run[0] / "weights.safetensors", several):
        for clip_size in ((16, 16, 16), (12, 18, 24), (16, 16, 26)):
            caplog.clear()
            initialise(small_network(clip_size=clip_size), weights)
            told.append([record.message for record in caplog.records if record.levelname == "WARNING"])
    assert [len(messages) for messages in told] == [0, 1, 1, 0, 0, 1]
    assert "made with clips of 16 x 16 x 16, here they are 12 x 18 x 24:" in told[1][0]
    assert "made with clips of 12 x 16 x 16 to 16 x 20 x 24, here they are 16 x 16 x 26:" in told[5][0]


@pytest.fixture
def until_an_epoch_is_over() -> Iterator[Any]:
    """Sends SIGTERM to this process once a run has so many epochs."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: None)  # if training were over by then
    threads: list[threading.Thread] = []

    def watch(folder: Path, epochs: int) -> None:
        def wait() -> None:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                file = folder / "metrics.json"
                if file.exists() and len(json.loads(file.read_text())["history"]) >= epochs:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                time.sleep(0.005)

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield watch
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGTERM, previous)


def test_stopped_and_resumed_it_writes_the_same_file_bit_for_bit(
    run: tuple[Path, str], tmp_path: Path, until_an_epoch_is_over: Any
) -> None:
    folder = tmp_path / "again"
    until_an_epoch_is_over(folder, 1)
    with pytest.raises(SystemExit) as stopped:
        pretrain(folder)
    assert stopped.value.code == 75
    assert not (folder / "weights.safetensors").exists()
    assert pretrain(folder, "--resume")[0] == 0
    assert sha256_of(folder / "weights.safetensors") == note_of(run[0])["sha256"]
    # What is finished is not trained again; a lost file is written again, from the command that says least.
    before = (folder / "models" / "model.pt").stat().st_mtime_ns
    (folder / "weights.safetensors").unlink()
    assert main(["pretrain", str(TASK), str(folder), "--resume"]) == 0
    assert sha256_of(folder / "weights.safetensors") == note_of(run[0])["sha256"]
    assert (folder / "models" / "model.pt").stat().st_mtime_ns == before


def test_a_folder_with_a_run_and_another_task_are_refused(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(run[0])[0] == 1
    assert "holds a run; add --resume" in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"_bundle_": str(GENERATED)}))
    assert pretrain(run[0], "--resume", task=other)[0] == 1
    assert capsys.readouterr().err == f"error: {run[0]}: was begun with both.json, not with other.json\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "task.json: no such file; give a task, such as configs/pretraining/assemblies.json"),
        ("{", "task.json: not readable as JSON"),
        ("[1]", "task.json: no task of pre-training: it names no bundle"),
        ('{"seed": 1}', "task.json: no task of pre-training: it names no bundle"),
        ('{"_bundle_": "../nowhere"}', "nowhere is not there"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    assert pretrain(tmp_path / "run", task=tmp_path / "task.json")[0] == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line
    assert not (tmp_path / "run").exists()


def test_every_task_names_the_bundle_and_ids_that_it_has() -> None:
    tasks = sorted(TASK.parent.glob("*.json"))
    assert TASK in tasks
    for task in tasks:
        assert bundle_of_task(task) == GENERATED
        parser = load_workflow(GENERATED, "train", overlays=[task]).parser
        for key, value in json.loads(task.read_text()).items():
            assert key.startswith("_") or parser[key] == value, (task, key)


def test_another_training_begins_from_the_file(run: tuple[Path, str]) -> None:
    network = initialise(small_network(), run[0] / "weights.safetensors")
    written = load_file(run[0] / "weights.safetensors")
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, written[f"backbone.{key}"].to(value.dtype)), key
    keys = network.initialisation["keys"]
    assert keys.pop("loaded") == len(written) - 1
    assert not any(keys.values())
    description = json.loads(bytes(written["_extra_state"].tolist()))
    assert (network.mean, network.std) == (description["mean"], description["std"])
    with pytest.raises(InputError, match="has backbone 'resnet18', not 'rb3d'"):
        initialise(VideoClassifier(3, backbone="rb3d", clip_size=(16, 16, 16)), run[0] / "weights.safetensors")


def test_inspect_says_what_the_file_is(run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", str(run[0] / "weights.safetensors")]) == 0
    said = capsys.readouterr().out
    for words in (
        "a checkpoint of this package:",
        "backbone: resnet18",
        "pre-trained on generated clips:",
        "both.json",
    ):
        assert words in said
    assert max(map(len, said.splitlines())) < 2000  # of many classes the first are named


def changed_run(run_dir: Path, folder: Path, key: str, value: float) -> Path:
    """A copy of a run with one weight changed."""
    shutil.copytree(run_dir, folder)
    file = folder / "models" / "model.pt"
    state = torch.load(file, weights_only=True)
    state[key][(0,) * state[key].dim()] = value
    torch.save(state, file)
    return folder


@pytest.mark.parametrize("value", [7e4, -7e4, float("nan"), float("inf")])
def test_what_half_precision_does_not_hold_is_refused(value: float, run: tuple[Path, str], tmp_path: Path) -> None:
    folder = changed_run(run[0], tmp_path / "run", "backbone.layer1.0.bn1.running_var", value)
    before = sha256_of(folder / "weights.safetensors")
    with pytest.raises(InputError, match=r"model\.pt: backbone\.layer1\.0\.bn1\.running_var has ") as caught:
        write_weights(folder)
    assert "\n" not in str(caught.value)
    assert sha256_of(folder / "weights.safetensors") == before


def test_the_largest_half_and_heads_beyond_it_are_no_obstacle() -> None:
    state = small_network().state_dict()
    state["backbone.bn1.running_var"] = torch.full_like(state["backbone.bn1.running_var"], 65504.0)
    head = next(key for key in state if not key.startswith("backbone.") and state[key].is_floating_point())
    state[head] = torch.full_like(state[head], 1e9)
    assert (backbone_in_halves(state, "x.pt")["backbone.bn1.running_var"] == 65504).all()
    with pytest.raises(InputError, match=r"x\.pt: not a checkpoint of VideoClassifier"):
        backbone_in_halves({"conv1.weight": torch.ones(3)}, "x.pt")


def test_an_output_of_its_own_is_not_silently_replaced(run: tuple[Path, str], tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    assert write_weights(run[0], target) == target
    assert sha256_of(target) == note_of(run[0])["sha256"] == json.loads((tmp_path / "mine.json").read_text())["sha256"]
    assert write_weights(run[0], target) == target  # the same again
    folder = changed_run(run[0], tmp_path / "run", "backbone.conv1.weight", 0.5)
    with pytest.raises(InputError, match="there already, with other weights"):
        write_weights(folder, target)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        write_weights(run[0], tmp_path / "mine.pt")


def test_weights_of_data_are_not_passed_off_as_generated(dataset_dir: Path, tmp_path: Path) -> None:
    ids = {**TINY, "max_epochs": 1, "dataset_dir": str(dataset_dir), "num_classes": 3, "device": "cpu"}
    folder = tmp_path / "run"
    assert main(["train", str(SUBTOMOGRAMS), str(folder), "--report", "False", *flags_for(ids)]) == 0
    with pytest.raises(InputError, match="was not trained on generated clips"):
        write_weights(folder)


def test_commands_have_no_folders_of_a_machine() -> None:
    record = {
        "bundle": str(GENERATED),
        "overlays": [str(TASK), "/somewhere/else/mine.json"],
        "ids": {"weights": "/somewhere/start.pt", "seed": "2", "device": "cuda", "tasks": {"fields": 1}},
    }
    assert command_of(record) == (
        "cryo-monai pretrain configs/pretraining/both.json DIR --overlays mine.json "
        """--seed 2 --tasks '{"fields": 1}' --weights start.pt"""
    )
    alone = command_of({"bundle": str(GENERATED), "overlays": [], "ids": {}})
    assert alone == "cryo-monai train bundles/generated_pretraining DIR --report False"


def test_a_bundle_without_evaluation_is_done_when_it_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    ids = {**SMALL, "max_epochs": 1}
    assert complete_run(GENERATED, folder, overlays=[TASK], ids=ids)
    model = folder / "models" / "model.pt"
    assert json.loads((folder / DONE).read_text()) == {"model_sha256": sha256_of(model)}
    assert is_done(folder)
    assert not complete_run(GENERATED, folder, overlays=[TASK], ids=ids)
    with model.open("ab") as stream:
        stream.write(b"x")
    assert not is_done(folder)
    (folder / DONE).write_text("{}")
    assert not is_done(folder)
    for verb in ("evaluate", "report"):
        assert main([verb, str(folder)]) == 1
        assert "it makes weights that others begin from" in capsys.readouterr().err


@pytest.fixture
def shipped(run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightRecord:
    """A record of this package's own, with its file and pin, and no cache."""
    folder = tmp_path / "generated_weights"
    folder.mkdir()
    record = WeightRecord(
        "resnet18-generated", "resnet18", "", "resnet18-generated.safetensors", OWN_LAYOUT, 3, "generated clips",
        "Apache-2.0", "cryo-monai pretrain configs/pretraining/both.json DIR", (16, 16, 16), InputRecord(),
    )  # fmt: skip
    shutil.copy(run[0] / "weights.safetensors", folder / record.file)
    pins = tmp_path / "weight_pins.json"
    pins.write_text(json.dumps({record.name: {"sha256": sha256_of(folder / record.file)}}))
    monkeypatch.setattr(weight_records, "GENERATED", (record,))
    monkeypatch.setattr(downloads, "PACKAGE_WEIGHTS", folder)
    monkeypatch.setattr(downloads, "PACKAGE_PINS", pins)
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "no_cache"))
    return record


@pytest.mark.parametrize("name", ["generated", "resnet18-generated"])
def test_shipped_weights_are_found_by_kind_and_by_name(
    name: str, shipped: WeightRecord, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cryo_monai")
    network = initialise(small_network(), name)
    assert network.initialisation["record"] == shipped.name
    assert network.initialisation["input_range"] == "as it was trained"
    assert "resnet18-generated (generated clips)" in caplog.text
    assert "(as pinned)" in caplog.text


def test_shipped_weights_are_listed_described_and_not_fetched(
    shipped: WeightRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "list", "--backbone", "resnet18"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if shipped.name in line]
    assert line.split() == [shipped.name, "resnet18", "generated", "clips", "Apache-2.0", "yes", "yes"]
    assert main(["weights", "fetch", shipped.name]) == 0
    assert "shipped with this package, nothing to fetch" in capsys.readouterr().out
    assert main(["weights", "fetch", shipped.name, "--sha256", "0" * 64]) == 1
    assert main(["weights", "inspect", shipped.name]) == 0
    said = capsys.readouterr().out
    assert "shipped" in said
    assert shipped.citation in said
    assert main(["weights", "pin", shipped.name]) == 1
    assert main(["weights", "pin", shipped.name, "--file", str(tmp_path / "pins.json")]) == 0
    pinned = json.loads((tmp_path / "pins.json").read_text())[shipped.name]
    assert pinned["sha256"] == downloads.pinned_hash(shipped)
    assert not (tmp_path / "no_cache").exists()


def test_a_damaged_or_missing_shipped_file_is_refused(shipped: WeightRecord) -> None:
    file = downloads.cached_path(shipped)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"is not the pinned .*; install this package again"):
        initialise(small_network(), "generated")
    file.unlink()
    with pytest.raises(InputError, match="not there, though it is shipped; install this package again"):
        initialise(small_network(), "generated")


def test_generated_weights_are_no_video_weights(shipped: WeightRecord) -> None:
    assert generated_record("resnet18") is shipped
    assert default_record("resnet18").name == "resnet18-kinetics400"
    with pytest.raises(InputError, match="has no public image weights"):
        default_record("resnet18", image=True)


def test_where_there_are_none_the_line_says_how_to_make_them() -> None:
    with pytest.raises(InputError, match="backbone 'rb3d' has no generated weights") as caught:
        initialise(VideoClassifier(3, backbone="rb3d", clip_size=(16, 16, 16)), "generated")
    assert "`cryo-monai pretrain configs/pretraining/assemblies.json DIR --backbone rb3d`" in str(caught.value)
    assert "--weights DIR/weights.safetensors" in str(caught.value)


def test_every_shipped_record_has_its_file_and_its_pin() -> None:
    for record in weight_records.GENERATED:
        if record.is_shipped:
            assert downloads.pinned_hash(record) is not None
            network = VideoClassifier(3, backbone=record.backbone, clip_size=record.clip, precision="float32")
            assert initialise(network, record.name).initialisation["record"] == record.name
            assert downloads.cached_path(record).stat().st_size <= 20 << 20


def test_a_folder_called_generated_is_not_taken_for_weights(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "generated").mkdir()
    monkeypatch.chdir(tmp_path)
    ids = {**TINY, "dataset_dir": str(dataset_dir), "num_classes": 3, "device": "cpu", "weights": "generated"}
    assert main(["train", str(SUBTOMOGRAMS), "run", "--report", "False", *flags_for({**ids, "backbone": "rb3d"})]) == 1
    assert "rb3d" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["docs/backbones.md", "docs/initialisation.md"])
def test_the_documented_commands_run(
    page: str, dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of these pages, at a small size."""
    monkeypatch.chdir(tmp_path)
    for name in ("bundles", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (block,) = [b for b in blocks_of(page) if b.test == "tests/test_pretraining_verbs.py"]
    for command in block.commands:
        words = [{"BUNDLE": str(SUBTOMOGRAMS), "DATA": str(dataset_dir)}.get(word, word) for word in command.words[1:]]
        if words[0] == "pretrain":
            words += flags_for({**SMALL, "max_epochs": 1})
        elif words[0] == "train":
            words += ["--report", "False", *flags_for({**TINY, "max_epochs": 1, "num_classes": 3})]
        assert main(words) == 0, command.text
    assert (tmp_path / "runs" / "assemblies" / "weights.safetensors").is_file()
    if page != "docs/backbones.md":
        return
    begun = json.loads((tmp_path / "RUN" / "run.json").read_text())["initialisation"]
    assert begun["sha256"] == note_of(tmp_path / "runs" / "assemblies")["sha256"]
