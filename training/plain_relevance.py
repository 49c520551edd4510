"""Deep Taylor through a folded network in plain loops: slow, in double precision, for comparison only.

One window at a time, one loop step per place of a layer's output, NumPy alone. It shares nothing with
`orcawatch.relevance` but the rules that are written there in words, and stands in for iNNvestigate where that cannot
run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cells = tuple[slice, slice]


def plain_relevance(model: Any, spectrogram: Any, relevance: Any, how: str) -> Floats:
    """Relevance of one spectrogram.

    Parameters
    ----------
    model : folded Keras model, as for `orcawatch.relevance.backbone_relevance`.
    spectrogram : shape (height, width, planes).
    relevance : of the pooled features, shape (features,).
    how : `conserve` or `gradient`.

    Returns
    -------
    Shape of the spectrogram.
    """
    calls = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    calls = [node for node in calls if not node.is_input]
    values = {str(id(model.inputs[0])): np.asarray(spectrogram, np.float64)}
    for node in calls:
        values[node.flat_output_ids[0]] = _output(node.layer, [values[name] for name in node.flat_input_ids])
    found = {str(id(model.outputs[0])): np.asarray(relevance, np.float64)}
    for node in reversed(calls):
        inputs, name = [values[source] for source in node.flat_input_ids], node.flat_output_ids[0]
        signed = how == "conserve" and not _rectified(calls, name)
        parts = _relevance(node.layer, inputs, values[name], found[name], how, signed)
        for source, part in zip(node.flat_input_ids, parts):
            found[source] = found.get(source, np.zeros_like(part)) + part
    return found[str(id(model.inputs[0]))]


def _rectified(calls: Sequence[Any], name: str) -> bool:
    """Whether a ReLU, in its layer or after additions, removes a tensor's negative values before others read it."""
    maker = next(node.layer for node in calls if node.flat_output_ids[0] == name)
    if _is_relu(maker):
        return True
    readers = [node for node in calls if name in node.flat_input_ids]
    return bool(readers) and all(
        _is_bare_relu(node.layer) or (_kind(node.layer) == "Add" and _rectified(calls, node.flat_output_ids[0]))
        for node in readers
    )


def _kind(layer: Any) -> str:
    return type(layer).__name__


def _is_relu(layer: Any) -> bool:
    return _kind(layer) == "ReLU" or getattr(getattr(layer, "activation", None), "__name__", "") == "relu"


def _is_bare_relu(layer: Any) -> bool:
    return _kind(layer) in ("ReLU", "Activation") and _is_relu(layer)


def _output(layer: Any, inputs: list[Floats]) -> Floats:
    """What a layer computes from its inputs, each (height, width, planes)."""
    x, kind = inputs[0], _kind(layer)
    if kind == "Conv2D":
        kernel, bias = _weights(layer)
        y = np.stack(
            [(patch[..., None] * kernel[inside]).sum(axis=(0, 1, 2)) for _, patch, inside in _places(layer, x)]
        )
        y = (y + bias).reshape(*_grid(layer, x), -1)
        return np.asarray(np.maximum(y, 0) if _is_relu(layer) else y)
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        pooled = np.max if kind == "MaxPooling2D" else np.mean
        return np.stack([pooled(p, axis=(0, 1)) for _, p, _ in _places(layer, x)]).reshape(*_grid(layer, x), -1)
    if kind == "GlobalAveragePooling2D":
        return np.asarray(x.mean(axis=(0, 1)))
    if kind == "Concatenate":
        return np.concatenate(inputs, axis=-1)
    return np.asarray(np.sum(inputs, axis=0) if kind == "Add" else np.maximum(x, 0))


def _relevance(layer: Any, inputs: list[Floats], y: Floats, relevance: Floats, how: str, signed: bool) -> list[Floats]:
    """Relevance of a layer's inputs from that of its output."""
    x, kind = inputs[0], _kind(layer)
    if kind == "Concatenate":
        return list(np.split(relevance, np.cumsum([part.shape[-1] for part in inputs])[:-1], axis=-1))
    if kind == "Add":
        return [relevance] * len(inputs) if how == "gradient" else list(_proportional(np.stack(inputs), relevance))
    if kind == "GlobalAveragePooling2D":
        flat = x.reshape(-1, x.shape[-1])
        return [_averaged(flat, relevance, how).reshape(x.shape)]
    if kind in ("Activation", "ReLU"):
        return [relevance * (y > 0) if how == "gradient" else relevance]
    out = np.zeros_like(x)
    results = zip(y.reshape(-1, y.shape[-1]), relevance.reshape(-1, y.shape[-1]))
    for (cells, patch, inside), (value, given) in zip(_places(layer, x), results):
        if kind == "Conv2D":
            out[cells] += _convolved(patch, _weights(layer)[0][inside], value, given, signed)
        elif kind == "MaxPooling2D":
            out[cells] += _first_maximum(patch, given)
        else:
            out[cells] += _averaged(patch.reshape(-1, patch.shape[-1]), given, how).reshape(patch.shape)
    return [out]


def _convolved(patch: Floats, kernel: Floats, y: Floats, relevance: Floats, signed: bool) -> Floats:
    """z+ at one place: products (h, w, planes, filters) of the wanted sign share each filter's relevance."""
    sign = np.where(signed & (y < 0), -1.0, 1.0)
    products: Floats = np.maximum(patch[..., None] * kernel * sign, 0)
    total = products.sum(axis=(0, 1, 2))
    return np.asarray(products @ np.divide(relevance, total, out=np.zeros_like(total), where=total > 0))


def _first_maximum(patch: Floats, relevance: Floats) -> Floats:
    flat = patch.reshape(-1, patch.shape[-1])
    out = np.zeros_like(flat)
    out[flat.argmax(axis=0), np.arange(flat.shape[1])] = relevance
    return out.reshape(patch.shape)


def _averaged(cells: Floats, relevance: Floats, how: str) -> Floats:
    """Shares of a pool's cells (cells, planes)."""
    if how == "gradient":
        return np.broadcast_to(relevance / len(cells), cells.shape)
    return _proportional(cells, relevance)


def _proportional(parts: Floats, relevance: Floats) -> Floats:
    """Relevance shared along the first axis by the parts that have the sum's sign."""
    share = np.maximum(parts * np.where(parts.sum(axis=0) < 0, -1.0, 1.0), 0)
    total = share.sum(axis=0)
    return np.asarray(share * np.divide(relevance, total, out=np.zeros_like(total), where=total > 0))


def _weights(layer: Any) -> tuple[Floats, Any]:
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    return kernel, bias[0] if bias else 0.0


def _size(layer: Any) -> tuple[int, int]:
    height, width = layer.kernel_size if _kind(layer) == "Conv2D" else layer.pool_size
    return int(height), int(width)


def _grid(layer: Any, x: Floats) -> tuple[int, int]:
    """Rows and columns of the layer's output."""
    found = [len(_spans(layer, x, axis)) for axis in (0, 1)]
    return found[0], found[1]


def _spans(layer: Any, x: Floats, axis: int) -> list[tuple[slice, slice]]:
    """Of every output along an axis, the cells of x and those of the kernel that lie on them."""
    size, stride, cells = _size(layer)[axis], int(layer.strides[axis]), x.shape[axis]
    outputs = -(-cells // stride) if layer.padding == "same" else (cells - size) // stride + 1
    missing = max((outputs - 1) * stride + size - cells, 0) if layer.padding == "same" else 0
    spans = []
    for start in range(-(missing // 2), -(missing // 2) + outputs * stride, stride):
        low, high = max(start, 0), min(start + size, cells)
        spans.append((slice(low, high), slice(low - start, high - start)))
    return spans


def _places(layer: Any, x: Floats) -> Iterator[tuple[Cells, Floats, Cells]]:
    """For every place of the output, row by row: the cells, x there, and the kernel's part on them."""
    for (rows, kernel_rows), (columns, kernel_columns) in product(_spans(layer, x, 0), _spans(layer, x, 1)):
        yield (rows, columns), x[rows, columns], (kernel_rows, kernel_columns)
