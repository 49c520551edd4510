"""A second bundle scores beside the first while there is time for it; what it did and left out is written down."""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Callable

from .config import Settings, overridden
from .detector import Detector, Scorer, score_silence
from .errors import OrcawatchError
from .events import EventBuilder, centre
from .listener import pieces
from .load import NEAR_ZERO
from .recorder import attempt
from .records import AudioBlock, ClockChange, Event, Item, WindowScore
from .shelf import SHADOW, Shelf
from .trial import Trial

if TYPE_CHECKING:
    from .bundle import Bundle
    from .daemon import Loop
    from .store import Detection

log = logging.getLogger(__name__)

REMEMBER_S = 900.0  # of window scores, for detections that are told late
PAUSE_S = 60.0  # after it was too slow
WRITE_S = 30.0  # of audio between two writes
UNWRITTEN = 5000  # rows that wait for a disk that refuses
BEHIND = "scoring was behind"
OVERLOAD = "overload"
SLOW = 0.5  # of the backlog at which the ladder takes a step: so long the watch never waits for a shadow
YOUNG_S = 600.0  # of audio, after which a shadow is taken not to end the process
MOST_STARTS = 3


@dataclass(frozen=True)
class Span:
    """A stretch that the shadow scored, or, with a cause, left out."""

    start_sample: int
    end_sample: int
    cause: str
    start_utc: datetime | None


class Beside:
    """The shadow of one session; every method is called from the loop's thread.

    It hears the same audio as the first bundle and makes events by the same rules. Where the first bundle has any
    backlog, or a step of the overload ladder, the shadow hears nothing, for a minute at least. `heard` raises
    OrcawatchError where it took so long that it makes a backlog by itself.

    Parameters
    ----------
    ensemble : of the shadow, with the settings' overrides.
    loop : of the watch.
    settings : durations of events.
    """

    def __init__(self, ensemble: Scorer, loop: Loop, settings: Settings) -> None:
        from .daemon import rules_of

        self.ensemble = ensemble
        self._loop = loop
        self._rate_hz = loop.source.info.rate_hz
        self._detector = self._new_detector()
        self._builder = EventBuilder(rules_of(ensemble.bundle, settings), self._rate_hz)
        self._scores: deque[tuple[int, float]] = deque()
        self._asked: list[Detection] = []
        self._spans: list[Span] = []
        self._events: list[Event] = []
        self._answers: list[tuple[int, float]] = []
        self._hearing = False  # inside a stretch,
        self._stretch_at = 0  # which began there
        self._resume_at = 0  # position from which it may hear again
        self._written_at = loop.position

    def change(self, settings: Settings, bundle: Bundle) -> None:
        """Go on with other settings of a reload; the bundle is the shadow's, with their overrides."""
        from .daemon import rules_of

        self._builder.rules = rules_of(bundle, settings)
        self.ensemble.cascade = bundle.cascade

    def detected(self, detection: Detection) -> None:
        """The first bundle detected something: what the shadow says of that span is written, too."""
        self._asked.append(detection)

    def heard(self, item: Item | None) -> None:
        """Take the item that the first bundle has just dealt with."""
        if isinstance(item, ClockChange):
            return
        began_s = time.monotonic()
        if isinstance(item, AudioBlock):
            cause = self._hindrance(item)
            self._hear(item) if not cause else self._end_stretch()
            self._note(item, cause)
        else:
            self._end_stretch()
        self._refuse_slow(time.monotonic() - began_s)
        self._answer()
        if self._loop.position - self._written_at >= WRITE_S * self._rate_hz:
            self.write()

    def close(self) -> None:
        """End its stretch, and write what it has."""
        self._end_stretch()
        self._answer()
        self.write()

    def write(self) -> None:
        """Write what it has found and left out, in one transaction; where the disk refuses it waits.

        What it has heard counts as scored up to where all is found: who is killed takes an event with him that is open.
        """
        self._written_at = self._loop.position
        session = self._loop.logbook.ledger.session
        done, rest = self._settled()
        if not (done or self._events or self._answers):
            return
        try:
            if session is None:
                raise OrcawatchError("the disk has refused this session")
            with self._loop.logbook.transaction() as connection:
                self._put(connection, session, done)
        except OrcawatchError as fault:
            log.debug("what the shadow found waits: %s", fault)
            self._forget_some()
            return
        self._spans, self._events, self._answers = rest, [], []

    def _settled(self) -> tuple[list[Span], list[Span]]:
        """The account, parted where there may still be an event."""
        if not self._hearing:
            return self._spans, []
        since = self._builder.open_since
        border = self._stretch_at if since is None else since
        done = [replace(span, end_sample=min(span.end_sample, border)) for span in self._spans]
        utc = self._loop.source.utc_at(border)
        rest = [
            span if span.start_sample >= border else replace(span, start_sample=border, start_utc=utc)
            for span in self._spans
            if span.end_sample > border
        ]
        return [span for span in done if span.start_sample < span.end_sample], rest

    def _new_detector(self) -> Detector:
        return Detector(self.ensemble, self._rate_hz, len(self._loop.listener.channels), self.ensemble.bundle.hop_s)

    def _hindrance(self, block: AudioBlock) -> str:
        """Why it is not to score now; empty where it may."""
        ladder = self._loop.ladder
        behind = self._loop.source.behind_s > NEAR_ZERO * ladder.step_up_s
        if ladder.number or behind:
            self._resume_at = block.end_sample + round(PAUSE_S * self._rate_hz)
        return OVERLOAD if ladder.number else BEHIND if block.start_sample < self._resume_at else ""

    def _refuse_slow(self, took_s: float) -> None:
        """The watch has waited so long for this shadow: too long would cost it scores of its own."""
        if took_s > SLOW * self._loop.ladder.step_up_s and not self._loop.source.waits:
            raise OrcawatchError(f"it let the watch wait for {took_s:.1f} s at once: this machine is too slow for it")

    def _hear(self, block: AudioBlock) -> None:
        if not self._hearing:
            self._hearing, self._stretch_at = True, block.start_sample
        for piece in pieces(block, self._rate_hz):
            self._take(self._detector.push(piece))

    def _end_stretch(self) -> None:
        if not self._hearing:
            return
        self._hearing = False
        self._take(self._detector.finish())
        self._events += self._builder.finish()

    def _take(self, windows: Sequence[WindowScore]) -> None:
        for window in windows:
            self._scores.append((centre(window), window.score))
            self._events += self._builder.push(window)
        oldest = self._loop.position - REMEMBER_S * self._rate_hz
        while self._scores and self._scores[0][0] < oldest:
            self._scores.popleft()

    def _note(self, block: AudioBlock, cause: str) -> None:
        """Enter a block in the account; neighbours of one kind are one row."""
        last = self._spans[-1] if self._spans else None
        if last is not None and (last.end_sample, last.cause) == (block.start_sample, cause):
            self._spans[-1] = replace(last, end_sample=block.end_sample)
        else:
            utc = self._loop.source.utc_at(block.start_sample)
            self._spans.append(Span(block.start_sample, block.end_sample, cause, utc))

    def _answer(self) -> None:
        """The shadow's highest score in the spans of the first bundle's detections, where it scored a window there."""
        for detection in self._asked:
            start, end = detection.start_sample or 0, detection.end_sample or 0
            found = [score for middle, score in self._scores if start <= middle < end and math.isfinite(score)]
            if found and detection.id is not None:
                self._answers.append((detection.id, max(found)))
        self._asked.clear()

    def _put(self, connection: sqlite3.Connection, session: int, spans: Sequence[Span]) -> None:
        about = (session, self.ensemble.bundle.name, self.ensemble.bundle.digest)
        for span in spans:
            put_span(connection, about, span)
        connection.executemany(
            "INSERT INTO shadows (session, bundle, bundle_digest, source, start_sample, end_sample, start_s, end_s, "
            "start_utc, score, channels, channel_scores, best_channel) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*about, *self._row(event)) for event in self._events],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO shadow_scores (id, bundle, bundle_digest, score) VALUES (?, ?, ?, ?)",
            [(number, *about[1:], float(score)) for number, score in self._answers],
        )

    def _row(self, event: Event) -> tuple[object, ...]:
        source, channels = self._loop.source, self._loop.listener.channels
        utc = source.utc_at(event.start_sample)
        scores = [None if math.isnan(score) else float(score) for score in event.channel_scores]
        return (
            source.info.name,
            event.start_sample,
            event.end_sample,
            event.start_sample / self._rate_hz,
            event.end_sample / self._rate_hz,
            None if utc is None else utc_text(utc),
            float(event.score),
            json.dumps(list(channels)),
            json.dumps(scores),
            channels[event.best_channel],
        )

    def _forget_some(self) -> None:
        """Where the disk refuses for long, what waits is forgotten, and counts as not compared."""
        if len(self._spans) + len(self._events) + len(self._answers) > UNWRITTEN:
            self._spans = [replace(span, cause=span.cause or "the disk refused") for span in self._spans[-UNWRITTEN:]]
            self._events, self._answers = [], []


def put_span(connection: sqlite3.Connection, about: tuple[int, str, str], span: Span) -> None:
    """Lengthen the last row of the session where the span goes on from it, or add one."""
    longer = connection.execute(
        "UPDATE shadowed SET end_sample = ? WHERE session = ? AND bundle_digest = ? AND cause = ? AND end_sample = ?",
        (span.end_sample, about[0], about[2], span.cause, span.start_sample),
    )
    if longer.rowcount == 0:
        utc = None if span.start_utc is None else utc_text(span.start_utc)
        connection.execute(
            "INSERT INTO shadowed (session, bundle, bundle_digest, cause, start_sample, end_sample, start_utc) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*about, span.cause, span.start_sample, span.end_sample, utc),
        )


def utc_text(moment: datetime) -> str:
    """A time as it is written."""
    return moment.astimezone(timezone.utc).isoformat()


class Shadows:
    """Looks after the shadow of a watch: begins it, ends it, and switches it off where it fails.

    It is opened in a thread of its own, for that may take many seconds. A shadow that ends the whole process (it cannot
    be caught) is switched off when the watch has begun three times with it and never came to ten minutes or a proper
    end; where that cannot be counted, for a disk that refuses, it is not begun.

    Parameters
    ----------
    shelf : the installed bundles.
    make : the ensemble of a bundle, with the settings' overrides.
    now : the time, timezone-aware.
    """

    def __init__(self, shelf: Shelf, make: Callable[[Bundle], Scorer], now: Callable[[], datetime]) -> None:
        self._shelf = shelf
        self._make = make
        self._now = now
        self._opener: ThreadPoolExecutor = ThreadPoolExecutor(1, "shadow")
        self._opening: Future[tuple[Bundle, Scorer]] | None = None
        self._bundle: Bundle | None = None  # without the settings' overrides
        self._beside: Beside | None = None
        self._trial: Trial | None = None  # the one that scores
        self._refused: Trial | None = None  # the one that was switched off in this process
        self._since = 0  # position at which it began

    def heard(self, loop: Loop, item: Item | None) -> None:
        """Let the shadow hear an item, if there is one; whatever befalls it, the watch goes on."""
        if self._beside is None:
            return
        try:
            self._beside.heard(item)
        except Exception as fault:
            self._switch_off(fault)

    def detected(self, detection: Detection) -> None:
        """The first bundle detected something."""
        if self._beside is not None:
            self._beside.detected(detection)

    def change(self, settings: Settings) -> None:
        """Go on with other settings; a shadow that does not go with them is switched off."""
        if self._opening is not None:
            self.end()  # it was opened with the old ones
        if self._beside is None or self._bundle is None:
            return
        try:
            self._beside.change(settings, overridden(self._bundle, settings))
        except Exception as fault:
            self._switch_off(fault)

    def look(self, loop: Loop, settings: Settings) -> None:
        """Begin or end where the installed shadow, or its time, says so; call it every few seconds."""
        trial = self._wanted()
        if self._trial is not None and (trial is None or trial.since_utc != self._trial.since_utc):
            log.info("the shadow %s ends", self._trial.folder)
            self.end()
        if self._trial is None and trial is not None:
            self._open(trial)
        if self._opening is not None and (self._opening.done() or loop.source.waits):
            self._begin(self._opening, loop, settings)
        self._settle(loop)

    def end(self) -> None:
        """End the shadow of this session."""
        beside, self._beside, self._opening = self._beside, None, None
        if beside is not None:
            attempt("the shadow's end", beside.close)
        if self._trial is not None and self._trial.starts:
            self._change(replace(self._trial, starts=0))
        self._trial = None

    def _wanted(self) -> Trial | None:
        """The shadow that is to score now."""
        try:
            trial = self._shelf.trial()
        except OrcawatchError as fault:
            log.debug("%s", fault)
            return None
        over = trial is None or trial.fault or (trial.until_utc is not None and self._now() >= trial.until_utc)
        refused = trial is not None and self._refused is not None and trial.since_utc == self._refused.since_utc
        return None if over or refused else trial

    def _open(self, trial: Trial) -> None:
        """Let it be opened, once it is counted: it may end the process."""
        self._trial = trial
        if trial.starts >= MOST_STARTS:
            cause = f"the watch ended {trial.starts} times without a proper end while it was young"
            self._switch_off(OrcawatchError(cause))
        elif self._change(replace(trial, starts=trial.starts + 1)):
            self._opening = self._opener.submit(self._opened)
        else:
            self._trial = None

    def _opened(self) -> tuple[Bundle, Scorer]:
        """The shadow's bundle and ensemble, which has scored silence: the first time takes longest."""
        bundle = self._shelf.bundle(SHADOW)
        ensemble = self._make(bundle)
        log.debug("the shadow scores silence %.3f", score_silence(ensemble))
        return bundle, ensemble

    def _begin(self, opening: Future[tuple[Bundle, Scorer]], loop: Loop, settings: Settings) -> None:
        """Let it hear from now on."""
        self._opening = None
        try:
            self._bundle, ensemble = opening.result()
            self._beside = Beside(ensemble, loop, settings)
            self._since = loop.position
            log.info("the shadow %s scores beside the current bundle", self._bundle.name)
        except Exception as fault:
            self._switch_off(fault)

    def _settle(self, loop: Loop) -> None:
        """After ten minutes it is taken not to end the process."""
        trial, heard = self._trial, loop.position - self._since
        if self._beside and trial and trial.starts and heard >= YOUNG_S * loop.source.info.rate_hz:
            self._change(replace(trial, starts=0))

    def _switch_off(self, fault: Exception) -> None:
        trial, self._beside, self._opening, self._refused = self._trial, None, None, self._trial
        if trial is not None:
            log.error("the shadow %s is switched off: %s", trial.folder, fault, exc_info=fault)
            self._change(replace(trial, starts=0, fault=f"{type(fault).__name__}: {fault}"))
        self._trial = None

    def _change(self, after: Trial) -> bool:
        """Write how it fares; whether that was done."""
        try:
            if self._trial is not None and self._shelf.change_trial(self._trial, after):
                self._trial = after
                return True
        except OrcawatchError as fault:
            log.debug("%s", fault)
        return False
