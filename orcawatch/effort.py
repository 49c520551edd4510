"""`orcawatch effort`: what every second of a deployment was, the number that detections are divided by."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click

from .cli import EXIT_CODES, chosen_settings, config_option, logged
from .errors import InputError
from .harmless import harmless
from .ledger import BEHIND, COLUMNS, GAP, RECORDED, Stretch, plain, stretch, utc_of
from .store import Store

KINDS = (RECORDED, GAP, "off_duty", "shed")
HOUR_S = 3600.0
SAME_S = 1.0  # a sum that is closer than this to the elapsed time equals it
NO_TIME = "no date"
PATTERNS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}


@dataclass(frozen=True)
class Entry:
    """A row of the ledger, and whose it is.

    Attributes
    ----------
    stretch : the row.
    session : number of its session.
    source, station : of the session.
    hydrophones : serial numbers of its hydrophones.
    live : whether it comes from a device.
    """

    stretch: Stretch
    session: int
    source: str
    station: str
    hydrophones: tuple[str, ...]
    live: bool


Seconds = defaultdict[str, float]


@dataclass
class Account:
    """What became of a day, an hour, or of everything; all lengths by the steady clock, seconds.

    Attributes
    ----------
    label : the period.
    kinds : by kind.
    gaps : by cause.
    reduced : recorded at less than full effort, by step of the overload ladder.
    unsure_s : time whose UTC may be wrong, as the system clock was not synchronised.
    untold_s : time of which it is not known whether the clock was.
    elapsed_s : from the first entry to the last by UTC, as far as it lies in this period; None where UTC is not known.
    detections : their number.
    """

    label: str
    kinds: Seconds = field(default_factory=lambda: defaultdict(float))
    gaps: Seconds = field(default_factory=lambda: defaultdict(float))
    reduced: Seconds = field(default_factory=lambda: defaultdict(float))
    unsure_s: float = 0.0
    untold_s: float = 0.0
    elapsed_s: float | None = None
    detections: int = 0

    @property
    def sum_s(self) -> float:
        """All kinds together, seconds."""
        return sum(self.kinds.values())

    @property
    def per_hour(self) -> float | None:
        """Detections per recorded hour; None where nothing was recorded."""
        recorded_s = self.kinds[RECORDED]
        return self.detections / recorded_s * HOUR_S if recorded_s else None

    def add(self, entry: Entry, seconds: float) -> None:
        """Enter a part of a stretch."""
        row = entry.stretch
        self.kinds[row.kind] += seconds
        if row.kind == GAP:
            self.gaps[plain(row.cause)] += seconds
        if row.kind == RECORDED and row.step:
            self.reduced[row.step_name] += seconds
        self.unsure_s += seconds if entry.live and row.synchronised is False else 0.0
        self.untold_s += seconds if entry.live and row.synchronised is None else 0.0


@dataclass(frozen=True)
class Span:
    """A time range; None is open.

    Attributes
    ----------
    since, until : timezone-aware.
    """

    since: datetime | None = None
    until: datetime | None = None

    def cut(self, start: datetime, end: datetime) -> tuple[datetime, datetime] | None:
        """What of a stretch lies inside; None where nothing does."""
        start = start if self.since is None else max(start, self.since)
        end = end if self.until is None else min(end, self.until)
        return (start, end) if start <= end else None

    def holds(self, utc: datetime | None) -> bool:
        """Whether a moment lies inside; one that is not known does where all are asked for."""
        if utc is None:
            return self == Span()
        return (self.since is None or utc >= self.since) and (self.until is None or utc < self.until)


def parts(row: Stretch, by: str, span: Span) -> Iterator[tuple[str, float]]:
    """Yield (label of the period, seconds) of a stretch, split where a UTC day or hour ends.

    A stretch begins at its UTC and lasts as long as the steady clock says.
    """
    if row.start_utc is None:
        if span == Span():
            yield NO_TIME, row.duration_s
        return
    inside = span.cut(row.start_utc, row.start_utc + timedelta(seconds=row.duration_s))
    if inside is not None:
        yield from pieces(*inside, by)


def pieces(start: datetime, end: datetime, by: str) -> Iterator[tuple[str, float]]:
    """Yield (label, seconds) of each UTC day or hour between two moments."""
    while start < end:
        border = min(end, next_border(start, by))
        yield label(start, by), (border - start).total_seconds()
        start = border


def next_border(utc: datetime, by: str) -> datetime:
    """When the UTC day or hour ends."""
    utc = utc.astimezone(timezone.utc)
    floor = utc.replace(minute=0, second=0, microsecond=0)
    return floor + timedelta(hours=1) if by == "hour" else floor.replace(hour=0) + timedelta(days=1)


def label(utc: datetime | None, by: str) -> str:
    """Name of the period that holds a moment."""
    return NO_TIME if utc is None else utc.astimezone(timezone.utc).strftime(PATTERNS[by])


def accounts(
    entries: Sequence[Entry], detections: Iterable[datetime | None], by: str = "day", span: Span | None = None
) -> tuple[list[Account], Account]:
    """The account of each period, and of all together.

    Parameters
    ----------
    entries : of the ledger.
    detections : UTC of each; None where it is not known.
    by : `day` or `hour`.
    span : what is asked for; None is all.
    """
    span = span or Span()
    found: dict[str, Account] = {}
    total = Account("total")
    for entry in entries:
        for name, seconds in parts(entry.stretch, by, span):
            found.setdefault(name, Account(name)).add(entry, seconds)
            total.add(entry, seconds)
    for utc in detections:
        if span.holds(utc):
            found.setdefault(label(utc, by), Account(label(utc, by))).detections += 1
            total.detections += 1
    add_elapsed(found, total, entries, by, span)
    return [found[name] for name in sorted(found)], total


def add_elapsed(found: Mapping[str, Account], total: Account, entries: Sequence[Entry], by: str, span: Span) -> None:
    """Enter what UTC alone says of the time from the first live entry to the last: it must equal the sum."""
    live = [entry.stretch for entry in entries if entry.live]
    starts, ends = [row.start_utc for row in live if row.start_utc], [row.end_utc for row in live if row.end_utc]
    if not starts or not ends or len(live) < len(entries):
        return
    inside = span.cut(starts[0], max(starts[0], ends[-1]))
    total.elapsed_s = 0.0
    for account in found.values():
        account.elapsed_s = None if account.label == NO_TIME else 0.0
    for name, seconds in pieces(*inside, by) if inside else ():
        total.elapsed_s += seconds
        if name in found:
            found[name].elapsed_s = (found[name].elapsed_s or 0.0) + seconds


ENTRIES = f"""
    SELECT {COLUMNS}, session, source, station, hydrophones, live FROM ledger JOIN sessions ON sessions.id = session
    WHERE live OR ? ORDER BY session, start_sample IS NOT NULL, start_sample
"""


def read_entries(connection: sqlite3.Connection, files: bool = False) -> list[Entry]:
    """The ledger of live sessions, in order; with those of files where asked."""
    return [entry_of(row) for row in connection.execute(ENTRIES, (files,))]


def entry_of(row: Sequence[object]) -> Entry:
    """From a row of `ENTRIES`."""
    *values, session, source, station, hydrophones, live = row
    serials = json.loads(str(hydrophones)) if hydrophones else []
    return Entry(stretch(values), int(str(session)), str(source), str(station), tuple(serials), bool(live))


def read_detections(connection: sqlite3.Connection, files: bool = False) -> list[datetime | None]:
    """UTC of the detections of live sessions; with those of files where asked."""
    query = "SELECT start_utc FROM detections JOIN sessions ON sessions.id = session WHERE live OR ?"
    return [utc_of(row[0]) for row in connection.execute(query, (files,))]


def count_strays(connection: sqlite3.Connection) -> int:
    """Detections of no session: from before there was a ledger, or written while the disk refused the session."""
    return int(connection.execute("SELECT count(*) FROM detections WHERE session IS NULL").fetchone()[0])


@dataclass(frozen=True)
class Jump:
    """The system clock was stepped.

    Attributes
    ----------
    utc : what it said afterwards.
    jump_s : by how much, forward positive.
    corrected : whether entries from before it were put right, or are when the clock becomes synchronised.
    """

    utc: datetime | None
    jump_s: float
    corrected: bool


def read_jumps(connection: sqlite3.Connection) -> list[Jump]:
    """Steps of the system clock in live sessions, from the journal."""
    query = "SELECT utc, jump_s, was_synchronised, synchronised FROM clock WHERE jump_s <> 0 ORDER BY id"
    rows = connection.execute(query).fetchall()
    return [Jump(utc_of(utc), jump_s, was == 0 or (now == 1 and was is None)) for utc, jump_s, was, now in rows]


def table(found: Sequence[Account], total: Account) -> Iterator[str]:
    """Lines of text, in hours."""
    yield " ".join(HEAD)
    for account in [*found, total]:
        yield line(account)
        yield from (f"    {text}" for text in details(account))


WIDTH = 16
TITLES = ("recorded", "reduced", "gap", "off duty", "shed", "sum", "elapsed", "detections", "per hour")
HEAD = (f"{'hours (UTC)':{WIDTH}}", *(f"{title:>10}" for title in TITLES))


def line(account: Account) -> str:
    """An account's figures."""
    kinds = account.kinds
    seconds = (
        kinds[RECORDED], sum(account.reduced.values()), kinds[GAP], kinds["off_duty"], kinds["shed"], account.sum_s,
        account.elapsed_s,
    )  # fmt: skip
    rate = "-" if account.per_hour is None else f"{account.per_hour:.3f}"
    figures = [*map(hours, seconds), str(account.detections), rate]
    return " ".join([f"{account.label:{WIDTH}}", *(f"{figure:>10}" for figure in figures)])


def hours(seconds: float | None) -> str:
    """Hours with a resolution of 3.6 s; what is not nothing never looks like it."""
    if seconds is None:
        return "-"
    return "<0.001" if 0 < seconds < 1.8 else f"{seconds / HOUR_S:.3f}"


def details(account: Account) -> Iterator[str]:
    """Gaps by cause and reduced effort by step, the longest first."""
    for title, found in (("gap", account.gaps), ("reduced", account.reduced)):
        for name, seconds in sorted(found.items(), key=lambda item: -item[1]):
            yield f"{title}: {name} {hours(seconds)}"


def warnings(
    entries: Sequence[Entry], found: Sequence[Account], total: Account, jumps: Sequence[Jump]
) -> Iterator[str]:
    """What the reader must know before dividing."""
    if total.unsure_s:
        yield (
            f"the system clock was not synchronised for {hours(total.unsure_s)} h: lengths are right, but UTC, and to "
            "which day they belong, may be wrong"
        )
    if total.untold_s:
        yield (
            f"nothing tells whether the system clock was synchronised for {hours(total.untold_s)} h: lengths are "
            "right, UTC is as right as the clock was"
        )
    yield from unequal(found, total)
    for jump in jumps:
        if not jump.corrected:
            yield f"the system clock jumped by {jump.jump_s:+.1f} s to {moment(jump.utc)}; UTC is what it said"
    behind = sum(entry.stretch.cause == BEHIND for entry in entries)
    if behind:
        yield (
            f"at {behind} start(s) the system clock was behind the last entry: how long nothing ran before is not "
            "known, and not in the sum"
        )


def unequal(found: Sequence[Account], total: Account) -> Iterator[str]:
    """Periods whose sum is not the elapsed time."""
    for account in [*found, total]:
        if account.elapsed_s is not None and abs(account.sum_s - account.elapsed_s) > SAME_S:
            yield (
                f"{account.label}: the sum is {account.sum_s:.1f} s, and by UTC {account.elapsed_s:.1f} s elapsed "
                f"({account.sum_s - account.elapsed_s:+.1f} s)"
            )


def moment(utc: datetime | None) -> str:
    """UTC to the second."""
    return "an unknown time" if utc is None else f"{utc:%Y-%m-%d %H:%M:%S} UTC"


CSV_COLUMNS = (
    "start_utc", "end_utc", "duration_s", "kind", "cause", "step", "step_name", "synchronised", "station", "source",
    "session", "hydrophones", "samples", "start_sample",
)  # fmt: skip


def csv_text(entries: Iterable[Entry]) -> str:
    """One line for each stretch, below those of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_row(entry) for entry in entries)
    return text.getvalue()


def csv_row(entry: Entry) -> tuple[object, ...]:
    """A stretch in the order of `CSV_COLUMNS`."""
    row = entry.stretch
    samples = (row.end_sample or 0) - (row.start_sample or 0)
    return (
        text_of(row.start_utc), text_of(row.end_utc), f"{row.duration_s:.6f}", row.kind, row.cause, row.step,
        row.step_name, {None: "", True: "yes", False: "no"}[row.synchronised], entry.station, entry.source,
        entry.session, " ".join(entry.hydrophones), samples, "" if row.start_sample is None else row.start_sample,
    )  # fmt: skip


def text_of(utc: datetime | None) -> str:
    """ISO 8601 with milliseconds; empty where not known."""
    return "" if utc is None else utc.astimezone(timezone.utc).isoformat(timespec="milliseconds")


def overlapping(entries: Iterable[Entry], span: Span) -> list[Entry]:
    """Those with anything inside a time range, whole."""
    if span == Span():
        return list(entries)
    return [entry for entry in entries if any(True for _ in parts(entry.stretch, "day", span))]


def parse_utc(text: str | None, option: str) -> datetime | None:
    """A day or moment from the command line; UTC where it names no zone.

    Raises
    ------
    InputError : it is neither.
    """
    if text is None:
        return None
    try:
        utc = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as fault:
        raise InputError(
            f"{option} must be a day or a moment such as 2026-03-01 or 2026-03-01T12:30, not {text!r}"
        ) from fault
    return utc if utc.tzinfo else utc.replace(tzinfo=timezone.utc)


def database(output: Path) -> Path:
    """The database that a folder or file stands for."""
    from .daemon import DATABASE

    return output / DATABASE if output.is_dir() else output


def deliver(text: str, csv_file: str) -> None:
    """Write to a file; `-` is stdout.

    Raises
    ------
    InputError : it cannot be written.
    """
    if csv_file == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(csv_file).write_text(text, encoding="utf-8")
    except OSError as fault:
        raise InputError(f"--csv {csv_file} cannot be written: {fault.strerror}; name another file") from fault


@click.command("effort", epilog=EXIT_CODES)
@click.argument("output", required=False, type=click.Path(path_type=Path))
@config_option
@click.option("--since", metavar="UTC", help="Leave out what was before: a day, or a moment (2026-03-01T12:30).")
@click.option("--until", metavar="UTC", help="Leave out what was from then on.")
@click.option(
    "--by", type=click.Choice(["day", "hour", "total"]), default="day", show_default=True, help="Periods, UTC."
)
@click.option("--csv", "csv_file", metavar="FILE", help="One row for each stretch instead of the report; - for stdout.")
@click.option("--all", "files", is_flag=True, help="With sessions that read files; they have their own time.")
@logged
def command(
    output: Path | None,
    config: Path | None,
    since: str | None,
    until: str | None,
    by: str,
    csv_file: str | None,
    files: bool,
) -> None:
    """Account for every second: recorded, gap, off duty or shed.

    OUTPUT is the output folder of a run, or its database; by default that of the settings. May be asked while the
    daemon runs. Every second from the first live session to the last entry is in one column, so that `recorded` is
    what numbers of detections are to be divided by.
    """
    span = Span(parse_utc(since, "--since"), parse_utc(until, "--until"))
    path = database(chosen_settings(config, None, output).output)
    with Store.reader(path) as reader, reader.transaction() as connection:
        entries, detections = read_entries(connection, files), read_detections(connection, files)
        jumps, strays = read_jumps(connection), count_strays(connection)
    if csv_file is not None:
        deliver(csv_text(overlapping(entries, span)), csv_file)
    else:
        report(entries, detections, jumps, by, span)
        if strays:
            click.echo(f"note: {strays} detection(s) of no session are not counted (from before there was a ledger)")


def report(
    entries: Sequence[Entry], detections: Sequence[datetime | None], jumps: Sequence[Jump], by: str, span: Span
) -> None:
    """Print the table, and what must be known with it."""
    if not entries:
        click.echo("No live session is in the ledger; --all counts those that read files.")
        return
    found, total = accounts(entries, detections, "day" if by == "total" else by, span)
    for text in table([] if by == "total" else found, total):
        click.echo(harmless(text))
    inside = [jump for jump in jumps if span.holds(jump.utc)]
    for text in warnings(entries, [] if by == "total" else found, total, inside):
        click.echo(harmless(f"note: {text}"))
