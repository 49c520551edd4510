"""VGGish's convolutional stack (Hershey et al. 2017): log-mel in, 512 pooled features out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..spectrogram import FrontEnd, LogMel
from . import weights

BLOCKS = ((64, 1), (128, 1), (256, 2), (512, 2))
CHECKPOINT_URL = "https://storage.googleapis.com/audioset/vggish_model.ckpt"
LAYERS = ("conv1", "conv2", "conv3/conv3_1", "conv3/conv3_2", "conv4/conv4_1", "conv4/conv4_2")


class VGGish:
    """The backbone plugin `vggish`.

    Parameters
    ----------
    front_end : VGGish's log-mel; other constants than the published ones need weights trained with them.
    """

    name = "vggish"
    feature_size = 512

    def __init__(self, front_end: FrontEnd | None = None) -> None:
        self.front_end: FrontEnd = front_end or LogMel()

    def build_keras(self) -> Any:
        """New network with random weights: (batch, 96, 64, 1) -> (batch, 512).

        Six 3 x 3 convolutions with ReLU, 2 x 2 max-pooling after each block, global average over time and frequency
        (the published network's dense layers are left out: paper section 2.1 takes the last convolutional layer).
        """
        from tensorflow.keras import Model, layers

        x = first = layers.Input(self.front_end.shape, name="spectrogram")
        names = iter(LAYERS)
        for filters, depth in BLOCKS:
            for _ in range(depth):
                name = next(names).split("/")[-1]
                x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
            x = layers.MaxPooling2D()(x)
        return Model(first, layers.GlobalAveragePooling2D(name="features")(x), name=self.name)

    def weights_file(self, source: str) -> Path:
        """The file that a source of `load_weights` means; it need not exist."""
        return weights.cached(CHECKPOINT_URL) if source == "audioset" else Path(source)

    def load_weights(self, model: Any, source: str) -> None:
        """Set the published AudioSet weights.

        Parameters
        ----------
        model : from `build_keras`.
        source : `audioset` (downloaded once to the cache folder), or a local TensorFlow checkpoint
            (`vggish_model.ckpt`).

        Raises
        ------
        WeightsError : the file is missing, cannot be downloaded, or holds other tensors.
        """
        if source == "audioset":
            weights.download(CHECKPOINT_URL, "VGGish's AudioSet weights")
        path = self.weights_file(source)
        for name, tensors in zip(LAYERS, read_checkpoint(path)):
            layer = model.get_layer(name.split("/")[-1])
            expected = [tuple(weight.shape) for weight in layer.weights]
            if [tensor.shape for tensor in tensors] != expected:
                found = [tensor.shape for tensor in tensors]
                raise WeightsError(f"{path}: {name} must have shapes {expected}, not {found}: not VGGish's checkpoint")
            layer.set_weights(tensors)


def read_checkpoint(path: Path) -> list[list[Any]]:
    """Kernel and bias of the six convolutions from the published TensorFlow checkpoint."""
    import tensorflow as tf

    if not path.exists() and not Path(f"{path}.index").exists():
        raise WeightsError(
            f"no VGGish checkpoint at {path}: expected is audioset, or the path of vggish_model.ckpt as published with "
            "AudioSet; or train from scratch on purpose (--from-scratch)"
        )
    try:
        reader = tf.train.load_checkpoint(str(path))
        return [[reader.get_tensor(f"vggish/{name}/{part}") for part in ("weights", "biases")] for name in LAYERS]
    except (ValueError, tf.errors.OpError) as fault:
        raise WeightsError(f"{path} is not VGGish's checkpoint: {fault}") from fault
