"""What every page knows: settings, the output folder, and how to read the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore
from typing import cast

from flask import current_app

from ..config import Settings
from ..daemon import DATABASE
from ..errors import OrcawatchError
from ..store import Store
from .access import Access

KEY = "orcawatch"
MOST_DOWNLOADS = 2  # at once


class UnreadableError(OrcawatchError):
    """The log is not there, or cannot be read; the text says the cure."""


@dataclass(frozen=True)
class Site:
    """What is served.

    Attributes
    ----------
    settings : of the station; `output` is the folder that is looked at.
    access : who may read and write.
    downloads : taken by each list that is on its way; each holds one of the server's threads.
    """

    settings: Settings
    access: Access
    downloads: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MOST_DOWNLOADS))

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.settings.output

    @property
    def database(self) -> Path:
        """The database in it."""
        return self.output / DATABASE


def site() -> Site:
    """What the present request asks about."""
    return cast(Site, current_app.extensions[KEY])


@contextmanager
def reading(database: Path | None = None) -> Iterator[sqlite3.Connection]:
    """One unchanging view of the database, as short as possible: it is closed before the page is made.

    Parameters
    ----------
    database : that of the present request where it is None.

    Raises
    ------
    UnreadableError : there is no database, it cannot be read, or it is of another version.
    """
    try:
        reader = Store.reader(database or site().database)
    except OrcawatchError as fault:
        raise UnreadableError(str(fault)) from fault
    with reader, reader.transaction() as connection:
        yield connection
