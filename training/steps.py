"""What the stages do, each a function of settings, the folders of its inputs and the folder it fills."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backbone import Backbone
from ..spectrogram import FrontEnd, rows_of
from ..windows import windows_of
from . import augment, dataset, heads
from .augment import Augmentation
from .dataset import RATE_HZ, Clip, LoadedClip
from .finetune import fine_tune
from .heads import HeadSettings
from .recipe import BackboneSettings
from .relevance_stage import neurons, of_head
from .simulated import simulated_clips
from .stages import Inputs
from .teacher import Teacher, fit_teacher

Array = NDArray[np.float32]

BATCH = 64
TAUGHT = 256  # windows that the teacher hears at a time
BASE, MINIMAL, NEGATIVE = 0, 1, 2  # offsets of the heads' seeds


def progress(items: Any, what: str, unit: str = "clip") -> Any:
    """A progress bar over items, on a terminal's stderr only."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, disable=None)


def set_seed(seed: int) -> None:
    """Make what TensorFlow does next depend on the seed alone."""
    import tensorflow as tf

    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def save_json(path: Path, content: Any) -> None:
    """Write JSON, keys in their order."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


# --- data -------------------------------------------------------------------------------------------------------------


def load_data(clips: Sequence[Clip], settings: Any, inputs: Inputs, folder: Path) -> None:
    """Decode every clip: `clips.json` and `waveforms.npy` (one after the other) with `ends.npy`.

    Simulated clips follow; the fingerprint is of the files alone.
    """
    usable, waveforms, faults = dataset.load_all(clips, settings["on_corrupt"], lambda c: progress(c, "reading"))
    fingerprint = dataset.fingerprint(usable)
    for clip, waveform in simulated_clips(settings["simulated_clips"], settings["seed"]):
        usable.append(clip)
        waveforms.append(waveform)
    np.save(folder / "waveforms.npy", np.concatenate(waveforms))
    np.save(folder / "ends.npy", np.cumsum([len(waveform) for waveform in waveforms]))
    set_aside = [*settings["set_aside"], *[{"file_name": f.file_name, "reason": f.reason} for f in faults]]
    used = {
        "fingerprint": fingerprint,
        **dataset.counts(usable),
        "recordings": settings["recordings"],
        "set_aside": set_aside,
    }
    save_json(folder / "clips.json", {"data": used, "clips": [dataset.to_json(clip) for clip in usable]})


def read_clips(folder: Path) -> list[Clip]:
    """Clips of the data stage."""
    return [dataset.from_json(fields) for fields in load_json(folder / "clips.json")["clips"]]


def read_waveforms(folder: Path) -> list[Array]:
    """Waveforms of the data stage, 16 kHz, memory-mapped."""
    together = np.load(folder / "waveforms.npy", mmap_mode="r")
    return np.split(together, np.load(folder / "ends.npy")[:-1])


# --- windows ----------------------------------------------------------------------------------------------------------


def hop_frames(hop_s: float, front_end: FrontEnd) -> int:
    """Rows from one window to the next."""
    frames: int = round(hop_s * front_end.rate_hz / front_end.hop_samples)
    return max(1, frames)


def spectrograms_of(front_end: FrontEnd, waveform: Array, hop: int) -> tuple[NDArray[np.int64], Array]:
    """First rows (windows,) and finished spectrograms (windows, frames, bands) of a clip (samples,) at 16 kHz."""
    rows = rows_of(front_end, np.asarray(waveform)[:, None], RATE_HZ)
    starts, cut = windows_of(rows[:, 0], front_end.frames, hop)
    return starts, np.asarray(front_end.finish(cut), np.float32)


def cut_windows(front_end: FrontEnd, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Spectrograms of every clip's windows: `spectrograms.npy`, and `windows.npz` (clip, start)."""
    waveforms = read_waveforms(inputs["data"])
    pairs = [spectrograms_of(front_end, w, settings["hop_frames"]) for w in progress(waveforms, "spectrograms")]
    clip = np.repeat(np.arange(len(pairs)), [len(starts) for starts, _ in pairs])
    np.save(folder / "spectrograms.npy", np.concatenate([spectrograms for _, spectrograms in pairs]))
    np.savez(folder / "windows.npz", clip=clip, start=np.concatenate([starts for starts, _ in pairs]))


# --- backbone ---------------------------------------------------------------------------------------------------------


def weights_digest(plugin: Backbone, source: str | None) -> dict[str, str]:
    """SHA-256 by name of the files that a plugin's weights are in: one, or those of a TensorFlow checkpoint.

    Where weights are named, not given by path, the plugin's `weights_file(source)` tells where it keeps them. Empty
    where there are none, or none yet.
    """
    if source is None:
        return {}
    path: Path = getattr(plugin, "weights_file", Path)(source)
    together = [path, Path(f"{path}.index"), *sorted(path.parent.glob(f"{path.name}.data-*"))]
    return {file.name: dataset.file_digest(file) for file in together if file.is_file()}


def make_backbone(
    plugin: Backbone,
    choice: BackboneSettings,
    augmentation: Augmentation | None,
    settings: Any,
    inputs: Inputs,
    folder: Path,
) -> None:
    """Build, load and fine-tune: `weights.npz` and `history.json`."""
    set_seed(settings["seed"])
    model = plugin.build_keras()
    history: dict[str, Any] = {}
    if choice.weights is not None:
        plugin.load_weights(model, choice.weights)
    if choice.fine_tune is not None:
        teacher = load_teacher(inputs, settings["name"])
        clips, seed = training_clips(inputs["data"]), settings["seed"]
        history = fine_tune(model, clips, choice.fine_tune, augmentation, plugin.front_end, progress, seed, teacher)
    save_weights(folder / "weights.npz", model)
    save_json(folder / "history.json", history)


def training_clips(data: Path) -> list[LoadedClip]:
    """The training clips of the data stage, with their audio."""
    clips = read_clips(data)
    loaded = dataset.loaded(clips, read_waveforms(data))
    return [with_audio for clip, with_audio in zip(clips, loaded) if clip.split == "train"]


def save_weights(path: Path, model: Any) -> None:
    """Write a Keras model's weights in the order of `get_weights`: `weight_000`, `weight_001`, ..."""
    np.savez(path, **{f"weight_{k:03d}": weight for k, weight in enumerate(model.get_weights())})


def load_model(plugin: Backbone, path: Path) -> Any:
    """The plugin's Keras model with the weights that `save_weights` wrote."""
    model = plugin.build_keras()
    stored = load_npz(path)
    model.set_weights([stored[name] for name in sorted(stored)])
    return model


# --- teacher ----------------------------------------------------------------------------------------------------------


def make_teacher(settings: Any, inputs: Inputs, folder: Path) -> None:
    """The teacher of the fine-tuning and the heads, fitted to the training windows as they are: `teacher.npz`."""
    name, clips = settings["name"], read_clips(inputs["data"])
    clip = load_npz(inputs[f"windows-{name}"] / "windows.npz")["clip"]
    described = _described(clips, clip)
    spectrograms = np.load(inputs[f"windows-{name}"] / "spectrograms.npy", mmap_mode="r")
    train = described["train"]
    teacher = fit_teacher(spectrograms[train], described["orca"][train], settings["strength"])
    arrays: dict[str, Any] = asdict(teacher)
    np.savez(folder / "teacher.npz", **arrays)


def load_teacher(inputs: Inputs, name: str) -> Teacher | None:
    """The teacher of a backbone's `make_teacher`; None where that stage is not among the inputs."""
    if f"teacher-{name}" not in inputs:
        return None
    stored = load_npz(inputs[f"teacher-{name}"] / "teacher.npz")
    return Teacher(stored["mean"], stored["spread"], stored["weights"], float(stored["bias"]))


def ask(teacher: Teacher | None, spectrograms: Array) -> Array:
    """The teacher's confidence of finished spectrograms, shape (windows,); not a number where there is none."""
    if teacher is None:
        return np.full(len(spectrograms), np.nan, np.float32)
    starts = range(0, len(spectrograms), TAUGHT)
    return np.concatenate([teacher.confidence(np.asarray(spectrograms[i : i + TAUGHT])) for i in starts])


# --- features ---------------------------------------------------------------------------------------------------------


def compute_features(
    plugin: Backbone, augmentation: Augmentation | None, settings: Any, inputs: Inputs, folder: Path
) -> None:
    """Pooled features of every window, and of augmented passes over the training clips.

    `features.npy` (rows, features) and `rows.npz`: clip, start, passed (0 for the clips as they are), orca, train, the
    recording, and the teacher's confidence (not a number where there is no teacher), of every row.
    """
    set_seed(settings["seed"])
    name, clips = settings["name"], read_clips(inputs["data"])
    model = load_model(plugin, inputs[f"backbone-{name}"] / "weights.npz")
    teacher = load_teacher(inputs, name)
    rows: list[dict[str, NDArray[Any]]] = [load_npz(inputs[f"windows-{name}"] / "windows.npz")]
    spectrograms = np.load(inputs[f"windows-{name}"] / "spectrograms.npy", mmap_mode="r")
    features = [predict(model, plugin.front_end, spectrograms, "features")]
    rows[0]["taught"] = ask(teacher, spectrograms)
    for number in range(1, settings["passes"] + 1):
        augmented, more = _augmented_pass(plugin.front_end, inputs["data"], augmentation, teacher, settings, number)
        features.append(predict(model, plugin.front_end, augmented, f"augmented pass {number}"))
        rows.append(more)
    passed = np.repeat(np.arange(len(rows)), [len(part["clip"]) for part in rows])
    together = {key: np.concatenate([part[key] for part in rows]) for key in ("clip", "start", "taught")}
    np.save(folder / "features.npy", np.concatenate(features))
    described: dict[str, Any] = {**together, **_described(clips, together["clip"])}
    np.savez(folder / "rows.npz", passed=passed, **described)


def _augmented_pass(
    front_end: FrontEnd,
    data: Path,
    augmentation: Augmentation | None,
    teacher: Teacher | None,
    settings: Any,
    number: int,
) -> tuple[Array, dict[str, NDArray[Any]]]:
    """Spectrograms of one augmented pass over the training clips; which clip and first row each has, what it taught.

    The teacher hears the windows before frames and bands are masked.
    """
    clips = read_clips(data)
    loaded = dataset.loaded(clips, read_waveforms(data))
    training = [k for k, clip in enumerate(clips) if clip.split == "train"]
    noise = [loaded[k] for k in training if clips[k].label == "noise"]
    generator = np.random.default_rng([settings["seed"], number])
    parts = []
    for k in progress(training, f"augmented pass {number}"):
        waveform = augment.augment_clip(loaded[k], noise, augmentation, generator)
        starts, finished = spectrograms_of(front_end, waveform, settings["hop_frames"])
        masked = augment.mask(finished, augmentation or augment.NONE, generator)
        parts.append(
            {"masked": masked, "clip": np.full(len(starts), k), "start": starts, "taught": ask(teacher, finished)}
        )
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return together.pop("masked"), together


def _described(clips: Sequence[Clip], clip: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Class, split and recording of every row's clip."""
    return {
        "orca": np.array([c.label == "orca" for c in clips])[clip],
        "train": np.array([c.split == "train" for c in clips])[clip],
        "group": np.array([c.group for c in clips])[clip],
    }


def predict(model: Any, front_end: FrontEnd, spectrograms: Array, what: str) -> Array:
    """Features of spectrograms (windows, frames, bands): float32, shape (windows, features)."""
    batches = progress(range(0, len(spectrograms), BATCH), what, "batch")
    shaped = (np.asarray(spectrograms[i : i + BATCH]).reshape(-1, *front_end.shape) for i in batches)
    return np.concatenate([np.asarray(model.predict_on_batch(batch), np.float32) for batch in shaped])


# --- heads ------------------------------------------------------------------------------------------------------------


def _train(features: Array, rows: Mapping[str, NDArray[Any]], settings: HeadSettings, seed: int, what: str) -> Any:
    train = rows["train"]
    taught = rows["taught"][train] if settings.teacher_share else None
    learned = heads.Rows(
        features=features[train],
        orca=rows["orca"][train],
        targets=heads.targets(rows["orca"][train], taught, settings.teacher_share),
        groups=rows["group"][train],
        bags=rows["passed"][train] * (rows["clip"].max() + 1) + rows["clip"][train],
    )
    set_seed(seed)
    with progress(None, what, "epoch") as bar:
        bar.reset(settings.epochs)
        return heads.train_head(learned, settings, seed, lambda epoch: bar.update())


def train_base(head: HeadSettings, settings: Any, inputs: Inputs, folder: Path) -> None:
    """The base-model on all features: `heads.npz` and `history.json`."""
    name = settings["name"]
    features, rows = read_features(inputs[f"features-{name}"])
    weights, history = _train(features, rows, head, settings["seed"] + BASE, name)
    heads.save_heads(folder / "heads.npz", {name: weights})
    save_json(folder / "history.json", {name: history})


def read_features(folder: Path) -> tuple[Array, dict[str, NDArray[Any]]]:
    """Features and their rows."""
    return np.load(folder / "features.npy"), load_npz(folder / "rows.npz")


def explain_base(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Deep Taylor relevance of every row's features for the base-model's own prediction: `relevance.npy`.

    `report.json` counts by split what explained the windows (see `relevance_stage.neurons`).
    """
    name = settings["name"]
    features, rows = read_features(inputs[f"features-{name}"])
    found = of_head(heads.load_heads(inputs[f"base-{name}"] / "heads.npz")[name], features)
    np.save(folder / "relevance.npy", found.values)
    explained = {split: neurons(found, rows["train"] == (split == "train")) for split in dataset.USED}
    save_json(folder / "report.json", {"all_zero": explained, "peak_mb": found.peak_mb, "versions": found.versions})


def make_masks(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Minimal mask from the training rows, negative masks of every row (paper section 2.4).

    `minimal.npy` (features,), `negative.npy` (rows, features) as uint8, and `report.json`.
    """
    from ..masking import minimal_mask, negative_mask

    name, keep = settings["name"], settings["minimal_keep"]
    _, rows = read_features(inputs[f"features-{name}"])
    relevance = np.load(inputs[f"relevance-{name}"] / "relevance.npy")
    size = relevance.shape[1]
    minimal = minimal_mask(relevance[rows["train"]], min(keep, size))
    negative = np.asarray(negative_mask(relevance)).astype(np.uint8)
    np.save(folder / "minimal.npy", minimal)
    np.save(folder / "negative.npy", negative)
    removed = size - negative[~rows["train"]].sum(axis=1)
    save_json(
        folder / "report.json",
        {
            "features": size,
            "minimal_keep": int(minimal.sum()),
            "minimal_is_identity": bool(minimal.all()),
            "negative_removed_on_average": float(removed.mean()),
        },
    )


def train_masked(head: HeadSettings, settings: Any, inputs: Inputs, folder: Path) -> None:
    """Members on masked features: `heads.npz` and `history.json`; a minimal mask that keeps all makes no member."""
    name = settings["name"]
    features, rows = read_features(inputs[f"features-{name}"])
    trained, history = {}, {}
    for member, mask, offset in masked_members(name, inputs[f"masks-{name}"]):
        trained[member], history[member] = _train(features * mask, rows, head, settings["seed"] + offset, member)
    heads.save_heads(folder / "heads.npz", trained)
    save_json(folder / "history.json", history)


def masked_members(name: str, masks: Path) -> list[tuple[str, NDArray[Any], int]]:
    """Name, mask and seed offset of the masked members of a backbone that differ from its base-model."""
    minimal = np.load(masks / "minimal.npy")
    members: list[tuple[str, NDArray[Any], int]] = []
    if not minimal.all():
        members.append((f"{name}_min", minimal, MINIMAL))
    return [*members, (f"{name}_neg", np.load(masks / "negative.npy"), NEGATIVE)]


def score_devel(settings: Any, inputs: Inputs, folder: Path) -> None:
    """Confidences of a backbone's members on the devel windows: `scores.npz` (members, scores, clip, start, taught)."""
    name = settings["name"]
    features, rows = read_features(inputs[f"features-{name}"])
    devel = ~rows["train"]
    trained = heads.load_heads(inputs[f"base-{name}"] / "heads.npz")
    trained.update(heads.load_heads(inputs[f"masked-{name}"] / "heads.npz"))
    masked = {name: features[devel]}
    for member, mask, _ in masked_members(name, inputs[f"masks-{name}"]):
        masked[member] = (features * mask)[devel]
    scores = np.stack([heads.scores(masked[member], trained[member]) for member in masked], axis=1)
    described: dict[str, Any] = {key: rows[key][devel] for key in ("clip", "start", "taught")}
    np.savez(folder / "scores.npz", members=list(masked), scores=scores, **described)
