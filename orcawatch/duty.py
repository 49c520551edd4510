"""Listening for a part of the time: what comes off duty is not heard, and the ledger says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Union

from .capture import S, Through
from .config import DutySettings
from .records import AudioBlock, ClockChange, Item, Missing

DAY_S = 86400.0
MARGIN_S = 0.1  # a clock that is drawn back a little over a border does not undo it
ROUNDING = 0.1  # of a sample: so much before a border counts as past it, because times are whole microseconds

Stretch = Union[AudioBlock, Missing]


class OnDuty(Through[S]):
    """A source that listens `on_s` of every `every_s`, counted from each day's 00:00 UTC.

    Off duty, everything becomes `Missing("off_duty", "duty cycle")`, cut to the sample at the border: audio, but also
    what was missing anyway (nobody was to listen, so no effort was lost). On duty, everything passes. Each sample of
    the source is in exactly one item, whatever the clock does: after a jump the cycle goes on by the new time. Where
    the source does not know UTC, the cycle is counted from the stream's start.

    Parameters
    ----------
    source : where audio comes from.
    duty : the cycle; without `on_s` and `every_s`, always on duty.

    Attributes
    ----------
    duty : the cycle in force; it may be replaced at any time, and counts from the next block on.
    """

    def __init__(self, source: S, duty: DutySettings) -> None:
        super().__init__(source)
        self.duty = duty
        self._on = True

    def blocks(self) -> Iterator[Item]:
        """The source's items, cut where duty begins and ends."""
        for item in self._source.blocks():
            if isinstance(item, ClockChange) or item.start_sample == item.end_sample:
                yield item
            else:
                yield from self._cut(item)

    def _cut(self, item: Stretch) -> Iterator[Stretch]:
        start = item.start_sample
        while start < item.end_sample:
            on, end = self._phase(start)
            end = min(end, item.end_sample)
            yield part(item, start, end) if on else Missing(start, end, "off_duty", "duty cycle")
            start = end

    def _phase(self, sample: int) -> tuple[bool, int]:
        """Whether duty is on at a sample, and the sample at which that ends."""
        duty = self.duty
        if duty.on_s is None or duty.every_s is None:
            return True, sample + round(DAY_S * self.info.rate_hz)
        now_s = self._second_of_day(sample)
        on, end_s = phase(now_s, duty.on_s, duty.every_s)
        if on != self._on and end_s - now_s < MARGIN_S:
            on, end_s = phase(end_s, duty.on_s, duty.every_s)
        self._on = on
        return on, sample + max(1, math.ceil((end_s - now_s) * self.info.rate_hz))

    def _second_of_day(self, sample: int) -> float:
        """Seconds since 00:00 UTC, or since the stream's start where UTC is not known; rounded up a little."""
        utc = self.utc_at(sample)
        now_s = sample / self.info.rate_hz if utc is None else second_of_day(utc)
        return (now_s + ROUNDING / self.info.rate_hz) % DAY_S


def second_of_day(utc: datetime) -> float:
    """Seconds since 00:00 UTC."""
    now = utc.astimezone(timezone.utc)
    return (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()


def phase(now_s: float, on_s: float, every_s: float) -> tuple[bool, float]:
    """Whether duty is on at a second of the day, and the second at which that ends; a day ends at 86400 s.

    Each day starts with a whole cycle, and its last one may be cut short by the next day.
    """
    cycle_s = math.floor(now_s / every_s) * every_s
    on = now_s < cycle_s + on_s
    return on, min(cycle_s + (on_s if on else every_s), DAY_S)


def part(item: Stretch, start: int, end: int) -> Stretch:
    """The stretch from one position to another."""
    if isinstance(item, Missing):
        return replace(item, start_sample=start, end_sample=end)
    first = item.start_sample
    return (
        item
        if (start, end) == (first, item.end_sample)
        else AudioBlock(item.samples[start - first : end - first], start)
    )
