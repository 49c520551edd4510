"""What each network costs: time a window by quantization, threads and input size, memory, relevance map, and
operations.

    python benchmarks/networks.py [--bundle BUNDLE ...] [--run RUN ...] [--models FOLDER] [--windows 20] [--json FILE]

The networks of the shipped bundle, of BUNDLE, and all that `orcawatch deploy quantize` left in RUN/deploy/models;
those of other input sizes in FOLDER, as benchmarks/sizes.py makes them. Each is loaded by the edge's interpreter in a
process of its own, and hears windows of noise one after the other; times are medians, of all of the process's threads
together and by the clock. With two threads only the clock can become less. Of a relevance map the time of the features
that it starts from is not counted; `mask` is the heads' file: every member's confidence, negative masks with their
relevance pass included. The accuracy that quantization costs is not measured here but taken from
RUN/deploy/quantization.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import Figure, finish
from hooked import now
from operations import best_rates, least_s, multiply_adds

from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.interpreter import Model

FOLDER = click.Path(path_type=Path, exists=True)
THREADS = (1, 2)
MAP_MS = 40  # at most, of VGGish
MASK_MS = 1
LOSS = 0.002


@click.command()
@click.option("--bundle", "bundles", multiple=True, type=FOLDER, help="Beside the shipped one.")
@click.option("--run", "runs", multiple=True, type=FOLDER, help="Folder of a training run with deploy/models.")
@click.option("--models", type=click.Path(path_type=Path), help="Folder of NAME-features-VARIANT.tflite, if any.")
@click.option("--windows", type=click.IntRange(1), default=20, show_default=True, help="Windows that are timed.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(
    bundles: tuple[Path, ...], runs: tuple[Path, ...], models: Path | None, windows: int, file: Path | None
) -> None:
    """Time every network."""
    found = [figure for bundle in (SHIPPED, *bundles) for figure in of_bundle(bundle, windows)]
    for folder in [run / "deploy" / "models" for run in runs] + ([models] if models else []):
        for name, variant, path in newest(folder):
            found += of_file(f"{name}, {variant}", path, windows)
    for run in runs:
        found += losses(run / "deploy" / "quantization.json")
    finish(found, file)


def newest(folder: Path) -> list[tuple[str, str, Path]]:
    """Name, variant and file of each model NAME-SIGNATURE-VARIANT[-DIGEST].tflite, the newest of each."""
    found: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.glob("*-*-*.tflite"), key=lambda one: one.stat().st_mtime):
        name, signature, variant = path.stem.split("-")[:3]
        found[name, variant, signature] = path
    return [(name, variant, path) for (name, variant, _), path in sorted(found.items(), key=lambda one: one[0][:2])]


def of_bundle(folder: Path, windows: int) -> Iterator[Figure]:
    """Figures of a bundle's networks and heads."""
    bundle = load_bundle(folder)
    for entry in bundle.backbones.values():
        for file in entry.files:
            yield from of_file(f"{bundle.name}: {entry.name}", folder / file, windows)
    heads = timed(folder / bundle.manifest["heads"]["file"], "score", 1, windows)
    yield Figure(f"{bundle.name}: mask, a channel's window", heads["processor_ms"], "ms", most=MASK_MS)


def of_file(name: str, path: Path, windows: int) -> Iterator[Figure]:
    """Figures of one of a backbone's files."""
    asked = multiply_adds(path)
    for threads in THREADS if "features" in asked else ():
        found = timed(path, "features", threads, windows)
        told = f"{found['wall_ms']:.2f} ms by the clock"
        if threads == 1:
            told += f"; {least(asked['features'], found)}; {path.stat().st_size / 1e6:.1f} MB, in memory with the "
            told += f"interpreter {found['peak_mb']:.0f} MB"
        yield Figure(f"{name}: features, threads {threads}", found["processor_ms"], "ms", note=told)
    if "explain" in asked:
        found = timed(path, "explain", 1, windows)
        most = MAP_MS if "vggish" in path.stem and asked["explain"]["int8"] else None
        told = f"{least(asked['explain'], found)}; {path.stat().st_size / 1e6:.1f} MB, in memory with the interpreter "
        told += f"{found['peak_mb']:.0f} MB, which is prepared in {found['prepared_ms']:.0f} ms"
        yield Figure(f"{name}: relevance map", found["processor_ms"], "ms", most=most, note=told)


def least(asked: Mapping[str, int], found: Mapping[str, float]) -> str:
    """Operations, and what they take at the best rate of a core."""
    told = f"{sum(asked.values()) / 1e6:,.0f} million multiply-adds"
    if (rates := best_rates()) is None:
        return told
    least_ms = 1000 * least_s(asked, rates)
    return f"{told}, at a core's best {least_ms:.2f} ms ({least_ms / found['processor_ms']:.0%})"


def timed(path: Path, signature: str, threads: int, windows: int) -> dict[str, float]:
    """Median times of a signature, and the highest memory, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "time", str(path), signature, str(threads), str(windows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def clock(path: Path, signature: str, threads: int, windows: int) -> dict[str, float]:
    """The same, in this process."""
    began_s = time.perf_counter()
    model = Model(path, threads)
    prepared_ms = 1000 * (time.perf_counter() - began_s)
    noise = np.random.default_rng(0)
    runner = model._runner(signature)
    inputs = {
        name: noise.random(tuple(one["shape"]), dtype=np.float32) for name, one in runner.get_input_details().items()
    }
    work: Callable[[], Any] = lambda: model.call(signature, inputs)  # noqa: E731
    for _ in range(3):
        work()
    wall, processor = [], []
    for _ in range(windows):
        began_s, began_processor_s = time.perf_counter(), time.process_time()
        work()
        wall.append(1000 * (time.perf_counter() - began_s))
        processor.append(1000 * (time.process_time() - began_processor_s))
    medians = {"wall_ms": statistics.median(wall), "processor_ms": statistics.median(processor)}
    return {**medians, "prepared_ms": prepared_ms, "peak_mb": now()["peak_mb"]}


def losses(file: Path) -> Iterator[Figure]:
    """AUC that the vote, and each backbone's own head, lose by quantization, from `orcawatch deploy quantize`."""
    if not file.is_file():
        yield Figure("AUC lost by quantization", None, note=f"{file} is missing: `orcawatch deploy quantize RUN`")
        return
    found = json.loads(file.read_text())
    for name in ("vote", *found["backbones"]):
        about = found["vote"] if name == "vote" else found["members"][name]
        for variant, one in about["variants"].items():
            told = f"{one['loss']['low']:+.4f} to {one['loss']['high']:+.4f} (95 %)"
            most = LOSS if variant == "int8" else None
            yield Figure(f"{name}: AUC lost, {variant}", one["loss"]["value"], most=most, note=told)


def process(given: Sequence[str]) -> None:
    """One file, for `timed`."""
    print(json.dumps(clock(Path(given[0]), given[1], int(given[2]), int(given[3]))))


if __name__ == "__main__":
    process(sys.argv[2:]) if sys.argv[1:2] == ["time"] else main()
