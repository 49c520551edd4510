"""Fine-tuning of a backbone to orca against noise, or its training from scratch on small data.

The backbone gets a temporary head, orca against noise, learned from the labels and, where a teacher is given, from its
confidence (`teacher`). In the first phase the head alone learns, on the backbone as it came; in the second both do. The
head is thrown away afterwards.

Training runs under any `tf.distribute` strategy (`distribute`): each replica takes its share of every batch
(`batches`), the losses are divided by the whole batch, gradients are added up before they are clipped, and what is
dropped depends on the seed, the step and the window's place in the whole batch. So the weights are those of one worker
but for rounding.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainingError
from ..spectrogram import FrontEnd
from . import distribute, graph_front_end
from .augment import NONE, Augmentation
from .batches import AHEAD, BatchMaker, Clips, dataset, drawing_chances
from .teacher import Teacher

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
BATCH_NORMS = ("frozen", "trained")
PLACES = ("cpu", "device")
LOSSES = ("loss", "label_loss", "teacher_loss")
HEAD, NETWORK = "head", "network"
LARGEST_GRADIENT = 5.0
WITHOUT_DECAY = ["bias", "beta", "gamma"]
LOGGED_EVERY = 20  # steps
SHOWN = 4  # spectrograms in the log


@dataclass(frozen=True)
class FineTuneSettings:
    """How a backbone is trained; the defaults are the recipe of `docs/training.md`.

    Attributes
    ----------
    head_steps, head_learning_rate : of the first phase, which trains the temporary head on the frozen backbone; 0 steps
        leave it out, as for training from scratch.
    steps, learning_rate : of the second phase, which trains the network. The rate is the highest, of AdamW (Loshchilov
        and Hutter 2019): in each phase it rises linearly over `warm_up_share` of the steps, then falls to 0 as a
        cosine.
    batch_size : windows of a batch, over all replicas.
    weight_decay : of the kernels; biases and batch norm's parameters have none.
    average_decay : the weights that are kept are an exponential moving average with this decay; 0 keeps the last.
    dropout : share of the pooled features left out before orca against noise.
    orca_share : share of orca in a batch; the loss is weighted so that both classes count the same.
    group_balance, source_balance : 0 draws every clip of a class equally often, 1 every recording, or every kind of
        sound with its source, equally often; between them, the counts to that power.
    label_weight, teacher_weight : what the cross-entropy to the labels and that to the teacher's confidence count in
        the loss; 0 switches one off.
    evaluations : how often the history gets a line, in each phase.
    precision : Keras' policy while training: `float32`, `mixed_bfloat16` or `mixed_float16`. The weights are float32.
    batch_norm : `frozen` runs batch norm with the statistics that the network came with, and leaves its parameters as
        they are: for pretrained networks, and for small batches. `trained` normalises by the batch, over all replicas,
        and trains the parameters: for training from scratch. The statistics that are kept are then those of the kept
        weights, see `statistics_batches`.
    statistics_batches : batches from which they are computed at the end (Wu and Johnson 2021, "precise" batch norm); a
        moving average of the training steps would belong to other weights, and forget its start too late in short runs.
    trainable_from : the layer from which on the second phase trains; those before it, in the order of `model.layers`,
        stay as they came. None trains all.
    spectrograms : where they are computed: `cpu`, by NumPy, ahead of the training; or `device`, inside the training
        step, for GPUs that are faster than NumPy. A teacher needs `cpu`.
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
    head_steps: int = 0
    head_learning_rate: float = 1e-3
    batch_norm: str = "frozen"
    statistics_batches: int = 20
    trainable_from: str | None = None
    spectrograms: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        for name in ("steps", "batch_size", "evaluations", "statistics_batches"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "head_learning_rate"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warm_up_share", "average_decay", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 0 to below 1, not {getattr(self, name)}")
        if not 0 < self.orca_share < 1:
            raise TrainingError(f"orca_share must be between 0 and 1, not {self.orca_share}")
        self._check_choices()
        self._check_weights()

    def _check_choices(self) -> None:
        for name, allowed in (("precision", POLICIES), ("batch_norm", BATCH_NORMS), ("spectrograms", PLACES)):
            if getattr(self, name) not in allowed:
                raise TrainingError(f"{name} must be one of {list(allowed)}, not {getattr(self, name)!r}")
        if self.spectrograms == "device" and self.teacher_weight:
            raise TrainingError(
                "spectrograms: device needs teacher_weight 0, as the teacher hears spectrograms on the CPU; choose cpu"
            )

    def _check_weights(self) -> None:
        names = ("label_weight", "teacher_weight")
        for name in (*names, "weight_decay", "group_balance", "source_balance", "head_steps"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.label_weight == self.teacher_weight == 0:
            raise TrainingError("label_weight or teacher_weight must be above 0, or there is nothing to learn")


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes
    ----------
    name : `head` or `network`.
    first : number of steps before it.
    steps, learning_rate : see `FineTuneSettings`.
    """

    name: str
    first: int
    steps: int
    learning_rate: float


def phases(settings: FineTuneSettings) -> list[Phase]:
    """The phases that have steps."""
    both = [
        Phase(HEAD, 0, settings.head_steps, settings.head_learning_rate),
        Phase(NETWORK, settings.head_steps, settings.steps, settings.learning_rate),
    ]
    return [phase for phase in both if phase.steps]


def learning_rate_at(step: int, phase: Phase, warm_up_share: float) -> float:
    """Learning rate of a phase's step, 0 to steps - 1."""
    warm = warm_up_share * phase.steps
    if step < warm:
        return float(phase.learning_rate * (step + 1) / (warm + 1))
    return float(phase.learning_rate * (1 + np.cos(np.pi * (step - warm) / (phase.steps - warm))) / 2)


def average_decay_at(step: int, settings: FineTuneSettings) -> float:
    """Decay of the moving average at a step: shorter at first, so that the first weights are forgotten."""
    return min(settings.average_decay, (step + 1) / (step + 10))


# --- the network ------------------------------------------------------------------------------------------------------


def with_precision(model: Any, precision: str, **batch_norm: Any) -> Any:
    """A copy of a functional Keras model, weights included, that computes by that policy.

    Its variables are float32, and so are a rescaling of the input and the global average, of which eight bits would not
    be enough. `batch_norm` changes the configuration of every batch norm.
    """
    from tensorflow.keras import layers, models

    exact = (layers.Rescaling, layers.GlobalAveragePooling2D)

    def copied(layer: Any) -> Any:
        if isinstance(layer, models.Model):
            return with_precision(layer, precision, **batch_norm)
        config = {**layer.get_config(), "dtype": "float32" if isinstance(layer, exact) else precision}
        changed = batch_norm if isinstance(layer, layers.BatchNormalization) else {}
        return type(layer).from_config({**config, **changed})

    copy = models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy


def batch_norm_changes(settings: FineTuneSettings, replicas: int) -> dict[str, bool]:
    """How batch norm is computed while training, see `with_precision`.

    Frozen, not by the fused kernel, whose gradient with stored statistics has no deterministic version on GPUs; trained
    on several replicas, with the statistics of them all.
    """
    if settings.batch_norm == "frozen":
        return {"fused": False}
    return {"synchronized": True} if replicas > 1 else {}


def flat_layers(model: Any) -> list[Any]:
    """The layers of a Keras model in their order, those of models inside it in their place."""
    from tensorflow.keras import models

    nested = [flat_layers(layer) if isinstance(layer, models.Model) else [layer] for layer in model.layers]
    return [layer for part in nested for layer in part]


def choose_trained(model: Any, settings: FineTuneSettings) -> None:
    """Switch off the training of layers, as `trainable_from` and `batch_norm` say.

    A batch norm that is not trained runs with its stored statistics.

    Raises
    ------
    TrainingError : the model has no layer of that name.
    """
    from tensorflow.keras import layers

    found = flat_layers(model)
    for layer in found[: first_trained(found, settings.trainable_from)]:
        layer.trainable = False
    for layer in found:
        if settings.batch_norm == "frozen" and isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


def first_trained(layers: Sequence[Any], name: str | None) -> int:
    """Place of the layer of that name; 0 for None."""
    if name is None:
        return 0
    names = [layer.name for layer in layers]
    if name not in names:
        near = difflib.get_close_matches(name, names) or [layer.name for layer in layers if layer.weights]
        raise TrainingError(f"trainable_from must name a layer of the backbone, not {name!r}: such as {near[:8]}")
    return names.index(name)


def trained_batch_norms(model: Any) -> list[Any]:
    """The batch norms that normalise by the batch while training."""
    from tensorflow.keras import layers

    return [one for one in flat_layers(model) if isinstance(one, layers.BatchNormalization) and one.trainable]


def make_head() -> Any:
    """Pooled features -> logit of orca, float32."""
    from tensorflow.keras import layers

    return layers.Dense(1, dtype="float32", name="orca")


def dropped(features: Any, position: Any, key: Any, settings: FineTuneSettings) -> Any:
    """Pooled features (windows, n) with a share of them set to 0, the rest scaled up.

    Which, depends on the key (two integers) and on each window's place in the whole batch alone, so that it does not
    depend on the number of replicas.
    """
    import tensorflow as tf

    if not settings.dropout:
        return features
    chance = tf.random.stateless_uniform((settings.batch_size, features.shape[1]), key)
    kept = tf.gather(chance, position) >= settings.dropout
    return tf.where(kept, features / (1 - settings.dropout), 0)


# --- the loss and the steps -------------------------------------------------------------------------------------------


def losses(logits: Any, batch: Any, settings: FineTuneSettings) -> Any:
    """The loss and its parts, weighted by class, in the order of `LOSSES`.

    Of a share of a batch: sums over its windows, divided by the windows of the whole batch. The part of the teacher is
    there where the batch (see `batches`) holds its confidence.

    Parameters
    ----------
    logits : of orca, shape (windows,).
    batch : `weights`, `labels` and `taught`, shape (windows,).
    """
    import tensorflow as tf

    targets = [batch[name] for name in ("labels", "taught") if name in batch]
    costs = [tf.nn.sigmoid_cross_entropy_with_logits(target, logits) for target in targets]
    parts = [tf.reduce_sum(batch["weights"] * cost) / settings.batch_size for cost in costs]
    shares = (settings.label_weight, settings.teacher_weight)
    return sum(share * part for share, part in zip(shares, parts)), *parts


def make_optimizer(settings: FineTuneSettings) -> Any:
    """AdamW whose weight decay leaves out biases and batch norm; with a scaled loss for float16."""
    from tensorflow.keras import mixed_precision, optimizers

    optimizer = optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=WITHOUT_DECAY)
    scaled = settings.precision == "mixed_float16"
    return mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer


@dataclass(frozen=True)
class Network:
    """The copy of the backbone that is trained, its head, and how they are trained.

    Attributes
    ----------
    backbone, head : Keras, made in the strategy's scope.
    settings, front_end, seed : as in `fine_tune`.
    strategy : `tf.distribute.Strategy`.
    """

    backbone: Any
    head: Any
    settings: FineTuneSettings
    front_end: FrontEnd
    seed: int
    strategy: Any

    def logits(self, batch: Any, number: Any, training: bool) -> Any:
        """Logits of orca (windows,) in step `number`; the backbone trains or answers as it is."""
        import tensorflow as tf

        seen = graph_front_end.network_input(batch, self.front_end)
        features = tf.cast(self.backbone(seen, training=training), tf.float32)
        key = tf.stack([tf.constant(self.seed, tf.int64), number])
        return self.head(dropped(features, batch["position"], key, self.settings))[:, 0]

    def variables(self, phase: Phase) -> list[Any]:
        """What a phase trains."""
        backbone = self.backbone.trainable_variables if phase.name == NETWORK else []
        return [*backbone, *self.head.trainable_variables]


def make_replica_step(network: Network, phase: Phase, optimizer: Any) -> Any:
    """What a replica does with its share of a batch: (share, step number) -> its part of the losses, gradient norm.

    Gradients are added up over the replicas, then clipped, then applied.
    """
    import tensorflow as tf

    scaled = network.settings.precision == "mixed_float16"
    variables = network.variables(phase)

    def replica_step(batch: Any, number: Any) -> Any:
        with tf.GradientTape() as tape:
            parts = losses(network.logits(batch, number, phase.name == NETWORK), batch, network.settings)
            loss = optimizer.get_scaled_loss(parts[0]) if scaled else parts[0]
        gradients = tape.gradient(loss, variables)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        summed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        clipped, norm = tf.clip_by_global_norm(summed, LARGEST_GRADIENT)
        optimizer.apply_gradients(zip(clipped, variables), skip_gradients_aggregation=True)
        return tf.stack(parts), norm

    return replica_step


def make_step(network: Network, phase: Phase, averaged: Sequence[Any]) -> Any:
    """One step as a TensorFlow function: (batch, number, learning rate, moving-average decay) -> losses, norm."""
    import tensorflow as tf

    strategy, sums = network.strategy, tf.distribute.ReduceOp.SUM
    with strategy.scope():
        optimizer = make_optimizer(network.settings)
        variables = network.variables(phase)
        optimizer.build(variables)
    replica_step = make_replica_step(network, phase, optimizer)

    def follow(kept: Any, variable: Any, decay: Any) -> None:
        kept.assign(decay * kept + (1 - decay) * variable)

    @tf.function  # type: ignore[untyped-decorator]
    def step(batch: Any, number: Any, decay: Any) -> Any:
        parts, norm = strategy.run(replica_step, (batch, number))
        for kept, variable in zip(averaged, variables):
            strategy.extended.update(kept, follow, (variable, decay))
        mean_norm = strategy.reduce(tf.distribute.ReduceOp.MEAN, norm, axis=None)
        return tf.concat([strategy.reduce(sums, parts, axis=None), [mean_norm]], 0)

    def at_rate(batch: Any, number: int, rate: float, decay: float) -> Any:
        optimizer.learning_rate = rate
        return step(batch, tf.constant(number, tf.int64), tf.constant(decay))

    return at_rate


# --- statistics of batch norm -----------------------------------------------------------------------------------------


def estimate_statistics(network: Network, source: Any) -> None:
    """Set the statistics of the trained batch norms to those of `statistics_batches` further batches.

    Each batch is normalised by itself, as in training, by the weights that are kept. The mean is that of the batches'
    means; the variance is that of all their values: the mean of the variances plus the variance of the means.
    """
    norms = trained_batch_norms(network.backbone)
    if not norms:
        return
    collected: list[list[tuple[Any, Any]]] = [[] for _ in norms]
    for layer in norms:
        layer.momentum = 0.0  # so that the moving statistics are the last batch's
    look = _make_look(network)
    for _ in range(network.settings.statistics_batches):
        look(next(source))
        for found, layer in zip(collected, norms):
            found.append((layer.moving_mean.numpy(), layer.moving_variance.numpy() * _biased(layer, network)))
    for found, layer in zip(collected, norms):
        means, variances = (np.stack(values) for values in zip(*found))
        layer.moving_mean.assign(means.mean(axis=0))
        layer.moving_variance.assign(variances.mean(axis=0) + means.var(axis=0))


def _make_look(network: Network) -> Any:
    import tensorflow as tf

    def replica_look(batch: Any) -> None:
        network.backbone(graph_front_end.network_input(batch, network.front_end), training=True)

    @tf.function  # type: ignore[untyped-decorator]
    def look(batch: Any) -> None:
        network.strategy.run(replica_look, (batch,))

    return look


def _biased(layer: Any, network: Network) -> float:
    """Factor from a batch norm's moving variance to its batch's: the fused kernel stores n / (n - 1) times that."""
    if not layer.fused:
        return 1.0
    places = int(np.prod(layer.output_shape[1:-1])) * network.settings.batch_size
    return (places - 1) / places if places > 1 else 1.0


# --- history and logs -------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Collects what the steps give: looks for losses that are not numbers, keeps the history, writes the log.

    Attributes
    ----------
    settings : of the training.
    writer : of TensorBoard's log; None where none is written.
    history : see `fine_tune`.
    """

    settings: FineTuneSettings
    writer: Any
    history: dict[str, Any] = field(default_factory=dict)
    _waiting: list[tuple[int, float, Any]] = field(default_factory=list)
    _recent: list[Any] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def add(self, phase: Phase, step: int, rate: float, values: Any) -> None:
        """Take the losses and the gradient norm of a phase's step, a tensor that may still be computing."""
        self._waiting.append((phase.first + step, rate, values))
        done, each = step + 1, self.settings.evaluations
        evaluated = done * each // phase.steps > step * each // phase.steps
        if evaluated or done % LOGGED_EVERY == 0:
            self._look()
        if evaluated:
            self._evaluate(phase, phase.first + done)

    def _look(self) -> None:
        values = np.array([np.asarray(found) for _, _, found in self._waiting], np.float64)
        for (number, rate, _), good in zip(self._waiting, usable(values, self.settings)):
            if not good:
                raise TrainingError(not_finite(number, rate, self.settings))
        if self.writer is not None:
            self._log(values)
        self._recent.extend(values[:, :-1])
        self._waiting, self._since = [], time.perf_counter()

    def _log(self, values: Any) -> None:
        import tensorflow as tf

        number, rate, _ = self._waiting[-1]
        means = [float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else 0.0 for column in values.T]
        named = {**dict(zip(LOSSES, means[:-1])), "gradient_norm": means[-1], "learning_rate": rate}
        named["windows_per_s"] = len(values) * self.settings.batch_size / (time.perf_counter() - self._since)
        with self.writer.as_default(step=number + 1):
            for name, value in named.items():
                tf.summary.scalar(name, value)
        self.writer.flush()

    def _evaluate(self, phase: Phase, step: int) -> None:
        named = dict(zip(LOSSES, np.mean(self._recent, axis=0).tolist()))
        for name, value in {"phase": phase.name, "step": step, **named}.items():
            self.history.setdefault(name, []).append(value)
        self._recent = []


def usable(values: NDArray[np.float64], settings: FineTuneSettings) -> NDArray[np.bool_]:
    """True for steps whose losses and gradient norm, shape (steps, losses + 1), are finite numbers.

    float16 may leave out a step whose scaled gradient is too large, but not `LOGGED_EVERY` of them on end.
    """
    losses_good, norms_good = np.isfinite(values[:, :-1]).all(axis=1), np.isfinite(values[:, -1])
    if settings.precision != "mixed_float16":
        return np.asarray(losses_good & norms_good)
    return np.asarray(losses_good & (norms_good.any() or len(values) < LOGGED_EVERY))


def not_finite(step: int, rate: float, settings: FineTuneSettings) -> str:
    """What to say of a loss that is not a number."""
    half = "" if settings.precision == "float32" else f", or precision: float32 instead of {settings.precision}"
    return (
        f"the loss of step {step + 1}, or its gradient, is not a finite number (learning rate {rate:.3g}); nothing was "
        f"kept. Train with a lower learning_rate, a longer warm_up_share{half}; at step 1, look at the weights and the "
        "waveforms for values that are not finite"
    )


def show_examples(writer: Any, maker: BatchMaker) -> None:
    """Write the first windows of the first batch into the log as pictures, each from its lowest to its highest."""
    import tensorflow as tf

    windows = maker.part(0, 0, max(1, maker.settings.batch_size // SHOWN))
    seen = tf.cast(graph_front_end.network_input(windows, maker.front_end), tf.float32)[..., :1]
    low, high = (limit(seen, axis=(1, 2, 3), keepdims=True) for limit in (tf.reduce_min, tf.reduce_max))
    pictures = tf.reverse(tf.transpose((seen - low) / tf.maximum(high - low, 1e-6), (0, 2, 1, 3)), [1])
    with writer.as_default(step=0):
        tf.summary.image("windows", pictures, max_outputs=SHOWN)


def make_writer(logs: Path | None) -> Any:
    """Writer of TensorBoard's log in the chief; None elsewhere, and where no log is asked for."""
    import tensorflow as tf

    return tf.summary.create_file_writer(str(logs)) if logs is not None and distribute.is_chief() else None


# --- all of it --------------------------------------------------------------------------------------------------------


def fine_tune(
    model: Any,
    clips: Clips,
    settings: FineTuneSettings,
    augmentation: Augmentation | None,
    front_end: FrontEnd,
    progress: Callable[..., Any],
    seed: int,
    teacher: Teacher | None,
    logs: Path | None = None,
    strategy: Any = None,
) -> dict[str, Any]:
    """Train a backbone in place.

    Parameters
    ----------
    model : functional Keras model, spectrograms (batch, *front_end.shape) -> pooled features (batch, features).
    clips : the training clips, at the front end's rate; their waveforms may be memory-mapped, and are read window by
        window.
    settings, augmentation, front_end : how; no augmentation trains on the clips as they are.
    progress : (iterable, what, unit) -> iterable that shows how far it is.
    seed : equal seeds give equal weights on one machine; on a GPU, where the caller has switched on
        `tf.config.experimental.enable_op_determinism`.
    teacher : answers where `teacher_weight` is above 0; None where it is 0.
    logs : folder for TensorBoard; the chief alone writes there.
    strategy : of `distribute.strategy`, under which every worker makes this same call; None does not distribute.

    Returns
    -------
    The history, lists with one entry an evaluation: `phase` (`head` or `network`), `step` (steps done, over both
    phases), and the mean since the last of `loss`, `label_loss` and, where there is a teacher, `teacher_loss`.

    Raises
    ------
    TrainingError : one class only; a `teacher_weight` without a teacher, or the other way round; a batch that the
        replicas cannot share evenly; an unknown `trainable_from`; a loss that is not a finite number (the model is
        then as it came).
    """
    import tensorflow as tf

    strategy = strategy or tf.distribute.get_strategy()
    check(settings, teacher, front_end, strategy.num_replicas_in_sync)
    maker = BatchMaker(clips, teacher, settings, augmentation or NONE, front_end, seed)
    drawing_chances(clips, settings)
    tf.keras.utils.set_random_seed(seed)
    network = make_network(model, settings, front_end, seed, strategy)
    source = iter(distributed(maker, strategy))
    recorder = Recorder(settings, make_writer(logs))
    if recorder.writer is not None:
        show_examples(recorder.writer, maker)
    for phase in phases(settings):
        run_phase(network, phase, source, recorder, progress)
    estimate_statistics(network, source)
    model.set_weights(network.backbone.get_weights())
    return recorder.history


def check(settings: FineTuneSettings, teacher: Teacher | None, front_end: FrontEnd, replicas: int) -> None:
    """Raise TrainingError where the parts of a training do not fit together."""
    if bool(settings.teacher_weight) != (teacher is not None):
        needed = "a teacher" if settings.teacher_weight else "no teacher"
        raise TrainingError(f"teacher_weight {settings.teacher_weight} needs {needed}")
    if settings.batch_size % replicas:
        raise TrainingError(
            f"batch_size must be a multiple of the {replicas} replicas that share each batch, not {settings.batch_size}"
        )
    if settings.spectrograms == "device":
        graph_front_end.check(front_end)


def make_network(model: Any, settings: FineTuneSettings, front_end: FrontEnd, seed: int, strategy: Any) -> Network:
    """A copy of the backbone in the precision of the training, with a new head, in the strategy's scope."""
    with strategy.scope():
        changes = batch_norm_changes(settings, strategy.num_replicas_in_sync)
        backbone = with_precision(model, settings.precision, **changes)
        head = make_head()
        head.build(backbone.output_shape)
    choose_trained(backbone, settings)
    return Network(backbone, head, settings, front_end, seed, strategy)


def distributed(maker: BatchMaker, strategy: Any) -> Any:
    """The batches of all phases and of `estimate_statistics`, each worker making its replicas' shares."""
    import tensorflow as tf

    settings = maker.settings
    steps = settings.head_steps + settings.steps + settings.statistics_batches

    def of_worker(context: Any) -> Any:
        local = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * local
        return dataset(maker, steps, first, local, context.num_replicas_in_sync)

    options = tf.distribute.InputOptions(experimental_per_replica_buffer_size=AHEAD)
    return strategy.distribute_datasets_from_function(of_worker, options)


def run_phase(network: Network, phase: Phase, source: Any, recorder: Recorder, progress: Callable[..., Any]) -> None:
    """Train one phase; the moving average of its weights is what stays."""
    import tensorflow as tf

    settings, variables = network.settings, network.variables(phase)
    with network.strategy.scope():
        averaged = [tf.Variable(variable, trainable=False) for variable in variables]
    step = make_step(network, phase, averaged)
    for number in progress(range(phase.steps), f"fine-tuning the {phase.name}", "step"):
        rate = learning_rate_at(number, phase, settings.warm_up_share)
        values = step(next(source), phase.first + number, rate, average_decay_at(number, settings))
        recorder.add(phase, number, rate, values)
    for kept, variable in zip(averaged, variables):
        variable.assign(kept.numpy())
