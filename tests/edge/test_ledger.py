from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest
from clocks import FakeClocks
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch import ledger as module
from orcawatch.clock import SampleClock
from orcawatch.errors import OrcawatchError
from orcawatch.ledger import (
    BEHIND,
    COLUMNS,
    SUMMED,
    UNREPORTED,
    FileTime,
    Ledger,
    Session,
    Stretch,
    plain,
    stretch,
    summed,
)
from orcawatch.records import Missing
from orcawatch.store import Detection, Store

pytestmark = pytest.mark.parts  # whichever interpreter is there makes no difference

RATE_HZ = 1000
START = datetime(2026, 3, 1, tzinfo=timezone.utc)
HOUR_S = 3600.0


class Run:
    """A live session at the speed of the test's clocks, with a card that is exactly right."""

    def __init__(self, store: Store, clocks: FakeClocks, checkpoint_s: float = 30.0, **changes: Any) -> None:
        self.clocks = clocks
        self.clock = SampleClock(RATE_HZ, clocks)
        self.clock.begin(0, clocks.now_s)
        session = Session(**{**SESSION, **changes})
        self.ledger = Ledger(store, session, self.clock, clocks, checkpoint_s)
        self.position = 0

    def record(self, seconds: float) -> None:
        self.enter(seconds, lambda start, end: self.ledger.recorded(start, end))

    def miss(self, seconds: float, kind: str = "gap", cause: str = "overrun") -> None:
        self.enter(seconds, lambda start, end: self.ledger.missing(Missing(start, end, kind, cause)))

    def enter(self, seconds: float, into: Callable[[int, int], None]) -> None:
        """In blocks of at most a second, as a source does."""
        end = self.position + round(seconds * RATE_HZ)
        while self.position < end:
            start, self.position = self.position, min(end, self.position + RATE_HZ)
            self.clocks.now_s += (self.position - start) / RATE_HZ
            into(start, self.position)

    def look(self) -> None:
        """What a source does once a second."""
        change = self.clock.check(self.position)
        if change is not None:
            self.ledger.clock_changed(change)


SESSION: dict[str, Any] = {"source": "card", "live": True, "rate_hz": RATE_HZ, "channels": (0, 2)}


class Counted(Store):
    """A store that counts its transactions."""

    written = 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self.written += 1
        with super().transaction() as connection:
            yield connection


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "log.sqlite") as store:
        yield store


@pytest.fixture
def clocks() -> FakeClocks:
    return FakeClocks()


def rows_of(store: Store, session: int | None = None) -> list[Stretch]:
    where = "" if session is None else f"WHERE session = {session}"
    query = f"SELECT {COLUMNS} FROM ledger {where} ORDER BY session, start_sample IS NOT NULL, start_sample"
    with store.transaction() as connection:
        return [stretch(row) for row in connection.execute(query)]


def column(store: Store, query: str) -> list[Any]:
    with store.transaction() as connection:
        return [row[0] if len(row) == 1 else row for row in connection.execute(query)]


def brief(rows: Sequence[Stretch]) -> list[tuple[str, str, float]]:
    return [(row.kind, row.cause, round(row.duration_s, 3)) for row in rows]


def check_tiles(store: Store, abs_s: float = 2e-3) -> float:
    """Rows of each session leave no hole and do not overlap, and sessions follow each other; the time they tile."""
    sessions = column(store, "SELECT id FROM sessions WHERE live = 1 ORDER BY id")
    total_s = 0.0
    for session in sessions:
        rows = rows_of(store, session)
        heard = [row for row in rows if row.start_sample is not None]
        assert not heard or heard[0].start_sample == 0
        for row, following in zip(heard, heard[1:]):
            assert row.end_sample == following.start_sample
        for row, following in zip(rows, rows[1:]):
            assert row.end_steady_s == following.start_steady_s
        for row in rows:
            assert row.duration_s >= 0
            if row.start_utc is not None and row.end_utc is not None:
                assert (row.end_utc - row.start_utc).total_seconds() == pytest.approx(row.duration_s, abs=abs_s)
        total_s += sum(row.duration_s for row in rows)
    return total_s


def detection(run: Run, second: float) -> Detection:
    sample = round(second * RATE_HZ)
    return Detection(
        None, "card", second, second + 1, run.clock.utc_at(sample), 0.9, (0, 2), (0.9, 0.1), 0, "bundle", "0",
        session=run.ledger.session, start_sample=sample, end_sample=sample + RATE_HZ, synchronised=run.ledger.synchronised,
    )  # fmt: skip


def test_neighbours_of_one_kind_cause_and_step_are_one_row(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(100)
    run.miss(2)
    run.miss(1)
    run.miss(3, cause="device gone")
    run.miss(60, "off_duty", "duty cycle")
    run.record(10)
    run.ledger.step(2, "longer hop")
    run.record(20)
    run.miss(5, "shed", "inference is behind")
    run.ledger.step(0, "full effort")
    run.record(7.5)
    run.ledger.close()
    assert brief(rows_of(store)) == [
        ("recorded", "", 100), ("gap", "overrun", 3), ("gap", "device gone", 3), ("off_duty", "duty cycle", 60),
        ("recorded", "", 10), ("recorded", "", 20), ("shed", "inference is behind", 5), ("recorded", "", 7.5),
    ]  # fmt: skip
    assert [(row.step, row.step_name) for row in rows_of(store)][4:] == [(0, ""), (2, "longer hop"), (0, ""), (0, "")]
    assert all(row.synchronised for row in rows_of(store))
    assert check_tiles(store) == pytest.approx(208.5)
    assert rows_of(store)[-1].end_utc == START + timedelta(seconds=208.5)


def test_a_session_says_what_ran(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks, hydrophones=("A1", "B2"), station="north", bundle="big", bundle_digest="ab", latitude_deg=48.5,
              longitude_deg=-123.2)  # fmt: skip
    run.record(60)
    run.ledger.close()
    with store.transaction() as connection:
        connection.row_factory = sqlite3.Row
        found = dict(connection.execute("SELECT * FROM sessions").fetchone())
        connection.row_factory = None
    assert (json.loads(found.pop("channels")), json.loads(found.pop("hydrophones"))) == ([0, 2], ["A1", "B2"])
    assert found.pop("version")
    assert found == {
        "id": 1, "source": "card", "live": 1, "rate_hz": RATE_HZ, "station": "north", "boot": "first", "bundle": "big",
        "bundle_digest": "ab", "started_utc": START.isoformat(), "started_steady_s": 1000.0,
        "ended_utc": (START + timedelta(minutes=1)).isoformat(), "latitude_deg": 48.5, "longitude_deg": -123.2,
    }  # fmt: skip


def test_a_hole_that_nobody_reports_is_a_gap(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.position = 500
    run.record(10)
    run.position += 1500
    run.record(1)
    run.ledger.recorded(0, run.position - 10)  # was heard already
    run.ledger.close()
    assert brief(rows_of(store))[::2] == [("gap", UNREPORTED, 0.5), ("gap", UNREPORTED, 1.5)]
    check_tiles(store)


def test_a_crash_leaves_the_last_checkpoint_and_the_next_start_enters_the_rest(
    store: Store, clocks: FakeClocks
) -> None:
    run = Run(store, clocks)
    run.record(99)
    clocks.utc_s -= HOUR_S  # while nobody looks
    clocks.now_s += 500
    again = Run(store, clocks)
    again.record(10)
    again.ledger.close()
    assert brief(rows_of(store)) == [("recorded", "", 95), ("gap", "not running", 504), ("recorded", "", 10)]
    assert column(store, "SELECT ended_utc IS NULL FROM sessions") == [1, 0]
    assert clocks.now_s == 1000 + 609


def test_a_detection_brings_the_ledger_up_to_now_in_its_own_transaction(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(50)
    store.add(detection(run, 40), lambda connection, _: run.ledger.extend(connection))
    assert brief(rows_of(store)) == [("recorded", "", 50)]
    run.record(3)

    def broken(connection: sqlite3.Connection, _: int) -> None:
        run.ledger.extend(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add(detection(run, 51), broken)
    assert brief(rows_of(store)) == [("recorded", "", 50)]
    run.ledger.close()
    assert brief(rows_of(store)) == [("recorded", "", 53)]


def test_time_before_the_first_audio_belongs_to_the_time_before(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(10)
    run.ledger.close()
    clocks.now_s += 100
    run = Run(store, clocks)
    clocks.now_s += 5
    run.clock.begin(0, clocks.now_s)  # the device is open only now
    run.record(10)
    run.ledger.close()
    assert brief(rows_of(store)) == [("recorded", "", 10), ("gap", "not running", 105), ("recorded", "", 10)]
    assert column(store, "SELECT started_steady_s FROM sessions") == [1000, 1115]


def test_time_off_is_told_by_utc(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(60)
    run.ledger.checkpoint()
    clocks.restart("second", 2 * HOUR_S)
    run = Run(store, clocks)
    run.record(30)
    run.ledger.close()
    rows = rows_of(store)
    assert brief(rows) == [("recorded", "", 60), ("gap", "not running", 2 * HOUR_S), ("recorded", "", 30)]
    assert (rows[1].start_utc, rows[1].end_utc) == (rows[0].end_utc, rows[2].start_utc)
    assert rows[1].synchronised


def test_a_clock_that_is_behind_says_so_until_it_is_synchronised(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(60)
    run.ledger.checkpoint()
    clocks.restart("second", 2 * HOUR_S)
    clocks.utc_s, right_s, clocks.sure = 0.0, clocks.utc_s, False  # no battery: 1970 and 20 s
    run = Run(store, clocks)
    run.record(30)
    assert brief(rows_of(store, 2)) == [("gap", BEHIND, 0), ("recorded", "", 5)]
    clocks.utc_s, clocks.sure = right_s, True
    run.look()
    run.record(30)
    run.ledger.close()
    assert brief(rows_of(store, 2)) == [("gap", "not running", 2 * HOUR_S), ("recorded", "", 30), ("recorded", "", 30)]
    assert all(row.synchronised for row in rows_of(store))
    assert column(store, "SELECT started_utc FROM sessions WHERE id = 2") == [
        (START + timedelta(seconds=60 + 2 * HOUR_S)).isoformat()
    ]
    assert check_tiles(store) == pytest.approx(60 + 2 * HOUR_S + 60)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_gives_no_negative_or_doubled_time(store: Store, clocks: FakeClocks, hours: int) -> None:
    run = Run(store, clocks)
    run.record(600)
    clocks.utc_s += hours * HOUR_S
    run.look()
    run.record(300)
    run.ledger.close()
    rows = rows_of(store)
    assert brief(rows) == [("recorded", "", 600), ("recorded", "", 300)]
    assert rows[0].end_utc == START + timedelta(seconds=600)
    assert rows[1].start_utc == START + timedelta(seconds=600 + hours * HOUR_S)
    assert column(store, "SELECT sample, jump_s, was_synchronised, synchronised FROM clock") == [
        (600 * RATE_HZ, pytest.approx(hours * HOUR_S), 1, 1)
    ]
    check_tiles(store)


@pytest.mark.parametrize("before", [False, None])
def test_synchronising_corrects_everything_of_this_boot(store: Store, clocks: FakeClocks, before: bool | None) -> None:
    older = Run(store, clocks)
    older.record(10)
    older.ledger.close()
    clocks.restart("second", 100)
    clocks.utc_s, right_s, clocks.sure = clocks.utc_s - 86400 * 300, clocks.utc_s, before
    runs = [Run(store, clocks)]
    runs[0].record(100)
    levels(store, runs[0], 60)
    store.add(detection(runs[0], 70), lambda connection, _: runs[0].ledger.extend(connection))
    clocks.now_s += 40
    scan = Ledger(store, Session("a.wav", False, 8000, (0,)), FileTime(8000, lambda _: START), clocks)
    scan.recorded(0, 80000)
    scan.close()
    runs.append(Run(store, clocks))
    runs[1].record(50)
    clocks.utc_s += 1234  # set by hand, still wrong
    runs[1].look()
    runs[1].record(50)
    store.add(detection(runs[1], 80), lambda connection, _: runs[1].ledger.extend(connection))
    clocks.utc_s, clocks.sure = right_s, True
    runs[1].look()
    store.add(detection(runs[1], 90), lambda connection, _: runs[1].ledger.extend(connection))
    runs[1].record(50)
    runs[1].ledger.close()
    begun = START + timedelta(seconds=110)  # of the second boot's first session
    assert [(d.start_utc - begun).total_seconds() for d in store.detections() if d.start_utc] == [70, 220, 230]
    assert [d.synchronised for d in store.detections()] == [True] * 3
    assert column(store, "SELECT start_utc, synchronised FROM levels") == [
        ((begun + timedelta(seconds=60)).isoformat(), 1)
    ]
    live = [row for session in (1, 2, 4) for row in rows_of(store, session)]
    assert brief(live) == [
        ("recorded", "", 10), ("gap", "not running", 100), ("recorded", "", 100), ("gap", "not running", 40),
        ("recorded", "", 50), ("recorded", "", 50), ("recorded", "", 50),
    ]  # fmt: skip
    for row, following in zip(live, live[1:]):
        assert row.end_utc == pytest.approx(following.start_utc, abs=timedelta(milliseconds=1))
    assert all(row.synchronised for row in live)
    assert column(store, "SELECT jump_s, was_synchronised, synchronised FROM clock") == [
        (pytest.approx(1234), before, before), (pytest.approx(86400 * 300 - 1234), before, 1),
    ]  # fmt: skip
    assert brief(rows_of(store, 3)) == [("recorded", "", 10)] and rows_of(store, 3)[0].synchronised is None
    assert column(store, "SELECT ended_utc FROM sessions WHERE id = 4") == [
        (begun + timedelta(seconds=290)).isoformat()
    ]


def levels(store: Store, run: Run, second: int) -> None:
    """A row of levels as a session writes it."""
    start = second * RATE_HZ
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO levels (session, start_sample, end_sample, start_utc, levels_db, peaks_db, clipped, unit, "
            "synchronised) VALUES (?, ?, ?, ?, '[]', '[]', '[]', '', ?)",
            (run.ledger.session, start, start + RATE_HZ, run.clock.utc_at(start).isoformat(), run.ledger.synchronised),
        )


def test_synchronising_within_the_first_stretch_corrects_its_detections(store: Store) -> None:
    clocks = FakeClocks(False)
    clocks.utc_s -= 5000
    run = Run(store, clocks)
    run.record(20)
    store.add(detection(run, 12), lambda connection, _: run.ledger.extend(connection))
    clocks.utc_s, clocks.sure = clocks.utc_s + 5000, True
    run.look()
    assert [found.start_utc for found in store.detections()] == [START + timedelta(seconds=12)]
    assert column(store, "SELECT started_utc FROM sessions") == [START.isoformat()]


def test_a_clock_synchronised_between_two_sessions_corrects_the_first(store: Store) -> None:
    clocks = FakeClocks(False)
    clocks.utc_s -= 5000
    run = Run(store, clocks)
    run.record(100)
    run.ledger.close()
    clocks.now_s += 50
    clocks.utc_s, clocks.sure = clocks.utc_s + 5000, True
    Run(store, clocks).record(100)
    rows = rows_of(store)
    assert rows[0].start_utc == START and rows[1].end_utc == START + timedelta(seconds=150)
    assert all(row.synchronised for row in rows)
    assert column(store, "SELECT started_utc FROM sessions")[0] == START.isoformat()


def test_a_clock_that_learns_that_it_was_late_gives_no_negative_time(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    run.record(10)
    run.miss(1)
    run.record(0.2)
    run.clock.begin(run.position, clocks.now_s - 0.5)
    run.miss(0.2)
    run.record(10)
    run.ledger.close()
    assert brief(rows_of(store)) == [
        ("recorded", "", 10), ("gap", "overrun", 1), ("recorded", "", 0), ("gap", "overrun", 0), ("recorded", "", 9.9),
    ]  # fmt: skip
    assert check_tiles(store, abs_s=1.0) == pytest.approx(20.9)


def test_files_have_their_own_time_and_enter_no_idle_time(store: Store, clocks: FakeClocks) -> None:
    Run(store, clocks).record(60)
    clocks.now_s += 1000
    for _ in range(2):
        scan = Ledger(store, Session("a.wav", False, 8000, (0,)), FileTime(8000, lambda _: None), clocks)
        scan.recorded(0, 8000)
        scan.missing(Missing(8000, 16000, "gap", "hole in the file"))
        scan.close()
    Run(store, clocks).record(60)
    for session in (2, 3):
        rows = rows_of(store, session)
        assert brief(rows) == [("recorded", "", 1), ("gap", "hole in the file", 1)]
        assert [(row.start_utc, row.synchronised, row.start_steady_s) for row in rows] == [
            (None, None, 0),
            (None, None, 1),
        ]
    assert column(store, "SELECT started_utc FROM sessions WHERE live = 0") == [None, None]
    assert [row.cause for row in rows_of(store, 4)][:1] == ["not running"]


def test_little_is_written(tmp_path: Path, clocks: FakeClocks) -> None:
    with closing(Counted(tmp_path / "log.sqlite")) as store:
        run = Run(store, clocks)
        assert store.written == 1
        for _ in range(12):
            run.record(299.5)
            run.miss(0.5)
        assert store.written <= 1 + HOUR_S / 30 + 24
        before = store.written
        for _ in range(1200):
            run.record(0.8)
            run.miss(0.2)
        assert store.written - before <= 1200 / 5 + 1
        run.ledger.close()
        check_tiles(store)


def test_rows_are_no_longer_than_a_day(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    for _ in range(60):
        coarse(run, HOUR_S)
    run.ledger.close()
    assert brief(rows_of(store)) == [("recorded", "", 24 * HOUR_S)] * 2 + [("recorded", "", 12 * HOUR_S)]
    check_tiles(store)


class Unsure(Store):
    """A store whose next transactions are kept though they seem to fail."""

    unsure = 2

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with super().transaction() as connection:
            yield connection
        self.unsure -= 1
        if self.unsure >= 0:
            raise OrcawatchError("the last step of writing failed")


def test_what_was_kept_though_it_seemed_to_fail_is_not_doubled(tmp_path: Path, clocks: FakeClocks) -> None:
    with closing(Unsure(tmp_path / "log.sqlite")) as store:
        run = Run(store, clocks, checkpoint_s=10)
        assert run.ledger.session is None
        run.clock.begin(0, clocks.now_s + 1)
        run.record(7)
        assert (store.unsure, run.ledger.session) == (0, None)
        run.miss(1)
        clocks.utc_s += 100
        run.look()
        run.ledger.close()
        assert column(store, "SELECT count(*) FROM sessions") == [1] == column(store, "SELECT count(*) FROM clock")
        assert run.ledger.session == 1
        assert brief(rows_of(store)) == [("recorded", "", 7), ("gap", "overrun", 1)]


def test_flapping_is_summed_and_totals_are_kept(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks, 600)
    truth: Counter[tuple[str, str]] = Counter()
    for number in range(4000):
        cause = "overrun" if number % 3 else "device gone"
        run.record(1 + number % 7 / 10)
        run.miss(0.013 + number % 5 / 100, cause=cause)
        truth["recorded", ""] += round((1 + number % 7 / 10) * RATE_HZ)
        truth["gap", cause] += round((0.013 + number % 5 / 100) * RATE_HZ)
    run.record(4000)
    truth["recorded", ""] += 4000 * RATE_HZ
    run.ledger.close()
    rows = rows_of(store)
    assert len(rows) < 62 * (clocks.now_s - 1000) / HOUR_S + 62
    assert totals(rows) == truth
    assert any(row.cause.endswith(SUMMED) for row in rows) and rows[-1].cause == ""
    check_tiles(store)


def totals(rows: Sequence[Stretch]) -> Counter[tuple[str, str]]:
    """Samples by kind and cause."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        found[row.kind, plain(row.cause)] += (row.end_sample or 0) - (row.start_sample or 0)
    return found


def test_summing_keeps_kinds_apart_and_bounds_causes() -> None:
    rows = []
    for number in range(100):
        kind, cause = ("gap", f"fault {number}") if number % 2 else ("shed", "busy")
        at = number * 10
        moment = START + timedelta(seconds=number)
        rows.append(Stretch(kind, cause, 0, "", at, at + 10, moment, moment, number, number + 1, number != 5))
    found = summed(rows)
    assert len(found) == module.CAUSES + 1
    assert {row.kind for row in found} == {"gap", "shed"}
    assert sum(row.duration_s for row in found if row.kind == "gap") == 50
    assert (found[0].start_sample, found[-1].end_sample) == (0, 1000)
    assert totals(summed(found)) == totals(found)
    assert [row.synchronised for row in found].count(False) == 1


def test_a_clock_that_flaps_fills_no_disk(store: Store, clocks: FakeClocks) -> None:
    run = Run(store, clocks)
    for number in range(2000):
        clocks.utc_s += 10 if number % 2 else -10
        clocks.sure = number % 4 < 2
        run.record(1)
        run.look()
    run.record(HOUR_S + 60)
    clocks.utc_s += 5
    run.look()
    run.ledger.close()
    assert column(store, "SELECT count(*) FROM clock")[0] <= 62
    assert sum(column(store, "SELECT jump_s FROM clock")) == pytest.approx(5, abs=0.01)
    assert len(rows_of(store)) < 200
    assert totals(rows_of(store)) == {("recorded", ""): run.position}


def test_a_disk_that_refuses_loses_nothing(tmp_path: Path, clocks: FakeClocks) -> None:
    path, away = tmp_path / "a" / "log.sqlite", tmp_path / "away"
    with Store(path) as store:
        run = Run(store, clocks)
        run.record(60)
        path.parent.rename(away)  # not mounted any more
        for _ in range(30):
            run.record(300)
            run.miss(20)
        assert not run.ledger.checkpoint()
        clocks.utc_s += 100
        run.look()
        away.rename(path.parent)
        run.record(31)
        run.ledger.close()
        assert totals(rows_of(store)) == {
            ("recorded", ""): (60 + 9000 + 31) * RATE_HZ,
            ("gap", "overrun"): 600 * RATE_HZ,
        }
        assert column(store, "SELECT jump_s FROM clock") == [pytest.approx(100)]
        check_tiles(store)


def test_memory_is_bounded_while_the_disk_refuses(
    tmp_path: Path, clocks: FakeClocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNWRITTEN", 100)
    path, away = tmp_path / "a" / "log.sqlite", tmp_path / "away"
    with Store(path) as store:
        path.parent.rename(away)
        run = Run(store, clocks, HOUR_S)
        assert run.ledger.session is None
        for _ in range(500):
            run.record(200)
            run.miss(20)
        away.rename(path.parent)
        run.ledger.close()
        assert run.ledger.session == 1
        assert len(rows_of(store)) < 110
        assert totals(rows_of(store)) == {("recorded", ""): 100000 * RATE_HZ, ("gap", "overrun"): 10000 * RATE_HZ}


# What may happen, by how likely it is to matter: seconds of audio, of gaps, clock jumps, crashes and restarts.
HAPPENS = st.one_of(
    st.tuples(st.just("record"), st.floats(0.001, 120)),
    st.tuples(st.just("overrun"), st.floats(0.001, 2)),
    st.tuples(st.just("device gone"), st.floats(0.1, 120)),
    st.tuples(st.just("unreported"), st.floats(0.001, 5)),
    st.tuples(st.just("jump"), st.one_of(st.floats(-7200, -0.6), st.floats(0.6, 7200))),
    st.tuples(st.just("sure"), st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("step"), st.sampled_from([0.0, 1.0, 2.0])),
    st.tuples(st.just("detection"), st.just(0.0)),
    st.tuples(st.just("crash"), st.floats(0, 4000)),
    st.tuples(st.just("stop"), st.floats(0, 4000)),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(HAPPENS, max_size=20), st.sampled_from([True, False, None]))
def test_whatever_happens_the_rows_tile_the_time(
    tmp_path_factory: pytest.TempPathFactory, happens: list[tuple[str, float]], sure: bool | None
) -> None:
    clocks = FakeClocks(sure)
    with Store(tmp_path_factory.mktemp("any") / "log.sqlite") as store:
        run = Run(store, clocks)
        for what, value in happens:
            if what in ("crash", "stop"):
                run = restarted(store, run, what, value)
            else:
                happen(store, run, what, value)
        run.ledger.close()
        # a run that heard nothing knows no end of itself
        end_s = clocks.now_s if run.position else run.ledger._opening.first_s
        rows = rows_of(store)
        assert check_tiles(store) == pytest.approx(end_s - (rows[0].start_steady_s if rows else end_s), abs=1e-3)


def happen(store: Store, run: Run, what: str, value: float) -> None:
    if what == "record":
        run.record(value)
    elif what == "overrun" or what == "device gone":
        run.miss(value, cause=what)
    elif what == "unreported":
        run.clocks.now_s += round(value * RATE_HZ) / RATE_HZ
        run.position += round(value * RATE_HZ)
        run.record(0.001)
    elif what == "step":
        run.ledger.step(int(value), str(value))
    elif what == "detection":
        store.add(detection(run, 0), lambda connection, _: run.ledger.extend(connection))
    else:
        run.clocks.utc_s += value if what == "jump" else 0
        run.clocks.sure = bool(value) if what == "sure" else run.clocks.sure
        run.look()


def restarted(store: Store, run: Run, what: str, away_s: float) -> Run:
    """The next session after a crash, in which nothing is closed, or a stop."""
    if what == "stop":
        run.ledger.close()
    run.clocks.now_s += away_s
    return Run(store, run.clocks)


def test_a_year_fits_in_few_rows(tmp_path: Path, clocks: FakeClocks, capsys: pytest.CaptureFixture[str]) -> None:
    """Overruns each day, a card that is pulled each week, a restart each month, the clock lost and found."""
    path = tmp_path / "log.sqlite"
    with Store(path) as store:
        with store.transaction():
            pass
        run = year(store, clocks)
        run.ledger.close()
        rows = rows_of(store)
        check_tiles(store)
    size_b = path.stat().st_size
    with capsys.disabled():
        print(f"\na year of ledger: {len(rows)} rows, {size_b} bytes, {size_b / len(rows):.0f} bytes a row")
    assert len(rows) < 10000 and size_b < 3e6


def year(store: Store, clocks: FakeClocks) -> Run:
    run = Run(store, clocks, 86400)
    for day in range(365):
        for hours in (5, 7, 12):
            coarse(run, hours * HOUR_S)
            run.miss(0.05)
        if day % 7 == 0:
            run.miss(300, cause="device gone")
        clocks.sure = day % 10 != 9
        run.look()
        if day % 30 == 29:
            run.ledger.close()
            clocks.restart(f"boot {day}", 120)
            run = Run(store, clocks, 86400)
    return run


def coarse(run: Run, seconds: float) -> None:
    """Audio in one piece."""
    start, run.position = run.position, run.position + round(seconds * RATE_HZ)
    run.clocks.now_s += seconds
    run.ledger.recorded(start, run.position)
