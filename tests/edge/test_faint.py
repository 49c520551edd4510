"""Calls mixed into other noise, on which a cascade is chosen, too."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from orcawatch.deploy.faint import NOISES, SNRS_DB, Mixture, draw, folds, gain, mix
from orcawatch.simulate import band_level_db

RATE_HZ = 24000
ORCA = np.arange(40) % 4 == 0
RECORDINGS = [f"orca {k // 8}" if is_orca else f"noise {k // 2}" for k, is_orca in enumerate(ORCA)]


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.float32(level) * np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)).astype(np.float32)


def test_every_call_is_drawn_at_every_level_in_noise_that_is_not_called() -> None:
    called = np.arange(40) % 8 == 1
    drawn = draw(ORCA, called, RECORDINGS, 3)
    assert drawn == draw(ORCA, called, RECORDINGS, 3) != draw(ORCA, called, RECORDINGS, 4)
    assert set(Counter((one.call, one.snr_db) for one in drawn).values()) == {NOISES}
    assert {(one.call, one.snr_db) for one in drawn} == {(k, snr) for k in np.flatnonzero(ORCA) for snr in SNRS_DB}
    assert not any(ORCA[one.noise] or called[one.noise] for one in drawn)


def test_a_mixture_stays_in_one_fold() -> None:
    """So that what is judged without a fold has heard neither its calls nor its noise."""
    fold = folds(ORCA, RECORDINGS)
    assert len(set(fold.tolist())) > 1
    assert all(fold[one.call] == fold[one.noise] for one in draw(ORCA, np.zeros(40, bool), RECORDINGS, 0))


def test_noise_of_the_calls_own_recording_is_not_taken() -> None:
    assert {RECORDINGS[one.noise] for one in draw(ORCA, np.zeros(40, bool), RECORDINGS, 0)} <= set(RECORDINGS)
    assert draw(ORCA, np.zeros(40, bool), ["one"] * 40, 0) == []
    assert draw(ORCA, ~ORCA, RECORDINGS, 0) == []  # all noise is called
    orca, two = np.array([True, False, False]), ["a", "a", "b"]
    assert {one.noise for one in draw(orca, ~np.ones(3, bool), two, 0)} == {2}


@pytest.mark.parametrize("snr_db", [-6.0, 3.0])
@pytest.mark.parametrize(("call_s", "noise_s"), [(1.0, 3.0), (3.0, 1.0), (2.0, 2.0)])
def test_the_call_has_the_level_over_the_noise_which_stays_as_it_was(
    snr_db: float, call_s: float, noise_s: float
) -> None:
    time_s = np.arange(round(call_s * RATE_HZ)) / RATE_HZ
    call, under = (0.3 * np.sin(2 * np.pi * 3000 * time_s)).astype(np.float32), noise(noise_s)
    one = Mixture(0, 1, 0.4, 0.7, snr_db)
    mixed = mix(call, under, one, gain(call, under, RATE_HZ, one))
    length = min(len(call), len(under))
    begin = round((len(under) - length) * 0.7)
    quiet = under[begin : begin + length]
    assert (mixed.dtype, len(mixed)) == (np.float32, length)
    found = band_level_db(mixed - quiet, RATE_HZ) - band_level_db(quiet, RATE_HZ)
    assert found == pytest.approx(snr_db, abs=0.05)
