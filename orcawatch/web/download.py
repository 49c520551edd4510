"""The filtered list as a CSV file, sent while it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from flask import Blueprint, Response, abort, request

from ..formats import csv_lines
from ..selection import Row, Run, read_runs
from . import filters, queries
from .filters import Filter
from .site import MOST_DOWNLOADS, reading, site

blueprint = Blueprint("download", __name__)

BATCH = 500  # rows that are in memory at once


@blueprint.get("/detections.csv")
def page() -> Response:
    """All that passes the filter, in the list's order, with the columns of `orcawatch export --format csv`."""
    wanted = filters.from_args(request.args)
    downloads = site().downloads
    if not downloads.acquire(blocking=False):
        abort(503, f"{MOST_DOWNLOADS} lists are being downloaded already: try again when one of them has arrived.")
    try:
        lines = csv_lines(rows(site().database, wanted))
        begun = list(islice(lines, 2))  # a log that cannot be read is told on a page, not in half a file
        name = file_name(wanted)
    except BaseException:
        downloads.release()
        raise
    response = Response(parts(chain(begun, lines)), mimetype="text/csv")
    response.call_on_close(downloads.release)
    response.headers.set("Content-Disposition", "attachment", filename=name)
    return response


def rows(database: Path, wanted: Filter) -> Iterator[Row]:
    """Yield what passes the filter, read in batches by the key of the last one.

    No view of the database stays open while the reader takes its time: it would keep the daemon's write-ahead log from
    being folded in. So a verdict that is given meanwhile may be in the file or not; no row is there twice.
    """
    key: str | None = None
    runs: dict[int, Run] = {}
    while True:
        with reading(database) as connection:
            found = queries.page(connection, wanted, key, back=False, size=BATCH)
            if {row.session for row in found.detections} - {None} - runs.keys():
                runs = read_runs(connection)
        yield from (Row(row, None if row.session is None else runs.get(row.session)) for row in found.detections)
        key = found.after
        if key is None:
            return


def parts(lines: Iterator[str]) -> Iterator[bytes]:
    """Lines by the hundred, as they are sent."""
    while some := list(islice(lines, 100)):
        yield "".join(some).encode()


def file_name(wanted: Filter) -> str:
    """The station, and the first and the last day that are in the file."""
    with reading() as connection:
        days = (
            wanted.since or queries.first_day(connection, wanted),
            wanted.until or queries.last_day(connection, wanted),
        )
    named = [wanted.station or site().settings.station or "orcawatch", *([] if wanted.undated else dict.fromkeys(days))]
    words = [re.sub(r"[^\w.-]+", "-", word).strip("-.") for word in named if word]
    return f"{'_'.join([*words, 'detections'])}.csv"
