"""Calls again, fainter: what a cascade must not lose, and clips as recorded hold little of.

Clips are cut where a call can be heard well. At sea most calls are far away, and a gate that was chosen on the clips
alone may stop a faint one that the full vote finds. So every orca clip is mixed into noise of another recording at each
of `SNRS_DB`, and the cascade's bound is to hold on the windows of these that the full vote still calls, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..metrics import recording_folds
from ..simulate import band_level_db

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]
SNRS_DB = (-6.0, -3.0, 0.0, 3.0, 6.0)  # 0.5 to 10 kHz, the clip's mean level over the noise's
NOISES = 2  # for each call at each of them


@dataclass(frozen=True)
class Mixture:
    """A call in other noise.

    Attributes
    ----------
    call, noise : indices of the two clips.
    call_from, noise_from : where the stretch that is taken begins, as a share of what can be left out before it.
    snr_db : level of the call's clip over the noise's.
    """

    call: int
    noise: int
    call_from: float
    noise_from: float
    snr_db: float


def draw(orca: Flags, called: Flags, recordings: Sequence[str], seed: int) -> list[Mixture]:
    """Every orca clip at each of `SNRS_DB`, each time in `NOISES` other noise clips; equal arguments give equal ones.

    Noise is drawn from other recordings of the call's own fold (`metrics.recording_folds`), so that cascades chosen
    without a fold have heard nothing of what they are judged on; and from clips that the full vote does not call, so
    that what it calls in a mixture is the call.

    Parameters
    ----------
    orca : True for orca clips, shape (clips,).
    called : True for clips with a window that the full vote calls, shape (clips,).
    recordings : of each clip.
    """
    names, fold, generator = np.asarray(recordings), folds(orca, recordings), np.random.default_rng(seed)
    drawn = []
    for call in np.flatnonzero(orca).tolist():
        able = np.flatnonzero(~orca & ~called & (fold == fold[call]) & (names != names[call]))
        for snr_db in SNRS_DB if len(able) else ():
            for noise in generator.choice(able, min(NOISES, len(able)), replace=False).tolist():
                drawn.append(Mixture(call, noise, generator.random(), generator.random(), snr_db))
    return drawn


def folds(orca: Flags, recordings: Sequence[str]) -> NDArray[np.int64]:
    """Fold of each clip, whole recordings together; all in one where there are too few recordings."""
    try:
        return recording_folds(orca, recordings)
    except TrainingError:
        return np.zeros(len(orca), np.int64)


def stretches(call: int, noise: int, mixture: Mixture) -> tuple[slice, slice]:
    """Which samples of clips of these lengths are mixed: as many as the shorter one has."""
    length = min(call, noise)
    starts = [
        round((whole - length) * part) for whole, part in ((call, mixture.call_from), (noise, mixture.noise_from))
    ]
    return slice(starts[0], starts[0] + length), slice(starts[1], starts[1] + length)


def gain(call: Array, noise: Array, rate_hz: int, mixture: Mixture) -> float:
    """What the call is to be multiplied by; the noise stays as it was recorded.

    Parameters
    ----------
    call, noise : the two clips, shape (samples,), at `rate_hz`.
    """
    heard, under = stretches(len(call), len(noise), mixture)
    lift_db = band_level_db(noise[under], rate_hz) + mixture.snr_db - band_level_db(call[heard], rate_hz)
    return float(10 ** (lift_db / 20))


def mix(call: Array, noise: Array, mixture: Mixture, gain: float) -> Array:
    """The call in the noise: float32, shape (samples of the shorter one,)."""
    heard, under = stretches(len(call), len(noise), mixture)
    return np.asarray(call[heard] * np.float32(gain) + noise[under], np.float32)
