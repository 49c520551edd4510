"""Detections as text: CSV, JSON lines, Raven selection tables, Audacity label tracks. See docs/formats.md."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isnan
from pathlib import Path, PurePosixPath
from typing import Any, Callable

from .printer import rounded
from .selection import Row

BOM = "\ufeff"  # by it spreadsheets know UTF-8
BANDS = ("band_low_hz", "band_high_hz")
COLUMNS = (
    "file", "start_s", "end_s", "score", "best_channel", "channels", "channel_scores", "start_utc", "clip", "snapshot",
    "bearing_deg", "bearing_error_deg", "bearing_note", "end_utc", "id", "station", "verdict", "verdict_note",
    "verdict_utc", "reviewer", "band_low_hz", "band_high_hz", "level_unit", "levels_db", "hydrophones", "bundle",
    "bundle_digest", "session", "live", "rate_hz", "start_sample", "end_sample", "synchronised", "latitude_deg",
    "longitude_deg", "clip_start_s", "removed", "numbers",
)  # fmt: skip
LABELS = {None: "orca?", "orca": "orca", "not_orca": "not orca", "unsure": "unsure"}


def record(row: Row) -> dict[str, Any]:
    """A detection by the names of `COLUMNS`; None is not known, or not given."""
    found, run = row.detection, row.run
    known = {
        name: getattr(found, name)
        for name in COLUMNS
        if name not in ("file", "live", "rate_hz", "end_utc", "latitude_deg", "longitude_deg", *BANDS)
    }
    return {
        **known,
        "file": found.source,
        "start_s": round(found.start_s, 3),
        "end_s": round(found.end_s, 3),
        "score": round(found.score, 6),
        "channels": list(found.channels),
        "channel_scores": figures(found.channel_scores, 6),
        "start_utc": utc_text(row.start_utc),
        "end_utc": utc_text(row.end_utc),
        "verdict_utc": utc_text(found.verdict_utc),
        "levels_db": figures(found.levels_db, 1),
        "bearing_deg": rounded(found.bearing_deg),
        "bearing_error_deg": rounded(found.bearing_error_deg),
        "hydrophones": list(found.hydrophones),
        "live": None if run is None else run.live,
        "rate_hz": row.rate_hz,
        "latitude_deg": None if run is None else run.latitude_deg,
        "longitude_deg": None if run is None else run.longitude_deg,
        "clip_start_s": None if found.clip_start_s is None else round(found.clip_start_s, 6),
        **{name: round(found.numbers[name], 1) if name in found.numbers else None for name in BANDS},
    }


def figures(values: Sequence[float], digits: int) -> list[float | None]:
    """Rounded; None for what is not a number."""
    return [None if isnan(value) else round(value, digits) for value in values]


def utc_text(utc: datetime | None) -> str | None:
    """ISO 8601 in UTC, always with microseconds, so that all of a column have one form."""
    return None if utc is None else utc.astimezone(timezone.utc).isoformat(timespec="microseconds")


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """One object a line, with the keys of `COLUMNS` in that order."""
    for row in rows:
        found = record(row)
        yield json.dumps({name: found[name] for name in COLUMNS}, ensure_ascii=False, allow_nan=False) + "\n"


def csv_lines(rows: Iterable[Row]) -> Iterator[str]:
    """The columns' names, then a line for each detection."""
    yield BOM + csv_line(COLUMNS)
    for row in rows:
        found = record(row)
        scores = " ".join("-" if score is None else f"{score:g}" for score in found["channel_scores"])
        found |= {"channels": " ".join(map(str, found["channels"])), "channel_scores": scores}
        yield csv_line([found[name] for name in COLUMNS])


def csv_line(values: Iterable[object]) -> str:
    """A line of CSV: text that a spreadsheet would take for a formula is guarded, null is empty."""
    return quoted_line(cell(value) for value in values)


def quoted_line(values: Iterable[object]) -> str:
    """A line of CSV. The writer only quotes carriage returns where its own lines end with one.

    NUL, which Python 3.10 cannot write and 3.9 not read, becomes a replacement character.
    """
    line = io.StringIO()
    texts = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
    csv.writer(line, lineterminator="\r\n").writerow(texts)
    return line.getvalue()[: -len("\r\n")] + "\n"


def cell(value: object) -> object:
    """A value as a spreadsheet can take it: truth as yes and no, lists and numbers by name as JSON."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return guarded(value) if isinstance(value, str) else value


GUARDED = re.compile(r"'*[=+\-@\t\r]")


def guarded(text: str) -> str:
    """Text with an apostrophe before what a spreadsheet would take for a formula.

    It can be undone: text that begins with apostrophes and such a sign has one apostrophe more than before.
    """
    return f"'{text}" if GUARDED.match(text) else text


# --- sound files and their labels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """A detection in a sound file that a program can open.

    Attributes
    ----------
    row : the detection.
    file : the sound file; its path as text.
    offset_s : start in that file, seconds.
    channel : the file's channel with the highest score, from 0.
    before_s : length of the files before this one in the table, seconds.
    """

    row: Row
    file: str
    offset_s: float
    channel: int
    before_s: float = 0.0

    @property
    def length_s(self) -> float:
        """Length, seconds."""
        return self.row.detection.end_s - self.row.detection.start_s


Range = Callable[[str], "tuple[float, float] | None"]


def band(row: Row, heard: Range) -> tuple[float, float, str]:
    """The frequencies of a detection, and what they are.

    Parameters
    ----------
    row : the detection.
    heard : gives what a bundle listens to, Hz, by its digest; None where the bundle is not here.

    Returns
    -------
    low_hz, high_hz
    kind : `call` where the call's band was measured, `detector` where it is all that the detector listens to, `all`
        where that is not known: everything up to half the sampling rate (0 where not even that is known).
    """
    numbers = row.detection.numbers
    if all(name in numbers for name in BANDS):
        return numbers[BANDS[0]], numbers[BANDS[1]], "call"
    top_hz = (row.rate_hz or 0) / 2
    if (found := heard(row.detection.bundle_digest)) is None:
        return 0.0, top_hz, "all"
    return found[0], min(found[1], top_hz or found[1]), "detector"


RAVEN = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
    "Delta Time (s)", "File Offset (s)", "Begin File", "Begin Path", "Annotation", "Score", "Verdict", "Note",
    "Bearing (deg)", "Bearing Error (deg)", "Band", "Detection",
)  # fmt: skip


def raven_lines(selections: Iterable[Selection], heard: Range) -> Iterator[str]:
    """A Raven selection table: the columns' names, then a line for each selection."""
    yield "\t".join(RAVEN) + "\n"
    for number, selection in enumerate(selections, 1):
        yield "\t".join(raven_cells(number, selection, heard)) + "\n"


def raven_cells(number: int, selection: Selection, heard: Range) -> list[str]:
    """A selection in the order of `RAVEN`."""
    found = selection.row.detection
    low_hz, high_hz, kind = band(selection.row, heard)
    begin_s = selection.before_s + selection.offset_s
    return [
        str(number), "Spectrogram 1", str(selection.channel + 1), f"{begin_s:.6f}",
        f"{begin_s + selection.length_s:.6f}", f"{low_hz:.1f}", f"{high_hz:.1f}", f"{selection.length_s:.6f}",
        f"{selection.offset_s:.6f}", one_line(PurePosixPath(selection.file).name), one_line(selection.file),
        LABELS[found.verdict], f"{found.score:.6f}", found.verdict or "", one_line(found.verdict_note),
        number_text(found.bearing_deg), number_text(found.bearing_error_deg), kind, str(found.id),
    ]  # fmt: skip


def number_text(value: float | None) -> str:
    """With one digit; empty where not known."""
    return "" if value is None else f"{value:.1f}"


def one_line(text: str) -> str:
    """Text for a cell between tabs, where nothing is quoted.

    What would end the cell or the line becomes a space, and a quotation mark at the start, which many readers take for
    the start of a quoted cell, an apostrophe.
    """
    plain = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text)
    return f"'{plain[1:]}" if plain.startswith('"') else plain


def audacity_lines(rows: Iterable[Row], heard: Range) -> Iterator[str]:
    """An Audacity label track: two lines a label, the second with its frequencies."""
    for row in rows:
        found = row.detection
        low_hz, high_hz, _ = band(row, heard)
        yield f"{found.start_s:.6f}\t{found.end_s:.6f}\t{audacity_label(row)}\n"
        yield f"\\\t{low_hz:.6f}\t{high_hz:.6f}\n"


def audacity_label(row: Row) -> str:
    """What the verdict says, or `orca?`, then the score, the channel from 1, and the note."""
    found = row.detection
    note = one_line(found.verdict_note)
    label = f"{LABELS[found.verdict]} {found.score:.3f} ch {found.best_channel + 1}"
    return f"{label}: {note}" if note else label


def in_file(row: Row, file: str, before_s: float = 0.0) -> Selection:
    """A detection in the sound file that it was found in."""
    return Selection(row, file, row.detection.start_s, row.detection.best_channel, before_s)


def in_clip(row: Row, clip: Path, before_s: float = 0.0) -> Selection:
    """A detection in its clip, which holds only the channels that were used."""
    found = row.detection
    offset_s = found.start_s - (found.clip_start_s or 0.0)
    return Selection(row, str(clip), offset_s, found.channels.index(found.best_channel), before_s)


def ranges(folders: Iterable[Path]) -> Range:
    """What bundles listen to, Hz, by digest; their folders are only read when the first one is asked for."""
    found: dict[str, tuple[float, float]] = {}
    unread = list(folders)

    def heard(digest: str) -> tuple[float, float] | None:
        while unread and digest not in found:
            found.update(_range(unread.pop(0)))
        return found.get(digest)

    return heard


def _range(folder: Path) -> Mapping[str, tuple[float, float]]:
    """Digest and range of one bundle; nothing where it is damaged: another command says so."""
    from .bundle import load_bundle
    from .errors import BundleError

    try:
        bundle = load_bundle(folder)
    except BundleError:
        return {}
    ends = [entry.front_end for entry in bundle.backbones.values()]
    lows, highs = ([float(end.frequencies_hz[place]) for end in ends] for place in (0, -1))
    return {bundle.digest: (min(lows), max(highs))}
