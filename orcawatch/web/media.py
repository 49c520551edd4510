"""The audio of clips, channel by channel, and a bounded shelf for what is made of it."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Callable

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import AudioError

Array = NDArray[np.float32]

MIX = None  # instead of a column: the mean of all
BLOCK_S = 1.0
SHELF_B = 64 << 20


@dataclass(frozen=True)
class Clip:
    """A clip on the disk.

    Attributes
    ----------
    path : of the file.
    rate_hz : samples per second.
    columns : its channels.
    samples : of each.
    version : changes where the file is replaced by another.
    """

    path: Path
    rate_hz: int
    columns: int
    samples: int
    version: int

    @property
    def length_s(self) -> float:
        """Its duration."""
        return self.samples / self.rate_hz


def clip_of(path: Path) -> Clip:
    """What a file says of itself.

    Raises
    ------
    AudioError : it is no audio, empty or damaged.
    """
    try:
        info = soundfile.info(path)
        version = path.stat().st_mtime_ns
    except (OSError, soundfile.SoundFileError) as fault:
        raise AudioError(f"{path.name} cannot be read as audio: {fault}") from fault
    if info.frames < 1:
        raise AudioError(f"{path.name} holds no audio")
    return Clip(path, int(info.samplerate), int(info.channels), int(info.frames), version)


def one_channel(clip: Clip, column: int | None) -> Array:
    """Samples of one of a clip's columns, or the mean of all (`MIX`), float32, shape (samples,).

    The file is read in blocks, so that the other columns take no memory.

    Raises
    ------
    AudioError : no such column, or the file cannot be read to its end.
    """
    if column is not None and not 0 <= column < clip.columns:
        raise AudioError(f"{clip.path.name} has columns 0 to {clip.columns - 1}, not {column}")
    try:
        parts = [
            block.mean(axis=1) if column is MIX else block[:, column]
            for block in soundfile.blocks(
                clip.path, blocksize=round(BLOCK_S * clip.rate_hz), dtype="float32", always_2d=True
            )
        ]
    except (OSError, soundfile.SoundFileError) as fault:
        raise AudioError(f"{clip.path.name} cannot be read: {fault}") from fault
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def wav(samples_mono: Array, rate_hz: int) -> bytes:
    """A WAV file of 16 bits, which every browser plays."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples_mono, -1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()


class Shelf:
    """What was made lately, by key; what was not asked for longest goes first.

    Parameters
    ----------
    most_b : of all bytes together.
    """

    def __init__(self, most_b: int = SHELF_B) -> None:
        self._most_b = most_b
        self._size_b = 0
        self._lock = Lock()
        self._making: dict[Hashable, Lock] = {}
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """What lies there; None where nothing does."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Any, size_b: int) -> None:
        """Lay something there; what is larger than the shelf is not kept."""
        with self._lock:
            self._size_b -= self._kept.pop(key, (None, 0))[1]
            self._kept[key] = value, size_b
            self._size_b += size_b
            while self._size_b > self._most_b:
                self._size_b -= self._kept.popitem(last=False)[1][1]

    def made(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """What lies there, made now where it does not; two who ask at once wait for one making."""
        with self._lock:
            making = self._making.setdefault(key, Lock())
        try:
            with making:
                found = self.get(key)
                if found is None:
                    self.put(key, found := make(), len(found))
                return bytes(found)
        finally:
            with self._lock:
                self._making.pop(key, None)
