"""A second bundle that scores beside the first: the same events, an honest account, and never any harm."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orcawatch import service, shadowing
from orcawatch.bundle import SHIPPED
from orcawatch.cli import main
from orcawatch.config import Settings
from orcawatch.daemon import DATABASE, run
from orcawatch.records import AudioBlock, Missing
from orcawatch.service import Service
from orcawatch.shadow import Summary, csv_text, lies_in, lines, overlaps, summary
from orcawatch.shelf import Shelf
from orcawatch.store import Store
from orcawatch.trial import Trial

RATE_HZ = 16000
CALLS = [(2.0, 3.5), (6.0, 7.0), (14.0, 15.0), (15.5, 16.5)]


class AtOnce:
    """Opens a shadow at once, as the watch of a live stream does not: these streams are over in no time."""

    def submit(self, call: Any) -> Any:
        done: Any = Future()
        try:
            done.set_result(call())
        except Exception as fault:
            done.set_exception(fault)
        return done


class Bay:
    """A watch of 20 s with calls, in its own folder; the shadow is what `other` makes of the installed bundle."""

    def __init__(self, folder: Path, make_audio: Any, make_ensemble: Any, scripted: Any) -> None:
        self.settings = Settings(output=folder / "out", snapshots=False)
        self.sea = make_audio(RATE_HZ, 20.0, 2, CALLS)
        self.first = make_ensemble()
        self.other: Any = make_ensemble(name="other", manifest={"digest": "1" * 64, "files": {}})
        self.shelf = Shelf(self.settings.output)
        self.scripted = scripted
        self.opener: Any = AtOnce()
        self.changed: Any = None  # the settings after a reload in the middle

    def begin(self, days: float | None = None) -> Trial:
        return self.shelf.install_shadow(SHIPPED, days)

    def items(self) -> Iterator[Any]:
        for second in range(20):
            yield AudioBlock(self.sea[RATE_HZ * second : RATE_HZ * (second + 1)], RATE_HZ * second)

    def listen(self, items: Any = None, behind: Any = lambda index: 0.0, start_utc: datetime | None = None) -> None:
        watch = Service(lambda: self.changed or self.settings, self.settings, threading.Event())
        watch._shadows._make = lambda bundle: self.other
        watch._shadows._opener = self.opener
        watch._bundle = self.first.bundle
        watch._asked = self.changed is not None
        report = watch._reporting(lambda detection: None)
        source = self.scripted(items or list(self.items()), behind=behind, start_utc=start_utc)
        run(source, self.first, self.settings, report, upkeep=watch)

    def rows(self, query: str) -> list[Any]:
        with Store.reader(self.settings.output / DATABASE) as reader, reader.transaction() as connection:
            return connection.execute(query).fetchall()

    def summary(self) -> Summary | None:
        with Store.reader(self.settings.output / DATABASE) as reader, reader.transaction() as connection:
            return summary(connection)


@pytest.fixture
def bay(tmp_path: Path, make_audio: Any, make_ensemble: Any, scripted: Any) -> Bay:
    return Bay(tmp_path, make_audio, make_ensemble, scripted)


EVENTS = "start_sample, end_sample, start_s, end_s, start_utc, score, channels, channel_scores, best_channel, source"


@pytest.mark.parametrize("holes", [False, True])
def test_shadow_of_the_same_bundle_finds_exactly_the_same(bay: Bay, holes: bool) -> None:
    bay.begin()
    items = list(bay.items())
    if holes:
        items[8] = Missing(8 * RATE_HZ, 9 * RATE_HZ, "gap", "overrun")
        items[14] = AudioBlock(bay.sea[14 * RATE_HZ + 500 : 15 * RATE_HZ], 14 * RATE_HZ + 500)
    bay.listen(items, start_utc=datetime(2026, 7, 1, tzinfo=timezone.utc))
    events = bay.rows(f"SELECT {EVENTS} FROM detections ORDER BY id")
    assert len(events) >= 3
    assert bay.rows(f"SELECT {EVENTS} FROM shadows ORDER BY start_sample") == events
    scores = bay.rows("SELECT id, score FROM detections ORDER BY id")
    assert bay.rows("SELECT id, score FROM shadow_scores ORDER BY id") == scores
    found = bay.summary()
    assert found is not None and (found.both, found.only_current, found.only_shadow) == (len(events), 0, 0)
    recorded = bay.rows("SELECT sum(end_sample - start_sample) FROM ledger WHERE kind = 'recorded'")[0][0]
    assert found.compared_s == pytest.approx(recorded / RATE_HZ) and found.agreement == 1.0 and not found.left_out_s
    assert found.since_utc == datetime(2026, 7, 1, tzinfo=timezone.utc)


class Killed(BaseException):
    """Nothing is finished, and nothing cleaned up."""


def test_what_a_kill_has_cost_counts_as_not_compared(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by kills: the account said that the shadow had scored where its event was still open, and so was lost."""
    monkeypatch.setattr(shadowing, "WRITE_S", 0.2)
    trial, add = bay.begin(), Store.add
    for number in (1, 2, 3):
        added: list[int] = []

        def adding(*given: Any, added: list[int] = added, most: int = number) -> int:
            added.append(add(*given))
            if len(added) == most:
                raise Killed
            return added[-1]

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Store, "add", adding)
            bay.listen()
        counted = bay.shelf.trial()
        assert counted is not None and counted.starts == 1 and bay.shelf.change_trial(counted, trial)
    found = bay.summary()
    assert found is not None and (found.both, found.only_current, found.only_shadow) == (0 + 1 + 2, 0, 0)
    assert len(bay.rows("SELECT id FROM detections")) == 1 + 2 + 3


def test_what_only_one_of_them_has_is_told_with_scores_and_verdicts(bay: Bay) -> None:
    bay.other.bundle = replace(bay.other.bundle, start_threshold=0.999, stop_threshold=0.999)
    bay.begin()
    bay.listen()
    with Store(bay.settings.output / DATABASE) as store, store.transaction() as connection:
        connection.execute("UPDATE detections SET verdict = 'not_orca' WHERE id = 1")
        connection.execute(
            "INSERT INTO shadows (session, source, bundle, bundle_digest, start_sample, end_sample, start_s, end_s, "
            "score, channels, channel_scores, best_channel) SELECT session, source, bundle, ?, 176000, 192000, 11, 12, "
            "0.6, '[]', '[]', 0 FROM detections LIMIT 1",
            ("1" * 64,),
        )
    found = bay.summary()
    assert found is not None and found.only_current == len(bay.rows("SELECT id FROM detections"))
    assert (found.both, found.only_shadow, found.agreement) == (0, 1, 0.0)
    assert found.verdicts("not_orca") == (1, 0, 1) and found.per_hour(1) == pytest.approx(180)
    assert all(pair.shadow_score for pair in found.pairs)  # also what it said of spans that were no event to it
    text = "\n".join(lines(found))
    assert "both 0, only current 3, only shadow 1; 0% of all are found by both" in text and "not_orca" in text
    table = csv_text(found.pairs).splitlines()
    assert table[0].startswith("found_by,session,start_utc") and len(table) == 1 + len(found.pairs)


def test_behind_it_hears_nothing_for_a_minute_and_that_is_written(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadowing, "PAUSE_S", 4.0)
    bay.begin()
    bay.listen(behind=lambda index: 1.5 if index == 5 else 0.0)
    spans = bay.rows("SELECT cause, start_sample / 16000.0, end_sample / 16000.0 FROM shadowed ORDER BY start_sample")
    assert spans == [("", 0.0, 5.0), (shadowing.BEHIND, 5.0, 10.0), ("", 10.0, 20.0)]
    found = bay.summary()
    assert found is not None and found.compared_s == 15.0 and found.left_out_s == {shadowing.BEHIND: 5.0}
    assert {pair.start_s > 9 or pair.start_s < 5 for pair in found.pairs} == {True}  # the call at 6 s was not compared


def test_overload_is_not_its_time(bay: Bay) -> None:
    bay.begin()
    bay.listen(behind=lambda index: 6.0 if index >= 4 else 0.0)
    causes = {cause for (cause,) in bay.rows("SELECT cause FROM shadowed")}
    assert causes == {"", shadowing.OVERLOAD}


def test_failure_in_scoring_switches_it_off_and_the_watch_goes_on(bay: Bay, caplog: pytest.LogCaptureFixture) -> None:
    bay.begin()
    score, scored = bay.other.score, []

    def failing(*given: Any) -> Any:
        scored.append(given)
        if len(scored) == 5:
            raise RuntimeError("out of cheese")
        return score(*given)

    bay.other.score = failing
    bay.listen()
    assert len(bay.rows("SELECT id FROM detections")) == 3 and len(scored) == 5
    assert "is switched off: out of cheese" in caplog.text
    trial = bay.shelf.trial()
    assert trial is not None and trial.fault == "RuntimeError: out of cheese"
    assert bay.shelf.history()[-1]["action"] == "shadow failed"
    bay.listen()  # and stays off
    assert len(scored) == 5


def test_reload_that_does_not_go_with_the_shadow_switches_it_off_and_the_watch_goes_on(
    bay: Bay, caplog: pytest.LogCaptureFixture
) -> None:
    bay.first.bundle = replace(bay.first.bundle, start_threshold=0.99)
    bay.begin()
    bay.changed = replace(bay.settings, stop_threshold=0.97)  # over the shadow's start threshold
    bay.listen()
    assert "is switched off: stop_threshold must be at most start_threshold" in caplog.text
    trial = bay.shelf.trial()
    assert trial is not None and trial.fault
    assert bay.rows("SELECT sum(end_sample - start_sample) / 16000.0 FROM ledger WHERE kind = 'recorded'") == [(20.0,)]


def test_reload_that_takes_a_threshold_out_gives_the_shadow_its_own_again(bay: Bay) -> None:
    bay.settings = replace(bay.settings, start_threshold=0.99999, stop_threshold=0.99999)
    bay.other.bundle = replace(bay.other.bundle, start_threshold=0.99999, stop_threshold=0.99999)  # overridden so
    bay.begin()
    bay.changed = replace(bay.settings, start_threshold=None, stop_threshold=None)
    bay.listen()
    assert bay.rows("SELECT count(*) FROM detections") == [(3,)] and bay.rows("SELECT id FROM shadows")


def test_start_that_cannot_be_counted_is_none(bay: Bay) -> None:
    """Otherwise a shadow that ends the process would do so for ever where the disk is full."""
    bay.begin()
    with (bay.shelf.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bay.listen()
    assert len(bay.rows("SELECT id FROM detections")) == 3 and not bay.rows("SELECT id FROM shadowed")
    bay.listen()
    assert bay.rows("SELECT id FROM shadowed")


def test_slow_shadow_is_switched_off_before_the_watch_falls_behind(bay: Bay, caplog: pytest.LogCaptureFixture) -> None:
    bay.settings = replace(bay.settings, overload=replace(bay.settings.overload, step_up_s=0.5))
    score, scored = bay.other.score, []

    def slow(*given: Any) -> Any:
        scored.append(given)
        time.sleep(0.0 if len(scored) < 5 else 0.3)
        return score(*given)

    bay.other.score = slow
    bay.begin()
    bay.listen()
    assert "at once: this machine is too slow for it" in caplog.text and len(scored) < 9
    assert len(bay.rows("SELECT id FROM detections")) == 3


def test_shadow_is_opened_while_the_watch_goes_on(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TELL_S", 0.0)
    waiting: Any = Future()
    opened: list[Any] = []

    class Later:
        def submit(self, call: Any) -> Any:
            opened.append(call)
            return waiting

    def items() -> Iterator[Any]:
        for second, item in enumerate(bay.items()):
            if second == 10:
                waiting.set_result(opened[0]())
            yield item

    bay.opener = Later()
    bay.begin()
    bay.listen(items())
    assert len(bay.rows("SELECT id FROM detections")) == 3 and len(opened) == 1
    assert bay.rows("SELECT start_sample / 16000.0, end_sample / 16000.0 FROM shadowed") == [(10.0, 20.0)]


def test_scores_that_are_no_numbers_hold_nothing_up(bay: Bay) -> None:
    score, scored = bay.other.score, []

    def sick(*given: Any) -> Any:
        scored.append(given)
        found = score(*given)
        return found if len(scored) == 1 or len(scored) > 20 else replace(found, score=float("nan"))

    bay.other.score = sick
    bay.begin()
    bay.listen()
    assert bay.rows("SELECT sum(end_sample - start_sample) / 16000.0 FROM shadowed") == [(20.0,)]
    assert bay.rows("SELECT count(*) FROM shadow_scores") == [(1,)]


def test_shadow_that_scores_silence_as_no_number_is_switched_off(bay: Bay, caplog: pytest.LogCaptureFixture) -> None:
    score = bay.other.score
    bay.other.score = lambda *given: replace(score(*given), score=float("nan"))
    bay.begin()
    bay.listen()
    assert "scores silence nan, which must be 0 to 1" in caplog.text
    assert len(bay.rows("SELECT id FROM detections")) == 3 and not bay.rows("SELECT id FROM shadowed")


def test_shadow_installed_again_for_longer_goes_on(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TELL_S", 0.0)

    def items() -> Iterator[Any]:
        for second, item in enumerate(bay.items()):
            if second == 10:
                bay.begin(days=30)
            trial = bay.shelf.trial()
            starts.append(0 if trial is None else trial.starts)
            yield item

    starts: list[int] = []
    bay.begin(days=1)
    bay.listen(items())
    assert starts[5] == starts[15] == 1  # a crash would be counted
    after = bay.shelf.trial()
    assert after is not None and after.until_utc is not None and after.starts == 0
    assert bay.rows("SELECT sum(end_sample - start_sample) / 16000.0 FROM shadowed") == [(20.0,)]


def test_shadow_that_ends_the_process_again_and_again_is_not_begun_again(
    bay: Bay, caplog: pytest.LogCaptureFixture
) -> None:
    trial = bay.begin()
    for starts in range(3):
        assert bay.shelf.change_trial(replace(trial, starts=starts), replace(trial, starts=starts + 1))
    bay.listen()
    assert "the watch ended 3 times without a proper end while it was young" in caplog.text
    assert not bay.rows("SELECT id FROM shadowed") and len(bay.rows("SELECT id FROM detections")) == 3


def test_it_ends_by_itself_and_survives_a_restart(bay: Bay) -> None:
    trial = bay.begin(days=14)
    bay.listen()
    bay.listen()
    assert len(bay.rows("SELECT DISTINCT session FROM shadowed")) == 2
    after = bay.shelf.trial()
    assert after is not None and after.starts == 0
    over = replace(after, until_utc=trial.since_utc + timedelta(seconds=1), since_utc=trial.since_utc)
    assert bay.shelf.change_trial(after, replace(over, until_utc=datetime(2020, 1, 1, tzinfo=timezone.utc)))
    bay.listen()
    assert len(bay.rows("SELECT DISTINCT session FROM shadowed")) == 2
    assert bay.shelf.target("shadow") is not None  # it can still be promoted


def test_disk_that_refuses_costs_the_watch_nothing(bay: Bay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is written later."""
    bay.begin()
    monkeypatch.setattr(shadowing, "WRITE_S", 1.0)
    refused: list[int] = []
    put = shadowing.Beside._put

    def refusing(self: Any, connection: Any, session: int, spans: Any) -> None:
        put(self, connection, session, spans)
        refused.append(session)
        if len(refused) < 10:
            connection.execute("INSERT INTO nowhere VALUES (1)")

    monkeypatch.setattr(shadowing.Beside, "_put", refusing)
    bay.listen()
    assert len(refused) > 10 and len(bay.rows("SELECT id FROM shadows")) == 3
    assert bay.rows("SELECT sum(end_sample - start_sample) / 16000.0 FROM shadowed") == [(20.0,)]


def test_report_names_every_bundle_that_the_shadow_scored_beside(bay: Bay) -> None:
    bay.begin()
    bay.listen()
    bay.first.bundle = replace(bay.first.bundle, name="newer", manifest={"digest": "2" * 64, "files": {}})
    bay.listen()
    found = bay.summary()
    assert found is not None and found.beside == ("fake 000000000000", "newer 222222222222")
    assert "newer 222222222222; the figures are of all of them together" in "\n".join(lines(found))


def test_table_that_cannot_be_written_is_told(bay: Bay, tmp_path: Path) -> None:
    bay.begin()
    bay.listen()
    (tmp_path / "file").write_text("in the way")
    words = ["bundle", "shadow", "report", "--output", str(bay.settings.output), "--csv"]
    done = CliRunner().invoke(main, [*words, str(tmp_path / "file" / "x.csv")])
    assert done.exit_code == 2 and "x.csv cannot be written: Not a directory; name another file" in done.output
    done = CliRunner().invoke(main, [*words, str(tmp_path / "x.csv")])
    assert done.exit_code == 0 and (tmp_path / "x.csv").read_text().startswith("found_by,")


def test_report_of_two_busy_weeks_takes_no_time(bay: Bay) -> None:
    bay.begin()
    bay.listen()
    with Store(bay.settings.output / DATABASE) as store, store.transaction() as connection:
        for table in ("detections", "shadows"):
            known = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
            same = ", ".join(known - {"id", "start_sample", "end_sample"})
            connection.executemany(
                f"INSERT INTO {table} ({same}, start_sample, end_sample) SELECT {same}, ?, ? FROM {table} LIMIT 1",
                [(1_000_000 * place, 1_000_000 * place + 16_000) for place in range(1, 6001)],
            )
        connection.executemany(
            "INSERT INTO shadowed (session, bundle, bundle_digest, cause, start_sample, end_sample) "
            "SELECT session, bundle, bundle_digest, ?, ?, ? FROM shadowed LIMIT 1",
            [(("", shadowing.BEHIND)[place % 2], 500_000 * place, 500_000 * (place + 1)) for place in range(1, 12_000)],
        )
    began_s = time.process_time()
    found = bay.summary()
    assert time.process_time() - began_s < 2.0
    assert found is not None and found.both == 5999 + 3


def test_lies_in() -> None:
    spans = [(0, 10), (10, 20), (30, 40)]
    inside = [lies_in(spans, middle - 1, middle + 1) for middle in (0, 5, 10, 20, 21, 29, 30, 40, 41)]
    assert inside == [True, True, True, True, False, False, True, True, False] and not lies_in([], 0, 1)


def test_overlaps() -> None:
    assert overlaps([(0, 10), (10, 20), (30, 40)], [(5, 12), (18, 35), (50, 60)]) == [[0], [0, 1], [1]]


def test_nothing_was_shadowed(bay: Bay) -> None:
    bay.listen()
    assert bay.summary() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"since_utc": None},
        {"since_utc": 5},
        {"until_utc": "2099-01-01T00:00:00"},
        {"starts": "many"},
        {"starts": None},
        {"fault": None},
        {"folder": []},
        {"more": 1},
    ],
)
def test_trial_file_that_is_damaged_is_no_shadow(
    changes: dict[str, Any], bay: Bay, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is not told every few seconds."""
    bay.begin(days=1)
    path = bay.shelf.folder / "shadow.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for _ in range(5):
        assert bay.shelf.trial() is None
    assert caplog.text.count("cannot be read") == 1
    bay.listen()
    assert not bay.rows("SELECT id FROM shadowed") and len(bay.rows("SELECT id FROM detections")) == 3
