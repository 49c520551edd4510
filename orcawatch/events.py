"""From window scores to events: hysteresis, merging, and borders as tight as the windows allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .records import Event, WindowScore


@dataclass(frozen=True)
class EventRules:
    """When windows become an event.

    Attributes
    ----------
    start_threshold, stop_threshold : fused scores at which an event opens (at least) and closes (below).
    merge_gap_s : events no further apart than this become one, unless it would last `max_duration_s` or more.
    min_duration_s : shorter events are dropped.
    max_duration_s : an event that has grown to this is closed; what follows may open a new one.
    """

    start_threshold: float
    stop_threshold: float
    merge_gap_s: float = 1.0
    min_duration_s: float = 0.0
    max_duration_s: float = 30.0


class EventBuilder:
    """Joins scored windows, pushed in order, into events.

    Windows overlap, so their union would overstate an event by up to a window at either side. Each window therefore
    stands for its cell only: from half-way between its centre and the centre of the window before, to half-way to the
    next; the first cell of a stretch begins, and the last ends, with its window. A window's score tells most
    about its middle, and the cells tile the stretch. An event's span is the union of its cells, and of those between
    merged parts. Events never span a gap.

    Parameters
    ----------
    rules : thresholds and durations; may be replaced at any time.
    rate_hz : samples per second of the windows' positions.
    """

    def __init__(self, rules: EventRules, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self.rules = rules
        self._last: WindowScore | None = None
        self._open = False  # the hysteresis: the last window is part of an event
        self._start = self._end = 0
        self._held: list[WindowScore] = []  # the windows of the event that may still grow
        self._after: list[WindowScore] = []  # windows since its end

    @property
    def _merge_gap(self) -> float:
        return self.rules.merge_gap_s * self._rate_hz

    @property
    def _min(self) -> float:
        return self.rules.min_duration_s * self._rate_hz

    @property
    def _max(self) -> float:
        return self.rules.max_duration_s * self._rate_hz

    @property
    def open_since(self) -> int | None:
        """From where on there may still be an event that was not returned; None before the first window."""
        if self._held:
            return self._start
        return None if self._last is None else centre(self._last)

    def push(self, window: WindowScore) -> list[Event]:
        """Take the next window; return the events that can no longer change."""
        done = self.finish() if self._follows_gap(window) else []
        border = window.start_sample if self._last is None else (centre(self._last) + centre(window)) // 2
        self._last = window
        if self._open:
            done += self._grow(window, border)
        elif window.score >= self.rules.start_threshold:
            done += self._begin(window, border)
        else:
            done += self._pass(window)
        return done

    def finish(self) -> list[Event]:
        """End the stretch; return the event still held, if any."""
        if self._open and self._last is not None:
            self._end = self._last.end_sample
        self._last = None
        self._open = False
        return self._emit()

    def _follows_gap(self, window: WindowScore) -> bool:
        last = self._last
        return last is not None and not last.start_sample < window.start_sample <= last.end_sample

    def _grow(self, window: WindowScore, border: int) -> list[Event]:
        """The window after one inside an event."""
        self._end = border
        self._open = window.score >= self.rules.stop_threshold
        if not self._open:
            return self._pass(window)
        if border - self._start < self._max:
            self._held.append(window)
            return []
        self._open = window.score >= self.rules.start_threshold
        return self._begin(window, border) if self._open else self._emit()

    def _begin(self, window: WindowScore, border: int) -> list[Event]:
        """A window that opens an event, or joins the one before."""
        self._open = True
        if self._held and border - self._end <= self._merge_gap and border - self._start < self._max:
            self._held += [*self._after, window]
            self._after = []
            return []
        done = self._emit()
        self._start, self._held = border, [window]
        return done

    def _pass(self, window: WindowScore) -> list[Event]:
        """A window outside events."""
        if not self._held:
            return []
        self._after.append(window)
        # The next event cannot begin before this window's centre.
        return self._emit() if centre(window) - self._end > self._merge_gap else []

    def _emit(self) -> list[Event]:
        held, self._held, self._after = self._held, [], []
        if not held or self._end - self._start < self._min:
            return []
        return [event_of(held, self._start, self._end)]


def centre(window: WindowScore) -> int:
    """Middle of a window, samples."""
    return (window.start_sample + window.end_sample) // 2


def event_of(windows: list[WindowScore], start_sample: int, end_sample: int) -> Event:
    """The record of an event with these windows and this span."""
    channel_scores = np.fmax.reduce([window.channel_scores for window in windows])
    return Event(
        start_sample,
        end_sample,
        max(window.score for window in windows),
        channel_scores,
        int(np.nanargmax(channel_scores)),
        tuple(windows),
    )
