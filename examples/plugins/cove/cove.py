"""Cove: a small residual network as a backbone for orcawatch, 700,000 weights for a buoy with little power.

Log-mel from 300 Hz to 10 kHz in, 128 pooled features out. A stem, three stages of two residual blocks (He et al. 2016)
with batch norm and average-pooled shortcuts, global average over time and frequency. Nothing but layers that have a
relevance rule in `orcawatch.relevance` once batch norm is folded in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orcawatch.errors import WeightsError
from orcawatch.spectrogram import FrontEnd, LogMel

STAGES = (32, 64, 128)


class Cove:
    """The backbone plugin `cove`.

    Parameters
    ----------
    front_end : a log-mel with the call's band; another one needs weights that were trained with it.
    """

    name = "cove"
    feature_size = STAGES[-1]

    def __init__(self, front_end: FrontEnd | None = None) -> None:
        self.front_end: FrontEnd = front_end or LogMel(
            rate_hz=24000, fft_size=1024, low_hz=300.0, high_hz=10000.0, offset=0.001, normalise="band_floor"
        )

    def build_keras(self) -> Any:
        """New network with random weights: (batch, *front_end.shape) -> (batch, 128), >= 0."""
        from tensorflow.keras import Model, layers

        first = layers.Input(self.front_end.shape, name="spectrogram")
        x = convolved(first, 16, "stem")
        for stage, filters in enumerate(STAGES, start=1):
            x = layers.AveragePooling2D(name=f"pool{stage}")(x)
            x = residual(x, filters, f"block{stage}a")
            x = residual(x, filters, f"block{stage}b")
        return Model(first, layers.GlobalAveragePooling2D(name="features")(x), name=self.name)

    def load_weights(self, model: Any, source: str) -> None:
        """Set weights that `save_weights` wrote.

        Raises
        ------
        WeightsError : the file is missing, unreadable, or holds other arrays; nothing is set then.
        """
        expected = {weight.name: tuple(weight.shape) for weight in model.weights}
        arrays = read_arrays(Path(source))
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise WeightsError(f"{source}: {wrong[0]} is missing, left over or of another shape: not Cove's weights")
        model.set_weights([arrays[weight.name] for weight in model.weights])


def convolved(x: Any, filters: int, name: str, size: int = 3, activation: str | None = "relu") -> Any:
    """Convolution, batch norm and, unless `activation` is None, ReLU."""
    from tensorflow.keras import layers

    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return x if activation is None else layers.Activation(activation, name=f"{name}_relu")(x)


def residual(x: Any, filters: int, name: str) -> Any:
    """Two convolutions, added to what came in, which is widened where that is needed."""
    from tensorflow.keras import layers

    inner = convolved(x, filters, f"{name}1")
    inner = convolved(inner, filters, f"{name}2", activation=None)
    if x.shape[-1] != filters:
        x = convolved(x, filters, f"{name}_wide", size=1, activation=None)
    return layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_sum")([inner, x]))


def save_weights(model: Any, path: Path) -> None:
    """Write a model's weights for `Cove.load_weights`, an .npz file."""
    np.savez(path, **{weight.name: weight.numpy() for weight in model.weights})


def read_arrays(path: Path) -> dict[str, Any]:
    """Arrays of an .npz file by name; raises WeightsError where it cannot be read."""
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: Cove has none to download; name an .npz file, or train from scratch")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{path} is no .npz file of weights: {fault}") from fault
