"""The command line; heavy modules are loaded by the commands that need them."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import click

from ._version import __version__
from .errors import InputError, OrcawatchError
from .harmless import harmless
from .plugin import entry_points

if TYPE_CHECKING:
    from threading import Event

    from .config import Settings
    from .scan import Recording

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)

GROUP = "orcawatch.commands"
LAYOUT = "\n\t"  # control characters that our own texts have
# Commands in modules of their own, loaded when they are called: module, and their line in --help.
MODULES = {
    "bundle": ("bundle_command", "Inspect, verify, install, compare and roll back bundles."),
    "config": ("config_command", "Check a configuration, or show what is in force."),
    "devices": ("devices", "List the sound cards."),
    "doctor": ("doctor", "Check device, channels, clock, disk, bundle and speed."),
    "effort": ("effort", "Account for every second: recorded, gaps, off duty, shed."),
    "export": ("export", "Write detections as Raven, Audacity, CSV, JSON lines or Darwin Core."),
    "listen": ("listen", "Watch a microphone or an array live in the terminal."),
    "review": ("review", "Give verdicts, and make training data of them."),
    "scan": ("scan_command", "Detect orcas in archives of audio files."),
    "serve": ("web.command", "Review detections in the browser."),
    "uplink": ("uplink", "Send what waits for the sinks, beside a watch without a network."),
}
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 1 << 20
FAILED = 1
SKIPPED = 3
EXIT_CODES = """\b
Exit codes:
  0  everything went well
  1  an error of orcawatch or of the machine; also where a clip, a snapshot or a
     row could not be written, for instance because the disk is full
  2  bad input or usage
  3  scan and explain: one or more files could not be scored in full; the
     others were, unless the command was stopped by SIGTERM or SIGINT
"""
# Commands that come with an extra: what their line in --help says, and how to install what they need.
EXTRAS = {
    "train": ("Train a bundle from labelled recordings.", "pip install 'orcawatch[train]'"),
    "deploy": ("Install the service; quantize, build and verify bundles.", "pip install 'orcawatch[train]'"),
}


def be_frugal() -> None:
    """Set up a process that listens, before NumPy is loaded.

    Its matrices are small: more threads would wait for each other. And memory of large arrays goes back to the system
    when they are dropped; left alone, glibc keeps more and more of it for the next ones.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(OSError, TypeError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


class Root(click.Group):
    """The commands here, and those of the entry-point group `orcawatch.commands`, loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted({*super().list_commands(ctx), *MODULES, *entry_points(GROUP)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, loaded."""
        if name not in MODULES and name not in self.commands:
            entry = entry_points(GROUP).get(name)
            return None if entry is None else load_command(entry)
        be_frugal()
        return load_module_command(MODULES[name][0]) if name in MODULES else super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line each, without loading any."""
        rows = [(name, self._short_help(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; an error that orcawatch raised on purpose becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except OrcawatchError as fault:
            click.echo(f"orcawatch: {harmless(str(fault), keep=LAYOUT)}", err=True)
            ctx.exit(fault.exit_code)

    def _short_help(self, name: str) -> str:
        command = self.commands.get(name)
        if command is not None:
            return command.get_short_help_str(limit=80)
        if name in MODULES:
            return MODULES[name][1]
        return EXTRAS.get(name, (f"Added by {entry_points(GROUP)[name].value}.",))[0]


def load_module_command(module: str) -> click.Command:
    """The command `command` of one of our modules."""
    command: click.Command = import_module(f".{module}", __package__).command
    return command


def load_command(entry: Any) -> click.Command:
    """The command behind an entry point; raises OrcawatchError where what it needs is not installed."""
    try:
        command: click.Command = entry.load()
    except ImportError as fault:
        cure = EXTRAS.get(entry.name, ("", f"install what {entry.value} needs"))[1]
        raise OrcawatchError(f"`orcawatch {entry.name}` lacks packages that it needs ({fault}): {cure}") from fault
    return command


def logged(command: F) -> F:
    """Add --verbose and --quiet, and log to stderr."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Log details.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool, quiet: bool, **kwargs: Any) -> Any:
        set_up_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
        return command(*args, **kwargs)

    return verbose(quiet(wrapped))  # type: ignore[return-value]


def set_up_logging(level: int) -> None:
    """Log to stderr, one line a record, `orcawatch`'s own records from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("orcawatch").setLevel(level)


class Lines(logging.Formatter):
    """`orcawatch: text`, with the level named from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"orcawatch: {level}{harmless(super().format(record), keep=LAYOUT)}"


FILE = click.Path(path_type=Path)
config_option = click.option("--config", type=FILE, metavar="FILE", help="Settings, YAML (docs/configuration.md).")
bundle_option = click.option(
    "--bundle", type=FILE, metavar="FOLDER", help="The bundle. [default: the installed one, else the shipped one]"
)
output_option = click.option(
    "--output", type=FILE, metavar="FOLDER", help="Where detections go. [default: ./orcawatch-out]"
)
format_option = click.option(
    "--format", "how", type=click.Choice(["text", "jsonl", "csv"]), default="text", show_default=True,
    help="How detections are printed.",
)  # fmt: skip


@click.group(cls=Root, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="orcawatch")
def main() -> None:
    """Listen for orcas on any number of hydrophones."""


@main.command(epilog=EXIT_CODES)
@config_option
@click.option("--input", "file", type=FILE, metavar="FILE", help="Audio file to listen to, in place of the settings'.")
@click.option("--realtime", is_flag=True, help="Play the file at its own speed.")
@bundle_option
@output_option
@format_option
@logged
@click.pass_context
def run(
    ctx: click.Context,
    config: Path | None,
    file: Path | None,
    realtime: bool,
    bundle: Path | None,
    output: Path | None,
    how: str,
) -> None:
    """Listen to a sound card, or a file, until it ends, or until SIGTERM or SIGINT.

    Without a file it listens to the device of the settings, or the system's default (`orcawatch devices`), and never
    ends by itself. Detections are written to the output folder (SQLite, FLAC clips, snapshots) and printed. SIGHUP
    makes it read its configuration again.
    """
    from .daemon import stop_signals
    from .printer import Printer
    from .service import serve

    def load() -> Settings:
        return chosen_settings(config, bundle, output)

    with stop_signals() as stop:
        name, totals = serve(load, file, realtime, Printer(how, load()), stop)
    log.info("%s: %s", name, totals)
    if totals.refused_s:
        log.warning("%s: %s", name, totals.refusal())
    if totals.fault is not None and totals.kept:
        raise totals.fault
    if totals.fault is not None:
        log.error("%s", totals.fault)
    ctx.exit(0 if totals.kept else FAILED)


@main.command(epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="FILE...")
@bundle_option
@click.option("--channel", type=click.IntRange(min=0), help="The channel. [default: the one of highest score]")
@click.option("--start", "start_s", type=click.FloatRange(min=0), default=0.0, help="Look from this second on.")
@click.option("--length", "length_s", type=click.FloatRange(min=0, min_open=True), help="Look at so many seconds.")
@click.option(
    "--out", type=FILE, metavar="FOLDER", default=Path("orcawatch-explained"), show_default=True,
    help="Where pictures and arrays go.",
)  # fmt: skip
@logged
@click.pass_context
def explain(
    ctx: click.Context,
    paths: tuple[Path, ...],
    bundle: Path | None,
    channel: int | None,
    start_s: float,
    length_s: float | None,
    out: Path,
) -> None:
    """Show what in an audio file speaks for orca.

    Writes FILE.png and its arrays, FILE.npz: the spectrogram, what each backbone looked at (deep Taylor relevance of
    the orca neuron, conserving rules), and the score of every window. Of more than 12 s, the highest-scoring 12 s are
    shown.
    """
    from . import daemon
    from .explain import check_names
    from .scan import find_recordings

    settings = chosen_settings(None, bundle, None)
    recordings = find_recordings(paths, settings.output)
    check_names(recordings)
    make_folder(out)
    with daemon.stop_signals() as stop:
        ctx.exit(explain_all(recordings, daemon.open_ensemble(settings), out, channel, (start_s, length_s), stop))


def explain_all(
    recordings: list[Recording],
    ensemble: Any,
    out: Path,
    channel: int | None,
    part_s: tuple[float, float | None],
    stop: Event,
) -> int:
    """Explain, print a line for each picture, log faults; the exit code."""
    from .explain import explain_recording
    from .scan import about

    failed = faulty = 0
    with progress(recordings) as on_audio:
        for recording in recordings:
            if stop.is_set():
                faulty += 1
                continue
            try:
                found, fault = explain_recording(recording, ensemble, out, channel, part_s, on_audio, stop)
            except OSError as unwritten:
                log.error("the picture of %s cannot be written: %s", recording.name, unwritten.strerror)
                failed += 1
                continue
            if found is not None:
                click.echo(harmless(f"{found.picture}: {found}"))
            if fault is not None:
                log.error("%s", about(recording, fault))
                faulty += 1
    return FAILED if failed else SKIPPED if faulty else 0


def make_folder(path: Path) -> None:
    """Make a folder; raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"folder {path} cannot be made: {fault.strerror}; name another one") from fault


@contextmanager
def progress(recordings: list[Recording]) -> Iterator[Callable[[float], object]]:
    """A progress bar by seconds of audio, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda seconds: None
        return
    from .scan import total_s

    with click.progressbar(length=round(total_s(recordings)), label="scanning", file=sys.stderr) as bar:
        yield WholeSeconds(bar.update)


class WholeSeconds:
    """Hands whole seconds on to a progress bar, and keeps the rest."""

    def __init__(self, update: Callable[[int], object]) -> None:
        self._update = update
        self._rest_s = 0.0

    def __call__(self, seconds: float) -> None:
        """Count some seconds."""
        whole, self._rest_s = divmod(self._rest_s + seconds, 1)
        self._update(int(whole))


def chosen_settings(config: Path | None, bundle: Path | None, output: Path | None) -> Settings:
    """Settings from the file, if one is given, with the command line's own on top."""
    from dataclasses import replace

    from .config import Settings, load_settings

    settings = Settings() if config is None else load_settings(config)
    return replace(settings, bundle=bundle or settings.bundle, output=output or settings.output)


@main.command(epilog=EXIT_CODES)
@click.argument("out", type=FILE)
@click.option("--seconds", "duration_s", type=float, default=60.0, help="Length in s, 5 to 600.")
@click.option("--rate", "rate_hz", type=int, default=44100, help="Samples per second, 16000 to 96000.")
@click.option("--seed", type=int, default=1, help="The same seed gives the same scene.")
@click.option("--wind", "wind_m_s", type=float, default=6.0, help="Wind in m/s, 0 to 30.")
@click.option("--rain", type=click.Choice(["none", "drizzle", "heavy"]), default="none", help="Rain.")
@click.option("--ship/--no-ship", default=False, help="A ship passes.")
@click.option("--calls", "calls_per_minute", type=float, default=6.0, help="Calls and whistles a minute, 0 to 20.")
@click.option("--whistles", "whistle_share", type=float, default=0.2, help="Share of whistles among these, 0 to 1.")
@click.option("--clicks", "click_trains_per_minute", type=float, default=1.0, help="Click trains a minute, 0 to 10.")
@click.option("--snr-low", "snr_low_db", type=float, default=-3.0, help="Lowest signal-to-noise ratio in dB.")
@click.option("--snr-high", "snr_high_db", type=float, default=18.0, help="Highest signal-to-noise ratio in dB.")
@click.option("--sound-speed", "sound_speed_m_s", type=float, default=1480.0, help="In m/s, 1400 to 1600.")
@click.option(
    "--hydrophone", "hydrophones_m", type=(float, float, float), multiple=True, metavar="X Y Z",
    help="Position in m (east, north, up), once for each hydrophone. [default: a 2 m square of four]",
)  # fmt: skip
@logged
def simulate(out: Path, hydrophones_m: tuple[tuple[float, float, float], ...], **options: Any) -> None:
    """Write a synthetic scene, OUT.flac, and its truth, OUT.json."""
    from .simulate import SceneSettings, simulate_scene, write_scene

    if hydrophones_m:
        options["hydrophones_m"] = hydrophones_m
    click.echo(write_scene(simulate_scene(SceneSettings(**options)), out))


for option in simulate.params:
    option.show_default = isinstance(option, click.Option) and option.name != "hydrophones_m"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(prog_name="orcawatch")
