"""The loop: audio in, detections out."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import SHIPPED, Bundle, load_bundle
from .capture import Source
from .config import Settings, overridden
from .detector import Scorer
from .ensemble import Ensemble
from .errors import InputError
from .events import EventBuilder, EventRules
from .listener import Listener, Totals
from .recorder import CLIPS, SNAPSHOTS, OnDetection, Recorder
from .records import AudioBlock, Window, WindowScore
from .store import Store

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

DATABASE = "detections.sqlite"


class Shared:
    """An ensemble that two threads may use: an interpreter does one thing at a time."""

    def __init__(self, ensemble: Scorer) -> None:
        self._ensemble = ensemble
        self._lock = Lock()

    @property
    def bundle(self) -> Bundle:
        """The ensemble's bundle."""
        return self._ensemble.bundle

    def score(self, window: Window) -> WindowScore:
        """As the ensemble's."""
        with self._lock:
            return self._ensemble.score(window)

    def explain(self, window: Window, channel: int) -> dict[str, tuple[Array, Array]]:
        """As the ensemble's."""
        with self._lock:
            return self._ensemble.explain(window, channel)


def run(
    source: Source, ensemble: Scorer, settings: Settings, on_detection: OnDetection, stop: Flag | None = None
) -> Totals:
    """Listen to a source until it ends or is to stop; files and live streams take the same way.

    Parameters
    ----------
    source : where audio comes from.
    ensemble : scores and explains; its bundle gives hop, fusion and thresholds (see `open_ensemble`).
    settings : channels, events, clips, output folder.
    on_detection : called with each detection after its clip and snapshot were made, in this thread. Its paths are
        relative to the output folder.
    stop : set it to end early; what was heard is finished and kept.

    Returns
    -------
    The account. An error that ended the source early stands in `totals.fault`; rows that could not be written are
    counted in `totals.lost`, clips and snapshots in `totals.failed`.

    Raises
    ------
    InputError, AudioError : the source cannot be scored at all, or the output folder not be used.
    """
    shared = Shared(ensemble)
    listener = Listener(source, shared, settings.channels)
    builder = EventBuilder(rules_of(shared.bundle, settings), source.info.rate_hz)
    with open_store(settings.output) as store:
        recorder = Recorder(store, shared, source.info, listener.channels, settings, source.waits, on_detection)
        with closing(recorder):
            for audio, windows in listener.listen(stop or Flag()):
                _step(recorder, builder, audio, windows)
            recorder.finish()
    counts = {name: getattr(recorder, name) for name in ("events", "shed", "failed", "lost")}
    return replace(listener.totals(), **counts)


def _step(recorder: Recorder, builder: EventBuilder, audio: AudioBlock | None, windows: Sequence[WindowScore]) -> None:
    if audio is not None:
        recorder.hear(audio)
    events = [event for window in windows for event in builder.push(window)]
    for event in events if audio is not None else events + builder.finish():
        recorder.record(event)
    recorder.advance(stretch_ended=audio is None)


def rules_of(bundle: Bundle, settings: Settings) -> EventRules:
    """The bundle's thresholds with the settings' durations."""
    events = settings.events
    return EventRules(
        bundle.start_threshold,
        bundle.stop_threshold,
        events.merge_gap_s,
        events.min_duration_s,
        events.max_duration_s,
    )


def open_ensemble(settings: Settings) -> Ensemble:
    """The ensemble of the settings' bundle (the shipped one where none is named), with the settings' overrides."""
    bundle = load_bundle(settings.bundle or SHIPPED)
    return Ensemble(overridden(bundle, settings), settings.threads)


def open_store(output: Path) -> Store:
    """The database in the output folder; the folder and those for clips and snapshots are made."""
    try:
        for folder in (CLIPS, SNAPSHOTS):
            (output / folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"output folder {output} cannot be made: {fault.strerror}; name another one") from fault
    return Store(output / DATABASE)


@contextmanager
def stop_signals() -> Iterator[Flag]:
    """A flag that SIGTERM or SIGINT sets; a second signal does what it did before."""
    stop = Flag()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        log.info("%s: stopping; what was heard is finished first", signal.Signals(number).name)
        stop.set()
        _restore(before)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
