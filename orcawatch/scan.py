"""Scan recordings: the same loop as live listening, over files and folders."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Callable

import numpy as np

from .config import Settings
from .daemon import CLIPS, Listener, OnDetection, run
from .detector import Scorer
from .durable import write_bytes
from .errors import AudioError, InputError
from .files import SUFFIXES, FileSource, audio_files
from .records import AudioBlock, StreamInfo

log = logging.getLogger(__name__)

OnAudio = Callable[[float], object]


@dataclass(frozen=True)
class Recording:
    """One file to scan; `name` is relative to the folder given, with forward slashes."""

    path: Path
    name: str


@dataclass(frozen=True)
class Summary:
    """What became of a scan: files scored in full, files that were not, and seconds scored."""

    files: int
    faulty: int
    scored_s: float
    events: int


class Watched:
    """A source that tells how many seconds it has yielded, for a progress bar."""

    def __init__(self, source: FileSource, on_audio: OnAudio) -> None:
        self._source = source
        self._on_audio = on_audio

    @property
    def info(self) -> StreamInfo:
        """The source's."""
        return self._source.info

    @property
    def waits(self) -> bool:
        """The source's."""
        return self._source.waits

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
        raise InputError(f"{path} does not exist; check the path")
    if not path.is_dir():
        return [Recording(path, path.name)]
    found = audio_files(path, without=output / CLIPS)
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise InputError(f"{path} holds no audio file ({kinds}); name another folder, or the files")
    return [Recording(file, file.relative_to(path).as_posix()) for file in found]


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
) -> Summary:
    """Detect in every recording; a file that cannot be scored in full is logged, and the next one follows.

    Parameters
    ----------
    recordings : what to scan, in this order.
    ensemble, settings, on_detection : as for `orcawatch.daemon.run`.
    on_audio : called with the seconds of each block, after it was scored.
    """
    files = faulty = events = 0
    scored_s = 0.0
    for recording in recordings:
        files += 1
        try:
            totals = run(Watched(FileSource(recording.path), on_audio), ensemble, settings, on_detection)
        except AudioError as fault:
            log.error("%s", about(recording, fault))
            faulty += 1
            continue
        log.debug("%s: %s", recording.path, totals)
        if totals.fault is not None:
            log.error("%s", about(recording, totals.fault))
        elif totals.refused_s:
            log.error("%s: %.3f s of %.3f s are refused", recording.path, totals.refused_s, totals.read_s)
        faulty += not totals.whole
        events += totals.events
        scored_s += totals.scored_s
    return Summary(files, faulty, scored_s, events)


def clip_scores(
    recordings: Sequence[Recording], ensemble: Scorer, settings: Settings, on_audio: OnAudio
) -> tuple[list[tuple[str, float]], int]:
    """Score every recording as one clip.

    Returns
    -------
    rows : (name, score) of the files that could be scored in full.
    faulty : number of the others, which are logged.

    Raises
    ------
    InputError : two files of one name.
    """
    if twice := [name for name, count in Counter(item.name for item in recordings).items() if count > 1]:
        raise InputError(f"{twice[0]} is the name of two files: scan one folder at a time")
    rows, faulty = [], 0
    for recording in recordings:
        try:
            source = Watched(FileSource(recording.path), on_audio)
            rows.append((recording.name, clip_score(source, ensemble, settings)))
        except AudioError as fault:
            log.error("%s", about(recording, fault))
            faulty += 1
    return rows, faulty


def clip_score(source: Watched, ensemble: Scorer, settings: Settings) -> float:
    """Mean over all windows of the channels' fused orca confidence, 0 to 1.

    Raises
    ------
    AudioError : the source cannot be read, or not be scored in full; part of a clip would be another clip.
    """
    listener = Listener(source, ensemble, settings.channels)
    scores = [window.score for _, windows in listener.listen(Flag()) for window in windows]
    totals = listener.totals()
    if totals.fault is not None:
        raise totals.fault
    if not totals.whole:
        raise AudioError(f"{source.info.name} has no score: {totals.refused_s:.3f} s of it are refused")
    return float(np.mean(scores))


def about(recording: Recording, fault: AudioError) -> str:
    """The fault's text, with the file's path where it lacks it."""
    text = str(fault)
    return text if str(recording.path) in text else f"{recording.path}: {text}"


def write_scores(path: Path, rows: Iterable[tuple[str, float]]) -> None:
    """Write `file_name,score` rows, whole or not at all.

    Raises
    ------
    InputError : a place that cannot be written to.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("file_name", "score"), *((name, f"{score:.9g}") for name, score in rows)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.getvalue().encode())
    except OSError as fault:
        raise InputError(f"{path} cannot be written: {fault.strerror}; name another file") from fault
