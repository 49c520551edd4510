"""Export to TFLite: a backbone with its relevance pass, and the heads with their masks inside."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ..errors import InputError
from ..masking import negative_mask
from ..relevance import ORCA, backbone_relevance, head_forward, head_relevance

# float16 is left out: with two signatures tflite-runtime 2.14.0 crashes on it.
QUANTIZATIONS = ("float32", "dynamic")


def export_backbone(model: Any, quantization: str = "dynamic") -> bytes:
    """TFLite file of a backbone with two signatures that share their weights.

    `features`: spectrogram (1, frames, bands, planes) -> features (1, size).
    `explain`: spectrogram, relevance of the features (1, size) -> map (1, frames, bands, planes), deep Taylor with
    the conserving rule for average pooling.

    Parameters
    ----------
    model : Keras model of a backbone plugin.
    quantization : `float32` or `dynamic` (8-bit weights, float activations).
    """
    shape = [1, *model.input_shape[1:]]
    size = model.output_shape[-1]

    def features(spectrogram: Any) -> dict[str, Any]:
        return {"features": model(spectrogram)}

    def explain(spectrogram: Any, relevance: Any) -> dict[str, Any]:
        return {"map": backbone_relevance(model, spectrogram, relevance)}

    spectrogram = tf.TensorSpec(shape, tf.float32, "spectrogram")
    relevance = tf.TensorSpec([1, size], tf.float32, "relevance")
    return _convert(
        model, {"features": (features, [spectrogram]), "explain": (explain, [spectrogram, relevance])}, quantization
    )


def export_heads(heads: Sequence[Mapping[str, Any]], vote: Sequence[str], sizes: Mapping[str, int]) -> bytes:
    """TFLite file of the members' heads; float32 always, since mask bits flip under quantization.

    `score`: features by backbone, each (1, size) -> scores (1, members), the confidence of `orca`.
    `explain`: the same inputs -> relevance of each backbone's features for the `orca` neuron, starting with each
    member's confidence and averaged over the vote, so that it adds up to the vote's score.

    Parameters
    ----------
    heads : one per member, in order: `name`, `backbones` (whose features it takes, concatenated), `mask` (`none`,
        `minimal` or `negative`), `weights` (arrays as `relevance.head_forward` takes), `minimal_mask` (features,) and
        `base` (the base-model's weights, for the negative mask) where its mask needs them.
    vote : names of the members of the average vote.
    sizes : feature size by backbone.
    """
    specs = [tf.TensorSpec([1, size], tf.float32, name) for name, size in sizes.items()]
    names = list(sizes)

    def score(*features: Any) -> dict[str, Any]:
        given = dict(zip(names, features))
        return {"scores": tf.concat([_confidence(head, _masked(head, given)) for head in heads], axis=-1)}

    def explain(*features: Any) -> dict[str, Any]:
        given = dict(zip(names, features))
        total = {name: tf.zeros_like(tensor) for name, tensor in given.items()}
        for head in heads:
            if head["name"] in vote:
                relevance = head_relevance(_masked(head, given), head["weights"], "confidence")
                parts = tf.split(relevance, [sizes[name] for name in head["backbones"]], axis=-1)
                for name, part in zip(head["backbones"], parts):
                    total[name] += part / float(len(vote))
        return total

    return _convert(tf.Module(), {"score": (score, specs), "explain": (explain, specs)}, "float32")


def _masked(head: Mapping[str, Any], features: Mapping[str, Any]) -> Any:
    """A member's input: its backbones' features under its mask (paper section 2.4)."""
    joined = tf.concat([features[name] for name in head["backbones"]], axis=-1)
    if head["mask"] == "minimal":
        return joined * head["minimal_mask"]
    if head["mask"] == "negative":
        return joined * negative_mask(head_relevance(joined, head["base"], "highest"))
    return joined


def _confidence(head: Mapping[str, Any], features: Any) -> Any:
    logits = head_forward(features, head["weights"])[1]
    return tf.nn.softmax(logits)[:, ORCA : ORCA + 1]


def _convert(module: Any, functions: Mapping[str, tuple[Any, list[Any]]], quantization: str) -> bytes:
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization must be one of {QUANTIZATIONS}, not {quantization!r}")
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(*specs)
        for name, (function, specs) in functions.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        if quantization == "dynamic":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return bytes(converter.convert())
