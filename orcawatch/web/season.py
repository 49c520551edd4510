"""Effort, scores and levels over time, from the database."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from functools import cache
from statistics import median

from .. import effort
from ..effort import Account, Entry, Span
from ..errors import InputError
from ..ledger import COLUMNS
from .charts import ACROSS, UP
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


Counts = dict[str, dict[str, int]]


def counts(connection: sqlite3.Connection, asked: Range, files: bool) -> Counts:
    """Detections of each period by verdict (`none` is not reviewed); only periods that have any."""
    query = (
        "SELECT substr(start_utc, 1, ?), verdict, count(*) FROM detections JOIN sessions ON sessions.id = session "
        "WHERE (live OR ?) AND start_utc >= ? AND start_utc < ? GROUP BY 1, 2"
    )
    hourly = asked.by == "hour"
    found: Counts = defaultdict(dict)
    for text, verdict, number in connection.execute(query, (13 if hourly else 10, files, *asked.texts)):
        found[f"{text.replace('T', ' ')}:00" if hourly else text][verdict or "none"] = number
    return found


def accounts(
    connection: sqlite3.Connection, asked: Range, files: bool, counted: Counts
) -> tuple[list[Account], Account]:
    """Each period's account, and all together."""
    found, total = effort.accounts(entries(connection, asked, files), [], asked.by, Span(asked.since, asked.until))
    by_label = {account.label: account for account in found}
    for label, verdicts in counted.items():
        account = by_label.setdefault(label, Account(label))
        account.detections = sum(verdicts.values())
        total.detections += account.detections
    return [by_label[label] for label in sorted(by_label)], total


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


@dataclass(frozen=True)
class Scores:
    """Scores over time: one by one, or counted where they are too many to be told apart.

    Attributes
    ----------
    count : of detections.
    dots : (time, score), by verdict; `none` is not reviewed. Empty where there are cells.
    cells : how many detections are in each (column, row) of a grid over the range and the scores from 0 to 1.
    """

    count: int
    dots: Mapping[str, Sequence[tuple[datetime, float]]]
    cells: Mapping[tuple[int, int], int]


def scores(connection: sqlite3.Connection, asked: Range) -> Scores:
    """The scores of the detections in the range."""
    within = "FROM detections WHERE start_utc >= ? AND start_utc < ?"
    count = connection.execute(f"SELECT count(*) {within}", asked.texts).fetchone()[0]
    if count > MOST_DOTS:
        query = (
            "SELECT min(?1 - 1, CAST((julianday(start_utc) - julianday(?4)) / ?3 * ?1 AS INTEGER)), "
            "min(?2 - 1, CAST(score * ?2 AS INTEGER)), count(*) "
            "FROM detections WHERE start_utc >= ?4 AND start_utc < ?5 GROUP BY 1, 2"
        )
        rows = connection.execute(query, (ACROSS, UP, asked.days, *asked.texts))
        return Scores(count, {}, {(column, row): number for column, row, number in rows})
    found = defaultdict(list)
    for utc, score, verdict in connection.execute(f"SELECT start_utc, score, verdict {within}", asked.texts):
        found[verdict or "none"].append((datetime.fromisoformat(utc), score))
    return Scores(count, found, {})


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
    found: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in range(BINS)])
    called = cache(lambda channels, serials: hydrophones(json.loads(channels), json.loads(serials or "[]")))
    for utc, values, of_unit, channels, serials in rows:
        place = min(BINS - 1, int((datetime.fromisoformat(utc) - asked.since) / size))
        for name, value in zip(called(channels, serials), json.loads(values)) if of_unit == unit else ():
            if value is not None:
                found[name][place].append(value)
    middles = [asked.since + size * (number + 0.5) for number in range(BINS)]
    return {
        name: [(middle, median(values) if values else None) for middle, values in zip(middles, bins)]
        for name, bins in sorted(found.items())
    }
