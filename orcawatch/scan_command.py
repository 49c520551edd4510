"""`orcawatch scan`: detect in archives of audio files."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

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
from .errors import InputError
from .printer import Printer

if TYPE_CHECKING:
    from .config import Settings
    from .scan import Recording

log = logging.getLogger(__name__)


@click.command("scan", epilog=EXIT_CODES)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@config_option
@bundle_option
@output_option
@format_option
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
    clip_scores: Path | None,
) -> None:
    """Detect orcas in audio files, and in all audio files under folders.

    A file that cannot be read to its end is reported and the others are scanned; the exit code is then 3. What could
    be read of it is scanned too, but gets no clip score. SIGTERM or SIGINT ends the scan: what was heard is finished.
    """
    from . import daemon
    from .scan import check_place, find_recordings

    if clip_scores is not None:
        refuse_format(ctx)
        check_place(clip_scores)
    settings = chosen_settings(config, bundle, output)
    recordings = find_recordings(paths, settings.output)
    with daemon.stop_signals() as stop:
        ensemble = daemon.open_ensemble(settings)
        if clip_scores is None:
            code = detect(recordings, ensemble, settings, how, stop)
        else:
            code = score_clips(recordings, ensemble, settings, clip_scores, stop)
    ctx.exit(code)


def refuse_format(ctx: click.Context) -> None:
    """Raise InputError where --format is given: it would do nothing."""
    if ctx.get_parameter_source("how") is not click.core.ParameterSource.DEFAULT:
        raise InputError("--format prints detections and --clip-scores makes none: give one of the two")


def detect(recordings: list[Recording], ensemble: Any, settings: Settings, how: str, stop: Event) -> int:
    """Scan, print detections, log a summary; the exit code."""
    from .daemon import only_writer
    from .scan import scan

    with only_writer(settings.output), progress(recordings) as on_audio:
        summary = scan(recordings, ensemble, settings, Printer(how, settings), on_audio, stop)
    log.info(
        "%d files, %.1f s scored, %d detections in %s; %d files not scored in full",
        summary.files, summary.scored_s, summary.events, settings.output, summary.faulty,
    )  # fmt: skip
    if summary.failed:
        log.error("%d detections have no clip, no snapshot or no row", summary.failed)
    return FAILED if summary.failed else SKIPPED if summary.faulty else 0


def score_clips(recordings: list[Recording], ensemble: Any, settings: Settings, file: Path, stop: Event) -> int:
    """Write the clip scores, log a summary; the exit code."""
    from .scan import clip_scores, write_scores

    with progress(recordings) as on_audio:
        rows, faulty = clip_scores(recordings, ensemble, settings, on_audio, stop)
    write_scores(file, rows)
    log.info("%d scores in %s; %d files skipped", len(rows), file, faulty)
    return SKIPPED if faulty else 0
