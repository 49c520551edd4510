"""Tiny recordings and a tiny backbone, so that the whole pipeline runs in seconds."""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

RATE_HZ = 22050
COLUMNS = ("file_name", "label", "split", "group", "kind", "source", "repository", "seconds", "licence")

TINY = '''
"""A small backbone that comes through the same door as any other."""

import numpy as np

from orcawatch.spectrogram import LogMel


class Tiny:
    name = "tiny"
    feature_size = 12

    def __init__(self, front_end=None):
        self.front_end = front_end or LogMel()

    def build_keras(self):
        from tensorflow.keras import Model, layers

        x = first = layers.Input(self.front_end.shape)
        x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
        return Model(first, layers.GlobalAveragePooling2D()(x))

    def load_weights(self, model, source):
        with np.load(source) as stored:
            model.set_weights([stored[name] for name in sorted(stored.files)])
'''


def call(generator: np.random.Generator, seconds: float) -> Any:
    """A swept tone with harmonics in faint noise."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * generator.uniform(600, 1200) * (t + 0.2 * t**2)
    tone = sum(np.sin(k * phase) / k for k in (1, 2, 3))
    return 0.2 * tone + 0.02 * generator.standard_normal(len(t))


def hiss(generator: np.random.Generator, seconds: float) -> Any:
    """White noise of random loudness."""
    return generator.uniform(0.02, 0.2) * generator.standard_normal(int(seconds * RATE_HZ))


def write_table(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read labels."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_data(folder: Path, clips: int = 6) -> Path:
    """`clips` clips of each class in train and in devel, two clips of one class a recording."""
    (folder / "wav").mkdir(parents=True)
    generator, rows = np.random.default_rng(7), []
    for split in ("train", "devel"):
        for label in ("orca", "noise"):
            for k in range(clips):
                name, seconds = f"{split}_{label}_{k}.flac", float(generator.uniform(0.4, 2.2))
                soundfile.write(folder / "wav" / name, (call if label == "orca" else hiss)(generator, seconds), RATE_HZ)
                kind = "orca" if label == "orca" else "ambient"
                group = f"{split}-{label}-{k // 2}"
                origin = {"source": "made in the test", "repository": "tests/made", "licence": "CC0"}
                described = {"kind": kind, "seconds": seconds, **origin}
                rows.append({"file_name": name, "label": label, "split": split, "group": group, **described})
    write_table(folder / "labels.csv", rows)
    return folder


@pytest.fixture()
def tables() -> SimpleNamespace:
    """Functions `read(path)` and `write(path, rows, columns)` for tables of labels."""
    return SimpleNamespace(read=read_table, write=write_table)


@pytest.fixture()
def tiny_data(tmp_path: Path) -> Path:
    """A data folder that a test may spoil."""
    return make_data(tmp_path / "data")


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed plugin `tiny`: module and entry point."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny_backbone.py").write_text(TINY)
    info = folder / "tiny_backbone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-backbone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orcawatch.backbones]\ntiny = tiny_backbone:Tiny\n")
    return folder


@pytest.fixture()
def tiny_plugin(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the installed tiny plugin."""
    monkeypatch.syspath_prepend(str(plugin_folder))
    importlib.invalidate_caches()
    return "tiny"


def make_inception(size: int = 20) -> Any:
    """A tiny network with everything that the Inceptions hold, (batch, size, size, 1) -> (batch, 10), as trained.

    Random batch-norm statistics; every convolution before an addition or a ReLU has a batch norm without scale.
    """
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
    from tensorflow.keras import Model, layers, utils

    utils.set_random_seed(2)

    def convolution(x: Any, filters: int, kernel: Any = 1, strides: int = 1, padding: str = "same") -> Any:
        x = layers.Conv2D(filters, kernel, strides=strides, padding=padding, use_bias=False)(x)
        return layers.Activation("relu")(layers.BatchNormalization(scale=False)(x))

    def residual(x: Any, scale: float) -> Any:
        branch = layers.Concatenate()([convolution(x, 3), convolution(convolution(x, 3), 4, (1, 3))])
        return CustomScaleLayer(scale)([x, layers.Conv2D(x.shape[-1], 1)(branch)])

    first = layers.Input((size, size, 1))
    x = layers.Rescaling(2.0, -0.5)(first)
    x = convolution(layers.Concatenate()([x, x, x]), 6, 3, 2, "valid")
    x = layers.MaxPooling2D(3, strides=2)(x)
    pooled = layers.AveragePooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()([convolution(x, 4), convolution(convolution(x, 3), 4, 3), convolution(pooled, 4)])
    x = layers.Activation("relu")(residual(x, 0.2))
    x = layers.Dropout(0.5)(residual(x, 1.0))
    model = Model(first, layers.GlobalAveragePooling2D()(convolution(x, 10)), name="inception")
    return set_statistics(model, 0)


def set_statistics(model: Any, seed: int) -> Any:
    """Random means, variances and offsets of every batch norm, and biases of every convolution that has one."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            planes = layer.moving_mean.shape[0]
            layer.moving_mean.assign(generator.normal(0, 0.1, planes))
            layer.moving_variance.assign(generator.uniform(0.1, 0.5, planes))
            layer.beta.assign(generator.normal(0.1, 0.1, planes))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(generator.normal(0, 0.1, layer.bias.shape))
    return model


@pytest.fixture()
def inception() -> Any:
    """The tiny network of `make_inception`, as trained: neither folded nor frozen."""
    return make_inception()


@pytest.fixture()
def spread_statistics() -> Any:
    """The function `set_statistics(model, seed) -> model`."""
    return set_statistics
