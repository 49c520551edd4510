"""How long orcawatch takes to start, and the memory of it.

    python benchmarks/startup.py [--rounds 5] [--bundle FOLDER] [--json FILE]

Each command is started several times, one after the other, after a first time that fills the disk's cache; figures are
medians of the processor time (user and system) and of the time by the clock from before the process is there. The
first window is that of a simulated minute on four channels at 48 kHz; it is complete after 0.96 s of audio, which a
file gives at once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import soundfile
from figures import Figure, finish

from orcawatch.bundle import SHIPPED
from orcawatch.simulate import SceneSettings, simulate_scene

# A small process between us and the command: a child's peak memory counts that of whom it was forked from.
LAUNCHER = """
import os, sys, time
began_s = time.monotonic()
nothing = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=nothing)
_, status, usage = os.wait4(process, 0)
wall_s = time.monotonic() - began_s
print(os.waitstatus_to_exitcode(status), wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""

Cost = tuple[float, float, float]  # s by the clock, s of the processor, MB at most

STARTS = {
    "Python alone": ("-c", "pass"),
    "import orcawatch": ("-c", "import orcawatch"),
    "import orcawatch.cli": ("-c", "import orcawatch.cli"),
    "import orcawatch.daemon": ("-c", "import orcawatch.daemon"),
    "orcawatch --version": ("-m", "orcawatch.cli", "--version"),
    "orcawatch --help": ("-m", "orcawatch.cli", "--help"),
}


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Times each is started.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), default=SHIPPED, help="[default: the shipped]")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(rounds: int, bundle: Path, file: Path | None) -> None:
    """Start each command."""
    found = [figure(name, [started(arguments) for _ in range(rounds + 1)][1:]) for name, arguments in STARTS.items()]
    with tempfile.TemporaryDirectory() as name:
        scene = Path(name) / "scene.wav"
        samples = simulate_scene(SceneSettings(5.0, 48000, 5, calls_per_minute=0)).samples
        soundfile.write(scene, samples, 48000, subtype="FLOAT")
        firsts = [first_window(Path(name), scene, bundle) for _ in range(rounds + 1)][1:]
    finish([*found, figure("orcawatch run, until its first window is scored", firsts)], file)


def figure(name: str, costs: Sequence[Cost]) -> Figure:
    """Medians."""
    wall_s, processor_s, peak_mb = (statistics.median(column) for column in zip(*costs))
    return Figure(name, wall_s, "s", note=f"{processor_s:.3f} s of the processor, {peak_mb:.0f} MB")


def started(arguments: Sequence[str]) -> Cost:
    """Cost of one start, to its end."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *arguments], check=True, capture_output=True, text=True
    )
    code, wall_s, processor_s, peak_mb = map(float, done.stdout.split())
    if code:
        raise click.ClickException(f"python {' '.join(arguments)} ended with {code:.0f}: {done.stderr}")
    return wall_s, processor_s, peak_mb


def first_window(folder: Path, scene: Path, bundle: Path) -> Cost:
    """Cost of `orcawatch run` until its first window is scored."""
    notes = folder / "notes.json"
    with tempfile.TemporaryDirectory(dir=folder) as output:
        script = [sys.executable, str(Path(__file__).with_name("hooked.py")), str(notes), "run", "--quiet"]
        chosen = ["--input", scene, "--bundle", bundle, "--output", output]
        began_s = time.monotonic()
        subprocess.run([*script, *map(str, chosen)], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(notes.read_text())
    return found["first_window_at_s"] - began_s, found["first_processor_s"], found["first_peak_mb"]


if __name__ == "__main__":
    main()
