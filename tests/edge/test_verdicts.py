"""Verdicts: on the detection and in the journal, both or neither, beside a writing daemon."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from orcawatch.errors import InputError, OrcawatchError
from orcawatch.store import Detection, Store
from orcawatch.verdicts import LONGEST_NOTE, VERDICTS, ChangedError, Verdict, Writer, give, give_all, history

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def detection(start_s: float = 1.0) -> Detection:
    return Detection(None, "sea.flac", start_s, start_s + 2, NOON, 0.9, (0, 1), (0.9, 0.8), 0, "test", "0" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store(tmp_path / "detections.sqlite") as store:
        store.add(detection())
        store.add(detection(10.0))
    return tmp_path / "detections.sqlite"


def read(path: Path) -> list[Detection]:
    with Store.reader(path) as reader:
        return reader.detections()


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_stands_on_the_detection_and_in_the_journal(path: Path, verdict: str) -> None:
    with Writer(path) as writer:
        give(writer, 2, verdict, "faint", "Ada", NOON)
    first, second = read(path)
    assert first.verdict is None
    assert (second.verdict, second.verdict_note, second.reviewer) == (verdict, "faint", "Ada")
    assert second.verdict_utc == NOON
    with Store.reader(path) as reader:
        assert history(reader, 2) == [Verdict(2, verdict, "faint", "Ada", NOON)]
        assert history(reader, 1) == []


def test_the_journal_keeps_what_was_said_before(path: Path) -> None:
    with Writer(path) as writer:
        give(writer, 1, "orca", "", "Ada", NOON)
        give(writer, 1, "not_orca", "a squeak", "Ben", NOON + timedelta(minutes=1))
        give(writer, 1, None, "", "Ada", NOON + timedelta(minutes=2))
        said = history(writer, 1)
    assert [(one.verdict, one.reviewer) for one in said] == [("orca", "Ada"), ("not_orca", "Ben"), (None, "Ada")]
    taken_back = read(path)[0]
    assert (taken_back.verdict, taken_back.verdict_utc, taken_back.verdict_note) == (None, None, "")


def test_times_are_kept_in_utc(path: Path) -> None:
    with Writer(path) as writer:
        give(writer, 1, "orca", "", "", NOON.astimezone(timezone(timedelta(hours=-7))))
    with sqlite3.connect(path) as connection:
        stored = connection.execute("SELECT verdict_utc FROM detections WHERE id = 1").fetchone()[0]
    assert stored == NOON.isoformat()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"detection": 7}, "no detection 7"),
        ({"verdict": "whale"}, "not 'whale'"),
        ({"note": "x" * (LONGEST_NOTE + 1)}, "at most 2000 characters; this one has 2001"),
        ({"reviewer": "x" * 101}, "reviewer has at most 100"),
    ],
)
def test_what_cannot_be_written_is_refused_with_all_that_came_with_it(
    path: Path, change: dict[str, object], text: str
) -> None:
    good = Verdict(1, "orca", "", "", NOON)
    bad = Verdict(**{**vars(good), **change})  # type: ignore[arg-type]
    with Writer(path) as writer:
        with pytest.raises(InputError, match=text):
            give_all(writer, [good, bad])
        assert history(writer, 1) == []
    assert [one.verdict for one in read(path)] == [None, None]


def test_a_time_without_a_timezone_is_refused(path: Path) -> None:
    with Writer(path) as writer, pytest.raises(ValueError, match="timezone"):
        give(writer, 1, "orca", "", "", NOON.replace(tzinfo=None))


def test_of_two_reviewers_at_once_one_is_told(path: Path) -> None:
    """Both have seen the page without a verdict; whoever writes first wins, whatever the order of reading was."""
    with Writer(path) as one, Writer(path) as other:
        give(one, 1, "orca", "", "Ada", NOON, seen=0)
        with pytest.raises(ChangedError, match="detection 1 has meanwhile got another verdict") as raised:
            give(other, 1, "not_orca", "", "Bea", NOON, seen=0)
        assert raised.value.other.reviewer == "Ada" and len(history(one, 1)) == 1
        give(other, 1, "not_orca", "", "Bea", NOON, seen=1)
    assert read(path)[0].verdict == "not_orca"


def test_verdicts_are_given_beside_an_open_store(path: Path) -> None:
    with Store(path) as store, Writer(path) as writer:
        give(writer, 1, "orca", "", "", NOON)
        store.add(detection(20.0))
        give(store, 3, "unsure", "", "", NOON)
        assert [one.verdict for one in store.detections()] == ["orca", None, "unsure"]


def test_a_database_that_somebody_holds_is_said_and_nothing_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orcawatch.store.BUSY_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    with Writer(path) as writer:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(OrcawatchError, match="locked; try again"):
            give(writer, 1, "orca", "", "", NOON)
        holder.execute("ROLLBACK")
        give(writer, 1, "orca", "", "", NOON)
    holder.close()


def test_the_writer_makes_nothing_and_brings_nothing_up_to_date(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        Writer(tmp_path / "detections.sqlite")
    assert list(tmp_path.iterdir()) == []
    old = tmp_path / "old.sqlite"
    with sqlite3.connect(old) as connection:
        connection.execute("CREATE TABLE detections (id INTEGER)")
        connection.execute("PRAGMA user_version = 2")
    before = old.read_bytes()
    with pytest.raises(InputError, match="schema 2"):
        Writer(old)
    assert old.read_bytes() == before


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("not a database, but text that is long enough to look at" * 20)
    with pytest.raises(InputError, match="cannot be opened"):
        Writer(tmp_path / "x.sqlite")
