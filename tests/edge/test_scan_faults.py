"""What may go wrong while an archive is scanned: nothing is lost, nothing is found twice, nothing hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcawatch import staging
from orcawatch.bundle import SHIPPED
from orcawatch.config import HydrophoneSettings, Settings
from orcawatch.errors import OrcawatchError
from orcawatch.listener import Totals
from orcawatch.scan import SET_ASIDE, Recording, find_recordings, scan
from orcawatch.staging import Task
from orcawatch.store import Detection
from orcawatch.workers import Here, Processes, Stopped, wait


class Scripted:
    """Workers that give what `answer` gives for each task."""

    ahead = 1

    def __init__(self, answer: Callable[[Task], Totals]) -> None:
        self.tasks: list[Task] = []
        self._answer = answer

    def hand_out(self, task: Task) -> Callable[[], Totals]:
        self.tasks.append(task)
        return lambda: self._answer(task)


def nothing(_: object) -> None:
    pass


def five(folder: Path) -> list[Recording]:
    return [Recording(folder / f"{number}.wav", f"{number}.wav") for number in range(5)]


def test_nothing_is_begun_after_a_stop(ensemble: Any, tmp_path: Path) -> None:
    def stopped(task: Task) -> Totals:
        raise Stopped

    workers = Scripted(stopped)
    summary = scan(five(tmp_path), ensemble.bundle, Settings(output=tmp_path / "out"), nothing, workers)
    assert len(workers.tasks) == 1 and (summary.files, summary.faulty) == (5, 5)


def test_a_file_that_grows_while_it_is_scanned_is_scanned_again(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    here = Here(ensemble, nothing, threading.Event())
    settings = Settings(output=tmp_path / "out", snapshots=False)

    def growing(task: Task) -> Totals:
        totals = here.hand_out(task)()
        os.utime(recording, ns=(0, 1000))
        return totals

    recordings = find_recordings([recording], settings.output)
    assert scan(recordings, ensemble.bundle, settings, nothing, Scripted(growing)).again == 0
    found: list[Detection] = []
    assert scan(recordings, ensemble.bundle, settings, found.append, here).again == 0
    assert len(found) == 2
    assert scan(recordings, ensemble.bundle, settings, nothing, here).again == 1


def test_detections_that_are_not_there_end_the_scan(ensemble: Any, tmp_path: Path) -> None:
    """A worker that writes elsewhere must not leave files scanned without their detections."""
    workers = Scripted(lambda task: Totals(events=3))
    settings = Settings(output=tmp_path / "out")
    with pytest.raises(OrcawatchError, match=r"3 detections were found but .* holds 0"):
        scan(five(tmp_path), ensemble.bundle, settings, nothing, workers)
    workers = Scripted(lambda task: Totals())
    assert scan(five(tmp_path), ensemble.bundle, settings, nothing, workers).again == 0


def test_workers_take_the_bundle_of_the_scan(ensemble: Any, tmp_path: Path) -> None:
    """One that is installed in the output folder is not found from the folder of one file."""
    for folder, expected in ((tmp_path / "installed", tmp_path / "installed"), (SHIPPED, None)):
        workers = Scripted(lambda task: Totals())
        output = tmp_path / f"out-{folder.name}"
        scan(five(tmp_path), replace(ensemble.bundle, folder=folder), Settings(output=output), nothing, workers)
        assert {task.settings.bundle for task in workers.tasks} == {expected}


def test_two_scans_use_different_folders(ensemble: Any, tmp_path: Path) -> None:
    """A worker of a cluster may still write for a scan that was killed."""
    workers = Scripted(lambda task: Totals())
    for recording in five(tmp_path)[:2]:
        scan([recording], ensemble.bundle, Settings(output=tmp_path / "out"), nothing, workers)
    assert len({task.settings.output for task in workers.tasks}) == 2


def test_one_file_by_two_paths_is_scanned_once(ensemble: Any, tmp_path: Path) -> None:
    file = tmp_path / "a" / "x.wav"
    file.parent.mkdir()
    file.touch()
    other = tmp_path / "a" / ".." / "a" / "x.wav"
    settings = Settings(output=tmp_path / "out")
    (one,) = find_recordings([file, other], settings.output)
    workers = Scripted(lambda task: Totals())
    scan([one], ensemble.bundle, settings, nothing, workers)
    assert scan(find_recordings([other], settings.output), ensemble.bundle, settings, nothing, workers).again == 1


def test_a_task_that_ends_with_a_timeout_is_not_waited_for() -> None:
    """As of a network drive: where the two errors are one class, it looks like time that is not over."""
    future: Future[Totals] = Future()
    future.set_exception(TimeoutError("the drive does not answer"))
    looks: list[None] = []
    with pytest.raises(TimeoutError, match="the drive"):
        wait(future, threading.Event(), lambda: looks.append(None))
    assert not looks


def deadly(task: Task) -> Totals:
    """Twice the same task: in the first process without an end, in the second it tells whether that one is left.

    The task `deadly` ends its process as soon as the other one is begun.
    """
    file = task.path.parent / "process"
    if task.name == "deadly":
        while not file.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    if not file.exists():
        file.with_suffix(".new").write_text(str(os.getpid()))
        file.with_suffix(".new").replace(file)
        time.sleep(120)
    try:
        os.kill(int(file.read_text()), 0)
    except ProcessLookupError:
        return Totals(events=1)
    return Totals(events=2)


def test_a_file_is_never_scanned_by_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one process dies, the others are ended before their files are begun again."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where the processes find this module
    monkeypatch.setattr(staging, "work_elsewhere", deadly)
    workers = Processes(2, nothing, threading.Event())
    try:
        patient = workers.hand_out(Task(tmp_path / "a.wav", Settings(), "", "patient"))
        workers.hand_out(Task(tmp_path / "b.wav", Settings(), "", "deadly"))
        workers.hand_out(Task(tmp_path / "c.wav", Settings(), "", "third"))  # the pool looks at its processes then
        assert patient().events == 1
    finally:
        workers.close()


def test_a_file_with_another_number_of_channels_is_set_aside(
    recording: Path, ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    write(recording.parent / "a.wav", make_audio(16000, 4.0, 3, [(1.0, 2.0)]), 16000)
    two = (HydrophoneSettings("A"), HydrophoneSettings("B"))
    settings = Settings(output=tmp_path / "out", snapshots=False, hydrophones=two)
    found: list[Detection] = []
    here = Here(ensemble, nothing, threading.Event())
    summary = scan(find_recordings([recording.parent], settings.output), ensemble.bundle, settings, found.append, here)
    assert (summary.files, summary.faulty) == (2, 1) and {one.source for one in found} == {str(recording)}
    assert "hydrophones must be as many as the used channels (3), not 2" in (settings.output / SET_ASIDE).read_text()


def test_a_pattern_leaves_out_the_clips_of_the_output(recording: Path, tmp_path: Path) -> None:
    own = tmp_path / "in" / "clips" / "000001_calls.flac"
    own.parent.mkdir()
    own.write_bytes(recording.read_bytes())
    pattern = tmp_path / "**" / "*.flac"
    assert [item.path for item in find_recordings([pattern], tmp_path / "in")] == [recording]
