"""The loop: audio in, detections out, and every second accounted for."""

from __future__ import annotations

import logging
import re
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from threading import Event as Flag
from threading import Lock
from types import FrameType
from typing import Any, Callable, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from .bundle import SHIPPED, Bundle, load_bundle
from .capture import Screen, Source
from .channels import chosen_channels, select
from .clips import Roll, write_clip
from .config import Settings, overridden
from .detector import Detector, Scorer
from .ensemble import Ensemble
from .errors import AudioError, InputError, OrcawatchError
from .events import EventBuilder, EventRules
from .records import AudioBlock, Event, StreamInfo, Window, WindowScore
from .store import Detection, Store

Array = NDArray[np.float32]
OnDetection = Callable[[Detection], None]
T = TypeVar("T")

log = logging.getLogger(__name__)

DATABASE = "detections.sqlite"
CLIPS = "clips"
SNAPSHOTS = "snapshots"
WAITING = 8  # events whose clip or snapshot is being made, at most
UNSAVED = 1000  # detections that are held while the database cannot be written to, at most
RETRY_S = 10.0  # of audio between two tries to write them
NAME_BYTES = 150
SPARE_S = 10.0  # audio kept beyond what the longest event needs


@dataclass(frozen=True)
class Totals:
    """What became of a source.

    Attributes
    ----------
    read_s : audio that the source yielded; equals `scored_s + refused_s`.
    scored_s : audio that lies in stretches with at least one window.
    refused_s : audio that is not finite, or in stretches shorter than one frame.
    gap_s : holes between the source's blocks.
    windows, events : numbers of each.
    shed : events without clip and snapshot because a live stream brought them faster than they could be made.
    failed : events whose clip or snapshot could not be made.
    lost : events whose row could not be written; the log names them.
    bad_s : by the source's channel, how long it was no audio, which refused all channels.
    fault : the error that ended the source early; None where it was read to its end or stopped by request.
    """

    read_s: float = 0.0
    scored_s: float = 0.0
    refused_s: float = 0.0
    gap_s: float = 0.0
    windows: int = 0
    events: int = 0
    shed: int = 0
    failed: int = 0
    lost: int = 0
    bad_s: Mapping[int, float] = field(default_factory=dict)
    fault: AudioError | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the source's audio was scored."""
        return self.fault is None and self.refused_s == 0

    @property
    def kept(self) -> bool:
        """Whether everything that was detected is on the disk."""
        return self.failed == self.lost == 0

    def refusal(self) -> str:
        """How much was refused, and because of which channels."""
        causes = [f"channel {channel} was no audio for {bad_s:.3f} s" for channel, bad_s in self.bad_s.items()]
        cure = "; exclude it with `channels:` if it stays so" if causes else ""
        return f"{self.refused_s:.3f} s of {self.read_s:.3f} s are refused: {', '.join(causes) or 'too short'}{cure}"

    def __str__(self) -> str:
        return (
            f"{self.read_s:.2f} s read, {self.scored_s:.2f} s scored, {self.refused_s:.2f} s refused, "
            f"{self.gap_s:.2f} s missing; {self.windows} windows, {self.events} events "
            f"({self.shed} without clip for lack of time, {self.failed} with a failed clip or snapshot, "
            f"{self.lost} lost)"
        )


class Listener:
    """Yields a source's usable audio with the windows that it completes, and keeps account.

    Parameters
    ----------
    source : where audio comes from.
    ensemble : scores windows; its bundle gives the hop.
    channels : which of the source's channels, None for all.

    Attributes
    ----------
    channels : the channels in use.
    windows : number of windows so far.

    Raises
    ------
    InputError : the channels or the hop do not fit.
    AudioError : the source lacks a channel, or its rate is too low.
    """

    def __init__(self, source: Source, ensemble: Scorer, channels: Sequence[int] | None) -> None:
        info = source.info
        self.channels = chosen_channels(channels, info.channels)
        self.windows = 0
        self._source = source
        self._rate_hz = info.rate_hz
        self._screen = Screen(info.name, info.rate_hz, self.channels)
        self._detector = Detector(ensemble, info.rate_hz, len(self.channels), ensemble.bundle.hop_s)
        self._read = self._missing = 0
        self._end: int | None = None  # of the source's last block
        self._heard: int | None = None  # end of the last audio that passed the screen
        self._fault: AudioError | None = None

    def listen(self, stop: Flag) -> Iterator[tuple[AudioBlock | None, list[WindowScore]]]:
        """Yield (audio, windows) until the source ends, breaks or is to stop; each stretch ends with (None, windows).

        A source that breaks does not raise: what it gave is scored to the end, and the error stands in `totals`.
        """
        try:
            for block in self._source.blocks():
                self._count(block)
                for part in self._screen.push(select(block, self.channels)):
                    yield from self._hear(part)
                if stop.is_set():
                    break
        except AudioError as fault:
            self._fault = fault
        for part in self._screen.finish():
            yield from self._hear(part)
        yield self._end_stretch()
        if self.windows == 0 and self._fault is None and not stop.is_set():
            self._fault = AudioError(self._nothing_text())

    def totals(self) -> Totals:
        """The account; complete once `listen` has ended."""
        refused = self._screen.refused + self._detector.unscored
        return Totals(
            read_s=self._read / self._rate_hz,
            scored_s=(self._read - refused) / self._rate_hz,
            refused_s=refused / self._rate_hz,
            gap_s=self._missing / self._rate_hz,
            windows=self.windows,
            bad_s={channel: count / self._rate_hz for channel, count in sorted(self._screen.bad.items())},
            fault=self._fault,
        )

    def _hear(self, part: AudioBlock) -> Iterator[tuple[AudioBlock | None, list[WindowScore]]]:
        if self._heard is not None and part.start_sample != self._heard:
            yield self._end_stretch()
        self._heard = part.end_sample
        for piece in pieces(part, self._rate_hz):
            yield piece, self._scored(self._detector.push(piece))

    def _end_stretch(self) -> tuple[None, list[WindowScore]]:
        return None, self._scored(self._detector.finish())

    def _scored(self, windows: list[WindowScore]) -> list[WindowScore]:
        self.windows += len(windows)
        return windows

    def _count(self, block: AudioBlock) -> None:
        self._missing += 0 if self._end is None else max(0, block.start_sample - self._end)
        self._read += len(block.samples)
        self._end = block.end_sample

    def _nothing_text(self) -> str:
        totals = self.totals()
        return (
            f"{self._source.info.name} holds nothing to score: all of its {totals.read_s:.3f} s are no finite samples, "
            "or shorter than one frame; record it again"
        )


def pieces(block: AudioBlock, rows: int) -> Iterator[AudioBlock]:
    """The block cut into blocks of at most `rows`, so that a source's block length changes nothing."""
    for first in range(0, len(block.samples), rows):
        yield AudioBlock(block.samples[first : first + rows], block.start_sample + first)


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

    def explain(self, window: Window, channel: int) -> tuple[Array, Array]:
        """As the ensemble's."""
        with self._lock:
            return self._ensemble.explain(window, channel)


@dataclass(frozen=True)
class Made:
    """What the worker made of one detection; None where it was not asked for, or failed."""

    detection: Detection
    clip: str | None = None
    snapshot: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    failed: bool = False


class Recorder:
    """For each event: the row first, then clip and snapshot in a worker thread, then the report.

    Every method is called from one thread, and so is `on_detection`, in the order of the rows.

    Parameters
    ----------
    store : where rows go; it is acknowledged before anything else is done.
    ensemble : explains, from the worker thread.
    info : of the source.
    channels : what the source calls the channels of the audio that comes.
    settings : rolls, output folder, station.
    waits : whether the source waits while clips are made; if not, what is too much is shed.
    on_detection : the report.
    """

    def __init__(
        self,
        store: Store,
        ensemble: Scorer,
        info: StreamInfo,
        channels: Sequence[int],
        settings: Settings,
        waits: bool,
        on_detection: OnDetection,
    ) -> None:
        self.events = self.shed = self.failed = self.lost = 0
        self._store = store
        self._ensemble = ensemble
        self._info = info
        self._channels = channels
        self._settings = settings
        self._waits = waits
        self._report = on_detection
        self._pre = round(settings.clips.pre_roll_s * info.rate_hz)
        self._post = round(settings.clips.post_roll_s * info.rate_hz)
        self._roll = self._new_roll()
        self._heard = 0  # position just past the newest audio
        self._awaiting: deque[tuple[Detection, Event]] = deque()  # events whose post-roll has not come
        self._making: deque[Future[Made]] = deque()
        self._unsaved: deque[Detection] = deque()
        self._retry_at = 0  # position at which they are tried again
        self._worker = ThreadPoolExecutor(1, "clips")

    def hear(self, audio: AudioBlock) -> None:
        """Keep audio for clips."""
        if audio.start_sample < self._heard:
            self._roll = self._new_roll()
        self._roll.push(audio)
        self._heard = audio.end_sample

    def record(self, event: Event) -> None:
        """Write the event's row; it is on the disk when this returns, or held to be tried again (without a clip)."""
        self.events += 1
        detection = self._detection(event)
        if not self._unsaved and (saved := self._saved(detection)) is not None:
            self._awaiting.append((saved, event))
        else:
            self._hold(detection)

    def advance(self, stretch_ended: bool) -> None:
        """Start what can be made (at the end of a stretch no more post-roll comes), and report what was made."""
        if self._unsaved and self._heard >= self._retry_at:
            self._save_held()
        self._hand_over(all_of_them=stretch_ended)
        while self._making and self._making[0].done():
            self._collect()

    def finish(self) -> None:
        """Report everything that is left; what has no row yet is tried once more, then lost."""
        self._save_held()
        while self._unsaved:
            self._lose()
        while self._making:
            self._collect()

    def close(self) -> None:
        """End the worker; what it has not begun is dropped (its rows stay)."""
        for waiting in self._making:
            waiting.cancel()
        self._worker.shutdown(wait=True)

    def _new_roll(self) -> Roll:
        settings = self._settings
        window_s = 2.0  # longer than any window and its wait for the next
        seconds = settings.events.max_duration_s + settings.clips.pre_roll_s + 2 * window_s + SPARE_S
        later_s = max(settings.clips.post_roll_s, settings.events.merge_gap_s)
        return Roll(self._info.rate_hz, len(self._channels), seconds + later_s)

    def _detection(self, event: Event) -> Detection:
        start_s, end_s = (sample / self._info.rate_hz for sample in (event.start_sample, event.end_sample))
        start_utc = self._info.start_utc
        bundle = self._ensemble.bundle
        return Detection(
            id=None,
            source=self._info.name,
            start_s=start_s,
            end_s=end_s,
            start_utc=None if start_utc is None else start_utc + timedelta(seconds=start_s),
            score=event.score,
            channels=tuple(self._channels),
            channel_scores=tuple(float(score) for score in event.channel_scores),
            best_channel=self._channels[event.best_channel],
            bundle=bundle.name,
            bundle_digest=bundle.digest,
            station=self._settings.station,
        )

    def _saved(self, detection: Detection) -> Detection | None:
        """The detection with its row's number; None where it could not be written."""
        try:
            return replace(detection, id=self._store.add(detection))
        except OrcawatchError as fault:
            log.error("%s; %d detections wait for it", fault, len(self._unsaved) + 1)
            self._retry_at = self._heard + round(RETRY_S * self._info.rate_hz)
            return None

    def _hold(self, detection: Detection) -> None:
        self._unsaved.append(detection)
        if len(self._unsaved) > UNSAVED:
            self._lose()

    def _save_held(self) -> None:
        """Write what is held, in order, as far as that goes; its audio may be gone, so that it has no clip."""
        while self._unsaved and (saved := self._saved(self._unsaved[0])) is not None:
            self._unsaved.popleft()
            self._making.append(finished(Made(saved, failed=True)))

    def _lose(self) -> None:
        self.lost += 1
        lost = self._unsaved.popleft()
        log.error("%s: detection from %.2f s is lost (score %.3f)", lost.source, lost.start_s, lost.score)

    def _hand_over(self, all_of_them: bool) -> None:
        while self._awaiting and (all_of_them or self._heard >= self._awaiting[0][1].end_sample + self._post):
            self._start(*self._awaiting.popleft())

    def _start(self, detection: Detection, event: Event) -> None:
        if self._busy() and not self._waits:
            self._shed(detection)
            return
        while self._busy():
            self._collect()
        samples, first = self._roll.cut(event.start_sample - self._pre, event.end_sample + self._post)
        self._making.append(self._worker.submit(self._make, detection, event, samples, first))

    def _busy(self) -> bool:
        return sum(not made.done() for made in self._making) >= WAITING

    def _shed(self, detection: Detection) -> None:
        self.shed += 1
        log.warning("detection %s has no clip: %d are still being made", detection.id, WAITING)
        self._making.append(finished(Made(detection)))

    def _make(self, detection: Detection, event: Event, samples: Array, first: int) -> Made:
        """Clip and snapshot, in the worker thread."""
        name = file_name(detection)
        clip = attempt(f"clip of detection {detection.id}", lambda: self._clip(name, samples))
        if not self._settings.snapshots:
            return Made(detection, clip, failed=clip is None)
        picture = attempt(
            f"snapshot of detection {detection.id}",
            lambda: self._snapshot(name, samples, first, event, title(detection)),
        )
        snapshot, numbers = picture or (None, {})
        return Made(detection, clip, snapshot, numbers, failed=clip is None or snapshot is None)

    def _clip(self, name: str, samples: Array) -> str:
        path = write_clip(self._settings.output / CLIPS / f"{name}.flac", samples, self._info.rate_hz)
        return f"{CLIPS}/{path.name}"

    def _snapshot(
        self, name: str, samples: Array, first: int, event: Event, title: str
    ) -> tuple[str, Mapping[str, float]]:
        from .snapshot import make_snapshot  # loads matplotlib

        stem = self._settings.output / SNAPSHOTS / name
        path, numbers = make_snapshot(
            self._ensemble, samples, self._info.rate_hz, first, event, self._channels, title, stem
        )
        return f"{SNAPSHOTS}/{path.name}", numbers

    def _collect(self) -> None:
        """Wait for the oldest job, attach what it made to the row, and report."""
        made = self._making.popleft().result()
        attached = attempt(f"row of detection {made.detection.id}", lambda: self._attach(made))
        self.failed += made.failed or attached is None
        self._report(attached or made.detection)

    def _attach(self, made: Made) -> Detection:
        numbers = dict(made.numbers)
        self._store.attach(int(made.detection.id or 0), made.clip, made.snapshot, numbers)
        return replace(made.detection, clip=made.clip, snapshot=made.snapshot, numbers=numbers)


def finished(made: Made) -> Future[Made]:
    """A job that is done."""
    future: Future[Made] = Future()
    future.set_result(made)
    return future


def attempt(what: str, make: Callable[[], T]) -> T | None:
    """What `make` returns, or None with the failure logged: a full disk must not end the watch."""
    try:
        return make()
    except (OSError, soundfile.SoundFileError, OrcawatchError) as fault:
        log.error("%s failed: %s", what, fault)
    except Exception:
        log.exception("%s failed", what)
    return None


def file_name(detection: Detection) -> str:
    """Name of a detection's files, without suffix: the row's number makes it unique in the output folder.

    The source's part is cut to `NAME_BYTES`: file systems take 255 bytes, and a letter may have 4.
    """
    stem = re.sub(r"[^\w.-]+", "_", Path(detection.source).stem).encode()[:NAME_BYTES].decode("utf-8", "ignore")
    return f"{detection.id:06d}_{stem}_{moment(detection, '%Y%m%dT%H%M%S.%fZ').replace(' ', '')}"


def title(detection: Detection) -> str:
    """Title of a snapshot: where and when."""
    return f"{detection.station or Path(detection.source).name} · {moment(detection)}"


def moment(detection: Detection, pattern: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """Start of a detection, as UTC where that is known, else in seconds of the stream."""
    if detection.start_utc is None:
        return f"{detection.start_s:.2f} s"
    return detection.start_utc.strftime(pattern)


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
