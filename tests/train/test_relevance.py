from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from orcawatch import relevance as rules
from orcawatch.folding import fold
from orcawatch.masking import minimal_mask, negative_mask
from orcawatch.training.plain_relevance import plain_relevance


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


POOLS = [(2, 2, "VALID"), (3, 2, "VALID"), (3, 2, "SAME"), (3, 1, "SAME"), (2, 3, "VALID"), (2, 3, "SAME")]


def cells_of(size: int, stride: int, padding: str, shape: tuple[int, ...]) -> dict[tuple[int, int], list[Any]]:
    """The cells inside the picture of every pool, in reading order."""
    spans = []
    for side in shape[:2]:
        outputs = -(-side // stride) if padding == "SAME" else (side - size) // stride + 1
        missing = max((outputs - 1) * stride + size - side, 0) if padding == "SAME" else 0
        starts = [k * stride - missing // 2 for k in range(outputs)]
        spans.append([[i for i in range(start, start + size) if 0 <= i < side] for start in starts])
    pools = itertools.product(enumerate(spans[0]), enumerate(spans[1]))
    return {(r, c): list(itertools.product(rows, columns)) for (r, rows), (c, columns) in pools}


def plain_max_pool(x: np.ndarray, r: np.ndarray, *pool: Any) -> np.ndarray:
    out = np.zeros(x.shape)
    for place, cells in cells_of(*pool, x.shape).items():
        for p in range(x.shape[-1]):
            best = max(cells, key=lambda cell: x[(*cell, p)])  # max keeps the first
            out[(*best, p)] += r[(*place, p)]
    return out


def plain_average_pool(x: np.ndarray, r: np.ndarray, how: str, *pool: Any) -> np.ndarray:
    out = np.zeros(x.shape)
    for place, cells in cells_of(*pool, x.shape).items():
        for p in range(x.shape[-1]):
            values = [float(x[(*cell, p)]) for cell in cells]
            sign = -1 if sum(values) < 0 else 1
            parts = [1 / len(cells)] * len(cells) if how == "gradient" else [max(sign * v, 0.0) for v in values]
            total = sum(parts)
            for cell, part in zip(cells, parts):
                out[(*cell, p)] += part / total * r[(*place, p)] if total else 0.0
    return out


@pytest.mark.parametrize("pool", POOLS)
def test_max_pool_equals_plain_loop_and_the_gradient(pool: tuple[int, int, str]) -> None:
    size, stride, padding = pool
    x = tf.constant(np.random.default_rng(3).integers(-2, 3, (2, 7, 8, 3)).astype(np.float32))  # many ties
    with tf.GradientTape() as tape:
        tape.watch(x)
        pooled = tf.nn.max_pool2d(x, size, stride, padding)
    r = np.random.default_rng(4).random(pooled.shape).astype(np.float32)
    found = rules.max_pool(x, pooled, r, (size, size), (stride, stride), padding)
    np.testing.assert_allclose(found, [plain_max_pool(a, b, *pool) for a, b in zip(x.numpy(), r)], atol=1e-6)
    np.testing.assert_allclose(found, tape.gradient(pooled, x, r), atol=1e-6)


@pytest.mark.parametrize("how", ["conserve", "gradient"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_average_pool_equals_plain_loop(pool: tuple[int, int, str], signed: bool, how: str) -> None:
    size, stride, padding = pool
    x = np.random.default_rng(5).integers(-3 if signed else 0, 4, (2, 7, 8, 3)).astype(np.float32)
    r = np.random.default_rng(6).random(tf.nn.avg_pool2d(x, size, stride, padding).shape).astype(np.float32)
    found = rules.average_pool(x, r, (size, size), (stride, stride), padding, how, non_negative=not signed)
    np.testing.assert_allclose(found, [plain_average_pool(a, b, how, *pool) for a, b in zip(x, r)], atol=1e-5)


@pytest.mark.parametrize("how", ["conserve", "gradient"])
@pytest.mark.parametrize("signed", [False, True])
def test_global_average_pool_equals_plain_loop_and_keeps_the_sum(signed: bool, how: str) -> None:
    x = (np.random.default_rng(5).random((2, 4, 4, 5)) - (0.5 if signed else 0)).astype(np.float32)
    r = np.random.default_rng(6).random((2, 5)).astype(np.float32)
    found = rules.global_average_pool(tf.constant(x), tf.constant(r), how, non_negative=not signed).numpy()
    plain = [plain_average_pool(a, b[None, None], how, 4, 1, "VALID") for a, b in zip(x, r)]
    np.testing.assert_allclose(found, plain, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), r, rtol=1e-5)


def test_added_terms_share_by_the_parts_that_have_the_sums_sign() -> None:
    terms = np.array([[3.0, 1, -3, -1, 2], [1.0, -2, 1, -3, -2]], np.float32)
    parts = [(tf.constant(term[None]), False) for term in terms]
    found = np.stack(rules.add(parts, tf.constant([[8.0, 6, 5, 4, 7]]), "conserve"))[:, 0]
    np.testing.assert_allclose(found, [[6, 0, 5, 1, 7], [2, 6, 0, 3, 0]])
    found = rules.add(parts, tf.constant([[8.0, 6, 5, 4, 7]]), "gradient")
    assert all(part.numpy().tolist() == [[8, 6, 5, 4, 7]] for part in found)


def test_terms_known_not_to_be_negative_share_alike() -> None:
    terms = np.random.default_rng(9).integers(0, 3, (3, 1, 50)).astype(np.float32)
    relevance = tf.constant(np.random.default_rng(10).random((1, 50)).astype(np.float32))
    plain, known = (rules.add([(t, non_negative) for t in terms], relevance, "conserve") for non_negative in (0, 1))
    np.testing.assert_allclose(plain, known, rtol=1e-6)


@pytest.mark.parametrize(("stride", "padding"), [(2, "VALID"), (2, "SAME"), (1, "VALID")])
def test_strided_convolution_equals_plain_loop(stride: int, padding: str) -> None:
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(6, 7, 2)).astype(np.float32), rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    r = rng.random(tf.nn.conv2d(x[None], w, stride, padding).shape[1:]).astype(np.float32)
    out = np.zeros(x.shape)
    missing = {side: max((-(-side // stride) - 1) * stride + 3 - side, 0) // 2 for side in (6, 7)}
    for (row, column), cells in cells_of(3, stride, padding, x.shape).items():
        top, left = (k * stride - (missing[n] if padding == "SAME" else 0) for k, n in ((row, 6), (column, 7)))
        for f in range(4):
            parts = {(i, j, p): max(0.0, x[i, j, p] * w[i - top, j - left, p, f]) for i, j in cells for p in (0, 1)}
            for at, part in parts.items():
                out[at] += part / sum(parts.values()) * r[row, column, f]
    found = rules.convolution(x[None], w, r[None], (stride, stride), padding)
    np.testing.assert_allclose(found[0], out, atol=1e-5)


def test_negative_outputs_of_a_linear_convolution_go_to_the_negative_products() -> None:
    x = tf.constant(np.array([[1, 2], [3, 1]], np.float32).reshape(1, 1, 2, 2))
    kernel = np.array([1, -2], np.float32).reshape(1, 1, 2, 1)
    y = tf.nn.conv2d(x, kernel, 1, "VALID")
    assert y.numpy().ravel().tolist() == [-3, 1]
    relevance = np.array([5, 7], np.float32).reshape(1, 1, 2, 1)
    found = rules.linear_convolution(x, y, kernel, relevance, (1, 1), "VALID", non_negative=True)
    np.testing.assert_allclose(found.numpy()[0, 0], [[0, 5], [7, 0]])


def test_conserving_average_pool_gives_nothing_where_nothing_was_active() -> None:
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 0, 1] = 3.0
    found = rules.global_average_pool(tf.constant(x), tf.constant([[6.0]]), "conserve").numpy()
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


@pytest.fixture()
def folded(inception: Any) -> Any:
    """The tiny Inception, folded, its biases zero: what a bias drives has no input to give its relevance to."""
    model = fold(inception)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(tf.zeros_like(layer.bias))
    return model


def pictures(rows: int = 3) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(rows, 20, 20, 1)).astype(np.float32)


def test_relevance_through_an_inception_is_conserved(folded: Any) -> None:
    x = pictures()
    features = folded(x).numpy()
    found = rules.backbone_relevance(folded, x, features).numpy()
    assert features.sum() > 1
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), features.sum(axis=1), rtol=1e-4)
    doubled = rules.backbone_relevance(folded, x, features, "gradient").numpy().sum(axis=(1, 2, 3))
    assert (doubled > 2 * features.sum(axis=1)).all()  # every residual addition multiplies


def test_biases_cost_a_few_percent_of_the_relevance_at_most(inception: Any) -> None:
    model, x = fold(inception), pictures()
    features = model(x).numpy()
    total = rules.backbone_relevance(model, x, features).numpy().sum(axis=(1, 2, 3))
    np.testing.assert_allclose(total, features.sum(axis=1), rtol=0.05)
    assert (total <= features.sum(axis=1) * (1 + 1e-5)).all()


def test_an_inceptions_relevance_needs_builtin_operations_only(inception: Any) -> None:
    model, x = fold(inception), pictures(1)
    features = model(x).numpy()
    shapes = [tf.TensorSpec(a.shape, tf.float32) for a in (x, features)]
    function = tf.function(lambda a, r: rules.backbone_relevance(model, a, r), autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(*shapes)], model)
    assert converter.target_spec.supported_ops == {tf.lite.OpsSet.TFLITE_BUILTINS}
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], x if len(entry["shape"]) == 4 else features)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = rules.backbone_relevance(model, x, features).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("how", ["conserve", "gradient"])
def test_relevance_through_an_inception_equals_the_plain_loop(inception: Any, how: str) -> None:
    model, x = fold(inception), pictures(1)
    features = model(x).numpy()
    found = rules.backbone_relevance(model, x, features, how).numpy()[0]
    plain = plain_relevance(model, x[0], features[0], how)
    np.testing.assert_allclose(found, plain, atol=1e-5 * plain.max())


def test_a_tensor_read_several_times_gets_the_sum() -> None:
    layers = tf.keras.layers
    first = layers.Input((2, 2, 1))
    model = tf.keras.Model(first, layers.GlobalAveragePooling2D()(layers.Concatenate()([first, first, first])))
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    found = rules.backbone_relevance(model, x, np.array([[1, 2, 3]], np.float32)).numpy()
    np.testing.assert_allclose(found, x)


@pytest.mark.parametrize("layer", ["BatchNormalization", "GlobalMaxPooling2D", "Dilated"])
def test_layer_without_a_rule_is_refused(layer: str) -> None:
    layers = tf.keras.layers
    first = layers.Input((8, 8, 1))
    made = layers.Conv2D(2, 3, dilation_rate=2) if layer == "Dilated" else getattr(layers, layer)()
    model = tf.keras.Model(first, made(first))
    relevance = np.zeros((1, *model.output_shape[1:]), np.float32)
    with pytest.raises(TypeError, match=r"has no relevance rule.*fold"):
        rules.backbone_relevance(model, np.zeros((1, 8, 8, 1), np.float32), relevance)


def test_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match="conserve or gradient, not 'mean'"):
        rules.backbone_relevance(small_chain(), np.zeros((1, 8, 8, 1)), np.zeros((1, 6)), "mean")


def test_minimal_mask_keeps_the_most_relevant() -> None:
    relevance = np.array([[1.0, 5, 2, 0], [1, 1, 4, 0]])
    np.testing.assert_array_equal(minimal_mask(relevance, 2), [0, 1, 1, 0])
    np.testing.assert_array_equal(minimal_mask(relevance, 4), [1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"1 to 4 .*not 5"):
        minimal_mask(relevance, 5)


def test_negative_mask_is_per_sample() -> None:
    relevance = tf.constant([[0.0, 1, 5], [2, 2, 2], [0, 0, 0]])
    np.testing.assert_array_equal(negative_mask(relevance), [[1, 1, 0], [1, 1, 1], [1, 1, 1]])
