"""ROC AUC against a plain loop, intervals by recording, thresholds of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcawatch import metrics
from orcawatch.errors import TrainingError

LABELS = np.array([True, True, False, False, False])


def loop_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Pairs won, one by one."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels] for b in scores[~labels]]
    return sum(won) / len(won)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_the_loop_over_pairs_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([p[0] / 6 for p in pairs]), np.array([p[1] for p in pairs])
    if labels.all() or not labels.any():
        with pytest.raises(TrainingError, match="needs orca and noise"):
            metrics.roc_auc(scores, labels)
        return
    assert metrics.roc_auc(scores, labels) == pytest.approx(loop_auc(scores, labels), abs=1e-12)
    assert metrics.roc_auc(-scores, labels) == pytest.approx(1 - loop_auc(scores, labels), abs=1e-12)


def test_resampled_auc_equals_the_auc_of_the_resampled_clips() -> None:
    generator = np.random.default_rng(5)
    scores, groups = generator.random(30).round(1), np.array([f"g{k % 6}" for k in range(30)])
    labels = np.arange(30) % 5 == 0
    pairs = metrics.grouped_wins(scores, labels, groups.tolist())
    names = np.unique(groups)
    for times in metrics.resamples(6, 10, 1):
        chosen = np.concatenate([np.repeat(np.flatnonzero(groups == g), int(n)) for g, n in zip(names, times)])
        value = pairs.auc(times[None])[0]
        assert value == pytest.approx(metrics.roc_auc(scores[chosen], labels[chosen]), abs=1e-12)


def test_interval_holds_the_value_and_depends_on_the_seed_alone() -> None:
    generator = np.random.default_rng(8)
    labels = np.arange(60) % 3 == 0
    scores, groups = generator.random(60) + 0.5 * labels, [f"g{k // 4}" for k in range(60)]
    first = metrics.auc_interval(scores, labels, groups, draws=300, seed=4)
    assert first.low < first.value < first.high
    assert first == metrics.auc_interval(scores, labels, groups, draws=300, seed=4)
    assert first != metrics.auc_interval(scores, labels, groups, draws=300, seed=5)


def test_one_recording_a_clip_is_narrower_than_few_recordings() -> None:
    generator = np.random.default_rng(2)
    level = np.repeat(generator.standard_normal(10), 12)
    labels = np.repeat(np.arange(10) % 2 == 0, 12)
    scores = level + labels
    few = metrics.auc_interval(scores, labels, [f"g{k // 12}" for k in range(120)], draws=400)
    many = metrics.auc_interval(scores, labels, [f"c{k}" for k in range(120)], draws=400)
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_curves_end_where_everything_is_called() -> None:
    points = metrics.curves(np.array([0.9, 0.4, 0.5, 0.1, 0.1]), LABELS)
    np.testing.assert_allclose(points["threshold"], [0.9, 0.5, 0.4, 0.1])
    np.testing.assert_allclose(points["recall"], [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(points["false_positive_rate"], [0, 1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(points["precision"], [1, 0.5, 2 / 3, 0.4])


def test_thresholds_call_by_the_highest_window() -> None:
    windows = np.array([0.1, 0.9, 0.8, 0.2, 0.2, 0.3, 0.05])
    clip = np.array([0, 0, 1, 2, 3, 4, 4])
    found = metrics.event_thresholds(windows, clip, LABELS, np.full(5, 720.0))
    assert found.start == pytest.approx((0.8 + 0.3) / 2)
    assert found.stop == pytest.approx((found.start + 0.2) / 2)
    assert (found.recall, found.precision, found.false_alarms, found.false_alarms_per_hour) == (1, 1, 0, 0)


def test_start_is_the_highest_threshold_that_finds_nine_in_ten() -> None:
    scores = np.arange(20, 0, -1) / 20  # ten orcas among the upper eleven, then noise
    labels = np.array([True] * 8 + [False, True, True] + [False] * 9)
    found = metrics.event_thresholds(scores, np.arange(20), labels, np.full(20, 360.0))
    ninth, next_lower = scores[9], scores[10]
    assert found.start == pytest.approx((ninth + next_lower) / 2)
    assert (found.recall, found.precision, found.false_alarms) == (0.9, 0.9, 1)


def test_thresholds_count_false_alarms_per_hour_of_noise() -> None:
    windows = np.array([0.9, 0.5, 0.7, 0.2, 0.1])
    found = metrics.event_thresholds(windows, np.arange(5), LABELS, np.full(5, 1200.0))
    assert found.start == pytest.approx(0.35)
    assert (found.recall, found.false_alarms, found.false_alarms_per_hour) == (1, 1, 1)
    assert 0 <= found.stop <= found.start


def test_clip_means_equal_the_loop() -> None:
    windows, clip = np.arange(12.0).reshape(6, 2), np.array([0, 0, 1, 2, 2, 2])
    expected = [windows[clip == k].mean(axis=0) for k in range(3)]
    np.testing.assert_allclose(metrics.clip_means(windows, clip, 3), expected)
