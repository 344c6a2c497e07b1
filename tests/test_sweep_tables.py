"""The tables of a sweep: the paper's layout, in Markdown and in LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_runs import GRID, fabricate_sweep, fabricate_trial

from cryo_monai.sweep_results.markup import escape_latex, latex_of, markdown_of
from cryo_monai.sweep_results.pairs import estimate_mean
from cryo_monai.sweep_results.results import collect_results
from cryo_monai.sweep_results.summaries import Summary, summarise_sweep
from cryo_monai.sweep_results.tables import TextTable, difference_text, estimate_text, metric_text, p_text, text_tables
from cryo_monai.sweeps.outcomes import Outcome

SOURCE = "Jain, Li & Xu 2024, Table 1"
# Rows of the paper's Table 1.
PUBLISHED = [
    {"dataset": "simulated", "label_fraction": 0.25, "initialisation": "random", "accuracy": 0.6588, "auc": 0.9237,
     "source": SOURCE},
    {"dataset": "simulated", "label_fraction": 0.25, "initialisation": "video", "accuracy": 0.8188, "auc": 0.9733,
     "effort": 0.5, "source": SOURCE},
    {"dataset": "simulated", "label_fraction": 0.25, "method": "SSP (Gupta et al. 2022)", "accuracy": 0.314,
     "source": "quoted in Jain, Li & Xu 2024"},
]  # fmt: skip
SWEEP: dict[str, Any] = {
    "title": "Table 1", "axes": {**GRID, "backbone": ["resnet34"]}, "compare": "initialisation", "baseline": "random",
    "published": PUBLISHED,
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """A grid of forty trials with one backbone, all done."""
    return fabricate_sweep(tmp_path_factory.mktemp("sweep"), SWEEP["axes"])


def summarised(outcomes: Sequence[Outcome], **changes: Any) -> Summary:
    return summarise_sweep(collect_results(outcomes), {**SWEEP, **changes})


def tables_of(outcomes: Sequence[Outcome], **changes: Any) -> dict[str, TextTable]:
    return {table.name: table for table in text_tables(summarised(outcomes, **changes))}


def records(table: TextTable) -> list[dict[str, str]]:
    """Rows by the heads of their columns."""
    heads = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    return [dict(zip(heads, row, strict=True)) for row in table.rows]


def test_numbers_are_written_as_the_paper_prints_them() -> None:
    assert metric_text("accuracy", 0.6588) == "65.88"
    assert metric_text("auc", 0.91173) == "0.9117"
    assert metric_text("auc", None) == ""
    assert estimate_text("accuracy", estimate_mean([0.8, 0.9])) == "85.00"
    assert estimate_text("accuracy", estimate_mean([0.8, 0.9, 0.85])) == "85.00 ± 12.42"  # t 4.3027, s 5, of 3
    assert difference_text("accuracy", estimate_mean([0.16])) == "+16.00"
    assert difference_text("auc", estimate_mean([-0.0051])) == "−0.0051"
    assert difference_text("accuracy", estimate_mean([-1e-9])) == "0.00"
    assert [p_text(p) for p in (None, 0.00099, 0.0625, 1.0)] == ["", "<0.001", "0.0625", "1"]


def test_the_table_has_the_layout_of_the_paper(outcomes: list[Outcome]) -> None:
    table = tables_of(outcomes)["results"]
    rows = records(table)
    assert [column.title for column in table.columns[:4]] == ["Dataset", "(%) labelled", "Initialisation", "Seeds"]
    assert len(rows) == 9
    assert [row["Initialisation"] for row in rows[:3]] == ["random", "video", "SSP (Gupta et al. 2022) (quoted) [b]"]
    assert [row["(%) labelled"] for row in rows] == ["25"] * 3 + ["100"] * 2 + ["25"] * 2 + ["100"] * 2
    assert rows[0]["Accuracy (%): Published [a]"] == "65.88"
    assert rows[1]["AUC: Published [a]"] == "0.9733"
    assert re.fullmatch(r"\d\d\.\d\d ± \d+\.\d\d", rows[1]["Accuracy (%): Ours"])
    assert re.fullmatch(r"\+\d+\.\d\d ± \d+\.\d\d", rows[1]["Accuracy (%): Difference"])
    assert table.caption == "Table 1 (resnet34)."


def test_what_is_not_there_is_blank(outcomes: list[Outcome]) -> None:
    rows = records(tables_of(outcomes)["results"])
    quoted = rows[2]
    assert quoted["Accuracy (%): Published [a]"] == "31.40"
    assert all(
        quoted[name] == "" for name in quoted if "Ours" in name or "Difference" in name or name.startswith(("AUC", "S"))
    )
    assert rows[3]["Accuracy (%): Published [a]"] == ""
    assert rows[0]["Accuracy (%): Difference"] == ""
    waiting = [replace(outcome, state="waiting") for outcome in outcomes]
    tables = tables_of(waiting)
    assert list(tables) == ["results"]
    assert {row["Accuracy (%): Ours"] for row in records(tables["results"])} == {""}
    assert records(tables["results"])[0]["Seeds"] == "0/5"
    assert "Published" not in str(tables_of(waiting, published=[])["results"].columns)


def test_fewer_seeds_than_planned_are_told_and_failures_listed(outcomes: list[Outcome]) -> None:
    changed = [replace(outcomes[0], state="failed", reason="a | reason_of\nsome *kind*"), *outcomes[1:]]
    changed[2:5] = [replace(outcome, state="waiting") for outcome in changed[2:5]]
    first = records(tables_of(changed)["results"])[0]
    assert first["Seeds"] == "1/5"
    assert "±" not in first["Accuracy (%): Ours"]
    summary = summarised(changed)
    text = markdown_of(summary, text_tables(summary))
    assert "36 of 40 trials done, 1 failed, 3 waiting." in text
    assert r"- simulated, 25 % labelled, random, seed 0: a \| reason\_of some \*kind\*" in text


def test_published_numbers_stand_only_beside_what_they_are_of(outcomes: list[Outcome], tmp_path: Path) -> None:
    other = {**PUBLISHED[0], "backbone": "vivit"}  # of another backbone than the sweep's
    some = {key: value for key, value in PUBLISHED[0].items() if key != "label_fraction"}  # of which fraction?
    for row in (other, some, {**PUBLISHED[2], "dataset": "elsewhere"}):
        summary = summarised(outcomes, published=[row])
        assert all(row.quoted is None for row in summary.rows)
        assert not any(group.comparators for group in summary.groups)
        assert "left out: 1." in " ".join(text_tables(summary)[0].notes)
    axes = {"dataset": ["simulated"], "initialisation": ["random", "video"], "backbone": ["a", "b"], "seed": [0]}
    summary = summarised(fabricate_sweep(tmp_path, axes), axes=axes, published=[{**PUBLISHED[0], "backbone": "b"}])
    assert [row.quoted is not None for row in summary.rows] == [False, False, True, False]


def test_a_value_is_the_same_as_a_number_or_as_text(outcomes: list[Outcome]) -> None:
    named = summarised(outcomes, published=[{**PUBLISHED[0], "label_fraction": "0.25"}])
    assert [row.quoted is not None for row in named.rows] == [True] + [False] * 7


def test_several_sources_are_marked_at_their_numbers(outcomes: list[Outcome]) -> None:
    rows = [PUBLISHED[0], {**PUBLISHED[1], "source": "another paper"}]
    table = tables_of(outcomes, published=rows)["results"]
    first, second = records(table)[:2]
    assert first["Accuracy (%): Published"] == "65.88 [a]"
    assert second["Accuracy (%): Published"] == "81.88 [b]"
    assert f"[a] {SOURCE}; [b] another paper." in " ".join(table.notes)


def test_differences_and_effort_have_a_row_per_comparison(outcomes: list[Outcome]) -> None:
    tables = tables_of(outcomes)
    differences, effort = records(tables["differences"]), records(tables["effort"])
    assert [row["Metric"] for row in differences] == ["Accuracy (%)"] * 4 + ["AUC"] * 4
    assert {row["Initialisation"] for row in differences + effort} == {"video"}
    assert differences[0]["Wins"] == "5/5"
    assert differences[0]["Sign flips: p"] == "0.0625"
    assert "0.0625" in tables["differences"].notes[1]
    assert [row["Published ratio"] for row in effort] == ["0.50", "", "", ""]
    assert all(re.fullmatch(r"\d/5", row["Reached"]) for row in effort)


def test_any_axes_make_a_table(tmp_path: Path) -> None:
    axes = {"lr": [0.001, 0.01], "augmentation": ["none", "strong"], "seed": [0, 1, 2]}
    outcomes = fabricate_sweep(tmp_path, axes, epochs=2)
    tables = tables_of(outcomes, axes=axes, compare=None, baseline=None, published=[])
    assert list(tables) == ["results"]
    rows = records(tables["results"])
    assert [(row["Lr"], row["Augmentation"]) for row in rows] == [
        ("0.001", "none"), ("0.001", "strong"), ("0.01", "none"), ("0.01", "strong"),
    ]  # fmt: skip
    compared = tables_of(outcomes, axes=axes, compare="augmentation", baseline="none", published=[])
    assert [row["Lr"] for row in records(compared["effort"])] == ["0.001", "0.01"]
    assert "augmentation none" in compared["differences"].caption
    turned = tables_of(
        outcomes, axes=axes, compare=None, baseline=None, published=[],
        layout={"rows": ["augmentation"], "columns": ["macro_f1"]},
    )  # fmt: skip
    assert [column.title for column in turned["results"].columns] == ["Augmentation", "Lr", "Seeds", "Ours"]
    assert turned["results"].columns[-1].group == "Macro F1"


def test_one_trial_alone_makes_a_table(tmp_path: Path) -> None:
    outcome = fabricate_trial(tmp_path / "run", {"dataset": "simulated"})
    table = tables_of([outcome], axes={}, compare=None, baseline=None, published=[])["results"]
    assert table.rows == (("1", "80.00", "0.9500"),)
    assert table.caption == "Table 1 (simulated)."


def test_markdown_tables_are_rectangular_and_leave_out_repetitions(outcomes: list[Outcome]) -> None:
    summary = summarised(outcomes)
    text = markdown_of(summary, text_tables(summary))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
    results = [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[0][2:]]
    assert [row[0] for row in results] == ["simulated", "", "", "", "", "real", "", "", ""]
    assert [row[1] for row in results] == ["25", "", "", "100", "", "25", "", "100", ""]


def test_latex_rows_have_the_cells_of_their_head_and_braces_close(outcomes: list[Outcome]) -> None:
    nasty = r"50 % of $x_1$ & {~^\} <#> [1] ± − é"
    changed = [replace(outcomes[0], state="failed", reason=nasty), *outcomes[1:]]
    summary = summarised(changed, title=nasty)
    text = latex_of(summary, text_tables(summary))
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 3
    assert r"\toprule" in text
    for table in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        form, *lines = table.strip().splitlines()
        width = len(re.sub(r"@\{\}|[{}]", "", form))
        for line in lines:
            if line.endswith(r"\\"):
                spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == width, line
    for character in re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", text, flags=re.DOTALL).split("% Needs", 1)[1]:
        assert character.isascii() or character == "é"


def test_every_special_character_of_latex_is_escaped() -> None:
    assert escape_latex("a_b & 5 % #1 {x} $ ~ ^") == (r"a\_b \& 5 \% \#1 \{x\} \$ \textasciitilde{} \textasciicircum{}")
    assert escape_latex("\\") == r"\textbackslash{}"
    assert escape_latex("−1 ± 2") == r"$-$1 $\pm$ 2"
    assert escape_latex("[5]") == "{[}5{]}"  # after a line break it would be its argument
