"""Axes of a picture, as places in percent of its width and height, and words for what stands there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from ..snapshot import SCALES
from .pictures import MOST_TIMES

STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300)
STEPS_DB = (5, 10, 20, 50)
TICKS_HZ = (100, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000, 48000, 96000)
APART = 8.0  # percent of the height between two frequencies, at least
TIMES = (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis.

    Attributes
    ----------
    at : percent from the left, or from the top.
    text : what stands beside it.
    """

    at: float
    text: str


def step_for(span: float, steps: Sequence[float], most: int) -> float:
    """The smallest step that gives at most so many marks."""
    return next((step for step in steps if span / step <= most), steps[-1])


def multiples(low: float, high: float, step: float) -> Iterator[float]:
    """Multiples of a step between two values, these included."""
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return (round(index * step, 6) for index in range(first, last + 1))


def seconds_ticks(length_s: float, most: int = 8) -> list[Tick]:
    """Seconds of a clip, along its length."""
    step = step_for(length_s, STEPS_S, most)
    return [Tick(100 * time_s / length_s, f"{time_s:g}") for time_s in multiples(0, length_s, step)]


def clock_ticks(start_utc: datetime, length_s: float, most: int = 4) -> list[Tick]:
    """Whole UTC seconds along a clip; labels keep clear of the ends."""
    step = max(1, step_for(length_s, STEPS_S, most))
    midnight = start_utc.replace(hour=0, minute=0, second=0, microsecond=0)
    since_s = (start_utc - midnight).total_seconds()
    found = []
    for second in multiples(since_s, since_s + length_s, step):
        at = 100 * (second - since_s) / length_s
        if 6 <= at <= 94:
            found.append(Tick(at, f"{midnight + timedelta(seconds=second):%H:%M:%S}"))
    return found


def height_of(hertz: float, edges_hz: tuple[float, float], scale: str) -> float:
    """Where a frequency lies, percent from the top; those beyond the axis lie on its ends."""
    to_scale, _ = SCALES[scale]
    low, high, place = (float(to_scale(np.array(value))) for value in (*edges_hz, hertz))
    return 100 * (1 - min(1.0, max(0.0, (place - low) / (high - low))))


def frequency_ticks(edges_hz: tuple[float, float], scale: str) -> list[Tick]:
    """Frequencies in kHz along the height, from the highest down, none too near to another."""
    inside = [hertz for hertz in TICKS_HZ if edges_hz[0] <= hertz <= edges_hz[1]]
    found: list[Tick] = []
    for hertz in reversed(inside):
        at = height_of(hertz, edges_hz, scale)
        if not found or at - found[-1].at >= APART:
            found.append(Tick(at, f"{hertz / 1000:g}"))
    return found


def level_ticks(range_db: tuple[float, float], most: int = 4) -> list[Tick]:
    """Levels along a colour bar."""
    low, high = range_db
    step = step_for(high - low, STEPS_DB, most)
    return [Tick(100 * (level - low) / (high - low), f"{level:g}".replace("-", "\N{MINUS SIGN}"))
            for level in multiples(low, high, step)]  # fmt: skip


def times_ticks() -> list[Tick]:
    """Multiples of the average along the colour bar of relevance."""
    return [Tick(100 * float(np.log(times) / np.log(MOST_TIMES)), f"{times}\N{MULTIPLICATION SIGN}") for times in TIMES]
