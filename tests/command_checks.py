"""What is wrong with a documented command, by the parsers that would read it; nothing is run."""

from __future__ import annotations

import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import fire
import monai.bundle
from command_words import WrongCommandError, bare, flag_names, inner_of_torchrun, refuse, torchrun_options, verb_of
from documented_pages import ROOT, Command
from monai.bundle import ConfigParser

from cryo_monai import command_line
from cryo_monai.__main__ import VERBS
from cryo_monai.errors import InputError
from cryo_monai.simulation import SimulationSettings
from cryo_monai.simulation_verbs import _simulation
from cryo_monai.workflows import FILES, load_workflow

# Verbs that take ids, with the workflow whose ids they are; embed takes two of its own, see `embed_with`.
IDS = {"train": "train", "control": "train", "sweep": "train", "evaluate": "evaluate"}
IDS |= {"pretrain": "train", "classify": "inference", "explain": "inference", "embed": "inference"}
MORE_IDS = {"embed": ("input_range", "inflation")}
SIMULATIONS = ("simulate", "simulate_tomograms")
BUNDLES = ("bundles/subtomogram_classification", "bundles/medmnist3d_classification")
PATHS = re.compile(r"(?<![\w./-])(?:\.\./)*(?:bundles|configs|benchmarks|docs|tests)/[\w./-]*\w")


def check(command: Command, *, whole: bool = True) -> str:
    """Say what is wrong with a command, or nothing; of one that is only mentioned, arguments may lack."""
    words = bare(command.words)
    try:
        _check_paths(command)
        _check_program(words, ROOT / command.folder, whole)
    except (WrongCommandError, InputError, command_line.UsageError) as error:
        return f"{command.place}: {command.text}: {error}"
    return ""


def _check_program(words: list[str], folder: Path, whole: bool) -> None:
    if words[:1] == ["cd"] and not (folder / words[1]).is_dir():
        raise WrongCommandError(f"{words[1]}: no such folder")
    if words[:1] == ["torchrun"]:
        inner = inner_of_torchrun(words[1:])
        if inner:
            _check_program(inner, folder, whole)
    elif words and words[0].startswith("--"):  # options that a text sets in the place of others
        refuse(flag_names(words), torchrun_options())
    elif words[:1] == ["cryo-monai"] or words[:3] == ["python", "-m", "cryo_monai"]:
        _check_verb(words[1:] if words[0] == "cryo-monai" else words[3:], folder, whole)
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        _check_bundle_verb(words[3:], folder, whole)
    elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        parsed(benchmark(words[1]), words[2:], whole=True)
    elif words[-2:-1] == ["install"] or words[:1] == ["pip"]:
        unknown = [extra for word in words for extra in extras_named(word) if extra not in extras()]
        if unknown:
            raise WrongCommandError(f"{unknown[0]}: no such extra in pyproject.toml")


def _check_paths(command: Command) -> None:
    of_bundle = ROOT / BUNDLES[0] if "monai.bundle" in command.words else ROOT
    for path in PATHS.findall(" ".join(command.words)):
        stand_in = re.search(r"[A-Z]{2,}(?!\w*\.md)", Path(path).name)
        if not stand_in and not any((folder / path).exists() for folder in (ROOT / command.folder, of_bundle)):
            raise WrongCommandError(f"{path}: no such file")


def _check_verb(words: list[str], folder: Path, whole: bool) -> None:
    given = [_numbered(word) for word in words if word != "--help"]
    if given[:1] == ["VERB"] or (len(words) == 1 and not given):
        return
    name, arguments = understood(given, whole=whole and len(given) == len(words))
    if name in SIMULATIONS:
        settings = {key: value for key, value in arguments.pop("", {}).items() if key != "tilts"}
        config = arguments.get("config", "")
        _simulation(VERBS[name], str(folder / config) if config else "", settings)  # type: ignore[arg-type]
    if "" in arguments:
        if name not in IDS:
            raise WrongCommandError(f"say in IDS of command_checks.py what ids {name} takes")
        _check_ids(name, arguments, folder)


def _check_ids(name: str, arguments: dict[str, Any], folder: Path) -> None:
    ids = {key: value for key, value in arguments[""].items() if key not in MORE_IDS.get(name, ())}
    bundle = "bundles/generated_pretraining" if name == "pretrain" else arguments.get("bundle", "")
    bundles = [bundle] if (folder / bundle / "configs" / "train.json").is_file() else BUNDLES
    overlays = [folder / part for part in arguments.get("overlays", "").split(",") if (folder / part).is_file()]
    errors = []
    for each in bundles:
        try:
            load_workflow(folder / each if each == bundle else ROOT / each, IDS[name], overlays=overlays, overrides=ids)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(bundles):
        raise errors[0]


def _check_bundle_verb(words: list[str], folder: Path, whole: bool) -> None:
    if not words:
        return
    verb = getattr(monai.bundle, words[0], None)
    if not inspect.isfunction(verb):
        raise WrongCommandError(f"monai.bundle has no {words[0]}")
    arguments = parsed(verb, words[1:], whole=whole)
    files = arguments.get("config_file") or []
    folder = folder if (folder / "configs" / "train.json").is_file() else ROOT / BUNDLES[0]
    places = [str(folder / file) for file in ([files] if isinstance(files, str) else files)]
    if not files:
        places = [str(ROOT / BUNDLES[0] / "configs" / name) for names in FILES.values() for name in names]
    places = [place for place in places if Path(place).is_file()]
    if not places:
        return
    parser = ConfigParser()
    parser.read_config(places)
    ids = [*arguments.get("", {}), *(arguments[key] for key in ("run_id", "net_id") if arguments.get(key))]
    unknown = [name for name in ids if name not in parser]
    if unknown:
        raise WrongCommandError(f"{unknown[0]}: no such id in {', '.join(places)}")


def _numbered(word: str) -> str:
    """A number in the place of N, which stands for one."""
    return {"N": "1"}.get(word, word)


def recorder(verb: Callable[..., Any], into: list[dict[str, Any]], *, whole: bool) -> Callable[..., None]:
    """A function that is called as another is, and only keeps what it is given; the rest of the flags under ''."""
    signature = inspect.signature(verb)
    named = [p.name for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    open_ended = len(named) < len(signature.parameters)

    def record(*values: Any, **given: Any) -> None:
        given |= dict(zip(named, values, strict=False))
        rest = {"": {key: value for key, value in given.items() if key not in named}} if open_ended else {}
        into.append({key: value for key, value in given.items() if key in named} | rest)

    if not whole:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        optional = [
            p.replace(default="") if p.default is p.empty and p.kind not in kinds else p
            for p in signature.parameters.values()
        ]
        signature = signature.replace(parameters=optional)
    record.__name__, record.__doc__ = verb.__name__, verb.__doc__
    record.__signature__ = signature  # type: ignore[attr-defined]
    return record


def understood(words: Sequence[str], *, whole: bool = True) -> tuple[str, dict[str, Any]]:
    """What cryo-monai understands: the verb, and the arguments that it is given, other flags under ''."""
    found: list[dict[str, Any]] = []

    def recording(verbs: Any, path: str) -> Any:
        if isinstance(verbs, Mapping):
            return {name: recording(verb, f"{path} {name}".strip()) for name, verb in verbs.items()}
        return recorder(verbs, found, whole=whole)

    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            code = command_line.run(recording(VERBS, ""), list(words))
        except SystemExit as ended:
            code = ended.code
    if code or not found:
        if not whole and not found and not code:
            return verb_of(["cryo-monai", *words]).partition(" ")[2], {}
        raise WrongCommandError(said.getvalue().strip().splitlines()[0] if said.getvalue() else "not understood")
    return verb_of(["cryo-monai", *words]).partition(" ")[2], found[0]


def parsed(function: Callable[..., Any], words: Sequence[str], *, whole: bool) -> dict[str, Any]:
    """What Fire gives to a function."""
    found: list[dict[str, Any]] = []
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        try:
            fire.Fire(recorder(function, found, whole=whole), command=list(words), name="command")
        except SystemExit as ended:
            raise WrongCommandError(said.getvalue().strip().splitlines()[0]) from ended
    return found[0]


@cache
def benchmark(script: str) -> Callable[..., Any]:
    """The function that a benchmark gives to Fire."""
    spec = importlib.util.spec_from_file_location(Path(script).stem + "_benchmark", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.path[:2]
    main: Callable[..., Any] = module.main
    return main


def extras_named(text: str) -> list[str]:
    """Extras of this package that a text names."""
    groups = re.findall(r"(?:cryo-monai|\.|\.whl)\[([\w,]+)\]", text)
    return [extra for group in groups for extra in group.split(",")]


@cache
def extras() -> frozenset[str]:
    """Extras of this package, of which Python 3.10 cannot read the TOML."""
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]\n")[1]
    return frozenset(re.findall(r"^(\w+) = \[", section.split("\n[")[0], re.MULTILINE))


@cache
def all_flags() -> frozenset[str]:
    """Flags that some verb, workflow or torchrun has."""
    waiting, flags = [VERBS], {field.name for field in fields(SimulationSettings)}
    while waiting:
        for verb in waiting.pop().values():
            if isinstance(verb, Mapping):
                waiting.append(verb)
            else:
                flags |= set(inspect.signature(verb).parameters)
    flags |= set(inspect.signature(monai.bundle.run).parameters) | {
        name for names in MORE_IDS.values() for name in names
    }
    return frozenset(flags | torchrun_options() | {"nodes", "ntasks-per-node"} | {"help"})


@cache
def is_flag(name: str) -> bool:
    """Whether some verb, or some configuration of a bundle, has a flag."""
    workflows = [(ROOT / bundle / "configs", files) for bundle in BUNDLES for files in FILES.values()]
    for folder, files in [*workflows, (ROOT / "bundles/generated_pretraining/configs", ("train.json",))]:
        if name in all_flags():
            return True
        parser = ConfigParser()
        parser.read_config([str(folder / file) for file in files])
        if name in parser:
            return True
    return False
