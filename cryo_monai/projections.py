"""Features of many dimensions as points of a plane, to be looked at; what they are worth `separability` measures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryo_monai.errors import InputError

Features = npt.NDArray[np.floating[Any]]
METHODS = ("pca", "tsne", "umap")
MIN_VOLUMES = 4
# Principal components that t-SNE and UMAP start from: van der Maaten & Hinton 2008 (JMLR 9:2579), section 4.2, take 30;
# scikit-learn's TSNE recommends 50.
MAX_COMPONENTS = 50


@dataclass(frozen=True)
class Projection:
    """Points of a plane and how they were found."""

    points: npt.NDArray[np.float32]
    """`(n, 2)`."""
    method: str
    """``"pca"``, ``"tsne"`` or ``"umap"``."""
    description: str
    """Method and parameters in a few words; for PCA the variance that is explained."""


def project(features: Features, method: str, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Project features `(n, F)` to points `(n, 2)`; see `describe_projection`."""
    return describe_projection(features, method, seed=seed).points


def describe_projection(features: Features, method: str, *, seed: int = 0) -> Projection:
    """Project features to a plane.

    Features are centred, and for t-SNE and UMAP first reduced to their 50 strongest principal components. t-SNE has a
    perplexity of 30, or a third of the other points where those are fewer than 90. The sign of each axis of the PCA is
    such that its longest deviation is positive.

    Parameters
    ----------
    features : array
        `(n, F)`.
    method : str
        ``"pca"``, ``"tsne"`` or ``"umap"``; the last needs the extra ``umap``.
    seed : int
        The same numbers give the same points.

    Raises
    ------
    InputError
        For another method, fewer than four volumes, features that are not finite, or when UMAP is not installed.
    """
    if method not in METHODS:
        raise InputError(f"projection: {method!r} is none of {', '.join(METHODS)}")
    values = np.asarray(features, dtype=np.float64)
    count = len(values)
    if values.ndim != 2 or count < MIN_VOLUMES:
        raise InputError(
            f"projection: features have the shape {values.shape}; at least {MIN_VOLUMES} volumes are needed"
        )
    if not np.isfinite(values).all():
        raise InputError("projection: features are not finite")
    components, shares = _principal_components(values)
    if method == "pca":
        first, second = (f"{100 * share:.0f} %" for share in shares[:2])
        return _finish(components[:, :2], method, f"PCA; the axes explain {first} and {second} of the variance")
    if method == "tsne":
        perplexity = min(30.0, (count - 1) / 3)
        points = _tsne(components, perplexity, seed)
        return _finish(
            points, method, f"t-SNE of {components.shape[1]} principal components, perplexity {perplexity:.3g}"
        )
    neighbours = min(15, count - 1)
    points = _umap(components, neighbours, seed)
    return _finish(points, method, f"UMAP of {components.shape[1]} principal components, {neighbours} neighbours")


def _finish(points: npt.NDArray[Any], method: str, description: str) -> Projection:
    return Projection(np.ascontiguousarray(points, dtype=np.float32), method, description)


def _principal_components(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return components `(n, k)`, k from 2 to 50, and their shares of the variance; zeros where there is none."""
    from sklearn.decomposition import PCA

    count = min(*values.shape, MAX_COMPONENTS)
    padded = max(count, 2)
    components, shares = np.zeros((len(values), padded)), np.zeros(padded)
    if np.ptp(values, axis=0).max() > 0:
        pca = PCA(count, svd_solver="full" if values.shape[1] <= 1000 else "randomized", random_state=0)
        components[:, :count] = pca.fit_transform(values)
        shares[:count] = pca.explained_variance_ratio_
    longest = components[np.abs(components).argmax(axis=0), np.arange(padded)]
    return components * np.where(longest < 0, -1.0, 1.0), shares


def _tsne(components: npt.NDArray[np.float64], perplexity: float, seed: int) -> npt.NDArray[Any]:
    from sklearn.manifold import TSNE

    start = "pca" if components[:, 0].std() > 0 else "random"
    found: npt.NDArray[Any] = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(components)
    return found


def _umap(components: npt.NDArray[np.float64], neighbours: int, seed: int) -> npt.NDArray[Any]:
    try:
        import umap
    except ImportError as error:
        raise InputError("projection: UMAP is not installed; pip install 'cryo-monai[umap]', or use tsne") from error
    # Its spectral start needs more points than dimensions; a seed makes it run on one thread, of which it warns.
    start = "spectral" if len(components) > 10 else "random"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)
        reducer = umap.UMAP(n_neighbors=neighbours, init=start, random_state=seed)
        found: npt.NDArray[Any] = reducer.fit_transform(components)
    return found
