"""The tables of a sweep in Markdown and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from cryo_monai.sweep_results.summaries import Summary
from cryo_monai.sweep_results.table_notes import progress_text
from cryo_monai.sweep_results.tables import TextTable

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$",
    "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "ⁿ": "$^n$", "|": r"\textbar{}", "–": "--", "…": r"\ldots{}",
    "Å": r"\AA{}", "\"": "''", "[": "{[}", "]": "{]}",
}  # fmt: skip


def markdown_of(summary: Summary, tables: Sequence[TextTable]) -> str:
    """Write a sweep as a Markdown page: progress, tables with their notes, remarks, failures."""
    parts = [f"# {_plain(summary.title)}", *([_plain(summary.description)] if summary.description else [])]
    parts.append(f"{progress_text(summary.counts)}.")
    for table in tables:
        parts += [f"**{_plain(table.caption)}**", _markdown_rows(table), *map(_plain, table.notes)]
    parts += [f"Note: {_plain(remark)}" for remark in summary.remarks]
    if summary.failures:
        lines = [
            f"- {_plain(summary.layout.trial_text(result.cell))}: {_plain(result.reason or 'no reason given')}"
            for result in summary.failures
        ]
        parts += ["**Failed trials**", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def latex_of(summary: Summary, tables: Sequence[TextTable]) -> str:
    r"""Write the tables as ``table*`` environments for ``\input``; they need the package booktabs and no other."""
    failed = [
        f"Failed: {summary.layout.trial_text(result.cell)} ({result.reason or 'no reason given'})."
        for result in summary.failures
    ]
    extra = [f"{progress_text(summary.counts)}.", *summary.remarks, *failed]
    parts = [_latex_table(table, extra if table is tables[0] else []) for table in tables]
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(parts)


def escape_latex(text: str) -> str:
    """Write text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _plain(text: str) -> str:
    """Write text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def _markdown_rows(table: TextTable) -> str:
    heads = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    rules = ["---:" if column.number else ":---" for column in table.columns]
    rows = [[_plain(cell) for cell in row] for row in _without_repeats(table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(map(_plain, heads)), rules, *rows])


def _without_repeats(table: TextTable) -> list[list[str]]:
    """Leave out what stands in the row above, as the paper does."""
    rows: list[list[str]] = []
    for number, row in enumerate(table.rows):
        cells = list(row)
        above = table.rows[number - 1] if number else ()
        for column in range(table.num_context):
            if number == 0 or above[column] != row[column]:
                break
            cells[column] = ""
        rows.append(cells)
    return rows


def _latex_table(table: TextTable, extra: Sequence[str]) -> str:
    form = "".join("r" if column.number else "l" for column in table.columns)
    lines = [
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{@{{}}{form}@{{}}}}",
        r"\toprule",
        *_latex_heads(table),
        r"\midrule",
    ]
    for number, row in enumerate(_without_repeats(table)):
        if number and number in table.starts:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(escape_latex, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    # A paragraph each, as wide as the text.
    notes = "\n\n".join(escape_latex(note) for note in [*table.notes, *extra])
    return "\n".join([*lines, rf"{{\raggedright\smallskip {notes}\par}}", r"\end{table*}", ""])


def _latex_heads(table: TextTable) -> list[str]:
    """Write one line of heads, or two where columns stand together."""
    titles = " & ".join(escape_latex(column.title) for column in table.columns) + r" \\"
    if not any(column.group for column in table.columns):
        return [titles]
    spans, rules, first = [], [], 1
    for group, columns in groupby(table.columns, lambda column: column.group):
        width = len(list(columns))
        if group:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        else:
            spans += [""] * width
        first += width
    return [" & ".join(spans) + r" \\", " ".join(rules), titles]
