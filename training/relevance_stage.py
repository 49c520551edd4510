"""Asks iNNvestigate, in its own process, for the relevance of a model's inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from .heads import KEYS, Head, build

Array = NDArray[np.float32]

WORKER = "orcawatch.training.innvestigate_worker"
HIGHEST = -1
NOISE, ORCA = 0, 1
ERROR_TAIL = 2000


@dataclass(frozen=True)
class Relevance:
    """Deep Taylor relevance of a model's inputs.

    Attributes
    ----------
    values : shaped like the inputs, samples first.
    logits : the model's outputs, shape (samples, 2).
    peak_mb : memory of the process that computed it.
    seconds : of the analysis alone, without starting the process and building the model.
    versions : what computed it.
    """

    values: Array
    logits: Array
    peak_mb: float
    seconds: float
    versions: str


def analyse(
    model: Any, inputs: Array, neuron: int = HIGHEST, batch_size: int = 256, limit_s: float | None = None
) -> Relevance:
    """iNNvestigate's `deep_taylor` of a Keras model (paper section 2.3).

    Parameters
    ----------
    model : Keras model that ends in logits; layers that iNNvestigate knows.
    inputs : samples first.
    neuron : index of the logit to explain, or HIGHEST for each sample's own prediction, iNNvestigate's default.
    batch_size : samples at a time.
    limit_s : the process is ended after this long.

    Raises
    ------
    TrainingError : the process failed, was killed (out of memory) or took longer; the text ends with what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.npz", Path(name) / "out.npz"
        weights = {f"weight_{k}": weight for k, weight in enumerate(model.get_weights())}
        request = {"architecture": model.to_json(), "neuron": neuron, "batch_size": batch_size, **weights}
        np.savez(source, inputs=inputs, **request)
        _run(source, target, limit_s)
        with np.load(target) as stored:
            return Relevance(
                np.asarray(stored["relevance"], np.float32),
                stored["logits"],
                float(stored["peak_mb"]),
                float(stored["seconds"]),
                str(stored["versions"]),
            )


def _run(source: Path, target: Path, limit_s: float | None) -> None:
    command = [sys.executable, "-m", WORKER, str(source), str(target)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    how: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": environment, "timeout": limit_s}
    try:
        # Not from the repository's root, where ./orcawatch would hide the installed package's mapped subpackages.
        done = subprocess.run(command, **how, cwd=source.parent, check=False)
    except subprocess.TimeoutExpired as fault:
        raise TrainingError(f"iNNvestigate did not finish within {limit_s:g} s and was ended") from fault
    if done.returncode == -signal.SIGKILL:
        raise TrainingError("iNNvestigate was killed, as the system does with a process that fills its memory")
    if done.returncode:
        raise TrainingError(f"iNNvestigate failed (exit status {done.returncode}): {done.stderr[-ERROR_TAIL:]}")


def head_model(head: Head) -> Any:
    """Keras model of a head, without dropout."""
    model = build(len(head["hidden_kernel"]))
    model.set_weights([head[key] for key in KEYS])
    return model


def of_network(
    backbone: Any,
    head: Head,
    spectrograms: Array,
    neuron: int = HIGHEST,
    batch_size: int = 8,
    limit_s: float | None = None,
) -> Relevance:
    """Relevance of spectrograms (windows, height, width, planes) through a folded backbone and a head.

    iNNvestigate multiplies the relevance of a tensor that one layer reads k times by k. A network that begins by
    repeating its plane is therefore analysed from there on, and the repeated planes' relevance is added.

    Raises
    ------
    TrainingError : as `analyse`.
    """
    repeated = _repeated_input(backbone)
    if repeated is None:
        return analyse(stack_model(backbone, head), spectrograms, neuron, batch_size, limit_s)
    layer, times = repeated
    model = stack_model(_behind(backbone, layer), head)
    found = analyse(model, np.tile(spectrograms, (1, 1, 1, times)), neuron, batch_size, limit_s)
    planes = spectrograms.shape[-1]
    values = found.values.reshape(*found.values.shape[:-1], times, planes).sum(axis=-2)
    return replace(found, values=values)


def _repeated_input(backbone: Any) -> tuple[Any, int] | None:
    """The concatenation that reads nothing but the network's input, and how often; None where there is none."""
    (first,) = backbone.inputs
    for layer in backbone.layers:
        given = layer.input
        if type(layer).__name__ == "Concatenate" and all(tensor is first for tensor in given):
            return layer, len(given)
    return None


def _behind(backbone: Any, layer: Any) -> Any:
    """The part of a network that follows a layer, with an input of its own."""
    from tensorflow.keras import Model

    return Model(layer.output, backbone.output)


def stack_model(backbone: Any, head: Head) -> Any:
    """Keras model of a folded backbone and a head: spectrograms -> logits, one flat graph as iNNvestigate needs it."""
    from tensorflow.keras import Model, layers

    units = len(head["hidden_bias"])
    hidden = layers.Dense(units, activation="relu", name="head_hidden")
    logits = layers.Dense(len(head["bias"]), name="head_logits")
    model = Model(backbone.input, logits(hidden(backbone.output)))
    hidden.set_weights([head["hidden_kernel"], head["hidden_bias"]])
    logits.set_weights([head["kernel"], head["bias"]])
    return model


def of_head(head: Head, features: Array) -> Relevance:
    """Relevance of a base-model's features for its own prediction: what the masks are made of (section 2.4)."""
    return analyse(head_model(head), features)


def all_zero(relevance: Array) -> int:
    """Number of samples without any relevance (the chosen logit is not positive): a negative mask removes nothing."""
    return int(np.sum(~np.any(relevance.reshape(len(relevance), -1), axis=1)))


def neurons(found: Relevance, chosen: NDArray[np.bool_]) -> dict[str, int]:
    """What explained the chosen samples (samples,): `orca` the orca neuron, `all_zero` none, the rest of `rows` noise.

    A sample is explained by the neuron of its highest logit, where that is positive.
    """
    values, logits = found.values[chosen], found.logits[chosen]
    orca = np.any(values, axis=1) & (logits.argmax(axis=1) == ORCA)
    return {"all_zero": all_zero(values), "rows": len(values), "orca": int(orca.sum())}
