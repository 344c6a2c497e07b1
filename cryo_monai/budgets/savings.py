"""How many times the labels of another network a network needs, from trials that are paired by seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cryo_monai.budgets.learning_curves import Evidence, LearningCurve, log_normal, resample
from cryo_monai.budgets.trials import SAME_SIZE, Floats, Indices, log_odds

Booleans = npt.NDArray[np.bool_]

# Correlations between the scores of two networks with the same seed and labels; before data are seen, all as likely.
_ALIKE = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
_ROUNDS = 10


def pair_draws(first: LearningCurve, second: LearningCurve, *, seed: int = 0) -> tuple[Indices, Indices]:
    """Choose which draws of two curves go together.

    Trials of one seed have the same split and the same labelled volumes for every initialisation. What these do to both
    networks does not change how they compare. So pairs of curves are weighted by how much likelier all trials are
    together than each network's apart, with a correlation that is averaged over.

    Parameters
    ----------
    first, second : LearningCurve
        With as many draws.
    seed : int
        Of the drawing.

    Returns
    -------
    tuple of array
        Rows `(draws,)` of the first and of the second.
    """
    rng = np.random.default_rng(seed)
    draws = len(first.first)
    rows = [np.concatenate([rng.permutation(draws) for _ in range(_ROUNDS)]) for _ in range(2)]
    evidence = [Evidence(curve.trials, curve.groups) for curve in (first, second)]
    same_seed, same_size = _pairs(first, second)
    if not (same_seed & same_size).any():
        return rows[0][:draws], rows[1][:draws]
    odds = np.hstack([_odds(curve)[row] for curve, row in zip((first, second), rows, strict=True)])
    member = _beside(evidence[0].member, evidence[1].member)
    values = np.concatenate([each.values for each in evidence])
    deviation = np.concatenate(
        [np.sqrt(np.median(curve.spread) ** 2 + each.binomial)
         for curve, each in zip((first, second), evidence, strict=True)]
    )  # fmt: skip
    shared = (first.shared + second.shared) / 2
    within = np.eye(len(values)) + shared * _beside(*(each.same_seed.astype(np.float64) for each in evidence))
    across = same_seed * np.where(same_size, 1.0, shared)
    blank = [np.zeros((len(across),) * 2), np.zeros((across.shape[1],) * 2)]
    across = np.block([[blank[0], across], [across.T, blank[1]]])
    scale = deviation[:, None] * deviation
    logs = np.stack([log_normal(odds, values, member, (within + alike * across) * scale) for alike in _ALIKE])
    gain = np.exp(logs - logs[0] - (logs - logs[0]).max()).mean(axis=0)
    chosen = resample(gain / gain.sum(), draws, rng)
    return rows[0][chosen], rows[1][chosen]


def label_ratios(
    first: LearningCurve, second: LearningCurve, *, score: float | None = None, seed: int = 0
) -> tuple[Floats, Floats]:
    """Draw how many times the labels of the second network the first needs for a score.

    Parameters
    ----------
    first, second : LearningCurve
        Of two networks on the same data.
    score : float, optional
        By default what the second reaches with all the labels that it was tried with.
    seed : int
        Of the drawing.

    Returns
    -------
    tuple of array
        Labels of the first and of the second `(draws,)`; infinite where the score is never reached.
    """
    rows = pair_draws(first, second, seed=seed)
    wanted = second.scores_at(second.sizes.labels[-1:])[rows[1], 0] if score is None else np.full(len(rows[0]), score)
    labels = [curve.select(row).labels_for(wanted) for curve, row in zip((first, second), rows, strict=True)]
    return labels[0], labels[1]


def _odds(curve: LearningCurve) -> Floats:
    return log_odds(1 - curve.scores_at(curve.sizes.labels))


def _pairs(first: LearningCurve, second: LearningCurve) -> tuple[Booleans, Booleans]:
    """Tell which trials `(n, m)` of two networks have the same seed, and which the same size."""
    seeds = [np.array(curve.trials.seeds) for curve in (first, second)]
    sizes = [curve.sizes.labels[curve.groups] for curve in (first, second)]
    apart = np.abs(np.log(sizes[0][:, None] / sizes[1]))
    return seeds[0][:, None] == seeds[1], apart < np.log(SAME_SIZE)


def _beside(one: Floats, other: Floats) -> Floats:
    """Put two matrices on the diagonal of a larger one."""
    found = np.zeros((one.shape[0] + other.shape[0], one.shape[1] + other.shape[1]))
    found[: one.shape[0], : one.shape[1]] = one
    found[one.shape[0] :, one.shape[1] :] = other
    return found
