"""From events to rows, clips and snapshots, beside the loop that listens."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from .clips import Roll, write_clip
from .config import Settings
from .detector import Scorer
from .errors import OrcawatchError
from .guano import clip_metadata
from .logbook import Logbook
from .records import AudioBlock, Event, StreamInfo
from .snapshot import excerpt_of, make_snapshot
from .store import Detection

Array = NDArray[np.float32]
OnDetection = Callable[[Detection], None]
T = TypeVar("T")

log = logging.getLogger(__name__)

CLIPS = "clips"
SNAPSHOTS = "snapshots"
WAITING = 8  # events whose clip or snapshot is being made, at most
WAITING_MB = 25  # of their audio, from which on no other event is taken: half a minute of four channels at 48 kHz
UNSAVED = 1000  # detections that are held while the database cannot be written to, at most
RETRY_S = 10.0  # of audio between two tries to write them
SAVING_S = 0.5  # of writing them between two items of the stream: a slow disk must not hold the loop
NAME_BYTES = 150
SPARE_S = 10.0  # audio kept beyond what the longest event needs


@dataclass(frozen=True)
class Made:
    """What the worker made of one detection; None where it was not asked for, or failed."""

    detection: Detection
    clip: str | None = None
    snapshot: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    thumbnail: bytes | None = None
    clip_start_s: float | None = None
    failed: bool = False


class Piece:
    """An event's audio on its way through the worker, which lets it go as soon as it has what it needs of it.

    Parameters
    ----------
    samples : float32, shape (samples, channels).
    start : position of the first row in the stream.
    """

    def __init__(self, samples: Array, start: int) -> None:
        self.samples = samples
        self.start = start
        self.bytes = samples.nbytes

    def let_go(self) -> None:
        """Forget the samples."""
        self.samples = self.samples[:0].copy()


class Recorder:
    """For each event: the row first, then clip and snapshot in a worker thread, then the report.

    Every method is called from one thread, and so is `on_detection`, in the order of the rows.

    Parameters
    ----------
    logbook : where rows go; it is acknowledged before anything else is done.
    ensemble : explains, from the worker thread.
    info : of the source.
    channels : what the source calls the channels of the audio that comes.
    settings : rolls, output folder; may be replaced by others with the same folder.
    waits : whether the source waits while clips are made; if not, what is too much is shed.
    on_detection : the report.
    room : whether so many bytes may be written for a clip or a snapshot.
    apart : whether pictures are drawn in a process of their own: slower, but its memory goes back at once.
    """

    def __init__(
        self,
        logbook: Logbook,
        ensemble: Scorer,
        info: StreamInfo,
        channels: Sequence[int],
        settings: Settings,
        waits: bool,
        on_detection: OnDetection,
        room: Callable[[int], bool] = lambda size: True,
        apart: bool = False,
    ) -> None:
        self.events = self.shed = self.failed = self.lost = 0
        self.settings = settings
        self._logbook = logbook
        self._ensemble = ensemble
        self._info = info
        self._channels = channels
        self._waits = waits
        self._report = on_detection
        self._room = room
        self._apart = apart
        self._roll = self._new_roll()
        self._heard = 0  # position just past the newest audio
        self._awaiting: deque[tuple[Detection, Event]] = deque()  # events whose post-roll has not come
        self._making: deque[Future[Made]] = deque()
        self._waiting: deque[tuple[Future[Made], int]] = deque()  # of these what has audio, and its bytes
        self._unsaved: deque[Detection] = deque()
        self._retry_at = 0  # position at which they are tried again
        self._worker = ThreadPoolExecutor(1, "clips")

    def hear(self, audio: AudioBlock) -> None:
        """Keep audio for clips."""
        if audio.start_sample < self._heard:
            self._roll = self._new_roll()
        self._roll.push(audio)
        self._heard = audio.end_sample

    def skip(self, sample: int) -> None:
        """There is no audio up to this position."""
        self._heard = max(self._heard, sample)

    def record(self, event: Event) -> None:
        """Write the event's row; it is on the disk when this returns, or held to be tried again (without a clip)."""
        self.events += 1
        self._make_way()
        samples, _ = self._roll.cut(event.start_sample, event.end_sample)
        detection = self._logbook.detection(event, samples)
        if not self._unsaved and (saved := self._saved(detection)) is not None:
            self._awaiting.append((saved, event))
        else:
            self._hold(detection)

    def advance(self, stretch_ended: bool) -> None:
        """Start what can be made (at the end of a stretch no more post-roll comes), and report what was made."""
        if self._unsaved and self._heard >= self._retry_at:
            self._save_held(SAVING_S)
        self._hand_over(all_of_them=stretch_ended)
        while self._making and self._making[0].done():
            self._collect()

    def finish(self) -> None:
        """Report everything that is left; what has no row yet is tried once more, then lost."""
        self._save_held(math.inf)
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
        settings = self.settings
        window_s = 2.0  # longer than any window and its wait for the next
        seconds = settings.events.max_duration_s + settings.clips.pre_roll_s + 2 * window_s + SPARE_S
        later_s = max(settings.clips.post_roll_s, settings.events.merge_gap_s)
        return Roll(self._info.rate_hz, len(self._channels), seconds + later_s)

    def take(self, settings: Settings) -> None:
        """Go on with other settings; what was heard is kept, and a longer roll is filled as audio comes."""
        self.settings, before = settings, self.settings
        if (settings.events, settings.clips) != (before.events, before.clips):
            heard, self._roll = self._roll.blocks(), self._new_roll()
            for audio in heard:
                self._roll.push(audio)

    @property
    def _pre(self) -> int:
        return round(self.settings.clips.pre_roll_s * self._info.rate_hz)

    @property
    def _post(self) -> int:
        return round(self.settings.clips.post_roll_s * self._info.rate_hz)

    def _saved(self, detection: Detection) -> Detection | None:
        """The detection with its row's number; None where it could not be written."""
        try:
            return replace(detection, id=self._logbook.add(detection))
        except OrcawatchError as fault:
            log.debug("%s; %d detections wait for it", fault, len(self._unsaved) + 1)  # the store has said so
            self._retry_at = self._heard + round(RETRY_S * self._info.rate_hz)
            return None

    def _hold(self, detection: Detection) -> None:
        self._unsaved.append(detection)
        if len(self._unsaved) > UNSAVED:
            self._lose()

    def _save_held(self, seconds: float) -> None:
        """Write what is held, in order, as far as that goes; its audio may be gone, so that it has no clip."""
        until_s = time.monotonic() + seconds
        while self._unsaved and (saved := self._saved(self._unsaved[0])) is not None:
            self._unsaved.popleft()
            self._making.append(finished(Made(saved, failed=True)))
            if time.monotonic() >= until_s:
                return

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
        self._make_way()
        piece = Piece(*self._roll.cut(event.start_sample - self._pre, event.end_sample + self._post))
        self._making.append(self._worker.submit(self._make, detection, event, piece))
        self._waiting.append((self._making[-1], piece.bytes))

    def _make_way(self) -> None:
        """Where the source waits, wait for what is being made, so that its memory is free for the next event."""
        while self._waits and self._busy():
            self._collect()

    def _busy(self) -> bool:
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        too_much = sum(size for _, size in self._waiting) >= WAITING_MB * 1e6
        return len(self._waiting) >= WAITING or (len(self._waiting) > 0 and too_much)

    def _shed(self, detection: Detection) -> None:
        self.shed += 1
        log.warning("detection %s has no clip: %d are still being made", detection.id, len(self._waiting))
        self._making.append(finished(Made(detection)))

    def _make(self, detection: Detection, event: Event, piece: Piece) -> Made:
        """Clip and snapshot, in the worker thread."""
        if not self._room(piece.bytes):
            log.info("detection %s has no clip: there is no room on the disk", detection.id)
            return Made(detection, failed=True)
        name = file_name(detection)
        clip = attempt(f"clip of detection {detection.id}", lambda: self._clip(name, piece, detection))
        start_s = None if clip is None else piece.start / self._info.rate_hz
        if not self.settings.snapshots:
            return Made(detection, clip, clip_start_s=start_s, failed=clip is None)
        picture = attempt(
            f"snapshot of detection {detection.id}", lambda: self._snapshot(name, piece, event, title(detection))
        )
        snapshot, numbers = picture or (None, {})
        thumbnail = None if snapshot is None else self._thumbnail(snapshot)
        return Made(detection, clip, snapshot, numbers, thumbnail, start_s, failed=clip is None or snapshot is None)

    def _clip(self, name: str, piece: Piece, detection: Detection) -> str:
        stem = self.settings.output / CLIPS / f"{name}.flac"
        metadata = clip_metadata(detection, piece.start, len(piece.samples), self._info.rate_hz)
        path = write_clip(stem, piece.samples, self._info.rate_hz, metadata, self.settings.clips.format)
        return f"{CLIPS}/{path.name}"

    def _snapshot(self, name: str, piece: Piece, event: Event, title: str) -> tuple[str, Mapping[str, float]]:
        """Picture and figures; the clip's audio is let go before it is explained, which takes memory."""
        stem = self.settings.output / SNAPSHOTS / name
        shown = excerpt_of(piece.samples, self._info.rate_hz, piece.start, event)
        piece.let_go()
        path, numbers = make_snapshot(self._ensemble, shown, event, self._channels, title, stem, self._apart)
        return f"{SNAPSHOTS}/{path.name}", numbers

    def _thumbnail(self, snapshot: str) -> bytes | None:
        """A small JPEG for the sinks; None where none of them takes it."""
        if not self._logbook.wants_thumbnails:
            return None
        from .thumbnail import thumbnail  # loads Pillow

        return attempt(f"thumbnail of {snapshot}", lambda: thumbnail(self.settings.output / snapshot))

    def _collect(self) -> None:
        """Wait for the oldest job, attach what it made to the row, and report."""
        made = self._making.popleft().result()
        attached = attempt(f"row of detection {made.detection.id}", lambda: self._attach(made))
        self.failed += made.failed or attached is None
        self._report(attached or made.detection)

    def _attach(self, made: Made) -> Detection:
        attached = replace(
            made.detection, clip=made.clip, snapshot=made.snapshot, numbers=dict(made.numbers),
            clip_start_s=made.clip_start_s,
        )  # fmt: skip
        self._logbook.attach(attached, made.thumbnail)
        return attached


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
