from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clocks import FakeClocks

from orcawatch.clock import SampleClock
from orcawatch.effort import CSV_COLUMNS, Entry, Span, accounts, command, hours, parts
from orcawatch.ledger import FileTime, Ledger, Session, Stretch
from orcawatch.records import Missing
from orcawatch.store import Detection, Store

pytestmark = pytest.mark.parts  # whichever interpreter is there makes no difference

RATE_HZ = 100
START = datetime(2026, 3, 1, 18, tzinfo=timezone.utc)
HOUR_S = 3600


class Run:
    """A live session of a card that is exactly right."""

    def __init__(self, store: Store, clocks: FakeClocks) -> None:
        self.store = store
        self.clocks = clocks
        self.clock = SampleClock(RATE_HZ, clocks)
        self.clock.begin(0, clocks.now_s)
        session = Session("card", True, RATE_HZ, (0, 1), ("A1", "B2"), "north")
        self.ledger = Ledger(store, session, self.clock, clocks)
        self.position = 0

    def enter(self, seconds: float, kind: str = "recorded", cause: str = "") -> None:
        start, self.position = self.position, self.position + round(seconds * RATE_HZ)
        self.clocks.now_s += seconds
        if kind == "recorded":
            self.ledger.recorded(start, self.position)
        else:
            self.ledger.missing(Missing(start, self.position, kind, cause))

    def detect(self, second: float) -> None:
        sample = round(second * RATE_HZ)
        found = Detection(
            None, "card", second, second + 1, self.clock.utc_at(sample), 0.9, (0,), (0.9,), 0, "bundle", "0",
            session=self.ledger.session, start_sample=sample, synchronised=self.ledger.synchronised,
        )  # fmt: skip
        self.store.add(found)

    def look(self) -> None:
        change = self.clock.check(self.position)
        if change is not None:
            self.ledger.clock_changed(change)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store(folder / "detections.sqlite") as store:
        yield store


@pytest.fixture
def run(store: Store) -> Run:
    return Run(store, FakeClocks(start=START))


def busy(run: Run) -> None:
    """From 18:00: 4.5 h recorded (1 of them reduced), .5 h gaps, .25 h shed, .25 h off duty; 2 h recorded over midnight."""
    run.enter(3.5 * HOUR_S)
    run.ledger.step(1, "longer hop")
    run.enter(HOUR_S)
    run.ledger.step(0, "full effort")
    run.enter(900, "gap", "device gone")
    run.enter(900, "gap", "overrun")
    run.enter(900, "shed", "inference is behind")
    run.enter(900, "off_duty", "duty cycle")
    run.enter(2 * HOUR_S)
    for second in (10, 20, 7 * HOUR_S):
        run.detect(second)
    run.ledger.close()


def asked(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_every_hour_is_in_one_column(run: Run, folder: Path) -> None:
    busy(run)
    lines = asked(folder).splitlines()
    assert lines[0].split()[2:8] == ["recorded", "reduced", "gap", "off", "duty", "shed"]
    first, second, total = (
        next(line for line in lines if line.startswith(name)) for name in ("2026-03-01", "2026-03-02", "total")
    )
    assert first.split()[1:] == ["5.000", "1.000", "0.500", "0.250", "0.250", "6.000", "6.000", "2", "0.400"]
    assert second.split()[1:] == ["1.500", "0.000", "0.000", "0.000", "0.000", "1.500", "1.500", "1", "0.667"]
    assert total.split()[1:] == ["6.500", "1.000", "0.500", "0.250", "0.250", "7.500", "7.500", "3", "0.462"]
    assert lines.count("    gap: device gone 0.250") == 2 and lines.count("    reduced: longer hop 1.000") == 2
    assert not any(line.startswith("note:") for line in lines)


def test_periods_are_hours_days_or_all(run: Run, folder: Path) -> None:
    busy(run)
    by_hour = asked(folder, "--by", "hour")
    assert sum(line.startswith("2026-03-0") for line in by_hour.splitlines()) == 8
    assert "2026-03-01 22:00      0.500" in by_hour and "2026-03-02 00:00      1.000" in by_hour
    alone = asked(folder, "--by", "total")
    assert "2026-03" not in alone and asked(folder).endswith("\n".join(alone.splitlines()[1:]) + "\n")


def test_a_range_cuts_stretches(run: Run, folder: Path) -> None:
    busy(run)
    lines = asked(folder, "--since", "2026-03-01T21:45", "--until", "2026-03-02T00:15:00Z").splitlines()
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[1:] == ["1.500", "0.750", "0.500", "0.250", "0.250", "2.500", "2.500", "0", "0.000"]
    outside = asked(folder, "--since", "2030-01-01").splitlines()[-1].split()
    assert outside[1:] == ["0.000"] * 7 + ["0", "-"]


def test_csv_has_a_row_for_each_stretch(run: Run, folder: Path, tmp_path: Path) -> None:
    busy(run)
    rows = list(csv.DictReader(io.StringIO(asked(folder, "--csv", "-"))))
    assert tuple(rows[0]) == CSV_COLUMNS and len(rows) == 7
    assert rows[2] == {
        "start_utc": "2026-03-01T22:30:00.000+00:00", "end_utc": "2026-03-01T22:45:00.000+00:00",
        "duration_s": "900.000000", "kind": "gap", "cause": "device gone", "step": "0", "step_name": "",
        "synchronised": "yes", "station": "north", "source": "card", "session": "1", "hydrophones": "A1 B2",
        "samples": "90000", "start_sample": str(round(4.5 * HOUR_S) * RATE_HZ),
    }  # fmt: skip
    assert sum(float(row["duration_s"]) for row in rows) == 7.5 * HOUR_S
    assert rows[1]["step_name"] == "longer hop"
    assert asked(folder, "--csv", tmp_path / "a.csv") == ""
    assert list(csv.DictReader((tmp_path / "a.csv").open(newline=""))) == rows
    assert len(asked(folder, "--csv", "-", "--since", "2026-03-01T23:20").splitlines()) == 1 + 2


def test_wrong_times_are_told(run: Run, folder: Path) -> None:
    run.enter(HOUR_S)
    run.clocks.utc_s += HOUR_S
    run.look()
    run.enter(HOUR_S)
    run.clocks.sure = False
    run.look()
    run.enter(HOUR_S)
    run.clocks.sure = None
    run.look()
    run.enter(1800)
    run.ledger.close()
    notes = [line for line in asked(folder).splitlines() if line.startswith("note:")]
    assert "not synchronised for 1.000 h" in notes[0]
    assert "whether the system clock was synchronised for 0.500 h" in notes[1]
    assert "2026-03-01: the sum is 12600.0 s, and by UTC 16200.0 s elapsed (-3600.0 s)" in notes[2]
    assert "total: the sum" in notes[3]
    assert "jumped by +3600.0 s to 2026-03-01 20:00:00 UTC" in notes[4] and len(notes) == 5


def test_an_unsynchronised_start_is_told_until_it_is_put_right(store: Store, folder: Path) -> None:
    clocks = FakeClocks(False, START)
    clocks.utc_s -= 86400 * 100
    run = Run(store, clocks)
    run.enter(HOUR_S)
    run.detect(10)
    assert "note: the system clock was not synchronised for 1.000 h" in asked(folder)
    clocks.utc_s, clocks.sure = clocks.utc_s + 86400 * 100, True
    run.look()
    run.enter(HOUR_S)
    run.ledger.close()
    found = asked(folder)
    assert "note" not in found and "2026-03-01            2.000" in found


def test_a_start_with_a_clock_that_is_behind_is_told(run: Run, store: Store, folder: Path) -> None:
    run.enter(HOUR_S)
    run.ledger.close()
    run.clocks.boot, run.clocks.utc_s, run.clocks.sure = "second", 0.0, False
    again = Run(store, run.clocks)
    again.enter(HOUR_S)
    again.ledger.close()
    found = asked(folder)
    assert "note: at 1 start(s) the system clock was behind" in found
    assert "1970-01-01" in found


def test_time_between_runs_is_a_gap(run: Run, store: Store, folder: Path) -> None:
    busy(run)
    run.clocks.now_s += 1800
    again = Run(store, run.clocks)
    again.enter(1800)
    again.ledger.close()
    assert "    gap: not running 0.500" in asked(folder)
    assert "note" not in asked(folder)


def test_files_are_counted_only_where_asked(run: Run, store: Store, folder: Path) -> None:
    scan = Ledger(store, Session("a.wav", False, 100, (0,)), FileTime(100, lambda _: None), run.clocks)
    scan.recorded(0, 180000)
    scan.close()
    assert "No live session is in the ledger" not in asked(folder, "--all")
    assert f"{'no date':16} {'0.500':>10}" in asked(folder, "--all")
    assert "No live session is in the ledger" in asked(folder)
    busy(run)
    assert "no date" not in asked(folder)
    assert next(line for line in asked(folder, "--all").splitlines() if line.startswith("total")).split()[1] == "7.000"


def test_it_may_be_asked_while_the_daemon_writes(run: Run, store: Store, folder: Path) -> None:
    run.enter(60)
    run.enter(20)
    with store.transaction() as connection:
        run.ledger.extend(connection)
        assert f"{'total':16} {'0.017':>10}" in asked(folder)
    run.ledger.checkpoint()
    assert f"{'total':16} {'0.022':>10}" in asked(folder / "detections.sqlite")


def test_detections_of_no_session_are_told(run: Run, store: Store, folder: Path) -> None:
    busy(run)
    store.add(replace(store.detections()[0], session=None))
    assert asked(folder).splitlines()[-1].startswith("note: 1 detection(s) of no session")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--since", "yesterday"], "--since must be a day or a moment such as 2026-03-01"),
        (["--csv", "/no/where.csv"], "--csv /no/where.csv cannot be written"),
    ],
)
def test_wrong_input_is_told(run: Run, folder: Path, arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(command, [str(folder), *arguments])
    assert text in str(result.exception)


def test_a_missing_database_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert "is not there" in str(result.exception) and not list(tmp_path.iterdir())


def stretch(start: datetime | None, seconds: float) -> Stretch:
    end = None if start is None else start + timedelta(seconds=seconds)
    return Stretch("recorded", "", 0, "", 0, round(seconds * RATE_HZ), start, end, 5.0, 5.0 + seconds, True)


def test_parts_add_up_whatever_the_borders() -> None:
    row = stretch(START + timedelta(seconds=1.25), 3 * 86400.5)
    for by, number in (("day", 4), ("hour", 73)):
        found = list(parts(row, by, Span()))
        assert len(found) == number == len({name for name, _ in found})
        assert sum(seconds for _, seconds in found) == pytest.approx(row.duration_s, abs=1e-5)
    east = replace(row, start_utc=row.start_utc.astimezone(timezone(timedelta(hours=9)))) if row.start_utc else row
    assert list(parts(east, "day", Span())) == list(parts(row, "day", Span()))


def test_what_has_no_time_is_apart() -> None:
    entries = [Entry(stretch(None, 60), 1, "a.wav", "", (), False)]
    (found,), total = accounts(entries, [None])
    assert (found.label, found.sum_s, found.detections, found.elapsed_s) == ("no date", 60, 1, None)
    assert total.per_hour == 60
    assert accounts(entries, [None], span=Span(since=START))[1].sum_s == 0


def test_hours_never_hide_what_is_there() -> None:
    assert [hours(seconds) for seconds in (None, 0, 0.01, 1.9, 3600)] == ["-", "0.000", "<0.001", "0.001", "1.000"]
