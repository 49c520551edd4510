"""What the channels of an array have in common: weighted cross-spectra of a stretch of sound, and delays from them.

Generalised cross-correlation with phase transform (Knapp and Carter 1976): every time-frequency cell counts with its
phase alone, weighted by how far the sound stands above the background there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Figures = NDArray[np.float64]
Spectra = NDArray[np.complex128]

FRAME_S = 0.046
BAND_HZ = (300.0, 20000.0)
QUIET_SHARE = 0.25  # of the frames, taken as background
STRONGEST = 30.0  # signal-to-noise ratio beyond which a cell counts no more
OVER = 4.0  # times the background: by as much less is a cell's power counted, so that noise alone has no weight
CHUNK_S = 10.0  # sound that is looked at in one go
SMOOTH_BINS = 5
BINS_AT_ONCE = 64
FRAMES_AT_ONCE = 16
CHUNKS = 4
FINER = 8  # lags of a correlation for each sample
TINY = 1e-20


@dataclass(frozen=True)
class Common:
    """What pairs of channels have in common.

    Attributes
    ----------
    pairs : index of the channels of each pair, shape (pairs, 2).
    frequencies_hz : shape (bins,).
    cross : weighted phase differences, shape (pairs, bins); each cell has at most its weight.
    weights : sum of the cells' weights, shape (pairs, bins).
    noise : variance of the real part of a sum over all bins, were the phases random, shape (pairs,).
    size : samples of a frame.
    rate_hz : samples per second.
    """

    pairs: NDArray[np.int64]
    frequencies_hz: Figures
    cross: Spectra
    weights: Figures
    noise: Figures
    size: int
    rate_hz: int

    def only(self, columns: list[int]) -> Common:
        """The same for some of the channels, numbered anew."""
        kept = [k for k, pair in enumerate(self.pairs) if set(pair) <= set(columns)]
        pairs = np.array([[columns.index(one) for one in self.pairs[k]] for k in kept], np.int64).reshape(-1, 2)
        return Common(
            pairs, self.frequencies_hz, self.cross[kept], self.weights[kept], self.noise[kept], self.size, self.rate_hz
        )


def frame_size(samples: int, rate_hz: int, longest_s: float) -> int:
    """Samples of a frame: a power of two near `FRAME_S`, at least four of the longest delays; 0 where that is more
    than there are."""
    least = max(FRAME_S / math.sqrt(2), 4 * longest_s) * rate_hz
    size = 1 << math.ceil(math.log2(least))
    while size > samples and size >= 2 * max(32.0, 2 * longest_s * rate_hz):
        size //= 2
    return size if size <= samples else 0


def common(samples: Array, rate_hz: int, longest_s: float) -> Common | None:
    """Cross-spectra of all pairs of channels; None where the sound is shorter than a frame.

    In each channel and frequency the background is taken from the quietest frames. A cell weighs
    `r_i r_j / (1 + r_1 + ... + r_n)`, where r is its signal-to-noise ratio in a channel (mean of 3 frames and 5 bins,
    at most `STRONGEST`): the weight that Hannan and Thomson gave, for n channels. What the quiet cells have in common
    (a ship) is taken off. Of sound longer than `CHUNKS` times `CHUNK_S`, so many stretches are used, evenly spread.

    Parameters
    ----------
    samples : float32, shape (samples, channels), finite, two channels or more.
    rate_hz : samples per second.
    longest_s : longest delay that matters.
    """
    size = frame_size(len(samples), rate_hz, longest_s)
    if not size:
        return None
    hz = np.fft.rfftfreq(size, 1 / rate_hz)
    inside = (hz >= BAND_HZ[0]) & (hz <= min(BAND_HZ[1], 0.45 * rate_hz))
    parts = [_sums(_spectra(chunk, size, inside)) for chunk in _chunks(samples, rate_hz, size)]
    cross, weights, squares = (np.sum([part[k] for part in parts], axis=0) for k in range(3))
    pairs = np.array(list(combinations(range(samples.shape[1]), 2)), np.int64)
    first, second = pairs.T
    return Common(
        pairs,
        np.asarray(hz[inside], np.float64),
        np.asarray(cross[:, first, second].T, np.complex128),
        np.asarray(weights[:, first, second].T, np.float64),
        np.asarray(squares[:, first, second].sum(axis=0) / 2, np.float64),
        size,
        rate_hz,
    )


def _chunks(samples: Array, rate_hz: int, size: int) -> Iterator[Array]:
    length = max(round(CHUNK_S * rate_hz), 2 * size)
    count = max(1, round(len(samples) / length))
    if count <= CHUNKS:
        yield from np.array_split(samples, count)
        return
    for start in np.linspace(0, len(samples) - length, CHUNKS).astype(int):
        yield samples[start : start + length]


def _spectra(samples: Array, size: int, inside: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Spectra of frames that overlap by half, of the bins that count, shape (frames, channels, bins)."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, size, axis=0)[:: size // 2]
    window = np.hanning(size + 1)[:size].astype(np.float32)
    found = np.empty((*frames.shape[:2], int(inside.sum())), np.complex64)
    for first in range(0, len(frames), FRAMES_AT_ONCE):  # all at once take three times the memory
        part = slice(first, first + FRAMES_AT_ONCE)
        found[part] = np.fft.rfft(frames[part] * window, axis=-1)[..., inside]
    return found


def _sums(spectra: NDArray[np.complex64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sums over frames of cross-phases, weights and squared weights, each of shape (bins, channels, channels).

    Some bins at a time, for memory, with the neighbours that their smoothing looks at.
    """
    bins, edge, parts = spectra.shape[2], SMOOTH_BINS // 2, []
    for start in range(0, bins, BINS_AT_ONCE):
        first, last = max(0, start - edge), min(bins, start + BINS_AT_ONCE)
        found = _sums_of(spectra[:, :, first : last + edge])
        parts.append([part[start - first : last - first] for part in found])
    cross, weights, squares = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return cross, weights, squares


def _sums_of(spectra: NDArray[np.complex64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    power = np.square(spectra.real) + np.square(spectra.imag) + np.float32(TINY)
    phases = spectra / np.sqrt(power)
    ratio = _ratios(power)
    all_of_them = 1 + ratio.sum(axis=1, keepdims=True)
    share = ratio / np.sqrt(all_of_them)
    weights, squares = _products(share), _products(np.square(share))
    middle = ratio.mean(axis=1, keepdims=True)
    quiet = middle <= np.median(middle, axis=0)
    background = _products(phases * quiet) / np.maximum(quiet.sum(axis=0).T[:, :, None], 1)
    leak = _products(share / np.sqrt(1 + middle))
    return _products(phases * share) - background * leak, weights, squares


def _ratios(power: Array) -> Array:
    """Signal-to-noise ratio of each cell, 0 to `STRONGEST`, shape as `power`: (frames, channels, bins)."""
    rank = int(QUIET_SHARE * (len(power) - 1))
    # A quantile of the powers of noise, which are distributed exponentially, tells their mean.
    background = np.partition(power, rank, axis=0)[rank] / -math.log(1 - (rank + 1) / (len(power) + 1))
    smooth = _smoothed(_smoothed(power / background, 3, 0), SMOOTH_BINS, 2)
    return np.asarray(np.clip(smooth - OVER, 0, STRONGEST), np.float32)


def _smoothed(values: Array, width: int, axis: int) -> Array:
    """Moving average, ends held."""
    half = width // 2
    margins = [(half, half) if k == axis else (0, 0) for k in range(values.ndim)]
    padded, length = np.pad(values, margins, mode="edge"), values.shape[axis]
    shifted = (np.take(padded, range(k, k + length), axis) for k in range(width))
    return np.asarray(sum(shifted) / width, np.float32)


def _products(columns: NDArray[Any]) -> NDArray[Any]:
    """Sum over frames of each channel times each other's conjugate, shape (bins, channels, channels)."""
    by_bin = np.ascontiguousarray(columns.transpose(2, 1, 0))
    return np.asarray(by_bin @ by_bin.conj().transpose(0, 2, 1))


def correlation(found: Common, pair: int, longest_s: float) -> tuple[Figures, Figures]:
    """Correlation of a pair at finely spaced delays up to the longest.

    Returns
    -------
    delays_s : by how much the second channel of the pair hears later than the first, rising, `FINER` a sample.
    values : one for each; the sum of the weights where everything is in phase.
    """
    size = FINER * found.size
    bins = np.zeros(size // 2 + 1, np.complex128)
    step_hz = found.rate_hz / found.size
    bins[np.rint(found.frequencies_hz / step_hz).astype(int)] = found.cross[pair]
    values = np.fft.irfft(bins.conj(), size) * (size / 2)
    most = min(size // 2 - 1, math.ceil(longest_s * FINER * found.rate_hz) + 2)
    delays_s = np.arange(-most, most + 1) / (FINER * found.rate_hz)
    return delays_s, np.concatenate([values[-most:], values[: most + 1]])


def peak(delays_s: Figures, values: Figures, place: int) -> float:
    """Delay at a maximum, refined by a parabola through it and its neighbours."""
    if not 0 < place < len(values) - 1:
        return float(delays_s[place])
    left, middle, right = values[place - 1 : place + 2]
    bend = left - 2 * middle + right
    step = delays_s[1] - delays_s[0]
    return float(delays_s[place] + (0.5 * (left - right) / bend * step if bend < 0 else 0.0))
