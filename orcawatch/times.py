"""When a recording began: from its GUANO or AudioMoth metadata, its name, or its broadcast header.

A stamp without a zone tells nothing by itself: recorders write local time, UTC, or whatever they were last set to. It
counts only where `files.timezone` names the zone. A local time that a change of summer time skips, or repeats, is no
time either: name an offset (`-07:00`) where the recorder did not follow the change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d\d))?")
YEARS = (1900, 2200)  # a stamp from before, or from then on, is none of a recording
FRACTION = r"(?:[._](\d{1,6})(?!\d))?"
# Stamps of six groups, year to second, and a fraction of a second; the zone, where there is one, follows.
LONG = re.compile(
    r"(?<!\d)(\d{4})-?(\d\d)-?(\d\d)[T_ -]?(\d\d)[-:_]?(\d\d)[-:_]?(\d\d)"
    + FRACTION
    + r"(Z|[+-]\d\d:?\d\d(?!\d))?(?!\d)"
)
SHORT = re.compile(r"(?<!\d)(\d\d)(\d\d)(\d\d)[T_-]?(\d\d)(\d\d)(\d\d)" + FRACTION + r"(Z)?(?!\d)")
AUDIOMOTH = re.compile(r"Recorded at (\d\d:\d\d:\d\d(?:\.\d+)?) (\d\d/\d\d/\d{4}) \((UTC[^)]*)\)")
GUANO = re.compile(r"^Timestamp:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
DIRECTIVES = {
    "Y": r"\d{4}", "y": r"\d\d", "m": r"\d\d", "d": r"\d\d", "j": r"\d{3}", "H": r"\d\d", "I": r"\d\d",
    "p": "[AaPp][Mm]", "M": r"\d\d", "S": r"\d\d", "f": r"\d{1,6}", "b": r"[^\W\d_]+", "B": r"[^\W\d_]+",
    "z": r"Z|[+-]\d\d:?\d\d", "%": "%",
}  # fmt: skip
HEAD = 12  # bytes before the first chunk of a RIFF file
MOST_CHUNKS = 1000
MOST_TEXT = 1 << 20  # bytes of one chunk that are read
BEXT_DATE = 320  # position of `yyyy-mm-dd` and `hh:mm:ss` in a broadcast header


@dataclass(frozen=True)
class Times:
    """How the time of a file is told.

    Attributes
    ----------
    zone : of stamps that do not name one; None where it is not known.
    pattern : where the stamp stands in a name, as for `strptime`; None tries the usual ones.
    """

    zone: tzinfo | None = None
    pattern: str | None = None

    @classmethod
    def of(cls, zone: str | None, pattern: str | None) -> Times:
        """From the settings `files.timezone` and `files.time_format`.

        Raises
        ------
        ValueError : one of them is wrong; the text says what is allowed.
        """
        return cls(None if zone is None else zone_of(zone), None if pattern is None else checked(pattern))

    def start_utc(self, path: Path, comment: str = "") -> datetime | None:
        """When a file's first sample was recorded, UTC; None where that is not known.

        The first of these that gives a time: the name by the pattern, where one is given; GUANO; AudioMoth's comment;
        the name by the usual patterns; the broadcast header (`bext`).

        Parameters
        ----------
        path : the file.
        comment : what its `soundfile.SoundFile.comment` says.
        """
        if self.pattern is not None:
            return self._utc(stamp_by(self.pattern, path.name))
        chunks = text_chunks(path)
        for found in (
            guano_stamp(chunks.get(b"guan", "") or comment),
            audiomoth_stamp(comment),
            stamp_in(path.name),
            bext_stamp(chunks.get(b"bext", "")),
        ):
            if (utc := self._utc(found)) is not None:
                return utc
        return None

    def _utc(self, stamp: datetime | None) -> datetime | None:
        if stamp is None or (stamp.tzinfo is None and self.zone is None):
            return None
        try:
            utc = stamp.astimezone(timezone.utc) if stamp.tzinfo is not None else local_utc(stamp, self.zone)
        except (OverflowError, ValueError):  # the first or the last day of the calendar
            return None
        return utc if utc is not None and YEARS[0] <= utc.year < YEARS[1] else None


def local_utc(stamp: datetime, zone: tzinfo | None) -> datetime | None:
    """UTC of a local time; None for one that the zone skips, or has twice, at a change of summer time."""
    early, late = (stamp.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1))
    return early if early == late else None


def zone_of(name: str) -> tzinfo:
    """The zone of a name, as `UTC`, `Europe/Oslo`, `-08:00`.

    Raises
    ------
    ValueError : there is no such zone.
    """
    if name.upper() in ("UTC", "GMT", "Z"):
        return timezone.utc
    if found := OFFSET.fullmatch(name):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        if offset <= timedelta(hours=15) and int(found[3] or 0) < 60:
            return timezone(offset if found[1] == "+" else -offset)
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as fault:
        raise ValueError(
            f"must be UTC, an offset such as -08:00, or a zone such as Europe/Oslo, not {name!r} (a zone by name needs "
            "the system's time zone data: `apt-get install tzdata`, or `pip install tzdata`)"
        ) from fault


def checked(pattern: str) -> str:
    """The pattern, if `strptime` can take a time from it.

    Raises
    ------
    ValueError : it holds what is not known, or no whole time.
    """
    found = re.findall(r"%(.?)", pattern)
    if unknown := sorted({name for name in found if name not in DIRECTIVES}):
        known = " ".join(f"%{name}" for name in DIRECTIVES)
        raise ValueError(f"holds %{unknown[0]}, which is not known; allowed are {known}")
    if twice := sorted({name for name in found if name != "%" and found.count(name) > 1}):
        raise ValueError(f"holds %{twice[0]} twice; keep one")
    names = set(found)
    day = (names & {"m", "b", "B"} and "d" in names) or "j" in names
    if not (names & {"Y", "y"} and day and ("H" in names or {"I", "p"} <= names)):
        raise ValueError(f"must tell year, day and hour, as %Y%m%d_%H%M%S, not {pattern!r}")
    return pattern


def faults(zone: str | None, pattern: str | None) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of the settings `files`."""
    for key, value, check in (("timezone", zone, zone_of), ("time_format", pattern, checked)):
        try:
            if value is not None:
                check(value)
        except ValueError as fault:
            yield key, str(fault)


def stamp_by(pattern: str, name: str) -> datetime | None:
    """The stamp where a pattern of `strptime` says that it stands in a name; None where it does not."""
    parts = re.split(r"%(.)", pattern)
    text = "".join(DIRECTIVES[part] and f"(?:{DIRECTIVES[part]})" if odd % 2 else re.escape(part)
                   for odd, part in enumerate(parts))  # fmt: skip
    found = re.search(text, name)
    if found is None:
        return None
    try:
        return datetime.strptime(found[0], pattern)
    except ValueError:
        return None


def stamp_in(name: str) -> datetime | None:
    """The stamp in a name, by the usual patterns of recorders; without a zone where the name holds none.

    `20190920_163858` (AudioMoth, Song Meter), `20190920T163858Z` (AMAR, icListen, Ocean Sonics),
    `2019-09-20T16-38-58.250Z`, `190920163858` (SoundTrap), `190920_163858` (HARP), with a fraction of a second.
    """
    for pattern, century in ((LONG, ""), (SHORT, "20")):
        for found in pattern.finditer(name):
            if (stamp := stamp_of(found, century)) is not None:
                return stamp
    return None


def stamp_of(found: re.Match[str], century: str) -> datetime | None:
    """The time of a match's groups; None where the calendar has no such day, or the world no such zone."""
    *digits, fraction, zone = found.groups()
    try:
        whole = datetime.strptime(century + "".join(digits), "%Y%m%d%H%M%S")
        whole += timedelta(seconds=float(f"0.{fraction or 0}"))
        return whole if zone is None else whole.replace(tzinfo=zone_of(zone))
    except ValueError:
        return None


def guano_stamp(text: str) -> datetime | None:
    """The `Timestamp` of GUANO metadata; without a zone where it names none."""
    found = GUANO.search(text) if text.lstrip().startswith("GUANO|Version") else None
    if found is None:
        return None
    try:
        return datetime.fromisoformat(iso(found[1]))
    except ValueError:
        return None


def iso(text: str) -> str:
    """An ISO time as Python 3.9 reads it: `Z` as an offset, a fraction of six digits."""
    text = re.sub(r"[Zz]$", "+00:00", text.strip())
    return re.sub(r"\.(\d{1,9})", lambda found: f".{found[1][:6]:0<6}", text)


def audiomoth_stamp(comment: str) -> datetime | None:
    """The time in the comment that AudioMoth writes, with its zone."""
    found = AUDIOMOTH.search(comment)
    if found is None:
        return None
    try:
        stamp = datetime.strptime(f"{found[2]} {found[1]}".partition(".")[0], "%d/%m/%Y %H:%M:%S")
        return stamp.replace(tzinfo=zone_of(found[3]))
    except ValueError:
        return None


def bext_stamp(text: str) -> datetime | None:
    """The origination date and time of a broadcast header; it names no zone."""
    digits = re.sub(r"\D", " ", text[BEXT_DATE : BEXT_DATE + 18])
    try:
        return datetime.strptime(digits, "%Y %m %d%H %M %S")
    except ValueError:
        return None


def utc_in_name(name: str) -> datetime | None:
    """Time stamp in a file name, as in `AMAR173_20190920T163858Z`; without a zone it is not known: None."""
    return Times()._utc(stamp_in(name))


def text_chunks(path: Path) -> dict[bytes, str]:
    """The texts of a RIFF or RF64 file's `guan` and `bext` chunks."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
            return {}
        return dict(_texts(file))


def _texts(file: BinaryIO) -> Iterator[tuple[bytes, str]]:
    position, long, end = HEAD, 0, file.seek(0, SEEK_END)
    for _ in range(MOST_CHUNKS):
        if position > end - 8:  # a damaged size may be more than a file can have
            return
        file.seek(position)
        head = file.read(8)
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"ds64":
            long = int.from_bytes(file.read(16)[8:], "little")
        if name in (b"guan", b"bext"):
            yield name, text_of(file.read(min(size, MOST_TEXT)))
        size = long if name == b"data" and size == 0xFFFFFFFF else size
        position += 8 + size + size % 2


def text_of(content: bytes) -> str:
    """Bytes of a chunk as text: the broadcast header's numbers are not needed."""
    return content.decode("utf-8", "replace") if content.startswith(b"GUANO") else content.decode("latin-1")


def comment_of(file: Any) -> str:
    """The comment of an open `soundfile.SoundFile`; empty where it has none."""
    return str(file.comment or "")
