"""Effort, scores and levels over time, from the database."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from statistics import median

from .. import effort
from ..effort import Account, Entry, Span
from ..errors import InputError
from ..ledger import COLUMNS, utc_of
from .status import hydrophones

MOST_LEVELS = 4000  # rows of levels that are looked at: evenly chosen ones of those in the range
BINS = 160  # medians along a line
MOST_DOTS = 1500
RANGES = {"7": "7 days", "30": "30 days", "90": "90 days", "365": "a year"}
MOST_DAYS = 3660
EARLIEST, LATEST = date(1900, 1, 1), date(2200, 1, 1)
HOURLY_DAYS = 2  # ranges up to this are by hour


@dataclass(frozen=True)
class Range:
    """Whole UTC days.

    Attributes
    ----------
    first, last : days.
    """

    first: date
    last: date

    @property
    def since(self) -> datetime:
        """When the first one begins."""
        return datetime.combine(self.first, time(), timezone.utc)

    @property
    def until(self) -> datetime:
        """When the last one ends."""
        return datetime.combine(self.last, time(), timezone.utc) + timedelta(days=1)

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1

    @property
    def by(self) -> str:
        """What its accounts are by."""
        return "hour" if self.days <= HOURLY_DAYS else "day"

    @property
    def texts(self) -> tuple[str, str]:
        """Its ends, to be compared with times in the database."""
        return self.first.isoformat(), (self.last + timedelta(days=1)).isoformat()


def chosen(since: str | None, until: str | None, days: int, newest: str | None) -> Range:
    """The days asked for; without any, the last ones of which the database knows.

    Raises
    ------
    InputError : the last is before the first, or there are too many.
    """
    last = date.fromisoformat(until or newest or datetime.now(timezone.utc).date().isoformat())
    if not EARLIEST <= last <= LATEST:
        raise InputError(f"until must be a day from {EARLIEST} to {LATEST}, not {last}")
    first = date.fromisoformat(since) if since else max(date.min, last - timedelta(days=days - 1))
    if not 0 <= (last - first).days < MOST_DAYS:
        raise InputError(f"since and until must be 1 to {MOST_DAYS} days, the first before the last")
    return Range(first, last)


def newest_day(connection: sqlite3.Connection) -> str | None:
    """The last UTC day with an entry, a level or a detection."""
    tables = ("ledger", "levels", "detections")
    found = [connection.execute(f"SELECT max(start_utc) FROM {table}").fetchone()[0] for table in tables]
    known = [text[:10] for text in found if text]
    return max(known) if known else None


def any_live(connection: sqlite3.Connection) -> bool:
    """Whether anything was heard live."""
    return connection.execute("SELECT 1 FROM sessions WHERE live LIMIT 1").fetchone() is not None


def accounts(connection: sqlite3.Connection, asked: Range, files: bool) -> tuple[list[Account], Account]:
    """Each period's account, and all together."""
    since, until = asked.texts
    moments = (
        "SELECT start_utc FROM detections JOIN sessions ON sessions.id = session "
        "WHERE (live OR ?) AND start_utc >= ? AND start_utc < ?"
    )
    found = [utc_of(row[0]) for row in connection.execute(moments, (files, since, until))]
    return effort.accounts(entries(connection, asked, files), found, asked.by, Span(asked.since, asked.until))


def entries(connection: sqlite3.Connection, asked: Range, files: bool) -> list[Entry]:
    """The rows of the ledger that reach into the range, in order."""
    query = (
        f"SELECT {', '.join(f'ledger.{name}' for name in COLUMNS.split(', '))}, session, source, station, "
        "hydrophones, live FROM ledger JOIN sessions ON sessions.id = session "
        "WHERE ledger.start_utc < ? AND ledger.end_utc >= ? AND (live OR ?) "
        "ORDER BY session, start_sample IS NOT NULL, start_sample"
    )
    since, until = asked.texts
    return [effort.entry_of(row) for row in connection.execute(query, (until, since, files))]


Scores = dict[str, list[tuple[datetime, float]]]


def scores(connection: sqlite3.Connection, asked: Range) -> Scores:
    """(time, score) of the detections, by verdict; `none` is not reviewed."""
    query = "SELECT start_utc, score, verdict FROM detections WHERE start_utc >= ? AND start_utc < ? ORDER BY start_utc"
    found: Scores = defaultdict(list)
    for utc, score, verdict in connection.execute(query, asked.texts):
        found[verdict or "none"].append((datetime.fromisoformat(utc), score))
    return found


@dataclass(frozen=True)
class Lines:
    """Levels over time.

    Attributes
    ----------
    unit : what they are relative to.
    lines : by hydrophone, (middle of the bin, median in dB), None where nothing was measured.
    rows, of : how many rows of levels were looked at, of how many.
    others : other units in the range; what has them is not drawn.
    """

    unit: str
    lines: dict[str, list[tuple[datetime, float | None]]]
    rows: int
    of: int
    others: Sequence[str]


def levels(connection: sqlite3.Connection, asked: Range) -> Lines | None:
    """Medians of the levels in even bins of the range; None where there are no levels."""
    count = connection.execute(
        "SELECT count(*) FROM levels WHERE start_utc >= ? AND start_utc < ?", asked.texts
    ).fetchone()[0]
    query = (
        "SELECT levels.start_utc, levels_db, unit, channels, hydrophones FROM levels "
        "JOIN sessions ON sessions.id = session WHERE levels.start_utc >= ? AND levels.start_utc < ? "
        "AND levels.id % ? = 0 ORDER BY levels.start_utc"
    )
    rows = connection.execute(query, (*asked.texts, max(1, -(-count // MOST_LEVELS)))).fetchall()
    if not rows:
        return None
    unit = rows[-1][2]
    return Lines(unit, binned(rows, asked, unit), len(rows), count, sorted({row[2] for row in rows} - {unit}))


def binned(rows: Sequence[tuple[str, ...]], asked: Range, unit: str) -> dict[str, list[tuple[datetime, float | None]]]:
    """The medians of those rows that have the unit."""
    size = (asked.until - asked.since) / BINS
    found: dict[str, list[list[float]]] = {}
    for utc, values, of_unit, channels, serials in rows:
        place = min(BINS - 1, int((datetime.fromisoformat(utc) - asked.since) / size))
        names = hydrophones(json.loads(channels), json.loads(serials or "[]"))
        for name, value in zip(names, json.loads(values)) if of_unit == unit else ():
            if value is not None:
                found.setdefault(name, [[] for _ in range(BINS)])[place].append(value)
    middles = [asked.since + size * (number + 0.5) for number in range(BINS)]
    return {
        name: [(middle, median(values) if values else None) for middle, values in zip(middles, bins)]
        for name, bins in sorted(found.items())
    }
