from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.detector import Grid
from orcawatch.errors import AudioError, BundleError
from orcawatch.spectrogram import (
    FrontEnd,
    LinearPower,
    LogMel,
    RowStream,
    front_end_from_dict,
    linear_matrix,
    mel_matrix,
    parts_of,
    prominence,
    resize_matrix,
    rows_of,
)

FRONT_END = LogMel()
POWER = LinearPower(size=75)


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


@settings(max_examples=30, deadline=None)
@given(
    front_end=st.sampled_from([FRONT_END, POWER]),
    rate_hz=st.sampled_from([8000, 16000, 22050, 44100, 48000, 96000]),
    borders=st.lists(st.integers(1, 60000), max_size=12),
)
def test_stream_equals_file_wherever_the_borders_fall(front_end: FrontEnd, rate_hz: int, borders: list[int]) -> None:
    rate_hz = max(rate_hz, front_end.lowest_rate_hz)
    audio = noise(int(1.3 * rate_hz))
    stream = RowStream(front_end, rate_hz, 2)
    blocks = np.split(audio, sorted(b for b in borders if b < len(audio)))
    streamed = np.concatenate([*(stream.push(block) for block in blocks), stream.finish()])
    np.testing.assert_array_equal(streamed, rows_of(front_end, audio, rate_hz))


@settings(max_examples=60, deadline=None)
@given(
    front_end=st.sampled_from([FRONT_END, POWER, LogMel(bands=33), LinearPower(size=299)]),
    channels=st.sampled_from([1, 2, 3, 4, 5, 8, 31, 140]),
    start=st.integers(0, 40),
    frames=st.integers(1, 70),
)
def test_a_frame_is_the_same_whatever_comes_with_it(
    front_end: FrontEnd, channels: int, start: int, frames: int
) -> None:
    hop, overlap = front_end.hop_samples, front_end.frame_samples - front_end.hop_samples
    audio = noise(70 * hop + overlap, channels)
    whole = front_end.rows(audio)
    part = front_end.rows(audio[start * hop : (start + frames) * hop + overlap])
    np.testing.assert_array_equal(part, whole[start : start + frames])
    last = front_end.rows(audio[start * hop :, -1:])
    np.testing.assert_array_equal(last[:, 0], whole[start:, -1])


@pytest.mark.parametrize("rate_hz", [16000, 48000])
@pytest.mark.parametrize("block", [np.zeros((9, 3), np.float32), np.zeros((9, 2)), np.zeros(9, np.float32)])
def test_other_blocks_are_refused(rate_hz: int, block: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be float32 of shape \(samples, 2\), not float"):
        RowStream(FRONT_END, rate_hz, 2).push(block)


def test_a_front_end_that_gives_fewer_rows_loses_none() -> None:
    class Differences(LogMel):
        def rows(self, samples: np.ndarray) -> np.ndarray:
            return np.diff(super().rows(samples), axis=0)

    audio, front_end = noise(16000), Differences()
    stream = RowStream(front_end, 16000, 2, 48)
    found = np.concatenate([*(stream.push(part) for part in np.split(audio, 10)), stream.finish()])
    np.testing.assert_array_equal(found, front_end.rows(audio))


def test_audio_at_the_front_ends_rate_is_taken_as_it_is() -> None:
    audio = noise(16000, 3)
    np.testing.assert_array_equal(rows_of(FRONT_END, audio, 16000), FRONT_END.rows(audio))


@pytest.mark.parametrize("rate_hz", [16000, 48000])
def test_the_stream_keeps_nothing_of_the_callers_block(rate_hz: int) -> None:
    audio, stream, block, found = noise(rate_hz), RowStream(FRONT_END, rate_hz, 2), np.empty((1000, 2), np.float32), []
    for start in range(0, len(audio), 1000):
        block[:] = audio[start : start + 1000]
        found.append(stream.push(block))
    np.testing.assert_array_equal(np.concatenate([*found, stream.finish()]), rows_of(FRONT_END, audio, rate_hz))


@pytest.mark.parametrize("rate_hz", [16000, 48000])
@pytest.mark.parametrize("at_once", [1, 7, 48])
def test_rows_that_come_together_are_those_that_come_alone(rate_hz: int, at_once: int) -> None:
    audio, stream = noise(2 * rate_hz), RowStream(FRONT_END, rate_hz, 2, at_once)
    found = [stream.push(audio[start : start + rate_hz // 30]) for start in range(0, len(audio), rate_hz // 30)]
    assert all(len(rows) % at_once == 0 for rows in found) and any(map(len, found))
    late = stream.finish()
    assert at_once == 1 or len(late) > 0
    np.testing.assert_array_equal(np.concatenate([*found, late]), rows_of(FRONT_END, audio, rate_hz))


@pytest.mark.parametrize(("frames", "hop_s", "at_once"), [(96, 0.48, 48), (96, 0.96, 96), (96, 0.3, 6), (96, 0.07, 1)])
def test_rows_come_together_as_far_as_no_window_waits_for_more(frames: int, hop_s: float, at_once: int) -> None:
    grid = Grid({"one": LogMel(frames=frames)}, hop_s)
    assert grid.at_once == at_once
    assert all(end % at_once == 0 for end in range(frames, 20 * frames, grid.hop))


@pytest.mark.parametrize("front_end", [FRONT_END, LogMel(bands=200), LinearPower(), LinearPower(size=1)])
def test_parts_of_the_bands_leave_out_only_zeros(front_end: LogMel | LinearPower) -> None:
    again = np.zeros_like(front_end._matrix)
    for bins, bands, weights in parts_of(front_end._matrix):
        again[bins, bands] += weights
    np.testing.assert_array_equal(again, front_end._matrix)


def test_bands_that_no_bin_falls_on_stay_zero() -> None:
    front_end = LogMel(bands=8000)
    assert any(not weights.size for _, _, weights in parts_of(front_end._matrix))
    empty = ~front_end._matrix.any(axis=0)
    rows = front_end.rows(noise(1600))
    assert not rows[..., empty].any() and rows[..., ~empty].all()


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
    for front_end in (FRONT_END, LinearPower(size=139, normalise="band_floor")):
        assert front_end_from_dict(front_end.to_dict()) == front_end
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


# --- linear power -----------------------------------------------------------------------------------------------------


def plain_power(wave: np.ndarray, size: int) -> np.ndarray:
    """Power in each band of each frame: DFT by sums, one frame and one band at a time."""
    edges = [300 + i * 9700 / (size + 1) for i in range(size + 2)]
    frames = []
    for start in range(0, len(wave) - 600 + 1, 240):
        frame = [wave[start + i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / 600)) for i in range(600)]
        angles = np.exp(-2j * np.pi * np.outer(range(513), range(600)) / 1024)
        power = np.abs(angles @ np.array(frame)) ** 2
        bands = []
        for b in range(size):
            weights = [max(0.0, 1 - abs(k * 24000 / 1024 - edges[b + 1]) / (edges[1] - edges[0])) for k in range(513)]
            bands.append(sum(w * p for w, p in zip(weights, power)) / sum(weights))
        frames.append(bands)
    return np.array(frames)


def plain_stretch(levels: np.ndarray, size: int) -> np.ndarray:
    """Each image row between the two frames beside its place, held at the ends."""
    rows = []
    for i in range(size):
        place = min(max((i + 0.5) * 96 / size - 0.5, 0.0), 95.0)
        before = min(int(place), 94)
        rows.append(levels[before] * (before + 1 - place) + levels[before + 1] * (place - before))
    return np.array(rows)


def some_power(size: int, seed: int = 5) -> np.ndarray:
    """Rows of one window, 90 dB between the faintest and the loudest."""
    return (10 ** np.random.default_rng(seed).uniform(-9, 0, (96, size))).astype(np.float32)


def test_power_equals_plain_loop() -> None:
    wave = noise(1700, 1)
    np.testing.assert_allclose(POWER.rows(wave)[:, 0], plain_power(wave[:, 0].astype(float), 75), rtol=2e-4)


def test_peak_equals_plain_loop() -> None:
    power = some_power(139)
    peak = max(power.flat)
    below = [[max(0.0, 1 + 10 * math.log10(p / peak) / 60) for p in row] for row in power]
    found = LinearPower(size=139).finish(power)
    np.testing.assert_allclose(found, plain_stretch(np.array(below), 139), atol=1e-5)


def test_floor_equals_plain_loop() -> None:
    power = some_power(139)
    level_db = 10 * np.log10(power / power.mean(dtype=float) + 1e-4)
    floor = np.array([sorted(band)[19] for band in level_db.T])
    expected = plain_stretch(np.clip((level_db - floor) / 40, 0, 1), 139)
    found = LinearPower(size=139, normalise="band_floor", range_db=40).finish(power)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("normalise", ["peak", "band_floor"])
def test_power_image_lies_in_0_to_1_and_ignores_gain(normalise: str) -> None:
    front_end = LinearPower(size=139, normalise=normalise)
    power = some_power(139)
    image = front_end.finish(power)
    assert (image.shape, image.dtype, image.min()) == ((139, 139), np.float32, 0.0)
    assert 0.5 < image.max() <= 1 + 1e-6
    np.testing.assert_allclose(front_end.finish(power * 1000), image, atol=1e-4)
    assert not front_end.finish(np.zeros((2, 96, 139), np.float32)).any()


@given(size=st.integers(1, 412))
@settings(max_examples=40, deadline=None)
def test_every_size_hears_white_noise_alike_in_every_band(size: int) -> None:
    matrix = linear_matrix(size, 513, 24000, 300, 10000)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-5)
    centres = LinearPower(size=size).frequencies_hz
    bin_hz = np.arange(513) * 24000 / 1024
    assert (matrix[(bin_hz > centres[0]) & (bin_hz < centres[-1])].sum(axis=1) > 0).all()


@given(size=st.integers(1, 412), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_interpolation_keeps_levels_and_its_transpose_keeps_relevance(size: int, seed: int) -> None:
    np.testing.assert_allclose(resize_matrix(size, 96).sum(axis=1), 1, atol=1e-5)
    relevance = np.random.default_rng(seed).normal(size=(2, size, size)).astype(np.float32)
    back = LinearPower(size=size).to_rows(relevance)
    assert back.shape == (2, 96, size)
    np.testing.assert_allclose(back.sum(axis=1), relevance.sum(axis=1), atol=1e-3)


def test_relevance_goes_back_to_its_frame() -> None:
    front_end = LinearPower(size=299)
    power = np.full((96, 299), 1e-9, np.float32)
    power[40, 100] = 1.0
    frame, band = np.unravel_index(front_end.to_rows(front_end.finish(power)).argmax(), (96, 299))
    assert (frame, band) == (40, 100)


def test_log_mel_relevance_is_its_rows() -> None:
    relevance = noise(96, 64)
    assert FRONT_END.to_rows(relevance) is relevance


@pytest.mark.parametrize("size", [75, 139, 299])
def test_tone_lands_in_its_linear_band(size: int) -> None:
    tone = np.sin(2 * np.pi * 3000 * np.arange(24000) / 24000).astype(np.float32)[:, None]
    front_end = LinearPower(size=size)
    loudest = front_end.rows(tone)[:, 0].mean(axis=0).argmax()
    assert abs(front_end.frequencies_hz[loudest] - 3000) <= 9700 / (size + 1) / 2 + 1


def test_both_front_ends_share_the_grid() -> None:
    for front_end in (FRONT_END, LinearPower()):
        assert (front_end.hop_samples / front_end.rate_hz, front_end.frames) == (0.01, 96)
    assert LinearPower().shape == (299, 299, 1)
    assert rows_of(POWER, noise(24000), 24000).shape == (1 + (24000 - 600) // 240, 2, 75)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"normalise": "loud"}, r"one of \('peak', 'band_floor'\), not 'loud'"),
        ({"fft_size": 512}, "fft_size must be at least a frame's 600 samples, not 512"),
        ({"size": 500}, "size must be 1 to 412, not 500"),
        ({"high_hz": 13000.0}, "must rise from 0 to 12000, not 300 and 13000"),
    ],
)
def test_power_refuses(constants: dict[str, object], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        front_end_from_dict({"kind": "linear_power", **constants})
    with pytest.raises(AudioError, match="at least 10300 Hz, not 8000 Hz"):
        RowStream(POWER, 8000, 1)


def test_prominence_is_that_of_the_best_patch_by_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    for shape in ((96, 64), (8, 2), (139, 139)):
        found = generator.exponential(size=shape).astype(np.float32)
        means = [
            found[row : row + 8, band : band + 2].mean(dtype=np.float64)
            for row in range(shape[0] - 7)
            for band in range(shape[1] - 1)
        ]
        assert prominence(found) == pytest.approx(max(means), rel=1e-6)
    call = np.zeros((96, 64), np.float32)
    call[40:50, 20:22] = 3
    assert prominence(call) == pytest.approx(3) and prominence(call * 0) == 0
