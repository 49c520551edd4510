from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import wave
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from orcawatch.capture import LOUDEST, Screen, runs
from orcawatch.errors import AudioError
from orcawatch.files import FileSource, audio_files
from orcawatch.records import AudioBlock
from orcawatch.times import utc_in_name

RATE_HZ = 8000


def noise(seconds: float, channels: int) -> Any:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * RATE_HZ), channels)).astype(np.float32)


def read(path: Path, **options: Any) -> tuple[Any, str]:
    """All samples that a file yields, and the error's text."""
    blocks: list[Any] = []
    text = ""
    try:
        for block in FileSource(path, **options).blocks():
            assert block.start_sample == sum(map(len, blocks))
            blocks.append(block.samples)
    except AudioError as fault:
        text = str(fault)
    return (np.concatenate(blocks) if blocks else None), text


@pytest.mark.parametrize(
    "suffix, subtype", [("wav", "PCM_24"), ("flac", "PCM_24"), ("aiff", "PCM_24"), ("w64", "FLOAT")]
)
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_file_is_yielded_whole_block_by_block(
    tmp_path: Path, write: Callable[..., Path], suffix: str, subtype: str, channels: int
) -> None:
    samples = noise(1.3, channels)
    path = write(tmp_path / f"x.{suffix}", samples, RATE_HZ, subtype)
    source = FileSource(path, block_s=0.25)
    assert (source.info.rate_hz, source.info.channels, source.info.name) == (RATE_HZ, channels, str(path))
    assert [len(block.samples) for block in source.blocks()] == [2000] * 5 + [400]
    found, text = read(path, block_s=0.25)
    np.testing.assert_allclose(found, samples, atol=2e-7)
    assert text == "" and found.dtype == np.float32


def test_more_channels_than_flac_holds(tmp_path: Path, write: Callable[..., Path]) -> None:
    samples = noise(0.5, 12)
    found, _ = read(write(tmp_path / "x.wav", samples, RATE_HZ, "FLOAT"))
    np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize("suffix", ["flac", "wav", "aiff", "au", "w64", "rf64"])
def test_truncated_file_is_delivered_as_far_as_it_goes(tmp_path: Path, write: Callable[..., Path], suffix: str) -> None:
    samples = noise(6.0, 2)
    whole = write(tmp_path / f"whole.{suffix}", samples, RATE_HZ)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found, text = read(cut)
    assert 2.0 < len(found) / RATE_HZ < 3.1
    np.testing.assert_allclose(found, samples[: len(found)], atol=1e-4)
    assert f"{cut} is damaged: {len(found) / RATE_HZ:.3f} s of 6.000 s could be read" in text
    assert read(whole)[1] == ""


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_stream_without_an_end_is_damaged(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    soundfile.write(whole, noise(6.0, 1), RATE_HZ, format="OGG", subtype={"ogg": "VORBIS", "opus": "OPUS"}[suffix])
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    found, text = read(cut)
    assert f"cut.{suffix} is damaged: it breaks off after {len(found) / RATE_HZ:.3f} s" in text
    assert read(whole)[1] == ""


# By suffix: where the header's sizes stand (after these bytes), in how many bytes and which order, and what to take off.
SIZES: dict[str, tuple[list[tuple[bytes, int]], int, Any]] = {
    "wav": ([(b"RIFF", 0), (b"data", 0)], 4, "little"),
    "aiff": ([(b"FORM", 0), (b"SSND", 0), (b"COMM", 6)], 4, "big"),
    "au": ([(b".snd", 4)], 4, "big"),
    "rf64": ([(b"ds64", 4), (b"ds64", 12), (b"ds64", 20)], 8, "little"),
    "caf": ([(b"data", 0)], 8, "big"),
}


def with_header_of(path: Path, frames: int, rows: int, row: int) -> Path:
    """Change the sizes of a file of `rows` frames to those that its header had when it held `frames`."""
    places, digits, order = SIZES[path.suffix[1:]]
    content = bytearray(path.read_bytes())
    for mark, after in places:
        at = content.index(mark) + 4 + after
        less = (rows - frames) * (1 if (mark, after) in ((b"COMM", 6), (b"ds64", 20)) else row)
        size = int.from_bytes(content[at : at + digits], order) - less
        content[at : at + digits] = size.to_bytes(digits, order)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", list(SIZES))
@pytest.mark.parametrize("stated_s", [0, 2])
def test_header_that_states_too_little_is_said(
    tmp_path: Path, write: Callable[..., Path], suffix: str, stated_s: int
) -> None:
    """The recorder lost its power before it could write how much it had recorded."""
    samples = noise(6.0, 2)
    path = write(tmp_path / f"x.{suffix}", samples, RATE_HZ)
    assert read(path)[1] == ""
    with_header_of(path, stated_s * RATE_HZ, len(samples), 4)
    text = f"x.{suffix}: the header states {stated_s}.000 s but the file holds 6.000 s; repair the header"
    if not stated_s:
        with pytest.raises(AudioError, match=re.escape(text)):
            FileSource(path)
        return
    found, said = read(path)
    assert len(found) == stated_s * RATE_HZ and text in said


@pytest.mark.parametrize(
    "chunk", [b"LIST" + (40000).to_bytes(4, "little") + b"INFO" + b"x" * 39996, b"TAG" + b"x" * 125, bytes(40000)]
)
def test_what_follows_the_audio_and_is_none_is_left_alone(
    tmp_path: Path, write: Callable[..., Path], chunk: bytes
) -> None:
    path = write(tmp_path / "x.wav", noise(1.0, 1), RATE_HZ)
    path.write_bytes(path.read_bytes() + chunk)
    found, text = read(path)
    assert len(found) == RATE_HZ and text == ""


@pytest.mark.parametrize("seconds", [1.3, 1.5])
def test_flac_without_a_stated_length_is_read_to_its_end(
    tmp_path: Path, write: Callable[..., Path], seconds: float
) -> None:
    samples = noise(seconds, 2)
    path = write(tmp_path / "x.flac", samples, RATE_HZ)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the low 36 bits of STREAMINFO's bytes 13 to 17 are the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    found, text = read(path)
    np.testing.assert_allclose(found, samples, atol=1e-4)
    assert text == "" and FileSource(path).duration_s == 0
    path.write_bytes(content[: len(content) // 2])
    assert "x.flac is damaged: " in read(path)[1]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_from_a_pipe_has_no_stated_length_and_is_whole(
    tmp_path: Path, write: Callable[..., Path], size: int
) -> None:
    path = write(tmp_path / "x.wav", noise(1.0, 1), RATE_HZ)
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    found, text = read(path)
    assert len(found) == RATE_HZ and text == ""


@pytest.mark.parametrize("content", [b"this is a text\n" * 99, b""])
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"text.wav cannot be read as audio: .*; give WAV, FLAC"):
        FileSource(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nothing.wav is not a file"):
        FileSource(tmp_path / "nothing.wav")


def test_zero_length_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setparams((2, 2, RATE_HZ, 0, "NONE", ""))
    with pytest.raises(AudioError, match=r"none.wav holds no audio \(0 samples\)"):
        FileSource(tmp_path / "none.wav")


def test_zero_channels_are_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "x.wav", noise(0.1, 1), RATE_HZ)
    content = bytearray(path.read_bytes())
    content[22:24] = b"\0\0"
    path.write_bytes(content)
    with pytest.raises(AudioError, match="zero"):
        FileSource(path)


def test_damaged_headers_do_not_decide_how_much_memory_a_block_takes(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    """Found by fuzzing: half a second at 2 GHz, of a file said to be long."""
    path = write(tmp_path / "x.wav", noise(0.1, 1), RATE_HZ)
    content = bytearray(path.read_bytes())
    content[24:28] = (2_000_000_000).to_bytes(4, "little")
    content[40:44] = b"\x00\x00\x00\x70"
    path.write_bytes(content)
    tracemalloc.start()
    samples, text = read(path)
    _, most_b = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 800 and "the file ends early" in text
    assert most_b < 40e6


def test_realtime_yields_a_block_when_its_time_has_come(tmp_path: Path, write: Callable[..., Path]) -> None:
    now_s = [100.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    path = write(tmp_path / "x.wav", noise(1.1, 1), RATE_HZ)
    source = FileSource(path, realtime=True, block_s=0.5, clock=lambda: now_s[0], sleep=sleep)
    assert not source.waits
    times_s = []
    for _ in source.blocks():
        times_s.append(now_s[0])
        now_s[0] += 0.2  # the work on the block does not make the next one later
    np.testing.assert_allclose(times_s, [100.5, 101.0, 101.2])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("AMAR173_20190920T163858Z_6ch.flac", datetime(2019, 9, 20, 16, 38, 58, tzinfo=timezone.utc)),
        ("x-2019-09-20T16-38-58.250Z.wav", datetime(2019, 9, 20, 16, 38, 58, 250000, tzinfo=timezone.utc)),
        ("20190920_163858Z.wav", datetime(2019, 9, 20, 16, 38, 58, tzinfo=timezone.utc)),
        ("20190920_163858.wav", None),
        ("20191320T163858Z.wav", None),
        ("scene_1.flac", None),
    ],
)
def test_utc_in_name(name: str, expected: datetime | None) -> None:
    assert utc_in_name(name) == expected


def test_audio_files_are_found_sorted_without_hidden_ones_and_the_output(tmp_path: Path) -> None:
    for name in ("b.WAV", "a/z.flac", "a/.hidden.wav", ".cache/x.wav", "out/clips/c.flac", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = audio_files(tmp_path, without=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/z.flac", "b.WAV"]


def test_folder_that_cannot_be_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert audio_files(tmp_path / "gone", without=tmp_path / "out") == []
    assert "gone cannot be read: No such file or directory; its files are left out" in caplog.text


def screened(samples: Any, borders: list[int], rate_hz: int) -> tuple[list[tuple[int, int]], int, Any]:
    """(first, past the last) of each stretch that passes, the number refused, and what passed."""
    screen = Screen("x", rate_hz, range(samples.shape[1]))
    edges = [0, *sorted(border for border in borders if border < len(samples)), len(samples)]
    parts = []
    for first, last in zip(edges, edges[1:]):
        parts += list(screen.push(AudioBlock(samples[first:last], first)))
    parts += list(screen.finish())
    passed = np.concatenate([np.arange(part.start_sample, part.end_sample) for part in parts] or [np.zeros(0, int)])
    for part in parts:
        np.testing.assert_array_equal(part.samples, samples[part.start_sample : part.end_sample])
    joined = np.isin(np.arange(len(samples)), passed)
    return [(a, b) for a, b, passes in runs(joined) if passes], screen.refused, passed


@given(
    bad=st.lists(st.integers(0, 79), max_size=5),
    value=st.sampled_from([np.nan, np.inf, -np.inf, 2 * LOUDEST]),
    borders=st.lists(st.integers(1, 79), max_size=6),
)
def test_screen_refuses_bad_samples_wherever_blocks_end(bad: list[int], value: float, borders: list[int]) -> None:
    samples = np.ones((80, 2), np.float32)
    samples[bad, 1] = value
    stretches, refused, passed = screened(samples, borders, rate_hz=10)
    assert (stretches, refused) == screened(samples, [], rate_hz=10)[:2]
    assert refused + len(passed) == 80
    # Plainly: good rows pass unless they are fewer than 10 between two bad ones.
    expected = np.ones(80, bool)
    expected[bad] = False
    for before, after in zip(sorted(set(bad)), sorted(set(bad))[1:]):
        expected[before:after] &= after - before - 1 >= 10
    np.testing.assert_array_equal(passed, np.flatnonzero(expected))


def test_screen_names_the_first_bad_sample(caplog: pytest.LogCaptureFixture) -> None:
    samples = np.zeros((100, 3), np.float32)
    samples[25:60, 2] = np.nan
    screened(samples, [10, 30, 50], rate_hz=10)
    assert [record.getMessage() for record in caplog.records] == [
        "x: audio is refused from sample 25 (2.500 s) on, on all channels: channel 2 is nan; exclude it with "
        "`channels:` if it stays so. Scoring goes on after 1 s of finite samples"
    ]


def test_screen_counts_by_the_sources_channels() -> None:
    samples = np.zeros((100, 2), np.float32)
    samples[25:60, 1] = np.nan
    samples[30:32, 0] = np.inf
    screen = Screen("x", 10, (3, 5))
    for first in range(0, 100, 7):
        list(screen.push(AudioBlock(samples[first : first + 7], first)))
    assert dict(screen.bad) == {3: 2, 5: 35} and screen.refused == 35


@pytest.mark.data
def test_six_channels_of_a_reef(data_folder: Path) -> None:
    source = FileSource(data_folder / "multichannel" / "AMAR173_20190920T163858Z_6ch.flac")
    assert (source.info.channels, source.info.rate_hz) == (6, 32000)
    assert sum(len(block.samples) for block in source.blocks()) == soundfile.info(source.info.name).frames
    assert source.info.start_utc == datetime(2019, 9, 20, 16, 38, 58, tzinfo=timezone.utc)


def test_what_may_not_be_read_is_set_aside_with_the_systems_word(tmp_path: Path) -> None:
    """A file without rights, and one in a folder that may be listed but not entered; root is first made like others."""
    for name in ("dark.flac", "shut/a.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dark.flac").chmod(0)
    (tmp_path / "shut").chmod(0o744)
    looked = [sys.executable, "-c", LOOK, str(tmp_path)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv (util-linux) is not here")
        for path in (tmp_path, tmp_path / "dark.flac", tmp_path / "shut", tmp_path / "shut" / "a.flac"):
            os.chown(path, 65534, 65534)
        tmp_path.chmod(0o755)
        rights = "-dac_override,-dac_read_search"
        looked = ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}", *looked]
    try:
        found = subprocess.run(looked, capture_output=True, text=True, check=True).stdout.splitlines()
    finally:
        (tmp_path / "shut").chmod(0o755)
    assert [line.partition("cannot")[2] for line in found] == [
        " be read: Permission denied; mend that, or leave it out"
    ] * 2


LOOK = """
import sys
from pathlib import Path
from orcawatch.errors import AudioError
from orcawatch.files import audio_files, open_audio
for path in audio_files(Path(sys.argv[1]), Path("none")):
    try:
        open_audio(path)
    except AudioError as fault:
        print(fault)
"""
