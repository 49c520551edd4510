"""Store and forward: messages wait in the database until the far side says that it has them.

A message is written in the transaction of what it tells of: both are on the disk, or neither. Each sink has a thread
with a database connection of its own, which takes the message of the highest priority, the oldest first, sends it, and
marks it when it was acknowledged. A crash between the two sends it again: it arrives at least once, and its `id` tells
the receiver that it has it already.
"""

from __future__ import annotations

import logging
import math
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Protocol, TextIO

from .errors import OrcawatchError
from .sinks import (
    KEPT,
    PRIORITIES,
    Message,
    Origin,
    RefusedError,
    Sink,
    SinkError,
    Site,
    UnreachableError,
    make_sink,
    message,
)
from .store import identity
from .turn import NOBODY, nobody_sends, take_turn

if TYPE_CHECKING:
    from .config import Settings
    from .store import Store

log = logging.getLogger(__name__)

MB = 10**6
HOUR_S = 3600.0
POLL_S = 1.0  # how long a message may wait unnoticed
SHORT_OF_BYTES_S = 10.0  # the same while the budget is used up
RETRY_LEAST_S = 1.0
RETRY_MOST_S = 300.0
LONGEST_S = 86400.0  # a far side may ask to be left alone for so long
REMIND_S = 3600.0  # a fault that stays is logged again after this
PRUNE_S = 600.0  # how often sent messages are deleted,
KEEP_SENT_S = 3600.0  # this long after they were sent,
PRUNE_ROWS = 500  # so many at once
BROKEN_TRIES = 20  # a message on which a sink breaks this often is parked
STUBBORN_TRIES = 20  # every so many tries without an acknowledgement another message goes first:
LAST = 0  # where that one is acknowledged, the stubborn one gets this priority
SPARE = 0.05  # of a full queue is emptied at once: to look what may go takes a while
LONG_LOOK_S = 0.2  # to count what waits may take longer in a queue of months: what was found stands then
LOOKS_REST = 100  # times as long as it took
FULL_S = 60.0  # a queue that nothing may be dropped from is looked at again after this
BUSY_S = 5.0
TURN_S = 5.0  # how often it is tried to become the one who sends
LOOK_FIRST_S = 60.0  # an uplink that starts with the watch has the lock by then
LOOK_S = 3600.0


class Clock(Protocol):
    """What is needed of `orcawatch.clock.Timekeeper`."""

    @property
    def boot(self) -> str: ...
    def steady_s(self) -> float: ...
    def utc(self) -> datetime: ...


@dataclass(frozen=True)
class Queue:
    """One sink and what it is sent.

    Attributes
    ----------
    name : of the queue in the database; it stays the same from run to run.
    sink : where messages go.
    kinds : which messages.
    bytes_per_hour : most that is sent in an hour, on average; None for no limit.
    most_bytes : messages that may wait.
    """

    name: str
    sink: Sink
    kinds: tuple[str, ...]
    bytes_per_hour: int | None = None
    most_bytes: int = 64 * MB


@dataclass(frozen=True)
class Depth:
    """What waits in a queue.

    Attributes
    ----------
    messages, bytes : that wait.
    oldest_utc : when the oldest was made; empty where none waits.
    parked : messages that the far side refused.
    dropped : messages given up since the start of the program, because the queue was full.
    """

    messages: int = 0
    bytes: int = 0
    oldest_utc: str = ""
    parked: int = 0
    dropped: int = 0


class Budget:
    """Bytes that may be sent: a bucket that holds an hour's worth and fills evenly.

    A message larger than the bucket goes when the bucket is full and leaves it below zero, so that the average holds.

    Parameters
    ----------
    bytes_per_hour : what flows in, and what the bucket holds.
    left : what is in it.
    steady_s : now.
    """

    def __init__(self, bytes_per_hour: int, left: float, steady_s: float) -> None:
        self.left = min(left, bytes_per_hour)
        self._size = bytes_per_hour
        self._at_s = steady_s

    def wait_s(self, size: int, steady_s: float) -> float:
        """How long until `size` bytes may be sent; 0 where they may now."""
        self.left = min(self._size, self.left + (steady_s - self._at_s) * self._size / HOUR_S)
        self._at_s = steady_s
        missing = min(size, self._size) - self.left
        return max(0.0, missing * HOUR_S / self._size) if missing > 1e-6 else 0.0


class Outbox:
    """The queues of all sinks.

    Parameters
    ----------
    path : the database (of a `Store` that made its tables).
    queues : the sinks.
    origin : who speaks.
    clocks : the machine's.
    sends : whether it also sends, or another process does (`orcawatch uplink`).
    output : the folder whose `uplink-lock` it holds while it sends, or sees held by that process; None where the
        caller holds it.
    """

    def __init__(
        self,
        path: Path,
        queues: Sequence[Queue],
        origin: Origin,
        clocks: Clock,
        sends: bool = True,
        output: Path | None = None,
    ) -> None:
        self._origin = origin
        self._clocks = clocks
        self._dropped = {queue.name: 0 for queue in queues}
        self._path = path
        self._queues = {queue.name: queue for queue in queues}
        self._bytes = {queue.name: queue.most_bytes for queue in queues}  # that wait, at most
        self._full_until_s = {queue.name: -math.inf for queue in queues}
        self._senders = [Sender(path, queue, clocks) for queue in queues] if sends else []
        self._depths: dict[str, Depth] = {}
        self._look_at_s = -math.inf
        self._threads: list[Thread] = []
        self._stop = Flag()
        self._until_s = 0.0
        self._sends = sends
        self._output = output
        self._lock: TextIO | None = None
        self._complaint = ""

    def takes(self, kind: str) -> bool:
        """Whether any sink takes a kind of message."""
        return any(kind in queue.kinds for queue in self._queues.values())

    def post(self, connection: sqlite3.Connection, kind: str, body: Mapping[str, Any]) -> None:
        """Put a message into the queue of every sink that takes its kind, inside the caller's transaction."""
        if not self.takes(kind):
            return
        payload = message(self._origin, kind, body, self._clocks.utc(), self._clocks.steady_s())
        for name, queue in self._queues.items():
            if kind in queue.kinds:
                self.put(connection, name, kind, payload)

    def put(
        self, connection: sqlite3.Connection, sink: str, kind: str, payload: bytes, priority: int | None = None
    ) -> None:
        """Put one message into one queue, inside the caller's transaction; it never waits for a far side.

        Where the queue is full, the oldest messages of the lowest priority go (not above this one's), some more of them
        than needed; a detection or a change of the clock never does.

        Parameters
        ----------
        connection : in a transaction (`Store.transaction`).
        sink : name of the queue.
        kind, payload : see `orcawatch.sinks.message`.
        priority : the higher goes first; None for the kind's own.
        """
        rank = PRIORITIES.get(kind, 0) if priority is None else priority
        if self._room(connection, self._queues[sink], len(payload), rank) or kind in KEPT:
            connection.execute(
                "INSERT INTO outbox (sink, kind, priority, created_utc, payload, tries) VALUES (?, ?, ?, ?, ?, 0)",
                (sink, kind, rank, self._clocks.utc().isoformat(), payload),
            )
            self._bytes[sink] += len(payload)
        else:
            self._tell_dropped(sink, {kind: 1})

    def depths(self) -> dict[str, Depth]:
        """What waits in each queue; to be called from anywhere but inside a transaction of one's own.

        Where so much waits that counting it takes long, the answer may be some minutes old.

        Raises
        ------
        OrcawatchError : the database cannot be read.
        """
        began_s = self._clocks.steady_s()
        if began_s >= self._look_at_s:
            with looked_into(self._path) as connection:
                self._depths = {name: depth(connection, name, self._dropped[name]) for name in self._queues}
            took_s = self._clocks.steady_s() - began_s
            self._look_at_s = began_s + LOOKS_REST * took_s if took_s > LONG_LOOK_S else -math.inf
        return self._depths

    def start(self) -> None:
        """Start one thread per sink, as soon as no other process sends.

        Raises
        ------
        OrcawatchError : the database cannot be read.
        """
        self._warn_of_strangers()
        if not self._sends:
            self._begin(self._see_that_somebody_sends, "look for an uplink")
        elif self._my_turn():
            self._start_senders()
        else:
            self._begin(self._wait_for_turn, "wait for another uplink")

    def _begin(self, work: Callable[..., None], name: str, *arguments: Any) -> None:
        thread = Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start_senders(self) -> None:
        for sender in self._senders:
            self._begin(self._work, f"sink {sender.name}", sender)

    def _my_turn(self) -> bool:
        """Whether this is the one who sends, from now on; why not is logged once."""
        if self._output is None:
            return True
        try:
            self._lock = take_turn(self._output)
            why = "another process sends what waits there: `systemctl stop orcawatch-uplink`, or end it"
        except OSError as fault:
            why = f"uplink-lock cannot be taken: {fault.strerror}; check the disk, and who owns that file"
        if self._lock is None and why != self._complaint:
            log.warning("%s: %s; this one sends nothing until then", self._output, why)
            self._complaint = why
        return self._lock is not None

    def _wait_for_turn(self) -> None:
        while not self._stop.wait(TURN_S):
            if self._my_turn():
                log.warning("nobody else sends what waits in %s any more: this one does", self._output)
                self._start_senders()
                return

    def _see_that_somebody_sends(self) -> None:
        """Warn, soon and every hour, where nobody does."""
        wait_s = LOOK_FIRST_S
        while self._queues and self._output is not None and not self._stop.wait(wait_s):
            wait_s = LOOK_S
            try:
                if nobody_sends(self._output):
                    log.warning(NOBODY)
            except OSError as fault:
                log.warning("%s: whether anybody sends cannot be seen: %s", self._output, fault)

    def send_once(self, stop: Flag) -> None:
        """Send from this thread, queue by queue, until nothing waits, or it does not go now; not beside `start`."""
        for sender in self._senders:
            while not stop.is_set() and sender.step() == 0:
                pass
            sender.close()

    def close(self, seconds: float = 5.0) -> None:
        """Send what can be sent within some seconds, and end; what is left stays in the database."""
        self._until_s = self._clocks.steady_s() + seconds
        self._stop.set()
        while self._threads:
            thread = self._threads.pop(0)
            thread.join(max(0.1, self._until_s + 1 - self._clocks.steady_s()))
            if thread.is_alive():
                log.warning("%s hangs and is left behind; its messages stay in the outbox", thread.name)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Outbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, sender: Sender) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            wait_s = sender.step()
        while self._clocks.steady_s() < self._until_s and sender.step() == 0:
            pass
        sender.close()

    def _room(self, connection: sqlite3.Connection, queue: Queue, size: int, rank: int) -> bool:
        """Whether a message fits, after dropping what may go for it."""
        if self._bytes[queue.name] + size <= queue.most_bytes:
            return True
        began_s = self._clocks.steady_s()
        if began_s < self._full_until_s[queue.name]:
            return False
        self._bytes[queue.name] = waiting_bytes(connection, queue.name)
        excess = self._bytes[queue.name] + size - queue.most_bytes
        freed = self._drop(connection, queue, excess, rank) if excess > 0 else 0
        if freed < excess:
            now_s = self._clocks.steady_s()
            self._full_until_s[queue.name] = now_s + max(FULL_S, LOOKS_REST * (now_s - began_s))
        return freed >= excess

    def _drop(self, connection: sqlite3.Connection, queue: Queue, excess: int, rank: int) -> int:
        """Delete messages worth some bytes and a little more, as far as they may go; the bytes."""
        gone = list(droppable(connection, queue.name, excess + round(SPARE * queue.most_bytes), rank))
        connection.executemany("DELETE FROM outbox WHERE id = ?", [(row,) for row, _, _ in gone])
        freed = sum(length for _, _, length in gone)
        self._bytes[queue.name] -= freed
        if gone:
            kinds = [kind for _, kind, _ in gone]
            self._tell_dropped(queue.name, {kind: kinds.count(kind) for kind in sorted(set(kinds))})
        return freed

    def _tell_dropped(self, sink: str, kinds: Mapping[str, int]) -> None:
        self._dropped[sink] += sum(kinds.values())
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        log.warning(
            "the queue of sink %s is full (%g MB): dropped %s; raise `max_mb`, or see why it does not send",
            sink, self._queues[sink].most_bytes / MB, what,
        )  # fmt: skip

    def _warn_of_strangers(self) -> None:
        """Messages whose sink is no longer configured are told of, and kept."""
        with looked_into(self._path) as connection:
            rows = connection.execute(
                "SELECT sink, count(*) FROM outbox WHERE sent_utc IS NULL GROUP BY sink ORDER BY sink"
            ).fetchall()
        for name, count in rows:
            if name not in self._queues:
                log.warning(
                    "%d messages wait for sink %s, which the configuration does not name: they stay until it does",
                    count, name,
                )  # fmt: skip


class Sender:
    """Brings one queue's messages to its sink; every method is called from one thread.

    Parameters
    ----------
    path : the database.
    queue : the sink and its limits.
    clocks : the machine's.
    jitter : gives numbers from 0 to 1, so that many stations do not come back at the same moment.
    """

    def __init__(self, path: Path, queue: Queue, clocks: Clock, jitter: Callable[[], float] = random.random) -> None:
        self.name = queue.name
        self._path = path
        self._queue = queue
        self._clocks = clocks
        self._jitter = jitter
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which one it is to
        self._budget: Budget | None = None
        self._acknowledged: int | None = None  # a row that is to be marked
        self._aside: int | None = None  # a row that lets another one go first
        self._failures = 0
        self._retry_at_s = self._prune_at_s = 0.0
        self._complaint, self._complained_s = "", 0.0

    def step(self) -> float:
        """Send one message where one may be sent now.

        Returns
        -------
        How long to wait for the next step, in seconds: 0 where a message was dealt with.
        """
        wait_s = self._retry_at_s - self._clocks.steady_s()
        if wait_s > 0:
            return wait_s
        try:
            return self._step()
        except sqlite3.Error as fault:
            self._close_database()
            return self._later(f"{self._path} could not be used: {fault}; check that the disk is there and not full")
        except Exception as fault:
            log.exception("sink %s broke", self.name)
            return self._fail(f"{type(fault).__name__}: {fault}")

    def close(self) -> None:
        """Let go of the sink and of the database."""
        self._close_sink()
        self._close_database()

    def _step(self) -> float:
        connection = self._database()
        if self._acknowledged is not None:
            self._mark_sent(connection, self._acknowledged)
        self._prune(connection)
        try:
            self._queue.sink.open()
        except (SinkError, OSError) as fault:
            return self._fail(str(fault), getattr(fault, "after_s", None))
        found = next_message(connection, self.name, self._aside) or next_message(connection, self.name)
        if found is None:
            self._recovered()
            return POLL_S
        wait_s = self._budget.wait_s(self._size(found), self._clocks.steady_s()) if self._budget else 0.0
        return min(wait_s, SHORT_OF_BYTES_S) or self._send(connection, found)

    def _send(self, connection: sqlite3.Connection, found: Message) -> float:
        self._take(connection, found)
        try:
            self._queue.sink.send(found)
        except RefusedError as fault:
            return self._park(connection, found, str(fault))
        except UnreachableError as fault:
            self._give_back(connection, found)
            return self._fail(str(fault), fault.after_s)
        except (SinkError, OSError) as fault:
            self._aside = found.row if (found.tries + 1) % STUBBORN_TRIES == 0 else None
            return self._fail(str(fault), getattr(fault, "after_s", None))
        except Exception as fault:
            if found.tries + 1 < BROKEN_TRIES:
                raise
            return self._park(connection, found, f"the sink broke on it {BROKEN_TRIES} times: {fault!r}")
        self._acknowledged = found.row
        self._mark_sent(connection, found.row)
        self._recovered()
        self._demote(connection, found.row)
        return 0.0

    def _demote(self, connection: sqlite3.Connection, sent: int) -> None:
        """Let the message that is aside go last: others are acknowledged, and it is not."""
        aside, self._aside = self._aside, None
        if aside is not None and aside != sent:
            connection.execute("UPDATE outbox SET priority = ? WHERE id = ?", (LAST, aside))
            log.error(
                "sink %s: row %d of the outbox was tried %d times or more and not acknowledged, while another message "
                "is: it goes last from now on; is it too large for the far side?",
                self.name, aside, STUBBORN_TRIES,
            )  # fmt: skip

    def _size(self, message: Message) -> int:
        return len(message.payload) + self._queue.sink.overhead_bytes

    def _take(self, connection: sqlite3.Connection, found: Message) -> None:
        """Count the try and its bytes before it is made: a crash must not make it free."""
        if self._budget:
            self._budget.left -= self._size(found)
        with written(connection):
            connection.execute("UPDATE outbox SET tries = tries + 1 WHERE id = ?", (found.row,))
            self._keep_budget(connection)

    def _give_back(self, connection: sqlite3.Connection, found: Message) -> None:
        """Nothing was sent: that was no try, and cost nothing."""
        if self._budget:
            self._budget.left += self._size(found)
        with written(connection):
            connection.execute("UPDATE outbox SET tries = tries - 1 WHERE id = ?", (found.row,))
            self._keep_budget(connection)

    def _keep_budget(self, connection: sqlite3.Connection) -> None:
        if self._budget:
            connection.execute(
                "INSERT OR REPLACE INTO budgets (sink, left_bytes, at_utc) VALUES (?, ?, ?)",
                (self.name, self._budget.left, self._clocks.utc().isoformat()),
            )

    def _mark_sent(self, connection: sqlite3.Connection, row: int) -> None:
        connection.execute("UPDATE outbox SET sent_utc = ? WHERE id = ?", (self._clocks.utc().isoformat(), row))
        self._acknowledged = None

    def _park(self, connection: sqlite3.Connection, found: Message, why: str) -> float:
        connection.execute("UPDATE outbox SET refused = ? WHERE id = ?", (why, found.row))
        log.error(
            "sink %s: %s %s is refused and parked: %s; it stays in the outbox as row %d",
            self.name, found.kind, found.id, why, found.row,
        )  # fmt: skip
        self._failures = 0
        return 0.0

    def _fail(self, why: str, after_s: float | None = None) -> float:
        """Close the sink, to begin anew later."""
        self._close_sink()
        return self._later(why, after_s)

    def _later(self, why: str, after_s: float | None = None) -> float:
        """Wait: twice as long after each failure, or as long as the far side asks."""
        longest_s = min(RETRY_MOST_S, RETRY_LEAST_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        wait_s = max(longest_s * (0.5 + 0.5 * self._jitter()), min(after_s or 0.0, LONGEST_S))
        self._retry_at_s = self._clocks.steady_s() + wait_s
        self._complain(why, wait_s)
        return wait_s

    def _complain(self, why: str, wait_s: float) -> None:
        """Log a fault once, and again where it is another one or stays for long."""
        now_s = self._clocks.steady_s()
        if why != self._complaint or now_s - self._complained_s >= REMIND_S:
            log.warning("sink %s: %s; tried again in %.1f s", self.name, why, wait_s)
            self._complaint, self._complained_s = why, now_s

    def _recovered(self) -> None:
        self._failures = 0
        if self._complaint:
            log.warning("sink %s works again", self.name)
            self._complaint = ""

    def _close_sink(self) -> None:
        try:
            self._queue.sink.close()
        except Exception:
            log.exception("sink %s could not be closed", self.name)

    def _close_database(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _database(self) -> sqlite3.Connection:
        """The connection of this thread, opened anew where a rescue has put another file in the place of a damaged one.

        What it writes survives a kill; after a power cut a mark may be missing, and
        the message goes twice: that spares the disk two flushes a message.
        """
        found = identity(self._path)
        if found != self._file:
            self._close_database()
        if self._connection is None:
            self._connection, self._file = connected(self._path), found
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._budget = self._budget or self._saved_budget(self._connection)
        return self._connection

    def _saved_budget(self, connection: sqlite3.Connection) -> Budget | None:
        """The budget as the last run left it, and what has flowed in since; a full one where there was none."""
        per_hour = self._queue.bytes_per_hour
        if per_hour is None:
            return None
        row = connection.execute("SELECT left_bytes, at_utc FROM budgets WHERE sink = ?", (self.name,)).fetchone()
        if row is None:
            return Budget(per_hour, per_hour, self._clocks.steady_s())
        away_s = max(0.0, (self._clocks.utc() - datetime.fromisoformat(row[1])).total_seconds())
        return Budget(per_hour, row[0] + away_s * per_hour / HOUR_S, self._clocks.steady_s())

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete messages that were sent a while ago (or, after a step of the clock, in the future)."""
        if self._clocks.steady_s() < self._prune_at_s:
            return
        before, after = (self._clocks.utc() + timedelta(seconds=away) for away in (-KEEP_SENT_S, HOUR_S))
        deleted = connection.execute(
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE sink = ? AND sent_utc IS NOT NULL "
            "AND (sent_utc < ? OR sent_utc > ?) LIMIT ?)",
            (self.name, before.isoformat(), after.isoformat(), PRUNE_ROWS),
        ).rowcount
        if deleted < PRUNE_ROWS:
            self._prune_at_s = self._clocks.steady_s() + PRUNE_S


def connected(path: Path) -> sqlite3.Connection:
    """A connection of one's own to a database that exists; none is ever made here."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )


@contextmanager
def looked_into(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection for one look."""
    try:
        with closing(connected(path)) as connection:
            yield connection
    except sqlite3.Error as fault:
        raise OrcawatchError(f"{path} cannot be read: {fault}; check that the disk is there") from fault


@contextmanager
def written(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is done inside, or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def next_message(connection: sqlite3.Connection, sink: str, but: int | None = None) -> Message | None:
    """The message that goes next: of the highest priority, the oldest; `but` is a row to leave out."""
    row = connection.execute(
        "SELECT id, kind, payload, tries FROM outbox WHERE sink = ? AND sent_utc IS NULL AND refused IS NULL "
        "AND id IS NOT ? ORDER BY priority DESC, id LIMIT 1",
        (sink, but),
    ).fetchone()
    return None if row is None else Message(*row)


def waiting_bytes(connection: sqlite3.Connection, sink: str) -> int:
    """Bytes that a queue holds, parked ones included."""
    (found,) = connection.execute(
        "SELECT coalesce(sum(length(payload)), 0) FROM outbox WHERE sink = ? AND sent_utc IS NULL", (sink,)
    ).fetchone()
    return int(found)


def droppable(connection: sqlite3.Connection, sink: str, excess: int, rank: int) -> Iterator[tuple[int, str, int]]:
    """(row, kind, bytes) of messages to drop, worth at least `excess` bytes where there are so many.

    Parked ones first, then those of the lowest priority, the oldest first.
    """
    rows = connection.execute(
        "SELECT id, kind, length(payload) FROM outbox WHERE sink = ? AND sent_utc IS NULL AND priority <= ? "
        f"AND kind NOT IN ({', '.join('?' * len(KEPT))}) ORDER BY refused IS NULL, priority, id",
        (sink, rank, *KEPT),
    )
    for row in rows:
        if excess <= 0:
            break
        excess -= row[2]
        yield row


def depth(connection: sqlite3.Connection, sink: str, dropped: int) -> Depth:
    """What waits in one queue."""
    count, size, oldest = connection.execute(
        "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(min(created_utc), '') FROM outbox "
        "WHERE sink = ? AND sent_utc IS NULL AND refused IS NULL",
        (sink,),
    ).fetchone()
    (parked,) = connection.execute(
        "SELECT count(*) FROM outbox WHERE sink = ? AND sent_utc IS NULL AND refused IS NOT NULL", (sink,)
    ).fetchone()
    return Depth(count, size, oldest, parked, dropped)


def open_outbox(store: Store, settings: Settings, clocks: Clock, session: int | None = None) -> Outbox:
    """The outbox of the configured sinks, not started: `with open_outbox(...) as outbox` starts and ends it.

    Where the settings' `uplink` is `apart`, it sends nothing: another process does (`sending`), and it warns where none
    is there.

    Raises
    ------
    ConfigError : a sink is not installed, or its settings do not fit.
    """
    origin = Origin(settings.station, clocks.boot, session)
    inside = settings.uplink == "inside"
    return Outbox(store.path, queues_of(settings), origin, clocks, sends=inside, output=settings.output)


def sending(path: Path, settings: Settings, clocks: Clock) -> Outbox:
    """The same for a process that only sends what waits in a database; it makes no messages.

    Raises
    ------
    ConfigError : a sink is not installed, or its settings do not fit.
    """
    return Outbox(path, queues_of(settings), Origin(settings.station, clocks.boot, None), clocks)


def queues_of(settings: Settings) -> list[Queue]:
    """The configured sinks."""
    site = Site(settings.station, settings.output)
    return [
        Queue(one.queue, make_sink(one, site), one.send, one.bytes_per_hour, round(one.max_mb * MB))
        for one in settings.sinks
    ]
