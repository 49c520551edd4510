"""A sound card as a source: every sample has its place in time, and every hole its size and cause."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event as Flag
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from .clock import SampleClock, Timekeeper
from .config import SourceSettings
from .durable import Complaint
from .errors import AudioError
from .feed import COMMAND, Chunk, Ended, Event, Feed
from .records import AudioBlock, ClockChange, Item, Missing, StreamInfo
from .soundcard import CaptureError, Opened, plain

log = logging.getLogger(__name__)

HOLD_S = 1.5  # of arrivals, before which nobody can tell how late they are
MOST_HOLD_S = 6.0  # where seams follow each other
MARGIN_S = 1.0  # a card that comes back gives audio from before that moment, at most so much
SUSPENDED_S = 0.5  # less is the two clocks read one after the other
LOOK_S = 1.0  # between two looks at the system clock
PATIENT_WAITS = 6  # of half a second, before it is told what is waited for
DRAIN_S = 20.0  # of scoring what waits after the stop
MOST_CHANNELS = 8  # of a card that has more, where nobody says how many


@dataclass(frozen=True)
class Hole:
    """Samples that are missing before the next audio."""

    rows: int
    kind: str
    cause: str


class Track:
    """Gives audio its positions in the stream, and what is missing between; every position once, in order.

    A card's samples count on by themselves. Where it lost some and says so (an overrun, a suspended machine), what
    follows is held for `HOLD_S`, until the clock tells from the arrivals how many they were; where it was opened anew,
    until the clock tells when it began. A seam is at least one sample wide, so that no window spans it.

    Parameters
    ----------
    rate_hz : of the stream.
    clock : the stream's.
    began_s : steady time at which the stream begins where no audio comes at once.

    Attributes
    ----------
    position : of the next item.
    overruns : how often the card said that it lost audio.
    unnoticed : samples that were lost though nobody said so.
    """

    def __init__(self, rate_hz: int, clock: SampleClock, began_s: float) -> None:
        self.position = 0
        self.overruns = self.unnoticed = 0
        self._rate_hz = rate_hz
        self._clock = clock
        self._began_s: float | None = began_s  # None once position 0 has its time
        self._format = "float32"
        self._base: int | None = None  # position of the card's first sample; None until its audio was held
        self._before: Chunk | None = None  # the last chunk of this card
        self._held: list[tuple[Chunk, str | None]] = []  # and why samples are missing before the chunk
        self._seams: list[tuple[float, float]] = []  # the arrivals before and after each of those
        self._holes: list[Hole] = []
        self._gone: str | None = None  # why there is no card; None while there is one
        self._losing = Complaint(log)

    def take(self, event: Event) -> Iterator[Item]:
        """Yield what an event makes known."""
        if isinstance(event, Opened):
            self._format = event.sample_format
        elif isinstance(event, Ended):
            yield from self._end(event)
        else:
            yield from self._hear(event) if self._base is not None else self._hold(event)

    def tick(self, now_s: float) -> Iterator[Missing]:
        """Yield what is missing by now, where there is no card."""
        if self._gone is None or self._held:
            return
        end = self._clock.sample_at(now_s - MARGIN_S)
        if end > self.position:
            yield self._missing(Hole(end - self.position, "gap", self._gone))

    def _hold(self, chunk: Chunk) -> Iterator[Item]:
        self._held.append((chunk, None))
        if chunk.steady_s - self._held[0][0].steady_s >= HOLD_S:
            yield from self._begin()

    def _begin(self) -> Iterator[Item]:
        """Place a card's first samples by the earliest of their arrivals, and go on from there."""
        held = self._released()
        moment_s = min(chunk.steady_s - chunk.end / self._rate_hz for chunk, _ in held)
        self._base = 0 if self._began_s is not None else max(self.position + 1, self._clock.sample_at(moment_s))
        if self._base > self.position:
            self._holes.append(Hole(self._base - self.position, "gap", self._gone or "device gone"))
        self._clock.begin(self._base, moment_s)
        self._began_s = self._gone = None
        for chunk, _ in held:
            yield from self._hear(chunk)

    def _released(self) -> list[tuple[Chunk, str | None]]:
        held, self._held = self._held, []
        return held

    def _hear(self, chunk: Chunk) -> Iterator[Item]:
        base, before, self._before = self._base or 0, self._before, chunk
        self._clock.observe(base + chunk.end, chunk.steady_s)
        cause = flagged(before, chunk)
        if cause is not None and before is not None:
            self._seams.append((before.steady_s, chunk.steady_s))
            self.overruns += cause == OVERRUN
        if not self._seams:
            self._look_for_losses()
            yield from self._place(chunk)
            return
        self._held.append((chunk, cause))
        since_first_s, since_last_s = (chunk.steady_s - self._seams[index][1] for index in (0, -1))
        if since_last_s >= HOLD_S or since_first_s >= MOST_HOLD_S:
            yield from self._settle()

    def _settle(self) -> Iterator[Item]:
        """Ask the clock how much was lost at the seams, and let go of what was held since.

        The arrivals after the last seam tell the sum of all; it stands at the first. Where seams come without end, the
        newest arrivals tell, and what that leaves out is found at the next ones.
        """
        if not self._seams:
            return
        held, seams = self._released(), self._seams
        since_s = max(seams[0][0], min(seams[-1][0], held[-1][0].steady_s - HOLD_S))
        lost, self._seams = max(len(seams), self._clock.measured(since_s)), []
        for chunk, cause in held:
            if cause is not None:
                rows, lost = max(1, lost - len(seams) + 1), 0
                self._widen(Hole(rows, "gap", cause))
            yield from self._place(chunk)

    def _look_for_losses(self) -> None:
        lost = self._clock.lost()
        if lost:
            self.unnoticed += lost
            self._losing.say(f"{lost / self._rate_hz:.3f} s of audio were lost without notice in the last seconds")
            self._widen(Hole(lost, "gap", "samples lost without notice"))

    def _widen(self, hole: Hole) -> None:
        self._base = (self._base or 0) + hole.rows
        self._holes.append(hole)

    def _place(self, chunk: Chunk) -> Iterator[Item]:
        start = (self._base or 0) + chunk.first
        yield from self._missing_before(chunk, start)
        samples = decoded(chunk.samples, self._format, chunk.rows)
        self.position = start + chunk.rows
        yield AudioBlock(samples, start)

    def _missing_before(self, chunk: Chunk, start: int) -> Iterator[Missing]:
        holes, self._holes = self._holes, []
        dropped = start - self.position - chunk.shed - sum(hole.rows for hole in holes)
        if dropped:
            holes.append(Hole(dropped, "gap", "the capture process found no room"))
        if chunk.shed:
            holes.append(Hole(chunk.shed, "shed", SHED))
        yield from map(self._missing, holes)

    def _missing(self, hole: Hole) -> Missing:
        start, self.position = self.position, self.position + hole.rows
        return Missing(start, self.position, hole.kind, hole.cause)

    def _end(self, ended: Ended) -> Iterator[Item]:
        """Let go of everything; from now on there is no card, for the reason that was given first."""
        if self._held and self._base is None:
            yield from self._begin()
        yield from self._settle()
        if ended.shed and self._base is not None:
            yield self._missing(Hole(ended.shed, "shed", SHED))
        if self._began_s is not None:
            self._clock.begin(0, self._began_s)
        self._began_s = self._base = self._before = None
        self._gone = self._gone or f"device gone: {ended.text}"


OVERRUN = "overrun"
SHED = "inference is behind"
STOPPED = "stopped before it was scored"


def flagged(before: Chunk | None, chunk: Chunk) -> str | None:
    """Why an unknown number of samples is missing between two chunks of a card; None where none is said to be."""
    if before is None:
        return None
    if chunk.suspended_s - before.suspended_s > SUSPENDED_S:
        return "suspended"
    return OVERRUN if chunk.overrun else None


def decoded(samples: bytes, sample_format: str, rows: int) -> NDArray[np.float32]:
    """Interleaved samples as float32, full scale 1.0, shape (rows, channels)."""
    if sample_format == "float32":
        return np.frombuffer(samples, "<f4").reshape(rows, -1)
    if sample_format == "int24":
        packed = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(packed), 4), np.uint8)
        wide[:, 1:] = packed
        return scaled(wide.view("<i4"), 31, rows)
    return scaled(np.frombuffer(samples, SIGNED[sample_format]), 8 * int(SIGNED[sample_format][-1]) - 1, rows)


SIGNED = {"int16": "<i2", "int32": "<i4"}


def scaled(samples: NDArray[Any], bits: int, rows: int) -> NDArray[np.float32]:
    """Whole numbers over 2 ** bits; powers of two lose nothing but what float32 cannot hold."""
    return np.asarray(samples.astype(np.float32) * np.float32(2.0**-bits), np.float32).reshape(rows, -1)


class LiveSource:
    """A sound card, captured by a process of its own; opened again where it goes away.

    Parameters
    ----------
    settings : the section `source`.
    clocks : the machine's.
    queue_s : audio that may wait to be scored; what does not fit is shed.
    needed : channels that are used; None where all are.
    jump_s : see `SampleClock`.
    command : the capture process.

    Attributes
    ----------
    clock : of the stream; None while its rate is unknown.
    """

    waits = False

    def __init__(
        self,
        settings: SourceSettings,
        clocks: Timekeeper,
        queue_s: float = 30.0,
        needed: int | None = None,
        jump_s: float = 0.5,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.clock: SampleClock | None = None
        self._settings = settings
        self._clocks = clocks
        self._needed = needed
        self._jump_s = jump_s
        self._stop = Flag()
        self._info: StreamInfo | None = None
        self._known = Flag()
        self._default: Opened | None = None  # the system's default input, as it was first found
        self._track: Track | None = None
        self._feed = Feed(
            command, self._options, self._accept, queue_s,
            settings.stalled_s, settings.retry_least_s, settings.retry_most_s,
        )  # fmt: skip
        if settings.rate_hz is not None and settings.device_channels is not None:
            self._learn(settings.device or "default input", settings.rate_hz, settings.device_channels)

    @property
    def info(self) -> StreamInfo:
        """What is yielded.

        Raises
        ------
        AudioError : no card was opened yet, and the settings do not say.
        """
        if self._info is None:
            raise AudioError(UNKNOWN)
        return self._info

    @property
    def behind_s(self) -> float:
        """Audio that has come and was not asked for yet, seconds."""
        return self._feed.behind_s

    @property
    def reopens(self) -> int:
        """How often a card was opened again."""
        return max(0, self._feed.opened - 1)

    @property
    def overruns(self) -> int:
        """How often the card said that it lost audio."""
        return 0 if self._track is None else self._track.overruns

    @property
    def unnoticed_s(self) -> float:
        """Audio that was lost though nobody said so, seconds."""
        return 0.0 if self._track is None else self._track.unnoticed / self.info.rate_hz

    @property
    def shed_s(self) -> float:
        """Audio that found no room in the queue, seconds."""
        return 0.0 if self._info is None else self._feed.waiting.shed / self._info.rate_hz

    @property
    def pid(self) -> int | None:
        """Number of the capture process; None before the first."""
        return self._feed.pid

    def open(self, stop: Flag | None = None, on_wait: Callable[[], object] = lambda: None) -> bool:
        """Begin to capture, and wait until rate and channels are known: at once where the settings give both.

        Parameters
        ----------
        stop : ends the waiting, and later `blocks`.
        on_wait : called every half second of waiting.

        Returns
        -------
        Whether `info` is known; otherwise it was told to stop.
        """
        self._stop = self._stop if stop is None else stop
        self._feed.start()
        waits = 0
        while not self._known.wait(0.5) and not self._stop.is_set():
            on_wait()
            waits += 1
            if waits == PATIENT_WAITS:
                log.warning("%s", UNKNOWN)
        return self._info is not None

    def close(self) -> None:
        """End the capture process; may be called again."""
        self._feed.close()

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def utc_at(self, sample: int) -> datetime | None:
        """UTC at which the card reached a position; None while the rate is unknown."""
        return None if self.clock is None else self.clock.utc_at(sample)

    def blocks(self) -> Iterator[Item]:
        """Yield audio and what is missing of it, at least once a second while there is no card, until told to stop.

        What waits then is still yielded for `DRAIN_S`; what is left after that is shed. A change of the system clock
        comes before the first item that begins after it.
        """
        changes = Changes(self._clocks)
        for item in self._items(self.info.rate_hz):
            if self.clock is not None:
                yield from changes.until(item_start(item), self.clock)
            yield item

    def _items(self, rate_hz: int) -> Iterator[Item]:
        self._feed.start()
        if self.clock is None:
            raise AudioError(UNKNOWN)
        self._track = track = Track(rate_hz, self.clock, self._clocks.steady_s())
        while not self._stop.is_set():
            event = self._feed.waiting.get(0.5)
            if event is not None:
                yield from track.take(event)
            yield from track.tick(self._clocks.steady_s())
        self._feed.close()
        yield from within(DRAIN_S, self._rest(track, self._clocks.steady_s()))

    def _rest(self, track: Track, stopped_s: float) -> Iterator[Item]:
        """Yield what came before the capture process was ended."""
        waiting = self._feed.waiting
        while (event := waiting.get(0)) is not None:
            yield from track.take(event)
        yield from track.tick(stopped_s + MARGIN_S)
        yield from track.take(Ended("stopped", waiting.unplaced))

    def _learn(self, name: str, rate_hz: int, channels: int) -> None:
        self.clock = SampleClock(rate_hz, self._clocks, self._jump_s)
        self._info = StreamInfo(name, rate_hz, channels, live=True)
        self._known.set()

    def _options(self) -> dict[str, Any]:
        """What the capture process is to open: what was opened before, where it was."""
        settings, default, info = self._settings, self._default, self._info
        return {
            "device": settings.device if default is None else plain(default.name),
            "hostapi": settings.hostapi if default is None else default.hostapi,
            "channels": settings.device_channels or self._needed if info is None else info.channels,
            "most_channels": MOST_CHANNELS,
            "rate_hz": settings.rate_hz if info is None else info.rate_hz,
            "sample_format": settings.sample_format,
            "block_s": settings.block_s,
            "latency_s": settings.latency_s,
        }

    def _accept(self, opened: Opened) -> None:
        """Take what was opened first as what the stream is; refuse what differs later."""
        if self._info is None:
            self._feed.waiting.clear()  # of cards that could not be opened: the stream begins with this one
            self._learn(self._settings.device or plain(opened.name), opened.rate_hz, opened.channels)
        info = self.info
        if (opened.rate_hz, opened.channels) != (info.rate_hz, info.channels):
            raise CaptureError(OTHER.format(opened.name, opened.channels, opened.rate_hz, info.channels, info.rate_hz))
        if self._settings.device is None and self._default is None:
            self._default = opened
        log.info(
            "%r (%s) is open: %d channels of %s at %d Hz, latency %.2f s",
            opened.name, opened.hostapi, opened.channels, opened.sample_format, opened.rate_hz, opened.latency_s,
        )  # fmt: skip


UNKNOWN = (
    "waiting for the sound card, to learn its rate and channels: source.rate_hz and source.device_channels in the "
    "settings let the stream begin without it"
)
OTHER = (
    "{!r} came back with {} channels at {} Hz, and the stream has {} at {} Hz: set it back, or start orcawatch again"
)


def within(seconds: float, items: Iterator[Item]) -> Iterator[Item]:
    """Yield items; after so many seconds, audio as what was shed."""
    until_s = time.monotonic() + seconds
    for item in items:
        late = isinstance(item, AudioBlock) and time.monotonic() > until_s
        yield Missing(item.start_sample, item.end_sample, "shed", STOPPED) if late else item  # type: ignore[union-attr]


class Changes:
    """Looks at the system clock, and keeps what it did until the stream gets there."""

    def __init__(self, clocks: Timekeeper) -> None:
        self._clocks = clocks
        self._looked_s = clocks.steady_s()
        self._found: deque[ClockChange] = deque()

    def until(self, start: int, clock: SampleClock) -> Iterator[ClockChange]:
        """Yield what changed up to a position."""
        now_s = self._clocks.steady_s()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            change = clock.check(max(start, clock.sample_at(now_s)))
            self._found.extend([] if change is None else [change])
        while self._found and self._found[0].sample <= start:
            yield self._found.popleft()


def item_start(item: Item) -> int:
    """Position at which an item begins."""
    return item.sample if isinstance(item, ClockChange) else item.start_sample
