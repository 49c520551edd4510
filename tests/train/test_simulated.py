from __future__ import annotations

import numpy as np

from orcawatch.simulate import band_level_db
from orcawatch.training.simulated import MARGIN_S, SNR_DB, simulated_clips

RATE_HZ = 16000


def test_as_many_calls_as_stretches_of_sea_each_a_recording_of_its_own() -> None:
    clips = [clip for clip, _ in simulated_clips(3, 1, RATE_HZ)]
    assert [clip.label for clip in clips] == ["orca", "noise"] * 3
    assert len({clip.group for clip in clips}) == 6
    assert {clip.split for clip in clips} == {"train"}


def test_equal_seeds_give_equal_clips() -> None:
    first, again, other = ([w for _, w in simulated_clips(2, seed, RATE_HZ)] for seed in (1, 1, 2))
    for one, same in zip(first, again):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[1], other[1])


def test_calls_stand_out_of_the_sea_around_them() -> None:
    margin = round(MARGIN_S * RATE_HZ)
    for clip, waveform in simulated_clips(6, 3, RATE_HZ):
        assert waveform.dtype == np.float32 and np.isfinite(waveform).all()
        assert clip.seconds == len(waveform) / RATE_HZ
        if clip.label == "orca":
            rise_db = band_level_db(waveform[margin:-margin], RATE_HZ) - band_level_db(waveform[:margin], RATE_HZ)
            assert SNR_DB[0] - 2 < rise_db < SNR_DB[1] + 3
