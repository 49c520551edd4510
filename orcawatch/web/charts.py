"""Charts as SVG, drawn by the server: bars, dots and lines over time, with axes, units and a legend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from markupsafe import Markup, escape

WIDTH, HEIGHT = 800.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 790.0, 34.0, 226.0
TICKS_X, TICKS_Y = 5, 5
ACROSS, UP = 90, 25  # cells of a chart with too many dots
STEPS_S = (
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    432000,
    864000,
    1728000,
    2592000,
    5184000,
    10368000,
    31536000,
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """What a chart spans.

    Attributes
    ----------
    since, until : of the time axis, timezone-aware.
    low, high : of the vertical axis.
    unit : what that one shows.
    step : between its marks; None for what suits.
    """

    since: datetime
    until: datetime
    low: float
    high: float
    unit: str
    step: float | None = None

    def x(self, moment: datetime) -> float:
        """Place of a moment."""
        share = (moment - self.since) / max(self.until - self.since, timedelta(seconds=1))
        return LEFT + (RIGHT - LEFT) * share

    def y(self, value: float) -> float:
        """Place of a value."""
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low or 1.0)


def chart(axes: Axes, title: str, marks: str, text: str = "") -> Markup:
    """The whole picture; `marks` is SVG of ours, `title` and `text` tell the same to those who do not see it."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>",
        *_grid(axes), *_times(axes), marks, "</svg>",
    ]  # fmt: skip
    return Markup("".join(parts))


def _grid(axes: Axes) -> Iterator[str]:
    yield f'<text class="unit" x="0" y="18">{escape(axes.unit)}</text>'
    for value in ticks(axes.low, axes.high, axes.step):
        y = axes.y(value)
        yield f'<path class="grid" d="M{LEFT:g} {y:.1f}H{RIGHT:g}"/>'
        yield f'<text class="left" x="{LEFT - 8:g}" y="{y:.1f}" dy=".35em">{value:g}</text>'


def _times(axes: Axes) -> Iterator[str]:
    for moment, text in time_ticks(axes.since, axes.until):
        x = axes.x(moment)
        yield f'<path class="tick" d="M{x:.1f} {BOTTOM:g}v5"/>'
        yield f'<text class="below" x="{x:.1f}" y="{BOTTOM + 8:g}">{text}</text>'


def ticks(low: float, high: float, step: float | None = None) -> list[float]:
    """Round values from one end to the other."""
    step = step or nice((high - low) / TICKS_Y)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def nice(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(size * power for size in (1, 2, 5, 10) if size * power >= step * 0.999)


def ceiling(value: float) -> float:
    """The end of an axis from 0 that holds a value."""
    step = nice(value / TICKS_Y)
    return max(step, step * math.ceil(value / step - 1e-9))


def time_ticks(since: datetime, until: datetime) -> list[tuple[datetime, str]]:
    """Round moments, and what to write below them."""
    span_s = (until - since).total_seconds()
    step_s = next((step for step in STEPS_S if span_s / step <= TICKS_X), STEPS_S[-1])
    pattern = "%H:%M" if step_s < 86400 else "%d %b" if span_s < 300 * 86400 else "%b %Y"
    first = math.ceil(since.timestamp() / step_s) * step_s
    moments = [datetime.fromtimestamp(at, timezone.utc) for at in range(int(first), int(until.timestamp()) + 1, step_s)]
    return [(moment, moment.strftime(pattern)) for moment in moments if moment < until - (until - since) / 40]


def stacked(axes: Axes, columns: Sequence[tuple[datetime, datetime, Mapping[str, float]]], kinds: Sequence[str]) -> str:
    """Bars, one for each period, of parts upon each other; a part's kind is the class of its path."""
    paths: dict[str, list[str]] = {kind: [] for kind in kinds}
    for start, end, parts in columns:
        left, right = axes.x(start), axes.x(end)
        gap = min(2.0, (right - left) * 0.12)
        floor = axes.low
        for kind in kinds:
            value = parts.get(kind, 0.0)
            if value > 0:
                height = axes.y(floor) - axes.y(floor + value)
                width = right - left - gap
                paths[kind].append(f"M{left + gap / 2:.1f} {axes.y(floor):.1f}h{width:.2f}v{-height:.2f}h{-width:.2f}z")
                floor += value
    return "".join(f'<path class="{kind}" d="{"".join(found)}"/>' for kind, found in paths.items() if found)


def dots(axes: Axes, groups: Mapping[str, Sequence[tuple[datetime, float]]]) -> str:
    """Dots, by the class of their group; a dot is a line of no length with round ends."""
    return "".join(
        f'<path class="dots {kind}" d="{"".join(f"M{axes.x(at):.1f} {axes.y(value):.1f}h0" for at, value in points)}"/>'
        for kind, points in groups.items()
        if points
    )


def cells(found: Mapping[tuple[int, int], int]) -> str:
    """How many detections lie in each (column, row) of `ACROSS` times `UP` cells, in four shades."""
    most = math.log1p(max(found.values(), default=1))
    width, height = (RIGHT - LEFT) / ACROSS, (BOTTOM - TOP) / UP
    shades: dict[int, list[str]] = {}
    for (column, row), number in found.items():
        x, y = LEFT + column * width, BOTTOM - (row + 1) * height
        box = f"M{x:.1f} {y:.1f}h{width:.2f}v{height:.2f}h{-width:.2f}z"
        shades.setdefault(min(3, int(4 * math.log1p(number) / most)), []).append(box)
    return "".join(f'<path class="cell shade{shade}" d="{"".join(boxes)}"/>' for shade, boxes in sorted(shades.items()))


def line(axes: Axes, points: Sequence[tuple[datetime, float | None]], kind: str) -> str:
    """A line through points, broken where there is none; a point alone is a dot."""
    pieces: list[str] = []
    drawn = False
    for at, value in points:
        if value is not None:
            place = f"{axes.x(at):.1f} {axes.y(value):.1f}"
            pieces.append(f"L{place}" if drawn else f"M{place}h0")
        drawn = value is not None
    return f'<path class="line {kind}" d="{"".join(pieces)}"/>' if pieces else ""
