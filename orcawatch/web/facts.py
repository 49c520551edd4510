"""A detection in words and figures, for the page that shows it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..store import Detection
from . import axes, words
from .axes import Tick
from .media import Clip

NOT_SCORED = "not scored"
COMPASS_RADIUS = 40.0


@dataclass(frozen=True)
class Session:
    """What is shown of the run that heard it.

    Attributes
    ----------
    id : its number.
    live : whether it was heard as it happened.
    rate_hz : samples per second.
    latitude_deg, longitude_deg : where the station was; None where not known.
    """

    id: int
    live: bool
    rate_hz: int
    latitude_deg: float | None
    longitude_deg: float | None


def session_of(connection: sqlite3.Connection, detection: Detection) -> Session | None:
    """The session of a detection; None where it has none."""
    query = "SELECT id, live, rate_hz, latitude_deg, longitude_deg FROM sessions WHERE id = ?"
    row = connection.execute(query, (detection.session,)).fetchone()
    return None if row is None else Session(row[0], bool(row[1]), *row[2:])


@dataclass(frozen=True)
class Channel:
    """One channel of a detection.

    Attributes
    ----------
    number : what the source calls it.
    column : its place in the clip.
    serial : of its hydrophone; may be empty.
    score : highest score; None where it was not scored.
    level : with its unit; empty where not measured.
    best : whether it has the highest score.
    """

    number: int
    column: int
    serial: str
    score: float | None
    level: str
    best: bool


def channels_of(detection: Detection) -> list[Channel]:
    """Every channel, in the clip's order."""
    return [
        Channel(
            number, column, at(detection.hydrophones, column, ""), finite(at(detection.channel_scores, column, None)),
            level(at(detection.levels_db, column, None), detection.level_unit), number == detection.best_channel,
        )
        for column, number in enumerate(detection.channels)
    ]  # fmt: skip


def at(values: Any, place: int, otherwise: Any) -> Any:
    """A value, where there are so many."""
    return values[place] if place < len(values) else otherwise


def finite(value: float | None) -> float | None:
    """A number; None where it is none."""
    return None if value is None or math.isnan(value) else value


def level(value_db: float | None, unit: str) -> str:
    """A level with its unit; empty where it was not measured."""
    known = finite(value_db)
    return "" if known is None else f"{known:.1f} {words.unit(unit)}".replace("-", "\N{MINUS SIGN}", 1)


@dataclass(frozen=True)
class Timeline:
    """A clip's time axis.

    Attributes
    ----------
    length_s : of the clip.
    event : left edge and width of the event, percent; None where the clip does not say where it lies.
    event_s : its start and end, seconds of the clip.
    seconds, clock : the marks.
    start_utc : time of the clip's first sample; None where it is not known.
    """

    length_s: float
    event: tuple[float, float] | None
    event_s: tuple[float, float] | None
    seconds: list[Tick]
    clock: list[Tick]
    start_utc: datetime | None


def timeline(detection: Detection, clip: Clip, event_s: tuple[float, float] | None) -> Timeline:
    """The time axis of a clip; `event_s` is where the event lies by other sources, for rows that do not say it."""
    if detection.clip_start_s is not None:
        event_s = detection.start_s - detection.clip_start_s, detection.end_s - detection.clip_start_s
    start_utc = None
    if detection.start_utc is not None and event_s is not None:
        start_utc = detection.start_utc - timedelta(seconds=event_s[0])
    length_s = clip.length_s
    return Timeline(
        length_s,
        None if event_s is None else (100 * event_s[0] / length_s, 100 * (event_s[1] - event_s[0]) / length_s),
        event_s,
        axes.seconds_ticks(length_s),
        [] if start_utc is None else axes.clock_ticks(start_utc, length_s),
        start_utc,
    )


def facts(detection: Detection, session: Session | None, threshold: float | None) -> list[tuple[str, str]]:
    """Names and values of the table."""
    return [(name, value) for name, value in _facts(detection, session, threshold) if value]


def _facts(detection: Detection, session: Session | None, threshold: float | None) -> Iterator[tuple[str, str]]:
    length_s = detection.end_s - detection.start_s
    yield "Time", f"{words.utc(detection.start_utc)} UTC" if detection.start_utc else "not known"
    yield "Clock", clock_state(detection)
    yield "In the stream", f"{words.offset(detection.start_s)} to {words.offset(detection.end_s)}"
    yield "Duration", f"{length_s:.2f} s"
    yield "Station", detection.station
    yield "Place", place(session)
    yield "Score", f"{detection.score:.3f}" + (f" (threshold {threshold:.3f})" if threshold is not None else "")
    yield "Best channel", str(detection.best_channel)
    yield "Call's band", band(detection.numbers)
    yield "Relevance", share(detection.numbers)
    yield "Source", detection.source
    yield "Session", session_words(session)
    yield "Bundle", f"{detection.bundle} {detection.bundle_digest[:12]}"


def clock_state(detection: Detection) -> str:
    """What is known about the clock that gave the time."""
    if detection.start_utc is None:
        return "no time: the recording does not tell when it began"
    return {True: "synchronised", False: "not synchronised", None: "from the recording, or not known"}[
        detection.synchronised
    ]


def place(session: Session | None) -> str:
    """Where the station was, in degrees; empty where not known."""
    if session is None or session.latitude_deg is None or session.longitude_deg is None:
        return ""
    north, east = session.latitude_deg, session.longitude_deg
    return f"{abs(north):.4f}° {'N' if north >= 0 else 'S'}, {abs(east):.4f}° {'E' if east >= 0 else 'W'}"


def band(numbers: dict[str, float]) -> str:
    """The frequencies of the call; empty where not known."""
    if not {"band_low_hz", "band_high_hz"} <= set(numbers):
        return ""
    return f"{numbers['band_low_hz'] / 1000:.2f} to {numbers['band_high_hz'] / 1000:.2f} kHz"


def share(numbers: dict[str, float]) -> str:
    """How much of the relevance lies on the call."""
    if "relevance_in_band" not in numbers:
        return ""
    inside, by_chance = numbers["relevance_in_band"], numbers.get("area_in_band", math.nan)
    return f"{inside:.0%} of it in the call's box ({by_chance:.0%} by chance)".replace("%", " %")


def session_words(session: Session | None) -> str:
    """Number and kind of the session."""
    if session is None:
        return ""
    return f"{session.id}, {'live' if session.live else 'from a file'}, {session.rate_hz / 1000:g} kHz"


@dataclass(frozen=True)
class Compass:
    """A bearing as a drawing of 100 by 100, the north above.

    Attributes
    ----------
    tip : end of the needle.
    wedge : path of the 90 % interval; empty where it is not known.
    text : in words.
    """

    tip: tuple[float, float]
    wedge: str
    text: str


def compass(bearing_deg: float | None, error_deg: float | None) -> Compass | None:
    """The drawing of a bearing; None where there is none."""
    if bearing_deg is None:
        return None
    wedge = "" if error_deg is None else wedge_path(bearing_deg, min(error_deg, 179.9))
    text = words.bearing(bearing_deg, error_deg) + (" (90 % interval)" if error_deg is not None else "")
    return Compass(on_circle(bearing_deg, COMPASS_RADIUS), wedge, text)


def on_circle(bearing_deg: float, radius: float) -> tuple[float, float]:
    """A point around the middle of a drawing of 100 by 100."""
    angle = math.radians(bearing_deg)
    return round(50 + radius * math.sin(angle), 2), round(50 - radius * math.cos(angle), 2)


def wedge_path(bearing_deg: float, half_deg: float) -> str:
    """A sector of a circle as the path of an SVG."""
    (x0, y0), (x1, y1) = (on_circle(bearing_deg + way * half_deg, COMPASS_RADIUS) for way in (-1, 1))
    return f"M50 50L{x0} {y0}A{COMPASS_RADIUS:g} {COMPASS_RADIUS:g} 0 {int(half_deg > 90)} 1 {x1} {y1}Z"


def notices(detection: Detection, clip: Path | None, fault: str, has_snapshot: bool) -> list[str]:
    """What a reviewer is to know of what is not there, or not sure.

    Parameters
    ----------
    detection : the row.
    clip : its clip, where there is one.
    fault : why the clip cannot be read; may be empty.
    has_snapshot : whether the stored snapshot is there.
    """
    found = []
    if detection.removed:
        found.append(f"Clip and picture are not kept any more: {detection.removed}. The record stays.")
    elif detection.clip is None:
        found.append(
            "There is no clip. It is still being made, or it was not, because the disk had no room or too many were "
            "being made at once; the daemon's journal says which."
        )
    elif clip is None:
        found.append(f"The clip {detection.clip} is not in the output folder (any more).")
    if fault:
        found.append(f"The clip cannot be played: {fault}.")
    if detection.snapshot is None and detection.clip is not None and not detection.removed:
        found.append("No snapshot was stored with it.")
    elif not has_snapshot and not detection.removed and detection.snapshot is not None:
        found.append(f"The snapshot {detection.snapshot} is not in the output folder (any more).")
    if detection.synchronised is False:
        found.append("The clock was not synchronised: the time may be wrong.")
    return found
