"""Files that are there whole and on the disk, or not at all; and what to say of a disk that refuses."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable

PARTIAL = ".partial"
FIRST_S = 60.0  # between the first two reports of one trouble
LONGEST_S = 86400.0


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears under its name whole and on the disk, or not at all.

    Encoders write into memory first, and the bytes come here: libsndfile cannot hand on that a disk is full.

    Raises
    ------
    OSError : the disk refuses.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error tells more; the next start removes what is left
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they are still there after a power cut.

    Raises
    ------
    OSError : the disk refuses, or a file is in the way.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync_folder(place.parent)


def remove_partials(folder: Path) -> list[str]:
    """Remove files that a kill left half-written; their names. Only at start, while nobody writes.

    Raises
    ------
    OSError : the disk refuses.
    """
    found = sorted(folder.glob(f"*{PARTIAL}"))
    for file in found:
        file.unlink()
    return [file.name for file in found]


class Complaint:
    """Says of a trouble that lasts: at once, then at doubling intervals, and when it is over.

    Parameters
    ----------
    log : where.
    steady_s : the time in seconds; never jumps.
    """

    def __init__(self, log: logging.Logger, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._steady_s = steady_s
        self._since_s: float | None = None
        self._next_s = self._interval_s = 0.0
        self._unsaid = 0

    def say(self, text: str) -> None:
        """Report the trouble, or count it where it was reported not long ago."""
        now_s = self._steady_s()
        if self._since_s is None:
            self._since_s, self._interval_s = now_s, FIRST_S / 2
        elif now_s < self._next_s:
            self._unsaid += 1
            return
        else:
            text += f" (for {now_s - self._since_s:.0f} s, {self._unsaid} times not told)"
        self._log.error("%s", text)
        self._unsaid = 0
        self._interval_s = min(2 * self._interval_s, LONGEST_S)
        self._next_s = now_s + self._interval_s

    def end(self, text: str) -> None:
        """Report that it is over, if there was any."""
        if self._since_s is not None:
            self._log.warning("%s, after %.0f s", text, self._steady_s() - self._since_s)
            self._since_s = None
