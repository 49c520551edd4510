"""Detections in SQLite: what was acknowledged is still there after a kill or a power cut."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import TracebackType
from typing import Any, Callable

from .durable import Complaint, make_folder, write_bytes
from .errors import InputError, OrcawatchError
from .schema import STEPS, migrate

Along = Callable[[sqlite3.Connection, int], object]
Rescue = Callable[[Path, str], object]

log = logging.getLogger(__name__)

COLUMNS = (
    "id, source, start_s, end_s, start_utc, score, channels, channel_scores, best_channel, bundle, "
    "bundle_digest, clip, snapshot, numbers, station, session, start_sample, end_sample, synchronised, hydrophones, "
    "levels_db, level_unit, verdict, verdict_note, verdict_utc, removed, bearing_deg, bearing_error_deg, bearing_note, "
    "clip_start_s, reviewer"
)
CREATE = "mode=rwc"
UNREADABLE = "disk I/O error"
BUSY_S = 5.0  # how long to wait for another process that is writing
WRITE_AHEAD_B = 4 << 20  # size to which the write-ahead log is cut back
UNSURE = 5000  # rows of failed commits that are remembered: more than anybody holds to add them again
CURE = "check that the disk is there, can be written to and is not full"


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
    bearing_deg : where the sound came from, degrees clockwise from north, 0 to 360; None where it is not known.
    bearing_error_deg : half the width of the bearing's 90 % interval, degrees.
    bearing_note : why there is no bearing though the hydrophones' places are known, or what makes it doubtful.
    clip_start_s : start of the clip, seconds since the stream's start; None where there is no clip.
    reviewer : who gave the verdict; may be empty.

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
    bearing_deg: float | None = None
    bearing_error_deg: float | None = None
    bearing_note: str = ""
    clip_start_s: float | None = None
    reviewer: str = ""


class DamagedError(InputError):
    """A file is no database, or not a whole one.

    Parameters
    ----------
    path : the file.
    fault : what is wrong with it.
    """

    def __init__(self, path: Path, fault: str) -> None:
        self.fault = " ".join(fault.replace("*** in database main ***", "").split())
        super().__init__(
            f"{path} is damaged or no database of detections: {self.fault}; move it and its -wal file away "
            "(`sqlite3 FILE .recover` may rescue rows), a new one is then made"
        )


class FullError(OrcawatchError):
    """The disk is full."""


class Reader:
    """The database for those who only look, also while a daemon writes and on a disk that cannot be written to.

    Nothing is ever created, changed or brought up to date. Open one for each look, and close it: a reader that stays
    in a transaction keeps the write-ahead log from being emptied.

    Parameters
    ----------
    path : the SQLite file.

    Raises
    ------
    InputError : the file is not there, no database, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._folder: TemporaryDirectory[str] | None = None
        if not path.is_file() or path.stat().st_size == 0:  # SQLite would delete the -wal of an empty file
            raise InputError(f"{path} is not there, or empty; name the database of a run")
        self._connection = self._open()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One unchanging view of all tables; what writes is refused.

        Raises
        ------
        OrcawatchError : the database could not be read, or was to be written to.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                yield self._connection
            except sqlite3.Error as fault:
                raise OrcawatchError(f"{self.path} could not be read: {fault}; try again") from fault
            finally:
                undo(self._connection)

    def detections(self) -> list[Detection]:
        """Every detection, in the order in which they were added."""
        with self.transaction() as connection:
            return all_detections(connection)

    def close(self) -> None:
        """Close the database; closing twice is allowed."""
        with self._lock:
            self._connection.close()
            if self._folder is not None:
                self._folder.cleanup()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        try:
            try:
                return self._checked(connected(self.path, "mode=ro"))
            except sqlite3.OperationalError:
                return self._checked(self._unlocked())
        except (sqlite3.Error, OSError) as fault:
            raise InputError(f"{self.path} cannot be read: {fault}; see that it is whole and may be read") from fault

    def _unlocked(self) -> sqlite3.Connection:
        """Without the index of the write-ahead log, which cannot be made where nothing can be written."""
        log_file = Path(f"{self.path}-wal")
        if not log_file.exists() or log_file.stat().st_size == 0:
            return connected(self.path, "immutable=1")
        self._folder = TemporaryDirectory(prefix="orcawatch-")
        copies = [shutil.copy(file, self._folder.name) for file in (self.path, log_file)]
        return connected(Path(copies[0]), "mode=rw")

    def _checked(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != len(STEPS):
                raise InputError(f"{self.path} has schema {version}; {self._cure(version)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _cure(self, version: int) -> str:
        if version > len(STEPS):
            return f"this version reads {len(STEPS)}: upgrade orcawatch"
        return (
            f"this version reads {len(STEPS)}: `orcawatch run` or `scan` with this output folder brings it up to date"
        )


class Store:
    """The database of detections; every method may be called from any thread.

    Write-ahead log with `synchronous=FULL`: a commit returns when the disk holds it. After an error of the disk the
    next transaction opens the file anew, so that the store works again as soon as the disk does. It never makes a
    second file where the first one has gone (with a disk that is no longer mounted): transactions then fail until it
    is back.

    Parameters
    ----------
    path : the SQLite file; it and its folder are made where they are missing.
    rescue : called with the path and the fault where the file is damaged; is to put another one in its place
        (`orcawatch.recovery`). None refuses damaged files.

    Attributes
    ----------
    make_room : called before each transaction with False, and with True when one found the disk full; gives up what
        room is kept for the log, and returns whether there was any (`orcawatch.retention`).

    Raises
    ------
    InputError : the file cannot be used, or was written by a newer version.
    DamagedError : the file is no database, or damaged, and there is no rescue.
    """

    def __init__(self, path: Path, rescue: Rescue | None = None) -> None:
        self.path = path
        self.make_room: Callable[[bool], bool] = no_room
        self._rescue = rescue
        self._lock = Lock()
        self._complaint = Complaint(log)
        self._suspect = False  # whether the file is to be opened anew,
        self._look = True  # and then to be looked through
        self._unsure: dict[tuple[Any, ...], int] = {}  # rows of failed commits, and the last id before them
        self._write_ahead_b = WRITE_AHEAD_B
        make_folder(path.parent)
        self._connection = self._open(CREATE)
        self._last = last_id(self._connection)  # of the last acknowledged row

    @staticmethod
    def reader(path: Path) -> Reader:
        """The database, to look at only."""
        return Reader(path)

    def add(self, detection: Detection, along: Along | None = None) -> int:
        """Record a detection (its `id` is ignored); the row is on the disk when its new id is returned.

        After a failure the same detection may be added again: where the disk holds the row in spite of the error, that
        one is found, and there are never two.

        Parameters
        ----------
        detection : what to record.
        along : called with the connection and the new id inside the same transaction, to write what belongs to the
            row: either all of it is on the disk, or none. Called again where a first try found the disk full.

        Raises
        ------
        OrcawatchError : the row could not be written, for instance because the disk is full.
        ValueError : `start_utc` has no timezone, or a number is not finite.
        """
        row = row_of(detection)
        return self._again_with_room(lambda: self._add(row, along))

    def attach(
        self,
        id: int,
        clip: str | None = None,
        snapshot: str | None = None,
        numbers: Mapping[str, float] | None = None,
        clip_start_s: float | None = None,
    ) -> None:
        """Add to a detection what was made after it was recorded; what is None stays, numbers are merged by name.

        Raises
        ------
        KeyError : no detection has that id.
        OrcawatchError, ValueError : as for `add`.
        """
        change = (clip, snapshot, _json(dict(numbers or {})), clip_start_s, id)
        if not self._again_with_room(lambda: self._attach(change)):
            raise KeyError(f"{self.path} holds no detection {id}")

    def detections(self) -> list[Detection]:
        """Every detection, in the order in which they were added."""
        with self.transaction() as connection:
            return all_detections(connection)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, on the disk at the end, or none of it.

        Not to be entered again from inside: it waits for the transaction of another thread to end. After an error,
        simply try again later; the log tells the error once, then at doubling intervals, and when it is over.

        Raises
        ------
        FullError : the disk is full.
        OrcawatchError : the database could not be used; nothing of the transaction was kept, unless the error came
            from the very commit (`add` copes with that).
        """
        with self._lock:
            self.make_room(False)
            connection = self._ready()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as fault:
                undo(connection)
                raise self._refused(fault) from fault
            except BaseException:
                undo(connection)
                raise
            self._complaint.end(f"{self.path} can be written to again")
            self._bound(connection)

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

    def _again_with_room(self, write: Callable[[], int]) -> int:
        try:
            return write()
        except FullError:
            if not self.make_room(True):
                raise
            return write()

    def _add(self, row: tuple[Any, ...], along: Along | None) -> int:
        begun = False
        try:
            with self.transaction() as connection:
                begun = True
                if (id := self._found(connection, row)) is None:
                    id = inserted(connection, row)
                    if along is not None:
                        along(connection, id)
        except OrcawatchError:
            if begun:
                self._unsure.setdefault(row, self._last)
            if len(self._unsure) > UNSURE:
                del self._unsure[next(iter(self._unsure))]
            raise
        self._unsure.pop(row, None)
        self._last = max(id, self._last)
        return id

    def _found(self, connection: sqlite3.Connection, row: tuple[Any, ...]) -> int | None:
        """The row of a commit that failed and yet was kept."""
        if row not in self._unsure:
            return None
        same = " AND ".join(f"{name} IS ?" for name in COLUMNS.split(", ")[1:])
        query = f"SELECT id FROM detections WHERE id > ? AND {same}"
        found = connection.execute(query, (self._unsure[row], *row)).fetchone()
        return None if found is None else int(found[0])

    def _attach(self, change: tuple[Any, ...]) -> int:
        with self.transaction() as connection:
            return connection.execute(
                "UPDATE detections SET clip = coalesce(?, clip), snapshot = coalesce(?, snapshot), "
                "numbers = json_patch(numbers, ?), clip_start_s = coalesce(?, clip_start_s) WHERE id = ?",
                change,
            ).rowcount

    def _open(self, mode: str) -> sqlite3.Connection:
        try:
            return self._prepared(mode)
        except DamagedError as fault:
            if self._rescue is None:
                raise
            self._rescue(self.path, fault.fault)
            return self._prepared("mode=rw")

    def _prepared(self, mode: str) -> sqlite3.Connection:
        try:
            connection = connected(self.path, mode)
        except sqlite3.Error as fault:
            raise refusal(self.path, fault) from fault
        try:
            set_up(connection, self.path)
            self._examine(connection, self._look and mode == CREATE, indexes=True)
            self._migrate(connection)
            self._examine(connection, self._look, indexes=False)  # on a disk that is read-only it does not come to this
            self._file = identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _examine(self, connection: sqlite3.Connection, look: bool, indexes: bool) -> None:
        """At the start with the indexes; while it runs without them, as systemd waits for a sign of life."""
        if look:
            look_through(connection, self.path, indexes)
            self._look = False

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Run the steps that the file has not seen, in one transaction: all or none.

        It writes even where there is nothing to do: SQLite opens a file on a read-only disk without a word.
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= version <= len(STEPS):
                raise InputError(
                    f"{self.path} has schema {version}; this version reads 0 to {len(STEPS)}: "
                    "upgrade orcawatch, or name another file"
                )
            migrate(connection, version, STEPS)
            connection.execute("COMMIT")
        except sqlite3.Error as fault:
            raise OrcawatchError(f"{self.path} could not be prepared: {fault}; {CURE}") from fault

    def _ready(self) -> sqlite3.Connection:
        """The connection, opened anew after an error, or where another file stands under the name.

        The whole file is only looked through where there is reason to: this may come every few seconds.
        """
        changed = identity(self.path) != self._file
        if self._suspect or changed:
            self._suspect, self._look = True, self._look or changed
            self._connection.close()
            try:
                self._connection = self._open("mode=rw")
            except OrcawatchError as fault:
                self._complaint.say(str(fault))
                raise OrcawatchError(str(fault)) from fault
            self._suspect = False
        return self._connection

    def _refused(self, fault: sqlite3.Error) -> OrcawatchError:
        text = f"{self.path} could not be used: {fault}; {CURE}"
        self._complaint.say(text)
        if "is full" in str(fault):
            return FullError(text)
        self._suspect = "is locked" not in str(fault)
        self._look = UNREADABLE in str(fault) or not isinstance(fault, sqlite3.OperationalError)
        return OrcawatchError(text)

    def _bound(self, connection: sqlite3.Connection) -> None:
        """Empty the write-ahead log where it has grown because somebody was reading; never wait for them."""
        size_b = write_ahead_size(self.path)
        if size_b <= self._write_ahead_b:
            return
        connection.execute("PRAGMA busy_timeout = 0")
        with suppress(sqlite3.Error):  # the next time will do, and what is committed stays so
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
        self._write_ahead_b = max(WRITE_AHEAD_B, write_ahead_size(self.path) + WRITE_AHEAD_B)


def no_room(full: bool) -> bool:
    """Nothing is kept for the log."""
    return False


class Connection(sqlite3.Connection):
    """Where SQLite names a damaged part of the schema in bytes that are no UTF-8, Python cannot tell its words."""

    def execute(self, *given: Any) -> sqlite3.Cursor:
        """As `sqlite3.Connection.execute`."""
        try:
            return super().execute(*given)
        except UnicodeDecodeError as fault:
            raise sqlite3.DatabaseError(fault.object.decode("utf-8", "replace")) from fault


def connected(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that leaves transactions to us; `mode` as in a URI of SQLite.

    A byte that is no UTF-8, on a damaged disk, must not hide all other rows: it is read as U+FFFD.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True,
        factory=Connection,
    )  # fmt: skip
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def set_up(connection: sqlite3.Connection, path: Path) -> None:
    """Make a connection one to write with, such that a commit returns when the disk holds it.

    Raises
    ------
    DamagedError : the file is no database.
    InputError : it cannot be read or written at all.
    """
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WRITE_AHEAD_B}")
    except sqlite3.DatabaseError as fault:
        raise refusal(path, fault) from fault


def look_through(connection: sqlite3.Connection, path: Path, indexes: bool = True) -> None:
    """Look at every page and, which takes longer, whether indexes hold what their tables do; raises as `set_up`."""
    check = "integrity_check" if indexes else "quick_check"
    try:
        found = connection.execute(f"PRAGMA {check}(1)").fetchone()[0]
    except sqlite3.DatabaseError as fault:
        raise refusal(path, fault) from fault
    if found != "ok":
        raise DamagedError(path, found)


def refusal(path: Path, fault: sqlite3.Error) -> InputError:
    """What to raise where a file cannot be opened and read.

    Where a part cannot be read and yet the disk takes what is written, it is the file that is damaged.
    """
    if not isinstance(fault, sqlite3.OperationalError):
        return DamagedError(path, str(fault))
    if UNREADABLE in str(fault) and can_be_written(path.parent):
        return DamagedError(path, f"a part of it cannot be read ({fault})")
    return InputError(f"{path} cannot be opened: {fault}; name a file that can be read and written")


def can_be_written(folder: Path) -> bool:
    """Whether a disk takes a small file."""
    probe = folder / "probe"
    try:
        write_bytes(probe, b"orcawatch")
        probe.unlink()
    except OSError:
        return False
    return True


def undo(connection: sqlite3.Connection) -> None:
    """Roll back where SQLite has not done so itself; where it cannot now, the next transaction says why."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def identity(path: Path) -> tuple[int, int] | None:
    """What tells one file from another of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def write_ahead_size(path: Path) -> int:
    """Bytes of a database's write-ahead log."""
    try:
        return Path(f"{path}-wal").stat().st_size
    except OSError:
        return 0


def last_id(connection: sqlite3.Connection) -> int:
    """The highest id of a detection; 0 where there is none."""
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM detections").fetchone()[0])


def inserted(connection: sqlite3.Connection, row: tuple[Any, ...]) -> int:
    """Insert the values of a detection's columns; the new id."""
    marks = ", ".join("?" * len(row))
    return int(connection.execute(f"INSERT INTO detections ({COLUMNS}) VALUES (NULL, {marks})", row).lastrowid or 0)


def all_detections(connection: sqlite3.Connection) -> list[Detection]:
    """Every detection, in the order in which they were added."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return [detection_of(row) for row in cursor.execute(f"SELECT {COLUMNS} FROM detections ORDER BY id")]


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
    return moment.astimezone(timezone.utc).isoformat()


def row_of(detection: Detection) -> tuple[Any, ...]:
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
        detection.bearing_deg,
        detection.bearing_error_deg,
        detection.bearing_note,
        detection.clip_start_s,
        detection.reviewer,
    )


def _utc(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def detection_of(row: Mapping[str, Any] | sqlite3.Row) -> Detection:
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
