"""Colours and shapes of classes."""

import re

from matplotlib.lines import Line2D

from cryo_monai.colours import COLOURS, MARKERS, UNKNOWN_COLOUR, colour_of, marker_of


def test_no_two_of_56_classes_look_the_same() -> None:
    assert len({(colour_of(n), marker_of(n)) for n in range(56)}) == 56


def test_neighbouring_classes_differ_in_colour_and_in_shape() -> None:
    for n in range(60):
        assert colour_of(n) != colour_of(n + 1)
        assert marker_of(n) != marker_of(n + 1)
    assert len({marker_of(n) for n in range(7)}) == 7


def test_colours_are_written_in_full_and_shapes_are_those_of_matplotlib() -> None:
    assert all(re.fullmatch(r"#[0-9A-F]{6}", colour) for colour in (*COLOURS, UNKNOWN_COLOUR))
    assert set(MARKERS) <= set(Line2D.filled_markers)
