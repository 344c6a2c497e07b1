"""How well features tell classes apart, in numbers: what a projection to a plane cannot show reliably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]

NEIGHBOURS = 5
FOLDS = 5
# Repeats make the spread of few volumes less a matter of luck; many volumes need none.
REPEATS, MAX_REPEATED = 3, 1000
# Distances and probes of more take minutes; a stratified part of them says the same.
MAX_VOLUMES = 3000


@dataclass(frozen=True)
class Separability:
    """Three measures, each with its standard deviation over the same held-out folds."""

    silhouette: float | None
    """-1 to 1; 0 where classes overlap."""
    silhouette_spread: float | None
    neighbour_accuracy: float | None
    """Of the 5 nearest neighbours."""
    neighbour_spread: float | None
    probe_accuracy: float | None
    """Of a linear classifier."""
    probe_spread: float | None
    chance: float | None
    """Share of the most frequent class."""
    num_volumes: int
    """That were measured."""
    num_folds: int
    """Over which the spread is taken: five, times the repeats."""
    num_left_out: int = 0
    """Volumes of classes with fewer volumes than there are folds."""
    num_classes_left_out: int = 0
    """Such classes."""


def measure_separability(features: Floats, labels: Labels, *, seed: int = 0) -> Separability:
    """Measure how far the classes are apart in the space of features.

    Each feature is brought to mean 0 and variance 1 first: of the training part of a fold for the two classifiers. The
    silhouette (Rousseeuw 1987, Journal of Computational and Applied Mathematics 20:53) compares the Euclidean
    distances of a volume to its own class and to the nearest other; its spread is that of the means over the folds.
    Accuracies are those of held-out volumes in a stratified five-fold cross-validation, thrice repeated up to a
    thousand volumes: of the five nearest neighbours, and of logistic regression with scikit-learn's usual penalty, the
    linear probe of Alain & Bengio 2016 (arXiv:1610.01644).

    Parameters
    ----------
    features : array
        `(n, F)`.
    labels : array
        `(n,)`; volumes with labels below 0, and classes of fewer than five volumes, are left out: such a class would
        be missing in folds.
    seed : int
        Of the folds, and of the stratified part that is taken of more than 3000 volumes.

    Returns
    -------
    Separability
        All measures None when there are not two classes of five volumes.

    Raises
    ------
    InputError
        When shapes do not fit, or features are not finite.
    """
    values: Floats = np.asarray(features, dtype=np.float64)
    truth = np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise InputError(f"separability: features {values.shape} and labels {truth.shape} do not fit")
    if not np.isfinite(values).all():
        raise InputError("separability: features are not finite")
    counts = np.bincount(truth[truth >= 0], minlength=1)
    few = (counts > 0) & (counts < FOLDS)
    left_out = int(counts[few].sum()), int(few.sum())
    kept = (truth >= 0) & ~few[truth]
    values, truth = values[kept], truth[kept]
    if len(np.unique(truth)) < 2:
        return Separability(None, None, None, None, None, None, None, len(truth), 0, *left_out)
    values, truth = _part(values, truth, seed)
    folds = _folds(values, truth, seed)
    silhouettes = _silhouettes(values, truth)
    by_fold = [float(silhouettes[test].mean()) for _, test in folds]
    scores = _held_out_accuracies(values, truth, folds)
    return Separability(
        float(silhouettes.mean()),
        _spread(by_fold),
        float(np.mean(scores[0])),
        _spread(scores[0]),
        float(np.mean(scores[1])),
        _spread(scores[1]),
        float(np.bincount(truth).max() / len(truth)),
        len(truth),
        len(folds),
        *left_out,
    )


def _part(values: Floats, labels: Labels, seed: int) -> tuple[Floats, Labels]:
    """Take a stratified part of what is too much."""
    if len(labels) <= MAX_VOLUMES:
        return values, labels
    rng = np.random.default_rng(seed)
    share = MAX_VOLUMES / len(labels)
    rows = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rows.append(rng.permutation(of_class)[: max(FOLDS, round(share * len(of_class)))])
    chosen = np.sort(np.concatenate(rows))
    return values[chosen], labels[chosen]


def _folds(values: Floats, labels: Labels, seed: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    from sklearn.model_selection import RepeatedStratifiedKFold

    repeats = REPEATS if len(labels) <= MAX_REPEATED else 1
    folds = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=seed)
    return list(folds.split(values, labels))


def _silhouettes(values: Floats, labels: Labels) -> npt.NDArray[np.float64]:
    from sklearn.metrics import silhouette_samples
    from sklearn.preprocessing import StandardScaler

    # Float32 halves the memory of the distances and keeps seven digits.
    scaled = StandardScaler().fit_transform(values).astype(np.float32)
    return np.asarray(silhouette_samples(scaled, labels), dtype=np.float64)


def _held_out_accuracies(values: Floats, labels: Labels, folds: list[Any]) -> tuple[list[float], list[float]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    neighbours: list[float] = []
    probes: list[float] = []
    for train, test in folds:
        nearest = KNeighborsClassifier(min(NEIGHBOURS, len(train)))
        linear = LogisticRegression(max_iter=5000, tol=1e-3)
        for classifier, scores in ((nearest, neighbours), (linear, probes)):
            model = make_pipeline(StandardScaler(), classifier).fit(values[train], labels[train])
            scores.append(float(model.score(values[test], labels[test])))
    return neighbours, probes


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1))
