"""Cut rows into windows: one rule for live audio, files and training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def fill(rows: Array, size: int) -> Array:
    """Repeat rows (frames, ...) from the start until there are `size` of them."""
    return rows[np.arange(size) % len(rows)]


class WindowStream:
    """Windows of `size` rows every `hop` rows over a stretch of audio without holes.

    At the end of the stretch the last window is moved back so that it ends with the last row; a stretch shorter
    than one window is repeated until it fills one. So every row of a stretch is scored.

    Parameters
    ----------
    size : rows of a window.
    hop : rows from one window to the next, 1 to `size`.

    Raises
    ------
    ValueError : the hop is outside 1 to `size`: rows between windows would never be scored.
    """

    def __init__(self, size: int, hop: int) -> None:
        if not 1 <= hop <= size:
            raise ValueError(f"hop must be 1 to {size} frames (one window), not {hop}")
        self._size = size
        self._hop = hop
        self._next = 0  # index of the row at which the next window starts
        self._first = 0  # index of the first row kept
        self._rows: Array | None = None

    def push(self, rows: Array) -> Iterator[tuple[int, Array]]:
        """Yield (index of the first row, rows of the window) for every window that these rows complete."""
        kept = rows if self._rows is None else np.concatenate([self._rows, rows])
        while self._next + self._size <= self._first + len(kept):
            start = self._next - self._first
            yield self._next, kept[start : start + self._size]
            self._next += self._hop
        self._keep(kept)

    def finish(self) -> Iterator[tuple[int, Array]]:
        """Yield the last window if rows are left that none has covered."""
        if self._rows is None or not len(self._rows):
            return
        end = self._first + len(self._rows)
        if end < self._size:
            yield 0, fill(self._rows, self._size)
        elif end > self._next - self._hop + self._size:
            yield end - self._size, self._rows[-self._size :]

    def _keep(self, rows: Array) -> None:
        """Keep what the next window and the last, moved-back one can need."""
        surplus = max(0, min(self._next - self._first, len(rows) - self._size))
        self._rows = rows[surplus:]
        self._first += surplus


def windows_of(rows: Array, size: int, hop: int) -> tuple[NDArray[np.int64], Array]:
    """All windows of a whole recording.

    Parameters
    ----------
    rows : shape (frames, ...), at least one frame.
    size, hop : rows of a window, rows from one to the next.

    Returns
    -------
    starts : index of each window's first row, shape (windows,).
    windows : shape (windows, size, ...).
    """
    stream = WindowStream(size, hop)
    pairs = [*stream.push(rows), *stream.finish()]
    return np.array([start for start, _ in pairs]), np.stack([window for _, window in pairs])
