"""Which detections are shown, and in which order: the query part of an address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any
from urllib.parse import urlencode

from ..errors import InputError

NOT_REVIEWED = "none"
VERDICTS = {NOT_REVIEWED: "not reviewed", "orca": "orca", "not_orca": "not orca", "unsure": "unsure"}
SORTS = {"newest": "newest first", "oldest": "oldest first", "score": "highest score first"}
LONGEST = 200  # characters of a text that is looked for


@dataclass(frozen=True)
class Filter:
    """What must be true of a detection to be shown; None or an empty text asks for nothing.

    Attributes
    ----------
    since, until : first and last UTC day, as 2026-03-01; detections without a time are in no day.
    undated : only those without a time.
    station, bundle : exactly these.
    source, note : texts within the source's name and within the note; letters A to Z count as a to z.
    verdict : a name of `VERDICTS`.
    score : the least.
    channel : the best one, from 0.
    sort : a name of `SORTS`.
    """

    since: str | None = None
    until: str | None = None
    undated: bool = False
    station: str = ""
    source: str = ""
    verdict: str | None = None
    score: float | None = None
    bundle: str = ""
    channel: int | None = None
    note: str = ""
    sort: str = "newest"

    @property
    def query(self) -> str:
        """The query part of an address that stands for this filter, without a question mark; may be empty."""
        return urlencode(self.fields())

    def fields(self, **changes: Any) -> dict[str, str]:
        """The keys and values of the query part, with changes; what is not asked for is left out."""
        changed, plain = replace(self, **changes), Filter()
        names = [name for name in READERS if getattr(changed, name) != getattr(plain, name)]
        return {name: written(getattr(changed, name)) for name in names}

    def on(self, day: str | None) -> Filter:
        """The same on one day; None is on any."""
        return replace(self, since=day, until=day, undated=False)

    @property
    def day(self) -> str | None:
        """The day where it is only one."""
        return self.since if self.since == self.until else None

    @property
    def narrows(self) -> bool:
        """Whether anything but days and order is asked for."""
        return bool(self.on(None).fields(sort="newest"))

    def where(self) -> tuple[list[str], list[Any]]:
        """Conditions of SQL on the table `detections`, to be joined by AND, and their values."""
        pairs = [(text, value) for text, value in self._conditions() if value is not None]
        without = ["verdict IS NULL"] if self.verdict == NOT_REVIEWED else []
        without += ["start_utc IS NULL"] if self.undated else []
        return [text for text, _ in pairs] + without, [value for _, value in pairs]

    def _conditions(self) -> list[tuple[str, Any]]:
        return [
            ("start_utc >= ?", self.since),
            ("start_utc < ?", None if self.until is None else f"{self.until}U"),  # the day, then T and the time
            ("station = ?", self.station or None),
            ("bundle = ?", self.bundle or None),
            ("source LIKE ? ESCAPE '\\'", pattern(self.source)),
            ("verdict = ?", None if self.verdict == NOT_REVIEWED else self.verdict),
            ("score >= ?", self.score),
            ("best_channel = ?", self.channel),
            ("verdict_note LIKE ? ESCAPE '\\'", pattern(self.note)),
        ]


def from_args(given: Mapping[str, str]) -> Filter:
    """From the query part of an address; keys that are not known are left to others.

    Raises
    ------
    InputError : a value is not of its kind.
    """
    found: dict[str, Any] = {name: read(given[name].strip()) for name, read in READERS.items() if name in given}
    return Filter(**{name: value for name, value in found.items() if value is not None})


def pattern(text: str) -> str | None:
    """A text anywhere, as LIKE takes it; None where there is none."""
    for mark in "\\%_":
        text = text.replace(mark, f"\\{mark}")
    return f"%{text}%" if text else None


def written(value: Any) -> str:
    """A value in an address."""
    return "1" if value is True else str(value)


def read_day(name: str, text: str) -> str | None:
    """A day; raises InputError where it is none."""
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
        if not 1900 <= day.year <= 2999:
            raise ValueError(day.year)
        return day.isoformat()
    except ValueError as fault:
        raise InputError(f"{name} must be a day such as 2026-03-01, not {text[:LONGEST]!r}") from fault


def read_text(name: str, text: str) -> str:
    """A text; raises InputError where it is too long."""
    if len(text) > LONGEST or "\0" in text:
        raise InputError(f"{name} must be a text of at most {LONGEST} characters")
    return text


def read_score(name: str, text: str) -> float | None:
    """A number from 0 to 1; raises InputError where it is none."""
    try:
        number = float(text) if text else None
    except ValueError:
        number = -1.0
    if number is not None and not 0 <= number <= 1:
        raise InputError(f"{name} must be a number from 0 to 1, not {text[:LONGEST]!r}")
    return number


def read_channel(name: str, text: str) -> int | None:
    """A channel's number; raises InputError where it is none."""
    if text and not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise InputError(f"{name} must be a channel's number, from 0, not {text[:LONGEST]!r}")
    return int(text) if text else None


def read_one_of(name: str, text: str, allowed: Mapping[str, str]) -> str | None:
    """One of some names; raises InputError where it is another."""
    if text and text not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {text[:LONGEST]!r}")
    return text or None


READERS: dict[str, Any] = {
    "since": lambda text: read_day("since", text),
    "until": lambda text: read_day("until", text),
    "undated": lambda text: text == "1",
    "station": lambda text: read_text("station", text),
    "source": lambda text: read_text("source", text),
    "verdict": lambda text: read_one_of("verdict", text, VERDICTS),
    "score": lambda text: read_score("score", text),
    "bundle": lambda text: read_text("bundle", text),
    "channel": lambda text: read_channel("channel", text),
    "note": lambda text: read_text("note", text),
    "sort": lambda text: read_one_of("sort", text, SORTS),
}
