"""Reference pages from the code: `python docs/reference.py [FOLDER]` writes commands.md, library.md and database.md.

They are written beside this file where no folder is named.
"""

from __future__ import annotations

import inspect
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from orcawatch.cli import main
from orcawatch.schema import STEPS, migrate

MADE = "This page is made from the code: `python docs/reference.py`."
WIDTH = 100
ABOUT = (
    "`detections.sqlite` in the output folder is SQLite, schema {schema}; any program may read it while the daemon\n"
    "writes. Times (`..._utc`) are ISO 8601 in UTC, lists are JSON, truth is 0 or 1, and what is not known is null.\n"
    "[Storage](storage.md) says what is on the disk when."
)
# What plugins, sinks and scripts build on: module, names, and what they are for.
LIBRARY = (
    ("records", ("StreamInfo", "AudioBlock", "Missing", "ClockChange", "Window", "WindowScore", "Event"),
     "What flows from the hydrophones to a detection."),
    ("capture", ("Source",), "Where audio comes from."),
    ("spectrogram", ("FrontEnd", "LogMel", "LinearPower"), "What the networks are shown."),
    ("backbone", ("Backbone", "load_backbone"), "A network of your own."),
    ("testing", ("check_backbone", "ConformanceError"), "What it must pass."),
    ("bundle", ("Bundle", "load_bundle", "write_bundle"), "What training and the buoy share."),
    ("detector", ("Scorer", "Detector"), "From audio to scores."),
    ("ensemble", ("Ensemble",), "The vote."),
    ("events", ("EventRules", "EventBuilder"), "From scores to detections."),
    ("store", ("Detection", "Store", "Reader"), "The database."),
    ("verdicts", ("give", "ChangedError"), "What people say of detections."),
    ("sinks", ("Sink", "Site", "Message", "SinkError", "UnreachableError", "RefusedError"), "Messages to elsewhere."),
    ("errors", ("OrcawatchError", "InputError", "ConfigError", "AudioError", "BundleError"), "What is raised."),
)  # fmt: skip
# What the tables are for; columns that are not told apart by their names are in docs/storage.md.
TABLES = {
    "detections": "one row a detection; lists are JSON",
    "sessions": "one row a run with one source",
    "ledger": "every second of every session: recorded, gap, off duty or shed, and why",
    "clock": "jumps of the clock and changes of its synchronisation",
    "levels": "sound level of each channel, a row every `levels.every_s`",
    "outbox": "messages that wait for the sinks, and those that were sent",
    "budgets": "bytes that each sink may still send",
    "recoveries": "damaged databases that were replaced, and what was rescued",
    "verdicts": "every verdict ever given; the newest of a detection stands in its row, too",
    "shadows": "detections of a bundle that scores beside the one in force",
    "shadowed": "what such a bundle scored, and what it left out",
    "shadow_scores": "what it said of each detection",
    "scans": "archive scans: what was scanned with which settings",
    "scanned": "their files: what became of each",
}


def commands(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[str]:
    """A section for a command, and for those below it."""
    context = click.Context(
        command, info_name=name, parent=above, terminal_width=WIDTH, max_content_width=WIDTH, **command.context_settings
    )
    yield f"## {context.command_path}\n\n```text\n{plain_help(command, context)}\n```\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                yield from commands(found, below, context)


def plain_help(command: click.Command, context: click.Context) -> str:
    """A command's help without the exit codes, which the first section has."""
    text = command.get_help(context)
    return (text if context.parent is None else text.split("\n\n  Exit codes:")[0]).rstrip()


def commands_page() -> str:
    """The text of commands.md."""
    return "\n".join(["# Commands\n", f"{MADE}\n", *commands(main, "orcawatch")])


def library_page() -> str:
    """The text of library.md."""
    return "\n".join(
        ["# Records and protocols\n", f"{MADE}\n", *(part for entry in LIBRARY for part in module(*entry))]
    )


def module(name: str, names: tuple[str, ...], purpose: str) -> Iterator[str]:
    """A section for some of a module's classes and functions."""
    loaded = import_module(f"orcawatch.{name}")
    yield f"## orcawatch.{name}\n\n{purpose}\n"
    for each in names:
        yield from documented(each, getattr(loaded, each), 3)


def documented(name: str, item: Any, level: int) -> Iterator[str]:
    """Signature and docstring of a class with its public methods, or of a function."""
    yield f"{'#' * level} {name}\n\n```text\n{name}{signature(item)}\n\n{inspect.getdoc(item) or ''}\n```\n"
    if inspect.isclass(item) and not issubclass(item, Exception):
        for below, method in vars(item).items():
            if inspect.isfunction(method) and not below.startswith("_") and inspect.getdoc(method):
                yield from documented(f"{name}.{below}", method, level + 1)


def signature(item: Any) -> str:
    """Parameters and what is returned, as written; nothing where there are none to tell."""
    if inspect.isclass(item) and ("__init__" not in vars(item) or getattr(item, "_is_protocol", False)):
        return ""
    return re.sub(r"'([^']*)'", r"\1", str(inspect.signature(item)).replace("(self, ", "(").replace("(self)", "()"))


def database_page() -> str:
    """The text of database.md."""
    with closing(sqlite3.connect(":memory:")) as connection:
        migrate(connection, 0, STEPS)
        parts = [table(connection, name) for name in TABLES]
    head = f"# Database\n\n{MADE} {ABOUT.format(schema=len(STEPS))}\n"
    return "\n".join([head, *parts])


def table(connection: sqlite3.Connection, name: str) -> str:
    """A section for a table."""
    rows = [f"| `{row[1]}` | {row[2].lower()} | {'no' if row[3] or row[5] else 'yes'} |"
            for row in connection.execute(f"PRAGMA table_info({name})")]  # fmt: skip
    return "\n".join([f"## {name}\n\n{TABLES[name]}\n", "| column | kind | may be null |", "|---|---|---|", *rows, ""])


PAGES = {"commands.md": commands_page, "library.md": library_page, "database.md": database_page}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for file, text in PAGES.items():
        (folder / file).write_text(text(), encoding="utf-8")
