"""The command line in a process of its own, as a user meets it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import VERBS, main


def cryo_monai(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cryo_monai", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_simulate_train_report_classify_then_resume(tmp_path: Path) -> None:
    size = [
        "--box",
        "12",
        "--voxel_size",
        "25",
        "--resolution",
        "50",
        "--max_shift",
        "1",
        "--neighbours",
        "0",
        "--structures",
        "c2_64kda,o_440kda",
    ]
    done = cryo_monai("simulate", "data", "--num_per_class", "10", "--snr", "2", *size, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data set: data/dataset.json" in done.stdout
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    train = [
        "train",
        str(SUBTOMOGRAMS),
        "run",
        "--overlays",
        "tiny.json",
        "--dataset_dir",
        "data",
        "--num_classes",
        "2",
    ]
    done = cryo_monai(*train, "--max_epochs=1", "--report", "False", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = cryo_monai(*train, cwd=tmp_path)
    assert refused.returncode == 1
    assert "error: run: holds a run; add --resume" in refused.stderr
    (tmp_path / "data" / "junk").mkdir()
    before = (tmp_path / "run" / "run.json").read_text()
    done = cryo_monai("train", train[1], "run", "--resume", "--dataset_dir", "data/junk", cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "run" / "run.json").read_text() == before  # a refused call changes nothing
    # All but the number of epochs is known from before.
    done = cryo_monai("train", train[1], "run", "--resume", "--max_epochs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 1" in done.stderr
    assert "test split: 4 volumes, 2 classes" in done.stdout
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "resumed after epoch 1 with a changed configuration: max_epochs 1 -&gt; 2" in page
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = cryo_monai("evaluate", "../run", cwd=elsewhere)  # paths in run.json do not depend on where one stands
    assert done.returncode == 0, done.stderr
    assert "test split: 4 volumes, 2 classes" in done.stdout
    assert "run/models/model.pt" in done.stdout
    assert done.stderr.count("\n") < 12, done.stderr
    done = cryo_monai("classify", "run", "data/c2_64kda", "--output", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert {row["class_name"] for row in rows} <= {"c2_64kda", "o_440kda"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "data", "--num_per_clas", "3"], "did you mean --num_per_class?"),
        (["simulate", "data", "--snr", "high"], "snr 'high': give a number"),
        (["simulate", "data", "--structures", "ribosome"], "ribosome: neither a file, nor a PDB id"),
        (["train", str(SUBTOMOGRAMS), "run", "--resume", "maybe"], "--resume maybe: give True or False"),
        (["train", str(SUBTOMOGRAMS), "run", "--epochz", "5"], "--epochz: no such id in this bundle"),
        (["train", str(SUBTOMOGRAMS), "run", "--max_epoch", "5"], "did you mean max_epochs?"),
        (["train", str(SUBTOMOGRAMS), "run", "--lr", "abc"], "--lr abc: give a number, as 0.0001"),
        (["train", str(SUBTOMOGRAMS), "run", "--batch_size", "-1"], "--batch_size -1: give a whole number"),
        (["train", str(SUBTOMOGRAMS), "run", "--clip_size", "32"], "--clip_size 32: give a list, as [32, 128, 128]"),
        (["train", str(SUBTOMOGRAMS), "run", "--optimizer", "sgd"], "give a reference, such as @optimizers#sgd"),
        (["train", str(SUBTOMOGRAMS), "run", "--resume"], "run: nothing to resume there"),
        (["train", "nowhere", "run"], "no such file"),
        (["train", str(SUBTOMOGRAMS), "run", "--overlays", "x.json"], "x.json: no such file"),
        (["train", str(SUBTOMOGRAMS), "run", "--dataset_dir", "nowhere"], "nowhere: no such file or folder"),
        (["evaluate", "nowhere"], "not a run folder"),
        (["doctor", "--json"], "--json: give a value"),
        (["train", str(SUBTOMOGRAMS), "run", "--overlays", "--resume"], "--overlays: give a value"),
        (["classify", "nowhere", "data"], "not a run folder"),
    ],
)
def test_a_mistake_gets_one_line_before_anything_happens(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "run" / "models").exists()


def test_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--box=12", "--voxel_size=25", "--resolution=50", "--max_shift=1", "--neighbours=0"]
    size += ["--structures=c2_64kda,o_440kda"]
    assert main(["simulate", "2024_10", "--num_per_class=3", "--snr=inf", *size]) == 0
    assert (tmp_path / "2024_10" / "dataset.json").is_file()


def test_every_verb_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (CONFIGS.parent / "README.md").read_text()
    for name, verb in VERBS.items():
        assert verb.__doc__
        assert f"cryo-monai {name}" in readme


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["train"],
        ["embed"],
        ["pick"],
        ["classify"],
        ["check"],
        ["train", "a", "b"],
        ["weights"],
        ["weights", "fetch"],
    ],
)
def test_help_is_no_error(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0


def test_a_verb_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "lst"]) == 2
    assert capsys.readouterr().err == "error: weights lst: no such verb; did you mean list?\n"
    assert main(["trian", "--help"]) == 2


def test_short_flags_are_what_help_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "nowhere", "-o", "out", "-m=occlusion"]) == 1
    assert "nowhere: not a run folder" in capsys.readouterr().err
    assert main(["explain", "nowhere", "-l", "layer1"]) == 2
    assert "-l: could be layer, limit" in capsys.readouterr().err
    assert main(["report", "nowhere", "-z", "1"]) == 2
    assert "-z: no such option" in capsys.readouterr().err
