"""What the daemon costs on four live channels: `python benchmarks/live.py [--minutes 10] [--scene FILE]`.

A private PulseAudio server with a null sink plays a scene in a loop, and `orcawatch run` listens to the sink's monitor
through PortAudio, as it does to a sound card; none is needed. Takes real time, and the packages pulseaudio,
pulseaudio-utils, libasound2-plugins and libportaudio2. Prints processor time and memory of the daemon and its capture
process, then what stands in the ledger and the log. Processor time is counted after a start of ten seconds; that of the
PulseAudio server, which a buoy does not run, stands beside it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from processes import LOOK_S, children, memory_mb, together_mb

CHANNELS = 4
MAP = "front-left,front-right,rear-left,rear-right"  # as ALSA names them; others would be mixed
START_S = 10.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
ALSA = 'pcm.hydrophones { type pulse device "sea.monitor" hint { show on description "Hydrophone array" } }\n'
CONFIGURATION = """
station: bench
output: {output}
source: {{device: hydrophones, rate_hz: {rate_hz}, device_channels: 4}}
hydrophones: [{{serial: A}}, {{serial: B}}, {{serial: C}}, {{serial: D}}]
sinks: [{{kind: jsonl, folder: {output}/messages}}]
"""


# --- the sea ----------------------------------------------------------------------------------------------------------


def scene(path: Path | None) -> tuple[NDArray[np.float32], int]:
    """Samples of four channels and their rate: the file's, or those of a simulated minute with six calls."""
    if path is not None:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        return np.ascontiguousarray(samples[:, np.arange(CHANNELS) % samples.shape[1]]), rate_hz
    from orcawatch.simulate import SceneSettings, simulate_scene

    return simulate_scene(SceneSettings(60.0, 48000, 2)).samples.astype(np.float32), 48000


@contextmanager
def sound_server(folder: Path, rate_hz: int) -> Iterator[tuple[dict[str, str], int]]:
    """A PulseAudio server of our own with the sink `sea`: the environment that its clients need, and its number."""
    names = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "PULSE_RUNTIME_PATH": "run/pulse", "PULSE_STATE_PATH": "state"}
    environment = {**os.environ, **{name: str(folder / path) for name, path in names.items()}}
    for path in names.values():
        (folder / path).mkdir(parents=True, mode=0o700, exist_ok=True)
    (folder / "home" / ".asoundrc").write_text(ALSA)
    sink = f"module-null-sink sink_name=sea channels={CHANNELS} rate={rate_hz} format=float32le channel_map={MAP}"
    command = [
        "pulseaudio",
        "-n",
        "--daemonize=no",
        "--exit-idle-time=-1",
        "-L",
        "module-native-protocol-unix",
        "-L",
        sink,
    ]
    with (folder / "pulseaudio.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(environment)
        yield environment, server.pid
    finally:
        server.terminate()
        server.wait()


def wait_for(environment: Mapping[str, str], most_s: float = 10.0) -> None:
    """Return when the server answers."""
    until_s = time.monotonic() + most_s
    while subprocess.run(["pactl", "info"], env=environment, capture_output=True).returncode:
        if time.monotonic() > until_s:
            raise SystemExit("PulseAudio does not answer; its log is in the folder given with --output")
        time.sleep(0.1)


@contextmanager
def played(samples: NDArray[np.float32], rate_hz: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Play the samples in a loop while the block runs."""
    form = ["--format=float32le", f"--rate={rate_hz}", f"--channels={CHANNELS}", f"--channel-map={MAP}"]
    command = ["pacat", "--playback", "--raw", "--device=sea", *form]
    player = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    feeder = threading.Thread(target=feed, args=(player.stdin, samples.astype("<f4").tobytes()), daemon=True)
    feeder.start()
    try:
        yield
    finally:
        player.terminate()
        player.wait()
        feeder.join()


def feed(pipe: IO[bytes], content: bytes) -> None:
    """Write the content again and again until the player is gone."""
    try:
        while True:
            pipe.write(content)
    except BrokenPipeError:
        return


# --- measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a process has used so far: processor seconds, and memory now and at most, MB."""

    cpu_s: float
    rss_mb: float
    pss_mb: float
    most_mb: float
    threads: int


def cost(process: int) -> Cost:
    """The kernel's figures of a process."""
    stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    memory = memory_mb(process)
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    most_mb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return Cost((int(stat[11]) + int(stat[12])) * TICK_S, memory["Rss"], memory["Pss"], most_mb, int(stat[17]))


def watch(processes: Mapping[str, int], seconds: float) -> None:
    """Print what each process uses over some seconds."""
    before, started_s = {name: cost(number) for name, number in processes.items()}, time.monotonic()
    most_mb = 0.0
    while time.monotonic() < started_s + seconds:
        most_mb = max(most_mb, together_mb(processes["daemon"]))
        time.sleep(LOOK_S)
    wall_s = time.monotonic() - started_s
    print(
        "| process | CPU s | share of a core | RSS MB | PSS MB | RSS at most | threads |\n|---|---|---|---|---|---|---|"
    )
    for name, number in processes.items():
        now = cost(number)
        used_s = now.cpu_s - before[name].cpu_s
        memory = " | ".join(f"{value:.1f}" for value in (now.rss_mb, now.pss_mb, now.most_mb))
        print(f"| {name} | {used_s:.1f} | {used_s / wall_s:.1%} | {memory} | {now.threads} |")
    print(f"over {wall_s:.0f} s; the daemon with all that it starts held {most_mb:.1f} MB (PSS) at most")


def account(database: Path, rate_hz: int) -> None:
    """Print the ledger's sums and the number of detections."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT kind, cause, step_name, count(*), sum(end_sample - start_sample) FROM ledger GROUP BY 1, 2, 3"
        ).fetchall()
        detections = connection.execute("SELECT count(*), sum(clip IS NOT NULL) FROM detections").fetchone()
        levels = connection.execute("SELECT count(*) FROM levels").fetchone()
    print("\n| ledger | cause | step | rows | s |\n|---|---|---|---|---|")
    for kind, cause, step, count, samples in rows:
        print(f"| {kind} | {cause} | {step} | {count} | {(samples or 0) / rate_hz:.3f} |")
    print(f"\n{detections[0]} detections, {detections[1] or 0} with a clip; {levels[0]} rows of levels")


# --- the run ----------------------------------------------------------------------------------------------------------


def run(output: Path, given: argparse.Namespace) -> int:
    """Play, listen, measure, stop; the daemon's exit code."""
    samples, rate_hz = scene(given.scene)
    configuration = output / "orcawatch.yaml"
    configuration.write_text(CONFIGURATION.format(output=output, rate_hz=rate_hz))
    command = [str(Path(sys.executable).with_name("orcawatch")), "run", "--config", str(configuration)]
    command += ["--bundle", str(given.bundle)] if given.bundle else []
    with sound_server(output, rate_hz) as (environment, server), played(samples, rate_hz, environment):
        with (output / "daemon.log").open("wb") as log:
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            time.sleep(START_S)
            if daemon.poll() is None:
                watch(processes(daemon.pid, server), given.minutes * 60)
        finally:
            code = stopped(daemon)
    account(output / "detections.sqlite", rate_hz)
    told = [line for line in (output / "daemon.log").read_text().splitlines() if line.startswith("orcawatch:")]
    print("\nthe daemon's log, its last lines:\n" + "\n".join(told[-12:]))
    return code


def processes(daemon: int, server: int) -> dict[str, int]:
    """Numbers of the processes to watch, by name."""
    captures = {f"capture{k or ''}": child for k, child in enumerate(children(daemon))}
    return {"daemon": daemon, **captures, "PulseAudio": server}


def stopped(daemon: subprocess.Popen[Any]) -> int:
    """Stop the daemon as systemd does; its exit code."""
    daemon.send_signal(signal.SIGTERM)
    started_s = time.monotonic()
    code = daemon.wait(timeout=90)
    print(f"\nstopped in {time.monotonic() - started_s:.1f} s, exit code {code}")
    return code


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--scene", type=Path, default=None, help="audio file to play; else a simulated one")
    parser.add_argument("--bundle", type=Path, default=None, help="folder of the bundle; else the shipped one")
    parser.add_argument("--output", type=Path, default=None, help="a folder to keep; else one that is removed")
    given = parser.parse_args()
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        sys.exit(run(given.output.resolve(), given))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(Path(folder), given))


if __name__ == "__main__":
    main()
