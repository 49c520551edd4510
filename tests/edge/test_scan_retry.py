"""What was set aside: where it is listed, and how it is tried again."""

from __future__ import annotations

import csv
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orcawatch import journal
from orcawatch.config import Settings
from orcawatch.listener import Totals
from orcawatch.scan import SET_ASIDE, Recording, Summary, find_recordings, scan
from orcawatch.staging import Task
from orcawatch.store import Detection
from orcawatch.workers import Here

NAMES = ("a.wav", "b.wav", "c.wav", "d.wav")
DAY_NS = 10**18


class Archive:
    """Four recordings of six seconds with a call each: `a` and `c` cannot be read until they are mended, of `b` a part
    can never be scored, `d` is whole.

    What cannot be read has the same size and time of change when it is mended, as with permissions, or a drive.
    """

    def __init__(self, folder: Path, ensemble: Any, samples: Any, write: Callable[..., Path]) -> None:
        self.folder, self.ensemble = folder / "in", ensemble
        for name in NAMES:
            own = samples.copy()
            if name == "b.wav":
                own[80000:] = np.nan
            write(self.folder / name, own, 16000, "FLOAT")
        self._whole = {name: (self.folder / name).read_bytes() for name in ("a.wav", "c.wav")}
        for name, content in self._whole.items():
            self.put(name, bytes(len(content)))

    def put(self, name: str, content: bytes) -> None:
        """Write a file that seems not to have changed."""
        (self.folder / name).write_bytes(content)
        os.utime(self.folder / name, ns=(DAY_NS, DAY_NS))

    def mend(self, *names: str) -> None:
        for name in names:
            self.put(name, self._whole[name])

    def scan(
        self, output: Path, retry: bool = False, stop_after: int | None = None, before: Callable[[Task], object] = id
    ) -> tuple[Summary, list[Detection]]:
        """A scan in this process; `before` is called before each file, and the scan stopped after so many."""
        settings = Settings(output=output, snapshots=False)
        stop = threading.Event()
        here = Here(self.ensemble, lambda seconds: None, stop)
        tasks: list[Task] = []

        class Workers:
            ahead = 1

            def hand_out(self, task: Task) -> Callable[[], Totals]:
                if len(tasks) == stop_after:
                    stop.set()
                tasks.append(task)
                before(task)
                return here.hand_out(task)

        found: list[Detection] = []
        recordings = find_recordings([self.folder], output)
        return scan(recordings, self.ensemble.bundle, settings, found.append, Workers(), retry), found


@pytest.fixture
def archive(tmp_path: Path, ensemble: Any, make_audio: Callable[..., Any], write: Callable[..., Path]) -> Archive:
    return Archive(tmp_path, ensemble, make_audio(16000, 6.0, 1, [(1.0, 2.0)]), write)


def names(found: list[Detection]) -> list[str]:
    return [Path(detection.source).name for detection in found]


def set_aside(output: Path) -> dict[str, str]:
    """Reasons by the names of files; empty where there is no list."""
    if not (output / SET_ASIDE).exists():
        return {}
    with (output / SET_ASIDE).open(newline="") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def rows(output: Path, table: str, without: str = "") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(output / "detections.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]
    return [{name: value for name, value in row.items() if name != without} for row in found]


def review(output: Path, source: str) -> None:
    """Give all detections of a file a verdict."""
    with closing(sqlite3.connect(output / "detections.sqlite")) as connection, connection:
        changed = connection.execute("UPDATE detections SET verdict = 'orca' WHERE source LIKE ?", (f"%{source}",))
        assert changed.rowcount


def test_what_was_set_aside_is_tried_again_only_when_asked_for(archive: Archive, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary, found = archive.scan(output)
    assert (summary.faulty, names(found)) == (3, ["b.wav", "d.wav"])
    assert list(set_aside(output)) == ["a.wav", "b.wav", "c.wav"]
    archive.mend("a.wav", "c.wav")
    summary, found = archive.scan(output)
    assert (summary.faulty, summary.again, names(found)) == (3, 4, ["b.wav", "d.wav"])
    summary, found = archive.scan(output, retry=True)
    assert (summary.faulty, summary.again, names(found)) == (1, 2, ["a.wav", "b.wav", "c.wav", "d.wav"])
    assert list(set_aside(output)) == ["b.wav"] and "are refused" in set_aside(output)["b.wav"]
    assert all((output / str(detection.clip)).is_file() for detection in found)


def test_a_retry_that_comes_to_the_same_leaves_all_as_it_was(archive: Archive, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _, first = archive.scan(output)
    tables = ("scanned", "detections", "sessions", "ledger")
    before = [rows(output, table) for table in tables]
    clips = {file.name: file.stat().st_mtime_ns for file in (output / "clips").iterdir()}
    tried: list[str] = []
    _, second = archive.scan(output, retry=True, before=lambda task: tried.append(task.path.name))
    assert tried == ["a.wav", "b.wav", "c.wav"] and second == first
    assert [rows(output, table) for table in tables] == before
    assert {file.name: file.stat().st_mtime_ns for file in (output / "clips").iterdir()} == clips


@pytest.mark.parametrize("done", range(4))
def test_a_retry_that_is_stopped_goes_on_as_if_it_had_not_been(archive: Archive, tmp_path: Path, done: int) -> None:
    """`b` is tried each time, and gets no new numbers by that."""
    for name in ("whole", "stopped"):
        archive.scan(tmp_path / name)
    archive.mend("a.wav", "c.wav")
    whole = archive.scan(tmp_path / "whole", retry=True)
    archive.scan(tmp_path / "stopped", retry=True, stop_after=done)
    again = archive.scan(tmp_path / "stopped", retry=True)
    assert again[1] == whole[1] and again[0].faulty == whole[0].faulty == 1
    assert set_aside(tmp_path / "stopped") == set_aside(tmp_path / "whole")
    for table, own in (("scanned", "finished_utc"), ("detections", ""), ("ledger", "")):
        assert rows(tmp_path / "stopped", table, own) == rows(tmp_path / "whole", table, own)


def test_a_retry_keeps_what_was_reviewed(archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out"
    archive.scan(output)
    review(output, "b.wav")
    before = set_aside(output)["b.wav"]
    tried: list[str] = []
    with caplog.at_level(logging.ERROR):
        summary, found = archive.scan(output, retry=True, before=lambda task: tried.append(task.path.name))
    assert tried == ["a.wav", "c.wav"] and names(found) == ["b.wav", "d.wav"] and summary.faulty == 3
    assert "b.wav was set aside, but 1 of its detections have verdicts, which are kept" in caplog.text
    assert set_aside(output)["b.wav"] == before


@pytest.mark.parametrize("retry", [False, True])
def test_a_changed_file_with_verdicts_is_in_the_list(archive: Archive, tmp_path: Path, retry: bool) -> None:
    """Until it is again what was scanned."""
    output = tmp_path / "out"
    file = archive.folder / "d.wav"
    content, times = file.read_bytes(), file.stat().st_mtime_ns
    archive.scan(output)
    review(output, "d.wav")
    detections = rows(output, "detections")
    file.write_bytes(content[:-4000])
    summary, found = archive.scan(output, retry)
    assert (summary.faulty, names(found)) == (4, ["b.wav"])
    assert list(set_aside(output)) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert "d.wav has changed since it was scanned" in set_aside(output)["d.wav"]
    assert "--output" in set_aside(output)["d.wav"] and rows(output, "detections") == detections
    file.write_bytes(content)
    os.utime(file, ns=(times, times))
    summary, found = archive.scan(output, retry)
    assert (summary.faulty, names(found)) == (3, ["b.wav", "d.wav"]) and "d.wav" not in set_aside(output)


def test_a_verdict_that_is_given_meanwhile_is_kept(archive: Archive, tmp_path: Path) -> None:
    """A changed file is being scanned again when one of its detections is reviewed."""
    output = tmp_path / "out"
    archive.scan(output)
    archive.mend("a.wav", "c.wav")
    file = archive.folder / "d.wav"
    os.utime(file, ns=(0, 1000))

    def reviewed(task: Task) -> None:
        if task.path.name == "d.wav":
            review(output, "d.wav")

    summary, _ = archive.scan(output, retry=True, before=reviewed)
    kept = [row for row in rows(output, "detections") if row["source"].endswith("d.wav")]
    assert [row["verdict"] for row in kept] == ["orca"] and (output / kept[0]["clip"]).is_file()
    assert list(set_aside(output)) == ["b.wav", "d.wav"] and summary.faulty == 2


def test_a_stopped_scan_lists_what_it_came_upon(archive: Archive, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary, _ = archive.scan(output, stop_after=2)
    assert (summary.files, summary.faulty) == (4, 4) and list(set_aside(output)) == ["a.wav", "b.wav"]


def test_the_list_says_why(
    ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    """The files of which a part could be read are scanned to there."""
    folder, samples = tmp_path / "in", make_audio(16000, 6.0, 1, [(1.0, 2.0)])
    whole = write(tmp_path / "whole.wav", samples, 16000).read_bytes()
    folder.mkdir()
    (folder / "breaks_off.wav").write_bytes(whole[:100000])
    (folder / "holds_more.wav").write_bytes(whole + bytes(range(1, 256)) * 200)
    write(folder / "short.wav", samples[:50], 16000)
    write(folder / "slow.wav", samples, 4000)
    (folder / "text.wav").write_text("no audio")
    settings = Settings(output=tmp_path / "out", snapshots=False)
    found: list[Detection] = []
    here = Here(ensemble, lambda seconds: None, threading.Event())
    scan(find_recordings([folder], settings.output), ensemble.bundle, settings, found.append, here)
    reasons = {
        "breaks_off.wav": "is damaged",
        "holds_more.wav": "the header states 6.000 s",
        "short.wav": "holds nothing to score",
        "slow.wav": "sample rate must be at least 8000 Hz",
        "text.wav": "cannot be read as audio",
    }
    listed = set_aside(settings.output)
    assert list(listed) == list(reasons) and all(reasons[name] in listed[name] for name in reasons), listed
    assert names(found) == ["breaks_off.wav", "holds_more.wav"]


def test_the_list_holds_files_of_all_scans_into_the_folder(archive: Archive, tmp_path: Path) -> None:
    other = tmp_path / "other" / "x.wav"
    other.parent.mkdir()
    other.write_text("no audio")
    archive.scan(tmp_path / "out")
    archive.folder = other.parent
    archive.scan(tmp_path / "out")
    assert list(set_aside(tmp_path / "out")) == ["a.wav", "b.wav", "c.wav", "x.wav"]
    assert not set_aside(tmp_path / "other")


def test_files_that_tell_no_time_are_counted(archive: Archive, tmp_path: Path) -> None:
    """Those of which nothing could be read are told of otherwise."""
    (archive.folder / "d.wav").rename(archive.folder / "20260301T120000Z.wav")
    first, _ = archive.scan(tmp_path / "out")
    again, _ = archive.scan(tmp_path / "out")
    assert (first.timeless, again.timeless) == (1, 1)
    archive.mend("a.wav", "c.wav")
    assert archive.scan(tmp_path / "out", retry=True)[0].timeless == 3


def test_clips_that_could_not_be_written_are_made_again(archive: Archive, tmp_path: Path) -> None:
    """A file whose clips the disk refused counts as changed; nothing else does."""
    archive.scan(tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / "detections.sqlite")) as connection, connection:
        connection.execute("UPDATE scanned SET size = NULL, modified_ns = NULL WHERE path LIKE '%d.wav'")
    tried: list[str] = []
    summary, _ = archive.scan(tmp_path / "out", before=lambda task: tried.append(task.path.name))
    assert tried == ["d.wav"] and summary.again == 3


def test_nothing_is_retried_of_another_list(archive: Archive, tmp_path: Path) -> None:
    """Only the files that are named are tried."""
    archive.scan(tmp_path / "out")
    archive.mend("a.wav", "c.wav")
    recordings = [Recording(archive.folder / "c.wav", "c.wav")]
    settings = Settings(output=tmp_path / "out", snapshots=False)
    here = Here(archive.ensemble, lambda seconds: None, threading.Event())
    scan(recordings, archive.ensemble.bundle, settings, lambda detection: None, here, retry=True)
    assert list(set_aside(tmp_path / "out")) == ["a.wav", "b.wav"]


class Killed(BaseException):
    """Nothing is finished, and nothing cleaned up."""


def files_and_names(output: Path) -> tuple[set[str], set[str]]:
    """Clips on the disk, and those that rows name."""
    with closing(sqlite3.connect(output / "detections.sqlite")) as connection:
        named = {clip for (clip,) in connection.execute("SELECT clip FROM detections WHERE clip IS NOT NULL")}
    return {f"clips/{file.name}" for file in (output / "clips").iterdir()}, named


def killed_at(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """The next call of this that has to do with a clip ends all."""
    call = getattr(where, name)

    def killed(path: Path, *given: Any, **more: Any) -> Any:
        if path.parent.name == "clips" or path.name == "snapshots":
            raise Killed
        return call(path, *given, **more)

    monkeypatch.setattr(where, name, killed)


def test_clips_that_were_replaced_go_although_a_kill_came_between(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the commit, before they were deleted."""
    archive.mend("a.wav")
    archive.scan(tmp_path / "out")
    _, before = files_and_names(tmp_path / "out")
    (archive.folder / "a.wav").touch()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, Path, "unlink")
        archive.scan(tmp_path / "out")
    there, named = files_and_names(tmp_path / "out")
    assert named - before and there - named
    archive.scan(tmp_path / "out")
    there, named = files_and_names(tmp_path / "out")
    assert there == named


def test_clips_of_what_a_kill_has_undone_go(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the commit; and the file is not there any more when the scan goes on."""
    archive.mend("a.wav")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, journal, "sync_folder")
        archive.scan(tmp_path / "out")
    there, named = files_and_names(tmp_path / "out")
    assert there and not named
    (archive.folder / "a.wav").unlink()
    archive.scan(tmp_path / "out")
    there, named = files_and_names(tmp_path / "out")
    assert there == named and named
    assert not (tmp_path / "out" / journal.TAKING).exists()


def test_a_note_of_files_elsewhere_deletes_nothing(archive: Archive, tmp_path: Path) -> None:
    output = tmp_path / "out"
    archive.scan(output)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (output / journal.TAKING).write_text(f"clips/../../mine.txt\n../mine.txt\n{mine}\nset-aside.csv\n")
    before = files_and_names(output)
    archive.scan(output)
    assert mine.exists() and (output / SET_ASIDE).exists() and files_and_names(output) == before
