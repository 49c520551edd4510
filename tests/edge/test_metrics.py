"""ROC AUC against a plain loop, intervals by recording, calibration, false alarms, thresholds of events."""

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


def test_resampled_aucs_equal_the_auc_of_the_resampled_clips() -> None:
    generator = np.random.default_rng(5)
    scores, groups = generator.random((3, 30)).round(1), np.array([f"g{k % 6}" for k in range(30)])
    labels = np.arange(30) % 5 == 0
    drawn = metrics.resample(groups.tolist(), 100, 1)
    found = metrics.resampled_aucs(scores, labels, drawn)
    names = np.unique(groups)
    for k, times in enumerate(drawn.times):
        chosen = np.concatenate([np.repeat(np.flatnonzero(groups == g), int(n)) for g, n in zip(names, times)])
        expected = [loop_auc(row[chosen], labels[chosen]) for row in scores]
        np.testing.assert_allclose(found[:, k], expected, atol=1e-12)


def test_a_resample_without_a_class_gives_no_figure() -> None:
    drawn = metrics.Resamples(np.array([[2, 0], [1, 1]], np.int32), np.array([0, 0, 1, 1, 1]))
    found = metrics.resampled_aucs(np.array([[0.9, 0.2, 0.3, 0.1, 0.1]]), LABELS, drawn)
    assert np.isnan(found[0, 0])
    assert found[0, 1] == pytest.approx(5 / 6)
    left_out = metrics.resampled_aucs(np.array([[0.9, 0.2, 0.3, 0.1, 0.1]]), LABELS, drawn.left_out())
    assert np.isnan(left_out).all()


def test_a_difference_is_paired() -> None:
    generator = np.random.default_rng(3)
    labels, groups = np.arange(90) % 3 == 0, [f"g{k // 6}" for k in range(90)]
    level = np.repeat(generator.standard_normal(15), 6)
    one = level + labels + 0.1 * generator.standard_normal(90)
    same, other = metrics.paired_differences(one, np.stack([one * 2 + 1, one - 0.5 * labels]), labels, groups, 300, 2)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert other.value == pytest.approx(metrics.roc_auc(one, labels) - metrics.roc_auc(one - 0.5 * labels, labels))
    alone = metrics.auc_interval(one, labels, groups, 300, 2)
    assert other.low > 0
    assert other.high - other.low < alone.high - alone.low


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


def test_curves_equal_the_loop_over_thresholds() -> None:
    generator = np.random.default_rng(4)
    scores, labels = generator.integers(0, 12, 60) / 12, generator.random(60) < 0.3
    points = metrics.curves(scores, labels)
    assert points["threshold"].tolist() == sorted(set(scores.tolist()), reverse=True)
    for k, threshold in enumerate(points["threshold"]):
        called = scores >= threshold
        assert points["recall"][k] == pytest.approx((called & labels).sum() / labels.sum())
        assert points["false_positive_rate"][k] == pytest.approx((called & ~labels).sum() / (~labels).sum())
        assert points["precision"][k] == pytest.approx((called & labels).sum() / called.sum())


def test_average_precision_is_the_mean_precision_at_each_orca() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, False, True])
    assert metrics.average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert metrics.average_precision(np.ones(5), labels) == pytest.approx(3 / 5)


def test_average_precision_interval_equals_the_loop_over_draws() -> None:
    generator = np.random.default_rng(7)
    labels, groups = np.arange(40) % 4 == 0, np.array([f"g{k // 4}" for k in range(40)])
    scores = (generator.random(40) + 0.4 * labels).round(1)
    found = metrics.average_precision_interval(scores, labels, groups.tolist(), draws=80, seed=6)
    values = []
    for times in metrics.resamples(10, 80, 6):
        chosen = np.repeat(np.arange(40), times[np.unique(groups, return_inverse=True)[1]])
        values.append(metrics.average_precision(scores[chosen], labels[chosen]))
    assert found.value == metrics.average_precision(scores, labels)
    assert [found.low, found.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-12)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Window scores, their clips, labels, recordings and seconds of 48 clips of 12 recordings."""
    generator = np.random.default_rng(seed)
    labels = np.arange(48) % 3 == 0
    clip = np.repeat(np.arange(48), 3)
    windows = (generator.random(144) + 0.3 * labels[clip]).round(2)
    return windows, clip, labels, [f"g{k // 4:02d}" for k in range(48)], generator.uniform(1, 5, 48)


def test_false_alarms_at_recall_equal_the_loop_over_draws() -> None:
    windows, clip, labels, groups, seconds = scene(1)
    highest = np.array([windows[clip == k].max() for k in range(48)])

    def plain(chosen: np.ndarray, recall: float) -> tuple[float, float]:
        """Precision and false alarms per hour at the highest threshold that finds the recall."""
        for threshold in sorted(set(highest[chosen].tolist()), reverse=True):
            called = highest[chosen] >= threshold
            hits, false = (called & labels[chosen]).sum(), (called & ~labels[chosen]).sum()
            if hits >= recall * labels[chosen].sum() - 1e-9:
                break
        return hits / (hits + false), false / seconds[chosen][~labels[chosen]].sum() * 3600

    found = metrics.false_alarms_at_recall(windows, clip, labels, groups, seconds, (0.5, 0.9, 1), draws=70, seed=9)
    for point, recall in zip(found, (0.5, 0.9, 1)):
        drawn = [plain(np.repeat(np.arange(48), np.repeat(t, 4)), recall) for t in metrics.resamples(12, 70, 9)]
        for one, k in ((point.precision, 0), (point.false_alarms_per_hour, 1)):
            assert one.value == pytest.approx(plain(np.arange(48), recall)[k])
            values = [values[k] for values in drawn]
            assert [one.low, one.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9)
        assert point.wanted == recall <= point.recall


def test_false_alarms_follow_the_convention_of_the_thresholds() -> None:
    windows, clip, labels, groups, seconds = scene(2)
    limits = metrics.event_thresholds(windows, clip, labels, seconds)
    (point,) = metrics.false_alarms_at_recall(windows, clip, labels, groups, seconds, [metrics.RECALL], draws=20)
    assert (point.threshold, point.recall, point.precision.value) == (limits.start, limits.recall, limits.precision)
    assert point.false_alarms == limits.false_alarms
    assert point.false_alarms_per_hour.value == limits.false_alarms_per_hour


def test_a_recall_out_of_range_is_refused() -> None:
    windows, clip, labels, groups, seconds = scene(2)
    with pytest.raises(TrainingError, match=r"above 0 and at most 1, not \[0, 1.5\]"):
        metrics.false_alarms_at_recall(windows, clip, labels, groups, seconds, (0, 0.5, 1.5))


@pytest.mark.parametrize("by", ["count", "width"])
def test_reliability_equals_the_loop_over_bins(by: str) -> None:
    generator = np.random.default_rng(6)
    confidences = generator.random(200) ** 2
    labels = generator.random(200) < confidences
    points = metrics.reliability(confidences, labels, 8, by)
    edges = np.quantile(confidences, np.arange(1, 8) / 8) if by == "count" else np.arange(1, 8) / 8
    for k, inside in enumerate(np.sum(confidences[:, None] >= edges, axis=1) == b for b in range(8)):
        assert points["confidence"][k] == pytest.approx(confidences[inside].mean())
        assert points["share"][k] == pytest.approx(labels[inside].mean())
        assert points["count"][k] == inside.sum()
        assert points["low"][k] < points["share"][k] < points["high"][k] or labels[inside].mean() in (0, 1)
    if by == "count":
        assert set(points["count"]) == {25}
    error = sum(abs(c - s) * n for c, s, n in zip(points["confidence"], points["share"], points["count"])) / 200
    assert metrics.expected_calibration_error(confidences, labels, 8, by) == pytest.approx(error)


def test_reliability_keeps_equal_confidences_together_and_leaves_empty_bins_out() -> None:
    points = metrics.reliability(np.array([0.2] * 7 + [0.8] * 3), np.arange(10) >= 7, 5)
    assert points["confidence"].tolist() == pytest.approx([0.2, 0.8])
    assert points["count"].tolist() == [7, 3]
    with pytest.raises(TrainingError, match="each 0 to 1"):
        metrics.reliability(np.array([0.2, 1.2]), np.array([True, False]))
    with pytest.raises(TrainingError, match="equal 'count' or 'width'"):
        metrics.reliability(np.array([0.2, 0.2]), np.array([True, False]), by="clip")


def test_wilson_bounds_lie_one_standard_error_of_their_own_away() -> None:
    hits, count = np.array([0, 3, 10]), np.array([10, 10, 10])
    low, high = metrics.wilson(hits, count)
    for share, bound in ((0.3, low[1]), (0.3, high[1]), (0.0, high[0]), (1.0, low[2])):
        assert abs(bound - share) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 10), rel=1e-6)
    assert (low[0], high[2]) == pytest.approx((0, 1))


def test_brier_is_the_mean_squared_distance() -> None:
    assert metrics.brier(np.array([0.9, 0.4, 0.0]), np.array([True, False, False])) == pytest.approx((0.01 + 0.16) / 3)


def test_platt_finds_the_map_that_distorted_the_confidences() -> None:
    generator = np.random.default_rng(11)
    true = generator.random(6000)
    labels = generator.random(6000) < true
    distorted = metrics.Platt(2.0, 1.0).apply(true)
    found = metrics.fit_platt(distorted, labels)
    assert (found.slope, found.shift) == pytest.approx((0.5, -0.5), abs=0.06)
    calibrated = found.apply(distorted)
    assert metrics.expected_calibration_error(calibrated, labels) < 0.02
    assert metrics.expected_calibration_error(distorted, labels) > 0.08
    assert metrics.brier(calibrated, labels) < metrics.brier(distorted, labels)
    assert metrics.roc_auc(calibrated, labels) == metrics.roc_auc(distorted, labels)


def test_platt_stands_where_the_loss_is_least() -> None:
    generator = np.random.default_rng(12)
    confidences = generator.random(80)
    labels = generator.random(80) < 0.2 + 0.5 * confidences
    targets = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))

    def loss(slope: float, shift: float) -> float:
        p = 1 / (1 + np.exp(-(slope * np.log(confidences / (1 - confidences)) + shift)))
        return float(-np.sum(targets * np.log(p) + (1 - targets) * np.log(1 - p)))

    found = metrics.fit_platt(confidences, labels)
    least = loss(found.slope, found.shift)
    for slope, shift in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert loss(found.slope + slope, found.shift + shift) > least


def test_platt_never_turns_the_order_round() -> None:
    labels = np.arange(40) < 20
    confidences = np.where(labels, 0.2, 0.8) + np.linspace(0, 0.1, 40)
    found = metrics.fit_platt(confidences, labels)
    assert found.slope > 0
    assert metrics.roc_auc(found.apply(confidences), labels) == metrics.roc_auc(confidences, labels)
    assert found.apply(confidences) == pytest.approx(0.5, abs=0.01)


def test_certain_confidences_can_be_calibrated() -> None:
    confidences, labels = np.array([0.0, 0.0, 1.0, 1.0, 0.5, 0.5]), np.array([0, 0, 1, 1, 0, 1], bool)
    calibrated = metrics.fit_platt(confidences, labels).apply(confidences)
    assert np.all(np.isfinite(calibrated))
    assert calibrated[0] < calibrated[4] < calibrated[2]


def test_folds_keep_recordings_whole_and_classes_spread() -> None:
    labels = np.arange(60) < 20
    groups = [f"g{k // 4}" for k in range(60)]
    fold = metrics.recording_folds(labels, groups, 5, 3)
    assert all(len(set(fold[np.array(groups) == name])) == 1 for name in set(groups))
    assert [labels[fold == k].sum() for k in range(5)] == [4] * 5
    assert [(~labels[fold == k]).sum() for k in range(5)] == [8] * 5
    assert fold.tolist() == metrics.recording_folds(labels, groups, 5, 3).tolist()
    with pytest.raises(TrainingError, match="orca is in 1 recordings"):
        metrics.recording_folds(labels, ["o"] * 20 + groups[20:])


def test_a_clip_is_calibrated_by_other_recordings_only() -> None:
    generator = np.random.default_rng(13)
    labels, groups = np.arange(60) % 3 == 0, [f"g{k // 6}" for k in range(60)]
    confidences = np.clip(generator.random(60) * 0.6 + 0.3 * labels, 0.01, 0.99)
    found = metrics.cross_calibrated(confidences, labels, groups, 5, 1)
    fold = metrics.recording_folds(labels, groups, 5, 1)
    for k in range(5):
        other = metrics.fit_platt(confidences[fold != k], labels[fold != k])
        np.testing.assert_array_equal(found[fold == k], other.apply(confidences[fold == k]))


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
