"""The verb of sweeps, as a user runs it: dry run, run, again, tables, exit codes; and what a terminal shows."""

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS, SUBTOMOGRAMS, TINY

from cryo_monai.__main__ import main
from cryo_monai.completed_runs import is_done
from cryo_monai.sweeps.plans import Planner
from cryo_monai.sweeps.sweep_files import read_sweep
from cryo_monai.sweeps.views import SweepView

SIMULATED = {
    "structures": "c2_64kda,c7_400kda,o_440kda",
    "num_per_class": 5,
    "box": "16",
    "voxel_size": "20",
    "resolution": "40",
    "snr": "2",
    "neighbours": "0",
    "clean": False,
}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.json"
    content = {
        "title": "Tiny",
        "bundle": str(SUBTOMOGRAMS),
        "ids": {**TINY, "num_classes": 3, "max_epochs": 1, "device": "cpu"},
        "axes": {
            "dataset": {"small": {}},
            "initialisation": {"random": {}, "own": {"ids": {"weights": "pretrained:start"}}},
            "seed": [0],
        },
        "data": {"small": SIMULATED},
        "pretrained": {"start": {"dataset": "small", "ids": {"seed": 9}}},
        "published": [
            {"dataset": "small", "initialisation": "random", "accuracy": 0.5, "auc": 0.75, "source": "A paper, Table 9"}
        ],
        **changes,
    }
    file.write_text(json.dumps(content))
    return file


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_sweep_from_the_dry_run_to_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(write(tmp_path)), tmp_path / "out"
    assert main(["sweep", file, str(out), "--dry_run", "True"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("cryo-monai train ") for line in lines)
    assert not list(out.glob("trials/*/run.json"))
    # A queue may do any of them, and do it again.
    for _ in range(2):
        assert main(shlex.split(lines[0])[1:]) == 0
    assert "done:" in capsys.readouterr().out
    (first,) = out.glob("trials/*")
    stamp = (first / "models" / "model.pt").stat().st_mtime_ns
    assert main(["sweep", file, str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 of 3 trials done" in text
    assert (first / "models" / "model.pt").stat().st_mtime_ns == stamp
    found = rows(out)
    assert [(row["initialisation"], row["state"], row["num_train"]) for row in found] == [
        ("random", "done", "9"),
        ("own", "done", "9"),
    ]
    for row in found:
        numbers = json.loads((out / row["folder"] / "evaluation.json").read_text())
        assert float(row["accuracy"]) == pytest.approx(numbers["accuracy"])
    table = (out / "table.md").read_text()
    assert "A paper, Table 9" in table
    assert "50.00" in table
    assert (out / "sweep.html").stat().st_size > 1000
    before = {name: (out / name).read_bytes() for name in ("results.csv", "table.md", "table.tex", "summary.json")}
    assert main(["sweep", file, str(out), "--tables", "True"]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_failed_trial_is_in_the_table_and_in_the_exit_code(
    tmp_path: Path, dataset_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"dataset": {"small": {}}, "lr": [0.01, 1e30], "seed": [0]}
    file, out = str(write(tmp_path, axes=axes, pretrained={}, published=[])), tmp_path / "out"
    assert main(["sweep", file, str(out), "--data", str(dataset_dir)]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 trials failed" in captured.err
    assert "the loss became" in captured.out
    assert [row["state"] for row in rows(out)] == ["done", "failed"]
    assert "the loss became" in rows(out)[1]["reason"]
    assert not rows(out)[1]["accuracy"]


def test_the_rehearsal_runs_at_a_smaller_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = CONFIGS / "sweeps" / "quick.json"
    content = json.loads(source.read_text().replace('"../', f'"{source.parent.as_posix()}/../'))
    for options in content["data"].values():
        options |= {"num_per_class": 5, "neighbours": "0"}
    (tmp_path / "quick.json").write_text(json.dumps(content))
    flags = ["--only", "label_fraction=1.0,seed=0", "--max_epochs", "1", "--batch_size", "4"]
    assert main(["sweep", str(tmp_path / "quick.json"), str(tmp_path / "out"), *flags]) == 0
    assert "5 of 5 trials done" in capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert [(row["dataset"], row["initialisation"]) for row in found] == [
        (dataset, initialisation)
        for dataset in ("isolated", "crowded")
        for initialisation in ("random", "other assemblies")
    ]
    starts = {
        json.loads((tmp_path / "out" / row["folder"] / "run.json").read_text())["initialisation"].get("sha256")
        for row in found
        if row["initialisation"] != "random"
    }
    assert len(starts) == 1
    assert None not in starts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "slurm"], "--engine slurm: give one of local, ray"),
        (["--only", "dataset"], "--only dataset: give AXIS=VALUE"),
        (["--only", "dataset=big"], "axis dataset has no value 'big'; there are small"),
        (["--only", "seed=0,dataset=big, bigger|small,"], "axis dataset has no value 'big, bigger'; there are small"),
        (["--epochz", "5"], "--epochz: no such id in this bundle; did you mean"),
        (["--lr", "fast"], "--lr fast: give a number"),
        (["--workers", "-1"], "workers -1"),
    ],
)
def test_mistakes_cost_no_training(
    tmp_path: Path, dataset_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    file, out = str(write(tmp_path)), tmp_path / "out"
    assert main(["sweep", file, str(out), "--data", str(dataset_dir), *flags]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(out.glob("trials/*/run.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compare": "initialization"}, "initialization"),
        ({"published": [1]}, "published"),
        ({"baseline": "rando"}, "rando"),
    ],
)
def test_what_tables_cannot_be_made_of_costs_no_training(
    tmp_path: Path, dataset_dir: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    file, out = str(write(tmp_path, **changes)), tmp_path / "out"
    assert main(["sweep", file, str(out), "--data", str(dataset_dir)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not list(out.glob("trials/*/run.json"))


def test_a_queue_leaves_its_failure_in_the_folder(tmp_path: Path, dataset_dir: Path) -> None:
    flags = ["--dataset_dir", str(dataset_dir), "--num_classes", "3", "--device", "cpu", "--lr", "1e30"]
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in TINY.items() if key != "lr"}
    flags += [f"--{key}={value}" for key, value in given.items()]
    command = ["train", str(SUBTOMOGRAMS), str(tmp_path / "run"), "--idempotent", "True", "--report", "False", *flags]
    assert main(command) == 1
    assert "the loss became" in json.loads((tmp_path / "run" / "failure.json").read_text())["reason"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_cells_what_runs_and_the_time_left(
    tmp_path: Path, dataset_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"dataset": {"small": {}}, "label_fraction": [0.5, 1.0], "seed": [0, 1]}
    planner = Planner(
        read_sweep(write(tmp_path, axes=axes, ids={**TINY, "num_classes": 3, "max_epochs": 4}, pretrained={})),
        tmp_path / "out",
        data={"": dataset_dir},
    )
    trials = planner.plan(planner.cells())
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = Terminal()
    view = SweepView(trials, stream=stream, interval=2.0)
    assert "0 of 4 trials done; 0:00:00" in stream.getvalue()
    done, half = trials[:2]
    done.folder.mkdir(parents=True)
    (done.folder / "evaluation.json").write_text(json.dumps({"accuracy": 0.875, "auc": 0.96}))
    from cryo_monai.fetching import sha256_of
    from cryo_monai.runs import running

    (done.folder / "DONE").write_text(json.dumps({"evaluation_sha256": sha256_of(done.folder / "evaluation.json")}))
    assert is_done(done.folder)
    with running(half.folder):
        history = [{"epoch": epoch, "key_metric": 0.5} for epoch in (1, 2)]
        (half.folder / "metrics.json").write_text(json.dumps({"history": history}))
        clock[0] = 60.0
        view()
        shown = stream.getvalue().rpartition("\x1b[J")[2]
        (half.folder / "metrics.json").unlink()
    lines = shown.splitlines()
    assert lines[0].split() == ["small,", "0.5", "1/2", "accuracy", "87.50", "%,", "AUC", "0.9600"]
    assert lines[1].split() == ["small,", "1.0", "0/2"]
    assert lines[2] == "> dataset small, label_fraction 0.5, seed 1: epoch 2/4, validation 0.500"
    # Done are 4 x (9 + 2) and half of that, 4 x (18 + 2) are to come twice: 66 in a minute, 182 left.
    assert lines[3] == "1 of 4 trials done, 1 running; 0:01:00, about 0:02:45 left"
