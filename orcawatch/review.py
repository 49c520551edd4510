"""`orcawatch review`: see what was detected, say what it is, and make training data of it."""

from __future__ import annotations

import csv
import getpass
import io
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import click

from .cli import EXIT_CODES, FILE, logged
from .effort import Span, database, parse_utc
from .errors import InputError
from .formats import quoted_line
from .harmless import harmless
from .selection import UNREVIEWED, Wanted, read_rows, read_runs
from .store import Detection, Store
from .verdicts import VERDICTS, Verdict, Writer, give_all

ANY = (*VERDICTS, UNREVIEWED)
SHOWN_LOST = 10


@click.group("review")
def command() -> None:
    """Give verdicts on detections, and make training data of them."""


# --- list -------------------------------------------------------------------------------------------------------------


@command.command("list", epilog=EXIT_CODES)
@click.argument("output", type=FILE)
@click.option("--verdict", "verdicts", type=click.Choice(ANY), multiple=True, help="Only these; none: without one.")
@click.option("--least-score", type=click.FloatRange(0, 1), default=0.0, help="Only from this score on.")
@click.option("--station", "stations", multiple=True, help="Only of this station.")
@click.option("--source", "sources", multiple=True, metavar="PATTERN", help="Only of these files or devices (*, ?).")
@click.option("--since", metavar="UTC", help="Only from this day or moment on.")
@click.option("--until", metavar="UTC", help="Only before this day or moment.")
@logged
def list_(
    output: Path,
    verdicts: tuple[str, ...],
    least_score: float,
    stations: tuple[str, ...],
    sources: tuple[str, ...],
    since: str | None,
    until: str | None,
) -> None:
    """List the detections in OUTPUT as CSV: id, time, score, verdict. `review set` reads this back."""
    span = Span(parse_utc(since, "--since"), parse_utc(until, "--until"))
    wanted = Wanted(span, verdicts, least_score, stations, sources)
    with Store.reader(database(output)) as reader, reader.transaction() as connection:
        rows = [row.detection for row in read_rows(connection, read_runs(connection), wanted)]
    click.echo(harmless(listed(rows), keep="\n\t"), nl=False)


def listed(found: Iterable[Detection]) -> str:
    """CSV of detections."""
    lines = [
        quoted_line(("id", "start_utc", "source", "start_s", "end_s", "score", "verdict", "note", "reviewer", "clip"))
    ]
    for one in found:
        utc = "" if one.start_utc is None else one.start_utc.astimezone(timezone.utc).isoformat()
        span = (f"{one.start_s:.2f}", f"{one.end_s:.2f}", f"{one.score:.3f}")
        clip = "" if one.removed else one.clip
        told = (one.id, utc, one.source, *span, one.verdict, plain(one.verdict_note), one.reviewer, clip)
        lines.append(quoted_line(told))
    return "".join(lines)


def plain(text: str) -> str:
    """With line feeds alone between lines: Python's CSV does not quote carriage returns."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- set --------------------------------------------------------------------------------------------------------------


@command.command("set", epilog=EXIT_CODES)
@click.argument("output", type=FILE)
@click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
@click.option("--verdict", type=click.Choice(ANY), help="Of all these detections; none takes verdicts back.")
@click.option("--note", default="", help="In your words.")
@click.option("--reviewer", default=None, help="Who says so. [default: your login name]")
@click.option("--from", "table", type=FILE, metavar="FILE.csv", help="Read id,verdict,note from a table; - is stdin.")
@logged
def set_(
    output: Path, ids: tuple[int, ...], verdict: str | None, note: str, reviewer: str | None, table: Path | None
) -> None:
    """Give verdicts to detections in OUTPUT, all of them or none; also while a daemon runs.

    Either name IDs and a --verdict, or a table with the columns id and verdict and, if you like, note and reviewer, as
    `review list` prints it and spreadsheets write it. Rows of a table without a verdict are left alone.
    """
    who = reviewer if reviewer is not None else login()
    if (table is None) == (not ids):
        raise InputError("name either detections by their ids, or a table with --from FILE.csv")
    if table is None:
        if verdict is None:
            raise InputError(f"say --verdict: one of {', '.join(ANY)}")
        said = [Verdict(id, spoken(verdict), note, who, datetime.now(timezone.utc)) for id in ids]
    else:
        if verdict is not None or note:
            raise InputError("a table brings its own verdicts and notes: leave out --verdict and --note")
        said = read_table(table, who)
    with Writer(database(output)) as writer:
        give_all(writer, said)
    click.echo(f"{len(said)} verdicts written", err=True)


def login() -> str:
    """The name of who is logged in; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def spoken(text: str) -> str | None:
    """A verdict as it is stored."""
    return None if text == UNREVIEWED else text


def read_table(path: Path, reviewer: str) -> list[Verdict]:
    """Verdicts of a CSV table.

    Raises
    ------
    InputError : no such table or columns, or rows that say nothing usable; the text names them all.
    """
    rows = table_rows(path)
    now, verdicts, faults = datetime.now(timezone.utc), list[Verdict](), list[str]()
    for line, row in enumerate(rows, 2):
        id, said = (row.get("id") or "").strip(), (row.get("verdict") or "").strip()
        if not said:
            continue
        if not id.isdecimal() or said not in ANY:
            faults.append(f"line {line}: id {id!r}, verdict {said!r}")
            continue
        who = (row.get("reviewer") or "").strip() or reviewer
        verdicts.append(Verdict(int(id), spoken(said), (row.get("note") or "").strip(), who, now))
    if faults:
        shown = "; ".join(faults[:SHOWN_LOST])
        raise InputError(f"{path}: an id is a whole number, a verdict one of {', '.join(ANY)}; not so in {shown}")
    return verdicts


def table_rows(path: Path) -> list[dict[str, str | None]]:
    """Rows of a CSV table with the columns id and verdict, separated by commas, semicolons or tabs."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} cannot be read: {fault}; name a CSV file in UTF-8") from fault
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator)
    missing = {"id", "verdict"} - {str(name) for name in reader.fieldnames or ()}
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(sorted(missing))}: it needs id and verdict")
    return list(reader)


# --- export -----------------------------------------------------------------------------------------------------------


@command.command("export", epilog=EXIT_CODES)
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="OUTPUT... DATA")
@click.option("--devel-share", type=float, default=0.2, show_default=True, help="Share of recordings to judge by.")
@click.option("--margin", "margin_s", type=float, default=0.25, show_default=True, help="Seconds kept around a call.")
@click.option("--licence", default="", help="Of the recordings, for the model card.")
@logged
def export(folders: tuple[Path, ...], devel_share: float, margin_s: float, licence: str) -> None:
    """Make the folder DATA for `orcawatch train` of the verdicts in OUTPUT, or bring it up to date.

    Calls are cut to the event; what is no orca keeps its clip; what is unsure is left out. No recording (a file, or a
    day of a station) stands on both sides of the split. Run it again after more verdicts.
    """
    from .reviewed import Choices
    from .reviewed import export as write

    if len(folders) < 2:
        raise InputError("name one or more output folders, then the folder of the data set")
    outcome = write(folders[:-1], folders[-1], Choices(devel_share, margin_s, licence))
    click.echo(
        f"{folders[-1]}: {outcome.added} clips added, {outcome.changed} changed, {outcome.kept} kept, "
        f"{outcome.dropped} taken out; {outcome.unsure} detections are unsure"
    )
    tell_lost(outcome.lost)


def tell_lost(lost: Sequence[str]) -> None:
    """Say which verdicts gave no clip."""
    if lost:
        click.echo(f"{len(lost)} verdicts have no clip any more:", err=True)
    for text in lost[:SHOWN_LOST]:
        click.echo(f"  {text}", err=True)
    if len(lost) > SHOWN_LOST:
        click.echo(f"  and {len(lost) - SHOWN_LOST} more", err=True)
