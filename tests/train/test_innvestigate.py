"""iNNvestigate in its own process against plain loops and this project's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.folding import fold
from orcawatch.masking import negative_mask
from orcawatch.relevance import backbone_relevance, head_relevance
from orcawatch.training import heads
from orcawatch.training.parity import relative_difference
from orcawatch.training.relevance_stage import ORCA, all_zero, analyse, head_model, neurons, of_head, of_network

SIZE = 9


@pytest.fixture(scope="module")
def head() -> dict[str, np.ndarray]:
    """A head of random weights that calls most features noise, some orca, and some neither."""
    generator = np.random.default_rng(11)
    shapes = ((SIZE, 256), (256,), (256, 2), (2,))
    made = {key: generator.standard_normal(s).astype(np.float32) / 8 for key, s in zip(heads.KEYS, shapes)}
    return {**made, "bias": np.array([-0.2, -0.2], np.float32)}


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Non-negative features, some of them zero, as pooled ReLU outputs are; the last row is all zero."""
    generator = np.random.default_rng(12)
    made = np.maximum(generator.standard_normal((40, SIZE)), 0).astype(np.float32)
    made[-1] = 0
    return made


def z_plus(x: np.ndarray, w: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """The z+ rule for one sample, one weight at a time."""
    out = np.zeros(len(x))
    for j in range(w.shape[1]):
        total = sum(max(0.0, x[i] * w[i, j]) for i in range(len(x)))
        for i in range(len(x)):
            if total > 0:
                out[i] += max(0.0, x[i] * w[i, j]) / total * relevance[j]
    return out


def loop_relevance(x: np.ndarray, head: dict[str, np.ndarray]) -> np.ndarray:
    """Deep Taylor of the neuron of highest activation, for one sample."""
    weights = {key: value.astype(np.float64) for key, value in head.items()}
    hidden = np.maximum(x @ weights["hidden_kernel"] + weights["hidden_bias"], 0)
    logits = hidden @ weights["kernel"] + weights["bias"]
    start = np.where(np.arange(2) == logits.argmax(), np.maximum(logits, 0), 0)
    return z_plus(x, weights["hidden_kernel"], z_plus(hidden, weights["kernel"], start))


def test_feature_relevance_equals_the_plain_loop(head: dict[str, np.ndarray], features: np.ndarray) -> None:
    found = of_head(head, features)
    plain = np.stack([loop_relevance(row.astype(np.float64), head) for row in features])
    assert relative_difference(found.values, plain) < 1e-6
    np.testing.assert_allclose(found.logits, heads.forward(features, head), atol=1e-5)
    assert "innvestigate 2.1.2" in found.versions
    nothing = int(np.sum(~plain.any(axis=1)))
    assert all_zero(found.values) == nothing > 0
    chosen = np.arange(len(features)) % 3 > 0
    explained = [loop.any() and logits[ORCA] > logits[0] for loop, logits in zip(plain[chosen], found.logits[chosen])]
    none = int(np.sum(~plain[chosen].any(axis=1)))
    assert neurons(found, chosen) == {"all_zero": none, "rows": int(chosen.sum()), "orca": sum(map(bool, explained))}
    assert 0 < sum(map(bool, explained)) < chosen.sum() - none


def test_relevance_is_conserved_without_hidden_bias(head: dict[str, np.ndarray], features: np.ndarray) -> None:
    # a hidden unit that only its bias drives has no input to hand its relevance to
    found = of_head({**head, "hidden_bias": np.zeros(256, np.float32)}, features)
    np.testing.assert_allclose(found.values.sum(axis=1), np.maximum(found.logits.max(axis=1), 0), rtol=1e-5, atol=1e-6)
    assert (
        of_head(head, features).values.sum(axis=1) <= heads.forward(features, head).max(axis=1).clip(0) + 1e-6
    ).all()


def test_own_rules_equal_innvestigate_for_both_neurons(head: dict[str, np.ndarray], features: np.ndarray) -> None:
    own = np.asarray(head_relevance(features, head, "orca"))
    theirs = analyse(head_model(head), features, ORCA)
    assert relative_difference(own, theirs.values) < 1e-6
    assert all_zero(own) == int(np.sum(theirs.logits[:, ORCA] <= 0))


def test_a_whole_network_goes_through(head: dict[str, np.ndarray]) -> None:
    from tensorflow.keras import Model, layers, utils

    utils.set_random_seed(3)
    first = layers.Input((8, 6, 1))
    x = layers.Conv2D(5, 3, padding="same", activation="relu")(first)
    x = layers.MaxPooling2D()(x)
    backbone = Model(
        first, layers.GlobalAveragePooling2D()(layers.Conv2D(SIZE, 3, padding="same", activation="relu")(x))
    )
    batch = np.random.default_rng(5).standard_normal((6, 8, 6, 1)).astype(np.float32)
    theirs = of_network(backbone, head, batch, batch_size=4)
    of_features = head_relevance(np.asarray(backbone(batch)), head, "highest")
    own = np.asarray(backbone_relevance(backbone, batch, of_features, "gradient"))
    assert theirs.values.shape == batch.shape
    assert relative_difference(own, theirs.values) < 1e-6


def test_a_folded_inception_goes_through(inception: Any) -> None:
    folded = fold(inception)
    generator = np.random.default_rng(13)
    shapes = ((folded.output_shape[1], 256), (256,), (256, 2), (2,))
    head = {key: generator.standard_normal(s).astype(np.float32) / 8 for key, s in zip(heads.KEYS, shapes)}
    batch = generator.standard_normal((3, 20, 20, 1)).astype(np.float32)
    theirs = of_network(folded, head, batch)
    of_features = head_relevance(folded(batch), head, "highest")
    own = np.asarray(backbone_relevance(folded, batch, of_features, "gradient"))
    assert np.abs(theirs.values).max() > 0.01
    assert theirs.values.shape == batch.shape
    assert relative_difference(own, theirs.values) < 1e-5


def test_a_negative_mask_of_no_relevance_removes_nothing() -> None:
    relevance = np.zeros((3, 5), np.float32)
    relevance[1] = [4, 0, 0, 0, 1]
    np.testing.assert_array_equal(negative_mask(relevance), [[1] * 5, [0, 1, 1, 1, 1], [1] * 5])
    assert all_zero(relevance) == 2


def test_a_network_that_cannot_be_analysed_is_a_clear_error() -> None:
    from tensorflow.keras import Model, layers

    first = layers.Input((4,))
    with pytest.raises(TrainingError, match="iNNvestigate failed"):
        analyse(Model(first, layers.Dense(2, activation="softmax")(first)), np.ones((2, 4), np.float32))
