from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.detector import Detector, score_silence
from orcawatch.errors import AudioError, BundleError, InputError
from orcawatch.records import AudioBlock, WindowScore
from orcawatch.spectrogram import LogMel, rows_of
from orcawatch.windows import windows_of

RATE_HZ = 22050


def detected(detector: Detector, samples: Any, borders: Any, offset: int = 0) -> list[WindowScore]:
    scores = []
    first = 0
    for part in np.split(samples, sorted(border for border in borders if border < len(samples))):
        scores += detector.push(AudioBlock(part, offset + first))
        first += len(part)
    return scores


def table(scores: list[WindowScore]) -> list[Any]:
    return [(s.start_sample, s.end_sample, s.score, s.member_scores.tolist()) for s in scores]


SAMPLES = np.random.default_rng(1).normal(0, 0.1, (70000, 2)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 70000), borders=st.lists(st.integers(0, 70000), max_size=12))
def test_scores_are_the_same_wherever_blocks_end(make_ensemble: Any, length: int, borders: list[int]) -> None:
    samples = SAMPLES[:length]
    whole, cut = (Detector(make_ensemble(), RATE_HZ, 2, 0.48) for _ in range(2))
    expected = table(detected(whole, samples, []) + whole.finish())
    assert expected == table(detected(cut, samples, borders) + cut.finish())


def test_windows_equal_a_plain_loop_over_the_whole_recording(ensemble: Any) -> None:
    detector = Detector(ensemble, RATE_HZ, 2, 0.3)
    scores = detected(detector, SAMPLES, [10000]) + detector.finish()
    rows = rows_of(LogMel(), SAMPLES, RATE_HZ)
    starts, windows = windows_of(rows, 96, 30)
    assert [score.start_sample for score in scores] == [round(start * 0.01 * RATE_HZ) for start in starts]
    assert [score.end_sample for score in scores] == [round((start + 96) * 0.01 * RATE_HZ) for start in starts]
    for score, window in zip(scores, windows):
        level = (window.transpose(1, 0, 2) * ensemble._band("fake0")).mean(axis=(1, 2))
        np.testing.assert_allclose(score.channel_scores, level / (level + 0.5), rtol=1e-5)


@pytest.mark.parametrize("jump", [1, 5000, -300])
def test_windows_never_span_a_gap_or_an_overlap(ensemble: Any, jump: int) -> None:
    """Across a jump, the scores are those of two separate recordings."""
    detector = Detector(ensemble, RATE_HZ, 2, 0.48)
    scores = detected(detector, SAMPLES[:40000], [15000])
    scores += detected(detector, SAMPLES[40000:], [7], offset=40000 + jump) + detector.finish()
    one, two = (Detector(ensemble, RATE_HZ, 2, 0.48) for _ in range(2))
    expected = detected(one, SAMPLES[:40000], []) + one.finish()
    assert expected[-1].end_sample <= 40000
    expected += detected(two, SAMPLES[40000:], [], offset=40000 + jump) + two.finish()
    assert table(scores) == table(expected)


def test_stretch_shorter_than_a_window_has_one_and_one_shorter_than_a_frame_is_counted(ensemble: Any) -> None:
    detector = Detector(ensemble, RATE_HZ, 2, 0.48)
    assert detector.push(AudioBlock(SAMPLES[:9000], 0)) == []
    (score,) = detector.push(AudioBlock(SAMPLES[:200], 20000))
    assert (score.start_sample, score.end_sample) == (0, 9000)
    assert detector.finish() == [] and detector.unscored == 200


def test_equal_front_ends_share_rows_and_different_ones_are_aligned(make_ensemble: Any) -> None:
    ends = [LogMel(), LogMel(), LogMel(frame_s=0.05, fft_size=1024, bands=32)]
    detector = Detector(make_ensemble(ends), RATE_HZ, 2, 0.48)
    assert len(detector._stretch._streams) == 2
    scores = detected(detector, SAMPLES, [3000, 30000]) + detector.finish()
    for index, end in enumerate(ends):
        alone = Detector(make_ensemble([end]), RATE_HZ, 2, 0.48)
        expected = detected(alone, SAMPLES, []) + alone.finish()
        # The longer frame has fewer rows, so the last window, moved back to the end, may lie elsewhere.
        for score, single in zip(scores[:-1], expected):
            assert (score.start_sample, score.end_sample) == (single.start_sample, single.end_sample)
            np.testing.assert_allclose(score.member_scores[:, index], single.channel_scores, rtol=1e-6)


def test_front_ends_on_different_grids_are_refused(make_ensemble: Any) -> None:
    with pytest.raises(BundleError, match="share one"):
        Detector(make_ensemble([LogMel(), replace(LogMel(), hop_s=0.02)]), RATE_HZ, 1, 0.48)


@pytest.mark.parametrize("hop_s", [0.0, 0.97, 0.485])
def test_hop_off_the_grid_is_refused(ensemble: Any, hop_s: float) -> None:
    with pytest.raises(InputError, match=r"hop_s must be 0.01 to 0.96 s .* in steps of 0.01 s"):
        Detector(ensemble, RATE_HZ, 1, hop_s)


def test_slow_audio_is_refused(ensemble: Any) -> None:
    with pytest.raises(AudioError, match="at least 8000 Hz, not 1000 Hz"):
        Detector(ensemble, 1000, 1, 0.48)


def test_silence_scores_nothing(ensemble: Any) -> None:
    assert score_silence(ensemble) == 0


def test_calls_score_high_and_noise_low(ensemble: Any, make_audio: Callable[..., Any]) -> None:
    samples = make_audio(RATE_HZ, 8.0, 3, [(3.0, 5.0)])
    detector = Detector(ensemble, RATE_HZ, 3, 0.48)
    for score in detected(detector, samples, []) + detector.finish():
        start_s, end_s = score.start_sample / RATE_HZ, score.end_sample / RATE_HZ
        inside = start_s >= 3.0 and end_s <= 5.0
        outside = end_s < 3.0 or start_s > 5.0
        assert (not inside or score.score > 0.6) and (not outside or score.score < 0.1)
