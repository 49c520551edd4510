"""One view of a database, written as tables: which files there are, and what each of them holds."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path

from .bundle import SHIPPED
from .effort import CSV_COLUMNS, csv_row, overlapping, read_entries
from .errors import InputError
from .formats import (
    BOM,
    Range,
    Selection,
    audacity_lines,
    csv_line,
    csv_lines,
    in_clip,
    in_file,
    json_lines,
    ranges,
    raven_lines,
)
from .occurrences import LACKS, Occurrences, read_effort
from .selection import BY_SESSION, BY_SOURCE, Row, Run, Wanted, read_rows, read_runs, read_sources
from .tables import Folder, table_names

log = logging.getLogger(__name__)

FILES = {"csv": "detections.csv", "jsonl": "detections.jsonl", "darwin-core": "occurrences.csv"}
FORMATS = ("raven", "audacity", *FILES)
ALL_FILES = "all.selections.txt"
NO_CLIP = "clip"
LEFT_OUT = {
    **LACKS,
    NO_CLIP: "heard live and without a clip that is still there: Raven would have nothing to open (csv has them)",
}


@dataclass
class Export:
    """One view of a database, written out in any format.

    Attributes
    ----------
    output : the output folder.
    connection : in a transaction.
    wanted : which detections.
    occurrences : of Darwin Core: what is not in the database.
    left_out : how many are in no table, by the key in `LEFT_OUT`.
    written : how many are.
    """

    output: Path
    connection: sqlite3.Connection
    wanted: Wanted
    occurrences: Occurrences
    left_out: Counter[str] = field(default_factory=Counter)
    written: int = 0

    @cached_property
    def runs(self) -> Mapping[int, Run]:
        """Every session, by number."""
        return read_runs(self.connection)

    @cached_property
    def heard(self) -> Range:
        """What bundles listen to."""
        return ranges([SHIPPED, *sorted(self.output.glob("bundles/*-*"))])

    def rows(self, order: str = "id") -> Iterator[Row]:
        """The wanted detections."""
        return read_rows(self.connection, self.runs, self.wanted, order)

    def lines(self, how: str) -> Iterator[str]:
        """A format that is one file."""
        counted = self._counted(self.rows())
        if how == "csv":
            return csv_lines(counted)
        if how == "jsonl":
            return json_lines(counted)
        return self._occurrence_lines(counted)

    def effort_lines(self) -> Iterator[str]:
        """The ledger: one line a stretch."""
        yield BOM + csv_line(CSV_COLUMNS)
        for entry in overlapping(read_entries(self.connection, files=True), self.wanted.span):
            yield csv_line(csv_row(entry))

    def write(self, how: str, folder: Folder) -> list[Path]:
        """Write one format into a folder; the files that are there now, or the folder where they are many."""
        if how in FILES:
            write_lines(folder, FILES[how], self.lines(how))
            return [folder.path / FILES[how]]
        names = {"raven": self._raven, "audacity": self._audacity}[how](folder)
        return [folder.path / how] if names else []

    def _counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.written += 1
            yield row

    def _occurrence_lines(self, rows: Iterable[Row]) -> Iterator[str]:
        """Darwin Core; raises InputError where all that was wanted lacks time or place."""
        occurrences = replace(
            self.occurrences, effort=read_effort(read_entries(self.connection, files=True)), left_out=Counter()
        )
        yield from occurrences.lines(rows)
        lost = occurrences.left_out
        self.left_out += lost
        self.written -= sum(lost.values())
        if not self.written and lost["position"] + lost["time"]:
            raise InputError(f"nothing can be an occurrence: {told(lost)}")

    def _audacity(self, folder: Folder) -> list[str]:
        """A label track for each sound file, and for each live session."""
        names = self._names("audacity", ".labels.txt")
        folder.check(names.values())
        return [
            write_lines(folder, name, audacity_lines(self._counted(rows), self.heard))
            for name, rows in self._by_table(names, "audacity", ".labels.txt")
        ]

    def _raven(self, folder: Folder) -> list[str]:
        """A selection table for each sound file, one for all of them, and one for the clips of each live session."""
        names = self._names("raven", ".selections.txt")
        folder.check([*names.values(), f"raven/{ALL_FILES}"])
        written = []
        for name, rows in self._by_table(names, "raven", ".selections.txt"):
            selections = peeked(self._selections(self._counted(rows)))
            if selections is not None:
                written.append(write_lines(folder, name, raven_lines(selections, self.heard)))
        return written + self._raven_of_all(folder)

    def _raven_of_all(self, folder: Folder) -> list[str]:
        """The table that opens all sound files; not where the length of one is not known."""
        lengths = self._lengths()
        selections = peeked(self._in_line(lengths))
        if selections is None:
            return []
        if unknown := [source for source, length_s in lengths.items() if length_s is None]:
            log.warning("no %s: the length of %s is not known", ALL_FILES, unknown[0])
            return []
        return [write_lines(folder, f"raven/{ALL_FILES}", raven_lines(selections, self.heard))]

    def _selections(self, rows: Iterable[Row]) -> Iterator[Selection]:
        """Each detection in the sound file, or clip, that Raven can open."""
        for source, found in groupby(rows, key=lambda row: None if row.live else row.detection.source):
            if source is None:
                yield from self._in_clips(found)
            else:
                path = found_path(source)
                yield from (in_file(row, path) for row in found)

    def _in_clips(self, rows: Iterable[Row]) -> Iterator[Selection]:
        """Live detections in their clips, which Raven opens one after the other."""
        before_s = 0.0
        for row in rows:
            clip = self._clip(row)
            if clip is None:
                self.left_out[NO_CLIP] += 1
                self.written -= 1
            else:
                yield in_clip(row, clip.resolve(), before_s)
                before_s += length_of(clip)

    def _clip(self, row: Row) -> Path | None:
        """The clip, where it is still there and the event can be found in it."""
        found = row.detection
        if found.clip is None or found.removed is not None or found.clip_start_s is None:
            return None
        path = self.output / found.clip
        return path if path.is_file() else None

    def _in_line(self, lengths: Mapping[str, float | None]) -> Iterator[Selection]:
        """Detections of all sound files, as if these were played one after the other."""
        before_s = 0.0
        rows = (row for row in self.rows(BY_SOURCE) if not row.live)
        for source, found in groupby(rows, key=lambda row: row.detection.source):
            path = found_path(source)
            yield from (in_file(row, path, before_s) for row in found)
            before_s += lengths.get(source) or 0.0

    def _lengths(self) -> dict[str, float | None]:
        """Seconds of each sound file with detections, as far as they were heard."""
        lengths: dict[str, float | None] = dict.fromkeys(read_sources(self.connection))
        for run in self.runs.values():
            if run.source in lengths and run.frames is not None:
                lengths[run.source] = max(lengths[run.source] or 0.0, run.frames / run.rate_hz)
        return lengths

    def _names(self, folder: str, suffix: str) -> dict[str, str]:
        """Name of each sound file's table; the same whatever is wanted."""
        return table_names(read_sources(self.connection), folder, suffix, [f"{folder}/{ALL_FILES}"])

    def _by_table(self, names: Mapping[str, str], folder: str, suffix: str) -> Iterator[tuple[str, Iterator[Row]]]:
        """Yield (name, detections) of each table: those of sound files, then those of live sessions."""
        of_files = (row for row in self.rows(BY_SOURCE) if not row.live)
        for source, rows in groupby(of_files, key=lambda row: row.detection.source):
            yield names[source], rows
        of_live = (row for row in self.rows(BY_SESSION) if row.live)
        for session, rows in groupby(of_live, key=lambda row: row.detection.session):
            yield f"{folder}/live/session-{session:06d}{suffix}", rows


def write_lines(folder: Folder, name: str, lines: Iterable[str]) -> str:
    """Write one table; its name."""
    with folder.writing(name) as table:
        for line in lines:
            table.write(line)
    return name


def peeked(selections: Iterator[Selection]) -> Iterator[Selection] | None:
    """The same again; None where there are none."""
    first = next(selections, None)
    return None if first is None else chain([first], selections)


def found_path(source: str) -> str:
    """The whole path of a sound file, if it is where the scan found it; else what the scan said."""
    path = Path(source)
    return str(path.resolve()) if path.is_file() else source


def length_of(clip: Path) -> float:
    """Seconds of a clip; raises AudioError where it cannot be read."""
    from .files import open_audio

    with open_audio(clip) as file:
        return float(file.frames / file.samplerate)


def told(left_out: Mapping[str, int]) -> str:
    """What is in no table, and the cure."""
    return "; ".join(f"{count} {LEFT_OUT[why]}" for why, count in sorted(left_out.items()) if count)
