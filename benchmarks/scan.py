"""How fast archives are scanned with one and with more workers, with and without pictures, and in how much memory.

    python benchmarks/scan.py [--files 8] [--seconds 300] [--workers 1 --workers 2] [--rounds 1] [--json FILE.json]

Makes the audio itself (`orcawatch simulate`, one hydrophone), then scans it with `orcawatch scan`, as a user would run
it, each time into a new folder. In each round all ways take their turn, so that another load of the machine falls on
all of them; a figure is the median of the rounds. Times are those of the whole command, with its start.
Memory is that of all processes of a scan together: pages that they share count once (Pss), looked at every 0.2 s.
A way of which the detections differ from the first one's ends the benchmark.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from figures import Figure, finish
from processes import watched

COMMAND = (sys.executable, "-m", "orcawatch.cli")
LEAST = 99  # times real time


@dataclass(frozen=True)
class Way:
    """One way to scan."""

    workers: int
    pictures: bool


@dataclass(frozen=True)
class Cost:
    """What a scan cost.

    Attributes
    ----------
    wall_s, processor_s : time by the clock, and of all processes on all cores.
    peak_mb : highest memory of all processes together.
    """

    wall_s: float
    processor_s: float
    peak_mb: float


@click.command()
@click.option("--files", type=click.IntRange(1), default=8, show_default=True, help="Recordings that are made.")
@click.option("--seconds", type=click.IntRange(5, 600), default=300, show_default=True, help="Length of each.")
@click.option("--rate", type=click.IntRange(16000, 96000), default=48000, show_default=True, help="Samples per second.")
@click.option("--workers", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True, help="How many.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Times each way is taken.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here.")
def main(files: int, seconds: int, rate: int, workers: tuple[int, ...], rounds: int, file: Path | None) -> None:
    """Scan simulated sea in several ways and print a table."""
    ways = [Way(number, pictures) for pictures in (False, True) for number in workers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "in", files, seconds, rate)
        costs, detections = measured(folder, ways, rounds)
    sea = f"{files} files, {files * seconds} s at {rate} Hz, {detections} detections"
    finish(list(figures(ways, costs, files * seconds, sea)), file)


def make(folder: Path, files: int, seconds: int, rate: int) -> None:
    """Recordings of one channel with calls; each is another sea."""
    folder.mkdir()
    for number in range(files):
        made = [folder / f"{number:04d}", "--seconds", seconds, "--rate", rate, "--seed", number + 1]
        run = [*COMMAND, "simulate", *map(str, made), "--hydrophone", "0", "0", "0", "--quiet"]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, ways: list[Way], rounds: int) -> tuple[dict[Way, list[Cost]], int]:
    """What each way cost in each round, and how many detections all of them found."""
    costs: dict[Way, list[Cost]] = {way: [] for way in ways}
    first: list[str] | None = None
    for number in range(rounds):
        for way in ways:
            cost, found = scanned(folder / "in", folder / f"{number}-{way.workers}-{way.pictures}", way)
            first = found if first is None else first
            if found != first:
                raise click.ClickException(
                    f"{way} found {len(found)} detections, which are not the {len(first)} of {ways[0]}"
                )
            costs[way].append(cost)
    return costs, len(first or [])


def scanned(recordings: Path, place: Path, way: Way) -> tuple[Cost, list[str]]:
    """What one scan cost; its detections, by file, time and score."""
    place.mkdir()
    (place / "scan.yaml").write_text(f"snapshots: {str(way.pictures).lower()}\n")
    chosen = ["--config", place / "scan.yaml", "--output", place / "out", "--workers", way.workers, "--format", "jsonl"]
    with (place / "found").open("w") as out:
        began_s = time.perf_counter()
        scan = [*COMMAND, "scan", str(recordings), *map(str, chosen), "--quiet"]
        process = subprocess.Popen(scan, stdout=out)
        code, processor_s, peak_mb = watched(process)
        cost = Cost(time.perf_counter() - began_s, processor_s, peak_mb)
    if code:
        raise click.ClickException(f"the scan with {way} ended with {code}")
    lines = (json.loads(line) for line in (place / "found").read_text().splitlines())
    return cost, [f"{one['file']} {one['start_s']} {one['end_s']} {one['score']}" for one in lines]


def figures(ways: list[Way], costs: dict[Way, list[Cost]], audio_s: float, sea: str) -> Iterator[Figure]:
    """Speed and memory of each way; the first one's with the same pictures is what others are compared with."""
    for way in ways:
        name = f"scan, workers {way.workers}, with{'' if way.pictures else 'out'} pictures"
        wall_s = median(costs[way], lambda cost: cost.wall_s)
        processor_s = median(costs[way], lambda cost: cost.processor_s)
        first = next(other for other in ways if other.pictures == way.pictures)
        ratio = median(costs[first], lambda cost: cost.wall_s) / wall_s
        told = f"{processor_s:.1f} s of the processor, {ratio:.2f} times workers {first.workers}; {sea}"
        yield Figure(name, audio_s / wall_s, "x real time", least=None if way.pictures else LEAST, note=told)
        yield Figure(f"{name}: peak memory", max(cost.peak_mb for cost in costs[way]), "MB")


def median(costs: list[Cost], figure: Callable[[Cost], float]) -> float:
    """The median of a figure."""
    return statistics.median(figure(cost) for cost in costs)


if __name__ == "__main__":
    main()
