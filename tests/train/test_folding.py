"""Folded networks equal what was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from orcawatch.backbone import load_backbone
from orcawatch.errors import InputError
from orcawatch.folding import fold

layers = tf.keras.layers
KEPT = {"InputLayer", "Conv2D", "MaxPooling2D", "AveragePooling2D", "Concatenate", "Add", "Activation"}
KEPT |= {"GlobalAveragePooling2D"}


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def noise(model: Any, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, *model.input_shape[1:])).astype(np.float32)


def difference(model: Any, folded: Any) -> float:
    """Largest difference over the largest output."""
    x = noise(model)
    expected = model(x, training=False).numpy()
    return float(abs(folded(x).numpy() - expected).max() / abs(expected).max())


def chain(*steps: Any, shape: tuple[int, ...] = (9, 8, 2)) -> Any:
    x = first = layers.Input(shape)
    for step in steps:
        x = step(x)
    return tf.keras.Model(first, x)


def test_a_tiny_inception_comes_back_equal(inception: Any) -> None:
    folded = fold(inception)
    assert set(kinds(folded)) == KEPT
    assert kinds(folded).count("Activation") == 1  # after the addition; the others are in their convolutions
    assert kinds(folded).count("Conv2D") == kinds(inception).count("Conv2D")
    assert all(layer.use_bias for layer in folded.layers if isinstance(layer, layers.Conv2D))
    assert difference(inception, folded) < 2e-6
    again = fold(folded)
    assert difference(folded, again) == 0
    assert [w.tolist() for w in again.get_weights()] == [w.tolist() for w in folded.get_weights()]


def test_the_storage_order_depends_on_the_graph_alone(inception: Any) -> None:
    folded, stored = fold(inception), fold(inception).get_weights()
    layers.Conv2D(1, 1), layers.Concatenate()  # moves the counters of automatic names on
    other = fold(tf.keras.models.clone_model(inception))
    assert [layer.name for layer in other.layers] == [layer.name for layer in folded.layers]
    assert "conv2d_001" in [layer.name for layer in other.layers]
    assert difference(inception, other) > 0.01
    other.set_weights(stored)
    assert difference(folded, other) == 0


def test_a_network_of_one_part_per_rule_in_plain_numbers() -> None:
    convolution, norm = layers.Conv2D(1, 1, use_bias=False), layers.BatchNormalization(epsilon=1.0)
    model = chain(layers.Rescaling(3.0, -1.0), convolution, norm, shape=(1, 1, 2))
    convolution.set_weights([np.array([2.0, 5.0], np.float32).reshape(1, 1, 2, 1)])
    norm.set_weights([np.array([v], np.float32) for v in (4.0, 0.5, 1.0, 3.0)])  # gamma, beta, mean, variance
    kernel, bias = fold(model).get_weights()
    # 4 (2 (3 x - 1) + 5 (3 y - 1) - 1) / sqrt(3 + 1) + 0.5 = 12 x + 30 y - 15.5
    np.testing.assert_allclose(kernel.ravel(), [12, 30])
    np.testing.assert_allclose(bias, [-15.5])


def test_a_chain_without_these_keeps_its_weights_and_their_order() -> None:
    model = load_backbone("vggish").build_keras()
    folded = fold(model)
    assert kinds(folded) == kinds(model)
    for ours, theirs in zip(folded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert len(folded.get_weights()) == 12


def test_the_originals_weights_stay_untouched(inception: Any) -> None:
    before = inception.get_weights()
    fold(inception).set_weights([0 * weight for weight in fold(inception).get_weights()])
    for ours, theirs in zip(inception.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)


def test_folded_networks_compute_in_float32_whatever_the_policy() -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = chain(
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Activation("linear", dtype="float32"),
        )
        folded = fold(model)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert model.layers[1].compute_dtype == "float16"
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
    assert {weight.dtype for weight in folded.weights} == {tf.float32}
    assert kinds(folded) == ["InputLayer", "Conv2D", "MaxPooling2D"]
    assert 0 < difference(model, folded) < 5e-3


def test_what_several_layers_read_is_left_as_it_is(spread_statistics: Any) -> None:
    x = first = layers.Input((9, 8, 2))
    x = layers.Conv2D(3, 3)(x)
    normed = layers.Conv2D(2, 3)(layers.BatchNormalization()(x))  # folds forwards, the convolution is read twice
    plain = layers.Conv2D(2, 3)(layers.Activation("relu")(x))
    model = spread_statistics(tf.keras.Model(first, layers.Add()([normed, plain])), 1)
    folded = fold(model)
    assert set(kinds(folded)) == {"InputLayer", "Conv2D", "Activation", "Add"}
    assert difference(model, folded) < 2e-6


def test_a_model_inside_and_a_layer_that_is_called_twice(spread_statistics: Any) -> None:
    inner = spread_statistics(chain(layers.BatchNormalization(), layers.Conv2D(2, 3), layers.ReLU()), 3)
    first = layers.Input((9, 8, 2))
    shared = layers.Conv2D(2, 1)
    model = tf.keras.Model(first, inner(layers.Add()([shared(first), shared(shared(first))])))
    folded = fold(model)
    assert difference(model, folded) < 2e-6
    assert kinds(folded).count("Conv2D") == 4


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([layers.Rescaling(2.0, 1.0), layers.Conv2D(2, 3, padding="same")], "padding must be `valid`"),
        ([layers.BatchNormalization(), layers.MaxPooling2D()], "a MaxPooling2D reads it"),
        ([layers.Conv2D(2, 3), layers.ReLU(), layers.Rescaling(2.0)], "the network ends with it"),
        ([layers.Conv2D(2, 3), lambda x: x * 2.0], "operation with arguments"),
    ],
)
def test_what_cannot_be_folded_exactly_is_refused(steps: list[Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        fold(chain(*steps))


def test_a_scale_without_offset_folds_under_any_padding() -> None:
    model = chain(layers.Rescaling(2.0), layers.Conv2D(2, 3, padding="same", activation="relu"))
    assert difference(model, fold(model)) < 2e-6


def test_several_outputs_are_refused() -> None:
    first = layers.Input((4, 4, 1))
    with pytest.raises(InputError, match="one input and one output"):
        fold(tf.keras.Model(first, [layers.ReLU()(first), layers.Dropout(0.1)(first)]))


def test_inception_v3_folds(spread_statistics: Any) -> None:
    first = layers.Input((75, 75, 1))
    x = layers.Concatenate()([layers.Rescaling(2.0, -1.0)(first)] * 3)
    network = tf.keras.applications.InceptionV3(include_top=False, weights=None, input_tensor=x, pooling="avg")
    folded = fold(spread_statistics(network, 5))
    assert set(kinds(folded)) <= KEPT
    assert difference(network, folded) < 2e-5
