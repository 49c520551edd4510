"""Laws of the simulator: geometry, levels, spectra, truth, reproducibility, and what bad settings say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orcawatch import calls, noise, simulate
from orcawatch.errors import InputError
from orcawatch.simulate import Scene, SceneSettings, simulate_scene, write_scene

RATE_HZ = 44100
SHORT: dict[str, Any] = {"duration_s": 12.0, "calls_per_minute": 15.0, "click_trains_per_minute": 5.0}


def spectrum_db(sound: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> float:
    """Mean spectrum level from low_hz to high_hz in dB re 1 µPa²/Hz, by averaged periodograms."""
    blocks = sound[: sound.size // 4096 * 4096].reshape(-1, 4096) * np.hanning(4096)
    density = np.mean(np.abs(np.fft.rfft(blocks)) ** 2, axis=0) * 2 / (rate_hz * np.sum(np.hanning(4096) ** 2))
    frequency_hz = np.fft.rfftfreq(4096, 1 / rate_hz)
    inside = (frequency_hz >= low_hz) & (frequency_hz < high_hz)
    return float(10 * np.log10(np.mean(density[inside]))) + noise.FULL_SCALE_DB


def delay_samples(late: np.ndarray, early: np.ndarray) -> float:
    """Delay of one signal behind the other: peak of a 32-fold interpolated cross-correlation."""
    size = 1 << (2 * late.size - 1).bit_length()
    cross = np.fft.rfft(late, size) * np.conj(np.fft.rfft(early, size))
    correlation = np.fft.irfft(cross, size * 32)
    lag = int(np.argmax(correlation))
    return (lag - size * 32 if lag > size * 16 else lag) / 32


@pytest.fixture(scope="module")
def scene() -> Scene:
    return simulate_scene(SceneSettings(**SHORT, seed=3, ship=True, rain="drizzle"))


@pytest.mark.parametrize("bearing_deg", [0.0, 37.0, 90.0, 200.5, 301.0])
def test_delays_measured_by_cross_correlation_are_those_of_geometry(bearing_deg: float) -> None:
    places = [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [30, -70, -5]]
    sound = calls.pulsed_call(np.random.default_rng(1), RATE_HZ)
    waves, lead = simulate.plane_wave(sound, RATE_HZ, places, bearing_deg)
    np.testing.assert_allclose(waves[lead : lead + sound.size, 0], sound, atol=1e-6)
    for channel, (east, north, _) in enumerate(places):
        # A source in the north (bearing 0) reaches a hydrophone further north earlier.
        ahead_m = east * math.sin(math.radians(bearing_deg)) + north * math.cos(math.radians(bearing_deg))
        assert delay_samples(waves[:, channel], waves[:, 0]) == pytest.approx(-ahead_m / 1480 * RATE_HZ, abs=0.05)


def test_a_call_in_a_scene_arrives_from_its_stated_bearing() -> None:
    settings = SceneSettings(
        duration_s=8,
        calls_per_minute=7.5,
        whistle_share=0,
        click_trains_per_minute=0,
        snr_low_db=40,
        snr_high_db=40,
        seed=2,
    )
    loud = simulate_scene(settings)
    (event,) = loud.truth["events"]
    part = loud.samples[int(event["start_s"] * RATE_HZ) : int(event["end_s"] * RATE_HZ)]
    delays_s = simulate.arrival_delays_s(settings.hydrophones_m, event["bearing_deg"], settings.sound_speed_m_s)
    for channel in range(1, 4):
        assert delay_samples(part[:, channel], part[:, 0]) == pytest.approx(delays_s[channel] * RATE_HZ, abs=0.2)


@pytest.mark.parametrize("wind_m_s", [0.0, 3.0, 8.0, 20.0])
def test_sea_noise_has_the_level_of_its_wind(wind_m_s: float) -> None:
    sound = noise.sea_noise(np.random.default_rng(5), 8 * RATE_HZ, RATE_HZ, wind_m_s)
    for low_hz, high_hz in [(480, 520), (1900, 2100), (7800, 8200), (15800, 16200)]:
        stated = noise.sea_level_db(np.array([(low_hz + high_hz) / 2]), wind_m_s)[0]
        assert spectrum_db(sound, RATE_HZ, low_hz, high_hz) == pytest.approx(stated, abs=0.8)


def test_wind_level_rises_by_28_db_per_decade_of_1_plus_w_to_the_three_quarters() -> None:
    levels = [noise.sea_level_db(np.array([9000.0]), wind)[0] for wind in (4.0, 16.0)]
    expected = 28 * math.log10((1 + 16**0.75) / (1 + 4**0.75))
    assert levels[1] - levels[0] == pytest.approx(expected, abs=0.1)


def test_sea_noise_falls_by_knudsens_17_db_per_decade() -> None:
    sound = noise.sea_noise(np.random.default_rng(6), 10 * RATE_HZ, RATE_HZ, 8.0)
    slope = spectrum_db(sound, RATE_HZ, 19500, 20500) - spectrum_db(sound, RATE_HZ, 1950, 2050)
    assert slope == pytest.approx(-17, abs=1.0)


def test_drizzle_peaks_at_13_to_25_khz_and_heavy_rain_is_broadband() -> None:
    def rise_db(rain: str) -> float:
        sound = noise.rain_noise(np.random.default_rng(7), 4 * RATE_HZ, RATE_HZ, rain)
        return spectrum_db(sound, RATE_HZ, 14000, 20000) - spectrum_db(sound, RATE_HZ, 2000, 5000)

    assert rise_db("drizzle") > 8
    assert -10 < rise_db("heavy") < 2


def test_diffuse_noise_is_coherent_as_sin_x_over_x() -> None:
    sound = noise.diffuse_noise(np.random.default_rng(8), 40 * 16000, 16000, np.zeros_like, [[0, 0, 0], [0, 2, 0]])
    spectra = np.fft.rfft(sound[: sound.size // 4 // 512 * 512].T.reshape(2, -1, 512) * np.hanning(512))
    cross = np.mean(spectra[0] * np.conj(spectra[1]), axis=0).real
    coherence = cross / np.sqrt(np.prod(np.mean(np.abs(spectra) ** 2, axis=1), axis=0))
    for k in (3, 8, 17, 100):
        assert coherence[k] == pytest.approx(np.sinc(2 * (k * 16000 / 512) * 2 / 1480), abs=0.1)


def test_ship_noise_beats_at_its_blade_rate() -> None:
    sound = noise.ship_noise(np.random.default_rng(9), 20 * 16000, 16000)
    spectrum = np.fft.rfft(sound)
    spectrum[: 20 * 2000] = 0  # above 2 kHz: cavitation alone
    envelope = np.fft.irfft(spectrum) ** 2
    beat = np.abs(np.fft.rfft(envelope - envelope.mean()))
    peak_hz = float(np.argmax(beat[: 20 * 30]) / 20)
    assert 4 <= peak_hz <= 12
    assert beat[round(peak_hz * 20)] > 10 * np.median(beat[: 20 * 30])


def test_band_level_equals_a_plain_sum_for_a_tone_and_drops_3_db_at_the_edges() -> None:
    t = np.arange(RATE_HZ) / RATE_HZ

    def level(tone_hz: float) -> float:
        return simulate.band_level_db(np.sin(2 * np.pi * tone_hz * t), RATE_HZ)

    assert level(2000) == pytest.approx(10 * math.log10(0.5), abs=0.01)
    assert level(500) == pytest.approx(10 * math.log10(0.25), abs=0.05)
    assert level(10000) == pytest.approx(10 * math.log10(0.25), abs=0.05)


@pytest.mark.parametrize("kind", sorted(simulate.SOUNDS))
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_single_sounds_are_finite_peak_normalised_and_begin_and_end_softly(kind: str, rate_hz: int) -> None:
    for seed in range(6):
        sound = simulate.SOUNDS[kind](np.random.default_rng(seed), rate_hz)
        assert sound.dtype == np.float32 and sound.ndim == 1
        assert 0.2 * rate_hz < sound.size < 5 * rate_hz
        assert np.isfinite(sound).all() and np.abs(sound).max() == pytest.approx(1)
        assert abs(sound[0]) < 1e-3 and abs(sound[-1]) < 1e-3


def test_pulse_contours_keep_to_the_published_range_and_differ() -> None:
    contours = [calls.pulse_contour(np.random.default_rng(seed), 1.0) for seed in range(60)]
    assert min(c.min() for c in contours) >= 60 and max(c.max() for c in contours) <= 2000
    medians = np.array([np.median(c) for c in contours])
    assert np.all(medians > 250) and np.percentile(medians, 90) > 1.6 * np.percentile(medians, 10)


def test_a_pulsed_call_has_harmonics_of_its_pulse_rate() -> None:
    """A steady contour gives lines at multiples of its rate and little between them."""
    rng = np.random.default_rng(4)
    sound = calls._low_voice(rng, np.full(1000, 800.0), RATE_HZ)
    power = np.abs(np.fft.rfft(sound * np.hanning(sound.size))) ** 2
    lines = sum(power[800 * k - 8 : 800 * k + 9].sum() for k in range(1, 20))
    assert lines > 0.98 * power.sum()


def test_whistles_lie_between_3_and_18_khz() -> None:
    for seed in range(8):
        power = np.abs(np.fft.rfft(calls.whistle(np.random.default_rng(seed), RATE_HZ))) ** 2
        peak_hz = np.argmax(power) * RATE_HZ / 2 / (power.size - 1)
        assert 2950 <= peak_hz <= 18050


def test_truth_spans_hold_the_energy_and_the_stated_snr() -> None:
    """The same seed without calls gives the bed alone, so the calls can be told from it exactly."""
    settings = SceneSettings(**SHORT, seed=11, snr_low_db=0, snr_high_db=15)
    full = simulate_scene(settings)
    silent = simulate_scene(SceneSettings(duration_s=12.0, seed=11, calls_per_minute=0, click_trains_per_minute=0))
    assert silent.truth["events"] == []
    sounds = full.samples / full.truth["scene"]["gain"] - silent.samples / silent.truth["scene"]["gain"]
    inside = 0.0
    for event in full.truth["events"]:
        span = slice(round(event["start_s"] * RATE_HZ), round(event["end_s"] * RATE_HZ))
        inside += float(np.sum(sounds[span, 0] ** 2))
        measured = simulate.band_level_db(sounds[span, 0], RATE_HZ) - simulate.band_level_db(
            silent.samples[span, 0], RATE_HZ
        )
        assert measured == pytest.approx(event["snr_db"], abs=0.2)
    assert inside > 0.999 * np.sum(sounds[:, 0] ** 2)


def test_truth_has_the_keys_that_scoring_reads(scene: Scene) -> None:
    truth = json.loads(json.dumps(scene.truth))
    assert {"sample_rate", "hydrophones_m", "sound_speed_m_s", "bearing", "events"} <= truth.keys()
    assert truth["sample_rate"] == scene.rate_hz and "synthetic" in truth["synthetic"]
    assert truth["scene"]["seed"] == 3 and truth["scene"]["rain"] == "drizzle"
    assert {"clicks"} < {event["kind"] for event in truth["events"]} <= set(simulate.SOUNDS)
    for event in truth["events"]:
        assert set(event) == {"start_s", "end_s", "bearing_deg", "snr_db", "kind"}
        assert 0 <= event["start_s"] < event["end_s"] <= 12 and 0 <= event["bearing_deg"] < 360
    starts, ends = ([event[key] for event in truth["events"]] for key in ("start_s", "end_s"))
    assert all(later >= end + 0.49 for later, end in zip(starts[1:], ends))


def test_same_seed_same_bytes_and_another_seed_another_scene(scene: Scene) -> None:
    settings: dict[str, Any] = {**SHORT, "ship": True, "rain": "drizzle"}
    again = simulate_scene(SceneSettings(**settings, seed=3))
    assert again.samples.tobytes() == scene.samples.tobytes() and again.truth == scene.truth
    assert not np.array_equal(simulate_scene(SceneSettings(**settings, seed=4)).samples, scene.samples)


def test_another_wind_keeps_the_calls() -> None:
    calm, storm = (simulate_scene(SceneSettings(**SHORT, wind_m_s=wind)) for wind in (2, 20))
    assert calm.truth["events"] == storm.truth["events"]
    assert storm.samples.std() / storm.truth["scene"]["gain"] > 3 * calm.samples.std() / calm.truth["scene"]["gain"]


@pytest.mark.parametrize("hydrophones", [1, 3, 7])
def test_any_number_of_hydrophones(hydrophones: int) -> None:
    places = [(i * 1.5, -i * 0.5, -i) for i in range(hydrophones)]
    small = simulate_scene(SceneSettings(duration_s=6, rate_hz=16000, hydrophones_m=places, rain="heavy", ship=True))
    assert small.samples.shape == (96000, hydrophones) and small.samples.dtype == np.float32
    assert np.abs(small.samples).max() <= 0.9001


def test_sounds_that_do_not_fit_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    crowded = simulate_scene(
        SceneSettings(duration_s=10, calls_per_minute=20, click_trains_per_minute=10, rate_hz=16000)
    )
    assert "fit into 10 s" in caplog.text
    assert 0 < len(crowded.truth["events"]) < 5
    assert crowded.truth["events"][-1]["end_s"] <= 9


def test_written_scene_reads_back_and_leaves_nothing_else(tmp_path: Path, scene: Scene) -> None:
    flac = write_scene(scene, tmp_path / "new" / "scene_1.5")
    samples, rate_hz = soundfile.read(flac, dtype="float32")
    assert flac.name == "scene_1.5.flac" and rate_hz == scene.rate_hz
    np.testing.assert_allclose(samples, scene.samples, atol=1 / 32768)
    assert soundfile.info(flac).subtype == "PCM_16"
    assert json.loads((tmp_path / "new" / "scene_1.5.json").read_text())["events"] == scene.truth["events"]
    assert sorted(path.name for path in flac.parent.iterdir()) == ["scene_1.5.flac", "scene_1.5.json"]
    assert write_scene(scene, flac) == flac


def test_whole_numbers_written_as_floats_are_taken_as_whole() -> None:
    settings = SceneSettings(duration_s=5, rate_hz=16000.0, seed=7.0)  # type: ignore[arg-type]
    assert (settings.rate_hz, settings.seed) == (16000, 7)
    assert simulate_scene(settings).samples.shape == (80000, 4)


def test_unwritable_places_and_too_many_channels_say_the_cure(tmp_path: Path, scene: Scene) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="choose a writable folder"):
        write_scene(scene, tmp_path / "file" / "scene")
    wide = Scene(np.zeros((10, 9), np.float32), 44100, {})
    with pytest.raises(InputError, match="1 to 8 channels, not 9; simulate fewer hydrophones"):
        write_scene(wide, tmp_path / "wide")
    assert not (tmp_path / "wide.flac").exists()


@pytest.mark.parametrize(
    ("wrong", "what", "allowed"),
    [
        ({"duration_s": 1}, "not 1;", "5 to 600 s"),
        ({"duration_s": float("nan")}, "not nan;", "5 to 600 s"),
        ({"rate_hz": 1000}, "not 1000;", "16000 to 96000 Hz"),
        ({"rate_hz": 44100.5}, "not 44100.5;", "whole number"),
        ({"seed": -1}, "not -1;", "number from 0"),
        ({"wind_m_s": 99}, "not 99;", "0 to 30 m/s"),
        ({"wind_m_s": "strong"}, "not 'strong';", "0 to 30 m/s"),
        ({"calls_per_minute": True}, "not True;", "0 to 20 a minute"),
        ({"rain": "snow"}, "not 'snow';", "none, drizzle, heavy"),
        ({"ship": "yes"}, "not 'yes';", "true or false"),
        ({"snr_low_db": 9, "snr_high_db": 3}, "snr_low_db (9)", "swap them"),
        ({"hydrophones_m": []}, "not shape (0,);", "1 to 64 rows"),
        ({"hydrophones_m": [[0, 0]]}, "not shape (1, 2);", "rows of x, y, z"),
        ({"hydrophones_m": [["a", 0, 0]]}, "not [['a', 0, 0]];", "rows of x, y, z"),
        ({"hydrophones_m": [[0, 0, 0], [5000, 0, 0]]}, "hydrophones_m", "within 1000 m"),
        ({"hydrophones_m": [[0, 0, float("inf")]]}, "hydrophones_m", "finite"),
    ],
)
def test_bad_settings_say_what_came_and_what_is_allowed(wrong: dict[str, Any], what: str, allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        SceneSettings(**wrong)
    assert what in str(caught.value) and allowed in str(caught.value)
