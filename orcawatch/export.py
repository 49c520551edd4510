"""`orcawatch export`: detections for Raven, Audacity, spreadsheets, programs, OBIS and GBIF."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from .cli import EXIT_CODES, FILE, logged
from .effort import Span, database, parse_utc
from .errors import InputError
from .exporter import FILES, FORMATS, Export, told, write_lines
from .files import printable
from .occurrences import Occurrences
from .selection import UNREVIEWED, Wanted
from .store import Store
from .tables import Folder, refusals, whole
from .verdicts import VERDICTS

log = logging.getLogger(__name__)

TABLES = "tables"
EFFORT = "effort.csv"


@contextmanager
def viewed(output: Path, wanted: Wanted | None = None, occurrences: Occurrences | None = None) -> Iterator[Export]:
    """An export of one unchanging view of a database."""
    path = database(output)
    with Store.reader(path) as reader, reader.transaction() as connection:
        yield Export(path.parent, connection, wanted or Wanted(), occurrences or Occurrences({}))


def write_exports(
    output: Path,
    formats: Sequence[str],
    folder: Path,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    effort: bool = False,
    occurrences: Occurrences | None = None,
) -> list[Path]:
    """Write a database's detections as tables, each whole or not at all, also while a daemon writes.

    Parameters
    ----------
    output : the output folder of a run or scan, or its database.
    formats : of `orcawatch.exporter.FORMATS`.
    folder : where the tables go; those that were written before are replaced unless somebody edited them.
    wanted : which detections; None is all.
    overwrite : whether to replace also what was edited, or is not ours.
    effort : whether to write the ledger beside them, `effort.csv`.
    occurrences : what Darwin Core needs and the database has not.

    Returns
    -------
    The tables, and the folders of those that are many.

    Raises
    ------
    InputError : no database, a table that was edited, or nothing that can be an occurrence.
    OrcawatchError : the disk refuses.
    """
    with viewed(output, wanted, occurrences) as export:
        tables = Folder(folder, overwrite)
        tables.check([*(FILES[how] for how in formats if how in FILES), *([EFFORT] if effort else [])])
        written = []
        for how in formats:
            written += export.write(how, tables)
            report(export, how, printable(folder))
        if effort:
            written.append(folder / write_lines(tables, EFFORT, export.effort_lines()))
        tables.finish(how for how in formats if how not in FILES)
    return written


def report(export: Export, how: str, place: str) -> None:
    """Say how many detections were written, and which were not; begin to count anew."""
    log.info("%s: %d detections in %s", how, export.written, place)
    if export.left_out:
        log.warning("%s: left out: %s", how, told(export.left_out))
    export.written, export.left_out = 0, Counter()


def write_one(export: Export, how: str, path: Path, overwrite: bool) -> None:
    """Write a format that is one file to a place of the user's own.

    Raises
    ------
    InputError : a file is there, and is not to be replaced.
    """
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise InputError(f"{printable(path)} is there already: name another file with -o, or give --overwrite")
    with refusals(path), whole(path) as table:
        for line in export.lines(how):
            table.write(line)
    report(export, how, printable(path))


def print_one(export: Export, how: str) -> None:
    """Write a format that is one file to stdout, as UTF-8."""
    for line in export.lines(how):
        sys.stdout.buffer.write(line.encode())
    sys.stdout.buffer.flush()
    report(export, how, "stdout")


def is_one_file(formats: Sequence[str], place: Path | None, effort: bool) -> bool:
    """Whether `place` is a file (or `-`, stdout) and not a folder; raises InputError where it can be neither."""
    one = place is not None and len(formats) == 1 and formats[0] in FILES
    if str(place) == "-" and not one:
        raise InputError("-o - is for one of csv, jsonl and darwin-core: name a folder with -o")
    if effort and one:
        raise InputError(
            "--effort is a second file and needs a folder: leave out -o, or take `orcawatch effort --csv FILE`"
        )
    return one


@click.command("export", epilog=EXIT_CODES)
@click.argument("output", type=FILE)
@click.option(
    "--format", "formats", type=click.Choice(FORMATS), multiple=True, required=True,
    help="What to write; may be given again.",
)  # fmt: skip
@click.option(
    "-o", "place", type=FILE, metavar="PATH",
    help="Where to: a file for csv, jsonl or darwin-core (- for stdout), else a folder. [default: OUTPUT/tables]",
)  # fmt: skip
@click.option("--since", metavar="UTC", help="Leave out what began before: a day, or a moment (2026-03-01T12:30).")
@click.option("--until", metavar="UTC", help="Leave out what began then or later.")
@click.option(
    "--verdict", "verdicts", type=click.Choice([*VERDICTS, UNREVIEWED]), multiple=True,
    help="Only those with this verdict (none: not yet reviewed); may be given again.",
)  # fmt: skip
@click.option("--least-score", type=click.FloatRange(0, 1), default=0.0, help="Only scores from this on, 0 to 1.")
@click.option("--station", "stations", multiple=True, metavar="NAME", help="Only this station; may be given again.")
@click.option(
    "--source", "sources", multiple=True, metavar="PATTERN",
    help="Only this file or device, by its path or name (* and ? stand for any text); may be given again.",
)  # fmt: skip
@click.option("--effort", is_flag=True, help="Also write the ledger, effort.csv: what counts are to be divided by.")
@click.option(
    "--position", type=(click.FloatRange(-90, 90), click.FloatRange(-180, 180)), metavar="LAT LON",
    help="darwin-core: where runs listened that have no position, degrees (WGS 84).",
)  # fmt: skip
@click.option(
    "--uncertainty-m", type=click.FloatRange(min=0, min_open=True), metavar="M",
    help="darwin-core: radius around the position in which the animals were, metres.",
)  # fmt: skip
@click.option(
    "--media-url", metavar="URL", help="darwin-core: where the output folder is published; makes links to clips."
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace files that were edited since, or come from elsewhere.")
@logged
def command(
    output: Path,
    formats: tuple[str, ...],
    place: Path | None,
    since: str | None,
    until: str | None,
    verdicts: tuple[str, ...],
    least_score: float,
    stations: tuple[str, ...],
    sources: tuple[str, ...],
    effort: bool,
    position: tuple[float, float] | None,
    uncertainty_m: float | None,
    media_url: str | None,
    overwrite: bool,
) -> None:
    """Write the detections in OUTPUT, the output folder of a run or scan, for other programs.

    raven: selection tables, one for each sound file and one that opens all. audacity: label tracks. csv: for
    spreadsheets, R and pandas. jsonl: for programs. darwin-core: occurrences for OBIS and GBIF, without those that
    were not_orca. May be asked while the daemon runs. docs/formats.md tells every column.
    """
    span = Span(parse_utc(since, "--since"), parse_utc(until, "--until"))
    wanted = Wanted(span, verdicts, least_score, stations, sources)
    occurrences = Occurrences({}, position, uncertainty_m, media_url)
    formats = tuple(dict.fromkeys(formats))
    if not is_one_file(formats, place, effort):
        folder = place or database(output).parent / TABLES
        for path in write_exports(output, formats, folder, wanted, overwrite, effort, occurrences):
            click.echo(printable(path))
        return
    with viewed(output, wanted, occurrences) as export:
        if str(place) == "-":
            print_one(export, formats[0])
        elif place is not None:
            write_one(export, formats[0], place, overwrite)
