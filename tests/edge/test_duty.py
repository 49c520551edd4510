from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.config import DutySettings
from orcawatch.duty import OnDuty, phase
from orcawatch.records import AudioBlock, ClockChange, Item, Missing, StreamInfo

RATE_HZ = 1000
START = datetime(2026, 3, 1, 23, 59, 30, tzinfo=timezone.utc)


def never(sample: int) -> datetime | None:
    """No time is known."""
    return None


class Stream:
    """A live source that yields given items; `utc_at` is a function of the sample."""

    def __init__(self, items: Sequence[Item], utc_at: Callable[[int], datetime | None] = never) -> None:
        self.info = StreamInfo("sea", RATE_HZ, 1, live=True)
        self.waits = False
        self.behind_s = 1.5
        self.utc_at = utc_at
        self._items = items

    def blocks(self) -> Iterator[Item]:
        yield from self._items


def since(start_utc: datetime) -> Callable[[int], datetime]:
    return lambda sample: start_utc + timedelta(seconds=sample / RATE_HZ)


def counted(borders: Sequence[int]) -> list[AudioBlock]:
    """Blocks between the borders whose samples are their own positions."""
    return [AudioBlock(np.arange(a, b, dtype=np.float32)[:, None], a) for a, b in zip(borders, borders[1:])]


def told(items: Sequence[Item], length: int) -> Any:
    """By sample, what was said of it: `on`, or a kind of Missing. Each exactly once, in order, audio as it came."""
    said = []
    for item in items:
        if isinstance(item, ClockChange):
            continue
        assert item.start_sample == len(said)
        if isinstance(item, AudioBlock):
            assert item.samples[:, 0].tolist() == list(range(item.start_sample, item.end_sample))
        said += [item.kind if isinstance(item, Missing) else "on"] * (item.end_sample - item.start_sample)
    assert len(said) == length
    return np.array(said)


@pytest.mark.parametrize("rows", [1, 7, 100, 1333, 70000])
def test_cut_to_the_sample_by_utc(rows: int) -> None:
    """2.5 s of every 7 s, from 23:59:30 on: 30 s later a new day starts with a new cycle."""
    blocks = counted([*range(0, 70000, rows), 70000])
    said = told([*OnDuty(Stream(blocks, since(START)), DutySettings(2.5, 7)).blocks()], 70000)
    second_of_day = (np.arange(70000) + 86370_000) % 86400_000 / 1000
    assert ((second_of_day % 7 < 2.5) == (said == "on")).all()
    assert set(said) == {"on", "off_duty"}


def test_borders_that_floating_point_cannot_hold() -> None:
    """1.1 s of every 3.3 s: 9.9 / 3.3 is less than 3 in floating point."""
    said = told([*OnDuty(Stream(counted(range(0, 50001, 250))), DutySettings(1.1, 3.3)).blocks()], 50000)
    assert ((np.arange(50000) % 3300 < 1100) == (said == "on")).all()


def test_position_where_utc_is_unknown() -> None:
    said = told([*OnDuty(Stream(counted(range(0, 19801, 300))), DutySettings(1, 4)).blocks()], 19800)
    assert ((np.arange(19800) % 4000 < 1000) == (said == "on")).all()


def test_without_a_cycle_everything_passes() -> None:
    items = [*counted([0, 500, 900]), Missing(900, 5000, "gap", "device gone"), *counted([5000, 5100])]
    assert [*OnDuty(Stream(items, since(START)), DutySettings()).blocks()] == items


def test_off_duty_wins_over_gaps() -> None:
    """A gap from 0.5 s to 6 s with duty from 0 to 1 s and 4 to 5 s."""
    items = [*counted([0, 500]), Missing(500, 6000, "gap", "device gone"), Missing(6000, 9000, "shed", "no time")]
    found = [*OnDuty(Stream(items), DutySettings(1, 4)).blocks()]
    assert found[1:] == [
        Missing(500, 1000, "gap", "device gone"),
        Missing(1000, 4000, "off_duty", "duty cycle"),
        Missing(4000, 5000, "gap", "device gone"),
        Missing(5000, 6000, "off_duty", "duty cycle"),
        Missing(6000, 8000, "off_duty", "duty cycle"),
        Missing(8000, 9000, "shed", "no time"),
    ]


def test_news_of_the_clock_and_empty_items_pass() -> None:
    change = ClockChange(1500, START, 3600.0, True, True)
    alive = Missing(1500, 1500, "gap", "device gone")
    found = [*OnDuty(Stream([change, alive]), DutySettings(1, 4)).blocks()]
    assert found == [change, alive]


@pytest.mark.parametrize("jump_s", [3601.0, -3601.0, 0.7, -0.7, 86400.0])
def test_clock_jumps_lose_and_double_nothing(jump_s: float) -> None:
    """The clock jumps at sample 21,300; from then on the cycle follows the new time."""
    at = 21300
    before, after = since(START), since(START + timedelta(seconds=jump_s))
    blocks = counted(range(0, 60001, 300))
    stream = Stream(blocks, lambda sample: before(sample) if sample < at else after(sample))
    said = told([*OnDuty(stream, DutySettings(3, 10)).blocks()], 60000)
    shift = round(jump_s * 1000) * (np.arange(60000) >= at)
    second_of_day = (np.arange(60000) + 86370_000 + shift) % 86400_000 / 1000
    assert ((second_of_day % 10 < 3) == (said == "on")).all()


def test_clock_drawn_back_over_a_border_does_not_undo_it() -> None:
    """The clock is slewed: it reads up to 4 ms differently from block to block, a border is crossed once."""
    jitter_s = [0.004, -0.004, 0.0, 0.002]
    stream = Stream(
        counted(range(0, 99001, 100)),
        lambda sample: since(START)(sample) + timedelta(seconds=jitter_s[sample // 100 % 4]),
    )
    said = told([*OnDuty(stream, DutySettings(5, 10)).blocks()], 99000)
    borders = np.flatnonzero(said[1:] != said[:-1]) + 1
    np.testing.assert_allclose(borders, np.arange(5000, 99000, 5000), atol=5)


def test_new_cycle_counts_from_the_next_block() -> None:
    source = OnDuty(Stream(counted(range(0, 20001, 500))), DutySettings(1, 2))
    found = []
    for item in source.blocks():
        found.append(item)
        if not isinstance(item, ClockChange) and item.end_sample == 10000:
            source.duty = DutySettings(1, 5)
    said = told(found, 20000)
    position = np.arange(20000)
    assert ((position % np.where(position < 10000, 2000, 5000) < 1000) == (said == "on")).all()


def test_other_attributes_are_the_sources() -> None:
    stream = Stream([], since(START))
    source = OnDuty(stream, DutySettings(1, 2))
    assert source.info is stream.info
    assert (source.waits, source.behind_s, source.utc_at(500)) == (False, 1.5, START + timedelta(seconds=0.5))


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 86400, exclude_max=True), st.floats(1, 86400), st.floats(0.001, 1))
def test_a_phase_ends_after_it_began(now_s: float, every_s: float, share: float) -> None:
    on, end_s = phase(now_s, share * every_s, every_s)
    assert now_s < end_s <= 86400
    assert phase((now_s + end_s) / 2, share * every_s, every_s)[0] == on or end_s - now_s < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.lists(st.floats(-4000, 4000), min_size=60, max_size=60),
    st.floats(0.05, 2),
    st.floats(1, 3),
)
def test_every_sample_once_whatever_the_clock_does(
    lengths: list[int], wild_s: list[float], on_s: float, factor: float
) -> None:
    borders = np.cumsum([0, *lengths]).tolist()
    stream = Stream(counted(borders), lambda sample: START + timedelta(seconds=wild_s[sample % 60]))
    told([*OnDuty(stream, DutySettings(on_s, on_s * factor)).blocks()], borders[-1])
