"""The loop: audio in, detections out."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from types import FrameType
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from . import recovery
from .attempt import try_named_once
from .bundle import Bundle
from .bundles import InForce, in_force
from .capture import Source
from .cascade import Cascade
from .channels import check_hydrophones
from .clock import Clocks, Timekeeper
from .config import Settings, overridden
from .detector import Scorer, score_silence
from .durable import Complaint
from .ensemble import Ensemble
from .errors import InputError, OrcawatchError
from .events import EventBuilder, EventRules
from .ledger import FileTime, Ledger, Session
from .listener import Listener, Totals
from .load import Ladder, steps
from .logbook import Logbook
from .outbox import Outbox
from .owner import give_to_owner
from .recorder import CLIPS, SNAPSHOTS, OnDetection, Recorder
from .records import AudioBlock, ClockChange, Item, Missing, Window, WindowScore
from .signing import check_signature
from .store import Store
from .turn import take_turn

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

DATABASE = "detections.sqlite"
LOCK = "lock"
CALM_S = 1.0  # a backlog up to this is none


class Shared:
    """An ensemble whose windows are timed, and counted; the loop scores with it while the recorder explains events.

    Parameters
    ----------
    ensemble : the one.
    on_score : called with the seconds that each window took.

    Attributes
    ----------
    scored : windows of single channels that were scored.
    stopped : those of them that each gate of the cascade stopped, by its name.
    """

    def __init__(self, ensemble: Scorer, on_score: Callable[[float], object] = lambda seconds: None) -> None:
        self._ensemble = ensemble
        self._on_score = on_score
        self.scored = 0
        self.stopped: Counter[str] = Counter()
        self.cascade = ensemble.cascade.plain  # its gates may count for an earlier session

    @property
    def bundle(self) -> Bundle:
        """The ensemble's bundle."""
        return self._ensemble.bundle

    @property
    def cascade(self) -> Cascade:
        """The ensemble's cascade."""
        return self._cascade

    @cascade.setter
    def cascade(self, cascade: Cascade) -> None:
        self._cascade = cascade
        self.stopped.update({gate.name: 0 for gate in cascade.gates})  # those that stop nothing are told, too
        self._ensemble.cascade = cascade.counted(self._count)

    def _count(self, gate: str) -> None:
        self.stopped[gate] += 1

    def score(
        self, window: Window, columns: Sequence[int] | None = None, vote: Sequence[str] | None = None
    ) -> WindowScore:
        """As the ensemble's."""
        began_s = time.perf_counter()
        score = self._ensemble.score(window, columns, vote)
        self._on_score(time.perf_counter() - began_s)
        self.scored += len(score.channel_scores) if columns is None else len(columns)
        return score

    def explain(self, windows: Sequence[Window], channel: int) -> list[dict[str, tuple[Array, Array]]]:
        """As the ensemble's."""
        return self._ensemble.explain(windows, channel)


class Upkeep:
    """What goes on beside the loop of a long watch; this one does nothing. See `orcawatch.service.Service`.

    Attributes
    ----------
    apart : whether pictures are drawn in processes of their own, as a long watch has it.
    """

    apart = False

    def store(self, output: Path) -> AbstractContextManager[Store]:
        """The database in the output folder, open; left when the watch ends."""
        return open_store(output)

    @contextmanager
    def watching(self, store: Store) -> Iterator[None]:
        """Around the whole watch."""
        yield

    def outbox(self, session: int | None) -> Outbox | None:
        """Where messages about this session wait for the sinks."""
        return None

    def heard(self, loop: Loop, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """An item was dealt with, and these windows were scored; None ended a stretch."""

    def processed(self, loop: Loop) -> None:
        """One more item was dealt with."""

    def ended(self, loop: Loop) -> None:
        """The source has ended, and everything of it was dealt with."""

    def scored(self, seconds: float) -> None:
        """One more window was scored, in so many seconds."""

    def room(self, size: int) -> bool:
        """Whether so many bytes may be written for a clip or a snapshot."""
        return True


def run(
    source: Source,
    ensemble: Scorer,
    settings: Settings,
    on_detection: OnDetection,
    stop: Flag | None = None,
    upkeep: Upkeep | None = None,
    clocks: Timekeeper | None = None,
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
    upkeep : what goes on beside the loop; nothing where it is left out.
    clocks : the system's.

    Returns
    -------
    The account. An error that ended the source early stands in `totals.fault`; rows that could not be written are
    counted in `totals.lost`, clips and snapshots in `totals.failed`.

    Raises
    ------
    InputError, AudioError : the source cannot be scored at all, or the output folder not be used.
    """
    upkeep = upkeep or Upkeep()
    shared = Shared(ensemble, upkeep.scored)
    listener = Listener(source, shared, settings.channels)
    check_hydrophones(settings, source.info.channels)
    with upkeep.store(settings.output) as store, upkeep.watching(store):
        loop = Loop(store, source, shared, listener, settings, on_detection, upkeep, clocks or Clocks())
        with closing(loop):
            for item, windows in listener.listen(stop or Flag()):
                loop.take(item, windows)
                upkeep.heard(loop, item, windows)
                upkeep.processed(loop)
            loop.finish()
            upkeep.ended(loop)
    counts = {name: getattr(loop.recorder, name) for name in ("events", "shed", "failed", "lost")}
    return replace(listener.totals(), **counts)


class Loop:
    """What is done with the items of a stream and their windows: events, rows, clips, the account, the ladder.

    Attributes
    ----------
    source, ensemble, listener, logbook, recorder, ladder : its parts, for the upkeep to look at.
    position : just past the last item.
    seconds : by kind and cause, what the items were.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        ensemble: Shared,
        listener: Listener,
        settings: Settings,
        on_detection: OnDetection,
        upkeep: Upkeep,
        clocks: Timekeeper,
    ) -> None:
        self.source = source
        self.listener = listener
        self.ensemble = ensemble
        self._clocks = clocks
        self.position = 0
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        bundle, channels, info = ensemble.bundle, listener.channels, source.info
        ledger = open_ledger(store, source, channels, bundle, settings, clocks)
        outbox = upkeep.outbox(ledger.session)
        self.logbook = Logbook(store, ledger, source, channels, bundle, settings, outbox)
        self.recorder = Recorder(
            self.logbook, ensemble, info, channels, settings, source.waits, on_detection, upkeep.room, upkeep.apart
        )
        overload = settings.overload
        wanted = () if source.waits else overload.steps
        self.ladder = Ladder(steps(bundle, len(channels), wanted), overload.step_up_s, overload.recover_s)
        self._shedding = Complaint(log)
        self._builder = EventBuilder(rules_of(bundle, settings), info.rate_hz)

    def take(self, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """Deal with one item; None ends a stretch."""
        if isinstance(item, ClockChange):
            self.logbook.clock_changed(item)
            return
        if isinstance(item, AudioBlock):
            self._hear(item)
        events = [event for window in windows for event in self._builder.push(window)]
        ended = not isinstance(item, AudioBlock)
        for event in events + (self._builder.finish() if ended else []):
            self.recorder.record(event)
        if isinstance(item, Missing):
            self._miss(item)
        self.recorder.advance(stretch_ended=ended)
        if item is not None:
            self._climb()

    def finish(self) -> None:
        """Write the account, then wait for the clips that are being made: who ends us meanwhile takes none of it."""
        self.logbook.ledger.checkpoint()
        self.recorder.finish()

    def change(self, settings: Settings, bundle: Bundle) -> None:
        """Go on with other settings; only keys that may be reloaded differ."""
        self._builder.rules = rules_of(bundle, settings)
        self.ensemble.cascade = bundle.cascade
        warn_of_cascade(bundle, settings)
        self.recorder.take(settings)
        self.ladder.step_up_s, self.ladder.recover_s = settings.overload.step_up_s, settings.overload.recover_s

    def close(self) -> None:
        """End the clips' worker, and the session."""
        self.recorder.close()
        self.logbook.close()

    def _hear(self, audio: AudioBlock) -> None:
        self.recorder.hear(audio)
        self.logbook.heard(audio)
        self._count("recorded", "", audio.end_sample - audio.start_sample, audio.end_sample)

    def _miss(self, missing: Missing) -> None:
        if missing.kind == "shed":
            self._shedding.say(f"audio is dropped: {missing.cause}")
        self.recorder.skip(missing.end_sample)
        self.logbook.missing(missing)
        self._count(missing.kind, missing.cause, missing.end_sample - missing.start_sample, missing.end_sample)

    def _count(self, kind: str, cause: str, samples: int, position: int) -> None:
        self.seconds[kind, cause] += samples / self.source.info.rate_hz
        self.position = position

    def _climb(self) -> None:
        """Take another step of the overload ladder where the backlog says so; tell when no audio is dropped."""
        before = self.ladder.number
        step = self.ladder.update(self.source.behind_s, self._clocks.steady_s())
        if step is not None:
            level = logging.WARNING if self.ladder.number > before else logging.INFO
            was = self.ladder.steps[before].name
            log.log(level, "overload: %s, after %s (%.1f s wait)", step.name, was, self.source.behind_s)
            self.listener.take(step)
            self.logbook.step(self.ladder.number, step)
        if self.ladder.number == 0 and self.source.behind_s < CALM_S:
            self._shedding.end("no audio is dropped any more")


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


def open_bundle(settings: Settings) -> Bundle:
    """The bundle in force, without the settings' overrides: theirs, the installed one, or the shipped one.

    What is wrong with an installed bundle, so that another stands in for it, is logged.
    """
    return told(in_force(settings, lambda bundle: overridden(bundle, settings))).bundle


def open_working(settings: Settings) -> tuple[InForce, Ensemble]:
    """The bundle in force, as `open_bundle`, with its ensemble, which has scored a window of silence.

    An installed bundle that cannot even do that is passed over, too. One that the settings name is tried in another
    process before, once.

    Raises
    ------
    OrcawatchError : as `in_force`.
    """
    made: list[Ensemble] = []

    def fits(bundle: Bundle) -> None:
        try_named_once(bundle, settings)
        made.append(open_ensemble(settings, bundle))
        log.debug("silence scores %.3f", score_silence(made[-1]))

    return told(in_force(settings, fits)), made[-1]


def told(found: InForce) -> InForce:
    """The same; why it is not another was logged."""
    for fault in found.faults:
        log.error("%s", fault)
    if found.faults:
        log.error("%s scores in its place: install a whole one (orcawatch bundle install)", found)
    return found


def open_ensemble(settings: Settings, bundle: Bundle | None = None) -> Ensemble:
    """The ensemble of a bundle, the one in force where it is left out, with the settings' overrides."""
    found = bundle or open_bundle(settings)
    check_signature(found, settings.bundles)  # whoever opens it, by whatever way: an installed one, a shadow
    chosen = overridden(found, settings)
    warn_of_cascade(chosen, settings)
    return Ensemble(chosen, settings.threads)


def warn_of_cascade(bundle: Bundle, settings: Settings) -> None:
    """Log where other settings than `cascade` take the bundle's cascade away."""
    if not settings.cascade or not bundle.manifest.get("cascade") or bundle.cascade.gates:
        return
    if bundle.channel_fusion != "max":
        log.warning("channels are averaged: every backbone of %s is heard on every window", bundle.name)
    else:
        log.warning(
            "stop_threshold %g is lower than the cascade of %s was chosen for (%g): every backbone is heard on every "
            "window; raise it, or say `cascade: false`",
            bundle.stop_threshold,
            bundle.name,
            bundle.cascade.holds_from,
        )


def open_store(output: Path) -> Store:
    """The database in the output folder, which is made where it is missing.

    A damaged database is moved aside, with what can be read of it in the new one (see `orcawatch.recovery`).
    """
    make_folders(output)
    return recovery.open_store(output / DATABASE)


def make_folders(output: Path) -> None:
    """Make the output folder, and those for clips and snapshots in it; raises InputError where that cannot be."""
    try:
        for folder in (output / CLIPS, output / SNAPSHOTS):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                give_to_owner(folder)
    except OSError as fault:
        raise InputError(f"output folder {output} cannot be made: {fault.strerror}; name another one") from fault


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """While no other program writes detections into this output folder, which is made where it is missing.

    Raises
    ------
    InputError : another one does, or the folder cannot be made.
    OrcawatchError : the folder cannot be written to.
    """
    make_folders(output)
    with ExitStack() as stack:
        try:
            lock = take_turn(output, LOCK)
        except OSError as fault:
            raise OrcawatchError(f"{output} cannot be written to: {fault.strerror}; check the disk") from fault
        if lock is None:
            raise InputError(
                f"another orcawatch already writes into {output}: wait for it, stop it (`systemctl stop orcawatch`), "
                "or name another folder with --output"
            )
        stack.enter_context(lock)
        yield


def open_ledger(
    store: Store, source: Source, channels: Sequence[int], bundle: Bundle, settings: Settings, clocks: Timekeeper
) -> Ledger:
    """The ledger of a new session."""
    session = Session(
        source=source.info.name,
        live=source.info.live,
        rate_hz=source.info.rate_hz,
        channels=tuple(channels),
        hydrophones=tuple(hydrophone.serial for hydrophone in settings.hydrophones),
        station=settings.station,
        bundle=bundle.name,
        bundle_digest=bundle.digest,
        latitude_deg=settings.latitude_deg,
        longitude_deg=settings.longitude_deg,
    )
    timeline = source.clock or FileTime(source.info.rate_hz, source.utc_at)
    return Ledger(store, session, timeline, clocks, settings.ledger.checkpoint_s)


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
