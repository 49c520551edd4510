"""Fine-tuning: a tiny network learns a tiny set, the loss is the stated one, and the seed decides everything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orcawatch.errors import TrainingError
from orcawatch.spectrogram import LogMel
from orcawatch.training import finetune
from orcawatch.training.augment import NONE, Augmentation
from orcawatch.training.finetune import FineTuneSettings
from orcawatch.training.steps import spectrograms_of
from orcawatch.training.teacher import Teacher, fit_teacher

FRONT_END = LogMel(normalise="band_floor", offset=0.001)
QUICK = FineTuneSettings(steps=60, batch_size=8, learning_rate=0.1, average_decay=0.5, dropout=0.0, evaluations=3)


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
WINDOWS = [spectrograms_of(FRONT_END, clip.waveform, FRONT_END.frames)[1] for clip in CLIPS]
OWNERS = np.repeat(np.arange(len(CLIPS)), [len(windows) for windows in WINDOWS])
TEACHER = fit_teacher(np.concatenate(WINDOWS), finetune.is_orca(CLIPS)[OWNERS], 0.1)


def network() -> Any:
    """Six pooled features of one convolution; equal weights every time."""
    import tensorflow as tf
    from tensorflow.keras import Model, layers

    tf.keras.utils.set_random_seed(1)
    first = layers.Input(FRONT_END.shape)
    x = layers.Conv2D(6, 3, strides=4, activation="relu")(first)
    return Model(first, layers.GlobalAveragePooling2D()(x))


def quiet(items: Iterable[Any], what: str, unit: str) -> Iterable[Any]:
    """A progress bar that shows nothing."""
    return items


def trained(
    settings: FineTuneSettings, seed: int = 0, teacher: Teacher | None = TEACHER
) -> tuple[list[Any], dict[str, Any]]:
    """Weights and history."""
    model = network()
    history = finetune.fine_tune(model, CLIPS, settings, Augmentation(), FRONT_END, quiet, seed, teacher)
    return model.get_weights(), history


def test_the_loss_goes_down_and_the_classes_come_apart() -> None:
    model = network()
    history = finetune.fine_tune(model, CLIPS, QUICK, None, FRONT_END, quiet, 0, TEACHER)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["label_loss"][-1] < np.log(2)  # what a guess costs
    assert history["step"] == [20, 40, 60]
    assert not np.allclose(model.get_weights()[0], network().get_weights()[0])


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    short = replace(QUICK, steps=3, evaluations=1)
    one, other = trained(short), trained(short)
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0]))
    assert one[1] == other[1]
    assert not np.array_equal(one[0][0], trained(short, seed=5)[0][0])


def test_without_a_teacher_the_labels_alone_are_learned() -> None:
    alone = replace(QUICK, steps=2, evaluations=1, teacher_weight=0)
    assert list(trained(alone, teacher=None)[1]) == ["step", "loss", "label_loss"]
    with pytest.raises(TrainingError, match="needs a teacher"):
        trained(QUICK, teacher=None)
    with pytest.raises(TrainingError, match="needs no teacher"):
        trained(alone)


def test_half_precision_leaves_float32_weights_of_the_same_shapes() -> None:
    weights, history = trained(replace(QUICK, steps=2, evaluations=1, precision="mixed_bfloat16"))
    assert [(w.shape, w.dtype) for w in weights] == [(w.shape, np.dtype("float32")) for w in network().get_weights()]
    assert np.isfinite(history["loss"]).all()


def test_a_copy_in_another_precision_gives_the_same_features() -> None:
    model = network()
    x = np.random.default_rng(1).random((2, *FRONT_END.shape)).astype(np.float32)
    copy = finetune.with_precision(model, "mixed_bfloat16")
    assert copy.layers[-1].compute_dtype == "bfloat16"
    assert np.allclose(model(x), np.asarray(copy(x), np.float32), rtol=0.05, atol=0.02)


def test_weighted_losses_equal_a_plain_loop() -> None:
    generator = np.random.default_rng(2)
    logits, labels = generator.standard_normal((6, 1)), np.array([1, 0, 0, 0, 1, 0], float)
    taught, weights = generator.random(6), finetune.class_weights(labels > 0, 0.25).astype(float)
    found = finetune.losses(logits, (None, weights, labels, taught), FineTuneSettings(label_weight=2, teacher_weight=3))

    def loop(targets: Any) -> float:
        total = 0.0
        for d, target, orca in zip(logits[:, 0], targets, labels):
            p = 1 / (1 + np.exp(-d))
            total -= (2.0 if orca else 2 / 3) * (target * np.log(p) + (1 - target) * np.log(1 - p))
        return total / 6

    assert np.allclose(found, [2 * loop(labels) + 3 * loop(taught), loop(labels), loop(taught)])


def test_both_classes_count_the_same_whatever_their_share() -> None:
    orca = np.arange(1000) < 200
    weights = finetune.class_weights(orca, 0.2)
    assert weights[orca].sum() == pytest.approx(weights[~orca].sum())


def test_large_recordings_are_drawn_less_often_per_clip() -> None:
    clips = [made("noise", k, group="big") for k in range(8)] + [made("noise", 9, group="small"), made("orca", 1)]
    even = finetune.drawing_chances(clips, FineTuneSettings(group_balance=0, source_balance=0))
    assert np.allclose(even[:9], 0.5 / 9) and even[9] == pytest.approx(0.5)
    balanced = finetune.drawing_chances(clips, FineTuneSettings(group_balance=1, source_balance=0))
    assert balanced[:8].sum() == pytest.approx(balanced[8]) and balanced.sum() == pytest.approx(1)


def test_batches_are_as_described_and_the_teacher_hears_them_unmasked() -> None:
    settings = FineTuneSettings(batch_size=5)
    seen, weights, labels, taught = next(finetune.batches(CLIPS, TEACHER, settings, NONE, FRONT_END, seed=0))
    assert seen.shape == (5, 96, 64, 1) and set(labels) <= {0.0, 1.0} and np.array_equal(weights, np.ones(5))
    assert np.allclose(taught, TEACHER.confidence(seen[..., 0]))
    masked = Augmentation(gain_db=0, noise_share=0, shift_s=0, time_masks=4, time_mask_frames=96)
    hidden, _, _, whole = next(finetune.batches(CLIPS, TEACHER, settings, masked, FRONT_END, seed=0))
    assert not np.allclose(whole, TEACHER.confidence(hidden[..., 0]), atol=1e-3)


def test_the_learning_rate_rises_then_falls() -> None:
    settings = FineTuneSettings(steps=100, learning_rate=1.0, warm_up_share=0.2)
    rates = [finetune.learning_rate_at(step, settings) for step in range(100)]
    assert int(np.argmax(rates)) == 20 and rates[20] == 1.0
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[21:]) < 0) and 0 < rates[-1] < 0.01


def test_one_class_is_refused() -> None:
    with pytest.raises(TrainingError, match="one class"):
        finetune.drawing_chances(CLIPS[::2], FineTuneSettings())


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
    ],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        FineTuneSettings(**wrong)
