"""Scan recordings: the same loop as live listening, over files and folders."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Callable

import numpy as np

from .capture import Recorded, Through
from .config import Settings
from .daemon import run
from .detector import Scorer
from .durable import write_bytes
from .errors import AudioError, InputError
from .files import SUFFIXES, FileSource, audio_files, printable
from .listener import Listener, Totals
from .recorder import CLIPS, OnDetection
from .records import AudioBlock

log = logging.getLogger(__name__)

OnAudio = Callable[[float], object]


@dataclass(frozen=True)
class Recording:
    """One file to scan; `name`, printable, is relative to the folder given, with forward slashes."""

    path: Path
    name: str


@dataclass(frozen=True)
class Summary:
    """What became of a scan.

    Attributes
    ----------
    files : how many there are.
    faulty : those that were not scored in full, and those that were not come to because of a stop.
    scored_s : seconds scored.
    events : detections.
    failed : detections without a clip, a snapshot or a row because it could not be written.
    """

    files: int = 0
    faulty: int = 0
    scored_s: float = 0.0
    events: int = 0
    failed: int = 0

    def plus(self, totals: Totals, whole: bool) -> Summary:
        """With one more file that was listened to."""
        return Summary(
            self.files + 1,
            self.faulty + (not whole),
            self.scored_s + totals.scored_s,
            self.events + totals.events,
            self.failed + totals.failed + totals.lost,
        )


class Watched(Through[Recorded]):
    """A source that tells how many seconds it has yielded, for a progress bar."""

    def __init__(self, source: Recorded, on_audio: OnAudio) -> None:
        super().__init__(source)
        self._on_audio = on_audio

    def blocks(self) -> Iterator[AudioBlock]:
        """The source's."""
        for block in self._source.blocks():
            yield block
            self._on_audio(len(block.samples) / self.info.rate_hz)


def find_recordings(paths: Sequence[Path], output: Path) -> list[Recording]:
    """Files as given, and every audio file under the folders given, sorted; the output folder's own clips are left out.

    Raises
    ------
    InputError : a path that does not exist, or a folder without audio files.
    """
    return [recording for path in paths for recording in _recordings(path, output)]


def _recordings(path: Path, output: Path) -> list[Recording]:
    if not path.exists():
        raise InputError(f"{printable(path)} does not exist; check the path")
    if not path.is_dir():
        return [Recording(path, printable(Path(path.name)))]
    found = audio_files(path, without=output / CLIPS)
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise InputError(f"{printable(path)} holds no audio file ({kinds}); name another folder, or the files")
    return [Recording(file, printable(file.relative_to(path))) for file in found]


def total_s(recordings: Iterable[Recording]) -> float:
    """Seconds of audio that the files' headers state; files that cannot be read count nothing."""
    return sum(_stated_s(recording.path) for recording in recordings)


def _stated_s(path: Path) -> float:
    try:
        return FileSource(path).duration_s
    except AudioError:
        return 0.0


def scan(
    recordings: Iterable[Recording],
    ensemble: Scorer,
    settings: Settings,
    on_detection: OnDetection,
    on_audio: OnAudio,
    stop: Flag,
) -> Summary:
    """Detect in every recording; a file that cannot be scored in full is logged, and the next one follows.

    Parameters
    ----------
    recordings : what to scan, in this order.
    ensemble, settings, on_detection : as for `orcawatch.daemon.run`.
    on_audio : called with the seconds of each block, after it was scored.
    stop : set it to end early; what was heard is finished and kept, the rest counts as faulty.
    """
    summary = Summary()
    for recording in recordings:
        totals = Totals() if stop.is_set() else _scanned(recording, ensemble, settings, on_detection, on_audio, stop)
        summary = summary.plus(totals, totals.whole and not stop.is_set())
    return summary


def _scanned(
    recording: Recording,
    ensemble: Scorer,
    settings: Settings,
    on_detection: OnDetection,
    on_audio: OnAudio,
    stop: Flag,
) -> Totals:
    """What became of one recording; a fault is logged."""
    try:
        totals = run(Watched(FileSource(recording.path), on_audio), ensemble, settings, on_detection, stop)
    except AudioError as fault:
        totals = Totals(fault=fault)
    log.debug("%s: %s", printable(recording.path), totals)
    if totals.fault is not None:
        log.error("%s", about(recording, totals.fault))
    if totals.refused_s:
        log.error("%s: %s", printable(recording.path), totals.refusal())
    return totals


def clip_scores(
    recordings: Sequence[Recording], ensemble: Scorer, settings: Settings, on_audio: OnAudio, stop: Flag
) -> tuple[list[tuple[str, float]], int]:
    """Score every recording as one clip.

    Returns
    -------
    rows : (name, score) of the files that could be scored in full.
    faulty : number of the others, which are logged, or were not come to because of a stop.

    Raises
    ------
    InputError : two files of one name.
    """
    if twice := [name for name, count in Counter(item.name for item in recordings).items() if count > 1]:
        raise InputError(f"{twice[0]} is the name of two files: scan one folder at a time")
    rows = []
    for recording in recordings:
        if stop.is_set():
            break
        try:
            source = Watched(FileSource(recording.path), on_audio)
            rows.append((recording.name, clip_score(source, ensemble, settings, stop)))
        except AudioError as fault:
            log.error("%s", about(recording, fault))
    return rows, len(recordings) - len(rows)


def clip_score(source: Watched, ensemble: Scorer, settings: Settings, stop: Flag) -> float:
    """Mean over all windows of the channels' fused orca confidence, 0 to 1.

    Raises
    ------
    AudioError : the source cannot be read, or not be scored in full; part of a clip would be another clip.
    """
    listener = Listener(source, ensemble, settings.channels)
    scores = [window.score for _, windows in listener.listen(stop) for window in windows]
    totals = listener.totals()
    if totals.fault is not None:
        raise totals.fault
    if stop.is_set() or not totals.whole:
        why = "it was stopped" if stop.is_set() else totals.refusal()
        raise AudioError(f"{source.info.name} has no score: {why}")
    return float(np.mean(scores))


def about(recording: Recording, fault: AudioError) -> str:
    """The fault's text, with the file's path where it lacks it."""
    text, path = str(fault), printable(recording.path)
    return text if path in text else f"{path}: {text}"


def check_place(path: Path) -> None:
    """Raise InputError where a file cannot be written, before hours of work are lost; its folder is made."""
    with _named(path):
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(path.name + ".partial")
        probe.touch()
        probe.unlink()


def write_scores(path: Path, rows: Iterable[tuple[str, float]]) -> None:
    """Write `file_name,score` rows, whole or not at all.

    Raises
    ------
    InputError : a place that cannot be written to.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("file_name", "score"), *((name, f"{score:.9g}") for name, score in rows)])
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.getvalue().encode())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise InputError(f"{printable(path)} cannot be written: {fault.strerror}; name another file") from fault
