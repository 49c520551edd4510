"""One file of an archive, scanned by itself: a run into a folder of its own, in this process or in any other."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Callable

from . import daemon
from .capture import Recorded, Through
from .config import Settings
from .detector import Scorer
from .errors import AudioError, BundleError
from .files import FileSource
from .listener import Totals
from .records import AudioBlock
from .times import Times

OnAudio = Callable[[float], object]

OWN = threading.local()  # the ensemble of each thread: an interpreter does one thing at a time


@dataclass(frozen=True)
class Task:
    """What a worker is to do; it can be sent to another process, or another machine that sees the same paths.

    Attributes
    ----------
    path : the file.
    settings : with the folder for what is found as `output`.
    digest : of the bundle that is to score.
    name : what the file is called in records.
    """

    path: Path
    settings: Settings
    digest: str
    name: str = ""


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


def source_of(path: Path, settings: Settings, name: str = "") -> FileSource:
    """A file as a source, with the time that the settings read from it; `name` in place of the path as given."""
    return FileSource(path, times=Times.of(settings.files.timezone, settings.files.time_format), name=name)


def work(task: Task, ensemble: Scorer, on_audio: OnAudio, stop: Flag) -> Totals:
    """Scan one file into the task's folder, which is emptied before; a fault of the file is in the account."""
    shutil.rmtree(task.settings.output, ignore_errors=True)
    try:
        source = Watched(source_of(task.path, task.settings, task.name), on_audio)
        return daemon.run(source, ensemble, task.settings, lambda detection: None, stop)
    except AudioError as fault:
        return Totals(fault=fault)


def own_ensemble(task: Task) -> Scorer:
    """This thread's ensemble, made where it is missing.

    Raises
    ------
    BundleError : the bundle here is another one.
    """
    found: Scorer | None = getattr(OWN, task.digest, None)
    if found is None:
        found = daemon.open_ensemble(task.settings)
        if found.bundle.digest != task.digest:
            raise BundleError(
                f"the bundle {found.bundle.name} of this worker has digest {found.bundle.digest[:12]}..., the scan's "
                f"has {task.digest[:12]}...: install the same bundle, or name its folder with --bundle"
            )
        setattr(OWN, task.digest, found)
    return found


def work_elsewhere(task: Task) -> Totals:
    """As `work`, with an ensemble of its own and nobody to stop it: what another process calls."""
    totals = work(task, own_ensemble(task), told_of_audio, Flag())
    return replace(totals, fault=None if totals.fault is None else AudioError(str(totals.fault)))


# Replaced in worker processes by what tells the parent.
_on_audio: OnAudio = lambda seconds: None  # noqa: E731


def told_of_audio(seconds: float) -> None:
    """So many seconds more were scanned in this process."""
    _on_audio(seconds)


def tell(on_audio: OnAudio) -> None:
    """Call this from now on with the seconds that are scanned in this process."""
    global _on_audio
    _on_audio = on_audio
