from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from clocks import FakeClocks
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.clock import LATE_S, Clocks, SampleClock, lower_slope
from orcawatch.records import ClockChange

pytestmark = pytest.mark.parts  # whichever interpreter is there makes no difference

RATE_HZ = 48000
BLOCK_S = 0.1
START = datetime(2026, 3, 1, tzinfo=timezone.utc)


class Card:
    """A sound card that is off its rate, heard through blocks that arrive late: the truth that a clock must find."""

    def __init__(
        self,
        clocks: FakeClocks,
        ppm: float = 0.0,
        latency_s: float = 0.2,
        seed: int = 0,
        block_s: float = BLOCK_S,
        busy: bool = True,
    ) -> None:
        self.clocks = clocks
        self.rows = round(block_s * RATE_HZ)
        self.block_s = block_s
        self.busy = busy
        self.rate_hz = RATE_HZ * (1 + ppm * 1e-6)
        self.start_s = clocks.now_s + latency_s
        self.random = random.Random(seed)
        self.captured = 0  # samples that the card has made
        self.position = 0  # samples that came through
        self.burst = 0
        self.blocks = 0

    def block(self, lost: int = 0) -> tuple[int, float]:
        """The next block's end and arrival; `lost` samples vanish before it."""
        self.captured += lost + self.rows
        self.position += self.rows
        self.blocks += 1
        self.clocks.now_s = max(self.clocks.now_s, self.truth_s() + self.late_s())
        return self.position, self.clocks.now_s

    def wander(self, ppm: float) -> None:
        """Another rate from here on."""
        truth_s = self.truth_s()
        self.rate_hz = RATE_HZ * (1 + ppm * 1e-6)
        self.start_s = truth_s - self.captured / self.rate_hz

    def truth_s(self) -> float:
        """When the card had made all that came through so far."""
        return self.start_s + self.captured / self.rate_hz

    def late_s(self) -> float:
        """Scheduling: some ms; pairs of blocks: one of two is late; a machine that is busy for 1 to 7 s."""
        self.burst -= 1
        if self.busy and self.burst < -3 / self.block_s and self.random.random() < self.block_s / 60:
            self.burst = round(self.random.uniform(1, 7) / self.block_s)
        busy_s = self.random.uniform(0.1, 0.6) if self.burst > 0 else 0.0
        pair_s = self.block_s * (self.blocks % 2)
        return self.random.expovariate(1 / 0.003) + pair_s + busy_s


def heard(clock: SampleClock, card: Card, seconds: float) -> Iterator[int]:
    """Run for so long; what `lost` says after each block."""
    for _ in range(round(seconds / BLOCK_S)):
        clock.observe(*card.block())
        yield clock.lost()


def fields(change: ClockChange | None) -> tuple[object, ...]:
    """What a change says, the jump to the millisecond."""
    assert change is not None
    return change.sample, change.utc, round(change.jump_s, 3), change.was_synchronised, change.synchronised


def test_clocks_are_the_machines() -> None:
    clocks = Clocks()
    assert clocks.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(clocks.steady_s() - uptime_s) < 0.5
    assert clocks.steady_s() <= clocks.steady_s()
    assert clocks.suspended_s() == pytest.approx(
        time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC), abs=0.01
    )
    assert abs((clocks.utc() - datetime.now(timezone.utc)).total_seconds()) < 0.5
    assert clocks.utc().utcoffset() == timedelta(0)


def test_synchronisation_is_what_the_kernel_says() -> None:
    found = subprocess.run(
        [sys.executable, "-c", KERNEL_SAYS], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert found.stdout.strip() == str(Clocks().synchronised())


# Another way to the same answer: adjtimex returns TIME_ERROR (5) while STA_UNSYNC is set.
KERNEL_SAYS = """
import ctypes
timex = (ctypes.c_byte * 1024)()
print(ctypes.CDLL(None).adjtimex(timex) != 5)
"""

# Forbids adjtimex and clock_adjtime to this process as ProtectClock=yes does: they fail with EPERM.
FORBIDDEN = """
import ctypes, platform, struct
from orcawatch.clock import TIMESYNC, Clocks
numbers = {"x86_64": (159, 305), "aarch64": (171, 266)}[platform.machine()]
rules = [(0x20, 0, 0, 0), (0x15, 1, 0, numbers[0]), (0x15, 0, 1, numbers[1]), (0x06, 0, 0, 0x00050001),
         (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
libc = ctypes.CDLL(None, use_errno=True)
kept = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, kept, 0, 0) == 0, ctypes.get_errno()
timex = (ctypes.c_byte * 1024)()
assert libc.adjtimex(timex) == -1 and ctypes.get_errno() == 1
print(Clocks().synchronised() is (True if TIMESYNC.exists() else None))
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="system call numbers are not known here")
def test_a_forbidden_adjtimex_leaves_synchronisation_unknown() -> None:
    found = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("True", 0), found.stderr


def test_slope_is_that_of_the_lowest_line() -> None:
    dice = random.Random(1)
    points = [(x, 5.0 + 3e-4 * x + dice.expovariate(20)) for x in range(600)]
    slopes = [
        (b[1] - a[1]) / (b[0] - a[0])
        for a in points
        for b in points
        if a[0] < 299.5 <= b[0]
        and all(a[1] + (b[1] - a[1]) / (b[0] - a[0]) * (c[0] - a[0]) <= c[1] + 1e-12 for c in points)
    ]
    assert lower_slope(points) == pytest.approx(slopes[0], abs=1e-12)
    assert lower_slope(points[:1]) == 0


@pytest.mark.parametrize("ppm", [-200.0, -20.0, 0.0, 100.0, 750.0])
def test_drift_is_measured_through_jitter_and_positions_are_timed(ppm: float) -> None:
    clocks = FakeClocks()
    card = Card(clocks, ppm)
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    worst_s = 0.0
    for number, lost in enumerate(heard(clock, card, 1500)):
        assert lost == 0
        if number > 300:
            worst_s = max(worst_s, abs(clock.steady_at(card.position) - card.truth_s()))
            assert abs(clock.sample_at(card.truth_s()) - card.position) < 0.01 * RATE_HZ
    assert clock.drift_ppm == pytest.approx(ppm, abs=2)
    assert worst_s < 0.01


def test_drift_is_unknown_at_first() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks, 100)
    assert not any(heard(clock, card, 100)) and clock.drift_ppm is None
    assert not any(heard(clock, card, 60)) and clock.drift_ppm is not None


def test_a_first_block_that_is_late_or_a_step_down_is_no_loss() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    card = Card(clocks, 750, latency_s=0.4)
    for number in range(4000):
        if number == 70:
            card.start_s -= 0.2
        clock.observe(*card.block())
        assert clock.lost() == 0
    assert clock.steady_at(card.position) == pytest.approx(card.truth_s(), abs=0.01)
    assert clock.drift_ppm == pytest.approx(750, abs=2)


def test_a_device_that_is_opened_again_goes_on_with_the_rate_that_was_measured() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    card = Card(clocks, 100)
    assert not any(heard(clock, card, 300))
    before_s = card.truth_s()
    clocks.now_s += 3600
    start = clock.sample_at(clocks.now_s)
    assert (start - card.position) / RATE_HZ == pytest.approx((clocks.now_s - before_s) * (1 + 100e-6), abs=0.01)
    again = Card(clocks, 100, latency_s=0.02, seed=2)
    again.start_s, again.position = clocks.now_s, start
    clock.begin(start, clocks.now_s)
    assert clock.steady_at(start) == pytest.approx(clocks.now_s, abs=1e-6)
    assert not any(heard(clock, again, 300))
    assert clock.steady_at(again.position) == pytest.approx(again.truth_s(), abs=0.01)
    assert clock.drift_ppm == pytest.approx(100, abs=5)


@pytest.mark.parametrize("lost_s", [0.08, 0.3, 5.0])
def test_unreported_loss_is_found_once_and_to_a_few_milliseconds(lost_s: float) -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks, -150)
    assert not any(heard(clock, card, 60))
    clock.observe(*card.block(lost=round(lost_s * RATE_HZ)))
    found = []
    for number in range(1200):
        clock.observe(*card.block())
        if lost := clock.lost():
            found.append((number * BLOCK_S, lost))
            card.position += lost
    ((after_s, lost),) = found
    assert after_s < 12
    assert lost / RATE_HZ == pytest.approx(lost_s, abs=0.005)
    assert clock.steady_at(card.position) == pytest.approx(card.truth_s(), abs=0.01)


def test_a_steady_leak_is_lost_samples_and_time_stays_right() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks)
    leak = round(0.01 * BLOCK_S * RATE_HZ)  # of each block
    found = 0
    for _ in range(6000):
        clock.observe(*card.block(lost=leak))
        lost = clock.lost()
        found += lost
        card.position += lost
    assert found / (6000 * leak) == pytest.approx(0.8, abs=0.05)  # two of ten parts in a thousand may be drift
    assert abs(clock.steady_at(card.position) - card.truth_s()) < 0.4


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-200, 200),
    st.integers(1, 5 * RATE_HZ),
    st.floats(0.5, 400),
    st.integers(0, 2**32),
)
def test_a_reported_overrun_is_measured(ppm: float, lost: int, before_s: float, seed: int) -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks, ppm, seed=seed)
    assert not any(heard(clock, card, before_s + 2))
    card.busy = False  # for the seconds in which the overrun is measured
    while card.burst > 0:
        clock.observe(*card.block())
    since_s = clocks.now_s
    clock.observe(*card.block(lost=lost))
    for _ in range(20):
        clock.observe(*card.block())
    measured = clock.measured(since_s)
    assert abs(measured - lost) < 0.015 * RATE_HZ
    card.position += measured
    assert clock.measured(clocks.now_s) == 0
    assert not any(heard(clock, card, 60))
    assert clock.steady_at(card.position) == pytest.approx(card.truth_s(), abs=0.02)


def test_nothing_was_lost_where_arrivals_are_on_time() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks)
    assert clock.measured(clocks.now_s) == 0 and clock.lost() == 0
    assert not any(heard(clock, card, 100))
    since_s = clocks.now_s
    assert not any(heard(clock, card, 5))
    assert clock.measured(since_s) < 0.005 * RATE_HZ


def test_a_suspend_is_seen_by_the_clocks_and_measured_as_an_overrun() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks, 50)
    assert not any(heard(clock, card, 400))
    before_s, since_s = clocks.suspended_s(), clocks.now_s
    clocks.suspended += 7200
    clocks.now_s += 7200
    for _ in range(20):
        clock.observe(*card.block(lost=0 if _ else round(7200 * card.rate_hz)))
    assert clocks.suspended_s() - before_s == 7200
    assert clock.measured(since_s) / card.rate_hz == pytest.approx(7200, abs=0.02)


def test_utc_follows_the_system_clock_and_jumps_are_told() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    assert clock.check(0) is None and clock.utc_at(0) == START
    clocks.now_s += 10
    clocks.utc_s -= 3600
    change = clock.check(10 * RATE_HZ)
    back = START + timedelta(seconds=10 - 3600)
    assert fields(change) == (10 * RATE_HZ, back, -3600, True, True)
    assert clock.check(10 * RATE_HZ) is None
    clocks.now_s += 10
    clocks.utc_s += 7200
    assert clock.check(20 * RATE_HZ) is not None
    assert clock.utc_at(10 * RATE_HZ - 1) == pytest.approx(START + timedelta(seconds=10), abs=timedelta(milliseconds=1))
    assert clock.utc_at(10 * RATE_HZ) == back
    assert clock.utc_at(20 * RATE_HZ) == START + timedelta(seconds=20 + 3600)


def test_a_slow_correction_is_followed_silently() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    for second in range(1, 1000):
        clocks.now_s += 1
        clocks.utc_s += 0.01
        assert clock.check(second * RATE_HZ) is None
    assert clock.utc_at(999 * RATE_HZ) == pytest.approx(clocks.utc(), abs=timedelta(milliseconds=2))
    assert clock.utc_at(500 * RATE_HZ) == pytest.approx(
        START + timedelta(seconds=500 * 1.01), abs=timedelta(milliseconds=2)
    )


@pytest.mark.parametrize("before", [False, None])
def test_becoming_synchronised_is_told_and_puts_earlier_positions_right(before: bool | None) -> None:
    clocks = FakeClocks(before)
    clocks.utc_s -= 1e6
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    clocks.now_s += 5
    clocks.utc_s += 1000  # set by hand, still wrong
    assert fields(clock.check(5 * RATE_HZ)) == (5 * RATE_HZ, clocks.utc(), 1000, before, before)
    clocks.now_s += 5
    clocks.utc_s += 1e6 - 1000
    clocks.sure = True
    change = clock.check(10 * RATE_HZ)
    assert fields(change) == (10 * RATE_HZ, clocks.utc(), 1e6 - 1000, before, True)
    assert clock.synchronised is True
    for second in (0, 4, 5, 9, 10):
        assert clock.utc_at(second * RATE_HZ) == START + timedelta(seconds=second)


def test_losing_synchronisation_is_told_and_changes_no_time() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.now_s)
    clocks.now_s += 5
    clocks.sure = False
    assert clock.check(5 * RATE_HZ) == ClockChange(5 * RATE_HZ, clocks.utc(), 0.0, True, False)
    assert clock.utc_at(RATE_HZ) == START + timedelta(seconds=1)


def test_real_clocks_through_a_sample_clock() -> None:
    clocks = Clocks()
    clock = SampleClock(RATE_HZ, clocks)
    clock.begin(0, clocks.steady_s())
    assert clock.check(0) is None
    now = clock.sample_at(clocks.steady_s())
    assert abs((clock.utc_at(now) - datetime.now(timezone.utc)).total_seconds()) < 0.2


def test_a_simulated_day_of_jitter_shows_no_false_loss() -> None:
    clocks = FakeClocks()
    clock = SampleClock(RATE_HZ, clocks)
    card = Card(clocks, 60, seed=7, block_s=0.5)
    worst_s = 0.0
    for number in range(172800):
        card.wander(60 + 5 * math.sin(number / 16000))
        clock.observe(*card.block())
        assert clock.lost() == 0
        worst_s = max(worst_s, clock.steady_at(card.position) - card.truth_s() if number > 10 else 0)
    assert worst_s < LATE_S / 2
    assert clock.drift_ppm == pytest.approx(60 + 5 * math.sin(172800 / 16000), abs=1)
