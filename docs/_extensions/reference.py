"""Fills the comments of the pages in reference/: what they list is read from the package, not written twice.

``<!-- verbs -->`` becomes an entry per verb of the command line, ``<!-- names -->`` the table of names that bundle JSON
may target, ``<!-- modules: GROUP -->`` the modules that docs/architecture.md lists for the group.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from fire import docstrings
from sphinx import addnodes
from sphinx.application import Sphinx

import cryo_monai
from cryo_monai.__main__ import VERBS

PACKAGE = Path(cryo_monai.__file__).parent
GROUPS = re.compile(r"^\| ([^|]+) \| ([^|]+) \| [^|]*\|$", re.MULTILINE)
COMMENT = re.compile(r"^<!-- (verbs|names|modules)(?:: (.+?))? -->$", re.MULTILINE)


def verb_entries() -> str:
    """Return a section of Markdown for each verb, made of its docstring and its parameters."""
    return "\n".join(_verb_entry(name, verb) for name, verb in _spelled(VERBS))


def _spelled(verbs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    for name, verb in verbs.items():
        if isinstance(verb, Mapping):
            yield from _spelled(verb, f"{name} ")
        else:
            yield prefix + name, verb


def _verb_entry(name: str, verb: Callable[..., None]) -> str:
    text = docstrings.parse(verb.__doc__ or "")
    said = {argument.name: argument.description or "" for argument in text.args or []}
    parameters = list(inspect.signature(verb).parameters.values())
    words = " ".join(p.name.upper() for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
    lines = [f"## {name}", "", "```text", f"cryo-monai {name} {words}".rstrip() + " [--FLAG VALUE ...]", "```", ""]
    lines += [_escaped(text.summary or ""), "", _escaped(text.description or ""), ""]
    lines += ["| argument or flag | default | |", "|---|---|---|"]
    lines += [f"| {_flag(p)} | {_default(p)} | {_escaped(said.get(p.name, ''))} |" for p in parameters]
    return "\n".join([*lines, ""])


def _flag(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "`--ID VALUE`"
    return f"`{parameter.name.upper()}`" if parameter.default is parameter.empty else f"`--{parameter.name}`"


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default in (parameter.empty, "") else f"`{parameter.default}`"


def _escaped(text: str) -> str:
    """Escape what Markdown would take for markup, but for code in backticks; flags become code."""

    def mark(match: re.Match[str]) -> str:
        piece = match[0]
        if piece.startswith("--"):
            return f"`{piece}`"
        return piece.replace("``", "`") if len(piece) > 1 else f"\\{piece}"

    code = r"``[^`]+``|`[^`]+`|--[A-Za-z_][\w#]*"
    return re.sub(rf"{code}|[\\`*_{{}}\[\]<>()#+!|~$-]", mark, " ".join(text.split()))


def public_names() -> str:
    """Return a table of the names that bundle JSON may target, linked to their entries."""
    lines = ["| name | |", "|---|---|"]
    for name in cryo_monai.__all__:
        value = getattr(cryo_monai, name)
        if callable(value):
            first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            lines.append(f"| {{py:obj}}`{name} <cryo_monai.{cryo_monai._HOME[name]}.{name}>` | {_escaped(first)} |")
    return "\n".join(lines)


def module_entries(group: str) -> str:
    """Return what documents the modules of a group of docs/architecture.md, in its order.

    Raises
    ------
    LookupError
        For a group that is not in the table.
    """
    table = dict(GROUPS.findall((Path(__file__).parents[1] / "architecture.md").read_text()))
    if group not in table:
        raise LookupError(f"docs/architecture.md has no group {group!r}; it has {', '.join(table)}")
    names = [n for listed in re.findall(r"`(\w+)/?`", table[group]) for n in _modules_of(listed)]
    return "\n".join(_module_entry(name) for name in names)


def _modules_of(name: str) -> list[str]:
    folder = PACKAGE / name
    inner = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    return [name, *(f"{name}.{stem}" for stem in inner)]


def _module_entry(name: str) -> str:
    level = "###" if "." in name else "##"
    directive = f".. automodule:: cryo_monai.{name}\n   :members:\n   :ignore-module-all:"
    return f"{level} {name}\n\n```{{eval-rst}}\n{directive}\n```\n"


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    makers: dict[str, Callable[..., str]] = {"verbs": verb_entries, "names": public_names, "modules": module_entries}
    if page.startswith("reference/"):
        source[0] = COMMENT.sub(lambda m: makers[m[1]](*(m.groups()[1:] if m[2] else ())), source[0])


def _refer_to_own_module_only(app: Sphinx, tree: nodes.document) -> None:
    """Keep the type of a parameter from linking to whatever has its last name somewhere: that may be another thing."""
    for reference in tree.findall(addnodes.pending_xref):
        reference.attributes.pop("refspecific", None)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _fill)
    app.connect("doctree-read", _refer_to_own_module_only)
    return {"version": cryo_monai.__version__, "parallel_read_safe": True}
