"""STAR files as RELION, Warp and STOPGAP write them: one row per line, values kept as text.

RELION's own reader goes by lines (3dem/relion, ``MetaDataTable::readStarLoop`` and ``nextTokenInSTAR``), and so does
this one, so that every error names its line and a file can be written back with nothing changed but a few columns. That
is why the general readers (gemmi, starfile) are not used: they drop the lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryo_monai.errors import InputError
from cryo_monai.particles.text import TextColumns, read_text

# A quoted text ends at its quote before a blank; a comment begins at a token that begins with '#'.
_TOKEN = re.compile(r"""'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+)""")


@dataclass(frozen=True)
class StarTable:
    """One table of a STAR file: a loop, or single items, which make one row.

    Parameters
    ----------
    block : str
        Name of its block, without ``data_``.
    columns : TextColumns
        Names without the leading underscore.
    loop : bool
        Whether it is a loop.
    """

    block: str
    columns: TextColumns
    loop: bool


def read_star(path: Path) -> list[StarTable]:
    """Read all tables of a STAR file.

    Raises
    ------
    InputError
        Naming the line: text before the first block, rows of another length than the labels, labels that come twice,
        quotes that do not close.
    """
    lines = read_text(path).splitlines()
    reader = _Reader(path)
    for number, line in enumerate(lines, 1):
        tokens = _tokens(line, path, number)
        if tokens:
            reader.take(number, tokens, quoted=line.lstrip()[0] in "'\"")
    if reader.block is None:
        raise InputError(f"{path}: not a STAR file, it has no data_ block")
    return [table for table in reader.tables if table.columns.names]


class _Reader:
    """State of reading: the block, and the table that lines are added to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.block: str | None = None
        self.tables: list[StarTable] = []

    def take(self, number: int, tokens: list[str], *, quoted: bool) -> None:
        first = tokens[0]
        if len(tokens) == 1 and not quoted and first.lower().startswith("data_"):
            self.block = first[5:]
            self._start(loop=False)
        elif self.block is None:
            raise InputError(f"{self.path}, line {number}: text before the first data_ block; not a STAR file")
        elif len(tokens) == 1 and not quoted and first.lower() == "loop_":
            self._start(loop=True)
        elif first.startswith("_") and not quoted and self._is_label(tokens):
            self._label(number, tokens)
        elif self.tables[-1].loop:
            self._row(number, tokens)
        else:
            raise InputError(f"{self.path}, line {number}: {first!r} is neither a label nor a row of a loop")

    def _start(self, *, loop: bool) -> None:
        columns = TextColumns(self.path, [], [] if loop else [[]], [], [])
        self.tables.append(StarTable(self.block or "", columns, loop))

    def _is_label(self, tokens: list[str]) -> bool:
        table = self.tables[-1]
        return not table.loop or not table.columns.rows or len(tokens) == 2 != len(table.columns.names)

    def _label(self, number: int, tokens: list[str]) -> None:
        if self.tables[-1].loop and self.tables[-1].columns.rows:
            self._start(loop=False)
        table = self.tables[-1]
        name = tokens[0][1:]
        if name in table.columns.names:
            raise InputError(f"{self.path}, line {number}: label _{name} comes twice")
        if len(tokens) != (1 if table.loop else 2):
            expected = "no value" if table.loop else "one value"
            raise InputError(f"{self.path}, line {number}: _{name} needs {expected}, it has {len(tokens) - 1}")
        table.columns.names.append(name)
        table.columns.name_lines.append(number)
        if not table.loop:
            table.columns.rows[0].append(tokens[1])
            table.columns.lines[:] = table.columns.lines or [number]

    def _row(self, number: int, tokens: list[str]) -> None:
        columns = self.tables[-1].columns
        if len(tokens) != len(columns.names):
            raise InputError(f"{self.path}, line {number}: {len(tokens)} values for {len(columns.names)} columns")
        columns.rows.append(tokens)
        columns.lines.append(number)


def _tokens(line: str, path: Path, number: int) -> list[str]:
    if "'" not in line and '"' not in line and "#" not in line:
        return line.split()
    return [token for token, _, _ in _spans(line, path, number)]


def _spans(line: str, path: Path, number: int) -> list[tuple[str, int, int]]:
    """Tokens of a line, up to a comment, with where they begin and end."""
    spans = []
    for match in _TOKEN.finditer(line):
        plain = match[3]
        if plain is not None and plain[0] in "'\"":
            raise InputError(f"{path}, line {number}: a quote ({plain[0]}) is not closed")
        if plain is not None and plain[0] == "#":
            break
        text = plain if plain is not None else match[1] if match[1] is not None else match[2]
        spans.append((text, match.start(), match.end()))
    return spans


def star_text(value: str) -> str:
    """Return a value as it stands in a STAR file, in quotes where it needs them.

    Raises
    ------
    InputError
        When it holds a line end, or both kinds of quotes before blanks.
    """
    plain = value and not re.search(r"\s", value) and value[0] not in "_#;'\"" and not _reserved(value)
    if plain:
        return value
    for quote in "\"'":
        if not re.search(rf"{quote}(\s|$)|[\r\n]", value):
            return f"{quote}{value}{quote}"
    raise InputError(f"{value!r} cannot stand in a STAR file")


def _reserved(value: str) -> bool:
    return bool(re.match(r"(data_|save_|loop_$|stop_$|global_$)", value, re.IGNORECASE))


def star_block(name: str, columns: Mapping[str, Sequence[str]]) -> str:
    """Return the text of a block with one loop."""
    labels = "".join(f"_{label} #{number}\n" for number, label in enumerate(columns, 1))
    rows = zip(*([star_text(value) for value in values] for values in columns.values()), strict=True)
    return f"data_{name}\n\nloop_\n{labels}" + "".join("\t".join(row) + "\n" for row in rows)


def with_columns(path: Path, table: StarTable, rows: Sequence[int], values: Mapping[str, Sequence[str]]) -> str:
    """Return the text of a STAR file with columns of one table replaced or added, and nothing else changed.

    Parameters
    ----------
    path : Path
        The file.
    table : StarTable
        As read from it.
    rows : sequence of int
        Rows of the table to keep, in this order.
    values : mapping
        Label to one text for each of these rows.
    """
    lines = read_text(path).splitlines(keepends=True)
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    labels = table.columns.name_lines
    if not table.loop:
        return _with_items(path, lines, table, {name: texts[0] for name, texts in values.items()}, end)
    edited = [
        _edited_row(path, lines, table, row, {name: texts[n] for name, texts in values.items()}, end)
        for n, row in enumerate(rows)
    ]
    new = [name for name in values if name not in table.columns]
    numbered = "#" in lines[labels[-1] - 1]
    added = [
        f"_{name} #{number}{end}" if numbered else f"_{name}{end}"
        for number, name in enumerate(new, len(table.columns.names) + 1)
    ]
    where = {line: n for n, line in enumerate(table.columns.lines)}
    in_order = list(rows) == list(range(len(table.columns.rows)))
    out = []
    for number, line in enumerate(lines, 1):
        if number not in where:
            out.append(line)
        elif in_order:
            out.append(edited[where[number]])
        elif where[number] == 0:
            out += edited
        if number == labels[-1]:
            out += added
    return "".join(out)


def _edited_row(
    path: Path, lines: Sequence[str], table: StarTable, row: int, values: Mapping[str, str], end: str
) -> str:
    number = table.columns.lines[row]
    line = lines[number - 1]
    spans = _spans(line, path, number)
    tail = spans[-1][2]
    # From the last to the first, so that the places before stay right.
    text = line[:tail] + "".join(f" {star_text(v)}" for name, v in values.items() if name not in table.columns)
    rest = line[tail:]
    places = {table.columns.names.index(name): value for name, value in values.items() if name in table.columns}
    for place in sorted(places, reverse=True):
        _, start, stop = spans[place]
        text = text[:start] + star_text(places[place]).rjust(stop - start) + text[stop:]
    return text + (rest if rest.endswith(("\n", "\r")) else rest + end)


def _with_items(path: Path, lines: list[str], table: StarTable, values: Mapping[str, str], end: str) -> str:
    names, places = table.columns.names, table.columns.name_lines
    out = list(lines)
    for name in (name for name in values if name in names):
        number = places[names.index(name)]
        _, start, stop = _spans(out[number - 1], path, number)[1]
        out[number - 1] = out[number - 1][:start] + star_text(values[name]) + out[number - 1][stop:]
    if not out[places[-1] - 1].endswith(("\n", "\r")):
        out[places[-1] - 1] += end
    out.insert(places[-1], "".join(f"_{name} {star_text(v)}{end}" for name, v in values.items() if name not in names))
    return "".join(out)
