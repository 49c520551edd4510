"""Keeps the capture process running, and its audio in a bounded queue: nothing here waits for whoever takes it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Union

from .durable import Complaint
from .soundcard import AUDIO, FAULT, HEADER, MAGIC, OPENED, OVERFLOW, SAMPLE_BYTES, CaptureError, Header, Opened

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "orcawatch.soundcard")
OPEN_S = 10.0  # what a card may take to give its first audio, beyond `stalled_s`
LARGEST = 1 << 26  # bytes of a frame; more is no frame
RESUME = 0.75  # a queue that was full takes audio again when it has gone down to this share, so that holes are few
POLL_S = 0.5
END_S = 2.0
HEARD_LAST = 1000  # bytes of what the capture process wrote to standard error, for the log


@dataclass(frozen=True)
class Chunk:
    """Audio as it came from the card.

    Attributes
    ----------
    first, rows : position of the first row since the card was opened, and their number. A jump past the end of the
        chunk before is missing: `shed` rows of it in the queue, the others in the capture process.
    overrun : whether the card lost audio, nobody knows how much, before this.
    steady_s, suspended_s : steady time of its arrival, and for how long of that the machine had been suspended.
    samples : interleaved, in the card's format.
    shed : rows that came right before this and found no room in the queue.
    """

    first: int
    rows: int
    overrun: bool
    steady_s: float
    suspended_s: float
    samples: bytes
    shed: int = 0

    @property
    def end(self) -> int:
        """Position just past the last row."""
        return self.first + self.rows


@dataclass(frozen=True)
class Ended:
    """The card gives no more, or could not be opened.

    Attributes
    ----------
    text : why.
    shed : rows that came last and found no room in the queue.
    """

    text: str
    shed: int = 0


Event = Union[Opened, Chunk, Ended]


class Waiting:
    """Events in order; audio is bounded. What finds no room is shed and counted, the newest first.

    Attributes
    ----------
    rows : of audio that waits.
    shed : rows that were shed so far.
    """

    def __init__(self) -> None:
        self.rows = self.shed = 0
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._room = 0
        self._full = self._overrun = False
        self._shed = 0  # rows since the last chunk that was taken

    @property
    def unplaced(self) -> int:
        """Rows that were shed since the last chunk was taken."""
        return self._shed

    def put(self, event: Event, room: int) -> None:
        """Add an event; audio only while at most `room` rows wait then, and of ends in a row only the first."""
        with self._changed:
            self._room = room
            if isinstance(event, Ended) and self._events and isinstance(self._events[-1], Ended):
                return
            fitted = self._fitted(event)
            if fitted is not None:
                self._events.append(fitted)
                self._changed.notify()

    def get(self, timeout_s: float) -> Event | None:
        """The oldest event, or None where none comes in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._events), timeout_s):
                return None
            event = self._events.popleft()
            self.rows -= event.rows if isinstance(event, Chunk) else 0
            self._full = self._full and self.rows > RESUME * self._room
            return event

    def clear(self) -> None:
        """Forget what waits."""
        with self._changed:
            self._events.clear()
            self.rows, self._full = 0, False

    def _fitted(self, event: Event) -> Event | None:
        """The event with what was shed before it; None where it is shed itself."""
        if isinstance(event, Opened):
            return event
        if isinstance(event, Chunk):
            self._full = self._full or self.rows + event.rows > self._room
            if self._full:
                self._drop(event)
                return None
            self.rows += event.rows
            event = replace(event, overrun=event.overrun or self._overrun)
        shed, self._shed, self._overrun = self._shed, 0, False
        return replace(event, shed=shed)

    def _drop(self, chunk: Chunk) -> None:
        self.shed += chunk.rows
        self._shed += chunk.rows
        self._overrun = self._overrun or chunk.overrun


class Child:
    """One run of the capture process; leaving it ends the process, by force where it hangs.

    Parameters
    ----------
    command : the program and its arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, cwd="/", start_new_session=True
        )
        self._ends = {end.fileno(): end for end in (self._process.stdout, self._process.stderr) if end is not None}
        self._out, self._err = self._ends
        self._poll = select.poll()
        for handle in self._ends:
            self._poll.register(handle, select.POLLIN)
        self._got = bytearray()
        self._said = b""

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *about: object) -> None:
        for end in (self._process.stdin, *self._ends.values()):
            if end is not None:
                end.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel; it is not waited for
            self._process.wait(END_S)
        if self._said:
            log.debug("the capture process wrote: %s", self._said.decode(errors="replace"))

    def frames(self, stalled_s: float, stop: threading.Event) -> Iterator[tuple[Header, bytes]]:
        """Yield frames until told to stop.

        Raises
        ------
        CaptureError : the process ended, gave nothing for `stalled_s`, or wrote something that is no frame.
        """
        sequence, patience_s = 0, stalled_s + OPEN_S
        while (head := self._exactly(HEADER.size, patience_s, stop)) is not None:
            header = Header(*HEADER.unpack(head))
            if (header.magic, header.sequence) != (MAGIC, sequence) or header.size > LARGEST:
                raise CaptureError(f"the capture process wrote what is no audio ({head[:8]!r})")
            content = self._exactly(header.size, patience_s, stop)
            if content is None:
                return
            yield header, content
            sequence += 1
            patience_s = stalled_s if header.kind == AUDIO else patience_s

    def _exactly(self, size: int, patience_s: float, stop: threading.Event) -> bytes | None:
        """So many bytes; None where it is to stop."""
        until_s = time.monotonic() + patience_s
        while len(self._got) < size:
            if stop.is_set():
                return None
            if time.monotonic() > until_s:
                raise CaptureError(f"it gave nothing for {patience_s:g} s")
            self._read()
        found = bytes(self._got[:size])
        del self._got[:size]
        return found

    def _read(self) -> None:
        for handle, _ in self._poll.poll(1000 * POLL_S):
            new = os.read(handle, 1 << 20)
            if handle == self._out:
                self._got += new
            else:
                self._said = (self._said + new)[-HEARD_LAST:]
            if not new:
                self._end_of(handle)

    def _end_of(self, handle: int) -> None:
        self._poll.unregister(handle)
        if handle == self._out:
            raise CaptureError(f"the capture process ended{self._how()}")

    def _how(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_S)
            last = self._said.decode(errors="replace").strip().splitlines()[-1:]
            return f" ({f'signal {-code}' if code < 0 else f'exit code {code}'}){': ' if last else ''}{''.join(last)}"
        return ""


class Feed:
    """Runs the capture process in a thread, again and again, and puts what it gives into a queue.

    Parameters
    ----------
    command : the program; one JSON argument is added.
    options : the argument, asked for before each start.
    accept : looks at what was opened; raises `CaptureError` where it does not fit.
    queue_s : audio that may wait.
    stalled_s : a card that gives nothing for so long is opened again.
    retry_least_s, retry_most_s : the first wait before that, which doubles, and the longest.

    Attributes
    ----------
    opened : how often a card was opened.
    pid : of the capture process that runs or ran last; None before the first.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: Callable[[], Mapping[str, Any]],
        accept: Callable[[Opened], None],
        queue_s: float,
        stalled_s: float,
        retry_least_s: float,
        retry_most_s: float,
    ) -> None:
        self.opened = 0
        self.pid: int | None = None
        self.waiting = Waiting()
        self._command = command
        self._options = options
        self._accept = accept
        self._queue_s = queue_s
        self._stalled_s = stalled_s
        self._retry_s = (retry_least_s, retry_most_s)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._card: Opened | None = None  # what is open in this attempt
        self._rate_hz = 0  # of the last one
        self._end = 0  # of its last chunk
        self._heard_s = 0.0  # audio since it was opened
        self._trouble = Trouble()

    @property
    def behind_s(self) -> float:
        """Audio that waits, seconds."""
        return self.waiting.rows / self._rate_hz if self._rate_hz else 0.0

    def start(self) -> None:
        """Begin, where it was not begun before."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the process and the thread."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        least_s, most_s = self._retry_s
        wait_s = least_s
        while not self._closing.is_set():
            text = self._attempt()
            if self._heard_s > wait_s:
                wait_s = least_s
            if not self._closing.is_set():
                self._put(Ended(text))
                self._trouble.say(f"{text}; trying again")
            self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, most_s)

    def _attempt(self) -> str:
        """Run the process until it ends; why it ended."""
        self._heard_s, self._end, self._card = 0.0, 0, None
        try:
            with Child([*self._command, json.dumps(self._options())]) as child:
                self.pid = child.pid
                for header, content in child.frames(self._stalled_s, self._closing):
                    self._take(header, content)
        except (CaptureError, OSError) as fault:
            return str(fault)
        except Exception as fault:  # whatever it is: capture must not stop for good
            log.exception("capture broke")
            return f"{type(fault).__name__}: {fault}"
        return "closed"

    def _take(self, header: Header, content: bytes) -> None:
        if header.kind == AUDIO and self._card is not None:
            self._hear(header, content, self._card)
        elif header.kind == OPENED:
            self._open(Opened(**json.loads(content)))
        elif header.kind == FAULT:
            raise CaptureError(json.loads(content)["text"])
        else:
            raise CaptureError(f"the capture process wrote a frame of kind {header.kind} out of turn")

    def _open(self, card: Opened) -> None:
        self._accept(card)
        self._card, self._rate_hz = card, card.rate_hz
        self.opened += 1
        self._put(card)

    def _hear(self, header: Header, content: bytes, card: Opened) -> None:
        check_fits(header, card, self._end)
        chunk = Chunk(
            header.first, header.rows, bool(header.flags & OVERFLOW), header.steady_ns / 1e9,
            (header.steady_ns - header.awake_ns) / 1e9, content,
        )  # fmt: skip
        self._end = chunk.end
        self._put(chunk)
        self._heard_s += chunk.rows / card.rate_hz
        self._trouble.end(f"{card.name!r} gives audio again")

    def _put(self, event: Event) -> None:
        self.waiting.put(event, round(self._queue_s * self._rate_hz))


def check_fits(header: Header, card: Opened, end: int) -> None:
    """Raise CaptureError where a frame of audio contradicts what was opened, or what came before."""
    if header.size != header.rows * card.channels * SAMPLE_BYTES[card.sample_format]:
        raise CaptureError(f"the capture process wrote {header.size} bytes for {header.rows} rows of audio")
    if header.first < end:
        raise CaptureError(f"the capture process wrote audio from {header.first} on after that up to {end}")


class Trouble:
    """Says why there is no audio: each cause at once and then at doubling intervals, and when it is over."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._text = ""
        self._complaint = Complaint(log)

    def say(self, text: str) -> None:
        """Report it."""
        if self._since_s is None:
            self._since_s = time.monotonic()
        if text != self._text:
            self._text, self._complaint = text, Complaint(log)
        self._complaint.say(text)

    def end(self, text: str) -> None:
        """Report that it is over, if there was any."""
        if self._since_s is not None:
            log.warning("%s after %.0f s", text, time.monotonic() - self._since_s)
            self._since_s, self._text = None, ""
