"""Synthetic killer-whale sounds: pulsed calls, whistles, echolocation clicks.

Every sound is a sum of partials that follow a frequency contour and a level contour, both in frames of 1 ms. The
ranges are those of the literature (cited at each function); which values a call takes is drawn at random.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Sound = npt.NDArray[np.float32]

FRAMES_PER_S = 1000
SILENT_DB = -90.0
TOP_SHARE = 0.46  # nothing is synthesised above this share of the sampling rate


def pulsed_call(rng: np.random.Generator, rate_hz: int) -> Sound:
    """One discrete pulsed call of a killer whale, about 0.4 to 2 s and its reverberation.

    A pulse train whose repetition rate (250 to 2000 Hz, at times after a slow buzz) runs through several
    segments with abrupt or smooth transitions; its spectrum is the harmonics of that rate under formant-like
    bands. Half of the calls are two-voiced: a high-frequency component at 3 to 9.5 kHz with a contour of its own
    and sidebands spaced by the pulse rate.

    Parameters
    ----------
    rng : numpy.random.Generator
    rate_hz : int
        Sampling rate in Hz.

    Returns
    -------
    ndarray of float32, shape (n,)
        Mono, peak magnitude 1, trimmed to the span that holds 99.9 % of the energy.

    References
    ----------
    Ford (1991), Can. J. Zool. 69: 1454-1483 (segments, pulse rates, durations); Miller and Bain (2000), Anim.
    Behav. 60: 617-628 (low- and high-frequency contours).
    """
    duration_s = float(np.clip(np.exp(rng.normal(np.log(0.85), 0.35)), 0.4, 2.0))
    pulse_hz = pulse_contour(rng, duration_s)
    voices = [_low_voice(rng, pulse_hz, rate_hz)]
    if rng.random() < 0.5:
        voices.append(_high_voice(rng, pulse_hz, rate_hz))
    return _finish(rng, np.sum(voices, axis=0), rate_hz)


def whistle(rng: np.random.Generator, rate_hz: int) -> Sound:
    """One whistle: a frequency-modulated tone of 3 to 18 kHz, mostly 5 to 12, with at most one weak harmonic.

    Parameters and return value as for `pulsed_call`; 0.2 to 4 s.

    References
    ----------
    Thomsen et al. (2001), J. Acoust. Soc. Am. 109: 1240-1246 (frequencies, modulation, duration); Riesch
    et al. (2006), Anim. Behav. 71: 79-91 (stereotyped contours).
    """
    duration_s = float(np.clip(np.exp(rng.normal(np.log(1.1), 0.6)), 0.2, 4.0))
    tone_hz = np.minimum(_whistle_contour(rng, duration_s), 0.42 * rate_hz)
    level_db = _envelope_db(rng, tone_hz.size, depth_db=3.0)
    partials = [tone_hz, 2 * tone_hz]
    levels = [level_db, level_db - rng.uniform(18, 45)]
    return _finish(rng, _synthesise(rng, partials, levels, rate_hz), rate_hz)


def click_train(rng: np.random.Generator, rate_hz: int) -> Sound:
    """A train of echolocation clicks: 0.8 to 4 s of 5 to 40 clicks a second, each about 0.1 ms long.

    Clicks are broadband and bimodal; the main lobe (20 kHz and above at sea) is put as high as the sampling
    rate allows, the low lobe lies at 3 to 9 kHz. Level waxes and wanes as the beam sweeps past.

    Parameters and return value as for `pulsed_call`.

    References
    ----------
    Au et al. (2004), J. Acoust. Soc. Am. 115: 901-909 (bimodal spectrum); Eskesen et al. (2011), J. Acoust.
    Soc. Am. 130: 9-12 (duration, centroid).
    """
    duration_s = rng.uniform(0.8, 4.0)
    times_s = _click_times(rng, duration_s)
    sound = np.zeros(int(duration_s * rate_hz) + rate_hz // 50)
    sweep = np.sin(np.pi * (times_s / duration_s) ** rng.uniform(0.6, 1.6)) ** 2
    levels = (0.1 + sweep) * 10 ** (rng.normal(0, 2, times_s.size) / 20)
    lobes_hz = np.minimum([rng.uniform(18e3, 24e3), rng.uniform(3e3, 9e3)], 0.36 * rate_hz)
    for time_s, level in zip(times_s, levels):
        _add_click(sound, rate_hz, time_s, level, lobes_hz)
    return _finish(rng, sound, rate_hz)


def pulse_contour(rng: np.random.Generator, duration_s: float) -> Floats:
    """Pulse repetition rate of a call in Hz, one value per millisecond, 60 to 2000 Hz.

    One to four segments (level, sweep or arch) joined smoothly or by a jump; three calls in ten begin with a
    buzz of 60 to 250 pulses a second (Ford 1991).
    """
    frames = int(duration_s * FRAMES_PER_S)
    count = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    lengths = np.maximum(30, frames * rng.dirichlet(np.full(count, 3.0))).astype(int)
    log_rate = np.log(np.clip(np.exp(rng.normal(np.log(900), 0.4)), 350, 1700))
    pieces: list[Floats] = []
    for length in lengths:
        pieces.append(_segment(rng, length, log_rate))
        log_rate = pieces[-1][-1] + (rng.normal(0, 0.5) if rng.random() < 0.5 else 0.0)
    middle, reach = np.log([250 * 2000, 2000 / 250]) / 2
    rate = np.exp(middle + reach * np.tanh((np.concatenate(pieces) - middle) / reach))
    if rng.random() < 0.3:
        rate = np.concatenate([_buzz(rng), rate])
    wobble = 1 + rng.uniform(0.001, 0.006) * _smooth_noise(rng, rate.size, 30)
    return np.clip(_smooth(rate, int(rng.integers(6, 25))) * wobble, 60, 2000)


def _segment(rng: np.random.Generator, length: int, log_start: float) -> Floats:
    """Log pulse rate along one segment: nearly level, a sweep, or an arch."""
    x = np.linspace(0, 1, length)
    slope, bow = rng.normal(0, 1, 2) * [(0.04, 0.03), (0.35, 0.1), (0.1, 0.25)][int(rng.integers(3))]
    return np.asarray(log_start + slope * x ** rng.uniform(0.7, 3) + bow * 4 * x * (1 - x))


def _buzz(rng: np.random.Generator) -> Floats:
    low, high = np.sort(rng.uniform(60, 250, 2))
    return np.asarray(np.geomspace(low, high, int(rng.integers(50, 250))))


def _whistle_contour(rng: np.random.Generator, duration_s: float) -> Floats:
    """Contour in Hz: a sweep, a bow and up to some ten quasi-periodic modulations."""
    x = np.linspace(0, 1, int(duration_s * FRAMES_PER_S))
    centre_hz = np.clip(np.exp(rng.normal(np.log(6800), 0.28)), 4000, 11000)
    cycles = rng.poisson(2.5 * duration_s)
    waves = rng.uniform(0.01, 0.1) * np.sin(
        2 * np.pi * (cycles * x + rng.random()) + 0.6 * _smooth_noise(rng, x.size, 200)
    )
    shape = rng.normal(0, 0.15) * (x - 0.5) + rng.normal(0, 0.1) * 4 * x * (1 - x) + waves
    return np.asarray(np.clip(centre_hz * np.exp(shape + 0.01 * _smooth_noise(rng, x.size, 40)), 3000, 18000))


def _low_voice(rng: np.random.Generator, pulse_hz: Floats, rate_hz: int) -> Floats:
    """The harmonics of the pulse rate under a random set of formants."""
    top_hz = min(TOP_SHARE * rate_hz, 16000.0)
    envelope_db = _envelope_db(rng, pulse_hz.size, depth_db=4.0)
    colour = _Colour(rng)
    partials = [k * pulse_hz for k in range(1, int(top_hz / pulse_hz.min()) + 1)]
    envelope_db = envelope_db + 10 * np.log10(pulse_hz / pulse_hz.max())  # slow pulses: more harmonics, equal power
    levels = [envelope_db + colour.gain_db(partial) + rng.normal(0, 4) for partial in partials]
    return _unit(_synthesise(rng, partials, levels, rate_hz))


def _high_voice(rng: np.random.Generator, pulse_hz: Floats, rate_hz: int) -> Floats:
    """The high-frequency component with its sidebands at multiples of the pulse rate."""
    frames = pulse_hz.size
    drift = np.cumsum(rng.normal(0, 1, 3) * (0.05, 0.04, 0.03)) @ np.sin(
        np.pi * np.outer([0.5, 1, 2], np.linspace(0, 1, frames)) + rng.uniform(0, np.pi)
    )
    tone_hz = np.exp(rng.uniform(np.log(3800), np.log(8500)) + drift)
    tone_hz = np.clip(tone_hz * (1 + 0.004 * _smooth_noise(rng, frames, 30)), 3000, min(9500, 0.42 * rate_hz))
    level_db = _envelope_db(rng, frames, depth_db=3.0)
    level_db[: int(frames * max(0.0, rng.uniform(-0.2, 0.3)))] = SILENT_DB
    level_db = _smooth(level_db, 15)
    sideband_db = rng.uniform(-30, -8)
    partials = [tone_hz + side * pulse_hz for side in range(-3, 4)] + [2 * tone_hz]
    falls = [sideband_db * abs(side) ** 0.7 for side in range(-3, 4)] + [rng.uniform(-35, -12)]
    voice = _synthesise(rng, partials, [level_db + fall for fall in falls], rate_hz)
    return np.asarray(_unit(voice) * 10 ** (rng.uniform(-14, 3) / 20))


class _Colour:
    """Band emphasis of one call: low cut, formants and a fall towards high frequencies."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.low_cut_hz = rng.uniform(500, 1500)
        self.fall_db_per_octave = rng.uniform(4, 11)
        self.formants = [
            (rng.uniform(np.log2(900), np.log2(8000)), rng.uniform(0.2, 0.5), rng.uniform(3, 14))
            for _ in range(int(rng.integers(2, 5)))
        ]

    def gain_db(self, frequency_hz: Floats) -> Floats:
        octave = np.log2(frequency_hz)
        gain = -9 * np.maximum(0, np.log2(self.low_cut_hz) - octave)
        gain = gain - self.fall_db_per_octave * np.maximum(0, octave - np.log2(2000))
        for centre, width, rise_db in self.formants:
            gain = gain + rise_db * np.exp(-0.5 * ((octave - centre) / width) ** 2)
        return np.asarray(gain)


def _envelope_db(rng: np.random.Generator, frames: int, depth_db: float) -> Floats:
    """Level along a call: gentle onset and offset, slow random swells, sometimes a regular flutter."""
    level = depth_db * 0.5 * _smooth_noise(rng, frames, 120)
    if rng.random() < 0.3:
        level = level + rng.uniform(1, depth_db) * np.sin(
            2 * np.pi * rng.uniform(8, 30) * np.arange(frames) / FRAMES_PER_S
        )
    attack, release = rng.uniform(0.01, 0.06), rng.uniform(0.03, 0.15)
    t = np.arange(frames) / FRAMES_PER_S
    gate = np.clip(t / attack, 0, 1) * np.clip((t[-1] - t) / release, 0, 1)
    return np.asarray(level + 20 * np.log10(np.sin(0.5 * np.pi * gate) ** 2 + 10 ** (SILENT_DB / 20)))


def _synthesise(rng: np.random.Generator, partials: list[Floats], levels_db: list[Floats], rate_hz: int) -> Floats:
    """Sum of tones that follow `partials` (Hz per frame) at `levels_db` (per frame); silent near Nyquist."""
    frames = partials[0].size
    frame = np.arange(int(frames * rate_hz / FRAMES_PER_S)) * (FRAMES_PER_S / rate_hz)
    sound = np.zeros(frame.size)
    for frequency_hz, level_db in zip(partials, levels_db):
        audible = (np.abs(frequency_hz) < TOP_SHARE * rate_hz) & (level_db > SILENT_DB + 30)
        if not audible.any():
            continue
        amplitude = np.where(audible, 10 ** (level_db / 20), 0.0)
        cycles = np.cumsum(np.interp(frame, np.arange(frames), frequency_hz)) / rate_hz
        phase = 2 * np.pi * (cycles + rng.normal(0, 0.08))
        sound += np.interp(frame, np.arange(frames), amplitude) * np.cos(phase)
    return sound


def _click_times(rng: np.random.Generator, duration_s: float) -> Floats:
    """Click times in s; the rate glides between two draws from 5 to 40 a second."""
    first, last = np.exp(rng.uniform(np.log(5), np.log(40), 2))
    x = np.linspace(0, 1, 1000)
    count = np.cumsum(first * (last / first) ** x) * duration_s / x.size
    times = np.interp(np.arange(1, int(count[-1])), count, x * duration_s)
    return np.asarray(times + rng.normal(0, 0.002, times.size).clip(-0.004, 0.004) + 0.005)


def _add_click(sound: Floats, rate_hz: int, time_s: float, level: float, lobes_hz: Floats) -> None:
    """Add two Gaussian-windowed tones (0.03 and 0.05 ms wide) around `time_s`, to a fraction of a sample."""
    reach = int(4e-4 * rate_hz)
    first = max(0, int(time_s * rate_hz) - reach)
    t = np.arange(first, first + 2 * reach) / rate_hz - time_s
    high = np.exp(-0.5 * (t / 3e-5) ** 2) * np.cos(2 * np.pi * lobes_hz[0] * t)
    low = np.exp(-0.5 * (t / 5e-5) ** 2) * np.cos(2 * np.pi * lobes_hz[1] * t)
    sound[first : first + 2 * reach] += level * (high + 0.4 * low)[: sound.size - first]


def _finish(rng: np.random.Generator, dry: Floats, rate_hz: int) -> Sound:
    """Multi-path, trim and peak normalisation, common to all sounds."""
    wet = trimmed(multipath(rng, dry, rate_hz), rate_hz)
    return np.asarray(wet / np.abs(wet).max(), np.float32)


def multipath(rng: np.random.Generator, dry: Floats, rate_hz: int) -> Floats:
    """Direct path, surface reflection (inverted), bottom reflection, exponential tail; 0.4 s longer."""
    response = np.zeros(int(0.4 * rate_hz))
    t = np.arange(response.size) / rate_hz
    tail = rng.standard_normal(response.size) * np.exp(-t / rng.uniform(0.02, 0.12))
    response += tail * np.sqrt(10 ** (rng.uniform(-32, -14) / 10) / np.sum(tail**2))
    response[int(rng.uniform(0.0005, 0.02) * rate_hz)] -= rng.uniform(0.1, 0.7)
    response[int(rng.uniform(0.005, 0.06) * rate_hz)] += rng.uniform(0.0, 0.4)
    response[0] += 1.0
    length = dry.size + response.size
    size = 1 << (length - 1).bit_length()
    return np.asarray(np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(response, size), size)[:length])


def trimmed(sound: Floats, rate_hz: int) -> Floats:
    """`sound` cut to the span with all but 0.1 % of its energy, its ends faded over 5 ms."""
    energy = np.cumsum(sound**2)
    first, last = np.searchsorted(energy, [0.0002 * energy[-1], 0.9992 * energy[-1]])
    cut = sound[first : last + 1].copy()
    ramp = np.sin(np.linspace(0, np.pi / 2, max(2, rate_hz // 200))) ** 2
    cut[: ramp.size] *= ramp
    cut[-ramp.size :] *= ramp[::-1]
    return cut


def _unit(sound: Floats) -> Floats:
    """`sound` at root mean square 1; silence stays silence."""
    power = np.mean(sound**2)
    return np.asarray(sound / np.sqrt(power + (power == 0)))


def _smooth(values: Floats, frames: int) -> Floats:
    """Moving Hann average over `frames`, ends held."""
    window = np.hanning(frames + 2)
    padded = np.pad(values, frames + 2, mode="edge")
    return np.convolve(padded, window / window.sum(), "same")[frames + 2 : -(frames + 2)]


def _smooth_noise(rng: np.random.Generator, size: int, frames: int) -> Floats:
    """Random curve of unit standard deviation that changes over about `frames` frames."""
    knots = rng.standard_normal(size // frames + 4)
    return _smooth(np.interp(np.arange(size) / frames, np.arange(knots.size), knots), max(1, frames // 2)) * 1.3
