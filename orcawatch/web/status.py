"""What the station does now, as its log and its disk tell."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, render_template

from .. import shadow
from ..daemon import LOCK
from ..ledger import utc_of
from . import words
from .queries import utc_day
from .site import reading, site

blueprint = Blueprint("status", __name__)

LATE = 3  # checkpoints after which a daemon that writes none is silent
LEAST_LATE_S = 120.0
MOST_WAITING = 10_000  # messages that are counted
LOCKS = Path("/proc/locks")

LISTENING, SCANNING, SILENT, STOPPED, UNKNOWN = "listening", "scanning", "silent", "not running", "unknown"
TEXTS = {
    LISTENING: "A daemon is listening.",
    SCANNING: "A scan is writing; nothing listens to a device.",
    SILENT: "A daemon runs, but its account of the sea stands still: see journalctl --unit orcawatch.",
    STOPPED: "Nothing is listening: start orcawatch run, or systemctl start orcawatch.",
    UNKNOWN: "The log says nothing of any run.",
}


@dataclass(frozen=True)
class Level:
    """The last level of a hydrophone: its name, level and peak in `unit`, and the samples that were clipped."""

    name: str
    level_db: float | None
    peak_db: float | None
    clipped: int
    unit: str


@blueprint.get("/status")
def page() -> str:
    """For people."""
    return render_template("status.html", seen=gathered(), texts=TEXTS)


@blueprint.get("/status.json")
def data() -> Response:
    """The same, for the page's script and other programs, with the page's middle as HTML."""
    seen = gathered()
    return jsonify(**seen, html=render_template("status_body.html", seen=seen, texts=TEXTS))


def gathered() -> dict[str, Any]:
    """Everything that the page shows; what the log does not tell is None or empty."""
    now = datetime.now(timezone.utc)
    folder = site().output
    with reading() as connection:
        seen = {
            "session": session(connection),
            "account": account(connection, now),
            "clock": clock(connection),
            "levels": [asdict(level) for level in levels(connection)],
            "levels_utc": newest(connection, "levels"),
            "detections": detections(connection, now),
            "queues": queues(connection, [sink.queue for sink in site().settings.sinks]),
            "recoveries": recoveries(connection),
            "shadow": shadowed(connection),
        }
    late_s = max(LEAST_LATE_S, LATE * site().settings.ledger.checkpoint_s)
    writing = locked(folder / LOCK)
    return {"now": words.utc(now), "state": state(seen, writing, late_s), "disk": disk(folder), **seen}


def state(seen: Mapping[str, Any], writing: bool | None, late_s: float) -> str:
    """One word for it all; whether a program writes is not known where the system does not tell its locks."""
    session, account = seen["session"], seen["account"]
    if session is None:
        return LISTENING if writing else UNKNOWN
    if writing is False or (session["ended"] and writing is None):
        return STOPPED
    if not session["live"]:
        return SCANNING if writing else STOPPED
    if account is not None and account["age_s"] is not None and account["age_s"] <= late_s:
        return LISTENING
    return SILENT if writing else STOPPED


def locked(path: Path) -> bool | None:
    """Whether a program holds the lock on a file, without touching it; None where the system does not tell.

    The file is known by its number: layered file systems and btrfs tell another device than the table of locks has.
    """
    try:
        found = path.stat()
        table = LOCKS.read_text()
    except FileNotFoundError:
        return False if LOCKS.exists() else None
    except OSError:
        return None
    flocks = [line.split() for line in table.splitlines() if "FLOCK" in line]
    return any(word.endswith(f":{found.st_ino}") for line in flocks for word in line)


def disk(folder: Path) -> dict[str, float] | None:
    """Room on the output folder's disk, bytes; None where the disk is gone."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"free": usage.free, "total": usage.total, "share": usage.free / usage.total if usage.total else 0.0}


SESSION = "id, source, live, rate_hz, channels, hydrophones, station, bundle, version, started_utc, ended_utc"


def session(connection: sqlite3.Connection) -> dict[str, Any] | None:
    """The newest run."""
    row = connection.execute(f"SELECT {SESSION} FROM sessions ORDER BY id DESC LIMIT 1").fetchone()
    if row is None:
        return None
    found = dict(zip(SESSION.split(", "), row))
    found |= {"live": bool(found["live"]), "ended": found["ended_utc"] is not None}
    found |= {"channels": json.loads(found["channels"]), "hydrophones": json.loads(found["hydrophones"] or "[]")}
    return {**found, "started_utc": shown(found["started_utc"]), "ended_utc": shown(found["ended_utc"])}


def account(connection: sqlite3.Connection, now: datetime) -> dict[str, Any] | None:
    """The newest entry of the ledger."""
    query = "SELECT kind, cause, step, step_name, end_utc FROM ledger ORDER BY id DESC LIMIT 1"
    row = connection.execute(query).fetchone()
    if row is None:
        return None
    kind, cause, step, name, end = row
    age_s = age(end, now)
    return {"kind": kind, "cause": cause, "step": step, "step_name": name, "until": shown(end), "age_s": age_s}


def clock(connection: sqlite3.Connection) -> dict[str, Any]:
    """Whether the clock is synchronised, the card's drift when it was last entered, and the last jump."""
    row = connection.execute("SELECT synchronised FROM ledger ORDER BY id DESC LIMIT 1").fetchone()
    drift = connection.execute("SELECT drift_ppm, utc FROM clock WHERE drift_ppm IS NOT NULL ORDER BY id DESC LIMIT 1")
    jump = connection.execute("SELECT jump_s, utc FROM clock WHERE jump_s <> 0 ORDER BY id DESC LIMIT 1")
    return {
        "synchronised": None if row is None or row[0] is None else bool(row[0]),
        "drift_ppm": named(drift.fetchone(), "value"),
        "jump_s": named(jump.fetchone(), "value"),
    }


def named(row: Sequence[Any] | None, name: str) -> dict[str, Any] | None:
    """A figure and its time."""
    return None if row is None else {name: row[0], "utc": shown(row[1])}


def levels(connection: sqlite3.Connection) -> list[Level]:
    """The newest row of levels."""
    query = (
        "SELECT levels_db, peaks_db, clipped, unit, channels, hydrophones FROM levels "
        "JOIN sessions ON sessions.id = session ORDER BY levels.id DESC LIMIT 1"
    )
    row = connection.execute(query).fetchone()
    if row is None:
        return []
    found, peaks, clipped, unit = json.loads(row[0]), json.loads(row[1]), json.loads(row[2]), row[3]
    names = hydrophones(json.loads(row[4]), json.loads(row[5] or "[]"))
    return [Level(*values, unit) for values in zip(names, found, peaks, clipped)]


def hydrophones(channels: Sequence[int], serials: Sequence[str]) -> list[str]:
    """What to call the channels of a session."""
    known = [*serials, *[""] * len(channels)]
    return [
        f"{serial} (channel {number})" if serial else f"channel {number}" for number, serial in zip(channels, known)
    ]


def newest(connection: sqlite3.Connection, table: str) -> str | None:
    """When the newest row of a table begins."""
    row = connection.execute(f"SELECT start_utc FROM {table} ORDER BY id DESC LIMIT 1").fetchone()
    return None if row is None else shown(row[0])


def detections(connection: sqlite3.Connection, now: datetime) -> dict[str, Any]:
    """How many there are, those of today, those that wait for a verdict, and the last one."""
    today = "SELECT count(*) FROM detections WHERE start_utc >= ?"
    unreviewed = "SELECT count(*) FROM detections WHERE verdict IS NULL"
    last = connection.execute(
        "SELECT id, start_utc, score, station FROM detections ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return {
        "count": connection.execute("SELECT count(*) FROM detections").fetchone()[0],
        "today": connection.execute(today, (utc_day(now),)).fetchone()[0],
        "unreviewed": connection.execute(unreviewed).fetchone()[0],
        "last": None
        if last is None
        else {"id": last[0], "utc": shown(last[1]), "score": last[2], "age_s": age(last[1], now)},
    }


def queues(connection: sqlite3.Connection, names: Sequence[str]) -> list[dict[str, Any]]:
    """What waits for each sink of the settings, and for others that the log knows."""
    waiting = "sent_utc IS NULL AND refused IS NULL"
    known = {row[0] for row in connection.execute("SELECT sink FROM budgets")} | set(names)
    count = f"SELECT count(*) FROM (SELECT 1 FROM outbox WHERE sink = ? AND {waiting} LIMIT {MOST_WAITING + 1})"
    return [
        {"name": name, "waiting": number, "many": number > MOST_WAITING}
        for name in sorted(known)
        for (number,) in connection.execute(count, (name,))
    ]


def recoveries(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    """When the log was found damaged, the newest first."""
    rows = connection.execute("SELECT utc, fault, moved_to FROM recoveries ORDER BY id DESC LIMIT 5")
    return [{"utc": shown(utc), "fault": fault, "moved_to": moved} for utc, fault, moved in rows]


def shadowed(connection: sqlite3.Connection) -> dict[str, Any] | None:
    """How the shadow bundle that scored last compares with the one in force; None where none ever did."""
    found = shadow.summary(connection)
    if found is None:
        return None
    names = ("bundle", "compared_s", "both", "only_current", "only_shadow")
    return {name: getattr(found, name) for name in names}


def shown(text: str | None) -> str | None:
    """A time of the log, to the second."""
    return None if text is None else words.utc(utc_of(text))


def age(text: str | None, now: datetime) -> float | None:
    """Seconds since a time of the log."""
    moment = utc_of(text)
    seconds = math.nan if moment is None else (now - moment).total_seconds()
    return None if math.isnan(seconds) else round(seconds, 1)
