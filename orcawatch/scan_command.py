"""`orcawatch scan`: detect in archives of audio files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
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
    from .scan import Recording, Summary, Work
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
@click.option("--retry", is_flag=True, help="Also try the files again that OUTPUT/set-aside.csv names.")
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
    retry: bool,
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
    not been; files that have not changed since are not scanned again, and those that were set aside only with --retry.
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
            code = detect(recordings, settings, how, stop, workers, retry, dask, exports)
        else:
            code = score_clips(recordings, daemon.open_ensemble(settings), settings, clip_scores, stop)
    ctx.exit(code)


def refuse_detecting(ctx: click.Context) -> None:
    """Raise InputError where an option is given that does nothing for clip scores."""
    detecting = {
        "how": "--format", "workers": "--workers", "retry": "--retry", "dask": "--dask", "exports": "--export",
    }  # fmt: skip
    for name, option in detecting.items():
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
    retry: bool,
    dask: str | None,
    exports: tuple[str, ...],
) -> int:
    """Scan, print detections, write tables, log a summary; the exit code."""
    from . import daemon
    from .scan import scan, work_of

    began_s = time.monotonic()
    with daemon.only_writer(settings.output):
        bundle = daemon.open_ensemble(settings).bundle
        work = work_of(recordings, bundle, settings, retry)
        with showing(work) as progress, chosen_workers(work, settings, stop, number, dask, progress.audio) as workers:
            printer = Printer(how, settings)

            def report(detection: Any) -> None:
                progress.detection()
                printer(detection)

            summary = scan(recordings, bundle, settings, report, workers, retry, progress.file)
    if not stop.is_set():
        tell_times(summary)
    tell(summary, settings.output, time.monotonic() - began_s)
    if exports and not stop.is_set():
        export(settings.output, exports)
    return FAILED if summary.failed else SKIPPED if summary.faulty else 0


def chosen_workers(
    work: Work,
    settings: Settings,
    stop: Event,
    number: int | None,
    dask: str | None,
    on_audio: Callable[[float], object],
) -> AbstractContextManager[Workers]:
    """Who scans."""
    from . import daemon
    from .workers import Here, cluster, processes

    if dask is not None:
        return cluster(dask, str(settings.output.absolute()), on_audio, stop)
    if number is None:
        number = 1 if work.left_s < LITTLE_S else os.cpu_count() or 1
    number = min(number, len(work.lengths_s))
    if number <= 1:
        return nullcontext(Here(daemon.open_ensemble(settings), on_audio, stop))
    return processes(number, on_audio, stop)


def export(output: Path, formats: tuple[str, ...]) -> None:
    """Write tables of everything in the output folder."""
    from .export import TABLES, write_exports

    for path in write_exports(output, formats, output / TABLES):
        log.info("%s", path)


def tell_times(summary: Summary) -> None:
    """Log how many files tell no time, and the cure."""
    if summary.timeless:
        log.info(
            "%d of %d files tell no time: neither metadata nor name hold a time stamp with its zone; "
            "--timezone UTC (or another) says what zone the others are in", summary.timeless, summary.files,
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


class Progress:
    """How far a scan is, with what was done before; the pace, and so the time left, is that of now.

    Parameters
    ----------
    work : what the scan has before it.
    clock : seconds now.

    Attributes
    ----------
    files : how many are done.
    found : how many detections there are.
    whole_s : seconds of audio in all files. What a header states is put right as soon as its file was heard.
    """

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self.files, self.found = work.before, 0
        self.whole_s = work.before_s + work.left_s
        self._work = work
        self._clock = clock
        self._began_s: float | None = None
        self._heard_s = 0.0  # now, not before

    @property
    def done_s(self) -> float:
        """Seconds of audio that are done."""
        return min(self.whole_s, self._work.before_s + self._heard_s)

    @property
    def pace(self) -> float:
        """How many times faster than real time it goes."""
        return 0.0 if self._began_s is None else self._heard_s / max(self._clock() - self._began_s, 1e-3)

    @property
    def left(self) -> str:
        """The time left, as `0:15:00`; `unknown` where nothing was heard yet."""
        return str(timedelta(seconds=round((self.whole_s - self.done_s) / self.pace))) if self.pace else "unknown"

    def audio(self, seconds: float) -> None:
        """So many seconds more were heard; the first call, which may be with none, begins the time."""
        self._began_s = self._clock() if self._began_s is None else self._began_s
        self._heard_s += seconds
        self.show()

    def file(self, recording: Recording, heard_s: float) -> None:
        """One more is done; so many seconds of it were heard."""
        self.files += 1
        self.whole_s += heard_s - self._work.lengths_s.get(recording.path, 0.0)
        self.show()

    def detection(self) -> None:
        """There is one more."""
        self.found += 1

    def show(self) -> None:
        """Show it; nothing here."""

    def __str__(self) -> str:
        before = f" ({self._work.before} files and {hours(self._work.before_s)} before)" if self._work.before else ""
        return (
            f"{self.files} of {self._work.files} files, {hours(self.done_s)} of {hours(self.whole_s)}{before}, "
            f"{self.pace:.0f} times real time, {self.found} detections, {self.left} left"
        )


def hours(seconds: float) -> str:
    """As `1.25 h`."""
    return f"{seconds / 3600:.2f} h"


class Lines(Progress):
    """Tells it now and then in a line of the log."""

    _next_s: float | None = None

    def show(self) -> None:
        """A line, where it is time for one."""
        now_s = self._clock()
        if self._next_s is not None and now_s < self._next_s:
            return
        if self._next_s is not None:
            log.info("%s", self)
        self._next_s = now_s + TELL_S


class Bar(Progress):
    """Shows it as a bar.

    Parameters
    ----------
    shown : called with the bar's total and where it stands, s, and with its texts.
    """

    def __init__(self, work: Work, shown: Callable[..., object]) -> None:
        super().__init__(work)
        self._shown = shown

    def show(self) -> None:
        """Move it."""
        self._shown(
            total=self.whole_s, completed=self.done_s, files=f"{self.files} of {self._work.files} files",
            pace=f"{self.pace:.0f} times real time", found=f"{self.found} detections", left=f"{self.left} left",
        )  # fmt: skip


@contextmanager
def showing(work: Work) -> Iterator[Progress]:
    """Shows on stderr how far a scan is: as a bar in a terminal, else in lines."""
    if not sys.stderr.isatty():
        yield Lines(work)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Shown

    texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("files", "pace", "found", "left")]
    columns = (TextColumn("scanning"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), *texts)
    with Shown(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as shown:
        task = shown.add_task("", files="", pace="", found="", left="")
        bar = Bar(work, partial(shown.update, task))
        bar.show()
        shown.refresh()  # what was done before is seen at once, however fast the rest is
        yield bar


def score_clips(recordings: list[Recording], ensemble: Any, settings: Settings, file: Path, stop: Event) -> int:
    """Write the clip scores, log a summary; the exit code."""
    from .scan import clip_scores, write_scores

    with progress(recordings) as on_audio:
        rows, faulty = clip_scores(recordings, ensemble, settings, on_audio, stop)
    write_scores(file, rows)
    log.info("%d scores in %s; %d files skipped", len(rows), file, faulty)
    return SKIPPED if faulty else 0
