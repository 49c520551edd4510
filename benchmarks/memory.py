"""Memory of the training stages on sets of growing length: `python benchmarks/memory.py [HOURS ...]`.

Makes hours of noise in clips of ten seconds, runs every stage up to the scores with a small network on them, and prints
what each stage held in memory of its own at most (anonymous pages: pages of memory-mapped files can be dropped at any
time and do not count), above what the process held before. It must not grow with the set. The relevance is computed in
a process of its own, 65,536 windows at a time, which is not counted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from orcawatch.spectrogram import LogMel
from orcawatch.training import backbones, dataset, members, preparation
from orcawatch.training.heads import HeadSettings
from orcawatch.training.recipe import BackboneSettings

RATE_HZ = 16000
CLIP_S = 10
SAMPLE_S = 0.01
NAME = "small"


class Small:
    """A backbone of 256 features that costs next to nothing."""

    name, feature_size, front_end = NAME, 256, LogMel()

    def build_keras(self) -> Any:
        from tensorflow.keras import Model, layers

        first = layers.Input(self.front_end.shape)
        x = layers.Conv2D(256, 8, strides=8, activation="relu")(first)
        return Model(first, layers.GlobalAveragePooling2D()(x))

    def load_weights(self, model: Any, source: str) -> None:
        """Random weights do."""


def own_mb() -> float:
    """Anonymous memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def watched() -> Iterator[list[float]]:
    """Collect the highest memory while the block runs, above what there was before."""
    before, highest, done = own_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], own_mb() - before)
            time.sleep(SAMPLE_S)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()


def make_clips(folder: Path, hours: float) -> list[dataset.Clip]:
    """Noise in files of CLIP_S, every fourth called orca, every fifth in devel."""
    generator, clips = np.random.default_rng(1), []
    for k in range(round(hours * 3600 / CLIP_S)):
        path = folder / f"{k:05}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(CLIP_S * RATE_HZ), RATE_HZ, subtype="PCM_16")
        label, split = ("noise", "orca")[k % 4 == 0], ("train", "devel")[k % 5 == 0]
        clips.append(dataset.Clip(path.name, path, 0, label, split, f"g{k}", "", "", "", "", float(CLIP_S)))
    return clips


def stages(clips: list[dataset.Clip]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, work and settings of each stage."""
    plugin = Small()
    data = {
        "rates_hz": [RATE_HZ],
        "shortest_s": 0.025,
        "lowest_rate_hz": 8000,
        "simulated_clips": 0,
        "seed": 1,
        "layout": "labels",
    }
    cutting = {"name": NAME, "hop_frames": 96, "grids": [preparation.grid_of(plugin.front_end)], "seed": 1, "passes": 0}
    head = HeadSettings(epochs=1, batch_size=512, shift=4.0)
    named = {"name": NAME, "names": [NAME], "seed": 1, "minimal_keep": 64}

    def load(settings: Any, inputs: Any, folder: Path) -> None:
        preparation.load_data(
            clips, {**settings, "on_corrupt": "refuse", "recordings": "given", "set_aside": []}, {}, folder
        )

    def build(settings: Any, inputs: Any, folder: Path) -> None:
        backbones.make_backbone(plugin, BackboneSettings(weights="random"), None, settings, inputs, folder)

    yield "data", load, data
    yield f"backbone-{NAME}", build, named
    yield f"features-{NAME}", lambda s, i, f: backbones.compute_features(plugin, None, s, i, f), cutting
    yield f"base-{NAME}", lambda s, i, f: members.train_base(head, s, i, f), named
    yield f"relevance-{NAME}", members.explain_base, named
    yield f"masks-{NAME}", members.make_masks, named
    yield f"masked-{NAME}", lambda s, i, f: members.train_masked(head, s, i, f), named
    yield "scores", members.score_members, named


def run(hours: float) -> None:
    """Print a row for every stage."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "wav").mkdir()
        clips, done = make_clips(root / "wav", hours), {}
        for stage, work, settings in stages(clips):
            done[stage] = root / stage
            done[stage].mkdir()
            with watched() as highest:
                work(settings, done, done[stage])
            written_mb = sum(path.stat().st_size for path in done[stage].iterdir()) / 2**20
            print(f"| {hours:g} | {stage} | {written_mb:.0f} | {highest[0]:.0f} |", flush=True)


if __name__ == "__main__":
    print("| hours of audio | stage | MB written | MB held at most |\n|---|---|---|---|")
    for hours in [float(text) for text in sys.argv[1:]] or [0.5, 1.0, 8.0]:
        run(hours)
