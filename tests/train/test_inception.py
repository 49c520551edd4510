from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from orcawatch.errors import InputError, WeightsError
from orcawatch.plugins import inception, weights
from orcawatch.spectrogram import LinearPower, LogMel
from orcawatch.testing import check_backbone, example_spectrograms

SMALL = LinearPower(size=75)


@pytest.fixture(scope="module")
def plugin() -> inception.InceptionV3:
    return inception.InceptionV3(SMALL)


@pytest.fixture(scope="module")
def model(plugin: inception.InceptionV3) -> tf.keras.Model:
    """One network for all tests that only read it, its batch norms away from their start."""
    tf.keras.utils.set_random_seed(1)
    built = plugin.build_keras()
    built.set_weights(varied(built))
    return built


@pytest.fixture(scope="module")
def other(plugin: inception.InceptionV3) -> tf.keras.Model:
    """A second one, built later in the same process, into which tests load weights."""
    return plugin.build_keras()


def varied(model: tf.keras.Model) -> list[np.ndarray]:
    """Weights of the model with every bias, mean and variance moved a little; kernels as they are."""
    rng = np.random.default_rng(2)
    return [value * rng.uniform(0.9, 1.1) + (value.ndim == 1) * 0.05 for value in model.get_weights()]


def arrays_of(model: tf.keras.Model, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """The layout of a weights file, straight from the layers."""
    return {
        f"{layer.name}/{weight.name.split('/')[-1][:-2]}": weight.numpy().astype(dtype)
        for layer in model.layers
        for weight in layer.weights
    }


def test_one_plane_gives_what_three_planes_give_the_stock_network(model: tf.keras.Model, tmp_path: Path) -> None:
    stock = tf.keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3), pooling="avg")
    model.save_weights(tmp_path / "weights.h5")
    stock.load_weights(tmp_path / "weights.h5")
    plane = np.random.default_rng(3).random((2, 75, 75, 1)).astype(np.float32)
    picture = tf.keras.applications.inception_v3.preprocess_input(np.repeat(plane, 3, axis=3) * 255)
    np.testing.assert_allclose(model(plane), stock(picture), atol=1e-5)


def test_conforms_inception_v3(
    plugin: inception.InceptionV3, other: tf.keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "build_keras", lambda: other)  # building another takes seconds
    check_backbone(plugin)


def test_conforms_inception_resnet_v2() -> None:
    check_backbone(inception.InceptionResNetV2(SMALL))


def test_layers_are_named_alike_however_often_built(model: tf.keras.Model, other: tf.keras.Model) -> None:
    names = [layer.name for layer in model.layers]
    assert names == [layer.name for layer in other.layers]
    assert {"spectrogram", "conv2d_1", "conv2d_94", "batch_normalization_94", "mixed10", "features"} <= set(names)
    assert model.get_layer("conv2d_1").kernel.shape == (3, 3, 3, 32)
    assert model.get_layer("conv2d_94").kernel.shape == (1, 1, 2048, 192)


def test_numbers_follow_creation_not_the_alphabet() -> None:
    layers = [tf.keras.layers.Activation("relu", name=f"activation_{k}") for k in (10, 9, 102)]
    layers.append(tf.keras.layers.Activation("relu", name="block8_10_ac"))
    inception.number_layers(layers)
    assert [layer.name for layer in layers] == ["activation_2", "activation_1", "activation_3", "block8_10_ac"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_npz_is_read(
    plugin: inception.InceptionV3, model: tf.keras.Model, other: tf.keras.Model, tmp_path: Path, dtype: type
) -> None:
    np.savez(tmp_path / "w.npz", **arrays_of(model, dtype))
    plugin.load_weights(other, str(tmp_path / "w.npz"))
    for found, expected in zip(other.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(found, expected.astype(dtype))


def test_h5_that_keras_saved_is_read(
    plugin: inception.InceptionV3, model: tf.keras.Model, other: tf.keras.Model, tmp_path: Path
) -> None:
    model.save_weights(tmp_path / "w.h5")
    plugin.load_weights(other, str(tmp_path / "w.h5"))
    for found, expected in zip(other.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(found, expected)


def test_imagenet_means_the_published_file_in_the_cache(
    plugin: inception.InceptionV3,
    model: tf.keras.Model,
    other: tf.keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORCAWATCH_CACHE", str(tmp_path))
    path = tmp_path / "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert plugin.weights_file("imagenet") == path
    assert plugin.weights_file("my.npz") == Path("my.npz")
    model.save_weights(path)
    plugin.load_weights(other, "imagenet")
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


def test_no_network_says_what_to_do(
    plugin: inception.InceptionV3, other: tf.keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("ORCAWATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights.urllib.request, "urlretrieve", refuse)
    with pytest.raises(WeightsError, match=r"no route.*bring inception_v3_weights\w+_notop.h5 by hand.*from-scratch"):
        plugin.load_weights(other, "imagenet")


def test_a_damaged_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_file(_: str, path: Path) -> None:
        path.write_bytes(b"half")

    monkeypatch.setenv("ORCAWATCH_CACHE", str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "urlretrieve", half_a_file)
    with pytest.raises(WeightsError, match=r"MD5 digest 7afe399f\w*, the published file abc"):
        weights.download("https://host/w.h5", "weights", "abc")
    assert not list(tmp_path.iterdir())
    assert weights.download("https://host/w.h5", "weights").read_bytes() == b"half"
    assert [path.name for path in tmp_path.iterdir()] == ["w.h5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv2d_94/kernel": None}, "lacks conv2d_94/kernel: not weights of inception_v3"),
        ({"dense/kernel": np.zeros(3)}, "holds dense/kernel, which inception_v3 has not"),
        ({"conv2d_2/kernel": np.zeros((3, 3, 32, 64))}, r"conv2d_2/kernel must have shape \(3, 3, 32, 32\), not"),
        ({"conv2d_1/kernel": np.full((3, 3, 3, 32), np.inf)}, "conv2d_1/kernel must be finite"),
    ],
)
def test_npz_that_does_not_fit_is_refused_and_sets_nothing(
    plugin: inception.InceptionV3, other: tf.keras.Model, tmp_path: Path, change: dict[str, np.ndarray], words: str
) -> None:
    arrays = {**{name: array + 1 for name, array in arrays_of(other).items()}, **change}
    np.savez(tmp_path / "w.npz", **{name: array for name, array in arrays.items() if array is not None})
    before = other.get_weights()
    with pytest.raises(WeightsError, match=words):
        plugin.load_weights(other, str(tmp_path / "w.npz"))
    assert all(np.array_equal(*pair) for pair in zip(other.get_weights(), before))


def test_other_files_are_refused(plugin: inception.InceptionV3, other: tf.keras.Model, tmp_path: Path) -> None:
    tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(3,))]).save_weights(tmp_path / "other.h5")
    with pytest.raises(WeightsError, match=r"other.h5 must hold inception_v3 without its classifier"):
        plugin.load_weights(other, str(tmp_path / "other.h5"))
    for name, words in [("text.h5", "as Keras saves it"), ("text.npz", "is no NumPy"), ("text.pt", "must be imagenet")]:
        (tmp_path / name).write_text("no weights")
        with pytest.raises(WeightsError, match=words):
            plugin.load_weights(other, str(tmp_path / name))


def test_gamma_goes_into_the_kernel_and_the_mean() -> None:
    rng = np.random.default_rng(4)
    x, gamma = rng.normal(size=(1, 5, 5, 3)), rng.uniform(-1, 2, 4)
    arrays = {"conv2d_7/kernel": rng.normal(size=(3, 3, 3, 4)), "batch_normalization_7/gamma": gamma}
    arrays["batch_normalization_7/moving_mean"] = mean = rng.normal(size=4)
    folded = weights.fold_gamma(arrays)
    plain = gamma * (tf.nn.conv2d(x, arrays["conv2d_7/kernel"], 1, "SAME") - mean)
    found = tf.nn.conv2d(x, folded["conv2d_7/kernel"], 1, "SAME") - folded["batch_normalization_7/moving_mean"]
    np.testing.assert_allclose(found, plain, atol=1e-12)
    assert set(folded) == set(arrays) - {"batch_normalization_7/gamma"}


@pytest.mark.parametrize("front_end", [LinearPower(size=74), LogMel()])
def test_too_small_an_image_is_refused(front_end: LinearPower) -> None:
    with pytest.raises(InputError, match=r"at least 75 x 75 x 1, not .* larger size"):
        inception.InceptionV3(front_end)


def test_default_size_is_the_papers() -> None:
    assert inception.InceptionV3().front_end == inception.InceptionResNetV2().front_end == LinearPower(size=299)


@pytest.mark.data
def test_published_npz_gives_sensible_features(
    plugin: inception.InceptionV3, other: tf.keras.Model, data_folder: Path
) -> None:
    path = data_folder / "weights" / "inception_v3.npz"
    plugin.load_weights(other, str(path))
    with np.load(path) as stored:
        np.testing.assert_array_equal(other.get_layer("conv2d_94").kernel, stored["conv2d_94/kernel"].astype("f4"))
    features = other(example_spectrograms(plugin)).numpy()
    assert 0.01 < features.mean() < 10
    assert np.abs(features[0] - features[1]).max() > 0.5
