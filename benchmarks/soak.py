"""A day of audio, accelerated, through the daemon: does it hold more and more memory, handles or disk?

    python benchmarks/soak.py [--hours 24] [--channels 1] [--hop 0.9] [--output FOLDER]

The daemon's own loop with everything real behind it: the shipped bundle, database, ledger, levels, clips, snapshots,
retention and a JSON lines sink. Only the source and its clocks are simulated: one channel at 32 kHz, windows every
0.9 s (24 h then take a quarter of an hour on one core; with --channels 4 --hop 0.48 an hour and more). In each quarter
of an hour there is a minute with calls. Overruns, a device that is gone, shed audio, steps of the clock and backlogs
that send the daemon down its ladder come at fixed times. The process is measured 144 times.

Prints each sixth measurement, then slopes after the warm-up with 95 % intervals, then the ledger's sums beside the
truth. Exit code 1 where a slope lies above its bound with its whole interval, or where the ledger is not the truth.
Runs of less than half a day are for trying: their slopes are those of the warm-up.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Event
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray
from processes import memory_mb

from orcawatch.records import AudioBlock, Item, Missing, StreamInfo

Array = NDArray[np.float32]

RATE_HZ = 32000
START = datetime(2026, 3, 1, tzinfo=timezone.utc)
MEASUREMENTS = 144
HOUR_S, DAY_H = 3600, 24.0
SPANS, STUDENT_T = 8, 2.447  # 97.5 % of Student's t with 6 degrees of freedom
BOUNDS = {"rss_mb": 4.0, "anonymous_mb": 2.0, "handles": 0.5, "threads": 0.5}  # a day
LIMITS = {"wal_mb": 16.0}  # never more


# --- the sea, and what befalls the recorder ---------------------------------------------------------------------------


@dataclass
class SimulatedClocks:
    """Clocks that the source moves."""

    now_s: float = 1000.0
    jumped_s: float = 0.0
    known: bool = False
    boot: str = "soak"

    def steady_s(self) -> float:
        return self.now_s

    def suspended_s(self) -> float:
        return 0.0

    def utc(self) -> datetime:
        return START + timedelta(seconds=self.now_s + self.jumped_s)

    def synchronised(self) -> bool:
        return self.known


class Sea:
    """An endless live source: a minute with calls in each quarter of an hour, and everything that can go wrong."""

    waits = False

    def __init__(
        self, hours: float, channels: int, clocks: SimulatedClocks, measure: Callable[[float], object]
    ) -> None:
        from orcawatch.clock import SampleClock
        from orcawatch.simulate import SceneSettings, simulate_scene

        quiet, busy = (SceneSettings(60.0, RATE_HZ, seed, calls_per_minute=calls) for seed, calls in ((1, 0), (2, 6)))
        self._scenes = [simulate_scene(one).samples[:, :channels].astype(np.float32) for one in (quiet, busy)]
        self.info = StreamInfo("soak", RATE_HZ, channels, live=True)
        self.behind_s = 0.0
        self.truth: defaultdict[str, float] = defaultdict(float)  # seconds of each kind
        self.clock = SampleClock(RATE_HZ, clocks)
        self.utc_at = self.clock.utc_at
        self._clocks = clocks
        self._seconds = round(hours * HOUR_S)
        self._every = max(1, self._seconds // MEASUREMENTS)
        self._measure = measure

    def blocks(self) -> Iterator[Item]:
        self.clock.begin(0, self._clocks.steady_s())
        for second in range(self._seconds):
            if second % self._every == 0:
                self._measure(second / HOUR_S)
            self.behind_s = 8.0 if 1000 <= second % 14400 < 1060 else 0.0
            self._pass(second)
            change = self.clock.check(second * RATE_HZ)
            if change is not None:
                yield change
            yield from self._second(second)

    def _pass(self, second: int) -> None:
        """Time passes; the system clock is set an hour after the start, and steps every eight hours."""
        if second % 21600 == 20300:
            self.clock.begin(second * RATE_HZ, self._clocks.steady_s())
        self._clocks.now_s += 1
        if second == HOUR_S:
            self._clocks.known, self._clocks.jumped_s = True, 120.0
        elif second % 28800 == 18000:
            self._clocks.jumped_s += (-1) ** (second // 28800) * 2.5

    def _second(self, second: int) -> Iterator[Item]:
        start = second * RATE_HZ
        if 20000 <= second % 21600 < 20300:
            yield self._missing(start, start + RATE_HZ, "gap", "device gone")
        elif 12000 <= second % 43200 < 12020:
            yield self._missing(start, start + RATE_HZ, "shed", "no time")
        else:
            lost = RATE_HZ // 4 if second % 1800 == 700 else 0
            if lost:
                yield self._missing(start, start + lost, "gap", "overrun")
            self.truth["recorded"] += 1 - lost / RATE_HZ
            self.clock.observe(start + RATE_HZ, self._clocks.steady_s())
            yield AudioBlock(self._audio(second)[lost:], start + lost)

    def _audio(self, second: int) -> Array:
        scene = self._scenes[second % 900 < 60]
        first = second % 60 * RATE_HZ
        return scene[first : first + RATE_HZ]

    def _missing(self, start: int, end: int, kind: str, cause: str) -> Missing:
        self.truth[kind] += (end - start) / RATE_HZ
        return Missing(start, end, kind, cause)


# --- measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """What the process and its files hold after some hours of audio."""

    hours: float
    rss_mb: float
    pss_mb: float
    anonymous_mb: float
    handles: int
    threads: int
    database_mb: float
    wal_mb: float
    files: int


class Meter:
    """Measures this process and its output folder."""

    def __init__(self, output: Path) -> None:
        self.found: list[Measurement] = []
        self._output = output
        self._started_s = time.monotonic()

    def __call__(self, hours: float) -> None:
        memory = memory_mb("self")
        database = self._output / "detections.sqlite"
        wal = database.with_name(database.name + "-wal")
        self.found.append(
            Measurement(
                hours,
                memory["Rss"],
                memory["Pss"],
                memory["Anonymous"],
                len(list(Path("/proc/self/fd").iterdir())) - 1,
                len(list(Path("/proc/self/task").iterdir())),
                size_mb(database),
                size_mb(wal),
                sum(1 for folder in ("clips", "snapshots") for _ in (self._output / folder).glob("*")),
            )
        )
        if len(self.found) % 6 == 1:
            print(self._row(self.found[-1]), flush=True)

    def _row(self, one: Measurement) -> str:
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in asdict(one).values()]
        return f"| {' | '.join(cells)} | {time.monotonic() - self._started_s:.0f} |"


def size_mb(path: Path) -> float:
    """Size of a file, 0 where there is none."""
    return path.stat().st_size / 2**20 if path.exists() else 0.0


def slope(hours: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Growth per day of a series and its 95 % interval: a line through the means of SPANS equal spans.

    Measurements resemble their neighbours, the means of spans of hours hardly do; the interval is Student's t.
    """
    x, y = (
        np.array([part.mean() for part in np.array_split(np.asarray(one, float), SPANS)]) for one in (hours, values)
    )
    x = (x - x.mean()) / DAY_H
    fit = float(x @ y / (x @ x))
    residuals = y - y.mean() - fit * x
    half = STUDENT_T * float(np.sqrt(residuals @ residuals / (SPANS - 2) / (x @ x)))
    return fit, fit - half, fit + half


def slopes(found: Sequence[Measurement], warm_up_h: float) -> list[str]:
    """Print the slopes after the warm-up; return the names of those above their bounds."""
    late = [one for one in found if one.hours >= warm_up_h]
    print(f"\n| after {warm_up_h:g} h | first | last | most | a day | 95 % interval | bound |\n|{'---|' * 7}")
    above = []
    for name in ("rss_mb", "pss_mb", "anonymous_mb", "handles", "threads", "database_mb", "wal_mb", "files"):
        values = [float(getattr(one, name)) for one in late]
        fit, low, high = slope([one.hours for one in late], values)
        bound, limit = BOUNDS.get(name, np.inf), LIMITS.get(name, np.inf)
        figures = " | ".join(f"{value:.1f}" for value in (values[0], values[-1], max(values)))
        told = f"{bound:g} a day" if np.isfinite(bound) else f"{limit:g} at most" if np.isfinite(limit) else ""
        print(f"| {name} | {figures} | {fit:+.2f} | {low:+.2f} to {high:+.2f} | {told} |")
        above += [name] if low > bound or max(values) > limit else []
    return above


def ledger_s(database: Path) -> dict[str, float]:
    """Seconds of each kind in the ledger's last session."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT kind, sum(end_sample - start_sample) FROM ledger WHERE session = (SELECT max(id) FROM sessions) "
            "AND start_sample >= 0 GROUP BY kind"
        ).fetchall()
    return {kind: samples / RATE_HZ for kind, samples in rows}


# --- the run ----------------------------------------------------------------------------------------------------------

CONFIGURATION = """
hop_s: {hop}
output: {output}
hydrophones: [{hydrophones}]
adc_peak_v: 1.0
retention: {{max_clips_mb: 20, min_free_mb: 0, sweep_s: 5}}
heartbeat_s: 5
sinks: [{{kind: jsonl, folder: {output}/messages, file_mb: 1, keep_files: 3}}]
"""


def settings_for(output: Path, channels: int, hop_s: float) -> Any:
    """The settings of the run, through a file as an operator's are."""
    from orcawatch.config import load_settings

    hydrophones = ", ".join(f"{{serial: H{k}, sensitivity_db: -170}}" for k in range(channels))
    file = output / "orcawatch.yaml"
    file.write_text(CONFIGURATION.format(hop=hop_s, output=output, hydrophones=hydrophones))
    return load_settings(file)


def soak(output: Path, given: argparse.Namespace) -> int:
    """Run, print, and return the exit code."""
    from orcawatch.daemon import open_ensemble, run
    from orcawatch.service import Service

    settings, meter, clocks = settings_for(output, given.channels, given.hop), Meter(output), SimulatedClocks()
    sea = Sea(given.hours, given.channels, clocks, meter)
    print(f"| {' | '.join(Measurement.__dataclass_fields__)} | seconds |\n|{'---|' * 10}")
    service = Service(lambda: settings, settings, Event())
    totals = run(sea, open_ensemble(settings), settings, lambda detection: None, upkeep=service, clocks=clocks)
    above = slopes(meter.found, given.warm_up)
    found = ledger_s(output / "detections.sqlite")
    print(f"\n{totals}\nledger: {seconds(found)}\ntruth:  {seconds(sea.truth)}")
    wrong = [kind for kind in {*found, *sea.truth} if abs(found.get(kind, 0) - sea.truth[kind]) > 1e-6]
    print(f"above their bounds: {', '.join(above) or 'none'}; not the truth: {', '.join(wrong) or 'none'}")
    return 1 if above or wrong else 0


def seconds(found: Mapping[str, float]) -> str:
    """Seconds by kind."""
    return ", ".join(f"{kind} {found[kind]:.3f} s" for kind in sorted(found))


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--warm-up", type=float, default=None, help="hours; a sixth of all by default")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--hop", type=float, default=0.9)
    parser.add_argument("--output", type=Path, default=None, help="a folder to keep; else one that is removed")
    given = parser.parse_args()
    given.warm_up = given.hours / 6 if given.warm_up is None else given.warm_up
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        sys.exit(soak(given.output.resolve(), given))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(soak(Path(folder), given))


if __name__ == "__main__":
    main()
