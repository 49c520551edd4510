"""The list of detections by day."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Any

from flask import Blueprint, Response, abort, render_template, request, url_for

from ..store import Detection
from . import filters, queries, thumbnails
from .access import inside
from .filters import SORTS, VERDICTS, Filter
from .site import reading, site

log = logging.getLogger(__name__)

blueprint = Blueprint("lists", __name__)

KEPT_S = 86400  # a snapshot never changes


@dataclass(frozen=True)
class Group:
    """Detections that stand under one heading.

    Attributes
    ----------
    day : the UTC day; None where they have no time, or are not listed by day.
    source : name of the file, where they have no time.
    detections : in order.
    """

    day: str | None
    source: str | None
    detections: Sequence[Detection]


@dataclass(frozen=True)
class Month:
    """The strip of a month's days.

    Attributes
    ----------
    first : its first day.
    counts : detections on each of its days, in order.
    before, after : the nearest days with any in another month; None where there are none.
    """

    first: date
    counts: Sequence[tuple[str, int]]
    before: str | None
    after: str | None

    @property
    def most(self) -> int:
        """The highest count, at least 1."""
        return max([1, *(number for _, number in self.counts)])

    @property
    def total(self) -> int:
        """Of the month."""
        return sum(number for _, number in self.counts)


@blueprint.get("/")
def page() -> str:
    """Detections that pass the filter, a page of them."""
    wanted = filters.from_args(request.args)
    key, back = request.args.get("before") or request.args.get("after"), "before" in request.args
    with reading() as connection:
        found = queries.page(connection, wanted, key, back)
        seen: dict[str, Any] = {
            "count": queries.count(connection, wanted),
            "any": queries.any_detections(connection),
            "choices": queries.choices(connection),
            "month": month(connection, wanted, found.detections),
        }
    groups = list(grouped(found.detections, wanted))
    return render_template(
        "list.html", wanted=wanted, page=found, groups=groups, link=link, verdicts=VERDICTS, sorts=SORTS, **seen
    )


@blueprint.get("/thumbnail/<int:id>.jpg")
def thumbnail(id: int) -> Response:
    """The spectrogram of a detection's snapshot, small."""
    with reading() as connection:
        found = queries.detection(connection, id)
    if found is None or found.removed or not found.snapshot:
        abort(404, "There is no picture of that detection.")
    picture = inside(site().output, found.snapshot)
    try:
        content = thumbnails.small(picture, picture.stat().st_mtime_ns)
    except OSError as fault:
        log.warning("%s cannot be shown: %s", picture, fault)
        abort(404, "The picture of that detection cannot be read.")
    response = Response(content, mimetype="image/jpeg")
    response.cache_control.private, response.cache_control.max_age = True, KEPT_S
    return response


def link(wanted: Filter, **changes: Any) -> str:
    """Address of the list with another filter."""
    return url_for("lists.page", **dict[str, Any](wanted.fields(**changes)))


def grouped(detections: Sequence[Detection], wanted: Filter) -> Iterator[Group]:
    """By day, or by source where there is no time; as one group where they are ordered by score."""
    if wanted.sort == "score":
        yield Group(None, None, detections)
        return
    for (day, source), members in groupby(detections, heading):
        yield Group(day, source, list(members))


def heading(detection: Detection) -> tuple[str | None, str | None]:
    """The UTC day, or else the source."""
    if detection.start_utc is None:
        return None, detection.source
    return queries.utc_day(detection.start_utc), None


def month(connection: Any, wanted: Filter, shown: Sequence[Detection]) -> Month | None:
    """The month that is looked at: that of the filter's days, else that of the first row; None without any day."""
    dated = next((heading(detection)[0] for detection in shown if detection.start_utc is not None), None)
    day = wanted.until or wanted.since or dated or queries.last_day(connection, wanted)
    if day is None:
        return None
    first = date.fromisoformat(day).replace(day=1)
    next_first = (first + timedelta(days=32)).replace(day=1)
    days = [(first + timedelta(days=number)).isoformat() for number in range((next_first - first).days)]
    counts = queries.days(connection, wanted, days[0], days[-1])
    return Month(
        first, [(day, counts.get(day, 0)) for day in days], queries.last_day(connection, wanted, days[0]),
        queries.first_day(connection, wanted, days[-1]),
    )  # fmt: skip
