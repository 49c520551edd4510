"""What the daemon's loop costs on four hydrophones at 48 kHz, and what of it each part takes.

    python benchmarks/loop.py [--bundle FOLDER ...] [--seconds 240] [--json FILE]

`orcawatch run` listens to simulated sea from a WAV file, as fast as it can, in a process of its own for each sea:

quiet   no calls, wind of 6 m/s
mixed   six calls a minute
worst   the same, but every window is a candidate: no cascade, and thresholds of 0, so that events never end but by
        their longest duration, each with clip and snapshot

Counted is the processor time of the process (all of its threads, and the processes that draw its pictures) from the
first scored window to the end over the time of the audio, as a share of one core; memory is the highest from the very
start, of the process alone or of all of them at one time, whichever is more, without the trial of the bundle, which
comes once. The last line of each sea is the least that its backbones can cost on all windows: their multiply-adds at
the best rate that a core reaches (benchmarks/operations.py), of which nothing but a smaller network, or a cascade,
takes away.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import soundfile
from figures import Figure, finish
from operations import best_rates, least_s, multiply_adds
from processes import watched

from orcawatch.attempt import try_named_once
from orcawatch.bundle import SHIPPED, Bundle, load_bundle
from orcawatch.config import Settings
from orcawatch.simulate import SceneSettings, simulate_scene

RATE_HZ = 48000
CHANNELS = 4
CALLS = {"quiet": 0, "mixed": 6}  # a minute
SEAS = {
    "quiet": ("quiet", {}),
    "mixed": ("mixed", {}),
    "worst": ("mixed", {"cascade": False, "start_threshold": 0, "stop_threshold": 0}),
}
MOST = {"quiet": 0.05, "worst": 0.25}
MOST_MB = 250


@click.command()
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path, exists=True),
              help="Beside the shipped one.")  # fmt: skip
@click.option("--seconds", type=click.IntRange(5, 600), default=240, show_default=True, help="Length of each sea.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(bundles: tuple[Path, ...], seconds: int, file: Path | None) -> None:
    """Listen to each sea with each bundle."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sea, calls in CALLS.items():
            scene = simulate_scene(SceneSettings(seconds, RATE_HZ, 5, calls_per_minute=calls, snr_low_db=6))
            soundfile.write(folder / f"{sea}.wav", scene.samples, RATE_HZ, subtype="FLOAT")
        found = [
            figure
            for bundle in (SHIPPED, *bundles)
            for sea in SEAS
            for figure in figures(load_bundle(bundle), sea, listened(folder, bundle, sea))
        ]
    finish(found, file)


def listened(folder: Path, bundle: Path, sea: str) -> dict[str, Any]:
    """What hooked.py writes of one run."""
    recording, settings = SEAS[sea]
    config, notes = folder / "orcawatch.yaml", folder / "notes.json"
    hydrophones = [{"serial": f"H{k}", "position_m": place} for k, place in enumerate(SceneSettings().hydrophones_m)]
    config.write_text(json.dumps({**settings, "hydrophones": hydrophones}))
    with tempfile.TemporaryDirectory(dir=folder) as output:
        try_named_once(load_bundle(bundle), Settings(output=Path(output), bundle=bundle))  # else the watch would
        script = [sys.executable, str(Path(__file__).with_name("hooked.py")), str(notes), "run", "--quiet"]
        chosen = ["--config", config, "--input", folder / f"{recording}.wav", "--bundle", bundle, "--output", output]
        process = subprocess.Popen([*script, *map(str, chosen)], stdout=subprocess.DEVNULL)
        code, _, together_mb = watched(process)
    if code:
        raise click.ClickException(f"the watch ended with {code}")
    found = dict(json.loads(notes.read_text()))
    return {**found, "peak_mb": max(found["peak_mb"], together_mb)}


def figures(bundle: Bundle, sea: str, found: Mapping[str, Any]) -> Iterator[Figure]:
    """Shares of a core, of the whole and of each part, and memory."""
    audio_s, parts = found["audio_s"], found["parts"]
    name = f"{bundle.name}, {sea}"
    whole = found["processor_s"] / audio_s
    told = f"{found['events']} events in {audio_s:.0f} s; {audio_s / found['wall_s']:.0f} times real time by the clock"
    yield Figure(name, whole, "of a core", most=MOST.get(sea), note=told)
    for part, taken_s in sorted(parts.items(), key=lambda one: -one[1]):
        yield Figure(f"{name}: {part}", taken_s / audio_s, "of a core", note=f"{taken_s / audio_s / whole:.0%}")
    rest = whole - sum(parts.values()) / audio_s
    yield Figure(f"{name}: the rest", rest, "of a core", note=f"{rest / whole:.0%}")
    yield Figure(f"{name}: peak memory", found["peak_mb"], "MB", most=MOST_MB)
    if (rates := best_rates()) is not None:
        asked = sum(
            (multiply_adds(bundle.folder / one.file)["features"] for one in bundle.backbones.values()), Counter()
        )
        told = (
            f"{sum(asked.values()) / 1e6:,.0f} million multiply-adds a window, {rates['int8'] / 1e9:.0f} a ns in 8 bits"
        )
        least = least_s(asked, rates) * CHANNELS / bundle.hop_s
        yield Figure(f"{name}: its backbones on every window, at the least", least, "of a core", note=told)


if __name__ == "__main__":
    main()
