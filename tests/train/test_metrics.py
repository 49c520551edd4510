"""Figures against scikit-learn and SciPy, where they are installed."""

from __future__ import annotations

import numpy as np
import pytest

from orcawatch import metrics, ranking

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture()
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Scores in tenths, so that many are equal, and labels."""
    generator = np.random.default_rng(3)
    labels = generator.random(300) < 0.2
    return np.round(generator.random(300) + 0.4 * labels, 1), labels


def test_auc_equals_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    assert metrics.roc_auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_every_row_of_the_ranking_equals_scikit_learn_with_many_ties() -> None:
    generator = np.random.default_rng(4)
    labels = generator.random(200) < 0.3
    scores = np.clip(generator.integers(0, 7, (200, 6)) + 2 * labels[:, None], 0, 8) / 8
    members = [f"m{k}" for k in range(6)]
    rows = ranking.rank(members, scores, labels)
    assert len(rows) == 63
    for row in rows:
        vote = scores[:, [members.index(name) for name in row.members]].mean(axis=1)
        assert len(np.unique(vote)) < 60
        assert row.auc == pytest.approx(sklearn_metrics.roc_auc_score(labels, vote), abs=1e-12)


def test_resampled_aucs_equal_weighted_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    drawn = metrics.resample([f"g{k // 10}" for k in range(300)], 20, 5)
    found = metrics.resampled_aucs(scores[None], labels, drawn)[0]
    weights = drawn.times[:, drawn.index]
    expected = [sklearn_metrics.roc_auc_score(labels, scores, sample_weight=one) for one in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_average_precision_and_brier_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    confidences = scores / 2
    assert metrics.brier(confidences, labels) == pytest.approx(sklearn_metrics.brier_score_loss(labels, confidences))


def test_curves_hold_the_points_of_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = scored
    points = metrics.curves(scores, labels)
    false, recall, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(points["threshold"], thresholds[1:])
    np.testing.assert_allclose(points["recall"], recall[1:])
    np.testing.assert_allclose(points["false_positive_rate"], false[1:])


def test_platt_equals_a_general_minimiser() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(5)
    confidences = generator.random(150)
    labels = generator.random(150) < confidences**2
    orca, noise = labels.sum(), (~labels).sum()
    targets = np.where(labels, (orca + 1) / (orca + 2), 1 / (noise + 2))
    inputs = np.log(confidences / (1 - confidences))

    def loss(weights: np.ndarray) -> float:
        z = weights[0] * inputs + weights[1]
        return float(np.sum(np.logaddexp(0, z) - targets * z))

    expected = optimize.minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    found = metrics.fit_platt(confidences, labels)
    assert [found.slope, found.shift] == pytest.approx(expected.tolist(), abs=1e-5)
