"""The tables of the database, as steps from one schema to the next."""

from __future__ import annotations

import sqlite3

# Step n takes a database from schema n to n + 1. Never change a step that was released: append one.
# Times (`*_utc`) are ISO text with a timezone; lists are JSON text; truth is 0 or 1; null is not known.
STEPS: tuple[str, ...] = (
    """
    CREATE TABLE detections (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        start_s REAL NOT NULL,
        end_s REAL NOT NULL,
        start_utc TEXT,
        score REAL NOT NULL,
        channels TEXT NOT NULL,
        channel_scores TEXT NOT NULL,
        best_channel INTEGER NOT NULL,
        bundle TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        clip TEXT,
        snapshot TEXT,
        numbers TEXT NOT NULL,
        station TEXT NOT NULL
    )
    """,
    """
    ALTER TABLE detections ADD COLUMN session INTEGER;
    ALTER TABLE detections ADD COLUMN start_sample INTEGER;
    ALTER TABLE detections ADD COLUMN end_sample INTEGER;
    ALTER TABLE detections ADD COLUMN synchronised INTEGER;
    ALTER TABLE detections ADD COLUMN hydrophones TEXT;
    ALTER TABLE detections ADD COLUMN levels_db TEXT;
    ALTER TABLE detections ADD COLUMN level_unit TEXT NOT NULL DEFAULT '';
    ALTER TABLE detections ADD COLUMN verdict TEXT;
    ALTER TABLE detections ADD COLUMN verdict_note TEXT NOT NULL DEFAULT '';
    ALTER TABLE detections ADD COLUMN verdict_utc TEXT;
    ALTER TABLE detections ADD COLUMN removed TEXT;
    CREATE INDEX detections_by_session ON detections (session);
    CREATE INDEX detections_by_time ON detections (start_utc);
    CREATE INDEX detections_with_files ON detections (verdict, id)
        WHERE removed IS NULL AND (clip IS NOT NULL OR snapshot IS NOT NULL);
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        live INTEGER NOT NULL,
        rate_hz INTEGER NOT NULL,
        channels TEXT NOT NULL,
        hydrophones TEXT,
        station TEXT NOT NULL DEFAULT '',
        boot TEXT,
        bundle TEXT,
        bundle_digest TEXT,
        version TEXT,
        started_utc TEXT,
        started_steady_s REAL,
        ended_utc TEXT
    );
    CREATE INDEX sessions_by_boot ON sessions (boot);
    CREATE TABLE ledger (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        kind TEXT NOT NULL,
        cause TEXT NOT NULL DEFAULT '',
        step INTEGER NOT NULL DEFAULT 0,
        step_name TEXT NOT NULL DEFAULT '',
        start_sample INTEGER,
        end_sample INTEGER,
        start_utc TEXT,
        end_utc TEXT,
        start_steady_s REAL,
        end_steady_s REAL,
        synchronised INTEGER
    );
    CREATE INDEX ledger_by_session ON ledger (session, start_sample);
    CREATE INDEX ledger_by_time ON ledger (start_utc);
    CREATE TABLE clock (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        sample INTEGER,
        utc TEXT,
        jump_s REAL,
        was_synchronised INTEGER,
        synchronised INTEGER,
        drift_ppm REAL
    );
    CREATE INDEX clock_by_session ON clock (session, sample);
    CREATE TABLE levels (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        start_sample INTEGER NOT NULL,
        end_sample INTEGER NOT NULL,
        start_utc TEXT,
        levels_db TEXT NOT NULL,
        peaks_db TEXT NOT NULL,
        clipped TEXT NOT NULL,
        unit TEXT NOT NULL,
        synchronised INTEGER
    );
    CREATE INDEX levels_by_session ON levels (session, start_sample);
    CREATE INDEX levels_by_time ON levels (start_utc);
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sink TEXT NOT NULL,
        kind TEXT NOT NULL,
        priority INTEGER NOT NULL,
        created_utc TEXT NOT NULL,
        payload BLOB NOT NULL,
        sent_utc TEXT,
        tries INTEGER NOT NULL DEFAULT 0,
        refused TEXT
    );
    CREATE INDEX outbox_waiting ON outbox (sink, priority DESC, id) WHERE sent_utc IS NULL AND refused IS NULL;
    CREATE INDEX outbox_sent ON outbox (sink, sent_utc) WHERE sent_utc IS NOT NULL;
    CREATE TABLE budgets (
        sink TEXT PRIMARY KEY,
        left_bytes REAL NOT NULL,
        at_utc TEXT NOT NULL
    );
    CREATE TABLE recoveries (
        id INTEGER PRIMARY KEY,
        utc TEXT NOT NULL,
        fault TEXT NOT NULL,
        moved_to TEXT NOT NULL,
        recovered TEXT NOT NULL,
        lost TEXT NOT NULL
    )
    """,
    """
    UPDATE detections SET start_utc = strftime('%Y-%m-%dT%H:%M:%f', start_utc) || '000+00:00'
        WHERE start_utc NOT LIKE '%+00:00' AND julianday(start_utc) IS NOT NULL;
    DROP INDEX detections_by_time;
    CREATE INDEX detections_by_time ON detections
        (start_utc, id, score, verdict, best_channel, station, bundle, source, verdict_note);
    CREATE INDEX detections_by_score ON detections
        (score, id, start_utc, verdict, best_channel, station, bundle, source, verdict_note);
    ALTER TABLE detections ADD COLUMN bearing_deg REAL;
    ALTER TABLE detections ADD COLUMN bearing_error_deg REAL;
    ALTER TABLE detections ADD COLUMN bearing_note TEXT NOT NULL DEFAULT '';
    ALTER TABLE detections ADD COLUMN clip_start_s REAL;
    ALTER TABLE detections ADD COLUMN reviewer TEXT NOT NULL DEFAULT '';
    ALTER TABLE sessions ADD COLUMN latitude_deg REAL;
    ALTER TABLE sessions ADD COLUMN longitude_deg REAL;
    CREATE TABLE verdicts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        detection INTEGER NOT NULL,
        verdict TEXT,
        note TEXT NOT NULL DEFAULT '',
        reviewer TEXT NOT NULL DEFAULT '',
        utc TEXT NOT NULL
    );
    CREATE INDEX verdicts_by_detection ON verdicts (detection);
    CREATE TABLE shadows (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        source TEXT NOT NULL,
        bundle TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        start_sample INTEGER NOT NULL,
        end_sample INTEGER NOT NULL,
        start_s REAL NOT NULL,
        end_s REAL NOT NULL,
        start_utc TEXT,
        score REAL NOT NULL,
        channels TEXT NOT NULL,
        channel_scores TEXT NOT NULL,
        best_channel INTEGER NOT NULL
    );
    CREATE INDEX shadows_by_session ON shadows (session, start_sample);
    CREATE TABLE shadowed (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        bundle TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        cause TEXT NOT NULL DEFAULT '',
        start_sample INTEGER NOT NULL,
        end_sample INTEGER NOT NULL,
        start_utc TEXT
    );
    CREATE INDEX shadowed_by_session ON shadowed (session, start_sample);
    CREATE TABLE shadow_scores (
        id INTEGER PRIMARY KEY,
        bundle TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        score REAL NOT NULL
    );
    CREATE TABLE scans (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint TEXT NOT NULL,
        about TEXT NOT NULL,
        started_utc TEXT NOT NULL,
        ended_utc TEXT
    );
    CREATE TABLE scanned (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        scan INTEGER NOT NULL,
        path TEXT NOT NULL,
        size INTEGER,
        modified_ns INTEGER,
        session INTEGER,
        scored_s REAL NOT NULL DEFAULT 0,
        detections INTEGER NOT NULL DEFAULT 0,
        fault TEXT,
        finished_utc TEXT NOT NULL
    );
    CREATE UNIQUE INDEX scanned_once ON scanned (scan, path)
    """,
)


def migrate(connection: sqlite3.Connection, version: int, steps: tuple[str, ...]) -> None:
    """Run the steps that a database has not seen, inside the caller's transaction."""
    for step in steps[version:]:
        for statement in step.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(steps)}")
