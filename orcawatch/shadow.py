"""What a shadow bundle found beside the first one: read from the database, compared detection by detection."""

from __future__ import annotations

import csv
import io
import math
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime

VERDICTS = ("orca", "not_orca", "unsure", None)


@dataclass(frozen=True)
class Pair:
    """A detection of the first bundle, one of the shadow, or one of each whose spans overlap.

    Attributes
    ----------
    found_by : `both`, `current` or `shadow`.
    session : in which.
    start_utc : as text; None where it is not known.
    start_s, end_s : the span, seconds since the stream's start; the first bundle's where both have one.
    current_score, shadow_score : highest fused scores. Where only the first bundle has a detection, `shadow_score` is
        the shadow's highest score in that span; None where it scored no window there.
    detection : number of the first bundle's detection.
    verdict : what a person said of it.
    """

    found_by: str
    session: int
    start_utc: str | None
    start_s: float
    end_s: float
    current_score: float | None
    shadow_score: float | None
    detection: int | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Summary:
    """A shadow beside the first bundle, in figures; all of them are about the time that both scored.

    Attributes
    ----------
    bundle, bundle_digest : the shadow's.
    beside : names and beginnings of the digests of the bundles that it scored beside; its own among them, where it
        was the current one, too.
    since_utc, until_utc : first and last moment of its account; None where not known.
    compared_s : seconds that both scored.
    left_out_s : seconds that only the first one scored, by cause.
    pairs : the detections, in order.
    """

    bundle: str
    bundle_digest: str
    beside: tuple[str, ...]
    since_utc: datetime | None
    until_utc: datetime | None
    compared_s: float
    left_out_s: dict[str, float]
    pairs: tuple[Pair, ...]

    @property
    def both(self) -> int:
        """Detections of the first bundle that the shadow has, too."""
        return self._count("both")

    @property
    def only_current(self) -> int:
        """Detections of the first bundle alone."""
        return self._count("current")

    @property
    def only_shadow(self) -> int:
        """Detections of the shadow alone."""
        return self._count("shadow")

    @property
    def agreement(self) -> float | None:
        """Share of all detections that both have; None where there is none."""
        return self.both / len(self.pairs) if self.pairs else None

    def verdicts(self, verdict: str | None) -> tuple[int, int, int]:
        """Detections with a verdict (None: without): of the first bundle, of the shadow, per the pairs' `found_by`."""
        chosen = [pair for pair in self.pairs if pair.verdict == verdict]
        current = sum(pair.found_by != "shadow" for pair in chosen)
        return current, sum(pair.found_by != "current" for pair in chosen), len(chosen)

    def per_hour(self, number: int) -> float:
        """A number of detections, per hour that both scored."""
        return 3600 * number / self.compared_s if self.compared_s else 0.0

    def _count(self, found_by: str) -> int:
        return sum(pair.found_by == found_by for pair in self.pairs)


def summary(connection: sqlite3.Connection, digest: str | None = None) -> Summary | None:
    """What a shadow found; None where none has ever scored.

    Parameters
    ----------
    connection : of a database of this version (`Store.reader`).
    digest : how the shadow's digest begins; None for the one that scored last.
    """
    newest = connection.execute(
        "SELECT bundle, bundle_digest FROM shadowed WHERE bundle_digest LIKE ? ORDER BY id DESC LIMIT 1",
        (f"{digest or ''}%",),
    ).fetchone()
    if newest is None:
        return None
    bundle, whole = newest
    spans = connection.execute(
        "SELECT cause, sum((end_sample - start_sample) * 1.0 / rate_hz), min(shadowed.start_utc), "
        "max(julianday(shadowed.start_utc) + (end_sample - start_sample) / 86400.0 / rate_hz) "
        "FROM shadowed JOIN sessions ON sessions.id = session WHERE shadowed.bundle_digest = ? GROUP BY cause",
        (whole,),
    ).fetchall()
    seconds = {cause: float(spent) for cause, spent, _, _ in spans}
    compared_s = seconds.pop("", 0.0)
    begun = [datetime.fromisoformat(first) for _, _, first, _ in spans if first is not None]
    ended = [day for _, _, _, day in spans if day is not None]
    until = moment(connection, max(ended)) if ended else None
    pairs = tuple(compared(connection, whole))
    beside = connection.execute(
        "SELECT DISTINCT sessions.bundle || ' ' || substr(sessions.bundle_digest, 1, 12) FROM shadowed "
        "JOIN sessions ON sessions.id = session WHERE shadowed.bundle_digest = ? AND cause = '' ORDER BY sessions.id",
        (whole,),
    ).fetchall()
    names = tuple(name for (name,) in beside)
    return Summary(bundle, whole, names, min(begun, default=None), until, compared_s, seconds, pairs)


def moment(connection: sqlite3.Connection, day: float) -> datetime:
    """A Julian day as time."""
    text = connection.execute("SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', ?)", (day,)).fetchone()[0]
    return datetime.fromisoformat(text)


def compared(connection: sqlite3.Connection, digest: str) -> Iterator[Pair]:
    """Yield the detections of both bundles whose middle lies in the time that both scored, session by session."""
    sessions = connection.execute(
        "SELECT DISTINCT session FROM shadowed WHERE bundle_digest = ? ORDER BY session", (digest,)
    ).fetchall()
    for (session,) in sessions:
        yield from sorted(session_pairs(connection, session, digest), key=lambda pair: pair.start_s)


def session_pairs(connection: sqlite3.Connection, session: int, digest: str) -> Iterator[Pair]:
    """Yield the pairs of one session, in no order."""
    scored = connection.execute(
        "SELECT start_sample, end_sample FROM shadowed WHERE session = ? AND bundle_digest = ? AND cause = '' "
        "ORDER BY start_sample",
        (session, digest),
    ).fetchall()
    current = connection.execute(
        "SELECT found.start_sample, found.end_sample, start_utc, start_s, end_s, found.score, found.id, verdict, "
        "said.score FROM detections AS found "
        "LEFT JOIN shadow_scores AS said ON said.id = found.id AND said.bundle_digest = ?2 "
        "WHERE found.session = ?1 AND found.start_sample + found.end_sample IS NOT NULL ORDER BY found.start_sample",
        (session, digest),
    ).fetchall()
    shadows = connection.execute(
        "SELECT start_sample, end_sample, start_utc, start_s, end_s, score FROM shadows "
        "WHERE session = ? AND bundle_digest = ? ORDER BY start_sample",
        (session, digest),
    ).fetchall()
    current, shadows = ([row for row in rows if lies_in(scored, row[0], row[1])] for rows in (current, shadows))
    met = overlaps(current, shadows)
    for index, row in enumerate(current):
        scores = [shadows[other][5] for other in met[index]]
        said = max(scores) if scores else row[8]
        yield Pair("both" if scores else "current", session, row[2], row[3], row[4], row[5], said, row[6], row[7])
    alone = set(range(len(shadows))) - {other for others in met for other in others}
    for other in sorted(alone):
        _, _, start_utc, start_s, end_s, said = shadows[other]
        yield Pair("shadow", session, start_utc, start_s, end_s, None, said)


def lies_in(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether the middle of a span lies in one of others, (start, end), which are in order and do not overlap."""
    middle = (start + end) // 2
    number = bisect_right(spans, (middle, math.inf))
    return number > 0 and middle <= spans[number - 1][1]


def overlaps(current: Sequence[Sequence[int]], shadows: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each span of the first, (start, end, ...), which of the others it overlaps; both are in order of starts."""
    found: list[list[int]] = []
    first = 0
    for row in current:
        while first < len(shadows) and shadows[first][1] <= row[0]:
            first += 1
        met = []
        for other in range(first, len(shadows)):
            if shadows[other][0] >= row[1]:
                break
            met.append(other)
        found.append(met)
    return found


def lines(found: Summary, most: int = 40) -> Iterator[str]:
    """The report for people."""
    yield f"shadow      {found.bundle} {found.bundle_digest[:12]}"
    several = "; the figures are of all of them together" if len(found.beside) > 1 else ""
    yield f"beside      {', '.join(found.beside) or '-'}{several}"
    yield f"from, to    {day(found.since_utc)}, {day(found.until_utc)}"
    yield f"compared    {found.compared_s / 3600:.2f} h, that is {found.compared_s:.1f} s that both scored"
    for cause, seconds in sorted(found.left_out_s.items()):
        yield f"left out    {seconds / 3600:.2f} h: {cause}"
    shared = "" if found.agreement is None else f"; {found.agreement:.0%} of all are found by both"
    yield f"detections  both {found.both}, only current {found.only_current}, only shadow {found.only_shadow}{shared}"
    yield ""
    yield f"{'verdict':<10} {'current':>8} {'per hour':>9} {'shadow':>8} {'per hour':>9}"
    for verdict in VERDICTS:
        current, shadow, _ = found.verdicts(verdict)
        figures = f"{current:>8} {found.per_hour(current):>9.3f} {shadow:>8} {found.per_hour(shadow):>9.3f}"
        yield f"{verdict or 'none yet':<10} {figures}"
    yield from differences(found, most)


def differences(found: Summary, most: int) -> Iterator[str]:
    """Lines about detections that one of them alone has."""
    alone = [pair for pair in found.pairs if pair.found_by != "both"]
    if alone:
        yield ""
        yield f"{'only':<8} {'start':<20} {'s':>6} {'current':>8} {'shadow':>8}  detection, verdict"
    for pair in alone[:most]:
        start = f"{pair.start_s:.2f} s" if pair.start_utc is None else pair.start_utc[:19].replace("T", " ")
        scores = f"{score(pair.current_score):>8} {score(pair.shadow_score):>8}"
        about = "" if pair.detection is None else f"{pair.detection}, {pair.verdict or 'none yet'}"
        yield f"{pair.found_by:<8} {start:<20} {pair.end_s - pair.start_s:>6.1f} {scores}  {about}".rstrip()
    if len(alone) > most:
        yield f"{len(alone) - most} more: --csv writes all of them"


def day(utc: datetime | None) -> str:
    """A time for people."""
    return "unknown" if utc is None else f"{utc:%Y-%m-%d %H:%M:%S} UTC"


def score(value: float | None) -> str:
    """A score for people."""
    return "-" if value is None else f"{value:.3f}"


def csv_text(pairs: Sequence[Pair]) -> str:
    """Every pair, as a table."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([item.name for item in fields(Pair)])
    table.writerows(astuple(pair) for pair in pairs)
    return text.getvalue()
