"""Fine-tuning of a backbone to orca against noise, or its training from scratch on small data.

The backbone gets a temporary head, orca against noise, learned from the labels and from the confidence of a teacher
(`teacher`). The head is thrown away afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import FrontEnd
from .augment import NONE, Augmentation, mask, training_batch
from .teacher import Teacher

if TYPE_CHECKING:
    from .dataset import LoadedClip

Array = NDArray[np.float32]
Clips = Sequence["LoadedClip"]

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
LOSSES = ("loss", "label_loss", "teacher_loss")
LARGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class FineTuneSettings:
    """How a backbone is trained; the defaults are the recipe of `docs/training.md`.

    Attributes
    ----------
    steps, batch_size : number of batches, and windows of each.
    learning_rate : highest, of AdamW (Loshchilov and Hutter 2019): rises linearly over `warm_up_share` of the steps,
        then falls to 0 as a cosine.
    weight_decay : of the kernels; biases have none.
    average_decay : the weights that are kept are an exponential moving average with this decay; 0 keeps the last.
    dropout : share of the pooled features left out before orca against noise.
    orca_share : share of orca in a batch; the loss is weighted so that both classes count the same.
    group_balance, source_balance : 0 draws every clip of a class equally often, 1 every recording, or every kind of
        sound with its source, equally often; between them, the counts to that power.
    label_weight, teacher_weight : what the cross-entropy to the labels and that to the teacher's confidence count in
        the loss; 0 switches one off.
    evaluations : how often the history gets a line.
    precision : Keras' policy while training: `float32`, `mixed_bfloat16` or `mixed_float16`. The weights are float32.
    """

    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 7e-4
    warm_up_share: float = 0.15
    weight_decay: float = 0.01
    average_decay: float = 0.995
    dropout: float = 0.3
    orca_share: float = 0.5
    group_balance: float = 0.5
    source_balance: float = 0.5
    label_weight: float = 0.3
    teacher_weight: float = 1.0
    evaluations: int = 8
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        for name in ("steps", "batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise TrainingError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("warm_up_share", "average_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 0 to below 1, not {getattr(self, name)}")
        if not 0 < self.orca_share < 1:
            raise TrainingError(f"orca_share must be between 0 and 1, not {self.orca_share}")
        if self.precision not in POLICIES:
            raise TrainingError(f"precision must be one of {list(POLICIES)}, not {self.precision!r}")
        self._check_weights()

    def _check_weights(self) -> None:
        names = ("label_weight", "teacher_weight")
        for name in (*names, "weight_decay", "group_balance", "source_balance"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.label_weight == self.teacher_weight == 0:
            raise TrainingError("label_weight or teacher_weight must be above 0, or there is nothing to learn")


def is_orca(clips: Clips) -> NDArray[np.bool_]:
    """True where a clip is labelled orca, shape (clips,)."""
    return np.array([clip.label == "orca" for clip in clips], bool)


def drawing_chances(clips: Clips, settings: FineTuneSettings) -> NDArray[np.float64]:
    """Chance of each clip to be drawn for a batch, shape (clips,), sum 1: see `FineTuneSettings`.

    Raises
    ------
    TrainingError : one class only.
    """
    orca = is_orca(clips)
    if orca.all() or not orca.any():
        raise TrainingError(f"training needs orca and noise, but all {len(clips)} clips are of one class")
    groups = Counter((clip.label, clip.group) for clip in clips)
    sources = Counter((clip.kind, clip.source) for clip in clips)
    chances = np.array(
        [
            groups[clip.label, clip.group] ** -settings.group_balance
            * sources[clip.kind, clip.source] ** -settings.source_balance
            for clip in clips
        ],
        np.float64,
    )
    for chosen, share in ((orca, settings.orca_share), (~orca, 1 - settings.orca_share)):
        chances[chosen] *= share / chances[chosen].sum()
    return np.asarray(chances / chances.sum())


def class_weights(orca: NDArray[np.bool_], orca_share: float) -> Array:
    """Weight of each window in the loss, inverse to its class's share, so that both classes count one half."""
    return np.where(orca, 0.5 / orca_share, 0.5 / (1 - orca_share)).astype(np.float32)


def batches(
    clips: Clips,
    teacher: Teacher | None,
    settings: FineTuneSettings,
    augmentation: Augmentation,
    front_end: FrontEnd,
    seed: int,
) -> Iterator[tuple[Array, ...]]:
    """Endless training batches, the same for the same seed.

    Yields
    ------
    spectrograms (batch, *front_end.shape) with masks; weights and labels 0 or 1, both (batch,); and, where there is a
    teacher, its confidence in the spectrograms without masks, (batch,).
    """
    generator = np.random.default_rng(seed)
    chances, orca = drawing_chances(clips, settings), is_orca(clips)
    noise = [clip for clip in clips if clip.label != "orca"]
    while True:
        drawn = generator.choice(len(clips), settings.batch_size, p=chances)
        whole = training_batch([clips[k] for k in drawn], noise, augmentation, front_end, generator)
        seen = mask(whole, augmentation, generator).reshape(-1, *front_end.shape)
        labels = orca[drawn]
        taught = [teacher.confidence(whole)] if teacher else []
        yield (seen, class_weights(labels, settings.orca_share), labels.astype(np.float32), *taught)


def learning_rate_at(step: int, settings: FineTuneSettings) -> float:
    """Learning rate of a step, 0 to steps - 1."""
    warm = settings.warm_up_share * settings.steps
    if step < warm:
        return float(settings.learning_rate * (step + 1) / (warm + 1))
    return float(settings.learning_rate * (1 + np.cos(np.pi * (step - warm) / (settings.steps - warm))) / 2)


def average_decay_at(step: int, settings: FineTuneSettings) -> float:
    """Decay of the moving average at a step: shorter at first, so that the first weights are forgotten."""
    return min(settings.average_decay, (step + 1) / (step + 10))


def with_precision(model: Any, precision: str) -> Any:
    """A copy of a Keras model, weights included, that computes by that policy."""
    from tensorflow.keras import models

    def copied(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": precision})

    copy = models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy


def with_head(model: Any, dropout: float) -> Any:
    """Spectrogram -> logit of orca, float32, through the backbone's pooled features."""
    from tensorflow.keras import Model, layers

    features = layers.Activation("linear", dtype="float32")(model.output)
    hidden = layers.Dropout(dropout, dtype="float32")(features)
    return Model(model.input, layers.Dense(1, dtype="float32", name="orca")(hidden))


def losses(outputs: Any, batch: Any, settings: FineTuneSettings) -> Any:
    """The loss and its parts, weighted by class, in the order of `LOSSES`; outputs (batch, 1) are logits.

    The part of the teacher is there where the batch (see `batches`) holds its confidence.
    """
    import tensorflow as tf

    logits, (_, weights, *targets) = outputs[:, 0], batch
    parts = [tf.reduce_mean(weights * tf.nn.sigmoid_cross_entropy_with_logits(one, logits)) for one in targets]
    shares = (settings.label_weight, settings.teacher_weight)
    return sum(share * part for share, part in zip(shares, parts)), *parts


def make_optimizer(settings: FineTuneSettings) -> Any:
    """AdamW whose weight decay leaves the biases out."""
    from tensorflow.keras import optimizers

    optimizer = optimizers.AdamW(
        settings.learning_rate, weight_decay=settings.weight_decay, global_clipnorm=LARGEST_GRADIENT
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    if settings.precision == "mixed_float16":
        from tensorflow.keras import mixed_precision

        return mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def make_step(network: Any, optimizer: Any, averaged: Sequence[Any], settings: FineTuneSettings) -> Any:
    """One training step as a TensorFlow function: (batch, moving-average decay) -> the losses."""
    import tensorflow as tf

    scaled = settings.precision == "mixed_float16"

    @tf.function  # type: ignore[untyped-decorator]
    def step(batch: Any, decay: Any) -> Any:
        with tf.GradientTape() as tape:
            parts = losses(network(batch[0], training=True), batch, settings)
            loss = optimizer.get_scaled_loss(parts[0]) if scaled else parts[0]
        gradients = tape.gradient(loss, network.trainable_variables)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables))
        for kept, variable in zip(averaged, network.weights):
            kept.assign(decay * kept + (1 - decay) * tf.cast(variable, kept.dtype))
        return tf.stack(parts)

    return step


def fine_tune(
    model: Any,
    clips: Clips,
    settings: FineTuneSettings,
    augmentation: Augmentation | None,
    front_end: FrontEnd,
    progress: Callable[..., Any],
    seed: int,
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Train a backbone in place.

    Parameters
    ----------
    model : Keras, spectrograms (batch, *front_end.shape) -> pooled features (batch, features).
    clips : the training clips, at the front end's rate.
    settings, augmentation, front_end : how; no augmentation trains on the clips as they are.
    progress : (iterable, what, unit) -> iterable that shows how far it is.
    seed : equal seeds give equal weights on one machine.
    teacher : answers where `teacher_weight` is above 0; None where it is 0.

    Returns
    -------
    The history, lists with one entry an evaluation: `step`, and the mean since the last of `loss`, `label_loss` and,
    where there is a teacher, `teacher_loss`.

    Raises
    ------
    TrainingError : one class only, or a `teacher_weight` without a teacher, or the other way round.
    """
    import tensorflow as tf

    if bool(settings.teacher_weight) != (teacher is not None):
        needed = "a teacher" if settings.teacher_weight else "no teacher"
        raise TrainingError(f"teacher_weight {settings.teacher_weight} needs {needed}")
    tf.keras.utils.set_random_seed(seed)
    copy = with_precision(model, settings.precision)
    network = with_head(copy, settings.dropout)
    averaged = [tf.Variable(weight, trainable=False) for weight in network.get_weights()]
    step = make_step(network, optimizer := make_optimizer(settings), averaged, settings)
    source = batches(clips, teacher, settings, augmentation or NONE, front_end, seed)
    history: dict[str, Any] = {}
    recent: list[Any] = []
    for number in progress(range(settings.steps), "fine-tuning", "step"):
        optimizer.learning_rate = learning_rate_at(number, settings)
        recent.append(step(tuple(map(tf.constant, next(source))), tf.constant(average_decay_at(number, settings))))
        if (number + 1) * settings.evaluations // settings.steps > number * settings.evaluations // settings.steps:
            _record(history, number + 1, recent)
            recent = []
    network.set_weights([variable.numpy() for variable in averaged])
    model.set_weights(copy.get_weights())
    return history


def _record(history: dict[str, Any], step: int, recent: Sequence[Any]) -> None:
    history.setdefault("step", []).append(step)
    for name, value in zip(LOSSES, np.mean([np.asarray(parts) for parts in recent], axis=0)):
        history.setdefault(name, []).append(float(value))
