import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryo_monai.errors import DatasetError, InputError
from cryo_monai.filters import band_matrix, blur, full_precision, gaussian_kernel
from cryo_monai.picking import ArrayTomogram, pick_blobs, read_review, suppress, write_review
from cryo_monai.picking.blobs import _local_maxima
from cryo_monai.picking.regions import blocks, read_box
from cryo_monai.picking.reviews import thumbnail

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_set(positions: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, positions.tolist()))


def planted(shape: tuple[int, int, int], centres: Sequence[Sequence[int]], radius: float) -> np.ndarray:
    """Dark balls."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    volume = np.zeros(shape, np.float32)
    for centre in centres:
        volume -= (np.linalg.norm(grid - np.asarray(centre), axis=-1) < radius).astype(np.float32)
    return volume


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("sigma", "dark"), [(1.0, True), (2.3, False), (4.0, True)])
def test_peaks_and_responses_are_those_of_scikit_image(sigma: float, dark: bool, device: str) -> None:
    filters = pytest.importorskip("skimage.filters")
    feature = pytest.importorskip("skimage.feature")
    volume = noise((20, 37, 45)) + 50
    signed = (-volume if dark else volume).astype(np.float64)
    response = filters.difference_of_gaussians(signed, sigma, 1.1 * sigma, mode="nearest", truncate=4.0)
    limit = response.mean() + 3 * (response.max() - response.mean()) / 20
    expected = feature.peak_local_max(response, min_distance=1, threshold_abs=limit, exclude_border=False)
    found = pick_blobs(ArrayTomogram(volume), sigma=sigma, dark=dark, min_distance=0, block=16, device=device)
    assert len(expected) > 3
    assert as_set(found.positions) == as_set(expected)
    np.testing.assert_allclose(found.values, response[tuple(found.positions.T)], rtol=1e-4)
    assert (np.diff(found.values) <= 0).all()


@pytest.mark.parametrize("block", [8, 11, 19, 64])
def test_picks_do_not_depend_on_the_size_of_blocks(block: int) -> None:
    tomogram = ArrayTomogram(noise((18, 30, 41), seed=1))
    whole = pick_blobs(tomogram, sigma=1.5, block=100)
    parts = pick_blobs(tomogram, sigma=1.5, block=block)
    assert len(whole.values) > 20
    np.testing.assert_array_equal(parts.positions, whole.positions)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-4)


def test_planted_blobs_are_found_in_any_corner_and_across_blocks() -> None:
    centres = [(4, 4, 4), (15, 16, 47), (16, 32, 16), (8, 44, 30), (27, 8, 56), (24, 30, 32)]
    volume = planted((32, 48, 64), centres, 3.5)
    found = pick_blobs(ArrayTomogram(volume), sigma=2.0, block=16, min_distance=6)
    assert as_set(found.positions[: len(centres)]) == set(centres)
    bright = pick_blobs(ArrayTomogram(-volume), sigma=2.0, block=16, min_distance=6, dark=False)
    np.testing.assert_array_equal(bright.positions, found.positions)


def test_a_ball_answers_most_to_its_own_sigma() -> None:
    tomogram = ArrayTomogram(planted((40, 41, 42), [(20, 20, 20)], 6.0))
    sigmas = 6 / 3**0.5 * np.array([0.6, 1.0, 1.6])
    small, right, large = (pick_blobs(tomogram, sigma=float(s), max_picks=1).values[0] for s in sigmas)
    assert right > small
    assert right > large


def test_brightness_moves_nothing() -> None:
    volume = noise((16, 24, 30), seed=2)
    plain = pick_blobs(ArrayTomogram(volume), sigma=1.5)
    other = pick_blobs(ArrayTomogram(300 + 5 * volume), sigma=1.5)
    np.testing.assert_array_equal(plain.positions, other.positions)
    np.testing.assert_allclose(other.values, 5 * plain.values, rtol=1e-2)


def test_threshold_border_distance_and_number_hold() -> None:
    tomogram = ArrayTomogram(noise((20, 30, 40), seed=3))
    everything = pick_blobs(tomogram, sigma=1.5, threshold=0, min_distance=0)
    strict = pick_blobs(tomogram, sigma=1.5, threshold=12, min_distance=0)
    assert 0 < len(strict.values) < len(everything.values)
    np.testing.assert_array_equal(strict.positions, everything.positions[: len(strict.values)])
    assert len(pick_blobs(tomogram, sigma=1.5, threshold=20).values) == 0
    inner = pick_blobs(tomogram, sigma=1.5, threshold=0, border=5)
    assert ((inner.positions >= 5) & (inner.positions < np.array([15, 25, 35]))).all()
    assert len(inner.values)
    apart = pick_blobs(tomogram, sigma=1.5, threshold=0, min_distance=6)
    distances = np.linalg.norm(apart.positions[:, None] - apart.positions[None], axis=-1)
    assert distances[~np.eye(len(distances), dtype=bool)].min() >= 6
    few = pick_blobs(tomogram, sigma=1.5, threshold=0, min_distance=6, max_picks=7)
    np.testing.assert_array_equal(few.positions, apart.positions[:7])


def test_suppression_is_greedy_from_the_top() -> None:
    line = np.array([[0, 0, 0], [0, 0, 2], [0, 0, 4], [0, 0, 7]])
    # The middle one hides both others; what it hid hides nothing.
    kept = suppress(line, np.array([2.0, 3.0, 2.5, 1.0]), min_distance=3.0)
    assert kept.positions[:, 2].tolist() == [2, 7]
    # At just the distance both stay; of equals, the first.
    assert suppress(line, np.ones(4), min_distance=2.0).positions[:, 2].tolist() == [0, 2, 4, 7]
    assert suppress(line, np.ones(4), min_distance=4.0).positions[:, 2].tolist() == [0, 4]


def test_of_equal_neighbours_the_first_is_the_peak() -> None:
    response = torch.zeros(5, 6, 7)
    response[2, 2, 3] = response[2, 2, 4] = response[1, 3, 4] = 2.0
    response[4, 5, 0] = 1.0
    response[3, 4, 1] = 1.5
    response[0, 0, 0] = 1.0
    positions, values = _local_maxima(response, (slice(0, 5), slice(0, 6), slice(0, 7)))
    # (2, 2, 3) touches (1, 3, 4), which comes before it.
    assert positions.tolist() == [[0, 0, 0], [1, 3, 4], [3, 4, 1]]
    assert values.tolist() == [1.0, 2.0, 1.5]
    positions, _ = _local_maxima(response, (slice(2, 5), slice(0, 6), slice(0, 7)))
    assert positions.tolist() == [[3, 4, 1]]


def test_a_constant_tomogram_has_no_peaks() -> None:
    found = pick_blobs(ArrayTomogram(np.full((9, 10, 11), 0.1, np.float32)), sigma=1.0)
    assert found.positions.shape == (0, 3)


class Watched:
    """Notes how much was read at once."""

    def __init__(self, data: np.ndarray) -> None:
        self.inner, self.largest = ArrayTomogram(data), 0
        self.shape = self.inner.shape

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        assert all(0 <= a < b <= n for a, b, n in zip(start, stop, self.shape, strict=True))
        region = self.inner.read(start, stop)
        self.largest = max(self.largest, region.size)
        return region


def test_no_more_than_a_block_and_its_overlap_is_read_at_once() -> None:
    tomogram = Watched(noise((40, 80, 90)))
    steps: list[tuple[int, int]] = []
    pick_blobs(tomogram, sigma=1.0, block=16, progress=lambda done, of: steps.append((done, of)))
    assert tomogram.largest <= max(26**3, 40 * 64 * 64)
    assert steps == [(n, 90) for n in range(1, 91)]


def test_voxels_that_are_not_finite_are_refused_with_their_place() -> None:
    volume = noise((12, 14, 40))
    volume[3, 5, 37] = np.nan
    with pytest.raises(InputError, match=r"1 voxels .* \(z, y, x\) = \(3, 5, 37\)"):
        pick_blobs(ArrayTomogram(volume), sigma=1.0, block=8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sigma": 0.0}, "sigma 0.0"),
        ({"sigma": float("nan")}, "sigma nan"),
        ({"ratio": 1.0}, "ratio 1.0"),
        ({"threshold": 21.0}, "threshold"),
        ({"min_distance": -1.0}, "min_distance"),
        ({"border": -1}, "border"),
        ({"block": 2}, "block 2"),
        ({"max_picks": 0}, "max_picks 0"),
        ({"device": "gpu"}, "give cpu or cuda"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pick_blobs(ArrayTomogram(noise((10, 12, 14))), **{"sigma": 2.0, **wrong})


@pytest.mark.parametrize("sigma", [0.5, 1.7, 6.0])
def test_band_matrices_blur_as_convolutions_do(sigma: float) -> None:
    kernel = gaussian_kernel(sigma)
    volume = torch.from_numpy(noise((10, 12, 14)))
    bands = [band_matrix(kernel, n, rows=(0, n), columns=(0, n)) for n in volume.shape]
    product = torch.einsum("az,by,cx,zyx->abc", *bands, volume)
    torch.testing.assert_close(product, blur(volume[None, None], kernel)[0, 0], rtol=1e-4, atol=1e-6)


def test_a_band_of_a_part_is_a_part_of_the_band() -> None:
    kernel = gaussian_kernel(1.0)
    whole = band_matrix(kernel, 30, rows=(0, 30), columns=(0, 30))
    part = band_matrix(kernel, 30, rows=(10, 17), columns=(6, 21))
    torch.testing.assert_close(part, whole[10:17, 6:21])
    assert whole[10:17, :6].sum() == whole[10:17, 21:].sum() == 0


def test_full_precision_is_given_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_blocks_cover_a_volume_once() -> None:
    seen = np.zeros((10, 12, 14), int)
    for start, stop in blocks(seen.shape, 5):
        seen[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] += 1
    assert (seen == 1).all()


def test_boxes_beyond_a_tomogram_are_filled_with_the_mean_of_the_rest() -> None:
    volume = noise((10, 12, 14)) + 7
    inside = read_box(ArrayTomogram(volume), (5, 6, 7), 4)
    np.testing.assert_array_equal(inside, volume[3:7, 4:8, 5:9])
    edge = read_box(ArrayTomogram(volume), (0, 6, 13), 6)
    np.testing.assert_array_equal(edge[3:, :, :4], volume[:3, 3:9, 10:14])
    np.testing.assert_allclose(edge[:3], volume[:3, 3:9, 10:14].mean(), rtol=1e-6)
    np.testing.assert_allclose(edge.mean(), volume[:3, 3:9, 10:14].mean(), rtol=1e-5)
    with pytest.raises(InputError, match="no voxel of the box"):
        read_box(ArrayTomogram(volume), (5, 30, 5), 4)


ROWS: list[dict[str, Any]] = [
    {"id": "a,1", "tomogram": "ts 1", "z": 3, "y": 4.5, "x": 5, "score": 0.25, "class_name": "ribo"},
    {"id": "007", "tomogram": "@@LINES@@", "z": 1, "y": 2, "x": 3, "score": 0.5, "class_name": "ribo"},
    {"id": "<b>&", "tomogram": "</script>", "z": 1, "y": 2, "x": 3, "score": 0.1, "class_name": "a & b"},
]


def boxes_of(index: int) -> np.ndarray:
    return noise((6, 7, 8), seed=index)


def test_a_review_is_one_page_by_class_and_score_and_a_table_that_is_read_back(tmp_path: Path) -> None:
    page = write_review(tmp_path / "new", boxes_of, ROWS, title="Picks <1>")
    text = page.read_text()
    assert "Picks &lt;1&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", text)
    assert text.count("data:image/png;base64,") == text.count('type="checkbox" checked') == 3
    assert re.findall(r'alt="slices xy, xz, yz of ([^"]*)"', text) == ["&lt;b&gt;&amp;", "007", "a,1"]
    table = (tmp_path / "new" / "review.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["id"] for row in rows] == ["<b>&", "007", "a,1"]
    assert rows[2] == {
        "id": "a,1", "tomogram": "ts 1", "z": "3.00", "y": "4.50", "x": "5.00", "score": "0.25",
        "class_name": "ribo", "keep": "1",
    }  # fmt: skip
    assert read_review(tmp_path / "new" / "review.csv") == {"<b>&": True, "007": True, "a,1": True}
    # What the button of the page saves, with everything ticked, is the table.
    lines = json.loads(re.search(r'id="lines">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert "\n".join([lines[0], *(f"{line},1" for line in lines[1:])]) + "\n" == table


def test_choices_are_never_written_over(tmp_path: Path) -> None:
    write_review(tmp_path, boxes_of, ROWS, title="t")
    write_review(tmp_path, boxes_of, ROWS, title="t")
    table = tmp_path / "review.csv"
    table.write_text(table.read_text().replace("ribo,1", "ribo,0"))
    with pytest.raises(InputError, match="another review"):
        write_review(tmp_path, boxes_of, ROWS, title="t")
    assert read_review(table) == {"<b>&": True, "007": False, "a,1": False}


@pytest.mark.parametrize(
    "text",
    [
        "id,keep\n1,1\n2,0\n",
        "\ufeffid;x;keep\r\n1;5,5;TRUE\r\n2;3;FALSE\r\n",
        "keep\tid\nyes\t1\nno\t2\n\n",
        'id,keep\n"1",1.0\n"2",0.0',
    ],
)
def test_reviews_are_read_as_spreadsheets_save_them(text: str, tmp_path: Path) -> None:
    file = tmp_path / "review.csv"
    file.write_bytes(text.encode())
    assert read_review(file) == {"1": True, "2": False}


def test_all_problems_of_a_review_are_named_by_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "review.csv"
    file.write_text("id,keep\n1,1\n1,0\n2,maybe\n3\n,1\n")
    with pytest.raises(DatasetError) as caught:
        read_review(file)
    for number, words in enumerate(
        ["line 3, column id: '1' was", "line 4, column keep: 'maybe'", "line 5: 1 columns", "line 6, column id: empty"]
    ):
        assert words in caught.value.problems[number]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: no single column id nor keep"),
        (b"id,kept\n", "line 1: no single column keep"),
        (b"id,keep\n", "no picks"),
        (b'id,keep\n"1,1\n2,0\n', "line 3"),
        (b"id,keep\n\xff,1\n", "not readable"),
    ],
)
def test_broken_reviews_are_refused_by_name(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "review.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"review\.csv.*{words}"):
        read_review(file)
    with pytest.raises(InputError, match="No such file"):
        read_review(tmp_path / "none.csv")


def test_rows_without_columns_or_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        write_review(tmp_path, boxes_of, [{"id": 1}, ROWS[0], ROWS[0]], title="t")
    assert "row 0 has no tomogram, z" in caught.value.problems[0]
    assert "row 2: id 'a,1'" in caught.value.problems[1]
    with pytest.raises(InputError, match="no picks"):
        write_review(tmp_path, boxes_of, [], title="t")
    assert not list(tmp_path.iterdir())


def test_thumbnails_show_three_central_slices(tmp_path: Path) -> None:
    from PIL import Image

    volume = np.zeros((9, 11, 13), np.float32)
    volume[3:6, 2, 3] = 1  # seen in xy only, and at its place
    volume[0, 0, 0] = np.nan
    (tmp_path / "a.png").write_bytes(thumbnail(volume))
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    # Below one another along y in xy and yz; side by side x, x and z.
    assert picture.shape == (11, 13 + 2 + 13 + 2 + 9)
    assert picture[2, 3] == 255
    assert (picture > 0).sum() == 1


def test_a_thousand_large_picks_stay_below_15_megabytes() -> None:
    sizes = [len(thumbnail(noise((64, 64, 64), seed))) for seed in range(3)]
    assert 1000 * max(sizes) * 4 / 3 < 14e6
