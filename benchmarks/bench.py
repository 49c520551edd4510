"""Every benchmark that has a goal, in one go: `make bench`, or

    python benchmarks/bench.py [--run RUN] [--bundle BUNDLE ...] [--part NAME ...] [--quick] [--json FILE]
    python benchmarks/bench.py --table FILE     the page docs/benchmarks.md, from what was written

Each part is a script of its own, run in a process of its own, one after the other, and prints its own table; what they
found is written together, with the machine it was found on. At the end comes the table of the goals. A part that lacks
something (a sound server, the training environment, a run's folder, librosa) does not run, and its line says what is
missing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

import click
from figures import goals, page, read

from orcawatch.bundle import SHIPPED, load_bundle
from orcawatch.interpreter import runtime_name

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv"
FOLDER = click.Path(path_type=Path, exists=True)
PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Given:
    """What the parts may use."""

    run: Path | None
    bundles: tuple[Path, ...]
    train: Path
    librosa: Path
    quick: bool
    models: Path

    @property
    def more(self) -> list[str]:
        """The bundles as options."""
        return [text for bundle in self.bundles for text in ("--bundle", str(bundle))]


@dataclass(frozen=True)
class Part:
    """One script.

    Attributes
    ----------
    title, about : of its section.
    script, arguments : what is run.
    quick : further arguments of a quick run.
    python : the interpreter; None for this one.
    missing : what it lacks, in words; empty where nothing.
    """

    title: str
    about: str
    script: str
    arguments: Sequence[str] = ()
    quick: Sequence[str] = ()
    python: Path | None = None
    missing: str = ""


def parts(given: Given) -> dict[str, Part]:
    """All of them, in order."""
    no_train = "" if given.train.is_file() else f"no training environment at {given.train} (`make train`)"
    no_run = "" if given.run is not None else "no run of the training was given (--run)"
    no_librosa = (
        "" if given.librosa.is_file() else f"no librosa at {given.librosa} (`deploy/environment.sh bench bench`)"
    )
    run = [] if given.run is None else ["--run", str(given.run)]
    models = [] if no_train and not given.models.is_dir() else ["--models", str(given.models)]
    return {
        "daemon": Part(
            "The daemon", "Four hydrophones at 48 kHz: `benchmarks/loop.py`.",
            "loop.py", given.more, ("--seconds", "5"),
        ),
        "latency": Part(
            "From sound to row", "The real daemon hears a sound server in real time: `benchmarks/latency.py`.",
            "latency.py", (), ("--calls", "1"), missing=no_sound(),
        ),
        "scan": Part(
            "Archives", "`orcawatch scan` of one channel: `benchmarks/scan.py`.",
            "scan.py", (), ("--files", "1", "--seconds", "10", "--workers", "1"),
        ),
        "front end": Part(
            "The front end beside librosa", "The same log-mel in one process: `benchmarks/log_mel.py`.",
            "log_mel.py", (), ("--seconds", "5", "--rounds", "1"), given.librosa, no_librosa,
        ),
        "sizes": Part(
            "Input sizes", "Files for the next part: `benchmarks/sizes.py`.",
            "sizes.py", (str(given.models),), ("--size", "75", "--backbone", "inception_v3"), given.train, no_train,
        ),
        "networks": Part(
            "Networks and their relevance maps", "In the edge's interpreter: `benchmarks/networks.py`.",
            "networks.py", (*given.more, *run, *models), ("--windows", "2"),
        ),
        "relevance": Part(
            "Relevance beside iNNvestigate", "In TensorFlow, in one process: `benchmarks/relevance.py`.",
            "relevance.py", (str(given.run),), ("--windows", "64", "--network-windows", "2"), given.train,
            no_train or no_run,
        ),
        "ranking": Part(
            "Ranking", "All votes of eleven members: `benchmarks/ranking.py`.",
            "ranking.py", (), ("--draws", "2", "--naive", "5"),
        ),
        "start": Part("Start", "Until something runs: `benchmarks/startup.py`.", "startup.py", (), ("--rounds", "1")),
    }  # fmt: skip


def no_sound() -> str:
    """What the sound server lacks; empty where it is there."""
    lacking = [name for name in ("pulseaudio", "pactl", "pacat") if which(name) is None]
    lacking += [] if find_library("portaudio") else ["libportaudio2"]
    return f"{', '.join(lacking)} missing (`make parts`)" if lacking else ""


def measured(part: Part, given: Given) -> dict[str, Any]:
    """What a part found; a fault of it is told in its place."""
    about = {"title": part.title, "about": part.about, "missing": part.missing, "figures": [], "seconds": 0.0}
    if part.missing:
        return about
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        chosen = [*part.arguments, *(part.quick if given.quick else ())]
        command = [str(part.python or sys.executable), str(HERE / part.script), *chosen]
        began_s = time.monotonic()
        done = subprocess.run([*command, "--json", str(found)], stderr=subprocess.PIPE, text=True, env=environment())
        about["seconds"] = round(time.monotonic() - began_s, 1)
        if done.returncode:
            last = (done.stderr.strip() or "no word").splitlines()[-1]
            return {**about, "missing": f"{part.script} ended with {done.returncode}: {last}"}
        return {**about, "figures": read(found) if found.is_file() else []}


def environment() -> dict[str, str]:
    """Ours, with orcawatch to be found from where it lies, whatever environment a part runs in."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"}


def machine() -> dict[str, str]:
    """Where the figures were found, and with what."""
    models = [line.split(":", 1)[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) / 2**20 for line in lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0)
    bundle = load_bundle(SHIPPED)
    return {
        "processor": f"{models[0] if models else platform.processor() or 'unknown'} ({platform.machine()})",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "Python": platform.python_version(),
        "interpreter": f"{runtime_name()} {version_of(runtime_name())}",
        "shipped bundle": f"{bundle.name}, {bundle.digest[:12]}",
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def lines(file: str) -> list[str]:
    """Lines of one of the kernel's files; none where it is missing."""
    return Path(file).read_text().splitlines() if Path(file).is_file() else []


def version_of(package: str) -> str:
    """Of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of an unknown version)"


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


@click.command()
@click.option("--run", type=FOLDER, help="Folder of a training run, with what `orcawatch deploy quantize` wrote.")
@click.option("--bundle", "bundles", multiple=True, type=FOLDER, help="To measure beside the shipped one.")
@click.option("--part", "names", multiple=True, help="Only this one; may be given several times.")
@click.option("--quick", is_flag=True, help="Tiny sizes, to see that everything runs: its figures mean nothing.")
@click.option("--train", type=PATH, default=VENV / "train/bin/python", help="[default: .venv/train/bin/python]")
@click.option("--librosa", type=PATH, default=VENV / "bench/bin/python", help="[default: .venv/bench/bin/python]")
@click.option(
    "--json", "file", type=PATH, default="orcawatch-out/bench.json", show_default=True, help="What is written."
)
@click.option("--table", type=FOLDER, help="Measure nothing: print docs/benchmarks.md from this file.")
def main(names: Sequence[str], file: Path, table: Path | None, **about: Any) -> None:
    """Measure and write, or print what was written."""
    if table is not None:
        click.echo(page(json.loads(table.read_text())))
        return
    given = Given(**about, models=file.parent / ("bench-quick" if about["quick"] else "bench-models"))
    chosen = parts(given)
    if unknown := sorted(set(names) - set(chosen)):
        raise click.BadParameter(f"there is no part {unknown[0]!r}; parts are {', '.join(chosen)}")
    report: dict[str, Any] = {"machine": machine(), "quick": given.quick, "parts": {}}
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, part in chosen.items():
        if not names or name in names:
            click.echo(f"\n{part.title}" + (f": not measured, {part.missing}" if part.missing else "\n"))
            report["parts"][name] = measured(part, given)
            file.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(f"\nGoals (everything is in {file})\n\n{goals(report)}")


if __name__ == "__main__":
    main()
