"""Simulated training clips: synthetic calls in synthetic sea, and the sea without them.

Few recordings teach a network few kinds of call. Simulated ones are no substitute (`docs/training.md` says what they
gave), but the published range of calls is wider than a small data set's, and a demonstration without recordings must
be heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..calls import pulsed_call, whistle
from ..noise import rain_noise, sea_noise, ship_noise
from ..simulate import band_level_db
from .dataset import Clip

Array = NDArray[np.float32]

MARGIN_S = 0.25  # of sea before and after a call
NOISE_S = 3.0
SNR_DB = (0.0, 20.0)  # in the calls' band, 0.5 kHz to the top
WIND_M_S = (2.0, 14.0)
WHISTLES = 0.2  # share of the calls
WEATHER = 0.25  # share of the clips with rain, and with a ship


def simulated_clips(number: int, seed: int, rate_hz: int) -> Iterator[tuple[Clip, Array]]:
    """Yield `number` clips of calls and as many of sea alone, each a recording of its own, with their waveforms.

    Waveforms are float32, shape (samples,), at `rate_hz`. Equal seeds and rates give equal clips.
    """
    for k in range(number):
        for label in ("orca", "noise"):
            rng = np.random.default_rng([seed, k, label == "orca"])
            waveform = _call_at_sea(rng, rate_hz) if label == "orca" else _sea(rng, round(NOISE_S * rate_hz), rate_hz)
            yield _clip(f"simulated_{label}_{k:04}", label, len(waveform) / rate_hz), waveform


def _call_at_sea(rng: np.random.Generator, rate_hz: int) -> Array:
    call = (whistle if rng.random() < WHISTLES else pulsed_call)(rng, rate_hz)
    margin = round(MARGIN_S * rate_hz)
    heard = _sea(rng, len(call) + 2 * margin, rate_hz)
    under = heard[margin : margin + len(call)]
    lift_db = band_level_db(under, rate_hz) + rng.uniform(*SNR_DB) - band_level_db(call, rate_hz)
    under += call * np.float32(10 ** (lift_db / 20))
    return heard


def _sea(rng: np.random.Generator, samples: int, rate_hz: int) -> Array:
    sound = sea_noise(rng, samples, rate_hz, rng.uniform(*WIND_M_S))
    if rng.random() < WEATHER:
        sound = sound + rain_noise(rng, samples, rate_hz, str(rng.choice(["drizzle", "heavy"])))
    if rng.random() < WEATHER:
        sound = sound + ship_noise(rng, samples, rate_hz)
    return np.asarray(sound, np.float32)


def _clip(name: str, label: str, seconds: float) -> Clip:
    kind = "orca" if label == "orca" else "ambient"
    return Clip(
        file_name=name,
        path=Path(name),
        channel=0,
        label=label,
        split="train",
        group=name,
        kind=kind,
        source=f"simulated {kind}",
        repository="this project",
        licence="Apache-2.0",
        seconds=seconds,
    )
