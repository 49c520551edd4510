from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from orcawatch.errors import InputError, OrcawatchError
from orcawatch.schema import STEPS
from orcawatch.store import Detection, Store

DETECTION = Detection(
    id=None,
    source="scene.flac",
    start_s=1.25,
    end_s=3.0,
    start_utc=datetime(2026, 11, 23, 4, 5, 6, 789000, timezone(timedelta(hours=-8))),
    score=0.1 + 0.2,
    channels=(2, 3),
    channel_scores=(0.25, 1 / 3),
    best_channel=3,
    bundle="first-light",
    bundle_digest="ab" * 32,
    numbers={"windows": 4.0},
)
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from orcawatch.store import Detection, Store
row = Detection(None, "s", 0.0, 1.0, None, 0.5, (0,), (0.5,), 0, "b", "d")
with Store(Path(sys.argv[1])) as store:
    count = int(sys.argv[2])
    while True:
        print(store.add(replace(row, start_s=float(count))), count, flush=True)
        count += 1
"""


def test_row_comes_back_as_it_was(tmp_path: Path) -> None:
    with Store(tmp_path / "deep" / "events.db") as store:
        ids = [store.add(DETECTION), store.add(replace(DETECTION, start_utc=None, channel_scores=()))]
        first, second = store.detections()
    assert first == replace(DETECTION, id=ids[0])
    assert second == replace(DETECTION, id=ids[1], start_utc=None, channel_scores=())
    with Store(tmp_path / "deep" / "events.db") as store:
        assert store.detections() == [first, second]


def test_ids_are_never_used_again(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store:
        store.add(DETECTION)
        last = store.add(DETECTION)
        with sqlite3.connect(tmp_path / "events.db") as other:
            other.execute("DELETE FROM detections")
        assert store.add(DETECTION) > last


def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store:
        pragmas = [
            store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")
        ]
    assert pragmas == [2, "wal"]


def test_attach_keeps_what_it_is_not_given(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store:
        id = store.add(DETECTION)
        store.attach(id, clip="a.flac")
        store.attach(id, snapshot="a.png", numbers={"relevance_in_band": 0.1})
        (row,) = store.detections()
        with pytest.raises(KeyError, match="no detection 99"):
            store.attach(99, clip="b.flac")
    numbers = {"windows": 4.0, "relevance_in_band": 0.1}
    assert row == replace(DETECTION, id=id, clip="a.flac", snapshot="a.png", numbers=numbers)


def test_a_second_thread_attaches_while_the_first_adds(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store:
        ids = [store.add(DETECTION) for _ in range(20)]
        worker = threading.Thread(target=lambda: [store.attach(id, clip=f"{id}.flac") for id in ids])
        worker.start()
        added = [store.add(DETECTION) for _ in range(20)]
        worker.join()
        rows = store.detections()
    assert [row.id for row in rows] == ids + added
    assert [row.clip for row in rows] == [f"{id}.flac" for id in ids] + [None] * 20


def kill_at_random(path: Path, first: int, rng: random.Random) -> list[tuple[int, int]]:
    """Let a process add rows, kill it, and return the (id, count) pairs that it had acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), str(first)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline()]
    time.sleep(rng.uniform(0, 0.05))
    os.kill(writer.pid, signal.SIGKILL)
    lines += writer.stdout.read().splitlines(keepends=True)
    assert writer.wait() == -signal.SIGKILL
    return [(int(id), int(count)) for id, count in (line.split() for line in lines if line.endswith("\n"))]


def test_acknowledged_rows_survive_sigkill(tmp_path: Path) -> None:
    rng = random.Random(0)
    acknowledged: list[tuple[int, int]] = []
    for kill in range(20):
        acknowledged += kill_at_random(tmp_path / "events.db", 1_000_000 * kill, rng)
    with Store(tmp_path / "events.db") as store:
        stored = [(row.id, int(row.start_s)) for row in store.detections()]
    assert len(acknowledged) >= 20
    assert len({id for id, _ in stored}) == len(stored) == len({count for _, count in stored})
    assert set(acknowledged) <= set(stored)
    assert len(stored) - len(acknowledged) <= 20  # at most one row per kill was written but not yet acknowledged


def test_refuses_a_newer_schema(tmp_path: Path) -> None:
    Store(tmp_path / "events.db").close()
    with sqlite3.connect(tmp_path / "events.db") as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match=f"schema 99; this version reads 0 to {len(STEPS)}: upgrade orcawatch"):
        Store(tmp_path / "events.db")


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "events.db") as store:
        store.add(DETECTION)
    steps = (*STEPS, "ALTER TABLE detections ADD COLUMN bearing_deg REAL", "no SQL")
    monkeypatch.setattr("orcawatch.store.STEPS", steps)
    with pytest.raises(OrcawatchError, match="syntax"):
        Store(tmp_path / "events.db")
    monkeypatch.undo()
    with Store(tmp_path / "events.db") as store:
        assert len(store.detections()) == 1
    monkeypatch.setattr("orcawatch.store.STEPS", steps[:-1])
    with Store(tmp_path / "events.db") as store:
        assert len(store.detections()) == 1
        assert store._connection.execute("SELECT bearing_deg FROM detections").fetchall() == [(None,)]


def test_refuses_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_text("no database, " * 1000)
    with pytest.raises(InputError, match="damaged or no database"):
        Store(tmp_path / "events.db")


def test_refuses_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with Store(path) as store:
        for _ in range(100):
            store.add(DETECTION)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 4 * 4096] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Store(path)


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"start_utc": datetime(2026, 1, 1)}, "timezone"), ({"numbers": {"snr_db": float("nan")}}, "not JSON compliant")],
)
def test_refuses_what_could_not_come_back(tmp_path: Path, wrong: dict, words: str) -> None:
    with Store(tmp_path / "events.db") as store:
        with pytest.raises(ValueError, match=words):
            store.add(replace(DETECTION, **wrong))
        assert store.detections() == []
