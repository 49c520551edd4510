"""The conformance kit: what any backbone plugin must pass, ours and anyone's.

In a plugin's own tests::

    from orcawatch.testing import check_backbone
    check_backbone(MyBackbone())
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backbone import Backbone
from .errors import OrcawatchError, WeightsError
from .spectrogram import front_end_from_dict, rows_of

Array = NDArray[np.float32]


class ConformanceError(OrcawatchError):
    """A plugin breaks the backbone contract; the text says which clause and what was found."""


def check_backbone(backbone: Backbone, seed: int = 0) -> None:
    """Check every clause of the contract in `orcawatch.backbone.Backbone`; needs TensorFlow.

    Raises
    ------
    ConformanceError : naming the first clause that does not hold.
    """
    _check_attributes(backbone)
    _check_light_import(backbone)
    _check_front_end(backbone)
    model = backbone.build_keras()
    spectrograms = example_spectrograms(backbone, seed)
    features = _check_features(backbone, model, spectrograms)
    folded = _check_folding(model, spectrograms, features)
    _check_relevance(backbone, folded, spectrograms, features)
    _check_missing_weights(backbone, model)


def example_spectrograms(backbone: Backbone, seed: int = 0) -> Array:
    """A batch to try a backbone on: noise, a sweep, and silence, shape (3, *front_end.shape)."""
    front_end = backbone.front_end
    length = front_end.frame_samples + (front_end.frames - 1) * front_end.hop_samples
    noise = np.random.default_rng(seed).normal(0, 0.1, length)
    phase = 2 * np.pi * np.cumsum(np.linspace(500, front_end.rate_hz / 4, length)) / front_end.rate_hz
    audio = np.stack([noise, 0.3 * np.sin(phase), np.zeros(length)], axis=1).astype(np.float32)
    rows = front_end.rows(audio).transpose(1, 0, 2)
    return front_end.finish(rows).reshape(3, *front_end.shape)


def _require(holds: bool, clause: str) -> None:
    if not holds:
        raise ConformanceError(clause)


def _check_attributes(backbone: Backbone) -> None:
    _require(isinstance(backbone, Backbone), f"{type(backbone).__name__} lacks a part of orcawatch.backbone.Backbone")
    _require(backbone.name.isidentifier(), f"name must be a plain identifier, not {backbone.name!r}")
    _require(backbone.feature_size > 0, f"feature_size must be positive, not {backbone.feature_size}")


def _check_light_import(backbone: Backbone) -> None:
    module, name = type(backbone).__module__, type(backbone).__qualname__
    code = f"import sys, importlib; importlib.import_module({module!r}); sys.exit('tensorflow' in sys.modules)"
    with tempfile.TemporaryDirectory() as elsewhere:
        light = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, check=False).returncode == 0
    _require(light, f"importing {module} (of {name}) must work and not load TensorFlow: import it where it is used")


def _check_front_end(backbone: Backbone) -> None:
    front_end = backbone.front_end
    _require(front_end_from_dict(front_end.to_dict()) == front_end, "front_end must survive to_dict and back")
    again = type(backbone)(front_end)  # type: ignore[call-arg]
    _require(again.front_end == front_end, "the class must take the front end to use as its only argument")
    audio = np.random.default_rng(1).normal(0, 0.1, (2 * front_end.rate_hz, 1)).astype(np.float32)
    rows = rows_of(front_end, audio, front_end.rate_hz)
    _require(len(rows) >= front_end.frames, "two seconds of audio must fill one window")
    finished = front_end.finish(rows[: front_end.frames, 0])
    _require(finished.shape == front_end.shape[:2], f"finish must give {front_end.shape[:2]}, not {finished.shape}")
    grid = (front_end.frames, front_end.shape[1])
    back = front_end.to_rows(finished)
    _require(back.shape == grid, f"to_rows must give (frames, bands), {grid}, not {back.shape}")
    _require(np.allclose(back.sum(), finished.sum(), rtol=1e-4), "to_rows must keep the sum, or relevance is lost")


def _check_features(backbone: Backbone, model: Any, spectrograms: Array) -> Array:
    features = np.asarray(model(spectrograms))
    expected = (len(spectrograms), backbone.feature_size)
    _require(features.shape == expected, f"features must have shape {expected}, not {features.shape}")
    _require(bool(np.isfinite(features).all()), "features must be finite for noise, a sweep and silence")
    _require(bool((features >= 0).all()), "features must be >= 0 (pooled ReLU), or z+ relevance is not conserved")
    single = np.asarray(model(spectrograms[:1]))
    _require(np.allclose(single, features[:1], atol=1e-5), "features of a window must not depend on its batch")
    return features


def _check_folding(model: Any, spectrograms: Array, features: Array) -> Any:
    """The network as it is exported: batch norm and the like folded into its convolutions."""
    from .folding import fold

    folded = fold(model)
    apart = float(np.abs(np.asarray(folded(spectrograms)) - features).max())
    close = apart <= 1e-3 * max(1.0, float(features.max()))
    _require(close, f"the folded network must give the same features, not {apart:.2g} apart: see orcawatch.folding")
    return folded


def _check_relevance(backbone: Backbone, folded: Any, spectrograms: Array, features: Array) -> None:
    """The sum is kept for noise; where a spectrogram is 0 the biases alone excite a network, and z+ leaves them out."""
    from .relevance import backbone_relevance

    relevance = np.asarray(backbone_relevance(folded, spectrograms, features))
    _require(relevance.shape == spectrograms.shape, "relevance must have the spectrogram's shape")
    of_rows = backbone.front_end.to_rows(relevance[..., 0])
    before, after = features.sum(axis=1), of_rows.sum(axis=(1, 2))
    kept = bool(np.isclose(before[0], after[0], rtol=1e-3)) and bool((after <= before * 1.001).all())
    _require(kept, f"relevance must be conserved for noise, and never grow: {before} went in, {after} came out")


def _check_missing_weights(backbone: Backbone, model: Any) -> None:
    missing = str(Path(tempfile.gettempdir()) / "no-such-folder" / "weights")
    if hasattr(backbone, "weights_file"):
        named = backbone.weights_file(missing)
        _require(named == Path(missing), f"weights_file must give the path that it was given, not {named}")
    try:
        backbone.load_weights(model, missing)
    except WeightsError as fault:
        _require(missing in str(fault), f"the error for missing weights must name the file expected, not {fault}")
    else:
        raise ConformanceError("load_weights must raise WeightsError where the file does not exist")
