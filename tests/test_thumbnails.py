"""Thumbnails of volumes."""

import io

import numpy as np
import pytest
from PIL import Image

from cryo_monai.errors import InputError
from cryo_monai.reports.thumbnails import COLUMNS, GAP, PER_SHEET, as_webp, choose_rows, pack_sheets, three_slices


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grey(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("L"))


def test_slices_are_xy_xz_and_yz_and_nothing_is_turned_or_stretched() -> None:
    volume = np.zeros((10, 12, 14), np.float32)
    # One voxel each that only this slice meets, in the middle of its own axis.
    volume[4:7, 1, 2] = volume[1, 5:8, 3] = volume[2, 3, 6:9] = 1
    shown = three_slices(volume, edge=14)
    assert shown.shape == (14, 3 * 14 + 2 * GAP)
    bright = {tuple(place) for place in np.argwhere(shown == 255)}
    second, third = 14 + GAP, 2 * (14 + GAP)
    # Centred: y has 12 of 14 rows, z 10; in the third slice z runs to the right.
    assert bright == {(1 + 1, 2), (2 + 1, second + 3), (1 + 3, third + 2 + 2)}


def test_grey_does_not_hang_on_scale_or_offset_and_what_is_not_finite_is_black() -> None:
    volume = noise((10, 12, 14))
    assert np.array_equal(three_slices(volume, edge=14), three_slices(4 * volume, edge=14))
    volume[5, 6, 7] = np.nan
    shown = three_slices(volume, edge=14)
    assert shown.max() == 255
    assert three_slices(np.full((4, 4, 4), np.nan), edge=4).max() == 0


def test_large_volumes_become_smaller_and_small_ones_stay() -> None:
    assert three_slices(noise((64, 64, 64)), edge=40).shape == (40, 122)
    small = three_slices(noise((8, 8, 8)), edge=40)
    assert not small[:16].any()
    assert small[16:24, 16:24].any()


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (1, 4, 4, 4)])
def test_what_is_no_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="not a volume"):
        three_slices(np.zeros(shape), edge=8)


def test_every_thumbnail_is_where_the_sheet_says() -> None:
    count, edge = PER_SHEET + 13, 8
    pictures = [np.full((edge, 3 * edge + 2), 40 + (37 * n) % 200, np.uint8) for n in range(count)]
    sheets = pack_sheets(pictures, budget=10**7)
    assert len(sheets.images) == 2
    opened = [grey(image) for image in sheets.images]
    for n in (0, 9, 10, PER_SHEET - 1, PER_SHEET, count - 1):
        sheet, place = opened[n // sheets.per_sheet], n % sheets.per_sheet
        row, column = divmod(place, sheets.columns)
        found = sheet[row * sheets.height + edge // 2, column * sheets.width + sheets.width // 2]
        assert abs(int(found) - int(pictures[n][0, 0])) < 12
    assert sheets.columns == COLUMNS


def test_two_thousand_thumbnails_of_noise_keep_to_their_budget() -> None:
    pictures = [three_slices(noise((40, 40, 40), seed), edge=40) for seed in range(50)]
    # Fifty for a fortieth of the budget.
    sheets = pack_sheets(pictures, budget=1_100_000 // 40)
    assert sum(map(len, sheets.images)) <= 1_100_000 // 40
    assert 20 <= sheets.height < 40
    roomy = pack_sheets(pictures, budget=1_100_000)
    assert (roomy.height, roomy.quality) == (40, 85)


def test_thumbnails_of_two_sizes_do_not_share_a_sheet() -> None:
    with pytest.raises(InputError, match="2 sizes"):
        pack_sheets([np.zeros((2, 2), np.uint8), np.zeros((3, 3), np.uint8)], budget=1000)


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert as_webp(three_slices(noise((8, 9, 10)), edge=10)) == as_webp(three_slices(noise((8, 9, 10)), edge=10))


def test_all_are_shown_where_there_is_room() -> None:
    assert choose_rows([0, 1, 1, 0], [True, False, False, False], 4) == [0, 1, 2, 3]
    assert choose_rows([], [], 4) == []


def test_mistakes_come_first_and_classes_get_equal_shares() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 10])
    wrong = np.zeros(1110, bool)
    wrong[[5, 700, 1050]] = True
    rows = choose_rows(labels, wrong, 113)
    assert rows == choose_rows(labels, wrong, 113) == sorted(set(rows))
    assert {5, 700, 1050} <= set(rows)
    # 3 mistakes, all 10 of the small class, and the rest in halves.
    assert np.bincount(labels[rows]).tolist() == [52, 51, 10]
    assert len(choose_rows(labels, np.ones(1110, bool), 60)) == 60
