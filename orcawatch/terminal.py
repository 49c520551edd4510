"""A terminal that is drawn on line by line, read key by key, and always given back as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import RLock
from types import FrameType
from typing import Any, Union

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"  # other screen, no cursor, no wrapping
LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"  # a frame is shown whole, where the terminal knows how
ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left"}
ENDING = (signal.SIGTERM, signal.SIGQUIT)
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True)
class Joined:
    """A line of text, `width` cells of it, then cells that are ready, escape sequences and all, and text again."""

    left: Text
    width: int
    cells: str
    right: Text


Line = Union[Text, Joined]


def plain(text: str) -> str:
    """Text without what could steer a terminal or turn its direction: such characters are written as `\\x1b`."""
    return "".join(seen(letter) if unicodedata.category(letter) in UNSEEN else letter for letter in text)


def seen(letter: str) -> str:
    """A character as an escape of Python's."""
    return ascii(letter)[1:-1]


def can_draw() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class Terminal:
    """Standard output as a screen, standard input as keys; a context.

    Two threads may use it: one draws and reads, another enters, leaves and is interrupted by signals.

    Attributes
    ----------
    colours : what it can show; None for none, also where NO_COLOR asks for that.
    unicode : whether it takes block characters.
    keys : whether standard input is a terminal.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        system = self._console.color_system
        found = {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}
        self.colours = None if self._console.no_color or system is None else found.get(system, ColorSystem.STANDARD)
        self.unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self.keys = sys.stdin.isatty()
        self._out = sys.stdout.fileno()
        self._lock = RLock()
        self._before: list[Any] | None = None
        self._active = False
        self._errors: int | None = None  # where standard error went before
        self._shown: list[str] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Terminal:
        for number in ENDING:
            self._handlers[number] = signal.signal(number, self._on_end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._on_stop)
        self.enter()
        return self

    def __exit__(self, *about: object) -> None:
        self.leave()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def enter(self) -> None:
        """Take the terminal."""
        with self._lock, suppress(termios.error, OSError):
            if self.keys:
                self._before = termios.tcgetattr(0)
                tty.setcbreak(0, termios.TCSADRAIN)
            if sys.stderr.isatty():  # libraries write there, over the view
                self._errors = os.dup(2)
                silence(2)
            self._active = True
            self._shown = []
            self._write(ENTER)

    def leave(self) -> None:
        """Give it back; may be called again."""
        with self._lock:
            if not self._active:
                return
            self._active = False
            if self._errors is not None:
                os.dup2(self._errors, 2)
                os.close(self._errors)
                self._errors = None
            with suppress(OSError):
                self._write(LEAVE)
            if self._before is not None:
                with suppress(termios.error):
                    termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def draw(self, lines: Sequence[Line], width: int) -> None:
        """Show lines from the top; only those that changed are written.

        Raises
        ------
        OSError : the terminal is gone.
        """
        ready = [self.ready(line, width) for line in lines]
        with self._lock:
            if not self._active:
                return
            known = self._shown if len(self._shown) == len(ready) else [""] * len(ready)
            clear = "" if known is self._shown else "\x1b[0m\x1b[2J"
            changed = [f"\x1b[{row + 1};1H{line}" for row, line in enumerate(ready) if line != known[row]]
            if changed:
                self._write(f"{BEGIN}{clear}{''.join(changed)}{END}")
            self._shown = ready

    def forget(self) -> None:
        """Draw everything next time: the size has changed."""
        with self._lock:
            self._shown = []

    def ready(self, line: Line, width: int) -> str:
        """A line as it is written, filled up to the width."""
        if isinstance(line, Joined):
            return f"{self.ready(line.left, line.width)}{line.cells}{self.ready(line.right, line.right.cell_len)}\x1b[K"
        segments = Segment.adjust_line_length(list(line.render(self._console)), width)
        return "".join(self._styled(segment) for segment in segments)

    def key_presses(self, timeout_s: float) -> Iterator[str]:
        """Yield the names of the keys that are pressed within a time; `closed` where the terminal is gone."""
        if not self.keys:
            select.select([], [], [], timeout_s)
            return
        if select.select([0], [], [], timeout_s)[0]:
            try:
                pressed = os.read(0, 64)
            except OSError:
                pressed = b""
            yield from names(pressed) if pressed else ["closed"]

    def _styled(self, segment: Segment) -> str:
        if segment.style is None:
            return segment.text
        style = segment.style if self.colours is not None else segment.style.without_color
        return style.render(segment.text, color_system=self.colours or ColorSystem.STANDARD)

    def _write(self, text: str) -> None:
        content = text.encode("utf-8" if self.unicode else "ascii", "replace")
        while content:
            content = content[os.write(self._out, content) :]

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        """Nobody else takes this signal any more: it ends us, but with the terminal as it was."""
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again when told to go on."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.enter()


def names(pressed: bytes) -> Iterator[str]:
    """Names of keys: the character, or `left` and so on."""
    while pressed:
        arrow = pressed[:3].replace(b"\x1bO", b"\x1b[")
        if arrow in ARROWS:
            yield ARROWS[arrow]
            pressed = pressed[3:]
        else:
            yield "escape" if pressed[:1] == b"\x1b" else pressed[:1].decode("latin-1")
            pressed = pressed[1:]


@contextmanager
def quiet_end() -> Iterator[None]:
    """Where the reader of standard output has gone, nothing is to be said about it."""
    try:
        yield
    except BrokenPipeError:
        silence(sys.stdout.fileno())


def silence(handle: int) -> None:
    """Let what is written there go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)
