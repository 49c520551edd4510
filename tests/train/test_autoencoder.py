"""Recurrent autoencoders: levels against a plain loop, what the decoder may see, learning, reproducibility."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.spectrogram import mel_matrix
from orcawatch.training import autoencoder
from orcawatch.training.autoencoder import AutoencoderSettings

RATE_HZ = 8000
SMALL = AutoencoderSettings(
    seconds=0.5, bands=12, thresholds_db=(-40.0,), layers=1, units=8, epochs=5, batch_size=5, learning_rate=0.02
)


def tones(clips: int) -> Any:
    """Levels of short tones of random pitch, (clips, frames, bands)."""
    generator, found = np.random.default_rng(2), []
    t = np.arange(RATE_HZ // 2) / RATE_HZ
    for _ in range(clips):
        tone = np.sin(2 * np.pi * generator.uniform(500, 3000) * t) + 0.01 * generator.standard_normal(len(t))
        found.append(autoencoder.levels(tone, RATE_HZ, 12, 300.0, 10000.0, 0.5))
    return np.stack(found)


@pytest.mark.parametrize("samples", [1500, 9001])
def test_levels_against_a_plain_loop(samples: int) -> None:
    waveform = np.random.default_rng(0).standard_normal(samples)
    found = autoencoder.levels(waveform, RATE_HZ, 12, 300.0, 10000.0, 0.5)
    start = (samples - 4000) // 2 if samples > 4000 else -((4000 - samples) // 2)
    padded = [waveform[k] if 0 <= k < samples else 0.0 for k in range(start, start + 4000)]
    weights, power = mel_matrix(12, 513, RATE_HZ, 300.0, RATE_HZ / 2), []
    for first in range(0, 4000 - 640 + 1, 320):
        frame = [padded[first + n] * (0.5 - 0.5 * np.cos(2 * np.pi * n / 640)) for n in range(640)]
        power.append(np.abs(np.fft.rfft(frame, 1024)) ** 2 @ weights)
    expected = 10 * np.log10(np.maximum(np.array(power) / np.max(power), 1e-12))
    assert found.shape == (11, 12) and found.max() == 0
    assert found == pytest.approx(expected, abs=1e-2)


def test_silence_and_scaling() -> None:
    assert (autoencoder.levels(np.zeros(3000), RATE_HZ, 12, 300.0, 10000.0, 0.5) == autoencoder.FLOOR_DB).all()
    level = np.array([0.0, -20.0, -40.0, -41.0, -120.0], np.float32)
    assert autoencoder.clipped(level, -40.0) == pytest.approx([1, 0, -1, -1, -1])


@pytest.mark.parametrize(("bidirectional", "values"), [(True, 32), (False, 16)])
def test_shapes(bidirectional: bool, values: int) -> None:
    pytest.importorskip("tensorflow")
    level = tones(3)
    network = autoencoder.build(level.shape[1], replace(SMALL, layers=2, bidirectional_decoder=bidirectional))
    assert network.whole(autoencoder.clipped(level, -40.0)).shape == level.shape
    parts = list(autoencoder.represent(network, level, -40.0, 2))
    assert [part.shape for part in parts] == [(2, values), (1, values)]


def test_a_frame_is_drawn_from_the_representation_and_its_neighbours_not_from_itself() -> None:
    """With the representation held still, changing frame k changes what is drawn elsewhere, never at k."""
    tf = pytest.importorskip("tensorflow")
    level = tones(1)
    network = autoencoder.build(level.shape[1], SMALL)
    layer = network.whole.get_layer("representation")
    layer.set_weights([np.zeros_like(layer.get_weights()[0]), np.full_like(layer.get_weights()[1], 0.3)])
    batch = autoencoder.clipped(level, -40.0)
    other = batch.copy()
    other[0, 5] += 0.5
    moved = tf.abs(network.whole(batch) - network.whole(other)).numpy().max(axis=2)[0]
    assert moved[5] < 1e-6
    assert moved[4] > 1e-5 and moved[6] > 1e-5


def learn(seed: int) -> tuple[list[float], Any]:
    """Losses and representations of a short training."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    level = tones(20)
    network, reports = autoencoder.build(level.shape[1], SMALL), []
    rows = np.arange(0, 20, 2)
    losses = autoencoder.train(network, level, rows, -40.0, SMALL, seed, lambda: reports.append(1))
    assert len(reports) == len(losses) == SMALL.epochs
    return losses, np.concatenate(list(autoencoder.represent(network, level, -40.0, 8)))


def test_it_learns_and_is_reproducible() -> None:
    pytest.importorskip("tensorflow")
    losses, representations = learn(1)
    assert losses[-1] < 0.8 * losses[0]
    assert representations.shape == (20, 16) and np.ptp(representations, axis=0).max() > 0.1
    again, same = learn(1)
    assert again == losses and np.array_equal(same, representations)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"units": 0}, "must be 1 or more"),
        ({"seconds": 0.1}, "seconds must be"),
        ({"low_hz": 10000.0}, "low_hz < high_hz"),
        ({"thresholds_db": ()}, "thresholds_db must lie"),
        ({"thresholds_db": (-40.0, 0.0)}, "thresholds_db must lie"),
        ({"dropout": 1.0}, "dropout must be"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        AutoencoderSettings(**wrong)
