import sys

import numpy as np
import pytest

from cryo_monai.errors import InputError
from cryo_monai.projections import describe_projection, project
from cryo_monai.separability import measure_separability


def blobs(count: int, dimensions: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return (rng.normal(size=(count, dimensions)) + 20 * np.eye(3, dimensions)[labels]).astype(np.float32), labels


# The import of UMAP compiles for half a minute.
@pytest.fixture(params=["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "umap":
        pytest.importorskip("umap")
    return str(request.param)


@pytest.mark.parametrize("count", [4, 5, 12, 60])
def test_any_number_of_volumes_gives_finite_points(method: str, count: int) -> None:
    points = project(blobs(count)[0], method)
    assert points.shape == (count, 2)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()


@pytest.mark.parametrize("shape", [(12, 1), (12, 2), (4, 200), (12, 1500)])
def test_any_number_of_features_gives_finite_points(method: str, shape: tuple[int, int]) -> None:
    assert np.isfinite(project(np.random.default_rng(0).normal(size=shape), method)).all()


def test_volumes_that_are_all_alike_are_no_error(method: str) -> None:
    assert np.isfinite(project(np.ones((12, 8)), method)).all()


def test_the_same_seed_gives_the_same_points(method: str) -> None:
    features, _ = blobs(30)
    np.testing.assert_array_equal(project(features, method, seed=3), project(features, method, seed=3))


def test_blobs_stay_apart(method: str) -> None:
    features, labels = blobs(60)
    assert measure_separability(project(features, method), labels).silhouette > 0.6


def test_pca_keeps_distances_in_a_plane_and_says_its_variance() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3, 1]
    basis = np.linalg.qr(rng.normal(size=(10, 2)))[0]
    found = describe_projection(plane @ basis.T + 5, "pca")
    between = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found.points[:, None] - found.points[None], axis=-1), between, atol=1e-5)
    share = np.linalg.eigvalsh(np.cov(plane.T))[::-1] / np.trace(np.cov(plane.T))
    assert f"{100 * share[0]:.0f} % and {100 * share[1]:.0f} %" in found.description


def test_pca_does_not_depend_on_the_order_of_volumes() -> None:
    features, _ = blobs(30)
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(project(features[order], "pca"), project(features, "pca")[order], atol=1e-4)


def test_the_perplexity_fits_few_volumes() -> None:
    assert describe_projection(blobs(31)[0], "tsne").description.endswith("perplexity 10")
    assert describe_projection(blobs(120)[0], "tsne").description.endswith("perplexity 30")


def test_what_cannot_be_projected_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs(12)
    with pytest.raises(InputError, match="'t-sne' is none of pca, tsne, umap"):
        project(features, "t-sne")
    with pytest.raises(InputError, match="at least 4 volumes"):
        project(features[:3], "pca")
    with pytest.raises(InputError, match="not finite"):
        project(np.full((5, 3), np.nan), "pca")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'cryo-monai\[umap\]'"):
        project(features, "umap")
