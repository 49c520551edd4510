"""What a session writes: detections, the ledger, levels and messages; what belongs together in one transaction."""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import levels
from .bearing import Bearing, Compass
from .bundle import Bundle
from .capture import Source
from .config import Settings
from .errors import OrcawatchError
from .ledger import Ledger
from .levels import LevelMeter, Levels, event_levels
from .load import Step
from .outbox import Outbox
from .records import AudioBlock, ClockChange, Event, Missing
from .sinks import clock_body, detection_body, thumbnail_body
from .store import Detection, Store

Array = NDArray[np.float32]

log = logging.getLogger(__name__)

UNWRITTEN = 10_000  # rows of levels that wait for a disk that cannot be written to, at most


class Logbook:
    """The written side of one session; every method is called from one thread.

    Parameters
    ----------
    store : the database.
    ledger : of this session.
    source : gives times.
    channels : what the source calls the channels in use.
    bundle : what scores.
    settings : station, hydrophones, levels.
    outbox : where messages for the sinks wait; None where there are no sinks.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        source: Source,
        channels: Sequence[int],
        bundle: Bundle,
        settings: Settings,
        outbox: Outbox | None = None,
    ) -> None:
        self.ledger = ledger
        self.latest: Levels | None = None
        self._store = store
        self._source = source
        self._channels = tuple(channels)
        self._bundle = bundle
        self._settings = settings
        self._outbox = outbox
        self._calibration = levels.calibration(settings.hydrophones, settings.adc_peak_v, len(channels))
        if settings.hydrophones and self._calibration.unknown is not None:
            log.warning("%s", self._calibration.unknown)
        self._compass = Compass.of(settings, channels)
        self._meter = LevelMeter(len(channels), source.info.rate_hz, self._calibration, settings.levels.every_s)
        self._unwritten: deque[tuple[Levels, datetime | None, bool | None]] = deque(maxlen=UNWRITTEN)

    def heard(self, audio: AudioBlock) -> None:
        """Audio that was scored."""
        self.ledger.recorded(audio.start_sample, audio.end_sample)
        self._note(self._meter.push(audio))

    def missing(self, missing: Missing) -> None:
        """Why there was none."""
        self.ledger.missing(missing)
        self._note(self._meter.finish())

    @property
    def wants_thumbnails(self) -> bool:
        """Whether a sink takes them."""
        return self._outbox is not None and self._outbox.takes("thumbnail")

    def clock_changed(self, change: ClockChange) -> None:
        """The system clock was stepped, or its synchronisation changed."""
        self.ledger.clock_changed(change)
        self.post(("clock", clock_body(change)))

    def step(self, number: int, step: Step) -> None:
        """Another step of the overload ladder."""
        self.ledger.step(number, step.name)

    def detection(self, event: Event, samples: Array) -> Detection:
        """The record of an event; `samples` are those of its span, as far as they are there."""
        info = self._source.info
        start_s, end_s = (sample / info.rate_hz for sample in (event.start_sample, event.end_sample))
        bearing = self._bearing(samples, info.rate_hz)
        return Detection(
            id=None,
            source=info.name,
            start_s=start_s,
            end_s=end_s,
            start_utc=self._source.utc_at(event.start_sample),
            score=event.score,
            channels=self._channels,
            channel_scores=tuple(float(score) for score in event.channel_scores),
            best_channel=self._channels[event.best_channel],
            bundle=self._bundle.name,
            bundle_digest=self._bundle.digest,
            station=self._settings.station,
            session=self.ledger.session,
            start_sample=event.start_sample,
            end_sample=event.end_sample,
            synchronised=self.ledger.synchronised,
            hydrophones=tuple(hydrophone.serial for hydrophone in self._settings.hydrophones),
            levels_db=event_levels(samples, self._calibration),
            level_unit=self._calibration.unit,
            bearing_deg=bearing.bearing_deg,
            bearing_error_deg=bearing.error_deg,
            bearing_note=bearing.note,
        )

    def _bearing(self, samples: Array, rate_hz: int) -> Bearing:
        """Where the sound came from; whatever goes wrong with that must not cost the row."""
        try:
            return self._compass.bearing(samples, rate_hz)
        except Exception:
            log.exception("no bearing")
            return Bearing(note="no bearing: its computation failed, see the log")

    def add(self, detection: Detection) -> int:
        """Write a detection's row, the ledger up to now and the messages about it in one transaction; its number.

        Raises
        ------
        OrcawatchError : the disk refuses; nothing was written.
        """

        def along(connection: sqlite3.Connection, number: int) -> None:
            self.ledger.extend(connection)
            if self._outbox is not None:
                self._outbox.post(connection, "detection", detection_body(replace(detection, id=number)))

        return self._store.add(detection, along)

    def attach(self, detection: Detection, picture: bytes | None = None) -> None:
        """Add what was made of a detection after it was written; the picture, a small JPEG, goes to the sinks.

        Raises
        ------
        OrcawatchError : as for `add`.
        """
        self._store.attach(
            int(detection.id or 0), detection.clip, detection.snapshot, detection.numbers, detection.clip_start_s
        )
        if picture is not None:
            self.post(("thumbnail", thumbnail_body(detection, picture)))

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """The store's, for what goes on beside the session."""
        return self._store.transaction()

    def post(self, *messages: tuple[str, Mapping[str, Any]]) -> bool:
        """Put messages, (kind, body), into the outbox; whether the disk took them: otherwise they are gone."""
        if self._outbox is None:
            return True
        try:
            with self._store.transaction() as connection:
                for kind, body in messages:
                    self._outbox.post(connection, kind, body)
        except OrcawatchError as fault:
            log.error("%s for the sinks dropped: %s", " and ".join(kind for kind, _ in messages), fault)
            return False
        return True

    def close(self) -> None:
        """End the session."""
        self._note(self._meter.finish())
        self.ledger.close()

    def _note(self, rows: Sequence[Levels]) -> None:
        for row in rows:
            self.latest = row
            self._unwritten.append((row, self._source.utc_at(row.start_sample), self.ledger.synchronised))
        if rows:
            self._write()

    def _write(self) -> None:
        """Write the levels that wait; where the disk refuses they go on waiting, and the ledger says so."""
        session = self.ledger.session
        if session is None:
            return
        try:
            with self._store.transaction() as connection:
                for row, start_utc, synchronised in self._unwritten:
                    levels.put(connection, session, row, start_utc, synchronised)
        except OrcawatchError as fault:
            log.debug("%d rows of levels wait: %s", len(self._unwritten), fault)
            return
        self._unwritten.clear()
