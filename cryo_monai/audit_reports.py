"""The result of an audit, as a dictionary and as a page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryo_monai.leakage import SourceAudit

# Lines of a kind, and sources in a table, that the text shows; the dictionary holds all.
SHOWN_LINES = 20
SHOWN_SOURCES = 10


@dataclass(frozen=True)
class Audit:
    """What `audit_dataset` found.

    Attributes
    ----------
    dataset : str
        The data set, as it was given.
    class_names : list of str
        Names by label.
    counts : dict
        Volumes by split (``""`` where the data are not split and cannot be) and class.
    num_volumes, num_read : int
        Volumes listed, and read.
    shapes, voxel_sizes, data_types : dict
        How many volumes have which, the most frequent first.
    intensities : dict
        For ``"all classes"`` and each class, medians over volumes of minimum, maximum, mean and standard deviation.
    sources : SourceAudit
        Classes and tomograms.
    problems : list of str
        Why these data cannot be trained on, or their score not be believed; one line each.
    warnings : list of str
        What deserves a look; one line each.
    leakage : list of str
        Those of the warnings that say the score may not hold for new tomograms.
    """

    dataset: str
    class_names: list[str]
    counts: dict[str, dict[str, int]]
    num_volumes: int
    num_read: int
    shapes: dict[str, int]
    voxel_sizes: dict[str, int]
    data_types: dict[str, int]
    intensities: dict[str, dict[str, float]]
    sources: SourceAudit
    problems: list[str]
    warnings: list[str]
    leakage: list[str]

    @property
    def verdict(self) -> str:
        """One line: fit for training or not, and how many problems and warnings there are."""
        number = f"{_number(self.problems, 'problem')}, {_number(self.warnings, 'warning')}"
        return f"{self.dataset}: {'NOT fit' if self.problems else 'fit'} for training ({number})"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, as JSON has it."""
        return {"verdict": self.verdict, "fit": not self.problems, **asdict(self)}

    def as_text(self) -> str:
        """Write a page to read, the verdict first."""
        parts = [
            [self.verdict],
            _lines("problems", self.problems),
            _lines("warnings", self.warnings),
            self._count_lines(),
            self._volume_lines(),
            self._source_lines(),
        ]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def _count_lines(self) -> list[str]:
        columns = [name or "not split" for name in self.counts]
        counts = list(self.counts.values())
        numbers = {name: [count[name] for count in counts] for name in self.class_names}
        numbers["all classes"] = [sum(count.values()) for count in counts]
        if len(counts) > 1:
            columns.append("all")
            numbers = {name: [*row, sum(row)] for name, row in numbers.items()}
        rows = [[name, *row] for name, row in numbers.items()]
        return _table(["volumes by class", *columns], rows)

    def _volume_lines(self) -> list[str]:
        rows = [
            ["read", f"{self.num_read} of {self.num_volumes}"],
            ["box size (z, y, x)", _tally_text(self.shapes)],
            ["voxel size (z, y, x)", _tally_text(self.voxel_sizes)],
            ["data type", _tally_text(self.data_types)],
        ]
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        if self.intensities:
            keys = list(self.intensities["all classes"])
            rows = [[name, *(f"{value[key]:.4g}" for key in keys)] for name, value in self.intensities.items()]
            lines += ["", *_table(["intensities, medians over volumes", *keys], rows)]
        return lines

    def _source_lines(self) -> list[str]:
        audit = self.sources
        if not audit.sources:
            return ["sources: none is named, so that leakage through tomograms cannot be judged"]
        association = "not defined" if audit.association is None else f"{audit.association:.2f}"
        lines = [f"sources: {len(audit.sources)}; association of class and source (Cramér's V, 0 to 1): {association}"]
        shown = audit.sources[:SHOWN_SOURCES]
        rows = [[name, *row[: len(shown)]] for name, row in zip(self.class_names, audit.table, strict=True)]
        lines += _table(["volumes by class and source", *shown], rows)
        if len(audit.sources) > len(shown):
            lines.append(f"... and {len(audit.sources) - len(shown)} more sources")
        if audit.grouped is None:
            return [
                *lines,
                "",
                *_lines("a split by source (--split_by source) would not be possible:", audit.obstacles),
            ]
        rows = [[name, *(audit.grouped[split][name] for split in audit.grouped)] for name in self.class_names]
        return [*lines, "", *_table(["a split by source", *audit.grouped], rows)]


def _number(things: Sequence[Any], name: str) -> str:
    return f"{len(things) or 'no'} {name}{'' if len(things) == 1 else 's'}"


def _lines(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - SHOWN_LINES} more"] if len(lines) > SHOWN_LINES else []
    return [title, *(f"  {line}" for line in lines[:SHOWN_LINES]), *more]


def _tally_text(tally: Mapping[str, int]) -> str:
    if len(tally) == 1:
        return next(iter(tally))
    return "; ".join(f"{value} ({count})" for value, count in tally.items()) or "-"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Align the first column left and the others right."""
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(header))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in texts
    ]
