"""A database that is damaged is moved aside whole, and as much of it as can be read goes into a new one."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, Callable

from . import pages
from .durable import sync_folder
from .errors import InputError, OrcawatchError
from .schema import STEPS, migrate
from .store import DamagedError, Store, connected, look_through

log = logging.getLogger(__name__)

PARTS = ("", "-wal", "-shm")
NEW = ".recovering"
# A freed page still holds the rows that were deleted: of this table, messages would be sent again.
ONLY_BY_SQLITE = ("outbox",)
SMALL = ("budgets",)
# Rows of the ledger are replaced by others. So a page that is no longer in force may hold some that are gone: one that
# overlaps another of its session, or is a second one before its first sample, would count time twice.
LEDGER = "ledger"
FITS = {
    LEDGER: "NOT EXISTS (SELECT 1 FROM (SELECT end_sample FROM ledger WHERE session = ?2 AND start_sample < ?8 "
    "ORDER BY start_sample DESC LIMIT 1) WHERE end_sample > ?7) "
    "AND (?7 IS NOT NULL OR NOT EXISTS (SELECT 1 FROM ledger WHERE session = ?2 AND start_sample IS NULL))"
}
UNBROKEN = ("detections", "sessions", "levels", "clock", "verdicts")  # rows are never deleted
NUMBERED = ("detections", "sessions", "outbox", "verdicts", "scans", "scanned")  # never give a number twice
KINDS: Mapping[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (float, int), "TEXT": (str,), "BLOB": (bytes, str)}
SPARE_IDS = 1000  # numbers left out where some are lost, so that none is given twice
LISTS = ("channels", "channel_scores", "hydrophones", "levels_db", "peaks_db", "clipped")
TIMES = ("utc", "_utc")  # how names of columns with a time end
LARGEST = 1e11  # no time (in seconds), level, place or drift is as large
# What no row as a whole can be, though each column may hold its value: an expression for each table.
IMPOSSIBLE: Mapping[str, str] = {
    LEDGER: "start_steady_s IS NULL OR end_steady_s IS NULL OR start_steady_s > end_steady_s "
    "OR (start_sample IS NULL) <> (end_sample IS NULL) OR start_sample > end_sample OR start_sample < 0 "
    "OR kind NOT IN ('recorded', 'gap', 'off_duty', 'shed')",
    "sessions": "started_steady_s IS NULL OR rate_hz < 1",
}
ZONED = "*[+-][0-9][0-9]:[0-9][0-9]"  # how a time with a zone ends; earlier versions wrote others than UTC, too
FORM = f"[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]{ZONED}"
LENGTHS = "25, 32"  # of a time, without microseconds and with them
FIRST, END = "0002", "9999"  # years: outside, what is a day later is no time in Python
LOOSE = 3  # schemas before this one were written under rules that were less strict; its step sets the times right
STORED = {"INTEGER": ("integer",), "REAL": ("real", "integer"), "TEXT": ("text",), "BLOB": ("blob", "text")}
NONE = (1, 0)
SEQUENCES = (0, 10)  # numbers of the rows in which SQLite keeps the highest ones that were given
SETTLE_S = 0.2
TOLD = 20  # ranges of lost numbers that are listed


@dataclass(frozen=True)
class Table:
    """What rows of a table look like.

    Attributes
    ----------
    name : of the table.
    columns : their names; the first is the rowid.
    kinds : what each may hold.
    needed : whether each must hold something.
    counts : numbers of columns that it has had in one schema or another.
    """

    name: str
    columns: tuple[str, ...]
    kinds: tuple[tuple[type, ...], ...]
    needed: tuple[bool, ...]
    counts: frozenset[int]

    def takes(self, values: tuple[Any, ...]) -> bool:
        """Whether values (without the rowid) could be a row of this table."""
        return len(values) + 1 in self.counts and all(
            not needed if value is None else isinstance(value, kinds)
            for value, kinds, needed in zip(values, self.kinds[1:], self.needed[1:])
        )

    def is_named(self, there: Collection[str]) -> bool:
        """Whether these are the columns of one schema or another, and perhaps some of somebody's own."""
        ours = set(self.columns).intersection(there)
        return any(ours == set(self.columns[:count]) for count in self.counts)

    def of(self, there: Collection[str]) -> Table:
        """The same with those columns only that are there."""
        kept = [place for place, name in enumerate(self.columns) if name in there]
        return Table(
            self.name,
            tuple(self.columns[place] for place in kept),
            tuple(self.kinds[place] for place in kept),
            tuple(self.needed[place] for place in kept),
            frozenset({len(kept)}),
        )


def open_store(path: Path) -> Store:
    """The database, made where it is missing, and rescued where it is damaged.

    A damaged file is moved to `NAME.damaged-UTC` beside it, with its -wal and -shm; it is never changed. The table
    `recoveries` and the log tell what was found and what is lost. What a kill interrupts is begun again.

    Raises
    ------
    InputError, OrcawatchError : as for `orcawatch.store.Store`.
    """
    if Path(f"{path}{NEW}").exists():
        resume(path)
    fault = passed_over(path)
    if fault is not None:
        rescue(path, fault)
    return Store(path, rescue)


def passed_over(path: Path) -> str | None:
    """Damage that SQLite would pass over in silence, or None.

    Looked at twice: another process may be writing.
    """
    fault = _passed_over(path)
    if fault is None:
        return None
    time.sleep(SETTLE_S)
    return _passed_over(path)


def _passed_over(path: Path) -> str | None:
    size_b = path.stat().st_size if path.exists() else 0
    content = write_ahead_of(path)
    if len(content) <= pages.HEAD_B:
        if size_b and size_b % pages.size_of_pages(path):
            return "it is cut short"
    elif size_b == 0:
        return "it is empty, but has a write-ahead log"
    elif pages.write_ahead(content).broken:
        return "its write-ahead log is damaged"
    if size_b and (tables := strange_tables(path)):
        return f"its schema is damaged: {', '.join(tables)}"
    garbled = garbled_rows(path) if size_b else {}
    return f"rows cannot be read: {json.dumps(garbled)}" if garbled else None


def found_by_sqlite(path: Path) -> str | None:
    """Damage that SQLite finds where it is asked to look at every page, or None."""
    with suppress(InputError, sqlite3.Error), closing(connected(path, "mode=ro")) as connection:
        try:
            look_through(connection, path)
        except DamagedError as fault:
            return fault.fault
    return None


def strange_tables(path: Path) -> list[str]:
    """Tables without the columns of the file's version, though SQLite takes them; nothing as `garbled_rows`."""
    with suppress(sqlite3.Error), closing(connected(path, "mode=ro")) as connection:
        version = _version(connection)
        if 0 <= version <= len(STEPS):
            right = _schema(version)
            return [name for name in _schema(len(STEPS)) if _strange(_columns(connection, name), right.get(name))]
    return []


def _strange(there: Sequence[tuple[Any, ...]], right: Sequence[tuple[Any, ...]] | None) -> bool:
    """Whether columns are not the right ones; others beside them may be somebody's own."""
    if right is None:
        return bool(there)
    return not {column[1:] for column in right} <= {column[1:] for column in there}


@cache
def _schema(version: int) -> Mapping[str, list[tuple[Any, ...]]]:
    """The columns of each table of a version."""
    with closing(sqlite3.connect(":memory:")) as connection:
        migrate(connection, 0, STEPS[:version])
        return {name: _columns(connection, name) for name in _names(connection)}


def garbled_rows(path: Path) -> dict[str, int]:
    """How many rows of each table hold what their columns cannot: pages that are in order may hold anything.

    Nothing where SQLite cannot read the file; it says so itself when it is opened to be written to.
    """
    with suppress(sqlite3.Error), closing(connected(path, "mode=ro")) as connection:
        there = set(_names(connection))
        strict = _version(connection) >= LOOSE
        counts = {
            table.name: connection.execute(
                f"SELECT count(*) FROM {table.name} WHERE {garbled(connection, table, strict)}"
            ).fetchone()[0]
            for table in tables()
            if table.name in there
        }
        return {name: count for name, count in counts.items() if count}
    return {}


def garbled(connection: sqlite3.Connection, table: Table, strict: bool = True) -> str:
    """SQL that is true for a row of a table with a value of another kind, a time that is none, or a list that is none.

    What SQLite converts by itself (a whole number in a column of real ones) is right, so is all in columns that are
    somebody's own.

    Parameters
    ----------
    connection : to the file.
    table : one of `tables`.
    strict : whether to demand what holds from schema `LOOSE` on.
    """
    columns = ((name, kind, bool(needed)) for _, name, kind, needed, *_ in _columns(connection, table.name))
    return _garbled(table.name, tuple(column for column in columns if column[0] in table.columns), strict)


@cache
def _garbled(table: str, columns: tuple[tuple[str, str, bool], ...], strict: bool) -> str:
    found = [
        f"(+{name} IS NOT NULL AND ({wrong(name, kind, strict)}))" + (f" OR +{name} IS NULL" if needed else "")
        for name, kind, needed in columns
        if kind in STORED
    ]
    return " OR ".join([*found, IMPOSSIBLE.get(table, "0") if strict else "0"])


def wrong(name: str, kind: str, strict: bool) -> str:
    """SQL that is true for a value, not NULL, that a column of some name and kind cannot hold; as `garbled`."""
    stored = ", ".join(f"'{one}'" for one in STORED[kind])
    found = f"typeof(+{name}) NOT IN ({stored})"
    if name in LISTS:
        return f"{found} OR NOT json_valid({name}) OR json_type({name}) <> 'array'"
    if name == "numbers":
        return f"{found} OR NOT json_valid({name}) OR json_type({name}) <> 'object'"
    if name.endswith(TIMES):
        return f"{found} OR {no_time(name)}" + (f" OR {no_stamp(name)}" if strict else "")
    return f"{found} OR {name} NOT BETWEEN {-LARGEST} AND {LARGEST}" if strict and kind == "REAL" else found


def no_time(name: str) -> str:
    """SQL that is true for a text that is no time; SQLite takes a 30th of February, and an hour 24."""
    day = f"strftime('%d', julianday(substr({name}, 1, 10))) <> substr({name}, 9, 2)"
    return f"julianday({name}) IS NULL OR {day} OR substr({name}, 12, 2) > '23'"


def no_stamp(name: str) -> str:
    """SQL that is true for a time that this version neither writes nor reads; SQLite takes one without a zone."""
    form = f"{name} NOT GLOB '{FORM}' OR length(CAST({name} AS BLOB)) NOT IN ({LENGTHS})"
    return f"{form} OR {name} < '{FIRST}' OR {name} >= '{END}'"


def write_ahead_of(path: Path) -> bytes:
    """The bytes of a database's write-ahead log; none where it is missing, or the disk refuses."""
    with suppress(OSError):
        return Path(f"{path}-wal").read_bytes()
    return b""


def rescue(path: Path, fault: str) -> None:
    """Move a damaged database aside and put a new one in its place, with the rows that can be read.

    Parameters
    ----------
    path : the database.
    fault : what is wrong with it.

    Raises
    ------
    OrcawatchError : the disk refuses.
    """
    try:
        Path(f"{path}{NEW}").touch()
        sync_folder(path.parent)
        aside = free_name(path)
        log.error("%s is damaged (%s): it is moved to %s, its rows are read into a new one", path, fault, aside.name)
        move(path, aside)
        rebuild(path, aside, fault)
    except OSError as refusal:
        raise OrcawatchError(f"{path} is damaged and could not be moved aside: {refusal}; see to the disk") from refusal


def resume(path: Path) -> None:
    """Go on with a rescue that was interrupted."""
    asides = sorted(path.parent.glob(f"{path.name}.damaged-*Z"))
    try:
        if path.exists() or not asides:
            discard(path)
            return
        log.warning("the rescue of %s was interrupted and is begun again", asides[-1])
        move(path, asides[-1])
        rebuild(path, asides[-1], "a rescue was interrupted")
    except OSError as refusal:
        raise OrcawatchError(f"the rescue of {path} cannot go on: {refusal}; see to the disk") from refusal


def free_name(path: Path) -> Path:
    """Where a damaged database goes."""
    while True:
        aside = path.with_name(f"{path.name}.damaged-{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}")
        if not aside.exists():
            return aside


def move(path: Path, aside: Path) -> None:
    """Rename a database and what belongs to it; parts that were moved before stay where they are."""
    for part in PARTS:
        source, target = Path(f"{path}{part}"), Path(f"{aside}{part}")
        if source.exists() and not target.exists():
            source.replace(target)
    sync_folder(path.parent)


def discard(path: Path) -> None:
    """Remove what an interrupted rescue left."""
    for part in ("", "-journal"):
        Path(f"{path}{NEW}{part}").unlink(missing_ok=True)


def rebuild(path: Path, aside: Path, fault: str) -> None:
    """A new database with the rows of the old one; an empty one where there is no room for them."""
    try:
        account = fill(path, aside, fault)
    except (sqlite3.Error, OSError) as refusal:
        log.error("the rows in %s cannot be read into a new database: %s; they stay there", aside.name, refusal)
        account = fill(path, None, f"{fault}; {aside.name} was not read: {refusal}")
    Path(f"{path}{NEW}").replace(path)
    sync_folder(path.parent)
    log.error("%s: %s", path, account)


def fill(path: Path, aside: Path | None, fault: str) -> str:
    """Make the new database under its provisional name; the account in words."""
    discard(path)
    with closing(sqlite3.connect(f"{path}{NEW}", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN")
        migrate(connection, 0, STEPS)
        known = tables()
        highest: Counter[str] = Counter() if aside is None else copy_rows(connection, aside, known)
        highest |= Counter(detections=highest_named(path.parent))
        account = settle(connection, known, highest)
        _tell(connection, fault, "" if aside is None else aside.name, account)
        connection.execute("COMMIT")
    return f"rescued {json.dumps(account[0])}, lost {json.dumps(account[1])}"


def _tell(
    connection: sqlite3.Connection, fault: str, moved_to: str, account: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    recovered, lost = (json.dumps(part) for part in account)
    row = (datetime.now(timezone.utc).isoformat(), fault, moved_to, recovered, lost)
    connection.execute("INSERT INTO recoveries (utc, fault, moved_to, recovered, lost) VALUES (?, ?, ?, ?, ?)", row)


@cache
def tables() -> tuple[Table, ...]:
    """Every table of this version that is worth a rescue; their rows have numbers."""
    with closing(sqlite3.connect(":memory:")) as connection:
        counts: dict[str, set[int]] = {}
        for step in range(len(STEPS)):
            migrate(connection, step, STEPS[: step + 1])
            for name in _names(connection):
                counts.setdefault(name, set()).add(len(_columns(connection, name)))
        return tuple(_table(connection, name, frozenset(counts[name])) for name in counts if name not in SMALL)


def _names(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    return [name for (name,) in connection.execute(query)]


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _columns(connection: sqlite3.Connection, name: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"PRAGMA table_info({name})").fetchall()


def _table(connection: sqlite3.Connection, name: str, counts: frozenset[int]) -> Table:
    columns = _columns(connection, name)
    return Table(
        name,
        tuple(column[1] for column in columns),
        tuple(KINDS[column[2]] for column in columns),
        tuple(bool(column[3]) for column in columns),
        counts,
    )


def copy_rows(connection: sqlite3.Connection, aside: Path, known: Sequence[Table]) -> Counter[str]:
    """Insert every row that can be read, the newest state of it first; the highest number that each table gave.

    First what the write-ahead log holds, then what SQLite reads, then from the raw pages what SQLite did not reach.
    Where names of columns are damaged, SQLite comes last: in the raw pages there are no names.
    """
    found = pages.write_ahead(write_ahead_of(aside))
    page_b = len(found.frames[0].page) if found.frames else pages.size_of_pages(aside)
    read = pages.page_reader(aside, page_b)
    newest = {frame.number: frame.page for frame in reversed(list(found.pages()))}
    both = lambda number: newest.get(number) or read(number)  # noqa: E731
    of_raw = [table for table in known if table.name not in ONLY_BY_SQLITE]
    logged = [(frame.number, frame.page) for frame in found.pages()]
    ledger = [table for table in known if table.name == LEDGER]
    first = of_raw if found.broken else [table for table in of_raw if table.name != LEDGER]
    highest = insert_raw(connection, logged, both, first, [pages.EVERYTHING])
    if logged:
        weed(connection, known)
    holes = copy_by_sqlite(connection, aside, known)
    if holes[LEDGER] != NONE:
        insert_raw(connection, logged, both, ledger, [pages.EVERYTHING])
    weed(connection, known)
    there = pages.pages_of(aside, page_b)
    highest |= insert_raw(connection, there, both, of_raw, [SEQUENCES, *(holes[table.name] for table in of_raw)])
    weed(connection, known)
    copy_by_sqlite(connection, aside, known, misnamed=True)
    weed(connection, known)
    return highest


def weed(connection: sqlite3.Connection, known: Iterable[Table]) -> None:
    """Take garbled rows out, so that an older state of them may come in, and what does not fit them.

    Schemas before the third had detections in other zones; as its step does, these are told in UTC.
    """
    connection.execute(
        "UPDATE detections SET start_utc = strftime('%Y-%m-%dT%H:%M:%f', start_utc) || '000+00:00' "
        f"WHERE start_utc NOT LIKE '%+00:00' AND start_utc GLOB '{ZONED}' AND NOT ({no_time('start_utc')})"
    )
    for table in known:
        connection.execute(f"DELETE FROM {table.name} WHERE {garbled(connection, table)}")


def insert_raw(
    connection: sqlite3.Connection,
    content: Iterable[tuple[int, bytes]],
    read: Callable[[int], bytes],
    known: Iterable[Table],
    wanted: Collection[tuple[int, int]],
) -> Counter[str]:
    """Rows of raw pages; those that are there already stay. Returns the highest number that each table gave.

    Parameters
    ----------
    connection : to the new database.
    content : number and bytes of each page.
    read : as for `orcawatch.pages.rows_of`.
    known : tables whose rows are taken.
    wanted : ranges of numbers; pages whose rows lie outside all of them are passed over.
    """
    highest: Counter[str] = Counter()
    for number, page in content:
        first, last = pages.span(number, page)
        if not any(low <= last and first <= high for low, high in wanted):
            continue
        for rowid, values in pages.rows_of(number, page, read):
            if is_sequence(values):
                highest |= Counter({values[0]: values[1]})
            for table in known:
                if rowid > 0 and values[:1] == (None,) and table.takes(values[1:]):
                    insert(connection, table, table.columns[: len(values)], [(rowid, *values[1:])])
    return highest


def is_sequence(values: tuple[Any, ...]) -> bool:
    """Whether a row tells the highest number that a table gave (SQLite keeps these in a table of its own)."""
    return len(values) == 2 and values[0] in NUMBERED and isinstance(values[1], int)


def insert(
    connection: sqlite3.Connection, table: Table, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    """Insert rows, but for those whose number is there already, and those that do not fit the others."""
    marks = ", ".join(f"?{place}" for place in range(1, len(columns) + 1))
    query = (
        f"INSERT OR IGNORE INTO {table.name} ({', '.join(columns)}) SELECT {marks} WHERE {FITS.get(table.name, '1')}"
    )
    connection.executemany(query, rows)


def copy_by_sqlite(
    connection: sqlite3.Connection, aside: Path, known: Iterable[Table], misnamed: bool = False
) -> Mapping[str, tuple[int, int]]:
    """What SQLite can read of each table, from both ends up to a damaged page; the numbers between, by table.

    Only tables whose columns have the right names, or only the others. SQLite deletes the write-ahead log of an empty
    file, even where it is to read only.
    """
    holes = {table.name: pages.EVERYTHING for table in known}
    if aside.stat().st_size == 0:
        return holes
    with suppress(sqlite3.Error), closing(connected(aside, "mode=ro")) as old:  # the raw pages are read after this
        for table in known:
            there = [column[1] for column in _columns(old, table.name)]
            if misnamed is not (table.name in ONLY_BY_SQLITE or table.is_named(there)):
                holes[table.name] = _copy_table(connection, old, table.of(there))
    return holes


def _copy_table(connection: sqlite3.Connection, old: sqlite3.Connection, table: Table) -> tuple[int, int]:
    ends = []
    for order in ("ASC", "DESC"):
        run = Run(old, table, order)
        insert(connection, table, table.columns, run.rows())
        if run.whole:
            return NONE
        ends.append(run.last)
    low, high = pages.EVERYTHING
    return low if ends[0] is None else ends[0], high if ends[1] is None else ends[1]


class Run:
    """Rows of a table in order of their numbers, until SQLite finds the file damaged or goes in circles.

    Parameters
    ----------
    old : the damaged database.
    table : with the columns to read.
    order : `ASC` or `DESC`.

    Attributes
    ----------
    last : number of the last row that could be read.
    whole : whether the end of the table was reached.
    """

    def __init__(self, old: sqlite3.Connection, table: Table, order: str) -> None:
        self.last: int | None = None
        self.whole = False
        self._old = old
        self._table = table
        self._query = f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY id {order}"
        self._sign = 1 if order == "ASC" else -1

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows; those that cannot be of this table are left out."""
        with suppress(sqlite3.Error):
            for row in self._old.execute(self._query):
                if self.last is not None and (row[0] - self.last) * self._sign <= 0:
                    return
                self.last = row[0]
                if self._table.takes(row[1:]):
                    yield row
            self.whole = self.last is not None or not self._there()

    def _there(self) -> bool:
        """Whether the table has rows, as far as an index tells; an empty one may be one whose root is damaged."""
        return bool(self._old.execute(f"SELECT count(*) FROM {self._table.name}").fetchone()[0])


def highest_named(output: Path) -> int:
    """The highest number of a detection in the name of a file that was made of it."""
    names = (
        re.match(r"(\d{6,})_", file.name) for folder in ("clips", "snapshots") for file in output.glob(f"{folder}/*")
    )
    return max((int(name[1]) for name in names if name), default=0)


def settle(
    connection: sqlite3.Connection, known: Iterable[Table], highest: Counter[str]
) -> tuple[Mapping[str, int], Mapping[str, str]]:
    """See to it that no number is given again; (rows by table, lost numbers by table)."""
    rows: dict[str, int] = {}
    lost: dict[str, str] = {}
    for table in known:
        ids = [id for (id,) in connection.execute(f"SELECT id FROM {table.name} ORDER BY id")]
        rows[table.name] = len(ids)
        last = max([highest[table.name], *ids[-1:]])
        if table.name in UNBROKEN and (holes := list(missing(ids, last))):
            lost[table.name] = ", ".join(holes[:TOLD]) + (", ..." if len(holes) > TOLD else "")
        if last:
            _start_ids(connection, table.name, last + SPARE_IDS)
    return rows, lost


def _start_ids(connection: sqlite3.Connection, name: str, last: int) -> None:
    """Let the next number of a table that never gives one twice come after `last`."""
    if name in NUMBERED:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, last))


def missing(ids: Iterable[int], last: int) -> Iterator[str]:
    """Ranges of numbers from 1 to `last` that are not in `ids` (in order)."""
    expected = 1
    for id in [*ids, last + 1]:
        if id > expected:
            yield f"{expected}" if id == expected + 1 else f"{expected} to {id - 1}"
        expected = id + 1
