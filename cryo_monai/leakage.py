"""Whether a class can be told by its tomogram: the table of classes and sources, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.splits import SPLITS, Item, grouped_split

# Ours: the association of class and source from which the audit warns.
STRONG_ASSOCIATION = 0.5


@dataclass(frozen=True)
class SourceAudit:
    """What is known of the sources (tomograms) of a data set.

    Attributes
    ----------
    sources : list of str
        Names, sorted.
    table : list of list of int
        Volumes by class and source.
    association : float or None
        See `cramers_v`.
    single : dict
        Classes all of whose volumes come from one source, and that source.
    divided : list of str
        Sources with volumes in more than one split.
    unknown : int
        Volumes that name no source.
    grouped : dict or None
        Volumes by split and class of a split by source, where there is one.
    obstacles : list of str
        Why there is none.
    """

    sources: list[str]
    table: list[list[int]]
    association: float | None
    single: dict[str, str]
    divided: list[str]
    unknown: int
    grouped: dict[str, dict[str, int]] | None
    obstacles: list[str]

    def warnings(self) -> list[str]:
        """Say, one line each, what speaks against trusting a score on these data."""
        lines = []
        if self.sources and self.unknown:
            lines.append(f"{self.unknown} volumes name no source")
        if self.single:
            named = ", ".join(f"{name} ({source})" for name, source in self.single.items())
            lines.append(f"classes of one source each, so that class and acquisition cannot be told apart: {named}")
        if self.association is not None and self.association >= STRONG_ASSOCIATION:
            lines.append(
                f"class and source go together (Cramér's V {self.association:.2f} of 1): accuracy may be recognition "
                "of the tomogram; compare with the background-only control"
            )
        return lines


def cramers_v(table: npt.ArrayLike) -> float | None:
    """Association of the rows and columns of a table of counts, from 0 (independent) to 1 (one tells the other).

    Cramér's V with the bias correction of Bergsma 2013 (doi 10.1016/j.jkss.2012.10.002), without which many small
    sources look associated with everything. None when fewer than two rows or columns are used, or too few counts.
    """
    counts = np.asarray(table, dtype=float)
    if counts.size == 0:
        return None
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    rows, columns = counts.shape
    total = counts.sum()
    if min(rows, columns) < 2 or total <= max(rows, columns):
        return None
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / total
    phi = float(((counts - expected) ** 2 / expected).sum() / total)
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (total - 1))
    largest = min(n - 1 - (n - 1) ** 2 / (total - 1) for n in (rows, columns))
    return min(1.0, float(np.sqrt(phi / largest)))


def audit_sources(
    lists: Mapping[str, Sequence[Item]],
    class_names: Sequence[str],
    *,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> SourceAudit:
    """Tabulate classes and sources, and try a split by source.

    Parameters
    ----------
    lists : mapping
        Items by split, with labels that are right; ``""`` holds items without a split.
    class_names : sequence of str
        Names by label.
    split : sequence of float
        Fractions of the split that is tried.
    seed : int
        Seed of that split.
    """
    every = [item for items in lists.values() for item in items]
    known = [item for item in every if item.get("source")]
    sources = sorted({str(item["source"]) for item in known})
    number = {source: n for n, source in enumerate(sources)}
    table = np.zeros((len(class_names), len(sources)), dtype=int)
    for item in known:
        table[item["label"], number[str(item["source"])]] += 1
    single = {
        name: sources[int(row.argmax())] for name, row in zip(class_names, table, strict=True) if (row > 0).sum() == 1
    }
    grouped, obstacles = _grouped(every, class_names, split, seed) if known else (None, [])
    return SourceAudit(
        sources=sources,
        table=table.tolist(),
        association=cramers_v(table),
        single=single if len(class_names) > 1 else {},
        divided=_divided(lists),
        unknown=len(every) - len(known),
        grouped=grouped,
        obstacles=obstacles,
    )


def _divided(lists: Mapping[str, Sequence[Item]]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for name, items in lists.items():
        for item in items:
            if item.get("source"):
                splits.setdefault(str(item["source"]), set()).add(name)
    return sorted(source for source, names in splits.items() if len(names) > 1)


def _grouped(
    items: Sequence[Item], class_names: Sequence[str], split: Sequence[float], seed: int
) -> tuple[dict[str, dict[str, int]] | None, list[str]]:
    """Return the counts of a split by source by split and class, or the reasons why there is none."""
    try:
        lists = grouped_split(items, class_names, split, seed)
    except InputError as error:
        return None, error.problems if isinstance(error, DatasetError) else [str(error)]
    return {
        name: {c: sum(item["label"] == n for item in lists[name]) for n, c in enumerate(class_names)} for name in SPLITS
    }, []
