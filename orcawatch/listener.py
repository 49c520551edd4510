"""From a source to audio with its scored windows, and the account of every second."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag

from .capture import Screen, Source
from .channels import chosen_channels, select
from .detector import Detector, Scorer
from .errors import AudioError
from .records import AudioBlock, WindowScore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Totals:
    """What became of a source.

    Attributes
    ----------
    read_s : audio that the source yielded; equals `scored_s + refused_s`.
    scored_s : audio that lies in stretches with at least one window.
    refused_s : audio that is not finite, or in stretches shorter than one frame.
    gap_s : holes between the source's blocks.
    windows, events : numbers of each.
    shed : events without clip and snapshot because a live stream brought them faster than they could be made.
    failed : events whose clip or snapshot could not be made.
    lost : events whose row could not be written; the log names them.
    bad_s : by the source's channel, how long it was no audio, which refused all channels.
    fault : the error that ended the source early; None where it was read to its end or stopped by request.
    """

    read_s: float = 0.0
    scored_s: float = 0.0
    refused_s: float = 0.0
    gap_s: float = 0.0
    windows: int = 0
    events: int = 0
    shed: int = 0
    failed: int = 0
    lost: int = 0
    bad_s: Mapping[int, float] = field(default_factory=dict)
    fault: AudioError | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the source's audio was scored."""
        return self.fault is None and self.refused_s == 0

    @property
    def kept(self) -> bool:
        """Whether everything that was detected is on the disk."""
        return self.failed == self.lost == 0

    def refusal(self) -> str:
        """How much was refused, and because of which channels."""
        causes = [f"channel {channel} was no audio for {bad_s:.3f} s" for channel, bad_s in self.bad_s.items()]
        cure = "; exclude it with `channels:` if it stays so" if causes else ""
        return f"{self.refused_s:.3f} s of {self.read_s:.3f} s are refused: {', '.join(causes) or 'too short'}{cure}"

    def __str__(self) -> str:
        return (
            f"{self.read_s:.2f} s read, {self.scored_s:.2f} s scored, {self.refused_s:.2f} s refused, "
            f"{self.gap_s:.2f} s missing; {self.windows} windows, {self.events} events "
            f"({self.shed} without clip for lack of time, {self.failed} with a failed clip or snapshot, "
            f"{self.lost} lost)"
        )


class Listener:
    """Yields a source's usable audio with the windows that it completes, and keeps account.

    Parameters
    ----------
    source : where audio comes from.
    ensemble : scores windows; its bundle gives the hop.
    channels : which of the source's channels, None for all.

    Attributes
    ----------
    channels : the channels in use.
    windows : number of windows so far.

    Raises
    ------
    InputError : the channels or the hop do not fit.
    AudioError : the source lacks a channel, or its rate is too low.
    """

    def __init__(self, source: Source, ensemble: Scorer, channels: Sequence[int] | None) -> None:
        info = source.info
        self.channels = chosen_channels(channels, info.channels)
        self.windows = 0
        self._source = source
        self._rate_hz = info.rate_hz
        self._screen = Screen(info.name, info.rate_hz, self.channels)
        self._detector = Detector(ensemble, info.rate_hz, len(self.channels), ensemble.bundle.hop_s)
        self._read = self._missing = 0
        self._end: int | None = None  # of the source's last block
        self._heard: int | None = None  # end of the last audio that passed the screen
        self._fault: AudioError | None = None

    def listen(self, stop: Flag) -> Iterator[tuple[AudioBlock | None, list[WindowScore]]]:
        """Yield (audio, windows) until the source ends, breaks or is to stop; each stretch ends with (None, windows).

        A source that breaks does not raise: what it gave is scored to the end, and the error stands in `totals`.
        """
        try:
            for block in self._source.blocks():
                self._count(block)
                for part in self._screen.push(select(block, self.channels)):
                    yield from self._hear(part)
                if stop.is_set():
                    break
        except AudioError as fault:
            self._fault = fault
        for part in self._screen.finish():
            yield from self._hear(part)
        yield self._end_stretch()
        if self.windows == 0 and self._fault is None and not stop.is_set():
            self._fault = AudioError(self._nothing_text())

    def totals(self) -> Totals:
        """The account; complete once `listen` has ended."""
        refused = self._screen.refused + self._detector.unscored
        return Totals(
            read_s=self._read / self._rate_hz,
            scored_s=(self._read - refused) / self._rate_hz,
            refused_s=refused / self._rate_hz,
            gap_s=self._missing / self._rate_hz,
            windows=self.windows,
            bad_s={channel: count / self._rate_hz for channel, count in sorted(self._screen.bad.items())},
            fault=self._fault,
        )

    def _hear(self, part: AudioBlock) -> Iterator[tuple[AudioBlock | None, list[WindowScore]]]:
        if self._heard is not None and part.start_sample != self._heard:
            yield self._end_stretch()
        self._heard = part.end_sample
        for piece in pieces(part, self._rate_hz):
            yield piece, self._scored(self._detector.push(piece))

    def _end_stretch(self) -> tuple[None, list[WindowScore]]:
        return None, self._scored(self._detector.finish())

    def _scored(self, windows: list[WindowScore]) -> list[WindowScore]:
        self.windows += len(windows)
        return windows

    def _count(self, block: AudioBlock) -> None:
        self._missing += 0 if self._end is None else max(0, block.start_sample - self._end)
        self._read += len(block.samples)
        self._end = block.end_sample

    def _nothing_text(self) -> str:
        totals = self.totals()
        return (
            f"{self._source.info.name} holds nothing to score: all of its {totals.read_s:.3f} s are no finite samples, "
            "or shorter than one frame; record it again"
        )


def pieces(block: AudioBlock, rows: int) -> Iterator[AudioBlock]:
    """The block cut into blocks of at most `rows`, so that a source's block length changes nothing."""
    for first in range(0, len(block.samples), rows):
        yield AudioBlock(block.samples[first : first + rows], block.start_sample + first)
