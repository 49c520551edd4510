from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from orcawatch import relevance as rules
from orcawatch.backbone import load_backbone
from orcawatch.deploy.export import export_backbone, export_heads
from orcawatch.errors import InputError
from orcawatch.masking import negative_mask
from orcawatch.testing import example_spectrograms

RNG = np.random.default_rng(0)
SIZES = {"one": 20, "two": 12}


def weights(features: int) -> dict[str, np.ndarray]:
    shapes = {"hidden_kernel": (features, 16), "hidden_bias": (16,), "kernel": (16, 2), "bias": (2,)}
    return {name: RNG.normal(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def heads() -> list[dict[str, object]]:
    """A base, a minimal, a negative member, and a fusion of two backbones."""
    base = weights(20)
    mask = (np.arange(20) % 2).astype(np.float32)
    return [
        {"name": "one", "backbones": ["one"], "mask": "none", "weights": base},
        {"name": "min", "backbones": ["one"], "mask": "minimal", "weights": weights(20), "minimal_mask": mask},
        {"name": "neg", "backbones": ["one"], "mask": "negative", "weights": weights(20), "base": base},
        {"name": "ff", "backbones": ["one", "two"], "mask": "none", "weights": weights(32)},
    ]


def run(content: bytes, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter.get_signature_runner(signature)(**inputs)


def softmax_orca(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def test_heads_score_and_explain_as_the_training_side_does() -> None:
    members = heads()
    given = {name: RNG.random((1, size)).astype(np.float32) for name, size in SIZES.items()}
    one, both = given["one"], np.concatenate([given["one"], given["two"]], axis=1)
    negative = negative_mask(rules.head_relevance(one, members[0]["weights"], "highest")).numpy()
    assert 0 < negative.sum() < 20
    inputs = [one, one * members[1]["minimal_mask"], one * negative, both]
    expected = [softmax_orca(rules.head_forward(x, m["weights"])[1].numpy())[0] for x, m in zip(inputs, members)]
    content = export_heads(members, ["neg", "ff"], SIZES)
    np.testing.assert_allclose(run(content, "score", given)["scores"][0], expected, atol=1e-6)
    of_neg = rules.head_relevance(inputs[2], members[2]["weights"], "confidence").numpy()
    of_ff = rules.head_relevance(both, members[3]["weights"], "confidence").numpy()
    explained = run(content, "explain", given)
    assert of_neg.sum() + of_ff.sum() > 0
    np.testing.assert_allclose(explained["one"], (of_neg + of_ff[:, :20]) / 2, atol=1e-5)
    np.testing.assert_allclose(explained["two"], of_ff[:, 20:] / 2, atol=1e-5)


@pytest.mark.parametrize(("quantization", "tolerance"), [("float32", 1e-5), ("dynamic", 5e-2)])
def test_vggish_exports_with_its_relevance(quantization: str, tolerance: float) -> None:
    tf.keras.utils.set_random_seed(1)
    backbone = load_backbone("vggish")
    model = backbone.build_keras()
    spectrogram = example_spectrograms(backbone)[:1]
    features = model(spectrogram).numpy()
    content = export_backbone(model, quantization)
    found = run(content, "features", {"spectrogram": spectrogram})["features"]
    np.testing.assert_allclose(found, features, atol=tolerance * features.max())
    expected = rules.backbone_relevance(model, spectrogram, features).numpy()
    found = run(content, "explain", {"spectrogram": spectrogram, "relevance": features})["map"]
    np.testing.assert_allclose(found, expected, atol=tolerance * expected.max())
    assert found.sum() == pytest.approx(features.sum(), rel=0.02)


def test_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be one of .*not 'int4'"):
        export_heads(heads(), ["one"], SIZES) and export_backbone(load_backbone("vggish").build_keras(), "int4")
