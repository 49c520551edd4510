from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.errors import AudioError, BundleError
from orcawatch.spectrogram import LogMel, RowStream, front_end_from_dict, mel_matrix, rows_of

FRONT_END = LogMel()


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (samples, channels)).astype(np.float32)


def plain_log_mel(wave: np.ndarray) -> np.ndarray:
    """Loop version straight from the published description: DFT by sums, one frame and one band at a time."""
    bin_hz = [k * 16000 / 512 for k in range(257)]
    mel = [1127 * math.log(1 + f / 700) for f in bin_hz]
    low, high = (1127 * math.log(1 + f / 700) for f in (125, 7500))
    edges = [low + i * (high - low) / 65 for i in range(66)]
    frames = []
    for start in range(0, len(wave) - 400 + 1, 160):
        frame = [wave[start + i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / 400)) for i in range(400)]
        angles = np.exp(-2j * np.pi * np.outer(range(257), range(400)) / 512)
        magnitude = np.abs(angles @ np.array(frame))
        bands = []
        for b in range(64):
            total = 0.0
            for k in range(1, 257):
                rise = (mel[k] - edges[b]) / (edges[b + 1] - edges[b])
                fall = (edges[b + 2] - mel[k]) / (edges[b + 2] - edges[b + 1])
                total += max(0.0, min(rise, fall)) * magnitude[k]
            bands.append(math.log(total + 0.01))
        frames.append(bands)
    return np.array(frames)


def test_equals_plain_loop() -> None:
    wave = noise(16000 // 10, 1)
    fast = FRONT_END.finish(FRONT_END.rows(wave)[:, 0])
    np.testing.assert_allclose(fast, plain_log_mel(wave[:, 0].astype(float)), atol=2e-5)


def test_mel_bands_sum_to_one_between_the_outer_centres() -> None:
    matrix = mel_matrix(64, 257, 16000, 125, 7500)
    bin_hz = np.arange(257) * 16000 / 512
    centres = FRONT_END.frequencies_hz
    inner = matrix[(bin_hz > centres[0]) & (bin_hz < centres[-1])].sum(axis=1)
    np.testing.assert_allclose(inner, 1.0, atol=1e-5)


def test_tone_lands_in_its_band() -> None:
    tone = np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000).astype(np.float32)[:, None]
    loudest = FRONT_END.rows(tone)[:, 0].mean(axis=0).argmax()
    assert abs(FRONT_END.frequencies_hz[loudest] - 3000) < 120


@settings(max_examples=25, deadline=None)
@given(
    rate_hz=st.sampled_from([8000, 16000, 22050, 44100, 48000, 96000]),
    borders=st.lists(st.integers(1, 60000), max_size=12),
)
def test_stream_equals_file_wherever_the_borders_fall(rate_hz: int, borders: list[int]) -> None:
    audio = noise(int(1.3 * rate_hz))
    stream = RowStream(FRONT_END, rate_hz, 2)
    blocks = np.split(audio, sorted(b for b in borders if b < len(audio)))
    streamed = np.concatenate([*(stream.push(block) for block in blocks), stream.finish()])
    np.testing.assert_allclose(streamed, rows_of(FRONT_END, audio, rate_hz), rtol=0, atol=1e-6)


def test_every_whole_frame_is_there() -> None:
    assert rows_of(FRONT_END, noise(16000), 16000).shape == (1 + (16000 - 400) // 160, 2, 64)
    assert rows_of(FRONT_END, noise(399), 16000).shape == (0, 2, 64)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "words"), [(1000, 1, "at least 8000 Hz, not 1000 Hz"), (16000, 0, "not 0")]
)
def test_refuses(rate_hz: int, channels: int, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        RowStream(FRONT_END, rate_hz, channels)


def test_travels_in_the_manifest() -> None:
    assert front_end_from_dict(FRONT_END.to_dict()) == FRONT_END
    with pytest.raises(BundleError, match="no constant"):
        front_end_from_dict({"kind": "log_mel", "colour": 1})
    with pytest.raises(BundleError, match="must be one of"):
        front_end_from_dict({"kind": "cepstrum"})


def test_band_floor_equals_plain_loop() -> None:
    rows = np.random.default_rng(3).random((96, 64)).astype(np.float32)
    found = LogMel(normalise="band_floor").finish(rows)
    for band in range(0, 64, 9):
        levels = [math.log(rows[t, band] / rows.mean(dtype=float) + 0.01) for t in range(96)]
        floor = sorted(levels)[19]
        np.testing.assert_allclose(found[:, band], [max(0.0, level - floor) for level in levels], atol=1e-5)


def test_band_floor_ignores_gain_and_steady_background() -> None:
    front_end = LogMel(normalise="band_floor")
    rows = np.random.default_rng(4).random((3, 96, 64)).astype(np.float32)
    np.testing.assert_allclose(front_end.finish(rows * 50), front_end.finish(rows), atol=1e-4)
    assert not front_end.finish(np.full((96, 64), 0.3, np.float32)).any()
    assert not front_end.finish(np.zeros((96, 64), np.float32)).any()


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(BundleError, match=r"must be one of .*not 'loud'"):
        LogMel(normalise="loud")
