"""ROC AUC against scikit-learn, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from orcawatch import metrics


def test_auc_equals_scikit_learn() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    labels = generator.random(300) < 0.2
    scores = np.round(generator.random(300) + 0.4 * labels, 1)
    assert metrics.roc_auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
