"""Noise of the sea, the rain and a ship, as spectra and as sound.

Levels are absolute: a sample of 1.0 is a pressure of `FULL_SCALE_DB` dB re 1 µPa.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import numpy.typing as npt

from .calls import Floats, Sound

FULL_SCALE_DB = 150.0
SOUND_SPEED_M_S = 1480.0
RAINS = ("none", "drizzle", "heavy")
BLOCK = 4096

Spectrum = Callable[[Floats], Floats]


def sea_noise(rng: np.random.Generator, n: int, rate_hz: int, wind_m_s: float) -> Sound:
    """Sea noise on one hydrophone, `n` samples, with the spectrum of `sea_level_db`.

    Returns
    -------
    ndarray of float32, shape (n,)
        Full scale 1.0 is `FULL_SCALE_DB` dB re 1 µPa.
    """
    return diffuse_noise(rng, n, rate_hz, lambda f: sea_level_db(f, wind_m_s))[:, 0]


def rain_noise(rng: np.random.Generator, n: int, rate_hz: int, rain: str) -> Sound:
    """Rain on one hydrophone, `n` samples: the noise of many distant drops and single near ones."""
    far = diffuse_noise(rng, n, rate_hz, lambda f: rain_level_db(f, rain))[:, 0]
    return far + rain_drops(rng, n, rate_hz, rain)


def ship_noise(rng: np.random.Generator, n: int, rate_hz: int) -> Sound:
    """A ship on one hydrophone: cavitation noise beating at the blade rate, tonals of propeller and machinery.

    Returns
    -------
    ndarray of float32, shape (n,)
        Root mean square 1.

    References
    ----------
    Ross (1976), Mechanics of Underwater Noise, ch. 8 (cavitation falls by 6 dB per octave; blade-rate modulation);
    Arveson and Vendittis (2000), J. Acoust. Soc. Am. 107: 118-129 (blade and generator lines).
    """
    t = np.arange(n) / rate_hz
    blade_hz = rng.uniform(4, 12)
    beat = 1 + rng.uniform(0.2, 0.6) * np.cos(2 * np.pi * blade_hz * t) + 0.15 * np.cos(np.pi * blade_hz * t)
    peak_hz = rng.uniform(60, 150)
    cavitation = diffuse_noise(rng, n, rate_hz, lambda f: -10 * np.log10(1 + (f / peak_hz) ** 2))[:, 0] * beat
    lines_hz = np.concatenate(
        [blade_hz * np.arange(1, 9), rng.uniform(25, 60) * np.arange(1, 13), rng.uniform(300, 1500, rng.integers(0, 4))]
    )
    tonals = np.zeros(n)
    for line_hz in lines_hz:
        level = 10 ** (rng.uniform(-26, -6) / 20)
        tonals += level * np.cos(2 * np.pi * line_hz * t + rng.uniform(0, 2 * np.pi))
    sound = cavitation / cavitation.std() + tonals
    return np.asarray(sound / np.sqrt(np.mean(sound**2)), np.float32)


def sea_level_db(frequency_hz: Floats, wind_m_s: float) -> Floats:
    """Spectrum level of the sea in dB re 1 µPa²/Hz: wind, distant ships, turbulence and thermal noise.

    Wind: 44 + 28 lg(1 + w^0.75) + 19 lg f - 18 lg(f² + (2.78 + 0.14 w^0.75)^-2), f in kHz, w in m/s: Knudsen's 17 dB
    per decade above some kHz (fit at https://passiveacoustics.org/2025/03/16/ambient-noise).

    References
    ----------
    Wenz (1962), J. Acoust. Soc. Am. 34: 1936-1956; Knudsen et al. (1948), J. Mar. Res. 7: 410-429; the formulae for
    shipping (medium), turbulence and thermal noise as in Stojanovic (2006), WUWNet, eq. 6.
    """
    f = np.maximum(frequency_hz, 10.0) / 1000
    w = wind_m_s**0.75
    wind = 44 + 28 * np.log10(1 + w) + 19 * np.log10(f) - 18 * np.log10(f**2 + (2.78 + 0.14 * w) ** -2)
    ships = 40 + 26 * np.log10(f) - 60 * np.log10(f + 0.03)
    parts = [wind, ships, 17 - 30 * np.log10(f), -15 + 20 * np.log10(f)]
    return np.asarray(10 * np.log10(np.sum([10 ** (part / 10) for part in parts], axis=0)))


def rain_level_db(frequency_hz: Floats, rain: str) -> Floats:
    """Spectrum level of rain in dB re 1 µPa²/Hz.

    Drizzle has a peak at 13 to 25 kHz (bubbles of small drops); heavy rain is broadband and falls gently above
    5 kHz. Shapes after Ma and Nystuen (2005), J. Atmos. Oceanic Technol. 22: 1225-1248; levels rounded.
    """
    f = np.maximum(frequency_hz, 10.0) / 1000
    if rain == "drizzle":
        return np.asarray(46 + 14 * np.exp(-0.5 * (np.log2(f / 17) / 0.45) ** 2) - 10 * np.log10(1 + (1 / f) ** 2))
    return np.asarray(70 - 5 * np.log10(1 + (f / 5) ** 2) - 10 * np.log10(1 + (0.5 / f) ** 2))


def rain_drops(rng: np.random.Generator, n: int, rate_hz: int, rain: str) -> Sound:
    """Drops near one hydrophone: bubbles ringing at 13 to 25 kHz for a fraction of a millisecond (ibid.)."""
    per_s = {"drizzle": 15, "heavy": 60}[rain]
    sound = np.zeros(n, np.float32)
    t = np.arange(rate_hz // 250) / rate_hz
    for first in rng.integers(0, max(1, n - t.size), rng.poisson(per_s * n / rate_hz)):
        ring_hz = min(rng.uniform(13e3, 25e3), 0.45 * rate_hz)
        peak = 10 ** ((rng.normal(104, 5) - FULL_SCALE_DB) / 20)
        drop = peak * np.exp(-t / rng.uniform(1e-4, 6e-4)) * np.sin(2 * np.pi * ring_hz * t)
        sound[first : first + t.size] += drop[: n - first]
    return sound


def diffuse_noise(
    rng: np.random.Generator,
    n: int,
    rate_hz: int,
    level_db: Spectrum,
    hydrophones_m: npt.ArrayLike = ((0, 0, 0),),
    sound_speed_m_s: float = SOUND_SPEED_M_S,
) -> Sound:
    """Noise from all directions at once, with the right coherence between hydrophones.

    Independent Gaussian blocks, coloured and mixed per frequency, overlap with power-complementary windows. Two
    hydrophones at distance d are coherent by sin(kd)/(kd): alike at low frequencies, independent at
    high ones.

    Parameters
    ----------
    rng : numpy.random.Generator
    n, rate_hz : int
        Samples, and samples per second.
    level_db : callable
        Spectrum level in dB re 1 µPa²/Hz at frequencies in Hz.
    hydrophones_m : array_like, shape (hydrophones, 3)
    sound_speed_m_s : float

    Returns
    -------
    ndarray of float32, shape (n, hydrophones)

    References
    ----------
    Cron and Sherman (1962), J. Acoust. Soc. Am. 34: 1732-1736 (coherence); Habets et al. (2008), J. Acoust. Soc.
    Am. 124: 2911-2917 (mixing by a root of the coherence matrix).
    """
    frequency_hz = np.arange(BLOCK // 2 + 1, dtype=np.float64) * (rate_hz / BLOCK)
    amplitude = 10 ** ((level_db(frequency_hz) - FULL_SCALE_DB) / 20) * np.sqrt(rate_hz * BLOCK / 4)
    amplitude[0] = 0.0
    mixing = (amplitude[:, None, None] * _coherence_root(frequency_hz, hydrophones_m, sound_speed_m_s)).astype(
        np.complex64
    )
    window = np.sin(np.pi * (np.arange(BLOCK) + 0.5) / BLOCK)[:, None].astype(np.float32)
    hop = BLOCK // 2
    sound = np.zeros((n + 2 * BLOCK, mixing.shape[1]), np.float32)
    for first in range(0, n + hop, hop):
        parts = rng.standard_normal((*mixing.shape[:2], 2), dtype=np.float32)
        bins = np.matmul(mixing, parts.view(np.complex64))[:, :, 0]
        sound[first : first + BLOCK] += window * np.fft.irfft(bins, BLOCK, axis=0).astype(np.float32)
    return sound[hop : hop + n].copy()


def _coherence_root(frequency_hz: Floats, hydrophones_m: npt.ArrayLike, sound_speed_m_s: float) -> Floats:
    """Symmetric roots, shape (frequencies, hydrophones, hydrophones), of the matrices sinc(2 f d / c)."""
    places = np.asarray(hydrophones_m, float)
    distance_m = np.linalg.norm(places[:, None] - places[None], axis=2)
    values, vectors = np.linalg.eigh(np.sinc(2 * frequency_hz[:, None, None] * distance_m / sound_speed_m_s))
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ np.swapaxes(vectors, 1, 2))
