"""From recordings to windows: decoding once at every front end's rate, cutting, and the teacher.

No array here is longer than one clip or one batch of windows, but for the teacher's, which is for small data: it holds
the statistics of all training windows. What is longer stands in memory-mapped files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spectrogram import FrontEnd, rows_of
from ..windows import windows_of
from . import dataset
from .dataset import Clip, LoadedClip
from .simulated import simulated_clips
from .stages import Inputs
from .storage import ArrayWriter, load_json, load_npz, progress, save_json
from .teacher import Teacher, describe, fit_descriptors

Array = NDArray[np.float32]

BATCH = 64  # windows at a time
SPLITS = dataset.SPLITS


# --- decoding ---------------------------------------------------------------------------------------------------------


def load_data(clips: Sequence[Clip], settings: Any, inputs: Inputs, folder: Path) -> None:
    """Decode every clip once: `clips.json`, and per rate `waveforms-RATE.npy`, one after another, and `ends-RATE.npy`.

    Simulated clips follow; the fingerprint is of the files alone.
    """
    rates, faults, usable = settings["rates_hz"], list[dataset.Fault](), list[Clip]()
    read = dataset.load_each(
        clips, settings["shortest_s"], settings["lowest_rate_hz"], faults, lambda c: progress(c, "reading")
    )
    made = simulated_clips(settings["simulated_clips"], settings["seed"], max(rates))
    both = _chained(read, ((clip, waveform, max(rates)) for clip, waveform in made))
    ends: dict[int, list[int]] = {rate: [] for rate in rates}
    with ExitStack() as files:
        writers = {rate: files.enter_context(ArrayWriter(folder / f"waveforms-{rate}.npy")) for rate in rates}
        for clip, waveform, rate_hz in both:
            usable.append(clip)
            for rate, writer in writers.items():
                resampled = dataset.resample(waveform, rate_hz, rate)
                writer.append(resampled)
                ends[rate].append(len(resampled) + (ends[rate][-1] if ends[rate] else 0))
    files_only = usable[: len(usable) - 2 * settings["simulated_clips"]]
    dataset.check_usable(files_only, faults, settings["on_corrupt"])
    for rate in rates:
        np.save(folder / f"ends-{rate}.npy", np.array(ends[rate]))
    used = {
        "fingerprint": dataset.fingerprint(files_only),
        **dataset.counts(usable),
        "layout": settings["layout"],
        "recordings": settings["recordings"],
        "set_aside": [*settings["set_aside"], *[{"file_name": f.file_name, "reason": f.reason} for f in faults]],
    }
    save_json(folder / "clips.json", {"data": used, "clips": [dataset.to_json(clip) for clip in usable]})


def _chained(*parts: Iterable[tuple[Clip, Array, int]]) -> Iterator[tuple[Clip, Array, int]]:
    for part in parts:
        yield from part


def read_clips(data: Path) -> list[Clip]:
    """Clips of the data stage."""
    return [dataset.from_json(fields) for fields in load_json(data / "clips.json")["clips"]]


def read_waveforms(data: Path, rate_hz: int) -> list[Array]:
    """Waveforms of the data stage, (samples,) at one of its rates: views into one memory-mapped file."""
    together = np.load(data / f"waveforms-{rate_hz}.npy", mmap_mode="r")
    return np.split(together, np.load(data / f"ends-{rate_hz}.npy")[:-1])


def training_clips(data: Path, rate_hz: int) -> list[LoadedClip]:
    """The training clips of the data stage, with their audio at one of its rates."""
    clips = read_clips(data)
    loaded = dataset.loaded(clips, read_waveforms(data, rate_hz))
    return [with_audio for clip, with_audio in zip(clips, loaded) if clip.split == "train"]


# --- windows ----------------------------------------------------------------------------------------------------------


def grid_of(front_end: FrontEnd) -> dict[str, int]:
    """What decides how many rows a front end gives."""
    return {"rate_hz": front_end.rate_hz, "frame": front_end.frame_samples, "hop": front_end.hop_samples}


def hop_frames(hop_s: float, front_end: FrontEnd) -> int:
    """Rows from one window to the next."""
    frames: int = round(hop_s * front_end.rate_hz / front_end.hop_samples)
    return max(1, frames)


def shared_rows(data: Path, grids: Sequence[Mapping[str, int]]) -> NDArray[np.int64]:
    """Rows of each clip that every front end has, shape (clips,), as on the edge: windows of all backbones align."""
    found = []
    for grid in grids:
        samples = np.diff(np.load(data / f"ends-{grid['rate_hz']}.npy"), prepend=0)
        found.append(np.maximum(0, (samples - grid["frame"]) // grid["hop"] + 1))
    return np.min(found, axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Windows:
    """Some windows of one clip.

    Attributes
    ----------
    clip : index of the clip.
    starts : first row of each, shape (windows,).
    spectrograms : finished, float32, shape (windows, height, width).
    """

    clip: int
    starts: NDArray[np.int64]
    spectrograms: Array


def windows_of_clip(
    front_end: FrontEnd, clip: int, waveform: Array, rate_hz: int, rows: int, hop: int
) -> Iterator[Windows]:
    """Yield a clip's windows, at most BATCH at a time.

    Parameters
    ----------
    front_end : what to compute.
    clip : its index.
    waveform : shape (samples,), at `rate_hz`.
    rows : how many of the clip's rows count, see `shared_rows`.
    hop : rows from one window to the next.
    """
    found = rows_of(front_end, np.asarray(waveform)[:, None], rate_hz)[:rows, 0]
    starts, cut = windows_of(found, front_end.frames, hop)
    for k in range(0, len(starts), BATCH):
        finished = np.asarray(front_end.finish(cut[k : k + BATCH]), np.float32)
        yield Windows(clip, starts[k : k + BATCH], finished)


def windows_of_data(
    front_end: FrontEnd, data: Path, settings: Mapping[str, Any], chosen: Sequence[int], what: str
) -> Iterator[Windows]:
    """Yield the windows of the chosen clips, as they are, in order.

    Parameters
    ----------
    settings : `hop_frames`, and the `grids` of all front ends of the recipe.
    """
    waveforms = read_waveforms(data, front_end.rate_hz)
    rows = shared_rows(data, settings["grids"])
    for k in progress(chosen, what):
        yield from windows_of_clip(front_end, k, waveforms[k], front_end.rate_hz, int(rows[k]), settings["hop_frames"])


# --- teacher ----------------------------------------------------------------------------------------------------------


def make_teacher(front_end: FrontEnd, settings: Any, inputs: Inputs, folder: Path) -> None:
    """The teacher of the fine-tuning and the heads, fitted to the training windows as they are: `teacher.npz`."""
    clips = read_clips(inputs["data"])
    training = [k for k, clip in enumerate(clips) if clip.split == "train"]
    described, orca = [], []
    for some in windows_of_data(front_end, inputs["data"], settings, training, "teacher"):
        described.append(describe(some.spectrograms))
        orca += [clips[some.clip].label == "orca"] * len(some.starts)
    teacher = fit_descriptors(np.concatenate(described), np.array(orca), settings["strength"])
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
    return np.full(len(spectrograms), np.nan, np.float32) if teacher is None else teacher.confidence(spectrograms)
