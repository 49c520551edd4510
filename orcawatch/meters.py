"""Level meters: what a channel's sound is now, the highest peak of the last seconds, and whether it was clipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .levels import CLIPPED, Calibration
from .records import AudioBlock

SMOOTH_S = 0.3
HOLD_S = 3.0
FALL_DB_S = 20.0  # of a peak that is no longer held
CLIP_S = 5.0  # how long clipping is told


@dataclass(frozen=True)
class Reading:
    """A channel's meter.

    Attributes
    ----------
    level_db, peak_db : RMS without DC, and the held peak, in the calibration's unit; not a number without any sound.
    clipped : whether samples were at full scale in the last `CLIP_S`.
    """

    level_db: float
    peak_db: float
    clipped: bool


class Meters:
    """The meters of a stream's channels.

    Parameters
    ----------
    rate_hz : samples per second.
    calibration : of these channels.
    """

    def __init__(self, rate_hz: int, calibration: Calibration) -> None:
        channels = len(calibration.gain_db)
        self._rate_hz = rate_hz
        self._calibration = calibration
        self._power = np.zeros(channels)
        self._peak, self._peak_at_s = np.zeros(channels), np.zeros(channels)
        self._clipped_at_s = np.full(channels, -math.inf)
        self._now_s = 0.0

    @property
    def unit(self) -> str:
        """Of the levels."""
        return self._calibration.unit

    @property
    def full_scale_db(self) -> tuple[float, ...]:
        """Level of amplitude 1, full scale, on each channel."""
        return self._calibration.decibels(np.ones(len(self._power)))

    def push(self, block: AudioBlock) -> None:
        """Take audio."""
        if not len(block.samples):
            return
        samples = block.samples.astype(np.float64)
        length_s, self._now_s = len(samples) / self._rate_hz, block.end_sample / self._rate_hz
        kept = math.exp(-length_s / SMOOTH_S)
        apart = samples - samples.mean(axis=0)
        self._power = kept * self._power + (1 - kept) * (apart**2).mean(axis=0)
        self._hold(np.abs(apart).max(axis=0), length_s)
        self._clipped_at_s[np.abs(samples).max(axis=0) >= CLIPPED] = self._now_s

    def rest(self) -> None:
        """There is no audio: nothing is left but when it was clipped."""
        self._power[:], self._peak[:] = 0, 0

    def readings(self) -> tuple[Reading, ...]:
        """One for each channel."""
        levels, peaks = self._calibration.decibels(np.sqrt(self._power)), self._calibration.decibels(self._peak)
        recent = (self._now_s - self._clipped_at_s) < CLIP_S
        return tuple(Reading(level, peak, bool(clip)) for level, peak, clip in zip(levels, peaks, recent))

    def _hold(self, peak: np.ndarray[tuple[int, ...], np.dtype[np.float64]], length_s: float) -> None:
        late = self._now_s - self._peak_at_s > HOLD_S
        self._peak = np.where(late, self._peak * 10 ** (-FALL_DB_S * length_s / 20), self._peak)
        higher = peak >= self._peak
        self._peak = np.where(higher, peak, self._peak)
        self._peak_at_s = np.where(higher, self._now_s, self._peak_at_s)
