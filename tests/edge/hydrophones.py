"""A sea of hydrophones on a machine without a sound card: a PulseAudio of its own, whose null sinks are heard by PortAudio.

Not a test.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

PACKAGES = "apt install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
# As ALSA names the channels; with other names PulseAudio would mix them.
MAPS = {
    1: "mono",
    2: "front-left,front-right",
    4: "front-left,front-right,rear-left,rear-right",
    6: "front-left,front-right,rear-left,rear-right,front-center,lfe",
}
FORMATS = {"int16": "s16le", "int24": "s24le", "int32": "s32le", "float32": "float32le"}
BYTES = {"int16": 2, "int24": 3, "int32": 4, "float32": 4}
LEAD_S = 0.5
NAMES = ("hydrophones", "bow", "stern", "port", "starboard")
WAIT_S = 15.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, f"{what} is not so after {seconds:g} s"
        time.sleep(0.02)


def skip_where_parts_are_missing() -> None:
    """Skip the test on a machine without PulseAudio or PortAudio."""
    missing = [program for program in ("pulseaudio", "pactl", "pacat") if shutil.which(program) is None]
    missing += [] if ctypes.util.find_library("portaudio") else ["libportaudio2"]
    missing += [] if list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")) else ["libasound2-plugins"]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: {PACKAGES}")


class Sea:
    """The server and its sinks; what is played to sink NAME is heard by the device NAME.

    Parameters
    ----------
    folder : for its files; short, because sockets lie in it.

    Attributes
    ----------
    environment : what a process needs to hear it.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "PULSE_RUNTIME_PATH": str(folder / "run" / "pulse"),
            "PULSE_STATE_PATH": str(folder / "state"),
        }
        for name in ("home", "run", "state"):
            (folder / name).mkdir(mode=0o700, parents=True)
        devices = [
            f'pcm.{name} {{ type pulse device "{name}.monitor" hint {{ show on description "{name}" }} }}'
            for name in NAMES
        ]
        (folder / "home" / ".asoundrc").write_text("\n".join(devices) + "\n")
        self._log = folder / "pulseaudio.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._modules: dict[str, str] = {}

    def start(self) -> None:
        """Start the server, without a sink."""
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit"]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "-L", "module-native-protocol-unix"], env=self._all(), stdout=log, stderr=log
            )
        wait_for(lambda: self._pactl("info").returncode == 0, "PulseAudio answers")

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._server = None
        self._modules.clear()
        shutil.rmtree(self.environment["PULSE_RUNTIME_PATH"], ignore_errors=True)

    def clear(self) -> None:
        """No sink; a server that has died is started again, so that one test alone suffers from it."""
        if self._server is None or self._server.poll() is not None:
            self.kill()
            self.start()
        self.pull_out_all()

    def plug_in(self, name: str, channels: int = 4, rate_hz: int = 44100, sample_format: str = "float32") -> None:
        """Add a sink."""
        self._modules[name] = self._pactl(
            "load-module", "module-null-sink", f"sink_name={name}", f"channels={channels}", f"rate={rate_hz}",
            f"format={FORMATS[sample_format]}", f"channel_map={MAPS[channels]}",
        ).stdout.strip()  # fmt: skip
        assert self._modules[name], f"PulseAudio did not make the sink; see {self._log}"

    def pull_out(self, name: str) -> None:
        """Take a sink away."""
        assert self._pactl("unload-module", self._modules.pop(name)).returncode == 0

    def pull_out_all(self) -> None:
        """Take every sink away."""
        for name in list(self._modules):
            self.pull_out(name)

    def play(
        self, name: str, samples: bytes, channels: int = 4, rate_hz: int = 44100, sample_format: str = "float32"
    ) -> subprocess.Popen[bytes]:
        """Begin to play interleaved samples after some silence; the process ends when they were heard.

        The monitor of a null sink may miss the first tenth of a second that a player gives.
        """
        player = subprocess.Popen(
            ["pacat", "--playback", f"--device={name}", "--raw", f"--format={FORMATS[sample_format]}", f"--rate={rate_hz}",
             f"--channels={channels}", f"--channel-map={MAPS[channels]}", "--latency-msec=1000"],
            stdin=subprocess.PIPE, env=self._all(),
        )  # fmt: skip
        silence = bytes(round(LEAD_S * rate_hz) * channels * BYTES[sample_format])
        threading.Thread(target=feed, args=(player, silence + samples), daemon=True).start()
        return player

    def _pactl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["pactl", *arguments], env=self._all(), capture_output=True, text=True, check=False)

    def _all(self) -> Mapping[str, str]:
        return {**os.environ, **self.environment}


def feed(player: subprocess.Popen[bytes], samples: bytes) -> None:
    """Write to a player while it plays, unless it ends before."""
    assert player.stdin is not None
    with contextlib.suppress(BrokenPipeError), player.stdin as pipe:
        pipe.write(samples)


@contextmanager
def sea_in(folder: Path) -> Iterator[Sea]:
    """A server that runs, with an environment that hears it until it is left."""
    skip_where_parts_are_missing()
    sea = Sea(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sea.environment.items():
            patch.setenv(name, value)
        sea.start()
        try:
            yield sea
        finally:
            sea.kill()
