"""Whose turn it is to write into an output folder, or to send what waits there: who holds the lock on a file in it."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, TextIO

from .owner import give_to_owner

LOCK = "uplink-lock"
NOBODY = "nobody sends what waits, or hands on `metrics`: run `orcawatch deploy install`, which starts orcawatch-uplink"


def take_turn(output: Path, name: str = LOCK) -> TextIO | None:
    """The lock, which is held until it is closed; None where another program holds it.

    What root makes is given to the folder's owner, whose programs must be able to open it later.

    Raises
    ------
    OSError : the folder cannot be written to.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(opened(output / name, os.O_RDWR | os.O_CREAT, "r+"))
        give_to_owner(output / name)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        stack.pop_all()
        return lock


def nobody_sends(output: Path) -> bool:
    """Whether nobody holds the lock; nothing is made, and the lock is let go at once.

    Raises
    ------
    OSError : the lock cannot be read.
    """
    try:
        with opened(output / LOCK, os.O_RDONLY, "r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def opened(path: Path, flags: int, mode: Literal["r", "r+"]) -> TextIO:
    """A file of a folder that belongs to another user: no link is followed, no pipe waited for."""
    return os.fdopen(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644), mode)
