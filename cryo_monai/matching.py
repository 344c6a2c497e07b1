"""Two lists of the same particles, one of them known: labels from the truth, and how good a list is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError
from cryo_monai.locations import LocatedParticles
from cryo_monai.particles import BACKGROUND, UNKNOWN, Particles
from cryo_monai.tomogram_names import tomogram_name

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Pairs of particles of two lists that are the same particle.

    Attributes
    ----------
    truth_of : array
        `(n,)`, row of the true particle of each found one, or -1.
    near : array
        `(n,)`, whether any true particle lies within the distance, taken by another found one or not.
    """

    truth_of: npt.NDArray[np.int64]
    near: npt.NDArray[np.bool_]


def positions_of(particles: Particles | LocatedParticles) -> tuple[list[str], Array]:
    """Names of tomograms, as `tomogram_name` makes them, and positions `(n, 3)`, ``(z, y, x)`` in Å.

    Raises
    ------
    InputError
        When the list alone does not say how large its pixels are, or counts from the middle of tomograms.
    """
    if isinstance(particles, LocatedParticles):
        sizes = np.array([tomogram.voxel_size for tomogram in particles.tomograms], dtype=float)
        names = [particles.tomograms[number].name for number in particles.which]
        return names, particles.places * sizes[particles.which][:, None]
    source = particles.path or "particles"
    if particles.centred:
        raise InputError(f"{source}: counts from the middle of tomograms; give these with --tomograms")
    if not np.isfinite(particles.pixel_size).all():
        raise InputError(f"{source}: does not say how large its pixels are; give --pixel_size (Å) or --tomograms")
    names = [tomogram_name(name) for name in particles.tomograms]
    return names, particles.coordinates * particles.pixel_size[:, None]


def match_particles(
    found: Particles | LocatedParticles, truth: Particles | LocatedParticles, *, distance: float
) -> Matches:
    """Pair found with true particles, one to one, the nearest pairs first.

    Parameters
    ----------
    found, truth : Particles or LocatedParticles
        See `positions_of`.
    distance : float
        Å; farther apart they are not the same particle.

    Raises
    ------
    InputError
        When the lists have no tomogram in common, or see `positions_of`.
    """
    from scipy.spatial import cKDTree

    if not distance > 0:
        raise InputError(f"distance: {distance} must be positive (Å)")
    found_names, found_at = positions_of(found)
    true_names, true_at = positions_of(truth)
    common = set(found_names) & set(true_names)
    if not common:
        raise InputError(
            f"the lists have no tomogram in common ({sorted(set(found_names))[:3]}, {sorted(set(true_names))[:3]})"
        )
    truth_of = np.full(len(found_names), -1)
    near = np.zeros(len(found_names), dtype=bool)
    for name in sorted(common):
        rows = np.array([row for row, other in enumerate(found_names) if other == name])
        true_rows = np.array([row for row, other in enumerate(true_names) if other == name])
        apart = cKDTree(found_at[rows]).sparse_distance_matrix(
            cKDTree(true_at[true_rows]), distance, output_type="ndarray"
        )
        near[rows[np.unique(apart["i"])]] = True
        taken: set[int] = set()
        for pair in np.argsort(apart["v"], kind="stable"):
            row, true_row = rows[apart["i"][pair]], true_rows[apart["j"][pair]]
            if truth_of[row] < 0 and true_row not in taken:
                truth_of[row] = true_row
                taken.add(int(true_row))
    return Matches(truth_of, near)


def label_particles(
    found: Particles | LocatedParticles,
    truth: Particles | LocatedParticles,
    *,
    distance: float,
    fraction: float = 1.0,
    seed: int = 0,
) -> Particles:
    """Give a fraction of found particles the class of the true particle that they are.

    Parameters
    ----------
    found, truth : Particles or LocatedParticles
        The truth has class names.
    distance : float
        Å; see `match_particles`. What is nowhere near a true particle is of class ``background``. A second find of a
        particle gets no label.
    fraction : float
        Share of each class that is labelled, one at least; the others get no name.
    seed : int
        Which.

    Returns
    -------
    Particles
        The found ones, all of them.

    Raises
    ------
    InputError
        When the truth has no class names, an id to leave out is not there, or see `match_particles`.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: {fraction} must be above 0 and at most 1")
    known = _particles(truth)
    if not any(known.class_names):
        raise InputError(f"{known.path or 'truth'}: has no class names; name their column with --class_column")
    matches = match_particles(found, truth, distance=distance)
    names = np.array(["" if is_near else BACKGROUND for is_near in matches.near], dtype=object)
    paired = matches.truth_of >= 0
    names[paired] = [known.class_names[row] for row in matches.truth_of[paired]]
    rng = np.random.default_rng(seed)
    labelled = np.full(len(names), "", dtype=object)
    for name in sorted(set(names) - {""}):
        rows = np.flatnonzero(names == name)
        chosen = rng.permutation(rows)[: max(1, round(fraction * len(rows)))]
        labelled[chosen] = name
    return replace(_particles(found), class_names=[str(name) for name in labelled])


def score_particles(
    found: Particles | LocatedParticles,
    truth: Particles | LocatedParticles,
    *,
    distance: float,
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """Compare classified particles with the truth.

    Parameters
    ----------
    found, truth : Particles or LocatedParticles
        The truth has class names; found particles without are "unknown".
    distance : float
        Å; see `match_particles`.
    leave_out : collection of str
        Ids of found particles that do not count, such as those a network was trained on, and the true particles that
        they are do not either.

    Returns
    -------
    dict
        ``classes``: for each class of the truth ``true``, ``found`` (called so), ``correct``, ``precision``, ``recall``
        and ``f1`` (None where undefined); ``macro_f1``; ``picking``: ``true`` particles, ``particles`` in the
        list, ``paired`` ones, ``precision`` and ``recall`` whatever their class; ``accuracy`` of the class among paired
        ones, those called unknown included; ``confusion``: true class to class found to count, with ``not found`` and
        ``no particle``.

    Raises
    ------
    InputError
        When the truth has no class names, or see `match_particles`.
    """
    guesses, known = _particles(found), _particles(truth)
    if not any(known.class_names):
        raise InputError(f"{known.path or 'truth'}: has no class names; name their column with --class_column")
    strangers = set(leave_out) - set(guesses.ids)
    if strangers:
        raise InputError(
            f"{guesses.path or 'particles'}: has no particle {min(strangers)!r} to leave out, nor {len(strangers) - 1} "
            "others; is the list of those to leave out one of these particles?"
        )
    matches = match_particles(found, truth, distance=distance)
    out = np.isin(np.asarray(guesses.ids, dtype=object), list(leave_out))
    dropped = set(matches.truth_of[out & (matches.truth_of >= 0)].tolist())
    pairs = [(row, int(true_row)) for row, true_row in enumerate(matches.truth_of) if not out[row]]
    confusion: Counter[tuple[str, str]] = Counter(
        (known.class_names[true_row] if true_row >= 0 else "no particle", guesses.class_names[row] or UNKNOWN)
        for row, true_row in pairs
    )
    paired = {true_row for _, true_row in pairs if true_row >= 0}
    missed = [row for row in range(len(known)) if row not in paired and row not in dropped]
    confusion.update((known.class_names[row], "not found") for row in missed)
    classes = sorted(set(known.class_names) - {""})
    rows = {name: _rates(confusion, name) for name in classes}
    correct = sum(row["correct"] for row in rows.values())
    total = len(paired) + len(missed)
    return {
        "classes": rows,
        "macro_f1": float(np.mean([row["f1"] or 0.0 for row in rows.values()])),
        "picking": {
            "true": total,
            "particles": len(pairs),
            "paired": len(paired),
            "precision": _share(len(paired), len(pairs)),
            "recall": _share(len(paired), total),
        },
        "accuracy": _share(correct, len(paired)),
        "left_out": int(out.sum()),
        "confusion": _nested(confusion),
    }


def _particles(particles: Particles | LocatedParticles) -> Particles:
    return particles.particles if isinstance(particles, LocatedParticles) else particles


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rates(confusion: Counter[tuple[str, str]], name: str) -> dict[str, Any]:
    true = sum(count for (of, _), count in confusion.items() if of == name)
    found = sum(count for (_, called), count in confusion.items() if called == name)
    correct = confusion[name, name]
    return {
        "true": true,
        "found": found,
        "correct": correct,
        "precision": _share(correct, found),
        "recall": _share(correct, true),
        "f1": _share(2 * correct, true + found),
    }


def _nested(confusion: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (of, called), count in sorted(confusion.items()):
        nested.setdefault(of, {})[called] = count
    return nested


def score_text(score: dict[str, Any]) -> str:
    """Show a score of `score_particles` as a table; of picks without classes, only how many are found."""

    def shown(value: float | None) -> str:
        return "    -" if value is None else f"{value:5.3f}"

    classified = any(row["found"] for row in score["classes"].values())
    width = max(len("class"), *(len(name) for name in score["classes"]))
    lines = [f"{'class':{width}}   true  found correct precision recall    F1"] if classified else []
    for name, row in score["classes"].items() if classified else ():
        rates = f"{shown(row['precision']):>9} {shown(row['recall']):>6} {shown(row['f1']):>5}"
        lines.append(f"{name:{width}} {row['true']:6d} {row['found']:6d} {row['correct']:7d} {rates}")
    picking = score["picking"]
    lines.append(
        f"picking: {picking['paired']} of {picking['true']} particles found (recall {shown(picking['recall'])}), "
        f"by {picking['particles']} picks (precision {shown(picking['precision'])})"
    )
    if classified:
        left = f"; {score['left_out']} left out" if score["left_out"] else ""
        lines.append(f"class right for {shown(score['accuracy'])} of these; macro F1 {score['macro_f1']:.3f}{left}")
    return "\n".join(lines)
