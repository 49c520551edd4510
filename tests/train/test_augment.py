"""Augmentation: each change keeps its stated law, comes again with the seed, and can be switched off."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.spectrogram import LogMel
from orcawatch.training import augment
from orcawatch.training.augment import NONE, Augmentation

FRONT_END = LogMel(normalise="band_floor", offset=0.001)
SIZE = augment.window_samples(FRONT_END)


def noise(seed: int, samples: int = 20000, level: float = 0.1) -> Any:
    """White noise."""
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def clip(waveform: Any) -> Any:
    """A clip of which only the audio counts here."""
    return SimpleNamespace(waveform=waveform)


def power(waveform: Any) -> float:
    """Mean square."""
    return float(np.mean(np.square(waveform, dtype=np.float64)))


@pytest.mark.parametrize("gain_db", [-12.0, 0.0, 6.0])
def test_level_changes_by_the_stated_gain(gain_db: float) -> None:
    changed = augment.change_level(noise(1), gain_db)
    assert 10 * np.log10(power(changed) / power(noise(1))) == pytest.approx(gain_db, abs=1e-4)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 15.0])
def test_mixed_noise_has_the_stated_ratio(snr_db: float) -> None:
    call, other = noise(1), noise(2, level=3.0)
    added = augment.mix(call, other, snr_db).astype(np.float64) - call
    assert 10 * np.log10(power(call) / power(added)) == pytest.approx(snr_db, abs=1e-3)
    assert np.corrcoef(added, other)[0, 1] > 0.999


def test_silence_is_mixed_with_nothing() -> None:
    silence = np.zeros(100, np.float32)
    assert not augment.mix(silence, noise(1, 100), 0.0).any()
    assert np.array_equal(augment.mix(noise(1, 100), silence, 0.0), noise(1, 100))


def test_rotation_keeps_every_sample_and_stays_within_the_shift() -> None:
    ramp, seen = np.arange(1000, dtype=np.float32), set()
    for seed in range(60):
        turned = augment.rotate(ramp, 1000, 0.01, np.random.default_rng(seed))
        assert np.array_equal(np.sort(turned), ramp)
        seen.add(int(np.argmin(turned)))
    assert seen <= {*range(11), *range(990, 1000)}
    assert len(seen) > 10


def test_cut_takes_a_stretch_and_repeats_what_is_too_short() -> None:
    ramp = np.arange(100, dtype=np.float32)
    starts = {int(augment.cut(ramp, 10, np.random.default_rng(seed))[0]) for seed in range(200)}
    assert {0, 90} & starts and max(starts) <= 90 and len(starts) > 50
    assert np.array_equal(np.diff(augment.cut(ramp, 10, np.random.default_rng(1))), np.ones(9))
    assert np.array_equal(augment.cut(ramp[:4], 10, np.random.default_rng(1)), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize(("axis", "size"), [(1, 96), (2, 64)])
def test_masks_replace_a_stretch_of_bounded_width_by_the_mean(axis: int, size: int) -> None:
    windows = np.random.default_rng(3).random((40, 96, 64)).astype(np.float32)
    masked = augment.mask_stretches(windows, axis, 1, 9, np.random.default_rng(4))
    widths = set()
    for before, after in zip(np.moveaxis(windows, axis, 1), np.moveaxis(masked, axis, 1)):
        lines = np.flatnonzero((before != after).any(axis=1))
        widths.add(len(lines))
        assert len(lines) == 0 or np.ptp(lines) == len(lines) - 1 < size
        assert np.allclose(after[lines], before.mean())
    assert max(widths) <= 9 and len(widths) > 4


def test_a_mask_wider_than_the_window_is_refused() -> None:
    with pytest.raises(TrainingError, match="at most 64 wide"):
        augment.mask(
            np.zeros((1, 96, 64), np.float32), Augmentation(band_masks=1, band_mask_bands=65), np.random.default_rng(0)
        )


def test_no_augmentation_changes_nothing() -> None:
    waveform, windows = noise(1, SIZE), np.random.default_rng(1).random((2, 96, 64)).astype(np.float32)
    generator = np.random.default_rng(0)
    assert np.array_equal(augment.augment_clip(clip(waveform), [clip(noise(2))], None, generator), waveform)
    assert np.array_equal(augment.mask(windows, NONE, generator), windows)
    plain = augment.training_batch([clip(waveform)], [clip(noise(2))], NONE, FRONT_END, generator)
    assert np.allclose(plain[0], FRONT_END.finish(FRONT_END.rows(waveform[:, None])[:, 0]), atol=1e-6)


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_equal_seeds_give_equal_batches_and_others_do_not(seconds: float) -> None:
    clips = [clip(noise(k, int(16000 * seconds))) for k in range(3)]

    def batch(seed: int) -> Any:
        generator = np.random.default_rng(seed)
        windows = augment.training_batch(clips, clips, Augmentation(noise_share=1.0), FRONT_END, generator)
        return augment.mask(windows, Augmentation(time_masks=1, band_masks=1), generator)

    assert batch(1).shape == (3, *FRONT_END.shape[:2])
    assert np.array_equal(batch(1), batch(1))
    assert not np.allclose(batch(1), batch(2))


def test_the_share_of_mixed_windows_is_as_stated() -> None:
    settings = replace(NONE, noise_share=0.3)
    generator, waveform, other = np.random.default_rng(0), noise(1, 200), [clip(noise(2, 300))]
    mixed = [not np.array_equal(augment.vary(waveform, other, settings, generator), waveform) for _ in range(1000)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.05)


def test_arguments_stay_as_they_are() -> None:
    waveform = noise(1)
    before = waveform.copy()
    augment.augment_clip(clip(waveform), [clip(waveform)], Augmentation(noise_share=1.0), np.random.default_rng(0))
    assert np.array_equal(waveform, before)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"noise_share": 1.5}, "noise_share must be 0 to 1"),
        ({"noise_snr_db": (10.0, 0.0)}, "lowest, highest"),
        ({"gain_db": -1.0}, "gain_db must be 0"),
        ({"time_masks": -1}, "time_masks must be 0"),
    ],
)
def test_strengths_that_mean_nothing_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        Augmentation(**wrong)
