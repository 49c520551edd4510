"""Detections in SQLite: what was acknowledged is still there after a kill or a power cut."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Callable

from .errors import InputError, OrcawatchError
from .schema import STEPS, migrate

Along = Callable[[sqlite3.Connection, int], object]

COLUMNS = (
    "id, source, start_s, end_s, start_utc, score, channels, channel_scores, best_channel, bundle, "
    "bundle_digest, clip, snapshot, numbers, station, session, start_sample, end_sample, synchronised, hydrophones, "
    "levels_db, level_unit, verdict, verdict_note, verdict_utc, removed"
)
BUSY_S = 5.0  # how long to wait for another process that is writing


@dataclass(frozen=True)
class Detection:
    """One row: an event, where its clip and picture are, and what is known about it.

    Attributes
    ----------
    id : number of the row; None until it is stored.
    source : name of the stream (a file's path, a device's name).
    start_s, end_s : the event's span, seconds since the stream's start.
    start_utc : time of the event's start where it is known, timezone-aware.
    score : highest fused score, 0 to 1.
    channels : the source's channels that were used, from 0, in the order of the scores and of the clip.
    channel_scores : highest score of each of them, 0 to 1.
    best_channel : the source's channel with the highest score, one of `channels`.
    bundle, bundle_digest : name of the bundle that scored, and SHA-256 of its manifest.
    clip, snapshot : paths of the FLAC clip and of the PNG; None until they are written.
    numbers : figures about the event, finite, by name (`orcawatch.snapshot.relevance_numbers`).
    station : name of the station that listened; may be empty.
    session : number of the run that recorded it.
    start_sample, end_sample : the event's span in the session's samples.
    synchronised : whether the clock was synchronised when `start_utc` was taken.
    hydrophones : serial number of the hydrophone on each of `channels`.
    levels_db : sound level of each of `channels` over the event, in `level_unit`; not a number where not measured.
    level_unit : what the levels are relative to.
    verdict : what a person said, `orca`, `not_orca` or `unsure`; None until one did, at `verdict_utc`.
    verdict_note : their words.
    removed : why clip and snapshot are gone from the disk; None while they are kept.

    Scores of channels that were not scored are not a number.
    """

    id: int | None
    source: str
    start_s: float
    end_s: float
    start_utc: datetime | None
    score: float
    channels: tuple[int, ...]
    channel_scores: tuple[float, ...]
    best_channel: int
    bundle: str
    bundle_digest: str
    clip: str | None = None
    snapshot: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    station: str = ""
    session: int | None = None
    start_sample: int | None = None
    end_sample: int | None = None
    synchronised: bool | None = None
    hydrophones: tuple[str, ...] = ()
    levels_db: tuple[float, ...] = ()
    level_unit: str = ""
    verdict: str | None = None
    verdict_note: str = ""
    verdict_utc: datetime | None = None
    removed: str | None = None


class Store:
    """The database of detections; every method may be called from any thread.

    Write-ahead log with `synchronous=FULL`: a commit returns when the disk holds it.

    Parameters
    ----------
    path : the SQLite file; it and its folder are made where they are missing.

    Raises
    ------
    InputError : the file is no database, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as fault:
            raise InputError(f"{path} cannot be opened: {fault}; name a file that can be written") from fault
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def add(self, detection: Detection, along: Along | None = None) -> int:
        """Record a detection (its `id` is ignored); the row is on the disk when its new id is returned.

        Parameters
        ----------
        detection : what to record.
        along : called with the connection and the new id inside the same transaction, to write what belongs to the
            row: either all of it is on the disk, or none. May be called again where a first try found the disk full.

        Raises
        ------
        OrcawatchError : the row could not be written, for instance because the disk is full.
        ValueError : `start_utc` has no timezone, or a number is not finite.
        """
        row = _row(detection)
        marks = ", ".join("?" * len(row))
        with self.transaction() as connection:
            id = int(
                connection.execute(f"INSERT INTO detections ({COLUMNS}) VALUES (NULL, {marks})", row).lastrowid or 0
            )
            if along is not None:
                along(connection, id)
        return id

    def attach(
        self,
        id: int,
        clip: str | None = None,
        snapshot: str | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Add to a detection what was made after it was recorded; what is None stays, numbers are merged by name.

        Raises
        ------
        KeyError : no detection has that id.
        OrcawatchError, ValueError : as for `add`.
        """
        change = (clip, snapshot, _json(dict(numbers or {})), id)
        with self.transaction() as connection:
            found = connection.execute(
                "UPDATE detections SET clip = coalesce(?, clip), snapshot = coalesce(?, snapshot), "
                "numbers = json_patch(numbers, ?) WHERE id = ?",
                change,
            ).rowcount
        if not found:
            raise KeyError(f"{self.path} holds no detection {id}")

    def detections(self) -> list[Detection]:
        """Every detection, in the order in which they were added."""
        with self.transaction() as connection:
            cursor = connection.cursor()
            cursor.row_factory = sqlite3.Row
            rows = cursor.execute(f"SELECT {COLUMNS} FROM detections ORDER BY id").fetchall()
        return [_detection(row) for row in rows]

    def close(self) -> None:
        """Close the database; closing twice is allowed."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as fault:
            raise InputError(f"{self.path} cannot be used: {fault}; name a file that can be written") from fault
        except sqlite3.DatabaseError as fault:
            found = str(fault)
        if found != "ok":
            raise InputError(
                f"{self.path} is damaged or no database of detections: {found}; move it and its -wal file away "
                "(`sqlite3 FILE .recover` may rescue rows), a new one is then made"
            )
        self._migrate()

    def _migrate(self) -> None:
        """Run the steps that the file has not seen, in one transaction: all or none."""
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= version <= len(STEPS):
                raise InputError(
                    f"{self.path} has schema {version}; this version reads 0 to {len(STEPS)}: "
                    "upgrade orcawatch, or name another file"
                )
            migrate(connection, version, STEPS)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, on the disk at the end, or none of it.

        Not to be entered again from inside: it waits for the transaction of another thread to end.

        Raises
        ------
        OrcawatchError : the database could not be written to; nothing of the transaction was kept.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.Error as fault:
                self._undo()
                raise OrcawatchError(
                    f"{self.path} could not be used: {fault}; check that the disk is there and not full"
                ) from fault
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        """Roll back where SQLite has not done so itself; where it cannot now, the next transaction says why."""
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _figures(values: Iterable[float]) -> str:
    """Numbers as JSON, null for what is not a number."""
    return _json([None if math.isnan(value) else float(value) for value in values])


def _numbers(text: str | None) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in json.loads(text or "[]"))


def _utc_text(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    if moment.utcoffset() is None:
        raise ValueError(f"a time must have a timezone; {moment.isoformat()} has none: add timezone.utc")
    return moment.isoformat()


def _row(detection: Detection) -> tuple[Any, ...]:
    """Values of every column but the id, in the table's order."""
    return (
        detection.source,
        float(detection.start_s),
        float(detection.end_s),
        _utc_text(detection.start_utc),
        float(detection.score),
        _json([int(channel) for channel in detection.channels]),
        _figures(detection.channel_scores),
        int(detection.best_channel),
        detection.bundle,
        detection.bundle_digest,
        detection.clip,
        detection.snapshot,
        _json({name: float(value) for name, value in detection.numbers.items()}),
        detection.station,
        detection.session,
        detection.start_sample,
        detection.end_sample,
        detection.synchronised,
        _json([str(serial) for serial in detection.hydrophones]),
        _figures(detection.levels_db),
        detection.level_unit,
        detection.verdict,
        detection.verdict_note,
        _utc_text(detection.verdict_utc),
        detection.removed,
    )


def _utc(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _detection(row: sqlite3.Row) -> Detection:
    """A row of `COLUMNS`; what is stored as it is keeps its value."""
    synchronised = row["synchronised"]
    return Detection(
        **{
            **dict(row),
            "start_utc": _utc(row["start_utc"]),
            "verdict_utc": _utc(row["verdict_utc"]),
            "channels": tuple(json.loads(row["channels"])),
            "channel_scores": _numbers(row["channel_scores"]),
            "numbers": json.loads(row["numbers"]),
            "synchronised": None if synchronised is None else bool(synchronised),
            "hydrophones": tuple(json.loads(row["hydrophones"] or "[]")),
            "levels_db": _numbers(row["levels_db"]),
        }
    )
