from __future__ import annotations

import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from orcawatch import store as store_module
from orcawatch.durable import Complaint
from orcawatch.errors import InputError, OrcawatchError
from orcawatch.schema import STEPS
from orcawatch.store import Detection, FullError, Reader, Store

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
    station="north",
    session=3,
    start_sample=60000,
    end_sample=144000,
    synchronised=False,
    hydrophones=("SN 12", "SN 7"),
    levels_db=(98.5, 101.25),
    level_unit="dB re 1 uPa",
    verdict="unsure",
    verdict_note="faint",
    verdict_utc=datetime(2026, 12, 1, tzinfo=timezone.utc),
    removed="older than 30 days",
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


def test_what_was_not_measured_comes_back_as_no_number(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store:
        store.add(replace(DETECTION, channel_scores=(0.5, math.nan), levels_db=(math.nan, 90.0)))
        (row,) = store.detections()
        stored = store._connection.execute("SELECT channel_scores, levels_db FROM detections").fetchone()
    assert row.channel_scores[0] == 0.5 and math.isnan(row.channel_scores[1])
    assert math.isnan(row.levels_db[0]) and row.levels_db[1] == 90.0
    assert stored == ("[0.5, null]", "[null, 90.0]")


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


@pytest.mark.parts
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
    steps = (*STEPS, "ALTER TABLE detections ADD COLUMN another REAL", "no SQL")
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
    [
        ({"start_utc": datetime(2026, 1, 1)}, "timezone"),
        ({"verdict_utc": datetime(2026, 1, 1)}, "timezone"),
        ({"numbers": {"snr_db": float("nan")}}, "not JSON compliant"),
        ({"levels_db": (math.inf,)}, "not JSON compliant"),
    ],
)
def test_refuses_what_could_not_come_back(tmp_path: Path, wrong: dict, words: str) -> None:
    with Store(tmp_path / "events.db") as store:
        with pytest.raises(ValueError, match=words):
            store.add(replace(DETECTION, **wrong))
        assert store.detections() == []


def make_version_1(path: Path) -> list[tuple[object, ...]]:
    """A database as the first release made it, with rows."""
    rows: list[tuple[object, ...]] = [
        ("a.flac", 1.25, 3.0, "2026-11-23T04:05:06.789000-08:00", 0.75, "[2, 3]", "[0.25, 0.75]", 3, "b", "ab" * 32,
         "clips/000001.flac", "snapshots/000001.png", '{"windows": 4.0}', "north"),
        ("b.flac", 2.0, 4.0, None, 0.5, "[0]", "[]", 0, "b", "ab" * 32, None, None, "{}", ""),
    ]  # fmt: skip
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(STEPS[0])
        connection.executemany(f"INSERT INTO detections VALUES (NULL, {', '.join('?' * 14)})", rows)
        connection.execute("PRAGMA user_version = 1")
    return rows


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    rows = make_version_1(tmp_path / "events.db")
    with Store(tmp_path / "events.db") as store:
        first, second = store.detections()
        third = store.add(DETECTION)
        tables = [name for (name,) in store._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert (first.id, second.id, third) == (1, 2, 3)
    assert first == Detection(
        1, "a.flac", 1.25, 3.0, datetime.fromisoformat(str(rows[0][3])), 0.75, (2, 3), (0.25, 0.75), 3, "b", "ab" * 32,
        "clips/000001.flac", "snapshots/000001.png", {"windows": 4.0}, "north",
    )  # fmt: skip
    assert (second.session, second.hydrophones, second.verdict, second.removed) == (None, (), None, None)
    names = "detections sessions ledger clock levels outbox budgets recoveries verdicts shadows scans scanned"
    names += " shadowed shadow_scores"
    names += " sqlite_sequence"
    assert sorted(tables) == sorted(names.split())


def test_an_upgraded_database_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    make_version_1(tmp_path / "old.db")
    schemas = []
    for name in ("old.db", "new.db"):
        with Store(tmp_path / name) as store:
            schemas.append(store._connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
            assert store._connection.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    assert schemas[0] == schemas[1]


MIGRATOR = """
import os, signal, sys
from pathlib import Path
from orcawatch import store
def killed(connection, version, steps):
    for statement in ";".join(steps[version:]).split(";")[: int(sys.argv[2])]:
        connection.execute(statement)
    os.kill(os.getpid(), signal.SIGKILL)
store.migrate = killed
store.Store(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statements", [1, 7, 14, 40])
def test_a_migration_that_is_killed_leaves_the_file_as_it_was(tmp_path: Path, statements: int) -> None:
    make_version_1(tmp_path / "events.db")
    command = [sys.executable, "-c", MIGRATOR, str(tmp_path / "events.db"), str(statements)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "events.db")) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
        assert len(other.execute("PRAGMA table_info(detections)").fetchall()) == 15
        assert other.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ledger'").fetchone() == (0,)
    with Store(tmp_path / "events.db") as store:
        assert len(store.detections()) == 2


def test_the_queries_use_the_indexes(tmp_path: Path) -> None:
    queries = {
        "SELECT * FROM outbox WHERE sink = 'm' AND sent_utc IS NULL AND refused IS NULL ORDER BY priority DESC, id LIMIT 1": "outbox_waiting",
        "SELECT * FROM ledger WHERE session = 1 ORDER BY start_sample": "ledger_by_session",
        "SELECT * FROM levels WHERE start_utc >= '2026' AND start_utc < '2027'": "levels_by_time",
        "SELECT id FROM detections WHERE verdict IS NULL AND removed IS NULL "
        "AND (clip IS NOT NULL OR snapshot IS NOT NULL) ORDER BY id LIMIT 1": "detections_with_files",
    }
    with Store(tmp_path / "events.db") as store:
        for query, index in queries.items():
            (plan,) = store._connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            assert index in plan[-1], plan


def test_what_goes_along_with_a_row_is_all_or_none(tmp_path: Path) -> None:
    def gap(connection: sqlite3.Connection, id: int) -> None:
        connection.execute("INSERT INTO ledger (session, kind, start_sample) VALUES (3, 'gap', ?)", (id,))

    def broken(connection: sqlite3.Connection, id: int) -> None:
        gap(connection, id)
        connection.execute("INSERT INTO nowhere VALUES (1)")

    with Store(tmp_path / "events.db") as store:
        id = store.add(DETECTION, gap)
        with pytest.raises(OrcawatchError, match="no such table"):
            store.add(DETECTION, broken)
        with store.transaction() as connection:
            assert connection.execute("SELECT start_sample FROM ledger").fetchall() == [(id,)]
        assert len(store.detections()) == 1


def test_a_reader_looks_while_others_write(tmp_path: Path) -> None:
    with Store(tmp_path / "events.db") as store, Store.reader(tmp_path / "events.db") as reader:
        store.add(DETECTION)
        with reader.transaction() as connection:
            assert connection.execute("SELECT count(*) FROM detections").fetchone() == (1,)
            store.add(DETECTION)
            assert connection.execute("SELECT count(*) FROM detections").fetchone() == (1,)
        assert reader.detections() == store.detections() and len(reader.detections()) == 2
        with pytest.raises(OrcawatchError, match="readonly"), reader.transaction() as connection:
            connection.execute("DELETE FROM detections")
        assert store.add(DETECTION) == 3


def test_a_reader_creates_and_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        Reader(tmp_path / "events.db")
    make_version_1(tmp_path / "events.db")
    before = (tmp_path / "events.db").read_bytes()
    with pytest.raises(InputError, match=r"schema 1; this version reads 3: `orcawatch run`"):
        Reader(tmp_path / "events.db")
    with closing(sqlite3.connect(tmp_path / "events.db")) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="upgrade"):
        Reader(tmp_path / "events.db")
    (tmp_path / "other.db").write_text("no database, " * 1000)
    with pytest.raises(InputError, match="cannot be read"):
        Reader(tmp_path / "other.db")
    assert len((tmp_path / "events.db").read_bytes()) == len(before)
    assert {file.name for file in tmp_path.iterdir()} <= {"events.db", "events.db-wal", "events.db-shm", "other.db"}


@pytest.mark.parts
def test_the_write_ahead_log_stays_small(tmp_path: Path) -> None:
    """A reader keeps SQLite from emptying it; once that is gone it shrinks."""
    path = tmp_path / "events.db"
    long = replace(DETECTION, numbers={f"n{index}": index / 7 for index in range(3000)})
    with Store(path) as store:
        with Store.reader(path) as reader, reader.transaction() as connection:
            connection.execute("SELECT count(*) FROM detections").fetchone()
            for _ in range(120):
                store.add(long)
            assert store_module.write_ahead_size(path) > 8 << 20
        for _ in range(120):
            store.add(long)
        assert store_module.write_ahead_size(path) <= 8 << 20


def test_a_file_that_is_gone_is_not_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with a disk that is no longer mounted; when it is back, the store goes on."""
    (tmp_path / "disk").mkdir()
    with Store(tmp_path / "disk" / "events.db") as store:
        store.add(DETECTION)
        (tmp_path / "disk").rename(tmp_path / "elsewhere")
        for _ in range(3):
            with pytest.raises(OrcawatchError, match="cannot be opened"):
                store.add(DETECTION)
        assert not (tmp_path / "disk").exists()
        (tmp_path / "elsewhere").rename(tmp_path / "disk")
        assert store.add(DETECTION) == 2
        assert len(store.detections()) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_room_that_was_kept_is_given_up_when_the_disk_is_full(tmp_path: Path, no_room: object) -> None:
    """The limit of the file's pages stands for a full disk."""
    asked: list[bool] = []

    def make_room(full: bool) -> bool:
        asked.append(full)
        if full:
            store._connection.execute("PRAGMA max_page_count = 100000")
        return full

    big = replace(DETECTION, numbers={f"n{index}": index / 7 for index in range(3000)})
    with Store(tmp_path / "events.db") as store:
        store._connection.execute("PRAGMA max_page_count = 30")
        with pytest.raises(FullError, match="is full"):
            store.add(big)
        store.make_room = make_room
        assert store.add(big) == 1
        assert asked == [False, True, False]


@pytest.mark.parts
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_commit_that_failed_is_never_doubled(tmp_path: Path, call: str) -> None:
    """The disk refuses a call of a commit; whether or not the row is there in spite of it, a second try leaves one."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    failed = 0
    for when in range(1, 8):
        path = tmp_path / f"{call}{when}.db"
        Store(path).close()
        inject = [
            "strace",
            "-f",
            "-o",
            "/dev/null",
            "-P",
            f"{path}-wal",
            "-e",
            f"inject={call}:error=EIO:when={when}..{when + 1}",
        ]
        done = subprocess.run([*inject, sys.executable, "-c", STUBBORN, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tries = [int(tries) for tries in done.stdout.split()]
        with Store(path) as store:
            assert [row.start_s for row in store.detections()] == [0.0, 1.0, 2.0]
        assert len(tries) == 3
        failed += sum(tries) - 3
    assert failed >= 3


STUBBORN = """
import sys
from dataclasses import replace
from pathlib import Path
from orcawatch.errors import OrcawatchError
from orcawatch.store import Detection, Store
row = Detection(None, "s", 0.0, 1.0, None, 0.5, (0,), (0.5,), 0, "b", "d")
def opened():
    try:
        return Store(Path(sys.argv[1]))
    except OrcawatchError:
        return opened()
with opened() as store:
    for count in range(3):
        tries = 1
        while True:
            try:
                store.add(replace(row, start_s=float(count)))
                break
            except OrcawatchError:
                tries += 1
        print(tries, flush=True)
"""


def test_a_disk_that_is_full_for_months_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "UNSURE", 20)
    with Store(tmp_path / "d.sqlite") as store:
        store._connection.execute("PRAGMA max_page_count = 30")
        for second in range(200):
            with suppress(FullError):
                store.add(replace(DETECTION, start_s=float(second)))
        assert len(store._unsure) == 20 and list(store._unsure)[-1][1] == 199.0


def test_trouble_that_lasts_is_told_at_doubling_intervals(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    complaint = Complaint(store_module.log, lambda: now_s[0])
    complaint.end("fine")
    told = []
    for second in range(0, 1000, 10):
        now_s[0] = float(second)
        complaint.say("no disk")
        if len(caplog.records) > len(told):
            told.append(second)
    complaint.end("fine")
    assert told == [0, 60, 180, 420, 900]
    assert caplog.messages[0] == "no disk" and caplog.messages[1] == "no disk (for 60 s, 5 times not told)"
    assert caplog.messages[-1] == "fine, after 990 s" and len(caplog.records) == 6
