"""Scan recordings: the same loop as live listening, over files and folders."""

from __future__ import annotations

import csv
import glob
import io
import logging
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Callable

import numpy as np

from . import daemon
from .bundle import SHIPPED, Bundle
from .config import Settings
from .detector import Scorer
from .durable import write_bytes
from .errors import AudioError, InputError, OrcawatchError
from .files import SUFFIXES, audio_files, open_audio, printable
from .headers import stated_frames
from .journal import STAGING, Done, Identity, Journal, identity, kept, key
from .listener import Listener, Totals
from .recorder import CLIPS, OnDetection
from .staging import OnAudio, Task, Watched, source_of
from .store import Detection
from .workers import Stopped, Workers

log = logging.getLogger(__name__)

SET_ASIDE = "set-aside.csv"


@dataclass(frozen=True)
class Recording:
    """One file to scan; `name`, printable, is relative to the folder given, with forward slashes."""

    path: Path
    name: str


OnFile = Callable[[Recording, float], object]


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
    again : files of which what was found before stays: they have not changed.
    timeless : files that tell no time.
    """

    files: int = 0
    faulty: int = 0
    scored_s: float = 0.0
    events: int = 0
    failed: int = 0
    again: int = 0
    timeless: int = 0


def find_recordings(paths: Sequence[Path], output: Path) -> list[Recording]:
    """Files as given, and every audio file under the folders given, sorted; the output folder's own clips are left out.

    A path that does not exist may be a pattern, as `2026/**/*.wav`; what it fits is sorted. A file that is named twice
    is taken once.

    Raises
    ------
    InputError : a path that does not exist and fits nothing, or a folder without audio files.
    """
    found: dict[str, Recording] = {}
    for path in paths:
        for each in _expanded(path, output / CLIPS):
            for recording in _recordings(each, output):
                found.setdefault(key(recording.path), recording)
    return list(found.values())


def _expanded(path: Path, without: Path) -> list[Path]:
    """What a pattern fits, but what lies in `without`; the path itself where it is none."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    return [each for each in found if without.resolve() not in each.resolve().parents] or [path]


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
        with open_audio(path) as file:
            return (stated_frames(file) or 0) / int(file.samplerate)
    except AudioError:
        return 0.0


@dataclass(frozen=True)
class Work:
    """What a scan has before it.

    Attributes
    ----------
    lengths_s : seconds by path of the files that are to be scanned, as `total_s` counts them.
    before : how many files were scanned before, and are not scanned again.
    before_s : seconds that were scored of these.
    """

    lengths_s: Mapping[Path, float]
    before: int = 0
    before_s: float = 0.0

    @property
    def files(self) -> int:
        """How many there are, in all."""
        return self.before + len(self.lengths_s)

    @property
    def left_s(self) -> float:
        """Seconds that are to be scanned."""
        return sum(self.lengths_s.values())


def work_of(recordings: Sequence[Recording], bundle: Bundle, settings: Settings, retry: bool = False) -> Work:
    """What a scan of these recordings would have before it; of a file that is to be scanned the header is read.

    Raises
    ------
    InputError : as for `scan`.
    """
    new: list[Path] = []
    before: list[Done] = []
    with daemon.open_store(settings.output) as store:
        journal = Journal(store, settings, bundle)
        for recording in recordings:
            done = journal.done(recording.path, identity(recording.path))
            if done is None or (to_scan(done, retry) and not journal.reviewed(done)):
                new.append(recording.path)
            else:
                before.append(done)
    return Work({path: _stated_s(path) for path in new}, len(before), sum(done.scored_s for done in before))


def to_scan(done: Done, retry: bool) -> bool:
    """Whether a file that was scanned before is to be scanned again: it changed, or was set aside and is retried."""
    return not done.same or (retry and done.fault is not None)


def scan(
    recordings: Sequence[Recording],
    bundle: Bundle,
    settings: Settings,
    on_detection: OnDetection,
    workers: Workers,
    retry: bool = False,
    on_file: OnFile = lambda recording, heard_s: None,
) -> Summary:
    """Detect in every recording; a file that cannot be scored in full is logged, and the next one follows.

    What was found in a file becomes part of the database whole, or not at all, in the order of the files: a scan that
    is killed goes on where it was, and ends as if it had not been. Files that have not changed are not scanned again.

    Parameters
    ----------
    recordings : what to scan, in this order.
    bundle : what scores (see `orcawatch.daemon.open_bundle`).
    settings : as for `orcawatch.daemon.run`.
    on_detection : called with each detection in the order of the files, also of those that were scanned before.
    workers : who scans.
    retry : also scan the files again that were set aside. One of which the same is found keeps what it has.
    on_file : called with each recording that was scanned now, and how many seconds of it were heard.

    Raises
    ------
    InputError : the output folder holds a scan with other settings, or another bundle.
    """
    staging = settings.output / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with daemon.open_store(settings.output) as store:
        journal = Journal(store, settings, bundle)
        archive = Archive(journal, settings, bundle, workers, on_detection, retry, on_file)
        for hand_in in ahead(recordings, archive.hand_out, workers.ahead):
            hand_in()
        archive.end(recordings)
    shutil.rmtree(staging, ignore_errors=True)
    return archive.summary


class Archive:
    """A scan under way.

    Attributes
    ----------
    summary : what became of it so far.
    """

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        bundle: Bundle,
        workers: Workers,
        on_detection: OnDetection,
        retry: bool,
        on_file: OnFile,
    ) -> None:
        self.summary = Summary()
        self._journal = journal
        self._settings = settings
        self._digest = bundle.digest
        self._bundle = settings.bundle if bundle.folder == SHIPPED else bundle.folder.absolute()
        self._staging = settings.output / STAGING / uuid.uuid4().hex[:8]  # a worker of an earlier scan may still write
        self._workers = workers
        self._on_detection = on_detection
        self._retry = retry
        self._on_file = on_file
        self._refused: dict[str, str] = {}  # why, by path
        self._handed_out = 0
        self._stopped = False

    def hand_out(self, recording: Recording) -> Callable[[], None]:
        """Begin a recording where that is needed; what is returned waits for it, and takes what was found."""
        if self._stopped:
            return lambda: None
        seen = identity(recording.path)
        done = self._journal.done(recording.path, seen)
        if done is not None and not to_scan(done, self._retry):
            return lambda: self._repeat(done)
        if done is not None and (reviewed := self._journal.reviewed(done)):
            return lambda: self._keep(recording, done, kept(recording.path, done, reviewed))
        self._handed_out += 1
        staged = self._staging / f"{self._handed_out:06d}"
        settings = replace(self._settings, output=staged.absolute(), bundle=self._bundle)
        wait = self._workers.hand_out(
            Task(recording.path.absolute(), settings, self._digest, printable(recording.path))
        )
        return lambda: self._take(recording, seen, done, wait, staged)

    def end(self, recordings: Sequence[Recording]) -> None:
        """Close the journal, unless there was a stop; list what was set aside, and count what tells no time."""
        write_set_aside(self._settings.output / SET_ASIDE, self._journal.faults(self._refused))
        timeless = self._journal.timeless()
        left = len(recordings) - self.summary.files
        self.summary = replace(
            self.summary,
            files=len(recordings),
            faulty=self.summary.faulty + left,
            timeless=sum(key(recording.path) in timeless for recording in recordings),
        )
        if not self._stopped:
            self._journal.end()

    def _repeat(self, done: Done) -> None:
        """A file that was scanned before."""
        if self._stopped:
            return
        found = self._journal.detections(done)
        if done.fault is not None:
            log.error("%s", done.fault)
        self._count(Totals(events=len(found)), done.fault is not None, 0.0, again=True)
        self._report(found)

    def _keep(self, recording: Recording, done: Done | None, why: AudioError) -> None:
        """A file that is not scanned again because of verdicts; one that has changed since is set aside."""
        if self._stopped:
            return
        log.error("%s", why)
        if done is not None and done.same:
            self._repeat(done)
            return
        self._refused[key(recording.path)] = str(why)
        self._count(Totals(fault=why), True, 0.0)

    def _take(
        self, recording: Recording, seen: Identity, before: Done | None, wait: Callable[[], Totals], staged: Path
    ) -> None:
        """Take what was found in a file; nothing of one that was stopped, or whose rows the disk refused."""
        if self._stopped:
            return
        try:
            totals = wait()
        except Stopped:
            self._stopped = True
            return
        self._on_file(recording, totals.read_s)
        fault = why(recording, totals)
        if before is not None and before.same and before.equals(totals, fault):
            shutil.rmtree(staged, ignore_errors=True)
            self._repeat(before)
            return
        if fault is not None:
            log.error("%s", fault)
        if totals.lost:
            self._count(totals, True, totals.scored_s)
            return
        try:
            found = self._journal.take(recording.path, seen, before, totals, fault, staged)
        except AudioError as reviewed:
            self._keep(recording, before, reviewed)
            return
        except OSError as refused:
            raise OrcawatchError(
                f"what was found in {printable(recording.path)} cannot be written: {refused.strerror}; check that the "
                "disk is not full, then give the same command: the scan goes on from there"
            ) from refused
        self._count(totals, fault is not None, totals.scored_s)
        self._report(found)

    def _report(self, found: Iterable[Detection]) -> None:
        for detection in found:
            self._on_detection(detection)

    def _count(self, totals: Totals, faulty: bool, scored_s: float, again: bool = False) -> None:
        so_far = self.summary
        self.summary = replace(
            so_far,
            files=so_far.files + 1,
            faulty=so_far.faulty + faulty,
            scored_s=so_far.scored_s + scored_s,
            events=so_far.events + totals.events,
            failed=so_far.failed + totals.failed + totals.lost,
            again=so_far.again + again,
        )


def ahead(
    recordings: Iterable[Recording], hand_out: Callable[[Recording], Callable[[], None]], most: int
) -> Iterator[Callable[[], None]]:
    """Hand recordings out, at most so many before the first one's account is waited for, in order."""
    waiting: deque[Callable[[], None]] = deque()
    for recording in recordings:
        waiting.append(hand_out(recording))
        if len(waiting) >= most:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def why(recording: Recording, totals: Totals) -> str | None:
    """Why a file was not scored in full; None where it was."""
    if totals.fault is not None:
        return about(recording, totals.fault)
    return f"{printable(recording.path)}: {totals.refusal()}" if totals.refused_s else None


def write_set_aside(path: Path, faults: Sequence[tuple[str, str]]) -> None:
    """Write `file,reason` rows, or remove the file where there are none."""
    if not faults:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *faults])
    write_bytes(path, text.getvalue().encode())


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
            source = Watched(source_of(recording.path, settings), on_audio)
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
