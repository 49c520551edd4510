"""The 256-unit classifiers on pooled features: base-models and, on masked features, the masked models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError

Array = NDArray[np.float32]
Head = Mapping[str, Array]

HIDDEN_UNITS = 256
BLOCK = 4096  # rows read at a time
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


class Masked:
    """Features of one or more backbones side by side, each under its mask: read when rows are asked for.

    Parameters
    ----------
    features : of each backbone, not negative, shape (windows, its features); may be memory-mapped.
    masks : of each backbone: 0 or 1 per feature, shape (its features,) or, by window, as its features; None for none.
    rows : which windows; all where it is left out.
    """

    def __init__(
        self,
        features: Sequence[Array],
        masks: Sequence[NDArray[Any] | None],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._features = tuple(features)
        self._masks = tuple(masks)
        self._rows = np.arange(len(features[0])) if rows is None else rows
        self.shape = (len(self._rows), sum(part.shape[1] for part in features))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: NDArray[np.int64]) -> Array:
        """Masked features of some rows (indices of `rows`): float32, shape (rows, features)."""
        chosen = self._rows[rows]
        parts = [_masked(one[chosen], mask, chosen) for one, mask in zip(self._features, self._masks)]
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)

    def blocks(self) -> Iterator[Array]:
        """Yield all rows, in blocks of at most BLOCK."""
        for start in range(0, len(self), BLOCK):
            yield self[np.arange(start, min(start + BLOCK, len(self)))]


def _masked(features: Array, mask: NDArray[Any] | None, rows: NDArray[np.int64]) -> Array:
    if mask is None:
        return features
    return features * (mask if mask.ndim == 1 else mask[rows])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Rows:
    """What a head learns from: one row a window.

    Attributes
    ----------
    features : of the windows.
    orca : True where the clip is orca, shape (windows,).
    targets : what the confidence shall be, 0 to 1: the label, or mixed with a teacher's answer, shape (windows,).
    groups : the recording, shape (windows,).
    bags : the clip, shape (windows,); matters where windows are pooled.
    """

    features: Masked
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
    scale = root_mean_square(rows.features)
    bags = Bags(rows, settings.pooling > 0, scale)
    orca, held = rows.orca[bags.first], np.zeros(len(bags.first), bool)
    if settings.validation_share:
        held = validation_groups(rows.groups[bags.first], orca, settings.validation_share, seed)
    weights, history = _fit(bags, orca, held, settings, seed, progress)
    return calibrated(_rescaled(weights, scale), settings.slope, settings.shift), history


def root_mean_square(features: Masked) -> float:
    """Root of the mean square of all features; 1 where all are 0."""
    total = sum(float(np.square(block, dtype=np.float64).sum()) for block in features.blocks())
    return float(np.sqrt(total / np.prod(features.shape))) or 1.0


class Bags:
    """Windows grouped for the loss: by clip where windows are pooled, else one by one.

    Attributes
    ----------
    first : index of each bag's first window.
    """

    def __init__(self, rows: Rows, pooled: bool, scale: float) -> None:
        self._rows = rows
        self._scale = np.float32(scale)
        names = rows.bags if pooled else np.arange(len(rows.bags))
        _, self.first, index, sizes = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
        self._windows = np.split(np.argsort(index, kind="stable"), np.cumsum(sizes)[:-1])

    @property
    def features(self) -> int:
        """Number of features of a window."""
        return self._rows.features.shape[1]  # type: ignore[no-any-return]

    def batch(self, chosen: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Packed features and presence (see `pack`), and the targets (bags,), of some bags."""
        windows = [self._windows[bag] for bag in chosen]
        names = np.repeat(np.arange(len(chosen)), [len(some) for some in windows])
        packed, present, _ = pack(self._rows.features[np.concatenate(windows)] / self._scale, names)
        return packed, present, self._rows.targets[self.first[chosen]]


def _rescaled(weights: Sequence[Array], scale: float) -> dict[str, Array]:
    head = dict(zip(KEYS, (np.asarray(weight, np.float32) for weight in weights)))
    head["hidden_kernel"] = head["hidden_kernel"] / np.float32(scale)
    return head


def calibrated(head: Head, slope: float, shift: float) -> dict[str, Array]:
    """The head whose confidence is sigmoid(slope (orca logit - noise logit) - shift), by scaling its last layer.

    A monotone change of the confidence: windows keep their order, but the mean over a clip's windows leans to the
    highest (slope above 1) or counts only confident windows (shift above 0). The shift is all on the noise logit, so
    that it takes no relevance from the orca logit, which snapshots explain; but it changes which logit is the higher
    one, and so which neuron the masks come from (`docs/training.md`).
    """
    kernel, bias = head["kernel"] * np.float32(slope), head["bias"] * np.float32(slope)
    moved = bias + np.array([shift, 0], np.float32)
    return {**head, "kernel": kernel.astype(np.float32), "bias": moved.astype(np.float32)}


def uncalibrated(scores: NDArray[np.floating[Any]], slope: float, shift: float) -> NDArray[np.float64]:
    """Confidences as they were before `calibrated`, of any shape: sigmoid((logit(score) + shift) / slope)."""
    kind = np.finfo(np.float32)
    p = np.clip(np.asarray(scores, np.float64), kind.tiny, 1 - kind.eps)
    return np.asarray(1 / (1 + np.exp(-(np.log(p / (1 - p)) + shift) / slope)))


def _network(features: int, settings: HeadSettings) -> Any:
    """Packed windows -> orca against noise of the whole bag (a difference of logits); pooled as `HeadSettings` says."""
    import tensorflow as tf
    from tensorflow.keras import Model, layers

    packed = layers.Input((None, features))
    present = layers.Input((None,))
    logits = _logits(packed, settings.dropout, settings.weight_decay)
    difference = logits[..., 1] - logits[..., 0]
    sharpness = settings.pooling or 1.0  # without pooling a bag is one window, and any sharpness gives that window
    hidden = tf.where(present > 0, sharpness * difference, -1e9)
    number = tf.reduce_sum(present, axis=1)
    pooled = (tf.reduce_logsumexp(hidden, axis=1) - tf.math.log(number)) / sharpness
    return Model([packed, present], pooled[:, tf.newaxis])


def _fit(
    bags: Bags,
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
    model = _network(bags.features, settings)
    model.compile(
        tf.keras.optimizers.Adam(settings.learning_rate), tf.keras.losses.BinaryCrossentropy(from_logits=True)
    )
    callbacks = [tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress(epoch))]
    if held.any():
        callbacks.append(tf.keras.callbacks.EarlyStopping(patience=settings.patience, restore_best_weights=True))
    history = model.fit(
        _batches(bags, np.flatnonzero(~held), each, settings.batch_size, np.random.default_rng(seed)),
        epochs=settings.epochs,
        validation_data=_batches(bags, np.flatnonzero(held), each, settings.batch_size, None) if held.any() else None,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    ).history
    return model.get_weights(), {name: [float(value) for value in values] for name, values in history.items()}


def _batches(
    bags: Bags, chosen: NDArray[np.int64], each: Array, size: int, generator: np.random.Generator | None
) -> Any:
    """Batches of bags as Keras takes them, in a new order every epoch where there is a generator."""
    import tensorflow as tf

    class Batches(tf.keras.utils.Sequence):  # type: ignore[misc]
        def __init__(self) -> None:
            self.order = chosen
            self.on_epoch_end()

        def __len__(self) -> int:
            return -(-len(chosen) // size)

        def __getitem__(self, number: int) -> Any:
            some = self.order[number * size : (number + 1) * size]
            packed, present, targets = bags.batch(some)
            return (packed, present), targets, each[some]

        def on_epoch_end(self) -> None:
            if generator is not None:
                self.order = generator.permutation(chosen)

    return Batches()


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
