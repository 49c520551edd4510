"""Deep Taylor relevance by iNNvestigate: `python -m orcawatch.training.innvestigate_worker IN.npz OUT.npz`.

iNNvestigate 2.1.2 needs TensorFlow's eager mode off from the start of a process, so it has one of its own and
exchanges files. Nothing else imports this module.

IN.npz holds `architecture` (the model as Keras JSON, ending in logits), `weight_0`, `weight_1`, ... (as `get_weights`
gives them), `inputs` (samples first), `neuron` (an index, or -1 for the neuron of highest activation,
iNNvestigate's default) and `batch_size`. OUT.npz holds `relevance` (shaped like `inputs`), `logits`, `peak_mb`,
`seconds` (of the analysis, the first batch's tracing included) and `versions` (names and versions as text).

What `deep_taylor` does there: the chosen logit's positive part is spread by the z+ rule (bias ignored) through every
layer with a kernel, the linear output included; pooling follows the gradient. A sample whose chosen logit is not
positive has no relevance at all.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def _model(stored: Any) -> Any:
    model = tf.keras.models.model_from_json(str(stored["architecture"]))
    number = sum(name.startswith("weight_") for name in stored.files)
    model.set_weights([stored[f"weight_{k}"] for k in range(number)])
    return model


def _analyse(model: Any, inputs: Any, neuron: int, batch_size: int) -> Any:
    import innvestigate
    from tqdm import tqdm

    mode = {"neuron_selection_mode": "index" if neuron >= 0 else "max_activation"}
    analyzer = innvestigate.create_analyzer("deep_taylor", model, **mode)
    choice = {"neuron_selection": neuron} if neuron >= 0 else {}
    starts = tqdm(range(0, len(inputs), batch_size), desc="deep Taylor", unit="batch", disable=None)
    return np.concatenate([analyzer.analyze(inputs[i : i + batch_size], **choice) for i in starts])


def main(source: Path, target: Path) -> None:
    """Analyse the model and inputs in `source`, write `target`."""
    tf.compat.v1.disable_eager_execution()
    _leave_operations_bare()
    with np.load(source) as stored:
        model, inputs = _model(stored), stored["inputs"]
        neuron, batch_size = int(stored["neuron"]), int(stored["batch_size"])
    started = time.perf_counter()
    relevance = _analyse(model, inputs, neuron, batch_size)
    seconds = time.perf_counter() - started
    logits = model.predict(inputs, batch_size=batch_size, verbose=0)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.savez(target, relevance=relevance, logits=logits, peak_mb=peak_mb, seconds=seconds, versions=_versions())


def _leave_operations_bare() -> None:
    """Let Keras take iNNvestigate's TensorFlow operations as they are.

    It otherwise wraps each into a layer of its own and walks the graph anew every time, which for a network of an
    Inception's size does not end. The switch is private to Keras: without it, nothing but the time changes.
    """
    from keras.src.engine import base_layer_utils

    base_layer_utils._UNSAFE_GRAPH_OP_LAYER_CREATION = True


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("innvestigate", "tensorflow", "numpy"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
