"""`orcawatch scan`: detect in archives of audio files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Callable

import click

from .cli import (
    EXIT_CODES,
    FAILED,
    FILE,
    SKIPPED,
    bundle_option,
    chosen_settings,
    config_option,
    format_option,
    logged,
    output_option,
    progress,
)
from .errors import ConfigError, InputError
from .printer import Printer

if TYPE_CHECKING:
    from .config import Settings
    from .scan import Recording, Summary
    from .workers import Workers

log = logging.getLogger(__name__)

FORMATS = ("raven", "audacity", "csv", "jsonl", "darwin-core")
LITTLE_S = 600.0  # of audio, which is scanned before worker processes have begun
TELL_S = 10.0  # between two lines about how far a scan is, where there is no terminal


@click.command("scan", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@config_option
@bundle_option
@output_option
@format_option
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Processes that scan. [default: one per core; 1 for little audio]"
)
@click.option("--dask", metavar="ADDRESS", help="Scan on the Dask cluster whose scheduler is there.")
@click.option(
    "--export", "exports", type=click.Choice(FORMATS), multiple=True, help="Also write tables into OUTPUT/tables."
)
@click.option("--timezone", metavar="ZONE", help="Zone of time stamps that do not name one: UTC, Europe/Oslo, -08:00.")
@click.option("--time-format", metavar="PATTERN", help="Where the stamp stands in a file's name: SITE_%y%m%d-%H%M%S.")
@click.option(
    "--clip-scores", type=FILE, metavar="FILE.csv",
    help="Only score: write file_name,score (mean confidence over each file's windows), detect nothing.",
)  # fmt: skip
@logged
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[Path, ...],
    config: Path | None,
    bundle: Path | None,
    output: Path | None,
    how: str,
    workers: int | None,
    dask: str | None,
    exports: tuple[str, ...],
    timezone: str | None,
    time_format: str | None,
    clip_scores: Path | None,
) -> None:
    """Detect orcas in audio files, in all audio files under folders, and in what patterns fit.

    A file that cannot be read to its end is reported and the others are scanned; the exit code is then 3, and
    OUTPUT/set-aside.csv names it. What could be read of it is scanned too, but gets no clip score.

    A scan that was stopped or killed goes on where it was when the same command is given again, and ends as if it had
    not been; files that have not changed since are not scanned again.
    """
    from . import daemon
    from .scan import check_place, find_recordings

    if clip_scores is not None:
        refuse_detecting(ctx)
        check_place(clip_scores)
    settings = with_times(chosen_settings(config, bundle, output), timezone, time_format)
    recordings = find_recordings(paths, settings.output)
    with daemon.stop_signals() as stop:
        if clip_scores is None:
            code = detect(recordings, settings, how, stop, workers, dask, exports)
        else:
            code = score_clips(recordings, daemon.open_ensemble(settings), settings, clip_scores, stop)
    ctx.exit(code)


def refuse_detecting(ctx: click.Context) -> None:
    """Raise InputError where an option is given that does nothing for clip scores."""
    for name, option in (("how", "--format"), ("workers", "--workers"), ("dask", "--dask"), ("exports", "--export")):
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise InputError(f"{option} is about detections and --clip-scores makes none: give one of the two")


def with_times(settings: Settings, zone: str | None, pattern: str | None) -> Settings:
    """The settings with the command line's own way to tell the time of files."""
    from .times import faults

    for key, fault in faults(zone, pattern):
        raise ConfigError(f"--{key.replace('_', '-')} {fault}")
    files = settings.files
    return replace(
        settings, files=replace(files, timezone=zone or files.timezone, time_format=pattern or files.time_format)
    )


def detect(
    recordings: list[Recording],
    settings: Settings,
    how: str,
    stop: Event,
    number: int | None,
    dask: str | None,
    exports: tuple[str, ...],
) -> int:
    """Scan, print detections, write tables, log a summary; the exit code."""
    from . import daemon
    from .scan import scan

    began_s = time.monotonic()
    with daemon.only_writer(settings.output), showing(recordings) as (on_audio, on_detection):
        bundle = daemon.open_ensemble(settings).bundle
        printer = Printer(how, settings)

        def report(detection: Any) -> None:
            on_detection()
            printer(detection)

        with chosen_workers(recordings, settings, stop, number, dask, on_audio) as workers:
            summary = scan(recordings, bundle, settings, report, workers)
    if not stop.is_set():
        tell_times(recordings, settings)
    tell(summary, settings.output, time.monotonic() - began_s)
    if exports and not stop.is_set():
        export(settings.output, exports)
    return FAILED if summary.failed else SKIPPED if summary.faulty else 0


def chosen_workers(
    recordings: list[Recording],
    settings: Settings,
    stop: Event,
    number: int | None,
    dask: str | None,
    on_audio: Callable[[float], object],
) -> AbstractContextManager[Workers]:
    """Who scans."""
    from . import daemon
    from .scan import total_s
    from .workers import Here, cluster, processes

    if dask is not None:
        return cluster(dask, str(settings.output.absolute()), on_audio, stop)
    if number is None:
        number = 1 if total_s(recordings) < LITTLE_S else os.cpu_count() or 1
    if min(number, len(recordings)) == 1:
        return nullcontext(Here(daemon.open_ensemble(settings), on_audio, stop))
    return processes(min(number, len(recordings)), on_audio, stop)


def export(output: Path, formats: tuple[str, ...]) -> None:
    """Write tables of everything in the output folder."""
    from .export import TABLES, write_exports

    for path in write_exports(output, formats, output / TABLES):
        log.info("%s", path)


def tell_times(recordings: list[Recording], settings: Settings) -> None:
    """Log how many files tell no time, and the cure."""
    from .errors import AudioError
    from .staging import source_of

    def has_time(recording: Recording) -> bool:
        try:
            return source_of(recording.path, settings).info.start_utc is not None
        except AudioError:
            return True  # it is told of otherwise

    without = sum(not has_time(recording) for recording in recordings)
    if without:
        log.info(
            "%d of %d files tell no time: neither metadata nor name hold a time stamp with its zone; "
            "--timezone UTC (or another) says what zone the others are in", without, len(recordings),
        )  # fmt: skip


def tell(summary: Summary, output: Path, took_s: float) -> None:
    """Log what became of a scan."""
    again = f" ({summary.again} of them scanned before)" if summary.again else ""
    speed = f" in {took_s:.1f} s, {summary.scored_s / took_s:.0f} times real time" if summary.scored_s else ""
    log.info(
        "%d files%s, %.1f s scored%s, %d detections in %s; %d files not scored in full",
        summary.files, again, summary.scored_s, speed, summary.events, output, summary.faulty,
    )  # fmt: skip
    if summary.failed:
        log.error("%d detections have no clip, no snapshot or no row", summary.failed)


@contextmanager
def showing(recordings: list[Recording]) -> Iterator[tuple[Callable[[float], object], Callable[[], object]]]:
    """How far a scan is: what to call with seconds of audio, and with each detection."""
    from .scan import total_s

    whole_s = total_s(recordings)
    if sys.stderr.isatty():
        with bar(whole_s) as how:
            yield how
    else:
        lines = Lines(whole_s)
        yield lines.audio, lines.detection


@contextmanager
def bar(whole_s: float) -> Iterator[tuple[Callable[[float], object], Callable[[], object]]]:
    """A bar on stderr, with the speed and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("scanning"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[found]} detections"), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as shown:
        task = shown.add_task("", total=whole_s, speed="", found=0)
        pace = Pace()

        def audio(seconds: float) -> None:
            shown.update(task, advance=seconds, speed=f"{pace.after(seconds):.0f} times real time")

        def detection() -> None:
            shown.update(task, found=shown.tasks[0].fields["found"] + 1)

        yield audio, detection


class Pace:
    """How many times faster than real time a scan goes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began_s = time.monotonic()

    def after(self, seconds: float) -> float:
        """The pace after so many seconds more of audio."""
        self.seconds += seconds
        return self.seconds / max(time.monotonic() - self._began_s, 1e-3)


class Lines:
    """Tells now and then, in a line of the log, how far a scan is.

    Parameters
    ----------
    whole_s : seconds of audio that the files hold.
    """

    def __init__(self, whole_s: float) -> None:
        self._whole_s = whole_s
        self._found = 0
        self._pace = Pace()
        self._next_s = time.monotonic() + TELL_S

    def audio(self, seconds: float) -> None:
        """So many seconds more were scanned."""
        pace, now_s = self._pace.after(seconds), time.monotonic()
        if now_s < self._next_s or not pace:
            return
        self._next_s = now_s + TELL_S
        left_s = max(0.0, self._whole_s - self._pace.seconds) / pace
        log.info(
            "%.0f of %.0f s scanned, %.0f times real time, %d detections, %.0f s left",
            self._pace.seconds, self._whole_s, pace, self._found, left_s,
        )  # fmt: skip

    def detection(self) -> None:
        """One more was found."""
        self._found += 1


def score_clips(recordings: list[Recording], ensemble: Any, settings: Settings, file: Path, stop: Event) -> int:
    """Write the clip scores, log a summary; the exit code."""
    from .scan import clip_scores, write_scores

    with progress(recordings) as on_audio:
        rows, faulty = clip_scores(recordings, ensemble, settings, on_audio, stop)
    write_scores(file, rows)
    log.info("%d scores in %s; %d files skipped", len(rows), file, faulty)
    return SKIPPED if faulty else 0
