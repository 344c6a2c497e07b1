"""Commands of the documentation: where they stand, what marks them, and their words.

``python tests/command_statuses.py`` prints all of them with what runs each, or why nothing does.

Each fenced block of shell commands has a comment on the line above, which no reader sees:

- ``<!-- run -->``: test_documented_commands.py runs it as it stands;
- ``<!-- run small -->``: that test makes it small, by `SMALL`;
- ``<!-- run by tests/test_X.py -->``: another test runs it, and names the page;
- ``<!-- not run: reason -->``.

``; afresh`` begins with a new folder, then ``; not TEXT: reason`` says of single commands, which contain the text, why
they are not run. Commands in the text of a page have to have their verb and flags in a block that is run; or the page
says ``<!-- mentioned, not run: TEXT: reason -->`` anywhere.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELLS = ("bash", "sh", "shell", "console")
# Pages whose blocks marked `run` are read and run by a test of their own.
READ_BY = {"docs/tutorial.md": "tests/test_tutorial.py"}
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
MARKER = re.compile(
    r"^ *<!-- (?:not run: (?P<reason>.+)|(?P<how>run|run small|run by (?P<test>[^\s;]+))"
    r"(?P<afresh>; afresh)?(?P<rest>(?:; not .+?: .+?)*)) -->$"
)
MENTIONED = re.compile(r"<!-- mentioned, not run: (.+?): (.+?) -->")
COMMENT = re.compile(r"(?<!\S)#.*$", re.MULTILINE)
STARTS = (
    "cryo-monai ",
    "python -m cryo_monai ",
    "python -m monai.bundle ",
    "monai.bundle ",
    "torchrun ",
    "python benchmarks/",
)


@dataclass(frozen=True)
class Command:
    """A command: where it stands, its words, and the folder that it is to be called from, relative to the root."""

    page: str
    line: int
    words: tuple[str, ...]
    folder: str = "."

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Block:
    """A fenced block: its text without prompts, and what its marker says."""

    page: str
    line: int
    text: str
    marker: str = ""
    test: str = ""
    reason: str = ""
    afresh: bool = False
    left_out: tuple[tuple[str, str], ...] = ()
    commands: tuple[Command, ...] = field(default=(), compare=False)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run_here(self) -> bool:
        return self.marker in ("run", "run small") and not self.test

    def reason_against(self, command: Command) -> str:
        """Why a command of a block that is run is not; nothing if it is."""
        return next((reason for text, reason in self.left_out if text in command.text), "")


def pages() -> list[str]:
    """Documentation, relative to the root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found += sorted((ROOT / "bundles").glob("*/docs/README.md"))
    hidden = ("_build", "_site", "node_modules")
    return [f.relative_to(ROOT).as_posix() for f in found if not any(part in hidden for part in f.parts)]


def home(page: str) -> str:
    """The folder whose paths a page writes: of a bundle's files, the bundle."""
    parts = Path(page).parts
    return "/".join(parts[:2]) if parts[0] == "bundles" else "."


def split_commands(text: str) -> list[list[str]]:
    """Words of each command of a script; pipes, conditions and ``$(...)`` separate commands."""
    text = COMMENT.sub("", text.replace("\\\n", " "))
    while inner := re.search(r"\$\(([^()]*)\)", text):
        text = f"{text[: inner.start()]}SUBSTITUTE{text[inner.end() :]}\n{inner.group(1)}"
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|()"):
                found.append(words)
                words = []
            else:
                words.append(word)
    return [words for words in found if words]


def blocks_of(page: str) -> list[Block]:
    """The blocks of shell commands on a page."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found, number = [], 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        end = number + 1
        while not (lines[end].strip().startswith(opening[2]) and lines[end].strip(" `~") == ""):
            end += 1
        if opening[3].strip().split(" ")[0] in SHELLS:
            inside = [line.removeprefix(opening[1]) for line in lines[number + 1 : end]]
            if opening[3].strip() == "console":
                inside = [line[2:] for line in inside if line.startswith(("$ ", "> "))]
            text = "".join(f"{line}\n" for line in inside)
            found.append(_block(page, number + 1, text, lines[number - 1] if number else ""))
        number = end + 1
    return found


def _block(page: str, line: int, text: str, above: str) -> Block:
    given: dict[str, object] = {}
    match = MARKER.match(above)
    if above == "<!-- test command -->":  # read by the continuous integration
        given = {"marker": "run", "test": ".ci/run"}
    elif match is not None:
        exceptions = [part.partition(": ") for part in (match["rest"] or "").split("; not ")[1:]]
        given = {
            "marker": "not run" if match["reason"] else "run" if match["test"] else match["how"],
            "test": match["test"] or (READ_BY.get(page, "") if match["how"] == "run" else ""),
            "reason": match["reason"] or "",
            "afresh": bool(match["afresh"]),
            "left_out": tuple((text, reason) for text, _, reason in exceptions),
        }
    folder, commands = Path(home(page)), []
    for words in split_commands(text):
        commands.append(Command(page, line, tuple(words), folder.as_posix()))
        if words[0] == "cd":
            folder /= words[1]
    return Block(page, line, text, commands=tuple(commands), **given)  # type: ignore[arg-type]


def spans_of(page: str) -> list[tuple[int, str]]:
    """Code spans outside of blocks, with their lines."""
    kept, fence = [], ""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        opening = FENCE.match(line)
        if opening is not None and (not fence or line.strip() == fence):
            fence = "" if fence else opening[2]
            kept.append("")
        else:
            kept.append("" if fence else line)
    text = "\n".join(kept)
    spans = re.finditer(r"(?<!`)(`+)(?!`)((?:[^\n]|\n(?!\n))+?)(?<!`)\1(?!`)", text)
    return [(text.count("\n", 0, m.start()) + 1, m[2].replace("\n", " ").replace("\\|", "|").strip()) for m in spans]


def mentions_of(page: str) -> list[Command]:
    """Commands in the text of a page."""
    found = []
    for line, span in spans_of(page):
        if span.startswith(STARTS):
            words = ["python", "-m", *shlex.split(span)] if span.startswith("monai.bundle") else shlex.split(span)
            found.append(Command(page, line, tuple(words), home(page)))
    return found


def reasons_of(page: str) -> list[tuple[str, str]]:
    """Texts of mentioned commands that are not run, with the reason."""
    return MENTIONED.findall((ROOT / page).read_text(encoding="utf-8"))


def flags_of(page: str) -> list[tuple[int, str]]:
    """Flags that code spans name without a command."""
    spans = [(line, span) for line, span in spans_of(page) if span.startswith("--")]
    return [(line, name) for line, span in spans for name in re.findall(r"(?<!\S)--([\w#-]+)", span)]


def descriptions() -> Iterator[tuple[str, str]]:
    """``_desc_`` of configurations, at any depth, with their files."""
    for file in sorted([*ROOT.glob("configs/**/*.json"), *ROOT.glob("bundles/*/configs/*.json")]):
        waiting = [json.loads(file.read_text(encoding="utf-8"))]
        while waiting:
            node = waiting.pop()
            waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
            if isinstance(node, dict) and isinstance(node.get("_desc_"), str):
                yield file.relative_to(ROOT).as_posix(), node["_desc_"]


def described_commands() -> list[Command]:
    """Commands in the ``_desc_`` of configurations; each ends with its sentence, or before a bracket."""
    found = []
    for file, text in descriptions():
        for start in re.finditer(r"(?:cryo-monai [a-z]|torchrun --|PY [a-z])", text.replace("`", " ` ")):
            rest = text.replace("`", " ` ")[start.start() :]
            rest = re.split(r" `|[.,;:](?:\s|$)| \(", rest)[0]
            words = shlex.split(rest)
            words = ["python", "-m", "monai.bundle", *words[1:]] if words[0] == "PY" else words
            found.append(Command(file, 1, tuple(words), home(file)))
    return found


def names_page(test: str, page: str) -> bool:
    """Whether the code of a test, not its comments or docstrings, names a page."""
    if not test.endswith(".py"):
        return f"{Path(page).name}" in (ROOT / test).read_text(encoding="utf-8")
    tree = ast.parse((ROOT / test).read_text(encoding="utf-8"))
    texts = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = [n.value for n in constants if n.value not in texts]
    return any(value == page or value == Path(page).name or page.endswith(f"/{value}") for value in named)
