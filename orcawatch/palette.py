"""Colours of a spectrogram's cells, as the escape sequences of the terminal that shows them.

Two rows of the picture share a line of text: the upper half of a cell is its foreground, the lower its background. Only
what changes from cell to cell is written, so that a picture takes little of a slow line. Terminals with fewer colours
get fewer levels; those without any, letters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color, ColorSystem
from rich.color_triplet import ColorTriplet

ANCHORS = ((4, 6, 20), (30, 22, 74), (94, 29, 110), (163, 48, 98), (222, 84, 62), (250, 157, 50), (252, 244, 180))
SIXTEEN = ("black", "blue", "magenta", "red", "yellow", "bright_white")
MISSING = (58, 60, 66)
HALF = "\N{UPPER HALF BLOCK}"
SHADES, ASCII = " ░▒▓█", " .:-=+*#%@"
RESET = "\x1b[0m"


def ramp(levels: int) -> list[Color]:
    """Colours from the faintest to the loudest."""
    places = np.linspace(0, len(ANCHORS) - 1, levels)
    mixed = np.stack([np.interp(places, range(len(ANCHORS)), part) for part in zip(*ANCHORS)], axis=1)
    return [Color.from_triplet(ColorTriplet(*(round(value) for value in rgb))) for rgb in mixed.tolist()]


def codes(colours: list[Color], foreground: bool) -> list[str]:
    """The parameters of the sequences that choose them."""
    return [";".join(colour.get_ansi_codes(foreground)) for colour in colours]


class Palette:
    """Makes lines of text from levels 0 to 1.

    Parameters
    ----------
    system : the terminal's colours; None for none.
    unicode : whether block characters can be shown.
    """

    def __init__(self, system: ColorSystem | None, unicode: bool) -> None:
        self.halves = system is not None and unicode
        self._letters = SHADES if unicode else ASCII
        if system is not None:
            colours = self._colours(system)
            self._levels = len(colours) - 1
            self._table = sequences(codes(colours, True), codes(colours, False), HALF if unicode else " ")

    def _colours(self, system: ColorSystem) -> list[Color]:
        if system is ColorSystem.STANDARD:
            return [Color.parse(name) for name in (*SIXTEEN, "bright_black")]
        missing = Color.from_triplet(ColorTriplet(*MISSING))
        return [colour.downgrade(system) for colour in (*ramp(20), missing)]

    def rows_of(self, lines: int) -> int:
        """How many rows of a picture so many lines of text show."""
        return 2 * lines if self.halves else lines

    def lines(self, levels: NDArray[np.float32]) -> list[str]:
        """Lines of text, each as many cells long as there are columns; from levels of shape (rows, columns)."""
        if not hasattr(self, "_table"):
            return self._in_letters(levels)
        steps = np.where(np.isnan(levels), self._levels, np.nan_to_num(levels).clip(0, 1) * (self._levels - 1) + 0.5)
        steps = steps.astype(np.intp)
        upper, lower = (steps[0::2], steps[1::2]) if self.halves else (steps, steps)
        return [self._line(above, below) for above, below in zip(upper, lower)]

    def _line(self, upper: NDArray[Any], lower: NDArray[Any]) -> str:
        size = self._levels + 1
        same_upper, same_lower = (np.diff(row, prepend=-1) == 0 for row in (upper, lower))
        kinds = same_upper + 2 * same_lower
        found = ((kinds * size + upper) * size + lower).tolist()
        return "".join(map(self._table.__getitem__, found)) + RESET

    def _in_letters(self, levels: NDArray[np.float32]) -> list[str]:
        places = (np.nan_to_num(levels).clip(0, 1) * (len(self._letters) - 1) + 0.5).astype(int)
        letters = np.where(np.isnan(levels), "/", np.array(list(self._letters))[places])
        return ["".join(line) for line in letters.tolist()]


def sequences(fore: list[str], back: list[str], cell: str) -> list[str]:
    """A cell for each (what is the same as before, upper, lower): nothing, the upper, the lower, both."""
    table = []
    for same in range(4):
        for upper in fore:
            for lower in back:
                changed = [code for bit, code in ((1, upper), (2, lower)) if not same & bit]
                table.append(f"\x1b[{';'.join(changed)}m{cell}" if changed else cell)
    return table
