"""How detections are printed: as text, JSON lines or CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import ceil, isnan
from typing import TYPE_CHECKING, Any

import click

from .harmless import harmless

if TYPE_CHECKING:
    from .config import Settings


class Printer:
    """Prints detections on stdout as they come.

    Parameters
    ----------
    how : `text`, `jsonl` or `csv`.
    settings : output folder and station.
    """

    COLUMNS = (
        "file", "start_s", "end_s", "score", "best_channel", "channels", "channel_scores", "start_utc", "clip",
        "snapshot", "bearing_deg", "bearing_error_deg", "bearing_note",
    )  # fmt: skip

    def __init__(self, how: str, settings: Settings) -> None:
        self._settings = settings
        self._line = {"text": self._text, "jsonl": self._json, "csv": self._csv}[how]
        if how == "csv":
            click.echo(",".join(self.COLUMNS))

    def __call__(self, detection: Any) -> None:
        """Print one detection, in place of a progress bar's line."""
        if sys.stderr.isatty() and sys.stdout.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(harmless(self.line(detection), keep="\n"))

    def line(self, detection: Any) -> str:
        """What is printed of a detection, without the line's end."""
        return self._line(self.record(detection))

    def record(self, detection: Any) -> dict[str, Any]:
        """What is printed of a detection; paths start where the program runs."""
        start_utc = detection.start_utc
        return {
            "start_s": round(detection.start_s, 3),
            "end_s": round(detection.end_s, 3),
            "score": round(detection.score, 6),
            "channel_scores": [None if isnan(score) else round(score, 6) for score in detection.channel_scores],
            "snapshot": self._path(detection.snapshot),
            "clip": self._path(detection.clip),
            "file": detection.source,
            "start_utc": None if start_utc is None else start_utc.isoformat(),
            "channels": list(detection.channels),
            "best_channel": detection.best_channel,
            "id": detection.id,
            "station": detection.station,
            "bundle": detection.bundle,
            "hydrophones": list(detection.hydrophones),
            "levels_db": [None if isnan(level) else round(level, 1) for level in detection.levels_db],
            "level_unit": detection.level_unit,
            "numbers": detection.numbers,
            "bearing_deg": rounded(detection.bearing_deg),
            "bearing_error_deg": rounded(detection.bearing_error_deg),
            "bearing_note": detection.bearing_note,
        }

    def _path(self, name: str | None) -> str | None:
        from .files import printable

        return None if name is None else printable(self._settings.output / name)

    def _json(self, record: dict[str, Any]) -> str:
        import json

        return json.dumps(record, ensure_ascii=False)

    def _csv(self, record: dict[str, Any]) -> str:
        import csv
        import io

        scores = " ".join("-" if score is None else f"{score:g}" for score in record["channel_scores"])
        line = io.StringIO()
        values = {**record, "channels": " ".join(map(str, record["channels"])), "channel_scores": scores}
        csv.writer(line).writerow([values[name] for name in self.COLUMNS])
        return line.getvalue()[: -len("\r\n")]

    def _text(self, record: dict[str, Any]) -> str:
        span = f"{record['start_s']:.2f} to {record['end_s']:.2f} s"
        channels = f"channel {record['best_channel']} (of {', '.join(map(str, record['channels']))})"
        what = f"orca {record['score']:.3f} on {channels}"
        where = record["snapshot"] or record["clip"] or "no clip"
        return "; ".join([f"{record['file']}: {span}: {what}", where, *origin(record)])


def rounded(angle_deg: float | None) -> float | None:
    """An angle as it is printed, to 0.01 degrees."""
    return None if angle_deg is None else round(angle_deg, 2) % 360


def origin(record: dict[str, Any]) -> Iterator[str]:
    """Where a sound came from, in words, and what is to be said about that; nothing where nothing is known."""
    bearing_deg, error_deg = record["bearing_deg"], record["bearing_error_deg"]
    if record["bearing_note"]:
        yield record["bearing_note"]
    if bearing_deg is not None:
        digits = 1 if error_deg < 2 else 0
        # rounded up: an interval is not to look narrower than it is
        error = ceil(error_deg * 10**digits - 1e-9) / 10**digits
        yield f"from {round(bearing_deg, digits) % 360:.{digits}f}° ± {error:.{digits}f}°"
