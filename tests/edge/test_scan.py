from __future__ import annotations

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
from orcawatch.scan import clip_scores, find_recordings, scan, total_s, write_scores
from orcawatch.store import Detection


def nothing(_: object) -> None:
    pass


def without_place(detections: list[Detection]) -> list[tuple[Any, ...]]:
    return [(d.start_s, d.end_s, d.score, d.channel_scores, d.best_channel, d.clip) for d in detections]


def test_scan_and_run_find_the_same(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    heard: list[Detection] = []
    scanned: list[Detection] = []
    live = FileSource(recording, realtime=True, block_s=0.1, sleep=lambda seconds: None)
    run(live, ensemble, Settings(output=tmp_path / "a", snapshots=False), heard.append)
    settings = Settings(output=tmp_path / "b", snapshots=False)
    summary = scan(find_recordings([recording], settings.output), ensemble, settings, scanned.append, nothing)
    assert len(heard) == 2 and without_place(heard) == without_place(scanned)
    assert (summary.files, summary.faulty, summary.events) == (1, 0, 2)


def test_files_of_one_name_keep_their_own_clips(
    ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    for folder, call in (("a", (1.0, 2.0)), ("b", (3.0, 4.0))):
        write(tmp_path / "in" / folder / "x.wav", make_audio(16000, 5.0, 1, [call]), 16000)
    settings = Settings(output=tmp_path / "out", snapshots=False)
    found: list[Detection] = []
    scan(find_recordings([tmp_path / "in"], settings.output), ensemble, settings, found.append, nothing)
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
    summary = scan(find_recordings([recording.parent], settings.output), ensemble, settings, found.append, nothing)
    assert (summary.files, summary.faulty) == (3, 2)
    assert {detection.source for detection in found} >= {str(recording)}
    assert "a.wav cannot be read as audio" in caplog.text and "z.flac is damaged" in caplog.text


def test_clip_score_is_the_mean_over_windows(recording: Path, ensemble: Any) -> None:
    (row,), faulty = clip_scores(find_recordings([recording.parent], Path("out")), ensemble, Settings(), nothing)
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
    rows, faulty = clip_scores(find_recordings([tmp_path], Path("out")), ensemble, Settings(), nothing)
    assert [name for name, _ in rows] == ["good/b.wav"] and faulty == 2
    assert "a_nan.wav has no score" in caplog.text
    assert "slow.wav: sample rate must be at least 8000 Hz, not 1000 Hz" in caplog.text


def test_progress_adds_up_to_the_stated_length(recording: Path, ensemble: Any) -> None:
    recordings = find_recordings([recording], Path("out"))
    seconds: list[float] = []
    clip_scores(recordings, ensemble, Settings(), seconds.append)
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
    recordings = find_recordings([recording, recording.parent], Path("out"))
    with pytest.raises(InputError, match=r"calls.flac is the name of two files"):
        clip_scores(recordings, ensemble, Settings(), nothing)


def test_clips_of_the_output_folder_are_scanned_only_when_asked_for(recording: Path, tmp_path: Path) -> None:
    own = tmp_path / "in" / "clips" / "000001_calls.flac"
    own.parent.mkdir()
    own.write_bytes(recording.read_bytes())
    assert [item.path for item in find_recordings([tmp_path], output=tmp_path / "in")] == [recording]
    assert [item.path for item in find_recordings([own.parent], output=tmp_path / "in")] == [own]
