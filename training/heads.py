"""The 256-unit classifiers on pooled features: base-models and, on masked features, the masked models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

Array = NDArray[np.float32]
Head = Mapping[str, Array]

HIDDEN_UNITS = 256
KEYS = ("hidden_kernel", "hidden_bias", "kernel", "bias")


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained.

    Attributes
    ----------
    epochs : passes over the training windows; with early stopping, the most there can be.
    batch_size : windows of one step; clips, where windows are pooled.
    learning_rate : of Adam.
    dropout : share of features and of hidden units left out while training.
    weight_decay : L2 penalty of both kernels.
    validation_share : share of the *training* recordings kept for early stopping, 0 for a fixed number of epochs.
        The devel split is never used to stop.
    patience : epochs without a better validation loss before stopping; the best epoch's weights are kept.
    pooling : 0 gives every window its clip's label. Above 0 the label is the clip's alone: the loss is taken of
        log(mean(exp(pooling * d))) / pooling over the clip's windows, d the difference of the logits, so that the
        call-free windows of an orca clip are free to be noise; the larger, the nearer to the highest window.
    teacher_share : the target of a window is this share of the teacher's confidence (`teacher`), the rest its label.
        The classes' weights follow the labels.
    slope, shift : calibration of the confidence, see `calibrated`; a choice made on devel, to be said as such.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    dropout: float = 0.3
    weight_decay: float = 1e-4
    validation_share: float = 0.0
    patience: int = 8
    pooling: float = 0.0
    teacher_share: float = 0.0
    slope: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.epochs < 1 or self.batch_size < 1 or self.patience < 1:
            raise TrainingError("epochs, batch_size and patience must be at least 1")
        if not (0 <= self.dropout < 1 and 0 <= self.validation_share < 1 and self.learning_rate > 0):
            raise TrainingError("dropout and validation_share must be 0 to below 1, learning_rate above 0")
        if self.pooling < 0 or self.slope <= 0:
            raise TrainingError("pooling must be 0 or more, slope above 0")
        if not 0 <= self.teacher_share <= 1 or (self.pooling and self.teacher_share):
            raise TrainingError(
                "teacher_share must be 0 to 1, and 0 where windows are pooled: the teacher hears windows"
            )


def class_weights(labels: NDArray[np.bool_]) -> dict[int, float]:
    """Weights of noise (0) and orca (1), inversely proportional to their number, 1 on average.

    Raises
    ------
    TrainingError : one class only.
    """
    numbers = np.bincount(labels.astype(int), minlength=2)
    if not numbers.all():
        only = "orca" if numbers[1] else "noise"
        raise TrainingError(f"training needs orca and noise, but all {len(labels)} windows are {only}")
    return {k: float(len(labels) / (2 * numbers[k])) for k in (0, 1)}


def forward(features: Array, head: Head) -> Array:
    """Logits [noise, orca] of features (windows, features): float32, shape (windows, 2)."""
    hidden = np.maximum(features @ head["hidden_kernel"] + head["hidden_bias"], 0)
    return np.asarray(hidden @ head["kernel"] + head["bias"], np.float32)


def confidence(logits: Array) -> Array:
    """Confidence of orca, the softmax of logits (windows, 2): shape (windows,), 0 to 1."""
    difference = (logits[:, 0] - logits[:, 1]).astype(np.float64)
    return (1 / (1 + np.exp(np.minimum(difference, 700)))).astype(np.float32)


def scores(features: Array, head: Head) -> Array:
    """Confidence of orca of features (windows, features): shape (windows,)."""
    return confidence(forward(features, head))


def validation_groups(groups: NDArray[np.str_], labels: NDArray[np.bool_], share: float, seed: int) -> NDArray[Any]:
    """Which rows are kept for validation: whole recordings, `share` of those of each class, at least one.

    A recording with orca in it counts as an orca recording.
    """
    generator = np.random.default_rng(seed)
    with_orca = np.unique(groups[labels])
    kept = [_draw(generator, names, share) for names in (with_orca, np.setdiff1d(groups, with_orca))]
    return np.isin(groups, np.concatenate(kept))


def _draw(generator: np.random.Generator, names: NDArray[np.str_], share: float) -> NDArray[np.str_]:
    return generator.permutation(names)[: max(1, round(share * len(names)))]


def build(features: int, dropout: float = 0.0, weight_decay: float = 0.0) -> Any:
    """New Keras head: (batch, features) -> 256 units with ReLU -> logits [noise, orca]."""
    from tensorflow.keras import Model, layers

    first = layers.Input((features,), name="features")
    return Model(first, _logits(first, dropout, weight_decay))


def _logits(x: Any, dropout: float, weight_decay: float) -> Any:
    from tensorflow.keras import layers, regularizers

    penalty = regularizers.L2(weight_decay)
    x = layers.Dropout(dropout)(x)
    x = layers.Dense(HIDDEN_UNITS, activation="relu", kernel_regularizer=penalty, name="hidden")(x)
    x = layers.Dropout(dropout)(x)
    return layers.Dense(2, kernel_regularizer=penalty, name="logits")(x)


def pack(features: Array, bags: NDArray[np.int64]) -> tuple[Array, Array, NDArray[np.int64]]:
    """Windows of each bag side by side.

    Parameters
    ----------
    features : shape (windows, features).
    bags : which bag each window is in, shape (windows,), any integers.

    Returns
    -------
    packed : shape (bags, most windows of a bag, features), zero where a bag has fewer.
    present : 1 where a window is, shape (bags, most windows).
    first : index of each bag's first window.
    """
    _, first, index, sizes = np.unique(bags, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    place = np.arange(len(bags)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    packed = np.zeros((len(sizes), sizes.max(), features.shape[1]), np.float32)
    present = np.zeros(packed.shape[:2], np.float32)
    packed[index[order], place], present[index[order], place] = features[order], 1
    return packed, present, first


@dataclass(frozen=True)
class Rows:
    """What a head learns from: one row a window.

    Attributes
    ----------
    features : not negative, shape (windows, features).
    orca : True where the clip is orca, shape (windows,).
    targets : what the confidence shall be, 0 to 1: the label, or mixed with a teacher's answer, shape (windows,).
    groups : the recording, shape (windows,).
    bags : the clip, shape (windows,); matters where windows are pooled.
    """

    features: Array
    orca: NDArray[np.bool_]
    targets: Array
    groups: NDArray[np.str_]
    bags: NDArray[np.int64]


def targets(orca: NDArray[np.bool_], taught: Array | None, share: float) -> Array:
    """Soft labels: `share` of the teacher's confidence, the rest the label, shape (windows,)."""
    hard = orca.astype(np.float32)
    return hard if taught is None else np.asarray(share * taught + (1 - share) * hard, np.float32)


def train_head(
    rows: Rows, settings: HeadSettings, seed: int, progress: Callable[[int], Any] = lambda epoch: None
) -> tuple[dict[str, Array], dict[str, list[float]]]:
    """Train one head with the weighted loss; masked members come with masked features (paper section 2.1).

    Features are divided by their root mean square while training, and the factor is folded into the first kernel,
    so that a head takes features as they are; so is the calibration of the settings.

    Parameters
    ----------
    rows : the training windows.
    settings, seed : how; equal arguments give equal weights.
    progress : called with the number of each finished epoch.

    Returns
    -------
    The weights (hidden_kernel, hidden_bias, kernel, bias) and the losses by epoch.

    Raises
    ------
    TrainingError : one class only, also after the validation recordings are taken out.
    """
    scale = float(np.sqrt(np.mean(np.square(rows.features, dtype=np.float64)))) or 1.0
    bags = rows.bags if settings.pooling else np.arange(len(rows.bags))
    packed, present, first = pack(rows.features / np.float32(scale), bags)
    orca, held = rows.orca[first], np.zeros(len(first), bool)
    if settings.validation_share:
        held = validation_groups(rows.groups[first], orca, settings.validation_share, seed)
    weights, history = _fit((packed, present), rows.targets[first], orca, held, settings, seed, progress)
    return calibrated(_rescaled(weights, scale), settings.slope, settings.shift), history


def _rescaled(weights: Sequence[Array], scale: float) -> dict[str, Array]:
    head = dict(zip(KEYS, (np.asarray(weight, np.float32) for weight in weights)))
    head["hidden_kernel"] = head["hidden_kernel"] / np.float32(scale)
    return head


def calibrated(head: Head, slope: float, shift: float) -> dict[str, Array]:
    """The head whose confidence is sigmoid(slope (orca logit - noise logit) - shift), by scaling its last layer.

    A monotone change: windows keep their order, but the mean over a clip's windows leans to the highest (slope above
    1) or counts only confident windows (shift above 0). The shift is all on the noise logit, so that it takes no
    relevance from the orca logit, which snapshots explain.
    """
    kernel, bias = head["kernel"] * np.float32(slope), head["bias"] * np.float32(slope)
    moved = bias + np.array([shift, 0], np.float32)
    return {**head, "kernel": kernel.astype(np.float32), "bias": moved.astype(np.float32)}


def uncalibrated(scores: NDArray[np.floating[Any]], slope: float, shift: float) -> NDArray[np.float64]:
    """Confidences as they were before `calibrated`, of any shape: sigmoid((logit(score) + shift) / slope)."""
    kind = np.finfo(np.float32)
    p = np.clip(np.asarray(scores, np.float64), kind.tiny, 1 - kind.eps)
    return np.asarray(1 / (1 + np.exp(-(np.log(p / (1 - p)) + shift) / slope)))


def _network(windows: int, features: int, settings: HeadSettings) -> Any:
    """Packed windows -> orca against noise of the whole bag (a difference of logits); pooled as `HeadSettings` says."""
    import tensorflow as tf
    from tensorflow.keras import Model, layers

    packed = layers.Input((windows, features))
    present = layers.Input((windows,))
    logits = _logits(packed, settings.dropout, settings.weight_decay)
    difference = logits[..., 1] - logits[..., 0]
    sharpness = settings.pooling or 1.0  # without pooling a bag is one window, and any sharpness gives that window
    hidden = tf.where(present > 0, sharpness * difference, -1e9)
    number = tf.reduce_sum(present, axis=1)
    pooled = (tf.reduce_logsumexp(hidden, axis=1) - tf.math.log(number)) / sharpness
    return Model([packed, present], pooled[:, tf.newaxis])


def _fit(
    inputs: tuple[Array, Array],
    answers: Array,
    orca: NDArray[np.bool_],
    held: NDArray[np.bool_],
    settings: HeadSettings,
    seed: int,
    progress: Callable[[int], Any],
) -> tuple[list[Array], dict[str, list[float]]]:
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    weights = class_weights(orca[~held])
    each = np.where(orca, weights[1], weights[0]).astype(np.float32)
    model = _network(inputs[0].shape[1], inputs[0].shape[2], settings)
    model.compile(
        tf.keras.optimizers.Adam(settings.learning_rate), tf.keras.losses.BinaryCrossentropy(from_logits=True)
    )
    callbacks = [tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress(epoch))]
    if held.any():
        callbacks.append(tf.keras.callbacks.EarlyStopping(patience=settings.patience, restore_best_weights=True))
    history = model.fit(
        [array[~held] for array in inputs],
        answers[~held],
        sample_weight=each[~held],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        validation_data=([array[held] for array in inputs], answers[held], each[held]) if held.any() else None,
        callbacks=callbacks,
        verbose=0,
    ).history
    return model.get_weights(), {name: [float(value) for value in values] for name, values in history.items()}


def save_heads(path: Path, heads: Mapping[str, Head]) -> None:
    """Write heads as npz: `MEMBER/hidden_kernel`, `MEMBER/hidden_bias`, `MEMBER/kernel`, `MEMBER/bias`."""
    arrays = {f"{name}/{key}": head[key] for name, head in heads.items() for key in KEYS}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_heads(path: Path) -> dict[str, dict[str, Array]]:
    """Read what `save_heads` wrote, in its order."""
    heads: dict[str, dict[str, Array]] = {}
    with np.load(path) as stored:
        for name in stored.files:
            member, key = name.rsplit("/", 1)
            heads.setdefault(member, {})[key] = stored[name]
    return heads
