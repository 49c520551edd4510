from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from orcawatch import relevance as rules
from orcawatch.masking import minimal_mask, negative_mask


def random_head(features: int, hidden: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "hidden_kernel": rng.normal(0, 0.3, (features, hidden)).astype(np.float32),
        "hidden_bias": rng.normal(0, 0.1, hidden).astype(np.float32),
        "kernel": rng.normal(0, 0.3, (hidden, 2)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 2).astype(np.float32),
    }


def plain_dense(x: np.ndarray, w: np.ndarray, r: np.ndarray) -> np.ndarray:
    out = np.zeros(len(x))
    for j in range(w.shape[1]):
        positive = [max(0.0, float(x[i]) * float(w[i, j])) for i in range(len(x))]
        total = sum(positive)
        for i in range(len(x)):
            out[i] += positive[i] / total * r[j] if total else 0.0
    return out


def plain_convolution(x: np.ndarray, w: np.ndarray, r: np.ndarray) -> np.ndarray:
    """3 x 3, stride 1, zero padding of one; every product by itself."""
    height, width, planes = x.shape
    out = np.zeros(x.shape)
    for row in range(height):
        for column in range(width):
            for f in range(w.shape[-1]):
                positive = {}
                for i in range(3):
                    for j in range(3):
                        for p in range(planes):
                            at = (row + i - 1, column + j - 1, p)
                            if 0 <= at[0] < height and 0 <= at[1] < width:
                                positive[at] = max(0.0, float(x[at]) * float(w[i, j, p, f]))
                total = sum(positive.values())
                for at, part in positive.items():
                    out[at] += part / total * r[row, column, f] if total else 0.0
    return out


@pytest.mark.parametrize("signed", [False, True])
def test_dense_equals_plain_loop(signed: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 7)).astype(np.float32)
    x = x if signed else abs(x)
    w = rng.normal(size=(7, 4)).astype(np.float32)
    r = rng.random((2, 4)).astype(np.float32)
    found = rules.dense(x, w, r, non_negative=not signed).numpy()
    np.testing.assert_allclose(found, [plain_dense(x[k], w, r[k]) for k in range(2)], atol=1e-6)


def test_convolution_equals_plain_loop() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 5, 6, 2)).astype(np.float32)
    w = rng.normal(size=(3, 3, 2, 3)).astype(np.float32)
    r = rng.random((1, 5, 6, 3)).astype(np.float32)
    found = rules.convolution(x, w, r, (1, 1), "SAME").numpy()[0]
    np.testing.assert_allclose(found, plain_convolution(x[0], w, r[0]), atol=1e-5)


def test_max_pool_goes_to_the_first_maximum() -> None:
    x = np.array([[1, 2, 0, 0], [2, 0, 0, 0]], np.float32).reshape(1, 2, 4, 1)
    pooled = tf.nn.max_pool2d(x, 2, 2, "VALID")
    found = rules.max_pool(x, pooled, np.array([10, 20], np.float32).reshape(1, 1, 2, 1), (2, 2)).numpy()
    np.testing.assert_array_equal(found[0, :, :, 0], [[0, 10, 20, 0], [0, 0, 0, 0]])


def test_max_pool_equals_the_gradient() -> None:
    x = tf.constant(np.random.default_rng(3).normal(size=(2, 6, 8, 3)).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = tf.nn.max_pool2d(x, 2, 2, "VALID")
    r = np.random.default_rng(4).random(pooled.shape).astype(np.float32)
    np.testing.assert_array_equal(rules.max_pool(x, pooled, r, (2, 2)), tape.gradient(pooled, x, r))


@pytest.mark.parametrize("how", ["conserve", "gradient"])
def test_average_pool_keeps_the_sum(how: str) -> None:
    x = np.random.default_rng(5).random((2, 3, 4, 5)).astype(np.float32)
    r = np.random.default_rng(6).random((2, 5)).astype(np.float32)
    found = rules.average_pool(tf.constant(x), tf.constant(r), how).numpy()
    np.testing.assert_allclose(found.sum(axis=(1, 2)), r, rtol=1e-5)


def test_conserving_average_pool_gives_nothing_where_nothing_was_active() -> None:
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 0, 1] = 3.0
    found = rules.average_pool(tf.constant(x), tf.constant([[6.0]]), "conserve").numpy()
    np.testing.assert_array_equal(found[0, :, :, 0], [[0, 6], [0, 0]])


def test_output_is_the_positive_part_of_the_chosen_logit() -> None:
    logits = tf.constant([[1.0, 3.0], [2.0, -1.0], [-2.0, -1.0]])
    np.testing.assert_array_equal(rules.output(logits, "highest"), [[0, 3], [2, 0], [0, 0]])
    np.testing.assert_array_equal(rules.output(logits, "orca"), [[0, 3], [0, 0], [0, 0]])


def test_output_can_start_with_the_confidence() -> None:
    started = rules.output(tf.constant([[1.0, 3.0], [2.0, -1.0]]), "confidence").numpy()
    np.testing.assert_allclose(started, [[0, 1 / (1 + np.exp(-2))], [0, 1 / (1 + np.exp(3))]], rtol=1e-6)


def test_head_relevance_is_conserved() -> None:
    head = random_head(40, 16)
    features = np.random.default_rng(7).random((30, 40)).astype(np.float32)
    logits = rules.head_forward(features, head)[1].numpy()
    total = rules.head_relevance(features, head, "highest").numpy().sum(axis=1)
    np.testing.assert_allclose(total, np.maximum(0, logits.max(axis=1)), rtol=1e-4, atol=1e-6)


def small_chain() -> tf.keras.Model:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    first = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(first)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    return tf.keras.Model(first, layers.GlobalAveragePooling2D()(x))


def test_relevance_through_a_network_is_conserved_and_linear() -> None:
    model = small_chain()
    rng = np.random.default_rng(8)
    x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    features = model(x).numpy()
    a, b = features * rng.random(6), features * rng.random(6)
    maps = [rules.backbone_relevance(model, x, r.astype(np.float32)).numpy() for r in (a, b, a + b)]
    np.testing.assert_allclose(maps[0].sum(axis=(1, 2, 3)), a.sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(maps[0] + maps[1], maps[2], atol=1e-6)
    assert (maps[2] >= 0).all()


def test_layer_without_a_rule_is_refused() -> None:
    layers = tf.keras.layers
    first = layers.Input((8, 8, 1))
    model = tf.keras.Model(first, layers.GlobalMaxPooling2D()(layers.Conv2D(2, 3, activation="relu")(first)))
    with pytest.raises(TypeError, match=r"GlobalMaxPooling2D.*has no relevance rule"):
        rules.backbone_relevance(model, np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 2), np.float32))


def test_minimal_mask_keeps_the_most_relevant() -> None:
    relevance = np.array([[1.0, 5, 2, 0], [1, 1, 4, 0]])
    np.testing.assert_array_equal(minimal_mask(relevance, 2), [0, 1, 1, 0])
    np.testing.assert_array_equal(minimal_mask(relevance, 4), [1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"1 to 4 .*not 5"):
        minimal_mask(relevance, 5)


def test_negative_mask_is_per_sample() -> None:
    relevance = tf.constant([[0.0, 1, 5], [2, 2, 2], [0, 0, 0]])
    np.testing.assert_array_equal(negative_mask(relevance), [[1, 1, 0], [1, 1, 1], [1, 1, 1]])
