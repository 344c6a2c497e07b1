"""Every command of the documentation is right, and is run, or the page says why not; see documented_pages.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import fire
import monai.bundle
import pytest
from command_checks import bare, check, extras, extras_named, is_flag, understood, verb_of
from command_statuses import DESCRIBED, executed, is_slow, mention_status
from conftest import TINY, TINY_INFERENCE
from documented_inputs import Inputs, flags_for
from documented_pages import (
    ROOT,
    Block,
    Command,
    blocks_of,
    described_commands,
    flags_of,
    mentions_of,
    names_page,
    pages,
    reasons_of,
)

from cryo_monai.__main__ import main

PAGES = pages()
# What makes a command small: flags after its own, which go before them. Nothing else of it is changed.
# (MONAI leaves out ids that are None.)
SIMULATION = {"box": 16, "voxel_size": 20, "resolution": 40, "max_shift": 1, "neighbours": 1, "tilt_step_deg": 20}
SMALL: dict[str, dict[str, object]] = {
    "train": {**TINY, "weights": None, "max_epochs": 1, "report": False},
    "control": {**TINY, "weights": None, "max_epochs": 1},
    "pretrain": {**TINY_INFERENCE, "clips_per_epoch": 16, "validation_clips": 8, "max_epochs": 1, "progress": False},
    "sweep": {"only": "dataset=isolated,seed=0", "max_epochs": 1, "batch_size": 4},
    "simulate": {"num_per_class": 3, **SIMULATION},
    "simulate_tomograms": {"num_tomograms": 1, "size": "32,64,64", "num_particles": 8, "tilt_step_deg": 20},
    "quickstart": {"num_per_class": 10},
    "extract": {"background": 5},
    "explain": {"limit": 2, "faithfulness": False},
    "monai.bundle run training": {**TINY, "weights": "$None", "max_epochs": 1},
    "monai.bundle run evaluating": {**TINY, "weights": "$None"},
    "monai.bundle run inference": TINY_INFERENCE,
}
MEDMNIST = {"label_fraction": 0.05, "max_epochs": 1}
OUTPUTS = ("output_dir", "output")


def chains() -> list[list[Block]]:
    """Blocks that are run here, those of a page in order; a block that is marked so begins another chain."""
    found: list[list[Block]] = []
    for page in PAGES:
        blocks = [block for block in blocks_of(page) if block.is_run_here]
        for number, block in enumerate(blocks):
            if number == 0 or block.afresh:
                found.append([])
            found[-1].append(block)
    return found


CHAINS = chains()


def are_run(chain: list[Block], *, slow: bool) -> bool:
    """Whether a chain has commands to run that are slow, or that are not."""
    commands = [(block, command) for block in chain for command in block.commands if command.words[0] != "cd"]
    return any(is_slow(command) == slow and not block.reason_against(command) for block, command in commands)


def small(words: list[str]) -> list[str]:
    """A command with the flags that make it small."""
    verb = verb_of(words).removeprefix("torchrun ").removeprefix("cryo-monai ")
    more = dict(SMALL.get(verb, {}))
    if "mnist3d" in " ".join(words) and verb.startswith(("train", "monai.bundle run training")):
        more |= MEDMNIST
    return [*words, *flags_for(more)]


def run(words: list[str], folder: Path, inputs: Inputs) -> None:
    """Call what a user calls, in this process where that is possible."""
    if words[:1] == ["torchrun"]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    elif words[:1] == ["cryo-monai"]:
        assert main(words[1:]) == 0, shlex.join(words)
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # MONAI warns of what any configuration may do
            fire.Fire({words[3]: getattr(monai.bundle, words[3])}, command=words[3:])
    elif words[:2] == ["python", "-m"]:
        subprocess.run([sys.executable, *words[1:]], check=True)
    else:
        raise AssertionError(f"{words[0]}: not known how to run it; mark it as not run, or teach this test")


def prepared(words: list[str], folder: Path, inputs: Inputs) -> list[str]:
    """Provide what a command names; give an output that only has a stand-in for a name one of its own."""
    inner = words[words.index("cryo-monai") :] if "cryo-monai" in words else []
    if inner:
        _, arguments = understood(inner[1:])
        arguments |= arguments.pop("", {})
        for name, value in arguments.items():
            if name in OUTPUTS and value.isupper() and (folder / value).exists():
                own = next(f"{value}{n}" for n in range(2, 99) if not (folder / f"{value}{n}").exists())
                words = [own if word == value else word for word in words]
            elif name == "dataset_dir" and "medmnist" in arguments.get("bundle", ""):
                inputs.medmnist(folder / value)
            elif name not in OUTPUTS and isinstance(value, str):
                inputs.provide(value, folder)
    elif "monai.bundle" in words:
        bundle = folder.parent.name == "bundles"
        if bundle and "medmnist" in folder.name:
            inputs.medmnist(folder / "data")
        for value in (*["data"] * bundle, *words):
            inputs.provide(value, folder)
    return [{"BUNDLE": "bundles/subtomogram_classification"}.get(word, word) for word in words]


def follow(chain: list[Block], place: Path, inputs: Inputs, go: Callable[[Path], None], *, slow: bool) -> None:
    """Run the commands of blocks one after the other."""
    for name in ("bundles", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("data", "output", "*.pt"))
    for block in chain:
        for command in block.commands:
            folder = place / command.folder
            go(folder)
            words = bare(command.words)
            if words[0] == "cd" or block.reason_against(command) or (is_slow(command) and not slow):
                continue
            words = prepared(small(words) if block.marker == "run small" else words, folder, inputs)
            run(words, folder, inputs)


def missing_tests(reason: str) -> list[str]:
    """Tests that a reason names and that are not there."""
    return [name for name in re.findall(r"tests/\w+\.py", reason) if not (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def place(tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as after cloning, with a cache in which what is fetched from the Protein Data Bank is there."""
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))
    inputs.fill_cache(tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize(
    "chain", [chain for chain in CHAINS if are_run(chain, slow=False)], ids=lambda chain: chain[0].place
)
def test_the_documented_commands_run(
    chain: list[Block], place: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(chain, place, inputs, monkeypatch.chdir, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [chain for chain in CHAINS if are_run(chain, slow=True)],
    ids=lambda chain: chain[0].place,
)
def test_the_documented_commands_that_take_minutes_run(
    chain: list[Block], place: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(chain, place, inputs, monkeypatch.chdir, slow=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_says_what_runs_it_or_why_nothing_does(page: str) -> None:
    for block in blocks_of(page):
        assert block.marker, f"{block.place}: say on the line above what runs this, as documented_pages.py explains"
        if block.test:
            assert (ROOT / block.test).is_file(), f"{block.place}: {block.test} is not there"
            assert names_page(block.test, page), f"{block.place}: {block.test} does not name {page}"
        assert not missing_tests(block.reason), block.place
        for text, reason in block.left_out:
            assert reason, block.place
            assert not missing_tests(reason), block.place
            assert any(text in command.text for command in block.commands), f"{block.place}: no command has {text}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_is_understood(page: str) -> None:
    wrong = [check(command) for block in blocks_of(page) for command in block.commands]
    wrong += [check(command, whole=False) for command in mentions_of(page)]
    own = dict(reasons_of(page))
    unknown = [(line, name) for line, name in flags_of(page) if not is_flag(name) and f"--{name}" not in own]
    wrong += [f"{page}:{line}: --{name}: nothing has it" for line, name in unknown]
    named = extras_named((ROOT / page).read_text(encoding="utf-8"))
    wrong += [f"{page}: [{extra}]: no such extra" for extra in named if extra not in extras()]
    assert not any(wrong), "\n".join(line for line in wrong if line)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_texts_are_run_in_blocks_or_say_why_not(page: str) -> None:
    reasons, done = dict(reasons_of(page)), executed()
    silent = [c.place + ": " + c.text for c in mentions_of(page) if not mention_status(c, reasons, done)]
    assert not silent, "neither run nor `<!-- mentioned, not run: TEXT: reason -->`:\n" + "\n".join(silent)
    said = [command.text for command in mentions_of(page)] + [f"--{name}" for _, name in flags_of(page)]
    stale = [text for text in reasons if not any(text in mention for mention in said)]
    assert not stale, stale
    assert not any(missing_tests(reason) for reason in reasons.values())


def test_commands_in_descriptions_of_configurations_are_understood_and_run_or_it_is_said_why_not() -> None:
    commands, done = described_commands(), executed()
    assert len(commands) > 10
    wrong = [check(command, whole=False) for command in commands]
    wrong += [c.place + ": " + c.text for c in commands if not mention_status(c, DESCRIBED, done)]
    assert not any(wrong), "\n".join(line for line in wrong if line)
    assert not any(missing_tests(reason) for reason in DESCRIBED.values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cryo-monai trian a b", "did you mean train"),
        ("cryo-monai train bundles/subtomogram_classification r --epochz 3", "did you mean max_epochs"),
        ("cryo-monai train bundles/subtomogram_classification r --max_epochs many", "whole number"),
        ("cryo-monai train BUNDLE", "required argument: output_dir"),
        ("cryo-monai train BUNDLE RUN --overlays configs/none.json", "configs/none.json: no such file"),
        ("cryo-monai simulate DIR --snrr 1", "did you mean --snr"),
        ("cryo-monai simulate DIR --config configs/simulation/paper.json --snr many", "give a number"),
        ("cryo-monai classify RUN DATA --batchsize 3", "did you mean batch_size"),
        ("cryo-monai sweep configs/sweeps/quick.json DIR --lrr 3", "no such id"),
        ("cryo-monai weights get", "no such verb"),
        ("cryo-monai report RUN DIR DATA more", "Could not consume arg: more"),
        ("X=1 .venv/bin/cryo-monai pick TOMOGRAMS DIR --sigmaa 3", "did you mean --sigma"),
        ("srun --nodes=1 ray start -- cryo-monai sweep configs/sweeps/quick.json DIR --lrr 3", "no such id"),
        ("torchrun --nprocs=2 -m monai.bundle run training", "nprocs"),
        ("torchrun --standalone --no-python cryo-monai train BUNDLE RUN --datasetdir DATA", "did you mean dataset_dir"),
        ("python -m monai.bundle rum training", "monai.bundle has no rum"),
        ("python -m monai.bundle run trainin", "trainin: no such id"),
        ("python -m monai.bundle run training --num_clases 3", "num_clases: no such id"),
        ("python benchmarks/none.py", "no such file"),
        ("python benchmarks/pipeline.py --batchsize 3", "Could not consume arg: --batchsize"),
        ("cd bundles/none", "no such file"),
        ("pip install 'cryo-monai[none]'", "no such extra"),
    ],
)
def test_a_wrong_command_is_told_from_a_right_one(text: str, reason: str) -> None:
    assert reason in check(Command("page", 1, tuple(shlex.split(text))))
