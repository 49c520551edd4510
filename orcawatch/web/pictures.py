"""Pictures of pixels only, which a browser stretches over axes: spectrograms, and relevance upon them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..snapshot import LOWEST_DB, SCALES, band_edges_hz

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

COLUMNS = 1000  # of a picture, at most
ROWS = 192  # of a spectrogram
FRAME_S = 0.04
COLOURS = 64  # few enough to be small as a file, and more than the eye tells apart
LEAST_RANGE_DB = 30.0
MOST_TIMES = 20.0  # relevance from here on has the last colour

# Of matplotlib (BSD), eleven each: what lies between is interpolated, here and in the browser's legend.
MAGMA = (
    "#000004", "#140e36", "#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d", "#fecf92",
    "#fcfdbf",
)  # fmt: skip
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26",
    "#fde725",
)  # fmt: skip
VEIL = tuple(min(1.0, index / 3) for index in range(len(VIRIDIS)))  # from clear to opaque


def spectrogram_db(samples_mono: Array, rate_hz: int, edges_hz: tuple[float, float], scale: str) -> Array:
    """A spectrogram for the eye, finer than the network's, on the same frequency axis.

    Parameters
    ----------
    samples_mono : float32, shape (samples,), at least one.
    rate_hz : samples per second.
    edges_hz : the axis's ends; what lies above half the rate has the lowest level.
    scale : `mel` or `linear`, what the rows are even in.

    Returns
    -------
    dB re a sine of full scale, float32, shape (columns, `ROWS`), the lowest frequency first. Column i is the middle of
    the i-th part of the audio cut into so many; of longer stretches the highest level.
    """
    size = max(16, round(FRAME_S * rate_hz))
    columns, frames = frame_starts(len(samples_mono), size)
    fft_size = 2 << (size - 1).bit_length()
    place = row_middles_hz(edges_hz, scale) * fft_size / rate_hz
    padded = np.pad(samples_mono, size)  # a frame begins half its length before its middle
    found = np.empty((len(frames), ROWS), np.float32)
    for index, middle in enumerate(frames):
        start = middle - size // 2 + size
        found[index] = row_levels_db(padded[start : start + size], fft_size, place)
    return np.asarray(found.reshape(columns, -1, ROWS).max(axis=1))


def frame_starts(samples: int, size: int) -> tuple[int, NDArray[np.int64]]:
    """How many columns a picture has, and the middles of the frames, as many for each column."""
    columns = int(min(COLUMNS, max(1, samples // max(1, size // 8))))
    each = max(1, -(-samples // (columns * size // 2 or 1)))
    frames = columns * each
    return columns, np.asarray((np.arange(frames) + 0.5) * samples / frames, np.int64)


def row_levels_db(frame: Array, fft_size: int, place: Floats) -> Array:
    """Levels of one frame at places between the bins of a transform."""
    hann = np.hanning(len(frame) + 1)[:-1]
    amplitude = 2 * np.abs(np.fft.rfft(frame * hann, fft_size)) / hann.sum()
    levels = np.interp(place, np.arange(len(amplitude)), amplitude, right=0.0)
    return np.asarray(20 * np.log10(np.maximum(levels, 10 ** (LOWEST_DB / 20))), np.float32)


def row_middles_hz(edges_hz: tuple[float, float], scale: str) -> Floats:
    """Frequencies of a spectrogram's rows, the lowest first."""
    to_scale, to_hertz = SCALES[scale]
    low, high = to_scale(np.array(edges_hz))
    return np.asarray(to_hertz(low + (np.arange(ROWS) + 0.5) * (high - low) / ROWS))


def axis_edges_hz(frequencies_hz: Floats, scale: str) -> tuple[float, float]:
    """The lower edge of the lowest band and the upper one of the highest."""
    edges = band_edges_hz(frequencies_hz, scale)
    return float(edges[0]), float(edges[-1])


def level_range_db(levels_db: Array) -> tuple[float, float]:
    """Levels of the first and the last colour: from the quiet of the background to all but the loudest cells."""
    low, high = np.percentile(levels_db, [20, 99.8])
    return float(np.floor(low)), float(np.ceil(max(high, low + LEAST_RANGE_DB)))


def times_average(relevance: Array, cells: float, score: float) -> Array:
    """Relevance as multiples of what every cell would have if a window's score were spread evenly over its cells.

    Parameters
    ----------
    relevance : shape (frames, bands); that of a whole window adds up to the window's score.
    cells : of a window.
    score : the detection's, so that pictures of its channels can be compared.
    """
    return np.asarray(relevance * (cells / score if score > 0 else 0.0), np.float32)


def spectrogram_png(levels_db: Array, range_db: tuple[float, float]) -> bytes:
    """The picture of levels, shape (columns, rows)."""
    low, high = range_db
    return png((levels_db - low) / (high - low), MAGMA, [1.0] * len(MAGMA))


def relevance_png(times: Array) -> bytes:
    """The picture of relevance, (frames, bands) in multiples of the average: clear up to 1, logarithmic above."""
    pooled = pool(times, COLUMNS)
    return png(np.log(np.maximum(pooled, 1.0)) / np.log(MOST_TIMES), VIRIDIS, VEIL)


def pool(values: Array, columns: int) -> Array:
    """The highest of neighbouring columns, where there are more than so many."""
    if len(values) <= columns:
        return values
    starts = np.arange(columns) * len(values) // columns
    return np.asarray(np.maximum.reduceat(values, starts, axis=0))


def png(shares: Array, colours: tuple[str, ...], opacity: Any) -> bytes:
    """A PNG of cells from 0 to 1, shape (columns, rows from below), in colours between the given ones.

    Parameters
    ----------
    shares : what is beyond 0 and 1 has the colour of the end.
    colours : at even distances, `#rrggbb`.
    opacity : of each of them, 0 to 1.
    """
    from PIL import Image

    cells = np.round(np.clip(np.nan_to_num(shares), 0, 1) * (COLOURS - 1)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(cells.T[::-1]))
    picture.putpalette(between([channels(colour) for colour in colours]).astype(np.uint8).tobytes())  # makes it mode P
    alpha = between([[255 * part] for part in opacity]).astype(np.uint8).tobytes()
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **({"transparency": alpha} if min(alpha) < 255 else {}))
    return file.getvalue()


def channels(colour: str) -> list[int]:
    """Red, green and blue of `#rrggbb`, 0 to 255."""
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def between(points: list[Any]) -> Floats:
    """`COLOURS` steps through points at even distances, shape (`COLOURS`, values)."""
    known = np.array(points, np.float64)
    place = np.linspace(0, len(known) - 1, COLOURS)
    return np.stack([np.round(np.interp(place, np.arange(len(known)), column)) for column in known.T], axis=1)
