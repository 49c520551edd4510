"""A season in one picture, from the database of an output folder.

    pip install pandas matplotlib
    python examples/season.py OUTPUT season.png [--files]

Reads the tables `detections`, `sessions`, `ledger` and `levels` into pandas (also while the daemon writes) and draws,
day by day in UTC: detections by verdict, detections per hour of listening, what became of the hours, the sound level;
and below how the scores are spread. Prints the days as a table. --files takes the sessions that read files in place of
the live ones. Copy it and change it: nothing in it needs orcawatch.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

VERDICTS = {  # verdict: label and colour (Okabe and Ito's, which the colour-blind can tell)
    "orca": ("orca", "#0072b2"),
    "unsure": ("unsure", "#e69f00"),
    "": ("not reviewed", "#9ad0f0"),
    "not_orca": ("not orca", "#bbbbbb"),
}
KINDS = {
    "recorded": ("listened", "#009e73"),
    "reduced": ("at reduced effort", "#8fd3bd"),
    "off_duty": ("off duty", "#f0e442"),
    "gap": ("gap", "#d55e00"),
    "shed": ("shed", "#cc79a7"),
}
LEAST_H = 1.0  # days with less listening have no rate
DETECTIONS = """
    SELECT detections.start_utc, score, coalesce(verdict, '') AS verdict
    FROM detections JOIN sessions ON sessions.id = session
    WHERE live = ? AND detections.start_utc IS NOT NULL
"""
LEDGER = """
    SELECT kind, step, start_utc, end_steady_s - start_steady_s AS duration_s
    FROM ledger JOIN sessions ON sessions.id = session WHERE live = ? AND start_utc IS NOT NULL
"""
LEVELS = """
    SELECT levels.start_utc, levels_db, unit FROM levels JOIN sessions ON sessions.id = session
    WHERE live = ? AND levels.start_utc IS NOT NULL
"""


def read(database: Path, query: str, live: bool) -> pd.DataFrame:
    """A table with times in UTC; the database is only read."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        found = pd.read_sql_query(query, connection, params=(int(live),))
    found["start_utc"] = pd.to_datetime(found["start_utc"], utc=True, format="ISO8601")
    return found


def days_of(start: pd.Timestamp, seconds: float) -> Iterator[tuple[pd.Timestamp, float]]:
    """Yield (day, hours) of a stretch of time, cut at midnight."""
    end = start + pd.Timedelta(seconds=seconds)
    while (end - start).total_seconds() > 1e-3:  # a rounded microsecond is no day
        border = min(end, start.floor("D") + pd.Timedelta(days=1))
        yield start.floor("D"), (border - start).total_seconds() / 3600
        start = border


def hours(ledger: pd.DataFrame) -> pd.DataFrame:
    """Hours of each day by `KINDS`, shape (days, 5); every day from the first to the last is there."""
    kinds = ledger["kind"].where(~((ledger["kind"] == "recorded") & (ledger["step"] > 0)), "reduced")
    rows = [
        (day, kind, part)
        for kind, start, seconds in zip(kinds, ledger["start_utc"], ledger["duration_s"])
        for day, part in days_of(start, seconds)
    ]
    table = pd.DataFrame(rows, columns=["day", "kind", "hours"]).pivot_table(
        index="day", columns="kind", values="hours", aggfunc="sum", fill_value=0.0
    )
    every = pd.date_range(table.index.min(), table.index.max(), freq="D", tz="UTC")
    return table.reindex(index=every, columns=list(KINDS), fill_value=0.0)


def counts(detections: pd.DataFrame, days: pd.DatetimeIndex) -> pd.DataFrame:
    """Detections of each day by verdict."""
    day = detections["start_utc"].dt.floor("D")
    table = detections.groupby([day, "verdict"]).size().unstack(fill_value=0)
    return table.reindex(index=days, columns=list(VERDICTS), fill_value=0)


def daily_levels(levels: pd.DataFrame, days: pd.DatetimeIndex) -> pd.DataFrame:
    """Median, 5 % and 95 % quantile of each day's levels; of the channels, the median counts."""
    of_channels = [[np.nan if level is None else level for level in json.loads(text)] for text in levels["levels_db"]]
    middle = pd.Series([np.nanmedian(row) if not np.isnan(row).all() else np.nan for row in map(np.array, of_channels)])
    found = middle.groupby(levels["start_utc"].dt.floor("D")).quantile([0.05, 0.5, 0.95]).unstack()
    return found.reindex(index=days, columns=[0.05, 0.5, 0.95])


def season(database: Path, live: bool = True) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
    """The days (hours by kind, detections by verdict, rate, level), all detections, the levels' quantiles and unit."""
    ledger = read(database, LEDGER, live)
    if ledger.empty:
        other = "" if not live else "; --files takes the sessions that read files"
        raise SystemExit(f"{database} has no {'live session' if live else 'session'} whose time is known{other}")
    detections, levels = read(database, DETECTIONS, live), read(database, LEVELS, live)
    table = hours(ledger)
    found = counts(detections, table.index)
    listened = table["recorded"] + table["reduced"]
    kept = found.drop(columns="not_orca").sum(axis=1)
    rate = (kept / listened).where(listened >= LEAST_H)
    sound = daily_levels(levels, table.index)
    days = table.join(found.rename(columns={"": "not_reviewed"})).assign(per_hour=rate, level_db=sound[0.5])
    return days, detections, sound, levels["unit"].iloc[-1] if len(levels) else "dB"


def draw(days: pd.DataFrame, detections: pd.DataFrame, sound: pd.DataFrame, unit: str, title: str) -> plt.Figure:
    """The picture."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True})
    figure = plt.figure(figsize=(11, 11.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    number, rate, effort, level, scores = figure.subplots(5, 1)
    for axes in (number, rate, effort):
        axes.sharex(level)
        axes.tick_params(labelbottom=False)
    names = {("not_reviewed" if verdict == "" else verdict): look for verdict, look in VERDICTS.items()}
    stack(number, days, names)
    number.set(title="Detections a day", ylabel="detections")
    rate.bar(days.index, days["per_hour"], width=1.0, align="edge", color="#0072b2")
    rate.set(title=f"Detections per hour of listening, without those that are not orca (days of {LEAST_H:g} h or more)")
    rate.set_ylabel("per hour")
    stack(effort, days, KINDS)
    effort.set(title="What became of the hours", ylabel="hours", ylim=(0, 24), yticks=range(0, 25, 6))
    draw_level(level, sound, unit)
    for axes in (number, rate, level):
        shade_gaps(axes, days)
    dates(level, days)
    draw_scores(scores, detections)
    return figure


def stack(axes: Axes, days: pd.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    """Columns one on the other, with a legend beside the panel."""
    below = np.zeros(len(days))
    for name, (label, colour) in looks.items():
        if days[name].any():
            axes.bar(days.index, days[name], bottom=below, width=1.0, align="edge", color=colour, label=label)
            below += days[name].to_numpy()
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False)


def draw_level(axes: Axes, sound: pd.DataFrame, unit: str) -> None:
    """Median and spread of each day's levels."""
    axes.fill_between(sound.index, sound[0.05], sound[0.95], step="post", color="#999999", alpha=0.4, linewidth=0)
    axes.step(sound.index, sound[0.5], where="post", color="black", linewidth=1.2)
    axes.set(title="Sound level: the day's median, and where nine tenths of it lie", ylabel=unit)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def shade_gaps(axes: Axes, days: pd.DataFrame) -> None:
    """Grey where a day has less than `LEAST_H` of listening: no detections there say nothing."""
    listened = days["recorded"] + days["reduced"]
    for day in days.index[listened < LEAST_H]:
        axes.axvspan(day, day + pd.Timedelta(days=1), color="#eeeeee", zorder=0, linewidth=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_ylim(bottom=0 if axes.get_ylabel() in ("detections", "per hour") else None)


def dates(axes: Axes, days: pd.DataFrame) -> None:
    """The time axis of all panels."""
    locator = AutoDateLocator(minticks=4, maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlim(days.index[0], days.index[-1] + pd.Timedelta(days=1))
    axes.set_xlabel("day, UTC (grey: hardly any listening)")


def draw_scores(axes: Axes, detections: pd.DataFrame) -> None:
    """How scores are spread, by verdict."""
    groups = {verdict: detections["score"][detections["verdict"] == verdict] for verdict in VERDICTS}
    used = {verdict: scores for verdict, scores in groups.items() if len(scores)}
    least = min((scores.min() for scores in used.values()), default=0.0)
    bins = np.linspace(np.floor(least * 20) / 20, 1, 41)
    axes.hist(
        list(used.values()), bins=bins, stacked=True,
        color=[VERDICTS[verdict][1] for verdict in used], label=[VERDICTS[verdict][0] for verdict in used],
    )  # fmt: skip
    axes.set(title="Scores", xlabel="score of the detector", ylabel="detections", xlim=(bins[0], 1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if used:
        axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="output folder of a run, or its database")
    parser.add_argument("picture", type=Path, help="where the picture goes, .png or .pdf")
    parser.add_argument("--files", action="store_true", help="sessions that read files, in place of live ones")
    asked = parser.parse_args()
    database = asked.output / "detections.sqlite" if asked.output.is_dir() else asked.output
    if not database.is_file():
        parser.error(f"{database} is not there; name the output folder of a run")
    days, detections, sound, unit = season(database, not asked.files)
    heard_h = (days["recorded"] + days["reduced"]).sum()
    span = f"{days.index[0]:%Y-%m-%d} to {days.index[-1]:%Y-%m-%d}"
    title = f"{len(detections)} detections in {heard_h:.0f} h of listening, {span}"
    draw(days, detections, sound, unit, title).savefig(asked.picture, dpi=130)
    print(days.round(2).to_string())


if __name__ == "__main__":
    main()
