"""A mooring that squeaks: false alarms reviewed, a bundle retrained on the verdicts, and judged on another day.

    python benchmarks/squeak.py make WORK
    python benchmarks/squeak.py review WORK
    orcawatch review export WORK/found WORK/reviewed --devel-share 0
    orcawatch train run RECIPE --data DATA --data WORK/reviewed --run WORK/run
    orcawatch deploy bundle WORK/run WORK/bundle
    python benchmarks/squeak.py judge WORK --bundle WORK/bundle
    orcawatch bundle compare SHIPPED WORK/bundle --data DATA

`make` computes two days of four hydrophones in diffuse sea noise. A shackle squeaks: a harmonic tone that glides up by
a third, of 0.6 to 1.3 s, again and again at irregular times, in bouts, at -3 to 18 dB (0.5 to 10 kHz), always from the
mooring's bearing. The two days have the same shackle and nothing else in common: other seeds, wind, ships and times.
Day 2 also has calls of orcas (synthetic ones, as of `orcawatch simulate`), so that a bundle that has merely learned to
call this sea empty is seen. `review` scans day 1 with the shipped bundle and gives every detection the verdict that
the truth does. `judge` scans day 2 with both bundles and counts false alarms and calls found, paired by recording.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from orcawatch import calls
from orcawatch.daemon import DATABASE
from orcawatch.noise import diffuse_noise, sea_level_db, ship_noise
from orcawatch.simulate import SQUARE_M, band_level_db, plane_wave
from orcawatch.store import Detection, Store
from orcawatch.verdicts import Verdict, Writer, give_all

RATE_HZ = 32000
FILE_S = 150
FILES = 12
DRAWS = 2000
MOORING_DEG = 205.0
TONE_HZ = 720.0
GLIDE = (0.0, 0.1, 0.3)  # natural logarithm of the tone's frequency over its time, less that of TONE_HZ
SNR_DB = (-3.0, 18.0)
BOUT_S, GAP_S = (20.0, 60.0), (4.0, 14.0)  # between bouts, and within them
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Day:
    """What tells one day from another.

    Attributes
    ----------
    name : of its folder.
    start : of its first recording; one begins every two hours.
    seed : of everything drawn.
    calls_per_minute : synthetic calls of orcas.
    """

    name: str
    start: datetime
    seed: int
    calls_per_minute: float


DAYS = (
    Day("day1", datetime(2026, 6, 1, tzinfo=timezone.utc), 11, 0.0),
    Day("day2", datetime(2026, 6, 9, 1, tzinfo=timezone.utc), 29, 1.2),
)


# --- the sound --------------------------------------------------------------------------------------------------------


def squeak(rng: np.random.Generator) -> Array:
    """One squeak at the shackle: shape (samples,), peak 1."""
    frames = int(0.9 * rng.uniform(0.7, 1.4) * calls.FRAMES_PER_S)
    glide = np.interp(np.linspace(0, 1, frames), np.linspace(0, 1, len(GLIDE)), GLIDE) * rng.uniform(0.75, 1.25)
    tone_hz = TONE_HZ * np.exp(rng.normal(0, 0.04) + glide) * (1 + 0.003 * calls._smooth_noise(rng, frames, 25))
    level_db = calls._envelope_db(rng, frames, 3.0)
    numbers = range(1, int(9000 / TONE_HZ) + 1)
    levels = [level_db - 3 * np.log2(k) - 4 * (k == 1) + rng.normal(0, 1.5) for k in numbers]
    return calls._finish(rng, calls._synthesise(rng, [k * tone_hz for k in numbers], levels, RATE_HZ), RATE_HZ)


def sea(rng: np.random.Generator, seconds: float) -> Array:
    """Wind, and one time in four a ship, on four hydrophones: shape (samples, 4)."""
    wind_m_s, n = rng.uniform(2, 12), int(seconds * RATE_HZ)
    bed = diffuse_noise(rng, n, RATE_HZ, lambda f: sea_level_db(f, wind_m_s), SQUARE_M)
    if rng.random() < 0.25:
        add(bed, bed.copy(), ship_noise(rng, n - 2000, RATE_HZ), 1000, rng.uniform(-6, 3), rng.uniform(0, 360))
    return bed


def add(scene: Array, bed: Array, sound: Array, first: int, snr_db: float, bearing_deg: float) -> None:
    """Add a sound to a scene as a plane wave, its level over its span `snr_db` above the bed's."""
    span = bed[first : first + len(sound), 0]
    gain_db = band_level_db(span, RATE_HZ) + snr_db - band_level_db(sound, RATE_HZ)
    waves, lead = plane_wave(sound * 10 ** (gain_db / 20), RATE_HZ, SQUARE_M, bearing_deg)
    scene[first - lead : first - lead + len(waves)] += waves.astype(np.float32)


def squeak_times(rng: np.random.Generator, seconds: float) -> list[float]:
    """Seconds at which squeaks begin: bouts of two to six."""
    times, at = list[float](), float(rng.uniform(2, BOUT_S[0]))
    while at < seconds - 4:
        for _ in range(int(rng.integers(2, 7))):
            times.append(at)
            at += float(rng.uniform(*GAP_S))
        at += float(rng.uniform(*BOUT_S))
    return [time for time in times if time < seconds - 4]


def recording(rng: np.random.Generator, calls_per_minute: float) -> tuple[Array, list[dict[str, Any]]]:
    """Sound (samples, 4) and truth of one recording; a call that would meet a squeak is left out."""
    sound, events = sea(rng, FILE_S), list[dict[str, Any]]()
    drawn = [("squeak", at_s) for at_s in squeak_times(rng, FILE_S)]
    drawn += [("call", float(at)) for at in rng.uniform(2, FILE_S - 6, round(calls_per_minute * FILE_S / 60))]
    bed = sound.copy()
    for kind, at_s in drawn:
        one = squeak(rng) if kind == "squeak" else calls.pulsed_call(rng, RATE_HZ)
        event = {"kind": kind, "start_s": at_s, "end_s": at_s + len(one) / RATE_HZ, "snr_db": rng.uniform(*SNR_DB)}
        if any(overlaps(event, other, 1.5) for other in events):
            continue
        events.append(event)
        bearing_deg = MOORING_DEG if kind == "squeak" else rng.uniform(0, 360)
        add(sound, bed, one, int(at_s * RATE_HZ), event["snr_db"], bearing_deg)
    return sound, events


def overlaps(one: dict[str, Any], other: dict[str, Any], apart_s: float = 0.0) -> bool:
    """Whether two spans share time, or are less than `apart_s` apart."""
    return bool(one["start_s"] < other["end_s"] + apart_s and other["start_s"] < one["end_s"] + apart_s)


def make_day(work: Path, day: Day) -> None:
    """Write the day's recordings and their truth."""
    folder = work / day.name
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        sound, events = recording(np.random.default_rng([day.seed, number]), day.calls_per_minute)
        name = f"mooring_{day.start + timedelta(hours=2 * number):%Y%m%dT%H%M%SZ}"
        peak = float(np.abs(sound).max())
        soundfile.write(folder / f"{name}.flac", sound / peak * 0.5, RATE_HZ, subtype="PCM_16")
        (folder / f"{name}.json").write_text(json.dumps({"events": events}, indent=1))
        kinds = [event["kind"] for event in events]
        print(f"{folder / name}.flac: {kinds.count('squeak')} squeaks, {kinds.count('call')} calls", flush=True)


# --- the bundle's answer ----------------------------------------------------------------------------------------------


def scanned(recordings: Path, output: Path, bundle: str | None, start: float | None = None) -> list[Detection]:
    """Detections of a day by the installed command, without pictures; `start` is another start threshold."""
    shutil.rmtree(output, ignore_errors=True)  # a day that was scanned before is not to count twice
    config = output.with_name(output.name + ".yaml")
    thresholds = "" if start is None else f"start_threshold: {start}\nstop_threshold: {start / 2}\n"
    config.write_text(f"snapshots: false\nstation: Squeaky mooring\n{thresholds}")
    command = [str(Path(sys.executable).with_name("orcawatch")), "scan", str(recordings), "--output", str(output)]
    command += ["--config", str(config), "--quiet", *(["--bundle", bundle] if bundle else [])]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    with Store.reader(output / DATABASE) as reader:
        return reader.detections()


def truth_of(recordings: Path, name: str) -> list[dict[str, Any]]:
    """The events of a recording."""
    events: list[dict[str, Any]] = json.loads((recordings / name).with_suffix(".json").read_text())["events"]
    return events


def is_call(recordings: Path, found: Detection) -> bool:
    """Whether a detection overlaps a call."""
    span = {"start_s": found.start_s, "end_s": found.end_s}
    events = truth_of(recordings, Path(found.source).name)
    return any(overlaps(span, event) for event in events if event["kind"] == "call")


def review(work: Path) -> None:
    """Scan day 1 with the shipped bundle and give every detection its verdict."""
    recordings, output = work / DAYS[0].name, work / "found"
    found = scanned(recordings, output, None)
    now = datetime.now(timezone.utc)
    said = {True: "orca", False: "not_orca"}
    with Writer(output / DATABASE) as writer:
        verdicts = [
            Verdict(int(one.id or 0), said[is_call(recordings, one)], "by truth", "truth", now) for one in found
        ]
        give_all(writer, verdicts)
    alarms = sum(verdict.verdict == "not_orca" for verdict in verdicts)
    print(f"{len(found)} detections, {alarms} of them false: {output}")


def judge(work: Path, bundle: str, start: float | None) -> None:
    """Scan day 2 with the shipped bundle and another one, and print what each said."""
    recordings = work / DAYS[1].name
    old = scanned(recordings, work / "old", None)
    new = scanned(recordings, work / f"new{start or ''}", bundle, start)
    print(table(recordings, old, new))


# --- the figures ------------------------------------------------------------------------------------------------------


def table(recordings: Path, old: list[Detection], new: list[Detection]) -> str:
    """False alarms and calls found on day 2, with 95 % intervals that draw whole recordings."""
    names = sorted(path.name for path in recordings.glob("*.flac"))
    hours = sum(soundfile.info(recordings / name).duration for name in names) / 3600
    alarms = np.array([[false_alarms(recordings, found, name) for name in names] for found in (old, new)])
    heard = np.array([[calls_found(recordings, found, name) for name in names] for found in (old, new)])
    there = np.array([sum(event["kind"] == "call" for event in truth_of(recordings, name)) for name in names])
    drawn = np.random.default_rng(1).integers(len(names), size=(DRAWS, len(names)))
    fewer = 1 - alarms[1][drawn].sum(axis=1) / np.maximum(alarms[0][drawn].sum(axis=1), 1)
    lost = (heard[0][drawn].sum(axis=1) - heard[1][drawn].sum(axis=1)) / np.maximum(there[drawn].sum(axis=1), 1)
    lines = [f"{'day 2':24}{'shipped':>12}{'retrained':>12}"]
    lines += [f"{'false alarms':24}{alarms[0].sum():>12}{alarms[1].sum():>12}"]
    lines += [f"{'  an hour':24}{alarms[0].sum() / hours:>12.1f}{alarms[1].sum() / hours:>12.1f}"]
    lines += [f"{'calls found of ' + str(there.sum()):24}{heard[0].sum():>12}{heard[1].sum():>12}"]
    lines += [spanned("false alarms fewer", 1 - alarms[1].sum() / max(alarms[0].sum(), 1), fewer)]
    lines += [spanned("recall of calls lost", (heard[0].sum() - heard[1].sum()) / max(there.sum(), 1), lost)]
    return "\n".join(lines)


def spanned(name: str, value: float, drawn: NDArray[np.float64]) -> str:
    """A share with its 95 % interval."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{name:24}{value:>12.1%} ({low:.1%} to {high:.1%})"


def false_alarms(recordings: Path, found: list[Detection], name: str) -> int:
    """Detections in a recording that overlap no call."""
    return sum(Path(one.source).name == name and not is_call(recordings, one) for one in found)


def calls_found(recordings: Path, found: list[Detection], name: str) -> int:
    """Calls in a recording that a detection overlaps."""
    spans = [{"start_s": one.start_s, "end_s": one.end_s} for one in found if Path(one.source).name == name]
    events = [event for event in truth_of(recordings, name) if event["kind"] == "call"]
    return sum(any(overlaps(event, span) for span in spans) for event in events)


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["make", "review", "judge"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--bundle", help="The retrained bundle, for judge.")
    parser.add_argument("--start", type=float, help="Start threshold of the retrained bundle. [default: its own]")
    given = parser.parse_args()
    if given.step == "make":
        for day in DAYS:
            make_day(given.work, day)
    elif given.step == "review":
        review(given.work)
    else:
        judge(given.work, given.bundle or parser.error("judge needs --bundle"), given.start)


if __name__ == "__main__":
    main()
