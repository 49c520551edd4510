from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.config import HydrophoneSettings
from orcawatch.levels import FULL_SCALE, PRESSURE, Calibration, LevelMeter, Levels, calibration, event_levels, put
from orcawatch.records import AudioBlock
from orcawatch.store import Store

RATE_HZ = 16000
UNKNOWN = Calibration((None, None), (0.0, 0.0), None)


def metered(
    blocks: Sequence[AudioBlock], known: Calibration = UNKNOWN, every_s: float = 2.0, rate_hz: int = RATE_HZ
) -> list[Levels]:
    meter = LevelMeter(blocks[0].samples.shape[1], rate_hz, known, every_s)
    return [row for block in blocks for row in meter.push(block)] + meter.finish()


def cut(samples: Any, borders: Sequence[int], first: int = 0) -> list[AudioBlock]:
    """Blocks between the borders."""
    edges = [0, *sorted(borders), len(samples)]
    return [AudioBlock(samples[a:b], first + a) for a, b in zip(edges, edges[1:])]


def through_chain(pressure_pa: float, hz: float, seconds: float, known: Calibration) -> Any:
    """Samples of a sine of this RMS pressure: hydrophone, amplifier, converter."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pressure_upa = 1e6 * pressure_pa * math.sqrt(2) * np.sin(2 * np.pi * hz * time_s)
    volts = [
        pressure_upa * 10 ** ((float(sensitivity or 0) + gain) / 20)
        for sensitivity, gain in zip(known.sensitivity_db, known.gain_db)
    ]
    return (np.stack(volts, axis=1) / float(known.adc_peak_v or 0)).astype(np.float32)


@pytest.mark.parametrize(("pressure_pa", "level_db"), [(1.0, 120.0), (0.05, 93.979), (10.0, 140.0)])
def test_sine_of_known_pressure(pressure_pa: float, level_db: float) -> None:
    """1 Pa is 120 dB re 1 uPa, on every channel, whatever its hydrophone and amplifier."""
    known = Calibration((-180.0, -165.5, -204.0), (20.0, 0.0, 40.0), 2.5)
    rows = metered(cut(through_chain(pressure_pa, 1000.0, 4.0, known), [777, 30000]), known)
    assert [(row.start_sample, row.end_sample) for row in rows] == [(0, 32000), (32000, 64000)]
    for row in rows:
        assert row.unit == PRESSURE == "dB re 1 uPa"
        assert row.levels_db == pytest.approx([level_db] * 3, abs=0.01)
        assert row.peaks_db == pytest.approx([level_db + 3.01] * 3, abs=0.01)


def test_full_scale_sine() -> None:
    sine = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    (row,) = metered([AudioBlock(np.stack([sine, sine / 2], axis=1), 0)])
    assert row.unit == FULL_SCALE == "dB re full scale"
    assert row.levels_db == pytest.approx([-3.0103, -9.0309], abs=1e-3)
    assert row.peaks_db == pytest.approx([0, -6.0206], abs=1e-3)


def plain(samples: Any) -> tuple[list[float], list[float], list[int]]:
    """Level, peak and clipped samples of each channel, sample by sample."""
    levels, peaks, clipped = [], [], []
    for channel in samples.T.tolist():
        mean = math.fsum(channel) / len(channel)
        apart = [value - mean for value in channel]
        levels.append(10 * math.log10(math.fsum(value * value for value in apart) / len(apart)))
        peaks.append(20 * math.log10(max(map(abs, apart))))
        clipped.append(sum(abs(value) >= 32767 / 32768 for value in channel))
    return levels, peaks, clipped


def test_equal_to_a_plain_loop() -> None:
    """Noise with a large DC, faint noise, and noise that clips."""
    noise = np.random.default_rng(1).normal(0, 1, (5 * RATE_HZ // 2, 3))
    samples = np.clip(noise * [0.01, 1e-6, 0.5] + [0.7, -0.2, 0.0], -1, 32767 / 32768).astype(np.float32)
    rows = metered(cut(samples, [100, 9000, 31999]), Calibration((None,) * 3, (0.0,) * 3, None))
    assert [row.end_sample - row.start_sample for row in rows] == [32000]
    levels, peaks, clipped = plain(samples[:32000])
    assert rows[0].levels_db == pytest.approx(levels, abs=1e-6)
    assert rows[0].peaks_db == pytest.approx(peaks, abs=1e-6)
    assert list(rows[0].clipped) == clipped and clipped[2] > 500 and clipped[:2] == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40000), max_size=30), st.floats(0.1, 3.0))
def test_block_borders_change_nothing(borders: list[int], every_s: float) -> None:
    samples = np.random.default_rng(2).normal(0.1, 0.1, (40000, 2)).astype(np.float32)
    assert metered(cut(samples, borders, 5), every_s=every_s) == metered(cut(samples, [], 5), every_s=every_s)


def test_rows_never_span_a_hole() -> None:
    """Three stretches: 3.5 s, half a second (too short for a row), 1.25 s; rows of 2 s."""
    samples = np.random.default_rng(3).normal(0, 0.1, (100000, 2)).astype(np.float32)
    spans = [(1000, 57000), (57001, 65001), (70000, 90000)]
    blocks = [AudioBlock(samples[a:b], a) for a, b in spans]
    rows = metered(blocks)
    assert [(row.start_sample, row.end_sample) for row in rows] == [(1000, 33000), (33000, 57000), (70000, 90000)]
    for row in rows:
        assert row.levels_db == pytest.approx(plain(samples[row.start_sample : row.end_sample])[0], abs=1e-6)


def test_end_of_a_stretch_is_asked_for_once() -> None:
    meter = LevelMeter(1, RATE_HZ, Calibration((None,), (0.0,), None), 60.0)
    noise = np.random.default_rng(4).normal(0, 0.1, (20000, 1)).astype(np.float32)
    assert meter.push(AudioBlock(noise, 0)) == []
    assert [(row.start_sample, row.end_sample) for row in meter.finish()] == [(0, 20000)]
    assert meter.finish() == []
    assert meter.push(AudioBlock(noise, 20000)) == []
    assert [(row.start_sample, row.end_sample) for row in meter.finish()] == [(20000, 40000)]


def test_channel_without_any_sound_has_no_level() -> None:
    samples = np.zeros((32000, 2), np.float32)
    samples[:, 0] = 0.1
    (row,) = metered([AudioBlock(samples, 0)])
    assert all(map(math.isnan, row.levels_db + row.peaks_db))
    assert row.clipped == (0, 0)


def test_anything_unknown_makes_all_relative() -> None:
    """Never one channel in one unit and the next in another."""
    hydrophones = [HydrophoneSettings("A", -170.0, 12.0), HydrophoneSettings("B", None, 12.0)]
    found = calibration(hydrophones, None, 2)
    assert found.unit == FULL_SCALE
    assert found.unknown == (
        "levels are in dB re full scale: adc_peak_v, hydrophones[1].sensitivity_db must be given for levels in "
        "dB re 1 uPa"
    )
    noise = np.random.default_rng(5).normal(0, 0.1, (32000, 2)).astype(np.float32)
    assert metered([AudioBlock(noise, 0)], found)[0].levels_db == pytest.approx([-20, -20], abs=0.1)
    assert calibration([], 1.0, 2) == Calibration((None, None), (0.0, 0.0), 1.0)
    known = calibration(hydrophones[:1], 1.0, 1)
    assert (known.unit, known.unknown) == (PRESSURE, None)


def test_calibration_must_fit() -> None:
    with pytest.raises(ValueError, match="must have 3 channels, not 2"):
        LevelMeter(3, RATE_HZ, UNKNOWN, 60.0)


def test_level_of_a_clip() -> None:
    known = Calibration((-180.0, -180.0), (0.0, 6.0), 1.0)
    samples = through_chain(2.0, 500.0, 1.0, known)
    assert event_levels(samples, known) == pytest.approx([126.02, 126.02], abs=0.01)
    assert event_levels(samples[:0], known) == ()
    assert event_levels(samples, known) == metered([AudioBlock(samples, 0)], known)[0].levels_db


def test_rows_in_the_database(tmp_path: Path) -> None:
    start_utc = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    row = Levels(0, 32000, (101.23456, math.nan), (120.0, math.nan), (3, 0), PRESSURE)
    with Store(tmp_path / "detections.sqlite") as store:
        with store.transaction() as connection:
            put(connection, 7, row, start_utc, True)
            put(connection, 7, row, None, None)
        with store.transaction() as connection:
            found = [tuple(one) for one in connection.execute("SELECT * FROM levels ORDER BY id")]
    assert [one[1:4] for one in found] == [(7, 0, 32000)] * 2
    assert [one[4] for one in found] == ["2026-03-01T12:00:00+00:00", None]
    assert [json.loads(text) for text in found[0][5:8]] == [[101.235, None], [120.0, None], [3, 0]]
    assert [one[8:] for one in found] == [(PRESSURE, 1), (PRESSURE, None)]
