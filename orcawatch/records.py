"""The frozen records that flow one way: audio block (or why there is none), window, score, event, detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]


@dataclass(frozen=True)
class StreamInfo:
    """What a source yields: fixed for as long as the source lives.

    Attributes
    ----------
    name : what the source is called in records (a file's path, a device's name).
    rate_hz : samples per second of each channel.
    channels : number of channels.
    start_utc : time of sample 0 where it is known, timezone-aware.
    live : whether it is listened to as it happens, so that time without it is time lost.
    """

    name: str
    rate_hz: int
    channels: int
    start_utc: datetime | None = None
    live: bool = False

    def utc_at(self, sample: int) -> datetime | None:
        """Time of a sample by the nominal rate, where it is known."""
        return None if self.start_utc is None else self.start_utc + timedelta(seconds=sample / self.rate_hz)


@dataclass(frozen=True)
class AudioBlock:
    """A stretch of audio without holes.

    Attributes
    ----------
    samples : float32, shape (samples, channels), full scale 1.0.
    start_sample : position of the first row in the stream. A jump past the end of the block before is a gap.
    """

    samples: Samples
    start_sample: int

    @property
    def end_sample(self) -> int:
        """Position just past the last row."""
        return self.start_sample + len(self.samples)


@dataclass(frozen=True)
class Missing:
    """A stretch of the stream without audio to score.

    Attributes
    ----------
    start_sample, end_sample : the span; positions count on through it.
    kind : `gap` (audio was lost, or there was none), `off_duty` (nobody was to listen) or `shed` (audio was there, but
        there was no time to score it).
    cause : in plain words.
    """

    start_sample: int
    end_sample: int
    kind: str
    cause: str


@dataclass(frozen=True)
class ClockChange:
    """The system clock was stepped, or its synchronisation changed.

    Attributes
    ----------
    sample : position of the stream at which this was noticed.
    utc : the clock's time now, timezone-aware.
    jump_s : by how much it jumped, forward positive; 0 where only the synchronisation changed.
    was_synchronised, synchronised : before and after; None where the system does not tell.
    """

    sample: int
    utc: datetime
    jump_s: float
    was_synchronised: bool | None
    synchronised: bool | None


Item = Union[AudioBlock, Missing, ClockChange]


@dataclass(frozen=True)
class Window:
    """One window of every channel, as the front ends' rows (linear, before logarithm and normalisation).

    Attributes
    ----------
    start_sample, end_sample : the span in the source's samples.
    rows : by backbone, float32, shape (channels, frames, bands).
    """

    start_sample: int
    end_sample: int
    rows: Mapping[str, Samples]


@dataclass(frozen=True)
class WindowScore:
    """Orca confidences of one window.

    Attributes
    ----------
    start_sample, end_sample : the span in the source's samples.
    member_scores : float32, shape (channels, members), the confidence of `orca` of every member, 0 to 1.
    channel_scores : float32, shape (channels,), the average vote of each channel; NaN where it was not scored.
    score : the scored channels fused into one number, 0 to 1.
    """

    start_sample: int
    end_sample: int
    member_scores: Samples
    channel_scores: Samples
    score: float


@dataclass(frozen=True)
class Event:
    """One bout of calls: consecutive windows joined by hysteresis and merging.

    Attributes
    ----------
    start_sample, end_sample : the span in the source's samples.
    score : highest fused score inside.
    channel_scores : highest score of each channel inside, shape (channels,); NaN where it was never scored.
    best_channel : index of the channel with the highest score.
    windows : the scored windows inside, in order.
    """

    start_sample: int
    end_sample: int
    score: float
    channel_scores: Samples
    best_channel: int
    windows: tuple[WindowScore, ...]
