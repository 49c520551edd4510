"""From blocks to scored windows: the same code for live audio and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .cascade import Cascade
from .errors import BundleError, InputError
from .records import AudioBlock, Window, WindowScore
from .spectrogram import FrontEnd, RowStream
from .windows import WindowStream

Array = NDArray[np.float32]


class Scorer(Protocol):
    """What an ensemble offers; `orcawatch.ensemble.Ensemble` is the real one."""

    cascade: Cascade

    @property
    def bundle(self) -> Bundle: ...

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore: ...
    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[Array, Array]]]: ...


class Detector:
    """Scores of every window of a stream of blocks, the same to the bit wherever the block borders fall.

    Windows never span a gap: a block that does not start where the one before ended finishes the stretch and
    starts a new one. The last window of a stretch ends with it; a shorter stretch is repeated to fill one window.

    Parameters
    ----------
    ensemble : scores windows; its bundle names the front ends.
    rate_hz : rate of the audio that comes.
    channels : its number of channels.
    hop_s : distance between windows.
    columns, vote : which channels to score, and which members to average; None for all, and the bundle's.

    Attributes
    ----------
    unscored : samples so far in stretches too short for a single frame; they have no window.

    Raises
    ------
    BundleError : the bundle's front ends differ in hop or span, so that their windows cannot be aligned.
    InputError : the hop is no whole number of frames, or longer than a window.
    AudioError : the rate is too low, or there are no channels.
    """

    def __init__(
        self,
        ensemble: Scorer,
        rate_hz: int,
        channels: int,
        hop_s: float,
        columns: Sequence[int] | None = None,
        vote: Sequence[str] | None = None,
    ) -> None:
        self.unscored = 0
        self._columns = columns
        self._vote = vote
        self._ensemble = ensemble
        self._rate_hz = rate_hz
        self._channels = channels
        self._front_ends = {name: entry.front_end for name, entry in ensemble.bundle.backbones.items()}
        self._grid = Grid(self._front_ends, hop_s)
        self._stretch = self._new_stretch(0)

    def push(self, block: AudioBlock) -> list[WindowScore]:
        """Scores of the windows that this block completes, and of the stretch's last ones where it ends a stretch."""
        scores = [] if block.start_sample == self._stretch.end_sample else self._restart(block.start_sample)
        return scores + self._scored(self._stretch.push(block.samples))

    def finish(self) -> list[WindowScore]:
        """Scores of the windows still held back; the next block starts a new stretch."""
        return self._restart(self._stretch.end_sample)

    def _restart(self, start_sample: int) -> list[WindowScore]:
        old, self._stretch = self._stretch, self._new_stretch(start_sample)
        scores = self._scored(old.finish())
        self.unscored += 0 if old.windows else old.end_sample - old.start_sample
        return scores

    def _scored(self, windows: Iterator[Window]) -> list[WindowScore]:
        return [self._ensemble.score(window, self._columns, self._vote) for window in windows]

    def _new_stretch(self, start_sample: int) -> Stretch:
        return Stretch(self._front_ends, self._grid, self._rate_hz, self._channels, start_sample)


class Grid:
    """Where windows lie: every front end's rows are `step_s` apart, a window has `frames` of them, every `hop`.

    Parameters
    ----------
    front_ends : by backbone.
    hop_s : distance between windows.

    Raises
    ------
    BundleError, InputError : as `Detector`.
    """

    def __init__(self, front_ends: Mapping[str, FrontEnd], hop_s: float) -> None:
        grids = {name: (end.hop_samples / end.rate_hz, end.frames) for name, end in front_ends.items()}
        if len(set(grids.values())) != 1:
            raise BundleError(f"front ends must share one (hop in s, frames), not {grids}: make the bundle again")
        self.step_s, self.frames = next(iter(grids.values()))
        self.hop = round(hop_s / self.step_s)
        if not 1 <= self.hop <= self.frames or abs(self.hop * self.step_s - hop_s) > 1e-6:
            raise InputError(
                f"hop_s must be {self.step_s:g} to {self.frames * self.step_s:g} s (one window) in steps of "
                f"{self.step_s:g} s, not {hop_s:g} s"
            )

    @property
    def at_once(self) -> int:
        """Rows from one to the next at which a window may end."""
        return math.gcd(self.frames, self.hop)


class Stretch:
    """Windows of one stretch of audio without holes.

    Rows of equal front ends are computed once; the rows of all lie side by side in one `WindowStream`, so that the
    backbones' windows are aligned by construction.

    Parameters
    ----------
    front_ends : by backbone, all on `grid`.
    grid : where windows lie.
    rate_hz, channels : of the audio.
    start_sample : position of the first sample in the stream.
    """

    def __init__(
        self, front_ends: Mapping[str, FrontEnd], grid: Grid, rate_hz: int, channels: int, start_sample: int
    ) -> None:
        self.start_sample = self.end_sample = start_sample
        self.windows = 0
        self._front_ends = front_ends
        self._grid = grid
        self._rate_hz = rate_hz
        self._streams = {end: RowStream(end, rate_hz, channels, grid.at_once) for end in front_ends.values()}
        self._waiting = {end: np.zeros((0, channels, bands(end)), np.float32) for end in self._streams}
        self._cutter = WindowStream(grid.frames, grid.hop)

    def push(self, samples: Array) -> Iterator[Window]:
        """Yield the windows that these samples, shape (samples, channels), complete."""
        self.end_sample += len(samples)
        chunk = np.ascontiguousarray(samples)
        yield from self._cut({end: stream.push(chunk) for end, stream in self._streams.items()})

    def finish(self) -> Iterator[Window]:
        """Yield the stretch's last windows."""
        if self.end_sample > self.start_sample:
            yield from self._cut({end: stream.finish() for end, stream in self._streams.items()})
            yield from map(self._window, self._cutter.finish())

    def _cut(self, rows: Mapping[FrontEnd, Array]) -> Iterator[Window]:
        waiting = {end: np.concatenate([self._waiting[end], new]) for end, new in rows.items()}
        ready = min(map(len, waiting.values()))
        self._waiting = {end: kept[ready:] for end, kept in waiting.items()}
        together = np.concatenate([kept[:ready] for kept in waiting.values()], axis=2)
        yield from map(self._window, self._cutter.push(together))

    def _window(self, pair: tuple[int, Array]) -> Window:
        index, together = pair
        self.windows += 1
        ends = list(self._streams)
        parts = np.split(together.transpose(1, 0, 2), np.cumsum([bands(end) for end in ends])[:-1], axis=2)
        by_front_end = dict(zip(ends, map(np.ascontiguousarray, parts)))
        rows = {name: by_front_end[end] for name, end in self._front_ends.items()}
        return Window(self._position(index), self._position(index + self._grid.frames), rows)

    def _position(self, row: int) -> int:
        """Position in the stream of a row's first sample; never past the audio that came."""
        return min(self.start_sample + round(row * self._grid.step_s * self._rate_hz), self.end_sample)


def score_silence(ensemble: Scorer) -> float:
    """Fused score of one window of silence on one channel, every gate open: shows that all of a bundle computes.

    Raises
    ------
    BundleError : it does not compute, or what it computes is no confidence.
    """
    rows = {
        name: np.zeros((1, entry.front_end.frames, bands(entry.front_end)), np.float32)
        for name, entry in ensemble.bundle.backbones.items()
    }
    try:
        with every_gate_open(ensemble):
            score = ensemble.score(Window(0, 0, rows)).score
    except (RuntimeError, ValueError) as fault:  # of the interpreter
        raise BundleError(f"{ensemble.bundle.folder} cannot score silence: {fault}; make it again") from fault
    if not 0 <= score <= 1:
        raise BundleError(f"{ensemble.bundle.folder} scores silence {score:g}, which must be 0 to 1: make it again")
    return score


@contextmanager
def every_gate_open(ensemble: Scorer) -> Iterator[None]:
    """While every backbone is heard, whatever there is to hear."""
    kept = ensemble.cascade
    ensemble.cascade = kept.opened
    try:
        yield
    finally:
        ensemble.cascade = kept


def bands(front_end: FrontEnd) -> int:
    """Numbers in one row."""
    return front_end.shape[1]
