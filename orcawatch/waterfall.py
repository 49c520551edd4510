"""A spectrogram that goes on for ever, coarse enough for a terminal: 0.3 to 10 kHz on a logarithmic axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .records import AudioBlock

Array = NDArray[np.float32]

LOW_HZ, HIGH_HZ = 300.0, 10000.0
BANDS = 96
COLUMN_S = 0.125
KEPT_S = 60.0
WINDOW_S = 0.045
SILENT_DB = -150.0  # digital silence
LEAST_COLUMNS = 8  # of a channel that is not silent, before its background is known


class LogBands:
    """Power of samples in bands of equal width on a logarithmic axis.

    Parameters
    ----------
    rate_hz : samples per second.

    Attributes
    ----------
    high_hz : upper end of the highest band: `HIGH_HZ`, or half the rate where that is less.
    """

    def __init__(self, rate_hz: int) -> None:
        self.high_hz = min(HIGH_HZ, rate_hz / 2)
        self._size = 1 << int(np.ceil(np.log2(WINDOW_S * rate_hz)))
        self._taper = np.hanning(self._size).astype(np.float32)
        self._weights = band_weights(rate_hz, self._size, self.high_hz)

    def levels_db(self, samples: Array) -> Array:
        """Mean power of each band in dB; shape (channels, `BANDS`), from samples of shape (rows, channels)."""
        size = min(self._size, len(samples))
        count = -(-len(samples) // size)
        starts = np.linspace(0, len(samples) - size, count).astype(int)
        frames = np.stack([samples[start : start + size] for start in starts])
        spectra = np.fft.rfft(frames * self._taper[:size, None], self._size, axis=1)
        power = (spectra.real**2 + spectra.imag**2).mean(axis=0) / (self._taper.sum() / 2) ** 2
        return np.asarray(10 * np.log10(np.maximum(power.T @ self._weights, 10 ** (SILENT_DB / 10))), np.float32)


def band_weights(rate_hz: int, size: int, high_hz: float) -> Array:
    """What each bin of a spectrum gives to each band, shape (bins, `BANDS`): the mean of the bins inside, or between
    the two nearest where there is none."""
    bins_hz = np.fft.rfftfreq(size, 1 / rate_hz)
    edges_hz = np.geomspace(LOW_HZ, high_hz, BANDS + 1)
    weights = np.zeros((len(bins_hz), BANDS), np.float32)
    for band, (low, high) in enumerate(zip(edges_hz, edges_hz[1:])):
        inside = np.flatnonzero((bins_hz >= low) & (bins_hz < high))
        if len(inside):
            weights[inside, band] = 1 / len(inside)
        else:
            place = (low + high) / 2 * size / rate_hz
            below = min(int(place), len(bins_hz) - 2)
            weights[below : below + 2, band] = below + 1 - place, place - below
    return weights


class Waterfall:
    """The last minute of a stream in columns of `COLUMN_S`; what is missing has columns that are not a number.

    Parameters
    ----------
    channels : number of channels.
    rate_hz : samples per second.
    """

    def __init__(self, channels: int, rate_hz: int) -> None:
        self.bands = LogBands(rate_hz)
        self._rows = max(1, round(COLUMN_S * rate_hz))
        self._kept = round(KEPT_S / COLUMN_S)
        self._levels = np.full((self._kept, channels, BANDS), np.nan, np.float32)
        self._scores = np.full((self._kept, channels), np.nan, np.float32)
        self._column = 0  # that is being filled
        self._samples = np.zeros((self._rows, channels), np.float32)
        self._filled = 0

    def push(self, block: AudioBlock) -> None:
        """Take audio; a jump in position leaves columns out."""
        self._go_to(block.start_sample)
        samples = block.samples
        while len(samples):
            part = samples[: self._rows - self._filled]
            self._samples[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            samples = samples[len(part) :]
            if self._filled == self._rows:
                self._finish()

    def skip(self, sample: int) -> None:
        """There is no audio up to a position."""
        self._go_to(sample)

    def score(self, start_sample: int, end_sample: int, channel_scores: Array) -> None:
        """Enter scores, shape (channels,), over a span."""
        oldest = self._column - self._kept + 1
        first, last = max(oldest, start_sample // self._rows), min(self._column, end_sample // self._rows)
        columns = np.arange(first, max(first, last)) % self._kept
        self._scores[columns] = channel_scores

    def picture(self, columns: int) -> tuple[Array, Array]:
        """The newest columns, oldest first: levels in dB, shape (columns, channels, `BANDS`), and scores, shape
        (columns, channels); not a number where there are none. Copies."""
        wanted = np.arange(self._column - min(columns, self._kept - 1), self._column) % self._kept
        return self._levels[wanted], self._scores[wanted]

    @property
    def lead_s(self) -> float:
        """How far the newest column's end lies behind the newest sample."""
        return self._filled / self._rows * COLUMN_S

    def _go_to(self, sample: int) -> None:
        here = self._column * self._rows + self._filled
        if sample == here:
            return
        target = sample // self._rows
        if sample < here:
            self._levels[:], self._scores[:] = np.nan, np.nan
        else:
            for column in range(max(self._column, target - self._kept), target):
                self._clear(column)
        self._column, self._filled = target, sample % self._rows
        self._clear(target)
        self._samples[: self._filled] = 0

    def _clear(self, column: int) -> None:
        self._levels[column % self._kept] = np.nan
        self._scores[column % self._kept] = np.nan

    def _finish(self) -> None:
        self._levels[self._column % self._kept] = self.bands.levels_db(self._samples)
        self._column += 1
        self._filled = 0
        self._scores[self._column % self._kept] = np.nan


def background_db(levels_db: Array) -> Array:
    """Median of each band of each channel, shape (channels, `BANDS`), over the columns that are not digital silence.

    A channel with fewer than `LEAST_COLUMNS` of them has 20 dB above silence.
    """
    found = np.full(levels_db.shape[1:], SILENT_DB + 20, np.float32)
    for channel in range(levels_db.shape[1]):
        columns = levels_db[:, channel]
        heard = columns[np.nanmax(np.nan_to_num(columns, nan=SILENT_DB), axis=1) > SILENT_DB + 10]
        if len(heard) >= LEAST_COLUMNS:
            found[channel] = np.median(heard, axis=0)
    return found


def in_rows(above_db: Array, rows: int) -> Array:
    """The highest of the bands in each of so many rows, the highest band first; shape (rows, columns)."""
    edges = np.linspace(0, BANDS, rows + 1)
    picked = [
        above_db[:, int(low) : max(int(low) + 1, int(np.ceil(high - 1e-9)))] for low, high in zip(edges, edges[1:])
    ]
    return np.stack([part.max(axis=1) for part in picked[::-1]])
