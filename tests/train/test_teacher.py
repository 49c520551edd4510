"""The teacher: descriptors against plain loops, the logistic regression against its own optimum."""

from __future__ import annotations

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import teacher


def test_ranks_are_ordered_values_without_interpolation() -> None:
    values = np.random.default_rng(1).permutation(np.arange(96 * 3)).reshape(1, 96, 3)
    low, middle = teacher.ranked(values, (0.05, 0.5))
    for band in range(3):
        ordered = sorted(values[0, :, band])
        assert low[0, band] == ordered[round(0.05 * 95)] and middle[0, band] == ordered[round(0.5 * 95)]


def test_cosines_are_orthonormal() -> None:
    table = teacher.cosines(64).astype(np.float64)
    assert np.allclose(table.T @ table, np.eye(24), atol=1e-6)


def test_autocorrelation_equals_a_loop_and_finds_the_distance_of_harmonics() -> None:
    frames = np.random.default_rng(2).random((2, 3, 64)).astype(np.float32)
    frames[1, 1] = np.arange(64) % 8 == 0
    found = teacher.autocorrelation(frames)
    for window in range(2):
        for frame in range(3):
            x = frames[window, frame].astype(np.float64)
            x = x - x.mean()
            loop = [sum(x[i] * x[i + lag] for i in range(64 - lag)) / (x @ x + 0.1) for lag in range(1, 24)]
            assert np.allclose(found[window, frame], loop, atol=1e-5)
    assert np.argmax(found[1, 1]) + 1 == 8


def test_descriptors_do_not_depend_on_the_order_of_windows() -> None:
    windows = np.random.default_rng(3).random((4, 96, 64)).astype(np.float32)
    found = teacher.describe(windows)
    assert found.shape == (4, 915) and np.isfinite(found).all()
    assert np.allclose(teacher.describe(windows[::-1]), found[::-1], atol=1e-5)
    assert np.isfinite(teacher.describe(np.zeros((1, 96, 64), np.float32))).all()


def test_the_fit_is_an_optimum() -> None:
    generator = np.random.default_rng(4)
    x, weights = generator.standard_normal((60, 5)).astype(np.float32), generator.uniform(0.5, 2, 60)
    labels = x[:, 0] + generator.standard_normal(60) > 0

    def cost(w: np.ndarray, bias: float) -> float:
        d = x @ w + bias
        return float(0.3 * np.sum(weights * (np.logaddexp(0, d) - labels * d)) + w @ w / 2)

    w, bias = teacher.fit_logistic(x, labels, weights, 0.3)
    best = cost(w, bias)
    for _ in range(50):
        assert cost(w + 0.02 * generator.standard_normal(5), bias + 0.02 * generator.standard_normal()) > best


def test_it_learns_classes_that_can_be_told_apart_and_gives_graded_answers() -> None:
    generator = np.random.default_rng(5)
    windows = generator.random((40, 96, 64)).astype(np.float32)
    labels = np.arange(40) % 2 == 0
    windows[labels, :, ::8] += 3
    taught = teacher.fit_teacher(windows, labels, 1e-3).confidence(windows)
    assert taught[labels].min() > 0.5 > taught[~labels].max()


def test_one_class_is_refused() -> None:
    with pytest.raises(TrainingError, match="one class"):
        teacher.fit_teacher(np.zeros((3, 96, 64), np.float32), np.ones(3, bool), 1.0)


def test_a_strength_that_fits_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="strength must be above 0, not 0"):
        teacher.TeacherSettings(0)
