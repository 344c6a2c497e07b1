"""Colours and shapes of classes, the same on every page, in every figure and for every viewer of points."""

from __future__ import annotations

# Okabe and Ito's colours, told apart by colour-blind eyes (https://jfly.uni-koeln.de/color/), without black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Blue, vermilion, green, purple, orange, sky, yellow: in this order the first are furthest apart.
_CURVES = (4, 5, 2, 6, 0, 1, 3)
UNKNOWN_COLOUR = "#999999"
# Matplotlib's names: circle, square, triangle, diamond, triangle that stands on its tip, plus, cross, star.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def colour_of(number: int) -> str:
    """Colour of a class by its number; they repeat after seven."""
    return COLOURS[number % len(COLOURS)]


def curve_colour(number: int) -> str:
    """Colour of one of a few curves; they repeat after seven."""
    return COLOURS[_CURVES[number % len(_CURVES)]]


def marker_of(number: int) -> str:
    """Shape of a class by its number, as matplotlib names it.

    Neighbouring classes differ in shape as well as in colour, so that nothing hangs on colour alone; a pair of colour
    and shape comes back after 56 classes.
    """
    turn, place = divmod(number, len(COLOURS))
    return MARKERS[(place + turn) % len(MARKERS)]
