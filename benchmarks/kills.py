"""Kill the daemon at random moments, again and again: is any acknowledged detection lost or doubled?

    python benchmarks/kills.py [--rounds 1000] [--seed 0] [--output FOLDER]
    python benchmarks/kills.py --power [--rounds 200]          (root: mounts a small ext4)

The daemon's own loop with database, ledger, clips, retention, outbox and a JSON lines sink runs on an endless sea in
which there is a call every 2.4 s, many times faster than real time; only the networks are left out (a window is scored
by the energy between 1 and 4 kHz). It tells each detection on a pipe once `Store.add` has returned. It is killed with
SIGKILL at whatever it is doing, 0 to `--longest` seconds after it began to listen, or, one time in four, after it was
started, and started again in the same folder. After each kill the database is compared with what was told.

With `--power` it runs on a small ext4 in a file. At the kill, that file is copied as it is: what the kernel had not yet
written to the disk is lost, as when the power fails. The next round mounts the copy, so that ext4 replays its journal.

Prints a table; exit code 1 where anything was lost, doubled or damaged.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from select import select
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads must not fork

import numpy as np

from orcawatch import daemon
from orcawatch.bundle import BackboneFile, Bundle
from orcawatch.clock import Clocks
from orcawatch.config import ClipSettings, EventSettings, RetentionSettings, Settings
from orcawatch.daemon import DATABASE, Upkeep
from orcawatch.durable import PARTIAL
from orcawatch.lines import LinesSettings
from orcawatch.outbox import Outbox, open_outbox
from orcawatch.records import AudioBlock, StreamInfo, Window, WindowScore
from orcawatch.recovery import open_store
from orcawatch.retention import Retention
from orcawatch.spectrogram import LogMel
from orcawatch.store import Detection, Store, connected

RATE_HZ = 16000
LOOP_S = 12.0
CALLS_S = (1.0, 3.4, 5.8, 8.2, 10.6)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
FULL_EVERY = 50  # rounds between two looks at everything
DISK_MB = 48
READY = "ready"
STARTING = 0.25  # share of the kills that may come while it starts
PATIENCE_S = 30.0


# --- what runs and is killed ------------------------------------------------------------------------------------------


class Ensemble:
    """Scores a channel by the energy of its rows from 1 to 4 kHz."""

    def __init__(self) -> None:
        end = LogMel()
        self._band = np.asarray((end.frequencies_hz > 1000) & (end.frequencies_hz < 4000), np.float32)
        self.bundle = Bundle(
            name="energy",
            folder=Path("energy"),
            backbones={"energy": BackboneFile("energy", "energy.tflite", "energy-explain.tflite", 4, end)},
            members=("energy",),
            vote=("energy",),
            hop_s=0.48,
            channel_fusion="max",
            start_threshold=0.5,
            stop_threshold=0.3,
            manifest={"name": "energy", "digest": "0" * 64, "files": {}},
        )
        self.cascade = self.bundle.cascade

    def score(self, window: Window, columns: Any = None, vote: Any = None) -> WindowScore:
        """As `orcawatch.ensemble.Ensemble.score`."""
        level = (window.rows["energy"] * self._band).mean(axis=(1, 2))
        scores = np.asarray(level / (level + 0.5), np.float32)
        return WindowScore(window.start_sample, window.end_sample, scores[:, None], scores, float(scores.max()))

    def explain(self, windows: Sequence[Window], channel: int) -> list[Any]:
        """Nobody asks: there are no snapshots."""
        raise NotImplementedError


class Sea:
    """An endless stream, as fast as it is taken."""

    waits = True
    behind_s = 0.0
    clock = None

    def __init__(self) -> None:
        time_s = np.arange(round(LOOP_S * RATE_HZ)) / RATE_HZ
        during = np.any([(time_s >= start) & (time_s < start + 0.7) for start in CALLS_S], axis=0)
        noise = np.random.default_rng(0).normal(0, 1e-3, len(time_s))
        samples = noise + 0.5 * during * np.sin(2 * np.pi * 2000 * time_s)
        self._samples = samples.astype(np.float32)[:, None]
        self.info = StreamInfo("sea", RATE_HZ, 1, START)

    def utc_at(self, sample: int) -> datetime | None:
        """UTC of a position."""
        return self.info.utc_at(sample)

    def blocks(self) -> Iterator[AudioBlock]:
        """Blocks of 0.4 s without end."""
        rows, first = round(0.4 * RATE_HZ), 0
        while True:
            at = first % len(self._samples)
            yield AudioBlock(self._samples[at : at + rows], first)
            first += rows


class Keep(Upkeep):
    """Retention and outbox beside the loop, as in a long watch; tells on a pipe when both are there."""

    def __init__(self, settings: Settings, pipe: int) -> None:
        self._settings = settings
        self._pipe = pipe

    @contextmanager
    def watching(self, store: Store) -> Iterator[None]:
        """Around the whole watch."""
        with ExitStack() as self._open:
            self._store = store
            self._retention = self._open.enter_context(
                Retention(store, self._settings.output, self._settings.retention)
            )
            yield

    def outbox(self, session: int | None) -> Outbox:
        """Where messages wait for the sink."""
        opened = open_outbox(self._store, self._settings, Clocks(), session)
        os.write(self._pipe, f"{READY}\n".encode())
        return self._open.enter_context(opened)

    def room(self, size: int) -> bool:
        """Whether there is room for a clip."""
        return self._retention.room(size)


def settings_in(output: Path) -> Settings:
    """Short clips, a megabyte of them at most, and one sink."""
    return Settings(
        output=output,
        snapshots=False,
        events=EventSettings(merge_gap_s=0.1),
        clips=ClipSettings(pre_roll_s=0.2, post_roll_s=0.2),
        retention=RetentionSettings(max_clips_mb=1, min_free_mb=0, reserve_mb=1),
        sinks=(LinesSettings(kind="jsonl", send=("detection",), min_free_mb=0),),
    )


def victim(output: Path, sea: Sea, ensemble: Ensemble, pipe: int) -> None:
    """Run until killed; each row is told once it is acknowledged."""
    add = Store.add

    def telling(store: Store, detection: Detection, along: Any = None) -> int:
        id = add(store, detection, along)
        os.write(pipe, f"{id} {detection.session} {detection.start_sample} {detection.end_sample}\n".encode())
        return id

    Store.add = telling  # type: ignore[method-assign]
    logging.basicConfig(filename=output.parent / "victim.log", level=logging.WARNING, format="%(name)s %(message)s")
    settings = settings_in(output)
    daemon.run(sea, ensemble, settings, lambda detection: None, upkeep=Keep(settings, pipe))


def forked(output: Path, sea: Sea, ensemble: Ensemble) -> tuple[int, int]:
    """Start a victim from this process, in which everything is loaded; (process, end of its pipe)."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    try:
        os.close(reading)
        victim(output, sea, ensemble, writing)
    finally:
        os._exit(1)  # it only comes here when it failed


# --- what is checked --------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What was told, and what was found.

    Attributes
    ----------
    power : whether the power is cut: that a message was sent is not written at once, so that it may go again.
    kills : so far.
    told : by row, (session, start_sample, end_sample), as acknowledged.
    counts : how often what happened.
    faults : what must not be.
    """

    power: bool = False
    kills: int = 0
    told: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def expect(self, right: bool, fault: str) -> None:
        """Note a fault."""
        if not right:
            self.faults.append(fault)

    def take(self, lines: str, killed: bool) -> bool:
        """Take what a victim told; whether it had come as far as listening."""
        whole = lines.split("\n")[:-1]
        acknowledged = [line for line in whole if line != READY]
        for line in acknowledged:
            id, *where = map(int, line.split())
            self.expect(id not in self.told, f"row {id} was acknowledged twice")
            self.told[id] = (where[0], where[1], where[2])
        self.expect(killed, "a victim ended by itself: see victim.log")
        self.kills += 1
        self.counts["killed while starting"] += READY not in whole
        self.counts["killed before the first detection"] += READY in whole and not acknowledged
        self.counts["killed while detecting"] += bool(acknowledged)
        return READY in whole


def check_round(account: Account, output: Path, partials: set[Path], started: bool) -> set[Path]:
    """What was told in this round is there; the half-written files that are there now."""
    with looked_into(output / DATABASE) as connection:
        newest = max(account.told, default=0) - 200
        compare(account, connection, newest)
    left = {file for file in output.glob(f"**/*{PARTIAL}") if file in partials}
    account.expect(not (started and left), f"still half-written after a start: {sorted(left)}")
    account.expect(not list(output.glob("*damaged*")), "a database was taken for damaged")
    found = set(output.glob(f"**/*{PARTIAL}"))
    account.counts["half-written files left by a kill"] += len(found - partials)
    return found


def looked_into(path: Path) -> closing[sqlite3.Connection]:
    """A connection that leaves the write-ahead log to the next victim."""
    return closing(connected(path, "mode=ro"))


def compare(account: Account, connection: sqlite3.Connection, beyond: int) -> None:
    """Acknowledged rows from some number on are there, as they were told."""
    query = "SELECT id, session, start_sample, end_sample FROM detections WHERE id > ?"
    there = {id: tuple(where) for id, *where in connection.execute(query, (beyond,))}
    for id, where in account.told.items():
        if id > beyond:
            account.expect(there.get(id) == where, f"row {id} was told as {where} and is {there.get(id)}")


def check_all(account: Account, output: Path) -> None:
    """Everything: rows, ledger, messages, files."""
    with looked_into(output / DATABASE) as connection:
        account.expect(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "the database is damaged")
        compare(account, connection, 0)
        doubled = "SELECT session, start_sample FROM detections GROUP BY session, start_sample HAVING count(*) > 1"
        account.expect(not connection.execute(doubled).fetchall(), "a detection is there twice")
        check_ledger(account, connection)
        check_messages(account, connection, output)
        check_files(account, connection, output)


def check_ledger(account: Account, connection: sqlite3.Connection) -> None:
    """Stretches tile each session from 0 to beyond its last detection."""
    ends: dict[int, int] = {}
    query = "SELECT session, start_sample, end_sample FROM ledger WHERE start_sample IS NOT NULL ORDER BY session, id"
    for session, start, end in connection.execute(query):
        account.expect(start == ends.get(session, 0) and end >= start, f"the ledger of session {session} has a hole")
        ends[session] = end
    for session, last in connection.execute("SELECT session, max(end_sample) FROM detections GROUP BY session"):
        account.expect(ends.get(session, 0) >= last, f"the ledger of session {session} ends before its detections")
    account.counts["stretches in the ledger"] = connection.execute("SELECT count(*) FROM ledger").fetchone()[0]


def check_messages(account: Account, connection: sqlite3.Connection, output: Path) -> None:
    """One message for each detection in the outbox, one line in the sink's files for each that counts as sent.

    The outbox forgets what was sent an hour ago, and a campaign may take longer.
    """
    waiting = messages(row[0] for row in connection.execute("SELECT payload FROM outbox"))
    sent = messages(row[0] for row in connection.execute("SELECT payload FROM outbox WHERE sent_utc IS NOT NULL"))
    rows = Counter({id: 1 for (id,) in connection.execute("SELECT id FROM detections")})
    lines = [line for file in (output / "messages").glob("*.jsonl") for line in file.read_bytes().splitlines(True)]
    arrived = messages(line for line in lines if line.endswith(b"\n"))
    twice = sum(arrived.values()) - len(arrived)
    forgotten = set(rows) - set(waiting)
    account.expect(waiting <= rows and forgotten <= set(arrived), "not one message for each detection")
    account.expect(set(sent) <= set(arrived), "a message that counts as sent has not arrived")
    account.expect(account.power or twice == 0, "a message arrived twice")
    unsent = len(set(arrived) - forgotten) - len(sent)
    account.expect(account.power or unsent <= 1, "messages that arrived do not count as sent")
    account.counts["messages that arrived"] = len(arrived)
    account.counts["messages that arrived twice"] = twice


def messages(payloads: Any) -> Counter[int]:
    """How many messages there are of each detection."""
    return Counter(json.loads(payload)["body"]["detection"] for payload in payloads)


def check_files(account: Account, connection: sqlite3.Connection, output: Path) -> None:
    """Files that rows name are there, unless the row says why not."""
    query = "SELECT clip FROM detections WHERE clip IS NOT NULL AND removed IS NULL"
    named = {clip for (clip,) in connection.execute(query)}
    missing = [clip for clip in named if not (output / clip).is_file()]
    account.expect(not missing, f"clips are missing: {missing[:5]}")
    counts = {
        "clips kept": "clip IS NOT NULL AND removed IS NULL",
        "clips deleted by retention": "removed IS NOT NULL",
        "detections without a clip (killed before it was written)": "clip IS NULL",
        "detections": "1",
    }
    for what, where in counts.items():
        account.counts[what] = connection.execute(f"SELECT count(*) FROM detections WHERE {where}").fetchone()[0]
    untold = account.counts["detections"] - len(account.told)
    account.expect(
        0 <= untold <= account.kills, f"{untold} rows were written and not acknowledged, in {account.kills} kills"
    )


def check_start(account: Account, output: Path) -> None:
    """A last start in order leaves no file behind that no row knows."""
    with open_store(output / DATABASE) as store:
        retention = Retention(store, output, settings_in(output).retention)
        retention.begin()
        account.expect(not retention._unknown, f"files without a row: {retention._unknown[:3]}")
    account.expect(not list(output.glob(f"**/*{PARTIAL}")), "half-written files after a start")


# --- rounds -----------------------------------------------------------------------------------------------------------


def one_life(output: Path, sea: Sea, ensemble: Ensemble, rng: random.Random, longest_s: float) -> tuple[int, int]:
    """Start a victim and kill it at a random moment; (process, pipe), still to be collected."""
    process, reading = forked(output, sea, ensemble)
    if rng.random() > STARTING:
        select([reading], [], [], PATIENCE_S)  # it listens, or has failed
    time.sleep(rng.uniform(0, longest_s))
    os.kill(process, signal.SIGKILL)
    return process, reading


def collect(account: Account, process: int, reading: int) -> bool:
    """Wait for a killed victim and take what it told; whether it had come as far as listening."""
    _, status = os.waitpid(process, 0)
    with os.fdopen(reading) as pipe:
        lines = pipe.read()
    return account.take(lines, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)


def kill_rounds(rounds: int, seed: int, longest_s: float, output: Path) -> Account:
    """Kill, start again in the same folder, compare."""
    rng, account = random.Random(seed), Account()
    sea, ensemble, partials = Sea(), Ensemble(), set[Path]()
    output.mkdir(parents=True, exist_ok=True)
    for index in range(rounds):
        started = collect(account, *one_life(output, sea, ensemble, rng, longest_s))
        if (output / DATABASE).exists() and account.told:
            partials = check_round(account, output, partials, started)
            if index % FULL_EVERY == FULL_EVERY - 1:
                check_all(account, output)
                progress(index + 1, rounds, account)
    check_all(account, output)
    check_start(account, output)
    check_all(account, output)
    return account


def power_rounds(rounds: int, seed: int, longest_s: float, folder: Path) -> Account:
    """The same on a disk of which only what was written is left."""
    rng, account = random.Random(seed), Account(power=True)
    sea, ensemble = Sea(), Ensemble()
    disk, place = folder / "disk.img", folder / "place"
    place.mkdir(parents=True)
    disk.touch()
    os.truncate(disk, DISK_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    for index in range(rounds):
        loop = mounted(disk, place)
        (place / "out").mkdir(exist_ok=True)
        process, reading = one_life(place / "out", sea, ensemble, rng, longest_s)
        cut_power(disk, loop)
        collect(account, process, reading)
        subprocess.run(["umount", str(place)], check=True)
        (folder / "after.img").replace(disk)
        check_disk(account, disk, place, index % FULL_EVERY == FULL_EVERY - 1 or index == rounds - 1)
        if index % FULL_EVERY == FULL_EVERY - 1:
            progress(index + 1, rounds, account)
    return account


def mounted(disk: Path, place: Path) -> Path:
    """Mount; the folder in which the kernel counts what is written."""
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    device = subprocess.run(["findmnt", "-no", "SOURCE", str(place)], check=True, capture_output=True, text=True)
    return Path("/sys/block") / Path(device.stdout.strip()).name


def cut_power(disk: Path, loop: Path) -> None:
    """Copy the disk in a moment in which nothing is being written to it."""
    while True:
        before = written(loop)
        shutil.copyfile(disk, disk.with_name("after.img"))
        if before is not None and written(loop) == before:
            return


def written(loop: Path) -> int | None:
    """Writes to a device so far; None while some are under way."""
    numbers = (loop / "stat").read_text().split()
    return None if int(numbers[8]) else int(numbers[4])


def check_disk(account: Account, disk: Path, place: Path, whole: bool) -> None:
    """Look at a copy, so that the next round finds the disk as the power cut left it."""
    copy = disk.with_name("looked-at.img")
    shutil.copyfile(disk, copy)
    subprocess.run(["mount", "-o", "loop", str(copy), str(place)], check=True)
    try:
        output = place / "out"
        account.expect(not list(output.glob("*damaged*")), "a database was taken for damaged")
        if (output / DATABASE).exists():
            check_database(account, output, whole)
        else:
            account.expect(not account.told, "the database is gone")
    except sqlite3.Error as fault:
        account.expect(False, f"the database cannot be read: {fault}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def check_database(account: Account, output: Path, whole: bool) -> None:
    """What was told is there, and the pages are in order; now and then everything."""
    with looked_into(output / DATABASE) as connection:
        intact = connection.execute("PRAGMA integrity_check").fetchone()[0]
        account.expect(intact == "ok", f"the database is damaged: {intact}")
        if account.told:
            compare(account, connection, 0)
    if whole:
        check_all(account, output)


def progress(done: int, rounds: int, account: Account) -> None:
    """One line on stderr."""
    print(f"{done} of {rounds} rounds, {len(account.told)} acknowledged, {len(account.faults)} faults", file=sys.stderr)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.25, help="seconds until a kill, at most")
    parser.add_argument("--output", type=Path, help="folder to work in, kept; a temporary one where it is left out")
    parser.add_argument("--power", action="store_true", help="cut the power instead")
    chosen = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.output or Path(temporary)
        if chosen.power:
            account = power_rounds(chosen.rounds, chosen.seed, chosen.longest, folder / "power")
        else:
            account = kill_rounds(chosen.rounds, chosen.seed, chosen.longest, folder / "kills" / "out")
    print_table(account, chosen.rounds, time.monotonic() - began_s)
    sys.exit(1 if account.faults else 0)


def print_table(account: Account, rounds: int, seconds: float) -> None:
    """The account."""
    print(f"| {rounds} kills in {seconds:.0f} s | |\n|---|---|")
    print(f"| acknowledged detections | {len(account.told)} |")
    for what, count in account.counts.items():
        print(f"| {what} | {count} |")
    print(f"| faults | {len(account.faults)} |")
    for fault in account.faults[:20]:
        print(f"\n- {fault}")


if __name__ == "__main__":
    main()
