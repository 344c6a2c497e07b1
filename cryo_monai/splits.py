"""Training, validation and test out of one list: every class in the same fractions, or whole tomograms at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import DatasetError, InputError

SPLITS = ("training", "validation", "test")
SPLIT_BY = ("volume", "source")
Item = dict[str, Any]

# Up to here every assignment of sources to splits is tried (3^11 = 177147); above, the best of some descents is taken.
MAX_ENUMERATED = 11


def split_items(
    items: Sequence[Item],
    class_names: Sequence[str],
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    *,
    split_by: str = "volume",
    place: str = "data set",
) -> dict[str, list[Item]]:
    """Split items by volume (see `stratified_split`) or by source (see `grouped_split`)."""
    if split_by not in SPLIT_BY:
        raise InputError(f"split_by: {split_by!r} is not one of {', '.join(SPLIT_BY)}")
    if split_by == "source":
        return grouped_split(items, class_names, split, seed, place=place)
    return stratified_split(items, class_names, split, seed, source=place)


def stratified_split(
    items: Sequence[Item],
    class_names: Sequence[str],
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    *,
    source: str = "data set",
) -> dict[str, list[Item]]:
    """Split items into training, validation and test with the same fractions in every class.

    Parameters
    ----------
    items : sequence of dict
        With integer ``label`` and ``path``; the split depends on the set of paths, not on their order.
    class_names : sequence of str
        Names by label.
    split : sequence of float
        Three positive fractions; they are normalised to sum to one.
    seed : int
        Same seed, same split.
    source : str
        What to call the data in messages.

    Raises
    ------
    InputError, DatasetError
        For fractions that are not three positive numbers, or classes of fewer than three members.
    """
    fractions = _fractions(split)
    lists: dict[str, list[Item]] = {name: [] for name in SPLITS}
    problems = []
    for label, class_name in enumerate(class_names):
        members = sorted((i for i in items if i["label"] == label), key=lambda i: str(i["path"]))
        if len(members) < 3:
            problems.append(
                f"{class_name}: {len(members)} volumes are too few for training, validation and test (3 at least)"
            )
            continue
        order = np.random.default_rng([seed, label]).permutation(len(members))
        held_out = np.maximum(1, np.round(fractions[1:] * len(members)).astype(int))
        held_out = np.minimum(held_out, (len(members) - 1) // 2)
        train = len(members) - int(held_out.sum())
        bounds = np.cumsum([0, train, *held_out])
        for name, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
            lists[name] += [members[n] for n in order[start:stop]]
    if problems:
        raise DatasetError(source, problems)
    return lists


def grouped_split(
    items: Sequence[Item],
    class_names: Sequence[str],
    split: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    *,
    place: str = "data set",
) -> dict[str, list[Item]]:
    """Split items so that all of a source (a tomogram) go to one split, and every class is in every split.

    Among the splits that do so, one is taken whose fractions, class by class, are nearest to those asked for in the
    sense of least squares: the best of all for up to 11 sources, the best that was found for more.

    Parameters
    ----------
    items : sequence of dict
        With integer ``label``, ``path`` and ``source``; the split does not depend on their order.
    class_names : sequence of str
        Names by label.
    split : sequence of float
        Three positive fractions; they are normalised to sum to one.
    seed : int
        Same seed, same split; it chooses among splits that are equally good.
    place : str
        What to call the data in messages.

    Raises
    ------
    InputError, DatasetError
        For fractions that are not three positive numbers; naming volumes without a source, each class that occurs in
        fewer than three sources, and with which; or when no assignment of the sources puts every class in every split.
    """
    fractions = _fractions(split)
    problems = _source_problems(items, class_names)
    if problems:
        raise DatasetError(place, problems)
    sources = sorted({str(item["source"]) for item in items})
    number = {source: n for n, source in enumerate(sources)}
    table = np.zeros((len(sources), len(class_names)))
    for item in items:
        table[number[str(item["source"])], item["label"]] += 1
    order = np.random.default_rng([seed, len(sources)]).permutation(len(sources))
    assigned = _assign(table[order], fractions, seed)
    if assigned is None:
        raise DatasetError(
            place,
            [
                f"no assignment of the {len(sources)} sources to training, validation and test has every class in "
                "each; split by volume, or give more sources of the rarest classes"
            ],
        )
    split_of = dict(zip((sources[n] for n in order), assigned, strict=True))
    ordered = sorted(items, key=lambda item: (item["label"], str(item["path"])))
    return {name: [i for i in ordered if split_of[str(i["source"])] == n] for n, name in enumerate(SPLITS)}


def _fractions(split: Sequence[float]) -> npt.NDArray[np.float64]:
    if len(split) != 3 or min(split) <= 0:
        raise InputError(f"split: {list(split)} must be three positive fractions")
    return np.asarray(split, dtype=float) / sum(split)


def _source_problems(items: Sequence[Item], class_names: Sequence[str]) -> list[str]:
    """Say which volumes have no source, and which classes have too few sources for three splits."""
    unknown = [str(item["path"]) for item in items if not item.get("source")]
    if unknown:
        return [
            f"{len(unknown)} of {len(items)} volumes have no 'source' ({unknown[0]}); a split by source needs the "
            "tomogram of each"
        ]
    problems = []
    for label, class_name in enumerate(class_names):
        members = [str(item["source"]) for item in items if item["label"] == label]
        sources = sorted(set(members))
        if len(sources) < 3:
            problems.append(
                f"{class_name}: {len(members)} volumes from {len(sources)} source(s) ({', '.join(sources) or 'none'}); "
                "training, validation and test need one each: split by volume, or give more sources"
            )
    return problems


def _assign(table: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64], seed: int) -> list[int] | None:
    """Return the split of each source of a table of counts `(sources, classes)`, or None when there is no solution."""
    if len(table) <= MAX_ENUMERATED:
        best = _best_of_all(table, fractions)
        return [int(n) for n in best] if _missing(table, best) == 0 else None
    rng = np.random.default_rng([seed, 1])
    descents = 10 + 3000 // len(table)
    found = [_descend(table, fractions, _start(table, fractions, rng)) for _ in range(descents)]
    best = min(found, key=lambda assigned: (_missing(table, assigned), _distance(table, fractions, assigned)))
    if _missing(table, best):
        complete = _any_complete(table)
        if complete is None:
            return None
        best = _descend(table, fractions, complete)
    return [int(n) for n in best]


def _by_split(table: npt.NDArray[np.float64], assigned: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Count the members of each class in each split, `(3, classes)`."""
    return np.stack([table[assigned == n].sum(axis=0) for n in range(3)])


def _missing(table: npt.NDArray[np.float64], assigned: npt.NDArray[np.intp]) -> int:
    """Count classes absent from a split."""
    return int((_by_split(table, assigned) == 0).sum())


def _distance(
    table: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64], assigned: npt.NDArray[np.intp]
) -> float:
    """Sum the squares of the deviations from the wanted fractions, over classes and splits."""
    shares = _by_split(table, assigned) / table.sum(axis=0)
    return float(((shares - fractions[:, None]) ** 2).sum())


def _best_of_all(table: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Try every assignment; among equals the first is taken."""
    every = np.indices((3,) * len(table)).reshape(len(table), -1)
    shares = table / table.sum(axis=0)
    cost = np.zeros(every.shape[1])
    for n, fraction in enumerate(fractions):
        in_split = (every == n).T @ shares
        # A class missing costs more than any deviation: those of a class sum to less than 2.
        cost += ((in_split - fraction) ** 2).sum(axis=1) + 2 * table.shape[1] * (in_split == 0).sum(axis=1)
    return np.asarray(every[:, np.argmin(np.round(cost, 12))])


def _start(
    table: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Give one source after another, large ones first, to the split that lacks its classes most."""
    shares = table / table.sum(axis=0)
    assigned = np.zeros(len(table), dtype=np.intp)
    lacking = np.repeat(fractions[:, None], table.shape[1], axis=1)
    for source in np.argsort(-shares.sum(axis=1) * rng.uniform(0.5, 1.5, len(table))):
        # What is left of the squares when the source goes there, relative to the size of the split.
        gain = ((lacking - shares[source]).clip(min=0) ** 2 - lacking.clip(min=0) ** 2).sum(axis=1) / fractions
        assigned[source] = np.argmin(gain)
        lacking[assigned[source]] -= shares[source]
    return assigned


def _descend(
    table: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64], assigned: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """Move the source whose move helps most, until none does."""
    shares, assigned, sources = table / table.sum(axis=0), assigned.copy(), np.arange(len(table))
    squares, present = (shares**2).sum(axis=1), table > 0
    while True:
        counts = _by_split(table, assigned)
        excess = counts / table.sum(axis=0) - fractions[:, None]
        product = shares @ excess.T
        change = 2 * (product - product[sources, assigned][:, None] + squares[:, None])
        emptied = (present & (counts[assigned] == table)).sum(axis=1)
        filled = present @ (counts == 0).T
        change += 2 * table.shape[1] * (emptied[:, None] - filled.astype(float))
        change[sources, assigned] = 0
        source, target = np.unravel_index(np.argmin(change), change.shape)
        if change[source, target] > -1e-12:
            return assigned
        assigned[source] = target


def _any_complete(table: npt.NDArray[np.float64]) -> npt.NDArray[np.intp] | None:
    """Find an assignment with every class in every split by integer programming, or None when there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    sources, classes = table.shape
    once = np.kron(np.eye(sources), np.ones(3))
    every = np.kron((table.T > 0).astype(float), np.eye(3))
    result = milp(
        np.zeros(3 * sources),
        integrality=np.ones(3 * sources),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(every, np.ones(3 * classes))],
    )
    return None if result.x is None else np.asarray(result.x.reshape(sources, 3).argmax(axis=1))
