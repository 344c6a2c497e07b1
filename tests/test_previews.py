from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cryo_monai.__main__ import main
from cryo_monai.previews import power_spectrum_xz


def test_power_spectrum_shows_where_power_is() -> None:
    z, _, x = np.meshgrid(np.arange(12), np.arange(10), np.arange(14), indexing="ij")
    wave = np.cos(2 * np.pi * (3 * z / 12 + 2 * x / 14)).astype(np.float32)
    picture = power_spectrum_xz(wave)
    assert picture.shape == (12, 14)
    assert np.unravel_index(picture.argmax(), picture.shape) in ((6 + 3, 7 + 2), (6 - 3, 7 - 2))


def test_simulate_preview_writes_a_sheet_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--box=12", "--voxel_size=25", "--max_shift=1", "--neighbours=1", "--structures=c2_64kda,t_200kda"]
    assert main(["simulate", "data", "--num_per_class=3", "--preview", *small]) == 0
    assert "preview: data/preview.png" in "".join(capsys.readouterr())
    picture = np.asarray(Image.open(tmp_path / "data" / "preview.png").convert("L"))
    assert picture.shape[1] > 600
    assert len(np.unique(picture)) > 100  # pictures, not an empty sheet
    before = (tmp_path / "data" / "preview.png").read_bytes()
    assert main(["simulate", "data", "--num_per_class=3", "--preview", *small]) == 0
    assert (tmp_path / "data" / "preview.png").read_bytes() == before


def test_simulate_tomograms_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--size=16,32,32", "--num_particles=4", "--voxel_size=25", "--structures=c2_64kda", "--tilt_step_deg=20"]
    assert main(["simulate_tomograms", "t", *small]) == 0
    assert (tmp_path / "t" / "particles.star").is_file()
    assert (tmp_path / "t" / "tomogram_000_segmentation.mrc").is_file()
    assert main(["simulate_tomograms", "u", "--size=16,32"]) == 2
    assert main(["simulate", "u", "--split=a,b,c"]) == 2
    assert main(["simulate_tomograms", "u", "--sizes=16,32,32"]) == 2
