"""How the installed service fares: systemd's state, the journal, the log of detections, the disk."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..errors import OrcawatchError
from ..turn import NOBODY, nobody_sends
from .service import (
    CONFIGURATION,
    MACHINE,
    PAGE_UNIT,
    UNIT,
    UPLINK_UNIT,
    installed_output,
    installed_path,
    needs_uplink,
    run,
    settings_of,
)

DATABASE = "detections.sqlite"
SILENT_S = 300.0  # an account of the sea that is older than this is a fault


@dataclass(frozen=True)
class Report:
    """How the service fares: lines for people, and what is wrong with it (each with its cure)."""

    lines: Sequence[tuple[str, str]]
    problems: Sequence[str]


def report(now: datetime | None = None) -> Report:
    """How the service fares on this machine: systemd's state, the journal, the log of detections, the disk."""
    shown = unit_state()
    if shown.get("LoadState") != "loaded":
        return Report([("service", "not installed")], [f"{UNIT} is not installed: orcawatch deploy install"])
    output = installed_output()
    account = read_account(output / DATABASE)
    moment = now or datetime.now(timezone.utc)
    page, uplink = unit_state(PAGE_UNIT), unit_state(UPLINK_UNIT)
    lines = [*service_lines(shown), ("killed", killed()), *account_lines(account, moment), ("disk", disk(output))]
    lines += [("page", other_line(page)), ("uplink", other_line(uplink))]
    others = [*other_problems("the review page", PAGE_UNIT, page), *other_problems("the uplink", UPLINK_UNIT, uplink)]
    others += sender_problems(installed_path(MACHINE, "Configuration", CONFIGURATION), output)
    return Report(lines, [*service_problems(shown), *others, *account_problems(account, shown, moment)])


def unit_state(unit: str = UNIT) -> dict[str, str]:
    """What systemd says of a unit, by property."""
    shown = run(["systemctl", "show", unit, "--no-pager", f"--property={','.join(PROPERTIES)}"])
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "StatusText", "NRestarts", "MainPID",
    "ExecMainStartTimestamp", "ExecMainStatus", "MemoryCurrent",
)  # fmt: skip


def service_lines(shown: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What systemd knows, for people."""
    yield "service", f"{shown['ActiveState']} ({shown['SubState']}), {shown['UnitFileState']}"
    yield "started", f"{shown['ExecMainStartTimestamp'] or 'never'}, process {shown['MainPID']}"
    yield "says", shown["StatusText"] or "nothing"
    yield "restarts", f"{shown['NRestarts']} by itself since it was started by hand or at boot"
    if shown["MemoryCurrent"].isdigit():
        yield "memory", f"{int(shown['MemoryCurrent']) / 1e6:.0f} MB with the capture process"


def service_problems(shown: Mapping[str, str]) -> Iterator[str]:
    """What systemd knows that is wrong."""
    if shown["ActiveState"] != "active":
        last = f"last result {shown['Result']}, exit code {shown['ExecMainStatus']}"
        yield f"the service is {shown['ActiveState']} ({last}): journalctl --unit orcawatch --lines 50"
    if shown["UnitFileState"] != "enabled":
        yield f"the service does not start at boot: systemctl enable {UNIT}"


def other_line(shown: Mapping[str, str]) -> str:
    """A unit that not everybody wants, for people."""
    return f"{shown['ActiveState']} ({shown['SubState']}), {shown['UnitFileState'] or 'not installed'}"


def other_problems(what: str, unit: str, shown: Mapping[str, str]) -> Iterator[str]:
    """Such a unit is to run, and does not."""
    if shown["UnitFileState"] == "enabled" and shown["ActiveState"] != "active":
        yield f"{what} is {shown['ActiveState']}: journalctl --unit {unit} --lines 50"


def sender_problems(config: Path, output: Path) -> Iterator[str]:
    """The settings leave something to the uplink, and there is none; settings that cannot be read say nothing here."""
    try:
        settings = settings_of(MACHINE, config)
        if settings is not None and needs_uplink(settings) and nobody_sends(output):
            yield NOBODY
    except (OrcawatchError, OSError):
        return


def killed() -> str:
    """How often the watchdog ended it, as far as the journal goes back."""
    found = run(
        ["journalctl", f"--unit={UNIT}", "--output=cat", "--quiet", "--no-pager", "--grep=Watchdog timeout"],
        check=False,
    )
    return f"{len(found.splitlines())} times by the watchdog, as far as the journal goes back"


@dataclass(frozen=True)
class Account:
    """What the log holds: numbers, newest times, and why it cannot be read."""

    detections: int = 0
    newest: datetime | None = None
    until: datetime | None = None
    kind: str = ""
    fault: str = ""


def read_account(path: Path) -> Account:
    """The newest entries of the log, read without changing it."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            count, newest = connection.execute("SELECT count(*), max(start_utc) FROM detections").fetchone()
            last = connection.execute("SELECT end_utc, kind, cause FROM ledger ORDER BY id DESC LIMIT 1").fetchone()
    except sqlite3.Error as fault:
        return Account(fault=f"{path} cannot be read: {fault}")
    until, kind, cause = last or (None, "", "")
    return Account(count, parsed(newest), parsed(until), f"{kind}: {cause}" if cause else str(kind))


def parsed(text: str | None) -> datetime | None:
    """A time of the log."""
    return None if text is None else datetime.fromisoformat(text)


def account_lines(account: Account, now: datetime) -> Iterator[tuple[str, str]]:
    """What the log holds, for people."""
    if account.fault:
        yield "log", account.fault
        return
    yield "ledger", "empty" if account.until is None else f"{account.kind} until {ago(account.until, now)}"
    newest = f", the newest at {ago(account.newest, now)}" if account.newest else ""
    yield "detections", f"{account.detections}{newest}"


def account_problems(account: Account, shown: Mapping[str, str], now: datetime) -> Iterator[str]:
    """A log that cannot be read, or that nobody writes."""
    if account.fault:
        yield f"{account.fault}; run this as root, and see `orcawatch doctor`"
    elif shown["ActiveState"] == "active" and account.until is not None:
        silent_s = (now - account.until).total_seconds()
        if silent_s > SILENT_S:
            yield f"the ledger has no entry for {silent_s:.0f} s: journalctl --unit orcawatch, or `orcawatch doctor`"


def ago(moment: datetime, now: datetime) -> str:
    """A time, and how long ago it was."""
    return f"{moment.strftime('%Y-%m-%d %H:%M:%S UTC')}, {(now - moment).total_seconds():.0f} s ago"


def disk(folder: Path) -> str:
    """Room where the log is."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as fault:
        return f"{folder}: {fault.strerror}"
    return f"{folder}: {usage.free / 1e9:.2f} GB free of {usage.total / 1e9:.2f} GB"
