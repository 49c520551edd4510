"""The front ends of `orcawatch.spectrogram` inside a TensorFlow graph, so that a GPU computes them from audio.

NumPy makes some thousand spectrograms a second on a core; a GPU trains on more. The graph equals the NumPy front end
within 1e-4. Spectra and products with a matrix are float64; a GPU would otherwise round the latter to TensorFloat-32.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import TrainingError
from ..spectrogram import (
    FLOOR_RANK,
    LEAST_MAGNITUDE,
    LEAST_POWER,
    FrontEnd,
    LinearPower,
    LogMel,
    linear_matrix,
    mel_matrix,
    periodic_hann,
    resize_matrix,
)


def check(front_end: FrontEnd) -> None:
    """Raise TrainingError for a front end that has no graph here."""
    if not isinstance(front_end, (LogMel, LinearPower)):
        raise TrainingError(
            f"spectrograms: device knows the front ends log_mel and linear_power, not {front_end.kind!r}: choose cpu"
        )


def spectrograms(waveforms: Any, front_end: FrontEnd) -> Any:
    """Finished spectrograms without masks: a tensor (windows, samples) in, float32 (windows, frames, bands) out.

    The same as `augment.spectrograms`.
    """
    check(front_end)
    return log_mel(waveforms, front_end) if isinstance(front_end, LogMel) else linear_power(waveforms, front_end)  # type: ignore[arg-type]


def log_mel(waveforms: Any, front_end: LogMel) -> Any:
    """As `LogMel.rows`, then `LogMel.finish`."""
    import tensorflow as tf

    bins, limits = front_end.fft_size // 2 + 1, (front_end.low_hz, front_end.high_hz)
    matrix = mel_matrix(front_end.bands, bins, front_end.rate_hz, *limits)
    rows = product(magnitudes(waveforms, front_end), matrix)
    if front_end.normalise == "none":
        return tf.math.log(rows + front_end.offset)
    return above_floor(rows, front_end.offset, LEAST_MAGNITUDE)


def linear_power(waveforms: Any, front_end: LinearPower) -> Any:
    """As `LinearPower.rows`, then `LinearPower.finish`."""
    import tensorflow as tf

    bins, limits = front_end.fft_size // 2 + 1, (front_end.low_hz, front_end.high_hz)
    matrix = linear_matrix(front_end.size, bins, front_end.rate_hz, *limits)
    rows = product(magnitudes(waveforms, front_end) ** 2, matrix)
    stretch = resize_matrix(front_end.size, front_end.frames)
    return tf.linalg.matrix_transpose(product(tf.linalg.matrix_transpose(levels(rows, front_end)), stretch.T))


def levels(rows: Any, front_end: LinearPower) -> Any:
    """Power (windows, frames, size) as levels from 0 to 1, by the front end's normalisation."""
    import tensorflow as tf

    least = 10 ** (-front_end.range_db / 10)
    if front_end.normalise == "peak":
        peak = tf.maximum(tf.reduce_max(rows, axis=(1, 2), keepdims=True), LEAST_POWER)
        level_db = 10 / math.log(10) * tf.math.log(tf.maximum(rows / peak, least))
        return tf.maximum(1 + level_db / front_end.range_db, 0)
    level_db = above_floor(rows, least, LEAST_POWER) * (10 / math.log(10))
    return tf.minimum(level_db / front_end.range_db, 1)


def magnitudes(waveforms: Any, front_end: LogMel | LinearPower) -> Any:
    """Magnitude spectrum of every whole frame: (windows, samples) in, float32 (windows, frames, bins) out."""
    import tensorflow as tf

    framed = tf.signal.frame(waveforms, front_end.frame_samples, front_end.hop_samples)
    weighted = framed * periodic_hann(front_end.frame_samples)
    spectrum = tf.signal.rfft(tf.cast(weighted, tf.float64), [front_end.fft_size])
    return tf.cast(tf.abs(spectrum), tf.float32)


def product(rows: Any, matrix: Any) -> Any:
    """Rows (..., n) times a matrix (n, m), computed in float64: float32, shape (..., m)."""
    import tensorflow as tf

    return tf.cast(tf.matmul(tf.cast(rows, tf.float64), tf.constant(matrix, tf.float64)), tf.float32)


def above_floor(rows: Any, offset: float, least: float) -> Any:
    """As `orcawatch.spectrogram.above_floor`, of (windows, frames, bands)."""
    import tensorflow as tf

    mean = tf.reduce_mean(rows, axis=(1, 2), keepdims=True)
    level = tf.math.log(rows / tf.maximum(mean, least) + offset)
    lowest = tf.math.top_k(-tf.linalg.matrix_transpose(level), FLOOR_RANK).values
    floor = -lowest[:, None, :, FLOOR_RANK - 1]
    return tf.maximum(level - floor, 0)


def hide(windows: Any, axis: int, stretches: Any) -> Any:
    """As `augment.hide`: each window's stretches of frames (axis 1) or bands (axis 2) become that window's mean."""
    import tensorflow as tf

    if not stretches.shape[1]:
        return windows
    place = tf.range(windows.shape[axis])
    inside = tf.reduce_any((place >= stretches[..., :1]) & (place < stretches[..., 1:]), axis=1)
    means = tf.reduce_mean(windows, axis=(1, 2), keepdims=True)
    return tf.where(tf.expand_dims(inside, 3 - axis), means, windows)


def network_input(batch: Any, front_end: FrontEnd) -> Any:
    """What the network sees of a batch (see `batches.BatchMaker.part`): masked spectrograms (windows, *shape)."""
    import tensorflow as tf

    if "input" in batch:
        return batch["input"]
    whole = spectrograms(batch["waveforms"], front_end)
    masked = hide(hide(whole, 1, batch["frame_masks"]), 2, batch["band_masks"])
    return tf.reshape(masked, (-1, *front_end.shape))
