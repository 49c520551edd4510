from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from orcawatch.clips import Roll, write_clip
from orcawatch.records import AudioBlock


def block(start: int, size: int, channels: int = 2) -> AudioBlock:
    """Samples that tell their own position."""
    positions = np.arange(start, start + size, dtype=np.float32)
    return AudioBlock(positions[:, None] + np.arange(channels, dtype=np.float32) / 4, start)


def plain_cut(heard: list[int], size: int, start: int, end: int) -> list[int]:
    """Loop version of `cut`: from the kept positions, walk away from the one nearest to the middle."""
    kept = heard[-size:]
    if not kept:
        return []
    middle = (start + end) / 2
    runs: list[list[int]] = []
    for position in kept:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    run = min(runs, key=lambda run: max(run[0] - middle, middle - run[-1] - 1, 0))
    return [position for position in run if start <= position < end]


@given(
    size=st.integers(1, 40),
    blocks=st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 7]), st.integers(0, 60)), max_size=12),
    start=st.integers(-10, 300),
    length=st.integers(0, 60),
)
def test_cut_equals_plain_version(size: int, blocks: list[tuple[int, int]], start: int, length: int) -> None:
    roll = Roll(1, 2, size)
    heard: list[int] = []
    end = 0
    for gap, count in blocks:
        start_sample = end + gap
        roll.push(block(start_sample, count))
        heard += range(start_sample, start_sample + count)
        end = start_sample + count
    samples, first = roll.cut(start, start + length)
    assert samples.dtype == np.float32 and samples.shape[1] == 2
    expected = plain_cut(heard, size, start, start + length)
    assert list(samples[:, 0]) == expected
    if expected:
        assert first == expected[0]
        np.testing.assert_array_equal(samples, block(first, len(samples)).samples)


def test_the_buffer_never_grows() -> None:
    roll = Roll(100, 4, 1.5)
    buffer = roll._ring
    for start in range(0, 5000, 50):
        roll.push(block(start + (start // 500) * 3, 50, 4))
    assert roll._ring is buffer and buffer.nbytes == 150 * 4 * 4
    assert len(roll._stretches) <= 2


def test_a_cut_is_a_copy() -> None:
    roll = Roll(10, 1, 1)
    roll.push(block(0, 10, 1))
    samples, _ = roll.cut(0, 5)
    roll.push(block(10, 10, 1))
    assert list(samples[:, 0]) == [0, 1, 2, 3, 4]


def test_refuses_wrong_blocks() -> None:
    roll = Roll(10, 2, 1)
    roll.push(block(20, 5))
    with pytest.raises(ValueError, match="must start at sample 25"):
        roll.push(block(24, 5))
    with pytest.raises(ValueError, match=r"\(samples, 2\)"):
        roll.push(block(25, 5, 3))
    with pytest.raises(ValueError, match="at least 1 sample"):
        Roll(10, 2, 0)


@pytest.mark.parametrize("channels", range(1, 9))
def test_flac_keeps_24_bits(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(channels)
    samples = (rng.integers(-(2**23), 2**23, (3000, channels)) / 2**23).astype(np.float32)
    path = write_clip(tmp_path / "clip.flac", samples, 44100)
    info = soundfile.info(path)
    assert (path.name, info.format, info.subtype, info.samplerate) == ("clip.flac", "FLAC", "PCM_24", 44100)
    np.testing.assert_array_equal(soundfile.read(path, dtype="float32", always_2d=True)[0], samples)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.flac"]


def test_16_bit_audio_takes_no_more_room_than_in_16_bits(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(0, 3000, (20000, 2)).astype(np.int16)
    path = write_clip(tmp_path / "clip.flac", (steps / 2**15).astype(np.float32), 16000)
    narrow = io.BytesIO()
    soundfile.write(narrow, steps, 16000, subtype="PCM_16", format="FLAC")
    assert path.stat().st_size < 1.02 * len(narrow.getvalue())
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], steps)


def test_more_than_eight_channels_go_into_wav(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (500, 12)).astype(np.float32)
    path = write_clip(tmp_path / "clip.flac", samples, 96000)
    assert path.name == "clip.wav" and soundfile.info(path).subtype == "PCM_24"
    np.testing.assert_allclose(soundfile.read(path)[0], samples, rtol=0, atol=2**-24)


def test_what_cannot_be_kept_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.array([[1.0, -1.0, 1.5, -np.inf, np.nan, 0.25]], np.float32).T
    with caplog.at_level(logging.WARNING):
        path = write_clip(tmp_path / "clip.flac", samples, 16000)
    assert "3 of 6 samples" in caplog.text
    np.testing.assert_allclose(soundfile.read(path)[0], [1, -1, 1, -1, 0, 0.25], rtol=0, atol=2**-23)


def test_refuses_a_clip_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not \(0, 4\)"):
        write_clip(tmp_path / "clip.flac", np.zeros((0, 4), np.float32), 16000)


# A file-size limit makes the kernel refuse a write half way, as a full disk does.
UNDER_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from orcawatch.clips import write_clip
from orcawatch.errors import InputError
from orcawatch.simulate import Scene, write_scene
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).uniform(-1, 1, (50000, 1)).astype(np.float32)
for write in (lambda path: write_clip(path, noise, 16000), lambda path: write_scene(Scene(noise, 16000, {}), path)):
    try:
        write(Path(sys.argv[1]) / "clip.flac")
    except (OSError, InputError) as fault:
        print(type(fault).__name__, fault)
"""


@pytest.mark.parametrize("options", [[], ["-O"]])
def test_a_file_that_the_disk_refuses_is_absent(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "clip.flac").write_bytes(b"before")
    command = [sys.executable, *options, "-c", UNDER_LIMIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    clip, scene = done.stdout.splitlines()
    assert clip.startswith("OSError [Errno 27] File too large") and scene.startswith("InputError") and not done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.flac"]
    assert (tmp_path / "clip.flac").read_bytes() == b"before"
