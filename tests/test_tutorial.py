"""The tutorial's commands, run as they stand there, give what it says."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
PATTERN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


def test_the_tutorial_runs_and_its_network_knows_the_particles(tmp_path: Path) -> None:
    commands = PATTERN.findall(TUTORIAL.read_text())
    assert len(commands) == 7
    for name in ("bundles", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script = "set -euo pipefail\n" + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "tutorial"
    # The figures are those of docs/tutorial.md, less a margin for other processors.
    picking = json.loads((folder / "picking.json").read_text())["picking"]
    assert picking["recall"] > 0.7
    assert picking["precision"] > 0.7
    assert json.loads((folder / "check.json").read_text())["problems"] == []
    score = json.loads((folder / "score.json").read_text())
    assert score["accuracy"] > 0.7
    assert score["macro_f1"] > 0.6
    assert score["left_out"] > 150
    junk = score["confusion"]["no particle"]
    assert junk["background"] > 0.7 * sum(junk.values())
    lost = sum(row.get("background", 0) for name, row in score["confusion"].items() if name != "no particle")
    assert lost < 0.1 * score["picking"]["paired"]
    with (folder / "classes_summary.csv").open() as stream:
        summary = list(csv.DictReader(stream))
    assert [row["tomogram"] for row in summary] == [f"tomogram_00{n}" for n in range(4)] + ["all"]
    pictures = ("picks/picks.png", "boxes/boxes.png", "classes_slices.png")
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
