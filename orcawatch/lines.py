"""A sink that writes messages into files, one JSON object per line."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from .config import SinkSettings
from .durable import make_folder, sync_folder
from .keys import number, path, whole
from .owner import give_to_owner
from .sinks import Message, Site, UnreachableError

log = logging.getLogger(__name__)

MB = 10**6
FOLDER = "messages"
NAME = re.compile(r"messages-(\d{6})-(\d{8})\.jsonl")
TAIL_BYTES = 4 * MB  # longer than any line

# ruff: noqa: RUF009


@dataclass(frozen=True)
class LinesSettings(SinkSettings):
    """Files of JSON lines, one a day or more: `messages-000001-20260701.jsonl`, with a number that counts up."""

    folder: Path | None = path(None, "The folder for the files; it is made if missing.", "`messages` in `output`")
    file_mb: float = number(16, 0.001, 10000, "MB", "A file that would grow beyond this is followed by another one.")
    min_free_mb: float = number(
        100, 0, 1e9, "MB", "With less free on the disk nothing is written, and messages wait: the log goes first."
    )
    keep_files: int = whole(1000, 2, 900000, "Files that are kept; beyond it the oldest are deleted.")


class LinesSink:
    """Writes each message as a line, which is on the disk when it counts as sent.

    A message is there exactly once, also when the program is killed between writing and marking: what comes first
    after a start is compared with the last line. Half a line, which a power cut leaves, is removed.

    Parameters
    ----------
    settings, site : as for every sink.
    now : the time, for the names of files.
    """

    Settings = LinesSettings
    overhead_bytes = 1

    def __init__(
        self, settings: LinesSettings, site: Site, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
    ) -> None:
        self._folder = settings.folder or site.output / FOLDER
        self._most_bytes = round(settings.file_mb * MB)
        self._keep = settings.keep_files
        self._least_free_b = settings.min_free_mb * MB
        self._now = now
        self._file: int | None = None
        self._path = self._folder
        self._last = b""

    def open(self) -> None:
        """Open the newest file, or the first one.

        Raises
        ------
        OSError : the disk refuses.
        UnreachableError : it is nearly full. What room the retention gives up is for the log of detections.
        """
        if self._file is None:
            if not self._folder.is_dir():
                make_folder(self._folder)
                give_to_owner(self._folder)
            found = self._files()
            for file in found[-2:]:  # the newest may still be empty
                self._last = last_line(file) or self._last
            self._open(found[-1] if found else self._named(1))
        if shutil.disk_usage(self._folder).free < self._least_free_b:
            raise UnreachableError(
                f"the disk of {self._folder} has less than {self._least_free_b / MB:g} MB free (`min_free_mb`); delete "
                "what is not orcawatch's, or lower `keep_files`"
            )

    def send(self, message: Message) -> None:
        """Write a message; it is on the disk when this returns.

        Raises
        ------
        OSError : the disk refuses. The sink is to be closed then; half a line is removed when it is opened again.
        """
        if message.payload == self._last:
            log.info("%s holds message %s already", self._path, message.id)
            return
        line = message.payload + b"\n"
        if self._is_over(len(line)):
            self._turn()
        file = self._opened()
        while line:
            line = line[os.write(file, line) :]
        os.fsync(file)
        self._last = message.payload

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        if self._file is None:
            raise OSError(f"{self._folder} is not open: call open() before send()")
        return self._file

    def _open(self, path: Path) -> None:
        """Open a file at its end, without the line that a power cut tore; what it holds is on the disk."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        give_to_owner(path)
        self._path = path
        if (torn := len(tail(path).rpartition(b"\n")[2])) > 0:
            log.warning("%s ends in half a line of %d bytes; it is removed, the message comes again", path, torn)
            os.ftruncate(self._file, path.stat().st_size - torn)
        os.fsync(self._file)
        sync_folder(path.parent)

    def _is_over(self, size: int) -> bool:
        """Whether the next line goes into another file: this one is full, or of another day."""
        used = os.fstat(self._opened()).st_size
        return used > 0 and (used + size > self._most_bytes or self._path.name != self._named(self._number()).name)

    def _turn(self) -> None:
        """Begin another file, and delete the oldest ones where there are too many."""
        following = self._named(self._number() + 1)
        self.close()
        self._open(following)
        for old in self._files()[: -self._keep]:
            old.unlink()
            log.warning("%s is deleted: `keep_files` is %d", old, self._keep)

    def _files(self) -> list[Path]:
        """In the order in which they were begun; the number tells it, whatever the clock said."""
        return sorted(file for file in self._folder.iterdir() if NAME.fullmatch(file.name))

    def _number(self) -> int:
        return int(self._path.name.split("-")[1])

    def _named(self, number: int) -> Path:
        """The file of that number, if it is begun today."""
        return self._folder / f"messages-{number:06d}-{self._now():%Y%m%d}.jsonl"


def tail(path: Path) -> bytes:
    """The end of a file, longer than any line."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()


def last_line(path: Path) -> bytes:
    """The last whole line of a file, without its end; empty where there is none."""
    return tail(path).rpartition(b"\n")[0].rpartition(b"\n")[2]
