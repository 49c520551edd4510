"""How long after a call its row is in the database: the real daemon on four live channels, in real time.

    python benchmarks/latency.py [--calls 30] [--bundle FOLDER] [--json FILE]

A private PulseAudio with a null sink plays simulated calls on four channels at 48 kHz, and `orcawatch run` listens to
the sink's monitor through PortAudio, as it does to a sound card (see benchmarks/live.py). A reader looks into the
database every 2 ms; a row's moment is when it first sees it, that is, just after the commit. When a sample was heard
is told by the daemon's own sample clock (`start_utc` of the row): the earliest moment at which capture could have had
it. Where a call lies in the stream is found from the clip, whose samples are compared with those that were played. For
each detected call:

after its start             from the first sample of the call
after its last window       from the last sample of the event's last window, as `end_s` + (window - hop) / 2
after the deciding window   from the last sample of the first window whose centre lies more than `merge_gap_s` behind
                            the event: before that no daemon, however fast, may close it. This is what the machine
                            adds: the card's buffer, the blocks, the scores, the transaction.

Where several calls lie in one event the last one counts.
"""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import soundfile
from figures import Figure, finish
from live import CHANNELS, CONFIGURATION, MAP, cost, sound_server
from numpy.typing import NDArray
from processes import children

from orcawatch.bundle import SHIPPED, Bundle, load_bundle
from orcawatch.config import EventSettings
from orcawatch.simulate import Scene, SceneSettings, simulate_scene

Array = NDArray[np.float32]

RATE_HZ = 48000
PER_MINUTE = 10
SILENCE_S = 3.0  # before and after what is played
LOOK_S = 0.002


@dataclass(frozen=True)
class Row:
    """A detection, and when the reader saw it; times in s, of the stream or UTC."""

    seen_utc_s: float
    start_utc_s: float
    start_s: float
    end_s: float
    clip: Path
    clip_start_s: float

    def late_s(self, moment_s: float) -> float:
        """How long after this moment of the stream the row was seen."""
        return self.seen_utc_s - (self.start_utc_s + moment_s - self.start_s)


@click.command()
@click.option("--calls", type=click.IntRange(1, 100), default=30, show_default=True, help="Calls that are played.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), default=SHIPPED, help="[default: the shipped]")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the figures here.")
def main(calls: int, bundle: Path, file: Path | None) -> None:
    """Play, listen, and print how late the rows were."""
    seconds = max(8.0, calls * 60 / PER_MINUTE)
    scene = simulate_scene(SceneSettings(seconds, RATE_HZ, 11, calls_per_minute=60 * calls / seconds, snr_low_db=12))
    with tempfile.TemporaryDirectory() as name:
        rows, shares = watched(Path(name), scene.samples.astype(np.float32), bundle)
        late = [latencies(row, scene, load_bundle(bundle)) for row in rows]
    found = [one for one in late if one is not None]
    told = f"{len(found)} of {len(scene.truth['events'])} calls, {len(rows)} events"
    finish(
        [*figures(found, told), *(Figure(f"{name}, live", share, "of a core") for name, share in shares.items())], file
    )


# --- the watch --------------------------------------------------------------------------------------------------------


def watched(folder: Path, samples: Array, bundle: Path) -> tuple[list[Row], dict[str, float]]:
    """Rows of what was played, and the processes' processor time per time meanwhile."""
    config, database = folder / "orcawatch.yaml", folder / "detections.sqlite"
    config.write_text(CONFIGURATION.format(output=folder, rate_hz=RATE_HZ))
    command = [sys.executable, "-m", "orcawatch.cli", "run", "--config", str(config), "--bundle", str(bundle)]
    seen: dict[int, float] = {}
    done = threading.Event()
    reader = threading.Thread(target=look, args=(database, seen, done))
    with sound_server(folder, RATE_HZ) as (environment, _), (folder / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        reader.start()
        try:
            listening(daemon, database)
            shares = played(samples, environment, daemon.pid)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=90)
            done.set()
            reader.join()
    if daemon.returncode:
        raise click.ClickException(f"the daemon ended with {daemon.returncode}: {(folder / 'daemon.log').read_text()}")
    return list(rows_of(folder, seen)), shares


def look(database: Path, seen: dict[int, float], done: threading.Event) -> None:
    """Note when each row is first there."""
    while not done.wait(LOOK_S):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as rows:
            while not done.wait(LOOK_S):
                for (number,) in rows.execute("SELECT id FROM detections WHERE id > ?", (max(seen, default=0),)):
                    seen[number] = time.time()


def listening(daemon: subprocess.Popen[bytes], database: Path) -> None:
    """Wait until the daemon has begun a session."""
    for _ in range(600):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as rows:
            if rows.execute("SELECT count(*) FROM sessions").fetchone()[0]:
                time.sleep(SILENCE_S)
                return
        if daemon.poll() is not None:
            return
        time.sleep(0.1)


def played(samples: Array, environment: Mapping[str, str], daemon: int) -> dict[str, float]:
    """Play the samples, with silence around them, to their end; the processes' processor time per time meanwhile."""
    form = ["--format=float32le", f"--rate={RATE_HZ}", f"--channels={CHANNELS}", f"--channel-map={MAP}"]
    command = ["pacat", "--playback", "--raw", "--device=sea", *form]
    silence = np.zeros((round(SILENCE_S * RATE_HZ), CHANNELS), "<f4")
    processes = {"the daemon": daemon, "its capture": children(daemon)[0]}
    before, began_s = {name: cost(number).cpu_s for name, number in processes.items()}, time.monotonic()
    content = b"".join(part.astype("<f4").tobytes() for part in (silence, samples, silence))
    subprocess.run(command, env=environment, input=content, check=True)
    took_s = time.monotonic() - began_s
    return {name: (cost(number).cpu_s - before[name]) / took_s for name, number in processes.items()}


def rows_of(folder: Path, seen: Mapping[int, float]) -> Iterator[Row]:
    """The detections, with the moments at which they were seen."""
    with closing(sqlite3.connect(folder / "detections.sqlite")) as connection:
        for number, utc, start_s, end_s, clip, clip_start_s in connection.execute(
            "SELECT id, start_utc, start_s, end_s, clip, clip_start_s FROM detections "
            "WHERE clip IS NOT NULL ORDER BY id"
        ).fetchall():
            began_s = datetime.fromisoformat(utc).timestamp()
            if number in seen:
                yield Row(seen[number], began_s, start_s, end_s, folder / clip, clip_start_s)


# --- latencies --------------------------------------------------------------------------------------------------------


def latencies(row: Row, scene: Scene, bundle: Bundle) -> tuple[float, float, float] | None:
    """Seconds after the call's start, the event's last window, and the deciding one; None where no call was played."""
    offset_s = row.clip_start_s - place_s(row.clip, scene.samples)  # of the scene in the stream
    calls = [one for one in scene.truth["events"] if one["kind"] != "clicks"]
    heard = [one["start_s"] + offset_s for one in calls
             if one["start_s"] + offset_s < row.end_s and row.start_s < one["end_s"] + offset_s]  # fmt: skip
    if not heard:
        return None
    end = next(iter(bundle.backbones.values())).front_end
    window_s, hop_s = end.frames * end.hop_samples / end.rate_hz, bundle.hop_s
    # Centres of the windows behind the event lie at half a hop, one and a half hops ... after its end.
    waited_s = (math.floor(EventSettings().merge_gap_s / hop_s - 0.5) + 1.5) * hop_s
    last_s, deciding_s = row.end_s + (window_s - hop_s) / 2, row.end_s + waited_s + window_s / 2
    return row.late_s(max(heard)), row.late_s(last_s), row.late_s(deciding_s)


def place_s(clip: Path, scene: Array) -> float:
    """Where in the scene a clip's middle second lies, as the time of the clip's start."""
    samples, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
    first = len(samples) // 2 - rate_hz // 2
    piece = samples[first : first + rate_hz, 0]
    size = len(scene) + len(piece)
    products = np.fft.irfft(np.fft.rfft(scene[:, 0], size) * np.fft.rfft(piece, size).conj(), size)
    return float((int(np.argmax(products[: len(scene)])) - first) / rate_hz)


def figures(late: list[tuple[float, float, float]], told: str) -> Iterator[Figure]:
    """Median and 99th percentile of each latency."""
    for k, name in enumerate(("after its start", "after its last window", "after the deciding window")):
        for share, title in ((50, "median"), (99, "99 %")):
            value = float(np.percentile([one[k] for one in late], share)) if late else None
            yield Figure(f"row {name}, {title}", value, "s", note=told)


if __name__ == "__main__":
    main()
