"""Folding: a trained network as an equal one for inference, of the layers that relevance and export know.

Batch norm, rescaling and the residual scale of Inception-ResNet are affine, so they fold exactly into the convolution
beside them; dropout and linear activations do nothing at inference and go; a ReLU moves into its convolution. What is
left is a graph of convolutions with bias, pools, concatenations and additions. Deep Taylor needs that: with batch norm
left in, the sum of relevance exceeds the explained logit by orders of magnitude (6e6 times for Inception V3).

Storage: a folded network's weights are written in the order of its `get_weights()`. That order is a function of the
graph alone: Keras sorts layers by their distance from the output, farthest first, and equally far ones by a walk from
the output backwards that takes a layer's inputs in order; each convolution gives its kernel, then its bias. The
order changes neither with names nor with what else the process has built. Layers are named by their kind and their
place in the graph (`conv2d_001`), the input `spectrogram`.

This module needs TensorFlow (extra `train`), which it imports where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Floats = NDArray[np.float64]
Affine = Optional[tuple[Floats, Floats]]  # y = a x + b per plane, still to be folded; None is y = x

ITSELF_AT_INFERENCE = ("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout")


def fold(model: Any) -> Any:
    """An equal network for inference.

    Parameters
    ----------
    model : Keras model of functional form with one input and one output (models inside it are opened), trained under
        any precision policy.

    Returns
    -------
    New Keras model that computes in float32: Conv2D with bias and ReLU inside, no BatchNormalization, no Rescaling, no
    residual scale, no Dropout; equal to `model` to rounding. A model without any of these comes back with the same
    weights in the same order. The weights are copies.

    Raises
    ------
    InputError : the graph has several inputs or outputs, or holds a batch norm, rescaling or scale that cannot be
        folded exactly; the text names the layer and the cure.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(
            f"a network must have one input and one output to be folded, not {len(model.inputs)} and "
            f"{len(model.outputs)}"
        )
    graph = _Graph()
    value = graph.add("InputLayer", [], {"shape": model.inputs[0].shape[1:]})
    (output,) = _translate(graph, model, [value])
    if output.affine is not None:
        raise _unfoldable(output, "the network ends with it")
    return _build(graph, output, model.name)


def nodes(model: Any) -> Iterator[Any]:
    """A functional model's nodes (one per call of a layer), inputs first: `layer`, `flat_input_ids`, `outputs`."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


@dataclass
class _Step:
    """One layer of the folded network: `settings` of its construction, `weights`, and the steps it reads."""

    kind: str
    sources: list[_Step]
    settings: dict[str, Any]
    weights: list[NDArray[Any]] = field(default_factory=list)

    def is_linear_convolution(self) -> bool:
        return self.kind == "Conv2D" and self.settings["activation"] == "linear"


@dataclass
class _Value:
    """A tensor of the network: a step's output under an affine map that is not folded yet.

    `sole` : no other layer reads the step's output, so the step may be changed.
    `by` : name of the layer that asked for the affine map.
    """

    step: _Step
    affine: Affine = None
    sole: bool = True
    by: str = ""


@dataclass
class _Graph:
    """Steps in the order of the computation."""

    steps: list[_Step] = field(default_factory=list)

    def add(self, kind: str, sources: Sequence[_Value], settings: dict[str, Any], weights: Any = ()) -> _Value:
        for source in sources:
            if source.affine is not None:
                raise _unfoldable(source, f"a {kind} reads it")
        self.steps.append(_Step(kind, [source.step for source in sources], settings, list(weights)))
        return _Value(self.steps[-1])


def _unfoldable(value: _Value, why: str) -> InputError:
    return InputError(
        f"layer {value.by} cannot be folded: {why}. Exact are batch norm, rescaling and scales right after a linear "
        "Conv2D that nothing else reads, or before Conv2D layers with padding `valid` (a concatenation may lie "
        "between); place it so"
    )


def _translate(graph: _Graph, model: Any, inputs: Sequence[_Value]) -> list[_Value]:
    """Add a model's layers to the graph; inputs and result in the order of the model's inputs and outputs."""
    readers = Counter(name for node in nodes(model) if not node.is_input for name in node.flat_input_ids)
    readers.update(str(id(tensor)) for tensor in model.outputs)
    values: dict[str, _Value] = {}

    def store(names: Sequence[str], found: Sequence[_Value]) -> None:
        values.update((name, replace(v, sole=v.sole and readers[name] <= 1)) for name, v in zip(names, found))

    store([str(id(tensor)) for tensor in model.inputs], inputs)
    for node in nodes(model):
        if not node.is_input:
            store(node.flat_output_ids, _layer(graph, node, [values[name] for name in node.flat_input_ids]))
    return [values[str(id(tensor))] for tensor in model.outputs]


def _layer(graph: _Graph, node: Any, sources: list[_Value]) -> list[_Value]:
    layer = node.layer
    kind = type(layer).__name__
    if hasattr(layer, "_nodes_by_depth"):
        return _translate(graph, layer, sources)
    if kind in ITSELF_AT_INFERENCE or (kind == "Activation" and _activation(layer) == "linear"):
        return sources
    if kind in RULES:
        return [RULES[kind](graph, layer, sources)]
    return [_other(graph, node, sources)]


def _activation(layer: Any) -> str:
    return str(getattr(layer.activation, "__name__", layer.activation))


def _convolution(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    if layer.data_format != "channels_last":
        raise InputError(f"layer {layer.name} must have data_format channels_last, not {layer.data_format}")
    kernel, *bias = [np.asarray(weight) for weight in layer.get_weights()]
    names = ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups")
    settings = {name: getattr(layer, name) for name in names}
    settings |= {"activation": "linear", "use_bias": bool(bias)}
    (source,) = sources
    if source.affine is not None:
        kernel, bias = _fold_before(layer, source, kernel, bias)
        settings["use_bias"] = True
    value = graph.add("Conv2D", [_Value(source.step)], settings, [kernel, *bias])
    return _activated(graph, value, _activation(layer))


def _fold_before(layer: Any, source: _Value, kernel: Any, bias: list[Any]) -> tuple[Any, list[Any]]:
    """Kernel and bias of a convolution that reads a x + b instead of x."""
    a, b = source.affine or (np.ones(1), np.zeros(1))
    if b.any() and layer.padding != "valid":
        why = f"{layer.name} pads its edges with zeros, which a x + b is not (padding must be `valid`)"
        raise _unfoldable(source, why)
    if layer.groups != 1:
        raise _unfoldable(source, f"{layer.name} has groups")
    exact = kernel.astype(np.float64)
    offset = np.einsum("hwio,i->o", exact, np.broadcast_to(b, exact.shape[2]))
    start = bias[0].astype(np.float64) if bias else 0.0
    return (exact * a.reshape(1, 1, -1, 1)).astype(np.float32), [np.asarray(start + offset, np.float32)]


def _activated(graph: _Graph, value: _Value, name: str) -> _Value:
    if name == "linear":
        return value
    free = value.sole and value.affine is None and value.step.kind == "Conv2D"
    if name == "relu" and free and value.step.settings["activation"] in ("linear", "relu"):
        value.step.settings["activation"] = "relu"
        return value
    return graph.add("Activation", [value], {"activation": name})


def _batch_norm(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    axis = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)[-1]
    if axis not in (-1, layer.input_spec.ndim - 1):
        raise InputError(f"batch norm {layer.name} must be over the last axis, not {axis}")
    mean, variance = (np.asarray(w, np.float64) for w in (layer.moving_mean.numpy(), layer.moving_variance.numpy()))
    a = (layer.gamma.numpy() if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
    b = (layer.beta.numpy() if layer.center else 0.0) - mean * a
    return _mapped(sources[0], a, b, layer.name)


def _rescaling(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    a, b = (np.atleast_1d(np.asarray(value, np.float64)) for value in (layer.scale, layer.offset))
    return _mapped(sources[0], a, b, layer.name)


def _residual_scale(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    """`CustomScaleLayer` of keras.applications: x + scale r."""
    identity, residual = sources
    if layer.scale != 1:
        residual = _mapped(residual, np.array([float(layer.scale)]), np.zeros(1), layer.name)
    return graph.add("Add", [identity, residual], {})


def _mapped(value: _Value, a: Floats, b: Floats, by: str) -> _Value:
    """a x + b of a value: inside its convolution where that is allowed, else left for the layers that read it."""
    if value.affine is None and value.sole and value.step.is_linear_convolution():
        kernel, *bias = value.step.weights
        start = bias[0].astype(np.float64) if bias else 0.0
        offset = np.broadcast_to(start * a + b, kernel.shape[-1:])
        value.step.weights = [np.asarray(kernel * a, np.float32), np.array(offset, np.float32)]
        value.step.settings["use_bias"] = True
        return value
    if value.affine is not None:
        a, b = value.affine[0] * a, value.affine[1] * a + b
    return _Value(value.step, (a, b), value.sole, by)


def _concatenate(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    """The affine maps of the parts become one of the whole."""
    value = graph.add("Concatenate", [_Value(source.step) for source in sources], {"axis": layer.axis})
    waiting = [source for source in sources if source.affine is not None]
    if not waiting:
        return value
    if layer.axis not in (-1, 3):
        raise _unfoldable(waiting[0], f"{layer.name} joins along axis {layer.axis}, not the planes")
    planes = [int(shape[-1]) for shape in layer.input_shape]
    maps = [source.affine or (np.ones(1), np.zeros(1)) for source in sources]
    a, b = (np.concatenate([np.broadcast_to(m[k], n) for m, n in zip(maps, planes)]) for k in (0, 1))
    return _Value(value.step, (a, b), True, waiting[0].by)


def _relu(graph: _Graph, layer: Any, sources: list[_Value]) -> _Value:
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        return graph.add("ReLU", sources, _config(layer))
    return _activated(graph, sources[0], "relu")


def _other(graph: _Graph, node: Any, sources: list[_Value]) -> _Value:
    layer = node.layer
    if any(value is not None for value in node.call_kwargs.values()) or type(layer).__name__ == "TFOpLambda":
        raise InputError(
            f"layer {layer.name} ({type(layer).__name__}) is an operation with arguments, which cannot be rebuilt: "
            "write it as a Keras layer"
        )
    return graph.add(type(layer).__name__, sources, {"class": type(layer), **_config(layer)}, layer.get_weights())


def _config(layer: Any) -> dict[str, Any]:
    return {key: value for key, value in layer.get_config().items() if key not in ("name", "dtype", "trainable")}


RULES: dict[str, Callable[[_Graph, Any, list[_Value]], _Value]] = {
    "Conv2D": _convolution,
    "BatchNormalization": _batch_norm,
    "Rescaling": _rescaling,
    "CustomScaleLayer": _residual_scale,
    "Activation": lambda graph, layer, sources: _activated(graph, sources[0], _activation(layer)),
    "ReLU": _relu,
    "Concatenate": _concatenate,
}


def _build(graph: _Graph, output: _Value, name: str) -> Any:
    """The Keras model of a graph."""
    from tensorflow.keras import Model, layers

    tensors: dict[int, Any] = {}
    places: Counter[str] = Counter()
    for step in graph.steps:
        if step.kind == "InputLayer":
            tensors[id(step)] = first = layers.Input(step.settings["shape"], name="spectrogram", dtype="float32")
            continue
        places[step.kind] += 1
        layer = _new_layer(step, f"{step.kind.lower()}_{places[step.kind]:03d}")
        given = [tensors[id(source)] for source in step.sources]
        tensors[id(step)] = layer(given[0] if len(given) == 1 else given)
        layer.set_weights(step.weights)
    return Model(first, tensors[id(output.step)], name=name)


def _new_layer(step: _Step, name: str) -> Any:
    from tensorflow.keras import layers

    settings = {**step.settings, "name": name, "dtype": "float32"}
    kept = settings.pop("class", None)
    return kept.from_config(settings) if kept is not None else getattr(layers, step.kind)(**settings)
