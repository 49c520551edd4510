"""Sources of audio, and the screen that keeps unusable samples out of the scores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .clock import SampleClock
from .errors import AudioError
from .records import AudioBlock, Item, StreamInfo

log = logging.getLogger(__name__)

LOUDEST = 1e6  # full scale is 1.0; beyond this, power spectra overflow float32
QUIET_S = 1.0


class Source(Protocol):
    """Where audio comes from.

    Attributes
    ----------
    info : what is yielded, fixed for the source's life.
    waits : whether audio stays until it is asked for (a file), or comes whether or not it is (a live stream).
    behind_s : audio that has come and was not asked for yet, seconds; 0 where the source waits.
    clock : what relates a live stream's samples to the steady clock and UTC; None for files.
    """

    @property
    def info(self) -> StreamInfo: ...
    @property
    def waits(self) -> bool: ...
    @property
    def behind_s(self) -> float: ...
    @property
    def clock(self) -> SampleClock | None: ...

    def utc_at(self, sample: int) -> datetime | None:
        """Time of a sample, timezone-aware; None where it is not known."""
        ...

    def blocks(self) -> Iterator[Item]:
        """Yield blocks in order until the source ends; a live one says why there is no audio, and never ends.

        Raises
        ------
        AudioError : the source broke; everything that could be read was yielded before.
        """
        ...


class Recorded(Source, Protocol):
    """A source that yields nothing but audio."""

    def blocks(self) -> Iterator[AudioBlock]:
        """As a source's."""
        ...


S = TypeVar("S", bound=Source)


class Through(Generic[S]):
    """Base of sources that change what another one yields."""

    def __init__(self, source: S) -> None:
        self._source = source

    @property
    def info(self) -> StreamInfo:
        """The source's."""
        return self._source.info

    @property
    def waits(self) -> bool:
        """The source's."""
        return self._source.waits

    @property
    def behind_s(self) -> float:
        """The source's."""
        return self._source.behind_s

    @property
    def clock(self) -> SampleClock | None:
        """The source's."""
        return self._source.clock

    def utc_at(self, sample: int) -> datetime | None:
        """The source's."""
        return self._source.utc_at(sample)


class Screen:
    """Refuses samples that are no audio: not a number, infinite, or beyond `LOUDEST`.

    A row is refused on all channels where one channel is bad, and so is audio of less than `QUIET_S` between two bad
    rows. What passes is the same wherever the block borders fall; a refused stretch looks like a gap to what follows.

    Parameters
    ----------
    name : of the source, for the log.
    rate_hz : samples per second, for the log and for `QUIET_S`.
    channels : what the source calls the blocks' columns.

    Attributes
    ----------
    refused : number of rows refused so far.
    refused_to : position just past the last of them; None where there are none.
    bad : by channel, its number of bad samples so far.
    """

    def __init__(self, name: str, rate_hz: int, channels: Sequence[int]) -> None:
        self.refused = 0
        self.refused_to: int | None = None
        self.bad: Counter[int] = Counter()
        self._channels = channels
        self._name = name
        self._rate_hz = rate_hz
        self._needed = round(QUIET_S * rate_hz)
        self._bad = False
        self._held: list[AudioBlock] = []
        self._held_rows = 0

    def push(self, block: AudioBlock) -> Iterator[AudioBlock]:
        """Yield the stretches of the block, and of audio held back before, that pass."""
        with np.errstate(invalid="ignore"):
            good = np.all(np.abs(block.samples) <= LOUDEST, axis=1)
        if good.all() and not self._bad:
            yield block
            return
        for first, last, passes in runs(good):
            part = AudioBlock(block.samples[first:last], block.start_sample + first)
            if passes:
                yield from self._pass(part)
            else:
                self._refuse(part)

    def finish(self) -> Iterator[AudioBlock]:
        """Yield what was held back: no bad row came after it."""
        yield from self._release()

    def _pass(self, part: AudioBlock) -> Iterator[AudioBlock]:
        if not self._bad:
            yield part
            return
        self._held.append(part)
        self._held_rows += len(part.samples)
        if self._held_rows >= self._needed:
            yield from self._release()

    def _refuse(self, part: AudioBlock) -> None:
        self.refused += len(part.samples) + self._held_rows
        self._held, self._held_rows = [], 0
        self.refused_to = part.end_sample
        if not self._bad:
            log.warning("%s", self._complaint(part))
        self._bad = True
        with np.errstate(invalid="ignore"):
            bad = np.count_nonzero(~(np.abs(part.samples) <= LOUDEST), axis=0)
        self.bad += Counter(dict(zip(self._channels, bad.tolist())))

    def _complaint(self, part: AudioBlock) -> str:
        column = int(np.argmin(np.abs(part.samples[0]) <= LOUDEST))
        return (
            f"{self._name}: audio is refused from sample {part.start_sample} "
            f"({part.start_sample / self._rate_hz:.3f} s) on, on all channels: channel {self._channels[column]} is "
            f"{part.samples[0, column]}; exclude it with `channels:` if it stays so. Scoring goes on after "
            f"{QUIET_S:g} s of finite samples"
        )

    def _release(self) -> Iterator[AudioBlock]:
        held, self._held, self._held_rows, self._bad = self._held, [], 0, False
        yield from held


def runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int, bool]]:
    """Yield (first, past the last, value) of every run of equal flags."""
    borders = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    for first, last in zip(borders, borders[1:]):
        if first < last:
            yield first, last, bool(flags[first])


def check_channels(name: str, channels: int, rows: int) -> None:
    """Raise AudioError where there is nothing to score."""
    if channels < 1:
        raise AudioError(f"{name} has {channels} channels; it must have at least 1")
    if rows < 1:
        raise AudioError(f"{name} holds no audio (0 samples); look whether the recorder wrote it to its end")
