"""What a live view knows: gathered in the loop's thread as the stream goes by, read by whoever draws it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import RLock, Thread

import numpy as np
from numpy.typing import NDArray

from . import handclips
from .bundle import Bundle
from .clips import Roll
from .config import Settings
from .daemon import Loop
from .errors import InputError
from .files import printable
from .levels import calibration
from .meters import Meters, Reading
from .records import AudioBlock, Item, Missing, StreamInfo, WindowScore
from .service import Watcher
from .store import Detection
from .waterfall import Waterfall

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

LISTED = 200  # detections
NOTES = 50
MOST_COLUMNS = 400
ROLL_S = handclips.KEPT_S + 1.0


@dataclass(frozen=True)
class Note:
    """Something that was said: in the log, or about a clip.

    Attributes
    ----------
    utc : when.
    text : what, as it came: it may hold anything.
    grave : whether it is a warning or an error.
    """

    utc: datetime
    text: str
    grave: bool


@dataclass(frozen=True)
class Stretch:
    """What has no audio now: kind and cause as in `Missing`, and for how long by now."""

    kind: str
    cause: str
    length_s: float


@dataclass(frozen=True)
class Hearing:
    """The stream at one moment; arrays as `Waterfall.picture` gives them.

    Attributes
    ----------
    info : of the source.
    channels : what the source calls the used channels.
    utc, position_s : of the newest sample; UTC where it is known.
    levels_db, scores : the newest columns.
    high_hz : upper end of the frequency axis.
    fused, channel_scores, member_scores : of the newest window; None before the first.
    unit, full_scale_db, readings : the meters.
    seconds : by kind and cause, what the stream was.
    missing : why there is no audio; None where there is.
    behind_s, step, step_name : backlog and step of the overload ladder.
    synchronised : whether the clock is; None where that is not known.
    detections : how many, as the recorder counts them.
    """

    info: StreamInfo
    channels: tuple[int, ...]
    utc: datetime | None
    position_s: float
    levels_db: Array
    scores: Array
    high_hz: float
    fused: float | None
    channel_scores: Array | None
    member_scores: Array | None
    unit: str
    full_scale_db: tuple[float, ...]
    readings: tuple[Reading, ...]
    seconds: dict[tuple[str, str], float]
    missing: Stretch | None
    behind_s: float
    step: int
    step_name: str
    synchronised: bool | None
    detections: int


@dataclass(frozen=True)
class Sight:
    """Everything that a view shows.

    Attributes
    ----------
    settings, bundle : in force; None until the bundle is open.
    hearing : None until the source gives something.
    detections : the newest first.
    notes : the newest last.
    """

    settings: Settings | None
    bundle: Bundle | None
    hearing: Hearing | None
    detections: tuple[Detection, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass
class Stream:
    """What is gathered of a stream that has begun."""

    info: StreamInfo
    channels: tuple[int, ...]
    waterfall: Waterfall
    meters: Meters
    roll: Roll
    heard: int = 0
    missing: Stretch | None = None
    newest: WindowScore | None = None
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)


class Lookout(Watcher):
    """Gathers what a view shows. The loop's thread calls `begins`, `heard` and `detected`; any other the rest.

    Parameters
    ----------
    attended : whether a person sits at a terminal.
    channel : the channel that is wanted first, checked when the source is known; None for all.
    output : folder for clips by hand; the settings' where it is left out.
    """

    def __init__(self, attended: bool, channel: int | None = None, output: Path | None = None) -> None:
        self.attended = attended
        self._output = output
        self._channel = channel
        self._lock = RLock()  # the handler of a signal may log, and so note, while this thread holds it
        self._settings: Settings | None = None
        self._bundle: Bundle | None = None
        self._stream: Stream | None = None
        self._loop: Loop | None = None
        self._facts: tuple[datetime | None, float, int, str, bool | None, int] = (None, 0.0, 0, "", None, 0)
        self._detections: deque[Detection] = deque(maxlen=LISTED)
        self._notes: deque[Note] = deque(maxlen=NOTES)
        self._frozen: list[AudioBlock] | None = None
        self._saving: Thread | None = None

    def begins(self, settings: Settings, bundle: Bundle) -> None:
        """As a watcher's."""
        with self._lock:
            self._settings, self._bundle = replace(settings, output=self._output or settings.output), bundle

    def heard(self, loop: Loop, item: Item | None, windows: Sequence[WindowScore]) -> None:
        """As a watcher's.

        Raises
        ------
        InputError : the wanted channel is none of those in use.
        """
        if self._stream is None:
            self._begin(loop)
        with self._lock:
            self._take(item)
            for window in windows:
                self._score(window)
            self._look(loop)

    def detected(self, detection: Detection) -> None:
        """A detection was made, with its clip."""
        with self._lock:
            self._detections.appendleft(detection)

    def note(self, text: str, grave: bool = False) -> None:
        """Something is to be said."""
        with self._lock:
            self._notes.append(Note(datetime.now(timezone.utc), text, grave))

    def sight(self, columns: int) -> Sight:
        """Everything, with so many columns of the spectrogram."""
        with self._lock:
            return Sight(
                self._settings, self._bundle, self._hearing(columns), tuple(self._detections), tuple(self._notes)
            )

    def freeze(self, frozen: bool) -> None:
        """Keep the audio of this moment for `save`, or let it go."""
        with self._lock:
            self._frozen = list(self._stream.roll.blocks()) if frozen and self._stream is not None else None

    def save(self) -> None:
        """Write the last seconds, or those before the view was frozen, in a thread of its own; a note tells where."""
        with self._lock:
            stream, settings = self._stream, self._settings
            busy = self._saving is not None and self._saving.is_alive()
            blocks = [] if stream is None or busy else self._frozen or list(stream.roll.blocks())
        if busy:
            self.note("a clip is being saved already")
        elif stream is None or settings is None or not blocks:
            self.note("nothing was heard yet that could be saved")
        else:
            self._saving = Thread(target=self._save, args=(stream, settings, blocks), name="clip by hand")
            self._saving.start()

    def finish(self) -> None:
        """Wait for the clip that is being saved."""
        if self._saving is not None:
            self._saving.join()

    def _begin(self, loop: Loop) -> None:
        channels, info, settings = loop.listener.channels, loop.source.info, self._settings or Settings()
        if self._channel is not None and self._channel not in channels:
            raise InputError(
                f"--channel must be one of the channels in use ({', '.join(map(str, channels))}), not {self._channel}"
            )
        known = calibration(settings.hydrophones, settings.adc_peak_v, len(channels))
        self._loop = loop
        self._stream = Stream(
            info, channels, Waterfall(len(channels), info.rate_hz), Meters(info.rate_hz, known),
            Roll(info.rate_hz, len(channels), ROLL_S),
        )  # fmt: skip

    def _take(self, item: Item | None) -> None:
        stream = self._stream
        if stream is None or not isinstance(item, (AudioBlock, Missing)):
            return
        if isinstance(item, AudioBlock):
            self._hear(stream, item)
        else:
            before = stream.missing
            length_s = (item.end_sample - item.start_sample) / stream.info.rate_hz
            same = before is not None and (before.kind, before.cause) == (item.kind, item.cause)
            length_s += before.length_s if before is not None and same else 0.0
            stream.missing = Stretch(item.kind, item.cause, length_s)
            stream.meters.rest()
            stream.waterfall.skip(item.end_sample)
        stream.heard = item.end_sample

    def _hear(self, stream: Stream, block: AudioBlock) -> None:
        if block.start_sample < stream.heard:
            stream.roll = Roll(stream.info.rate_hz, len(stream.channels), ROLL_S)
        stream.roll.push(block)
        stream.meters.push(block)
        stream.waterfall.push(block)
        stream.missing = None

    def _score(self, window: WindowScore) -> None:
        stream, bundle = self._stream, self._bundle
        if stream is not None and bundle is not None:
            stream.newest = window
            middle = (window.start_sample + window.end_sample) // 2
            half = round(bundle.hop_s * stream.info.rate_hz / 2)
            stream.waterfall.score(middle - half, middle + half, window.channel_scores)

    def _look(self, loop: Loop) -> None:
        """Take the loop's figures here, in its own thread."""
        stream, synchronised = self._stream, loop.logbook.ledger.synchronised
        if stream is not None:
            stream.seconds = dict(loop.seconds)
            utc = loop.source.utc_at(stream.heard)
            step = loop.ladder.number, loop.ladder.step.name
            self._facts = (utc, loop.source.behind_s, *step, synchronised, loop.recorder.events)

    def _hearing(self, columns: int) -> Hearing | None:
        stream = self._stream
        if stream is None:
            return None
        levels_db, scores = stream.waterfall.picture(min(columns, MOST_COLUMNS))
        utc, behind_s, step, step_name, synchronised, detections = self._facts
        newest = stream.newest
        return Hearing(
            stream.info, stream.channels, utc, stream.heard / stream.info.rate_hz, levels_db, scores,
            stream.waterfall.bands.high_hz,
            None if newest is None else newest.score,
            None if newest is None else newest.channel_scores,
            None if newest is None else newest.member_scores,
            stream.meters.unit, stream.meters.full_scale_db, stream.meters.readings(), stream.seconds, stream.missing,
            behind_s, step, step_name, synchronised, detections,
        )  # fmt: skip

    def _save(self, stream: Stream, settings: Settings, blocks: list[AudioBlock]) -> None:
        began_s = time.monotonic()
        rows = round(handclips.KEPT_S * stream.info.rate_hz)
        try:
            paths = [self._saved(stream, settings, block) for block in handclips.newest(blocks, rows)]
        except OSError as fault:
            self.note(
                f"the clip cannot be saved: {fault.strerror or fault}; look at the disk of {settings.output}", True
            )
            return
        log.debug("a clip by hand took %.2f s", time.monotonic() - began_s)
        self.note(saved_text([path for path in paths if path is not None]))

    def _saved(self, stream: Stream, settings: Settings, block: AudioBlock) -> Path | None:
        if len(block.samples) < handclips.LEAST_S * stream.info.rate_hz or self._loop is None:
            return None
        utc = self._loop.source.utc_at(block.start_sample)
        return handclips.save(block, stream.info, utc, stream.channels, settings)


def saved_text(paths: Sequence[Path]) -> str:
    """Where a clip was saved."""
    first = printable(paths[0])
    return f"saved {first}" + (f" and {len(paths) - 1} more: there are gaps between them" if len(paths) > 1 else "")


class NotesHandler(logging.Handler):
    """Hands log records to a view."""

    def __init__(self, lookout: Lookout) -> None:
        super().__init__()
        self._lookout = lookout

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one over."""
        self._lookout.note(record.getMessage(), record.levelno >= logging.WARNING)
