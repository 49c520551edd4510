"""The sample ledger: every second of a deployment was recorded, a gap, off duty or shed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Protocol

from ._version import __version__
from .clock import EPOCH, Timekeeper
from .errors import OrcawatchError
from .records import ClockChange, Missing
from .store import Store

RECORDED = "recorded"
GAP = "gap"
NOT_RUNNING = "not running"
BEHIND = "not running; the clock was behind the last entry, so the length is not known"
UNREPORTED = "samples missing, no cause reported"
SUMMED = " (summed)"  # added to the cause of rows that stand for several stretches whose order was not kept
OTHERS = "other causes"

PERIOD_S = 3600.0
ROWS_A_PERIOD = 60  # more stretches than this in a period are summed
CAUSES = 12  # distinct kinds, causes and steps that summing keeps apart
CHANGES_A_PERIOD = 60
LONGEST_S = 86400.0  # longer stretches begin a new row, so that drift inside a row stays small
LEAST_S = 5.0  # between two writes
UNWRITTEN = 1000  # rows that are kept in memory while the disk refuses


@dataclass(frozen=True)
class Stretch:
    """A stretch of one kind, cause and step: a row of the ledger.

    Attributes
    ----------
    kind : `recorded`, `gap`, `off_duty` or `shed`.
    cause : why it was not recorded; empty where it was.
    step, step_name : of the overload ladder; 0 is full effort.
    start_sample, end_sample : positions in the session; None where no session ran.
    start_utc, end_utc : what the system clock said, or the right time where it was synchronised later; None where
        nothing is known of the time.
    start_steady_s, end_steady_s : seconds since the machine's start, in suspend too; in files since the file's start.
    synchronised : whether the clock was synchronised; None where that cannot be told.
    """

    kind: str
    cause: str
    step: int
    step_name: str
    start_sample: int | None
    end_sample: int | None
    start_utc: datetime | None
    end_utc: datetime | None
    start_steady_s: float
    end_steady_s: float
    synchronised: bool | None

    @property
    def duration_s(self) -> float:
        """Length by the steady clock, seconds."""
        return self.end_steady_s - self.start_steady_s

    @property
    def sort(self) -> tuple[str, str, int, str]:
        """What neighbours must have in common to be one row."""
        return self.kind, self.cause, self.step, self.step_name


COLUMNS = (
    "kind, cause, step, step_name, start_sample, end_sample, start_utc, end_utc, start_steady_s, end_steady_s, "
    "synchronised"
)


@dataclass(frozen=True)
class Session:
    """One run with one source.

    Attributes
    ----------
    source : name of the stream.
    live : whether it comes from a device; only these account for the time between runs.
    rate_hz : samples per second.
    channels : the source's channels that are used.
    hydrophones : serial number of the hydrophone on each; empty where not known.
    station, bundle, bundle_digest : as in a detection.
    latitude_deg, longitude_deg : of the station, degrees north and east (WGS 84); None where not known.
    """

    source: str
    live: bool
    rate_hz: int
    channels: tuple[int, ...]
    hydrophones: tuple[str, ...] = ()
    station: str = ""
    bundle: str = ""
    bundle_digest: str = ""
    latitude_deg: float | None = None
    longitude_deg: float | None = None


class Timeline(Protocol):
    """Where a stream is in time; a `SampleClock`, or `FileTime`."""

    @property
    def synchronised(self) -> bool | None: ...
    @property
    def drift_ppm(self) -> float | None: ...

    def steady_at(self, sample: int) -> float:
        """Moment of a position, seconds of the steady clock."""
        ...

    def utc_at(self, sample: int) -> datetime | None:
        """UTC of a position; None where it is not known."""
        ...


@dataclass(frozen=True)
class FileTime:
    """The time of a file: its own, from 0.

    Attributes
    ----------
    rate_hz : samples per second.
    utc : UTC of a position, as the source says.
    """

    rate_hz: int
    utc: Callable[[int], datetime | None]
    synchronised: bool | None = None
    drift_ppm: float | None = None

    def steady_at(self, sample: int) -> float:
        """Seconds since the file's start."""
        return sample / self.rate_hz

    def utc_at(self, sample: int) -> datetime | None:
        """UTC of a position; None where it is not known."""
        return self.utc(sample)


class Ledger:
    """Writes down what became of every sample of a session, and of the time before it.

    Rows tile the session: each starts where the one before ended, in samples and on the steady clock. What is not yet
    written is lost with the power; the next start enters that time as not running. Nothing here raises because of the
    disk (the store says what is wrong): what cannot be written stays in memory, and is written when the disk is back.

    Not locked: use it from one thread.

    Parameters
    ----------
    store : where to.
    session : what runs.
    timeline : where its samples are in time.
    clocks : the machine's.
    checkpoint_s : how often the open stretch is written, seconds.
    """

    def __init__(
        self, store: Store, session: Session, timeline: Timeline, clocks: Timekeeper, checkpoint_s: float = 30.0
    ) -> None:
        self._store = store
        self._session = session
        self._timeline = timeline
        self._clocks = clocks
        self._checkpoint_s = checkpoint_s
        self._opening = Opening.now(session, timeline, clocks)
        self._id: int | None = None
        self._tried: Opening | None = None  # as in a session's row that may be there without being known
        self._end = 0
        self._step = (0, "")
        self._synchronised = timeline.synchronised
        self._settled = False  # whether the time before this session is written
        self._begun = False  # whether anything was heard: only then the moment of position 0 is known
        self._rows: list[Stretch] = []  # the closed ones of this period, and all that are not written
        self._written = 0  # how many of them are
        self._open: Stretch | None = None
        self._changes: list[tuple[ClockChange, float | None]] = []  # with the drift; not written
        self._journal = Budget(CHANGES_A_PERIOD, PERIOD_S)
        self._offset_s: float | None = None  # UTC less steady time, where rows are to be corrected by it
        self._wrote_s = clocks.steady_s()
        self._hasty = False  # whether something changed since the last write
        if session.live and self._synchronised:
            self._offset_s = self._opening.offset_s
        self.checkpoint()

    @property
    def session(self) -> int | None:
        """Number of the session's row; None while the disk has refused to take it."""
        return self._id

    @property
    def synchronised(self) -> bool | None:
        """Whether the clock is synchronised, as of what was heard last."""
        return self._synchronised

    def recorded(self, start_sample: int, end_sample: int) -> None:
        """Audio was heard."""
        self._enter(RECORDED, "", start_sample, end_sample)

    def missing(self, missing: Missing) -> None:
        """There is no audio, or nobody listens to it."""
        self._enter(missing.kind, missing.cause, missing.start_sample, missing.end_sample)

    def step(self, step: int, name: str) -> None:
        """The overload ladder is at another step from here on; 0 is full effort."""
        self._step = (step, name) if step else (0, "")

    def clock_changed(self, change: ClockChange) -> None:
        """The system clock was stepped or (un)synchronised: from here on it counts."""
        self._close(change.jump_s)
        self._note(change)
        if change.synchronised and not change.was_synchronised and self._session.live:
            self._correct(seconds(change.utc) - self._timeline.steady_at(change.sample))
        self._synchronised = change.synchronised
        self._hasty = True
        if self._journal.allows(len(self._changes), self._clocks.steady_s()) and self.checkpoint():
            self._forget()

    def extend(self, connection: sqlite3.Connection) -> None:
        """Write everything up to now inside somebody's transaction."""
        self._put(connection)

    def checkpoint(self) -> bool:
        """Write everything up to now; whether that worked. Called by itself every `checkpoint_s`."""
        self._wrote_s = self._clocks.steady_s()
        changes = self._changes if self._journal.allows(len(self._changes), self._wrote_s) else []
        try:
            with self._store.transaction() as connection:
                number = self._put(connection)
                put_changes(connection, number, changes)
                if self._offset_s is not None:
                    correct(connection, number, self._opening.boot, self._offset_s)
        except OrcawatchError:  # the store has said so, and says when it is over
            self._tried = self._tried or self._opening
            return False
        self._journal.spend(len(changes))
        self._id, self._hasty, self._offset_s, self._written = number, False, None, len(self._rows)
        self._settled = self._begun
        del self._changes[: len(changes)]
        return True

    def close(self) -> None:
        """Write everything, and that the session ended as it should."""
        self._close()
        self._opening = replace(self._opening, ended_utc=self._timeline.utc_at(self._end))
        self.checkpoint()

    def _enter(self, kind: str, cause: str, start: int, end: int) -> None:
        if start > self._end:
            self._append(GAP, UNREPORTED, start)
        if end > self._end:
            self._append(kind, cause, end)
        self._write_if_due()

    def _append(self, kind: str, cause: str, end: int) -> None:
        """What lies between the last end and this one is of one kind."""
        if not self._begun:
            self._opening = Opening.now(self._session, self._timeline, self._clocks)
        step, name = self._step if kind == RECORDED else (0, "")
        row = self._open
        if row is None or row.sort != (kind, cause, step, name) or self._is_long(row):
            self._close()
            self._open = self._starting(kind, cause, step, name)
            self._hasty = self._begun = True
        self._end = end

    def _is_long(self, row: Stretch) -> bool:
        return self._end - (row.start_sample or 0) >= LONGEST_S * self._session.rate_hz

    def _starting(self, kind: str, cause: str, step: int, name: str) -> Stretch:
        """A stretch that begins where the last one ended."""
        at = self._end
        start_s = self._rows[-1].end_steady_s if self._rows else self._opening.first_s
        utc = self._timeline.utc_at(at)
        return Stretch(kind, cause, step, name, at, at, utc, utc, start_s, start_s, self._synchronised)

    def _ended(self, row: Stretch, jump_s: float = 0.0) -> Stretch:
        """The open stretch up to what was heard last; `jump_s` is what the clock has done since."""
        end_s = max(row.start_steady_s, self._timeline.steady_at(self._end))
        utc = self._timeline.utc_at(self._end)
        utc = None if utc is None else utc - timedelta(seconds=jump_s)
        return replace(row, end_sample=self._end, end_steady_s=end_s, end_utc=utc)

    def _close(self, jump_s: float = 0.0) -> None:
        if self._open is None:
            return
        self._rows.append(self._ended(self._open, jump_s))
        self._open = None
        over = self._rows[-1].end_steady_s - self._rows[0].start_steady_s > PERIOD_S
        if over and self._written == len(self._rows) - 1:
            self._forget()
        elif len(self._rows) > (UNWRITTEN if over else ROWS_A_PERIOD):
            self._rows, self._written = summed(self._rows), 0

    def _forget(self) -> None:
        """Begin a new period: rows that are written stay as they are; the last tells where the next one starts."""
        done = min(self._written, max(0, len(self._rows) - 1))
        del self._rows[:done]
        self._written -= done

    def _note(self, change: ClockChange) -> None:
        """Put a change into the journal, or into the one before where there are too many."""
        if self._changes and not self._journal.allows(len(self._changes) + 1, self._clocks.steady_s()):
            last, _ = self._changes.pop()
            change = replace(change, jump_s=last.jump_s + change.jump_s, was_synchronised=last.was_synchronised)
        self._changes.append((change, self._timeline.drift_ppm))

    def _correct(self, offset_s: float) -> None:
        """Give the right UTC to everything of this boot that was written while the clock was wrong."""
        self._offset_s = offset_s
        self._rows = [corrected(row, offset_s) for row in self._rows]
        if not self._opening.synchronised:
            utc = moment(self._opening.steady_s + offset_s)
            self._opening = replace(self._opening, utc=utc, synchronised=True)

    def _write_if_due(self) -> None:
        since_s = self._clocks.steady_s() - self._wrote_s
        if since_s >= self._checkpoint_s or (self._hasty and since_s >= LEAST_S):
            self.checkpoint()

    def _put(self, connection: sqlite3.Connection) -> int:
        """Write session and rows; the same again does no harm. Returns the session's number."""
        number = self._id or (found_session(connection, self._tried, self._opening) if self._tried else None)
        number = put_session(connection, number, self._session, self._opening)
        if self._session.live and not self._settled:
            put_idle(connection, number, self._opening)
        rows = self._rows[self._written :]
        put_rows(connection, number, rows if self._open is None else [*rows, self._ended(self._open)])
        return number


@dataclass(frozen=True)
class Opening:
    """When a session began, and ended.

    Attributes
    ----------
    boot : the machine's start; empty where unknown.
    steady_s : seconds since then; those of its first sample where it is live.
    first_s : `start_steady_s` of the session's first row.
    utc : by the system clock, or by the file.
    synchronised : whether the clock was.
    ended_utc : None until the session ended as it should.
    """

    boot: str
    steady_s: float
    first_s: float
    utc: datetime | None
    synchronised: bool | None
    ended_utc: datetime | None = None

    @classmethod
    def now(cls, session: Session, timeline: Timeline, clocks: Timekeeper) -> Opening:
        """A session that begins."""
        first_s = timeline.steady_at(0)
        steady_s = first_s if session.live else clocks.steady_s()
        return cls(clocks.boot, steady_s, first_s, timeline.utc_at(0), timeline.synchronised)

    @property
    def offset_s(self) -> float | None:
        """UTC less steady time."""
        return None if self.utc is None else seconds(self.utc) - self.steady_s


class Budget:
    """So many of something in each period.

    Parameters
    ----------
    most : how many.
    period_s : how long a period is, seconds.
    """

    def __init__(self, most: int, period_s: float) -> None:
        self._most = most
        self._period_s = period_s
        self._since_s = float("-inf")
        self._spent = 0

    def allows(self, number: int, now_s: float) -> bool:
        """Whether there is room for so many more."""
        if now_s - self._since_s >= self._period_s:
            self._since_s, self._spent = now_s, 0
        return self._spent + number <= self._most

    def spend(self, number: int) -> None:
        """So many were used."""
        self._spent += number


Sort = tuple[str, str, int, str]


def summed(rows: Sequence[Stretch]) -> list[Stretch]:
    """Neighbouring rows as one row for each kind, cause and step: totals are kept, to the sample; the order is not."""
    groups: dict[Sort, list[Stretch]] = {}
    for row in rows:
        key: Sort = (row.kind, plain(row.cause), row.step, row.step_name)
        if key not in groups and len(groups) >= CAUSES:
            key = (row.kind, OTHERS, 0, "")
        groups.setdefault(key, []).append(row)
    return list(_in_line(groups, rows[0]))


def _in_line(groups: Mapping[Sort, Sequence[Stretch]], first: Stretch) -> Iterator[Stretch]:
    """One row for each group, the next starting where the last one ended."""
    sample, steady_s = first.start_sample or 0, first.start_steady_s
    for (kind, cause, step, name), members in groups.items():
        end = sample + sum((row.end_sample or 0) - (row.start_sample or 0) for row in members)
        end_s = steady_s + sum(row.duration_s for row in members)
        yield Stretch(
            kind, f"{cause}{SUMMED}", step, name, sample, end, _after(first, steady_s), _after(first, end_s),
            steady_s, end_s, _all_synchronised(members),
        )  # fmt: skip
        sample, steady_s = end, end_s


def _after(row: Stretch, steady_s: float) -> datetime | None:
    """UTC at a moment after a row's start."""
    return None if row.start_utc is None else row.start_utc + timedelta(seconds=steady_s - row.start_steady_s)


def _all_synchronised(rows: Iterable[Stretch]) -> bool | None:
    states = {row.synchronised for row in rows}
    return False if False in states else None if None in states else True


def plain(cause: str) -> str:
    """A cause without the mark of summing."""
    return cause[: -len(SUMMED)] if cause.endswith(SUMMED) else cause


def corrected(row: Stretch, offset_s: float) -> Stretch:
    """The row with the right UTC, if it was written while the clock was wrong."""
    if row.synchronised:
        return row
    start, end = moment(row.start_steady_s + offset_s), moment(row.end_steady_s + offset_s)
    return replace(row, start_utc=start, end_utc=end, synchronised=True)


def seconds(utc: datetime) -> float:
    """Seconds since 1970."""
    return (utc - EPOCH).total_seconds()


def moment(unix_s: float) -> datetime:
    """UTC of seconds since 1970."""
    return EPOCH + timedelta(seconds=unix_s)


def utc_text(utc: datetime | None) -> str | None:
    """As it stands in the database."""
    return None if utc is None else utc.astimezone(timezone.utc).isoformat()


def utc_of(text: str | None) -> datetime | None:
    """From how it stands in the database."""
    return None if text is None else datetime.fromisoformat(text)


def truth(value: int | None) -> bool | None:
    """From how it stands in the database."""
    return None if value is None else bool(value)


def found_session(connection: sqlite3.Connection, tried: Opening, opening: Opening) -> int | None:
    """Number of a session that may be there, as it was when it was first tried or as it is now."""
    query = "SELECT id FROM sessions WHERE boot IS ? AND started_steady_s IN (?, ?) ORDER BY id DESC LIMIT 1"
    found = connection.execute(query, (opening.boot or None, tried.steady_s, opening.steady_s)).fetchone()
    return None if found is None else int(found[0])


def put_session(connection: sqlite3.Connection, number: int | None, session: Session, opening: Opening) -> int:
    """Write a session's row; returns its number."""
    columns = (
        "id, source, live, rate_hz, channels, hydrophones, station, boot, bundle, bundle_digest, version, started_utc, "
        "started_steady_s, ended_utc, latitude_deg, longitude_deg"
    )
    row = (
        number, session.source, session.live, session.rate_hz, json.dumps(session.channels),
        json.dumps(session.hydrophones), session.station, opening.boot or None, session.bundle,
        session.bundle_digest, __version__, utc_text(opening.utc), opening.steady_s, utc_text(opening.ended_utc),
        session.latitude_deg, session.longitude_deg,
    )  # fmt: skip
    added = connection.execute(
        f"INSERT INTO sessions ({columns}) VALUES ({marks(len(row))}) "
        "ON CONFLICT (id) DO UPDATE SET started_utc = excluded.started_utc, "
        "started_steady_s = excluded.started_steady_s, ended_utc = excluded.ended_utc "
        "WHERE (started_utc, started_steady_s, ended_utc) "
        "IS NOT (excluded.started_utc, excluded.started_steady_s, excluded.ended_utc)",
        row,
    )
    return int(added.lastrowid or 0) if number is None else number


def put_idle(connection: sqlite3.Connection, session: int, opening: Opening) -> None:
    """Enter the time since the last live session as not running."""
    connection.execute("DELETE FROM ledger WHERE session = ? AND start_sample IS NULL", (session,))
    insert(connection, session, idle(last_entry(connection, session), opening))


def marks(number: int) -> str:
    """Places for values in a statement."""
    return ", ".join("?" * number)


@dataclass(frozen=True)
class Entry:
    """The end of a live row.

    Attributes
    ----------
    boot : the machine's start; empty where unknown.
    steady_s, utc, synchronised : the row's end.
    """

    boot: str
    steady_s: float
    utc: datetime | None
    synchronised: bool | None


def last_entry(connection: sqlite3.Connection, before: int) -> Entry | None:
    """The end of the last live session with rows before session `before`."""
    query = (
        "SELECT boot, end_steady_s, end_utc, synchronised FROM ledger JOIN sessions ON sessions.id = session "
        "WHERE session = (SELECT max(id) FROM sessions WHERE live = 1 AND id < ? "
        "AND EXISTS (SELECT 1 FROM ledger WHERE session = sessions.id)) ORDER BY start_sample DESC LIMIT 1"
    )
    found = connection.execute(query, (before,)).fetchone()
    if found is None:
        return None
    boot, steady_s, utc, synchronised = found
    return Entry(boot or "", steady_s, utc_of(utc), truth(synchronised))


def idle(last: Entry | None, opening: Opening) -> list[Stretch]:
    """The row of the time since the last entry, if there is one.

    Within one start of the machine the steady clock tells its length, otherwise UTC. Nobody looked at the system clock
    meanwhile: within one start its time at the end counts.
    """
    if last is None:
        return []
    end_s, utc = opening.first_s, opening.utc
    sure = bool(last.synchronised and opening.synchronised)
    if last.boot and last.boot == opening.boot:
        start_s = min(last.steady_s, end_s)
        start_utc = None if utc is None else utc - timedelta(seconds=end_s - start_s)
        return [Stretch(GAP, NOT_RUNNING, 0, "", None, None, start_utc, utc, start_s, end_s, sure)]
    if last.utc is None or utc is None or utc < last.utc:
        return [Stretch(GAP, BEHIND, 0, "", None, None, utc, utc, end_s, end_s, sure)]
    start_s = end_s - (utc - last.utc).total_seconds()
    return [Stretch(GAP, NOT_RUNNING, 0, "", None, None, last.utc, utc, start_s, end_s, sure)]


def put_rows(connection: sqlite3.Connection, session: int, rows: Sequence[Stretch]) -> None:
    """Write the session's last rows, in place of any that start where these do or later."""
    if not rows:
        return
    connection.execute("DELETE FROM ledger WHERE session = ? AND start_sample >= ?", (session, rows[0].start_sample))
    insert(connection, session, rows)


def insert(connection: sqlite3.Connection, session: int, rows: Iterable[Stretch]) -> None:
    """Add rows."""
    query = f"INSERT INTO ledger (session, {COLUMNS}) VALUES ({marks(12)})"
    connection.executemany(query, [(session, *values(row)) for row in rows])


def values(row: Stretch) -> tuple[Any, ...]:
    """A row in the order of `COLUMNS`."""
    return (
        row.kind, row.cause, row.step, row.step_name, row.start_sample, row.end_sample, utc_text(row.start_utc),
        utc_text(row.end_utc), row.start_steady_s, row.end_steady_s, row.synchronised,
    )  # fmt: skip


def stretch(row: Sequence[Any]) -> Stretch:
    """From values in the order of `COLUMNS`."""
    kind, cause, step, name, start, end, start_utc, end_utc, start_s, end_s, synchronised = row
    times = utc_of(start_utc), utc_of(end_utc)
    return Stretch(kind, cause, step, name, start, end, *times, start_s, end_s, truth(synchronised))


def put_changes(
    connection: sqlite3.Connection, session: int, changes: Iterable[tuple[ClockChange, float | None]]
) -> None:
    """Add to the journal of the clock; what is there already stays."""
    for change, drift_ppm in changes:
        key = (session, change.sample, utc_text(change.utc))
        row = (*key, change.jump_s, change.was_synchronised, change.synchronised, drift_ppm)
        connection.execute(
            "INSERT INTO clock (session, sample, utc, jump_s, was_synchronised, synchronised, drift_ppm) "
            f"SELECT {marks(7)} WHERE NOT EXISTS (SELECT 1 FROM clock WHERE session = ? AND sample = ? AND utc = ?)",
            (*row, *key),
        )


def correct(connection: sqlite3.Connection, session: int, boot: str, offset_s: float) -> None:
    """Give the right UTC to all live rows of this start of the machine that were written while the clock was wrong.

    Parameters
    ----------
    connection : inside a transaction.
    session : the session that runs.
    boot : the machine's start; where it is empty, only this session is corrected.
    offset_s : UTC less steady time, now that the clock is right.
    """
    connection.create_function("utc_text", 1, lambda steady_s: _text_of(steady_s, offset_s), deterministic=True)
    query = (
        "SELECT id FROM sessions WHERE live = 1 AND (id = ? OR boot = ? "
        "AND EXISTS (SELECT 1 FROM ledger WHERE session = sessions.id AND synchronised IS NOT 1)) ORDER BY id"
    )
    for (number,) in connection.execute(query, (session, boot or None)).fetchall():
        for statement in CORRECTIONS:
            connection.execute(statement, {"session": number})
        _correct_idle(connection, number)


def _text_of(steady_s: float | None, offset_s: float) -> str | None:
    return None if steady_s is None else utc_text(moment(steady_s + offset_s))


# Moment of a detection or of levels: on the line through the ends of the ledger's row that holds its first sample.
STEADY = """
    (SELECT start_steady_s + (moved.start_sample - ledger.start_sample)
        * (end_steady_s - start_steady_s) / (ledger.end_sample - ledger.start_sample)
    FROM ledger WHERE ledger.session = :session AND ledger.start_sample <= moved.start_sample
    ORDER BY ledger.start_sample DESC LIMIT 1)
"""
MOVED = f"""
    UPDATE {{}} AS moved SET start_utc = coalesce(utc_text({STEADY}), start_utc), synchronised = 1
    WHERE session = :session AND synchronised IS NOT 1
"""
CORRECTIONS = (
    """
    UPDATE sessions SET started_utc = utc_text(started_steady_s) WHERE id = :session AND EXISTS
        (SELECT 1 FROM ledger WHERE session = :session AND start_sample = 0 AND synchronised IS NOT 1)
    """,
    MOVED.format("detections"),
    MOVED.format("levels"),
    """
    UPDATE ledger SET start_utc = utc_text(start_steady_s), end_utc = utc_text(end_steady_s), synchronised = 1
    WHERE session = :session AND synchronised IS NOT 1 AND start_sample IS NOT NULL
    """,
    """
    UPDATE sessions SET ended_utc = (SELECT end_utc FROM ledger WHERE session = :session
        ORDER BY start_sample DESC LIMIT 1) WHERE id = :session AND ended_utc IS NOT NULL
    """,
)


def _correct_idle(connection: sqlite3.Connection, session: int) -> None:
    """The row of the time before a session, where one of its ends was not sure."""
    query = "SELECT boot, started_steady_s, started_utc FROM sessions WHERE id = ?"
    boot, steady_s, utc = connection.execute(query, (session,)).fetchone()
    opening = Opening(boot or "", steady_s, steady_s, utc_of(utc), True)
    unsure = "SELECT 1 FROM ledger WHERE session = ? AND start_sample IS NULL AND synchronised IS NOT 1"
    if connection.execute(unsure, (session,)).fetchone():
        put_idle(connection, session, opening)
