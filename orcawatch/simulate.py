"""Synthetic scenes with known truth: killer whales, sea, rain and a ship on any number of hydrophones.

Levels are absolute: a sample of 1.0 is a pressure of `FULL_SCALE_DB` dB re 1 µPa, so wind and rain
set the noise level.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import soundfile

from .calls import Floats, Sound, click_train, pulsed_call, whistle
from .durable import write_bytes
from .errors import InputError
from .noise import (
    FULL_SCALE_DB,
    RAINS,
    SOUND_SPEED_M_S,
    diffuse_noise,
    rain_drops,
    rain_level_db,
    sea_level_db,
    ship_noise,
)

log = logging.getLogger(__name__)

BAND_HZ = (500.0, 10000.0)
SQUARE_M = ((0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (2.0, 2.0, 0.0), (0.0, 2.0, 0.0))
ORCA_KINDS = ("pulsed_call", "whistle")
SOUNDS: dict[str, Callable[[np.random.Generator, int], Sound]] = {
    "pulsed_call": pulsed_call,
    "whistle": whistle,
    "clicks": click_train,
}
EDGE_S = 1.0
GAP_S = 0.5
SYNTHETIC = "This scene is synthetic: every sound in it, calls and sea noise alike, was computed."


@dataclass(frozen=True)
class SceneSettings:
    """What a scene holds; a value out of range raises `InputError`.

    Attributes
    ----------
    duration_s : length in s, 5 to 600.
    rate_hz : sampling rate in Hz, 16000 to 96000.
    seed : the same seed and settings give the same samples; another wind, rain or ship keeps the calls.
    hydrophones_m : position (x east, y north, z up) of each hydrophone in m, 1 to 64 of them, each within 1000 m
        of the first.
    sound_speed_m_s : 1400 to 1600.
    wind_m_s : wind speed at 10 m height in m/s, 0 to 30.
    rain : "none", "drizzle" or "heavy".
    ship : whether a ship passes at a fixed bearing.
    calls_per_minute : pulsed calls and whistles a minute, 0 to 20.
    whistle_share : share of these that are whistles, 0 to 1.
    click_trains_per_minute : echolocation click trains a minute, 0 to 10.
    snr_low_db, snr_high_db : signal-to-noise ratios (0.5 to 10 kHz) are drawn evenly from this range, -30 to
        60; click trains, whose peaks stand 30 dB above their mean, get 15 dB less.
    """

    duration_s: float = 60.0
    rate_hz: int = 44100
    seed: int = 1
    hydrophones_m: Sequence[Sequence[float]] = SQUARE_M
    sound_speed_m_s: float = SOUND_SPEED_M_S
    wind_m_s: float = 6.0
    rain: str = "none"
    ship: bool = False
    calls_per_minute: float = 6.0
    whistle_share: float = 0.2
    click_trains_per_minute: float = 1.0
    snr_low_db: float = -3.0
    snr_high_db: float = 18.0

    def __post_init__(self) -> None:
        for name, (low, high, unit) in RANGES.items():
            _require_number(name, getattr(self, name), low, high, unit)
        for name in ("rate_hz", "seed"):
            if getattr(self, name) != int(getattr(self, name)):
                raise InputError(f"{name} must be a whole number, not {getattr(self, name)}; round it")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.rain not in RAINS:
            raise InputError(f"rain must be one of {', '.join(RAINS)}, not {self.rain!r}; choose one")
        if not isinstance(self.ship, bool):
            raise InputError(f"ship must be true or false, not {self.ship!r}; give one of these")
        if self.snr_low_db > self.snr_high_db:
            raise InputError(
                f"snr_low_db ({self.snr_low_db}) must not be above snr_high_db ({self.snr_high_db}); swap them"
            )
        object.__setattr__(self, "hydrophones_m", _checked_positions(self.hydrophones_m))


RANGES: dict[str, tuple[float, float, str]] = {
    "duration_s": (5, 600, "s"),
    "rate_hz": (16000, 96000, "Hz"),
    "seed": (0, 2**63 - 1, ""),
    "sound_speed_m_s": (1400, 1600, "m/s"),
    "wind_m_s": (0, 30, "m/s"),
    "calls_per_minute": (0, 20, "a minute"),
    "whistle_share": (0, 1, ""),
    "click_trains_per_minute": (0, 10, "a minute"),
    "snr_low_db": (-30, 60, "dB"),
    "snr_high_db": (-30, 60, "dB"),
}


@dataclass(frozen=True)
class Scene:
    """A simulated recording.

    Attributes
    ----------
    samples : float32, shape (samples, hydrophones), full scale 1.0.
    rate_hz : samples per second.
    truth : what the JSON file says: hydrophones, events (start_s and end_s at hydrophone 0, bearing_deg, snr_db,
        kind) and the settings.
    """

    samples: Sound
    rate_hz: int
    truth: dict[str, Any]


def simulate_scene(settings: SceneSettings) -> Scene:
    """Compute a scene.

    Parameters
    ----------
    settings : SceneSettings

    Returns
    -------
    Scene
        Scaled as a whole (`truth["scene"]["gain"]`) where it would pass 0.9 of full scale.
    """
    sea_rng, rain_rng, ship_rng, call_rng = map(np.random.default_rng, np.random.SeedSequence(settings.seed).spawn(4))
    samples = _sea_and_rain(sea_rng, rain_rng, settings)
    ship = _add_ship(ship_rng, samples, settings) if settings.ship else None
    events = _add_sounds(call_rng, samples, settings)
    gain = min(1.0, 0.9 / float(np.abs(samples).max()))
    scene = {**asdict(settings), "full_scale_db_re_1_upa": FULL_SCALE_DB, "gain": gain, "ship_passing": ship}
    truth = {
        "sample_rate": settings.rate_hz,
        "hydrophones_m": [list(place) for place in settings.hydrophones_m],
        "sound_speed_m_s": settings.sound_speed_m_s,
        "bearing": "degrees clockwise from north (y)",
        "events": events,
        "synthetic": SYNTHETIC,
        "scene": scene,
    }
    return Scene((samples * gain).astype(np.float32), settings.rate_hz, truth)


def write_scene(scene: Scene, path: Path) -> Path:
    """Write NAME.flac (16 bit) and NAME.json, each whole or not at all; the JSON last.

    Parameters
    ----------
    scene : Scene
    path : pathlib.Path
        Where to, with or without .flac; missing folders are made.

    Returns
    -------
    pathlib.Path
        The FLAC file.

    Raises
    ------
    InputError
        More than 8 hydrophones (FLAC holds no more channels), or a place that cannot be written to.
    """
    channels = scene.samples.shape[1]
    if channels > 8:
        raise InputError(f"a FLAC file holds 1 to 8 channels, not {channels}; simulate fewer hydrophones")
    stem = path.with_suffix("") if path.suffix in (".flac", ".json") else path
    flac = stem.with_name(stem.name + ".flac")
    encoded = io.BytesIO()
    soundfile.write(encoded, scene.samples, scene.rate_hz, format="FLAC", subtype="PCM_16")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(flac, encoded.getvalue())
        write_bytes(stem.with_name(stem.name + ".json"), (json.dumps(scene.truth, indent=1) + "\n").encode())
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"cannot write the scene to {flac}: {error}; choose a writable folder") from error
    return flac


def plane_wave(
    sound: npt.NDArray[Any],
    rate_hz: int,
    hydrophones_m: npt.ArrayLike,
    bearing_deg: float,
    sound_speed_m_s: float = SOUND_SPEED_M_S,
) -> tuple[Floats, int]:
    """A distant sound as each hydrophone hears it, delayed by geometry to a fraction of a sample.

    Parameters
    ----------
    sound : ndarray, shape (n,)
        The sound at hydrophone 0.
    rate_hz : int
    hydrophones_m : array_like, shape (hydrophones, 3)
        x east, y north, z up.
    bearing_deg : float
        Where the sound comes from, clockwise from north.
    sound_speed_m_s : float

    Returns
    -------
    waves : ndarray, shape (n + 2 * lead, hydrophones)
    lead : int
        Row of `waves` that holds sample 0 of `sound` at hydrophone 0; others may hear it earlier.
    """
    delays_s = arrival_delays_s(hydrophones_m, bearing_deg, sound_speed_m_s)
    lead = int(np.ceil(np.abs(delays_s).max() * rate_hz)) + 32
    length = sound.size + 2 * lead
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(np.pad(sound, (lead, 0)), size)
    phase = -2j * np.pi * np.fft.rfftfreq(size, 1 / rate_hz)
    return np.stack([np.fft.irfft(spectrum * np.exp(phase * d), size)[:length] for d in delays_s], axis=1), lead


def arrival_delays_s(hydrophones_m: npt.ArrayLike, bearing_deg: float, sound_speed_m_s: float) -> Floats:
    """Seconds by which a plane wave from `bearing_deg` reaches each hydrophone after hydrophone 0."""
    places = np.asarray(hydrophones_m, float)
    towards = np.array([np.sin(np.radians(bearing_deg)), np.cos(np.radians(bearing_deg)), 0.0])
    return np.asarray(-(places - places[0]) @ towards / sound_speed_m_s)


def band_level_db(sound: npt.NDArray[Any], rate_hz: int) -> float:
    """Mean power from 0.5 to 10 kHz in dB re full scale, as behind a Butterworth band-pass of order 4."""
    spectrum = np.abs(np.fft.rfft(sound)) ** 2
    low, high = np.tan(np.pi * np.minimum(BAND_HZ, 0.45 * rate_hz) / rate_hz)
    warped = np.tan(np.pi * np.minimum(np.arange(spectrum.size) / sound.size, 0.4999))
    detuning = (warped**2 - low * high) / ((high - low) * np.maximum(warped, 1e-9))
    return float(10 * np.log10(2 * np.sum(spectrum / (1 + detuning**8)) / sound.size**2 + 1e-15))


def _sea_and_rain(sea_rng: np.random.Generator, rain_rng: np.random.Generator, settings: SceneSettings) -> Sound:
    n, rate_hz, places = int(settings.duration_s * settings.rate_hz), settings.rate_hz, settings.hydrophones_m
    speed = settings.sound_speed_m_s
    samples = diffuse_noise(sea_rng, n, rate_hz, lambda f: sea_level_db(f, settings.wind_m_s), places, speed)
    if settings.rain != "none":
        samples += diffuse_noise(rain_rng, n, rate_hz, lambda f: rain_level_db(f, settings.rain), places, speed)
        for channel in range(len(places)):
            samples[:, channel] += rain_drops(rain_rng, n, rate_hz, settings.rain)
    return samples


def _add_ship(rng: np.random.Generator, samples: Sound, settings: SceneSettings) -> dict[str, float]:
    """Add a passing ship as a plane wave; its band level at the closest point is -3 to 6 dB re the rest."""
    bearing_deg, level_db = round(rng.uniform(0, 360), 1) % 360, round(rng.uniform(-3, 6), 1)
    closest_s, width_s = rng.uniform(0, settings.duration_s), rng.uniform(20, 60)
    delays_s = arrival_delays_s(settings.hydrophones_m, bearing_deg, settings.sound_speed_m_s)
    spare = int(np.ceil(np.abs(delays_s).max() * settings.rate_hz)) + 1
    sound = ship_noise(rng, len(samples) + 2 * spare, settings.rate_hz)
    bed_db = band_level_db(samples[:, 0], settings.rate_hz)
    sound *= 10 ** ((bed_db + level_db - band_level_db(sound, settings.rate_hz)) / 20)
    sound /= np.sqrt(1 + ((np.arange(sound.size) / settings.rate_hz - closest_s) / width_s) ** 2)
    waves, lead = plane_wave(sound, settings.rate_hz, settings.hydrophones_m, bearing_deg, settings.sound_speed_m_s)
    samples += waves[lead + spare : lead + spare + len(samples)].astype(np.float32)
    return {"bearing_deg": bearing_deg, "level_db": level_db, "closest_s": round(closest_s, 1)}


def _add_sounds(rng: np.random.Generator, samples: Sound, settings: SceneSettings) -> list[dict[str, Any]]:
    """Add calls, whistles and click trains, none over another; return the truth about each."""
    bed = samples[:, 0].copy()
    return [
        _add_sound(rng, samples, bed, kind, sound, first, settings)
        for kind, sound, first in _placed(rng, _draw_sounds(rng, settings), settings)
    ]


def _draw_sounds(rng: np.random.Generator, settings: SceneSettings) -> list[tuple[str, Sound]]:
    minutes = settings.duration_s / 60
    calls = rng.random(round(settings.calls_per_minute * minutes)) < settings.whistle_share
    kinds = [ORCA_KINDS[int(is_whistle)] for is_whistle in calls]
    kinds += ["clicks"] * round(settings.click_trains_per_minute * minutes)
    return [(kinds[k], SOUNDS[kinds[k]](rng, settings.rate_hz)) for k in rng.permutation(len(kinds))]


def _placed(
    rng: np.random.Generator, sounds: list[tuple[str, Sound]], settings: SceneSettings
) -> list[tuple[str, Sound, int]]:
    """First sample of each sound: random gaps of at least GAP_S; what does not fit is left out, and logged."""
    rate_hz = settings.rate_hz
    room = int((settings.duration_s - 2 * EDGE_S + GAP_S) * rate_hz)
    sizes = np.array([sound.size + int(GAP_S * rate_hz) for _, sound in sounds], int)
    fitting = int(np.searchsorted(np.cumsum(sizes), room, side="right"))
    if fitting < len(sounds):
        log.warning("%d of %d sounds fit into %g s; the rest is left out", fitting, len(sounds), settings.duration_s)
    gaps = np.floor(rng.dirichlet(np.ones(fitting + 1)) * (room - sizes[:fitting].sum())).astype(int)
    starts = int(EDGE_S * rate_hz) + np.cumsum(gaps[:-1]) + np.cumsum(sizes[:fitting]) - sizes[:fitting]
    return [(kind, sound, int(first)) for (kind, sound), first in zip(sounds, starts)]


def _add_sound(
    rng: np.random.Generator, samples: Sound, bed: Sound, kind: str, sound: Sound, first: int, settings: SceneSettings
) -> dict[str, Any]:
    """Add one sound at its drawn SNR and bearing; its span and level hold at hydrophone 0."""
    rate_hz, end = settings.rate_hz, first + sound.size
    snr_db = round(rng.uniform(settings.snr_low_db, settings.snr_high_db) - 15 * (kind == "clicks"), 1) + 0.0
    bearing_deg = round(rng.uniform(0, 360), 1) % 360
    gain_db = band_level_db(bed[first:end], rate_hz) + snr_db - band_level_db(sound, rate_hz)
    waves, lead = plane_wave(
        sound * 10 ** (gain_db / 20), rate_hz, settings.hydrophones_m, bearing_deg, settings.sound_speed_m_s
    )
    samples[first - lead : end + lead] += waves.astype(np.float32)
    return {
        "start_s": round(first / rate_hz, 3),
        "end_s": round(end / rate_hz, 3),
        "bearing_deg": bearing_deg,
        "snr_db": snr_db,
        "kind": kind,
    }


def _require_number(name: str, value: Any, low: float, high: float, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(
            f"{name} must be a number from {low} to {high} {unit}".rstrip()
            + f", not {value!r}; choose one in that range"
        )


def _checked_positions(places: Any) -> tuple[tuple[float, ...], ...]:
    try:
        array = np.array(places, float)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"hydrophones_m must be rows of x, y, z in metres, not {places!r}; give three numbers for each hydrophone"
        ) from error
    if array.ndim != 2 or array.shape[1] != 3 or not 1 <= len(array) <= 64:
        raise InputError(
            f"hydrophones_m must be 1 to 64 rows of x, y, z in metres, not shape {array.shape}; "
            "give three numbers for each hydrophone"
        )
    if not np.isfinite(array).all() or np.linalg.norm(array - array[0], axis=1).max() > 1000:
        raise InputError(
            "hydrophones_m must be finite and within 1000 m of the first hydrophone; move the array together, in metres"
        )
    return tuple(tuple(row) for row in array.tolist())
