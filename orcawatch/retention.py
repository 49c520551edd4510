"""Room on the disk: what clips and snapshots are deleted for it, and what is kept back for the log.

Rows are never deleted. A row says first why its files go, then they go: a kill in between leaves files that the next
start deletes. At start the folders are compared with the rows. Files that a kill kept from being attached are attached.
Files that no row knows (their row was lost with a damaged database) are kept and told, and go after those that nobody
has reviewed. Rows whose files are gone are told and stay as they are.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from types import TracebackType
from typing import Any

from .clock import Clocks, Timekeeper
from .config import RetentionSettings
from .durable import PARTIAL, Complaint, remove_partials
from .errors import OrcawatchError
from .store import COLUMNS, FullError, Store, detection_of

log = logging.getLogger(__name__)

FOLDERS = ("clips", "snapshots")
RESERVE = "reserve"
MB = 1_000_000
LOW_B = 2 * MB  # below this the disk counts as full
LEAST_FILES = 16  # that the file system can still take
VERDICTS = (None, "not_orca", "unsure", "orca")  # in this order
BATCH = 20  # rows in one transaction
REST_S = 5.0  # between two sweeps at least
STUBBORN = 50  # files that cannot be deleted, and in spite of which others are
NAMED = 5  # file names in a line of the log
KEPT = "removed IS NULL AND (clip IS NOT NULL OR snapshot IS NOT NULL)"


@dataclass(frozen=True)
class Kept:
    """Files that could go.

    Attributes
    ----------
    id : of the detection; None where no row knows the files.
    files : their paths.
    """

    id: int | None
    files: tuple[Path, ...]

    @property
    def size_b(self) -> int:
        """Bytes on the disk."""
        return sum(size_of(file) for file in self.files)


class Reserve:
    """A file that takes up room, so that there is some to give up when the disk is full.

    Parameters
    ----------
    path : the file.
    size_b : its bytes; 0 for none.
    """

    def __init__(self, path: Path, size_b: int) -> None:
        self.path = path
        self.size_b = size_b

    @property
    def held(self) -> bool:
        """Whether the room is taken up."""
        return size_of(self.path) >= self.size_b

    def take(self) -> None:
        """Take up the room, all of it or none.

        Raises
        ------
        OSError : the disk refuses, or has too little room.
        """
        if self.held:
            return
        partial = self.path.with_name(self.path.name + PARTIAL)
        try:
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.size_b)
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            with suppress(OSError):  # what remains is removed at the next start
                partial.unlink(missing_ok=True)

    def give_up(self) -> bool:
        """Free the room; whether there was any."""
        with suppress(OSError):  # the caller finds the disk as full as before
            self.path.unlink()
            return True
        return False


class Retention:
    """Keeps clips and snapshots within their limits, and room for the log; every method from any thread.

    As a context manager it prepares the folder, and sweeps in a thread of its own: every `sweep_s`, and when there was
    no room. `store` is given the reserve to use when the disk is full.

    Parameters
    ----------
    store : its rows tell what may go; they are never deleted.
    output : the folder with the clips and snapshots.
    settings : the limits; may be replaced at any time.
    clocks : the machine's; age means nothing while its clock is known to be wrong.
    """

    def __init__(
        self, store: Store, output: Path, settings: RetentionSettings, clocks: Timekeeper | None = None
    ) -> None:
        self.settings = settings
        self.reserve = Reserve(output / RESERVE, round(settings.reserve_mb * MB))
        self._store = store
        self._output = output
        self._clocks = clocks or Clocks()
        self._full = Complaint(log)
        self._trouble = Complaint(log)
        self._unknown: list[Kept] = []  # files without a row
        self._left: list[Path] = []  # files that could not be deleted
        self._wake, self._done = Flag(), Flag()
        self._thread = Thread(target=self._tend, name="retention", daemon=True)

    def __enter__(self) -> Retention:
        self.begin()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._wake.set()
        self._thread.join()

    def begin(self) -> None:
        """Clean up after a kill, compare files with rows, take the reserve; what the disk refuses is told only."""
        self._store.make_room = self.make_room
        try:
            tell("half-written files were removed", self._partials())
            self._compare()
            self.reserve.take()
        except (OSError, OrcawatchError) as fault:
            self._trouble.say(f"{self._output} could not be looked through: {fault}; clips and detections are kept")

    def sweep(self) -> int:
        """Delete what is over the limits; how many clips and snapshots went. What the disk refuses is told only."""
        removed = 0
        try:
            self._delete([])
            for part in (self._too_old, self._too_many, self._too_full):
                removed += part(self.settings)
            self._hold()
        except (OSError, OrcawatchError) as fault:
            self._trouble.say(f"clips in {self._output} cannot be deleted: {fault}; see to the disk")
            return removed
        if not self._left:
            self._trouble.end(f"clips in {self._output} can be deleted again")
        return removed

    def room(self, size: int) -> bool:
        """Whether so many bytes may be written for a clip or a snapshot; the reserve is not for them."""
        fault = self._no_room(size)
        if fault is None:
            self._full.end(f"{self._output} has room for clips again")
            return True
        self._full.say(f"no clip is kept: {fault}; detections go on")
        self._wake.set()
        return False

    def make_room(self, full: bool) -> bool:
        """Give up the reserve where the disk is full, or nearly; whether there was any (see `Store.make_room`)."""
        if not (full or self._is_low()) or not self.reserve.give_up():
            return False
        log.warning("%s is full: the reserve of %g MB is given up for the log", self._output, self.reserve.size_b / MB)
        self._wake.set()
        return True

    def _tend(self) -> None:
        while not self._done.is_set():
            self.sweep()
            self._done.wait(REST_S)
            self._wake.wait(self.settings.sweep_s)
            self._wake.clear()

    def _is_low(self) -> bool:
        try:
            return free_b(self._output) < LOW_B
        except OSError:
            return False  # the transaction itself says what is wrong

    def _no_room(self, size: int) -> str | None:
        try:
            found = os.statvfs(self._output)
        except OSError as fault:
            return f"{self._output} cannot be reached ({fault.strerror})"
        if found.f_flag & os.ST_RDONLY:
            return f"{self._output} is read-only"
        if found.f_files and found.f_favail < LEAST_FILES:
            return f"{self._output} can take no more files"
        left_b = found.f_bavail * found.f_frsize - size - LOW_B - (0 if self.reserve.held else self.reserve.size_b)
        return None if left_b >= 0 else f"{self._output} is full"

    def _hold(self) -> None:
        """Take the reserve back, once there is twice the room."""
        if self.reserve.held or free_b(self._output) < 2 * self.reserve.size_b + LOW_B:
            return
        self.reserve.take()
        log.warning("%s has a reserve for the log again", self._output)

    def _too_old(self, settings: RetentionSettings) -> int:
        if settings.max_age_days is None or self._clocks.synchronised() is False:
            return 0
        limit = self._clocks.utc() - timedelta(days=settings.max_age_days)
        # Where the clock was wrong when a row was written, its age is not known.
        old = f"{KEPT} AND synchronised IS NOT 0 AND julianday(start_utc) < julianday(?)"
        undated = [kept for kept in self._rows(f"{KEPT} AND start_utc IS NULL") if newest(kept) < limit.timestamp()]
        found = [*self._rows(old, limit.isoformat()), *undated]
        removed = 0
        for batch in batches(found):
            if self._done.is_set():
                break
            self._remove(batch, f"older than {settings.max_age_days:g} days")
            removed += len(batch)
        return removed

    def _too_many(self, settings: RetentionSettings) -> int:
        if settings.max_clips_mb is None:
            return 0
        there_b = sum(size_of(file) for file in self._files())
        return self._free(there_b - round(settings.max_clips_mb * MB), f"more than {settings.max_clips_mb:g} MB")

    def _too_full(self, settings: RetentionSettings) -> int:
        reserve_b = 0 if self.reserve.held else self.reserve.size_b  # is taken of what is free afterwards
        missing_b = round(settings.min_free_mb * MB) + reserve_b - free_b(self._output)
        return self._free(missing_b, f"less than {settings.min_free_mb:g} MB free on the disk")

    def _free(self, wanted_b: int, why: str) -> int:
        """Delete files until so many bytes are freed; how many rows or groups of files went.

        Where there is no file at all, as with a disk that is not mounted, rows stay as they are.
        """
        removed = 0
        if next(self._files(), None) is None:
            return 0
        while wanted_b > 0 and not self._done.is_set() and (batch := self._next(wanted_b)):
            wanted_b -= sum(kept.size_b for kept in batch)
            self._remove(batch, why)
            removed += len(batch)
        return removed

    def _next(self, wanted_b: int) -> list[Kept]:
        """What is to go next: as much as is wanted, or one batch, all of one verdict."""
        for verdict in VERDICTS:
            found = self._rows(f"verdict IS ? AND {KEPT} ORDER BY id LIMIT {BATCH}", verdict)
            if found:
                return until(found, wanted_b)
            if verdict is None and self._unknown:
                return until(self._unknown[:BATCH], wanted_b)
        return []

    def _rows(self, where: str, *values: Any) -> list[Kept]:
        with self._store.transaction() as connection:
            rows = connection.execute(f"SELECT id, clip, snapshot FROM detections WHERE {where}", values).fetchall()
        return [Kept(id, self._named(clip, snapshot)) for id, clip, snapshot in rows]

    def _named(self, clip: str | None, snapshot: str | None) -> tuple[Path, ...]:
        """The files that a row names, with the arrays beside the picture."""
        pictures = [] if not snapshot else [Path(snapshot), Path(snapshot).with_suffix(".npz")]
        named = [*([] if not clip else [Path(clip)]), *pictures]
        # Rows may come out of a damaged database: nothing elsewhere is ever deleted for them.
        return tuple(self._output / name for name in named if len(name.parts) == 2 and name.parts[0] in FOLDERS)

    def _remove(self, batch: Sequence[Kept], why: str) -> None:
        """Say why, then delete; the other way round only where the disk has no room to say it."""
        files = [file for kept in batch for file in kept.files]
        try:
            self._say_why(batch, why)
        except FullError:
            self._delete(files)
            self._say_why(batch, why)
        self._delete(files)
        self._unknown = [kept for kept in self._unknown if kept not in batch]
        log.info("deleted %d files (%s): %s", len(files), why, listed(file.name for file in files))

    def _say_why(self, batch: Iterable[Kept], why: str) -> None:
        ids = [(why, kept.id) for kept in batch if kept.id is not None]
        if ids:
            with self._store.transaction() as connection:
                connection.executemany("UPDATE detections SET removed = ? WHERE id = ? AND removed IS NULL", ids)

    def _delete(self, files: Iterable[Path]) -> None:
        """Delete files, and those that could not be deleted before.

        A few that cannot be, on a damaged part of the disk for instance, must not keep all others for ever.

        Raises
        ------
        OSError : there are many of them.
        """
        wanted, self._left = [*self._left, *files], []
        for place, file in enumerate(wanted, 1):
            try:
                file.unlink(missing_ok=True)
            except OSError as fault:
                self._left.append(file)
                if len(self._left) > STUBBORN:
                    self._left += wanted[place:]
                    raise
                self._trouble.say(f"{file} cannot be deleted: {fault.strerror}; see to the disk")

    def _partials(self) -> list[str]:
        folders = [self._output, *(self._output / name for name in FOLDERS)]
        return [file for folder in folders for file in remove_partials(folder)]

    def _files(self) -> Iterator[Path]:
        for name in FOLDERS:
            if (self._output / name).is_dir():
                yield from (Path(entry.path) for entry in os.scandir(self._output / name) if entry.is_file())

    def _compare(self) -> None:
        """Compare files with rows."""
        there = {f"{file.parent.name}/{file.name}": file for file in self._files()}
        with self._store.transaction() as connection:
            fates = {name: fate(connection, name) for name in there}
            gone = missing_files(connection, there)
        groups: dict[int, list[Path]] = {kind: [] for kind in (KNOWN, UNATTACHED, LEFT_OVER, UNKNOWN)}
        for name, kind in fates.items():
            groups[kind].append(there[name])
        self._attach(groups[UNATTACHED])
        self._delete(groups[LEFT_OVER])
        self._unknown = [Kept(None, (file,)) for file in sorted(groups[UNKNOWN], key=modified)]
        tell("files that were to go were deleted", [file.name for file in groups[LEFT_OVER]])
        tell("files were attached to their detections", [file.name for file in groups[UNATTACHED]])
        tell("files belong to no detection; they are kept", [file.name for file in groups[UNKNOWN]])
        tell("files of detections are gone", gone)

    def _attach(self, files: Iterable[Path]) -> None:
        for file in files:
            name = f"{file.parent.name}/{file.name}"
            if file.parent.name == "clips":
                self._store.attach(number_of(file.name), clip=name)
            elif file.suffix == ".png":
                self._store.attach(number_of(file.name), snapshot=name)


KNOWN, UNATTACHED, LEFT_OVER, UNKNOWN = range(4)


def fate(connection: sqlite3.Connection, name: str) -> int:
    """What is to become of a file, by the row whose number is in its name.

    A file is only attached to a row that would have given it this very name.
    """
    from .recorder import file_name  # which loads what encodes clips

    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    row = cursor.execute(f"SELECT {COLUMNS} FROM detections WHERE id = ?", (number_of(Path(name).name),)).fetchone()
    if row is None:
        return UNKNOWN
    attached = row["clip" if name.startswith("clips/") else "snapshot"]
    if attached is not None and Path(attached).with_suffix("") == Path(name).with_suffix(""):
        return KNOWN if row["removed"] is None else LEFT_OVER
    fits = attached is row["removed"] is None and Path(name).stem == file_name(detection_of(row))
    return UNATTACHED if fits else UNKNOWN


def number_of(name: str) -> int:
    """The number of the detection that a file was made of; 0 where its name has none."""
    digits = name.split("_")[0]
    return int(digits) if digits.isdecimal() else 0


def missing_files(connection: sqlite3.Connection, there: Mapping[str, Path]) -> list[str]:
    """Files that rows name, and that are not there."""
    rows = connection.execute(f"SELECT clip, snapshot FROM detections WHERE {KEPT}")
    return [name for row in rows for name in row if name is not None and name not in there]


def until(kept: Iterable[Kept], wanted_b: int) -> list[Kept]:
    """As many as it takes to free so many bytes."""
    found: list[Kept] = []
    for item in kept:
        if wanted_b <= 0:
            break
        found.append(item)
        wanted_b -= item.size_b
    return found


def batches(kept: Sequence[Kept]) -> Iterator[Sequence[Kept]]:
    """Pieces of `BATCH`."""
    return (kept[first : first + BATCH] for first in range(0, len(kept), BATCH))


def free_b(folder: Path) -> int:
    """Bytes that an ordinary user may still write."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def size_of(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def modified(file: Path) -> float:
    """When a file was written, in seconds since 1970; 0 where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def newest(kept: Kept) -> float:
    """When the last of some files was written."""
    return max(map(modified, kept.files), default=0.0)


def tell(what: str, names: Sequence[str]) -> None:
    """Log how many files, and the first ones' names, if there are any."""
    if names:
        log.warning("%d %s: %s", len(names), what, listed(names))


def listed(names: Iterable[str]) -> str:
    """The first few names."""
    found = list(names)
    return ", ".join(found[:NAMED]) + (", ..." if len(found) > NAMED else "")
