"""A program in a real pseudo-terminal, with a terminal emulator (pyte) that shows what a person would see. Not a test."""

from __future__ import annotations

import fcntl
import html
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Callable

import pytest

WAIT_S = 30.0
CSS = "body{margin:0;background:#101216}pre{margin:0;padding:8px;font:15px/18px 'DejaVu Sans Mono',monospace;color:#d0d4da}"
NAMES = {
    "black": "#000000", "red": "#c23b3b", "green": "#4aa35a", "brown": "#c8a02c", "blue": "#4a6fd0", "magenta": "#a558b0",
    "cyan": "#4ab0b8", "white": "#d0d4da", "brightblack": "#8a919c", "brightred": "#ff6b6b", "brightgreen": "#7fd88f",
    "brightbrown": "#ffe14d", "brightblue": "#8fb0ff", "brightmagenta": "#e59bf0", "brightcyan": "#86e6ee",
    "brightwhite": "#ffffff",
}  # fmt: skip


class Console:
    """A program at a terminal.

    Parameters
    ----------
    command : what is run.
    size : columns and lines.
    environment : on top of this process's.

    Attributes
    ----------
    raw : all that it wrote.
    """

    def __init__(
        self, command: Sequence[str], size: tuple[int, int] = (120, 40), environment: Mapping[str, str] | None = None
    ) -> None:
        pyte = pytest.importorskip("pyte")
        self.raw = b""
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._ours, self.theirs = pty.openpty()
        self._set_size(size)
        self.before = termios.tcgetattr(self.theirs)
        changes = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1", **(environment or {})}
        self.process = subprocess.Popen(
            command, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
            env={**os.environ, **changes}, preexec_fn=take_terminal,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What is on the screen."""
        with self._lock:
            return "\n".join(self._screen.display)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Another size of the window."""
        with self._lock:
            self._screen.resize(lines, columns)
        self._set_size((columns, lines))

    def wait_for(self, condition: str | Callable[[str], object], seconds: float = WAIT_S) -> str:
        """Wait until the screen holds a text, or is so; the screen."""
        until_s = time.monotonic() + seconds
        while not (condition in (text := self.text) if isinstance(condition, str) else condition(text := self.text)):
            over = time.monotonic() > until_s or self.process.poll() is not None
            assert not over, f"{condition} is not so after {seconds:g} s, or the end; the screen:\n{text}"
            time.sleep(0.05)
        return text

    def end(self, seconds: float = WAIT_S) -> int:
        """Wait until the program has ended; its exit code."""
        code = self.process.wait(seconds)
        time.sleep(0.1)  # its last words are still on their way
        return code

    def restored(self) -> bool:
        """Whether the terminal is as it was: its modes, the cursor, the screen."""
        last = self.raw[self.raw.rfind(b"\x1b[?1049h") :]
        left = all(code in last for code in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?7h"))
        return left and termios.tcgetattr(self.theirs)[:4] == self.before[:4]

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)
        os.close(self.theirs)

    def page(self) -> str:
        """The screen as HTML, between two frames."""
        until_s = time.monotonic() + 2
        while not self.raw.endswith(b"\x1b[?2026l") and time.monotonic() < until_s:
            time.sleep(0.01)
        with self._lock:
            rows = [[self._screen.buffer[y][x] for x in range(self._screen.columns)] for y in range(self._screen.lines)]
        return f"<meta charset=utf-8><style>{CSS}</style><pre>" + "\n".join(map(row_html, rows)) + "</pre>"

    def _set_size(self, size: tuple[int, int]) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def _read(self) -> None:
        with suppress(OSError):
            while content := os.read(self._ours, 65536):
                self.raw += content
                with self._lock:
                    self._stream.feed(content)


def take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C and Ctrl-Z are signals."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def row_html(row: Sequence[Any]) -> str:
    """A line of cells."""
    return "".join(
        f'<span style="color:{fore};background:{back};{"font-weight:bold" if cell.bold else ""}">{html.escape(cell.data)}</span>'
        for cell in row
        for fore, back in [colours(cell)]
    )


def colours(cell: Any) -> tuple[str, str]:
    """Foreground and background of a cell."""
    fore, back = colour(cell.fg, "#d0d4da"), colour(cell.bg, "#101216")
    return (back, fore) if cell.reverse else (fore, back)


def colour(name: str, default: str) -> str:
    """A colour of pyte's."""
    return default if name == "default" else NAMES.get(name, f"#{name}")


@contextmanager
def console(*command: str, size: tuple[int, int] = (120, 40), **environment: str) -> Iterator[Console]:
    """A program at a terminal, until this is left."""
    opened = Console(command, size, environment)
    try:
        yield opened
    finally:
        opened.close()
