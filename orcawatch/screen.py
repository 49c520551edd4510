"""The live view as lines of text: header, spectrograms with their meters, detections, messages, keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from .levels import PRESSURE
from .lookout import Hearing, Note, Sight
from .meters import Reading
from .palette import Palette
from .store import Detection
from .terminal import Joined, Line, plain
from .waterfall import COLUMN_S, LOW_HZ, background_db, in_rows

Array = NDArray[np.float32]

LEAST_DB = 1.0  # above the background, where colours begin
CONTRASTS_DB = (12.0, 18.0, 24.0, 30.0, 40.0, 50.0)
METER_DB = 80.0  # below full scale, where meters begin
LABELS_HZ = (10000, 5000, 2000, 1000, 500, 300)
NOTE_S, GRAVE_S = 12.0, 60.0  # how long messages are shown
BACKLOG_S = 1.0
DIM, BOLD, WARN, GOOD, FOUND = "bright_black", "bold", "bold yellow", "green", "bold black on bright_yellow"
BARS, ASCII_BARS = "▏▎▍▌▋▊▉█", "#"
STRIP, ASCII_STRIP = " ▁▂▃▄▅▆▇█", " .:-=+*#@"

HELP = (
    ("space", "pause the view, and go on; detection goes on meanwhile"),
    ("s", "save the last 30 s of all channels (those before the pause, while paused)"),
    ("0 to 9", "show this channel alone"),
    ("left, right", "the channel before, the next one"),
    ("a", "show all channels"),
    ("+ -", "more contrast, less"),
    ("? escape", "this page, and back"),
    ("q", "end; clips that are being made are finished"),
    ("Ctrl-Z", "hold orcawatch; `fg` goes on, what finds no room meanwhile is a gap"),
)


@dataclass
class View:
    """What a person has chosen.

    Attributes
    ----------
    channel : the channel that is shown alone; None for all.
    contrast : index of `CONTRASTS_DB`.
    frozen : the sight that is shown while paused.
    help : whether the keys are explained.
    ending : whether it ends.
    keys : whether there are keys.
    """

    channel: int | None = None
    contrast: int = 2
    frozen: Sight | None = None
    help: bool = False
    ending: bool = False
    keys: bool = True


@dataclass(frozen=True)
class Grid:
    """Where things stand: cells left of the spectrograms, in them, and right of them; whether each has a title."""

    axis: int
    cells: int
    side: int
    titled: bool


@dataclass
class Screen:
    """Makes lines of a sight.

    Attributes
    ----------
    palette : the terminal's colours.
    unicode : whether block characters can be shown.
    """

    palette: Palette
    unicode: bool = True
    _background: tuple[float, Array] | None = field(default=None, repr=False)

    def lines(self, sight: Sight, view: View, width: int, height: int, now: datetime) -> list[Line]:
        """The view, `height` lines of at most `width` cells.

        Parameters
        ----------
        sight : as things are now; the spectrogram of a paused view is that of `view.frozen`.
        now : timezone-aware, for the age of messages.
        """
        shown = view.frozen or sight
        top = header(sight, view, width, height)
        bottom = [message(sight, view, now, width), footer(view, width)]
        room = height - len(top) - len(bottom)
        if view.help:
            body: list[Line] = [*helped(width)]
        elif shown.hearing is None:
            body = [*waiting(shown, width)]
        else:
            body = self._body(shown, shown.hearing, view, width, room)
        body = [*body, *(Text() for _ in range(room))][: max(0, room)]
        lines = [*top, *body, *bottom][:height]
        for line in lines:
            if isinstance(line, Text):
                line.truncate(width)
        return lines

    def _body(self, sight: Sight, hearing: Hearing, view: View, width: int, room: int) -> list[Line]:
        listed = [*found(sight, width, list_room(room))]
        room -= len(listed)
        picked = chosen(hearing, view.channel, max(1, (room - 2) // (2 if width >= 56 else 3)))
        side = 36 if width >= 110 else 27 if width >= 74 else 20 if width >= 56 else 0
        axis = 8 if width >= 56 else 4
        cells = width - axis - side - 1
        threshold = 1.0 if sight.bundle is None else sight.bundle.start_threshold
        above = self._above(hearing, cells)
        lines: list[Line] = []
        heights = shares(room - 2, len(picked))
        grid = Grid(axis, cells, side, min(heights) >= 5)
        for index, rows in zip(picked, heights):
            lines += self._channel(sight, hearing, view, index, above[:, index], rows, grid)
        if room < 3:
            return [*lines, *listed]
        scores = hearing.scores[:, picked[0]] if len(picked) == 1 else fused_columns(hearing.scores)
        lines.append(strip(scores[-cells:], cells, axis, threshold, self.unicode, side))
        lines.append(time_axis(cells, axis))
        return [*lines, *listed]

    def _above(self, hearing: Hearing, cells: int) -> Array:
        """Columns above their background, in dB, shape (cells, channels, bands)."""
        levels = hearing.levels_db
        if self._background is None or abs(hearing.position_s - self._background[0]) >= 0.5:
            self._background = hearing.position_s, background_db(levels)
        if self._background[1].shape != levels.shape[1:]:
            self._background = hearing.position_s, background_db(levels)
        above = levels[-cells:] - self._background[1]
        missing = np.full((max(0, cells - len(above)), *above.shape[1:]), np.nan, np.float32)
        return np.concatenate([missing, above])

    def _channel(
        self,
        sight: Sight,
        hearing: Hearing,
        view: View,
        index: int,
        above: Array,
        rows: int,
        grid: Grid,
    ) -> Iterator[Line]:
        axis, cells, side, title = grid.axis, grid.cells, grid.side, grid.titled
        below = 0 if side else 1
        if title:
            yield heading(sight, hearing, index, axis + cells + 1 + side)
        lines = max(1, rows - title - below)
        scale = (in_rows(above, self.palette.rows_of(lines)) - LEAST_DB) / CONTRASTS_DB[view.contrast]
        aside = [*self._aside(sight, hearing, index, side, lines, title)] if side else []
        for row, cell in enumerate(self.palette.lines(scale.astype(np.float32))):
            left = Text(label(row, lines, hearing.high_hz, axis), style=DIM)
            right = aside[row] if row < len(aside) else Text()
            right.truncate(side)
            yield Joined(left, axis, cell, right)
        if below:
            yield self._compact(sight, hearing, index, axis + cells)

    def _aside(self, sight: Sight, hearing: Hearing, index: int, side: int, lines: int, titled: bool) -> Iterator[Text]:
        reading, score = hearing.readings[index], channel_score(hearing, index)
        threshold = 1.0 if sight.bundle is None else sight.bundle.start_threshold
        name = "score " if titled else f"{hearing.channels[index]:<6d}"
        yield Text(" ").append(self._score(score, threshold, name, side - 1))
        yield Text(" ").append(self._level(hearing, index, reading, "level ", side - 1))
        if lines >= 3:
            yield peak_text(reading, hearing.unit, side - 1)
        members = () if sight.bundle is None else sight.bundle.members
        if hearing.member_scores is not None and lines >= 4 + len(members):
            yield Text()
            for name, value in zip(members, hearing.member_scores[index]):
                yield Text(" ").append(self._score(float(value), None, f"{fitted(plain(name), 14):<14} ", side - 1))

    def _score(self, score: float, threshold: float | None, name: str, width: int) -> Text:
        """A bar of a score, the threshold marked, and its figure."""
        cells = width - len(name) - 7
        over = threshold is not None and score >= threshold
        text = Text().append(name, "" if threshold is not None else DIM)
        mark = None if threshold is None else min(cells - 1, int(threshold * cells))
        style = "bright_yellow" if over else "cyan" if threshold is not None else "blue"
        text.append(self._bar(0 if math.isnan(score) else score, cells, style, mark))
        return text.append(f"{'-':>7}" if math.isnan(score) else f"{score:7.2f}", "bold bright_yellow" if over else "")

    def _level(self, hearing: Hearing, index: int, reading: Reading, name: str, width: int) -> Text:
        """A bar of a level, its peak marked, and its figure; or that it is clipped."""
        cells, top = width - len(name) - 7, hearing.full_scale_db[index]
        share, peak = (meter_share(value, top) for value in (reading.level_db, reading.peak_db))
        mark = None if math.isnan(reading.peak_db) else min(cells - 1, int(peak * cells))
        text = Text(name).append(self._bar(share, cells, "red" if reading.clipped else GOOD, mark))
        if reading.clipped:
            return text.append("  ").append(" CLIP", "bold white on red")
        return text.append("      -" if math.isnan(reading.level_db) else f" {reading.level_db:6.1f}")

    def _bar(self, share: float, cells: int, style: str, mark: int | None) -> Text:
        """A bar of so many cells, with a mark."""
        cells = max(1, cells)
        whole = max(0.0, min(1.0, share)) * cells
        full = int(whole)
        rest = BARS[int((whole - full) * 8) - 1] if self.unicode and int((whole - full) * 8) else ""
        letters = ((BARS[-1] if self.unicode else ASCII_BARS) * full + rest).ljust(cells)[:cells]
        text = Text(letters, style=f"{style} on grey19" if self.palette.halves else style)
        if mark is None:
            return text
        inside = mark < full
        drawn = Text("│" if self.unicode else "|", style=f"bold black on {style}" if inside else "bold white on grey19")
        return Text.assemble(text[:mark], drawn, text[mark + 1 :])

    def _compact(self, sight: Sight, hearing: Hearing, index: int, width: int) -> Text:
        """Score and level of a channel on one line."""
        threshold = 1.0 if sight.bundle is None else sight.bundle.start_threshold
        half = width // 2
        text = self._score(channel_score(hearing, index), threshold, f"{hearing.channels[index]:>2d} ", half)
        return text.append(" ").append(self._level(hearing, index, hearing.readings[index], "", width - half - 1))


def header(sight: Sight, view: View, width: int, height: int) -> list[Line]:
    """Who listens to what, and what became of the time."""
    first, second = Text().append(" orcawatch ", "bold reverse"), Text(" ")
    settings, hearing = sight.settings, sight.hearing
    about = [plain(settings.station)] if settings is not None and settings.station else []
    if hearing is not None:
        channels = "1 channel" if len(hearing.channels) == 1 else f"{len(hearing.channels)} channels"
        about += [plain(hearing.info.name), f"{hearing.info.rate_hz / 1000:g} kHz", channels]
    if sight.bundle is not None:
        about.append(f"bundle {plain(sight.bundle.name)}")
    state, style = state_of(sight, view)
    moment = "" if hearing is None else when(hearing.utc, hearing.position_s)
    right = Text.assemble((f" {state} ", style), f" {moment} ")
    first.append(" " + fitted(" · ".join(about), max(0, width - len(first) - len(right) - 2)))
    first.append(" " * max(1, width - first.cell_len - right.cell_len)).append(right)
    if hearing is not None:
        for number, (text, grave) in enumerate(account(hearing, width)):
            second.append("" if number == 0 else " · ", DIM).append(text, WARN if grave else "")
    return [first, second] if height >= 12 else [first]


def state_of(sight: Sight, view: View) -> tuple[str, str]:
    """What goes on, and its style."""
    hearing = sight.hearing
    if view.ending:
        return "ENDING", WARN
    if view.frozen is not None:
        return "PAUSED", "bold black on cyan"
    if sight.bundle is None:
        return "OPENING", DIM
    if hearing is None:
        return "WAITING", WARN
    if hearing.missing is not None:
        return {"off_duty": "OFF DUTY", "shed": "OVERLOAD"}.get(hearing.missing.kind, "NO AUDIO"), "bold white on red"
    if hearing.fused is not None and hearing.fused >= sight.bundle.start_threshold:
        return "ORCA", FOUND
    return "LISTENING", "black on green"


def account(hearing: Hearing, width: int) -> Iterator[tuple[str, bool]]:
    """Effort, gaps, backlog, clock, detections; and whether that is a trouble."""
    sums: dict[str, float] = {}
    for (kind, _), seconds in hearing.seconds.items():
        sums[kind] = sums.get(kind, 0.0) + seconds
    yield f"heard {clock_text(sums.get('recorded', 0.0))} of {clock_text(sum(sums.values()))}", False
    for kind, name in (("gap", "gaps"), ("shed", "shed"), ("off_duty", "off duty")):
        if sums.get(kind):
            yield f"{name} {sums[kind]:.1f} s", kind != "off_duty"
    if hearing.step:
        yield f"overload: {hearing.step_name}", True
    if hearing.behind_s >= BACKLOG_S or hearing.step:
        yield f"backlog {hearing.behind_s:.1f} s", True
    yield ("1 detection" if hearing.detections == 1 else f"{hearing.detections} detections"), False
    if hearing.synchronised is not None and width >= 60:
        yield ("clock synchronised", False) if hearing.synchronised else ("clock NOT synchronised", True)
    if hearing.fused is not None and width >= 100:
        yield f"fused score {hearing.fused:.2f}", False


def heading(sight: Sight, hearing: Hearing, index: int, width: int) -> Text:
    """The line above a channel."""
    serials = () if sight.settings is None else sight.settings.hydrophones
    serial = f" · {plain(serials[index].serial)}" if index < len(serials) and serials[index].serial else ""
    text = Text().append(f" channel {hearing.channels[index]}{serial} ", BOLD)
    return text.append(("─" * width)[: max(0, width - text.cell_len)], DIM)


def label(row: int, lines: int, high_hz: float, axis: int) -> str:
    """What stands left of a row: a frequency where one lies in it, kHz."""
    unit = " kHz" if axis >= 8 else ""
    for hz in [high_hz, *LABELS_HZ[1:]]:
        if hz <= high_hz and row == row_of(hz, lines, high_hz):
            text = f"{hz / 1000:.3g}{unit if row == 0 else ''}"
            return f"{text:>{axis - 1}} "
    return " " * axis


def row_of(hz: float, lines: int, high_hz: float) -> int:
    """The row that a frequency lies in, 0 the highest."""
    share = math.log(high_hz / hz) / math.log(high_hz / LOW_HZ)
    return min(lines - 1, int(share * lines))


def peak_text(reading: Reading, unit: str, width: int) -> Text:
    """The held peak, and what levels are relative to."""
    peak = "-" if math.isnan(reading.peak_db) else f"{reading.peak_db:.1f}"
    known = unit if width >= 33 else "re 1 uPa" if unit == PRESSURE else "re f.s."
    return Text(f" peak {peak} {known}", style=DIM)


def meter_share(level_db: float, full_scale_db: float) -> float:
    """How full a meter is."""
    return 0.0 if math.isnan(level_db) else max(0.0, min(1.0, 1 + (level_db - full_scale_db) / METER_DB))


def channel_score(hearing: Hearing, index: int) -> float:
    """A channel's newest score; not a number where there is none."""
    return math.nan if hearing.channel_scores is None else float(hearing.channel_scores[index])


def strip(scores: Array, cells: int, axis: int, threshold: float, unicode: bool, side: int) -> Text:
    """Scores of the columns above, as small bars; bright from the threshold on."""
    letters = STRIP if unicode else ASCII_STRIP
    text = Text().append(f"{'score' if axis >= 8 else 'sc':>{axis - 1}} ", DIM)
    text.append(" " * (cells - len(scores)))
    for score in scores.tolist():
        known = not math.isnan(score)
        letter = letters[min(len(letters) - 1, int(score * (len(letters) - 1) + 0.5))] if known else " "
        text.append(letter, "bright_yellow" if known and score >= threshold else "cyan")
    return text.append(f" threshold {threshold:.2f}" if side else "", DIM)


def fused_columns(scores: Array) -> Array:
    """The highest of the channels' scores in each column."""
    lowest = np.where(np.isnan(scores), -1, scores).max(axis=1)
    return np.asarray(np.where(lowest < 0, np.nan, lowest), np.float32)


def time_axis(cells: int, axis: int) -> Text:
    """Seconds before now, under the columns."""
    line = [" "] * cells
    for seconds in range(0, int(cells * COLUMN_S) + 1, 5):
        text = "now" if seconds == 0 else f"-{seconds} s"
        end = cells - round(seconds / COLUMN_S)
        if end - len(text) >= 0:
            line[end - len(text) : end] = text
    return Text(" " * axis + "".join(line), style=DIM)


def found(sight: Sight, width: int, room: int) -> Iterator[Text]:
    """The list of detections, the newest first."""
    if room < 1:
        return
    if room >= 3:
        zone = local_zone()
        times = f"UTC, in brackets {zone}" if zone else "UTC"
        known = not sight.detections or sight.detections[0].start_utc is not None
        about = f"times in {times if known else 's of the stream'}, the newest first "
        title = Text().append(" detections ", BOLD).append(about, DIM)
        yield title.append("─" * max(0, width - title.cell_len), DIM)
        room -= 1
    if not sight.detections:
        yield Text(" none yet", style=DIM)
        room -= 1
    for detection in sight.detections[:room]:
        yield Text(" " + detection_text(detection, width))
    for _ in range(room - len(sight.detections)):
        yield Text()


def detection_text(detection: Detection, width: int) -> str:
    """A detection on one line."""
    length_s = detection.end_s - detection.start_s
    parts = [moment_text(detection, width), f"{detection.score:.3f}"]
    serials = dict(zip(detection.channels, detection.hydrophones))
    serial = plain(serials.get(detection.best_channel, ""))
    wide = width >= 74
    parts.append(f"channel {detection.best_channel} {serial}".rstrip() if wide else f"ch {detection.best_channel}")
    parts.append(f"{length_s:4.1f} s")
    if detection.bearing_deg is not None:
        error = (
            ""
            if detection.bearing_error_deg is None
            else f" ± {detection.bearing_error_deg:.{0 if detection.bearing_error_deg >= 1 else 1}f}"
        )
        parts.append(f"{'bearing ' if wide else ''}{detection.bearing_deg:03.0f}{error} deg")
    elif wide and detection.bearing_note:
        parts.append(plain(detection.bearing_note))
    if wide and detection.clip:
        parts.append(plain(detection.clip))
    return "  ".join(parts)


def moment_text(detection: Detection, width: int) -> str:
    """When a detection began: UTC, and the local time where that is another."""
    if detection.start_utc is None:
        return f"{detection.start_s:8.2f} s"
    utc = f"{detection.start_utc:%H:%M:%S}"
    if width < 74 or not local_zone():
        return utc
    return f"{utc} ({detection.start_utc.astimezone():%H:%M:%S})"


def local_zone() -> str:
    """Name of the local zone; empty where it is UTC."""
    now = datetime.now().astimezone()
    return str(now.tzname()) if now.utcoffset() else ""


def when(utc: datetime | None, position_s: float) -> str:
    """The time of the newest sample."""
    return f"{utc:%H:%M:%S} UTC" if utc is not None else clock_text(position_s)


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def waiting(sight: Sight, width: int) -> Iterator[Text]:
    """What is waited for, and the cure."""
    if sight.bundle is None:
        yield from (Text(), Text("  opening the bundle and the log", style=BOLD))
        return
    source = None if sight.settings is None else sight.settings.source
    name = (
        "the default input" if source is None or source.device is None else f"the sound card {plain(source.device)!r}"
    )
    yield from (Text(), Text(f"  waiting for {name}", style=WARN), Text())
    for text in told(sight.notes):
        yield from (Text("  " + line) for line in wrapped(plain(text), width - 4))
        yield Text()
    advice = (
        "It is tried again and again, and orcawatch goes on by itself when it comes. `orcawatch devices` lists what is "
        "there, by the names that --device takes. A microphone that the system keeps from programs has to be allowed "
        "in its settings for sound or privacy; on Linux the user must be in the group `audio`."
    )
    yield from (Text("  " + line, style=DIM) for line in wrapped(advice, width - 4))


def told(notes: Sequence[Note]) -> list[str]:
    """The newest two different warnings, the older first."""
    texts = list(dict.fromkeys(note.text for note in reversed(notes) if note.grave))
    return texts[:2][::-1]


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines."""
    import textwrap

    return textwrap.wrap(text, max(10, width)) or [""]


def helped(width: int) -> Iterator[Text]:
    """The keys, explained."""
    yield from (Text(), Text("  Keys", style=BOLD), Text())
    for key, what in HELP:
        first, *more = wrapped(what, width - 18)
        yield Text().append(f"  {key:<13}", "bold cyan").append(first)
        yield from (Text(" " * 15 + line) for line in more)
    about = (
        "Colours: dB above each band's own median of the last minute. Yellow scores reach the threshold, the mark in "
        "the bars. Meters show RMS and the held peak; CLIP stays for 5 s."
    )
    yield Text()
    yield from (Text("  " + line, style=DIM) for line in wrapped(about, width - 4))


def message(sight: Sight, view: View, now: datetime, width: int) -> Text:
    """The line above the keys: why there is no audio, what was saved, what went wrong."""
    hearing = sight.hearing
    if hearing is not None and hearing.missing is not None and not view.ending:
        missing = hearing.missing
        return Text(fitted(f" no audio for {missing.length_s:.0f} s: {plain(missing.cause)}", width), style=WARN)
    note = newest_note(sight.notes, now)
    if note is not None and (hearing is not None or not note.grave):
        return Text(fitted(f" {plain(note.text)}", width), style=WARN if note.grave else "cyan")
    if view.frozen is not None:
        more = len_since(sight, view.frozen)
        return Text(fitted(f" the view is paused; detection goes on{more}", width), style="cyan")
    return Text()


def newest_note(notes: Sequence[Note], now: datetime) -> Note | None:
    """The newest message that is not too old."""
    for note in reversed(notes):
        if (now - note.utc).total_seconds() < (GRAVE_S if note.grave else NOTE_S):
            return note
    return None


def len_since(sight: Sight, frozen: Sight) -> str:
    """How many detections came since."""
    if sight.hearing is None or frozen.hearing is None:
        return ""
    more = sight.hearing.detections - frozen.hearing.detections
    return f": {more} new since" if more else ""


def footer(view: View, width: int) -> Text:
    """The keys."""
    if not view.keys:
        return Text(" Ctrl-C ends (standard input is no terminal: no keys)", style=DIM)
    keys = [
        ("space", "go on" if view.frozen else "pause"), ("s", "save clip"), ("0-9 ← →", "channel"), ("a", "all"),
        ("+ -", "contrast"), ("?", "help"), ("q", "quit"),
    ]  # fmt: skip
    if width < 74:
        keys = [keys[index] for index in (0, 1, 5, 6)]
        keys[1] = ("s", "save")
    text = Text()
    for key, what in keys:
        text.append(f" {key}", "bold cyan").append(f" {what} ", DIM)
    return text


def list_room(room: int) -> int:
    """Lines for the list of detections."""
    return 1 if room < 12 else 4 if room < 24 else max(5, room // 5)


def chosen(hearing: Hearing, channel: int | None, most: int) -> list[int]:
    """Indices of the channels that are shown: one, or as many as there is room for."""
    if channel is not None and channel in hearing.channels:
        return [hearing.channels.index(channel)]
    return list(range(min(most, len(hearing.channels))))


def shares(room: int, parts: int) -> list[int]:
    """A number of lines, shared."""
    return [room // parts + (index < room % parts) for index in range(parts)]


def fitted(text: str, width: int) -> str:
    """Text of at most so many cells."""
    cut = Text(text)
    cut.truncate(width, overflow="ellipsis")
    return cut.plain
