"""The scenario `scan` of benchmarks/kills.py: scans of a small archive with worker processes, killed at random moments.

The archive was scanned before, and has changed since: two files are others, two are new, one is no audio. A scan is
killed, given again, killed again, until one comes to its end; then all begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from killing import AFTER_WORD, BEYOND, PATIENCE_S, Account

from orcawatch.cli import SKIPPED
from orcawatch.daemon import DATABASE
from orcawatch.journal import STAGING
from orcawatch.recorder import CLIPS
from orcawatch.scan import SET_ASIDE
from orcawatch.store import connected

RATE_HZ = 16000
FILES = 6
CHANGED = (1, 3)
SCANNED = 4  # files that were there when it was scanned before
OF_WORKERS = 0.25  # share of the kills that meet a worker
LIVES = 2
WHILE_TAKEN_S = 0.1
# What tells when something was done, and on which machine.
OWN = {"started_utc", "ended_utc", "finished_utc", "boot", "started_steady_s"}
TABLES = ("detections", "sessions", "ledger", "levels", "clock", "scanned", "scans")

Rows = list[dict[str, Any]]


@dataclass
class Archive:
    """Recordings, what a scan had found before they changed, and what one finds that nobody disturbs.

    Attributes
    ----------
    recordings, before : folders.
    settings : file.
    printed, left : by the undisturbed scan, and `contents` of its folder.
    found_before, found : detections by file, as the scan before and the undisturbed one found them.
    life_s : how long an undisturbed scan takes.
    """

    recordings: Path
    before: Path
    settings: Path
    printed: str = ""
    left: dict[str, Any] = field(default_factory=dict)
    found_before: dict[str, Rows] = field(default_factory=dict)
    found: dict[str, Rows] = field(default_factory=dict)
    life_s: float = 0.0


class Scan:
    """`orcawatch scan` in a process, in a session of its own."""

    def __init__(self, archive: Archive, output: Path) -> None:
        self._place = output.parent
        self._output = output
        words = ["scan", archive.recordings, "--output", output, "--config", archive.settings, "--workers", 2]
        call = [sys.executable, "-m", "orcawatch.cli", *map(str, words), "--format", "jsonl", "--timezone", "UTC"]
        with (self._place / "printed").open("wb") as printed, (self._place / "log").open("wb") as log:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(call, stdout=printed, stderr=log, start_new_session=True, env=environment)

    @property
    def printed(self) -> str:
        """Whole lines of standard output so far."""
        text = (self._place / "printed").read_text().replace(str(self._output), "OUTPUT")
        return text[: text.rfind("\n") + 1]

    @property
    def log(self) -> str:
        """Standard error."""
        return (self._place / "log").read_text()

    def wait_for_lines(self, number: int) -> None:
        """Until it has printed more than so many lines, or ends."""
        until_s = time.monotonic() + PATIENCE_S
        while self.printed.count("\n") <= number and self._process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.002)

    def end(self) -> int:
        """Wait for its end; exit code."""
        return self._process.wait(PATIENCE_S)

    def kill(self) -> bool:
        """SIGKILL; whether that is what ended it."""
        self._process.kill()
        return self.end() == -signal.SIGKILL

    def kill_worker(self, rng: random.Random) -> bool:
        """SIGKILL of one of its workers, where there is one."""
        workers = [number for number in self.members() if number != self._process.pid and is_worker(number)]
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        return bool(workers)

    def members(self) -> list[int]:
        """Processes of its session."""
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [number for number in numbers if session_of(number) == self._process.pid]


def session_of(number: int) -> int | None:
    """Session of a process; None where it is gone, or only waits to be collected."""
    try:
        state, _, _, session = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def is_worker(number: int) -> bool:
    """Whether a process scans."""
    try:
        return b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


# --- the archive ------------------------------------------------------------------------------------------------------


def made(folder: Path) -> Archive:
    """An archive with what is known of it."""
    archive = Archive(folder / "in", folder / "before", folder / "settings.yaml")
    archive.recordings.mkdir(parents=True)
    archive.settings.write_text("snapshots: false\n")
    (archive.recordings / "notes.wav").write_text("no audio")
    for number in range(SCANNED):
        write_file(archive, number, 3.0 if number in CHANGED else 1.0)
    assert Scan(archive, archive.before).end() == SKIPPED
    archive.found_before = by_file(contents(archive.before))
    for number in (*CHANGED, *range(SCANNED, FILES)):
        write_file(archive, number, 1.0)
    lives_s = []
    for _ in range(LIVES):
        output = anew(archive, folder / "whole")
        began_s = time.monotonic()
        scan = Scan(archive, output)
        assert scan.end() == SKIPPED, scan.log
        lives_s.append(time.monotonic() - began_s)
    archive.printed, archive.left, archive.life_s = scan.printed, contents(output), statistics.median(lives_s)
    archive.found = by_file(archive.left)
    return archive


def write_file(archive: Archive, number: int, call_s: float) -> None:
    """Four seconds with two calls, the second always in one place."""
    time_s = np.arange(4 * RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(number).normal(0, 1e-3, len(time_s))
    during = np.any([(time_s >= start) & (time_s < start + 0.6) for start in (call_s, 2.2)], axis=0)
    path = archive.recordings / f"buoy_20260301_00000{number}.wav"
    soundfile.write(path, noise + 0.5 * during * np.sin(2 * np.pi * 2000 * time_s), RATE_HZ)


def anew(archive: Archive, output: Path) -> Path:
    """The folder as the scan before has left it."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(archive.before, output)
    return output


def contents(output: Path) -> dict[str, Any]:
    """All that a scan leaves, without times of running."""
    with closing(connected(output / DATABASE, "mode=ro")) as connection:
        rows: dict[str, Any] = {name: rows_of(connection, name) for name in TABLES}
        rows["check"] = connection.execute("PRAGMA integrity_check").fetchone()[0]
    rows["clips"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (output / CLIPS).iterdir()}
    aside = output / SET_ASIDE
    return {**rows, "aside": aside.read_text() if aside.exists() else "", "staging": (output / STAGING).exists()}


def rows_of(connection: Any, table: str) -> Rows:
    """Rows of a table without what another run has otherwise."""
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY id")
    names = [column[0] for column in cursor.description]
    return [{name: value for name, value in zip(names, row) if name not in OWN} for row in cursor]


def by_file(left: dict[str, Any]) -> dict[str, Rows]:
    """Detections by file, for those files that were scanned; numbers of rows and files are left out."""
    found: dict[str, Rows] = {row["path"]: [] for row in left["scanned"]}
    for row in left["detections"]:
        found[row["source"]].append({name: row[name] for name in ("start_s", "end_s", "score", "start_utc")})
    return found


# --- rounds -----------------------------------------------------------------------------------------------------------


def scan_rounds(kills: int, seed: int, longest_s: float, folder: Path) -> Account:
    """Kill scans until they have come to their end in spite of it, again and again."""
    rng, account, archive = random.Random(seed), Account(), made(folder)
    while account.kills < kills:
        output, scans = anew(archive, folder / "killed" / "out"), list[Scan]()
        while not one_scan(account, archive, output, rng, scans):
            account.tell(kills)
        account.counts["scans that came to their end"] += 1
        differs = [name for name, value in contents(output).items() if value != archive.left[name]]
        account.expect(not differs, f"after {len(scans)} lives other than undisturbed: {', '.join(differs)}")
        check_gone(account, scans)
    return account


def one_scan(account: Account, archive: Archive, output: Path, rng: random.Random, scans: list[Scan]) -> bool:
    """One life of a scan; whether it came to its end."""
    scan = Scan(archive, output)
    scans.append(scan)
    if rng.random() < AFTER_WORD:  # about when some file becomes part of the database
        scan.wait_for_lines(rng.randrange(archive.printed.count("\n")))
        time.sleep(rng.uniform(0, WHILE_TAKEN_S))
    else:
        time.sleep(rng.uniform(0, BEYOND * archive.life_s))
    if rng.random() < OF_WORKERS:
        met = scan.kill_worker(rng)
        account.kills += met
        account.counts["workers killed"] += met
    elif scan.kill():
        account.kills += 1
        account.counts["scans killed"] += 1
        check_between(account, archive, output, scan)
        return False
    code = scan.end()
    account.expect(code == SKIPPED, f"a scan ended with {code}: {scan.log[-1000:]}")
    account.expect(scan.printed == archive.printed, f"a scan printed {scan.printed}")
    return True


def check_between(account: Account, archive: Archive, output: Path, scan: Scan) -> None:
    """Right after a kill: each file as it was before or as it is to be; what was printed is there."""
    left = contents(output)
    account.expect(left["check"] == "ok", f"the database is damaged: {left['check']}")
    done = 0
    for path, found in by_file(left).items():
        known = [one.get(path) for one in (archive.found_before, archive.found)]
        account.expect(found in known, f"{path} holds {found}, not {known}")
        done += found == archive.found.get(path) != archive.found_before.get(path)
    account.counts["killed before the first file was taken"] += not done
    missing = [
        row["clip"] for row in left["detections"] if not row["clip"] or Path(row["clip"]).name not in left["clips"]
    ]
    account.expect(not missing, f"clips are missing: {missing}")
    there = {row["id"]: (row["source"], row["start_s"]) for row in left["detections"]}
    for line in scan.printed.splitlines():
        told = json.loads(line)
        account.counts["acknowledged detections"] += 1
        right = there.get(told["id"]) == (told["file"], told["start_s"])
        account.expect(right, f"{told} was printed, {there.get(told['id'])} is there")


def check_gone(account: Account, scans: list[Scan]) -> None:
    """Whoever worked for a scan that was killed has ended by itself."""
    until_s = time.monotonic() + PATIENCE_S
    while (left := [number for scan in scans for number in scan.members()]) and time.monotonic() < until_s:
        time.sleep(0.05)
    account.expect(not left, f"processes {left} of scans that were killed are still there")
