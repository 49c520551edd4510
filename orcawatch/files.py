"""Audio files as sources: any format that libsndfile reads, any number of channels, block by block."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import soundfile

from .capture import check_channels
from .errors import AudioError
from .records import AudioBlock, StreamInfo

BLOCK_S = 0.5
SUFFIXES = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64", ".wav"}
)
CUT_OFF = re.compile(r"^ *data : (\d+) \(should be (\d+)\)", re.MULTILINE)
ENDLESS = 0x7FFFFF00  # sizes from here on are placeholders of programs that write to a pipe
STAMP = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)[T_-]?(\d\d)[-:]?(\d\d)[-:]?(\d\d)(\.\d{1,6})?Z")


class FileSource:
    """One audio file.

    A file that breaks off is delivered as far as it can be decoded, then `blocks` raises.

    Parameters
    ----------
    path : the file.
    realtime : yield each block only when its last sample's time has come by `clock`, as a live stream would.
    block_s : length of a block; memory does not grow with the file.
    clock, sleep : seconds now, and how to wait for some.

    Raises
    ------
    AudioError : no such file, not audio, no channels or no samples.
    """

    def __init__(
        self,
        path: Path,
        realtime: bool = False,
        block_s: float = BLOCK_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._realtime = realtime
        self._clock = clock
        self._sleep = sleep
        with open_audio(path) as file:
            check_channels(str(path), file.channels, file.frames)
            self.frames = stated_frames(file)
            self.info = StreamInfo(str(path), file.samplerate, file.channels, utc_in_name(path.name))
        self._rows = max(1, round(block_s * self.info.rate_hz))

    @property
    def waits(self) -> bool:
        """A file waits for its reader, unless it plays in real time."""
        return not self._realtime

    @property
    def duration_s(self) -> float:
        """Length that the file's header states."""
        return self.frames / self.info.rate_hz

    def blocks(self) -> Iterator[AudioBlock]:
        """Yield the file from its start.

        Raises
        ------
        AudioError : the file ends before the length in its header, or cannot be decoded to its end; the text says
            how many seconds of how many were delivered.
        """
        began_s = self._clock()
        with open_audio(self._path) as file:
            for block, fault in read_blocks(file, self.frames, self._rows):
                if self._realtime:
                    self._wait_until(began_s + block.end_sample / self.info.rate_hz)
                yield block
                if fault is not None:
                    raise AudioError(self._broken_text(block.end_sample, fault))

    def _wait_until(self, due_s: float) -> None:
        if (left_s := due_s - self._clock()) > 0:
            self._sleep(left_s)

    def _broken_text(self, delivered: int, fault: str) -> str:
        rate_hz = self.info.rate_hz
        return (
            f"{self._path} is damaged: {delivered / rate_hz:.3f} s of {self.duration_s:.3f} s could be read ({fault}); "
            "copy the file again"
        )


def open_audio(path: Path) -> Any:
    """An open `soundfile.SoundFile`; raises AudioError where that cannot be had."""
    if not path.is_file():
        raise AudioError(f"{path} is not a file; check the path")
    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, TypeError, OSError) as fault:
        raise AudioError(
            f"{path} cannot be read as audio: {reason(fault)}; "
            "give WAV, FLAC, OGG, AIFF or another format that libsndfile reads"
        ) from fault


def reason(fault: BaseException) -> str:
    """What libsndfile said, without the path and the prefix."""
    text = str(getattr(fault, "error_string", "") or fault)
    return text.strip().rstrip(".").replace("Error : ", "")


def stated_frames(file: Any) -> int:
    """Length in the file's header, frames; libsndfile's own figure is what a cut-off WAV file still holds."""
    found = CUT_OFF.search(file.extra_info)
    if found is None or not 0 < int(found[2]) < int(found[1]) < ENDLESS:
        return int(file.frames)
    return int(file.frames * int(found[1]) / int(found[2]))


def read_blocks(file: Any, frames: int, rows: int) -> Iterator[tuple[AudioBlock, str | None]]:
    """Yield blocks of at most `rows`; with the last one, why the file ended before `frames`, or None."""
    position = 0
    while position < frames:
        samples = np.zeros((min(rows, frames - position), file.channels), np.float32)
        fault = _fill(file, samples)
        got = min(max(0, file.tell() - position), len(samples))
        if fault is None and got < len(samples):
            fault = "the file ends early"
        yield AudioBlock(samples[:got], position), fault
        if fault is not None:
            return
        position += got


def _fill(file: Any, samples: Any) -> str | None:
    """Decode into `samples`; rows decoded before a fault stay there, and the file's position says how many."""
    try:
        file.read(out=samples, dtype="float32")
    except soundfile.SoundFileError as fault:
        return reason(fault)
    return None


def utc_in_name(name: str) -> datetime | None:
    """Time stamp in a file name, as in `AMAR173_20190920T163858Z`; without the Z the zone is unknown: None."""
    found = STAMP.search(name)
    if found is None:
        return None
    try:
        whole = datetime.strptime("".join(found.groups()[:6]), "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return whole.replace(microsecond=round(float(found[7] or 0) * 1e6))


def audio_files(folder: Path, without: Path) -> list[Path]:
    """Audio files under a folder, sorted, by suffix.

    Hidden files are left out, and so is what lies in `without`, unless that is where the folder itself lies.
    """
    skipped = without.resolve()
    if skipped in (folder.resolve(), *folder.resolve().parents):
        skipped = Path()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and skipped not in path.resolve().parents
    )
