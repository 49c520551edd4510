"""How fast training batches are made, and whether training waits for them.

python benchmarks/input_pipeline.py DATA [--seconds 3]

DATA is a folder with `wav/` and `labels.csv`. Needs the extra `train`. Set OPENBLAS_NUM_THREADS=1, so that a thread is
one core. With `device` the pipeline makes augmented waveforms, and the training step their spectrograms. The last table
sets the windows made in one second of one core's time beside what an H100 trains in mixed float16 on data that is
already on it (VGGish in batches of 512, the Inceptions at 299).
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from orcawatch.backbone import load_backbone
from orcawatch.spectrogram import LinearPower, LogMel
from orcawatch.training import batches, finetune
from orcawatch.training.augment import Augmentation
from orcawatch.training.batches import BatchMaker
from orcawatch.training.dataset import LoadedClip, read_labels
from orcawatch.training.finetune import FineTuneSettings

FRONT_ENDS = {
    "log-mel": LogMel(normalise="band_floor", offset=0.001),
    "linear power 139": LinearPower(size=139),
    "linear power 299": LinearPower(),
}
H100 = {"VGGish": ("log-mel", 21900), "Inception V3": ("linear power 299", 944)}
H100["Inception-ResNet V2"] = ("linear power 299", 484)
SETTINGS = FineTuneSettings(batch_size=64, teacher_weight=0)
CLIPS = 200
LEAST = 4  # batches of a measurement


def read(folder: Path, rate_hz: int) -> list[LoadedClip]:
    """Some training clips of both classes."""
    chosen = [clip for clip in read_labels(folder, "set_aside").clips if clip.split == "train"]
    chosen = chosen[:: max(1, len(chosen) // CLIPS)]
    loaded = []
    for clip in chosen:
        audio, rate = soundfile.read(clip.path, dtype="float32", always_2d=True)
        waveform = soxr.resample(audio[:, clip.channel], rate, rate_hz).astype(np.float32)
        loaded.append(LoadedClip(waveform, clip.label, clip.group, clip.kind, clip.source))
    return loaded


@dataclass(frozen=True)
class Rate:
    """Windows a second, windows a second of one core's time, and the share of the time spent waiting for a batch."""

    per_s: float
    per_core_s: float
    waiting: float


def rate_of(items: Iterable[Any], size: int, seconds: float, work: Callable[[Any], Any] = lambda item: item) -> Rate:
    """How fast each batch of `size` windows is made and worked on, after two batches to warm up."""
    source = iter(items)
    for _ in range(2):
        work(next(source))
    start, start_core, waited, done = time.perf_counter(), time.process_time(), 0.0, 0
    while time.perf_counter() - start < seconds or done < LEAST:
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        work(batch)
        done += 1
    took = time.perf_counter() - start
    return Rate(done * size / took, done * size / (time.process_time() - start_core), waited / took)


def made(maker: BatchMaker, threads: int | None) -> Any:
    """Endless batches of one worker."""
    return batches.dataset(maker, 1_000_000, 0, 1, 1, threads)


def print_pipeline(makers: dict[str, BatchMaker], cores: int, seconds: float) -> dict[tuple[str, str], float]:
    """Table of the pipeline alone; returns its rate for one core's time."""
    threads = [1, *(n for n in (2, 4, 8, 16) if n <= cores)]
    print("| front end | computed | " + " | ".join(f"threads {n}" for n in threads) + " | a core's second |")
    print("|---|---|" + "---|" * (len(threads) + 1))
    found = {}
    for name, maker in makers.items():
        for place in finetune.PLACES:
            there = replace(maker, settings=replace(maker.settings, spectrograms=place))
            rates = [rate_of(made(there, n), there.settings.batch_size, seconds) for n in threads]
            found[name, place] = rates[0].per_core_s
            cells = [f"{rate.per_s:.0f}" for rate in rates]
            print(f"| {name} | {place} | " + " | ".join(cells) + f" | {rates[0].per_core_s:.0f} |", flush=True)
    return found


def print_steps(maker: BatchMaker, seconds: float) -> None:
    """Table of VGGish's training steps, with the pipeline and with one batch again and again."""
    import tensorflow as tf

    print("\n| VGGish trains, spectrograms on | with the pipeline | one batch again | waiting for input |")
    print("|---|---|---|---|")
    model = load_backbone("vggish").build_keras()
    for place in finetune.PLACES:
        settings = replace(maker.settings, spectrograms=place, batch_size=16)
        there, strategy = replace(maker, settings=settings), tf.distribute.get_strategy()
        network = finetune.make_network(model, settings, maker.front_end, 0, strategy)
        step = finetune.make_step(network, finetune.phases(settings)[-1], [])
        again = {name: tf.constant(values) for name, values in there.part(0).items()}

        def train(batch: Any, step: Any = step) -> None:
            np.asarray(step(batch, 0, 1e-5, 0.9))

        one = rate_of(repeat(again), settings.batch_size, seconds, train)
        fed = rate_of(made(there, None), settings.batch_size, seconds, train)
        print(f"| {place} | {fed.per_s:.1f} | {one.per_s:.1f} | {fed.waiting:.1%} |", flush=True)


def print_needed(rates: dict[tuple[str, str], float]) -> None:
    """Table of the cores that would feed an H100."""
    print("\n| network | an H100 trains, windows/s | cores to feed it: cpu | device |\n|---|---|---|---|")
    for network, (front_end, needed) in H100.items():
        cores = [f"{needed / rates[front_end, place]:.1f}" for place in finetune.PLACES]
        print(f"| {network} | {needed} | {cores[0]} | {cores[1]} |")


def print_large(seconds: float, folder: Path) -> None:
    """Resident memory while batches are made of a 3 GB memory-mapped file (sparse, so of silence)."""
    path, size = folder / "large.f32", 250_000
    with path.open("wb") as file:
        file.truncate(4 * 750_000_000)
    together = np.memmap(path, np.float32, "r")
    starts = range(0, len(together), size)
    clips = [LoadedClip(together[k : k + size], "orca" if k else "noise", "g", "k", "s") for k in starts]
    maker = BatchMaker(clips, None, SETTINGS, Augmentation(), FRONT_ENDS["log-mel"], 0)
    maker.part(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate_of((maker.part(k) for k in range(1_000_000)), 64, seconds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\nPeak resident memory grew by {grown:.0f} MB while windows of a 3 GB memory-mapped set were drawn.")
    path.unlink()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--folder", type=Path, default=Path(), help="for a sparse file of 3 GB, deleted afterwards")
    asked = parser.parse_args()
    clips = {rate: read(asked.data, rate) for rate in {front.rate_hz for front in FRONT_ENDS.values()}}
    makers = {
        name: BatchMaker(clips[front.rate_hz], None, SETTINGS, Augmentation(), front, 0)
        for name, front in FRONT_ENDS.items()
    }
    cores = len(os.sched_getaffinity(0))
    print(f"Windows a second, batches of {SETTINGS.batch_size}; this machine has {cores} cores.\n")
    rates = print_pipeline(makers, cores, asked.seconds)
    print_steps(makers["log-mel"], asked.seconds)
    print_needed(rates)
    print_large(asked.seconds, asked.folder)


if __name__ == "__main__":
    main()
