"""Heads: forward pass, packing, calibration, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.training import heads
from orcawatch.training.heads import HeadSettings, Masked, Rows
from orcawatch.training.relevance_stage import head_model

QUICK = HeadSettings(epochs=15, batch_size=16, dropout=0.1, learning_rate=3e-3)


@pytest.fixture(scope="module")
def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features where the first two rise with orca; class, recording and clip of each window."""
    generator = np.random.default_rng(1)
    clip = np.repeat(np.arange(30), 3)
    orca = clip % 3 == 0
    features = generator.random((90, 6)).astype(np.float32)
    features[orca, :2] += 1.5
    return features, orca, np.array([f"g{k // 3}" for k in clip]), clip


def rows_of(windows: tuple[np.ndarray, ...], scale: float = 1.0) -> Rows:
    """Those windows with hard labels."""
    features, orca, groups, clip = windows
    return Rows(Masked([features * np.float32(scale)], [None]), orca, heads.targets(orca, None, 0), groups, clip)


def random_head(size: int = 6) -> dict[str, np.ndarray]:
    """A head of random weights."""
    generator = np.random.default_rng(4)
    shapes = ((size, 256), (256,), (256, 2), (2,))
    return {key: generator.standard_normal(s).astype(np.float32) / 8 for key, s in zip(heads.KEYS, shapes)}


def test_forward_equals_keras_and_the_plain_loop(windows: tuple[np.ndarray, ...]) -> None:
    head, features = random_head(), windows[0][:5]
    logits = heads.forward(features, head)
    np.testing.assert_allclose(logits, head_model(head).predict(features, verbose=0), atol=1e-5)
    hidden = [
        max(0.0, sum(features[0, i] * head["hidden_kernel"][i, j] for i in range(6)) + head["hidden_bias"][j])
        for j in range(256)
    ]
    plain = [sum(hidden[j] * head["kernel"][j, k] for j in range(256)) + head["bias"][k] for k in (0, 1)]
    np.testing.assert_allclose(logits[0], plain, atol=1e-5)


def test_confidence_is_the_softmax_and_stays_finite() -> None:
    logits = np.array([[0.3, 1.1], [-900, 900], [900, -900]], np.float32)
    expected = np.exp(1.1) / (np.exp(0.3) + np.exp(1.1))
    np.testing.assert_allclose(heads.confidence(logits), [expected, 1, 0], atol=1e-6)


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([True] + [False] * 3)
    weights = heads.class_weights(labels)
    assert weights[1] * 1 == pytest.approx(weights[0] * 3)
    assert np.mean([weights[int(label)] for label in labels]) == pytest.approx(1)
    with pytest.raises(TrainingError, match="all 4 windows are noise"):
        heads.class_weights(np.zeros(4, bool))


def test_pack_puts_each_window_in_its_bag_once() -> None:
    features, bags = np.arange(10, dtype=np.float32).reshape(5, 2), np.array([7, 3, 7, 7, 3])
    packed, present, first = heads.pack(features, bags)
    np.testing.assert_array_equal(present, [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(packed[0, :2], features[[1, 4]])
    np.testing.assert_array_equal(packed[1], features[[0, 2, 3]])
    np.testing.assert_array_equal(first, [1, 0])
    assert not packed[present == 0].any()


def test_masked_features_stand_side_by_side_and_are_read_by_row() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random((7, 3), np.float32), generator.random((7, 2), np.float32)
    minimal, negative = np.array([1, 0, 1], np.float32), generator.integers(0, 2, (7, 2)).astype(np.uint8)
    chosen = np.array([6, 0, 2])
    masked = Masked([first, second], [minimal, negative], chosen)
    plain = [[*(first[k] * minimal), *(second[k] * negative[k])] for k in chosen]
    assert masked.shape == (3, 5)
    np.testing.assert_array_equal(masked[np.array([2, 0])], np.array(plain, np.float32)[[2, 0]])
    np.testing.assert_array_equal(np.concatenate(list(masked.blocks())), np.array(plain, np.float32))
    assert heads.root_mean_square(masked) == pytest.approx(np.sqrt(np.mean(np.square(plain))))


def test_pooled_loss_is_of_log_mean_exp_over_the_windows_present(windows: tuple[np.ndarray, ...]) -> None:
    features, head = windows[0][:4], random_head()
    packed, present, _ = heads.pack(features, np.array([0, 0, 0, 1]))
    network = heads._network(6, HeadSettings(pooling=2.0))
    network.set_weights([head[key] for key in heads.KEYS])
    logits = heads.forward(features, head)
    d = logits[:, 1] - logits[:, 0]
    expected = [np.log(np.mean(np.exp(2 * d[:3]))) / 2, d[3]]
    np.testing.assert_allclose(network.predict([packed, present], verbose=0)[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("pooling", [0.0, 3.0])
def test_training_separates_and_repeats_itself(windows: tuple[np.ndarray, ...], pooling: float) -> None:
    features, orca, _, _ = windows
    settings = HeadSettings(**{**QUICK.__dict__, "pooling": pooling})
    head, history = heads.train_head(rows_of(windows), settings, seed=3)
    scores = heads.scores(features, head)
    assert scores[orca].min() > scores[~orca].max()
    assert history["loss"][-1] < history["loss"][0]
    again, _ = heads.train_head(rows_of(windows), settings, seed=3)
    other, _ = heads.train_head(rows_of(windows), settings, seed=4)
    for key in heads.KEYS:
        np.testing.assert_array_equal(head[key], again[key])
    assert not np.array_equal(head["kernel"], other["kernel"])


def test_soft_labels_mix_teacher_and_label_and_are_learned(windows: tuple[np.ndarray, ...]) -> None:
    features, orca, groups, clip = windows
    taught = np.where(orca, 0.6, 0.2).astype(np.float32)
    np.testing.assert_allclose(heads.targets(orca, taught, 0.75), np.where(orca, 0.7, 0.15), atol=1e-6)
    np.testing.assert_array_equal(heads.targets(orca, None, 0.75), orca)
    soft = Rows(Masked([features], [None]), orca, heads.targets(orca, taught, 1.0), groups, clip)
    settings = HeadSettings(**{**QUICK.__dict__, "epochs": 60, "dropout": 0.0, "teacher_share": 1.0})
    scores = heads.scores(features, heads.train_head(soft, settings, seed=3)[0])
    assert scores[orca].mean() == pytest.approx(0.6, abs=0.05)
    assert scores[~orca].mean() == pytest.approx(0.2, abs=0.05)
    with pytest.raises(TrainingError, match="0 where windows are pooled"):
        HeadSettings(pooling=1.0, teacher_share=0.5)


def test_features_of_another_scale_give_the_same_scores(windows: tuple[np.ndarray, ...]) -> None:
    features = windows[0]
    one, _ = heads.train_head(rows_of(windows), QUICK, seed=1)
    many, _ = heads.train_head(rows_of(windows, 1024), QUICK, seed=1)
    np.testing.assert_allclose(heads.scores(features, one), heads.scores(features * 1024, many), atol=1e-4)


def test_early_stopping_watches_whole_training_recordings(windows: tuple[np.ndarray, ...]) -> None:
    _, orca, groups, _ = windows
    held = heads.validation_groups(groups, orca, 0.3, seed=2)
    assert orca[held].any() and (~orca)[held].any()
    assert not set(groups[held]) & set(groups[~held])
    settings = HeadSettings(epochs=200, batch_size=16, learning_rate=0.05, validation_share=0.3, patience=2)
    _, history = heads.train_head(rows_of(windows), settings, seed=2)
    assert len(history["val_loss"]) == len(history["loss"]) < 200


def test_calibration_is_the_stated_formula_and_keeps_the_order(windows: tuple[np.ndarray, ...]) -> None:
    head, features = random_head(), windows[0]
    logits = heads.forward(features, head)
    moved = heads.scores(features, heads.calibrated(head, 3.0, 0.7))
    d = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    np.testing.assert_allclose(moved, 1 / (1 + np.exp(-(3 * d - 0.7))), atol=1e-5)
    orca = heads.forward(features, heads.calibrated(head, 3.0, 0.7))[:, 1]
    np.testing.assert_allclose(orca, 3 * logits[:, 1], atol=1e-4)


def test_calibration_can_be_taken_out_of_the_scores(windows: tuple[np.ndarray, ...]) -> None:
    head, features = random_head(), windows[0]
    moved = heads.scores(features, heads.calibrated(head, 3.0, 0.7))
    np.testing.assert_allclose(heads.uncalibrated(moved, 3.0, 0.7), heads.scores(features, head), atol=1e-5)
    assert np.isfinite(heads.uncalibrated(np.array([0.0, 1.0], np.float32), 3.0, 0.7)).all()


def test_heads_survive_the_file(tmp_path: Path) -> None:
    stored = {"b_neg": random_head(), "a": random_head(3)}
    heads.save_heads(tmp_path / "heads.npz", stored)
    found = heads.load_heads(tmp_path / "heads.npz")
    assert list(found) == ["b_neg", "a"]
    for name, head in stored.items():
        for key in heads.KEYS:
            np.testing.assert_array_equal(found[name][key], head[key])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"epochs": 0}, "at least 1"), ({"dropout": 1.0}, "0 to below 1"), ({"slope": 0.0}, "slope above 0")],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        HeadSettings(**wrong)  # type: ignore[arg-type]
