"""The parts of the live view: spectrogram, meters, colours, lines of every size, clips by hand, plain lines."""

from __future__ import annotations

import logging
import math
import re
import signal
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.color import ColorSystem

from orcawatch import handclips
from orcawatch.config import HydrophoneSettings, Settings, SourceSettings
from orcawatch.daemon import stop_signals
from orcawatch.errors import InputError
from orcawatch.levels import Calibration
from orcawatch.listen import listened, noted
from orcawatch.lookout import Lookout
from orcawatch.meters import Meters
from orcawatch.palette import Palette
from orcawatch.records import AudioBlock, Item, Missing, StreamInfo, WindowScore
from orcawatch.screen import Screen, View, clock_text, detection_text, label, row_of
from orcawatch.store import Detection
from orcawatch.terminal import Joined, names, plain
from orcawatch.waterfall import BANDS, COLUMN_S, Waterfall, background_db, in_rows

RATE_HZ = 32000
COLUMN = round(COLUMN_S * RATE_HZ)
UTC = datetime(2026, 7, 1, 12, 0, tzinfo=timezone.utc)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def tone(hz: float, seconds: float, loud: float = 0.5, channels: int = 1) -> Any:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(1).normal(0, 1e-4, (len(time_s), channels))
    return np.asarray(noise + (loud * np.sin(2 * np.pi * hz * time_s))[:, None], np.float32)


@pytest.mark.parametrize("hz", [350, 1000, 2500, 9000])
def test_tone_stands_in_the_row_of_its_frequency(hz: float) -> None:
    waterfall = Waterfall(1, RATE_HZ)
    waterfall.push(AudioBlock(tone(hz, 1.0), 0))
    levels, _ = waterfall.picture(8)
    rows = in_rows(levels[:, 0], 24)
    assert levels.shape == (8, 1, BANDS) and rows.shape == (24, 8)
    assert abs(int(rows[:, 4].argmax()) - row_of(hz, 24, 10000.0)) <= 1


def test_columns_are_the_same_wherever_the_block_borders_fall() -> None:
    samples, whole, cut = tone(3000, 2.0, channels=2), Waterfall(2, RATE_HZ), Waterfall(2, RATE_HZ)
    whole.push(AudioBlock(samples, 0))
    for first in range(0, len(samples), 777):
        cut.push(AudioBlock(samples[first : first + 777], first))
    np.testing.assert_array_equal(whole.picture(16)[0], cut.picture(16)[0])


def test_what_is_missing_has_no_columns_and_what_follows_is_in_its_place() -> None:
    waterfall = Waterfall(1, RATE_HZ)
    waterfall.push(AudioBlock(tone(1000, 4 * COLUMN_S), 0))
    waterfall.skip(8 * COLUMN)
    waterfall.push(AudioBlock(tone(1000, 2 * COLUMN_S), 8 * COLUMN))
    levels, _ = waterfall.picture(10)
    assert np.isnan(levels[:, 0, 0]).tolist() == 4 * [False] + 4 * [True] + 2 * [False]


def test_scores_stand_under_their_columns_and_are_forgotten_with_them() -> None:
    waterfall = Waterfall(1, RATE_HZ)
    waterfall.push(AudioBlock(tone(1000, 8 * COLUMN_S), 0))
    waterfall.score(2 * COLUMN, 5 * COLUMN, np.array([0.7], np.float32))
    scores = waterfall.picture(8)[1][:, 0]
    assert np.isnan(scores).tolist() == [True, True, False, False, False, True, True, True]
    waterfall.push(AudioBlock(tone(1000, 70.0), 8 * COLUMN))
    assert np.isnan(waterfall.picture(400)[1]).all()


def test_silence_is_no_background() -> None:
    waterfall = Waterfall(1, RATE_HZ)
    waterfall.push(AudioBlock(np.zeros((40 * COLUMN, 1), np.float32), 0))
    silent = background_db(waterfall.picture(60)[0])
    waterfall.push(AudioBlock(tone(1000, 20 * COLUMN_S, loud=0), 40 * COLUMN))
    assert (silent < -120).all() and (background_db(waterfall.picture(60)[0]) > -110).all()


def meters(**known: Any) -> Meters:
    return Meters(RATE_HZ, Calibration((None,), (0.0,), None, **known))


def test_meter_of_a_sine_and_its_held_peak() -> None:
    meter = meters()
    meter.push(AudioBlock(tone(1000, 5.0, loud=0.5), 0))
    (reading,) = meter.readings()
    assert abs(reading.level_db + 9.03) < 0.05 and abs(reading.peak_db + 6.02) < 0.05 and not reading.clipped
    for second in range(5, 9):
        meter.push(AudioBlock(tone(1000, 1.0, loud=0.05), second * RATE_HZ))
    assert meter.readings()[0].peak_db > -27.0
    meter.push(AudioBlock(tone(1000, 1.0, loud=0.05), 9 * RATE_HZ))
    assert abs(meter.readings()[0].peak_db + 26.02) < 0.1


def test_clipping_is_told_for_five_seconds() -> None:
    meter, told = meters(), []
    for second in range(8):
        meter.push(AudioBlock(np.clip(tone(1000, 1.0, loud=2.0 if second == 1 else 0.5), -1, 1), second * RATE_HZ))
        told.append(meter.readings()[0].clipped)
    assert told == [False, True, True, True, True, True, False, False]


def test_meter_without_any_sound_has_no_level() -> None:
    meter = meters()
    meter.push(AudioBlock(np.zeros((RATE_HZ, 1), np.float32), 0))
    assert math.isnan(meter.readings()[0].level_db)


def test_colours_are_written_where_they_change() -> None:
    palette = Palette(ColorSystem.TRUECOLOR, unicode=True)
    (line,) = palette.lines(np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32))
    assert ESCAPE.sub("", line) == "▀▀▀▀" and line.count("\x1b[") == 3
    assert line.startswith("\x1b[38;2;4;6;20;48;2;4;6;20m▀▀\x1b[38;2;252;244;180m▀▀")


@pytest.mark.parametrize("system", [ColorSystem.EIGHT_BIT, ColorSystem.STANDARD])
def test_fewer_colours(system: ColorSystem) -> None:
    lines = Palette(system, unicode=True).lines(np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6))
    assert [ESCAPE.sub("", line) for line in lines] == ["▀" * 6] * 2 and "38;2" not in lines[0]


def test_no_colours_are_letters_without_escapes() -> None:
    levels = np.array([[0, 0.5, 1, np.nan]], np.float32)
    assert Palette(None, unicode=True).lines(levels) == [" ▒█/"]
    assert Palette(None, unicode=False).lines(levels) == [" +@/"]


def test_text_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\u202ed\x9bm [bold]é鯨") == "a\\x1b[2Jb\\nc\\u202ed\\x9bm [bold]é鯨"


def test_keys_have_names() -> None:
    assert list(names(b"a\x1b[C\x1bOD1\x1b")) == ["a", "right", "left", "1", "escape"]


class Course:
    """A loop, as far as a lookout looks at it."""

    def __init__(self, channels: int = 4) -> None:
        info = StreamInfo("card\x1b[31m", RATE_HZ, channels, UTC, live=True)
        self.source = SimpleNamespace(info=info, utc_at=info.utc_at, behind_s=0.0)
        self.listener = SimpleNamespace(channels=tuple(range(channels)))
        self.ladder = SimpleNamespace(number=0, step=SimpleNamespace(name="full"))
        self.logbook = SimpleNamespace(ledger=SimpleNamespace(synchronised=False))
        self.recorder = SimpleNamespace(events=2)
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.position = 0


def lookout_after(items: list[Item], ensemble: Any, channels: int = 4, **settings: Any) -> Lookout:
    """A lookout that has heard these, with a window of a call at the end."""
    lookout, course = Lookout(attended=True), Course(channels)
    lookout.begins(Settings(station="[red]Haro\x1b]0;x\x07", **settings), ensemble.bundle)
    for item in items:
        course.seconds["recorded" if isinstance(item, AudioBlock) else item.kind, ""] += 1.0  # type: ignore[union-attr]
        lookout.heard(course, item, [])  # type: ignore[arg-type]
    scores = np.full(channels, 0.9, np.float32)
    lookout.heard(course, None, [WindowScore(0, RATE_HZ, scores[:, None], scores, 0.9)])  # type: ignore[arg-type]
    return lookout


def detection(**changes: Any) -> Detection:
    known = Detection(
        id=1, source="card", start_s=4.0, end_s=5.9, start_utc=UTC + timedelta(seconds=4), score=0.94, channels=(0, 1),
        channel_scores=(0.9, 0.94), best_channel=1, bundle="b", bundle_digest="0", clip="clips/\x1b[2Jx.flac",
        hydrophones=("H-1", "H-2"), bearing_deg=45.2, bearing_error_deg=6.3,
    )  # fmt: skip
    return replace(known, **changes)


def words(lines: Any) -> list[str]:
    """Lines as they are read, without colours."""
    return [
        f"{line.left.plain:<{line.width}}{ESCAPE.sub('', line.cells)}{line.right.plain}" if isinstance(line, Joined) else line.plain
        for line in lines
    ]  # fmt: skip


def screen() -> Screen:
    return Screen(Palette(ColorSystem.TRUECOLOR, unicode=True))


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("size", [(200, 60), (120, 40), (80, 24), (60, 20), (40, 15), (20, 6)])
def test_every_size_is_filled_and_nothing_sticks_out(ensemble: Any, size: tuple[int, int], channels: int) -> None:
    lookout = lookout_after([AudioBlock(tone(1000, 8.0, channels=channels), 0)], ensemble, channels)
    lookout.detected(detection())
    drawn = screen()
    for view in (View(), View(channel=0), View(help=True), View(frozen=lookout.sight(400)), View(keys=False)):
        lines = words(drawn.lines(lookout.sight(400), view, *size, UTC))
        assert len(lines) == size[1] and (size[0] < 40 or max(map(len, lines)) <= size[0]), lines
        assert not any("\x1b" in line or "\x07" in line for line in lines)


def text_of(lookout: Lookout, view: View | None = None, size: tuple[int, int] = (120, 40), now: datetime = UTC) -> str:
    return "\n".join(words(screen().lines(lookout.sight(400), view or View(), *size, now)))


def test_view_of_an_array_says_everything(ensemble: Any) -> None:
    serials = tuple(HydrophoneSettings(serial=f"H-{number}") for number in range(4))
    lookout = lookout_after([AudioBlock(tone(1000, 8.0, channels=4), 0)], ensemble, hydrophones=serials)
    lookout.detected(detection())
    told = text_of(lookout)
    for part in (
        r"[red]Haro\x1b]0;x\x07", r"card\x1b[31m", "32 kHz", "4 channels", "bundle fake", "ORCA", "12:00:08 UTC",
        "heard 0:00:01 of 0:00:01", "2 detections", "clock NOT synchronised", "channel 3 · H-3", "10 kHz", "0.90", "-9.0",
        "dB re full scale", "threshold 0.50", "12:00:04", "0.940  channel 1 H-2", "1.9 s", "bearing 045 ± 6 deg", "now", "-5 s",
    ):  # fmt: skip
        assert part in told, part


def test_small_terminals_still_tell_what_matters(ensemble: Any) -> None:
    lookout = lookout_after([AudioBlock(tone(1000, 8.0, channels=4), 0)], ensemble)
    lookout.detected(detection())
    told = text_of(lookout, size=(40, 15))
    assert "ORCA" in told and "045 ± 6" in told and "0.90" in told and "q quit" in told
    assert all(f"\n{channel:>2d} " in told for channel in range(2))


def test_missing_audio_overload_and_pause_are_told(ensemble: Any) -> None:
    items: list[Item] = [AudioBlock(tone(1000, 8.0, channels=4), 0)]
    gap = Missing(8 * RATE_HZ, 11 * RATE_HZ, "gap", "device gone: 'x' was pulled out\x1b[2J")
    told = text_of(lookout_after([*items, gap], ensemble))
    assert "NO AUDIO" in told and r"no audio for 3 s: device gone: 'x' was pulled out\x1b[2J" in told
    lookout = lookout_after(items, ensemble)
    course = Course()
    course.ladder = SimpleNamespace(number=2, step=SimpleNamespace(name="hop 0.96 s, 2 of 4 channels"))
    course.source.behind_s = 7.25
    frozen = lookout.sight(400)
    course.recorder.events = 5
    lookout.heard(course, None, [])  # type: ignore[arg-type]
    assert "overload: hop 0.96 s, 2 of 4 channels · backlog 7.2 s" in text_of(lookout)
    paused = text_of(lookout, View(frozen=frozen))
    assert "PAUSED" in paused and "the view is paused; detection goes on: 3 new since" in paused and "go on" in paused


def test_waiting_for_the_device_says_what_for_and_the_cure(ensemble: Any) -> None:
    lookout = Lookout(attended=True)
    assert "OPENING" in text_of(lookout)
    lookout.begins(Settings(source=SourceSettings(device="UMC404HD")), ensemble.bundle)
    lookout.note("no device is called 'UMC404HD'; did you mean 'UMC204HD'?", grave=True)
    told = text_of(lookout, size=(60, 20))
    assert (
        "waiting for the sound card 'UMC404HD'" in told
        and "did you mean 'UMC204HD'?" in told
        and "orcawatch devices" in told
    )


def test_messages_go_after_a_while(ensemble: Any) -> None:
    lookout = lookout_after([AudioBlock(tone(1000, 1.0, channels=4), 0)], ensemble)
    lookout.note("saved clips-by-hand/x.flac")
    now = datetime.now(timezone.utc)
    assert "saved clips-by-hand" in text_of(lookout, now=now)
    assert "saved clips-by-hand" not in text_of(lookout, now=now + timedelta(seconds=30))


def test_detection_without_time_or_bearing_says_neither() -> None:
    told = detection_text(detection(start_utc=None, bearing_deg=None, clip=None, hydrophones=()), 80)
    assert told == "    4.00 s  0.940  channel 1   1.9 s"
    assert detection_text(detection(bearing_deg=None, bearing_note="no bearing: why"), 80).count("no bearing: why") == 1


def test_local_time_stands_beside_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "America/Vancouver")
    time.tzset()
    try:
        assert detection_text(detection(), 100).startswith("12:00:04 (05:00:04)  0.940")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_axis_is_labelled_in_khz() -> None:
    labels = [label(row, 24, 10000.0, 8).strip() for row in range(24)]
    assert [text for text in labels if text] == ["10 kHz", "5", "2", "1", "0.5", "0.3"]
    assert label(0, 24, 8000.0, 8) == "  8 kHz "


def test_wrong_channel_is_refused_with_those_there_are(ensemble: Any) -> None:
    lookout = Lookout(attended=True, channel=7)
    lookout.begins(Settings(), ensemble.bundle)
    with pytest.raises(InputError, match=r"--channel must be one of the channels in use \(0, 1, 2, 3\), not 7"):
        lookout.heard(Course(), None, [])  # type: ignore[arg-type]


def test_microphone_that_nobody_configured_has_one_channel() -> None:
    assert listened(Settings(), False, None, None).source.device_channels == 1
    assert listened(Settings(), True, None, None).source.device_channels is None
    assert listened(Settings(), False, "UMC", None).source == SourceSettings(device="UMC")
    assert listened(Settings(source=SourceSettings(file=Path("x"))), True, "UMC", None).source.file is None


def test_clip_by_hand_holds_the_last_thirty_seconds_with_its_time(ensemble: Any, tmp_path: Path) -> None:
    steps = np.random.default_rng(2).integers(-(2**20), 2**20, (40 * RATE_HZ, 2))
    samples = np.asarray(steps / 2**23, np.float32)
    blocks: list[Item] = [AudioBlock(samples[at : at + RATE_HZ], at) for at in range(0, len(samples), RATE_HZ)]
    lookout = lookout_after(blocks, ensemble, 2, output=tmp_path)
    lookout.save()
    lookout.finish()
    (path,) = (tmp_path / handclips.FOLDER).iterdir()
    assert path.name == "20260701T120010.000Z.flac" and str(path) in lookout.sight(0).notes[-1].text
    heard, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(heard, samples[-30 * RATE_HZ :])
    with soundfile.SoundFile(path) as file:
        comment = file.comment
    assert (
        rate_hz == RATE_HZ
        and "Timestamp: 2026-07-01T12:00:10.000Z" in comment
        and "orcawatch|Channels: 0, 1" in comment
    )


def test_clip_saved_while_paused_is_what_was_seen_and_gaps_part_it(ensemble: Any, tmp_path: Path) -> None:
    samples = tone(1000, 60.0, channels=2)
    before: list[Item] = [AudioBlock(samples[: 5 * RATE_HZ], 0), AudioBlock(samples[: 3 * RATE_HZ], 8 * RATE_HZ)]
    lookout = lookout_after(before, ensemble, 2, output=tmp_path)
    lookout.freeze(True)
    lookout.heard(Course(2), AudioBlock(samples[: 40 * RATE_HZ], 11 * RATE_HZ), [])  # type: ignore[arg-type]
    lookout.save()
    lookout.finish()
    found = sorted((tmp_path / handclips.FOLDER).iterdir())
    assert [soundfile.info(path).duration for path in found] == [5.0, 3.0]
    assert lookout.sight(0).notes[-1].text.endswith("and 1 more: there are gaps between them")


def test_clip_that_the_disk_refuses_is_told(ensemble: Any, tmp_path: Path) -> None:
    (tmp_path / handclips.FOLDER).write_text("in the way")
    lookout = lookout_after([AudioBlock(tone(1000, 1.0, channels=2), 0)], ensemble, 2, output=tmp_path)
    lookout.save()
    lookout.finish()
    assert "the clip cannot be saved" in lookout.sight(0).notes[-1].text


def test_clock_text() -> None:
    assert clock_text(3725.9) == "1:02:05"


def test_a_signal_while_something_is_heard_stops_and_locks_nothing(
    ensemble: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler logs, the log is noted in the view, and the loop's thread may be in the middle of telling the view."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("the handler waits for the thread that it interrupted")

    push = Waterfall.push
    lookout, course = Lookout(attended=True), Course()
    lookout.begins(Settings(), ensemble.bundle)
    monkeypatch.setattr(Waterfall, "push", lambda *given: (signal.raise_signal(signal.SIGTERM), push(*given))[1])
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    monkeypatch.setattr(logging.getLogger("orcawatch"), "level", logging.INFO)
    try:
        with noted(lookout), stop_signals() as stop:
            lookout.heard(course, AudioBlock(np.zeros((RATE_HZ, 4), np.float32), 0), [])  # type: ignore[arg-type]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert stop.is_set()
    assert [note.text for note in lookout.sight(0).notes] == ["SIGTERM: stopping; what was heard is finished first"]
