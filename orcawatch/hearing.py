"""What is wrong with the sound of an array: findings from a stretch of its samples, without any device.

Levels are in dB re full scale, RMS without DC. Every function takes samples of shape (samples, channels), full scale
1.0, and names channels as the source does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .capture import LOUDEST
from .config import HydrophoneSettings
from .findings import FAULT, OK, SKIPPED, WARNING, Finding, count, named, plural
from .levels import CLIPPED, calibration

Array = NDArray[np.float32]
Figures = NDArray[np.float64]

LEAST_S = 1.0
QUIETER_DB = 20.0  # below the others: a hydrophone that hears less
DEAD_DB = 40.0  # below the others: the converter's own noise
STEPS = 4.0  # RMS in steps of the converter below which it moves only its lowest bits
CLIPPED_SHARE = 1e-3
FLAT_RUN = 4  # equal samples at a channel's own extreme: a top cut off
FLAT_RUNS = 3
OFFSET = 0.01  # of full scale
HUM_DB = 15.0  # of a line over its neighbours
HUM_LINES = 2
COPY_DB = 50.0  # what differs between two channels is so far below them
SOUND_M_S = 1500.0
TOLERANCE_SAMPLES = 2.0
SEGMENT_S = 0.1
LEAST_SPAN_S = 0.005  # delays are looked for up to this even where the array should be smaller
SEGMENTS = 20
LEAST_SEGMENTS = 3
SHARPNESS = 1.5  # of a correlation's peak over the next one
BAND_HZ = (400.0, 20000.0)


def check_audio(
    samples: Array,
    rate_hz: int,
    channels: Sequence[int],
    hydrophones: Sequence[HydrophoneSettings] = (),
    adc_peak_v: float | None = None,
) -> list[Finding]:
    """Every finding about the sound.

    Parameters
    ----------
    samples : float32, shape (samples, channels); some seconds.
    rate_hz : samples per second.
    channels : the source's names of the columns.
    hydrophones : one a column, or none where nothing is known of them.
    adc_peak_v : voltage at full scale; None where it is unknown.
    """
    if len(samples) < LEAST_S * rate_hz:
        return [
            Finding("sound", FAULT, f"only {len(samples) / rate_hz:.1f} s of audio came", "listen longer (--seconds)")
        ]
    bad, finite = not_finite(samples)
    dead = [index for index in range(len(channels)) if np.ptp(finite[:, index]) == 0]
    alive = [index for index in range(len(channels)) if index not in dead]
    sound, names = finite[:, alive], [channels[index] for index in alive]
    known = [hydrophones[index] for index in alive] if hydrophones else []
    return [
        *finite_findings(bad, len(samples), channels),
        *level_findings(finite, channels, hydrophones, adc_peak_v),
        *loudest_findings(sound, rate_hz, names),
        *resolution_findings(sound, names),
        *clipping_findings(sound, names),
        *offset_findings(finite, channels),
        *hum_findings(sound, rate_hz, names),
        *copy_findings(sound, names),
        *order_findings(sound, rate_hz, names, known),
    ]


def not_finite(samples: Array) -> tuple[NDArray[np.int64], Array]:
    """Number of samples of each channel that are no audio, and the samples with 0 in their place."""
    with np.errstate(invalid="ignore"):
        good = np.abs(samples) <= LOUDEST
    return np.count_nonzero(~good, axis=0), np.where(good, samples, np.float32(0))


def finite_findings(bad: NDArray[np.int64], rows: int, channels: Sequence[int]) -> Iterator[Finding]:
    """Samples that are not a number, infinite, or beyond `LOUDEST`."""
    for channel, number in zip(channels, bad):
        if number:
            yield Finding(
                "samples",
                FAULT,
                f"channel {channel}: {number / rows:.2%} are no finite number, which silences all channels",
                "look at cable and driver, or leave the channel out with `channels`",
            )
    if not bad.any():
        yield Finding("samples", OK, "all are finite")


def levels_db(samples: Array) -> Figures:
    """RMS without DC of each channel, dB re full scale; -inf where nothing moves."""
    with np.errstate(divide="ignore"):
        return np.asarray(20 * np.log10(samples.std(axis=0, dtype=np.float64)))


def level_findings(
    samples: Array, channels: Sequence[int], hydrophones: Sequence[HydrophoneSettings], adc_peak_v: float | None
) -> Iterator[Finding]:
    """Channels that are silent, or far below the others where all should hear the same sea."""
    found = levels_db(samples)
    compared = found - chain_db(hydrophones, len(channels))
    below = [below_others_db(compared, index) for index in range(len(channels))]
    digital = [channel for channel, level in zip(channels, found) if level == -np.inf]
    dead = [(channel, by) for channel, by in zip(channels, below) if DEAD_DB <= by < np.inf]
    quiet = [(channel, by) for channel, by in zip(channels, below) if QUIETER_DB <= by < DEAD_DB]
    yield from silent_findings(digital, len(channels))
    for channel, by in dead:
        yield Finding("level", FAULT, f"channel {channel} is dead: {by:.0f} dB below the others",
                      "look at its hydrophone, cable, amplifier and supply")  # fmt: skip
    for channel, by in quiet:
        yield Finding("level", WARNING, f"channel {channel} is {by:.0f} dB below the others",
                      "look at its gain, plug and cable; `hydrophones` may state another gain_db")  # fmt: skip
    if not digital and not dead and not quiet:
        scale = calibration(hydrophones, adc_peak_v, len(channels))
        yield Finding("level", OK, f"{listed(scale.decibels(10 ** (found / 20)))} {scale.unit}")


def silent_findings(digital: Sequence[int], channels: int) -> Iterator[Finding]:
    """Channels whose samples never change."""
    if digital:
        cure = (
            "nothing is plugged into the card, or it is muted: look at `alsamixer`, plugs and supply"
            if len(digital) == channels
            else "look whether the card has so many inputs, and whether they are muted (`alsamixer`)"
        )
        yield Finding("level", FAULT, f"{named(digital)} never change{plural(digital)}: digital silence", cure)


def chain_db(hydrophones: Sequence[HydrophoneSettings], channels: int) -> Figures:
    """By how much each channel's chain makes the same sound louder than another's; zeros where that is not known."""
    if not hydrophones or any(one.sensitivity_db is None for one in hydrophones):
        return np.array([one.gain_db for one in hydrophones] or [0.0] * channels)
    return np.array([float(one.sensitivity_db or 0) + one.gain_db for one in hydrophones])


def below_others_db(levels: Figures, index: int) -> float:
    """How far one level is below the middle of the others; inf for silence, 0 where there are no others to compare."""
    if levels[index] == -np.inf:
        return np.inf
    others = [level for other, level in enumerate(levels) if other != index and level > -np.inf]
    return float(np.median(others) - levels[index]) if others else 0.0


def listed(levels: Sequence[float]) -> str:
    """Levels in words."""
    return ", ".join(f"{level:.1f}" for level in levels)


def loudest_findings(samples: Array, rate_hz: int, channels: Sequence[int]) -> Iterator[Finding]:
    """When each channel was loudest: who taps one hydrophone after the other sees which channel is which."""
    moments = {
        channel: np.argmax(np.abs(column - column.mean())) / rate_hz for channel, column in zip(channels, samples.T)
    }
    if moments:
        text = ", ".join(f"channel {channel} at {moment_s:.1f} s" for channel, moment_s in moments.items())
        yield Finding("loudest", OK, text)


def resolution_findings(samples: Array, channels: Sequence[int]) -> Iterator[Finding]:
    """Sound so faint that it moves only the converter's lowest bits."""
    steps = [rms_in_steps(column) for column in samples.T]
    faint = [channel for channel, found in zip(channels, steps) if found < STEPS]
    if faint:
        yield Finding("gain", WARNING, f"{named(faint)} move{plural(faint)} only the lowest bits of the converter",
                      "raise the gain, or ask the card for more bits (source.sample_format)")  # fmt: skip
    elif steps:
        yield Finding("gain", OK, "the sound is well above the converter's steps")


def rms_in_steps(column: Array) -> float:
    """RMS of a channel in units of the smallest step between its values."""
    values = np.unique(column[: 1 << 18])
    step = float(np.diff(values).min()) if len(values) > 1 else np.inf
    return float(column.std(dtype=np.float64)) / step


def clipping_findings(samples: Array, channels: Sequence[int]) -> Iterator[Finding]:
    """Samples at full scale, and tops that are cut off below it."""
    full = [int(np.count_nonzero(np.abs(column) >= CLIPPED)) for column in samples.T]
    for channel, number in zip(channels, full):
        if number:
            share = number / len(samples)
            yield Finding("clipping", FAULT if share > CLIPPED_SHARE else WARNING,
                          f"channel {channel}: {count(number, 'sample')} at full scale, {100 * share:.2g} % of all",
                          "lower the gain until the loudest sound stays below full scale")  # fmt: skip
    flat = [channel for channel, number, column in zip(channels, full, samples.T) if not number and is_flat(column)]
    for channel in flat:
        yield Finding("clipping", WARNING, f"channel {channel} has tops cut off below full scale",
                      "its amplifier is overdriven: lower the gain before it, or look at its supply")  # fmt: skip
    if not any(full) and not flat:
        peak_db = 20 * np.log10(max(float(np.abs(samples).max(initial=0)), 1e-10))
        yield Finding("clipping", OK, f"none; the loudest sample is at {peak_db:.0f} dB re full scale")


def is_flat(column: Array) -> bool:
    """Whether a channel stays at its own highest or lowest value for runs of samples, as no sound does."""
    if rms_in_steps(column) < 16 * STEPS:
        return False
    return any(flat_runs(column == extreme) >= FLAT_RUNS for extreme in (column.max(), column.min()))


def flat_runs(flags: NDArray[np.bool_]) -> int:
    """Number of runs of at least `FLAT_RUN` true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return int(np.count_nonzero(edges[1::2] - edges[::2] >= FLAT_RUN))


def offset_findings(samples: Array, channels: Sequence[int]) -> Iterator[Finding]:
    """DC, which takes room from the sound and tells of a leak or a wrong input."""
    means = samples.mean(axis=0, dtype=np.float64)
    high = {channel: mean for channel, mean in zip(channels, means) if abs(mean) > OFFSET}
    if high:
        yield Finding("offset", WARNING, f"DC offset of {named(list(high))}: {shares(high.values())} of full scale",
                      "look for water in plug or cable, and for a missing coupling capacitor")  # fmt: skip
    else:
        yield Finding("offset", OK, f"at most {np.abs(means).max(initial=0):.2%} of full scale")


def shares(values: Iterable[float]) -> str:
    """Percentages in words."""
    return ", ".join(f"{value:+.1%}" for value in values)


def hum_findings(samples: Array, rate_hz: int, channels: Sequence[int]) -> Iterator[Finding]:
    """Lines of a mains supply, 50 or 60 Hz and their multiples."""
    hums = {(mains_hz, channel): hum_lines(column, rate_hz, mains_hz)
            for mains_hz in (50, 60) for channel, column in zip(channels, samples.T)}  # fmt: skip
    heard = {key: lines for key, lines in hums.items() if len(lines) >= HUM_LINES}
    for mains_hz in sorted({mains_hz for mains_hz, _ in heard}):
        of = {channel: max(lines.values()) for (line_hz, channel), lines in heard.items() if line_hz == mains_hz}
        yield Finding("hum", WARNING,
                      f"{named(list(of))} hum{plural(of)} at {mains_hz} Hz and its multiples, up to "
                      f"{max(of.values()):.0f} dB above the sound beside them",
                      "look for a ground loop, a charger or an inverter")  # fmt: skip
    if not heard:
        yield Finding("hum", OK, "no lines of 50 or 60 Hz")


def hum_lines(column: Array, rate_hz: int, mains_hz: int) -> dict[int, float]:
    """By frequency, by how much the first multiples of the mains stand above their neighbours, dB, from `HUM_DB` on."""
    powers = powers_by_hz(column, rate_hz)
    lines = {}
    for hz in range(mains_hz, 6 * mains_hz, mains_hz):
        beside = np.concatenate([powers[hz - 12 : hz - 3], powers[hz + 4 : hz + 13]])
        line, floor = powers[hz - 1 : hz + 2].max(initial=0), np.median(beside) if len(beside) else 0
        if floor > 0 and (above_db := 10 * np.log10(line / floor)) >= HUM_DB:
            lines[hz] = float(above_db)
    return lines


def powers_by_hz(column: Array, rate_hz: int) -> Figures:
    """Mean power of a channel in bands of 1 Hz (Hann windows of a second)."""
    whole = column[: len(column) // rate_hz * rate_hz].reshape(-1, rate_hz).astype(np.float64)
    whole = (whole - whole.mean(axis=1, keepdims=True)) * np.hanning(rate_hz)
    return np.asarray((np.abs(np.fft.rfft(whole, axis=1)) ** 2).mean(axis=0))


def copy_findings(samples: Array, channels: Sequence[int]) -> Iterator[Finding]:
    """Pairs of channels that carry one signal."""
    centred = samples - samples.mean(axis=0)
    found = 0
    for (first, one), (second, other) in combinations(zip(channels, centred.T), 2):
        apart_db = apart(one, other)
        if apart_db < -COPY_DB:
            found += 1
            same = (
                "the same, bit for bit" if apart_db == -np.inf else f"the same but for {apart_db:.0f} dB and a factor"
            )
            yield Finding("copies", FAULT, f"channels {first} and {second} are {same}",
                          "one input feeds both: look at the wiring and at the card's routing")  # fmt: skip
    if len(channels) > 1 and not found:
        yield Finding("copies", OK, "no two channels are the same")


def apart(one: Array, other: Array) -> float:
    """Power of what is left of one signal without the other one, dB re itself; -inf for equal ones."""
    if np.array_equal(one, other):
        return -np.inf
    first, second = one.astype(np.float64), other.astype(np.float64)
    shared = float(first @ second) ** 2 / float((first @ first) * (second @ second))
    return 10 * math.log10(max(1 - shared, 1e-30))


def order_findings(
    samples: Array, rate_hz: int, channels: Sequence[int], hydrophones: Sequence[HydrophoneSettings]
) -> Iterator[Finding]:
    """Whether the delays between channels fit the places of their hydrophones; a hint, no proof.

    Sharp sounds are looked for, and their delays between all pairs of channels taken from the correlation of the
    whitened signals. They must be those of a plane wave over the array: no longer than sound takes between two
    hydrophones, and consistent among four or more. Where they are not but would be with two channels exchanged, that
    pair is named. What mirrors the array (an exchange of opposite corners of a square) cannot be told.
    """
    places = [one.position_m for one in hydrophones]
    if len(places) < 2 or any(place is None for place in places):
        yield Finding("order", SKIPPED, "two or more hydrophones with position_m are needed to compare delays")
        return
    positions = np.array(places, np.float64)
    delays = sharp_delays(samples, rate_hz, positions)
    if len(delays) < LEAST_SEGMENTS:
        yield Finding(
            "order", SKIPPED, f"{len(delays)} sharp sounds were heard on all channels; {LEAST_SEGMENTS} are needed"
        )
        return
    tolerance_s = TOLERANCE_SAMPLES / rate_hz
    misfit_s = misfit(delays, positions)
    if misfit_s <= tolerance_s:
        yield Finding("order", OK, f"delays of {len(delays)} sounds fit the positions to {misfit_s * 1e6:.0f} us")
        return
    yield Finding("order", WARNING, *order_text(delays, positions, channels, misfit_s, tolerance_s))


def order_text(
    delays: Figures, positions: Figures, channels: Sequence[int], misfit_s: float, tolerance_s: float
) -> tuple[str, str]:
    """What was found about an order that does not fit, and the cure."""
    swaps = [pair for pair in combinations(range(len(channels)), 2)
             if misfit(delays, swapped(positions, pair)) <= max(tolerance_s, misfit_s / 5)]  # fmt: skip
    found = f"delays of {len(delays)} sounds miss the positions by {misfit_s * 1e6:.0f} us"
    if not swaps:
        return (
            found,
            "compare position_m and `channels` with the array; tap one hydrophone after the other, see `loudest`",
        )
    pairs = " or ".join(f"{channels[one]} and {channels[other]}" for one, other in swaps)
    return (
        f"{found}; they would fit with channels {pairs} exchanged (a hint)",
        "tap one hydrophone after the other, see `loudest`",
    )


def swapped(positions: Figures, pair: tuple[int, int]) -> Figures:
    """Positions with two exchanged."""
    order = list(range(len(positions)))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return np.asarray(positions[order])


def misfit(delays: Figures, positions: Figures) -> float:
    """By how much delays, shape (sounds, pairs), miss those of plane waves no slower than sound, s, RMS."""
    pairs = list(combinations(range(len(positions)), 2))
    baselines = np.array([positions[other] - positions[one] for one, other in pairs])
    return float(np.median([wave_misfit(found, baselines) for found in delays]))


def wave_misfit(found_s: Figures, baselines: Figures) -> float:
    """RMS of what a plane wave, no slower than sound, leaves unexplained of the delays of one sound."""
    slowness = bounded_fit(baselines, found_s, 1.05 / SOUND_M_S)
    return float(np.sqrt(np.mean((found_s - baselines @ slowness) ** 2)))


def bounded_fit(matrix: Figures, values: Figures, longest: float) -> Figures:
    """The vector of at most this length that matrix times it comes nearest to the values.

    Least squares with a bound on the length, by Lagrange's multiplier (Golub and Van Loan, Matrix Computations, 6.2.1).
    Without the bound an array that is nearly flat would leave the direction across it to the noise.
    """
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    along = sizes * (left.T @ values)
    low, high = 1e-12 * float(sizes[0]) ** 2, float(np.linalg.norm(along)) / longest + 1e-30
    for _ in range(60 if np.linalg.norm(along / (sizes**2 + low)) > longest else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if np.linalg.norm(along / (sizes**2 + middle)) > longest else (low, middle)
    return np.asarray(right.T @ (along / (sizes**2 + low)))


def sharp_delays(samples: Array, rate_hz: int, positions: Figures) -> Figures:
    """Delays of the loudest sounds between all pairs of channels, s, shape (sounds, pairs); only of sharp ones."""
    length = round(SEGMENT_S * rate_hz)
    span_s = max(float(np.linalg.norm(one - other)) for one, other in combinations(positions, 2)) / SOUND_M_S
    most = min(length // 2 - 1, round(max(2 * span_s, LEAST_SPAN_S) * rate_hz) + 2)
    found = [segment_delays(segment, rate_hz, most) for segment in loudest(samples, length)]
    return np.array([delays for delays in found if delays is not None])


def loudest(samples: Array, length: int) -> Array:
    """The segments with the highest peaks over their own mean power, shape (segments, samples, channels)."""
    whole = samples[: len(samples) // length * length].reshape(-1, length, samples.shape[1])
    powers = (whole.astype(np.float64) ** 2).mean(axis=(1, 2))
    return np.asarray(whole[np.argsort(powers)[::-1][:SEGMENTS]])


def segment_delays(segment: Array, rate_hz: int, most: int) -> list[float] | None:
    """Delays of one segment between all pairs, s; None where one has no clear peak."""
    spectra = whitened(segment, rate_hz)
    delays = []
    for one, other in combinations(range(segment.shape[1]), 2):
        delay = peak_delay(spectra[:, other] * spectra[:, one].conj(), most)
        if delay is None:
            return None
        delays.append(delay / rate_hz)
    return delays


def whitened(segment: Array, rate_hz: int) -> NDArray[np.complex128]:
    """Spectra of a segment's channels with equal magnitude inside `BAND_HZ`, zero padded to twice the length."""
    shaped = (segment - segment.mean(axis=0)) * np.hanning(len(segment))[:, None]
    spectra = np.fft.rfft(shaped, 2 * len(segment), axis=0)
    hz = np.fft.rfftfreq(2 * len(segment), 1 / rate_hz)[:, None]
    inside = (hz >= BAND_HZ[0]) & (hz <= min(BAND_HZ[1], 0.45 * rate_hz))
    return np.asarray(np.where(inside, spectra / np.maximum(np.abs(spectra), 1e-20), 0))


def peak_delay(cross: NDArray[np.complex128], most: int) -> float | None:
    """Delay in samples, up to `most`, at a correlation's peak (refined by a parabola); None where unclear."""
    correlation = np.fft.irfft(cross)
    near = np.concatenate([correlation[-most:], correlation[: most + 1]])
    peak = int(np.argmax(near))
    others = np.delete(near, range(max(0, peak - 3), min(len(near), peak + 4)))
    if not 0 < peak < 2 * most or near[peak] < SHARPNESS * others.max(initial=0):
        return None
    left, middle, right = near[peak - 1 : peak + 2]
    return float(peak - most + (left - right) / (2 * (left - 2 * middle + right)))
