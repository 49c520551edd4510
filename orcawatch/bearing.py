"""Bearing of a detection from an array of hydrophones; see docs/bearing.md for the method and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .delays import Common, common, correlation, peak
from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Settings

Array = NDArray[np.float32]
Figures = NDArray[np.float64]

SHARE = 0.9  # of the probability that an interval holds
EVIDENCE = 0.1  # of the likelihood is believed: cells overlap, and noise is not as simple as its model
MOST_CERTAIN = 60.0  # natural logarithm to which the likelihoods of separate directions are brought down
LEAST_DEG = 0.05  # half width of an interval at the least
WIDEST_DEG = 30.0  # a wider one is no bearing
LINE = 0.02  # an array whose width is less than this share of its length is a line
SAME_PLACE_M = 0.01
HELD = 0.9  # of the samples equal to the one before: a channel that is stuck
STEPS_A_WAVE = 8.0
MOST_STEPS = 36000
FAR_BELOW = 16.0  # natural logarithm of how much less likely a direction is to be left out
MODES = 64
# 95 % points of Student's t by degrees of freedom, from 1
STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86)
OUTLIER = 3.0  # spreads from the fit at which a pair counts no more
MARGIN = 1.1  # delays are looked for up to so much more than the array allows
DEAF = 0.02  # of the weight of the other channels' pairs
STRANGE = 0.3  # of what the others share
SHARED = 0.3  # of the weights, that the others share at least
CLEAR = 12.0  # spreads of noise by which a pair's peak stands out
SINGLE = 1.3  # a pair's highest peak over its second
MISFIT = 0.05  # of the longest delay: by so much may delays miss the places
BETTER = 5.0  # by so much must another order fit better
TINY_BEND = 1e-12
SECOND_SHARE = 0.3  # of the first sound's correlation, that of a second one


@dataclass(frozen=True)
class Bearing:
    """Where a sound came from.

    Attributes
    ----------
    bearing_deg : degrees clockwise from north, 0 to 360; None where it is not known.
    error_deg : half the width of the 90 % interval; None without a bearing.
    note : why there is none, or what makes it doubtful; may be empty.
    """

    bearing_deg: float | None = None
    error_deg: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Mode:
    """A direction that explains the sound.

    Attributes
    ----------
    angle_rad : from the array's y axis, clockwise.
    height : natural logarithm of its likelihood, up to a constant.
    spread_rad : standard deviation about it.
    """

    angle_rad: float
    height: float
    spread_rad: float


class Compass:
    """Tells bearings of sounds on an array.

    Parameters
    ----------
    positions_m : x east, y north, z up of each channel's hydrophone; None where it is not known.
    sound_speed_m_s : in the water.
    heading_deg : of the array's y axis, clockwise from north.
    channels : what the source calls the channels; from 0 where left out.

    Raises
    ------
    ConfigError : all hydrophones are at one place.
    """

    def __init__(
        self,
        positions_m: Sequence[Sequence[float] | None],
        sound_speed_m_s: float = 1480.0,
        heading_deg: float = 0.0,
        channels: Sequence[int] | None = None,
    ) -> None:
        self._columns = [index for index, place in enumerate(positions_m) if place is not None]
        self._places = np.array([place for place in positions_m if place is not None], np.float64).reshape(-1, 3)
        self._speed_m_s = sound_speed_m_s
        self._heading_deg = heading_deg
        self._channels = list(range(len(positions_m)) if channels is None else channels)
        if len(self._places) > 1 and np.ptp(self._places, axis=0).max() < SAME_PLACE_M:
            raise ConfigError(
                "hydrophones: position_m is the same place for all of them, which gives no bearing: write where each "
                "is (metres east, north and up), or leave position_m out"
            )

    @classmethod
    def of(cls, settings: Settings, channels: Sequence[int]) -> Compass:
        """That of the settings' hydrophones, which are in the order of the used channels."""
        places = [hydrophone.position_m for hydrophone in settings.hydrophones]
        return cls(places, settings.sound_speed_m_s, settings.heading_deg, channels)

    def bearing(self, samples: Array, rate_hz: int) -> Bearing:
        """Where the strongest sound in some samples came from.

        Parameters
        ----------
        samples : float32, shape (samples, channels): the audio of an event.
        rate_hz : samples per second.
        """
        if not self._columns:
            return Bearing()
        if len(self._columns) == 1:
            return Bearing(note="no bearing: the place of one hydrophone alone is known")
        sound = some_columns(np.asarray(samples, np.float32), self._columns)
        dead = [index for index in range(sound.shape[1]) if not is_alive(sound[:, index])]
        alive = [index for index in range(sound.shape[1]) if index not in dead]
        notes = [self._named(dead, "is dead", "are dead")] if dead else []
        if len(alive) < 2:
            return Bearing(note="; ".join(["no bearing", *notes]))
        return self._of_alive(some_columns(sound, alive), rate_hz, alive, notes)

    def _of_alive(self, sound: Array, rate_hz: int, alive: list[int], notes: list[str]) -> Bearing:
        places = self._places[alive]
        longest_s = MARGIN * spacing(places) / self._speed_m_s
        found = common(sound, rate_hz, longest_s)
        if found is None or not found.weights.sum():
            why = "the sound is too short for this array" if found is None else "nothing stands out of the background"
            return Bearing(note="; ".join([f"no bearing: {why}", *notes]))
        deaf = deaf_channels(found, len(alive))
        if deaf:
            notes = [*notes, self._named([alive[index] for index in deaf], "does not hear it", "do not hear it")]
            kept = [index for index in range(len(alive)) if index not in deaf]
            found, alive, places = found.only(kept), [alive[index] for index in kept], places[kept]
        return self._checked(found, alive, places, longest_s, notes)

    def _checked(self, found: Common, alive: list[int], places: Figures, longest_s: float, notes: list[str]) -> Bearing:
        """The bearing, after a look at whether the delays fit the places."""
        fault = misplaced(found, places / self._speed_m_s, longest_s)
        if fault is None:
            return self._noted(found, alive, places, notes)
        swaps, odd = fault
        if swaps:
            pairs = " or ".join(f"{self._name(alive[one])} and {self._name(alive[other])}" for one, other in swaps)
            return Bearing(note="; ".join([f"no bearing: channels {pairs} seem swapped", *notes]))
        if odd is not None:
            kept = [index for index in range(len(alive)) if index != odd]
            notes = [*notes, f"the place of channel {self._name(alive[odd])} does not fit; it was left out"]
            return self._noted(found.only(kept), [alive[index] for index in kept], places[kept], notes)
        return self._noted(
            found, alive, places, [*notes, "the delays fit no direction well: check the hydrophones' places"]
        )

    def _noted(self, found: Common, alive: list[int], places: Figures, notes: list[str]) -> Bearing:
        baselines = flat_baselines(found, places) / self._speed_m_s
        if not np.linalg.norm(baselines, axis=1).max():
            return Bearing(note="; ".join(["no bearing: the hydrophones stand above one another", *notes]))
        modes = directions(found, baselines)
        if is_line(places):
            return Bearing(note="; ".join([self._mirrored(modes, len(places)), *notes]))
        angle, width = interval(found, baselines, modes, len(places))
        if width > math.radians(WIDEST_DEG):
            return Bearing(note="; ".join([f"no bearing: {self._unclear(modes)}", *notes]))
        strangers = strange_channels(found, baselines, angle, len(places))
        if strangers:
            named = self._named([alive[index] for index in strangers], "does", "do")
            notes = [*notes, f"{named} not fit the others"]
        other = None if strangers else second_sound(found, baselines, angle)
        if other is not None:
            notes = [*notes, f"another sound came from about {round(self._degrees(other)) % 360} degrees"]
        return Bearing(self._degrees(angle), max(math.degrees(width), LEAST_DEG), "; ".join(notes))

    def _mirrored(self, modes: Sequence[Mode], channels: int) -> str:
        best = modes[0]
        both = [self._degrees(mode.angle_rad) for mode in likely(modes)]
        what = "two hydrophones" if channels == 2 else "the hydrophones stand in a line"
        if len(both) > 4:
            return f"no bearing: {what}, and the direction is unclear"
        error = max(math.degrees(STUDENT[-1] * best.spread_rad), 0.5)
        return f"{what}: from {' or '.join(f'{one:.0f}' for one in sorted(both))} degrees (± {error:.0f})"

    def _unclear(self, modes: Sequence[Mode]) -> str:
        angles = sorted(self._degrees(mode.angle_rad) for mode in likely(modes))
        if len(angles) > 4 or max(mode.spread_rad for mode in likely(modes)) > math.radians(WIDEST_DEG / 2):
            return "the direction is unclear"
        return f"{' or '.join(f'{angle:.0f}' for angle in angles)} degrees"

    def _degrees(self, angle_rad: float) -> float:
        bearing = (math.degrees(angle_rad) + self._heading_deg) % 360.0
        return 0.0 if bearing >= 360.0 else bearing

    def _name(self, index: int) -> int:
        return self._channels[self._columns[index]]

    def _named(self, indices: Sequence[int], one: str, several: str) -> str:
        names = ", ".join(str(self._name(index)) for index in indices)
        return f"channel {names} {one}" if len(indices) == 1 else f"channels {names} {several}"


def some_columns(sound: Array, columns: list[int]) -> Array:
    """These columns; the very array where they are all of it, in order, because a copy of an event takes memory."""
    return sound if columns == list(range(sound.shape[1])) else sound[:, columns]


def is_alive(column: Array) -> bool:
    """Whether a channel moves: all numbers finite, and no value held for nearly all the time."""
    if len(column) < 2 or not np.isfinite(column).all():
        return False
    return bool(np.mean(np.diff(column) == 0) < HELD)


def spacing(places: Figures) -> float:
    """Longest distance between two places."""
    return max(float(np.linalg.norm(one - other)) for one, other in combinations(places, 2))


def is_line(places: Figures) -> bool:
    """Whether places, seen from above, lie in a line, so that either side of it sounds the same."""
    flat = places[:, :2] - places[:, :2].mean(axis=0)
    sizes = np.linalg.svd(flat, compute_uv=False)
    return len(places) == 2 or bool(sizes[1] < LINE * sizes[0])


def flat_baselines(found: Common, places: Figures) -> Figures:
    """From each pair's second hydrophone to its first, seen from above, m, shape (pairs, 2)."""
    first, second = found.pairs.T
    return np.asarray((places[first] - places[second])[:, :2])


def arrivals_s(baselines_s: Figures, angles: Figures | float) -> Figures:
    """By how much the second hydrophone of each pair hears a plane wave later, shape (angles, pairs)."""
    towards = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return np.asarray(towards @ baselines_s.T)


def deaf_channels(found: Common, channels: int) -> list[int]:
    """Channels in which nothing stands out of the noise while two others or more hear something."""
    weights = found.weights.sum(axis=1)
    heard = np.array([weights[(found.pairs == index).any(axis=1)].max() for index in range(channels)])
    deaf = [index for index in range(channels) if heard[index] < DEAF * np.sort(heard)[-2]]
    return deaf if channels - len(deaf) >= 2 and weights.max() > 100 * len(found.frequencies_hz) ** 0.5 else []


def strange_channels(found: Common, baselines_s: Figures, angle: float, channels: int) -> list[int]:
    """Channels that share hardly anything from a direction with the others, which share much among themselves."""
    omega = 2 * np.pi * found.frequencies_hz
    steered = found.cross * np.exp(-1j * arrivals_s(baselines_s, angle)[:, None] * omega)
    share = steered.real.sum(axis=1) / np.maximum(found.weights.sum(axis=1), TINY_BEND)
    strange = []
    for index in range(channels if channels > 3 else 0):
        own = (found.pairs == index).any(axis=1)
        if share[own].max() < STRANGE * np.median(share[~own]) and np.median(share[~own]) > SHARED:
            strange.append(index)
    return strange


def directions(found: Common, baselines_s: Figures) -> list[Mode]:
    """Directions that explain the sound, the likeliest first: maxima of the pairs' correlations, added up."""
    longest_s = float(np.linalg.norm(baselines_s, axis=1).max())
    angles = np.linspace(0, 2 * np.pi, _steps(found, longest_s), endpoint=False)
    delays = arrivals_s(baselines_s, angles)
    heights = np.zeros(len(angles))
    for pair in range(len(found.pairs)):
        heights += np.interp(delays[:, pair], *correlation(found, pair, longest_s))
    heights *= _believed(found)
    tops = np.flatnonzero((heights >= np.roll(heights, 1)) & (heights > np.roll(heights, -1)))
    tops = tops[np.argsort(-heights[tops])][:MODES]
    depth = FAR_BELOW * (1 + max(heights.max(), 0.0) / MOST_CERTAIN)
    near = [angles[top] for top in tops if heights[top] >= heights.max() - depth]
    modes = [refined(found, baselines_s, angle, angles[1]) for angle in near]
    return sorted(modes, key=lambda mode: -mode.height)


def _steps(found: Common, longest_s: float) -> int:
    weight = found.weights.sum(axis=0)
    top_hz = float(found.frequencies_hz[np.searchsorted(np.cumsum(weight), 0.98 * weight.sum())])
    return min(MOST_STEPS, max(360, math.ceil(2 * np.pi * STEPS_A_WAVE * top_hz * longest_s)))


def _believed(found: Common) -> float:
    return 2 * EVIDENCE


def refined(found: Common, baselines_s: Figures, angle: float, step: float) -> Mode:
    """The maximum near an angle, by Newton's method on the sum over pairs and frequencies itself."""
    start = angle
    for _ in range(4):
        height, slope, bend = _shape(found, baselines_s, angle)
        if bend >= 0:
            break
        angle = min(max(angle - slope / bend, start - step), start + step)
    height, _, bend = _shape(found, baselines_s, angle)
    spread = min(1 / math.sqrt(-bend), np.pi) if bend < -1 / np.pi**2 else np.pi
    return Mode(float(angle), height, spread)


def _shape(found: Common, baselines_s: Figures, angle: float) -> tuple[float, float, float]:
    """Logarithm of the likelihood of an angle, and its first and second derivatives."""
    delays, turned = arrivals_s(baselines_s, angle), arrivals_s(baselines_s, angle + np.pi / 2)
    omega = 2 * np.pi * found.frequencies_hz
    steered = found.cross * np.exp(-1j * delays[:, None] * omega)
    first, second = steered.imag @ omega, -steered.real @ omega**2
    # derivatives of cos(phase - omega * delay); turning by a right angle is the derivative of the delay
    believed = _believed(found)
    slope = float(turned @ first)
    bend = float(turned**2 @ second - delays @ first)
    return believed * float(steered.real.sum()), believed * slope, believed * bend


def likely(modes: Sequence[Mode]) -> list[Mode]:
    """The modes that hold 90 % of the probability, likeliest first."""
    masses = _masses(modes)
    order = np.argsort(-masses)
    count = int(np.searchsorted(np.cumsum(masses[order]), SHARE)) + 1
    return [modes[k] for k in order[:count]]


def _masses(modes: Sequence[Mode]) -> Figures:
    top = modes[0].height
    trusted = MOST_CERTAIN / (MOST_CERTAIN + max(top, 0.0))
    masses = np.array([math.exp(trusted * (mode.height - top)) * mode.spread_rad for mode in modes])
    return np.asarray(masses / masses.sum())


def interval(found: Common, baselines_s: Figures, modes: Sequence[Mode], channels: int) -> tuple[float, float]:
    """The direction by least squares over pairs near the likeliest mode, and half the width of its interval, rad."""
    best = likely(modes)[0]
    angle, misfit = least_squares(found, baselines_s, best, channels)
    statistical = half_width(modes, angle)
    degrees_of_freedom = channels - 2
    unexplained = math.sqrt(max(0.0, misfit**2 - best.spread_rad**2)) if degrees_of_freedom else 0.0
    factor = STUDENT[min(degrees_of_freedom, len(STUDENT)) - 1]
    rounding = math.radians(LEAST_DEG)
    return angle, math.sqrt(statistical**2 + (factor * unexplained) ** 2 + rounding**2)


def half_width(modes: Sequence[Mode], angle: float) -> float:
    """How far on either side of an angle 90 % of the probability lies, rad; modes are normal distributions."""
    masses = _masses(modes)
    low, high = 0.0, np.pi
    for _ in range(40):
        middle = (low + high) / 2
        held = sum(mass * _within(mode, angle, middle) for mass, mode in zip(masses, modes))
        low, high = (middle, high) if held < SHARE else (low, middle)
    return high


def _within(mode: Mode, angle: float, width: float) -> float:
    if width >= np.pi - 1e-9:
        return 1.0
    away = (mode.angle_rad - angle + np.pi) % (2 * np.pi) - np.pi
    scale = math.sqrt(2) * mode.spread_rad
    return 0.5 * (math.erf((width - away) / scale) + math.erf((width + away) / scale))


def least_squares(found: Common, baselines_s: Figures, mode: Mode, channels: int) -> tuple[float, float]:
    """The angle that fits the delays of the pairs' own peaks near a mode, and its spread by what it leaves, rad.

    Pairs weigh as sharp as their peaks are (second derivative of the correlation); pairs further off than `OUTLIER`
    spreads count no more.
    """
    delays, weights = pair_peaks(found, baselines_s, mode.angle_rad)
    if np.count_nonzero(weights) < 2:
        return mode.angle_rad, 0.0
    angle, trusted = mode.angle_rad, weights
    for _ in range(6):
        left = delays - arrivals_s(baselines_s, angle)
        spread = 1.4826 * float(np.median(np.abs(left[weights > 0]))) + 1e-9
        trusted = weights * np.maximum(1 - (left / (2 * OUTLIER * spread)) ** 2, 0) ** 2
        turned = arrivals_s(baselines_s, angle + np.pi / 2)
        lever = float(trusted @ turned**2)
        if not lever:
            return mode.angle_rad, 0.0
        angle += float(trusted @ (turned * left)) / lever
    left = delays - arrivals_s(baselines_s, angle)
    misfit = math.sqrt(float(weights @ left**2) / (lever * max(channels - 2, 1)))
    return angle, misfit


def pair_peaks(found: Common, baselines_s: Figures, angle: float) -> tuple[Figures, Figures]:
    """Delay of each pair's own maximum next to that of a direction, s, and its weight; 0 where there is none."""
    expected = arrivals_s(baselines_s, angle)
    omega = 2 * np.pi * found.frequencies_hz
    near_s = MISFIT * float(np.linalg.norm(baselines_s, axis=1).max())
    delays = np.array([_highest(found, pair, expected[pair], near_s) for pair in range(len(expected))])
    for _ in range(4):
        steered = found.cross * np.exp(-1j * delays[:, None] * omega)
        slope, bend = steered.imag @ omega, steered.real @ omega**2
        step = np.where(bend > 0, slope / np.where(bend > 0, bend, 1), 0)
        delays = delays + np.clip(step, -0.1e-3, 0.1e-3)
    weights = np.where((bend > 0) & (steered.real.sum(axis=1) > 0), np.maximum(bend, 0), 0)
    return delays, np.where(np.abs(delays - expected) < 2 * near_s, weights, 0)


def _highest(found: Common, pair: int, delay_s: float, near_s: float) -> float:
    """Delay of the highest value of a pair's correlation near a delay."""
    delays_s, values = correlation(found, pair, abs(delay_s) + near_s)
    near = np.flatnonzero(np.abs(delays_s - delay_s) <= near_s)
    return float(delays_s[near[np.argmax(values[near])]]) if len(near) else delay_s


def second_sound(found: Common, baselines_s: Figures, angle: float) -> float | None:
    """Direction of another sound in the same event, rad; None where there is no clear one.

    What the first sound alone would give in every direction is taken off the pairs' correlations.
    """
    omega = 2 * np.pi * found.frequencies_hz
    phases = np.exp(1j * arrivals_s(baselines_s, angle)[:, None] * omega)
    share = np.clip((found.cross * phases.conj()).real.sum(axis=1) / found.weights.sum(axis=1), 0, 1)
    rest = Common(found.pairs, found.frequencies_hz, found.cross - share[:, None] * found.weights * phases,
                  found.weights, found.noise, found.size, found.rate_hz)  # fmt: skip
    others = directions(rest, baselines_s)
    first = _shape(found, baselines_s, angle)[0]
    if not others or first <= 0:
        return None
    best = others[0]
    away = abs((best.angle_rad - angle + np.pi) % (2 * np.pi) - np.pi)
    clear = best.height > max(SECOND_SHARE * first, 2 * FAR_BELOW) and away > math.radians(WIDEST_DEG / 2)
    return best.angle_rad if clear else None


def misplaced(found: Common, places_s: Figures, longest_s: float) -> tuple[list[tuple[int, int]], int | None] | None:
    """What is wrong with the order or the places of the hydrophones; None where nothing is, or nothing can be told.

    The delays of all pairs, each by itself, must be those of one wave (they add up round every triangle) and still
    fit no direction. Then two places are exchanged, or one channel is left out, to see what makes them fit.

    Parameters
    ----------
    found : what pairs have in common.
    places_s : the places in seconds of sound.
    longest_s : up to which delays are looked for.

    Returns
    -------
    swaps : pairs of channels that fit when exchanged.
    odd : the channel without which the rest fits; None where it is not clear.
    """
    channels = len(places_s)
    if channels < 3:
        return None
    arrivals = clear_arrivals(found, channels, longest_s)
    tolerance = max(MISFIT * spacing(places_s), 1.0 / found.rate_hz)
    if arrivals is None or wave_misfit(arrivals, places_s) <= tolerance:
        return None
    least = min(tolerance, wave_misfit(arrivals, places_s) / BETTER)
    swaps = [
        pair for pair in combinations(range(channels), 2) if wave_misfit(arrivals, exchanged(places_s, pair)) <= least
    ]
    if swaps:
        return swaps, None
    odd = [index for index in range(channels) if channels > 3 and not is_line(np.delete(places_s, index, 0))
           and wave_misfit(np.delete(arrivals, index), np.delete(places_s, index, 0)) <= least]  # fmt: skip
    return [], odd[0] if len(odd) == 1 else None


def exchanged(places: Figures, pair: tuple[int, int]) -> Figures:
    """Places with two of them exchanged."""
    order = list(range(len(places)))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return np.asarray(places[order])


def wave_misfit(arrivals_s: Figures, places_s: Figures) -> float:
    """By how much arrivals at least miss those of a plane wave from any horizontal direction, RMS, s."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    towards = np.stack([np.sin(angles), np.cos(angles)])
    left = arrivals_s[:, None] + places_s[:, :2] @ towards
    return float(np.sqrt(((left - left.mean(axis=0)) ** 2).mean(axis=0)).min())


def clear_arrivals(found: Common, channels: int, longest_s: float) -> Figures | None:
    """When each channel hears the sound, s, by every pair's highest peak; None where these are not clear or differ."""
    delays = np.zeros(len(found.pairs))
    for pair in range(len(found.pairs)):
        place = clear_peak(found, pair, longest_s)
        if place is None:
            return None
        delays[pair] = place
    matrix = np.zeros((len(found.pairs), channels))
    rows = np.arange(len(found.pairs))
    matrix[rows, found.pairs[:, 0]], matrix[rows, found.pairs[:, 1]] = -1, 1
    arrivals = np.linalg.lstsq(matrix, delays, rcond=None)[0]
    closed = np.abs(delays - matrix @ arrivals).max() <= 1.5 / found.rate_hz
    return np.asarray(arrivals) if closed else None


def clear_peak(found: Common, pair: int, longest_s: float) -> float | None:
    """Delay of a pair's highest peak, s; None where it hardly stands out of noise or of the next peak."""
    delays_s, values = correlation(found, pair, longest_s)
    top = int(np.argmax(values))
    if values[top] < CLEAR * math.sqrt(found.noise[pair]):
        return None
    maxima = np.flatnonzero((values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])) + 1
    others = values[maxima[maxima != top]]
    if len(others) and values[top] < SINGLE * others.max():
        return None
    return peak(delays_s, values, top)
