"""Backbones: weights loaded, fine-tuned, folded; and the pooled features of every window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone import Backbone
from ..errors import TrainingError
from ..spectrogram import FrontEnd
from . import augment, dataset, distribute
from .augment import Augmentation
from .dataset import Clip, LoadedClip
from .finetune import fine_tune, flat_layers
from .preparation import (
    BATCH,
    SPLITS,
    ask,
    load_teacher,
    read_clips,
    read_waveforms,
    shared_rows,
    training_clips,
    windows_of_clip,
    windows_of_data,
)
from .recipe import BackboneSettings
from .stages import Inputs
from .storage import ArrayWriter, load_npz, progress, save_json, set_seed
from .teacher import Teacher

Array = NDArray[np.float32]
Rows = dict[str, NDArray[Any]]
AHEAD = 2  # batches made while one is computed


# --- weights ----------------------------------------------------------------------------------------------------------


def weights_digest(plugin: Backbone, source: str | None) -> dict[str, str]:
    """SHA-256 by name of the files that a plugin's weights are in: one, or those of a TensorFlow checkpoint.

    Where weights are named, not given by path, the plugin's `weights_file(source)` tells where it keeps them. Empty
    where there are none, or none yet.
    """
    if source is None:
        return {}
    path: Path = Path(getattr(plugin, "weights_file", Path)(source))
    together = [path, Path(f"{path}.index"), *sorted(path.parent.glob(f"{path.name}.data-*"))]
    return {file.name: dataset.file_digest(file) for file in together if file.is_file()}


def weights_source(settings: BackboneSettings) -> str:
    """Where a backbone's weights come from, in words: a name, a file's name, or `from scratch`."""
    return Path(settings.weights).name if settings.weights else "from scratch"


def make_backbone(
    plugin: Backbone,
    choice: BackboneSettings,
    augmentation: Augmentation | None,
    settings: Any,
    inputs: Inputs,
    folder: Path,
) -> None:
    """Build, load and fine-tune: `weights.npz` of the folded network, `history.json`, and TensorBoard's `logs/`."""
    from ..folding import fold

    set_seed(settings["seed"])
    history: dict[str, Any] = {}
    with distribute.strategy().scope():
        model = plugin.build_keras()
        if choice.weights is not None:
            plugin.load_weights(model, choice.weights)
    _require_normalisation(model, choice)
    if choice.fine_tune is not None:
        teacher, front_end = load_teacher(inputs, settings["name"]), plugin.front_end
        clips, seed = training_clips(inputs["data"], front_end.rate_hz), settings["seed"]
        how = (choice.fine_tune, augmentation, front_end, progress, seed, teacher)
        history = fine_tune(model, clips, *how, logs=folder / "logs", strategy=distribute.strategy())
    save_weights(folder / "weights.npz", fold(model))
    save_json(folder / "history.json", history)


def _require_normalisation(model: Any, choice: BackboneSettings) -> None:
    """Raise TrainingError where a network with batch norm would learn from scratch with the statistics it has not."""
    kinds = {type(layer).__name__ for layer in flat_layers(model)}
    frozen = choice.fine_tune is not None and choice.fine_tune.batch_norm == "frozen"
    if choice.from_scratch and frozen and "BatchNormalization" in kinds:
        raise TrainingError(
            f"{model.name} from scratch needs fine_tune.batch_norm: trained, not frozen: its batch norms have no "
            "statistics yet, and the network would not be normalised at all"
        )


def save_weights(path: Path, model: Any) -> None:
    """Write a Keras model's weights in the order of `get_weights`: `weight_000`, `weight_001`, ..."""
    np.savez(path, **{f"weight_{k:03d}": weight for k, weight in enumerate(model.get_weights())})


def load_model(plugin: Backbone, path: Path) -> Any:
    """The plugin's network, folded, with the weights that `save_weights` wrote."""
    from ..folding import fold

    model = fold(plugin.build_keras())
    stored = load_npz(path)
    model.set_weights([stored[name] for name in sorted(stored)])
    return model


# --- features ---------------------------------------------------------------------------------------------------------


def compute_features(
    plugin: Backbone, augmentation: Augmentation | None, settings: Any, inputs: Inputs, folder: Path
) -> None:
    """Pooled features of every window, and of augmented passes over the training clips.

    `features.npy` (rows, features) and `rows.npz`: of every row its clip, start, passed (0 for the clips as they are),
    orca, split (index into SPLITS), the recording, and the teacher's confidence (not a number where there is none).
    """
    set_seed(settings["seed"])
    clips, name = read_clips(inputs["data"]), settings["name"]
    model = load_model(plugin, inputs[f"backbone-{name}"] / "weights.npz")
    teacher = load_teacher(inputs, name)
    parts: list[Rows] = []
    with ArrayWriter(folder / "features.npy") as file:
        for number in range(settings["passes"] + 1):
            passes = _pass(plugin.front_end, clips, augmentation, teacher, settings, inputs["data"], number)
            for spectrograms, rows in _ahead(_batched(passes)):
                file.append(predict(model, plugin.front_end, spectrograms))
                parts.append({**rows, "passed": np.full(len(spectrograms), number)})
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    described: dict[str, Any] = {**together, **_described(clips, together["clip"])}
    np.savez(folder / "rows.npz", **described)


def _pass(
    front_end: FrontEnd,
    clips: list[Clip],
    augmentation: Augmentation | None,
    teacher: Teacher | None,
    settings: Mapping[str, Any],
    data: Path,
    number: int,
) -> Iterator[tuple[Array, Rows]]:
    """Spectrograms and rows, clip by clip: pass 0 over all clips as they are, others over augmented training clips."""
    if number == 0:
        for some in windows_of_data(front_end, data, settings, range(len(clips)), "features"):
            yield some.spectrograms, _rows(some.clip, some.starts, ask(teacher, some.spectrograms))
    else:
        yield from _augmented_pass(front_end, clips, augmentation or augment.NONE, teacher, settings, data, number)


def _augmented_pass(
    front_end: FrontEnd,
    clips: list[Clip],
    augmentation: Augmentation,
    teacher: Teacher | None,
    settings: Mapping[str, Any],
    data: Path,
    number: int,
) -> Iterator[tuple[Array, Rows]]:
    """One augmented pass over the training clips, the same sound for every backbone.

    Augmented at the highest rate, each clip with a generator of its own. The teacher hears the windows before frames
    and bands are masked.
    """
    rate_hz = max(grid["rate_hz"] for grid in settings["grids"])
    loaded = dataset.loaded(clips, read_waveforms(data, rate_hz))
    rows = shared_rows(data, settings["grids"])
    noise: list[LoadedClip] = [clip for k, clip in enumerate(loaded) if _is_training_noise(clips[k])]
    training = [k for k, clip in enumerate(clips) if clip.split == "train"]
    for k in progress(training, f"augmented pass {number}"):
        generator = np.random.default_rng([settings["seed"], number, k])
        waveform = augment.augment_clip(loaded[k], noise, augmentation, generator, rate_hz)
        found = windows_of_clip(front_end, k, waveform, rate_hz, int(rows[k]), settings["hop_frames"])
        for some in found:
            masked = augment.mask(some.spectrograms, augmentation, generator)
            yield masked, _rows(k, some.starts, ask(teacher, some.spectrograms))


def _is_training_noise(clip: Clip) -> bool:
    return clip.split == "train" and clip.label == "noise"


def _rows(clip: int, starts: NDArray[np.int64], taught: Array) -> Rows:
    return {"clip": np.full(len(starts), clip), "start": starts, "taught": taught}


def _described(clips: list[Clip], clip: NDArray[np.int64]) -> Rows:
    """Class, split and recording of every row's clip."""
    return {
        "orca": np.array([c.label == "orca" for c in clips])[clip],
        "split": np.array([SPLITS.index(c.split) for c in clips], np.int8)[clip],
        "group": np.array([c.group for c in clips])[clip],
    }


def _batched(parts: Iterator[tuple[Array, Rows]]) -> Iterator[tuple[Array, Rows]]:
    """The same rows in batches of BATCH."""
    waiting: list[tuple[Array, Rows]] = []
    for part in parts:
        waiting.append(part)
        while sum(len(spectrograms) for spectrograms, _ in waiting) >= BATCH:
            spectrograms, rows = _joined(waiting)
            yield spectrograms[:BATCH], {key: values[:BATCH] for key, values in rows.items()}
            waiting = [(spectrograms[BATCH:], {key: values[BATCH:] for key, values in rows.items()})]
    if any(len(spectrograms) for spectrograms, _ in waiting):
        yield _joined(waiting)


def _joined(parts: list[tuple[Array, Rows]]) -> tuple[Array, Rows]:
    rows = {key: np.concatenate([part[key] for _, part in parts]) for key in parts[0][1]}
    return np.concatenate([spectrograms for spectrograms, _ in parts]), rows


def _ahead(batches: Iterator[tuple[Array, Rows]]) -> Iterator[tuple[Array, Rows]]:
    """The same batches, made in a thread while the network computes."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(next, batches, None) for _ in range(AHEAD)]
        while (batch := coming.pop(0).result()) is not None:
            coming.append(pool.submit(next, batches, None))
            yield batch


def predict(model: Any, front_end: FrontEnd, spectrograms: Array) -> Array:
    """Features of one batch of spectrograms (windows, height, width): float32, shape (windows, features)."""
    shaped = np.asarray(spectrograms).reshape(-1, *front_end.shape)
    return np.asarray(model.predict_on_batch(shaped), np.float32)
