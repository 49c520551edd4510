"""How far a scan is: what was done before counts, and the time left is right."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orcawatch import files, scan_command
from orcawatch import scan as scan_module
from orcawatch.config import Settings
from orcawatch.files import open_audio
from orcawatch.scan import Recording, Work, find_recordings, scan, work_of
from orcawatch.scan_command import Lines, Progress
from orcawatch.workers import Here


class Clock:
    """A clock that is set."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def half_done() -> Work:
    """Two hours of four were scanned before."""
    return Work({Path("c"): 3600.0, Path("d"): 3600.0}, before=2, before_s=7200.0)


def test_what_was_done_before_counts_but_not_for_the_pace() -> None:
    clock = Clock()
    progress = Progress(half_done(), clock)
    assert str(progress).startswith("2 of 4 files, 2.00 h of 4.00 h (2 files and 2.00 h before), 0 times real time")
    assert progress.left == "unknown"
    clock.now_s += 1000  # detections of before are printed
    progress.audio(0.0)
    clock.now_s += 36
    progress.audio(1800.0)
    assert (progress.done_s, progress.whole_s, progress.pace) == (9000.0, 14400.0, 50.0)
    assert progress.left == "0:01:48"  # 5,400 s at 50 times real time


def test_files_that_are_not_as_long_as_stated_put_the_rest_right() -> None:
    clock = Clock()
    progress = Progress(half_done(), clock)
    progress.audio(0.0)
    clock.now_s += 10
    progress.audio(100.0)
    progress.file(Recording(Path("c"), "c"), 100.0)  # it breaks off
    assert (progress.files, progress.whole_s, progress.left) == (3, 10900.0, "0:06:00")
    progress.audio(7200.0)
    progress.file(Recording(Path("d"), "d"), 7200.0)  # it holds more
    assert (progress.files, progress.done_s, progress.left) == (4, progress.whole_s, "0:00:00")


def test_lines_come_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines = Lines(half_done(), clock)
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            lines.audio(12.0)
            clock.now_s += 0.5
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "2 of 4 files, 2.07 h of 4.00 h",
        "2 of 4 files, 2.14 h of 4.00 h",
    ]


@pytest.fixture
def three(tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]) -> Path:
    """A folder with three recordings of four seconds; the last one breaks off."""
    for name in ("a.wav", "b.wav", "c.wav"):
        write(tmp_path / "in" / name, make_audio(16000, 4.0, 1, [(1.0, 2.0)]), 16000)
    content = (tmp_path / "in" / "c.wav").read_bytes()
    (tmp_path / "in" / "c.wav").write_bytes(content[: len(content) // 2])
    return tmp_path / "in"


def scanned(folder: Path, ensemble: Any, output: Path, retry: bool = False) -> tuple[Work, Progress]:
    settings = Settings(output=output, snapshots=False)
    recordings = find_recordings([folder], output)
    work = work_of(recordings, ensemble.bundle, settings, retry)
    progress = Progress(work)
    here = Here(ensemble, progress.audio, threading.Event())
    scan(recordings, ensemble.bundle, settings, lambda detection: progress.detection(), here, retry, progress.file)
    return work, progress


def test_progress_ends_with_everything_done(three: Path, ensemble: Any, tmp_path: Path) -> None:
    work, progress = scanned(three, ensemble, tmp_path / "out")
    assert (work.before, work.left_s, work.files) == (0, pytest.approx(12.0), 3)
    assert progress.files == 3 and progress.done_s == pytest.approx(10.0, abs=0.01) == progress.whole_s
    assert progress.found == 3


def test_progress_of_a_resumed_scan_begins_with_what_was_done(three: Path, ensemble: Any, tmp_path: Path) -> None:
    """A new file stands in front of those that were scanned."""
    scanned(three, ensemble, tmp_path / "out")
    (three / "A.wav").write_bytes((three / "a.wav").read_bytes())
    work, progress = scanned(three, ensemble, tmp_path / "out")
    assert (work.before, work.before_s, work.left_s) == (3, pytest.approx(10.0, abs=0.01), pytest.approx(4.0))
    assert progress.files == 4 and progress.done_s == pytest.approx(14.0, abs=0.01) == progress.whole_s
    assert progress.found == 4
    work, progress = scanned(three, ensemble, tmp_path / "out", retry=True)
    assert set(work.lengths_s) == {three / "c.wav"} and progress.files == 4


def test_headers_of_files_that_were_scanned_are_not_read(
    three: Path, ensemble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are a hundred thousand on a network drive, a scan would not get on."""
    scanned(three, ensemble, tmp_path / "out")
    (three / "d.wav").write_bytes((three / "a.wav").read_bytes())
    opened: list[str] = []
    for module in (scan_module, files):
        monkeypatch.setattr(module, "open_audio", lambda path: opened.append(path.name) or open_audio(path))
    scanned(three, ensemble, tmp_path / "out")
    assert set(opened) == {"d.wav"}


def test_a_bar_in_a_terminal_counts_what_was_done_before(three: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "orcawatch.cli", "scan", str(three), "--output", str(tmp_path / "out")]
    ends = []
    for _ in range(2):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
            os.close(theirs)
            ends.append(read_all(ours))
        assert process.returncode == 3
        (three / "d.wav").write_bytes((three / "a.wav").read_bytes())
    first, second = (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text) for text in ends)
    assert "0 of 3 files" in first and "3 of 3 files" in first and "100 %" in first
    assert "0 of 4 files" not in second and "3 of 4 files" in second and "4 of 4 files" in second and " 71 %" in second


def read_all(terminal: int) -> str:
    """What is written to a terminal until nobody has it open."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            part = b""
        if not part:
            os.close(terminal)
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


def test_a_scan_without_a_terminal_tells_it_in_lines(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scan_command, "TELL_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO), scan_command.showing(half_done()) as progress:
        for _ in range(3):
            progress.audio(1.0)
    assert "2 of 4 files, 2.00 h of 4.00 h (2 files and 2.00 h before)" in caplog.text
