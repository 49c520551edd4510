"""Export to TFLite: a backbone, its relevance pass, and the heads with their masks inside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ..cascade import Gate
from ..errors import InputError, OrcawatchError
from ..masking import negative_mask
from ..relevance import ORCA, backbone_relevance, head_forward, head_relevance
from .variants import EXPLAINED_BY, check_quantization

Array = NDArray[np.float32]
Signatures = Mapping[str, tuple[Any, list[Any]]]


def export_features(model: Any, quantization: str = "dynamic", representative: Array | None = None) -> bytes:
    """TFLite file of a backbone; input and output are float32 in every variant.

    `features`: spectrogram (1, height, width, planes) -> features (1, size).

    Parameters
    ----------
    model : Keras model of a backbone plugin, folded.
    quantization : `float32`; `float16` weights; `dynamic`, 8-bit weights and float activations; `int8`, weights and
        activations.
    representative : finished training spectrograms, shape (n, height, width), from which `int8` takes the ranges of the
        activations; the others do not look at it.

    Raises
    ------
    InputError : unknown quantization, or `int8` without representative spectrograms.
    """
    check_quantization(quantization)

    def features(spectrogram: Any) -> dict[str, Any]:
        return {"features": model(spectrogram)}

    examples = None if representative is None else representative.reshape(-1, 1, *model.input_shape[1:])
    return _convert(model, {"features": (features, [_spectrogram(model)])}, quantization, examples)


def export_relevance(model: Any, quantization: str = "dynamic") -> bytes:
    """TFLite file of a backbone's relevance pass, in a variant of `EXPLAINED_BY`.

    `explain`: spectrogram, relevance of the features (1, size) -> map (1, height, width, planes), deep Taylor with
    the conserving rule for average pooling.

    It is a file of its own, since an interpreter prepares the weights of all signatures of a file, and those of this
    pass take ten times the memory of the features (Inception-ResNet V2: 740 and 60 MB).

    Raises
    ------
    InputError : no variant of the relevance pass.
    """
    if quantization not in EXPLAINED_BY.values():
        raise InputError(f"relevance is passed in one of {sorted(set(EXPLAINED_BY.values()))}, not {quantization!r}")
    relevance = tf.TensorSpec([1, model.output_shape[-1]], tf.float32, "relevance")

    def explain(spectrogram: Any, relevance: Any) -> dict[str, Any]:
        return {"map": backbone_relevance(model, spectrogram, relevance)}

    return _convert(model, {"explain": (explain, [_spectrogram(model), relevance])}, quantization)


def _spectrogram(model: Any) -> Any:
    return tf.TensorSpec([1, *model.input_shape[1:]], tf.float32, "spectrogram")


def export_heads(
    heads: Sequence[Mapping[str, Any]], vote: Sequence[str], sizes: Mapping[str, int], gates: Sequence[Gate] = ()
) -> bytes:
    """TFLite file of the members' heads; float32 always, since mask bits flip under quantization.

    `score`: features by backbone, each (1, size) -> scores (1, members), the confidence of `orca`.
    `explain`: the same inputs -> relevance of each backbone's features for the `orca` neuron, starting with each
    member's confidence and averaged over the vote, so that it adds up to the vote's score.
    One signature for each gate of the cascade: features of its backbones -> scores (1, its members).

    Parameters
    ----------
    heads : one per member, in order: `name`; `backbones`, whose features it takes, each under its own mask and
        concatenated in this order (paper section 2.1); `mask` (`none`, `minimal` or `negative`); `weights` (arrays as
        `relevance.head_forward` takes); where its mask needs them `minimal_masks` (by backbone, each (features,)) or
        `bases` (by backbone, the weights of that backbone's base-model).
    vote : names of the members of the average vote.
    sizes : feature size by backbone.
    gates : of the cascade.
    """
    specs = {name: tf.TensorSpec([1, size], tf.float32, name) for name, size in sizes.items()}

    def explain(*features: Any) -> dict[str, Any]:
        voting = [head for head in heads if head["name"] in vote]
        return _vote_relevance(voting, dict(zip(sizes, features)))

    signatures = {"score": _scoring(heads, specs), "explain": (explain, list(specs.values()))}
    for gate in (one for one in gates if one.members):
        by_name = {head["name"]: head for head in heads}
        heard = {name: specs[name] for name in gate.backbones}
        signatures[gate.signature] = _scoring([by_name[name] for name in gate.members], heard)
    return _convert(tf.Module(), signatures, "float32")


def _scoring(heads: Sequence[Mapping[str, Any]], specs: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """A signature: features of the backbones in `specs` -> the heads' confidences, shape (1, heads)."""

    def score(*features: Any) -> dict[str, Any]:
        masked = masked_inputs(heads, dict(zip(specs, features)))
        return {"scores": tf.concat([confidence(masked[head["name"]], head["weights"]) for head in heads], axis=-1)}

    return score, list(specs.values())


def masked_inputs(heads: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> dict[str, Any]:
    """Each member's input from the backbones' features (batch, size), by member (paper sections 2.1 and 2.4).

    The negative mask of a backbone's features comes from the relevance of that backbone's own base-model for its own
    prediction, and is computed once for all members that take it.
    """
    negative: dict[tuple[str, int], Any] = {}
    for head in heads:
        for name, base in head.get("bases", {}).items():
            if (name, id(base)) not in negative:
                negative[name, id(base)] = negative_features(features[name], base)
    return {head["name"]: _joined(head, features, negative) for head in heads}


def negative_features(features: Any, base: Mapping[str, Any]) -> Any:
    """Features under the negative mask of their base-model's own prediction, shape (batch, size)."""
    return features * negative_mask(head_relevance(features, base, "highest"))


def confidence(features: Any, weights: Mapping[str, Any]) -> Any:
    """A head's confidence of `orca`, shape (batch, 1)."""
    return tf.nn.softmax(head_forward(features, weights)[1])[:, ORCA : ORCA + 1]


def _joined(head: Mapping[str, Any], features: Mapping[str, Any], negative: Mapping[tuple[str, int], Any]) -> Any:
    def part(name: str) -> Any:
        if head["mask"] == "minimal":
            return features[name] * head["minimal_masks"][name]
        return negative[name, id(head["bases"][name])] if head["mask"] == "negative" else features[name]

    return tf.concat([part(name) for name in head["backbones"]], axis=-1)


def _vote_relevance(voting: Sequence[Mapping[str, Any]], features: Mapping[str, Any]) -> dict[str, Any]:
    """Relevance by backbone, the members' average; zero where no member looks."""
    total = {name: tf.zeros_like(tensor) for name, tensor in features.items()}
    masked = masked_inputs(voting, features)
    for head in voting:
        relevance = head_relevance(masked[head["name"]], head["weights"], "confidence")
        parts = tf.split(relevance, [features[name].shape[-1] for name in head["backbones"]], axis=-1)
        for name, part in zip(head["backbones"], parts):
            total[name] += part / float(len(voting))
    return total


def _convert(module: Any, signatures: Signatures, quantization: str, examples: Array | None = None) -> bytes:
    functions = {
        name: tf.function(function, autograph=False).get_concrete_function(*specs)
        for name, (function, specs) in signatures.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        _save(module, folder, functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        _quantize(converter, quantization, examples)
        return bytes(converter.convert())


def _save(module: Any, folder: str, functions: Mapping[str, Any]) -> None:
    try:
        tf.saved_model.save(module, folder, signatures=functions)
    except (OSError, tf.errors.OpError) as fault:
        raise OrcawatchError(
            f"the network could not be laid out in {folder}: {fault}; make room, or set TMPDIR"
        ) from fault


def _quantize(converter: Any, quantization: str, examples: Array | None) -> None:
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        if examples is None or not len(examples):
            raise InputError(
                "int8 needs representative spectrograms: the run's result must hold representative-NAME.npy"
            )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _calls(examples)


def _calls(examples: Array) -> Iterator[tuple[str, dict[str, Array]]]:
    """The examples as the converter takes them, one call of the signature each."""
    return (("features", {"spectrogram": np.asarray(example, np.float32)}) for example in examples)
