"""`orcawatch listen` in a real pseudo-terminal, on a file and on PulseAudio's virtual hydrophones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from emulator import console
from hydrophones import sea_in, wait_for

from orcawatch.simulate import SceneSettings, simulate_scene, write_scene

pytestmark = pytest.mark.parts

LISTEN = (sys.executable, "-m", "orcawatch.cli", "listen")
RATE_HZ = 44100


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty simulated seconds of four hydrophones with loud calls."""
    path = tmp_path_factory.mktemp("scene") / "sea.flac"
    settings = SceneSettings(duration_s=40.0, rate_hz=RATE_HZ, seed=7, calls_per_minute=20.0, snr_low_db=9.0)
    write_scene(simulate_scene(settings), path)
    return path


@pytest.fixture
def sea() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="sea") as folder, sea_in(Path(folder)) as found:
        yield found


def by_hand(output: Path) -> list[Path]:
    return sorted((output / "clips-by-hand").glob("*.flac"))


def test_watching_a_scene_from_the_first_column_to_q(scene: Path, tmp_path: Path) -> None:
    with console(*LISTEN, "--input", str(scene), "--output", str(tmp_path), NO_COLOR="1") as shown:
        before = shown.wait_for("heard 0:00:02")
        after = shown.wait_for("heard 0:00:04")
        assert rows_of(before) != rows_of(after) and all(f"channel {number}" in after for number in range(4))
        shown.wait_for(lambda text: re.search(r"\d\.\d\d s  0\.\d{3}  channel \d .*clips/000001_", text))
        shown.press("2")
        shown.wait_for(lambda text: "channel 2 ─" in text and "channel 1 ─" not in text)
        shown.press("a")
        shown.wait_for("channel 1 ─")
        shown.press(" ")
        paused = rows_of(shown.wait_for("the view is paused; detection goes on"))
        moved = header_of(shown.text)
        assert rows_of(shown.wait_for(lambda text: header_of(text) != moved)) == paused
        shown.press("s")
        shown.wait_for("saved ")
        shown.press(" ?")
        shown.wait_for("save the last 30 s of all channels")
        shown.resize(60, 20)
        shown.wait_for(lambda text: "Keys" in text and len(text.splitlines()) == 20)
        shown.press("q")
        assert shown.end() == 0 and shown.restored() and b"38;2;" not in shown.raw
    (clip,) = by_hand(tmp_path)
    played, _ = soundfile.read(scene, dtype="float32")
    saved, rate_hz = soundfile.read(clip, dtype="float32")
    first = round(float(clip.stem[:-1]) * rate_hz)
    assert len(saved) > 2 * rate_hz and first == 0
    np.testing.assert_array_equal(saved, played[first : first + len(saved)])


def rows_of(text: str) -> list[str]:
    """The spectrograms on a screen."""
    return [line[8:80] for line in text.splitlines()[2:28]]


def header_of(text: str) -> str:
    return text.splitlines()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_terminal_is_given_back_after_a_signal(scene: Path, tmp_path: Path, number: signal.Signals) -> None:
    with console(*LISTEN, "--input", str(scene), "--output", str(tmp_path), "--channel", "1") as shown:
        text = shown.wait_for("heard 0:00:01")
        assert "channel 1 ─" in text and "channel 0 ─" not in text
        os.kill(shown.process.pid, number)
        assert shown.end() == 0 and shown.restored()


def test_terminal_is_given_back_by_a_second_signal_after_a_crash_and_on_hold(scene: Path, tmp_path: Path) -> None:
    with console(*LISTEN, "--input", str(scene), "--output", str(tmp_path)) as shown:
        shown.wait_for("heard 0:00:01")
        shown.press("\x1a")
        wait_for(lambda: state(shown.process.pid) == "T", "it is held")
        shown.wait_for(lambda text: shown.restored())
        shown.process.send_signal(signal.SIGCONT)
        shown.wait_for(lambda text: not shown.restored())
    crash = (
        "import orcawatch.screen as screen; from orcawatch.cli import main; then = screen.header; "
        "screen.header = lambda sight, *rest: 1 / 0 if sight.hearing else then(sight, *rest); main(prog_name='orcawatch')"
    )
    with console(
        sys.executable, "-c", crash, "listen", "--input", str(scene), "--output", str(tmp_path / "crash")
    ) as shown:
        assert shown.end() == 1 and shown.restored() and b"ZeroDivisionError" in shown.raw


def state(pid: int) -> str:
    """State of a process, as `T` for one that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_wrong_channel_and_wrong_file_are_told_after_the_view_has_gone(scene: Path, tmp_path: Path) -> None:
    with console(*LISTEN, "--input", str(scene), "--output", str(tmp_path), "--channel", "4") as shown:
        assert shown.end() == 2 and shown.restored()
        assert b"--channel must be one of the channels in use (0, 1, 2, 3), not 4" in shown.raw
    with console(*LISTEN, "--input", str(tmp_path / "no.wav"), "--output", str(tmp_path)) as shown:
        assert shown.end() == 2 and shown.restored() and b"no.wav is not a file" in shown.raw


def test_array_that_comes_late_is_waited_for_heard_and_clipped(sea: Any, tmp_path: Path) -> None:
    source = "source: {device: hydrophones, rate_hz: null, retry_most_s: 1}\nstation: Haro\n"
    (tmp_path / "orcawatch.yaml").write_text(source.replace("rate_hz: null, ", "device_channels: 4, "))
    options = ("--config", str(tmp_path / "orcawatch.yaml"), "--output", str(tmp_path / "out"))
    with console(*LISTEN, *options) as shown:
        shown.wait_for("waiting for the sound card 'hydrophones'")
        shown.wait_for("`orcawatch devices` lists")
        sea.plug_in("hydrophones", 4, RATE_HZ)
        shown.wait_for("LISTENING")
        loud = np.random.default_rng(3).uniform(-0.1, 0.1, (3 * RATE_HZ, 4)).astype(np.float32)
        loud[RATE_HZ:, 2] *= 20
        loud = np.rint(np.clip(loud, -1, 1 - 2**-23) * 2**23).astype(np.float32) / np.float32(2**23)
        sea.play("hydrophones", loud.tobytes(), 4, RATE_HZ)
        text = shown.wait_for("CLIP")
        assert "CLIP" in section(text, 2) and "CLIP" not in section(text, 1) and "Haro · hydrophones · 44.1 kHz" in text
        time.sleep(2.0)  # what was played is to be heard to its end
        shown.press("s")
        shown.wait_for("saved ")
        sea.pull_out("hydrophones")
        shown.wait_for(lambda text: "NO AUDIO" in text and "device gone" in text)
        shown.press("q")
        assert shown.end() == 0 and shown.restored()
    (clip,) = by_hand(tmp_path / "out")
    saved, _ = soundfile.read(clip, dtype="float32")
    start = int(np.flatnonzero(saved.any(axis=1))[0])
    played = loud[int(np.flatnonzero((loud == saved[start]).all(axis=1))[0]) :]
    np.testing.assert_array_equal(saved[start : start + len(played)], played)
    assert len(played) > 2.5 * RATE_HZ


def section(text: str, channel: int) -> str:
    """The lines of a channel."""
    return text.split(f"channel {channel} ─")[1].split("channel ")[0]


def test_microphone_without_any_configuration_is_one_channel_and_nothing_is_kept(sea: Any, tmp_path: Path) -> None:
    sea.plug_in("hydrophones", 1, RATE_HZ)
    with console(*LISTEN, "--no-save", "--output", str(tmp_path / "out"), size=(80, 24)) as shown:
        text = shown.wait_for("LISTENING")
        assert "1 channel" in text and "re f.s." in text
        shown.press("q")
        assert shown.end() == 0
    assert not (tmp_path / "out").exists()


def test_plain_lines_through_a_pipe(scene: Path, tmp_path: Path) -> None:
    command = [*LISTEN, "--input", str(scene), "--output", str(tmp_path), "--every", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not (lines and "orca 0." in lines[-1]):
            lines.append(process.stdout.readline())
            assert lines[-1], "the program ended"
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(20) == 0
    told = "".join(lines)
    assert "\x1b" not in told and "bundle first-light, threshold 0." in lines[0]
    assert re.search(r"^0:00:00  listening to .*sea.flac: 44100 Hz, channels 0, 1, 2, 3$", told, re.M)
    assert re.search(r"^0:00:02  level (-\d+\.\d ){4}dB re full scale(; score (\d\.\d\d ?){4})?$", told, re.M)
    assert re.search(
        r"^0:00:02  .*sea.flac: 2\.64 to .* s: orca 0\.\d+ on channel \d .*000001_sea_2.64s.png$", told, re.M
    )


def test_reader_that_has_gone_ends_the_watch(scene: Path, tmp_path: Path) -> None:
    command = [*LISTEN, "--input", str(scene), "--output", str(tmp_path), "--every", "1", "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0 and "Traceback" not in process.stderr.read()
