"""What the pages read from the database; every function takes a connection inside a transaction of a Reader."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ..store import COLUMNS, Detection, detection_of
from .filters import NOT_REVIEWED, Filter

PER_PAGE = 60

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """A part of the list that one index gives in order.

    Attributes
    ----------
    name : first letter of its keys.
    condition : which rows are in it.
    columns : whose values are a row's key.
    falls : whether it goes from high to low.
    """

    name: str
    condition: str
    columns: tuple[str, ...]
    falls: bool

    def ordered(self, back: bool) -> str:
        """For ORDER BY, where the list is read forward or back."""
        way = "DESC" if self.falls != back else "ASC"
        return ", ".join(f"{column} {way}" for column in self.columns)

    def beyond(self, back: bool) -> str:
        """The condition of lying behind a key, or before it."""
        sign = "<" if self.falls != back else ">"
        return f"({', '.join(self.columns)}) {sign} ({', '.join('?' * len(self.columns))})"


NEWEST = Part("n", "start_utc IS NOT NULL", ("start_utc", "id"), True)
OLDEST = Part("o", "start_utc IS NOT NULL", ("start_utc", "id"), False)
UNDATED = Part("u", "start_utc IS NULL", ("id",), False)
BEST = Part("s", "1", ("score", "id"), True)
PARTS = {"newest": (NEWEST, UNDATED), "oldest": (OLDEST, UNDATED), "score": (BEST,)}


@dataclass(frozen=True)
class Page:
    """Some rows of the list.

    Attributes
    ----------
    detections : in the list's order.
    before, after : keys to go on from, backward and forward; None where there is nothing more.
    """

    detections: Sequence[Detection]
    before: str | None
    after: str | None


def page(connection: sqlite3.Connection, wanted: Filter, key: str | None, back: bool, size: int = PER_PAGE) -> Page:
    """The rows behind a key, or those before it; the first ones where there is none.

    Rows are found by the key of the last one seen, so that a page deep in the list takes no longer than the first one,
    and rows that are added meanwhile neither repeat others nor push them out.
    """
    found = ids_from(connection, wanted, key, back, size + 1)
    more, found = len(found) > size, found[:size]
    rows = detections(connection, found[::-1] if back else found)
    if not rows:
        return Page(rows, None, None)
    first, last = key_of(rows[0], wanted), key_of(rows[-1], wanted)
    before = more if back else bool(key and ids_from(connection, wanted, first, True, 1))
    after = bool(ids_from(connection, wanted, last, False, 1)) if back else more
    return Page(rows, first if before else None, last if after else None)


@dataclass(frozen=True)
class Neighbours:
    """Where a detection stands in the list.

    Attributes
    ----------
    previous, next : numbers of the detections before and behind it; None at an end.
    next_unreviewed : the next one without a verdict.
    place : how many are before it, and one.
    count : how many are in the list.
    """

    previous: int | None
    next: int | None
    next_unreviewed: int | None
    place: int
    count: int


def neighbours(connection: sqlite3.Connection, id: int, wanted: Filter) -> Neighbours | None:
    """What is around a detection, which need not be in the list (any more) itself; None where there is no such one."""
    found = detection(connection, id)
    if found is None:
        return None
    key = key_of(found, wanted)
    unreviewed = replace(wanted, verdict=NOT_REVIEWED)
    ends = [ids_from(connection, *ask, 1) for ask in ((wanted, key, True), (wanted, key, False))]
    ends.append(ids_from(connection, unreviewed, key, False, 1) if wanted.verdict in (None, NOT_REVIEWED) else [])
    before, behind, waiting = (ids[0] if ids else None for ids in ends)
    return Neighbours(before, behind, waiting, count_before(connection, wanted, key) + 1, count(connection, wanted))


def key_of(detection: Detection, wanted: Filter) -> str:
    """Where a detection stands in the list."""
    if wanted.sort == "score":
        return f"s~{detection.score!r}~{detection.id}"
    if detection.start_utc is None:
        return f"u~{detection.id}"
    return f"{PARTS[wanted.sort][0].name}~{detection.start_utc.isoformat()}~{detection.id}"


def read_key(text: str | None, parts: Sequence[Part]) -> tuple[int, Key] | None:
    """The index of a part and the values in it; None where it is no key of this list."""
    name, *values = (text or "").split("~")
    with suppress(ValueError, OverflowError):
        for index, part in enumerate(parts):
            if name == part.name and len(values) == len(part.columns):
                number = int(values[-1])
                number.to_bytes(8, "big", signed=True)
                return index, (*(float(value) if part is BEST else value for value in values[:-1]), number)
    return None


def ids_from(connection: sqlite3.Connection, wanted: Filter, key: str | None, back: bool, limit: int) -> list[int]:
    """Numbers of the rows behind a key (before it, the nearest first, where `back`), at most so many."""
    parts = PARTS[wanted.sort]
    index, values = read_key(key, parts) or (None, ())
    found: list[int] = []
    for place in range(len(parts))[:: -1 if back else 1]:
        if index is None or (place <= index if back else place >= index):
            beyond = values if place == index else ()
            found += ids_of_part(connection, wanted, parts[place], beyond, back, limit - len(found))
    return found


def ids_of_part(
    connection: sqlite3.Connection, wanted: Filter, part: Part, values: Key, back: bool, limit: int
) -> list[int]:
    """As `ids_from`, of one part."""
    if limit <= 0 or (part.name in "no" and wanted.undated):
        return []
    query, given = part_query(wanted, part, values, back)
    return [row[0] for row in connection.execute(query, (*given, limit))]


def part_query(wanted: Filter, part: Part, values: Key, back: bool) -> tuple[str, list[Any]]:
    """The query for numbers, answered from an index alone, and all its values but the limit."""
    conditions, given = wanted.where()
    conditions = [part.condition, *conditions, *([part.beyond(back)] if values else [])]
    query = f"SELECT id FROM detections WHERE {' AND '.join(conditions)} ORDER BY {part.ordered(back)} LIMIT ?"
    return query, [*given, *values]


def count_before(connection: sqlite3.Connection, wanted: Filter, key: str) -> int:
    """How many of the list lie before a key."""
    index, values = read_key(key, PARTS[wanted.sort]) or (0, ())
    total = 0
    for place, part in enumerate(PARTS[wanted.sort][: index + 1]):
        conditions, given = wanted.where()
        conditions = [part.condition, *conditions, *([part.beyond(True)] if place == index else [])]
        query = f"SELECT count(*) FROM detections WHERE {' AND '.join(conditions)}"
        total += connection.execute(query, [*given, *(values if place == index else ())]).fetchone()[0]
    return total


def detections(connection: sqlite3.Connection, ids: Sequence[int]) -> list[Detection]:
    """These detections, in this order; what is gone is left out."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    marks = ", ".join("?" * len(ids))
    rows = cursor.execute(f"SELECT {COLUMNS} FROM detections WHERE id IN ({marks})", ids)
    found = {row["id"]: detection_of(row) for row in rows}
    return [found[id] for id in ids if id in found]


def detection(connection: sqlite3.Connection, id: int) -> Detection | None:
    """One detection; None where there is none of that number."""
    found = detections(connection, [id]) if 0 < id < 1 << 63 else []
    return found[0] if found else None


def count(connection: sqlite3.Connection, wanted: Filter) -> int:
    """How many there are."""
    conditions, given = wanted.where()
    query = f"SELECT count(*) FROM detections WHERE {' AND '.join(['1', *conditions])}"
    return int(connection.execute(query, given).fetchone()[0])


def days(connection: sqlite3.Connection, wanted: Filter, first: str, last: str) -> dict[str, int]:
    """How many there are on each UTC day between two, these included; a filter's own days do not count."""
    conditions, given = replace(wanted.on(None), since=first, until=last).where()
    query = (
        f"SELECT substr(start_utc, 1, 10), count(*) FROM detections WHERE {' AND '.join(conditions)} "
        "GROUP BY substr(start_utc, 1, 10)"
    )
    return dict(connection.execute(query, given).fetchall())


def last_day(connection: sqlite3.Connection, wanted: Filter, before: str | None = None) -> str | None:
    """The last day with any, before another one where that is given; a filter's own days do not count."""
    return _edge(connection, wanted, "max", "start_utc < ?", before)


def first_day(connection: sqlite3.Connection, wanted: Filter, after: str | None = None) -> str | None:
    """The first day with any, after another one where that is given; a filter's own days do not count."""
    return _edge(connection, wanted, "min", "start_utc >= ?", None if after is None else f"{after}U")


def _edge(connection: sqlite3.Connection, wanted: Filter, which: str, condition: str, value: str | None) -> str | None:
    conditions, given = wanted.on(None).where()
    conditions = ["start_utc IS NOT NULL", *conditions, *([] if value is None else [condition])]
    query = f"SELECT {which}(start_utc) FROM detections WHERE {' AND '.join(conditions)}"
    found = connection.execute(query, [*given, *([] if value is None else [value])]).fetchone()[0]
    return None if found is None else str(found)[:10]


@dataclass(frozen=True)
class Choices:
    """What can be chosen in the filter's form, from what there is."""

    stations: Sequence[str]
    bundles: Sequence[str]
    channels: Sequence[int]
    undated: int


def choices(connection: sqlite3.Connection) -> Choices:
    """Stations, bundles and channels of all sessions and of detections without one."""
    undated = connection.execute("SELECT count(*) FROM detections WHERE start_utc IS NULL").fetchone()[0]
    channels = "SELECT DISTINCT value FROM (SELECT DISTINCT channels AS list FROM sessions), json_each(list) ORDER BY 1"
    return Choices(
        _names(connection, "station"), _names(connection, "bundle"),
        [row[0] for row in connection.execute(channels)], undated,
    )  # fmt: skip


def _names(connection: sqlite3.Connection, column: str) -> list[str]:
    query = (
        f"SELECT {column} FROM sessions WHERE {column} <> '' UNION "
        f"SELECT {column} FROM detections WHERE session IS NULL AND {column} <> '' ORDER BY 1"
    )
    return [row[0] for row in connection.execute(query)]


def any_detections(connection: sqlite3.Connection) -> bool:
    """Whether there is any detection at all."""
    return connection.execute("SELECT 1 FROM detections LIMIT 1").fetchone() is not None


def utc_day(moment: datetime) -> str:
    """The UTC day of a moment."""
    return moment.astimezone(timezone.utc).date().isoformat()
