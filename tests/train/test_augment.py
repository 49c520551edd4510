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
    stretches = augment.draw_stretches(40, size, 1, 9, np.random.default_rng(4))
    masked = augment.hide(windows, axis, stretches)
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


def planned(clips: Any, settings: Augmentation, seed: int, windows: int = 6) -> augment.Plan:
    """A plan that draws the clips in turn."""
    drawn, lengths = np.arange(windows) % len(clips), np.array([len(c.waveform) for c in clips])
    generator = np.random.default_rng(seed)
    return augment.draw_plan(drawn, lengths, np.arange(len(clips)), settings, FRONT_END, generator)


def test_no_augmentation_changes_nothing() -> None:
    waveform, windows = noise(1, SIZE), np.random.default_rng(1).random((2, 96, 64)).astype(np.float32)
    generator = np.random.default_rng(0)
    unchanged = augment.augment_clip(clip(waveform), [clip(noise(2))], None, generator, 16000)
    assert np.array_equal(unchanged, waveform)
    assert np.array_equal(augment.mask(windows, NONE, generator), windows)
    clips = [clip(waveform)]
    assert np.array_equal(augment.waveforms(planned(clips, NONE, 0, 2), clips, SIZE), [waveform, waveform])


def test_a_plan_carried_out_equals_a_plain_loop() -> None:
    clips = [clip(noise(1, 5000)), clip(noise(2, 40000)), clip(np.zeros(20000, np.float32)), clip(noise(3, SIZE))]
    plan = planned(clips, Augmentation(noise_share=0.7), 5, windows=12)
    assert {-1} < set(plan.noise.tolist())
    found = augment.waveforms(plan, clips, SIZE)
    for k, window in enumerate(found):
        audio = [
            clips[plan.clip[k]].waveform[(plan.start[k] + i) % len(clips[plan.clip[k]].waveform)] for i in range(SIZE)
        ]
        expected = np.array(audio)
        if plan.noise[k] >= 0:
            other = clips[plan.noise[k]].waveform
            added = np.array([other[(plan.noise_start[k] + i) % len(other)] for i in range(SIZE)])
            expected = augment.mix(expected, added, float(plan.snr_db[k]))
        assert np.allclose(window, augment.change_level(expected, float(plan.gain_db[k])), atol=1e-6)


def test_a_part_of_a_plan_gives_the_same_windows() -> None:
    clips = [clip(noise(k, 30000)) for k in range(3)]
    plan = planned(clips, Augmentation(), 1)
    whole, part = augment.waveforms(plan, clips, SIZE), augment.waveforms(plan.part(slice(2, 4)), clips, SIZE)
    assert np.array_equal(whole[2:4], part)


def test_windows_come_from_anywhere_in_long_clips_and_rotate_short_ones() -> None:
    clips = [clip(noise(0, 8000)), clip(noise(1, SIZE + 100))]
    starts = np.concatenate([planned(clips, Augmentation(shift_s=0.1), k, 40).start.reshape(-1, 2) for k in range(20)])
    short, long = starts.T
    assert set(short.tolist()) <= {*range(1601), *range(6400, 8000)} and len(set(short.tolist())) > 300
    assert long.min() >= 0 and long.max() <= 100 and len(set(long.tolist())) > 90


def test_spectrograms_of_many_windows_equal_one_by_one() -> None:
    windows = np.stack([noise(k, SIZE) for k in range(augment.TOGETHER + 3)])
    found = augment.spectrograms(windows, FRONT_END)
    assert found.shape == (len(windows), *FRONT_END.shape[:2]) and found.dtype == np.float32
    for window, spectrogram in zip(windows, found):
        assert np.allclose(spectrogram, FRONT_END.finish(FRONT_END.rows(window[:, None])[:, 0]), atol=1e-6)


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_equal_seeds_give_equal_batches_and_others_do_not(seconds: float) -> None:
    clips = [clip(noise(k, int(16000 * seconds))) for k in range(3)]

    def batch(seed: int) -> Any:
        return augment.waveforms(planned(clips, Augmentation(noise_share=1.0), seed), clips, SIZE)

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
    settings = Augmentation(noise_share=1.0)
    augment.augment_clip(clip(waveform), [clip(waveform)], settings, np.random.default_rng(0), 16000)
    clips = [clip(waveform)]
    augment.waveforms(planned(clips, settings, 0), clips, SIZE)
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


def test_a_clip_is_shifted_by_seconds_of_its_own_rate() -> None:
    ramp, settings = np.arange(4000, dtype=np.float32), replace(NONE, shift_s=0.01)
    turned = [augment.augment_clip(clip(ramp), [], settings, np.random.default_rng(k), 24000) for k in range(80)]
    shifts = {int(np.argmin(one)) for one in turned}
    assert shifts <= {*range(241), *range(3760, 4000)} and max(min(s, 4000 - s) for s in shifts) > 160
