"""The page of a search: what was found, and how values depend on each id, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryo_monai.files import atomic_write_text
from cryo_monai.reports.page_figures import page_figure
from cryo_monai.reports.pages import decimals, render
from cryo_monai.reports.search_figures import progress_figure, slices_figure
from cryo_monai.searches.cell_searches import CellSearch
from cryo_monai.searches.files import best_names, finding, settings_text
from cryo_monai.searches.proposals import Proposal, best_of
from cryo_monai.sweeps.outcomes import named

PAGE = "search.html"
NOTE = (
    "Every value is of the validation split, at the epoch whose weights are kept; the test split had no say. The best "
    "of many validation values is a little too good to be true: compare methods by the test split, in sweep.html."
)
HOW_PROGRESS = (
    "How to read this: a line that has been level for long says that more proposals would find little. Those that were "
    "stopped early stand at the value that they had then."
)
HOW_SLICES = (
    "How to read this: where high and low values lie side by side the id matters little; where the best crowd at one "
    "end, the range should go on there."
)


def write_search_page(searches: Sequence[CellSearch], sweep: Mapping[str, Any], output_dir: Path) -> Path:
    """Write ``search.html``, whatever of the searches is done.

    The page needs no network and no other file. The same journals give the same bytes.

    Parameters
    ----------
    searches : sequence of CellSearch
        All of the sweep.
    sweep : mapping
        The sweep's JSON.
    output_dir : Path
        Folder of the sweep.
    """
    sections = [
        _section(number, search, name)
        for number, (search, name) in enumerate(zip(searches, best_names(searches), strict=True))
    ]
    page = render(
        "search.html.jinja",
        title=f"Search: {sweep.get('title', 'sweep')}",
        description=sweep.get("_desc_", ""),
        note=NOTE,
        contents=[("best", "Best of each"), *((section["id"], section["name"]) for section in sections)],
        best=_best_table(searches),
        sections=sections,
    )
    atomic_write_text(output_dir / PAGE, page)
    return output_dir / PAGE


def _best_table(searches: Sequence[CellSearch]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for search in searches for name in search.search.space))
    columns = [{"title": "Cell", "number": False}, {"title": searches[0].search.metric, "number": True}]
    columns += [{"title": name, "number": False} for name in names]
    columns.append({"title": "Proposals", "number": True})
    rows = []
    for search in searches:
        proposals = search.proposals()
        best = best_of(proposals, search.search)
        ids = [settings_text({"": best.ids[name]}).strip() if best else "–" for name in names]
        value = decimals(best.value, 4) if best else "–"
        ended = sum(proposal.state != "running" for proposal in proposals)
        rows.append([named(search.cell) or "all", value, *ids, f"{ended} of {search.number}"])
    return {"columns": columns, "rows": rows}


def _section(number: int, search: CellSearch, file: str) -> dict[str, Any]:
    proposals = search.proposals()
    about = named(search.cell) or "search"
    of_cell = f": {named(search.cell)}" if search.cell else ""
    figures = []
    if any(proposal.value is not None for proposal in proposals):
        progress = progress_figure(proposals, search.search, label=f"Values of the proposals, {about}")
        slices = slices_figure(proposals, search.search, label=f"Values over each id, {about}")
        figures = [
            page_figure(
                "progress", progress, title=f"Values as found{of_cell}", alt=finding(search), how=HOW_PROGRESS
            ).shown,
            page_figure(
                "slices", slices, title=f"Values over each id{of_cell}", alt=finding(search), how=HOW_SLICES
            ).shown,
        ]
    return {
        "id": f"search-{number + 1}",
        "name": about,
        "finding": finding(search),
        "overlay": f"best/{file}.json" if best_of(proposals, search.search) else "",
        "figures": figures,
        "columns": _columns(search),
        "rows": [_row(search, proposal) for proposal in proposals],
    }


def _columns(search: CellSearch) -> list[dict[str, Any]]:
    titles = ["Proposal", *search.search.space, search.search.metric, "Epochs", "Minutes", "State"]
    return [{"title": title, "number": title not in ("State", *search.search.space)} for title in titles]


def _row(search: CellSearch, proposal: Proposal) -> list[Any]:
    ids = [
        {"text": settings_text({"": value}).strip(), "value": value if isinstance(value, (int, float)) else str(value)}
        for value in (proposal.ids[name] for name in search.search.space)
    ]
    state = {"pruned": "stopped early", "complete": "done"}.get(proposal.state, proposal.state)
    return [
        {"text": str(proposal.number + 1), "value": proposal.number},
        *ids,
        {"text": decimals(proposal.value, 4), "value": proposal.value},
        {"text": str(proposal.epochs or "–"), "value": proposal.epochs},
        {"text": f"{proposal.seconds / 60:.1f}" if proposal.seconds else "–", "value": proposal.seconds},
        f"{state}: {proposal.reason}" if proposal.reason else state,
    ]
