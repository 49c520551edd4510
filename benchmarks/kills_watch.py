"""The scenario `watch` of benchmarks/kills.py: the daemon's own loop, killed again and again."""

from __future__ import annotations

import json
import logging
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from killing import Account, Forked

from orcawatch import daemon
from orcawatch.bundle import BackboneFile, Bundle
from orcawatch.bundles import FOLDER
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
    tell_rows(output, pipe)
    settings = settings_in(output)
    daemon.run(sea, ensemble, settings, lambda detection: None, upkeep=Keep(settings, pipe))


def tell_rows(output: Path, pipe: int) -> None:
    """In a process that is to be killed: tell each row that is acknowledged, and log beside the output folder."""
    add = Store.add

    def telling(store: Store, detection: Detection, along: Any = None) -> int:
        id = add(store, detection, along)
        os.write(pipe, f"{id} {detection.session} {detection.start_sample} {detection.end_sample}\n".encode())
        return id

    Store.add = telling  # type: ignore[method-assign]
    logging.basicConfig(filename=output.parent / "victim.log", level=logging.WARNING, format="%(name)s %(message)s")


def watch(output: Path, sea: Sea, ensemble: Ensemble) -> Callable[[int], int]:
    """The work of a victim; it only ends by itself where it failed."""

    def work(pipe: int) -> int:
        victim(output, sea, ensemble, pipe)
        return 1

    return work


# --- what is checked --------------------------------------------------------------------------------------------------


@dataclass
class Watched(Account):
    """What was told by a watch, and what was found.

    Attributes
    ----------
    power : whether the power is cut: that a message was sent is not written at once, so that it may go again.
    told : by row, (session, start_sample, end_sample), as acknowledged.
    """

    power: bool = False
    told: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def take(self, lines: str, killed: bool) -> bool:
        """Take what a victim told; whether it had come as far as listening."""
        whole = lines.split("\n")[:-1]
        acknowledged = [line for line in whole if line[:1].isdecimal()]
        for line in acknowledged:
            id, *where = map(int, line.split())
            self.expect(id not in self.told, f"row {id} was acknowledged twice")
            self.told[id] = (where[0], where[1], where[2])
        self.expect(killed, f"a victim ended by itself: {lines[-1000:]} (see victim.log)")
        self.kills += 1
        self.counts["killed while starting"] += READY not in whole
        self.counts["killed before the first detection"] += READY in whole and not acknowledged
        self.counts["killed while detecting"] += bool(acknowledged)
        self.counts["acknowledged detections"] = len(self.told)
        return READY in whole


def check_round(account: Watched, output: Path, partials: set[Path], started: bool) -> set[Path]:
    """What was told in this round is there; the half-written files that are there now."""
    with looked_into(output / DATABASE) as connection:
        newest = max(account.told, default=0) - 200
        compare(account, connection, newest)
    found = half_written(output)
    left = found & partials
    account.expect(not (started and left), f"still half-written after a start: {sorted(left)}")
    account.expect(not list(output.glob("*damaged*")), "a database was taken for damaged")
    account.counts["half-written files left by a kill"] += len(found - partials)
    return found


def half_written(output: Path) -> set[Path]:
    """Files that a kill has left; those of the bundles' folder are for the next who changes something there."""
    return {file for file in output.glob(f"**/*{PARTIAL}") if file.parent.name != FOLDER}


def looked_into(path: Path) -> closing[sqlite3.Connection]:
    """A connection that leaves the write-ahead log to the next victim."""
    return closing(connected(path, "mode=ro"))


def compare(account: Watched, connection: sqlite3.Connection, beyond: int) -> None:
    """Acknowledged rows from some number on are there, as they were told."""
    query = "SELECT id, session, start_sample, end_sample FROM detections WHERE id > ?"
    there = {id: tuple(where) for id, *where in connection.execute(query, (beyond,))}
    for id, where in account.told.items():
        if id > beyond:
            account.expect(there.get(id) == where, f"row {id} was told as {where} and is {there.get(id)}")


def check_all(account: Watched, output: Path) -> None:
    """Everything: rows, ledger, messages, files."""
    with looked_into(output / DATABASE) as connection:
        account.expect(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "the database is damaged")
        compare(account, connection, 0)
        doubled = "SELECT session, start_sample FROM detections GROUP BY session, start_sample HAVING count(*) > 1"
        account.expect(not connection.execute(doubled).fetchall(), "a detection is there twice")
        check_ledger(account, connection)
        check_messages(account, connection, output)
        check_files(account, connection, output)


def check_ledger(account: Watched, connection: sqlite3.Connection) -> None:
    """Stretches tile each session from 0 to beyond its last detection."""
    ends: dict[int, int] = {}
    query = "SELECT session, start_sample, end_sample FROM ledger WHERE start_sample IS NOT NULL ORDER BY session, id"
    for session, start, end in connection.execute(query):
        account.expect(start == ends.get(session, 0) and end >= start, f"the ledger of session {session} has a hole")
        ends[session] = end
    for session, last in connection.execute("SELECT session, max(end_sample) FROM detections GROUP BY session"):
        account.expect(ends.get(session, 0) >= last, f"the ledger of session {session} ends before its detections")
    account.counts["stretches in the ledger"] = connection.execute("SELECT count(*) FROM ledger").fetchone()[0]


def check_messages(account: Watched, connection: sqlite3.Connection, output: Path) -> None:
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


def check_files(account: Watched, connection: sqlite3.Connection, output: Path) -> None:
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


def check_start(account: Watched, output: Path) -> None:
    """A last start in order leaves no file behind that no row knows."""
    with open_store(output / DATABASE) as store:
        retention = Retention(store, output, settings_in(output).retention)
        retention.begin()
        account.expect(not retention._unknown, f"files without a row: {retention._unknown[:3]}")
    account.expect(not half_written(output), "half-written files after a start")


# --- rounds -----------------------------------------------------------------------------------------------------------


def one_life(work: Callable[[int], int], rng: random.Random, longest_s: float) -> Forked:
    """Start a victim and let it live for a random time; it is still to be killed."""
    process = Forked(work)
    if rng.random() > STARTING:
        process.wait_for_word(PATIENCE_S)  # it listens, or has failed
    time.sleep(rng.uniform(0, longest_s))
    return process


def kill_rounds(kills: int, seed: int, longest_s: float, folder: Path) -> Watched:
    """Kill, start again in the same folder, compare."""
    rng, account = random.Random(seed), Watched()
    sea, ensemble, partials = Sea(), Ensemble(), set[Path]()
    output = folder / "out"
    output.mkdir(parents=True, exist_ok=True)
    for index in range(kills):
        process = one_life(watch(output, sea, ensemble), rng, longest_s)
        process.kill()
        ended = process.end()
        started = account.take(ended.told, ended.killed)
        if (output / DATABASE).exists() and account.told:
            partials = check_round(account, output, partials, started)
            if index % FULL_EVERY == FULL_EVERY - 1:
                check_all(account, output)
        account.tell(kills)
    check_end(account, output)
    return account


def check_end(account: Watched, output: Path) -> None:
    """Everything, before and after a last start in order."""
    check_all(account, output)
    check_start(account, output)
    check_all(account, output)
