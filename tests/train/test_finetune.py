"""Fine-tuning: a tiny network learns a tiny set, the loss is the stated one, and the seed decides everything."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.spectrogram import LinearPower, LogMel
from orcawatch.training import augment, batches, finetune, graph_front_end
from orcawatch.training.augment import NONE, Augmentation
from orcawatch.training.batches import BatchMaker
from orcawatch.training.finetune import FineTuneSettings, Phase
from orcawatch.training.teacher import Teacher, fit_teacher

FRONT_END = LogMel(normalise="band_floor", offset=0.001)
QUICK = FineTuneSettings(steps=60, batch_size=8, learning_rate=0.1, average_decay=0.5, dropout=0.0, evaluations=3)
SHORT = replace(QUICK, steps=3, evaluations=1, teacher_weight=0, learning_rate=0.01, statistics_batches=2)


def made(label: str, seed: int, group: str = "", source: str = "s") -> Any:
    """A second of hiss; with a pulsed tone in it where the label is orca."""
    generator = np.random.default_rng(seed)
    waveform = 0.02 * generator.standard_normal(16000)
    if label == "orca":
        seconds = np.arange(6000) / 16000
        waveform[4000:10000] += 0.2 * sum(np.sin(2 * np.pi * 700 * k * seconds + k) for k in (1, 2, 3, 4))
    described = {"label": label, "group": group or f"{label}{seed}", "kind": label, "source": source}
    return SimpleNamespace(waveform=waveform.astype(np.float32), **described)


CLIPS = [made(label, seed) for seed in range(6) for label in ("orca", "noise")]
HEARD = augment.gather(CLIPS, np.arange(12), np.zeros(12, int), augment.window_samples(FRONT_END))
TEACHER = fit_teacher(augment.spectrograms(HEARD, FRONT_END), batches.is_orca(CLIPS), 0.1)


def network() -> Any:
    """Six pooled features of one convolution; equal weights every time."""
    import tensorflow as tf
    from tensorflow.keras import Model, layers

    tf.keras.utils.set_random_seed(1)
    first = layers.Input(FRONT_END.shape)
    x = layers.Conv2D(6, 3, strides=4, activation="relu")(first)
    return Model(first, layers.GlobalAveragePooling2D()(x))


def mixed_network(shape: tuple[int, ...] = FRONT_END.shape) -> Any:
    """The kinds of layers that the Inceptions have: rescaling, repeated planes, batch norm, scaled and plain residuals."""
    import tensorflow as tf
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
    from tensorflow.keras import Model, layers

    tf.keras.utils.set_random_seed(1)
    first = layers.Input(shape)
    x = layers.Concatenate()([layers.Rescaling(0.5, -0.1)(first)] * 3)
    x = layers.Conv2D(6, 3, strides=4, use_bias=False, name="stem")(x)
    x = layers.Activation("relu")(layers.BatchNormalization(scale=False, name="norm")(x))
    x = CustomScaleLayer(0.3)([x, layers.Conv2D(6, 1, name="branch")(x)])
    x = layers.Add()([x, layers.MaxPooling2D(3, 1, "same")(x)])
    return Model(first, layers.GlobalAveragePooling2D()(x))


def quiet(items: Iterable[Any], what: str, unit: str) -> Iterable[Any]:
    """A progress bar that shows nothing."""
    return items


def tuned(
    settings: FineTuneSettings, seed: int = 0, teacher: Teacher | None = None, make: Any = network, **more: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Weights and history."""
    model = make()
    history = finetune.fine_tune(model, CLIPS, settings, Augmentation(), FRONT_END, quiet, seed, teacher, **more)
    return model.get_weights(), history


@cache
def trained(settings: FineTuneSettings, make: Any = network) -> tuple[list[Any], dict[str, Any]]:
    """Weights and history from seed 0 and the labels alone, trained once."""
    return tuned(settings, make=make)


def same(one: list[Any], other: list[Any]) -> list[bool]:
    """Which weights are equal."""
    return [np.array_equal(a, b) for a, b in zip(one, other)]


def test_the_loss_goes_down_and_the_classes_come_apart() -> None:
    model = network()
    history = finetune.fine_tune(model, CLIPS, QUICK, None, FRONT_END, quiet, 0, TEACHER)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["label_loss"][-1] < np.log(2)  # what a guess costs
    assert history["step"] == [20, 40, 60] and history["phase"] == ["network"] * 3
    assert not np.allclose(model.get_weights()[0], network().get_weights()[0])


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_equal_seeds_give_equal_weights_and_others_do_not(batch_norm: str) -> None:
    settings = replace(SHORT, batch_norm=batch_norm, dropout=0.3)
    one, other = trained(settings, make=mixed_network), tuned(settings, make=mixed_network)
    assert all(same(one[0], other[0])) and one[1] == other[1]
    if batch_norm == "frozen":
        assert not same(one[0], tuned(settings, seed=5, make=mixed_network)[0])[0]


def test_without_a_teacher_the_labels_alone_are_learned() -> None:
    history = trained(SHORT)[1]
    assert list(history) == ["phase", "step", "loss", "label_loss"] and json.loads(json.dumps(history)) == history
    with pytest.raises(TrainingError, match="needs a teacher"):
        tuned(QUICK)
    with pytest.raises(TrainingError, match="needs no teacher"):
        tuned(SHORT, teacher=TEACHER)


def test_the_first_phase_trains_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    kept = finetune.make_head

    def made_head() -> Any:
        heads.append(kept())
        return heads[-1]

    monkeypatch.setattr(finetune, "make_head", made_head)
    monkeypatch.setattr(finetune, "phases", lambda settings: [Phase("head", 0, 30, 0.3)])
    weights, history = tuned(replace(SHORT, head_steps=30, evaluations=3), make=mixed_network)
    assert all(same(weights, mixed_network().get_weights())) and set(history["phase"]) == {"head"}
    assert history["label_loss"][-1] < 0.95 * history["label_loss"][0] and heads[0].get_weights()[1][0] != 0


def test_both_phases_come_one_after_the_other() -> None:
    weights, history = trained(replace(SHORT, head_steps=4, evaluations=2))
    assert history["phase"] == ["head", "head", "network", "network"] and history["step"] == [2, 4, 6, 7]
    assert not all(same(weights, trained(SHORT)[0]))


def test_frozen_batch_norm_stays_as_it_came() -> None:
    weights, _ = trained(replace(SHORT, dropout=0.3), make=mixed_network)
    stem, offset, mean, variance, *branch = same(weights, mixed_network().get_weights())
    assert offset and mean and variance and not stem and not any(branch)


def test_layers_before_the_first_trained_one_stay_as_they_came() -> None:
    settings = replace(SHORT, trainable_from="branch", batch_norm="trained")
    assert same(trained(settings, make=mixed_network)[0], mixed_network().get_weights()) == [True] * 4 + [False] * 2
    with pytest.raises(TrainingError, match=r"trainable_from must name a layer .* such as .'branch'"):
        tuned(replace(SHORT, trainable_from="brunch"), make=mixed_network)


def test_statistics_of_batch_norm_belong_to_the_weights_that_are_kept() -> None:
    from tensorflow.keras import Model

    settings = replace(SHORT, steps=12, batch_norm="trained", average_decay=0.9, statistics_batches=6)
    model = mixed_network()
    finetune.fine_tune(model, CLIPS, settings, None, FRONT_END, quiet, 0, None)
    maker = BatchMaker(CLIPS, None, settings, NONE, FRONT_END, 0)
    seen = [maker.part(12 + k)["input"] for k in range(6)]  # the batches after the last step
    values = np.asarray(Model(model.input, model.get_layer("stem").output)(np.concatenate(seen)), np.float64)
    norm = model.get_layer("norm")
    assert np.allclose(norm.moving_mean, values.mean(axis=(0, 1, 2)), atol=1e-5)
    assert np.allclose(norm.moving_variance, values.var(axis=(0, 1, 2)), rtol=1e-4)
    fresh = np.concatenate([maker.part(90 + k)["input"] for k in range(6)])
    as_deployed = Model(model.input, norm.output)(fresh).numpy() - norm.beta.numpy()
    assert np.allclose(as_deployed.mean(axis=(0, 1, 2)), 0, atol=0.2)
    assert np.allclose(as_deployed.std(axis=(0, 1, 2)), 1, atol=0.2)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_leaves_float32_weights_near_those_of_full_precision(precision: str) -> None:
    settings = replace(SHORT, batch_norm="trained", dropout=0.3)
    full, _ = trained(settings, make=mixed_network)
    weights, history = trained(replace(settings, precision=precision), make=mixed_network)
    assert [(w.shape, w.dtype) for w in weights] == [(w.shape, np.dtype("float32")) for w in full]
    assert np.isfinite(history["loss"]).all() and not all(same(weights, mixed_network().get_weights()))
    assert all(np.allclose(a, b, atol=0.05, rtol=0.05) for a, b in zip(weights, full))


@pytest.mark.parametrize("precision", finetune.POLICIES)
def test_a_copy_in_another_precision_gives_the_same_features(precision: str) -> None:
    model = mixed_network()
    model.set_weights([w + 0.1 * np.random.default_rng(k).random(w.shape) for k, w in enumerate(model.get_weights())])
    x = np.random.default_rng(1).random((2, *FRONT_END.shape)).astype(np.float32)
    copy = finetune.with_precision(model, precision, fused=False)
    assert copy.get_layer("stem").compute_dtype == precision.replace("mixed_", "")
    assert {weight.numpy().dtype for weight in copy.weights} == {np.dtype("float32")}
    assert not copy.get_layer("norm").fused
    tolerance = 1e-5 if precision == "float32" else 0.02
    assert np.allclose(model(x), np.asarray(copy(x), np.float32), rtol=tolerance, atol=tolerance)


def test_a_network_inside_the_network_is_copied_and_frozen_as_well() -> None:
    from tensorflow.keras import Model, layers

    first = layers.Input(FRONT_END.shape)
    model = Model(first, mixed_network()(first))
    copy = finetune.with_precision(model, "mixed_bfloat16")
    assert all(same(copy.get_weights(), model.get_weights()))
    assert {layer.compute_dtype for layer in finetune.flat_layers(copy) if layer.weights} == {"bfloat16"}
    finetune.choose_trained(copy, replace(SHORT, trainable_from="branch"))
    assert [variable.name for variable in copy.trainable_variables] == ["branch/kernel:0", "branch/bias:0"]


def test_dropout_depends_on_the_place_in_the_whole_batch_alone() -> None:
    import tensorflow as tf

    settings, features = FineTuneSettings(batch_size=64, dropout=0.25), tf.ones((64, 50))
    whole = finetune.dropped(features, tf.range(64), [3, 7], settings).numpy()
    assert set(np.unique(whole)) == {0, np.float32(1 / 0.75)} and np.mean(whole == 0) == pytest.approx(0.25, abs=0.03)
    part = finetune.dropped(features[:16], tf.range(48, 64), [3, 7], settings).numpy()
    assert np.array_equal(part, whole[48:])
    assert not np.array_equal(finetune.dropped(features, tf.range(64), [3, 8], settings).numpy(), whole)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_nothing(precision: str) -> None:
    model, broken = network(), made("orca", 1)
    broken.waveform[:] = np.nan
    settings = replace(SHORT, precision=precision, steps=9)
    with pytest.raises(
        TrainingError, match=r"loss of step 1, or its gradient, is not a finite number \(learning rate 0.00.*lower"
    ):
        finetune.fine_tune(model, [broken, *CLIPS[1::2]], settings, None, LogMel(), quiet, 0, None)
    assert all(same(model.get_weights(), network().get_weights()))


def test_the_log_holds_the_losses_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tuned(replace(SHORT, head_steps=2), logs=tmp_path)
    written = EventAccumulator(str(tmp_path), {"tensors": 0, "images": 0}).Reload()
    scalars = {"loss", "label_loss", "gradient_norm", "learning_rate", "windows_per_s"}
    assert set(written.Tags()["tensors"]) == {*scalars, "windows"}
    assert [event.step for event in written.Tensors("loss")] == [2, 5]
    assert len(written.Tensors("windows")[0].tensor_proto.string_val) == 2 + finetune.SHOWN


def test_weighted_losses_equal_a_plain_loop_and_shares_add_up() -> None:
    generator = np.random.default_rng(2)
    logits, labels = generator.standard_normal(6), np.array([1, 0, 0, 0, 1, 0], float)
    taught, weights = generator.random(6), batches.class_weights(labels > 0, 0.25).astype(float)
    settings = FineTuneSettings(label_weight=2, teacher_weight=3, batch_size=6)

    def part(rows: slice) -> Any:
        share = {"weights": weights[rows], "labels": labels[rows], "taught": taught[rows]}
        return np.array(finetune.losses(logits[rows], share, settings))

    def loop(targets: Any) -> float:
        total = 0.0
        for d, target, orca in zip(logits, targets, labels):
            p = 1 / (1 + np.exp(-d))
            total -= (2.0 if orca else 2 / 3) * (target * np.log(p) + (1 - target) * np.log(1 - p))
        return total / 6

    assert np.allclose(part(slice(None)), [2 * loop(labels) + 3 * loop(taught), loop(labels), loop(taught)])
    assert np.allclose(part(slice(0, 2)) + part(slice(2, 6)), part(slice(None)))


def test_both_classes_count_the_same_whatever_their_share() -> None:
    orca = np.arange(1000) < 200
    weights = batches.class_weights(orca, 0.2)
    assert weights[orca].sum() == pytest.approx(weights[~orca].sum())


def test_large_recordings_are_drawn_less_often_per_clip() -> None:
    clips = [made("noise", k, group="big") for k in range(8)] + [made("noise", 9, group="small"), made("orca", 1)]
    even = batches.drawing_chances(clips, FineTuneSettings(group_balance=0, source_balance=0))
    assert np.allclose(even[:9], 0.5 / 9) and even[9] == pytest.approx(0.5)
    balanced = batches.drawing_chances(clips, FineTuneSettings(group_balance=1, source_balance=0))
    assert balanced[:8].sum() == pytest.approx(balanced[8]) and balanced.sum() == pytest.approx(1)


def test_batches_are_as_described_and_the_teacher_hears_them_unmasked() -> None:
    settings = FineTuneSettings(batch_size=5)
    batch = BatchMaker(CLIPS, TEACHER, settings, NONE, FRONT_END, 0).part(0)
    assert batch["input"].shape == (5, 96, 64, 1) and set(batch["labels"]) <= {0.0, 1.0}
    assert np.array_equal(batch["weights"], np.ones(5)) and np.array_equal(batch["position"], np.arange(5))
    assert np.allclose(batch["taught"], TEACHER.confidence(batch["input"][..., 0]))
    masked = Augmentation(gain_db=0, noise_share=0, shift_s=0, time_masks=4, time_mask_frames=96)
    hidden = BatchMaker(CLIPS, TEACHER, settings, masked, FRONT_END, 0).part(0)
    assert not np.allclose(hidden["taught"], TEACHER.confidence(hidden["input"][..., 0]), atol=1e-3)


def test_clips_are_drawn_by_their_chances() -> None:
    clips = [made("noise", k, group="big") for k in range(3)] + [made("orca", 1)]
    settings = FineTuneSettings(batch_size=500, group_balance=0, source_balance=0, orca_share=0.25)
    maker = BatchMaker(clips, None, settings, NONE, FRONT_END, 0)
    drawn = np.concatenate([maker.plan(step).clip for step in range(8)])
    assert np.allclose(np.bincount(drawn, minlength=4) / len(drawn), 0.25, atol=0.03)
    assert np.mean(maker.part(0)["labels"]) == pytest.approx(0.25, abs=0.06)


def test_shares_of_a_batch_make_up_the_batch() -> None:
    maker = BatchMaker(CLIPS, TEACHER, FineTuneSettings(batch_size=6), Augmentation(band_masks=1), FRONT_END, 3)
    whole, parts = maker.part(4), [maker.part(4, number, 3) for number in range(3)]
    for name, values in whole.items():
        assert np.allclose(np.concatenate([part[name] for part in parts]), values, atol=1e-6), name
    assert not np.allclose(maker.part(5)["input"], whole["input"])


def test_the_pipeline_gives_equal_batches_whatever_the_number_of_threads() -> None:
    maker = BatchMaker(CLIPS, None, FineTuneSettings(batch_size=4), Augmentation(), FRONT_END, 3)
    for threads in (1, 3):
        found = list(batches.dataset(maker, 3, 1, 1, 2, threads).as_numpy_iterator())
        assert len(found) == 3
        for step, batch in enumerate(found):
            assert all(np.array_equal(batch[name], values) for name, values in maker.part(step, 1, 2).items())


def test_memory_stays_bounded_on_a_set_larger_than_what_is_read(tmp_path: Path) -> None:
    samples, size = 750_000_000, 250_000
    with (tmp_path / "waveforms.f32").open("wb") as file:
        file.truncate(4 * samples)  # 3 GB of silence, sparse
    together = np.memmap(tmp_path / "waveforms.f32", np.float32, "r")
    described = {"group": "g", "kind": "k", "source": "s"}
    clips: Any = [
        SimpleNamespace(waveform=together[k : k + size], label="orca" if k else "noise", **described)
        for k in range(0, samples, size)
    ]
    maker = BatchMaker(clips, None, FineTuneSettings(batch_size=32), Augmentation(), FRONT_END, 0)
    maker.part(0)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(20):
        assert not maker.part(step)["input"].any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 150_000  # 640 windows are 40 MB


@pytest.mark.parametrize(
    "front_end", [FRONT_END, LogMel(), LinearPower(size=75), LinearPower(size=120, normalise="band_floor")]
)
def test_the_front_end_in_the_graph_equals_numpy(front_end: Any) -> None:
    maker = BatchMaker(
        CLIPS, None, replace(SHORT, batch_size=6), Augmentation(time_masks=2, band_masks=1), front_end, 0
    )
    on_device = replace(maker, settings=replace(maker.settings, spectrograms="device"))
    expected, batch = maker.part(1), on_device.part(1)
    batch["waveforms"][0] = 0
    found = graph_front_end.network_input(batch, front_end).numpy()
    assert found.shape == expected["input"].shape and np.abs(found - expected["input"])[1:].max() < 1e-4
    silent = augment.spectrograms(batch["waveforms"][:1], front_end)
    assert np.allclose(graph_front_end.spectrograms(batch["waveforms"][:1], front_end), silent, atol=1e-6)


def test_spectrograms_of_the_device_train_the_same_network() -> None:
    one, other = trained(SHORT), trained(replace(SHORT, spectrograms="device"))
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(one[0], other[0]))
    with pytest.raises(TrainingError, match="knows the front ends log_mel and linear_power, not 'other'"):
        graph_front_end.check(SimpleNamespace(kind="other"))  # type: ignore[arg-type]


def test_the_learning_rate_rises_then_falls() -> None:
    phase = Phase("network", 10, 100, 1.0)
    rates = [finetune.learning_rate_at(step, phase, 0.2) for step in range(100)]
    assert int(np.argmax(rates)) == 20 and rates[20] == 1.0
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[21:]) < 0) and 0 < rates[-1] < 0.01


def test_one_class_is_refused() -> None:
    with pytest.raises(TrainingError, match="one class"):
        finetune.fine_tune(network(), CLIPS[::2], SHORT, None, FRONT_END, quiet, 0, None)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": 0}, "steps must be 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"average_decay": 1.0}, "average_decay must be 0 to below 1"),
        ({"orca_share": 1.0}, "orca_share"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"weight_decay": -1.0}, "weight_decay must be 0"),
        ({"label_weight": 0.0, "teacher_weight": 0.0}, "nothing to learn"),
        ({"head_steps": -1}, "head_steps must be 0"),
        ({"head_learning_rate": 0.0}, "head_learning_rate must be above 0"),
        ({"batch_norm": "thawed"}, "batch_norm must be one of"),
        ({"statistics_batches": 0}, "statistics_batches must be 1"),
        ({"spectrograms": "disk"}, "spectrograms must be one of"),
        ({"spectrograms": "device"}, "needs teacher_weight 0"),
    ],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        FineTuneSettings(**wrong)
