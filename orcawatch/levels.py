"""Sound levels of every hydrophone, all the time: in dB re 1 uPa where the chain is known, else re full scale.

The level of samples x (full scale 1) is 20 log10(rms(x) * adc_peak_v) - sensitivity_db - gain_db in dB re 1 uPa, with
the hydrophone's sensitivity in dB re 1 V/uPa and the amplifiers' gain in dB. In dB re full scale it is
20 log10(rms(x)): a sine that just fills the converter has -3.01 dB. Levels are broadband, from all frequencies but DC.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from .config import HydrophoneSettings
from .records import AudioBlock

Array = NDArray[np.float32]
Figures = NDArray[np.float64]

PRESSURE = "dB re 1 uPa"
FULL_SCALE = "dB re full scale"
CLIPPED = 32767 / 32768  # the largest sample of a 16-bit converter; those with more bits go a little higher
CHUNK_ROWS = 8192
LEAST_S = 1.0  # stretches shorter than this have no row


@dataclass(frozen=True)
class Calibration:
    """From samples to pressure.

    All channels have one unit: where anything is unknown of one, all are relative to full scale.

    Attributes
    ----------
    sensitivity_db : receiving sensitivity of each channel's hydrophone, dB re 1 V/uPa; None where it is unknown.
    gain_db : gain of each channel's amplifiers, dB.
    adc_peak_v : voltage at the converter that gives full scale; None where it is unknown.
    """

    sensitivity_db: tuple[float | None, ...]
    gain_db: tuple[float, ...]
    adc_peak_v: float | None

    @property
    def unit(self) -> str:
        """`dB re 1 uPa` where everything is known, else `dB re full scale`."""
        return PRESSURE if self.unknown is None else FULL_SCALE

    @property
    def unknown(self) -> str | None:
        """What lacks for levels in dB re 1 uPa, in words; None where nothing does."""
        lacking = [f"hydrophones[{k}].sensitivity_db" for k, known in enumerate(self.sensitivity_db) if known is None]
        names = ["adc_peak_v"] * (self.adc_peak_v is None) + lacking
        if not names:
            return None
        return f"levels are in {FULL_SCALE}: {', '.join(names)} must be given for levels in {PRESSURE}"

    def decibels(self, amplitudes: Figures) -> tuple[float, ...]:
        """Levels of amplitudes, one a channel, full scale 1; NaN for 0: a channel without any sound has no level."""
        with np.errstate(divide="ignore"):
            relative = 20 * np.log10(np.where(amplitudes > 0, amplitudes, np.nan))
        return tuple((relative + self._offset_db()).tolist())

    def _offset_db(self) -> Figures:
        """Level of amplitude 1 on each channel."""
        if self.unknown is not None or self.adc_peak_v is None:
            return np.zeros(len(self.gain_db))
        chain_db = np.array(self.sensitivity_db, np.float64) + np.array(self.gain_db)
        return np.asarray(20 * math.log10(self.adc_peak_v) - chain_db)


def calibration(hydrophones: Sequence[HydrophoneSettings], adc_peak_v: float | None, channels: int) -> Calibration:
    """The calibration of the used channels from the settings; no hydrophones means that nothing is known of them."""
    known = list(hydrophones) or [HydrophoneSettings()] * channels
    return Calibration(tuple(one.sensitivity_db for one in known), tuple(one.gain_db for one in known), adc_peak_v)


@dataclass(frozen=True)
class Levels:
    """Levels of a stretch of audio without holes; lists have a figure a channel.

    Attributes
    ----------
    start_sample, end_sample : the span in the stream.
    levels_db : RMS without DC; NaN where all samples are the same.
    peaks_db : highest distance from the mean; NaN likewise.
    clipped : number of samples at full scale.
    unit : of levels and peaks.
    """

    start_sample: int
    end_sample: int
    levels_db: tuple[float, ...]
    peaks_db: tuple[float, ...]
    clipped: tuple[int, ...]
    unit: str


class Moments:
    """Mean, power, extremes and clipped samples of chunks, one after the other (Chan's update; float64)."""

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.clipped = np.zeros(channels, np.int64)
        self._mean = np.zeros(channels)
        self._squares = np.zeros(channels)  # summed squares of the distances from the mean
        self._low = np.full(channels, np.inf)
        self._high = np.full(channels, -np.inf)

    def add(self, chunk: Figures) -> None:
        """Take note of a chunk, shape (channels, at least 1 row)."""
        mean, new = chunk.mean(axis=1), chunk.shape[1]
        rows, apart = self.rows + new, mean - self._mean
        from_mean = chunk - mean[:, None]
        self._squares += np.einsum("ij,ij->i", from_mean, from_mean) + apart**2 * (self.rows * new / rows)
        self._mean += apart * (new / rows)
        low, high = chunk.min(axis=1), chunk.max(axis=1)
        if max(-low.min(), high.max()) >= CLIPPED:
            self.clipped += np.count_nonzero(np.abs(chunk) >= CLIPPED, axis=1)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.rows = rows

    @property
    def rms(self) -> Figures:
        """Root of the mean square without DC, shape (channels,)."""
        return np.sqrt(self._squares / self.rows)

    @property
    def peak(self) -> Figures:
        """Highest distance from the mean, shape (channels,); exactly 0 where all samples are the same."""
        return np.where(self._high > self._low, np.maximum(self._high - self._mean, self._mean - self._low), 0)


class LevelMeter:
    """Levels of a stream, a row every so often; the same to the bit wherever the block borders fall.

    Rows are counted from the start of each stretch without holes, and its last one is shorter. Audio of less than a
    second between two holes has no row.

    Parameters
    ----------
    channels : number of channels.
    rate_hz : samples per second.
    calibration : of these channels.
    every_s : length of a row.

    Raises
    ------
    ValueError : the calibration is for another number of channels.
    """

    def __init__(self, channels: int, rate_hz: int, calibration: Calibration, every_s: float) -> None:
        if not channels == len(calibration.gain_db) == len(calibration.sensitivity_db):
            raise ValueError(f"a calibration must have {channels} channels, not {len(calibration.gain_db)}")
        self._channels = channels
        self._calibration = calibration
        self._every = round(every_s * rate_hz)
        self._least = min(round(LEAST_S * rate_hz), self._every)
        self._chunk = np.zeros((channels, CHUNK_ROWS))
        self._begin(0)

    def push(self, block: AudioBlock) -> list[Levels]:
        """Rows that this block completes, and the one before it where it does not follow on."""
        rows: list[Levels] = []
        if block.start_sample != self._end:
            rows = self.finish()
            self._begin(block.start_sample)
        return rows + list(self._hear(block.samples))

    def finish(self) -> list[Levels]:
        """The last, shorter row of the stretch; the next block starts a new one."""
        rows = [self._row()] if self._end - self._start >= self._least else []
        self._begin(self._end)
        return rows

    def _begin(self, sample: int) -> None:
        self._start = self._end = sample
        self._filled = 0
        self._moments = Moments(self._channels)

    def _hear(self, samples: Array) -> Iterator[Levels]:
        while len(samples):
            room = min(CHUNK_ROWS - self._filled, self._start + self._every - self._end)
            taken, samples = samples[:room], samples[room:]
            self._chunk[:, self._filled : self._filled + len(taken)] = taken.T
            self._filled += len(taken)
            self._end += len(taken)
            if self._filled == CHUNK_ROWS:
                self._reduce()
            if self._end - self._start == self._every:
                yield self._row()
                self._begin(self._end)

    def _reduce(self) -> None:
        if self._filled:
            self._moments.add(self._chunk[:, : self._filled])
        self._filled = 0

    def _row(self) -> Levels:
        self._reduce()
        return levels_of(self._moments, self._start, self._end, self._calibration)


def levels_of(moments: Moments, start_sample: int, end_sample: int, calibration: Calibration) -> Levels:
    """The row of a stretch."""
    peak = moments.peak
    return Levels(
        start_sample,
        end_sample,
        calibration.decibels(np.where(peak > 0, moments.rms, 0)),
        calibration.decibels(peak),
        tuple(moments.clipped.tolist()),
        calibration.unit,
    )


def event_levels(samples: Array, calibration: Calibration) -> tuple[float, ...]:
    """Level of each channel of a clip, RMS without DC, in the calibration's unit; empty where there are no samples.

    Parameters
    ----------
    samples : shape (samples, channels), full scale 1.
    calibration : of these channels.
    """
    if not len(samples):
        return ()
    moments = Moments(samples.shape[1])
    for first in range(0, len(samples), CHUNK_ROWS):
        moments.add(np.ascontiguousarray(samples[first : first + CHUNK_ROWS].T, np.float64))
    return levels_of(moments, 0, len(samples), calibration).levels_db


def put(
    connection: sqlite3.Connection, session: int, levels: Levels, start_utc: datetime | None, synchronised: bool | None
) -> None:
    """Write a row into the table `levels`, inside the caller's transaction.

    Parameters
    ----------
    connection : of `orcawatch.store.Store.transaction`.
    session : number of the session's row.
    levels : the row; a level that is no number is written as null.
    start_utc : time of its first sample where it is known, timezone-aware.
    synchronised : whether the clock was synchronised then; None where the system does not tell.
    """
    connection.execute(
        "INSERT INTO levels (session, start_sample, end_sample, start_utc, levels_db, peaks_db, clipped, unit, "
        "synchronised) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            session,
            levels.start_sample,
            levels.end_sample,
            None if start_utc is None else start_utc.astimezone(timezone.utc).isoformat(),
            _text(levels.levels_db),
            _text(levels.peaks_db),
            json.dumps(levels.clipped),
            levels.unit,
            synchronised,
        ),
    )


def _text(levels_db: Sequence[float]) -> str:
    return json.dumps([None if math.isnan(level) else round(level, 3) for level in levels_db], allow_nan=False)
