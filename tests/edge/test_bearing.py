"""Bearings: geometry, correlation, least squares, intervals, notices of faults, and the way into the records."""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orcawatch import bearing as bearing_module
from orcawatch.bearing import (
    Bearing,
    Compass,
    Mode,
    arrivals_s,
    clear_arrivals,
    exchanged,
    flat_baselines,
    half_width,
    least_squares,
    misplaced,
    wave_misfit,
)
from orcawatch.config import HydrophoneSettings, Settings
from orcawatch.daemon import run
from orcawatch.delays import Common, common, correlation, frame_size, peak
from orcawatch.errors import ConfigError
from orcawatch.files import FileSource
from orcawatch.guano import clip_metadata
from orcawatch.printer import Printer
from orcawatch.simulate import SQUARE_M, SceneSettings, arrival_delays_s, plane_wave, simulate_scene
from orcawatch.sinks import detection_body
from orcawatch.store import Detection

Array = NDArray[np.float32]

RATE_HZ = 16000
SQUARE = np.array(SQUARE_M)
TRIANGLE = ((0.0, 0.0, 0.0), (1.5, 0.0, 0.0), (0.5, 1.2, 0.0))
FIVE = ((0.0, 0.0, 0.0), (1.0, 0.2, 0.0), (0.4, 1.1, 0.0), (-0.8, 0.7, 0.3), (-0.5, -0.9, -0.2))
SLOPE = ((0.0, 0.0, 0.0), (1.2, 0.0, 0.0), (0.6, 1.0, 0.0), (0.6, 0.4, 1.0))
DETECTION = Detection(1, "a.wav", 1.0, 2.0, None, 0.9, (0, 1), (0.9, 0.8), 0, "b", "0" * 64)


def call(seed: int, seconds: float = 0.8, rate_hz: int = RATE_HZ) -> NDArray[np.float64]:
    """Harmonics of a falling pitch, with a soft start and end."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * (700 * time_s - 120 * time_s**2) + seed
    tones = sum(np.sin(order * phase) / order for order in range(1, 8))
    return np.asarray(tones * np.hanning(len(time_s)))


def heard(
    places: Any, bearing_deg: float, noise: float = 0.05, seed: int = 0, sound: Any = None, rate_hz: int = RATE_HZ
) -> Array:
    """A call from a bearing in the middle of 2 s of noise."""
    dice = np.random.default_rng(seed)
    samples = dice.normal(0, noise, (2 * rate_hz, len(places)))
    waves, _ = plane_wave(call(seed, rate_hz=rate_hz) if sound is None else sound, rate_hz, places, bearing_deg, 1480.0)
    samples[rate_hz // 2 : rate_hz // 2 + len(waves)] += waves
    return np.asarray(samples, np.float32)


def apart(one: float, other: float) -> float:
    return abs((one - other + 180) % 360 - 180)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 359.9), st.sampled_from([SQUARE_M, TRIANGLE, FIVE, SLOPE]), st.floats(-180, 180))
def test_bearing_of_a_clear_call_is_exact(truth: float, places: Any, heading: float) -> None:
    found = Compass(places, 1480.0, heading).bearing(heard(places, truth), RATE_HZ)
    assert found.bearing_deg is not None and found.error_deg is not None
    assert 0 <= found.bearing_deg < 360 and found.error_deg < 3 and found.note == ""
    assert apart(found.bearing_deg, truth + heading) < max(0.5, 2 * found.error_deg)


@pytest.mark.parametrize("rate_hz, seconds", [(44100, 0.3), (96000, 0.3), (22050, 1.0)])
def test_other_rates_and_short_calls(rate_hz: int, seconds: float) -> None:
    samples = heard(SQUARE, 217.0, sound=call(0, seconds, rate_hz), rate_hz=rate_hz)
    found = Compass(SQUARE).bearing(samples, rate_hz)
    assert found.bearing_deg is not None and apart(found.bearing_deg, 217.0) < 1


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 359.9), st.sampled_from([SQUARE_M, TRIANGLE, FIVE]))
def test_delays_of_a_plane_wave_are_those_of_the_simulation(truth: float, places: Any) -> None:
    pairs = np.array([(one, other) for one in range(len(places)) for other in range(one + 1, len(places))])
    found = empty(pairs)
    arrivals = arrival_delays_s(places, truth, 1480.0)
    expected = arrivals[pairs[:, 1]] - arrivals[pairs[:, 0]]
    baselines = flat_baselines(found, np.array(places)) / 1480.0
    assert arrivals_s(baselines, math.radians(truth)) == pytest.approx(expected, abs=1e-12)
    assert wave_misfit(arrivals, np.array(places) / 1480.0) < 5e-6


def empty(pairs: NDArray[np.int64]) -> Common:
    bins = np.arange(20, 400) * RATE_HZ / 1024
    shape = (len(pairs), len(bins))
    return Common(pairs, bins, np.zeros(shape, complex), np.ones(shape), np.ones(len(pairs)), 1024, RATE_HZ)


def with_delays(places: Any, delays_s: Sequence[float]) -> Common:
    """Pairs whose phases are those of given delays."""
    pairs = np.array([(one, other) for one in range(len(places)) for other in range(one + 1, len(places))])
    found = empty(pairs)
    phases = np.exp(2j * np.pi * np.asarray(delays_s)[:, None] * found.frequencies_hz)
    return replace(found, cross=phases * found.weights)


def test_correlation_equals_a_plain_sum_over_frequencies() -> None:
    dice = np.random.default_rng(3)
    found = empty(np.array([(0, 1)]))
    found = replace(found, cross=dice.normal(size=found.cross.shape) + 1j * dice.normal(size=found.cross.shape))
    delays_s, values = correlation(found, 0, 1e-3)
    for delay_s, value in list(zip(delays_s, values))[::17]:
        plain = sum(
            (cross * np.exp(-2j * np.pi * hz * delay_s)).real for hz, cross in zip(found.frequencies_hz, found.cross[0])
        )
        assert value == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("delay", [-7, 0, 3, 11])
def test_peak_is_where_a_loop_over_time_has_it(delay: int) -> None:
    dice = np.random.default_rng(delay + 10)
    sound = dice.normal(0, 1, RATE_HZ) * np.repeat([0.02, 1.0, 0.02, 0.02], RATE_HZ // 4)
    pair = np.stack([sound, np.roll(sound, delay)], axis=1) + dice.normal(0, 0.02, (RATE_HZ, 2))
    found = common(np.asarray(pair, np.float32), RATE_HZ, 1e-3)
    assert found is not None
    delays_s, values = correlation(found, 0, 1e-3)
    loop = [float(np.sum(pair[50:-50, 0] * np.roll(pair[:, 1], -lag)[50:-50])) for lag in range(-16, 17)]
    assert int(np.argmax(loop)) - 16 == delay
    assert peak(delays_s, values, int(np.argmax(values))) * RATE_HZ == pytest.approx(delay, abs=0.05)


@pytest.mark.parametrize("places", [SQUARE_M, TRIANGLE, FIVE])
@pytest.mark.parametrize("truth", [12.0, 200.0])
def test_least_squares_equals_a_search_of_all_angles(places: Any, truth: float) -> None:
    angle = math.radians(truth)
    pairs = [(one, other) for one in range(len(places)) for other in range(one + 1, len(places))]
    baselines = flat_baselines(empty(np.array(pairs)), np.array(places)) / 1480.0
    delays = arrivals_s(baselines, angle) + np.random.default_rng(1).normal(0, 2e-6, len(pairs))
    found = with_delays(places, delays)
    best, _ = least_squares(found, baselines, Mode(angle, 0.0, 0.01), len(places))
    grid = angle + np.radians(np.arange(-1, 1, 0.001))
    brute = grid[np.argmin(((arrivals_s(baselines, grid) - delays) ** 2).sum(axis=1))]
    assert math.degrees(best) == pytest.approx(math.degrees(brute), abs=0.1)


def test_a_pair_that_is_far_off_is_left_out() -> None:
    pairs = np.array([(one, other) for one in range(5) for other in range(one + 1, 5)])
    baselines = flat_baselines(empty(pairs), np.array(FIVE)) / 1480.0
    delays = arrivals_s(baselines, 1.0)
    delays[4] += 3e-5
    best, _ = least_squares(with_delays(FIVE, delays), baselines, Mode(1.0, 0.0, 0.01), 5)
    assert best == pytest.approx(1.0, abs=1e-4)


def test_half_width_of_one_and_of_two_modes() -> None:
    assert half_width([Mode(0.0, 0.0, 0.01)], 0.0) == pytest.approx(0.016449, abs=1e-5)
    assert half_width([Mode(0.0, 0.0, 0.01), Mode(1.0, -0.7, 0.01)], 0.0) == pytest.approx(1.0, abs=0.02)
    assert half_width([Mode(0.0, 0.0, 0.01), Mode(1.0, -9.0, 0.01)], 0.0) == pytest.approx(0.01645, abs=1e-4)


def test_intervals_cover_as_often_as_they_claim() -> None:
    held, claimed, errors = 0, 0, []
    for seed in range(6):
        scene = simulate_scene(
            SceneSettings(duration_s=20, seed=seed, rate_hz=16000, calls_per_minute=15, snr_low_db=-3, snr_high_db=9)
        )
        compass = Compass(scene.truth["hydrophones_m"], scene.truth["sound_speed_m_s"])
        for event in scene.truth["events"]:
            start, end = (round(at * 16000) for at in (event["start_s"] - 0.4, event["end_s"] + 0.4))
            found = compass.bearing(scene.samples[max(0, start) : end], 16000)
            if found.bearing_deg is None or found.error_deg is None:
                continue
            errors.append(apart(found.bearing_deg, event["bearing_deg"]))
            held, claimed = held + (errors[-1] <= found.error_deg), claimed + 1
    spread = math.sqrt(0.9 * 0.1 / claimed)
    assert claimed >= 20 and held / claimed >= 0.9 - 2 * spread
    assert np.median(errors) < 0.2


@pytest.mark.parametrize("fault", [0.0, 0.3])
def test_a_dead_channel_is_left_out_and_named(fault: float) -> None:
    samples = heard(SQUARE, 75.0)
    samples[:, 2] = fault
    found = Compass(SQUARE, channels=(4, 5, 6, 7)).bearing(samples, RATE_HZ)
    assert found.note == "channel 6 is dead" and found.bearing_deg == pytest.approx(75.0, abs=1)


def test_a_channel_full_of_noise_is_left_out_and_named() -> None:
    samples = heard(SQUARE, 75.0, noise=0.01)
    samples[:, 1] = np.random.default_rng(5).normal(0, 5, len(samples))
    found = Compass(SQUARE).bearing(samples, RATE_HZ)
    assert found.note == "channel 1 does not hear it" and found.bearing_deg == pytest.approx(75.0, abs=1)


@pytest.mark.parametrize("late", [700, 40])
def test_a_channel_that_hears_something_else_is_named(late: int) -> None:
    samples = heard(SQUARE, 250.0)
    samples[:, 1] = np.roll(samples[:, 1], late)
    found = Compass(SQUARE, channels=(4, 5, 6, 7)).bearing(samples, RATE_HZ)
    assert found.note == "channel 5 does not fit the others" and found.bearing_deg == pytest.approx(250.0, abs=1)


def test_numbers_that_are_none_make_a_channel_dead() -> None:
    samples = heard(SQUARE, 75.0)
    samples[100, 0] = np.nan
    samples[100, 3] = np.inf
    found = Compass(SQUARE).bearing(samples, RATE_HZ)
    assert found == Bearing(None, None, found.note) and found.note.endswith("channels 0, 3 are dead")


@pytest.mark.parametrize("truth", [10.0, 100.0, 250.0])
def test_swapped_channels_are_named(truth: float) -> None:
    clicks = np.random.default_rng(9).normal(size=RATE_HZ // 2)
    samples = heard(FIVE, truth, sound=clicks)[:, [0, 1, 3, 2, 4]]
    found = Compass(FIVE).bearing(samples, RATE_HZ)
    assert found.bearing_deg is None and "2 and 3" in found.note and found.note.endswith("seem swapped")


def test_what_is_the_same_for_the_array_is_not_told_apart() -> None:
    noise = np.random.default_rng(9).normal(size=RATE_HZ // 2)
    found = Compass(SQUARE).bearing(heard(SQUARE, 33.0, sound=noise)[:, [1, 0, 2, 3]], RATE_HZ)
    assert found.note == "no bearing: channels 0 and 1 or 2 and 3 seem swapped"


def test_a_wrong_place_is_named() -> None:
    places = np.array(FIVE)
    wrong = places + np.outer(np.arange(5) == 1, [1.0, 0.9, 0.0])
    found = Compass(wrong).bearing(heard(places, 200.0, sound=np.random.default_rng(2).normal(size=8000)), RATE_HZ)
    assert found.note == "the place of channel 1 does not fit; it was left out"
    assert found.bearing_deg == pytest.approx(200.0, abs=1)


def test_good_places_raise_no_notice() -> None:
    for seed in range(20):
        sound = np.random.default_rng(seed).normal(size=8000)
        found = common(heard(SQUARE, 18.0 * seed, seed=seed, sound=sound), RATE_HZ, 2.2e-3)
        assert found is not None and clear_arrivals(found, 4, 2.2e-3) is not None
        assert misplaced(found, SQUARE / 1480.0, 2.2e-3) is None
    assert np.array_equal(exchanged(SQUARE, (0, 3))[[3, 1, 2, 0]], SQUARE)


def test_another_sound_in_the_same_event_is_told() -> None:
    samples = heard(SQUARE, 40.0, sound=call(0, 0.5)) + np.roll(
        heard(SQUARE, 200.0, seed=1, sound=0.8 * call(3, 0.5)[::-1]), RATE_HZ // 2, axis=0
    )
    found = Compass(SQUARE).bearing(samples, RATE_HZ)
    assert found.bearing_deg is not None and "another sound came from about" in found.note
    other = float(found.note.split("about ")[1].split(" ")[0])
    assert sorted([round(found.bearing_deg), other]) == pytest.approx([40, 200], abs=2)


@pytest.mark.parametrize(
    "places, what",
    [
        (((0, 0, 0), (2, 0, 0)), "two hydrophones: from 30 or 150 degrees (± "),
        (((0, 0, 0), (1, 0, 0), (2.5, 0, 0)), "the hydrophones stand in a line: from 30 or 150 degrees (± "),
    ],
)
def test_a_line_has_two_bearings_and_takes_none(places: Any, what: str) -> None:
    found = Compass(places).bearing(heard(places, 30.0), RATE_HZ)
    assert found.bearing_deg is None and found.error_deg is None and found.note.startswith(what)


def test_a_steady_tone_has_no_single_bearing() -> None:
    places = ((0.0, 0.0, 0.0), (3.0, 0.0, 0.0), (0.0, 3.1, 0.0))
    tone = np.sin(2 * np.pi * 5000 * np.arange(RATE_HZ // 2) / RATE_HZ) * np.hanning(RATE_HZ // 2)
    found = Compass(places).bearing(heard(places, 70.0, sound=tone), RATE_HZ)
    assert found.bearing_deg is None and "no bearing: " in found.note


def test_noise_has_no_bearing() -> None:
    noise = np.random.default_rng(4).normal(0, 0.1, (2 * RATE_HZ, 4)).astype(np.float32)
    found = Compass(SQUARE).bearing(noise, RATE_HZ)
    assert found.bearing_deg is None and found.note.startswith("no bearing: ")


@pytest.mark.parametrize("samples", [0, 1, 20, 60])
def test_too_short_sound_has_no_bearing(samples: int) -> None:
    found = Compass(SQUARE).bearing(heard(SQUARE, 10.0)[:samples], RATE_HZ)
    assert found.bearing_deg is None and found.note.startswith("no bearing")
    assert frame_size(samples, RATE_HZ, 2e-3) == 0


def test_places_that_are_not_known() -> None:
    samples = heard(SQUARE, 75.0)
    assert Compass([None] * 4).bearing(samples, RATE_HZ) == Compass([]).bearing(samples, RATE_HZ) == Bearing()
    assert "one hydrophone alone" in Compass([(0, 0, 0), None, None, None]).bearing(samples, RATE_HZ).note
    three = Compass([*SQUARE_M[:3], None]).bearing(samples, RATE_HZ)
    assert three.bearing_deg == pytest.approx(75.0, abs=1) and three.note == ""
    above = Compass([(0, 0, 0), (0, 0, 3)]).bearing(samples[:, :2], RATE_HZ)
    assert above.bearing_deg is None and "above one another" in above.note
    with pytest.raises(ConfigError, match="the same place for all of them"):
        Compass([(1, 1, 1)] * 3)


def scanned(settings: Settings, samples: Array, folder: Path, ensemble: Any, write: Any) -> list[Detection]:
    found: list[Detection] = []
    run(FileSource(write(folder / "scene.wav", samples, RATE_HZ)), ensemble, settings, found.append)
    return found


def test_detections_have_bearings(ensemble: Any, tmp_path: Path, write: Any) -> None:
    samples = np.concatenate([heard(SQUARE, 300.0, 1e-4, seed, 0.2 * call(seed)) for seed in range(3)])
    hydrophones = tuple(HydrophoneSettings(position_m=place) for place in SQUARE_M)
    settings = Settings(output=tmp_path / "out", hydrophones=hydrophones, heading_deg=100.0, snapshots=False)
    found = scanned(settings, samples, tmp_path, ensemble, write)
    assert found and all(one.bearing_deg == pytest.approx(40.0, abs=1) for one in found)
    with sqlite3.connect(tmp_path / "out" / "detections.sqlite") as connection:
        rows = connection.execute("SELECT bearing_deg, bearing_error_deg, bearing_note FROM detections").fetchall()
    assert rows == [(one.bearing_deg, one.bearing_error_deg, one.bearing_note) for one in found]
    none = scanned(replace(settings, hydrophones=(), output=tmp_path / "b"), samples, tmp_path, ensemble, write)
    assert [(one.bearing_deg, one.bearing_error_deg, one.bearing_note) for one in none] == [(None, None, "")] * len(
        found
    )


def test_a_failure_costs_no_row(
    ensemble: Any, tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(samples: Array, rate_hz: int, longest_s: float) -> None:
        raise FloatingPointError("scripted")

    monkeypatch.setattr(bearing_module, "common", broken)
    hydrophones = tuple(HydrophoneSettings(position_m=place) for place in SQUARE_M)
    settings = Settings(output=tmp_path / "out", hydrophones=hydrophones, snapshots=False)
    with caplog.at_level(logging.ERROR):
        found = scanned(settings, heard(SQUARE, 75.0, 1e-4, sound=0.2 * call(0)), tmp_path, ensemble, write)
    assert found and all(one.bearing_note == "no bearing: its computation failed, see the log" for one in found)
    assert "FloatingPointError: scripted" in caplog.text


@pytest.mark.parametrize(
    "bearing, end",
    [
        ((123.44, 5.2, ""), "; from 123° ± 6°"),
        ((359.97, 0.05, ""), "; from 0.0° ± 0.1°"),
        ((40.0, 2.0, "channel 1 is dead"), "; channel 1 is dead; from 40° ± 2°"),
        (
            (None, None, "two hydrophones: from 40 or 140 degrees (± 3)"),
            "; two hydrophones: from 40 or 140 degrees (± 3)",
        ),
        ((None, None, ""), "; no clip"),
    ],
)
def test_bearing_in_print_messages_and_metadata(
    bearing: tuple[float | None, float | None, str], end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degrees, error, note = bearing
    detection = replace(DETECTION, bearing_deg=degrees, bearing_error_deg=error, bearing_note=note)
    for how in ("text", "jsonl", "csv"):
        Printer(how, Settings(output=tmp_path))(detection)
    text, line, heads, values = capsys.readouterr().out.splitlines()
    assert text.endswith(end)
    assert f'"bearing_deg": {"null" if degrees is None else degrees}' in line and f'"bearing_note": "{note}"' in line
    assert heads.endswith("bearing_deg,bearing_error_deg,bearing_note") and (
        degrees is None or f",{degrees}," in values
    )
    body = detection_body(detection)
    assert (body["bearing_deg"], body["bearing_error_deg"], body["bearing_note"]) == bearing
    fields = clip_metadata(detection, 0, 48000, 16000)
    assert fields.get("orcawatch|Bearing") == (None if degrees is None else f"{degrees:.2f}")
    assert fields.get("orcawatch|Bearing Note", "") == note
