"""Deep Taylor relevance: the rules, once, for training, for what is exported to the edge, and for the tests.

The rules are those of iNNvestigate 2.1.2's `deep_taylor` (paper section 2.3; Montavon et al. 2017) as it really
behaves: every layer with a kernel, the linear output included, takes the z+ rule (alpha 1, beta 0, bias ignored),
analysis starts at the logits with a ReLU on the chosen one, and max-pooling sends relevance to the first maximum.
For average pooling iNNvestigate follows the plain gradient, which loses relevance; the conserving split is in
proportion to the activations. Pictures use `conserve`, comparison with iNNvestigate uses `gradient`.

This module needs TensorFlow (extra `train`) and is never imported on the edge, which runs its TFLite export. It uses
only operations that TFLite has built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

NOISE, ORCA = 0, 1  # order of the two logits


def safe_divide(relevance: Any, total: Any) -> Any:
    """Relevance over total, and over 1 where the total is 0; a tiny epsilon would underflow in float16.

    Where the total is 0 so is every product that the quotient is multiplied with.
    """
    return relevance / (total + tf.cast(total == 0, total.dtype))


def _split_signs(x: Any, w: Any, non_negative: bool) -> list[tuple[Any, Any]]:
    """The parts whose products are positive: (x+, w+), and (x-, w-) where x can be negative."""
    positive = [(tf.nn.relu(x), tf.nn.relu(w))]
    return positive if non_negative else [*positive, (tf.minimum(x, 0.0), tf.minimum(w, 0.0))]


def dense(x: Any, kernel: Any, relevance: Any, non_negative: bool = False) -> Any:
    """z+ rule of a dense layer: R_i = sum_j (x_i w_ij)+ / sum_i' (x_i' w_i'j)+ R_j.

    Parameters
    ----------
    x : the layer's input, shape (batch, inputs).
    kernel : shape (inputs, outputs).
    relevance : of the outputs, shape (batch, outputs).
    non_negative : x is known to be >= 0.

    Returns
    -------
    Relevance of the inputs, shape (batch, inputs).
    """
    parts = _split_signs(x, kernel, non_negative)
    share = safe_divide(relevance, tf.add_n([a @ w for a, w in parts]))
    return tf.add_n([a * (share @ tf.transpose(w)) for a, w in parts])


def convolution(
    x: Any, kernel: Any, relevance: Any, strides: tuple[int, int], padding: str, non_negative: bool = False
) -> Any:
    """z+ rule of a convolution, as `dense`; x (batch, height, width, planes), kernel (h, w, planes, filters)."""
    parts = _split_signs(x, kernel, non_negative)
    total = tf.add_n([tf.nn.conv2d(a, w, strides, padding) for a, w in parts])
    share = safe_divide(relevance, total)
    back = [tf.nn.conv2d_transpose(share, w, tf.shape(x), strides, padding) for _, w in parts]
    return tf.add_n([a * b for (a, _), b in zip(parts, back)])


def max_pool(x: Any, pooled: Any, relevance: Any, size: tuple[int, int]) -> Any:
    """All of a pool's relevance to its first maximum (row by row), as the gradient does.

    Pools do not overlap, and the sides of x are multiples of `size`; x (batch, height, width, planes).
    """
    free = 1.0
    rows = []
    for i in range(size[0]):
        row = []
        for j in range(size[1]):
            first = free * tf.cast(x[:, i :: size[0], j :: size[1]] == pooled, x.dtype)
            row.append(relevance * first)
            free = free - first
        rows.append(_interleave(row, axis=2))
    return _interleave(rows, axis=1)


def _interleave(parts: list[Any], axis: int) -> Any:
    """Weave k tensors of n places along `axis` into one of n k places."""
    stacked = tf.stack(parts, axis=axis + 1)
    shape = [-1 if i == 0 else size for i, size in enumerate(parts[0].shape)]
    shape[axis] *= len(parts)
    return tf.reshape(stacked, shape)


def average_pool(x: Any, relevance: Any, how: str) -> Any:
    """Relevance of a global average's inputs, x (batch, height, width, planes), relevance (batch, planes).

    `conserve`: in proportion to the activations, R_p = x_p / sum x R. `gradient`: equally, as iNNvestigate does.
    """
    relevance = relevance[:, tf.newaxis, tf.newaxis, :]
    if how == "gradient":
        return tf.broadcast_to(relevance, tf.shape(x)) / float(x.shape[1] * x.shape[2])
    return x * safe_divide(relevance, tf.reduce_sum(x, axis=(1, 2), keepdims=True))


def output(logits: Any, neuron: str) -> Any:
    """Relevance at the output, shape (batch, 2): all on one neuron, where the pass starts.

    `highest` and `orca` start with the positive part of a logit, as iNNvestigate does: of the highest one (its default,
    the model's own prediction; masks use it) or of orca's, which leaves nothing to explain where that logit is not
    positive. `confidence` starts on orca's neuron with the softmax confidence instead: the same map but for a factor,
    it exists for every window and adds up to the score that a person is shown (snapshots use it).
    """
    if neuron == "confidence":
        return tf.nn.softmax(logits) * tf.one_hot([ORCA], 2, dtype=logits.dtype)
    chosen = tf.argmax(logits, axis=-1) if neuron == "highest" else tf.fill(tf.shape(logits)[:1], ORCA)
    return tf.nn.relu(logits) * tf.one_hot(chosen, 2, dtype=logits.dtype)


def head_forward(features: Any, head: Mapping[str, Any]) -> tuple[Any, Any]:
    """Hidden activations and logits of a 256-unit head (arrays hidden_kernel, hidden_bias, kernel, bias)."""
    hidden = tf.nn.relu(features @ head["hidden_kernel"] + head["hidden_bias"])
    return hidden, hidden @ head["kernel"] + head["bias"]


def head_relevance(features: Any, head: Mapping[str, Any], neuron: str) -> Any:
    """Relevance of a head's features for the chosen start (see `output`), shape (batch, features)."""
    hidden, logits = head_forward(features, head)
    of_hidden = dense(hidden, head["kernel"], output(logits, neuron), non_negative=True)
    return dense(features, head["hidden_kernel"], of_hidden, non_negative=True)


def backbone_relevance(model: Any, spectrogram: Any, relevance: Any, average: str = "conserve") -> Any:
    """Spread the features' relevance over the spectrogram.

    Parameters
    ----------
    model : Keras chain of Conv2D (ReLU), MaxPooling2D and a closing GlobalAveragePooling2D.
    spectrogram : shape (batch, frames, bands, planes); may be negative.
    relevance : of the pooled features, shape (batch, features). Relevance is linear in it, so the relevance of several
        heads is added first and needs one pass.
    average : rule of the average pooling, `conserve` or `gradient`.

    Raises
    ------
    TypeError : the model has a layer without a rule here.
    """
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    inputs = [spectrogram]
    for layer in layers:
        inputs.append(layer(inputs[-1]))
    for k in reversed(range(len(layers))):
        relevance = _layer_relevance(layers[k], inputs[k], inputs[k + 1], relevance, average, non_negative=k > 0)
    return relevance


def _layer_relevance(layer: Any, x: Any, y: Any, relevance: Any, average: str, non_negative: bool) -> Any:
    kind = type(layer).__name__
    if kind == "Conv2D" and layer.activation.__name__ == "relu" and layer.dilation_rate == (1, 1):
        padding = layer.padding.upper()
        return convolution(x, tf.convert_to_tensor(layer.kernel), relevance, layer.strides, padding, non_negative)
    if kind == "MaxPooling2D" and layer.pool_size == layer.strides:
        return max_pool(x, y, relevance, layer.pool_size)
    if kind == "GlobalAveragePooling2D":
        return average_pool(x, relevance, average)
    raise TypeError(
        f"layer {layer.name} ({kind}) has no relevance rule: allowed are Conv2D with ReLU, MaxPooling2D without "
        "overlap and GlobalAveragePooling2D, in a chain"
    )
