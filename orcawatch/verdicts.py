"""Verdicts of people: on the detection, and in a journal of every verdict that was ever given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .errors import InputError, OrcawatchError
from .schema import STEPS
from .store import connected, undo

VERDICTS = ("orca", "not_orca", "unsure")
LONGEST_NOTE = 2000
LONGEST_REVIEWER = 100


class Database(Protocol):
    """What verdicts are written to, or read from: a `Store`, a `Writer`, and to read a `Reader`."""

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """All of what is done inside, or none of it."""


@dataclass(frozen=True)
class Verdict:
    """What somebody said about a detection.

    Attributes
    ----------
    detection : id of the detection.
    verdict : one of `VERDICTS`; None takes a verdict back.
    note : their words, at most `LONGEST_NOTE` characters.
    reviewer : who; may be empty.
    utc : when, timezone-aware.
    """

    detection: int
    verdict: str | None
    note: str
    reviewer: str
    utc: datetime


class ChangedError(InputError):
    """Somebody has given a verdict that the reviewer had not seen; nothing was written.

    Parameters
    ----------
    other : the last verdict of the journal.
    """

    def __init__(self, other: Verdict) -> None:
        super().__init__(f"detection {other.detection} has meanwhile got another verdict: look at it, then give yours")
        self.other = other


def give(
    store: Database,
    id: int,
    verdict: str | None,
    note: str,
    reviewer: str,
    utc: datetime,
    seen: int | None = None,
) -> None:
    """Write a verdict to the detection and to the journal, both or neither.

    Parameters
    ----------
    store : where the detection is.
    id : of the detection.
    verdict, note, reviewer, utc : as in `Verdict`.
    seen : how many verdicts of the detection the reviewer knew of; None where that does not matter.

    Raises
    ------
    InputError : no such detection or verdict, or the note or the name is too long.
    ChangedError : there are more than were seen.
    OrcawatchError : the database could not be written to; try again.
    ValueError : `utc` has no timezone.
    """
    checked = _checked(Verdict(id, verdict, note, reviewer, utc))
    with store.transaction() as connection:
        if seen is not None and len(before := _history(connection, id)) > seen:
            raise ChangedError(before[-1])
        _write(connection, checked)


def give_all(store: Database, verdicts: Iterable[Verdict]) -> None:
    """Write several verdicts, all or none; raises as `give`."""
    checked = [_checked(verdict) for verdict in verdicts]
    with store.transaction() as connection:
        for verdict in checked:
            _write(connection, verdict)


def _checked(given: Verdict) -> Verdict:
    if given.verdict is not None and given.verdict not in VERDICTS:
        raise InputError(f"a verdict is one of {', '.join(VERDICTS)}, not {given.verdict!r}")
    for name, text, longest in (("note", given.note, LONGEST_NOTE), ("reviewer", given.reviewer, LONGEST_REVIEWER)):
        if len(text) > longest:
            raise InputError(f"a {name} has at most {longest} characters; this one has {len(text)}: shorten it")
    if given.utc.utcoffset() is None:
        raise ValueError(f"a time must have a timezone; {given.utc.isoformat()} has none: add timezone.utc")
    return given


def _write(connection: sqlite3.Connection, given: Verdict) -> None:
    utc = given.utc.astimezone(timezone.utc).isoformat()
    changed = connection.execute(
        "UPDATE detections SET verdict = ?, verdict_note = ?, verdict_utc = ?, reviewer = ? WHERE id = ?",
        (given.verdict, given.note, utc if given.verdict else None, given.reviewer, given.detection),
    ).rowcount
    if not changed:
        raise InputError(f"there is no detection {given.detection}: see `orcawatch review list`")
    connection.execute(
        "INSERT INTO verdicts (detection, verdict, note, reviewer, utc) VALUES (?, ?, ?, ?, ?)",
        (given.detection, given.verdict, given.note, given.reviewer, utc),
    )


def history(store: Database, id: int) -> list[Verdict]:
    """Every verdict ever given to a detection, the oldest first; raises OrcawatchError where it cannot be read."""
    with store.transaction() as connection:
        return _history(connection, id)


def _history(connection: sqlite3.Connection, id: int) -> list[Verdict]:
    query = "SELECT verdict, note, reviewer, utc FROM verdicts WHERE detection = ? ORDER BY id"
    rows = connection.execute(query, (id,)).fetchall()
    return [Verdict(id, said, note, who, datetime.fromisoformat(utc)) for said, note, who, utc in rows]


class Writer:
    """A database opened for verdicts, also while a daemon writes to it.

    Nothing is created, migrated or looked through, so that it opens at once. Open one for each verdict, or each batch.

    Parameters
    ----------
    path : the SQLite file.

    Raises
    ------
    InputError : it is not there, no database, of another version, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file() or path.stat().st_size == 0:
            raise InputError(f"{path} is not there, or empty; name the output folder of a run or a scan")
        try:
            self._connection = connected(path, "mode=rw")
            self._connection.execute("PRAGMA synchronous = FULL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as fault:
            raise InputError(f"{path} cannot be opened for verdicts: {fault}; see that it is whole") from fault
        if version != len(STEPS):
            self.close()
            raise InputError(
                f"{path} has schema {version}, this version writes {len(STEPS)}: `orcawatch run` or `scan` of the "
                "newer of the two versions brings it up to date"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, on the disk at the end, or none of it.

        Raises
        ------
        OrcawatchError : the database could not be written to; nothing was kept.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.Error as fault:
            raise OrcawatchError(f"{self.path} could not be written to: {fault}; try again") from fault
        finally:
            undo(self._connection)

    def close(self) -> None:
        """Close the database; closing twice is allowed."""
        self._connection.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
