"""Words of a command: its verb, its flags, and the command inside of another."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache
from typing import Any

from torch.distributed.run import get_args_parser

from cryo_monai.__main__ import VERBS


class WrongCommandError(Exception):
    """What a user would be told."""


def bare(words: Sequence[str]) -> list[str]:
    """A command without the folder of its program, what is set or waits before it, and what stands for more words."""
    words = list(words)
    while words and (words[0] in ("exec", "time", "sudo") or re.fullmatch(r"\w+=\S*", words[0])):
        words.pop(0)
    if words and words[0] in ("srun", "ray"):
        starts = [n for n, word in enumerate(words) if word in ("torchrun", "cryo-monai")]
        return bare(words[starts[0] :]) if starts else []
    if ">" in words:
        words = words[: words.index(">")]
    given = [word for word in words if word not in ("...", "$RESUME")]
    return [given[0].rpartition("/")[2], *given[1:]] if given and given[0].startswith(".venv/") else given


def verb_of(words: Sequence[str]) -> str:
    """Name of the verb of cryo-monai, of several words for some; of another program, what it is told to do."""
    words = bare(words)
    if words[:1] == ["torchrun"]:
        return f"torchrun {verb_of(inner_of_torchrun(words[1:]))}" if len(words) > 1 else "torchrun"
    if words[:3] == ["python", "-m", "cryo_monai"]:
        words = ["cryo-monai", *words[3:]]
    if words[:1] == ["cryo-monai"]:
        node: Any = VERBS
        count = 1
        while isinstance(node, Mapping) and count < len(words) and words[count] in node:
            node, count = node[words[count]], count + 1
        return " ".join(words[:count])
    if words[:3] == ["python", "-m", "monai.bundle"]:
        return " ".join(["monai.bundle", *(word for word in words[3:5] if not word.startswith("-"))])
    return " ".join(words[:2])


def flag_names(words: Iterable[str]) -> set[str]:
    """Names of the flags among words."""
    return {word[2:].partition("=")[0] for word in words if re.match(r"--\w", word)}


def inner_of_torchrun(words: Sequence[str]) -> list[str]:
    """The command that torchrun starts in each process; nothing where only options are given."""
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            known = get_args_parser().parse_args(list(words))
        except SystemExit as ended:
            if "training_script" in said.getvalue():
                refuse(flag_names(words), torchrun_options())
                return []
            raise WrongCommandError(said.getvalue().strip().splitlines()[-1]) from ended
    start = ["python", "-m"] if known.module else [] if known.no_python else ["python"]
    return [*start, known.training_script, *known.training_script_args]


@cache
def torchrun_options() -> frozenset[str]:
    """Options that torchrun has."""
    return frozenset(o[2:] for action in get_args_parser()._actions for o in action.option_strings if o[:2] == "--")


def refuse(names: Iterable[str], known: Iterable[str]) -> None:
    """Stop at a name that is not known."""
    for name in names:
        if name not in known:
            raise WrongCommandError(f"--{name}: no such option")
