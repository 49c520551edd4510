"""Times and figures as the pages show them."""

from __future__ import annotations

from datetime import datetime, timezone

UNKNOWN = "\N{EN DASH}"


def utc(moment: datetime | None) -> str:
    """Day and time to the second, UTC."""
    return UNKNOWN if moment is None else f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"


def clock(moment: datetime | None) -> str:
    """Time of day to the second, UTC."""
    return UNKNOWN if moment is None else f"{moment.astimezone(timezone.utc):%H:%M:%S}"


def iso(moment: datetime | None) -> str:
    """For machines; empty where it is not known."""
    return "" if moment is None else moment.astimezone(timezone.utc).isoformat(timespec="seconds")


def day(text: str) -> str:
    """A day with its weekday, from 2026-03-01."""
    found = datetime.strptime(text, "%Y-%m-%d")
    return f"{found:%A} {found.day} {found:%B} {found.year}"


def duration(seconds: float | None) -> str:
    """A length of time in the unit that suits it."""
    if seconds is None:
        return UNKNOWN
    for size_s, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds:.1f} s"


def offset(seconds: float) -> str:
    """A place in a file, as 1:02:03.4."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}"


def tail(text: str, most: int = 40) -> str:
    """The end of a long text, which tells paths apart."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def bearing(degrees: float | None, error_deg: float | None) -> str:
    """A direction, and how sure it is."""
    if degrees is None:
        return UNKNOWN
    return f"{round(degrees) % 360}°" + ("" if error_deg is None else f" ± {error_deg:.{0 if error_deg >= 1 else 1}f}°")


def unit(text: str) -> str:
    """A unit as people write it; the database has only ASCII."""
    return text.replace("uPa", "\N{MICRO SIGN}Pa")
