from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable

import pytest

from orcawatch import pages, recovery
from orcawatch.errors import InputError, OrcawatchError
from orcawatch.recovery import open_store
from orcawatch.schema import STEPS, migrate
from orcawatch.store import COLUMNS, DamagedError, Detection, Store

pytestmark = pytest.mark.parts

ROWS = 300
PAGE_B = 4096
START = datetime(2026, 3, 1, tzinfo=timezone.utc)
ROW = Detection(None, "sea", 0.0, 1.0, None, 0.5, (0, 1), (0.5, 0.25), 0, "b", "d" * 64, session=1)


def detection(index: int) -> Detection:
    """Every tenth has numbers that fill more than a page."""
    numbers = {f"n{n}": n / 7 for n in range(1000 if index % 10 == 0 else 3)}
    start_utc = START + timedelta(minutes=index)
    return replace(ROW, start_s=index * 60.0, end_s=index * 60.0 + 1.5, start_utc=start_utc, numbers=numbers)


def add_all(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO sessions (source, live, rate_hz, channels, started_steady_s) VALUES ('sea', 1, 100, '[0, 1]', 9)"
        )
    for index in range(ROWS):
        store.add(detection(index), lambda connection, id: add_others(connection, id))
    for id in range(1, ROWS, 3):
        store.attach(id, clip=f"clips/{id:06d}.flac", numbers={"relevance_in_band": 0.5})


def enter(connection: sqlite3.Connection, start: int, end: int) -> None:
    """A row of the ledger, at 100 samples a second."""
    columns = "session, kind, start_sample, end_sample, start_steady_s, end_steady_s"
    span = (start, end, 9 + start / 100, 9 + end / 100)
    connection.execute(f"INSERT INTO ledger ({columns}) VALUES (1, 'gap', ?, ?, ?, ?)", span)


def add_others(connection: sqlite3.Connection, id: int) -> None:
    levels = ("[-90.5, null]", "[-80, -70.25]", "[0, 3]", "dB re 1 uPa")
    connection.execute(
        "INSERT INTO levels (session, start_sample, end_sample, levels_db, peaks_db, clipped, unit) "
        "VALUES (1, ?, ?, ?, ?, ?, ?)",
        (id * 100, id * 100 + 100, *levels),
    )
    enter(connection, id * 100, id * 100 + 100)
    connection.execute(
        "INSERT INTO outbox (sink, kind, priority, created_utc, payload) VALUES ('m', 'detection', 1, ?, ?)",
        (START.isoformat(), os.urandom(40)),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with the same database: `closed`, and as a kill would leave it, `open`, half of it in the -wal."""
    root = tmp_path_factory.mktemp("made")
    (root / "open").mkdir()
    with Store(root / "closed" / "d.sqlite") as store:
        add_all(store)
        for part in ("", "-wal", "-shm"):
            shutil.copy(f"{store.path}{part}", root / "open")
    return root


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the two."""

    def copy(state: str) -> Path:
        shutil.copytree(made / state, tmp_path / "out")
        return tmp_path / "out" / "d.sqlite"

    return copy


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[int, Detection]:
    """Its detections by number."""
    with Store.reader(made / "closed" / "d.sqlite") as reader:
        return {int(row.id or 0): row for row in reader.detections()}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def rescued(path: Path, before: dict[str, bytes], in_use: bool = True) -> dict[int, Detection]:
    """What is in the new database, after checks that hold for any damage; to pages that are not in use there is none."""
    with open_store(path) as store:
        rows = {int(row.id or 0): row for row in store.detections()}
        with store.transaction() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            entries = connection.execute("SELECT moved_to, recovered FROM recoveries").fetchall()
            if not entries and not in_use:
                return rows
            ((moved_to, recovered),) = entries
        added = store.add(ROW)
    assert added > ROWS and added not in rows
    assert json.loads(recovered)["detections"] == len(rows)
    after = contents(path.parent)
    assert after[moved_to] == before["d.sqlite"]
    if "d.sqlite-wal" in before:
        assert after[f"{moved_to}-wal"] == before["d.sqlite-wal"]
    return rows


def flip(path: Path, offset: int, length: int, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = rng.randbytes(len(content[offset : offset + length]))
    path.write_bytes(content)


def test_whole_databases_stay_where_they_are(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    with open_store(path("open")) as store:
        assert {row.id: row for row in store.detections()} == whole
        assert not list(store.path.parent.glob("*damaged*"))


@pytest.mark.parametrize("seed", range(12))
def test_rows_beside_damaged_pages_are_rescued(
    path: Callable[[str], Path], whole: dict[int, Detection], seed: int
) -> None:
    """Some pages of the file hold anything."""
    rng = random.Random(seed)
    file = path("closed")
    pages_there = file.stat().st_size // PAGE_B
    damaged = rng.sample(range(1, pages_there), rng.randint(1, 4))
    for page in damaged:
        flip(file, page * PAGE_B, PAGE_B, rng)
    before = contents(file.parent)
    found = rescued(file, before, in_use=False)
    assert all(row == whole[id] for id, row in found.items())
    assert len(whole) - len(found) <= 16 * len(damaged)  # a page holds 16 of these rows at most


def test_what_is_lost_is_told(
    path: Callable[[str], Path], whole: dict[int, Detection], caplog: pytest.LogCaptureFixture
) -> None:
    """The page that holds detection 152 (a short one) is zeros."""
    file = path("closed")
    page = next(
        number
        for number, page in pages.pages_of(file, PAGE_B)
        for rowid, values in pages.rows_of(number, page, pages.page_reader(file, PAGE_B))
        if rowid == 152 and len(values) == len(COLUMNS.split(", "))
    )
    content = bytearray(file.read_bytes())
    content[(page - 1) * PAGE_B : page * PAGE_B] = bytes(PAGE_B)
    file.write_bytes(content)
    found = rescued(file, contents(file.parent))
    gone = sorted(set(whole) - set(found))
    assert 152 in gone and gone == list(range(gone[0], gone[-1] + 1))
    with Store.reader(file) as reader, reader.transaction() as connection:
        ((fault, recovered, lost),) = connection.execute("SELECT fault, recovered, lost FROM recoveries").fetchall()
    assert json.loads(lost) == {"detections": f"{gone[0]} to {gone[-1]}"} and "integrity_check" not in fault
    assert json.loads(recovered) == {
        "detections": ROWS - len(gone), "sessions": 1, "ledger": ROWS, "levels": ROWS, "outbox": ROWS, "clock": 0,
        "recoveries": 0, "verdicts": 0, "shadows": 0, "shadowed": 0, "shadow_scores": 0, "scans": 0, "scanned": 0,
    }  # fmt: skip
    assert "is damaged" in caplog.text and f"{gone[0]} to {gone[-1]}" in caplog.text


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_rescued(
    path: Callable[[str], Path], whole: dict[int, Detection], keep: float
) -> None:
    file = path("closed")
    size = round(file.stat().st_size * keep)
    os.truncate(file, size)
    found = rescued(file, contents(file.parent))
    assert all(row == whole[id] for id, row in found.items())
    assert len(found) > ROWS * keep * 0.25  # indexes lie between the rows


def test_a_tail_of_zeros_is_rescued(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    file = path("closed")
    content = file.read_bytes()
    half = len(content) // 2 // PAGE_B * PAGE_B
    file.write_bytes(content[:half] + bytes(len(content) - half))
    found = rescued(file, contents(file.parent))
    assert len(found) > ROWS * 0.3 and all(row == whole[id] for id, row in found.items())


@pytest.mark.parametrize("length", [16, 100, PAGE_B])
def test_a_file_without_its_head_is_rescued(
    path: Callable[[str], Path], whole: dict[int, Detection], length: int
) -> None:
    """Without its first page SQLite knows nothing at all: every row comes from the raw pages."""
    file = path("closed")
    flip(file, 0, length, random.Random(length))
    assert rescued(file, contents(file.parent)) == whole


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    file = tmp_path / "d.sqlite"
    file.write_bytes(os.urandom(50000))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "000400_sea.flac").touch()
    before = {"d.sqlite": file.read_bytes()}
    assert rescued(file, before) == {}


def test_an_empty_file_beside_a_log_is_rescued(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    """SQLite would delete the log."""
    file = path("open")
    file.write_bytes(b"")
    found = rescued(file, contents(file.parent))
    assert found and all(row == whole[id] for id, row in found.items())


def test_without_its_log_a_database_is_what_it_was(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    """What was in the log is lost, and nothing tells of it; the rest is whole."""
    file = path("open")
    Path(f"{file}-wal").unlink()
    with open_store(file) as store:
        found = {row.id: row for row in store.detections()}
    assert 0 < len(found) <= len(whole) and set(found) == set(range(1, len(found) + 1))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 32), (4, 4), (32, 4), (32 + 4120 * 10 + 500, 16), (32 + 4120 * 10 + 8, 4)]
)
def test_committed_rows_behind_a_damaged_part_of_the_log_are_rescued(
    path: Callable[[str], Path], whole: dict[int, Detection], offset: int, length: int
) -> None:
    """SQLite would pass over the rest of the log without a word."""
    file = path("open")
    flip(Path(f"{file}-wal"), offset, length, random.Random(1))
    found = rescued(file, contents(file.parent))
    lost = set(whole) - set(found)
    assert len(lost) <= 4
    assert set(found) <= set(whole)


def test_a_log_that_is_garbage_is_kept(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    file = path("open")
    log = Path(f"{file}-wal")
    log.write_bytes(os.urandom(log.stat().st_size))
    found = rescued(file, contents(file.parent))
    assert found and set(found) <= set(whole)


def test_a_commit_that_a_power_cut_left_half_written_is_no_damage(path: Callable[[str], Path]) -> None:
    file = path("open")
    log = Path(f"{file}-wal")
    content = log.read_bytes()
    frames = pages.write_ahead(content).frames
    last = 32 + 4120 * (len(frames) - 1)
    log.write_bytes(content[: last + 100] + bytes(4020))
    with open_store(file) as store:
        assert len(store.detections()) == ROWS
    assert not list(file.parent.glob("*damaged*"))


def test_the_log_is_read_as_sqlite_reads_it(path: Callable[[str], Path]) -> None:
    file = path("open")
    found = pages.write_ahead(Path(f"{file}-wal").read_bytes())
    assert found.whole_head and not found.broken and all(frame.chained for frame in found.frames)
    with closing(sqlite3.connect(file)) as connection:
        _, frames, _ = connection.execute("PRAGMA wal_checkpoint").fetchone()
    assert len(found.frames) >= frames > 0


def test_a_database_of_version_1_is_rescued(tmp_path: Path) -> None:
    file = tmp_path / "d.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        migrate(connection, 0, STEPS[:1])
        for index in range(200):
            values = ("sea", index, index + 1.5, None, 0.5, "[0]", "[0.5]", 0, "b", "d", None, None, "{}", "north")
            connection.execute(f"INSERT INTO detections VALUES (NULL, {', '.join('?' * 14)})", values)
        connection.commit()
    flip(file, 5 * PAGE_B, PAGE_B, random.Random(0))
    with open_store(file) as store:
        rows = store.detections()
    assert 130 < len(rows) < 200
    assert all((row.start_s, row.station, row.verdict) == (row.id - 1, "north", None) for row in rows if row.id)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_an_older_version_keeps_times_in_other_zones(tmp_path: Path, version: int, damaged: bool) -> None:
    """Its times are told in UTC when it is brought up to date, which comes after it was looked through."""
    file = tmp_path / "d.sqlite"
    columns = COLUMNS.split(", ")[1:15]
    with closing(sqlite3.connect(file)) as connection, connection:
        migrate(connection, 0, STEPS[:version])
        values = ("sea", 0, 1.5, "2024-05-01T12:00:00+02:00", 0.5, "[0]", "[0.5]", 0, "b", "d", None, None, "{}", "n")
        connection.execute(f"INSERT INTO detections ({', '.join(columns)}) VALUES ({', '.join('?' * 14)})", values)
    if damaged:
        file.write_bytes(file.read_bytes() + b"cut")
    for _ in range(2):
        with open_store(file) as store:
            (row,) = store.detections()
        assert row.start_utc == datetime(2024, 5, 1, 10, tzinfo=timezone.utc)
        assert row.start_utc.utcoffset() == timedelta(0)
    assert len(list(tmp_path.glob("*damaged*Z"))) == damaged


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Callable
from orcawatch import recovery
step, count = sys.argv[2], [0]
def die(original):
    def call(*given):
        result = original(*given) if step.endswith("-after") else None
        os.kill(os.getpid(), signal.SIGKILL)
    return call
module, name = step.split("-")[0].split(".")
target = {"recovery": recovery, "Path": Path}[module]
setattr(target, name, die(getattr(target, name)))
recovery.open_store(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "step",
    ["recovery.move", "recovery.rebuild", "recovery._tell-after", "Path.replace-after", "recovery.fill-after"],
)
def test_a_rescue_that_is_killed_is_begun_again(
    path: Callable[[str], Path], whole: dict[int, Detection], step: str
) -> None:
    file = path("open")
    flip(Path(f"{file}-wal"), 0, 32, random.Random(3))
    before = contents(file.parent)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file), step], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert set(whole) - set(rescued(file, before)) <= {1, 2, 3}
    assert not list(file.parent.glob("*recovering*"))


def test_newer_schemas_are_no_damage(path: Callable[[str], Path]) -> None:
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="upgrade"):
        open_store(file)
    assert not list(file.parent.glob("*damaged*"))


def test_lost_numbers_are_given_as_ranges() -> None:
    assert list(recovery.missing([3, 4, 7, 10], 12)) == ["1 to 2", "5 to 6", "8 to 9", "11 to 12"]
    assert list(recovery.missing([1, 3], 3)) == ["2"]
    assert list(recovery.missing([], 0)) == []


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("where", ["in the log", "in the file"])
def test_rows_of_the_ledger_that_were_replaced_do_not_come_back(tmp_path: Path, where: str, damaged: bool) -> None:
    """Many rows of an hour became one: time would be counted twice."""
    path = tmp_path / "out" / "d.sqlite"
    query = "SELECT start_sample, end_sample FROM ledger ORDER BY start_sample"
    with Store(tmp_path / "d.sqlite") as store:
        add_all(store)
        with store.transaction() as connection:
            connection.execute("DELETE FROM ledger WHERE start_sample >= 15000")
            enter(connection, 15000, 30100)
        if where == "in the file":
            store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with store.transaction() as connection:
            before = connection.execute(query).fetchall()
            (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger'").fetchone()
        shutil.copytree(tmp_path, path.parent, ignore=shutil.ignore_patterns("out"))
    if damaged:
        flip(path, root * PAGE_B - 1000, 1000, random.Random(0))  # where its first rows are
    recovery.rescue(path, "a test")
    with Store(path) as store, store.transaction() as connection:
        after = connection.execute(query).fetchall()
    assert after and all(end <= start for (_, end), (start, _) in zip(after, after[1:]))
    assert after == before or (
        damaged and set(after) <= {(id * 100, id * 100 + 100) for id in range(1, 301)} | set(before)
    )


def test_a_row_that_makes_no_sense_is_left_out(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    """A time that is none, in the row and in its index."""
    file = path("closed")
    content = file.read_bytes()
    file.write_bytes(content.replace(whole[152].start_utc.isoformat().encode(), b"2026-03-01Tno time at all"))
    found = rescued(file, contents(file.parent))
    assert set(whole) - set(found) == {152}


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("ledger", "start_utc = '2026-05-02T03:21:36/00:00'"),
        ("ledger", "end_utc = '2026-02-30T03:21:36+00:00'"),
        ("levels", "start_utc = '2026-05-02T24:00:00+00:00'"),
        ("levels", "levels_db = '7'"),
        ("sessions", "started_utc = CAST(started_utc AS BLOB)"),
        ("sessions", "rate_hz = 'many'"),
        ("ledger", "end_utc = '2026-05-02T03:21:36'"),
        ("ledger", "end_utc = '9999-12-31T23:59:59+00:00'"),
        ("ledger", "end_steady_s = NULL"),
        ("ledger", "end_steady_s = 9e999"),
        ("ledger", "start_steady_s = end_steady_s + 1"),
        ("ledger", "start_sample = NULL"),
        ("ledger", "start_sample = -1"),
        ("ledger", "kind = 'recorde\x7f'"),
        ("sessions", "started_steady_s = NULL"),
        ("sessions", "rate_hz = 0"),
        ("detections", "score = 'high'"),
        ("detections", "score = -9e999"),
        ("detections", "numbers = '[]'"),
    ],
)
def test_values_that_no_column_holds_are_seen_in_every_table(
    path: Callable[[str], Path], table: str, change: str
) -> None:
    """Found by fuzzing: the daemon started, and whatever read the row broke."""
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE sessions SET started_utc = '2026-03-01T00:00:00+00:00'")
        connection.execute(f"UPDATE {table} SET {change} WHERE id = 1")
    with open_store(file) as store, store.transaction() as connection:
        ((fault, recovered),) = connection.execute("SELECT fault, recovered FROM recoveries").fetchall()
        assert fault == f'rows cannot be read: {{"{table}": 1}}'
        assert json.loads(recovered)[table] == connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        assert recovery.garbled_rows(file) == {}


def test_a_raw_row_without_a_column_is_passed_over(
    path: Callable[[str], Path], whole: dict[int, Detection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by fuzzing: it broke the rescue."""
    file, rows = path("closed"), pages.rows_of
    monkeypatch.setattr(pages, "rows_of", lambda *page: [(1, ()), *rows(*page)])
    flip(file, 0, 16, random.Random(0))
    assert rescued(file, contents(file.parent)) == whole


def test_a_garbled_row_hides_no_older_state_of_it(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    """The newest page of a row comes first: where that is garbled, what SQLite or an older page has is taken."""
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE detections SET score = 9e999 WHERE id = 7")
        connection.execute("UPDATE ledger SET end_sample = 1 << 60, end_steady_s = NULL WHERE id = 7")
        connection.commit()
        for part in ("", "-wal"):
            shutil.copy(f"{file}{part}", f"{file}{part}.kept")
    for part in ("", "-wal"):
        Path(f"{file}{part}.kept").replace(f"{file}{part}")
    flip(Path(f"{file}-wal"), 0, 32, random.Random(0))
    assert rescued(file, contents(file.parent)) == whole
    with open_store(file) as store, store.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM ledger").fetchone()[0] == ROWS


def test_a_name_in_the_schema_that_is_no_text_is_damage(
    path: Callable[[str], Path], whole: dict[int, Detection]
) -> None:
    """Found by fuzzing: SQLite tells the name in its message, and Python could not tell that."""
    file = path("closed")
    content = file.read_bytes()
    file.write_bytes(content.replace(b"(score, id, start_utc", b"(\xffcore, id, start_utc"))
    assert file.read_bytes() != content
    with pytest.raises(DamagedError, match="no such column: \N{REPLACEMENT CHARACTER}core"):
        Store(file)
    with pytest.raises(InputError, match="cannot be read: malformed database schema"):
        Store.reader(file)
    assert rescued(file, contents(file.parent)) == whole


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"bearing_deg REAL", b"bearing_dEg REAL"),
        (b"bearing_deg REAL", b"bearing_hog REAL"),
        (b"bearing_deg REAL", b"bearing_deg REAK"),
        (struct.pack(">2I", len(STEPS), 0), bytes(8)),  # the version
    ],
)
def test_a_schema_that_is_not_that_of_its_version_is_damage(
    path: Callable[[str], Path], whole: dict[int, Detection], right: bytes, wrong: bytes
) -> None:
    """Found by fuzzing: SQLite takes it, and the rows had other names. No value is lost."""
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE detections SET bearing_deg = 123.5 WHERE id = 7")
    content = bytearray(file.read_bytes())
    at = content.index(right, 56)
    content[at : at + len(right)] = wrong
    file.write_bytes(content)
    assert rescued(file, contents(file.parent)) == {**whole, 7: replace(whole[7], bearing_deg=123.5)}


OWN = ("ALTER TABLE detections ADD COLUMN ecotype TEXT", "ALTER TABLE levels ADD COLUMN checked_utc TEXT")


def add_columns(file: Path) -> None:
    """As somebody may do with SQLite's own tools."""
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in OWN:
            connection.execute(statement)
        connection.execute("UPDATE detections SET ecotype = 'Bigg''s', bearing_deg = 123.5")
        connection.execute("UPDATE levels SET checked_utc = 'on Monday'")


def test_a_column_that_somebody_added_is_no_damage(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    file = path("closed")
    add_columns(file)
    with open_store(file) as store:
        assert {row.id: row for row in store.detections()} == {
            id: replace(row, bearing_deg=123.5) for id, row in whole.items()
        }
        with store.transaction() as connection:
            assert connection.execute("SELECT DISTINCT ecotype FROM detections").fetchall() == [("Bigg's",)]
    assert not list(file.parent.glob("*damaged*"))


@pytest.mark.parametrize(("right", "wrong"), [(b"", b""), (b"bearing_deg REAL", b"bearing_hog REAL")])
def test_what_sqlite_reads_by_name_is_rescued_whatever_the_columns(
    path: Callable[[str], Path], whole: dict[int, Detection], right: bytes, wrong: bytes
) -> None:
    """In the raw pages rows have a length that no schema of ours has."""
    file = path("closed")
    add_columns(file)
    content = file.read_bytes() + b"cut"
    assert right in content
    file.write_bytes(content.replace(right, wrong, 1) if right else content)
    bearing_deg = None if right else 123.5
    found = rescued(file, contents(file.parent))
    assert found == {id: replace(row, bearing_deg=bearing_deg) for id, row in whole.items()}
    with open_store(file) as store, store.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM levels").fetchone()[0] == ROWS


@pytest.mark.parametrize(
    "utc", ["1601-01-01T00:00:00+00:00", "1899-12-31T23:59:59.500000+00:00", "2200-01-01T00:00:00+00:00"]
)
def test_times_that_a_clock_or_a_name_may_tell_are_no_damage(path: Callable[[str], Path], utc: str) -> None:
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE detections SET start_utc = ? WHERE id = 1", (utc,))
        connection.execute("UPDATE ledger SET start_utc = ?, end_utc = ? WHERE id = 1", (utc, utc))
    with open_store(file) as store:
        assert next(row for row in store.detections() if row.id == 1).start_utc == datetime.fromisoformat(utc)
    assert not list(file.parent.glob("*damaged*"))


def test_levels_in_the_zone_of_their_source_are_no_damage(path: Callable[[str], Path]) -> None:
    """Earlier versions wrote these."""
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE levels SET start_utc = '2026-03-01T12:00:00-08:00'")
    open_store(file).close()
    assert not list(file.parent.glob("*damaged*"))


def damage_index(file: Path, whole: dict[int, Detection]) -> None:
    """One byte of a time, in an index alone."""
    content = bytearray(file.read_bytes())
    time = whole[152].start_utc.isoformat().encode()
    found = [
        at for at in range(len(content)) if content.startswith(time, at) and content[at // PAGE_B * PAGE_B] == 0x0A
    ]
    content[found[0] + 10] = 0xFF
    file.write_bytes(content)


def test_an_index_that_holds_other_values_than_its_table_is_damage(
    path: Callable[[str], Path], whole: dict[int, Detection]
) -> None:
    """Found by fuzzing: SQLite answers from the index alone where it can."""
    file = path("closed")
    damage_index(file, whole)
    assert recovery.passed_over(file) is None and "missing from index" in str(recovery.found_by_sqlite(file))
    assert rescued(file, contents(file.parent)) == whole


def test_indexes_are_not_compared_while_the_store_runs(
    path: Callable[[str], Path], whole: dict[int, Detection]
) -> None:
    """That takes several times as long, and the daemon must give its sign of life: the next start does it."""
    file = path("closed")
    other = file.with_name("other")
    shutil.copy(file, other)
    damage_index(other, whole)
    with open_store(file) as store:
        store.add(ROW)
        for part in ("-wal", "-shm"):
            Path(f"{file}{part}").unlink()
        other.replace(file)
        store.add(ROW)
        assert not list(file.parent.glob("*damaged*"))
    open_store(file).close()
    assert len(list(file.parent.glob("*damaged*Z"))) == 1


def test_text_with_a_damaged_byte_hides_nothing(path: Callable[[str], Path], whole: dict[int, Detection]) -> None:
    """Found by fuzzing: one byte that is no UTF-8 made the whole list unreadable."""
    file = path("closed")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE detections SET verdict_note = CAST(x'6f63ff6b' AS TEXT) WHERE id = 7")
    with open_store(file) as store:
        rows = {row.id: row for row in store.detections()}
    assert rows[7].verdict_note == "oc\N{REPLACEMENT CHARACTER}k" and len(rows) == len(whole)


UNREADABLE = """
import sys
from pathlib import Path
from orcawatch.recovery import open_store
with open_store(Path(sys.argv[1])) as store:
    print(len(store.detections()))
"""


@pytest.mark.parametrize("first", [1, 30, 150])
def test_a_file_of_which_the_disk_cannot_read_a_part_is_rescued(
    path: Callable[[str], Path], whole: dict[int, Detection], first: int
) -> None:
    """From some read on the disk refuses."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    file = path("closed")
    before = contents(file.parent)
    refuse = ["-P", str(file), "-e", f"inject=pread64:error=EIO:when={first}+"]
    command = ["strace", "-f", "-o", "/dev/null", *refuse, sys.executable, "-c", UNREADABLE, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (aside,) = file.parent.glob("*damaged*Z")
    assert aside.read_bytes() == before["d.sqlite"], done.stderr
    with open_store(file) as store:
        assert {row.id: row for row in store.detections()} == whole


def test_damage_that_shows_while_running_is_rescued_too(
    path: Callable[[str], Path], whole: dict[int, Detection]
) -> None:
    """One call fails; the next one finds a new database in place."""
    with open_store(path("closed")) as store:
        os.truncate(store.path, 60 * PAGE_B)
        store._connection.execute("PRAGMA shrink_memory")  # SQLite still knows the pages
        added, refused = [], 0
        while len(added) < 3:
            try:
                added.append(store.add(ROW))
            except OrcawatchError:
                refused += 1
                assert refused < 3
        rows = {row.id: row for row in store.detections()}
        assert set(added) <= set(rows) and refused > 0
        assert all(row == whole[int(id or 0)] for id, row in rows.items() if id not in added)
        assert len(rows) > 20 and list(store.path.parent.glob("*damaged*Z"))
