"""check and control, as on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SUBTOMOGRAMS, TINY

import cryo_monai.control_runs as control_runs
from cryo_monai.__main__ import main
from cryo_monai.mrc import write_mrc


def write_classes(folder: Path, shape: tuple[int, int, int] = (10, 12, 14)) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            data = rng.normal(size=shape).astype(np.float32)
            write_mrc(folder / name / f"{number}.mrc", data, voxel_size=10.0)
    return folder


def test_a_sound_data_set_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data")
    assert main(["check", str(data), "--output", str(tmp_path / "check.json")]) == 0
    out = capsys.readouterr().out
    assert "fit for training" in out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["problems"] == []


def test_an_unsound_one_is_an_error_with_every_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data")
    (data / "a" / "6.mrc").write_bytes((data / "b" / "0.mrc").read_bytes())
    (data / "b" / "7.mrc").write_bytes(b"no")
    assert main(["check", str(data)]) == 1
    captured = capsys.readouterr()
    assert "b/0.mrc" in captured.out
    assert "b/7.mrc" in captured.out
    assert captured.err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("kind", ["background", "labels"])
def test_controls_train_and_compare_with_chance(
    dataset_dir: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    arguments = ["control", kind, str(SUBTOMOGRAMS), str(tmp_path / "c"), "--dataset_dir", str(dataset_dir)]
    arguments += ["--overlays", str(overlay), "--num_classes", "3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "test volumes; chance is 0.333" in out
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert result["above_chance"] == (result["accuracy"] > result["chance_upper"])
    assert result["verdict"].splitlines()[0] in out
    assert main([*arguments, "--seed", "1"]) == 1
    assert "holds another control with other settings (seed)" in capsys.readouterr().err


def test_a_network_that_is_too_good_is_told(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "tiny.json"
    overlay.write_text(json.dumps(TINY))
    real = control_runs.evaluate_run
    monkeypatch.setattr(control_runs, "evaluate_run", lambda run: {**real(run), "accuracy": 1.0})
    arguments = ["control", "labels", str(SUBTOMOGRAMS), str(tmp_path / "c"), "--dataset_dir", str(dataset_dir)]
    assert main([*arguments, "--overlays", str(overlay), "--num_classes", "3"]) == 0
    assert "above chance: labels that say nothing were learnt" in capsys.readouterr().out


def test_unknown_controls_are_one_line(dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["control", "colour", str(SUBTOMOGRAMS), str(tmp_path / "c"), "--dataset_dir", str(dataset_dir)]
    assert main(arguments) == 1
    assert "'colour' is not one of background, labels" in capsys.readouterr().err
    arguments[1] = "labels"
    assert main([*arguments, "--split", "0.6;0.4"]) == 1
    assert "split: 0.6;0.4 is not three fractions" in capsys.readouterr().err
