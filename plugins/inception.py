"""Inception V3 and Inception-ResNet V2 (Szegedy et al.): linear power spectrogram in, 2048 or 1536 features out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError
from ..spectrogram import FrontEnd, LinearPower
from . import weights

SMALLEST = 75  # side of the image: below it the networks' last convolutions have no input left
PUBLISHED = "https://storage.googleapis.com/tensorflow/keras-applications"
NUMBERED = re.compile(
    r"(conv2d|batch_normalization|activation|max_pooling2d|average_pooling2d|concatenate|custom_scale_layer)(?:_(\d+))?"
)


class Inception:
    """What both plugins share: the one plane as a three-plane image, the published network, the sources of weights.

    Parameters
    ----------
    front_end : one plane in 0 to 1, both sides at least 75; LinearPower at the paper's 299 if not given.

    Raises
    ------
    InputError : the front end's image is too small or has more planes.
    """

    name: str
    feature_size: int
    network: str  # its name in keras.applications
    url: str
    md5: str

    def __init__(self, front_end: FrontEnd | None = None) -> None:
        self.front_end: FrontEnd = front_end or LinearPower()
        height, width, planes = self.front_end.shape
        if min(height, width) < SMALLEST or planes != 1:
            raise InputError(
                f"{self.name} takes spectrograms of at least {SMALLEST} x {SMALLEST} x 1, not {height} x {width} x "
                f"{planes}: give its front end a larger size, e.g. 139 (fast) or 299 (the paper's)"
            )

    def build_keras(self) -> Any:
        """New network with random weights: (batch, size, size, 1) in 0 to 1 -> (batch, feature_size), >= 0.

        The published network of keras.applications in one flat graph, its batch norms inside: the plane is scaled to
        -1 to 1, as for ImageNet's pictures, and repeated three times; the last convolutional layer is averaged over
        time and frequency (paper section 2.1). Layers have the same names however often it is built.
        """
        from tensorflow.keras import Model, applications, layers

        first = layers.Input(self.front_end.shape, name="spectrogram")
        centred = layers.Rescaling(2.0, offset=-1.0, name="centred")(first)
        image = layers.Concatenate(name="image")([centred, centred, centred])
        network = getattr(applications, self.network)(include_top=False, weights=None, input_tensor=image)
        number_layers(network.layers)
        return Model(first, layers.GlobalAveragePooling2D(name="features")(network.output), name=self.name)

    def weights_file(self, source: str) -> Path:
        """The file that a source of `load_weights` means; it need not exist."""
        return weights.cached(self.url) if source == "imagenet" else Path(source)

    def load_weights(self, model: Any, source: str) -> None:
        """Set pretrained weights.

        Parameters
        ----------
        model : from `build_keras`.
        source : `imagenet` (keras.applications' own file without the classifier, downloaded once to the cache folder),
            or a local file: an `.h5` of Keras, of the network without its classifier, or an `.npz` with the arrays
            `LAYER/WEIGHT` (`conv2d_1/kernel`, `batch_normalization_1/beta`, `/moving_mean`, `/moving_variance`, ...;
            numbers in the order in which keras.applications creates the layers), float16 or float32.

        Raises
        ------
        WeightsError : the file is missing, cannot be downloaded, or holds other arrays.
        """
        if source == "imagenet":
            weights.download(self.url, f"{self.network}'s ImageNet weights", self.md5)
        path = weights.require_file(self.weights_file(source), self._expected())
        if path.suffix == ".npz":
            weights.set_weights(model, weights.fold_gamma(weights.read_npz(path)), path)
        elif path.suffix == ".h5":
            load_h5(model, path)
        else:
            raise WeightsError(f"weights must be {self._expected()}, not {path}")

    def _expected(self) -> str:
        return f"imagenet, an .h5 file (such as {weights.cached(self.url).name}) or an .npz file"


class InceptionV3(Inception):
    """The backbone plugin `inception_v3`: Szegedy et al. 2016, 2048 features."""

    name = "inception_v3"
    feature_size = 2048
    network = "InceptionV3"
    url = f"{PUBLISHED}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
    md5 = "bcbd6486424b2319ff4ef7d526e38f63"


class InceptionResNetV2(Inception):
    """The backbone plugin `inception_resnet_v2`: Szegedy et al. 2017, 1536 features."""

    name = "inception_resnet_v2"
    feature_size = 1536
    network = "InceptionResNetV2"
    url = f"{PUBLISHED}/inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    md5 = "d19885ff4a710c122648d3b5c3b684e4"


def number_layers(layers: Iterable[Any]) -> None:
    """Number the layers that Keras named by itself 1, 2, ... of their kind, in the order of their creation.

    Keras counts on over all models of a process; the names of these layers are the keys of a weights file. To be called
    before the layers become part of the final model, which keeps their names.
    """
    found = [(match[1], int(match[2] or 0), layer) for layer in layers if (match := NUMBERED.fullmatch(layer.name))]
    count: dict[str, int] = {}
    for kind, _, layer in sorted(found, key=lambda entry: entry[:2]):
        count[kind] = count.get(kind, 0) + 1
        layer._name = f"{kind}_{count[kind]}"


def load_h5(model: Any, path: Path) -> None:
    """Set a network's weights from a Keras file, layer by layer; raises WeightsError where they do not fit."""
    try:
        model.load_weights(str(path))
    except (ValueError, KeyError, OSError) as fault:
        raise WeightsError(
            f"{path} must hold {model.name} without its classifier (include_top=False), as Keras saves it: {fault}"
        ) from fault
