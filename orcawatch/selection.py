"""Which detections are exported, and what is known of the runs that found them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from .effort import Span
from .store import COLUMNS, Detection, detection_of

UNREVIEWED = "none"
IN_ORDER = "id"
BY_SOURCE = "source, start_s, id"  # all of one source together
BY_SESSION = "session, start_s, id"


@dataclass(frozen=True)
class Run:
    """A session: one run with one source.

    Attributes
    ----------
    number : of the session.
    source : name of the stream.
    live : whether it came from a device.
    rate_hz : samples per second.
    boot, started_steady_s : which start of the machine, and when after it; what tells a live run from all others.
    version : of the orcawatch that ran; None where not known.
    latitude_deg, longitude_deg : of the station, WGS 84; None where not known.
    frames : length of what was heard, samples; None where the ledger does not tell.
    """

    number: int
    source: str
    live: bool
    rate_hz: int
    boot: str | None
    started_steady_s: float | None
    version: str | None
    latitude_deg: float | None
    longitude_deg: float | None
    frames: int | None


@dataclass(frozen=True)
class Row:
    """A detection and its run; None where it belongs to none (from before there was a ledger)."""

    detection: Detection
    run: Run | None

    @property
    def live(self) -> bool:
        """Whether it was heard live."""
        return self.run is not None and self.run.live

    @property
    def rate_hz(self) -> int | None:
        """Samples per second of its source."""
        return None if self.run is None else self.run.rate_hz

    @property
    def start_utc(self) -> datetime | None:
        """Start in UTC; None where not known."""
        utc = self.detection.start_utc
        return None if utc is None else utc.astimezone(timezone.utc)

    @property
    def end_utc(self) -> datetime | None:
        """End in UTC; None where not known."""
        start = self.start_utc
        return None if start is None else start + timedelta(seconds=self.detection.end_s - self.detection.start_s)


@dataclass(frozen=True)
class Wanted:
    """Which detections.

    Attributes
    ----------
    span : when they began; one whose time is not known is only wanted where the span is open.
    verdicts : `orca`, `not_orca`, `unsure`, or `none` for those without; empty for all.
    least_score : lowest score.
    stations : names; empty for all.
    sources : patterns (`*`, `?`) for the source or its last part; empty for all.
    """

    span: Span = field(default_factory=Span)
    verdicts: tuple[str, ...] = ()
    least_score: float = 0.0
    stations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def takes(self, detection: Detection) -> bool:
        """Whether it is one of them."""
        return (
            detection.score >= self.least_score
            and (not self.verdicts or (detection.verdict or UNREVIEWED) in self.verdicts)
            and (not self.stations or detection.station in self.stations)
            and (not self.sources or any(fits(detection.source, pattern) for pattern in self.sources))
            and self.span.holds(detection.start_utc)
        )


def fits(source: str, pattern: str) -> bool:
    """Whether a source, or its last part, fits a pattern."""
    return fnmatchcase(source, pattern) or fnmatchcase(PurePosixPath(source).name, pattern)


def read_runs(connection: sqlite3.Connection) -> dict[int, Run]:
    """Every session, by number."""
    query = """
        SELECT id, source, live, rate_hz, boot, started_steady_s, version, latitude_deg, longitude_deg,
            (SELECT max(end_sample) FROM ledger WHERE session = sessions.id) FROM sessions
    """
    return {row[0]: Run(row[0], row[1], bool(row[2]), *row[3:]) for row in connection.execute(query)}


def read_rows(
    connection: sqlite3.Connection, runs: Mapping[int, Run], wanted: Wanted, order: str = IN_ORDER
) -> Iterator[Row]:
    """Yield the wanted detections one by one; they are never all in memory.

    Parameters
    ----------
    connection : inside a transaction that stays open until the last one was taken.
    runs : of `read_runs`.
    wanted : which.
    order : `IN_ORDER`, `BY_SOURCE` or `BY_SESSION`.
    """
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    for found in cursor.execute(f"SELECT {COLUMNS} FROM detections ORDER BY {order}"):
        detection = detection_of(found)
        if wanted.takes(detection):
            yield Row(detection, None if detection.session is None else runs.get(detection.session))


def read_sources(connection: sqlite3.Connection) -> list[str]:
    """Every file in which something was detected, sorted; live sources are left out."""
    query = """
        SELECT DISTINCT detections.source FROM detections LEFT JOIN sessions ON sessions.id = session
        WHERE coalesce(live, 0) = 0 ORDER BY detections.source
    """
    return [row[0] for row in connection.execute(query)]
