"""Deep Taylor relevance: the rules, once, for training, for what is exported to the edge, and for the tests.

The rules are those of iNNvestigate 2.1.2's `deep_taylor` (paper section 2.3; Montavon et al. 2017) as it really
behaves: every layer with a kernel, the linear output included, takes the z+ rule (alpha 1, beta 0, bias ignored),
analysis starts at the logits with a ReLU on the chosen one, and max-pooling sends relevance to the first maximum.
For average pooling and residual additions iNNvestigate follows the plain gradient, which loses and multiplies
relevance; the conserving split is in proportion to the activations. Pictures use `conserve`, comparison with
iNNvestigate uses `gradient`.

This module needs TensorFlow (extra `train`) and is never imported on the edge, which runs its TFLite export. It uses
only operations that TFLite has built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from .folding import nodes

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


def linear_convolution(
    x: Any, y: Any, kernel: Any, relevance: Any, strides: tuple[int, int], padding: str, non_negative: bool = False
) -> Any:
    """`convolution` without ReLU whose output y can be wanted negative: there the negative products count, z-.

    z+ alone would hand the relevance of a negative output to what made it less negative, and lose it where nothing did.
    """
    to_up, to_down = _by_sign(y, relevance)
    up = convolution(x, kernel, to_up, strides, padding, non_negative)
    return up + convolution(x, -kernel, to_down, strides, padding, non_negative)


def add(parts: list[tuple[Any, bool]], relevance: Any, how: str) -> list[Any]:
    """Relevance of the terms of a sum, each (tensor, known to be >= 0), all of one shape.

    `conserve`: in proportion to the parts that have the sum's sign, R_k = (x_k)+ / sum (x_l)+ R where the sum is
    positive, with (x)- where it is negative. `gradient`: all of it to every term, as iNNvestigate does, which
    multiplies relevance at every residual addition.
    """
    if how == "gradient":
        return [relevance for _ in parts]
    if all(non_negative for _, non_negative in parts):
        share = safe_divide(relevance, tf.add_n([x for x, _ in parts]))
        return [x * share for x, _ in parts]
    positive, negative = ([tf.nn.relu(sign * x) for x, _ in parts] for sign in (1.0, -1.0))
    up, down = tf.add_n(positive), tf.add_n(negative)
    to_up, to_down = _by_sign(up - down, relevance)
    shares = safe_divide(to_up, up), safe_divide(to_down, down)
    return [a * shares[0] + b * shares[1] for a, b in zip(positive, negative)]


def _by_sign(total: Any, relevance: Any) -> tuple[Any, Any]:
    """Relevance of the positive and of the negative sums."""
    is_negative = tf.cast(total < 0, relevance.dtype)
    return relevance * (1.0 - is_negative), relevance * is_negative


def max_pool(x: Any, pooled: Any, relevance: Any, size: tuple[int, int], strides: tuple[int, int], padding: str) -> Any:
    """All of a pool's relevance to its first maximum (row by row), as the gradient does.

    Parameters
    ----------
    x : the pool's input, shape (batch, height, width, planes).
    pooled, relevance : the pool's output and its relevance, shape (batch, rows, columns, planes).
    size, strides : of the pool, which may overlap.
    padding : `VALID` or `SAME`.

    Returns
    -------
    Relevance of x.
    """
    spans = [_span(x.shape[k + 1], pooled.shape[k + 1], size[k], strides[k], padding) for k in (0, 1)]
    padded = _pad(x, [(span.before, span.after) for span in spans], x.dtype.min)
    free, parts = 1.0, {}
    for i in range(size[0]):
        for j in range(size[1]):
            cells = padded[:, spans[0].cells(i), spans[1].cells(j)]
            first = free * tf.cast(cells == pooled, x.dtype)
            parts[i, j] = relevance * first
            free = free - first
    return _scatter(parts, spans)


class _Span(NamedTuple):
    """One axis of a pool: `outputs` pools, one every `stride` cells, over `inputs` cells between two paddings."""

    inputs: int
    outputs: int
    size: int
    stride: int
    before: int
    after: int

    def cells(self, offset: int) -> slice:
        """The cell at that offset of every pool, of the padded axis."""
        return slice(offset, offset + (self.outputs - 1) * self.stride + 1, self.stride)


def _span(inputs: int, outputs: int, size: int, stride: int, padding: str) -> _Span:
    missing = max((outputs - 1) * stride + size - inputs, 0) if padding == "SAME" else 0
    return _Span(inputs, outputs, size, stride, missing // 2, missing - missing // 2)


def _pad(x: Any, sides: list[tuple[int, int]], value: float = 0.0) -> Any:
    """Padding of height and width."""
    if not any(before or after for before, after in sides):
        return x
    return tf.pad(x, [(0, 0), *sides, (0, 0)], constant_values=value)


def _scatter(parts: Mapping[tuple[int, int], Any], spans: list[_Span]) -> Any:
    """Sum of what every pool gives to its cells; parts (batch, rows, columns, planes) by offset (row, column).

    Cells whose position has one remainder by the stride form a coarse grid; the offsets of that remainder are added
    there, shifted by whole strides, then the grids are woven together.
    """
    rows = []
    for i in range(spans[0].stride):
        row = [_coarse(parts, spans, (i, j)) for j in range(spans[1].stride)]
        rows.append(_interleave(row, axis=2))
    woven = _interleave(rows, axis=1)
    if [span.inputs for span in spans] == list(woven.shape[1:3]):
        return woven
    first, second = (slice(span.before, span.before + span.inputs) for span in spans)
    return woven[:, first, second]


def _coarse(parts: Mapping[tuple[int, int], Any], spans: list[_Span], phase: tuple[int, int]) -> Any:
    """Sum of the offsets whose remainder by the stride is `phase`, on the coarse grid that covers the padded axes."""
    lengths = [-(-(span.before + span.inputs + span.after) // span.stride) for span in spans]
    found = []
    for offset, part in parts.items():
        if all(offset[k] % spans[k].stride == phase[k] for k in (0, 1)):
            shifts = [offset[k] // spans[k].stride for k in (0, 1)]
            found.append(_pad(part, [(shifts[k], lengths[k] - shifts[k] - spans[k].outputs) for k in (0, 1)]))
    if found:
        return tf.add_n(found)
    empty = tf.zeros_like(next(iter(parts.values())))
    return _pad(empty, [(0, lengths[k] - spans[k].outputs) for k in (0, 1)])


def _interleave(parts: list[Any], axis: int) -> Any:
    """Weave k tensors of n places along `axis` into one of n k places."""
    if len(parts) == 1:
        return parts[0]
    stacked = tf.stack(parts, axis=axis + 1)
    shape = [-1 if i == 0 else size for i, size in enumerate(parts[0].shape)]
    shape[axis] *= len(parts)
    return tf.reshape(stacked, shape)


def average_pool(
    x: Any,
    relevance: Any,
    size: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
    how: str,
    non_negative: bool = False,
) -> Any:
    """Relevance of an average pool's inputs; shapes and parameters as `max_pool`.

    `conserve`: in proportion to the activations, R_i = sum_p x_i / (sum of x in p) R_p over the pools p that hold i;
    where x can be negative, to the parts that have the sign of the pool's sum. `gradient`: equally, as iNNvestigate
    does; a pool at the edge divides by its cells inside.
    """
    spans = [_span(x.shape[k + 1], relevance.shape[k + 1], size[k], strides[k], padding) for k in (0, 1)]
    if how == "gradient":
        return _spread(relevance / _sums(tf.ones_like(x[:1, :, :, :1]), spans), spans)
    if non_negative:
        return x * _spread(safe_divide(relevance, _sums(x, spans)), spans)
    up, down = tf.nn.relu(x), tf.nn.relu(-x)
    sums = _sums(up, spans), _sums(down, spans)
    to_up, to_down = _by_sign(sums[0] - sums[1], relevance)
    return up * _spread(safe_divide(to_up, sums[0]), spans) + down * _spread(safe_divide(to_down, sums[1]), spans)


def _sums(x: Any, spans: list[_Span]) -> Any:
    """Sum of every pool's cells; padding counts as 0."""
    size, strides = zip(*((span.size, span.stride) for span in spans))
    padded = _pad(x, [(span.before, span.after) for span in spans])
    return tf.nn.avg_pool2d(padded, size, strides, "VALID") * float(size[0] * size[1])


def _spread(share: Any, spans: list[_Span]) -> Any:
    """For every cell, the sum of the shares of the pools that hold it: `_sums` transposed."""
    sparse = [span._replace(before=0, after=0, inputs=(span.outputs - 1) * span.stride + 1) for span in spans]
    if any(span.stride > 1 for span in spans):
        share = _scatter({(0, 0): share}, sparse)
    sides = [(s.size - 1 - s.before, s.inputs + s.before - d.inputs) for s, d in zip(spans, sparse)]
    size = [span.size for span in spans]
    return tf.nn.avg_pool2d(_pad(share, sides), size, 1, "VALID") * float(size[0] * size[1])


def global_average_pool(x: Any, relevance: Any, how: str, non_negative: bool = True) -> Any:
    """`average_pool` of one pool over everything; x (batch, height, width, planes), relevance (batch, planes)."""
    relevance = relevance[:, tf.newaxis, tf.newaxis, :]
    if how == "gradient":
        return tf.broadcast_to(relevance, tf.shape(x)) / float(x.shape[1] * x.shape[2])
    if non_negative:
        return x * safe_divide(relevance, tf.reduce_sum(x, axis=(1, 2), keepdims=True))
    up, down = tf.nn.relu(x), tf.nn.relu(-x)
    sums = [tf.reduce_sum(part, axis=(1, 2), keepdims=True) for part in (up, down)]
    to_up, to_down = _by_sign(sums[0] - sums[1], relevance)
    return up * safe_divide(to_up, sums[0]) + down * safe_divide(to_down, sums[1])


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

    One forward pass, whose activations the reverse pass uses. Rules, by layer:

    - Conv2D, with ReLU or linear: z+ (`convolution`), the bias ignored (Montavon et al. 2017, paper section 2.3).
      Under `conserve`, z- for the negative outputs of a linear one that no ReLU follows, directly or after additions
      (`linear_convolution`).
    - MaxPooling2D: to the first maximum (`max_pool`), the gradient.
    - AveragePooling2D, GlobalAveragePooling2D and Add: `conserve` in proportion to the activations (`average_pool`,
      `add`), which keeps the sum; `gradient` as iNNvestigate 2.1.2's `deep_taylor`.
    - Concatenate: each input its planes; a tensor that several layers read, or one layer several times, gets the sum.
    - ReLU by itself: unchanged; under `gradient` nothing where it gave 0.

    Parameters
    ----------
    model : folded Keras model (`orcawatch.folding.fold`) of these layers, spectrogram -> pooled features.
    spectrogram : shape (batch, frames, bands, planes); may be negative.
    relevance : of the pooled features, shape (batch, features). Relevance is linear in it, so the relevance of several
        heads is added first and needs one pass.
    average : `conserve` (pictures) or `gradient` (comparison with iNNvestigate).

    Returns
    -------
    Relevance of the spectrogram, in its shape. Under `conserve` it adds up to the features' relevance, but for what
    reaches a convolution's output that only its bias drives.

    Raises
    ------
    TypeError : the model has a layer without a rule here.
    ValueError : `average` is neither.
    """
    if average not in ("conserve", "gradient"):
        raise ValueError(f"average must be conserve or gradient, not {average!r}")
    calls = [node for node in nodes(model) if not node.is_input]
    values, rectified = _forward(model, calls, spectrogram), _rectified(calls)
    collected: dict[str, list[Any]] = {str(id(model.outputs[0])): [relevance]}
    for node in reversed(calls):
        name = node.flat_output_ids[0]
        given = tf.add_n(collected.pop(name))
        inputs = [values[source] for source in node.flat_input_ids]
        plain = average == "gradient" or name in rectified
        found = _layer_relevance(node.layer, inputs, values[name][0], given, average, plain)
        for source, part in zip(node.flat_input_ids, found):
            collected.setdefault(source, []).append(part)
    return tf.add_n(collected[str(id(model.inputs[0]))])


Known = tuple[Any, bool]  # a tensor, and whether it is known to be >= 0


def _forward(model: Any, calls: list[Any], spectrogram: Any) -> dict[str, Known]:
    """Every tensor of the model by the id of its symbol."""
    values: dict[str, Known] = {str(id(model.inputs[0])): (tf.convert_to_tensor(spectrogram), False)}
    for node in calls:
        tensors, known = zip(*(values[name] for name in node.flat_input_ids))
        output = node.layer(tensors[0] if len(tensors) == 1 else list(tensors))
        values[node.flat_output_ids[0]] = output, _is_relu(node.layer) or (not _has_kernel(node.layer) and all(known))
    return values


def _rectified(calls: list[Any]) -> set[str]:
    """Tensors whose negative values a ReLU removes before anything else but additions reads them."""
    found: set[str] = set()
    readers: dict[str, list[bool]] = {}
    for node in reversed(calls):
        name = node.flat_output_ids[0]
        if _is_relu(node.layer) or all(readers.get(name, [False])):
            found.add(name)
        passes = type(node.layer).__name__ in ("Activation", "ReLU") and _is_relu(node.layer)
        for source in node.flat_input_ids:
            added = type(node.layer).__name__ == "Add" and name in found
            readers.setdefault(source, []).append(passes or added)
    return found


def _is_relu(layer: Any) -> bool:
    if type(layer).__name__ == "ReLU":
        return layer.max_value is None and not layer.negative_slope and not layer.threshold
    return getattr(getattr(layer, "activation", None), "__name__", "") == "relu"


def _has_kernel(layer: Any) -> bool:
    return bool(layer.weights)


def _layer_relevance(layer: Any, inputs: list[Known], y: Any, relevance: Any, average: str, plain: bool) -> list[Any]:
    """Relevance of each of the layer's inputs; `plain`: z+ for a convolution, whatever its output's sign."""
    kind, (x, non_negative) = type(layer).__name__, inputs[0]
    if kind == "Conv2D" and _has_rule(layer):
        kernel, padding = tf.convert_to_tensor(layer.kernel), layer.padding.upper()
        if plain:
            return [convolution(x, kernel, relevance, layer.strides, padding, non_negative)]
        return [linear_convolution(x, y, kernel, relevance, layer.strides, padding, non_negative)]
    if kind == "MaxPooling2D":
        return [max_pool(x, y, relevance, layer.pool_size, layer.strides, layer.padding.upper())]
    if kind == "AveragePooling2D":
        pool = layer.pool_size, layer.strides, layer.padding.upper()
        return [average_pool(x, relevance, *pool, average, non_negative)]
    if kind == "GlobalAveragePooling2D" and not layer.keepdims:
        return [global_average_pool(x, relevance, average, non_negative)]
    if kind == "Concatenate" and layer.axis in (-1, 3):
        return list(tf.split(relevance, [int(part.shape[-1]) for part, _ in inputs], axis=-1))
    if kind == "Add":
        return add(inputs, relevance, average)
    if kind in ("Activation", "ReLU") and _is_relu(layer):
        return [relevance * tf.cast(y > 0, y.dtype) if average == "gradient" else relevance]
    raise TypeError(
        f"layer {layer.name} ({kind}) has no relevance rule: allowed are Conv2D (ReLU or linear, without dilation and "
        "groups), MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D, Concatenate of planes, Add and ReLU; batch "
        "norm and rescaling are folded first (orcawatch.folding.fold)"
    )


def _has_rule(layer: Any) -> bool:
    linear = layer.activation.__name__ == "linear"
    return (_is_relu(layer) or linear) and tuple(layer.dilation_rate) == (1, 1) and layer.groups == 1
