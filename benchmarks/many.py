"""A whole season in an output folder, made up: detections in their thousands, ledger, levels, verdicts, a few clips.

    python benchmarks/many.py OUTPUT [--detections 100000] [--days 180] [--clips 12] [--level-every 60] [--seed 1]

For trying what reads a big database: pages, exports, `examples/season.py`. Everything is written with the project's own
`Store` and `Ledger`, so that it is what a buoy would have left: three runs with time between them in which nothing ran,
a duty cycle for a while, gaps, audio that was shed, a lower step of the overload ladder; whales that pass, false alarms
at all times; reviewers who looked at some. Calls, levels and verdicts are drawn at random: the same seed gives the same
season. The newest detections have real clips and snapshots of a simulated scene, those before lost theirs to retention.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orcawatch import levels
from orcawatch.daemon import DATABASE, make_folders
from orcawatch.ledger import RECORDED, Ledger, Session
from orcawatch.levels import PRESSURE, Levels
from orcawatch.records import AudioBlock, Event, Missing
from orcawatch.store import Detection, Store

Floats = NDArray[np.float64]

START = datetime(2026, 5, 1, tzinfo=timezone.utc)
RATE_HZ = 48000
CHANNELS = (0, 1, 2, 3)
STATION = "Strait East"
SERIALS = ("SQ26-0114", "SQ26-0115", "SQ26-0131", "SQ26-0140")
LATITUDE_DEG, LONGITUDE_DEG = 48.5162, -123.1524
SLOT_S = 5.0  # no two detections begin in the same one
ROLL_S = 2.0
DAY_S, HOUR_S = 86400.0, 3600.0
KEPT = "older than 30 days"
NOTES = (
    "", "", "", "S1 and S4 calls", "ship's gear, 1.2 kHz", 'said "faint" twice; J pod?', "=not a formula",
    "sm\u00e5 hvaler \u2013 uklart", "<b>loud</b> & clear", "first line\nsecond line\twith a tab",
)  # fmt: skip


# --- the season's plan ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What became of a stretch of time, seconds since `START`; `step` is that of the overload ladder."""

    kind: str
    cause: str
    step: int
    start_s: float
    end_s: float


def plan(days: float, random: np.random.Generator) -> list[list[Part]]:
    """The parts of each of three runs, one following the other."""
    marks_s = [share * days * DAY_S for share in (0.0, 0.36, 0.38, 0.7, 0.7005, 1.0)]
    return [_run(start, end, run == 1, random) for run, (start, end) in enumerate(zip(marks_s[::2], marks_s[1::2]))]


def _run(start_s: float, end_s: float, with_duty: bool, random: np.random.Generator) -> list[Part]:
    """One run: whole in the main, holes about every other day; with a duty cycle over its first half where asked."""
    duty_until_s = start_s + (end_s - start_s) / 2 if with_duty else start_s
    parts, now_s = [], start_s
    while now_s < end_s:
        found = _duty(now_s) if now_s < duty_until_s else _hole(now_s, random)
        parts += [replace(part, end_s=min(part.end_s, end_s)) for part in found if part.start_s < end_s]
        now_s = found[-1].end_s
    return parts


def _duty(now_s: float) -> list[Part]:
    """Half an hour of listening, and half an hour of none."""
    middle_s = now_s + HOUR_S / 2
    return [Part(RECORDED, "", 0, now_s, middle_s), Part("off_duty", "duty cycle", 0, middle_s, now_s + HOUR_S)]


HOLES = (
    ("gap", "the sound card is gone", 0, 0.6 * HOUR_S),
    ("gap", "overrun", 0, 2.0),
    ("shed", "the queue is full", 0, 40.0),
    (RECORDED, "", 1, 2.0 * HOUR_S),
)


def _hole(now_s: float, random: np.random.Generator) -> list[Part]:
    kind, cause, step, mean_s = HOLES[random.choice(len(HOLES), p=(0.2, 0.3, 0.2, 0.3))]
    middle_s = now_s + random.exponential(1.5 * DAY_S) + 60.0
    return [
        Part(RECORDED, "", 0, now_s, middle_s),
        Part(kind, cause, step, middle_s, middle_s + random.exponential(mean_s) + 0.5),
    ]


# --- detections -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calls:
    """Detections to be, in time order; one figure each.

    Attributes
    ----------
    start_s, end_s : seconds since `START`.
    orca : whether it was one.
    score : 0.5 to 1.
    bearing_deg : where it came from.
    """

    start_s: Floats
    end_s: Floats
    orca: NDArray[np.bool_]
    score: Floats
    bearing_deg: Floats


def draw_calls(number: int, days: float, runs: Sequence[Sequence[Part]], random: np.random.Generator) -> Calls:
    """Detections while there was audio: whales that pass for hours, and false alarms at all times."""
    slots_s = np.arange(0, days * DAY_S - SLOT_S, SLOT_S)
    whales = _passages(slots_s, days, random)
    weights = np.where(_recorded(slots_s, runs), 0.25 + whales, 0)
    if np.count_nonzero(weights) < number:
        raise ValueError(
            f"{days:g} days hold at most {np.count_nonzero(weights)} detections, not {number}: ask for less"
        )
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + random.gumbel(size=len(slots_s))
    chosen = np.sort(np.argpartition(-keys, number - 1)[:number])
    orca = random.random(number) < (whales / (0.25 + whales))[chosen]
    start_s = slots_s[chosen] + random.uniform(0, 0.4, number)
    end_s = start_s + np.where(orca, random.gamma(4, 0.4, number), random.gamma(2, 0.5, number)).clip(0.96, 4.4)
    score = 0.5 + 0.5 * np.where(orca, random.beta(4, 1.6, number), random.beta(1.1, 5, number))
    bearing_deg = np.where(orca, 90 + 250 * (start_s / HOUR_S % 6) / 6, random.uniform(0, 360, number)) % 360
    return Calls(start_s, end_s, orca, score, bearing_deg + 0.0)


def _passages(slots_s: Floats, days: float, random: np.random.Generator) -> Floats:
    """How much is called at each time: most in the middle of the season."""
    weights = np.zeros(len(slots_s))
    for _ in range(max(2, round(days * 0.6))):
        middle_s, width_s = random.normal(0.55, 0.2) * days * DAY_S, random.uniform(0.3, 1.6) * HOUR_S
        first, last = np.searchsorted(slots_s, (middle_s - 3 * width_s, middle_s + 3 * width_s))
        bell = np.exp(-(((slots_s[first:last] - middle_s) / width_s) ** 2) / 2)
        weights[first:last] += random.lognormal(2.6, 0.8) * bell
    return weights


def _recorded(slots_s: Floats, runs: Sequence[Sequence[Part]]) -> NDArray[np.bool_]:
    """Whether a slot lies wholly in audio."""
    parts = [part for run in runs for part in run if part.kind == RECORDED]
    ends_s = np.array([part.end_s for part in parts])
    starts_s = np.array([part.start_s for part in parts])
    place = np.searchsorted(ends_s, slots_s, side="right").clip(max=len(parts) - 1)
    return np.asarray((starts_s[place] <= slots_s) & (slots_s + SLOT_S <= ends_s[place]))


def detection_of(calls: Calls, index: int, session: int, began_s: float, random: np.random.Generator) -> Detection:
    """The row of one call in a run that began at a moment."""
    start_s, end_s = float(calls.start_s[index]) - began_s, float(calls.end_s[index]) - began_s
    score, orca = round(float(calls.score[index]), 6), bool(calls.orca[index])
    best = int(random.integers(len(CHANNELS)))
    others = score * random.uniform(0.4, 1, len(CHANNELS))
    doubtful = random.random() < 0.1
    low_hz = float(random.uniform(500, 1500) if orca else random.uniform(125, 900))
    return Detection(
        id=None, source="buoy array", start_s=start_s, end_s=end_s, start_utc=utc_at(began_s + start_s), score=score,
        channels=CHANNELS,
        channel_scores=tuple(score if k == best else round(float(other), 6) for k, other in enumerate(others)),
        best_channel=CHANNELS[best], bundle="first-light", bundle_digest="5e" * 32,
        clip=f"clips/{index:06d}.flac", snapshot=f"snapshots/{index:06d}.png", removed=KEPT,
        numbers={"band_low_hz": low_hz, "band_high_hz": low_hz * float(random.uniform(2, 5))},
        station=STATION, session=session, start_sample=round(start_s * RATE_HZ), end_sample=round(end_s * RATE_HZ),
        synchronised=True, hydrophones=SERIALS,
        levels_db=tuple(np.round(random.normal(112 if orca else 106, 4, len(CHANNELS)), 2).tolist()),
        level_unit=PRESSURE, bearing_deg=None if doubtful else round(float(calls.bearing_deg[index]), 1),
        bearing_error_deg=None if doubtful else round(float(random.gamma(3, 2)), 1),
        bearing_note="the call is too faint for a bearing" if doubtful else "", clip_start_s=start_s - ROLL_S,
    )  # fmt: skip


def reviewed(detection: Detection, orca: bool, random: np.random.Generator) -> Detection:
    """With a verdict, some of them."""
    if random.random() > 0.15:
        return detection
    share = (0.9, 0.02, 0.08) if orca else (0.05, 0.85, 0.1)
    return replace(
        detection,
        verdict=str(random.choice(("orca", "not_orca", "unsure"), p=share)),
        verdict_note=NOTES[random.integers(len(NOTES))],
        verdict_utc=(detection.start_utc or START) + timedelta(days=float(random.uniform(1, 20))),
        reviewer=("A. Berg", "Jos\u00e9 Mora")[random.integers(2)],
    )


def put_verdict(connection: sqlite3.Connection, number: int, detection: Detection) -> None:
    """The journal's row of a verdict."""
    if detection.verdict_utc is not None:
        connection.execute(
            "INSERT INTO verdicts (detection, verdict, note, reviewer, utc) VALUES (?, ?, ?, ?, ?)",
            (number, detection.verdict, detection.verdict_note, detection.reviewer, detection.verdict_utc.isoformat()),
        )


# --- clips ------------------------------------------------------------------------------------------------------------


class Clips:
    """Makes real clips and snapshots: calls of one simulated scene, scored and explained by the shipped bundle."""

    def __init__(self, output: Path) -> None:
        from orcawatch.config import Settings
        from orcawatch.daemon import open_ensemble
        from orcawatch.simulate import SceneSettings, simulate_scene

        self._output = output
        self._ensemble = open_ensemble(Settings())
        self._scene = simulate_scene(
            SceneSettings(rate_hz=RATE_HZ, calls_per_minute=16, snr_low_db=8, click_trains_per_minute=0, duration_s=60)
        )
        calls = [event for event in self._scene.truth["events"] if 0.5 + ROLL_S < event["start_s"] < 53 - ROLL_S]
        scores = [self._event(call, 0)[0].score for call in calls]
        self._calls = [calls[place] for place in np.argsort(scores)[::-1][:8]]  # the bundle is not sure of all

    def _event(self, call: dict[str, Any], start_sample: int) -> tuple[Event, NDArray[np.float32]]:
        """A call as the bundle hears it, as if it began at a position; and the clip's samples."""
        from orcawatch.detector import Detector

        roll = round(ROLL_S * RATE_HZ)
        start, length = (round(s * RATE_HZ) for s in (call["start_s"], max(0.96, call["end_s"] - call["start_s"])))
        samples = self._scene.samples[start - roll : start + length + roll]
        detector = Detector(self._ensemble, RATE_HZ, len(CHANNELS), self._ensemble.bundle.hop_s)
        windows = detector.push(AudioBlock(samples, start_sample - roll)) + detector.finish()
        return event_of(windows, start_sample, start_sample + length), samples

    def heard(self, detection: Detection, place: int) -> tuple[Detection, Event, NDArray[np.float32]]:
        """The detection as the bundle scores a call of the scene, its event, and the clip's samples."""
        call = self._calls[place % len(self._calls)]
        event, samples = self._event(call, detection.start_sample or 0)
        bundle = self._ensemble.bundle
        heard = replace(
            detection, end_sample=event.end_sample, end_s=event.end_sample / RATE_HZ, score=event.score,
            channel_scores=tuple(map(float, event.channel_scores)), best_channel=CHANNELS[event.best_channel],
            clip=None, snapshot=None, removed=None, numbers={}, bundle=bundle.name, bundle_digest=bundle.digest,
            bearing_deg=round(call["bearing_deg"], 1), clip_start_s=None,
        )  # fmt: skip
        return heard, event, samples

    def make(self, detection: Detection, event: Event, samples: NDArray[np.float32]) -> dict[str, Any]:
        """Write both files; what `Store.attach` takes."""
        from orcawatch.clips import write_clip
        from orcawatch.guano import clip_metadata
        from orcawatch.recorder import CLIPS, SNAPSHOTS, file_name, title
        from orcawatch.snapshot import excerpt_of, make_snapshot

        name, first = file_name(detection), event.start_sample - round(ROLL_S * RATE_HZ)
        metadata = clip_metadata(detection, first, len(samples), RATE_HZ)
        clip = write_clip(self._output / CLIPS / f"{name}.flac", samples, RATE_HZ, metadata)
        stem = self._output / SNAPSHOTS / name
        shown = excerpt_of(samples, RATE_HZ, first, event)
        picture, numbers = make_snapshot(self._ensemble, shown, event, CHANNELS, title(detection), stem)
        return {
            "clip": f"{CLIPS}/{clip.name}", "snapshot": f"{SNAPSHOTS}/{picture.name}", "numbers": numbers,
            "clip_start_s": first / RATE_HZ,
        }  # fmt: skip


def event_of(windows: Sequence[Any], start_sample: int, end_sample: int) -> Event:
    """The event of all windows that touch a span."""
    inside = tuple(w for w in windows if w.end_sample > start_sample and w.start_sample < end_sample)
    channels = np.max([window.channel_scores for window in inside], axis=0)
    score = max(window.score for window in inside)
    return Event(start_sample, end_sample, score, channels, int(np.argmax(channels)), inside)


# --- writing ----------------------------------------------------------------------------------------------------------


class Bulk(Store):
    """A store whose every transaction is part of one; without the disk's wait for each."""

    @contextmanager
    def whole(self) -> Iterator[sqlite3.Connection]:
        """Around everything."""
        with super().transaction() as self._inside:
            yield self._inside

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Part of the one transaction."""
        yield self._inside


@dataclass
class SeasonClocks:
    """Clocks, and the sound card's time, of one run; `now_s` is moved by who writes."""

    boot: str
    began_s: float
    now_s: float
    drift_ppm = 1.8

    def steady_s(self) -> float:
        """Seconds since the machine started, a minute before the run."""
        return self.now_s - self.began_s + 60.0

    def suspended_s(self) -> float:
        """Never."""
        return 0.0

    def utc(self) -> datetime:
        """The right time."""
        return utc_at(self.now_s)

    def synchronised(self) -> bool:
        """Always."""
        return True


class SeasonTime:
    """A run's samples in time."""

    synchronised = True
    drift_ppm = 1.8

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s

    def steady_at(self, sample: int) -> float:
        """Moment of a position, seconds since the machine started."""
        return 60.0 + sample / RATE_HZ

    def utc_at(self, sample: int) -> datetime:
        """UTC of a position."""
        return utc_at(self._began_s + sample / RATE_HZ)


def utc_at(season_s: float) -> datetime:
    """UTC of seconds since `START`."""
    return START + timedelta(seconds=season_s)


def write_run(store: Bulk, number: int, parts: Sequence[Part]) -> int:
    """A session and its ledger; the session's number."""
    began_s = parts[0].start_s
    clocks = SeasonClocks(f"start {number}", began_s, began_s)
    session = Session(
        "buoy array", True, RATE_HZ, CHANNELS, SERIALS, STATION, "first-light", "5e" * 32, LATITUDE_DEG, LONGITUDE_DEG
    )
    ledger = Ledger(store, session, SeasonTime(began_s), clocks)
    for part in parts:
        start, end = (round((moment_s - began_s) * RATE_HZ) for moment_s in (part.start_s, part.end_s))
        clocks.now_s = part.end_s
        if part.kind == RECORDED:
            ledger.step(part.step, "hop 0.96 s")
            ledger.recorded(start, end)
        else:
            ledger.missing(Missing(start, end, part.kind, part.cause))
    ledger.close()
    return int(ledger.session or 0)


def write_levels(
    connection: sqlite3.Connection, session: int, parts: Sequence[Part], every_s: float, random: np.random.Generator
) -> None:
    """Levels of the audio: weather that comes and goes over days, ships that pass, a little less on channel 2."""
    began_s = parts[0].start_s
    for part in parts:
        if part.kind != RECORDED:
            continue
        times_s = np.arange(part.start_s, part.end_s - 1, every_s)
        ends_s = np.minimum(times_s + every_s, part.end_s)
        weather_db = 98 + 5 * np.sin(times_s / DAY_S * 1.7) + 3 * np.sin(times_s / DAY_S * 0.61 + 1)
        ships_db = 14 * np.exp(-((np.sin(times_s / HOUR_S * 0.43) - 1) ** 2) / 0.002) * (np.sin(times_s / 70000) > 0)
        for start_s, end_s, level_db in zip(times_s, ends_s, weather_db + ships_db):
            of_channels = level_db + random.normal(0, 0.6, len(CHANNELS)) - (0, 0, 1.5, 0)
            row = Levels(
                round((start_s - began_s) * RATE_HZ), round((end_s - began_s) * RATE_HZ), tuple(of_channels),
                tuple(of_channels + 14), tuple((random.random(len(CHANNELS)) < 0.002).astype(int).tolist()), PRESSURE,
            )  # fmt: skip
            levels.put(connection, session, row, utc_at(float(start_s)), True)


def fill(
    output: Path,
    detections: int = 100_000,
    days: float = 180,
    clips: int = 12,
    level_every_s: float = 60,
    seed: int = 1,
) -> None:
    """Write a season into an output folder that holds none.

    Parameters
    ----------
    output : the folder; it is made.
    detections : how many.
    days : the season's length, from 2026-05-01 on.
    clips : how many of the newest detections have a clip and a snapshot (about a second's work each).
    level_every_s : distance between rows of levels.
    seed : the same gives the same.

    Raises
    ------
    ValueError : so many detections do not fit into the days.
    """
    random = np.random.default_rng(seed)
    runs = plan(days, random)
    calls = draw_calls(detections, days, runs, random)
    make_folders(output)
    studio = Clips(output) if clips else None
    with Bulk(output / DATABASE) as store, store.whole() as connection:
        for number, parts in enumerate(runs):
            session = write_run(store, number, parts)
            write_levels(connection, session, parts, level_every_s, random)
            first, last = np.searchsorted(calls.start_s, (parts[0].start_s, parts[-1].end_s))
            for index in range(first, last):
                newest = detections - index <= clips
                detection = detection_of(calls, index, session, parts[0].start_s, random)
                if studio is not None and newest:
                    _add_with_clip(store, studio, detection, index)
                else:
                    _add(store, connection, reviewed(detection, bool(calls.orca[index]), random))


def _add(store: Bulk, connection: sqlite3.Connection, detection: Detection) -> None:
    put_verdict(connection, store.add(detection), detection)


def _add_with_clip(store: Bulk, studio: Clips, detection: Detection, index: int) -> None:
    heard, event, samples = studio.heard(detection, index)
    number = store.add(heard)
    store.attach(number, **studio.make(replace(heard, id=number), event, samples))


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=180)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--level-every", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if (asked.output / DATABASE).exists():
        parser.error(f"{asked.output} holds a database already: name another folder")
    began_s = time.monotonic()
    fill(asked.output, asked.detections, asked.days, asked.clips, asked.level_every, asked.seed)
    size_mb = (asked.output / DATABASE).stat().st_size / 1e6
    print(f"{asked.detections} detections in {size_mb:.0f} MB, {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
