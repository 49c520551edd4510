"""A finished training run of two tiny networks and their fusion, made by hand, so that deploy is tested by itself."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from orcawatch.backbone import load_backbone
from orcawatch.deploy.run import Run, read_run
from orcawatch.folding import fold
from orcawatch.masking import negative_mask
from orcawatch.metrics import event_thresholds
from orcawatch.relevance import head_relevance
from orcawatch.training import heads

WINDOWS, CLIPS = 48, 24
SIZES = {"small_mel": 20, "small_power": 16}
INTERVAL = {"value": 0.9, "low": 0.8, "high": 0.95, "draws": 10}
PLUGINS = '''
"""Two small backbones; the second has what folding takes away."""

from orcawatch.spectrogram import LinearPower, LogMel


class SmallMel:
    name = "small_mel"
    feature_size = 20

    def __init__(self, front_end=None):
        self.front_end = front_end or LogMel(normalise="band_floor")

    def build_keras(self):
        from tensorflow.keras import Model, layers

        x = first = layers.Input(self.front_end.shape)
        x = layers.Conv2D(16, 3, strides=3, padding="same", activation="relu")(x)
        x = layers.Conv2D(20, 3, strides=2, padding="same", activation="relu")(x)
        return Model(first, layers.GlobalAveragePooling2D()(x))

    def load_weights(self, model, source):
        raise NotImplementedError


class SmallPower(SmallMel):
    name = "small_power"
    feature_size = 16

    def __init__(self, front_end=None):
        self.front_end = front_end or LinearPower(size=24)

    def build_keras(self):
        from tensorflow.keras import Model, layers

        x = first = layers.Input(self.front_end.shape)
        x = layers.Rescaling(2.0, offset=-1.0)(x)
        x = layers.Conv2D(16, 3, strides=2, padding="valid", use_bias=False)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.MaxPooling2D(3, 1, padding="same")(x)])
        x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        return Model(first, layers.GlobalAveragePooling2D()(x))
'''


def random_head(generator: np.random.Generator, features: int) -> dict[str, np.ndarray]:
    """A head that says different things of different windows; its logits are mostly positive."""
    shapes = {"hidden_kernel": (features, 256), "hidden_bias": (256,), "kernel": (256, 2), "bias": (2,)}
    spread = {"hidden_kernel": (0.0, 0.4), "hidden_bias": (0.0, 0.4), "kernel": (0.1, 0.2), "bias": (0.0, 0.4)}
    return {name: generator.normal(*spread[name], shape).astype(np.float32) for name, shape in shapes.items()}


def describe(name: str, backbones: list[str]) -> list[dict[str, Any]]:
    """The three members on these backbones' features."""
    return [
        {"name": name, "backbones": backbones, "mask": "none", "relevance_of": None},
        {"name": f"{name}_min", "backbones": backbones, "mask": "minimal", "relevance_of": None},
        {"name": f"{name}_neg", "backbones": backbones, "mask": "negative", "relevance_of": backbones},
    ]


MEMBERS = [*describe("small_mel", ["small_mel"]), *describe("small_power", ["small_power"])]
MEMBERS += describe("fusion", list(SIZES))
NAMES = [member["name"] for member in MEMBERS]
VOTE = ["small_mel_neg", "small_power", "fusion_neg"]


def masked(member: Mapping[str, Any], features: Mapping[str, Any], arrays: Mapping[str, Any]) -> np.ndarray:
    """A member's input for all windows, by the definitions."""
    parts = []
    for name in member["backbones"]:
        mask: Any = 1.0
        if member["mask"] == "minimal":
            mask = arrays["masks"][f"{name}/minimal"]
        if member["mask"] == "negative":
            mask = negative_mask(head_relevance(features[name], arrays["heads"][name], "highest")).numpy()
        parts.append(features[name] * mask)
    return np.concatenate(parts, axis=1)


def make_backbone(result: Path, name: str, generator: np.random.Generator) -> np.ndarray:
    """Write a backbone's weights and spectrograms; features of the devel windows."""
    plugin = load_backbone(name)
    model = fold(plugin.build_keras())
    height, width, _ = plugin.front_end.shape
    spectrograms = generator.random((WINDOWS + 32, height, width)).astype(np.float32)
    spectrograms *= generator.uniform(0.1, 1.0, (len(spectrograms), 1, width)).astype(np.float32)
    np.save(result / f"devel_spectrograms-{name}.npy", spectrograms[:WINDOWS])
    np.save(result / f"representative-{name}.npy", spectrograms[WINDOWS:])
    np.savez(result / f"backbone-{name}.npz", **{f"weight_{k:03}": w for k, w in enumerate(model.get_weights())})
    return np.asarray(model.predict(spectrograms[:WINDOWS, ..., None], verbose=0))


def make_arrays(generator: np.random.Generator) -> dict[str, Any]:
    """Heads by member and minimal masks by backbone."""
    made = {m["name"]: random_head(generator, sum(SIZES[b] for b in m["backbones"])) for m in MEMBERS}
    masks = {f"{name}/minimal": (np.arange(size) % 3 > 0).astype(np.float32) for name, size in SIZES.items()}
    return {"heads": made, "masks": masks}


def make_scores(scores: np.ndarray) -> dict[str, Any]:
    """The content of devel_scores.npz: recordings of one class each, two clips a recording, two windows a clip."""
    return {
        "members": np.array(NAMES),
        "file_name": np.array([f"{k}.flac" for k in range(CLIPS)]),
        "label": np.array(["orca", "orca", "noise", "noise"] * (CLIPS // 4)),
        "group": np.array([f"recording {k // 2}" for k in range(CLIPS)]),
        "kind": np.array(["orca", "orca", "ship", "other_species"] * (CLIPS // 4)),
        "seconds": np.full(CLIPS, 1.5),
        "window_clip": np.arange(WINDOWS) // 2,
        "window_scores": scores,
    }


def make_selection(devel: Mapping[str, Any]) -> dict[str, Any]:
    """The content of selection.json."""
    vote = devel["window_scores"][:, [NAMES.index(name) for name in VOTE]].mean(axis=1)
    found = event_thresholds(vote, devel["window_clip"], devel["label"] == "orca", devel["seconds"])
    sources = {"small_mel": "from scratch", "small_power": "imagenet"}
    zeros = {"devel": {"all_zero": 2, "rows": WINDOWS, "orca": 5}}
    return {
        "name": "tiny",
        "seed": 1,
        "recipe": {"head": {"slope": 2.0, "shift": 4.0}, "vote": {"must_contain": "negative", "draws": 100}},
        "backbones": [
            {
                "name": name,
                "feature_size": size,
                "front_end": load_backbone(name).front_end.to_dict(),
                "input_shape": list(load_backbone(name).front_end.shape),
                "weights": f"backbone-{name}.npz",
                "weights_source": sources[name],
            }
            for name, size in SIZES.items()
        ],
        "members": MEMBERS,
        "dropped": [{"name": "other_min", "reason": "it is other"}],
        "vote": VOTE,
        "hop_s": 0.48,
        "channel_fusion": "max",
        "thresholds": {**asdict(found), "false_alarms_by_kind": {}},
        "metrics": {
            "members": dict.fromkeys(NAMES, INTERVAL),
            "vote": INTERVAL,
            "nested": INTERVAL,
            "teacher": INTERVAL,
            "uncalibrated_vote": INTERVAL,
        },
        "all_zero": dict.fromkeys(SIZES, zeros),
        "masks": {name: {} for name in SIZES},
        "data": {
            "fingerprint": "0" * 64,
            "splits": [{"split": "devel", "label": "orca", "clips": 12, "seconds": 18.0, "groups": 6}],
            "recordings": "given",
            "sources": [{"repository": "someone/sounds", "licence": "MIT", "split": "devel", "clips": 3}],
        },
        "versions": {"tensorflow": "2.14.1"},
    }


@pytest.fixture(scope="session", autouse=True)
def small_plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two installed plugins, `small_mel` and `small_power`."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "small_backbones.py").write_text(PLUGINS)
    info = folder / "small_backbones-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small-backbones\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[orcawatch.backbones]\nsmall_mel = small_backbones:SmallMel\nsmall_power = small_backbones:SmallPower\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, small_plugins: None) -> Run:
    """A finished run; what deploy keeps in it is shared by the tests."""
    root = tmp_path_factory.mktemp("run")
    result = root / "result"
    result.mkdir()
    tf.keras.utils.set_random_seed(4)
    generator = np.random.default_rng(11)
    features = {name: make_backbone(result, name, generator) for name in SIZES}
    arrays = make_arrays(generator)
    columns = [heads.scores(masked(m, features, arrays), arrays["heads"][m["name"]]) for m in MEMBERS]
    devel = make_scores(np.stack(columns, axis=1))
    heads.save_heads(result / "heads.npz", arrays["heads"])
    np.savez(result / "masks.npz", **arrays["masks"])
    np.savez(result / "devel_scores.npz", **devel)
    (result / "selection.json").write_text(json.dumps(make_selection(devel)))
    return read_run(root)
