"""Pictures of what the network looked at, from files."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcawatch.calls import pulsed_call
from orcawatch.errors import AudioError, InputError
from orcawatch.explain import Explained, Part, best_stretch, check_names, explain_recording, read_stretch
from orcawatch.files import FileSource
from orcawatch.records import WindowScore
from orcawatch.scan import Recording
from orcawatch.spectrogram import LinearPower, LogMel

RATE_HZ = 16000


def windows_of(scores: Sequence[Sequence[float]], starts: Sequence[int], length: int = 96) -> list[WindowScore]:
    return [
        WindowScore(start, start + length, np.zeros((len(row), 1), np.float32), np.array(row, np.float32), max(row))
        for start, row in zip(starts, scores)
    ]


def explained(path: Path, ensemble: Any, out: Path, **changes: Any) -> tuple[Explained | None, AudioError | None]:
    given = {"channel": None, "part_s": (0.0, None), "on_audio": lambda seconds: None, "stop": Flag(), **changes}
    return explain_recording(Recording(path, path.name), ensemble, out, **given)


def shipped(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orcawatch.cli", "explain", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    holes=st.sets(st.integers(1, 11)),
    longest=st.integers(90, 500),
)
def test_best_stretch_equals_plain_loop(scores: list[int], holes: set[int], longest: int) -> None:
    starts, place = [], 0
    for index in range(len(scores)):
        place += 1000 if index in holes else 48
        starts.append(place)
    windows = windows_of([[0, score] for score in scores], starts)
    peak = scores.index(max(scores))
    sums = [scores[peak]]
    for first in range(peak + 1):
        for last in range(peak, len(scores)):
            unbroken = not any(index in holes for index in range(first + 1, last + 1))
            if unbroken and starts[last] + 96 - starts[first] <= longest:
                sums.append(sum(scores[first : last + 1]))
    column, found = best_stretch(windows, longest)
    assert column == (1 if max(scores) else 0)
    assert sum(window.channel_scores[1] for window in found) == (max(sums) if column else 0)
    assert windows[peak].start_sample in [window.start_sample for window in found]


def test_part_keeps_positions_and_ends_in_time(
    tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    samples = make_audio(RATE_HZ, 4.0, 2, [])
    source = FileSource(write(tmp_path / "a.wav", samples, RATE_HZ, "FLOAT"))
    blocks = list(Part(source, 1.2, 1.7).blocks())
    assert blocks[0].start_sample == round(1.2 * RATE_HZ) and blocks[-1].end_sample == round(2.9 * RATE_HZ)
    np.testing.assert_array_equal(np.concatenate([b.samples for b in blocks]), samples[19200:46400])
    np.testing.assert_array_equal(read_stretch(source, 19200, 46400), samples[19200:46400])
    with pytest.raises(AudioError, match=r"4.000 s long: there is nothing from 4 s on"):
        list(Part(source, 4.0, None).blocks())


def test_shows_the_best_channel_of_a_short_file(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    found, fault = explained(recording, ensemble, tmp_path / "o")
    assert fault is None and found is not None and not found.is_choice
    assert (found.channel, found.start_s) == (1, 0) and found.end_s == pytest.approx(10, abs=0.03)
    assert found.picture == tmp_path / "o" / "calls.flac.png" and found.picture.read_bytes().startswith(b"\x89PNG")
    assert found.shares == {"fake0": 1.0}
    with np.load(tmp_path / "o" / "calls.flac.npz") as arrays:
        assert arrays["channel_scores"].shape == (20, 2) and arrays["best_channel"] == 1
        assert arrays["channel_scores"][:, 1].max() == pytest.approx(found.score)
        assert arrays["relevance"].shape == arrays["spectrogram_db"].shape and arrays["relevance"].shape[1] == 64
        assert "conserving" in str(arrays["method"]) and "event_s" not in arrays
        assert arrays["title"].tolist() == ["calls.flac", f"channel 1, score {found.score:.2f}"]


def test_long_file_shows_its_highest_scoring_12_s(
    ensemble: Any, tmp_path: Path, make_audio: Callable[..., Any], write: Callable[..., Path]
) -> None:
    path = write(
        tmp_path / "long.flac", make_audio(RATE_HZ, 40.0, 1, [(5.0, 6.0), (24.0, 25.0), (30.0, 31.0)]), RATE_HZ
    )
    found, _ = explained(path, ensemble, tmp_path)
    assert found is not None and found.is_choice and "(the highest-scoring 12.0 s of 40.0 s)" in str(found)
    assert found.end_s - found.start_s <= 12 and found.start_s < 24 and found.end_s > 31
    first, _ = explained(path, ensemble, tmp_path, part_s=(0.5, 10.0))
    assert first is not None and first.start_s == 0.5 and first.end_s == pytest.approx(10.5, abs=0.03)
    with np.load(tmp_path / "long.flac.npz") as arrays:
        assert arrays["times_s"][[0, -1]] == pytest.approx([0.5, 10.5], abs=0.05)


def test_backbones_have_a_panel_each(recording: Path, make_ensemble: Any, tmp_path: Path) -> None:
    ensemble = make_ensemble((LogMel(), LinearPower(size=75)))
    found, _ = explained(recording, ensemble, tmp_path)
    assert found is not None and list(found.shares) == ["fake0", "fake1"]
    assert sum(found.shares.values()) == pytest.approx(1) and "fake1 " in str(found)
    with np.load(tmp_path / "calls.flac.npz") as arrays:
        assert arrays["relevance-fake1"].shape[1] == 75 and len(arrays["relevance-fake1"]) == len(arrays["relevance"])


def test_a_damaged_file_is_explained_as_far_as_it_goes(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    whole = recording.read_bytes()
    damaged = tmp_path / "damaged.flac"
    damaged.write_bytes(whole[: len(whole) * 2 // 3])
    found, fault = explained(damaged, ensemble, tmp_path)
    assert found is not None and 2 < found.end_s < 8 and "is damaged" in str(fault)


def test_what_cannot_be_explained_is_a_fault_and_no_picture(recording: Path, ensemble: Any, tmp_path: Path) -> None:
    for changes, text in (
        ({"channel": 2}, "channels must be 0 to 1"),
        ({"part_s": (11.0, None)}, "nothing from 11 s on"),
        ({"part_s": (0.0, 0.001)}, "nothing to score"),
    ):
        found, fault = explained(recording, ensemble, tmp_path / "o", **changes)
        assert found is None and text in str(fault)
    stop = Flag()
    stop.set()
    assert str(explained(recording, ensemble, tmp_path / "o", stop=stop)[1]) == "it was stopped"
    assert not (tmp_path / "o").exists()


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"a.wav is the name of two files"):
        check_names([Recording(Path("x/a.wav"), "a.wav"), Recording(Path("y/a.wav"), "a.wav")])


def test_command_with_the_shipped_bundle(tmp_path: Path, write: Callable[..., Path]) -> None:
    """A call on one of three channels, silence, what is shorter than a window, no audio: in one go."""
    sea = np.random.default_rng(0).normal(0, 0.01, (3 * RATE_HZ, 3)).astype(np.float32)
    call = pulsed_call(np.random.default_rng(5), RATE_HZ)[:RATE_HZ]
    sea[RATE_HZ : RATE_HZ + len(call), 1] += 0.3 * call
    write(tmp_path / "in" / "call.flac", sea, RATE_HZ)
    write(tmp_path / "in" / "silence.wav", np.zeros((2 * RATE_HZ, 2), np.float32), RATE_HZ)
    write(tmp_path / "in" / "deep" / "short.wav", sea[:4000, :1], RATE_HZ)
    (tmp_path / "in" / "text.wav").write_text("text")
    done = shipped(tmp_path, "in", "--out", "o")
    assert done.returncode == 3 and "text.wav cannot be read as audio" in done.stderr and "Traceback" not in done.stderr
    made = sorted(str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*.*"))
    names = ["call.flac", "deep/short.wav", "silence.wav"]
    assert made == [name + suffix for name in names for suffix in (".npz", ".png")]
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["o/call.flac.png"].startswith("channel 1, 0.00 to ")
    assert "nothing speaks for orca" in lines["o/silence.wav.png"]
    with np.load(tmp_path / "o" / "call.flac.npz") as arrays:
        times_s, by_frame = arrays["times_s"], arrays["relevance"].sum(axis=1)
        assert by_frame[(times_s > 0.9) & (times_s < 2.1)].sum() > 0.6 * by_frame.sum() > 0
    with np.load(tmp_path / "o" / "silence.wav.npz") as arrays:
        assert not arrays["relevance"].any() and "nothing speaks for orca" in arrays["title"][-1]


def test_exit_codes_of_the_command(recording: Path, tmp_path: Path) -> None:
    assert shipped(tmp_path, "missing.wav").returncode == 2
    assert shipped(tmp_path, recording, "--length", "0").returncode == 2
    (tmp_path / "file").write_text("")
    done = shipped(tmp_path, recording, "--out", "file")
    assert done.returncode == 2 and "folder file cannot be made" in done.stderr
    line = shlex.join([sys.executable, "-m", "orcawatch.cli", "explain", str(recording)])
    full = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; {line}"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert full.returncode == 1 and "the picture of calls.flac cannot be written" in full.stderr
    assert list((tmp_path / "orcawatch-explained").glob("*.png")) == []
