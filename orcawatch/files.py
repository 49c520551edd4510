"""Audio files as sources: any format that libsndfile reads, any number of channels, block by block."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import numpy as np
import soundfile

from .capture import check_channels
from .errors import AudioError
from .harmless import harmless
from .headers import lacks_end, stated_frames, unstated_frames
from .records import AudioBlock, StreamInfo
from .times import Times, comment_of

log = logging.getLogger(__name__)

BLOCK_S = 0.5
BLOCK_SAMPLES = 1 << 22  # and no more, whatever rate and number of channels a damaged header states
# What names audio in a folder; files given by themselves may have any name.
SUFFIXES = frozenset(
    {
        ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".iff", ".ircam", ".mp3", ".nist", ".oga",
        ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64", ".wav",
        ".wve",
    }
)  # fmt: skip


class FileSource:
    """One audio file.

    A file that breaks off, or holds more than its header states, is delivered as far as it can be decoded, then
    `blocks` raises.

    Parameters
    ----------
    path : the file.
    realtime : yield each block only when its last sample's time has come by `clock`, as a live stream would.
    block_s : length of a block; memory does not grow with the file.
    clock, sleep : seconds now, and how to wait for some.
    times : how the file's time is told; by default stamps without a zone tell none.
    name : what it is called in records; the path where that is left out.

    Raises
    ------
    AudioError : no such file, not audio, no channels or no samples.

    Attributes
    ----------
    frames : length that the header states; None where it states none.
    """

    def __init__(
        self,
        path: Path,
        realtime: bool = False,
        block_s: float = BLOCK_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        times: Times | None = None,
        name: str = "",
    ) -> None:
        self._path = path
        self._realtime = realtime
        self._clock = clock
        self._sleep = sleep
        with open_audio(path) as file:
            self.frames = stated_frames(file)
            start_utc = (times or Times()).start_utc(path, comment_of(file))
            self.info = StreamInfo(name or printable(path), file.samplerate, file.channels, start_utc)
            self._fault = self._header_fault(file)
            if self._fault and not file.frames:
                raise AudioError(self._fault)
            check_channels(self.info.name, file.channels, file.frames)
        self._rows = max(1, min(round(block_s * self.info.rate_hz), BLOCK_SAMPLES // self.info.channels))

    @property
    def waits(self) -> bool:
        """A file waits for its reader, unless it plays in real time."""
        return not self._realtime

    @property
    def behind_s(self) -> float:
        """A file is never behind."""
        return 0.0

    @property
    def clock(self) -> None:
        """A file's samples come at no particular time."""

    def utc_at(self, sample: int) -> datetime | None:
        """Time of a sample where the file, or its name, tells when it began."""
        return self.info.utc_at(sample)

    @property
    def duration_s(self) -> float:
        """Length that the file's header states; 0 where it states none."""
        return (self.frames or 0) / self.info.rate_hz

    def blocks(self) -> Iterator[AudioBlock]:
        """Yield the file from its start.

        Raises
        ------
        AudioError : the file ends before the length in its header, or after it, or cannot be decoded to its end; the
            text says how many seconds of how many were delivered.
        """
        began_s = self._clock()
        with open_audio(self._path) as file:
            for block, fault in read_blocks(file, self.frames, self._rows):
                if self._realtime:
                    self._wait_until(began_s + block.end_sample / self.info.rate_hz)
                yield block
                if fault is not None:
                    raise AudioError(self._broken_text(block.end_sample, fault))
        if self._fault:
            raise AudioError(self._fault)

    def _wait_until(self, due_s: float) -> None:
        if (left_s := due_s - self._clock()) > 0:
            self._sleep(left_s)

    def _broken_text(self, delivered: int, fault: str) -> str:
        whole = "" if self.frames is None else f" of {self.duration_s:.3f} s"
        return (
            f"{self.info.name} is damaged: {delivered / self.info.rate_hz:.3f} s{whole} could be read ({fault}); "
            "copy the file again"
        )

    def _header_fault(self, file: Any) -> str:
        """What is wrong with the header; empty where nothing is."""
        if lacks_end(file):
            delivered_s = file.frames / self.info.rate_hz
            return f"{self.info.name} is damaged: it breaks off after {delivered_s:.3f} s; copy the file again"
        if unstated := unstated_frames(self._path, file):
            stated_s, held_s = (frames / self.info.rate_hz for frames in (file.frames, file.frames + unstated))
            return (
                f"{self.info.name}: the header states {stated_s:.3f} s but the file holds {held_s:.3f} s; "
                "repair the header (the recorder may have lost its power)"
            )
        return ""


def printable(path: Path) -> str:
    """A path as text that can be printed and stored: what is no UTF-8, or commands terminals, is written as `\\xe9`."""
    return harmless(os.fsencode(path).decode("utf-8", "backslashreplace"))


def open_audio(path: Path) -> Any:
    """An open `soundfile.SoundFile`; raises AudioError where that cannot be had."""
    try:
        if not path.is_file():
            raise AudioError(f"{printable(path)} is not a file; check the path")
        path.open("rb").close()  # libsndfile would say `System error`, whatever it is
    except OSError as fault:
        raise AudioError(f"{printable(path)} cannot be read: {fault.strerror}; mend that, or leave it out") from fault
    try:
        return soundfile.SoundFile(os.fsencode(path))
    except (soundfile.SoundFileError, TypeError, OSError) as fault:
        raise AudioError(
            f"{printable(path)} cannot be read as audio: {reason(fault)}; "
            "give WAV, FLAC, OGG, AIFF or another format that libsndfile reads"
        ) from fault


def reason(fault: BaseException) -> str:
    """What libsndfile said, without the path and the prefix."""
    text = str(getattr(fault, "error_string", "") or fault)
    return text.strip().rstrip(".").replace("Error : ", "")


def read_blocks(file: Any, frames: int | None, rows: int) -> Iterator[tuple[AudioBlock, str | None]]:
    """Yield blocks of at most `rows`; with the last one, why the file ended before `frames`, or None."""
    if frames is None:
        yield from read_to_end(file, rows)
        return
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


def read_to_end(file: Any, rows: int) -> Iterator[tuple[AudioBlock, str | None]]:
    """As `read_blocks`, for FLAC of unknown length.

    At its end libsndfile has decoded the last rows, then fails to seek past them and loses its position: the rows that
    it did not fill are told by their NaN, which FLAC cannot hold.
    """
    position = 0
    while True:
        samples = np.full((rows, file.channels), np.nan, np.float32)
        fault = _fill(file, samples)
        got = int(np.count_nonzero(~np.isnan(samples[:, 0])))
        fault = None if fault is not None and "psf_fseek" in fault else fault
        if got or fault is not None:
            yield AudioBlock(samples[:got], position), fault
        if got < rows or fault is not None:
            return
        position += got


def _fill(file: Any, samples: Any) -> str | None:
    """Decode into `samples`; rows decoded before a fault stay there, and the file's position says how many."""
    try:
        file.read(out=samples, dtype="float32")
    except soundfile.SoundFileError as fault:
        return reason(fault)
    return None


def audio_files(folder: Path, without: Path) -> list[Path]:
    """Audio files under a folder, sorted, by suffix; links to folders are followed.

    Hidden files are left out, and so is what lies in `without`, unless that is where the folder itself lies. A folder
    that cannot be read is logged.
    """
    skipped = without.resolve()
    if skipped in (folder.resolve(), *folder.resolve().parents):
        skipped = Path()
    return sorted(
        path
        for path in _files(folder)
        if path.suffix.lower() in SUFFIXES and _is_file(path) and skipped not in path.resolve().parents
    )


def _is_file(path: Path) -> bool:
    """Whether it is one; what may be listed but not looked at counts as one, so that the scan tells its fault."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def _files(folder: Path) -> Iterator[Path]:
    """Every file under a folder that is not hidden; each folder once, however many links lead to it."""
    visited = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=_report, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_new(Path(place, name), visited)]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_new(folder: Path, visited: set[str]) -> bool:
    real = os.path.realpath(folder)
    if folder.name.startswith(".") or real in visited:
        return False
    visited.add(real)
    return True


def _report(fault: OSError) -> None:
    log.error("folder %s cannot be read: %s; its files are left out", printable(fault.filename), fault.strerror)
