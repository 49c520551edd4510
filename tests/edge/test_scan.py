from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from orcawatch.config import Settings
from orcawatch.daemon import run
from orcawatch.detector import Detector
from orcawatch.errors import InputError
from orcawatch.files import FileSource
from orcawatch.records import AudioBlock
from orcawatch.scan import Recording, Summary, check_place, clip_scores, find_recordings, scan, total_s, write_scores
from orcawatch.store import Detection
from orcawatch.workers import Here


def nothing(_: object) -> None:
    pass


def scanned_here(
    recordings: list[Recording],
    ensemble: Any,
    settings: Settings,
    on_detection: Callable[[Detection], None],
    on_audio: Callable[[float], object] = nothing,
    stop: threading.Event | None = None,
) -> Summary:
    """A scan in this process."""
    here = Here(ensemble, on_audio, stop or threading.Event())
    return scan(recordings, ensemble.bundle, settings, on_detection, here)


def without_place(detections: list[Detection]) -> list[tuple[Any, ...]]:
    return [(d.start_s, d.end_s, d.score, d.channel_scores, d.best_channel, d.clip) for d in detections]


def test_scan_and_run_find_the_same(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    heard: list[Detection] = []
    scanned: list[Detection] = []
    live = FileSource(recording, realtime=True, block_s=0.1, sleep=lambda seconds: None)
    run(live, ensemble, Settings(output=tmp_path / "a", snapshots=False), heard.append)
    settings = Settings(output=tmp_path / "b", snapshots=False)
    summary = scanned_here(find_recordings([recording], settings.output), ensemble, settings, scanned.append)
    assert len(heard) == 2 and without_place(heard) == without_place(scanned)
    assert (summary.files, summary.faulty, summary.events) == (1, 0, 2)


def test_files_of_one_name_keep_their_own_clips(
    ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    for folder, call in (("a", (1.0, 2.0)), ("b", (3.0, 4.0))):
        write(tmp_path / "in" / folder / "x.wav", make_audio(16000, 5.0, 1, [call]), 16000)
    settings = Settings(output=tmp_path / "out", snapshots=False)
    found: list[Detection] = []
    scanned_here(find_recordings([tmp_path / "in"], settings.output), ensemble, settings, found.append)
    assert [Path(detection.source).parent.name for detection in found] == ["a", "b"]
    contents = [(settings.output / str(detection.clip)).read_bytes() for detection in found]
    assert contents[0] != contents[1]


def test_faulty_files_are_logged_and_the_others_scanned(
    recording: Path, ensemble: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (recording.parent / "a.wav").write_text("text")
    (recording.parent / "z.flac").write_bytes(recording.read_bytes()[:100000])
    settings = Settings(output=tmp_path / "out", snapshots=False)
    found: list[Detection] = []
    summary = scanned_here(find_recordings([recording.parent], settings.output), ensemble, settings, found.append)
    assert (summary.files, summary.faulty) == (3, 2)
    assert {detection.source for detection in found} >= {str(recording)}
    assert "a.wav cannot be read as audio" in caplog.text and "z.flac is damaged" in caplog.text


def test_clip_score_is_the_mean_over_windows(recording: Path, ensemble: Any) -> None:
    (row,), faulty = clip_scores(
        find_recordings([recording.parent], Path("out")), ensemble, Settings(), nothing, threading.Event()
    )
    samples = next(FileSource(recording, block_s=100).blocks()).samples
    detector = Detector(ensemble, 32000, 2, 0.48)
    windows = detector.push(AudioBlock(samples, 0)) + detector.finish()
    assert row[0] == "calls.flac" and faulty == 0
    assert row[1] == pytest.approx(np.mean([window.channel_scores.max() for window in windows]))


def test_clips_that_are_not_whole_have_no_score(
    tmp_path: Path,
    ensemble: Any,
    make_audio: Callable[..., Any],
    write: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples = make_audio(16000, 4.0, 1, [])
    write(tmp_path / "good" / "b.wav", samples, 16000)
    samples[30000] = np.nan
    write(tmp_path / "a_nan.wav", samples, 16000, "FLOAT")
    write(tmp_path / "slow.wav", samples[:3000], 1000)
    rows, faulty = clip_scores(
        find_recordings([tmp_path], Path("out")), ensemble, Settings(), nothing, threading.Event()
    )
    assert [name for name, _ in rows] == ["good/b.wav"] and faulty == 2
    assert "a_nan.wav has no score" in caplog.text
    assert "slow.wav: sample rate must be at least 8000 Hz, not 1000 Hz" in caplog.text


def test_progress_adds_up_to_the_stated_length(recording: Path, ensemble: Any) -> None:
    recordings = find_recordings([recording], Path("out"))
    seconds: list[float] = []
    clip_scores(recordings, ensemble, Settings(), seconds.append, threading.Event())
    assert sum(seconds) == pytest.approx(total_s(recordings)) == pytest.approx(10.0)


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no audio file"):
        find_recordings([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        find_recordings([tmp_path / "none"], tmp_path / "out")


def test_scores_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "scores.csv"
    write_scores(file, [("a,b.wav", 0.25), ("c.wav", 1 / 3)])
    assert file.read_text() == 'file_name,score\n"a,b.wav",0.25\nc.wav,0.333333333\n'
    with pytest.raises(InputError, match="cannot be written"):
        write_scores(tmp_path / "new", [])
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "scores.csv"]


def test_two_clips_of_one_name_are_refused_before_any_is_scored(recording: Path, ensemble: Any) -> None:
    other = recording.parent.with_name("other") / recording.name
    other.parent.mkdir()
    other.write_bytes(recording.read_bytes())
    recordings = find_recordings([recording, other.parent, recording.parent], Path("out"))
    assert len(recordings) == 2  # one of them was named twice
    with pytest.raises(InputError, match=r"calls.flac is the name of two files"):
        clip_scores(recordings, ensemble, Settings(), nothing, threading.Event())


def test_clips_of_the_output_folder_are_scanned_only_when_asked_for(recording: Path, tmp_path: Path) -> None:
    own = tmp_path / "in" / "clips" / "000001_calls.flac"
    own.parent.mkdir()
    own.write_bytes(recording.read_bytes())
    assert [item.path for item in find_recordings([tmp_path], output=tmp_path / "in")] == [recording]
    assert [item.path for item in find_recordings([own.parent], output=tmp_path / "in")] == [own]


def test_file_that_lacks_a_channel_does_not_end_the_scan(
    ensemble: Any,
    tmp_path: Path,
    make_audio: Callable[..., Any],
    write: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(tmp_path / "a.wav", make_audio(16000, 4.0, 1, [(1.0, 2.0)]), 16000)
    write(tmp_path / "b.wav", make_audio(16000, 4.0, 4, [(1.0, 2.0)]), 16000)
    settings = Settings(output=tmp_path / "out", snapshots=False, channels=(2, 3))
    recordings = find_recordings([tmp_path], settings.output)
    found: list[Detection] = []
    summary = scanned_here(recordings, ensemble, settings, found.append)
    assert (summary.files, summary.faulty) == (2, 1) and [Path(item.source).name for item in found] == ["b.wav"]
    rows, faulty = clip_scores(recordings, ensemble, settings, nothing, threading.Event())
    assert [name for name, _ in rows] == ["b.wav"] and faulty == 1
    assert "a.wav: channels must be 0 to 0 (the source has 1), not [2, 3]" in caplog.text


def test_names_that_are_not_utf_8_are_made_printable(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    recording.rename(recording.with_name(os.fsdecode(b"orque_\xe9.flac")))
    settings = Settings(output=tmp_path / "out", snapshots=False)
    recordings = find_recordings([recording.parent], settings.output)
    rows, _ = clip_scores(recordings, ensemble, settings, nothing, threading.Event())
    write_scores(tmp_path / "scores.csv", rows)
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].startswith("orque_\\xe9.flac,0.")
    found: list[Detection] = []
    scanned_here(recordings, ensemble, settings, found.append)
    assert len(found) == 2 and found[0].source.endswith("in/orque_\\xe9.flac")
    assert (settings.output / str(found[0].clip)).is_file()


def test_links_to_folders_are_followed_once(recording: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "link").symlink_to(recording.parent, target_is_directory=True)
    (tree / "twice").symlink_to(recording.parent, target_is_directory=True)
    assert [item.name for item in find_recordings([tree], tmp_path / "out")] == ["link/calls.flac"]


def test_a_stopped_scan_goes_on_where_it_was(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    """Nothing of the file that was being scanned is kept; in the end everything is as without the stop."""
    (recording.parent / "second.flac").write_bytes(recording.read_bytes())
    settings = Settings(output=tmp_path / "out", snapshots=False)
    recordings = find_recordings([recording.parent], settings.output)
    stop = threading.Event()
    found: list[Detection] = []

    def at_fifteen_seconds(seconds: float) -> None:
        heard.append(seconds)
        if sum(heard) >= 15:
            stop.set()

    heard: list[float] = []
    summary = scanned_here(recordings, ensemble, settings, found.append, at_fifteen_seconds, stop)
    assert (summary.files, summary.faulty, summary.events) == (2, 1, 2) == (2, 1, len(found))
    assert clip_scores(recordings, ensemble, settings, nothing, stop) == ([], 2)
    again: list[Detection] = []
    summary = scanned_here(recordings, ensemble, settings, again.append)
    assert (summary.files, summary.faulty, summary.again, summary.events) == (2, 0, 1, 4)
    whole: list[Detection] = []
    scanned_here(recordings, ensemble, replace(settings, output=tmp_path / "whole"), whole.append)
    assert again == whole and again[:2] == found


def test_clip_that_was_stopped_has_no_score(recording: Path, ensemble: Any, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    recordings = find_recordings([recording], Path("out"))
    assert clip_scores(recordings, ensemble, Settings(), lambda seconds: stop.set(), stop) == ([], 1)
    assert "calls.flac has no score: it was stopped" in caplog.text


def test_place_of_the_scores_is_tried_before(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("before")
    check_place(tmp_path / "s.csv")
    check_place(tmp_path / "new" / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "before" and not (tmp_path / "new" / "s.csv").exists()
    for place in (tmp_path, tmp_path / "s.csv" / "t.csv"):
        with pytest.raises(InputError, match="cannot be written"):
            check_place(place)
