"""Recurrent autoencoders on mel spectrograms: a clip is what a network must remember to draw it again.

As the auDeep baseline of ComParE 2019 (Freitag et al. 2017; Schuller et al. 2019). A clip's spectrogram is cut or
filled up with silence to one length, its levels are clipped at several thresholds below the highest, and for each
threshold an autoencoder is trained on the training clips: two layers of GRU read the frames, a fully connected layer
with tanh turns their last states into the representation, and two layers of GRU that start from it draw the frames from
the last to the first, each step fed the frame before (in its own order). The bidirectional decoder adds two layers that
draw from the first frame to the last. The representations of the thresholds stand side by side.

The challenge's settings: `AutoencoderSettings(seconds=3.0, bands=128, thresholds_db=(-40, -50, -60, -70), layers=2,
units=256, bidirectional_decoder=True, epochs=16, batch_size=1024, learning_rate=1e-3, dropout=0.2)`, 4096 values a
clip.
The defaults are for a processor with two cores. Two differences: the mel bands keep to `low_hz` to `high_hz`, and each
half of the decoder is fed the frame that it has just drawn, never the one it has to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import mel_matrix
from .linear import SvmSettings

Array = NDArray[np.float32]
Report = Callable[[], object]

FRAME_S = 0.08
HOP_S = 0.04
STEEPEST = 2.0  # gradients are clipped to this, value by value
FLOOR_DB = -120.0  # of digital silence


@dataclass(frozen=True)
class AutoencoderSettings:
    """What is drawn and by which network.

    Attributes
    ----------
    seconds : of every clip's spectrogram; the middle of longer clips, silence around shorter ones.
    bands, low_hz, high_hz : mel bands; the highest is half the sampling rate where that is lower.
    thresholds_db : levels below the clip's highest at which the spectrogram ends, one network each.
    layers, units : GRU layers of the encoder and of each direction of the decoder, and units of each.
    bidirectional_decoder : draw from both ends.
    epochs, batch_size, learning_rate : of training (Adam).
    dropout : share of each layer's output left out while training.
    svm : of the linear machine on the representations.
    """

    seconds: float = 3.0
    bands: int = 64
    low_hz: float = 300.0
    high_hz: float = 10000.0
    thresholds_db: tuple[float, ...] = (-40.0, -50.0, -60.0, -70.0)
    layers: int = 2
    units: int = 64
    bidirectional_decoder: bool = True
    epochs: int = 16
    batch_size: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.2
    svm: SvmSettings = field(default_factory=SvmSettings)

    def __post_init__(self) -> None:
        """Refuse networks that cannot be trained."""
        if min(self.bands, self.layers, self.units, self.epochs, self.batch_size) < 1 or self.learning_rate <= 0:
            raise TrainingError("bands, layers, units, epochs and batch_size must be 1 or more, learning_rate above 0")
        if self.seconds < FRAME_S + HOP_S or not 0 < self.low_hz < self.high_hz:
            raise TrainingError(f"seconds must be {FRAME_S + HOP_S} or more, and 0 < low_hz < high_hz")
        if not self.thresholds_db or max(self.thresholds_db) >= 0 or min(self.thresholds_db) <= FLOOR_DB:
            raise TrainingError(f"thresholds_db must lie between {FLOOR_DB} and 0, not {list(self.thresholds_db)}")
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"dropout must be 0 to below 1, not {self.dropout}")


# --- spectrograms -----------------------------------------------------------------------------------------------------


def centred(waveform: Array, samples: int) -> Array:
    """The middle `samples` of a waveform (samples,), with silence on both sides where it is shorter."""
    missing = max(0, samples - len(waveform))
    padded = np.pad(np.asarray(waveform, np.float32), (missing // 2, missing - missing // 2))
    start = (len(padded) - samples) // 2
    return padded[start : start + samples]


@cache
def _bands(bands: int, fft_size: int, rate_hz: int, low_hz: float, high_hz: float) -> Array:
    return mel_matrix(bands, fft_size // 2 + 1, rate_hz, low_hz, min(high_hz, rate_hz / 2))


def levels(waveform: Array, rate_hz: int, bands: int, low_hz: float, high_hz: float, seconds: float) -> Array:
    """Mel power levels of a clip (samples,), dB below its highest: float32, shape (frames, bands).

    Periodic Hann windows of `FRAME_S` every `HOP_S`; silence is `FLOOR_DB`.
    """
    frame, hop = round(FRAME_S * rate_hz), round(HOP_S * rate_hz)
    fft_size = 1 << (frame - 1).bit_length()
    samples = centred(waveform, round(seconds * rate_hz))
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    power = np.abs(np.fft.rfft(frames * hann, fft_size)) ** 2 @ _bands(bands, fft_size, rate_hz, low_hz, high_hz)
    relative = power / max(float(power.max()), 1e-20)
    return np.asarray(10 * np.log10(np.maximum(relative, 10 ** (FLOOR_DB / 10))), np.float32)


def clipped(level: Array, threshold_db: float) -> Array:
    """Levels in dB from the threshold up, as -1 to 1: the highest is 1, the threshold and all below it -1."""
    return np.asarray(1 - 2 * np.maximum(level, threshold_db) / threshold_db, np.float32)


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Autoencoder:
    """Two Keras models that share their layers: `whole` draws spectrograms, `encoder` gives representations."""

    whole: Any
    encoder: Any


def build(frames: int, settings: AutoencoderSettings) -> Autoencoder:
    """An untrained autoencoder of spectrograms (clips, frames, bands); representations have shape (clips, values).

    There are layers * units values, twice as many with a bidirectional decoder.
    """
    from tensorflow.keras import Model, layers

    seen = layers.Input((frames, settings.bands))
    ways = 2 if settings.bidirectional_decoder else 1
    states = _encoded(seen, settings)
    remembered = layers.Dense(ways * settings.layers * settings.units, "tanh", name="representation")(states)
    drawn = [_drawn(seen[:, ::-1], remembered, 0, settings)[:, ::-1]]
    if ways == 2:
        drawn.append(_drawn(seen, remembered, settings.layers, settings))
    joined = layers.Concatenate()(drawn) if ways == 2 else drawn[0]
    return Autoencoder(Model(seen, layers.Dense(settings.bands, "tanh")(joined)), Model(seen, remembered))


def _encoded(seen: Any, settings: AutoencoderSettings) -> Any:
    """The last states of all layers, side by side."""
    from tensorflow.keras import layers

    x, states = seen, []
    for _ in range(settings.layers):
        x, state = layers.GRU(settings.units, return_sequences=True, return_state=True)(x)
        x = layers.Dropout(settings.dropout)(x)
        states.append(state)
    return layers.Concatenate()(states) if len(states) > 1 else states[0]


def _drawn(target: Any, remembered: Any, first: int, settings: AutoencoderSettings) -> Any:
    """What one direction of the decoder makes of the representation, each step fed the target before it."""
    from tensorflow.keras import layers

    x = layers.ZeroPadding1D((1, 0))(target[:, :-1])
    for k in range(first, first + settings.layers):
        state = remembered[:, k * settings.units : (k + 1) * settings.units]
        x = layers.GRU(settings.units, return_sequences=True)(x, initial_state=state)
        x = layers.Dropout(settings.dropout)(x)
    return x


def root_mean_square(target: Any, drawn: Any) -> Any:
    """Root mean square error over a batch, auDeep's loss."""
    import tensorflow as tf

    return tf.sqrt(tf.reduce_mean(tf.square(target - drawn)))


def train(
    network: Autoencoder,
    level: Array,
    rows: NDArray[np.int64],
    threshold_db: float,
    settings: AutoencoderSettings,
    seed: int,
    report: Report,
) -> list[float]:
    """Train an autoencoder in place; the mean loss of each epoch.

    Parameters
    ----------
    network : from `build`.
    level : levels of clips, dB, shape (clips, frames, bands); may be memory-mapped.
    rows : indices of the clips to train on.
    threshold_db : where levels are clipped.
    settings : how to train.
    seed : of the order of the clips; what Keras draws follows its own seed.
    report : called after each epoch.
    """
    from tensorflow.keras.optimizers import Adam

    network.whole.compile(Adam(settings.learning_rate, clipvalue=STEEPEST), root_mean_square)
    generator, losses = np.random.default_rng(seed), []
    for _ in range(settings.epochs):
        order = generator.permutation(rows)
        parts = [np.sort(order[k : k + settings.batch_size]) for k in range(0, len(order), settings.batch_size)]
        each = [_step(network, clipped(level[part], threshold_db)) for part in parts]
        losses.append(float(np.average(each, weights=[len(part) for part in parts])))
        report()
    return losses


def _step(network: Autoencoder, batch: Array) -> float:
    return float(network.whole.train_on_batch(batch, batch))


def represent(network: Autoencoder, level: Array, threshold_db: float, batch_size: int) -> Iterator[Array]:
    """Yield the representations of clips (clips, frames, bands), a batch at a time: float32, shapes (clips, values)."""
    for k in range(0, len(level), batch_size):
        yield np.asarray(network.encoder(clipped(level[k : k + batch_size], threshold_db), training=False))
