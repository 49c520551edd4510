"""The journal of an archive scan, in the database: what is done; and how what a file gave becomes part of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import soundfile

from .bundle import Bundle
from .clips import write_clip
from .config import Settings
from .durable import PARTIAL, sync_folder, write_bytes
from .errors import AudioError, InputError, OrcawatchError
from .files import printable
from .guano import clip_metadata
from .keys import leaves
from .listener import Totals
from .recorder import CLIPS, SNAPSHOTS, file_name
from .retention import number_of
from .store import COLUMNS, Detection, Reader, Store, detection_of, inserted, row_of

log = logging.getLogger(__name__)

Identity = tuple[Optional[int], Optional[int]]  # size, time of change in ns

STAGING = ".scanning"
TAKING = ".taking"  # in the output folder: names of the files that are about to come and to go
OF_SESSION = ("ledger", "clock", "levels")
# Settings that change nothing of what is found.
ASIDE = (
    "output", "bundle", "bundles", "threads", "source", "duty", "overload", "ledger", "retention", "clock", "metrics",
    "web", "sinks", "heartbeat_s", "uplink",
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A file that was scanned before.

    Attributes
    ----------
    row : number of its row in `scanned`.
    session : of what was heard; None where nothing could be read.
    scored_s : seconds scored.
    detections : how many were found.
    fault : why it was not scored in full; None where it was.
    same : whether the file is still the same, by size and time of change, and its clips are on the disk.
    """

    row: int
    session: int | None
    scored_s: float
    detections: int
    fault: str | None
    same: bool

    def equals(self, totals: Totals, fault: str | None) -> bool:
        """Whether another scan of the file came to the same."""
        return (self.scored_s, self.detections, self.fault) == (totals.scored_s, totals.events, fault)


class Journal:
    """A scan that may be interrupted anywhere: a file is in the database whole, or not at all.

    Parameters
    ----------
    store : the output folder's database.
    settings, bundle : of the scan.

    Raises
    ------
    InputError : the folder holds a scan with other settings, or another bundle.
    """

    def __init__(self, store: Store, settings: Settings, bundle: Bundle) -> None:
        self._store = store
        self._settings = settings
        self._scan = self._begin(about(settings, bundle))
        self._tidy()

    def done(self, path: Path, seen: Identity) -> Done | None:
        """What is known of a file, whose `identity` is this now; None where it was not scanned."""
        size, modified_ns = seen
        with self._store.transaction() as connection:
            row = connection.execute(
                "SELECT id, session, scored_s, detections, fault, size IS ? AND modified_ns IS ? FROM scanned "
                "WHERE scan = ? AND path = ?",
                (size, modified_ns, self._scan, key(path)),
            ).fetchone()
        return None if row is None else Done(row[0], row[1], row[2], row[3], row[4], bool(row[5]))

    def take(
        self, path: Path, seen: Identity, before: Done | None, totals: Totals, fault: str | None, staged: Path
    ) -> list[Detection]:
        """Make what was found in a file part of the database, in place of what was found in it before.

        `seen` is the file's `identity` before it was scanned: one that grew meanwhile is scanned again next time.

        Returns
        -------
        Its detections, with their numbers and the names of their clips here.

        Raises
        ------
        AudioError : some of what was found in it before was reviewed meanwhile; that is kept.
        OrcawatchError : the folder does not hold what the account says.
        """
        # A file whose clips the disk refused is scanned again, as one that has changed.
        size, modified_ns = (None, None) if totals.failed else seen
        rows = Rows.of(staged)
        if len(rows.detections) != totals.events:
            raise OrcawatchError(
                f"{printable(path)}: {totals.events} detections were found but {staged} holds {len(rows.detections)}; "
                "see that all workers see the same output folder, and scan again"
            )
        names = [] if before is None else self._files(before.session)
        with self._store.transaction() as connection:
            if before is not None:
                if reviewed := verdicts(connection, before):
                    raise kept(path, before, reviewed)
                forget(connection, before)
            session = rows.put(connection)
            pairs = [(numbered_in(connection, one, session), one) for one in rows.detections]
            self._note(names + [name for pair in pairs for name in names_of(*pair)])
            found = [self._settle(connection, *pair, rows.rate_hz, staged) for pair in pairs]
            sync_folder(self._settings.output / SNAPSHOTS)
            connection.execute(
                "INSERT INTO scanned "
                "(scan, path, size, modified_ns, session, scored_s, detections, fault, finished_utc) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._scan, key(path), size, modified_ns, session, totals.scored_s, len(found), fault, now()),
            )  # fmt: skip
        self._tidy()
        shutil.rmtree(staged, ignore_errors=True)
        return found

    def reviewed(self, done: Done) -> int:
        """How many of a file's detections have a verdict."""
        with self._store.transaction() as connection:
            return verdicts(connection, done)

    def detections(self, done: Done) -> list[Detection]:
        """What was found in a file, in order."""
        with self._store.transaction() as connection:
            return detections_of(connection, done.session)

    def faults(self, refused: Mapping[str, str]) -> list[tuple[str, str]]:
        """(path, why) of the files that were not scored in full, in the order in which they were scanned.

        `refused` says by path why a file was not scanned again; that stands in place of what was wrong with it then.
        """
        with self._store.transaction() as connection:
            query = "SELECT path, fault FROM scanned WHERE scan = ? ORDER BY id"
            found = [(path, refused.get(path, fault)) for path, fault in connection.execute(query, (self._scan,))]
        return [(path, why) for path, why in found if why is not None]

    def timeless(self) -> set[str]:
        """Paths of the files of which something was heard, but not when."""
        with self._store.transaction() as connection:
            query = (
                "SELECT path FROM scanned WHERE scan = ? AND session IS NOT NULL AND NOT EXISTS "
                "(SELECT 1 FROM ledger WHERE ledger.session = scanned.session AND start_utc IS NOT NULL)"
            )
            return {path for (path,) in connection.execute(query, (self._scan,))}

    def end(self) -> None:
        """Everything was looked at."""
        with self._store.transaction() as connection:
            connection.execute("UPDATE scans SET ended_utc = ? WHERE id = ?", (now(), self._scan))

    def _begin(self, content: str) -> int:
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        with self._store.transaction() as connection:
            found = connection.execute("SELECT id, fingerprint, about FROM scans ORDER BY id DESC LIMIT 1").fetchone()
            if found is None:
                added = connection.execute(
                    "INSERT INTO scans (fingerprint, about, started_utc) VALUES (?, ?, ?)",
                    (fingerprint, content, now()),
                )
                return int(added.lastrowid or 0)
        if found[1] != fingerprint:
            raise InputError(
                f"{self._settings.output} holds a scan with {difference(found[2], content)}: one folder holds one way "
                "of scanning; name another with --output"
            )
        return int(found[0])

    def _note(self, names: Sequence[str]) -> None:
        """Which files are about to come, and which to go: who is killed now leaves some that no row names."""
        if names:
            write_bytes(self._settings.output / TAKING, "".join(f"{name}\n" for name in names).encode())

    def _tidy(self) -> None:
        """Delete those of the noted files that no row names: they were replaced, or what was taken was not kept."""
        output = self._settings.output
        try:
            names = (output / TAKING).read_text(encoding="utf-8").splitlines()
            with self._store.transaction() as connection:
                unnamed = [name for name in names if is_ours(name) and not is_named(connection, name)]
            for name in unnamed:
                (output / name).unlink(missing_ok=True)
            for name in filter(is_ours, names):
                (output / f"{name}{PARTIAL}").unlink(missing_ok=True)
            (output / TAKING).unlink()
        except FileNotFoundError:
            return
        except (OSError, ValueError, OrcawatchError) as fault:
            log.warning("files that no detection has any more stay in %s: %s", output, fault)

    def _settle(
        self, connection: sqlite3.Connection, numbered: Detection, staged: Detection, rate_hz: int, folder: Path
    ) -> Detection:
        """Give a detection's files their names by its number."""
        settled = replace(
            numbered,
            clip=self._clip(folder, staged.clip, numbered, rate_hz),
            snapshot=self._snapshot(folder, staged.snapshot, numbered),
        )
        connection.execute(
            "UPDATE detections SET clip = ?, snapshot = ? WHERE id = ?", (settled.clip, settled.snapshot, settled.id)
        )
        return settled

    def _clip(self, folder: Path, clip: str | None, detection: Detection, rate_hz: int) -> str | None:
        """The clip under its final name, with its final numbers in its metadata."""
        if clip is None:
            return None
        samples, _ = soundfile.read(folder / clip, dtype="float32", always_2d=True)
        first = round((detection.clip_start_s or 0.0) * rate_hz)
        metadata = clip_metadata(detection, first, len(samples), rate_hz)
        stem = self._settings.output / CLIPS / f"{file_name(detection)}.flac"
        return f"{CLIPS}/{write_clip(stem, samples, rate_hz, metadata, Path(clip).suffix[1:]).name}"

    def _snapshot(self, folder: Path, snapshot: str | None, detection: Detection) -> str | None:
        if snapshot is None:
            return None
        place = self._settings.output / SNAPSHOTS
        for part in (folder / snapshot).parent.glob(f"{_escaped(Path(snapshot).stem)}.*"):
            part.replace(place / f"{file_name(detection)}{part.suffix}")
        return f"{SNAPSHOTS}/{file_name(detection)}{Path(snapshot).suffix}"

    def _files(self, session: int | None) -> list[str]:
        with self._store.transaction() as connection:
            found = detections_of(connection, session)
        names = [name for one in found for name in (one.clip, one.snapshot) if name is not None]
        return names + [str(Path(name).with_suffix(".npz")) for name in names if name.endswith(".png")]


@dataclass(frozen=True)
class Rows:
    """What the database of one scanned file holds.

    Attributes
    ----------
    detections : in order.
    tables : rows by table, as (columns, values); `sessions` holds one, or none where nothing could be read.
    rate_hz : of the file; 0 where nothing could be read.
    """

    detections: list[Detection]
    tables: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, folder: Path) -> Rows:
        """Read them; a folder without a database has none."""
        from .daemon import DATABASE

        if not (folder / DATABASE).exists():
            return cls([], {})
        with Reader(folder / DATABASE) as reader, reader.transaction() as connection:
            tables = {name: rows_of(connection, name) for name in ("sessions", *OF_SESSION)}
            return cls(detections_of(connection, 1), tables)

    @property
    def rate_hz(self) -> int:
        """Samples per second of the file."""
        return int(self.tables["sessions"][0]["rate_hz"]) if self.tables.get("sessions") else 0

    def put(self, connection: sqlite3.Connection) -> int | None:
        """Insert the session and what belongs to it under new numbers; the session's."""
        if not self.tables.get("sessions"):
            return None
        session = insert(connection, "sessions", {**self.tables["sessions"][0], "id": None})
        for name in OF_SESSION:
            for row in self.tables[name]:
                insert(connection, name, {**row, "id": None, "session": session})
        return session


def numbered_in(connection: sqlite3.Connection, staged: Detection, session: int | None) -> Detection:
    """A detection of a file's own database, inserted here, without its files."""
    plain = replace(staged, id=None, session=session, clip=None, snapshot=None)
    return replace(plain, id=inserted(connection, row_of(plain)))


def names_of(numbered: Detection, staged: Detection) -> list[str]:
    """Names that its files are to have here."""
    stem = file_name(numbered)
    clip = [] if staged.clip is None else [f"{CLIPS}/{stem}{Path(staged.clip).suffix}"]
    return clip + ([] if staged.snapshot is None else [f"{SNAPSHOTS}/{stem}{suffix}" for suffix in (".png", ".npz")])


def is_ours(name: str) -> bool:
    """Whether this may be the name of a clip or a snapshot in the output folder."""
    parts = Path(name).parts
    return len(parts) == 2 and parts[0] in (CLIPS, SNAPSHOTS)


def is_named(connection: sqlite3.Connection, name: str) -> bool:
    """Whether a detection has this clip or snapshot, or arrays beside it."""
    query = "SELECT clip, snapshot FROM detections WHERE id = ?"
    row = connection.execute(query, (number_of(Path(name).name),)).fetchone()
    stem = str(Path(name).with_suffix(""))
    return row is not None and stem in {str(Path(one).with_suffix("")) for one in row if one is not None}


def rows_of(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """All rows of a table, in order."""
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY id")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor]


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> int:
    """Insert a row; its number."""
    marks = ", ".join("?" * len(row))
    added = connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
    return int(added.lastrowid or 0)


def detections_of(connection: sqlite3.Connection, session: int | None) -> list[Detection]:
    """Detections of a session, in order."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    query = f"SELECT {COLUMNS} FROM detections WHERE session = ? ORDER BY id"
    return [detection_of(row) for row in cursor.execute(query, (session,))]


def forget(connection: sqlite3.Connection, done: Done) -> None:
    """Delete what was found in a file that has changed since."""
    for table in ("detections", *OF_SESSION):
        connection.execute(f"DELETE FROM {table} WHERE session = ?", (done.session,))
    connection.execute("DELETE FROM sessions WHERE id = ?", (done.session,))
    connection.execute("DELETE FROM scanned WHERE id = ?", (done.row,))


def about(settings: Settings, bundle: Bundle) -> str:
    """Everything that decides what a scan finds, as JSON: the bundle, and settings that are not the defaults."""
    chosen = {where: str(value) for where, value in told(settings) if value != DEFAULTS.get(where)}
    return json.dumps({"bundle": f"{bundle.name} {bundle.digest[:12]}", **chosen}, sort_keys=True)


def told(settings: Settings) -> Iterator[tuple[str, Any]]:
    """(key, value) of the settings that count."""
    for where, _, value in leaves(settings):
        if where.split(".")[0].split("[")[0] not in ASIDE:
            yield where, value


DEFAULTS = dict(told(Settings()))


def difference(before: str, now: str) -> str:
    """What differs between two scans, in words."""
    old, new = json.loads(before), json.loads(now)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name, 'not set')}, not {new.get(name, 'unset')}" for name in names)


def identity(path: Path) -> Identity:
    """Size and time of change of a file; None each where it cannot be told."""
    try:
        found = path.stat()
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def key(path: Path) -> str:
    """What a file is known by."""
    return printable(Path(os.path.abspath(path)))  # noqa: PTH100 - links stay, `..` goes


def now() -> str:
    """The time, as it is stored."""
    return datetime.now(timezone.utc).isoformat()


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def verdicts(connection: sqlite3.Connection, done: Done) -> int:
    """How many of a file's detections have a verdict."""
    query = "SELECT count(*) FROM detections WHERE session = ? AND verdict IS NOT NULL"
    return int(connection.execute(query, (done.session,)).fetchone()[0])


def kept(path: Path, done: Done, reviewed: int) -> AudioError:
    """Why a file is not scanned again: what was found in it before is to be kept."""
    cause = "was set aside" if done.same else "has changed since it was scanned, or its clips could not be written"
    return AudioError(
        f"{printable(path)} {cause}, but {reviewed} of its detections have verdicts, which are kept: scan it into "
        "another folder (--output)"
    )
