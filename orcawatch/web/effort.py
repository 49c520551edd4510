"""The page of effort, detections, scores and levels over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from flask import Blueprint, render_template, request
from markupsafe import Markup

from ..effort import HOUR_S, NO_TIME, PATTERNS, Account
from ..errors import InputError
from . import charts, season, words
from .charts import Axes
from .filters import VERDICTS, read_day
from .season import Counts, Lines, Range, Scores
from .site import reading

blueprint = Blueprint("effort", __name__)

KINDS = {
    "recorded": "recorded",
    "reduced": "recorded, effort reduced",
    "gap": "gap",
    "off_duty": "off duty",
    "shed": "shed",
}
ORDER = ("orca", "unsure", "none", "not_orca")  # from below
LEAST_RANGE_DB = 20.0


@blueprint.get("/effort")
def page() -> str:
    """The charts of a range of days, and their figures as a table."""
    with reading() as connection:
        asked = season.chosen(
            read_day("since", request.args.get("since", "").strip()),
            read_day("until", request.args.get("until", "").strip()),
            days_of(request.args.get("days", "30")),
            season.newest_day(connection),
        )
        live = season.any_live(connection)
        files = request.args.get("files") == "1" or not live
        counted = season.counts(connection, asked, files)
        accounts, total = season.accounts(connection, asked, files, counted)
        scores, levels = season.scores(connection, asked), season.levels(connection, asked)
    accounts = [account for account in accounts if account.label != NO_TIME]
    drawn = {
        "effort": effort_chart(accounts, asked), "rate": rate_chart(accounts, counted, asked),
        "score": score_chart(scores, asked), "level": None if levels is None else level_chart(levels, asked),
    }  # fmt: skip
    return render_template(
        "effort.html", asked=asked, accounts=accounts, total=total, levels=levels, live=live, files=files, kinds=KINDS,
        order=ORDER, figures=figures, verdicts=VERDICTS, ranges=season.RANGES, many=bool(scores.cells), **drawn,
    )  # fmt: skip


def days_of(text: str) -> int:
    """How many days; raises InputError where that is no whole number in bounds."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= season.MOST_DAYS):
        raise InputError(f"days must be a whole number from 1 to {season.MOST_DAYS}, not {text[:20]!r}")
    return int(text)


def period(label: str, by: str) -> tuple[datetime, datetime]:
    """When the period of an account begins and ends."""
    start = datetime.strptime(label, PATTERNS[by]).replace(tzinfo=timezone.utc)
    return start, start + (timedelta(hours=1) if by == "hour" else timedelta(days=1))


def parts(account: Account) -> dict[str, float]:
    """Seconds of a period by what became of them."""
    reduced_s = sum(account.reduced.values())
    return {**account.kinds, "recorded": account.kinds["recorded"] - reduced_s, "reduced": reduced_s}


def effort_chart(accounts: Sequence[Account], asked: Range) -> Markup | None:
    """Hours of each day, or minutes of each hour, by what became of them."""
    if not accounts:
        return None
    hourly = asked.by == "hour"
    size_s, unit, whole = (60.0, "minutes of each hour", 60.0) if hourly else (HOUR_S, "hours of each day", 24.0)
    columns = [
        (*period(account.label, asked.by), {kind: spent / size_s for kind, spent in parts(account).items()})
        for account in accounts
    ]
    highest = max(sum(found.values()) for *_, found in columns)
    fits = highest <= whole * 1.01
    top, step = (whole, whole / 4) if fits else (charts.ceiling(highest), None)
    axes = Axes(asked.since, asked.until, 0, top, unit, step)
    return charts.chart(
        axes, "Effort", charts.stacked(axes, columns, tuple(KINDS)), f"{unit}; the table below has them"
    )


def rate_chart(accounts: Sequence[Account], counted: Counts, asked: Range) -> Markup | None:
    """Detections per hour listened, by verdict."""
    columns = []
    for account in accounts:
        hours = account.kinds["recorded"] / HOUR_S
        numbers = counted.get(account.label, {}) if hours else {}
        shares = {verdict: number / hours for verdict, number in numbers.items()}
        columns.append((*period(account.label, asked.by), shares))
    highest = max((sum(found.values()) for *_, found in columns), default=0.0)
    if not highest:
        return None
    axes = Axes(asked.since, asked.until, 0, charts.ceiling(highest), "detections per hour listened")
    return charts.chart(axes, "Detections per hour listened", charts.stacked(axes, columns, ORDER), "by verdict")


def score_chart(scores: Scores, asked: Range) -> Markup | None:
    """Each detection's score; how many lie where, where there are many."""
    if not scores.count:
        return None
    axes = Axes(asked.since, asked.until, 0, 1, "score")
    dots = {name: scores.dots.get(name, []) for name in ORDER}
    marks = charts.cells(scores.cells) if scores.cells else charts.dots(axes, dots)
    return charts.chart(axes, "Scores of detections", marks, f"{scores.count} detections")


def level_chart(levels: Lines, asked: Range) -> Markup | None:
    """The level at each hydrophone."""
    values = [value for points in levels.lines.values() for _, value in points if value is not None]
    if not values:
        return None
    middle, half = (max(values) + min(values)) / 2, max(LEAST_RANGE_DB, max(values) - min(values)) / 2 * 1.05
    axes = Axes(asked.since, asked.until, middle - half, middle + half, words.unit(levels.unit))
    marks = "".join(charts.line(axes, points, f"h{place % 4}") for place, points in enumerate(levels.lines.values()))
    return charts.chart(axes, "Sound level of each hydrophone", marks, "medians")


def figures(account: Account) -> list[str]:
    """Hours of an account in the order of `KINDS`; what is not nothing never looks like it."""
    found = parts(account)
    return [hours(found.get(kind, 0.0) / HOUR_S) for kind in KINDS]


def hours(number: float) -> str:
    """Hours with a resolution of 36 s."""
    return words.UNKNOWN if not number else "<0.01" if number < 0.005 else f"{number:.2f}"
