from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch import drawing, snapshot
from orcawatch.errors import AudioError, OrcawatchError
from orcawatch.records import Event, Window, WindowScore
from orcawatch.snapshot import Explanation, Map
from orcawatch.spectrogram import FrontEnd, LinearPower, LogMel, rows_of

FRONT_END = LogMel()
RATE_HZ = 22050
SIZE = (1080, 1200)


class FakeEnsemble:
    """Relevance is the rows themselves, and zero for windows whose rows all lie below `silent_below`."""

    def __init__(self, silent_below: float = 0.0, front_ends: tuple[FrontEnd, ...] = (FRONT_END,)) -> None:
        names = ["fake", "other", "third"]
        backbones = {name: SimpleNamespace(front_end=front_end) for name, front_end in zip(names, front_ends)}
        self.bundle = SimpleNamespace(backbones=backbones, hop_s=0.48, start_threshold=0.5)
        self.spans: list[tuple[int, int]] = []
        self._silent_below = silent_below

    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
        return [self._explained(window, channel) for window in windows]

    def _explained(self, window: Window, channel: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        rows = {name: found[channel] for name, found in window.rows.items()}
        assert rows["fake"].shape == (96, 64)
        self.spans.append((window.start_sample, window.end_sample))
        return {name: (found, found * (found.max() >= self._silent_below)) for name, found in rows.items()}


def noise(seconds: float, channels: int = 1, level: float = 0.001) -> np.ndarray:
    size = (round(seconds * RATE_HZ), channels)
    return np.random.default_rng(0).normal(0, level, size).astype(np.float32)


def sweep(low_hz: float, high_hz: float, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * (low_hz * time_s + (high_hz - low_hz) * time_s**2 / (2 * seconds))
    return (0.2 * np.sin(phase)).astype(np.float32)


def clip_with_call(channels: int = 4, seconds: float = 4.0) -> np.ndarray:
    """Noise, a loud hum, and on one channel a call of 1 to 3 kHz from second 1.5 to 2.5."""
    samples = noise(seconds, channels)
    samples += 0.3 * np.sin(2 * np.pi * 200 * np.arange(len(samples)) / RATE_HZ)[:, None].astype(np.float32)
    start = round(1.5 * RATE_HZ)
    samples[start : start + RATE_HZ, min(1, channels - 1)] += sweep(1000, 3000, 1.0)
    return samples


def event(start_s: float, end_s: float, first_sample: int, scores: list[list[float]], best: int) -> Event:
    borders = np.linspace(start_s, end_s, len(scores) + 1) * RATE_HZ + first_sample
    windows = tuple(
        WindowScore(int(a), int(b), np.zeros((len(row), 1), np.float32), np.array(row, np.float32), max(row))
        for a, b, row in zip(borders, borders[1:], scores)
    )
    channels = np.max([window.channel_scores for window in windows], axis=0)
    return Event(int(borders[0]), int(borders[-1]), float(channels.max()), channels, best, windows)


def explanation(*relevance: np.ndarray, silent: int = 0) -> Explanation:
    """Frames every 10 ms of LogMel's bands, a map for each array (frames, 64)."""
    times_s = np.arange(len(relevance[0])) / 100
    level_db = np.zeros_like(relevance[0])
    names = ["one", "two", "three"]
    maps = [Map(n, level_db, r, times_s, FRONT_END.frequencies_hz) for n, r in zip(names, relevance)]
    return Explanation(tuple(maps), "m", 3, silent)


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG") and b"IEND" in content[-12:]
    return struct.unpack(">II", content[16:24])


@settings(deadline=None)
@given(frames=st.integers(1, 60), size=st.integers(1, 20), hop=st.integers(1, 20))
def test_average_equals_plain_loop(frames: int, size: int, hop: int) -> None:
    rng = np.random.default_rng(frames)
    pairs = [(start, rng.random((size, 2), np.float32)) for start in range(0, frames, min(hop, size))]
    expected = np.zeros((frames, 2))
    for frame in range(frames):
        covering = [values[frame - start] for start, values in pairs if start <= frame < start + size]
        for band in range(2):
            expected[frame, band] = sum(values[band] for values in covering) / len(covering)
    np.testing.assert_allclose(snapshot.average_overlapping(pairs, frames), expected, rtol=1e-6)


def test_windows_side_by_side_keep_their_relevance() -> None:
    pairs = [(start, np.random.default_rng(start).random((5, 3)).astype(np.float32)) for start in (0, 5, 10)]
    total = sum(values.sum() for _, values in pairs)
    assert snapshot.average_overlapping(pairs, 15).sum() == pytest.approx(total)


@pytest.mark.parametrize("band", [0, 20, 63])
def test_level_of_a_full_scale_sine_is_0_db(band: int) -> None:
    time_s = np.arange(FRONT_END.frame_samples)[:, None] / FRONT_END.rate_hz
    sine = np.sin(2 * np.pi * FRONT_END.frequencies_hz[band] * time_s).astype(np.float32)
    for factor, expected_db in ((1.0, 0.0), (0.5, -6.0206), (0.0, -120.0)):
        level_db = snapshot.level_db(FRONT_END, FRONT_END.rows(factor * sine)[:, 0])
        assert level_db[0, band] == pytest.approx(expected_db, abs=1e-3)


def test_level_of_rows_that_are_powers() -> None:
    front_end = LinearPower(size=75)
    time_s = np.arange(front_end.frame_samples)[:, None] / front_end.rate_hz
    sine = np.sin(2 * np.pi * front_end.frequencies_hz[40] * time_s).astype(np.float32)
    for factor, expected_db in ((1.0, 0.0), (0.5, -6.0206), (0.0, -120.0)):
        level_db = snapshot.level_db(front_end, front_end.rows(factor * sine)[:, 0])
        assert level_db[0, 40] == pytest.approx(expected_db, abs=1e-3)


def test_edges_of_bands_even_in_hertz() -> None:
    np.testing.assert_allclose(snapshot.band_edges_hz(np.array([400.0, 500, 600]), "linear"), [350, 450, 550, 650])


def test_band_edges_are_those_of_the_mel_bands() -> None:
    edges_hz = snapshot.band_edges_hz(FRONT_END.frequencies_hz)
    middles = (snapshot.hertz_to_mel(edges_hz[1:]) + snapshot.hertz_to_mel(edges_hz[:-1])) / 2
    np.testing.assert_allclose(snapshot.mel_to_hertz(middles), FRONT_END.frequencies_hz)
    assert 125 < edges_hz[0] < FRONT_END.frequencies_hz[0] and FRONT_END.frequencies_hz[-1] < edges_hz[-1] < 7500


@pytest.mark.parametrize(("low_hz", "high_hz"), [(1000, 3000), (600, 1200), (3000, 6500)])
def test_band_of_a_known_call(low_hz: int, high_hz: int) -> None:
    samples = noise(4.0)
    samples[RATE_HZ : 2 * RATE_HZ, 0] += sweep(low_hz, high_hz, 1.0)
    samples += 0.3 * np.sin(2 * np.pi * 200 * np.arange(len(samples)) / RATE_HZ)[:, None].astype(np.float32)
    level_db = snapshot.level_db(FRONT_END, rows_of(FRONT_END, samples, RATE_HZ)[:, 0])
    frames = np.arange(len(level_db))
    found = snapshot.call_band(level_db, (frames > 90) & (frames < 210), FRONT_END.frequencies_hz)
    band_hz = np.diff(snapshot.band_edges_hz(FRONT_END.frequencies_hz)).max()
    slack = 0.15 * (high_hz - low_hz)  # 5 % of the energy lies outside on either side
    assert low_hz - band_hz / 2 < found[0] < low_hz + slack
    assert high_hz - slack < found[1] < high_hz + band_hz / 2


def plain_band(power_db: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """Loop version: indices of the first and the last band."""
    excess = []
    for band in range(power_db.shape[1]):
        outside = sorted(power_db[frame, band] for frame in range(len(power_db)) if not inside[frame])
        middle = len(outside) // 2
        background = outside[middle] if len(outside) % 2 else (outside[middle - 1] + outside[middle]) / 2
        above = [power_db[frame, band] - background for frame in range(len(power_db)) if inside[frame]]
        excess.append(sum(10 ** (db / 10) - 1 for db in above if db >= 6))
    running, low, high = 0.0, -1, -1
    for band, energy in enumerate(excess):
        running += energy
        low = band if low < 0 and running >= 0.05 * sum(excess) else low
        high = band if high < 0 and running >= 0.95 * sum(excess) else high
    return low, high


@pytest.mark.parametrize("seed", range(5))
def test_call_band_equals_plain_loop(seed: int) -> None:
    power_db = np.random.default_rng(seed).normal(-60, 8, (40, 64))
    inside = np.arange(40) % 4 < 2
    low, high = plain_band(power_db, inside)
    edges_hz = snapshot.band_edges_hz(FRONT_END.frequencies_hz)
    found = snapshot.call_band(power_db, inside, FRONT_END.frequencies_hz)
    assert found == (edges_hz[low], edges_hz[high + 1])


def test_band_without_a_call_is_everything() -> None:
    edges_hz = snapshot.band_edges_hz(FRONT_END.frequencies_hz)
    found = snapshot.call_band(np.full((50, 64), -60.0), np.arange(50) < 20, FRONT_END.frequencies_hz)
    assert found == (edges_hz[0], edges_hz[-1])


def test_event_as_long_as_the_clip_has_a_band() -> None:
    level_db = np.full((100, 64), -60.0)
    level_db[40:60, 30] = -20.0
    low_hz, high_hz = snapshot.call_band(level_db, np.ones(100, bool), FRONT_END.frequencies_hz)
    assert low_hz < FRONT_END.frequencies_hz[30] < high_hz < FRONT_END.frequencies_hz[31]


def test_even_relevance_reaches_what_chance_reaches() -> None:
    numbers = snapshot.relevance_numbers(explanation(np.ones((50, 64), np.float32)), (0, 0.2), (1000, 3000))
    assert numbers["relevance_in_band"] == pytest.approx(numbers["area_in_band"])
    bands = sum(1000 < hertz < 3000 for hertz in FRONT_END.frequencies_hz)
    assert numbers["area_in_band"] == pytest.approx(20 / 50 * bands / 64)


def test_share_counts_band_and_time() -> None:
    relevance = np.zeros((50, 64), np.float32)
    band = int(np.argmin(np.abs(FRONT_END.frequencies_hz - 2000)))
    relevance[10, band], relevance[10, 0], relevance[40, band] = 6, 3, 1
    numbers = snapshot.relevance_numbers(explanation(relevance, silent=1), (0, 0.2), (1000, 3000))
    assert numbers["relevance_in_band"] == pytest.approx(0.6)
    assert (numbers["windows"], numbers["silent_windows"]) == (3, 1)
    assert (numbers["band_low_hz"], numbers["band_high_hz"]) == (1000, 3000)


def test_several_backbones_share_by_their_relevance() -> None:
    band = int(np.argmin(np.abs(FRONT_END.frequencies_hz - 2000)))
    one, two, three = (np.zeros((50, 64), np.float32) for _ in range(3))
    one[10, band], one[40, band], two[10, 0] = 4, 2, 2
    found = explanation(one, two, three)
    assert snapshot.shares(found) == pytest.approx([0.75, 0.25, 0])
    numbers = snapshot.relevance_numbers(found, (0, 0.2), (1000, 3000))
    assert numbers["relevance_in_band"] == pytest.approx(4 / 8)
    assert numbers["relevance_in_band-one"] == pytest.approx(4 / 6) and numbers["relevance_in_band-two"] == 0
    assert "relevance_in_band-three" not in numbers  # there is nothing to share
    assert [numbers[f"share-{name}"] for name in ("one", "two", "three")] == pytest.approx([0.75, 0.25, 0])
    alone = snapshot.relevance_numbers(explanation(one), (0, 0.2), (1000, 3000))
    assert alone["area_in_band"] == pytest.approx(numbers["area_in_band"])
    assert not any("-" in name for name in alone)


def test_no_relevance_has_no_share() -> None:
    numbers = snapshot.relevance_numbers(explanation(np.zeros((50, 64), np.float32), silent=3), (0, 0.2), (1000, 3000))
    assert "relevance_in_band" not in numbers and numbers["silent_windows"] == 3


def test_explains_every_frame() -> None:
    samples = clip_with_call(1)[:, 0]
    ensemble = FakeEnsemble()
    found = snapshot.explain_audio(ensemble, samples, RATE_HZ)
    rows = rows_of(FRONT_END, samples[:, None], RATE_HZ)[:, 0]
    (heard,) = found.maps
    np.testing.assert_allclose(heard.relevance, rows, rtol=1e-6)
    assert found.windows == len(ensemble.spans) == 8
    assert ensemble.spans[1] == (48 * 160, (48 + 96) * 160)
    assert heard.times_s[[0, 100]] == pytest.approx([0.0125, 1.0125])


def test_backbones_have_their_own_axes_on_one_grid() -> None:
    front_ends = (FRONT_END, LinearPower(size=75))
    found = snapshot.explain_audio(FakeEnsemble(front_ends=front_ends), clip_with_call(1)[:, 0], RATE_HZ)
    one, two = found.maps
    assert (one.backbone, two.backbone, one.scale, two.scale) == ("fake", "other", "mel", "linear")
    assert one.relevance.shape[1] == 64 and two.relevance.shape[1] == 75 and len(one.relevance) == len(two.relevance)
    assert two.times_s[0] == pytest.approx(front_ends[1].frame_samples / front_ends[1].rate_hz / 2)
    np.testing.assert_array_equal(two.frequencies_hz, front_ends[1].frequencies_hz)
    rows = rows_of(front_ends[1], clip_with_call(1), RATE_HZ)[: len(two.relevance), 0]
    np.testing.assert_allclose(two.relevance, rows, rtol=1e-5)


def test_short_audio_counts_its_real_frames_only() -> None:
    samples = noise(0.5)[:, 0]
    found = snapshot.explain_audio(FakeEnsemble(), samples, RATE_HZ)
    rows = rows_of(FRONT_END, samples[:, None], RATE_HZ)[:, 0]
    assert len(rows) < 50 and found.windows == 1
    np.testing.assert_array_equal(found.maps[0].relevance, rows)


def test_silent_windows_are_counted() -> None:
    samples = noise(6.0, level=1e-5)[:, 0]
    samples[RATE_HZ * 5 :] += sweep(1000, 2000, 1.0)
    found = snapshot.explain_audio(FakeEnsemble(silent_below=0.5), samples, RATE_HZ)
    assert (found.windows, found.silent_windows) == (12, 9)
    assert not found.maps[0].relevance[:400].any() and found.maps[0].relevance[500:].any()


def test_audio_without_a_frame_is_refused() -> None:
    with pytest.raises(AudioError, match="at least one frame"):
        snapshot.explain_audio(FakeEnsemble(), np.zeros(100, np.float32), RATE_HZ)


@given(samples=st.integers(1, 50000), peak=st.integers(-10, 50010))
def test_excerpt_holds_the_peak(samples: int, peak: int) -> None:
    start, end = snapshot.excerpt(samples, 1000, peak)
    assert end - start == min(samples, 12000) and start >= 0 and end <= samples
    assert start <= min(max(peak, 0), samples - 1) < end


def test_snapshot_files(tmp_path: Path) -> None:
    detected = event(1.4, 2.6, 70000, [[0.2, 0.6, 0.3, 0.1], [0.3, 0.9, 0.4, 0.2]], best=1)
    ensemble = FakeEnsemble()
    shown = snapshot.excerpt_of(clip_with_call(), RATE_HZ, 70000, detected)
    png, numbers = snapshot.make_snapshot(
        ensemble, shown, detected, (4, 7, 5, 6), "scene.flac · 12.5 s", tmp_path / "2026.1"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026.1.npz", "2026.1.png"] and png.name == "2026.1.png"
    assert png_size(png.read_bytes()) == SIZE
    assert numbers["band_low_hz"] == pytest.approx(1100, abs=120)
    assert numbers["band_high_hz"] == pytest.approx(2900, abs=200)
    with np.load(tmp_path / "2026.1.npz") as arrays:
        assert set(arrays) >= {"spectrogram_db", "relevance", "times_s", "frequencies_hz", "channel_scores"}
        assert arrays["event_s"] == pytest.approx([1.4, 2.6], abs=1e-3)
        assert arrays["channel_scores"].shape == (2, 4)
        assert arrays["channels"].tolist() == [4, 7, 5, 6] and arrays["best_channel"] == 7
        assert arrays["title"][1].startswith("channel 7, score")
        assert drawing.drawn(dict(arrays)) == png.read_bytes()


def test_several_backbones_make_a_taller_picture(tmp_path: Path) -> None:
    front_ends = (FRONT_END, LinearPower(size=75), LinearPower(size=75))
    detected = event(1.4, 2.6, 0, [[0.2, 0.6], [0.3, 0.9]], best=1)
    shown = snapshot.excerpt_of(clip_with_call(2), RATE_HZ, 0, detected)
    png, numbers = snapshot.make_snapshot(
        FakeEnsemble(front_ends=front_ends), shown, detected, (0, 1), "t", tmp_path / "three"
    )
    assert png_size(png.read_bytes()) == (SIZE[0], SIZE[1] + 2 * 404)
    assert sum(numbers[f"share-{name}"] for name in ("fake", "other", "third")) == pytest.approx(1)
    with np.load(tmp_path / "three.npz") as arrays:
        assert arrays["backbones"].tolist() == ["fake", "other", "third"]
        assert arrays["relevance"].shape[1] == 64 and arrays["relevance-third"].shape[1] == 75
        assert arrays["spectrogram_db-other"].shape == arrays["relevance-other"].shape
        assert drawing.drawn(dict(arrays)) == png.read_bytes()


def test_lines_have_the_sources_channel_numbers() -> None:
    styles = [drawing._line(column, column == 1, (4, 7, 5)) for column in range(3)]
    assert [style["label"] for style in styles] == ["ch 4", "ch 7", "ch 5"]
    assert [style["linewidth"] for style in styles] == [2.5, 5, 2.5]


def test_long_clip_is_shown_around_its_peak(tmp_path: Path) -> None:
    detected = event(1.0, 19.0, 0, [[0.6]] * 17 + [[0.9]], best=0)
    shown = snapshot.excerpt_of(noise(20.0), RATE_HZ, 0, detected)
    snapshot.make_snapshot(FakeEnsemble(), shown, detected, (0,), "t", tmp_path / "long")
    with np.load(tmp_path / "long.npz") as arrays:
        assert arrays["times_s"][[0, -1]] == pytest.approx([8, 20], abs=0.05)


@pytest.mark.parametrize("channels", [1, 8, 12])
def test_draws_silence_and_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    detected = event(0.0, 0.9, 0, [[0.5] * channels], best=channels - 1)
    samples = np.zeros((RATE_HZ, channels), np.float32)
    shown = snapshot.excerpt_of(samples, RATE_HZ, 0, detected)
    png, numbers = snapshot.make_snapshot(
        FakeEnsemble(), shown, detected, range(channels), "a long name " * 20, tmp_path / "quiet"
    )
    assert png_size(png.read_bytes()) == SIZE
    assert numbers["silent_windows"] == numbers["windows"] == 2 and "relevance_in_band" not in numbers


def test_another_process_draws_the_same_picture(tmp_path: Path) -> None:
    detected = event(1.4, 2.6, 0, [[0.2, 0.6], [0.3, 0.9]], best=1)
    shown = snapshot.excerpt_of(clip_with_call(2), RATE_HZ, 0, detected)
    made = [
        snapshot.make_snapshot(FakeEnsemble(), shown, detected, (0, 1), "sea", tmp_path / name, apart)[0].read_bytes()
        for name, apart in (("here", False), ("apart", True))
    ]
    assert made[0] == made[1] and png_size(made[0]) == SIZE
    assert len(list(tmp_path.iterdir())) == 4


def test_a_picture_that_cannot_be_drawn_apart_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz = tmp_path / "half.npz"
    np.savez(npz, times_s=np.zeros(3))
    with pytest.raises(OrcawatchError, match=r"half\.npz ended with exit code 1: .*KeyError.*backbones"):
        drawing.drawn_apart(npz)
    monkeypatch.setattr(drawing, "DRAWN_S", 0.01)
    with pytest.raises(OrcawatchError, match=r"half\.npz could not be drawn in a process of its own: .* timed out"):
        drawing.drawn_apart(npz)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(OrcawatchError, match=r"half\.npz could not be drawn in a process of its own: .*gone"):
        drawing.drawn_apart(npz)


def test_what_python_prints_at_its_start_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path[1:]]))
    detected = event(1.4, 2.6, 0, [[0.2, 0.6]], best=1)
    shown = snapshot.excerpt_of(clip_with_call(2), RATE_HZ, 0, detected)
    with pytest.raises(OrcawatchError, match=r"sea\.npz gave no picture but b'hello"):
        snapshot.make_snapshot(FakeEnsemble(), shown, detected, (0, 1), "t", tmp_path / "sea", apart=True)
    assert not (tmp_path / "sea.png").exists()


def test_what_libraries_print_is_no_part_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(print, 'bye')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path[1:]]))
    detected = event(1.4, 2.6, 0, [[0.2, 0.6]], best=1)
    shown = snapshot.excerpt_of(clip_with_call(2), RATE_HZ, 0, detected)
    png, _ = snapshot.make_snapshot(FakeEnsemble(), shown, detected, (0, 1), "t", tmp_path / "sea", apart=True)
    assert png_size(png.read_bytes()) == SIZE


def test_who_draws_steps_back() -> None:
    program = (
        "import os; from pathlib import Path; from orcawatch.drawing import yield_to_others; yield_to_others();"
        "print(os.nice(0), Path('/proc/self/oom_score_adj').read_text())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    niceness, score = map(int, found.stdout.split())
    assert niceness == min(19, os.nice(0) + 10) and score >= 500


def test_excerpt_is_a_copy_that_lets_the_clip_go() -> None:
    clip = clip_with_call(2)
    shown = snapshot.excerpt_of(clip, RATE_HZ, 0, event(1.4, 2.6, 0, [[0.2, 0.6]], best=1))
    assert shown.samples.base is None and np.array_equal(shown.samples, clip[:, 1])


def test_matplotlib_is_loaded_only_to_draw() -> None:
    program = "import sys, orcawatch.snapshot; print([name for name in sys.modules if 'matplotlib' in name])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
