"""Clocks: the machine's, and the one that the sound card's samples keep."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import RLock
from typing import Protocol

from .records import ClockChange

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIMESYNC = Path("/run/systemd/timesync/synchronized")  # systemd-timesyncd makes it when it has first set the clock
UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

BIN_S = 1.0  # of the arrivals in this long, the earliest is kept
FIT_S = 600.0  # how far back the line through the earliest arrivals reaches
FIT_LEAST_S = 20.0  # what it takes to follow the drift
DRIFT_LEAST_S = 120.0  # what it takes to tell it
REFIT_S = 5.0
STEEPEST = 2000e-6  # a card that is slower than this is losing samples; PulseAudio's null sink is off by 750e-6
LOSS_S = 10.0
LOSS_BLOCKS = 5
LATE_S = 0.05  # all arrivals of LOSS_S are later than this: samples were lost
SLEW_S = 0.001  # a change of the offset to UTC that is worth a note
STEPS_KEPT = 4096


class Timekeeper(Protocol):
    """The machine's clocks, or others in a test.

    Attributes
    ----------
    boot : what tells this start of the machine from others; empty where that is unknown.
    """

    @property
    def boot(self) -> str: ...

    def steady_s(self) -> float:
        """Seconds since the machine started: goes on in suspend, never jumps."""
        ...

    def suspended_s(self) -> float:
        """How much of `steady_s` the machine was suspended."""
        ...

    def utc(self) -> datetime:
        """What the system clock says, timezone-aware."""
        ...

    def synchronised(self) -> bool | None:
        """Whether the system clock follows a reference; None where that cannot be told."""
        ...


class Clocks:
    """The machine's clocks (Linux)."""

    def __init__(self) -> None:
        self.boot = read_boot()

    def steady_s(self) -> float:
        """CLOCK_BOOTTIME, seconds: goes on in suspend, never jumps."""
        return time.clock_gettime(BOOT_CLOCK)

    def suspended_s(self) -> float:
        """CLOCK_BOOTTIME less CLOCK_MONOTONIC, seconds."""
        return max(0.0, -time.clock_gettime(time.CLOCK_MONOTONIC) + time.clock_gettime(BOOT_CLOCK))

    def utc(self) -> datetime:
        """CLOCK_REALTIME, timezone-aware."""
        return datetime.now(timezone.utc)

    def synchronised(self) -> bool | None:
        """Whether the kernel was told that its clock follows a reference (adjtimex without STA_UNSYNC).

        Where the kernel may not be asked (`ProtectClock=yes` of systemd), systemd-timesyncd's mark is proof of a clock
        that was set; without it nothing is known: None.
        """
        return read_synchronised()


def read_boot() -> str:
    """The kernel's random number of this start; empty where there is none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Timex(ctypes.Structure):
    """The first fields of `struct timex`, and room for the others."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("most_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def read_synchronised() -> bool | None:
    """See `Clocks.synchronised`."""
    status = kernel_status()
    if status is not None:
        return not status & UNSYNCHRONISED
    return True if TIMESYNC.exists() else None


def kernel_status() -> int | None:
    """The status word of adjtimex(2), which is only read; None where the kernel or the C library refuses."""
    timex = Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else timex.status


@dataclass(frozen=True)
class Line:
    """Lateness of the earliest arrivals over the stream's nominal time.

    Attributes
    ----------
    offset_s : lateness at position 0, seconds.
    slope : growth per nominal second; negative where the card is fast.
    """

    offset_s: float = 0.0
    slope: float = 0.0

    def at(self, nominal_s: float) -> float:
        """Lateness there, seconds."""
        return self.offset_s + self.slope * nominal_s


def lower_hull(points: Collection[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the lower convex hull of points that are sorted by their first number."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line between its neighbours."""
    rise = (right[1] - left[1]) * (middle[0] - left[0])
    return (middle[1] - left[1]) * (right[0] - left[0]) >= rise


def lower_slope(points: Collection[tuple[float, float]]) -> float:
    """Slope of the line below all points whose mean distance to them is least.

    It runs along the edge of the lower hull that spans the points' mean (the linear programme of Moon, Skelly and
    Towsley, Estimation and Removal of Clock Skew from Network Delay Measurements, 1999): delays are never negative, so
    late points do not move it.
    """
    hull = lower_hull(points)
    mean = sum(x for x, _ in points) / len(points)
    for (x0, y0), (x1, y1) in zip(hull, hull[1:]):
        if x1 >= mean:
            return (y1 - y0) / (x1 - x0)
    return 0.0


class SampleClock:
    """Where a live stream is in time: sample position <-> steady time <-> UTC.

    Blocks arrive late, never early: scheduling, block lengths and bursts add up to hundreds of milliseconds. So the
    earliest arrivals carry the truth. The line through them gives the card's rate against the steady clock, and where
    even the earliest arrivals of `LOSS_S` are more than `LATE_S` late, samples are missing.

    May be used from several threads.

    Parameters
    ----------
    rate_hz : nominal samples per second.
    clocks : the machine's.
    jump_s : a system clock that moves by more than this at once was stepped; less is followed silently.
    """

    def __init__(self, rate_hz: int, clocks: Timekeeper, jump_s: float = 0.5) -> None:
        self._rate_hz = rate_hz
        self._clocks = clocks
        self._jump_s = jump_s
        self._lock = RLock()
        self._origin_s = clocks.steady_s()
        self._line = Line()
        self._fresh = True  # no block has come since `begin`
        self._fitted_s = self._origin_s
        self._bins: deque[tuple[float, float]] = deque()  # (nominal time, lateness) of the earliest of each BIN_S
        self._recent: deque[tuple[float, float, float]] = deque()  # (arrival, nominal time, lateness) of LOSS_S
        self._settled_s = self._origin_s  # losses before this moment are accounted for
        self._drift: float | None = None
        self._steps = Steps(clocks)

    def begin(self, sample: int, steady_s: float) -> None:
        """The stream is at position `sample` at `steady_s`: its start, or a device that was opened again.

        What was learnt of the rate and of UTC stays; lateness is measured anew, from the first block that comes.
        """
        nominal_s = sample / self._rate_hz
        with self._lock:
            self._anchor(nominal_s, steady_s - self._origin_s - nominal_s)
            self._fresh = True

    def observe(self, end_sample: int, steady_s: float) -> None:
        """A block that ends just before position `end_sample` has arrived."""
        nominal_s = end_sample / self._rate_hz
        with self._lock:
            late_s = steady_s - self._origin_s - nominal_s
            self._lower(nominal_s, late_s)
            self._recent.append((steady_s, nominal_s, late_s))
            self._age(steady_s)

    def lost(self) -> int:
        """How many samples are missing that nobody reported, of the arrivals of the last `LOSS_S`; mostly 0.

        What is returned is accounted for: the caller moves all later positions on by it.
        """
        with self._lock:
            found = [arrival for arrival in self._recent if arrival[0] > self._settled_s]
            if len(self._bins) < LOSS_BLOCKS or len(found) < LOSS_BLOCKS:
                return 0
            if found[-1][0] - found[0][0] < 0.9 * LOSS_S:
                return 0
            return self._missing(found, LATE_S)

    def measured(self, since_s: float) -> int:
        """How many samples are missing, going by the arrivals after `since_s` (steady); ask 1 to 2 s after a report.

        What is returned is accounted for: the caller moves all later positions on by it.
        """
        with self._lock:
            return self._missing([arrival for arrival in self._recent if arrival[0] > since_s], 0.0)

    def sample_at(self, steady_s: float) -> int:
        """Position that the card reached at a moment."""
        with self._lock:
            passed_s = steady_s - self._origin_s - self._line.offset_s
            return round(passed_s / (1 + self._line.slope) * self._rate_hz)

    def steady_at(self, sample: int) -> float:
        """Moment at which the card reached a position, seconds of the steady clock."""
        nominal_s = sample / self._rate_hz
        with self._lock:
            return self._origin_s + nominal_s + self._line.at(nominal_s)

    @property
    def drift_ppm(self) -> float | None:
        """How much faster than nominal the card runs, parts per million; None until `DRIFT_LEAST_S` were heard."""
        return None if self._drift is None else -self._drift * 1e6

    @property
    def synchronised(self) -> bool | None:
        """Whether the system clock followed a reference when it was last checked."""
        return self._steps.synchronised

    def check(self, sample: int) -> ClockChange | None:
        """Look at the system clock; what it did since the last look counts from position `sample` on.

        Returns
        -------
        What changed: it moved by more than `jump_s`, or its synchronisation changed. None where nothing did.
        """
        with self._lock:
            was = self._steps.synchronised
            jump_s = self._steps.look(self.steady_at(sample), self._jump_s)
            now = self._steps.synchronised
            if not jump_s and was == now:
                return None
            return ClockChange(sample, self.utc_at(sample), jump_s, was, now)

    def utc_at(self, sample: int) -> datetime:
        """UTC at which the card reached a position, by the system clock as it was then.

        Before the clock became synchronised it was wrong: from then on those positions are given by the right clock.
        """
        with self._lock:
            return self._steps.utc(self.steady_at(sample))

    def _anchor(self, nominal_s: float, late_s: float) -> None:
        """Begin the envelope anew, through one point."""
        self._bins.clear()
        self._recent.clear()
        self._line = Line(late_s - self._line.slope * nominal_s, self._line.slope)

    def _lower(self, nominal_s: float, late_s: float) -> None:
        """An arrival before all others lowers the line; far before them, it shows that those were all late."""
        early_s = self._line.at(nominal_s) - late_s
        if self._fresh or early_s > LATE_S:
            self._anchor(nominal_s, late_s)
        elif early_s > 0:
            self._line = Line(self._line.offset_s - early_s, self._line.slope)
        self._fresh = False

    def _age(self, now_s: float) -> None:
        while self._recent[0][0] <= now_s - LOSS_S:
            _, nominal_s, late_s = self._recent.popleft()
            self._bin(nominal_s, late_s)
        if now_s - self._fitted_s >= REFIT_S and self._bins:
            self._fit()
            self._fitted_s = now_s

    def _bin(self, nominal_s: float, late_s: float) -> None:
        """Keep the earliest of each `BIN_S`."""
        if not self._bins or nominal_s // BIN_S != self._bins[-1][0] // BIN_S:
            self._bins.append((nominal_s, late_s))
        elif late_s < self._bins[-1][1] + self._line.slope * (nominal_s - self._bins[-1][0]):
            self._bins[-1] = (nominal_s, late_s)
        while self._bins[0][0] < nominal_s - FIT_S:
            self._bins.popleft()

    def _fit(self) -> None:
        slope = self._line.slope
        heard_s = self._bins[-1][0] - self._bins[0][0]
        if heard_s >= FIT_LEAST_S:
            slope = min(max(lower_slope(self._bins), -STEEPEST), STEEPEST)
        if heard_s >= DRIFT_LEAST_S:
            self._drift = slope
        points = [*self._bins, *((nominal_s, late_s) for _, nominal_s, late_s in self._recent)]
        self._line = Line(min(late_s - slope * nominal_s for nominal_s, late_s in points), slope)

    def _missing(self, arrivals: Sequence[tuple[float, float, float]], least_s: float) -> int:
        """Samples by which even the earliest of the arrivals is late, if more than `least_s`; they are then dropped."""
        late_s = min((late_s - self._line.at(nominal_s) for _, nominal_s, late_s in arrivals), default=0.0)
        samples = round(late_s / (1 + self._line.slope) * self._rate_hz) if late_s > least_s else 0
        if samples:
            late = set(arrivals)
            self._recent = deque(arrival for arrival in self._recent if arrival not in late)
            self._settled_s = arrivals[-1][0]
        return samples


class Steps:
    """What UTC was ahead of the steady clock, and since when.

    Attributes
    ----------
    synchronised : at the last look.
    """

    def __init__(self, clocks: Timekeeper) -> None:
        self._clocks = clocks
        self.synchronised = clocks.synchronised()
        # (steady time from which on it counts, offset, synchronised)
        self._steps: deque[tuple[float, float, bool | None]] = deque(maxlen=STEPS_KEPT)
        self._steps.append((clocks.steady_s(), read_offset(clocks)[0], self.synchronised))

    def look(self, from_s: float, jump_s: float) -> float:
        """Read the clocks; returns the jump, 0 where the offset moved by `jump_s` or less."""
        offset_s, doubt_s = read_offset(self._clocks)
        now = self._clocks.synchronised()
        moved_s = offset_s - self._steps[-1][1]
        if abs(moved_s) <= max(SLEW_S, 2 * doubt_s):
            moved_s, offset_s = 0.0, self._steps[-1][1]
        if moved_s or now is not self.synchronised:
            if now and not self.synchronised:
                self._correct(offset_s)
            self._steps.append((max(from_s, self._steps[-1][0]), offset_s, now))
        self.synchronised = now
        return moved_s if abs(moved_s) > jump_s else 0.0

    def utc(self, steady_s: float) -> datetime:
        """UTC at a moment."""
        offset_s = next((step[1] for step in reversed(self._steps) if step[0] <= steady_s), self._steps[0][1])
        return EPOCH + timedelta(seconds=steady_s + offset_s)

    def _correct(self, offset_s: float) -> None:
        """Put the right offset in place of those of the time before the clock was synchronised."""
        for at in range(len(self._steps) - 1, -1, -1):
            since_s, _, synchronised = self._steps[at]
            if synchronised:
                return
            self._steps[at] = (since_s, offset_s, synchronised)


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def read_offset(clocks: Timekeeper) -> tuple[float, float]:
    """UTC less steady time, and the most by which that may be wrong because the two are read one after the other."""
    before_s, utc, after_s = clocks.steady_s(), clocks.utc(), clocks.steady_s()
    return (utc - EPOCH).total_seconds() - (before_s + after_s) / 2, (after_s - before_s) / 2
