from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from orcawatch import relevance as rules
from orcawatch.backbone import EdgeBackbone, load_backbone
from orcawatch.deploy import export
from orcawatch.deploy.export import export_features, export_heads, export_relevance
from orcawatch.deploy.variants import EXPLAINED_BY, QUANTIZATIONS
from orcawatch.errors import BundleError, InputError
from orcawatch.interpreter import Model
from orcawatch.masking import negative_mask
from orcawatch.spectrogram import LogMel
from orcawatch.testing import example_spectrograms

RNG = np.random.default_rng(0)
SIZES = {"one": 20, "two": 12}
Head = dict[str, Any]


def weights(features: int) -> dict[str, np.ndarray]:
    shapes = {"hidden_kernel": (features, 16), "hidden_bias": (16,), "kernel": (16, 2), "bias": (2,)}
    return {name: RNG.normal(0.3, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def heads() -> list[Head]:
    """All kinds of members of two backbones: base, minimal, negative of the first, and the three fusions."""
    bases = {name: weights(size) for name, size in SIZES.items()}
    minimal = {name: (np.arange(size) % 2).astype(np.float32) for name, size in SIZES.items()}
    one, both = {"backbones": ["one"]}, {"backbones": ["one", "two"]}
    own_base, own_mask = {"one": bases["one"]}, {"one": minimal["one"]}
    return [
        {"name": "one", **one, "mask": "none", "weights": bases["one"]},
        {"name": "min", **one, "mask": "minimal", "weights": weights(20), "minimal_masks": own_mask},
        {"name": "neg", **one, "mask": "negative", "weights": weights(20), "bases": own_base},
        {"name": "ff", **both, "mask": "none", "weights": weights(32)},
        {"name": "ff_min", **both, "mask": "minimal", "weights": weights(32), "minimal_masks": minimal},
        {"name": "ff_neg", **both, "mask": "negative", "weights": weights(32), "bases": bases},
    ]


def tiny() -> Any:
    """A chain with a kernel large enough (over 1024 numbers) to be quantized."""
    tf.keras.utils.set_random_seed(3)
    layers = tf.keras.layers
    x = first = layers.Input((16, 12, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2D(20, 3, padding="same", activation="relu")(x)
    return tf.keras.Model(first, layers.GlobalAveragePooling2D()(x))


class Grid(LogMel):
    """A front end of the tiny network's size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return 16, 12, 1


def run(content: bytes, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter.get_signature_runner(signature)(**inputs)


def softmax_orca(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def loop_input(member: Head, given: dict[str, np.ndarray]) -> np.ndarray:
    """What a member takes, one backbone and one feature at a time."""
    joined = []
    for name in member["backbones"]:
        own = given[name][0].copy()
        if member["mask"] == "minimal":
            own *= member["minimal_masks"][name]
        if member["mask"] == "negative":
            relevance = rules.head_relevance(given[name], member["bases"][name], "highest").numpy()[0]
            for k, value in enumerate(relevance):
                own[k] = 0.0 if value > relevance.mean() else own[k]
        joined.extend(own)
    return np.array([joined], np.float32)


def test_heads_score_and_explain_as_a_loop_over_members_and_backbones_does() -> None:
    members, vote = heads(), ["neg", "ff", "ff_neg"]
    given = {name: RNG.random((1, size)).astype(np.float32) for name, size in SIZES.items()}
    for name in SIZES:
        kept = negative_mask(rules.head_relevance(given[name], members[-1]["bases"][name], "highest")).numpy()
        assert 0 < kept.sum() < kept.size  # the case is worth testing
    inputs = {m["name"]: loop_input(m, given) for m in members}
    scores = {m["name"]: softmax_orca(rules.head_forward(inputs[m["name"]], m["weights"])[1].numpy()) for m in members}
    content = export_heads(members, vote, SIZES)
    found = run(content, "score", given)["scores"][0]
    np.testing.assert_allclose(found, np.concatenate(list(scores.values())), atol=1e-6)
    expected = {name: np.zeros(size) for name, size in SIZES.items()}
    for member in members:
        if member["name"] in vote:
            relevance = rules.head_relevance(inputs[member["name"]], member["weights"], "confidence").numpy()[0]
            for name in member["backbones"]:
                expected[name] += relevance[: SIZES[name]] / len(vote)
                relevance = relevance[SIZES[name] :]
    explained = run(content, "explain", given)
    for name in SIZES:
        np.testing.assert_allclose(explained[name][0], expected[name], atol=1e-6)
    total = sum(part.sum() for part in explained.values())
    assert total == pytest.approx(np.mean([scores[name][0] for name in vote]), abs=1e-5)


def test_a_backbone_that_no_voting_member_takes_has_no_relevance() -> None:
    given = {name: RNG.random((1, size)).astype(np.float32) for name, size in SIZES.items()}
    explained = run(export_heads(heads(), ["one"], SIZES), "explain", given)
    assert explained["one"].sum() > 0 and not explained["two"].any()


def test_the_base_relevance_of_a_backbone_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(features: Any, base: Any) -> Any:
        asked.append(features.shape[-1])
        return features

    monkeypatch.setattr(export, "negative_features", counted)
    export.masked_inputs(heads(), {name: tf.ones((1, size)) for name, size in SIZES.items()})
    assert sorted(asked) == [12, 20]


@pytest.mark.parametrize(("quantization", "snr_db"), [("float32", 100), ("float16", 60), ("dynamic", 30), ("int8", 20)])
def test_every_variant_gives_the_features_and_their_relevance(quantization: str, snr_db: float, tmp_path: Path) -> None:
    model = tiny()
    spectrograms = RNG.normal(0, 1, (20, 16, 12)).astype(np.float32)
    features = model(spectrograms[..., None]).numpy()
    (tmp_path / "features").write_bytes(export_features(model, quantization, spectrograms[:15]))
    (tmp_path / "explain").write_bytes(export_relevance(model, EXPLAINED_BY[quantization]))
    edge = EdgeBackbone(tmp_path / "features", tmp_path / "explain", Grid(), 20)
    assert [list(Model(tmp_path / name).signatures) for name in ("features", "explain")] == [["features"], ["explain"]]
    found = np.stack([edge.features(one) for one in spectrograms[15:]])
    assert found.dtype == np.float32
    noise = np.sum((found - features[15:]) ** 2) / np.sum(features[15:] ** 2)
    assert 10 * np.log10(1 / noise) > snr_db
    expected = rules.backbone_relevance(model, spectrograms[:1, ..., None], features[:1]).numpy()[0, ..., 0]
    (found_map,) = edge.explain(spectrograms[:1], features[:1])
    assert found_map.shape == (16, 12)
    assert np.corrcoef(found_map.ravel(), expected.ravel())[0, 1] > 0.99
    assert found_map.sum() == pytest.approx(features[0].sum(), rel=0.02)


def test_a_file_with_both_signatures_as_earlier_bundles_have_them_is_read(tmp_path: Path) -> None:
    model, spectrograms, relevance = tiny(), RNG.random((1, 16, 12), np.float32), RNG.random((1, 20), np.float32)
    spectrogram = tf.TensorSpec([1, 16, 12, 1], tf.float32, "spectrogram")
    both = {
        "features": (lambda spectrogram: {"features": model(spectrogram)}, [spectrogram]),
        "explain": (
            lambda spectrogram, relevance: {"map": rules.backbone_relevance(model, spectrogram, relevance)},
            [spectrogram, tf.TensorSpec([1, 20], tf.float32, "relevance")],
        ),
    }
    (tmp_path / "both").write_bytes(export._convert(model, both, "dynamic"))
    (tmp_path / "features").write_bytes(export_features(model, "dynamic"))
    (tmp_path / "explain").write_bytes(export_relevance(model, "dynamic"))
    one = EdgeBackbone(tmp_path / "both", tmp_path / "both", Grid(), 20)
    two = EdgeBackbone(tmp_path / "features", tmp_path / "explain", Grid(), 20)
    np.testing.assert_array_equal(one.features(spectrograms[0]), two.features(spectrograms[0]))
    np.testing.assert_array_equal(one.explain(spectrograms, relevance)[0], two.explain(spectrograms, relevance)[0])


def test_relevance_comes_back_on_the_rows_grid(tmp_path: Path) -> None:
    class Stretched(Grid):
        def to_rows(self, relevance: np.ndarray) -> np.ndarray:
            return relevance[:8] + relevance[8:]

    (tmp_path / "features").write_bytes(export_features(tiny(), "float32"))
    (tmp_path / "explain").write_bytes(export_relevance(tiny(), "float32"))
    paths = tmp_path / "features", tmp_path / "explain"
    plain, stretched = (EdgeBackbone(*paths, end, 20) for end in (Grid(), Stretched()))
    spectrograms, relevance = RNG.random((1, 16, 12), np.float32), RNG.random((1, 20), np.float32)
    (on_input,) = plain.explain(spectrograms, relevance)
    np.testing.assert_allclose(stretched.explain(spectrograms, relevance)[0], on_input[:8] + on_input[8:])


def test_vggish_exports_with_its_relevance() -> None:
    tf.keras.utils.set_random_seed(1)
    backbone = load_backbone("vggish")
    model = backbone.build_keras()
    spectrogram = example_spectrograms(backbone)[:1]
    features = model(spectrogram).numpy()
    found = run(export_features(model, "dynamic"), "features", {"spectrogram": spectrogram})["features"]
    np.testing.assert_allclose(found, features, atol=5e-2 * features.max())
    expected = rules.backbone_relevance(model, spectrogram, features).numpy()
    found = run(export_relevance(model, "dynamic"), "explain", {"spectrogram": spectrogram, "relevance": features})[
        "map"
    ]
    np.testing.assert_allclose(found, expected, atol=5e-2 * expected.max())
    assert found.sum() == pytest.approx(features.sum(), rel=0.02)


def test_float16_under_two_signatures_is_refused_by_the_older_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = tiny(), [tf.TensorSpec([1, 16, 12, 1], tf.float32, "spectrogram")]
    both = dict.fromkeys(("explain", "features"), (lambda spectrogram: {"features": model(spectrogram)}, given))
    (tmp_path / "model").write_bytes(export._convert(model, both, "float16"))
    monkeypatch.setattr("orcawatch.interpreter.RUNTIMES", ("tensorflow.lite.python.interpreter",))
    with pytest.raises(BundleError, match=r"float16 weights under the signatures \['explain', 'features'\]"):
        Model(tmp_path / "model")


def test_unknown_quantization_is_refused() -> None:
    assert set(EXPLAINED_BY) == set(QUANTIZATIONS)
    with pytest.raises(InputError, match=r"must be one of .*not 'int4'"):
        export_features(tiny(), "int4")
    with pytest.raises(InputError, match=r"one of \['dynamic', 'float32'\], not 'int8'"):
        export_relevance(tiny(), "int8")


def test_int8_without_representative_spectrograms_is_refused() -> None:
    with pytest.raises(InputError, match=r"representative-NAME\.npy"):
        export_features(tiny(), "int8")
