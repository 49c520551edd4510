"""The live view for logs and pipes: plain lines, from a thread of their own, so that a slow reader holds nothing."""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from threading import Event as Flag
from threading import Thread
from typing import Callable

from .bundle import Bundle
from .config import Settings
from .daemon import Loop
from .lookout import Hearing, Lookout
from .records import Item, Missing, WindowScore
from .screen import clock_text
from .store import Detection
from .terminal import plain, quiet_end

MOST = 1000  # lines that wait for a slow reader
END_S = 2.0


class Lines:
    """Writes lines to standard output from a thread; what finds no room is left out. A context.

    Parameters
    ----------
    stop : set where the reader has gone.
    """

    def __init__(self, stop: Flag) -> None:
        self._stop = stop
        self._waiting: queue.Queue[str | None] = queue.Queue(MOST)
        self._thread = Thread(target=self._write, name="plain lines", daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        try:
            self._waiting.put(None, timeout=END_S)
        except queue.Full:
            return
        self._thread.join(END_S)

    def write(self, text: str) -> None:
        """Write a line, without what could steer a terminal."""
        if not self._waiting.full():
            self._waiting.put(plain(text))

    def _write(self) -> None:
        with quiet_end():
            while (line := self._waiting.get()) is not None:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            return
        self._stop.set()


class Teller(Lookout):
    """A watcher that writes lines: what is listened to, levels and scores now and then, gaps with their causes.

    Parameters
    ----------
    lines : where to.
    every_s : between two lines of levels, in audio.
    channel : the one that levels and scores are told of; None for all.
    """

    def __init__(self, lines: Lines, every_s: float, channel: int | None) -> None:
        super().__init__(attended=True, channel=channel)
        self._lines = lines
        self._every_s = every_s
        self._next_s = every_s
        self._told = False
        self._cause: str | None = None
        self._utc: Callable[[int], datetime | None] = lambda sample: None

    def begins(self, settings: Settings, bundle: Bundle) -> None:
        """As a watcher's."""
        super().begins(settings, bundle)
        self._lines.write(f"{now_text()}  bundle {bundle.name}, threshold {bundle.start_threshold:.2f}")

    def heard(self, loop: Loop, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """As a watcher's."""
        super().heard(loop, item, windows)
        hearing = self.sight(0).hearing if self._due(loop, item) else None
        if hearing is not None:
            self._tell(hearing, item)

    def _due(self, loop: Loop, item: Item | None) -> bool:
        """Whether there is something to tell of; a look at all figures for each item would cost too much."""
        missing = isinstance(item, Missing)
        changed = missing != (self._cause is not None) and item is not None
        return not self._told or changed or loop.position / loop.source.info.rate_hz >= self._next_s

    def _tell(self, hearing: Hearing, item: Item | None) -> None:
        moment = time_text(hearing)
        if not self._told:
            self._told = True
            self._lines.write(f"{moment}  {begin_text(hearing)}")
        if isinstance(item, Missing) and self._cause is None:
            self._cause = f"{item.kind.replace('_', ' ')}: {item.cause}"
            self._lines.write(f"{moment}  no audio: {self._cause}")
        elif hearing.missing is None and self._cause is not None:
            self._lines.write(f"{moment}  audio again, after {self._cause}")
            self._cause = None
        if hearing.position_s >= self._next_s:
            self._next_s = hearing.position_s + self._every_s
            self._lines.write(f"{moment}  {figures_text(hearing, self._channel)}")


def now_text() -> str:
    """The time of the machine, as lines begin."""
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def time_text(hearing: Hearing) -> str:
    """The time of the newest sample, as lines begin; of the stream where UTC is not known."""
    return clock_text(hearing.position_s) if hearing.utc is None else f"{hearing.utc:%Y-%m-%dT%H:%M:%SZ}"


def begin_text(hearing: Hearing) -> str:
    """What is listened to."""
    return (
        f"listening to {hearing.info.name}: {hearing.info.rate_hz} Hz, channels {', '.join(map(str, hearing.channels))}"
    )


def figures_text(hearing: Hearing, channel: int | None) -> str:
    """Levels and scores of the channels, in their order, and what is not as it should be."""
    picked = [index for index, name in enumerate(hearing.channels) if channel in (None, name)]
    levels = " ".join(f"{hearing.readings[index].level_db:.1f}" for index in picked)
    scores = () if hearing.channel_scores is None else hearing.channel_scores
    parts = [
        f"level {levels} {hearing.unit}",
        f"score {' '.join(f'{scores[index]:.2f}' for index in picked if len(scores))}",
    ]
    clipped = [str(name) for name, reading in zip(hearing.channels, hearing.readings) if reading.clipped]
    parts += [f"CLIP on channel {', '.join(clipped)}"] if clipped else []
    parts += [f"overload: {hearing.step_name}, backlog {hearing.behind_s:.1f} s"] if hearing.step else []
    return "; ".join(parts)


def detection_line(lines: Lines, line: Callable[[Detection], str]) -> Callable[[Detection], None]:
    """A report that writes a detection's line."""

    def report(detection: Detection) -> None:
        began = detection.start_utc
        moment = clock_text(detection.start_s) if began is None else f"{began:%Y-%m-%dT%H:%M:%SZ}"
        lines.write(f"{moment}  {line(detection)}")

    return report
