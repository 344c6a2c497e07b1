"""Whether probabilities can be taken at their word: temperature scaling, reliability, calibration error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

# Of Guo et al. 2017 (arXiv:1706.04599), section 2.
BINS = 15
# Below any probability that float32 has, so that logarithms are finite.
_TINY = 1e-45
_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """Find the temperature that makes probabilities fit the labels best.

    Scores are divided by it before the softmax, which changes no prediction (Guo et al. 2017, arXiv:1706.04599, section
    4.2). The sum of negative log-likelihoods is minimised together with ``log(temperature)^2 / 2``: a prior that
    weighs as much as about one volume, and keeps the temperature finite when every validation volume is right.

    Parameters
    ----------
    probabilities : array
        `(n, num_classes)`, at temperature 1.
    labels : array
        `(n,)`.

    Returns
    -------
    float
        Between 0.05 and 20; above 1 for networks that are too sure of themselves. 1 when probabilities are not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if not np.isfinite(probabilities).all():
        return 1.0
    logs = np.log(np.maximum(probabilities, _TINY))
    true = logs[np.arange(len(labels)), labels]

    def cost(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((logsumexp(scale * logs, axis=1) - scale * true).sum()) + log_temperature**2 / 2

    found = minimize_scalar(cost, bounds=(math.log(_LOWEST), math.log(_HIGHEST)), method="bounded")
    return math.exp(found.x)


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return probabilities `(n, num_classes)` with the scores behind them divided by a temperature."""
    from scipy.special import softmax

    return np.asarray(softmax(np.log(np.maximum(probabilities, _TINY)) / temperature, axis=1))


def calibration_metrics(probabilities: Floats, labels: Labels) -> dict[str, Any]:
    """Compare probabilities with what happened.

    Parameters
    ----------
    probabilities : array
        `(n, num_classes)`.
    labels : array
        `(n,)`.

    Returns
    -------
    dict
        ``ece`` (expected calibration error of the predicted class, 15 equal bins; Guo et al. 2017), ``brier`` (squared
        distance from the one-hot label, 0 to 2; Brier 1950), ``nll`` (mean negative log-likelihood), and ``bins``, each
        with ``lower``, ``upper``, ``count``, and the mean ``confidence`` and ``accuracy`` (None where there is none).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    # Bins are open below and closed above, as in the paper.
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(which, minlength=BINS)
    sums = [np.bincount(which, weights=values, minlength=BINS) for values in (confidence, right)]
    true = probabilities[np.arange(len(labels)), labels]
    brier = (probabilities**2).sum(axis=1) - 2 * true + 1
    bins = [
        {
            "lower": n / BINS,
            "upper": (n + 1) / BINS,
            "count": int(count[n]),
            "confidence": float(sums[0][n] / count[n]) if count[n] else None,
            "accuracy": float(sums[1][n] / count[n]) if count[n] else None,
        }
        for n in range(BINS)
    ]
    return {
        "ece": float(np.abs(sums[0] - sums[1]).sum() / len(labels)),
        "brier": float(brier.mean()),
        "nll": float(-np.log(np.maximum(true, _TINY)).mean()),
        "bins": bins,
    }
