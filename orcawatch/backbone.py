"""Backbones: what a plugin must offer, how it is found, and its exported form on the edge.

A plugin is a class named in the entry-point group `orcawatch.backbones`; ours come through the same door as
anyone's. `orcawatch.testing.check_backbone` is the conformance kit.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError
from .interpreter import Model
from .plugin import entry_points
from .spectrogram import FrontEnd

Array = NDArray[np.float32]

GROUP = "orcawatch.backbones"


@runtime_checkable
class Backbone(Protocol):
    """What a plugin offers. Only `build_keras` and `load_weights` may import TensorFlow, and only when called.

    The class is called without arguments, or with the one front end to use in place of its own. It may also have
    `weights_file(source) -> Path`: the file that a source of `load_weights` means; without it a path means itself.
    """

    name: str
    feature_size: int
    front_end: FrontEnd

    def build_keras(self) -> Any:
        """New Keras model: spectrograms (batch, *front_end.shape) -> pooled features (batch, feature_size), >= 0.

        The network as it is trained: batch norm, Rescaling and scaled residual sums are allowed,
        `orcawatch.folding.fold` folds them; what is left has a rule in `orcawatch.relevance`.
        """
        ...

    def load_weights(self, model: Any, source: str) -> None:
        """Set published weights: `source` is a local file, or the name of weights to download.

        Raises
        ------
        WeightsError : no such file or name, no network, or tensors that do not fit; the text names what is expected.
        """
        ...


def backbone_names() -> list[str]:
    """Names of the installed plugins."""
    return sorted(entry_points(GROUP))


def load_backbone(name: str, front_end: FrontEnd | None = None) -> Backbone:
    """A new instance of the plugin of that name; raises InputError where none is installed.

    Parameters
    ----------
    name : as in the entry point.
    front_end : used in place of the plugin's own.
    """
    found = entry_points(GROUP)
    if name not in found:
        raise InputError(f"backbone must be one of {sorted(found)}, not {name!r}: install the package that brings it")
    plugin = found[name].load()
    backbone: Backbone = plugin() if front_end is None else plugin(front_end)
    return backbone


class EdgeBackbone:
    """A backbone's exported form: features from one TFLite file, relevance maps from another.

    Signatures: `features(spectrogram) -> features`; `explain(spectrogram, relevance) -> map`, with
    spectrogram (1, *shape), features and relevance (1, feature_size), map (1, *shape).

    The file with `explain` is looked at when this is made, and prepared only while something is explained: that takes
    ten times the memory of the features. It is held open, so that a bundle that is removed meanwhile can be explained.

    Parameters
    ----------
    path : the file with `features`.
    explain_path : the file with `explain`.
    front_end : whose spectrograms it takes.
    feature_size : length of its feature vector.
    threads : processor threads of the interpreter.

    Raises
    ------
    BundleError : a file is no model, or does not fit the front end or the feature size.
    """

    def __init__(
        self, path: Path, explain_path: Path, front_end: FrontEnd, feature_size: int, threads: int = 1
    ) -> None:
        self.front_end = front_end
        self._threads = threads
        self._model = Model(path, threads)
        self._explain_path = explain_path
        self._handle = _opened(explain_path)
        weakref.finalize(self, os.close, self._handle)
        self._state = _state(self._handle)
        spectrogram, features = (1, *front_end.shape), (1, feature_size)
        self._model.require("features", {"spectrogram": spectrogram}, {"features": features})
        explainer = Model(explain_path, threads, self._handle, prepared=False)
        explainer.require("explain", {"relevance": features, "spectrogram": spectrogram}, {"map": spectrogram})

    def features(self, spectrogram: Array) -> Array:
        """Pooled features of one spectrogram (height, width): float32, shape (feature_size,)."""
        batch = spectrogram.reshape(1, *self.front_end.shape)
        return np.asarray(self._model.call("features", {"spectrogram": batch})["features"][0])

    def explain(self, spectrograms: Sequence[Array], relevance: Sequence[Array]) -> list[Array]:
        """Relevance of the features of windows, (feature_size,) each, spread over their rows.

        The planes of one cell are added, and where the front end stretches time, relevance goes back to the rows
        that it came from, so that the map's sum is kept.

        Returns
        -------
        By window, float32, shape (frames, bands); zeros where a window's features have no relevance.

        Raises
        ------
        BundleError : there is no memory to prepare the file, the disk does not give it, or it is not the one any more.
        """
        if _state(self._handle) != self._state:
            raise BundleError(f"{self._explain_path} was written to since it was checked: copy the bundle again")
        front_end, prepared = self.front_end, None
        maps = [np.zeros((front_end.frames, front_end.shape[1]), np.float32) for _ in spectrograms]
        try:
            for k in (k for k, part in enumerate(relevance) if part.any()):
                prepared = prepared or Model(self._explain_path, self._threads, self._handle)
                inputs = {"spectrogram": spectrograms[k].reshape(1, *front_end.shape), "relevance": relevance[k][None]}
                found = prepared.call("explain", inputs)["map"][0].sum(axis=-1)
                maps[k] = np.asarray(front_end.to_rows(found), np.float32)
        finally:
            if prepared is not None:
                prepared.close()
        return maps


def _state(handle: int) -> tuple[int, int]:
    """Size and time of change of an open file."""
    found = os.fstat(handle)
    return found.st_size, found.st_mtime_ns


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as fault:
        raise BundleError(f"{path} cannot be read: {fault.strerror}; copy the bundle again") from fault
