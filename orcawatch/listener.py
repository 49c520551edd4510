"""From a source to audio with its scored windows, and the account of every second."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Optional

from .capture import Screen, Source
from .channels import chosen_channels, select
from .detector import Detector, Scorer
from .errors import AudioError
from .records import AudioBlock, ClockChange, Item, Missing, WindowScore

if TYPE_CHECKING:
    from .load import Step

Heard = tuple[Optional[Item], list[WindowScore]]

log = logging.getLogger(__name__)

LEFT_OUT = "the source left samples out"
REFUSED = "refused: no finite samples"


@dataclass(frozen=True)
class Totals:
    """What became of a source.

    Attributes
    ----------
    read_s : audio that the source yielded; equals `scored_s + refused_s`.
    scored_s : audio that lies in stretches with at least one window.
    refused_s : audio that is not finite, or in stretches shorter than one frame.
    gap_s : holes between the source's blocks, lost audio, a device that was away.
    off_duty_s : outside the duty cycle.
    shed_s : audio that came faster than it could be scored and was dropped.
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
    off_duty_s: float = 0.0
    shed_s: float = 0.0
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
            f"{self.gap_s:.2f} s missing, {self.off_duty_s:.2f} s off duty, {self.shed_s:.2f} s shed; "
            f"{self.windows} windows, {self.events} events "
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
        self._ensemble = ensemble
        self._rate_hz = info.rate_hz
        self._screen = Screen(info.name, info.rate_hz, self.channels)
        self._detector = Detector(ensemble, info.rate_hz, len(self.channels), ensemble.bundle.hop_s)
        self._unscored = 0  # in stretches of earlier detectors
        self._step: Step | None = None  # to be taken before the next audio
        self._read = 0
        self._missing = dict.fromkeys(("gap", "off_duty", "shed"), 0)
        self._end: int | None = None  # of what the source yielded last
        self._heard: int | None = None  # end of the last audio that passed the screen, or was entered as missing
        self._fault: AudioError | None = None

    def take(self, step: Step) -> None:
        """Score by another step of the overload ladder from the next audio on: a new stretch begins there."""
        self._step = step

    def listen(self, stop: Flag) -> Iterator[Heard]:
        """Yield (item, windows) until the source ends, breaks or is to stop.

        The items tile the stream: audio that passed the screen, and why there is none (which ends a stretch, with its
        last windows); None ends a stretch where nothing is missing. Changes of the clock come through with no windows.
        A live source ends by itself when it is to stop, so that what it has is heard and accounted for.
        A source that breaks does not raise: what it gave is scored to the end, and the error stands in `totals`.
        """
        try:
            for item in self._source.blocks():
                yield from self._take(item)
                if stop.is_set() and not self._source.info.live:
                    break
        except AudioError as fault:
            self._fault = fault
        yield from self._settle()
        yield self._end_stretch(None)
        if self.windows == 0 and self._fault is None and not stop.is_set() and not self._source.info.live:
            self._fault = AudioError(self._nothing_text())

    def totals(self) -> Totals:
        """The account; complete once `listen` has ended."""
        refused = self._screen.refused + self._unscored + self._detector.unscored
        return Totals(
            read_s=self._read / self._rate_hz,
            scored_s=(self._read - refused) / self._rate_hz,
            refused_s=refused / self._rate_hz,
            gap_s=self._missing["gap"] / self._rate_hz,
            off_duty_s=self._missing["off_duty"] / self._rate_hz,
            shed_s=self._missing["shed"] / self._rate_hz,
            windows=self.windows,
            bad_s={channel: count / self._rate_hz for channel, count in sorted(self._screen.bad.items())},
            fault=self._fault,
        )

    def _take(self, item: Item) -> Iterator[Heard]:
        if isinstance(item, ClockChange):
            yield from self._settle()  # what was heard before it has the time of before
            yield item, []
            return
        if self._end is not None and item.start_sample > self._end:
            yield from self._take_missing(Missing(self._end, item.start_sample, "gap", LEFT_OUT))
        yield from self._take_audio(item) if isinstance(item, AudioBlock) else self._take_missing(item)

    def _take_audio(self, block: AudioBlock) -> Iterator[Heard]:
        yield from self._take_step()
        self._heard = block.start_sample if self._heard is None else self._heard
        self._read += len(block.samples)
        self._end = block.end_sample
        for part in self._screen.push(select(block, self.channels)):
            yield from self._hear(part)
        yield from self._refuse_to(self._screen.refused_to)

    def _take_missing(self, missing: Missing) -> Iterator[Heard]:
        yield from self._settle()
        self._missing[missing.kind] += missing.end_sample - missing.start_sample
        self._end = self._heard = missing.end_sample
        yield self._end_stretch(missing)

    def _take_step(self) -> Iterator[Heard]:
        step, self._step = self._step, None
        if step is not None:
            yield from self._settle()
            yield self._end_stretch(None)
            self._unscored += self._detector.unscored
            self._detector = Detector(
                self._ensemble, self._rate_hz, len(self.channels), step.hop_s, step.columns, step.vote
            )

    def _settle(self) -> Iterator[Heard]:
        """Hear what the screen holds back, and enter what it refused."""
        for part in self._screen.finish():
            yield from self._hear(part)
        yield from self._refuse_to(self._screen.refused_to)

    def _refuse_to(self, sample: int | None) -> Iterator[Heard]:
        if sample is not None and self._heard is not None and sample > self._heard:
            refused, self._heard = Missing(self._heard, sample, "gap", REFUSED), sample
            yield self._end_stretch(refused)

    def _hear(self, part: AudioBlock) -> Iterator[Heard]:
        if self._heard is not None and part.start_sample < self._heard:
            yield self._end_stretch(None)
        elif self._heard is not None and part.start_sample > self._heard:
            yield from self._refuse_to(part.start_sample)
        self._heard = part.end_sample
        for piece in pieces(part, self._rate_hz):
            yield piece, self._scored(self._detector.push(piece))

    def _end_stretch(self, missing: Missing | None) -> Heard:
        return missing, self._scored(self._detector.finish())

    def _scored(self, windows: list[WindowScore]) -> list[WindowScore]:
        self.windows += len(windows)
        return windows

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
